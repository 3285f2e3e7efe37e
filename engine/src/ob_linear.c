/* Matrix products of a session: inputs prepared once, kernels from the dispatch table, rows shared out to threads. */
#include "ob_session.h"

typedef struct job {
    const ob_kernels *kernels;
    const ob_inputs *inputs;
    const ob_product *products;
    uint32_t count;
    uint8_t *work;
    int integer;
} job;

static void multiply_rows(void *argument, uint32_t item, uint32_t num_items, uint32_t thread) {
    const job *j = argument;
    for (uint32_t i = 0; i < j->count; i++) {
        const ob_product *p = &j->products[i];
        uint32_t begin, end;
        ob_share((p->w->rows + OB_BLOCK_ROWS - 1) / OB_BLOCK_ROWS, item, num_items, &begin, &end);
        begin *= OB_BLOCK_ROWS, end *= OB_BLOCK_ROWS;
        if (end > p->w->rows) end = p->w->rows;
        if (begin >= end) continue;
        ob_linear_fn *linear = j->integer ? j->kernels->linear_i8[p->w->layout] : j->kernels->linear_f32[p->w->layout];
        linear(p->w, j->inputs, begin, end, p->y, p->y_stride, j->work ? j->work + (size_t)thread * OB_WORK_BYTES : NULL);
    }
}

void ob_multiply(ob_session *s, const ob_norm *norm, const float *x, size_t x_stride, float *y_TW, uint32_t num_tokens,
                 const ob_product *products, uint32_t count) {
    s->prepared.x = NULL;
    for (uint32_t i = 0; i < count;) {
        const ob_inputs *inputs = ob_prepare_inputs(s, norm, products[i].w, x, x_stride, y_TW, num_tokens);
        uint32_t first = i;
        while (i < count && ob_prepared_serves(&s->prepared, products[i].w)) i++;
        job j = {&s->model->kernels, inputs, products + first, i - first, s->work, s->prepared.integer};
        ob_run(s, multiply_rows, &j, s->parallel.num_threads);
    }
}
