/* The KV cache's rows and attention: the reference against the formula in double, and every instruction set against the
 * reference, bit for bit. */
#include "ob_cpu.h"
#include "ob_math.h"
#include "ob_test.h"
#include "kernels/ob_kernels.h"

#include <math.h>
#include <string.h>

enum { POSITIONS = 210, MAX_DIM = 256 };

typedef struct problem {
    uint32_t type, dim, heads, tokens;
    size_t row_bytes, stride; /* stride: of a token's queries */
    uint8_t *keys, *values;
    float *q, *expected, *got;
} problem;

static void store_and_load(const ob_kernels *k, const problem *p, const float *x, uint8_t *to) {
    uint8_t *row = test_aligned(p->row_bytes);
    float *loaded = test_aligned(p->dim * 4), *back = test_aligned(p->dim * 4);
    memset(to, 0, p->row_bytes), memset(row, 0, p->row_bytes);
    ob_kv_store_ref(p->type, x, p->dim, row);
    k->kv_store(p->type, x, p->dim, to);
    CHECK(!memcmp(row, to, p->row_bytes), "stored row, isa %u type %u head_dim %u", k->isa, p->type, p->dim);
    ob_kv_load_ref(p->type, to, p->dim, back);
    k->kv_load(p->type, to, p->dim, loaded);
    CHECK(!memcmp(back, loaded, p->dim * 4), "loaded row, isa %u type %u head_dim %u", k->isa, p->type, p->dim);
    for (uint32_t d = 0; d < p->dim; d++) { /* int8: half a step of a group whose largest is below 20, and the scale's rounding */
        float bound = p->type == OB_KV_FLOAT32 ? 0 : p->type == OB_KV_FLOAT16 ? fabsf(x[d]) / 2048 + 3e-8f : 20.0f / 127 * 0.6f;
        CHECK(fabsf(back[d] - x[d]) <= bound, "type %u: %g stored as %g", p->type, x[d], back[d]);
    }
    free(row), free(loaded), free(back);
}

/* Exactly as long as they may be read, so that AddressSanitizer sees a kernel that reads on. */
static problem make_problem(const ob_kernels *k, uint32_t type, uint32_t dim, uint32_t heads, uint32_t tokens, uint32_t positions,
                            uint64_t *state) {
    problem p = {.type = type, .dim = dim, .heads = heads, .tokens = tokens};
    p.row_bytes = ob_kv_row_bytes(type, dim), p.stride = heads * dim + 5;
    size_t count = (tokens - 1) * p.stride + heads * dim;
    p.keys = malloc(positions * p.row_bytes), p.values = malloc(positions * p.row_bytes);
    p.q = malloc(count * 4), p.expected = malloc(count * 4), p.got = malloc(count * 4);
    memset(p.expected, 0xff, count * 4), memset(p.got, 0xff, count * 4); /* NaN: what was there must not count */
    for (uint32_t i = 0; i < 2 * positions; i++) {
        float x[MAX_DIM];
        for (uint32_t d = 0; d < dim; d++) x[d] = 3 * test_normal(state);
        store_and_load(k, &p, x, (i % 2 ? p.values : p.keys) + i / 2 * p.row_bytes);
    }
    for (size_t j = 0; j < count; j++) p.q[j] = 3 * test_normal(state);
    return p;
}

static void free_problem(problem *p) {
    void *all[] = {p->keys, p->values, p->q, p->expected, p->got};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

/* One output of one query in double. Scores of size 100 in float32 are off by 1e-5, and so are their exponentials. */
static void check_exactly(const ob_attention *a, uint32_t token, uint32_t head, uint32_t d) {
    uint32_t seen = a->num_positions - a->num_tokens + token + 1;
    const float *q = a->q + token * a->q_stride + head * a->head_dim;
    double sum = 0, out = 0, best = -1e30, score[1024];
    float row[MAX_DIM];
    for (uint32_t p = 0; p < seen; p++) {
        ob_kv_load_ref(a->kv_type, a->keys + p * a->row_bytes, a->head_dim, row);
        score[p] = 0;
        for (uint32_t i = 0; i < a->head_dim; i++) score[p] += (double)q[i] * row[i] * a->scale;
        if (score[p] > best) best = score[p];
    }
    for (uint32_t p = 0; p < seen; p++) {
        ob_kv_load_ref(a->kv_type, a->values + p * a->row_bytes, a->head_dim, row);
        sum += exp(score[p] - best), out += exp(score[p] - best) * row[d];
    }
    float ours = a->out[token * a->out_stride + head * a->head_dim + d];
    CHECK(fabs(ours - out / sum) < 1e-4, "attention: %g, exactly %g", ours, out / sum);
}

static int same(const problem *p) {
    for (uint32_t t = 0; t < p->tokens; t++)
        if (memcmp(p->expected + t * p->stride, p->got + t * p->stride, p->heads * p->dim * 4)) return 0;
    return 1;
}

/* All tokens at once, in two parts, and one by one. */
static void compare(const ob_kernels *k, const problem *p, uint32_t positions, uint8_t *work) {
    ob_attention a = {p->keys, p->values, p->row_bytes, p->q,      p->expected, p->stride, p->stride,
                      p->type, p->dim,    p->heads,     p->tokens, positions,   0.25f};
    ob_attend_ref(&a, NULL);
    check_exactly(&a, p->tokens - 1, p->heads - 1, p->dim - 1);
    const uint32_t parts[] = {p->tokens, (p->tokens + 1) / 2, 1};
    for (int i = 0; i < 3; i++) {
        for (uint32_t t = 0; t < p->tokens; t += parts[i]) {
            ob_attention part = a;
            part.num_tokens = p->tokens - t < parts[i] ? p->tokens - t : parts[i];
            part.num_positions = positions - p->tokens + t + part.num_tokens;
            part.q = p->q + t * p->stride, part.out = p->got + t * p->stride;
            k->attend(&part, work);
        }
        CHECK(same(p), "isa %u type %u head_dim %u, %u heads, %u tokens in parts of %u, %u positions", k->isa, p->type, p->dim,
              p->heads, p->tokens, parts[i], positions);
    }
}

static void test_shapes(const ob_kernels *k, uint8_t *work) {
    static const uint32_t dims[] = {16, 18, 33, 48, 64, 80, 96, 128, 160, 255, 256}, tokens[] = {1, 2, 5, 37, 70};
    uint64_t state = 77;
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++)
        for (uint32_t type = OB_KV_FLOAT32; type < OB_NUM_KV_TYPES; type++)
            for (size_t t = 0; t < sizeof tokens / sizeof *tokens; t++) {
                uint32_t heads = 1 + test_random(&state) % 8, positions = tokens[t] + test_random(&state) % (POSITIONS - tokens[t]);
                problem p = make_problem(k, type, dims[i], heads, tokens[t], positions, &state);
                compare(k, &p, positions, work);
                if (tokens[t] < 64) compare(k, &p, tokens[t], work); /* the first tokens of a sequence */
                free_problem(&p);
            }
}

/* Every number of positions around the blocks, every number of heads. */
static void test_counts(const ob_kernels *k, uint8_t *work) {
    uint64_t state = 78;
    for (uint32_t type = OB_KV_FLOAT32; type < OB_NUM_KV_TYPES; type++)
        for (uint32_t heads = 1; heads <= 8; heads++) {
            problem p = make_problem(k, type, 64, heads, 3, 140, &state);
            for (uint32_t n = 3; n <= 140; n += n < 60 || n > 70 ? 7 : 1) compare(k, &p, n, work);
            free_problem(&p);
        }
}

/* Keys, values and queries that hold anything: no undefined behaviour, and the outputs that are numbers are the same. */
static void test_no_numbers(const ob_kernels *k, uint8_t *work) {
    static const float odd[] = {INFINITY, -INFINITY, NAN, 3e38f, -3e38f, 1e-40f, -0.0f};
    uint64_t state = 79;
    for (uint32_t type = OB_KV_FLOAT32; type < OB_NUM_KV_TYPES; type++)
        for (uint32_t round = 0; round < 20; round++) {
            problem p = make_problem(k, type, 64, 4, 3, 100, &state);
            for (uint32_t i = 0; i < 6; i++) {
                float x[64];
                for (uint32_t d = 0; d < 64; d++) x[d] = test_normal(&state);
                x[test_random(&state) % 64] = odd[test_random(&state) % 7];
                k->kv_store(type, x, 64, (i % 2 ? p.keys : p.values) + test_random(&state) % 100 * p.row_bytes);
            }
            p.q[test_random(&state) % (3 * 64)] = odd[round % 7];
            ob_attention a = {p.keys, p.values, p.row_bytes, p.q, p.expected, p.stride, p.stride, type, 64, 4, 3, 100, 0.25f};
            ob_attend_ref(&a, NULL);
            a.out = p.got;
            k->attend(&a, work);
            for (uint32_t t = 0; t < 3; t++)
                for (uint32_t d = 0; d < 4 * 64; d++) {
                    float expected = p.expected[t * p.stride + d], got = p.got[t * p.stride + d];
                    CHECK(isnan(expected) ? isnan(got) : !memcmp(&expected, &got, 4), "isa %u type %u: %g, expected %g", k->isa, type,
                          got, expected);
                }
            free_problem(&p);
        }
}

int main(void) {
    uint8_t *work = test_aligned(OB_WORK_BYTES);
    for (uint32_t isa = OB_ISA_SCALAR; isa < OB_NUM_ISAS; isa++) {
        ob_kernels k;
        if (!ob_kernels_choose(&k, isa)) {
            printf("isa %u: not on this machine\n", isa);
            continue;
        }
        if (k.isa_attend != isa && k.isa_rows != isa) { /* under qemu each round takes half a minute */
            printf("isa %u: attends as isa %u, tested there\n", isa, k.isa_attend);
            continue;
        }
        test_shapes(&k, work);
        test_counts(&k, work);
        test_no_numbers(&k, work);
    }
    free(work);
    printf("%d failures\n", failures);
    return failures != 0;
}
