/* Attention of one query head over the cached positions: the reference.
 * The scores' sum has 16 lanes; each output is a sum over positions in rising order. */
#include "../ob_math.h"
#include "ob_kernels.h"

void ob_attend_f32_ref(const float *q, const float *keys, const float *values, size_t stride, uint32_t head_dim,
                       uint32_t num_positions, float scale, float *scores, float *out) {
    float best = -FLT_MAX;
    for (uint32_t p = 0; p < num_positions; p++) {
        float lanes[OB_LANES] = {0};
        ob_dot_lanes(q, keys + p * stride, head_dim, lanes);
        scores[p] = ob_tree16(lanes) * scale;
        if (scores[p] > best) best = scores[p];
    }
    float lanes[OB_LANES] = {0};
    for (uint32_t p = 0; p < num_positions; p++) {
        scores[p] = ob_exp(scores[p] - best);
        lanes[p % OB_LANES] += scores[p];
    }
    float inverse = 1.0f / ob_tree16(lanes);
    for (uint32_t d = 0; d < head_dim; d++) out[d] = 0.0f;
    for (uint32_t p = 0; p < num_positions; p++) {
        const float *v = values + p * stride;
        for (uint32_t d = 0; d < head_dim; d++) out[d] += scores[p] * v[d];
    }
    for (uint32_t d = 0; d < head_dim; d++) out[d] *= inverse;
}
