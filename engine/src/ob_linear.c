/* Matrix products of a session: inputs prepared once, kernels from the dispatch table, rows shared out to threads, and
 * what follows row by row done while they are in the cache. */
#include "ob_session.h"

/* An item is about so many bytes of weights: tens of microseconds of decoding, so that the start of its stream does not
 * count and a slow neighbour is waited for no longer than that; of less, every thread gets a part that is worth waking it
 * for. With many tokens an item lasts longer anyway, and has at least as many rows as let a kernel unpack weights once for
 * all tokens. */
enum { ITEM_BYTES = 1 << 19, LEAST_BYTES = 1 << 14, MANY_TOKENS = 8, MANY_ROWS = 64 };

typedef struct job {
    ob_session *s;
    const ob_inputs *inputs;
    const ob_product *products;
    uint32_t count, total; /* total: blocks of 16 rows to share out */
    int integer, then;
} job;

static uint32_t num_blocks(const ob_weights *w) { return (w->rows + OB_BLOCK_ROWS - 1) / OB_BLOCK_ROWS; }

static uint64_t block_bytes(const ob_weights *w) {
    return w->tile ? (uint64_t)w->tiles_block * OB_TILE_BYTES : w->row_stride * OB_BLOCK_ROWS;
}

/* Rows [begin, end) of one product. */
static void multiply_rows(const job *j, const ob_product *p, uint32_t begin, uint32_t end, uint32_t thread) {
    const ob_kernels *k = &j->s->model->kernels;
    ob_linear_fn *linear = j->integer ? k->linear_i8[p->w->layout] : k->linear_f32[p->w->layout];
    linear(p->w, j->inputs, begin, end, p->y.at, p->y.stride, j->s->work ? j->s->work + (size_t)thread * OB_WORK_BYTES : NULL);
}

/* Rows [begin, end) of x_TH += y, or of the MLP's activation. */
static void finish_rows(const job *j, uint32_t begin, uint32_t end) {
    const ob_description *d = &j->s->model->description;
    const ob_kernels *k = &j->s->model->kernels;
    for (uint32_t t = 0; t < j->inputs->num_tokens; t++) {
        if (j->then == OB_THEN_ADD)
            k->add(ob_row(j->s->x_TH, t) + begin, ob_row(j->products->y, t) + begin, d->residual_scale, end - begin);
        else
            k->activate(d->mlp, ob_has_gate(d) ? ob_row(j->s->gate_TI, t) + begin : NULL, ob_row(j->s->up_TI, t) + begin, end - begin);
    }
}

/* Where an item's rows lie: threads take items in turn, and what one takes in a row should lie in a row, since what it
 * fetched beyond the end of an item is then the next one's beginning. */
static uint32_t place_of(const job *j, uint32_t item, uint32_t num_items) {
    const uint32_t threads = j->s->parallel.num_threads;
    return threads > 1 && num_items % threads == 0 ? item % threads * (num_items / threads) + item / threads : item;
}

/* Products whose rows stand one after another: an item may end one and begin the next. */
static void multiply_in_turn(void *argument, uint32_t item, uint32_t num_items, uint32_t thread) {
    const job *j = argument;
    uint32_t begin, end, first = 0;
    ob_share(j->total, place_of(j, item, num_items), num_items, &begin, &end);
    for (const ob_product *p = j->products; p < j->products + j->count; first += num_blocks(p++->w)) {
        uint32_t from = begin > first ? begin - first : 0, to = end > first ? end - first : 0;
        if (to > num_blocks(p->w)) to = num_blocks(p->w);
        if (from < to) multiply_rows(j, p, from * OB_BLOCK_ROWS, to < num_blocks(p->w) ? to * OB_BLOCK_ROWS : p->w->rows, thread);
    }
}

/* The same rows of all products, and then what follows. */
static void multiply_and_finish(void *argument, uint32_t item, uint32_t num_items, uint32_t thread) {
    const job *j = argument;
    const uint32_t rows = j->products->w->rows;
    uint32_t begin, end;
    ob_share(j->total, place_of(j, item, num_items), num_items, &begin, &end);
    begin *= OB_BLOCK_ROWS;
    end = end * OB_BLOCK_ROWS < rows ? end * OB_BLOCK_ROWS : rows;
    for (uint32_t i = 0; i < j->count; i++) multiply_rows(j, &j->products[i], begin, end, thread);
    finish_rows(j, begin, end);
}

/* How many items a job over so many bytes of weights is cut into: equal turns for every thread. */
static uint64_t num_items(const job *j, uint64_t bytes) {
    const uint64_t threads = j->s->parallel.num_threads;
    if (j->inputs->num_tokens >= MANY_TOKENS) return j->total / (MANY_ROWS / OB_BLOCK_ROWS);
    if (bytes / LEAST_BYTES < threads) return bytes / LEAST_BYTES;
    return (bytes / ITEM_BYTES / threads + 1) * threads;
}

static void run(job *j) {
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < j->count; i++) {
        if (!i || j->then == OB_THEN_NOTHING) j->total += num_blocks(j->products[i].w);
        bytes += num_blocks(j->products[i].w) * block_bytes(j->products[i].w);
    }
    uint64_t items = num_items(j, bytes);
    if (items > j->total) items = j->total;
    ob_run(j->s, j->then == OB_THEN_NOTHING ? multiply_in_turn : multiply_and_finish, j, items ? (uint32_t)items : 1);
}

void ob_multiply(ob_session *s, const ob_norm *norm, ob_rows x, ob_rows normed, uint32_t num_tokens,
                 const ob_product *products, uint32_t count, int then) {
    s->prepared.x = NULL;
    for (uint32_t i = 0; i < count;) {
        const ob_inputs *inputs = ob_prepare_inputs(s, norm, products[i].w, x, normed, num_tokens);
        uint32_t first = i;
        while (i < count && ob_prepared_serves(&s->prepared, products[i].w)) i++;
        job j = {s, inputs, products + first, i - first, 0, s->prepared.integer, i == count ? then : OB_THEN_NOTHING};
        run(&j);
    }
}
