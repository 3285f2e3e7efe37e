/* A small pool: workers wait for a numbered job, the caller works on it too. A decode step hands out a job every few
 * tens of microseconds, so workers look for the next one for a moment before they sleep. */
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
    uint32_t index;
    thread handle;
} worker;

struct ob_pool {
    uint32_t num_threads, num_started; /* workers started: num_threads - 1 once created */
    atomic_uint job;                   /* number of the present job */
    atomic_uint remaining;             /* workers still busy with it */
    atomic_int stop;
    ob_task task;
    void *argument;
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

/* Waits until the job number is no longer `seen`; returns the new one. */
static unsigned next_job(ob_pool *pool, unsigned seen) {
    for (int i = 0; i < SPINS; i++) {
        unsigned job = atomic_load_explicit(&pool->job, memory_order_acquire);
        if (job != seen) return job;
        pause_a_moment();
    }
    lock(&pool->mutex);
    unsigned job;
    while ((job = atomic_load_explicit(&pool->job, memory_order_acquire)) == seen) wait_for(&pool->has_job, &pool->mutex);
    unlock(&pool->mutex);
    return job;
}

static THREAD_RESULT work(void *argument) {
    worker *w = argument;
    ob_pool *pool = w->pool;
    for (unsigned job = 0;;) {
        job = next_job(pool, job);
        if (atomic_load(&pool->stop)) return 0;
        pool->task(pool->argument, w->index, pool->num_threads);
        atomic_fetch_sub_explicit(&pool->remaining, 1, memory_order_release);
    }
}

static void announce(ob_pool *pool) {
    lock(&pool->mutex);
    atomic_fetch_add_explicit(&pool->job, 1, memory_order_release);
    wake_all(&pool->has_job);
    unlock(&pool->mutex);
}

void ob_pool_run(void *context, ob_task task, void *argument) {
    ob_pool *pool = context;
    pool->task = task;
    pool->argument = argument;
    atomic_store_explicit(&pool->remaining, pool->num_threads - 1, memory_order_relaxed);
    announce(pool);
    task(argument, 0, pool->num_threads);
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
        w->index = i;
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
    announce(pool);
    for (uint32_t i = 1; i <= pool->num_started; i++) join(pool->workers[i].handle);
    condition_free(&pool->has_job);
    mutex_free(&pool->mutex);
    free(pool);
}
