/* Activations to what a kernel reads: floats as they are, or int8 codes with one scale a token. */
#include "ob_math.h"
#include "ob_session.h"

static float largest(const float *x, uint32_t size) {
    float most = 1e-5f;
    for (uint32_t k = 0; k < size; k++)
        if (ob_abs(x[k]) > most) most = ob_abs(x[k]);
    return most;
}

static float mean_size(const float *x, uint32_t size) {
    float lanes[OB_LANES] = {0};
    uint32_t k = 0;
    for (; k + 16 <= size; k += 16)
        for (int l = 0; l < 16; l++) lanes[l] += ob_abs(x[k + l]);
    for (int l = 0; k < size; k++, l++) lanes[l] += ob_abs(x[k]);
    float mean = ob_tree16(lanes) / (float)size;
    return mean > 1e-5f ? mean : 1e-5f;
}

/* round(x * factor) as an int8 code; NaN and infinity give a code as well, never undefined behaviour. */
static void round_codes(const float *x, float factor, uint32_t count, int8_t *codes) {
    for (uint32_t k = 0; k < count; k++) {
        float v = x[k] * factor;
        v = v > -127.0f ? v : -127.0f;
        v = v < 127.0f ? v : 127.0f;
        codes[k] = (int8_t)(int32_t)ob_rint(v);
    }
}

static void sign_codes(const float *x, uint32_t count, int8_t *codes) {
    for (uint32_t k = 0; k < count; k++) codes[k] = x[k] >= 0.0f ? 1 : -1;
}

/* One token: codes laid out as w's kernels want them, the sum of each group, and what a code is worth. */
static void quantize_token(const ob_weights *w, const float *x, size_t codes_stride, int8_t *codes, int32_t *sums,
                           float *scale) {
    float most = w->activation == OB_ACTIVATION_INT8 ? largest(x, w->cols) : mean_size(x, w->cols);
    float factor = 127.0f / most;
    *scale = w->activation == OB_ACTIVATION_INT8 ? most / 127.0f : most;
    memset(codes, 0, codes_stride);
    for (uint32_t g = 0; g < w->num_groups; g++) {
        uint32_t count = ob_group_length(w, g);
        int8_t *to = codes + ob_codes_index(w, g, 0);
        const float *from = x + (size_t)g * w->group;
        if (w->activation == OB_ACTIVATION_INT8) round_codes(from, factor, count, to);
        else sign_codes(from, count, to);
        int32_t sum = 0;
        for (uint32_t k = 0; k < count; k++) sum += to[k];
        sums[g] = sum;
    }
}

typedef struct job {
    ob_session *s;
    const ob_weights *w;
    float *x;
    uint32_t num_tokens;
    int integer;
} job;

static void prepare_tokens(void *argument, uint32_t index, uint32_t num_threads) {
    const job *j = argument;
    ob_session *s = j->s;
    uint32_t begin, end;
    ob_share(j->num_tokens, index, num_threads, &begin, &end);
    for (uint32_t t = begin; t < end; t++) {
        float *x = j->x + t * s->wide;
        uint32_t padded = (j->w->cols + 15) / 16 * 16;
        for (uint32_t k = j->w->cols; k < padded; k++) x[k] = 0.0f;
        if (j->w->activation == OB_ACTIVATION_NONE) continue;
        int8_t *codes = s->codes_T + t * s->codes_stride;
        quantize_token(j->w, x, s->codes_stride, codes, s->sums_T + (size_t)t * j->w->num_groups, &s->scales_T[t]);
        float *floats = s->code_floats_TW + t * s->wide;
        for (uint32_t k = 0; !j->integer && k < padded; k++) floats[k] = (float)codes[k];
    }
}

const ob_inputs *ob_prepare_inputs(ob_session *s, const ob_weights *w, float *x, uint32_t num_tokens) {
    ob_prepared *p = &s->prepared;
    if (p->x == x && ob_prepared_serves(p, w)) return &p->inputs;
    uint8_t integer = w->activation != OB_ACTIVATION_NONE && w->layout >= OB_LAYOUT_INT8;
    job j = {s, w, x, num_tokens, integer};
    ob_run(s, prepare_tokens, &j, num_tokens);
    *p = (ob_prepared){x, w->cols, w->tile, w->group, w->activation, integer, {0}};
    int quantized = w->activation != OB_ACTIVATION_NONE;
    p->inputs = (ob_inputs){quantized && !integer ? s->code_floats_TW : x, s->codes_T, quantized ? s->scales_T : s->ones_T,
                            s->sums_T, s->wide, s->codes_stride, num_tokens};
    return &p->inputs;
}
