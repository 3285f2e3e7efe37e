#include "ob_train_threads.h"

#include "../src/ob_host.h"

#include <stdatomic.h>

/* Lent to one job at a time. Workers without work sleep. A pool that is too small is left to them: in a forked child there
 * are none that could be waited for, and the caller does every item itself. */
static ob_pool *pool;
static uint32_t pool_threads;
static atomic_flag in_use = ATOMIC_FLAG_INIT;

static int is_ready(uint32_t threads) {
    if (pool_threads >= threads) return 1;
    ob_pool *larger = ob_pool_create(threads);
    if (!larger) return 0;
    pool = larger;
    pool_threads = threads;
    return 1;
}

void ob_train_run(ob_task task, void *argument, uint32_t items, uint32_t threads) {
    if (items > 1 && threads > 1 && !atomic_flag_test_and_set(&in_use)) {
        int ran = is_ready(threads);
        if (ran) ob_pool_run(pool, task, argument, items);
        atomic_flag_clear(&in_use);
        if (ran) return;
    }
    for (uint32_t item = 0; item < items; item++) task(argument, item, items, 0);
}
