/* A small pool. A decode step hands out a job every few tens of microseconds, so workers look for the next one for a
 * moment before they sleep. */
#if !defined(_WIN32) && !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L
#endif
#include "ob_host.h"

#include <stdatomic.h>
#include <stdlib.h>

#ifdef _WIN32
#include <windows.h>
typedef HANDLE thread;
typedef CRITICAL_SECTION mutex;
typedef CONDITION_VARIABLE condition;
#define THREAD_RESULT DWORD WINAPI
static int start(thread *t, LPTHREAD_START_ROUTINE f, void *a) { return (*t = CreateThread(NULL, 0, f, a, 0, NULL)) == NULL; }
static void join(thread t) { WaitForSingleObject(t, INFINITE), CloseHandle(t); }
static void mutex_init(mutex *m) { InitializeCriticalSection(m); }
static void mutex_free(mutex *m) { DeleteCriticalSection(m); }
static void lock(mutex *m) { EnterCriticalSection(m); }
static void unlock(mutex *m) { LeaveCriticalSection(m); }
static void condition_init(condition *c) { InitializeConditionVariable(c); }
static void condition_free(condition *c) { (void)c; }
static void wait_for(condition *c, mutex *m) { SleepConditionVariableCS(c, m, INFINITE); }
static void wake_all(condition *c) { WakeAllConditionVariable(c); }
static void yield_thread(void) { SwitchToThread(); }
#else
#include <pthread.h>
#include <sched.h>
typedef pthread_t thread;
typedef pthread_mutex_t mutex;
typedef pthread_cond_t condition;
#define THREAD_RESULT void *
static int start(thread *t, void *(*f)(void *), void *a) { return pthread_create(t, NULL, f, a); }
static void join(thread t) { pthread_join(t, NULL); }
static void mutex_init(mutex *m) { pthread_mutex_init(m, NULL); }
static void mutex_free(mutex *m) { pthread_mutex_destroy(m); }
static void lock(mutex *m) { pthread_mutex_lock(m); }
static void unlock(mutex *m) { pthread_mutex_unlock(m); }
static void condition_init(condition *c) { pthread_cond_init(c, NULL); }
static void condition_free(condition *c) { pthread_cond_destroy(c); }
static void wait_for(condition *c, mutex *m) { pthread_cond_wait(c, m); }
static void wake_all(condition *c) { pthread_cond_broadcast(c); }
static void yield_thread(void) { sched_yield(); }
#endif

enum { SPINS = 4000 /* about 40 microseconds: longer than the gap between two jobs of a decode step */ };

typedef struct worker {
    ob_pool *pool;
    thread handle;
} worker;

/* A job is some items; whoever comes first takes the next one. So on a busy machine the caller does the work of a
 * worker that has not been given a processor, instead of waiting for it. */
struct ob_pool {
    uint32_t num_threads, num_started; /* workers started: num_threads - 1 once created */
    atomic_ullong state;               /* number of the present job << 32 | items left to take */
    atomic_uint remaining;             /* items not finished yet */
    atomic_uint sleepers;
    atomic_int stop;
    ob_task task; /* of the present job: read only by the owner of one of its items */
    void *argument;
    uint32_t num_items;
    mutex mutex;
    condition has_job;
    worker workers[];
};

static void pause_a_moment(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int has_items(ob_pool *pool) { return (uint32_t)atomic_load(&pool->state) != 0; }

/* Takes and runs one item of the present job; 0 when there is none. */
static int run_item(ob_pool *pool, uint32_t thread) {
    unsigned long long state = atomic_load(&pool->state);
    do
        if (!(uint32_t)state) return 0;
    while (!atomic_compare_exchange_weak(&pool->state, &state, state - 1));
    pool->task(pool->argument, pool->num_items - (uint32_t)state, pool->num_items, thread);
    atomic_fetch_sub_explicit(&pool->remaining, 1, memory_order_release);
    return 1;
}

static void sleep_until_job(ob_pool *pool) {
    for (int i = 0; i < SPINS; i++) {
        if (has_items(pool) || atomic_load(&pool->stop)) return;
        pause_a_moment();
    }
    lock(&pool->mutex);
    atomic_fetch_add(&pool->sleepers, 1);
    while (!has_items(pool) && !atomic_load(&pool->stop)) wait_for(&pool->has_job, &pool->mutex);
    atomic_fetch_sub(&pool->sleepers, 1);
    unlock(&pool->mutex);
}

static THREAD_RESULT work(void *argument) {
    ob_pool *pool = ((worker *)argument)->pool;
    const uint32_t thread = (uint32_t)((worker *)argument - pool->workers);
    while (!atomic_load(&pool->stop))
        if (!run_item(pool, thread)) sleep_until_job(pool);
    return 0;
}

static void wake_sleepers(ob_pool *pool) {
    if (!atomic_load(&pool->sleepers)) return; /* a worker counts itself before it looks for items a last time */
    lock(&pool->mutex);
    wake_all(&pool->has_job);
    unlock(&pool->mutex);
}

void ob_pool_run(void *context, ob_task task, void *argument, uint32_t num_items) {
    ob_pool *pool = context;
    pool->task = task;
    pool->argument = argument;
    pool->num_items = num_items;
    atomic_store(&pool->remaining, num_items);
    atomic_store(&pool->state, ((atomic_load(&pool->state) >> 32) + 1) << 32 | num_items);
    wake_sleepers(pool);
    while (run_item(pool, 0)) {
    }
    for (int i = 0; atomic_load_explicit(&pool->remaining, memory_order_acquire); i++) {
        if (i < SPINS) pause_a_moment();
        else yield_thread();
    }
}

ob_pool *ob_pool_create(uint32_t num_threads) {
    ob_pool *pool = calloc(1, sizeof *pool + num_threads * sizeof(worker));
    if (!pool) return NULL;
    pool->num_threads = num_threads;
    mutex_init(&pool->mutex);
    condition_init(&pool->has_job);
    for (uint32_t i = 1; i < num_threads; i++) {
        worker *w = &pool->workers[i];
        w->pool = pool;
        if (start(&w->handle, work, w)) {
            ob_pool_free(pool);
            return NULL;
        }
        pool->num_started++;
    }
    return pool;
}

void ob_pool_free(ob_pool *pool) {
    if (!pool) return;
    atomic_store(&pool->stop, 1);
    lock(&pool->mutex);
    wake_all(&pool->has_job);
    unlock(&pool->mutex);
    for (uint32_t i = 1; i <= pool->num_started; i++) join(pool->workers[i].handle);
    condition_free(&pool->has_job);
    mutex_free(&pool->mutex);
    free(pool);
}
