/* ob_rows_ref.c in registers: included once for each instruction set, after OB_SET_*. */
#include "ob_lanes.h"

/* ---- norms ---- */

enum { PLAIN, SQUARES, SIZES };

INLINE vfloat term(int what, vfloat x) { return what == SQUARES ? x * x : what == SIZES ? size_of(x) : x; }

/* The 16-lane sum of x, its squares or its sizes. */
INLINE float sum_of(int what, const float *x, uint32_t size) {
    vfloat sums[PARTS] = {0};
    uint32_t k = 0;
    for (; k + OB_LANES <= size; k += OB_LANES)
        UNROLL for (int p = 0; p < PARTS; p++) sums[p] += term(what, load(x + k + p * W));
    UNROLL for (int p = 0; p < PARTS; p++) {
        uint32_t at = k + (uint32_t)(p * W), left = at < size ? size - at : 0;
        if (left) sums[p] += term(what, load_first(x + at, left < W ? left : W));
    }
    return tree(sums);
}

/* What a norm does to a value once its factor is known. */
enum { AS_IS, SCALED, SHIFTED };

/* y = x * factor * weight (+ bias); the largest size of y, at least 1e-5. */
INLINE float scale_row(int what, const float *x, float factor, const ob_norm *n, uint32_t size, float *y) {
    vfloat most[2] = {all(1e-5f), all(1e-5f)};
    uint32_t k = 0;
    for (; k + 2 * W <= size; k += 2 * W)
        UNROLL for (uint32_t p = 0; p < 2; p++) {
            uint32_t at = k + p * W;
            vfloat v = load(x + at);
            if (what != AS_IS) v = v * factor * load(n->weight + at);
            if (what == SHIFTED) v = v + load(n->bias + at);
            most[p] = max(size_of(v), most[p]);
            store(y + at, v);
        }
    float largest = largest_lane(max(most[0], most[1]));
    for (; k < size; k++) {
        float v = x[k];
        if (what != AS_IS) v = v * factor * n->weight[k];
        if (what == SHIFTED) v = v + n->bias[k];
        largest = ob_abs(v) > largest ? ob_abs(v) : largest;
        y[k] = v;
    }
    return largest;
}

INLINE float rms_norm(const float *x, const ob_norm *n, uint32_t size, float *y) {
    return scale_row(SCALED, x, 1.0f / ob_sqrt(sum_of(SQUARES, x, size) / (float)size + n->eps), n, size, y);
}

INLINE float layer_norm(const float *x, const ob_norm *n, uint32_t size, float *y) {
    float mean = sum_of(PLAIN, x, size) / (float)size;
    uint32_t k = 0;
    for (; k + W <= size; k += W) store(y + k, load(x + k) - mean);
    for (; k < size; k++) y[k] = x[k] - mean;
    float factor = 1.0f / ob_sqrt(sum_of(SQUARES, y, size) / (float)size + n->eps);
    return n->bias ? scale_row(SHIFTED, y, factor, n, size, y) : scale_row(SCALED, y, factor, n, size, y);
}

/* ---- activations to codes ---- */

INLINE vint codes_of(int sign, vfloat x, float factor) {
    if (sign) return ((vint)(x >= 0.0f) & 2) - 1; /* a true comparison is all ones */
    return rounded(min(max(x * factor, all(-127.0f)), all(127.0f)));
}

/* Codes of one group, and their sum. */
INLINE int32_t quantize_group(int sign, const float *x, float factor, uint32_t count, int8_t *codes) {
    vint sums = {0};
    uint32_t k = 0;
    for (; k + W <= count; k += W) {
        vint code = codes_of(sign, load(x + k), factor);
        sums += code;
        store_codes(codes + k, code);
    }
    int32_t sum = sum_lanes(sums);
    if (k < count) {
        int8_t last[W];
        store_codes(last, codes_of(sign, load_first(x + k, count - k), factor));
        for (uint32_t i = 0; k < count; i++, k++) sum += codes[k] = last[i];
    }
    return sum;
}

INLINE void quantize_row(int sign, const ob_weights *w, const float *x, float factor, size_t codes_stride, int8_t *codes,
                         int32_t *sums) {
    size_t written = 0;
    for (uint32_t g = 0; g < w->num_groups; g++) {
        uint32_t count = ob_group_length(w, g), begin = ob_codes_index(w, g, 0);
        if (written < begin) memset(codes + written, 0, begin - written);
        sums[g] = quantize_group(sign, x + (size_t)g * w->group, factor, count, codes + begin);
        written = begin + count;
    }
    if (written < codes_stride) memset(codes + written, 0, codes_stride - written);
}

TARGET static void norm_quantize(const ob_norm *norm, const ob_weights *w, const float *x, uint32_t size, float *y,
                                 size_t codes_stride, int8_t *codes, int32_t *sums_G, float *scale) {
    float most = 1e-5f;
    if (norm->weight && norm->kind == OB_NORM_LAYER) most = layer_norm(x, norm, size, y);
    else if (norm->weight) most = rms_norm(x, norm, size, y);
    else if (x != y || w) most = scale_row(AS_IS, x, 1.0f, norm, size, y);
    if (!w) return;
    for (uint32_t k = size; k % 16; k++) y[k] = 0.0f;
    if (w->activation == OB_ACTIVATION_INT8) {
        *scale = most / 127.0f;
        quantize_row(0, w, y, 127.0f / most, codes_stride, codes, sums_G);
    } else if (w->activation == OB_ACTIVATION_SIGN) {
        float mean = sum_of(SIZES, y, w->cols) / (float)w->cols;
        *scale = mean > 1e-5f ? mean : 1e-5f;
        quantize_row(1, w, y, 1.0f, codes_stride, codes, sums_G);
    }
}

/* ---- the rest ---- */

INLINE vfloat activated(uint32_t mlp, vfloat gate, vfloat up) {
    vfloat positive = max(mlp == OB_MLP_RELU2 ? up : gate, all(0.0f));
    switch (mlp) {
    case OB_MLP_GELU: return gelu_lanes(up);
    case OB_MLP_RELU2: return positive * positive;
    case OB_MLP_SWIGLU: return silu_lanes(gate) * up;
    default: return positive * positive * up;
    }
}

INLINE void activate_row(uint32_t mlp, int gated, const float *gate, float *up, uint32_t size) {
    uint32_t k = 0;
    for (; k + W <= size; k += W) store(up + k, activated(mlp, gated ? load(gate + k) : all(0.0f), load(up + k)));
    if (k == size) return;
    float last[W];
    store(last, activated(mlp, gated ? load_first(gate + k, size - k) : all(0.0f), load_first(up + k, size - k)));
    for (uint32_t i = 0; k < size; i++, k++) up[k] = last[i];
}

TARGET static void activate(uint32_t mlp, const float *gate, float *up, uint32_t size) {
    switch (mlp) {
    case OB_MLP_GELU: activate_row(OB_MLP_GELU, 0, gate, up, size); break;
    case OB_MLP_RELU2: activate_row(OB_MLP_RELU2, 0, gate, up, size); break;
    case OB_MLP_SWIGLU: activate_row(OB_MLP_SWIGLU, 1, gate, up, size); break;
    default: activate_row(OB_MLP_RELU2_GLU, 1, gate, up, size); break;
    }
}

TARGET static void rotate(float *x, const float *cosines, const float *sines, uint32_t half) {
    uint32_t i = 0;
    for (; i + W <= half; i += W) {
        vfloat a = load(x + i), b = load(x + half + i), cosine = load(cosines + i), sine = load(sines + i);
        store(x + i, a * cosine - b * sine);
        store(x + half + i, b * cosine + a * sine);
    }
    for (; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a * cosines[i] - b * sines[i];
        x[i + half] = b * cosines[i] + a * sines[i];
    }
}

/* For h = 1, 2, 4, 8 the sign bit of the lanes that have bit h: a difference is the other's value minus their own. */
enum { N = INT32_MIN, STAGES = W == 16 ? 4 : W == 8 ? 3 : 2 };
static const int32_t subtracted[4][OB_LANES] = {{0, N, 0, N, 0, N, 0, N, 0, N, 0, N, 0, N, 0, N},
                                                {0, 0, N, N, 0, 0, N, N, 0, 0, N, N, 0, 0, N, N},
                                                {0, 0, 0, 0, N, N, N, N, 0, 0, 0, 0, N, N, N, N},
                                                {0, 0, 0, 0, 0, 0, 0, 0, N, N, N, N, N, N, N, N}};

/* The pairs of distance 2^stage < W, both in one register. */
INLINE vfloat turn_lanes(vfloat v, int stage) {
    vint signs = (vint)load((const float *)(const void *)subtracted[stage]);
    return swapped(v, 1 << stage) + (vfloat)((vint)v ^ signs);
}

/* Pairs of distance h and of 2 h in one pass. */
INLINE void turn_fours(float *x, uint32_t size, uint32_t h) {
    for (uint32_t i = 0; i < size; i += 4 * h)
        for (uint32_t k = i; k < i + h; k += W) {
            vfloat a = load(x + k), b = load(x + k + h), c = load(x + k + 2 * h), d = load(x + k + 3 * h);
            vfloat sum = a + b, difference = a - b, sum2 = c + d, difference2 = c - d;
            store(x + k, sum + sum2);
            store(x + k + h, difference + difference2);
            store(x + k + 2 * h, sum - sum2);
            store(x + k + 3 * h, difference - difference2);
        }
}

INLINE void turn_pairs(float *x, uint32_t size, uint32_t h) {
    for (uint32_t i = 0; i < size; i += 2 * h)
        for (uint32_t k = i; k < i + h; k += W) {
            vfloat a = load(x + k), b = load(x + k + h);
            store(x + k, a + b);
            store(x + k + h, a - b);
        }
}

TARGET static void turn(float *x, const float *factors, uint32_t size, uint32_t block, int back) {
    if (block < W) {
        ob_turn_ref(x, factors, size, block, back);
        return;
    }
    for (uint32_t k = 0; k < size; k += W) {
        vfloat v = back ? load(x + k) : load(x + k) * load(factors + k);
        UNROLL for (int stage = 0; stage < STAGES; stage++) v = turn_lanes(v, stage);
        store(x + k, v);
    }
    uint32_t h = W;
    for (; 4 * h <= block; h *= 4) turn_fours(x, size, h);
    if (h < block) turn_pairs(x, size, h);
    for (uint32_t k = 0; back && k < size; k += W) store(x + k, load(x + k) * load(factors + k));
}

TARGET static void add(float *x, const float *y, float scale, uint32_t size) {
    uint32_t k = 0;
    for (; k + W <= size; k += W) store(x + k, load(x + k) + scale * load(y + k));
    for (; k < size; k++) x[k] += scale * y[k];
}

/* ---- rows of the KV cache ---- */

/* One full group of OB_KV_GROUP: its codes and its scale. */
INLINE void store_group(const float *x, uint8_t *codes, uint8_t *scale) {
    vfloat most = all(0.0f);
    UNROLL for (int d = 0; d < OB_KV_GROUP; d += W) most = max(size_of(load(x + d)), most);
    uint16_t half = ob_float_to_half(largest_lane(most) / 127.0f);
    float value = ob_half_to_float(half), inverse = value > 0.0f ? 1.0f / value : 0.0f;
    memcpy(scale, &half, 2);
    UNROLL for (int d = 0; d < OB_KV_GROUP; d += W) store_codes((int8_t *)codes + d, codes_of(0, load(x + d), inverse));
}

TARGET static void kv_store(uint32_t kv_type, const float *x, uint32_t head_dim, uint8_t *row) {
    uint32_t d = 0;
    if (kv_type == OB_KV_FLOAT16 && head_dim % W == 0)
        for (; d < head_dim; d += W) store_half(row + 2 * d, load(x + d));
    else if (kv_type == OB_KV_INT8 && head_dim % OB_KV_GROUP == 0)
        for (; d < head_dim; d += OB_KV_GROUP) store_group(x + d, row + d, row + head_dim + d / OB_KV_GROUP * 2);
    else ob_kv_store_ref(kv_type, x, head_dim, row);
}

TARGET static void kv_load(uint32_t kv_type, const uint8_t *row, uint32_t head_dim, float *x) {
    uint32_t d = 0;
    if (kv_type == OB_KV_FLOAT16 && head_dim % W == 0)
        for (; d < head_dim; d += W) store(x + d, load_half(row + 2 * d));
    else if (kv_type == OB_KV_INT8 && head_dim % OB_KV_GROUP == 0)
        for (; d < head_dim; d += W) {
            uint16_t half;
            memcpy(&half, row + head_dim + d / OB_KV_GROUP * 2, 2);
            store(x + d, load_codes(row + d) * ob_half_to_float(half));
        }
    else ob_kv_load_ref(kv_type, row, head_dim, x);
}

OB_INLINE void enter_rows(ob_kernels *k, uint8_t isa) {
    k->norm_quantize = norm_quantize;
    k->activate = activate;
    k->rotate = rotate;
    k->turn = turn;
    k->add = add;
    k->kv_store = kv_store;
    k->kv_load = kv_load;
    k->isa_rows = isa;
}
