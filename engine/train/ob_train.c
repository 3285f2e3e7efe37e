/* Matrices divided into rows for threads, and rows into parts that a row kernel takes unpacked. */
#include "ob_train.h"

#include "../src/ob_cpu.h"
#include "../src/ob_host.h"
#include "../src/ob_platform.h"
#include "ob_train_kernels.h"
#include "ob_train_pack.h"
#include "ob_train_threads.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { PART = OB_TRAIN_PART, MAX_THREADS = 256 };

uint32_t ob_train_version(void) { return OB_TRAIN_VERSION; }

static const ob_train_kernels *best_of(const char *name) {
#if defined(OB_X86) && defined(__GNUC__)
    const uint32_t features = ob_cpu_features();
    const ob_train_kernels *all[] = {features & OB_CPU_AVX512 ? &ob_train_avx512 : NULL,
                                     features & OB_CPU_AVX2 ? &ob_train_avx2 : NULL, &ob_train_base};
#else
    const ob_train_kernels *all[] = {&ob_train_base};
#endif
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i] && (!name || !strcmp(all[i]->name, name))) return all[i];
    return NULL;
}

/* Asked once: a virtual machine takes tens of microseconds to tell what its processor has. */
static const ob_train_kernels *_Atomic chosen;

static const ob_train_kernels *kernels(void) {
    const ob_train_kernels *known = atomic_load_explicit(&chosen, memory_order_relaxed);
    if (!known) atomic_store_explicit(&chosen, known = best_of(NULL), memory_order_relaxed);
    return known;
}

int32_t ob_train_choose(const char *isa) {
    const ob_train_kernels *best = best_of(isa);
    if (best) atomic_store(&chosen, best);
    return best != NULL;
}

const char *ob_train_isa(void) { return kernels()->name; }

/* ---- rows and parts ---- */

typedef struct {
    const ob_train_kernels *k;
    const ob_train_gradient *g;
    const ob_train_counters *counters;
    const ob_train_rule *rule;
    const float *row_O, *column_I;
    double shift, largest;
    double *sum_O;      /* of each row */
    double *columns_NI; /* of each item's rows */
    uint32_t *peaks_N;  /* of each item, as bits */
    uint32_t first_row;
} gradient_job;

static uint32_t part_of(uint32_t cols, uint32_t column) { return cols - column < PART ? cols - column : PART; }

/* Numbers of a part of a row as floats: where they lie, or widened to `room`. */
static const float *floats(const gradient_job *job, uint32_t row, uint32_t column, uint32_t count, float room[PART]) {
    size_t at = (size_t)row * job->g->cols + column;
    if (job->g->type == OB_TRAIN_FLOAT32) return (const float *)job->g->g_OI + at;
    job->k->widen((const uint16_t *)job->g->g_OI + at, count, room);
    return room;
}

/* The rows of an item. */
static uint32_t begin_of(uint32_t rows, uint32_t item, uint32_t items) { return (uint32_t)((uint64_t)rows * item / items); }

static uint32_t items_of(uint32_t rows, uint32_t cols, uint32_t threads) {
    uint64_t items = (uint64_t)rows * cols / (1 << 15); /* below that waking a thread takes longer than the work */
    items = items < threads ? items : threads;
    items = items < rows ? items : rows;
    items = items < MAX_THREADS ? items : MAX_THREADS;
    return items ? (uint32_t)items : 1;
}

#define FOR_PARTS(job, item, items)                                                                              \
    for (uint32_t row = begin_of((job)->g->rows, item, items), end = begin_of((job)->g->rows, (item) + 1, items); \
         row < end; row++)                                                                                       \
        for (uint32_t column = 0, count; column < (job)->g->cols && (count = part_of((job)->g->cols, column)); column += PART)

/* ---- sums ---- */

static void peak_item(void *argument, uint32_t item, uint32_t items, uint32_t thread) {
    const gradient_job *job = argument;
    float room[PART];
    uint32_t most = 0;
    (void)thread;
    FOR_PARTS(job, item, items) {
        uint32_t peak = job->k->peak(floats(job, row, column, count, room), count);
        most = peak > most ? peak : most;
    }
    job->peaks_N[item] = most;
}

float ob_train_peak(const ob_train_gradient *g) {
    uint32_t peaks[MAX_THREADS], items = items_of(g->rows, g->cols, g->threads);
    gradient_job job = {.k = kernels(), .g = g, .peaks_N = peaks};
    float peak;
    ob_train_run(peak_item, &job, items, g->threads);
    for (uint32_t i = 1; i < items; i++) peaks[0] = peaks[i] > peaks[0] ? peaks[i] : peaks[0];
    memcpy(&peak, peaks, 4);
    return peak;
}

static void squares_item(void *argument, uint32_t item, uint32_t items, uint32_t thread) {
    const gradient_job *job = argument;
    double *column_I = job->columns_NI + (size_t)item * job->g->cols;
    float room[PART];
    (void)thread;
    memset(column_I, 0, job->g->cols * sizeof *column_I);
    FOR_PARTS(job, item, items) {
        const float *g = floats(job, row, column, count, room);
        double sum = job->k->squares(g, count, job->shift, column_I + column);
        job->sum_O[row] = column ? job->sum_O[row] + sum : sum;
    }
}

int32_t ob_train_square_sums(const ob_train_gradient *g, double shift, double *row_O, double *column_I) {
    uint32_t items = items_of(g->rows, g->cols, g->threads);
    double *columns_NI = items == 1 ? column_I : malloc((size_t)items * g->cols * sizeof *columns_NI);
    if (!columns_NI) return 0;
    gradient_job job = {.k = kernels(), .g = g, .shift = shift, .sum_O = row_O, .columns_NI = columns_NI};
    ob_train_run(squares_item, &job, items, g->threads);
    if (items == 1) return 1;
    memcpy(column_I, columns_NI, g->cols * sizeof *column_I);
    for (uint32_t item = 1; item < items; item++)
        for (uint32_t i = 0; i < g->cols; i++) column_I[i] += columns_NI[(size_t)item * g->cols + i];
    free(columns_NI);
    return 1;
}

static void energy_item(void *argument, uint32_t item, uint32_t items, uint32_t thread) {
    const gradient_job *job = argument;
    float room[PART];
    double sum = 0.0;
    (void)thread;
    FOR_PARTS(job, item, items) {
        const float *g = floats(job, row, column, count, room);
        sum += job->k->energy(g, count, job->row_O[row], job->column_I + column, job->largest, job->shift);
    }
    job->sum_O[item] = sum;
}

double ob_train_update_energy(const ob_train_gradient *g, const float *row_O, const float *column_I, double largest,
                              double shift) {
    double sums[MAX_THREADS];
    uint32_t items = items_of(g->rows, g->cols, g->threads);
    gradient_job job = {.k = kernels(), .g = g, .row_O = row_O, .column_I = column_I, .shift = shift, .largest = largest,
                        .sum_O = sums};
    ob_train_run(energy_item, &job, items, g->threads);
    for (uint32_t i = 1; i < items; i++) sums[0] += sums[i];
    return sums[0];
}

/* ---- deposit ---- */

static void deposit_item(void *argument, uint32_t item, uint32_t items, uint32_t thread) {
    const gradient_job *job = argument;
    const uint32_t bits = job->counters->bits;
    const size_t width = ((size_t)job->g->cols * bits + 7) / 8;
    float room[PART];
    int8_t counts_room[PART];
    (void)thread;
    FOR_PARTS(job, item, items) {
        const float *g = floats(job, row, column, count, room);
        uint8_t *packed = (uint8_t *)job->counters->counters_OB + row * width + (size_t)column * bits / 8;
        int8_t *counts = bits == 8 ? (int8_t *)packed : counts_room;
        ob_train_unpack_part(packed, bits, count, counts);
        job->k->deposit(counts, g, count, job->row_O[row], job->column_I + column, job->rule, job->first_row + row, column);
        ob_train_pack_part(counts, bits, count, packed);
    }
}

void ob_train_deposit(const ob_train_gradient *g, const ob_train_counters *counters, const float *row_O,
                      const float *column_I, float coefficient, uint32_t power, uint32_t seed, uint32_t tensor,
                      uint64_t step, uint32_t first_row) {
    ob_train_rule rule = {coefficient, power, counters->bound, seed, tensor, step};
    gradient_job job = {.k = kernels(), .g = g, .counters = counters, .rule = &rule, .row_O = row_O, .column_I = column_I,
                        .first_row = first_row};
    ob_train_run(deposit_item, &job, items_of(g->rows, g->cols, g->threads), g->threads);
}

/* ---- codes ---- */

typedef struct {
    const ob_train_kernels *k;
    uint8_t *codes_OB;
    const ob_train_counters *counters;
    uint32_t rows, cols, type, group;
    int32_t is_binary, forgets;
    void *out_OI;
    const ob_train_gradient *g;
    float *sums_OG;
    int64_t *moves_N;
} code_job;

static void fire_item(void *argument, uint32_t item, uint32_t items, uint32_t thread) {
    const code_job *job = argument;
    const uint32_t bits = job->counters->bits, code_bits = job->is_binary ? 1 : 2;
    const size_t width = ((size_t)job->cols * bits + 7) / 8, code_width = ((size_t)job->cols * code_bits + 7) / 8;
    int8_t codes[PART], room[PART];
    int64_t moves = 0;
    (void)thread;
    for (uint32_t row = begin_of(job->rows, item, items), end = begin_of(job->rows, item + 1, items); row < end; row++)
        for (uint32_t column = 0; column < job->cols; column += PART) {
            uint32_t count = part_of(job->cols, column);
            uint8_t *packed = (uint8_t *)job->counters->counters_OB + row * width + (size_t)column * bits / 8;
            uint8_t *packed_codes = job->codes_OB + row * code_width + (size_t)column * code_bits / 8;
            int8_t *counts = bits == 8 ? (int8_t *)packed : room;
            ob_train_unpack_part(packed, bits, count, counts);
            ob_train_unpack_part(packed_codes, code_bits, count, codes);
            uint32_t moved = job->k->fire(codes, counts, count, job->counters->threshold, job->is_binary);
            if (job->forgets) memset(counts, 0, count);
            if (moved || job->forgets) ob_train_pack_part(counts, bits, count, packed);
            if (moved) ob_train_pack_part(codes, code_bits, count, packed_codes);
            moves += moved;
        }
    job->moves_N[item] = moves;
}

int64_t ob_train_fire(uint8_t *codes_OB, const ob_train_counters *counters, uint32_t rows, uint32_t cols, int32_t is_binary,
                      int32_t forgets, uint32_t threads) {
    int64_t moves[MAX_THREADS];
    uint32_t items = items_of(rows, cols, threads);
    code_job job = {.k = kernels(), .codes_OB = codes_OB, .counters = counters, .rows = rows, .cols = cols,
                    .is_binary = is_binary, .forgets = forgets, .moves_N = moves};
    ob_train_run(fire_item, &job, items, threads);
    for (uint32_t i = 1; i < items; i++) moves[0] += moves[i];
    return moves[0];
}

static void unpack_item(void *argument, uint32_t item, uint32_t items, uint32_t thread) {
    const code_job *job = argument;
    ob_train_table table;
    const uint32_t size = job->type == OB_TRAIN_FLOAT32 ? 4 : job->type == OB_TRAIN_BFLOAT16 ? 2 : 1;
    const size_t width = ((size_t)job->cols * (job->is_binary ? 1 : 2) + 7) / 8;
    (void)thread;
    ob_train_fill_table(&table, job->is_binary, job->type);
    for (uint32_t row = begin_of(job->rows, item, items), end = begin_of(job->rows, item + 1, items); row < end; row++)
        ob_train_look_up(&table, job->codes_OB + row * width, job->cols,
                         (uint8_t *)job->out_OI + (size_t)row * job->cols * size);
}

void ob_train_unpack(const uint8_t *codes_OB, uint32_t rows, uint32_t cols, int32_t is_binary, uint32_t type, void *out_OI,
                     uint32_t threads) {
    code_job job = {.codes_OB = (uint8_t *)codes_OB, .rows = rows, .cols = cols, .is_binary = is_binary, .type = type,
                    .out_OI = out_OI};
    ob_train_run(unpack_item, &job, items_of(rows, cols, threads), threads);
}

static void code_sums_item(void *argument, uint32_t item, uint32_t items, uint32_t thread) {
    const code_job *job = argument;
    const gradient_job from = {.k = job->k, .g = job->g};
    const uint32_t groups = (job->cols + job->group - 1) / job->group;
    const size_t width = ((size_t)job->cols * (job->is_binary ? 1 : 2) + 7) / 8;
    ob_train_table table;
    float room[PART], codes[PART];
    (void)thread;
    ob_train_fill_table(&table, job->is_binary, OB_TRAIN_FLOAT32);
    FOR_PARTS(&from, item, items) {
        const float *g = floats(&from, row, column, count, room);
        float *sums_G = job->sums_OG + (size_t)row * groups;
        ob_train_look_up(&table, job->codes_OB + row * width + (size_t)column * (job->is_binary ? 1 : 2) / 8, count, codes);
        for (uint32_t i = 0, length; i < count; i += length) {
            uint32_t in_group = (column + i) % job->group;
            length = job->group - in_group < count - i ? job->group - in_group : count - i;
            float sum = job->k->dot(g + i, codes + i, length);
            float *to = sums_G + (column + i) / job->group;
            *to = in_group ? *to + sum : sum;
        }
    }
}

void ob_train_code_sums(const ob_train_gradient *g, const uint8_t *codes_OB, int32_t is_binary, uint32_t group,
                        float *sums_OG) {
    code_job job = {.k = kernels(), .codes_OB = (uint8_t *)codes_OB, .g = g, .cols = g->cols, .is_binary = is_binary,
                    .group = group, .sums_OG = sums_OG};
    ob_train_run(code_sums_item, &job, items_of(g->rows, g->cols, g->threads), g->threads);
}
