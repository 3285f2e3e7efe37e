/* What lies between two products, one token at a time: norms, activations to int8, rotary positions, the MLP's
 * activation. The reference; sums as ob_kernels.h has them. */
#include "../ob_math.h"
#include "ob_kernels.h"

/* ---- norms ---- */

static float sum_of(const float *x, uint32_t size) {
    float lanes[OB_LANES] = {0};
    uint32_t k = 0;
    for (; k + 16 <= size; k += 16)
        for (int l = 0; l < 16; l++) lanes[l] += x[k + l];
    for (int l = 0; k < size; k++, l++) lanes[l] += x[k];
    return ob_tree16(lanes);
}

static float sum_of_squares(const float *x, uint32_t size) {
    float lanes[OB_LANES] = {0};
    ob_dot_lanes(x, x, size, lanes);
    return ob_tree16(lanes);
}

static void rms_norm(const float *x, const ob_norm *n, uint32_t size, float *y) {
    float factor = 1.0f / ob_sqrt(sum_of_squares(x, size) / (float)size + n->eps);
    for (uint32_t k = 0; k < size; k++) y[k] = x[k] * factor * n->weight[k];
}

static void layer_norm(const float *x, const ob_norm *n, uint32_t size, float *y) {
    float mean = sum_of(x, size) / (float)size;
    for (uint32_t k = 0; k < size; k++) y[k] = x[k] - mean;
    float factor = 1.0f / ob_sqrt(sum_of_squares(y, size) / (float)size + n->eps);
    for (uint32_t k = 0; k < size; k++) y[k] = n->bias ? y[k] * factor * n->weight[k] + n->bias[k] : y[k] * factor * n->weight[k];
}

/* ---- activations to codes ---- */

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

static void quantize(const ob_weights *w, const float *x, size_t codes_stride, int8_t *codes, int32_t *sums, float *scale) {
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

void ob_norm_quantize_ref(const ob_norm *norm, const ob_weights *w, const float *x, uint32_t size, float *y,
                          size_t codes_stride, int8_t *codes, int32_t *sums_G, float *scale) {
    if (norm->weight && norm->kind == OB_NORM_LAYER) layer_norm(x, norm, size, y);
    else if (norm->weight) rms_norm(x, norm, size, y);
    else if (x != y) memmove(y, x, size * sizeof *y);
    if (!w) return;
    for (uint32_t k = size; k % 16; k++) y[k] = 0.0f;
    if (w->activation != OB_ACTIVATION_NONE) quantize(w, y, codes_stride, codes, sums_G, scale);
}

/* ---- the rest ---- */

static float relu2(float x) { return x > 0.0f ? x * x : 0.0f; }

void ob_activate_ref(uint32_t mlp, const float *gate, float *up, uint32_t size) {
    for (uint32_t k = 0; k < size; k++) switch (mlp) {
        case OB_MLP_GELU: up[k] = ob_gelu(up[k]); break;
        case OB_MLP_RELU2: up[k] = relu2(up[k]); break;
        case OB_MLP_SWIGLU: up[k] = ob_silu(gate[k]) * up[k]; break;
        default: up[k] = relu2(gate[k]) * up[k]; break;
        }
}

void ob_rotate_ref(float *x, const float *cosines, const float *sines, uint32_t half) {
    for (uint32_t i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a * cosines[i] - b * sines[i];
        x[i + half] = b * cosines[i] + a * sines[i];
    }
}

void ob_turn_ref(float *x, const float *factors, uint32_t size, uint32_t block, int back) {
    if (!back)
        for (uint32_t k = 0; k < size; k++) x[k] *= factors[k];
    for (uint32_t h = 1; h < block; h *= 2)
        for (uint32_t i = 0; i < size; i += 2 * h)
            for (uint32_t k = i; k < i + h; k++) {
                float a = x[k], b = x[k + h];
                x[k] = a + b;
                x[k + h] = a - b;
            }
    if (back)
        for (uint32_t k = 0; k < size; k++) x[k] *= factors[k];
}

void ob_add_ref(float *x, const float *y, float scale, uint32_t size) {
    for (uint32_t k = 0; k < size; k++) x[k] += scale * y[k];
}
