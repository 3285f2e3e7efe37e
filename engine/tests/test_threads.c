/* The pool: every item runs once, on a thread that has no other at the time; threads that have nothing to do cost nothing. */
#if !defined(_WIN32) && !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L
#endif
#include "ob_host.h"
#include "ob_test.h"

#include <stdatomic.h>
#include <time.h>

enum { MOST_ITEMS = 300, MOST_THREADS = 8 };

typedef struct tally {
    uint8_t done[MOST_ITEMS];      /* written by whoever runs the item, read after the job */
    atomic_int busy[MOST_THREADS];
    atomic_int wrong;
} tally;

static void count_item(void *argument, uint32_t item, uint32_t num_items, uint32_t thread) {
    tally *t = argument;
    if (thread >= MOST_THREADS || item >= num_items || atomic_fetch_add(&t->busy[thread], 1)) atomic_fetch_add(&t->wrong, 1);
    t->done[item]++;
    atomic_fetch_sub(&t->busy[thread], 1);
}

static void test_every_item_once(uint32_t threads) {
    ob_pool *pool = ob_pool_create(threads);
    uint64_t state = threads;
    for (int job = 0; job < 3000; job++) {
        static tally t;
        const uint32_t num_items = 1 + test_random(&state) % (job % 10 ? 12 : MOST_ITEMS);
        t = (tally){{0}, {0}, 0};
        ob_pool_run(pool, count_item, &t, num_items);
        int wrong = atomic_load(&t.wrong);
        for (uint32_t i = 0; i < MOST_ITEMS; i++) wrong += t.done[i] != (i < num_items);
        CHECK(!wrong, "%u threads, job %d: %d things wrong", threads, job, wrong);
        if (job % 1000 == 999) nanosleep(&(struct timespec){0, 2000000}, NULL); /* all asleep */
    }
    ob_pool_free(pool);
}

static double processor_seconds(void) {
#ifdef CLOCK_PROCESS_CPUTIME_ID
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
#else
    return 0.0;
#endif
}

static void test_idle_threads_cost_nothing(void) {
    static tally t;
    ob_pool *pool = ob_pool_create(4);
    t = (tally){{0}, {0}, 0};
    ob_pool_run(pool, count_item, &t, 100);
    double begin = processor_seconds();
    nanosleep(&(struct timespec){0, 500000000}, NULL);
    double seconds = processor_seconds() - begin;
    CHECK(seconds < 0.005, "%.1f ms of processor time while idle", seconds * 1e3);
    ob_pool_free(pool);
}

int main(void) {
    for (uint32_t threads = 1; threads <= MOST_THREADS; threads += 1 + threads / 3) test_every_item_once(threads);
    test_idle_threads_cost_nothing();
    printf("%d failures\n", failures);
    return failures != 0;
}
