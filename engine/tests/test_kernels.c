/* The core's arithmetic against libm and hand-made values, and every SIMD kernel against its reference, bit for bit. */
#include "ob_crc32c.h"
#include "ob_cpu.h"
#include "ob_math.h"
#include "ob_test.h"
#include "kernels/ob_kernels.h"

#include <math.h>
#include <string.h>

/* Distance from the correctly rounded result in units in the last place. */
static double ulps(float ours, double exact) {
    float rounded = (float)exact;
    if (ours == rounded) return 0;
    double step = nextafterf(fabsf(rounded), INFINITY) - (double)fabsf(rounded);
    return fabs(ours - exact) / step;
}

static void test_functions(void) {
    double worst_exp = 0, worst_tanh = 0, worst_silu = 0, worst_gelu = 0;
    for (double x = -87; x < 88.7; x += 0.00037) {
        float f = (float)x;
        double e = ulps(ob_exp(f), exp(f)), t = ulps(ob_tanh(f), tanh(f));
        double s = ulps(ob_silu(f), f / (1 + exp(-(double)f)));
        worst_exp = e > worst_exp ? e : worst_exp;
        worst_tanh = t > worst_tanh ? t : worst_tanh;
        worst_silu = s > worst_silu ? s : worst_silu;
        double gelu = 0.5 * f * (1 + tanh(0.7978845608028654 * (f + 0.044715 * f * f * (double)f)));
        double g = fabs(ob_gelu(f) - gelu) / (fabs(gelu) + 1);
        worst_gelu = g > worst_gelu ? g : worst_gelu;
    }
    printf("worst error in ulp: exp %.2f tanh %.2f silu %.2f; gelu %.1e of its size\n", worst_exp, worst_tanh, worst_silu,
           worst_gelu);
    CHECK(worst_exp < 1.5, "%g", worst_exp);
    CHECK(worst_tanh < 2.0, "%g", worst_tanh);
    CHECK(worst_silu < 3.0, "%g", worst_silu);
    CHECK(worst_gelu < 3e-7, "%g", worst_gelu);
    CHECK(ob_exp(-200.0f) == 0 && isinf(ob_exp(200.0f)) && isnan(ob_exp(NAN)) && ob_exp(-INFINITY) == 0, "edges of exp");
    CHECK(ob_tanh(INFINITY) == 1 && ob_tanh(-INFINITY) == -1 && isnan(ob_tanh(NAN)), "edges of tanh");
}

static void test_double_functions(void) {
    double worst = 0;
    for (double x = 0; x < 2e6; x += 37.31) {
        double sine, cosine;
        ob_sincos64(x, &sine, &cosine);
        worst = fmax(worst, fmax(fabs(sine - sin(x)), fabs(cosine - cos(x))));
    }
    CHECK(worst < 1e-14, "sin and cos: %g", worst);
    worst = 0;
    for (double x = 1.0; x < 1e15; x *= 1.37) worst = fmax(worst, fabs(ob_log64(x) - log(x)) / (fabs(log(x)) + 1e-9));
    CHECK(worst < 1e-15, "log: %g", worst);
    worst = 0;
    for (double x = -40; x < 40; x += 0.013) worst = fmax(worst, fabs(ob_exp64(x) / exp(x) - 1));
    CHECK(worst < 1e-15, "exp: %g", worst);
}

static void test_halves(void) {
    for (uint32_t h = 0; h < 0x7c00; h++) { /* every half comes back; between two neighbours the nearer one, ties to even */
        float low = ob_half_to_float((uint16_t)h), high = h == 0x7bff ? 65536.0f : ob_half_to_float((uint16_t)(h + 1));
        float middle = 0.5f * (low + high);
        CHECK(ob_float_to_half(low) == h && ob_float_to_half(-low) == (h | 0x8000), "half %x", h);
        CHECK(ob_float_to_half(middle) == h + h % 2, "the middle above half %x", h);
        CHECK(ob_float_to_half(nextafterf(middle, 0)) == h, "below the middle above half %x", h);
        CHECK(ob_float_to_half(nextafterf(middle, INFINITY)) == h + 1, "above the middle above half %x", h);
    }
    CHECK(ob_float_to_half(INFINITY) == 0x7c00 && isnan(ob_half_to_float(ob_float_to_half(NAN))), "no number");
}

static void test_conversions(void) {
    for (uint32_t h = 0; h < 65536; h++) {
        uint32_t exponent = h >> 10 & 31, mantissa = h & 1023;
        double size = exponent == 31 ? INFINITY : exponent ? ldexp(1024 + mantissa, (int)exponent - 25) : ldexp(mantissa, -24);
        float ours = ob_half_to_float((uint16_t)h);
        if (exponent == 31 && mantissa) CHECK(isnan(ours), "half %x", h);
        else CHECK(ours == (float)(h & 0x8000 ? -size : size), "half %x", h);
    }
    for (float x = -130; x < 130; x += 0.03125f) CHECK(ob_rint(x) == rintf(x), "rint %g", x);
    uint64_t state = 5;
    for (int i = 0; i < 1000000; i++) {
        float x = ob_float_from_bits(test_random(&state) & 0x7fffffffu);
        if (x < INFINITY) CHECK(ob_sqrt(x) == sqrtf(x), "sqrt %g", x);
    }
}

static void test_crc(void) {
    const uint8_t digits[] = "123456789";
    uint8_t bytes[1000];
    uint64_t state = 9;
    CHECK(ob_crc32c(0, digits, 9) == 0xe3069283u, "the check value of CRC-32C");
    CHECK(ob_crc32c_ref(0, digits, 9) == 0xe3069283u, "the check value of CRC-32C");
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (uint8_t)test_random(&state);
    for (uint64_t cut = 0; cut < sizeof bytes; cut += 13)
        CHECK(ob_crc32c(ob_crc32c(0, bytes, cut), bytes + cut, sizeof bytes - cut) == ob_crc32c_ref(0, bytes, sizeof bytes),
              "in two parts, cut at %d", (int)cut);
}

/* ---- kernels ---- */

typedef struct problem {
    ob_weights w;
    ob_inputs in;
    uint8_t *data;
    uint16_t *scale_memory;
    float *bias, *x, *scales;
    int8_t *codes;
    int32_t *sums;
} problem;

static uint32_t up(uint32_t a, uint32_t b) { return (a + b - 1) / b; }

static void make_weights(problem *p, uint32_t layout, uint32_t granularity, uint32_t group, uint32_t rows, uint32_t cols,
                         uint64_t *state) {
    ob_weights *w = &p->w;
    *w = (ob_weights){.rows = rows, .cols = cols, .layout = (uint8_t)layout, .granularity = (uint8_t)granularity};
    w->group = granularity == OB_GRANULARITY_GROUP && cols > group ? group : cols;
    w->num_groups = up(cols, w->group);
    w->tile = ob_layout_tile(layout);
    w->codes_cols = cols;
    size_t bytes;
    if (w->tile) {
        w->tiles_group = up(w->group, w->tile);
        w->tiles_block = (w->num_groups - 1) * w->tiles_group + up(cols - (w->num_groups - 1) * w->group, w->tile);
        w->codes_cols = w->tiles_block * w->tile;
        bytes = (size_t)up(rows, 16) * w->tiles_block * 64;
    } else {
        w->row_stride = (ob_layout_row_bytes(layout, cols, w->group) + 63) / 64 * 64;
        bytes = rows * w->row_stride;
    }
    p->data = test_aligned(bytes);
    for (size_t i = 0; i < bytes; i++) p->data[i] = (uint8_t)test_random(state); /* any byte means some codes */
    if (layout == OB_LAYOUT_FLOAT32)
        for (size_t i = 0; i < bytes / 4; i++) ((float *)(void *)p->data)[i] = test_normal(state);
    if (layout == OB_LAYOUT_FLOAT16)
        for (size_t i = 0; i < bytes / 2; i++) /* 2^-5 to 4, both signs */
            ((uint16_t *)(void *)p->data)[i] = (uint16_t)((test_random(state) & 0x83ff) | (10 + test_random(state) % 7) << 10);
    size_t scales = (size_t)up(rows, 16) * 16 * w->num_groups;
    p->scale_memory = test_aligned(scales * 4);
    for (size_t i = 0; i < scales; i++) {
        if (granularity == OB_GRANULARITY_GROUP) p->scale_memory[i] = (uint16_t)(0x2400 + test_random(state) % 0x800);
        else ((float *)(void *)p->scale_memory)[i] = 0.02f + 0.01f * test_normal(state);
    }
    p->bias = test_aligned(rows * 4);
    for (uint32_t r = 0; r < rows; r++) p->bias[r] = test_normal(state);
    w->data = p->data;
    w->scale = granularity == OB_GRANULARITY_NONE ? NULL : p->scale_memory;
    w->bias = rows % 2 ? p->bias : NULL;
}

static void make_inputs(problem *p, uint32_t tokens, uint64_t *state) {
    const ob_weights *w = &p->w;
    size_t x_stride = up(w->cols, 16) * 16, codes_stride = up(w->codes_cols > w->cols ? w->codes_cols : w->cols, 64) * 64;
    p->x = test_aligned(tokens * x_stride * 4);
    p->codes = test_aligned(tokens * codes_stride);
    p->scales = test_aligned(tokens * 4);
    p->sums = test_aligned((size_t)tokens * w->num_groups * 4);
    memset(p->x, 0, tokens * x_stride * 4);
    memset(p->codes, 0, tokens * codes_stride);
    for (uint32_t t = 0; t < tokens; t++) {
        p->scales[t] = 0.01f + 0.001f * (float)t;
        for (uint32_t k = 0; k < w->cols; k++) p->x[t * x_stride + k] = test_normal(state);
        for (uint32_t g = 0; g < w->num_groups; g++) {
            int32_t sum = 0;
            for (uint32_t k = 0; k < ob_group_length(w, g); k++) {
                int8_t code = (int8_t)((int)(test_random(state) % 255) - 127);
                p->codes[t * codes_stride + ob_codes_index(w, g, k)] = code;
                sum += code;
            }
            p->sums[t * w->num_groups + g] = sum;
        }
    }
    p->in = (ob_inputs){p->x, p->codes, p->scales, p->sums, x_stride, codes_stride, tokens};
}

static void free_problem(problem *p) {
    void *all[] = {p->data, p->scale_memory, p->bias, p->x, p->codes, p->scales, p->sums};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

/* The exact dot products, one weight at a time, in double. */
static void check_reference(const problem *p, int integer, const float *y) {
    const ob_weights *w = &p->w;
    float *values = test_aligned(w->cols * sizeof *values), *scales = test_aligned(w->num_groups * sizeof *scales);
    for (uint32_t r = 0; r < w->rows; r++) {
        for (uint32_t g = 0; g < w->num_groups; g++) {
            scales[g] = ob_scale_at(w, r, g);
            for (uint32_t k = 0; k < ob_group_length(w, g); k++) ob_unpack_floats(w, r, g, k, 1, &values[g * w->group + k]);
        }
        for (uint32_t t = 0; t < p->in.num_tokens; t++) {
            double sum = 0, size = 0;
            for (uint32_t g = 0; g < w->num_groups; g++)
                for (uint32_t k = 0; k < ob_group_length(w, g); k++) {
                    double x = integer ? p->codes[t * p->in.codes_stride + ob_codes_index(w, g, k)]
                                       : p->x[t * p->in.x_stride + g * w->group + k];
                    double term = (double)values[g * w->group + k] * scales[g] * x * p->scales[t];
                    sum += term, size += fabs(term);
                }
            if (w->bias) sum += w->bias[r];
            CHECK(fabs(y[t * w->rows + r] - sum) <= 1e-6 * size + 1e-6, "layout %d row %u: %g, exactly %g", w->layout, r,
                  y[t * w->rows + r], sum);
        }
    }
    free(values);
    free(scales);
}

static void compare(const problem *p, ob_linear_fn *reference, ob_linear_fn *fast, int integer, uint32_t isa) {
    const ob_weights *w = &p->w;
    size_t count = (size_t)p->in.num_tokens * w->rows;
    float *expected = test_aligned(count * 4), *got = test_aligned(count * 4);
    memset(expected, 0x55, count * 4);
    memset(got, 0xaa, count * 4);
    uint8_t *work = test_aligned(OB_WORK_BYTES);
    reference(w, &p->in, 0, w->rows, expected, w->rows, NULL);
    check_reference(p, integer, expected);
    uint32_t middle = w->rows / 32 * 16; /* in two parts, as two threads would */
    fast(w, &p->in, 0, middle, got, w->rows, work);
    fast(w, &p->in, middle, w->rows, got, w->rows, work);
    free(work);
    CHECK(!memcmp(expected, got, count * 4), "isa %u layout %d granularity %d, %u x %u, %u tokens, integer %d", isa, w->layout,
          w->granularity, w->rows, w->cols, p->in.num_tokens, integer);
    free(expected);
    free(got);
}

static void test_linear(uint32_t isa) {
    static const uint32_t shapes[][3] = {{16, 64, 1},  {1, 1, 1},    {33, 100, 3}, {48, 257, 17}, {7, 640, 21},
                                         {64, 320, 5}, {31, 1037, 4}, {16, 30000, 1}, {19, 20011, 6}};
    ob_kernels scalar, fast;
    uint64_t state = 1234;
    CHECK(ob_kernels_choose(&scalar, OB_ISA_SCALAR) && ob_kernels_choose(&fast, isa), "isa %u", isa);
    for (uint32_t layout = 0; layout < OB_NUM_LAYOUTS; layout++)
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
            for (uint32_t granularity = OB_GRANULARITY_NONE; granularity <= OB_GRANULARITY_GROUP; granularity++) {
                if ((layout <= OB_LAYOUT_FLOAT16) != (granularity == OB_GRANULARITY_NONE)) continue;
                problem p;
                make_weights(&p, layout, granularity, 64, shapes[s][0], shapes[s][1], &state);
                make_inputs(&p, shapes[s][2], &state);
                compare(&p, scalar.linear_f32[layout], fast.linear_f32[layout], 0, isa);
                if (layout >= OB_LAYOUT_INT8) compare(&p, scalar.linear_i8[layout], fast.linear_i8[layout], 1, isa);
                free_problem(&p);
            }
}

/* Row layouts: every group length and number of tokens that takes another way through the kernels, few and many rows, and
 * codes of the greatest size, whose sums come nearest to the edge of the integers in between. */
static void test_linear_rows(uint32_t isa) {
    static const uint32_t shapes[][3] = {{5, 15, 2},   {3, 63, 300}, {40, 129, 41}, {3, 2560, 6},   {33, 1000, 7}, {18, 544, 8},
                                         {16, 96, 12}, {35, 513, 26}, {2, 20000, 9}, {20, 1056, 33}, {64, 4096, 1}, {9, 40, 90}};
    ob_kernels scalar, fast;
    uint64_t state = 4321;
    ob_kernels_choose(&scalar, OB_ISA_SCALAR), ob_kernels_choose(&fast, isa);
    for (uint32_t layout = 0; layout <= OB_LAYOUT_TERNARY5; layout++)
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
            const uint32_t group = layout == OB_LAYOUT_INT4 ? 32 : s % 2 ? 128 : 256;
            const uint32_t granularity = layout <= OB_LAYOUT_FLOAT16 ? OB_GRANULARITY_NONE : layout == OB_LAYOUT_INT8 ? OB_GRANULARITY_ROW
                                         : OB_GRANULARITY_GROUP;
            problem p;
            make_weights(&p, layout, granularity, group, shapes[s][0], shapes[s][1], &state);
            make_inputs(&p, shapes[s][2], &state);
            compare(&p, scalar.linear_f32[layout], fast.linear_f32[layout], 0, isa);
            if (layout >= OB_LAYOUT_INT8) compare(&p, scalar.linear_i8[layout], fast.linear_i8[layout], 1, isa);
            free_problem(&p);
        }
    for (uint32_t extreme = 0; extreme < 4; extreme++)
        for (uint32_t tokens = 1; tokens < 40; tokens += 8) {
            const uint32_t cols = tokens == 1 ? 131072 : 8000; /* the widest there is; the widest that is packed */
            problem p;
            make_weights(&p, OB_LAYOUT_INT8, OB_GRANULARITY_ROW, 0, 3, cols, &state);
            make_inputs(&p, tokens, &state);
            memset(p.data, extreme & 1 ? 127 : -127, p.w.rows * p.w.row_stride);
            if (extreme == 3) memset(p.data, -128, 100);
            for (uint32_t t = 0; t < tokens; t++) memset(p.codes + t * p.in.codes_stride, extreme & 2 ? 127 : -127, cols);
            for (uint32_t t = 0; t < tokens; t++) p.sums[t] = (extreme & 2 ? 127 : -127) * (int32_t)cols;
            compare(&p, scalar.linear_i8[OB_LAYOUT_INT8], fast.linear_i8[OB_LAYOUT_INT8], 1, isa);
            free_problem(&p);
        }
}

/* Tiled layouts: numbers of tokens and groups that take every way through the kernels, inputs longer than a panel, and the
 * greatest sums: all codes of one sign and size, all weights +1 (or every bit set, which ternary does not allow but a file
 * may hold). */
static void test_linear_tiles(uint32_t isa) {
    static const uint32_t shapes[][4] = {/* group, rows, cols, tokens */
                                         {64, 64, 512, 6},    {128, 48, 1000, 7},  {64, 32, 700, 8},    {256, 16, 1300, 9},
                                         {64, 80, 333, 16},   {128, 33, 2600, 33}, {48, 40, 500, 40},   {2048, 32, 5000, 13},
                                         {100, 47, 3000, 65}, {64, 32, 128, 300},  {128, 20, 400, 257}, {64, 16, 4500, 24},
                                         {16, 16, 90, 128},   {64, 5, 63, 31},     {32, 32, 60, 48},    {64, 7, 20000, 3},
                                         {64, 150, 700, 1},   {128, 139, 1000, 2}, {64, 90, 300, 32}};
    static const uint8_t ones[] = {0xff, 0xaa, 0xff, 0x00};
    ob_kernels scalar, fast;
    uint64_t state = 777;
    ob_kernels_choose(&scalar, OB_ISA_SCALAR), ob_kernels_choose(&fast, isa);
    for (uint32_t layout = OB_LAYOUT_BINARY_T16; layout <= OB_LAYOUT_TERNARY5_T16; layout++) {
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
            for (uint32_t granularity = OB_GRANULARITY_TENSOR; granularity <= OB_GRANULARITY_GROUP; granularity++) {
                problem p;
                make_weights(&p, layout, granularity, shapes[s][0], shapes[s][1], shapes[s][2], &state);
                make_inputs(&p, shapes[s][3], &state);
                compare(&p, scalar.linear_i8[layout], fast.linear_i8[layout], 1, isa);
                free_problem(&p);
            }
        for (uint32_t extreme = 0; extreme < 8; extreme++) {
            static const uint32_t tokens_of[] = {1, 2, 4, 20}, cols_of[] = {131072, 40000, 8192, 6912};
            const uint32_t tokens = tokens_of[extreme / 2], cols = cols_of[extreme / 2];
            const int8_t code = extreme % 2 ? -127 : 127;
            problem p;
            make_weights(&p, layout, OB_GRANULARITY_TENSOR, 0, 2, cols, &state);
            make_inputs(&p, tokens, &state);
            memset(p.data, ones[extreme / 2], (size_t)p.w.tiles_block * 64);
            for (uint32_t t = 0; t < tokens; t++) {
                p.sums[t] = code * (int32_t)cols;
                memset(p.codes + t * p.in.codes_stride, code, cols);
            }
            compare(&p, scalar.linear_i8[layout], fast.linear_i8[layout], 1, isa);
            free_problem(&p);
        }
    }
}

int main(void) {
    test_functions();
    test_double_functions();
    test_conversions();
    test_halves();
    test_crc();
    for (uint32_t isa = OB_ISA_SCALAR; isa < OB_NUM_ISAS; isa++) {
        if (!ob_isa_available(isa)) {
            printf("isa %u: not on this machine\n", isa);
            continue;
        }
        test_linear(isa);
        test_linear_rows(isa);
        test_linear_tiles(isa);
    }
    printf("%d failures\n", failures);
    return failures != 0;
}
