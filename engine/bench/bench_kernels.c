/* How near the tiled kernels come to the machine, one thread: bytes of weights a second beside a plain read of the same
 * memory, and operations a second beside the instruction set's dot product out of registers. The three are measured in
 * turn, in short slices of processor time, because a shared machine's speed drifts within seconds; medians are printed.
 *
 *   bench_kernels [--isa a,b] [--layout a,b] [--shape 2b4t,700m,45m] [--tokens 1,2,...] [--group N (0: scale per tensor)]
 *                 [--rows N: rows of a call] [--rounds N] [--memory MB, more than the last cache holds] */
#define _GNU_SOURCE
#include "kernels/ob_kernels.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#ifndef OB_X86
int main(void) { return puts("bench_kernels has probes for x86 only"), 1; }
#else
#include <immintrin.h>

enum { MAX_ROUNDS = 101, MAX_LIST = 16, MAX_TOKENS = 512 };

typedef struct options {
    uint32_t isas[MAX_LIST], layouts[MAX_LIST], tokens[MAX_LIST], num_isas, num_layouts, num_tokens;
    uint32_t group, rows, rounds;
    size_t memory;
    const char *shape;
} options;

static const struct {
    const char *model;
    uint32_t rows, cols;
} shapes[] = {{"2b4t", 2560, 2560}, {"2b4t", 6912, 2560}, {"2b4t", 2560, 6912}, {"700m", 1536, 1536},
              {"700m", 4096, 1536}, {"700m", 1536, 4096}, {"45m", 512, 512},    {"45m", 2048, 512}};

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, uint32_t count) {
    qsort(values, count, sizeof *values, by_value);
    return values[count / 2];
}

/* ---- probes ---- */

static volatile int64_t sink;

/* Plain read, GB/s. */
OB_TARGET("avx2") static double read_speed(const uint8_t *memory, size_t bytes) {
    __m256i sum[4];
    for (int i = 0; i < 4; i++) sum[i] = _mm256_setzero_si256();
    double begin = seconds();
    for (size_t i = 0; i < bytes; i += 128) {
        _mm_prefetch((const char *)memory + i + 4096, _MM_HINT_T0);
        _mm_prefetch((const char *)memory + i + 4096 + 64, _MM_HINT_T0);
        for (size_t j = 0; j < 4; j++)
            sum[j] = _mm256_add_epi64(sum[j], _mm256_loadu_si256((const __m256i *)(memory + i + 32 * j)));
    }
    double time = seconds() - begin;
    for (int i = 0; i < 4; i++) sink += _mm256_extract_epi64(sum[i], 0);
    return (double)bytes / time * 1e-9;
}

enum { DOTS = 1 << 18 };

/* As assembly: from intrinsics GCC makes moves beside each product, and the peak looks lower than it is. */
#define DOT_PROBE(name, features, chains, vector, product, sum)                                       \
    OB_TARGET(features) static double name(void) {                                                    \
        vector acc[chains], a = {1}, b = {2}, t = {0};                                                \
        _Pragma("GCC unroll 20") for (int c = 0; c < chains; c++) acc[c] = t;                         \
        double begin = seconds();                                                                     \
        for (int i = 0; i < DOTS; i++)                                                                \
            _Pragma("GCC unroll 20") for (int c = 0; c < chains; c++)                                 \
                __asm__ volatile(product : "+v"(acc[c]), "+v"(t) : "v"(a), "v"(b));                    \
        double time = seconds() - begin;                                                              \
        _Pragma("GCC unroll 20") for (int c = 0; c < chains; c++) sink += sum(acc[c]);                \
        return 2.0 * sizeof(vector) * DOTS * chains / time * 1e-9;                                    \
    }
#define ZMM_SUM(v) _mm512_reduce_add_epi32(v)
#define YMM_SUM(v) _mm256_extract_epi32(v, 0)
DOT_PROBE(dots_avx512, "avx512f,avx512vnni", 20, __m512i, "vpdpbusd %3, %2, %0", ZMM_SUM)
DOT_PROBE(dots_avxvnni, "avx2", 12, __m256i, "%{vex%} vpdpbusd %3, %2, %0", YMM_SUM)
DOT_PROBE(dots_avx2, "avx2", 12, __m256i, "vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0", YMM_SUM)

/* GOPS of the dot product out of registers. */
static double dot_speed(uint32_t isa) {
    if (isa >= OB_ISA_AVX512) return dots_avx512();
    return isa == OB_ISA_AVXVNNI ? dots_avxvnni() : dots_avx2();
}

/* ---- one case ---- */

typedef struct bench {
    const options *o;
    uint8_t *memory, *work;
    int8_t *codes;
    int32_t *sums;
    float *y, *token_scales;
    size_t next; /* where in memory the next matrix is taken */
} bench;

static uint32_t divide_up(uint32_t a, uint32_t b) { return (a + b - 1) / b; }

static size_t make_weights(ob_weights *w, uint32_t layout, uint32_t rows, uint32_t cols, uint32_t group, const void *scales) {
    *w = (ob_weights){.rows = rows, .cols = cols, .layout = (uint8_t)layout, .tile = ob_layout_tile(layout), .scale = scales};
    w->granularity = group ? OB_GRANULARITY_GROUP : OB_GRANULARITY_TENSOR;
    w->group = group && group < cols ? group : cols;
    w->num_groups = divide_up(cols, w->group);
    w->tiles_group = divide_up(w->group, w->tile);
    w->tiles_block = (w->num_groups - 1) * w->tiles_group + divide_up(cols - (w->num_groups - 1) * w->group, w->tile);
    w->codes_cols = w->tiles_block * w->tile;
    return (size_t)divide_up(rows, OB_BLOCK_ROWS) * w->tiles_block * OB_TILE_BYTES;
}

static double run_kernel(bench *b, ob_linear_fn *linear, ob_weights *w, size_t bytes, const ob_inputs *in, uint32_t repeats) {
    double time = 0;
    for (uint32_t i = 0; i < repeats; i++) {
        if (b->next + bytes > b->o->memory) b->next = 0;
        w->data = b->memory + b->next;
        b->next += (bytes + 4095) / 4096 * 4096;
        double begin = seconds();
        for (uint32_t row = 0; row < w->rows; row += b->o->rows) {
            uint32_t end = row + b->o->rows < w->rows ? row + b->o->rows : w->rows;
            for (uint32_t t = 0; t < in->num_tokens; t += 256) { /* as many as a session hands over at once */
                ob_inputs part = *in;
                part.codes_TK += t * in->codes_stride, part.sums_TG += (size_t)t * w->num_groups, part.scale_T += t;
                part.num_tokens = in->num_tokens - t < 256 ? in->num_tokens - t : 256;
                linear(w, &part, row, end, b->y + (size_t)t * w->rows, w->rows, b->work);
            }
        }
        time += seconds() - begin;
    }
    return time / repeats;
}

static void run_case(bench *b, uint32_t isa, uint32_t layout, uint32_t shape, uint32_t tokens) {
    ob_kernels kernels;
    ob_kernels_choose(&kernels, isa);
    ob_weights w;
    uint32_t rows = shapes[shape].rows, cols = shapes[shape].cols;
    size_t bytes = make_weights(&w, layout, rows, cols, b->o->group, b->token_scales);
    size_t stride = (divide_up(w.codes_cols, 64) | 1) * 64;
    ob_inputs in = {NULL, b->codes, b->token_scales, b->sums, 0, stride, tokens};
    double operations = 2.0 * rows * cols * tokens, reads[MAX_ROUNDS], dots[MAX_ROUNDS], times[MAX_ROUNDS];
    uint32_t repeats = (uint32_t)(4e8 / operations * (tokens > 4 ? 2 : 1)) + 1;
    for (uint32_t i = 0; i < b->o->rounds; i++) {
        if (b->next + (16u << 20) > b->o->memory) b->next = 0;
        reads[i] = read_speed(b->memory + b->next, 16u << 20);
        b->next += 16u << 20;
        dots[i] = dot_speed(isa);
        times[i] = run_kernel(b, kernels.linear_i8[layout], &w, bytes, &in, repeats);
    }
    double read = median(reads, b->o->rounds), dot = median(dots, b->o->rounds), time = median(times, b->o->rounds);
    double gb = (double)bytes / time * 1e-9, gops = operations / time * 1e-9;
    static const char *const names[] = {"binary_t16", "ternary_t16", "ternary5_t16"};
    printf("%-7s %-12s %4u x %-4u %-4s T %-3u  %6.2f GB/s = %5.1f %% of %5.1f   %7.1f GOPS = %5.1f %% of %5.0f\n",
           ob_isa_name(isa), names[layout - OB_LAYOUT_BINARY_T16], rows, cols, shapes[shape].model, tokens, gb,
           100 * gb / read, read, gops, 100 * gops / dot, dot);
    fflush(stdout);
}

/* ---- command line ---- */

static uint32_t parse_list(const char *text, uint32_t *values, uint32_t (*value_of)(const char *)) {
    char copy[256];
    uint32_t count = 0;
    snprintf(copy, sizeof copy, "%s", text);
    for (char *part = strtok(copy, ","); part && count < MAX_LIST; part = strtok(NULL, ",")) values[count++] = value_of(part);
    return count;
}

static uint32_t layout_of(const char *name) {
    return !strcmp(name, "binary_t16") ? OB_LAYOUT_BINARY_T16 : !strcmp(name, "ternary5_t16") ? OB_LAYOUT_TERNARY5_T16
                                                                                             : OB_LAYOUT_TERNARY_T16;
}

static uint32_t number_of(const char *text) {
    uint32_t value = (uint32_t)strtoul(text, NULL, 10);
    return value < MAX_TOKENS ? value : MAX_TOKENS;
}

static options parse(int count, char **words) {
    options o = {.group = 0, .rows = 512, .rounds = 9, .memory = (size_t)1024 << 20, .shape = "2b4t"};
    o.num_isas = parse_list("avx512", o.isas, ob_isa_from_name);
    o.num_layouts = parse_list("ternary_t16,binary_t16,ternary5_t16", o.layouts, layout_of);
    o.num_tokens = parse_list("1,2,4,8,16,128,256,512", o.tokens, number_of);
    for (int i = 1; i + 1 < count; i += 2) {
        const char *name = words[i], *value = words[i + 1];
        if (!strcmp(name, "--isa")) o.num_isas = parse_list(value, o.isas, ob_isa_from_name);
        if (!strcmp(name, "--layout")) o.num_layouts = parse_list(value, o.layouts, layout_of);
        if (!strcmp(name, "--tokens")) o.num_tokens = parse_list(value, o.tokens, number_of);
        if (!strcmp(name, "--shape")) o.shape = value;
        if (!strcmp(name, "--group")) o.group = (uint32_t)strtoul(value, NULL, 10);
        if (!strcmp(name, "--rows")) o.rows = ((uint32_t)strtoul(value, NULL, 10) + 15) / 16 * 16;
        if (!strcmp(name, "--rounds")) o.rounds = (uint32_t)strtoul(value, NULL, 10) % MAX_ROUNDS;
        if (!strcmp(name, "--memory")) o.memory = (size_t)strtoul(value, NULL, 10) << 20;
    }
    return o;
}

static void *take(size_t bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) exit(2);
    madvise(memory, bytes, MADV_HUGEPAGE);
    return memory;
}

int main(int count, char **words) {
    options o = parse(count, words);
    bench b = {.o = &o, .memory = take(o.memory), .work = take(OB_WORK_BYTES), .codes = take((size_t)MAX_TOKENS * 16384),
               .sums = take(MAX_TOKENS * 1024 * 4), .y = take((size_t)MAX_TOKENS * 6912 * 4), .token_scales = take(4 << 20)};
    uint64_t state = 1;
    for (size_t i = 0; i < o.memory / 8; i++) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        memcpy(b.memory + 8 * i, &state, 8);
    }
    for (size_t i = 0; i < (size_t)MAX_TOKENS * 16384; i++) b.codes[i] = (int8_t)(b.memory[8 * i + 7] | 1);
    for (size_t i = 0; i < MAX_TOKENS * 1024; i++) b.sums[i] = (int32_t)i;
    for (size_t i = 0; i < (4 << 20) / 4; i++) b.token_scales[i] = 1.0f; /* as halves: 0 and 1.875 */
    for (uint32_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (uint32_t i = 0; i < o.num_isas && strstr(o.shape, shapes[s].model); i++)
            for (uint32_t l = 0; l < o.num_layouts && ob_isa_available(o.isas[i]); l++)
                for (uint32_t t = 0; t < o.num_tokens; t++) run_case(&b, o.isas[i], o.layouts[l], s, o.tokens[t]);
    return 0;
}
#endif
