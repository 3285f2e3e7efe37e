/* Host part: what bounds the engine on this machine, measured. Decode reads every weight once a token, so it cannot
 * be faster than a pure read of as many bytes; prefill cannot be faster than the int8 dot product out of registers. */
#if !defined(_WIN32) && !defined(_DEFAULT_SOURCE)
#define _DEFAULT_SOURCE
#endif
#include "ob_cpu.h"
#include "ob_error.h"
#include "ob_host.h"
#include "ob_platform.h"

#include <stdlib.h>

#ifdef OB_X86
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#endif

enum {
    MAX_TURNS = 1024,
    MAX_THREADS = 256,
    ITEMS_THREAD = 8,      /* pieces of a turn per thread: a thread that is late leaves its pieces to the others */
    STEP = 512,            /* bytes of a step of the read, eight cache lines */
    AHEAD = 1024,          /* bytes ahead that are asked for: 10 % more with huge pages than the hardware's own prefetch */
    HUGE_PAGE = 2 << 20,
    INT8_ITEM = 1 << 26,   /* operations of an int8 item, a fraction of a millisecond */
};

/* ---- turns ---- */

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* The median time of a turn of num_items items, turns being repeated for `seconds`; the first one warms up. */
static double median_turn(ob_pool *pool, ob_task task, void *argument, uint32_t num_items, double seconds) {
    double turns[MAX_TURNS], begin, end, stop;
    uint32_t count = 0;
    ob_pool_run(pool, task, argument, num_items);
    begin = ob_seconds();
    stop = begin + seconds;
    do {
        ob_pool_run(pool, task, argument, num_items);
        end = ob_seconds();
        turns[count++] = end - begin;
        begin = end;
    } while (end < stop && count < MAX_TURNS);
    qsort(turns, count, sizeof *turns, by_size);
    return turns[count / 2] > 0 ? turns[count / 2] : 1e-9;
}

static ob_status begin_measuring(uint32_t num_threads, double seconds, const void *result, ob_pool **pool, ob_error *error) {
    if (!result || num_threads < 1 || num_threads > MAX_THREADS || !(seconds >= 0.001 && seconds <= 60))
        return ob_fail(error, OB_ERROR_ARGUMENT, "a measurement needs 1 to %u threads, 0.001 to 60 seconds and a result",
                       (uint32_t)MAX_THREADS);
    *pool = ob_pool_create(num_threads);
    return *pool ? OB_OK : ob_fail(error, OB_ERROR_MEMORY, "cannot start %u threads", num_threads);
}

/* ---- bandwidth ---- */

typedef uint64_t read_fn(const uint8_t *memory, size_t bytes); /* bytes: a multiple of STEP; returns some sum of them */

OB_INLINE void prefetch(const uint8_t *memory) {
#ifdef __GNUC__
    __builtin_prefetch(memory);
#else
    (void)memory;
#endif
}

static uint64_t read_words(const uint8_t *memory, size_t bytes) {
    uint64_t sums[8] = {0};
    for (size_t i = 0; i < bytes; i += 64) {
        uint64_t words[8];
        memcpy(words, memory + i, sizeof words);
        prefetch(memory + i + AHEAD);
        for (int l = 0; l < 8; l++) sums[l] += words[l];
    }
    for (int l = 1; l < 8; l++) sums[0] += sums[l];
    return sums[0];
}

#if defined(OB_X86) && defined(__GNUC__)
OB_TARGET("avx512f") static uint64_t read_avx512(const uint8_t *memory, size_t bytes) {
    __m512i sums[8];
    for (int l = 0; l < 8; l++) sums[l] = _mm512_setzero_si512();
    for (size_t i = 0; i < bytes; i += STEP)
        for (int l = 0; l < 8; l++) {
            const uint8_t *line = memory + i + 64 * l;
            prefetch(line + AHEAD);
            sums[l] = _mm512_add_epi64(sums[l], _mm512_loadu_si512(line));
        }
    uint64_t words[8];
    for (int l = 1; l < 8; l++) sums[0] = _mm512_add_epi64(sums[0], sums[l]);
    memcpy(words, sums, sizeof words);
    for (int l = 1; l < 8; l++) words[0] += words[l];
    return words[0];
}

OB_TARGET("avx2") static uint64_t read_avx2(const uint8_t *memory, size_t bytes) {
    __m256i sums[8];
    for (int l = 0; l < 8; l++) sums[l] = _mm256_setzero_si256();
    for (size_t i = 0; i < bytes; i += STEP)
        for (int l = 0; l < 8; l++) {
            const uint8_t *line = memory + i + 64 * l;
            prefetch(line + AHEAD);
            sums[l] = _mm256_add_epi64(sums[l], _mm256_loadu_si256((const __m256i *)line));
            sums[l] = _mm256_add_epi64(sums[l], _mm256_loadu_si256((const __m256i *)(line + 32)));
        }
    uint64_t words[4];
    for (int l = 1; l < 8; l++) sums[0] = _mm256_add_epi64(sums[0], sums[l]);
    memcpy(words, sums, sizeof words);
    return words[0] + words[1] + words[2] + words[3];
}
#endif

static read_fn *widest_read(void) {
#if defined(OB_X86) && defined(__GNUC__)
    if (ob_cpu_features() & OB_CPU_AVX512) return read_avx512;
    if (ob_cpu_features() & OB_CPU_AVX2) return read_avx2;
#endif
    return read_words;
}

/* Memory to read, in huge pages where the system gives them; `block` is what to free. */
typedef struct readable {
    read_fn *read;
    uint8_t *memory; /* [steps * STEP], and AHEAD + STEP more */
    void *block;
    uint64_t steps;
    uint32_t passes; /* over the memory in a turn: a turn shorter than a millisecond would measure the pool */
    uint64_t sums[MAX_THREADS];
} readable;

static void read_item(void *argument, uint32_t item, uint32_t num_items, uint32_t thread) {
    readable *r = argument;
    const uint32_t pieces = num_items / r->passes, piece = item % pieces;
    const uint64_t begin = r->steps * piece / pieces, end = r->steps * (piece + 1) / pieces;
    r->sums[thread] += r->read(r->memory + begin * STEP, (size_t)(end - begin) * STEP);
}

static int get_memory(readable *r, uint64_t bytes) {
    const uint64_t size = bytes + HUGE_PAGE + AHEAD + STEP;
    if (size > SIZE_MAX / 2) return 0;
    r->block = ob_host_alloc((size_t)size);
    if (!r->block) return 0;
    r->memory = (uint8_t *)r->block + (HUGE_PAGE - (uintptr_t)r->block % HUGE_PAGE) % HUGE_PAGE;
    r->steps = (bytes + STEP - 1) / STEP;
#ifdef MADV_HUGEPAGE
    madvise(r->memory, (size_t)bytes, MADV_HUGEPAGE); /* a wish: without it the figure is that of small pages */
#endif
    memset(r->memory, 1, (size_t)r->steps * STEP);
    return 1;
}

ob_status ob_measure_bandwidth(uint32_t num_threads, uint64_t bytes, double seconds, double *gb_per_second, ob_error *error) {
    readable r = {.read = widest_read()};
    ob_pool *pool;
    if (bytes < 1 << 16) return ob_fail(error, OB_ERROR_ARGUMENT, "a bandwidth needs at least 65536 bytes to read");
    ob_status status = begin_measuring(num_threads, seconds, gb_per_second, &pool, error);
    if (status) return status;
    if (get_memory(&r, bytes)) {
        const uint64_t turn = 32 << 20;
        r.passes = bytes < turn ? (uint32_t)(turn / bytes) : 1;
        double time = median_turn(pool, read_item, &r, num_threads * ITEMS_THREAD * r.passes, seconds);
        *gb_per_second = 1e-9 * (double)(r.steps * STEP) * r.passes / time;
    } else status = ob_fail(error, OB_ERROR_MEMORY, "no memory for a read of %U bytes", bytes);
    ob_host_free(r.block);
    ob_pool_free(pool);
    return status;
}

/* ---- int8 ---- */

/* `steps` times the set's int8 dot products on independent sums; returns some of their bits. */
typedef uint64_t int8_fn(uint32_t steps);

enum { SUMS = 12 /* more than latency times dot products a cycle (5 x 2), fewer than 16 registers */ };
#define UNROLLED _Pragma("GCC unroll 12")

#if defined(OB_X86) && defined(__GNUC__)
/* Assembly: from intrinsics GCC 12 makes two moves beside each product. */
#define X86_DOT(name, features, vector, product)                                     \
    OB_TARGET(features) static uint64_t name(uint32_t steps) {                       \
        vector sums[SUMS], a = {1}, b = {2}, t = {0};                                \
        uint64_t out = 0;                                                            \
        UNROLLED for (int i = 0; i < SUMS; i++) sums[i] = t;                         \
        for (uint32_t n = 0; n < steps; n++)                                         \
            UNROLLED for (int i = 0; i < SUMS; i++)                                  \
                __asm__ volatile(product : "+v"(sums[i]), "+v"(t) : "v"(a), "v"(b)); \
        UNROLLED for (int i = 0; i < SUMS; i++) out ^= (uint64_t)sums[i][0];         \
        return out;                                                                  \
    }
X86_DOT(int8_avx512, "avx512f,avx512vnni", __m512i, "vpdpbusd %3, %2, %0")
X86_DOT(int8_avx2, "avx2", __m256i, "vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0")
#if defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11 /* and with them an assembler that knows these */
X86_DOT(int8_avxvnni, "avx2", __m256i, "%{vex%} vpdpbusd %3, %2, %0")
#define HAS_NEW_SETS 1
#ifdef __linux__
#define HAS_AMX 1
/* Four sums of 16 x 16, two tiles of each factor: every product needs two of eight registers, as in a real kernel. */
OB_TARGET("amx-tile,amx-int8") static uint64_t int8_amx(uint32_t steps) {
    struct {
        uint8_t palette, start, zeros[14]; /* the 64 bytes of LDTILECFG */
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } tiles = {.palette = 1};
    uint8_t out[16][64];
    uint64_t word;
    for (int i = 0; i < 8; i++) tiles.row_bytes[i] = 64, tiles.rows[i] = 16;
    _tile_loadconfig(&tiles);
    memset(out, 1, sizeof out);
    _tile_zero(0); /* one statement each: they are macros */
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(4, out, 64);
    _tile_loadd(5, out, 64);
    _tile_loadd(6, out, 64);
    _tile_loadd(7, out, 64);
    for (uint32_t n = 0; n < steps; n++) {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
    _tile_stored(0, out, 64);
    _tile_release();
    memcpy(&word, out, sizeof word);
    return word;
}
#endif
#endif
#elif defined(__aarch64__) && defined(__GNUC__)
#define NEON_DOT(name, features, step)                                                    \
    OB_TARGET(features) static uint64_t name(uint32_t steps) {                            \
        int32x4_t sums[SUMS];                                                             \
        int8x16_t a = vdupq_n_s8((int8_t)steps), b = vdupq_n_s8((int8_t)(steps >> 3));    \
        uint64_t out = 0;                                                                 \
        UNROLLED for (int i = 0; i < SUMS; i++) {                                         \
            sums[i] = vdupq_n_s32(0);                                                     \
            __asm__ volatile("" : "+w"(sums[i]));                                         \
        }                                                                                 \
        for (uint32_t n = 0; n < steps; n++) {                                            \
            UNROLLED for (int i = 0; i < SUMS; i++) sums[i] = step(sums[i], a, b);        \
            __asm__ volatile("" : "+w"(a), "+w"(b));                                      \
        }                                                                                 \
        for (int i = 0; i < SUMS; i++) out ^= (uint64_t)(uint32_t)vaddvq_s32(sums[i]);    \
        return out;                                                                       \
    }
#ifdef __clang__
NEON_DOT(int8_neon, "dotprod", vdotq_s32)
NEON_DOT(int8_i8mm, "i8mm", vmmlaq_s32)
#else
NEON_DOT(int8_neon, "arch=armv8.2-a+dotprod", vdotq_s32)
NEON_DOT(int8_i8mm, "arch=armv8.2-a+i8mm", vmmlaq_s32)
#endif
#endif

/* The set's probe and the operations of one of its steps; NULL: none known. */
static int8_fn *int8_probe(uint32_t isa, uint32_t *operations) {
    *operations = 0;
    switch (isa) {
#if defined(OB_X86) && defined(__GNUC__)
    case OB_ISA_AVX2: return *operations = SUMS * 32 * 2, int8_avx2;
    case OB_ISA_AVX512: return *operations = SUMS * 64 * 2, int8_avx512;
#ifdef HAS_NEW_SETS
    case OB_ISA_AVXVNNI: return *operations = SUMS * 32 * 2, int8_avxvnni;
#endif
#ifdef HAS_AMX
    case OB_ISA_AMX: return *operations = 4 * 16 * 16 * 64 * 2, int8_amx;
#endif
#elif defined(__aarch64__) && defined(__GNUC__)
    case OB_ISA_NEON: return *operations = SUMS * 16 * 2, int8_neon;
    case OB_ISA_I8MM: return *operations = SUMS * 32 * 2, int8_i8mm;
#endif
    default: return NULL;
    }
}

typedef struct multiplied {
    int8_fn *run;
    uint32_t steps;
    uint64_t sums[MAX_THREADS];
} multiplied;

static void int8_item(void *argument, uint32_t item, uint32_t num_items, uint32_t thread) {
    multiplied *m = argument;
    (void)item, (void)num_items;
    m->sums[thread] += m->run(m->steps);
}

ob_status ob_measure_int8_peak(uint32_t isa, uint32_t num_threads, double seconds, double *gops, ob_error *error) {
    uint32_t operations;
    multiplied m = {.run = int8_probe(isa, &operations)};
    ob_pool *pool;
    if (isa >= OB_NUM_ISAS) return ob_fail(error, OB_ERROR_ARGUMENT, "instruction set %u is unknown", isa);
    if (!m.run || !ob_isa_available(isa))
        return ob_fail(error, OB_ERROR_UNSUPPORTED, "no int8 peak of %s is known here", ob_isa_name(isa));
    ob_status status = begin_measuring(num_threads, seconds, gops, &pool, error);
    if (status) return status;
    const uint32_t items = num_threads * ITEMS_THREAD;
    m.steps = INT8_ITEM / operations;
    double time = median_turn(pool, int8_item, &m, items, seconds);
    *gops = 1e-9 * operations * m.steps * items / time;
    ob_pool_free(pool);
    return OB_OK;
}
