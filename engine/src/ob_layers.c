/* The parts of a decoder: embedding, norms, rotary positions, attention, MLP. Each works on the batch of T
 * tokens in s->places and shares work out by tokens, heads or output rows. */
#include "ob_math.h"
#include "ob_session.h"

/* Runs a task on the threads, or here when there is too little to share. */
void ob_run(ob_session *s, ob_task task, void *argument, uint32_t num_items) {
    if (num_items > 1 && s->parallel.num_threads > 1) s->parallel.run(s->parallel.context, task, argument, num_items);
    else
        for (uint32_t i = 0; i < num_items; i++) task(argument, i, num_items, 0);
}

/* ---- embedding ---- */

/* y[k] = row of the table, times its scales, and turned back */
static void read_row(const ob_kernels *k, const ob_weights *w, uint32_t row, float *y) {
    for (uint32_t g = 0; g < w->num_groups; g++) {
        float *part = y + (size_t)g * w->group, scale = ob_scale_at(w, row, g);
        uint32_t count = ob_group_length(w, g);
        ob_unpack_floats(w, row, g, 0, count, part);
        for (uint32_t i = 0; i < count; i++) part[i] *= scale;
    }
    if (w->turn) k->turn(y, w->turn, w->cols, w->turn_block, 1);
}

static void embed(const ob_session *s, const ob_place *place, float *x, float *work) {
    const ob_model *m = s->model;
    read_row(&m->kernels, &m->token_embedding, place->token, x);
    if (m->description.position != OB_POSITION_LEARNED) return;
    read_row(&m->kernels, &m->position_embedding, place->position, work);
    for (uint32_t k = 0; k < m->description.hidden_size; k++) x[k] += work[k];
}

/* cos and sin of position * frequency i, which is theta^(-2i / head_dim) unless the file has its own */
void ob_rotary_angle(const ob_session *s, uint32_t position, float *cosines, float *sines) {
    for (uint32_t i = 0; i < s->model->description.head_dim / 2; i++) {
        double sine, cosine;
        ob_sincos64(position * s->inverse_frequencies[i], &sine, &cosine);
        cosines[i] = (float)cosine;
        sines[i] = (float)sine;
    }
}

typedef struct batch_job {
    ob_session *s;
    const ob_layer *l;
    uint32_t layer, num_tokens;
} batch_job;

/* Angles serve all layers. */
static void begin_tokens(void *argument, uint32_t item, uint32_t num_items, uint32_t thread) {
    const batch_job *j = argument;
    ob_session *s = j->s;
    const size_t half = s->model->description.head_dim / 2;
    uint32_t begin, end;
    (void)thread;
    ob_share(j->num_tokens, item, num_items, &begin, &end);
    for (uint32_t t = begin; t < end; t++) {
        const ob_place *place = &s->places[t];
        embed(s, place, ob_row(s->x_TH, t), ob_row(s->normed_TH, t));
        if (s->model->description.position == OB_POSITION_ROPE)
            ob_rotary_angle(s, place->position + s->sequences[place->sequence].offset, s->cos_T + t * half, s->sin_T + t * half);
    }
}

void ob_begin_batch(ob_session *s, uint32_t num_tokens) {
    batch_job j = {s, NULL, 0, num_tokens};
    ob_run(s, begin_tokens, &j, ob_num_items(s, num_tokens, 1));
}

/* ---- attention ---- */

static uint8_t *cache_row(const ob_session *s, uint8_t *cache, uint32_t layer, uint32_t head, const ob_place *place) {
    return ob_cache_rows(s, cache, layer, place->sequence, head) + place->position * s->kv_row_bytes;
}

/* Norm and rotation of one token's heads in place; the halves of a head form the pairs. */
static void finish_heads(const ob_session *s, float *heads, const float *weight, uint32_t num_heads, uint32_t t) {
    const ob_description *d = &s->model->description;
    const uint32_t half = d->head_dim / 2;
    const ob_norm norm = {weight, NULL, d->norm_eps, OB_NORM_RMS};
    for (uint32_t h = 0; h < num_heads; h++) {
        float *x = heads + (size_t)h * d->head_dim;
        if (weight) s->model->kernels.norm_quantize(&norm, NULL, x, d->head_dim, x, 0, NULL, NULL, NULL);
        if (d->position == OB_POSITION_ROPE)
            s->model->kernels.rotate(x, s->cos_T + (size_t)t * half, s->sin_T + (size_t)t * half, half);
    }
}

/* One token's keys and values into the cache, its queries made ready. */
static void store_tokens(void *argument, uint32_t item, uint32_t num_items, uint32_t thread) {
    const batch_job *j = argument;
    ob_session *s = j->s;
    const ob_description *d = &s->model->description;
    uint32_t begin, end;
    (void)thread;
    ob_share(j->num_tokens, item, num_items, &begin, &end);
    for (uint32_t t = begin; t < end; t++) {
        const float *k = ob_row(s->k_TK, t), *v = ob_row(s->v_TK, t);
        finish_heads(s, ob_row(s->q_TQ, t), j->l->q_norm, d->num_heads, t);
        finish_heads(s, ob_row(s->k_TK, t), j->l->k_norm, d->num_key_value_heads, t);
        for (uint32_t h = 0; h < d->num_key_value_heads; h++, k += d->head_dim, v += d->head_dim) {
            s->model->kernels.kv_store(s->kv_type, k, d->head_dim, cache_row(s, s->keys, j->layer, h, &s->places[t]));
            s->model->kernels.kv_store(s->kv_type, v, d->head_dim, cache_row(s, s->values, j->layer, h, &s->places[t]));
        }
    }
}

/* Tokens [first, first + count) of one stretch: `heads` query heads from `head` on, all of one key-value head. */
static void attend_stretch(const batch_job *j, uint32_t head, uint32_t heads, uint32_t first, uint32_t count, uint8_t *work) {
    ob_session *s = j->s;
    const ob_description *d = &s->model->description;
    const ob_place *last = &s->places[first + count - 1];
    const uint32_t kv_head = head / (d->num_heads / d->num_key_value_heads);
    const size_t column = (size_t)head * d->head_dim;
    const ob_attention a = {ob_cache_rows(s, s->keys, j->layer, last->sequence, kv_head),
                            ob_cache_rows(s, s->values, j->layer, last->sequence, kv_head), s->kv_row_bytes,
                            ob_row(s->q_TQ, first) + column, ob_row(s->attended_TQ, first) + column, s->q_TQ.stride,
                            s->attended_TQ.stride, s->kv_type, d->head_dim, heads, count, last->position + 1,
                            d->attention_scale > 0.0f ? d->attention_scale : 1.0f / ob_sqrt((float)d->head_dim)};
    s->model->kernels.attend(&a, work);
}

static uint32_t least(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* Tokens [begin, end) of the batch, stretch by stretch. */
static void attend_range(const batch_job *j, uint32_t head, uint32_t heads, uint32_t begin, uint32_t end, uint32_t thread) {
    const ob_stretch *stretch = j->s->stretches;
    uint8_t *work = j->s->work ? j->s->work + (size_t)thread * OB_WORK_BYTES : NULL;
    while (stretch->first + stretch->count <= begin) stretch++;
    while (begin < end) {
        uint32_t until = least(end, stretch->first + stretch->count);
        attend_stretch(j, head, heads, begin, until - begin, work);
        begin = until;
        stretch++;
    }
}

/* Many tokens: an item is a block of them and one key-value head. The last blocks, which see most, come first. */
enum { ATTEND_TOKENS = 32 };

static void attend_tokens(void *argument, uint32_t item, uint32_t num_items, uint32_t thread) {
    const batch_job *j = argument;
    const ob_description *d = &j->s->model->description;
    const uint32_t heads = d->num_heads / d->num_key_value_heads, blocks = num_items / d->num_key_value_heads;
    uint32_t begin, end;
    ob_share(j->num_tokens, blocks - 1 - item / d->num_key_value_heads, blocks, &begin, &end);
    attend_range(j, item % d->num_key_value_heads * heads, heads, begin, end, thread);
}

/* One token: equal shares of the query heads, though two threads may then read one key-value head's rows. */
static void attend_heads(void *argument, uint32_t item, uint32_t num_items, uint32_t thread) {
    const batch_job *j = argument;
    const ob_description *d = &j->s->model->description;
    const uint32_t together = d->num_heads / d->num_key_value_heads;
    uint32_t head, end;
    ob_share(d->num_heads, item, num_items, &head, &end);
    while (head < end) {
        uint32_t heads = least(together - head % together, end - head);
        attend_range(j, head, heads, 0, j->num_tokens, thread);
        head += heads;
    }
}

static void attend(ob_session *s, batch_job *j) {
    const uint32_t kv_heads = s->model->description.num_key_value_heads, threads = s->parallel.num_threads;
    uint32_t blocks = (j->num_tokens + ATTEND_TOKENS - 1) / ATTEND_TOKENS, wanted = (4 * threads + kv_heads - 1) / kv_heads;
    if (threads > 1 && blocks < wanted) blocks = least(wanted, j->num_tokens);
    if (j->num_tokens > 1 || kv_heads % threads == 0) ob_run(s, attend_tokens, j, blocks * kv_heads);
    else ob_run(s, attend_heads, j, least(threads, s->model->description.num_heads));
}

void ob_attention_block(ob_session *s, uint32_t layer, uint32_t num_tokens) {
    const ob_description *d = &s->model->description;
    const ob_layer *l = &s->model->layers[layer];
    const ob_norm norm = {l->attention_norm, l->attention_norm_bias, d->norm_eps, d->norm};
    const ob_norm sub_norm = {l->attention_sub_norm, NULL, d->norm_eps, OB_NORM_RMS}; /* RMSNorm whatever the others are */
    const ob_product qkv[] = {{&l->q, s->q_TQ}, {&l->k, s->k_TK}, {&l->v, s->v_TK}}, o = {&l->o, s->normed_TH};
    batch_job j = {s, l, layer, num_tokens};
    ob_multiply(s, &norm, s->x_TH, s->normed_TH, num_tokens, qkv, 3, OB_THEN_NOTHING);
    ob_run(s, store_tokens, &j, ob_num_items(s, num_tokens, 4));
    attend(s, &j);
    ob_multiply(s, &sub_norm, s->attended_TQ, s->attended_TQ, num_tokens, &o, 1, OB_THEN_ADD);
}

/* ---- MLP ---- */

void ob_mlp_block(ob_session *s, uint32_t layer, uint32_t num_tokens) {
    const ob_description *d = &s->model->description;
    const ob_layer *l = &s->model->layers[layer];
    const ob_norm norm = {l->mlp_norm, l->mlp_norm_bias, d->norm_eps, d->norm};
    const ob_norm sub_norm = {l->mlp_sub_norm, NULL, d->norm_eps, OB_NORM_RMS};
    const ob_product inner[] = {{&l->up, s->up_TI}, {&l->gate, s->gate_TI}}, down = {&l->down, s->normed_TH};
    ob_multiply(s, &norm, s->x_TH, s->normed_TH, num_tokens, inner, ob_has_gate(d) ? 2 : 1, OB_THEN_ACTIVATE);
    ob_multiply(s, &sub_norm, s->up_TI, s->up_TI, num_tokens, &down, 1, OB_THEN_ADD);
}
