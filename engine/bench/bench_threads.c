/* What handing work to threads costs: an empty job, and the time until a worker has begun, while it is looking for work
 * and after it went to sleep. Medians and 90th percentiles in microseconds.
 *
 *   bench_threads [THREADS (2)] [ROUNDS (2000)] */
#define _POSIX_C_SOURCE 200809L
#include "ob_host.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

typedef struct probe {
    atomic_int begun;         /* threads that are in the job */
    uint32_t expected;
    _Atomic double last_begun; /* when the last of them came */
} probe;

static double microseconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static void nothing(void *argument, uint32_t item, uint32_t num_items, uint32_t thread) {
    (void)argument, (void)item, (void)num_items, (void)thread;
}

/* Holds each thread until all are here, so that each gets one item. */
static void meet(void *argument, uint32_t item, uint32_t num_items, uint32_t thread) {
    probe *p = argument;
    (void)item, (void)num_items, (void)thread;
    if ((uint32_t)atomic_fetch_add(&p->begun, 1) + 1 == p->expected) p->last_begun = microseconds();
    while ((uint32_t)atomic_load(&p->begun) < p->expected) {
    }
}

static int ascending(const void *a, const void *b) { return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b); }

static void report(const char *what, double *times, int count) {
    qsort(times, (size_t)count, sizeof *times, ascending);
    printf("%-34s median %8.2f us, 90 %% within %8.2f us\n", what, times[count / 2], times[count * 9 / 10]);
}

static void wait_for(double duration) {
    for (double end = microseconds() + duration; microseconds() < end;) {
    }
}

/* Rounds of a job in which all threads meet, each `pause` microseconds after the one before. */
static void measure_wake(ob_pool *pool, uint32_t threads, double pause, int sleeps, const char *what, int rounds, double *times) {
    for (int i = 0; i < rounds; i++) {
        probe p = {0, threads, 0};
        struct timespec nap = {0, (long)(pause * 1e3)};
        if (sleeps) nanosleep(&nap, NULL);
        else wait_for(pause);
        double begin = microseconds();
        ob_pool_run(pool, meet, &p, threads);
        times[i] = p.last_begun - begin;
    }
    report(what, times, rounds);
}

int main(int argc, char **argv) {
    uint32_t threads = argc > 1 ? (uint32_t)atoi(argv[1]) : 2;
    int rounds = argc > 2 ? atoi(argv[2]) : 2000;
    double *times = malloc((size_t)rounds * sizeof *times);
    ob_pool *pool = ob_pool_create(threads);
    if (!pool || !times) return puts("no memory or no threads"), 1;
    for (int i = 0; i < rounds; i++) {
        double begin = microseconds();
        ob_pool_run(pool, nothing, NULL, 1);
        times[i] = microseconds() - begin;
    }
    report("empty job of one item", times, rounds);
    for (int i = 0; i < rounds; i++) {
        double begin = microseconds();
        ob_pool_run(pool, nothing, NULL, 1000);
        times[i] = (microseconds() - begin) / 1000;
    }
    report("empty item, of a thousand", times, rounds);
    measure_wake(pool, threads, 3, 0, "all begun, 3 us after a job", rounds, times);
    measure_wake(pool, threads, 100, 0, "all begun, 100 us after a job", rounds, times);
    measure_wake(pool, threads, 3000, 1, "all begun, 3 ms after a job (asleep)", rounds / 10, times);
    ob_pool_free(pool);
    free(times);
    return 0;
}
