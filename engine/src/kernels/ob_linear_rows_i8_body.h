/* Linear layers of code rows with int8 inputs: one source for every x86 instruction set. The file that includes it has
 * defined TARGET, INLINE, UNROLL and, on vectors `vec` of VEC_BYTES bytes or as many int32 lanes:
 *   vec zero(void), vec load(const void *)
 *   vec signed_weights(vec)       int8 codes as dot() wants them: each plus OFFSET, unsigned, where OFFSET is not 0
 *   vec dot(vec acc, vec w, vec x) acc lane += the four products w * x in that lane
 *   int32_t sum_lanes(vec)
 *
 * Rows lie in the file one after the other, and one token reads each once, in order: that is a stream which the
 * processor's prefetchers follow at the memory's speed, so a row is finished before the next is begun. */
#include "ob_kernels.h"

/* ROW_TOKENS: tokens that share a pass over a row. AHEAD: 2 KB reach over the end of a page and into the next row, where
 * prefetchers start anew: 0.95 of a pure read's speed instead of 0.87 (a head of 128256 x 2560, one thread). */
enum { ROW_TOKENS = 4, AHEAD = 2048 };

/* sums[t] = sum over k < count of (codes[k] + OFFSET) * x[t, k]. Both sides are readable up to whole vectors, and x is
 * zero there. One token has four sums, so that additions do not wait for each other. */
INLINE void dot_row(const uint8_t *codes, const int8_t *x, size_t x_stride, uint32_t count, int tokens, int32_t *sums) {
    vec acc[ROW_TOKENS];
    const int ways = tokens == 1 ? ROW_TOKENS : 1;
    UNROLL for (int t = 0; t < tokens * ways; t++) acc[t] = zero();
    uint32_t k = 0;
    for (; k + ways * VEC_BYTES <= count; k += ways * VEC_BYTES)
        UNROLL for (int i = 0; i < ways; i++) {
            __builtin_prefetch(codes + k + i * VEC_BYTES + AHEAD);
            vec w = signed_weights(load(codes + k + i * VEC_BYTES));
            UNROLL for (int t = 0; t < tokens; t++)
                acc[t + i] = dot(acc[t + i], w, load(x + t * x_stride + k + i * VEC_BYTES));
        }
    for (; k < count; k += VEC_BYTES) {
        vec w = signed_weights(load(codes + k));
        UNROLL for (int t = 0; t < tokens; t++) acc[t] = dot(acc[t], w, load(x + t * x_stride + k));
    }
    UNROLL for (int t = 0; t < tokens; t++) {
        vec all = acc[t];
        UNROLL for (int i = 1; i < ways; i++) all += acc[t + i];
        sums[t] = sum_lanes(all);
    }
}

INLINE void row_tokens(const ob_weights *w, const ob_inputs *in, const uint8_t *codes, uint32_t row, uint32_t first,
                       int tokens, float *y, size_t y_stride) {
    const int8_t *x = in->codes_TK + first * in->codes_stride;
    const int32_t *input_sums = in->sums_TG + (size_t)first * w->num_groups;
    const int per_group = w->granularity == OB_GRANULARITY_GROUP;
    float sums[ROW_TOKENS] = {0};
    for (uint32_t g = 0; g < w->num_groups; g++) {
        int32_t acc[ROW_TOKENS];
        const uint32_t begin = g * w->group;
        dot_row(codes + begin, x + begin, in->codes_stride, ob_group_length(w, g), tokens, acc);
        float scale = per_group ? ob_scale_at(w, row, g) : 1.0f;
        for (int t = 0; t < tokens; t++) { /* the offset's share may wrap around, and back */
            uint32_t offset = (uint32_t)OFFSET * (uint32_t)input_sums[(size_t)t * w->num_groups + g];
            float sum = (float)(int32_t)((uint32_t)acc[t] - offset);
            sums[t] = per_group ? sums[t] + sum * scale : sum;
        }
    }
    float scale = per_group ? 1.0f : ob_scale_at(w, row, 0);
    for (int t = 0; t < tokens; t++) {
        float value = sums[t] * (scale * in->scale_T[first + t]);
        y[(first + t) * y_stride + row] = w->bias ? value + w->bias[row] : value;
    }
}

TARGET static void linear_int8_i8(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end, float *y_TO,
                                  size_t y_stride, uint8_t *work) {
    (void)work;
    for (uint32_t row = row_begin; row < row_end; row++) {
        const uint8_t *codes = w->data + row * w->row_stride;
        uint32_t t = 0, n = in->num_tokens;
        for (; t + ROW_TOKENS <= n; t += ROW_TOKENS) row_tokens(w, in, codes, row, t, ROW_TOKENS, y_TO, y_stride);
        for (; t < n; t++) row_tokens(w, in, codes, row, t, 1, y_TO, y_stride);
    }
}
