/* Activations to what a kernel reads: floats as they are, or int8 codes with one scale a token. */
#include "ob_math.h"
#include "ob_session.h"

typedef struct job {
    ob_session *s;
    const ob_norm *norm;
    const ob_weights *w;
    ob_rows x, y;
    uint32_t num_tokens;
    int integer, turns; /* turns: x has to be turned where w says so */
} job;

/* Float kernels of quantised inputs read the codes as floats. */
static void codes_to_floats(const ob_weights *w, const int8_t *codes, float *floats) {
    const uint32_t padded = (w->cols + 15) / 16 * 16;
    for (uint32_t k = 0; k < padded; k++) floats[k] = k < w->cols ? (float)codes[ob_code_of_input(w, k)] : 0.0f;
}

static void prepare_token(const job *j, uint32_t t) {
    static const ob_norm none = {0};
    ob_session *s = j->s;
    const ob_kernels *k = &s->model->kernels;
    const ob_weights *w = j->w;
    float *y = ob_row(j->y, t);
    int8_t *codes = s->codes_T + t * s->codes_stride;
    int32_t *sums = s->sums_T + (size_t)t * w->num_groups;
    if (w->turn) {
        k->norm_quantize(j->norm, NULL, ob_row(j->x, t), w->cols, y, 0, NULL, NULL, NULL);
        if (j->turns) k->turn(y, w->turn, w->cols, w->turn_block, 0);
        k->norm_quantize(&none, w, y, w->cols, y, s->codes_stride, codes, sums, &s->scales_T[t]);
    } else k->norm_quantize(j->norm, w, ob_row(j->x, t), w->cols, y, s->codes_stride, codes, sums, &s->scales_T[t]);
    if (w->activation != OB_ACTIVATION_NONE && !j->integer) codes_to_floats(w, codes, ob_row(s->code_floats_TW, t));
}

static void prepare_tokens(void *argument, uint32_t item, uint32_t num_items, uint32_t thread) {
    const job *j = argument;
    uint32_t begin, end;
    (void)thread;
    ob_share(j->num_tokens, item, num_items, &begin, &end);
    for (uint32_t t = begin; t < end; t++) prepare_token(j, t);
}

const ob_inputs *ob_prepare_inputs(ob_session *s, const ob_norm *norm, const ob_weights *w, ob_rows x, ob_rows y,
                                   uint32_t num_tokens) {
    static const ob_norm none = {0};
    ob_prepared *p = &s->prepared;
    /* For another matrix, whose kernels want another form of it; or one that is turned and one that is not. */
    const int normed = p->x == x.at && p->turn == w->turn;
    if (normed && ob_prepared_serves(p, w)) return &p->inputs;
    const uint8_t quantized = w->activation != OB_ACTIVATION_NONE, integer = quantized && w->layout >= OB_LAYOUT_INT8;
    job j = {s, normed ? &none : norm, w, normed ? y : x, y, num_tokens, integer, !normed};
    ob_run(s, prepare_tokens, &j, ob_num_items(s, num_tokens, 1));
    *p = (ob_prepared){x.at, w->turn, w->cols, w->tile, w->group, w->activation, integer, {0}};
    const ob_rows floats = quantized && !integer ? s->code_floats_TW : y;
    p->inputs = (ob_inputs){floats.at, s->codes_T, quantized ? s->scales_T : s->ones_T, s->sums_T, floats.stride,
                            s->codes_stride, num_tokens};
    return &p->inputs;
}
