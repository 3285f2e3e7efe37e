/* Activations to what a kernel reads: floats as they are, or int8 codes with one scale a token. */
#include "ob_math.h"
#include "ob_session.h"

typedef struct job {
    ob_session *s;
    const ob_norm *norm;
    const ob_weights *w;
    const float *x;
    float *y;
    size_t x_stride;
    uint32_t num_tokens;
    int integer, new_rows;
} job;

static void prepare_tokens(void *argument, uint32_t item, uint32_t num_items, uint32_t thread) {
    const job *j = argument;
    ob_session *s = j->s;
    const uint32_t cols = j->w->cols, padded = (cols + 15) / 16 * 16;
    const ob_norm none = {0};
    uint32_t begin, end;
    (void)thread;
    ob_share(j->num_tokens, item, num_items, &begin, &end);
    for (uint32_t t = begin; t < end; t++) {
        const float *x = j->new_rows ? j->x + t * j->x_stride : j->y + t * s->wide;
        float *y = j->y + t * s->wide;
        int8_t *codes = s->codes_T + t * s->codes_stride;
        s->model->kernels.norm_quantize(j->new_rows ? j->norm : &none, j->w, x, cols, y, s->codes_stride, codes,
                                        s->sums_T + (size_t)t * j->w->num_groups, &s->scales_T[t]);
        float *floats = s->code_floats_TW + t * s->wide;
        int as_floats = j->w->activation != OB_ACTIVATION_NONE && !j->integer;
        for (uint32_t k = 0; as_floats && k < padded; k++) floats[k] = k < cols ? (float)codes[ob_code_of_input(j->w, k)] : 0.0f;
    }
}

const ob_inputs *ob_prepare_inputs(ob_session *s, const ob_norm *norm, const ob_weights *w, const float *x, size_t x_stride,
                                   float *y_TW, uint32_t num_tokens) {
    ob_prepared *p = &s->prepared;
    const int new_rows = p->x != x;
    if (!new_rows && ob_prepared_serves(p, w)) return &p->inputs;
    uint8_t integer = w->activation != OB_ACTIVATION_NONE && w->layout >= OB_LAYOUT_INT8;
    job j = {s, norm, w, x, y_TW, x_stride, num_tokens, integer, new_rows};
    ob_run(s, prepare_tokens, &j, num_tokens < s->parallel.num_threads ? num_tokens : s->parallel.num_threads);
    *p = (ob_prepared){x, w->cols, w->tile, w->group, w->activation, integer, {0}};
    int quantized = w->activation != OB_ACTIVATION_NONE;
    p->inputs = (ob_inputs){quantized && !integer ? s->code_floats_TW : y_TW, s->codes_T, quantized ? s->scales_T : s->ones_T,
                            s->sums_T, s->wide, s->codes_stride, num_tokens};
    return &p->inputs;
}
