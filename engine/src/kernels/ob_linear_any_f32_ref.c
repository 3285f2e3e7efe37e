/* Linear layer, any layout, float inputs: the reference. */
#include "ob_kernels.h"

enum { CHUNK = 256, MAX_TOKENS = 16 }; /* CHUNK: a multiple of 16, so that lanes go on where they stopped */

static void row_tokens(const ob_weights *w, const ob_inputs *in, uint32_t row, uint32_t first, uint32_t num_tokens,
                       float *y, size_t y_stride) {
    float sums[MAX_TOKENS] = {0}, values[CHUNK];
    const int per_group = w->granularity == OB_GRANULARITY_GROUP;
    for (uint32_t g = 0; g < w->num_groups; g++) {
        float lanes[MAX_TOKENS][OB_LANES] = {{0}};
        uint32_t length = ob_group_length(w, g);
        for (uint32_t k = 0; k < length; k += CHUNK) {
            uint32_t count = length - k < CHUNK ? length - k : CHUNK;
            ob_unpack_floats(w, row, g, k, count, values);
            const float *x = in->x_TK + first * in->x_stride + (size_t)g * w->group + k;
            for (uint32_t t = 0; t < num_tokens; t++) ob_dot_lanes(values, x + t * in->x_stride, count, lanes[t]);
        }
        float scale = per_group ? ob_scale_at(w, row, g) : 1.0f;
        for (uint32_t t = 0; t < num_tokens; t++) {
            float sum = ob_tree16(lanes[t]);
            sums[t] = per_group ? sums[t] + sum * scale : sum;
        }
    }
    float scale = per_group ? 1.0f : ob_scale_at(w, row, 0);
    for (uint32_t t = 0; t < num_tokens; t++) {
        float value = sums[t] * (scale * in->scale_T[first + t]);
        y[(first + t) * y_stride + row] = w->bias ? value + w->bias[row] : value;
    }
}

void ob_linear_any_f32_ref(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end, float *y_TO,
                           size_t y_stride, uint8_t *work) {
    (void)work;
    for (uint32_t row = row_begin; row < row_end; row++)
        for (uint32_t t = 0; t < in->num_tokens; t += MAX_TOKENS) {
            uint32_t count = in->num_tokens - t < MAX_TOKENS ? in->num_tokens - t : MAX_TOKENS;
            row_tokens(w, in, row, t, count, y_TO, y_stride);
        }
}
