/* Linear layer, any code layout, int8 inputs: the reference. Exact integer sums, one row at a time. */
#include "ob_kernels.h"

enum { CHUNK = 512, MAX_TOKENS = 16 };

/* acc[t] += sum_k codes[k] * x[t, k] */
static void dot_tokens(const int8_t *codes, const int8_t *x, size_t x_stride, uint32_t count, uint32_t num_tokens,
                       int32_t *acc) {
    for (uint32_t t = 0; t < num_tokens; t++) {
        const int8_t *x_t = x + t * x_stride;
        int32_t sum = 0;
        for (uint32_t k = 0; k < count; k++) sum += codes[k] * x_t[k];
        acc[t] += sum;
    }
}

static void row_tokens(const ob_weights *w, const ob_inputs *in, uint32_t row, uint32_t first, uint32_t num_tokens,
                       float *y, size_t y_stride) {
    float sums[MAX_TOKENS] = {0};
    int8_t codes[CHUNK];
    const int per_group = w->granularity == OB_GRANULARITY_GROUP;
    for (uint32_t g = 0; g < w->num_groups; g++) {
        int32_t acc[MAX_TOKENS] = {0};
        uint32_t length = ob_group_length(w, g);
        for (uint32_t k = 0; k < length; k += CHUNK) {
            uint32_t count = length - k < CHUNK ? length - k : CHUNK;
            ob_unpack_codes(w, row, g, k, count, codes);
            dot_tokens(codes, in->codes_TK + first * in->codes_stride + ob_codes_index(w, g, k), in->codes_stride, count,
                       num_tokens, acc);
        }
        float scale = per_group ? ob_scale_at(w, row, g) : 1.0f;
        for (uint32_t t = 0; t < num_tokens; t++) sums[t] = per_group ? sums[t] + (float)acc[t] * scale : (float)acc[t];
    }
    float scale = per_group ? 1.0f : ob_scale_at(w, row, 0);
    for (uint32_t t = 0; t < num_tokens; t++) {
        float value = sums[t] * (scale * in->scale_T[first + t]);
        y[(first + t) * y_stride + row] = w->bias ? value + w->bias[row] : value;
    }
}

void ob_linear_any_i8_ref(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end, float *y_TO,
                          size_t y_stride, uint8_t *work) {
    (void)work;
    for (uint32_t row = row_begin; row < row_end; row++)
        for (uint32_t t = 0; t < in->num_tokens; t += MAX_TOKENS) {
            uint32_t count = in->num_tokens - t < MAX_TOKENS ? in->num_tokens - t : MAX_TOKENS;
            row_tokens(w, in, row, t, count, y_TO, y_stride);
        }
}
