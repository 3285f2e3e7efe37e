/* The KV cache's rows, and attention over them: the reference. */
#include "../ob_math.h"
#include "ob_kernels.h"

size_t ob_kv_row_bytes(uint32_t kv_type, uint32_t head_dim) {
    size_t bytes = (size_t)head_dim * (kv_type == OB_KV_FLOAT32 ? 4 : 2);
    if (kv_type == OB_KV_INT8) bytes = head_dim + (head_dim + OB_KV_GROUP - 1) / OB_KV_GROUP * (size_t)2;
    return (bytes + 15) / 16 * 16;
}

static uint8_t *scales_of(uint8_t *row, uint32_t head_dim) { return row + (head_dim + 1) / 2 * 2; }

static void store_int8(const float *x, uint32_t head_dim, uint8_t *row) {
    for (uint32_t begin = 0; begin < head_dim; begin += OB_KV_GROUP) {
        uint32_t end = begin + OB_KV_GROUP < head_dim ? begin + OB_KV_GROUP : head_dim;
        float most = 0.0f;
        for (uint32_t d = begin; d < end; d++) most = ob_abs(x[d]) > most ? ob_abs(x[d]) : most;
        uint16_t half = ob_float_to_half(most / 127.0f);
        float scale = ob_half_to_float(half), inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
        memcpy(scales_of(row, head_dim) + begin / OB_KV_GROUP * 2, &half, 2);
        for (uint32_t d = begin; d < end; d++) {
            float v = x[d] * inverse;
            v = v > -127.0f ? v : -127.0f;
            v = v < 127.0f ? v : 127.0f;
            row[d] = (uint8_t)(int8_t)(int32_t)ob_rint(v);
        }
    }
}

void ob_kv_store_ref(uint32_t kv_type, const float *x, uint32_t head_dim, uint8_t *row) {
    if (kv_type == OB_KV_FLOAT32) memcpy(row, x, head_dim * sizeof *x);
    else if (kv_type == OB_KV_INT8) store_int8(x, head_dim, row);
    else
        for (uint32_t d = 0; d < head_dim; d++) {
            uint16_t half = ob_float_to_half(x[d]);
            memcpy(row + 2 * d, &half, 2);
        }
}

static float value_at(uint32_t kv_type, const uint8_t *row, uint32_t head_dim, uint32_t d) {
    uint16_t half;
    float value;
    switch (kv_type) {
    case OB_KV_FLOAT32: memcpy(&value, row + 4 * d, 4); return value;
    case OB_KV_FLOAT16: memcpy(&half, row + 2 * d, 2); return ob_half_to_float(half);
    default: memcpy(&half, row + (head_dim + 1) / 2 * 2 + d / OB_KV_GROUP * 2, 2); return (float)(int8_t)row[d] * ob_half_to_float(half);
    }
}

void ob_kv_load_ref(uint32_t kv_type, const uint8_t *row, uint32_t head_dim, float *x) {
    for (uint32_t d = 0; d < head_dim; d++) x[d] = value_at(kv_type, row, head_dim, d);
}

/* One query over its positions. */
static void attend(const ob_attention *a, const float *q, uint32_t num_positions, float *out) {
    float scores[OB_ATTEND_BLOCK], lanes[OB_LANES] = {0}, best = -FLT_MAX;
    for (uint32_t d = 0; d < a->head_dim; d++) out[d] = 0.0f;
    for (uint32_t begin = 0; begin < num_positions; begin += OB_ATTEND_BLOCK) {
        uint32_t count = num_positions - begin < OB_ATTEND_BLOCK ? num_positions - begin : OB_ATTEND_BLOCK;
        float before = best;
        for (uint32_t p = 0; p < count; p++) {
            float dots[OB_LANES] = {0};
            const uint8_t *key = a->keys + (begin + p) * a->row_bytes;
            for (uint32_t d = 0; d < a->head_dim; d++)
                dots[d % OB_LANES] += q[d] * value_at(a->kv_type, key, a->head_dim, d);
            scores[p] = ob_tree16(dots) * a->scale;
            if (scores[p] > best) best = scores[p];
        }
        float factor = ob_exp(before - best);
        for (int l = 0; l < OB_LANES; l++) lanes[l] *= factor;
        for (uint32_t d = 0; d < a->head_dim; d++) out[d] *= factor;
        for (uint32_t p = 0; p < count; p++) {
            float e = ob_exp(scores[p] - best);
            lanes[p % OB_LANES] += e;
            const uint8_t *value = a->values + (begin + p) * a->row_bytes;
            for (uint32_t d = 0; d < a->head_dim; d++) out[d] += e * value_at(a->kv_type, value, a->head_dim, d);
        }
    }
    float inverse = 1.0f / ob_tree16(lanes);
    for (uint32_t d = 0; d < a->head_dim; d++) out[d] *= inverse;
}

void ob_attend_ref(const ob_attention *a, uint8_t *work) {
    (void)work;
    for (uint32_t t = 0; t < a->num_tokens; t++)
        for (uint32_t h = 0; h < a->heads; h++)
            attend(a, a->q + t * a->q_stride + h * a->head_dim, a->num_positions - a->num_tokens + t + 1,
                   a->out + t * a->out_stride + h * a->head_dim);
}
