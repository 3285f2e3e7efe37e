/* The product of int8 inputs and codes: codes become panels of digits, which meet the tokens in blocks that a cache holds. */
#include "ob_train_product.h"

#include "../src/ob_cpu.h"
#include "../src/ob_host.h"
#include "../src/ob_platform.h"
#include "ob_train.h"
#include "ob_train_pack.h"
#include "ob_train_threads.h"

enum { PANEL_ROWS = OB_TRAIN_PANEL_ROWS, STEP = OB_TRAIN_STEP, BLOCK_BYTES = 256 << 10 };

typedef struct {
    const int8_t *x_TI;
    const int32_t *sums_T;
    uint32_t tokens, cols, steps, rows;
    const uint8_t *codes_OB;
    int32_t is_binary;
    uint8_t *panels;
    float *y_TO;
} product_job;

int32_t ob_train_has_product(void) {
#if defined(OB_X86) && defined(__GNUC__)
    return (ob_cpu_features() & OB_CPU_AVX2) != 0;
#else
    return 0;
#endif
}

static void fill_panel(const product_job *job, const ob_train_table *table, uint32_t first, uint8_t *panel) {
    const uint32_t bytes = (job->cols * (job->is_binary ? 1 : 2) + 7) / 8, per_byte = table->per_byte;
    const uint32_t count = job->rows - first < PANEL_ROWS ? job->rows - first : PANEL_ROWS;
    for (uint32_t r = 0; r < PANEL_ROWS; r++) {
        const uint8_t *row = job->codes_OB + (size_t)(first + (r < count ? r : 0)) * bytes;
        uint8_t *to = panel + r * STEP;
        if (per_byte == 4)
            for (uint32_t b = 0; b < job->steps; b++) memcpy(to + (size_t)b * PANEL_ROWS * STEP, table->bytes[row[b]], STEP);
        else
            for (uint32_t step = 0; step < job->steps; step++)
                memcpy(to + (size_t)step * PANEL_ROWS * STEP, table->bytes[row[step / 2]] + step % 2 * STEP, STEP);
    }
}

static void product_item(void *argument, uint32_t item, uint32_t items, uint32_t thread) {
    const product_job *job = argument;
    const uint32_t panels = (job->rows + PANEL_ROWS - 1) / PANEL_ROWS;
    const uint32_t begin = (uint32_t)((uint64_t)panels * item / items), end = (uint32_t)((uint64_t)panels * (item + 1) / items);
    const size_t panel_bytes = (size_t)job->steps * PANEL_ROWS * STEP, width = (size_t)job->steps * STEP;
    uint32_t block = (uint32_t)(BLOCK_BYTES / width / 6 * 6);
    block = block ? block : 6;
    (void)thread;
    ob_train_table table;
    ob_train_fill_table(&table, job->is_binary, OB_TRAIN_INT8);
    for (uint32_t byte = 0; byte < 256; byte++)
        for (uint32_t i = 0; i < table.per_byte; i++) table.bytes[byte][i]++;
    for (uint32_t p = begin; p < end; p++) fill_panel(job, &table, p * PANEL_ROWS, job->panels + p * panel_bytes);
    for (uint32_t t = 0, count; t < job->tokens; t += count) {
        count = job->tokens - t < block ? job->tokens - t : block;
        for (uint32_t p = begin; p < end; p++) {
            uint32_t row = p * PANEL_ROWS, rows = job->rows - row < PANEL_ROWS ? job->rows - row : PANEL_ROWS;
#if defined(OB_X86) && defined(__GNUC__)
            ob_train_product_avx2(job->x_TI + t * width, job->sums_T + t, count, job->steps, job->panels + p * panel_bytes,
                                  rows, job->y_TO + (size_t)t * job->rows + row, job->rows);
#else
            (void)rows;
#endif
        }
    }
}

static int32_t sum_of(const int8_t *x, uint32_t count) {
    int32_t sum = 0;
    for (uint32_t i = 0; i < count; i++) sum += x[i];
    return sum;
}

int32_t ob_train_product(const int8_t *x_TI, uint32_t tokens, uint32_t cols, const uint8_t *codes_OB, uint32_t rows,
                         int32_t is_binary, float *y_TO, uint32_t threads) {
    const uint32_t steps = (cols + STEP - 1) / STEP, panels = (rows + PANEL_ROWS - 1) / PANEL_ROWS;
    const size_t width = (size_t)steps * STEP, panel_bytes = (size_t)panels * steps * PANEL_ROWS * STEP;
    const int is_padded = width != cols;
    uint8_t *memory = ob_host_alloc(panel_bytes + tokens * (sizeof(int32_t) + (is_padded ? width : 0)));
    if (!memory) return 0;
    int32_t *sums_T = (int32_t *)(void *)(memory + panel_bytes);
    int8_t *padded = (int8_t *)(sums_T + tokens);
    for (uint32_t t = 0; t < tokens; t++) {
        sums_T[t] = sum_of(x_TI + (size_t)t * cols, cols);
        if (!is_padded) continue;
        memcpy(padded + t * width, x_TI + (size_t)t * cols, cols);
        memset(padded + t * width + cols, 0, width - cols);
    }
    product_job job = {is_padded ? padded : x_TI, sums_T, tokens, cols, steps, rows, codes_OB, is_binary, memory, y_TO};
    ob_train_run(product_item, &job, panels < threads ? panels : threads ? threads : 1, threads);
    ob_host_free(memory);
    return 1;
}
