/* What lies between two products (norms and codes, activations, rotary positions, residuals): every instruction set
 * against the reference, bit for bit, and the reference against the formulas in double. Turned inputs likewise. */
#include "ob_cpu.h"
#include "ob_math.h"
#include "ob_test.h"
#include "kernels/ob_kernels.h"

#include <math.h>
#include <string.h>

static const uint32_t sizes[] = {1, 5, 15, 16, 17, 31, 64, 100, 127, 128, 130, 257, 512, 640, 1000, 2560, 6912};
enum { NUM_SIZES = sizeof sizes / sizeof *sizes, MAX_SIZE = 6912 };

static float *numbers(uint32_t count, uint64_t *state) {
    float *x = test_aligned((count + 15) / 16 * 64);
    for (uint32_t k = 0; k < count; k++) x[k] = 4 * test_normal(state);
    return x;
}

/* Only what norm_quantize looks at. */
static ob_weights shape(uint32_t layout, uint32_t group, uint32_t cols, uint32_t activation) {
    ob_weights w = {.cols = cols, .layout = (uint8_t)layout, .activation = (uint8_t)activation};
    w.group = group && group < cols ? group : cols;
    w.num_groups = (cols + w.group - 1) / w.group;
    w.tile = ob_layout_tile(layout);
    w.codes_cols = cols;
    if (w.tile) {
        uint32_t last = cols - (w.num_groups - 1) * w.group;
        w.tiles_group = (w.group + w.tile - 1) / w.tile;
        w.tiles_block = (w.num_groups - 1) * w.tiles_group + (last + w.tile - 1) / w.tile;
        w.codes_cols = w.tiles_block * w.tile;
    }
    return w;
}

typedef struct result {
    float *y, scale;
    int8_t *codes;
    int32_t *sums;
} result;

static result run(ob_norm_quantize_fn *f, const ob_norm *norm, const ob_weights *w, const float *x, uint32_t size, int in_place) {
    size_t stride = w ? (w->codes_cols + 63) / 64 * 64 : 0, padded = (size + 15) / 16 * 16;
    result r = {test_aligned(padded * 4), -1, test_aligned(stride), test_aligned(w ? w->num_groups * 4 : 4)};
    memset(r.y, 0x33, padded * 4);
    memset(r.codes, 0x55, stride);
    memset(r.sums, 0x55, w ? w->num_groups * 4 : 4);
    if (in_place) memcpy(r.y, x, size * 4);
    f(norm, w, in_place ? r.y : x, size, r.y, stride, r.codes, r.sums, &r.scale);
    return r;
}

static void free_result(result *r) { free(r->y), free(r->codes), free(r->sums); }

static void compare_norms(const ob_kernels *k, const ob_norm *norm, const ob_weights *w, const float *x, uint32_t size) {
    for (int in_place = 0; in_place < 2; in_place++) {
        result expected = run(ob_norm_quantize_ref, norm, w, x, size, in_place), got = run(k->norm_quantize, norm, w, x, size, in_place);
        CHECK(!memcmp(expected.y, got.y, (size + 15) / 16 * 64), "norm %u of %u, isa %u", norm->kind, size, k->isa);
        if (w) {
            CHECK(!memcmp(expected.codes, got.codes, (w->codes_cols + 63) / 64 * 64), "codes of %u, isa %u", size, k->isa);
            CHECK(!memcmp(expected.sums, got.sums, w->num_groups * 4), "sums of %u, isa %u", size, k->isa);
            CHECK(!memcmp(&expected.scale, &got.scale, 4), "scale of %u, isa %u", size, k->isa);
        }
        free_result(&expected), free_result(&got);
    }
}

static void test_norms(const ob_kernels *k) {
    static const uint32_t layouts[] = {OB_LAYOUT_INT8, OB_LAYOUT_TERNARY, OB_LAYOUT_BINARY_T16, OB_LAYOUT_TERNARY_T16, OB_LAYOUT_TERNARY5_T16};
    static const uint32_t groups[] = {0, 64, 70, 128};
    uint64_t state = 1;
    float *weight = numbers(MAX_SIZE, &state), *bias = numbers(MAX_SIZE, &state), *x = numbers(MAX_SIZE, &state);
    const ob_norm norms[] = {{NULL, NULL, 1e-5f, OB_NORM_RMS}, {weight, NULL, 1e-5f, OB_NORM_RMS},
                             {weight, NULL, 1e-5f, OB_NORM_LAYER}, {weight, bias, 1e-5f, OB_NORM_LAYER}};
    for (uint32_t s = 0; s < NUM_SIZES; s++)
        for (int n = 0; n < 4; n++) {
            compare_norms(k, &norms[n], NULL, x, sizes[s]);
            for (uint32_t activation = OB_ACTIVATION_NONE; activation <= OB_ACTIVATION_SIGN; activation++)
                for (int l = 0; l < 5; l++)
                    for (int g = 0; g < 4; g++) {
                        ob_weights w = shape(layouts[l], groups[g], sizes[s], activation);
                        compare_norms(k, &norms[n], &w, x, sizes[s]);
                    }
        }
    free(weight), free(bias), free(x);
}

/* Hostile weights make infinities and NaN: codes must come out, the same ones, and no undefined behaviour. */
static void test_no_numbers(const ob_kernels *k) {
    static const float odd[] = {INFINITY, -INFINITY, NAN, 3e38f, 1e-40f, -0.0f};
    uint64_t state = 2;
    float *x = numbers(200, &state);
    const ob_norm none = {NULL, NULL, 1e-5f, OB_NORM_RMS};
    for (int i = 0; i < 200; i++) {
        for (uint32_t j = 0; j < 200; j++) x[j] = test_normal(&state);
        x[test_random(&state) % 200] = odd[i % 6];
        x[test_random(&state) % 200] = odd[i / 6 % 6];
        ob_weights w = shape(OB_LAYOUT_TERNARY_T16, 64, 200, i % 2 ? OB_ACTIVATION_INT8 : OB_ACTIVATION_SIGN);
        result expected = run(ob_norm_quantize_ref, &none, &w, x, 200, 0), got = run(k->norm_quantize, &none, &w, x, 200, 0);
        CHECK(!memcmp(expected.codes, got.codes, (w.codes_cols + 63) / 64 * 64), "codes of no numbers, isa %u, round %d", k->isa, i);
        CHECK(!memcmp(expected.sums, got.sums, w.num_groups * 4), "sums of no numbers, isa %u", k->isa);
        free_result(&expected), free_result(&got);
    }
    free(x);
}

static void check_same(const char *what, const ob_kernels *k, uint32_t size, const float *expected, const float *got, uint32_t count) {
    for (uint32_t i = 0; i < count; i++)
        CHECK(isnan(expected[i]) ? isnan(got[i]) : !memcmp(expected + i, got + i, 4), "%s of %u, isa %u: [%u] is %g, expected %g", what,
              size, k->isa, i, got[i], expected[i]);
}

static void test_others(const ob_kernels *k) {
    uint64_t state = 3;
    for (uint32_t s = 0; s < NUM_SIZES; s++) {
        uint32_t size = sizes[s];
        float *x = numbers(2 * size, &state), *y = numbers(size, &state), *z = numbers(size, &state);
        float *expected = test_aligned(2 * size * 4), *got = test_aligned(2 * size * 4);
        for (uint32_t mlp = OB_MLP_GELU; mlp <= OB_MLP_RELU2_GLU; mlp++) {
            memcpy(expected, x, size * 4), memcpy(got, x, size * 4);
            ob_activate_ref(mlp, mlp >= OB_MLP_SWIGLU ? y : NULL, expected, size);
            k->activate(mlp, mlp >= OB_MLP_SWIGLU ? y : NULL, got, size);
            check_same("activation", k, size, expected, got, size);
        }
        memcpy(expected, x, 2 * size * 4), memcpy(got, x, 2 * size * 4);
        ob_rotate_ref(expected, y, z, size);
        k->rotate(got, y, z, size);
        check_same("rotation", k, size, expected, got, 2 * size);
        ob_add_ref(expected, y, 0.7f, size);
        k->add(got, y, 0.7f, size);
        check_same("sum", k, size, expected, got, 2 * size);
        free(x), free(y), free(z), free(expected), free(got);
    }
}

static int parity(uint32_t bits) {
    int odd = 0;
    for (; bits; bits &= bits - 1) odd = !odd;
    return odd;
}

static void test_turn(const ob_kernels *k) {
    static const uint32_t blocks[] = {2, 4, 8, 16, 32, 64, 128, 512, 1024}, counts[] = {1, 3, 5};
    uint64_t state = 5;
    for (int b = 0; b < 9; b++)
        for (int c = 0; c < 3; c++) {
            uint32_t block = blocks[b], size = block * counts[c];
            float *x = numbers(size, &state), *factors = numbers(size, &state);
            float *expected = test_aligned(size * 4), *got = test_aligned(size * 4);
            for (uint32_t i = 0; i < size; i++) factors[i] = (factors[i] < 0 ? -1.0f : 1.0f) / ob_sqrt((float)block);
            memcpy(expected, x, size * 4), memcpy(got, x, size * 4);
            ob_turn_ref(expected, factors, size, block, 0);
            k->turn(got, factors, size, block, 0);
            check_same("turn", k, block, expected, got, size);
            for (uint32_t i = 0; i < size; i++) {
                double exact = 0;
                for (uint32_t j = i / block * block, l = 0; l < block; j++, l++) exact += (parity(i % block & l) ? -1.0 : 1.0) * x[j] * factors[j];
                CHECK(fabs(got[i] - exact) <= 1e-5, "turn of %u: [%u] is %g, exactly %g", block, i, got[i], exact);
            }
            ob_turn_ref(expected, factors, size, block, 1);
            k->turn(got, factors, size, block, 1);
            check_same("turn back", k, block, expected, got, size);
            for (uint32_t i = 0; i < size; i++) CHECK(fabsf(got[i] - x[i]) <= 1e-5f, "turned and back: %g, was %g", got[i], x[i]);
            free(x), free(factors), free(expected), free(got);
        }
}

/* Each activation over the whole range of floats, edges included. */
static void test_functions(const ob_kernels *k) {
    enum { COUNT = 1 << 16 };
    float *x = test_aligned(COUNT * 4), *ones = test_aligned(COUNT * 4), *expected = test_aligned(COUNT * 4), *got = test_aligned(COUNT * 4);
    for (uint32_t i = 0; i < COUNT; i++) x[i] = i % 2 ? ob_float_from_bits(i << 16) : ((float)i - COUNT / 2) * 0.004f, ones[i] = 1.0f;
    for (uint32_t mlp = OB_MLP_GELU; mlp <= OB_MLP_RELU2_GLU; mlp++) {
        int gated = mlp >= OB_MLP_SWIGLU;
        memcpy(expected, gated ? ones : x, COUNT * 4), memcpy(got, gated ? ones : x, COUNT * 4);
        ob_activate_ref(mlp, gated ? x : NULL, expected, COUNT);
        k->activate(mlp, gated ? x : NULL, got, COUNT);
        check_same("activation", k, mlp, expected, got, COUNT);
    }
    free(x), free(ones), free(expected), free(got);
}

static void test_formulas(void) {
    uint64_t state = 4;
    float *x = numbers(1000, &state), *weight = numbers(1000, &state);
    const ob_norm rms = {weight, NULL, 1e-5f, OB_NORM_RMS};
    ob_weights w = shape(OB_LAYOUT_TERNARY_T16, 0, 1000, OB_ACTIVATION_INT8);
    result r = run(ob_norm_quantize_ref, &rms, &w, x, 1000, 0);
    double squares = 0, most = 0;
    for (int k = 0; k < 1000; k++) squares += (double)x[k] * x[k];
    for (int k = 0; k < 1000; k++) { /* no fmax: GCC 12 for ARM fails to compile that sum */
        double size = fabs(x[k] / sqrt(squares / 1000 + 1e-5) * weight[k]);
        if (size > most) most = size;
    }
    for (int k = 0; k < 1000; k++) {
        double exact = x[k] / sqrt(squares / 1000 + 1e-5) * weight[k];
        CHECK(fabs(r.y[k] - exact) <= 1e-6 * fabs(exact), "rms norm: %g, exactly %g", r.y[k], exact);
        CHECK(fabs(r.codes[k] - exact / most * 127) <= 0.5001, "code %d, exactly %g", r.codes[k], exact / most * 127);
    }
    CHECK(fabs(r.scale * 127 / most - 1) < 1e-6, "scale %g", r.scale);
    free_result(&r);
    free(x), free(weight);
}

int main(void) {
    test_formulas();
    for (uint32_t isa = OB_ISA_SCALAR; isa < OB_NUM_ISAS; isa++) {
        ob_kernels k;
        if (!ob_kernels_choose(&k, isa)) {
            printf("isa %u: not on this machine\n", isa);
            continue;
        }
        test_norms(&k);
        test_no_numbers(&k);
        test_others(&k);
        test_turn(&k);
        test_functions(&k);
    }
    printf("%d failures\n", failures);
    return failures != 0;
}
