/* A small pool. A token hands out a job every few tens of microseconds, so workers look for the next one for a moment,
 * which costs a microsecond instead of the tens that waking takes, and then sleep: an idle session burns nothing. */
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
static uint64_t nanoseconds(void) {
    LARGE_INTEGER count, frequency;
    QueryPerformanceCounter(&count);
    QueryPerformanceFrequency(&frequency);
    return (uint64_t)((double)count.QuadPart * 1e9 / (double)frequency.QuadPart);
}
#else
#include <pthread.h>
#include <sched.h>
#include <time.h>
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
static uint64_t nanoseconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
#endif

/* A worker looks for the next job a little longer than most samplings between two tokens take. It keeps its processor
 * meanwhile: on a busy machine one that is given away comes back after milliseconds. A caller that waits longer than any
 * worker should need for an item gives its own to the worker that may have none. */
enum { LOOK_NS = 200 * 1000, WAIT_NS = 50 * 1000, LOOKS = 32 /* between two looks at the clock */ };
enum { LINE = 128 }; /* processors fetch lines of the cache in pairs */

typedef struct worker {
    ob_pool *pool;
    thread handle;
} worker;

/* A job is some items; whoever comes first takes the next one. So on a busy machine the caller does the work of a
 * worker that has not been given a processor, instead of waiting for it. */
struct ob_pool {
    uint32_t num_threads, num_started; /* workers started: num_threads - 1 once created */
    atomic_int stop;
    mutex mutex;
    condition has_job;
    uint8_t pad0[LINE];
    atomic_ullong state; /* number of the present job << 32 | items left to take */
    ob_task task;        /* of the present job: read only by the owner of one of its items */
    void *argument;
    uint32_t num_items;
    uint8_t pad1[LINE];
    atomic_uint remaining; /* items not finished yet */
    uint8_t pad2[LINE];
    atomic_uint sleepers;
    uint8_t pad3[LINE];
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

/* Takes one item of the present job: its number, or -1 when there is none. */
static int64_t take_item(ob_pool *pool) {
    unsigned long long state = atomic_load(&pool->state);
    do
        if (!(uint32_t)state) return -1;
    while (!atomic_compare_exchange_weak(&pool->state, &state, state - 1));
    return pool->num_items - (uint32_t)state;
}

/* Runs items of the present job until none is left to take; returns how many. The job cannot change before they are
 * reported, all at once at the end. */
static uint32_t run_items(ob_pool *pool, uint32_t thread) {
    uint32_t done = 0;
    for (int64_t item; (item = take_item(pool)) >= 0; done++)
        pool->task(pool->argument, (uint32_t)item, pool->num_items, thread);
    if (done) atomic_fetch_sub_explicit(&pool->remaining, done, memory_order_release);
    return done;
}

/* Whether a wait that began at *begin (0: now) has lasted for `duration`. */
static int lasted(uint64_t *begin, uint64_t duration) {
    uint64_t now = nanoseconds();
    if (!*begin) *begin = now;
    return now - *begin >= duration;
}

static void sleep_until_job(ob_pool *pool) {
    uint64_t begin = 0;
    do
        for (int i = 0; i < LOOKS; i++) {
            if (has_items(pool) || atomic_load(&pool->stop)) return;
            pause_a_moment();
        }
    while (!lasted(&begin, LOOK_NS));
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
        if (!run_items(pool, thread)) sleep_until_job(pool);
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
    run_items(pool, 0);
    uint64_t begin = 0;
    for (int i = 1; atomic_load_explicit(&pool->remaining, memory_order_acquire); i++) {
        pause_a_moment();
        if (i % LOOKS == 0 && lasted(&begin, WAIT_NS)) yield_thread();
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
