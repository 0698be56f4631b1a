/* pool.c: the threads of a machine.
 *
 * pool_run hands out task numbers from one shared ticket: generation in the high half, next task
 * in the low half. A thread claims a task by compare-and-swap, which fails as soon as the
 * generation has moved on; so a late worker can never run a task of a job that has ended, and
 * the caller waits for finished tasks, not for sleeping workers.
 * Workers spin for a while after a job, since the next one of a step comes at once, then sleep.
 * Calls from inside a task run inline. One caller at a time. */
#define _GNU_SOURCE
#include "runtime/machine.h"

#include <linux/futex.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#if defined(__x86_64__)
#define RELAX() __builtin_ia32_pause()
#else
#define RELAX() atomic_signal_fence(memory_order_seq_cst)
#endif

enum {
    LINE = 64,
    SPIN_NANOSECONDS = 200000, /* a worker's patience before it sleeps */
    SPINS_PER_LOOK = 64        /* at the clock */
};
#define TASK_MASK 0xffffffffu /* also the task number of a closed job */

typedef struct Worker {
    Pool *pool;
    pthread_t thread;
    int number; /* 1.. */
    int cpu;    /* to be pinned to, or -1 */
} Worker;

struct Pool {
    _Alignas(LINE) _Atomic uint64_t ticket;
    _Alignas(LINE) _Atomic int64_t finished; /* tasks of this job */
    _Alignas(LINE) _Atomic int64_t tasks;
    _Atomic(StgcTask) fn;
    _Atomic(void *) env;
    _Alignas(LINE) _Atomic uint32_t generation; /* what sleepers wait on */
    _Atomic int32_t sleepers;
    _Atomic bool stop;
    int threads, started;
    Worker *workers;
};

/* Which pool's task this thread is running, and as which of its threads. */
static _Thread_local const Pool *inside;
static _Thread_local int inside_number;

static int64_t nanoseconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int pool_thread(const Pool *pool) {
    return inside == pool ? inside_number : 0;
}

/* Runs tasks of the open job until there are none left. */
static void take_tasks(Pool *pool, int number) {
    inside = pool;
    inside_number = number;
    int64_t done = 0;
    uint64_t ticket = atomic_load_explicit(&pool->ticket, memory_order_acquire);
    while ((ticket & TASK_MASK) != TASK_MASK) {
        int64_t tasks = atomic_load_explicit(&pool->tasks, memory_order_relaxed);
        StgcTask fn = atomic_load_explicit(&pool->fn, memory_order_relaxed);
        void *env = atomic_load_explicit(&pool->env, memory_order_relaxed);
        atomic_thread_fence(memory_order_acquire);
        int64_t task = (int64_t)(ticket & TASK_MASK);
        if (task >= tasks)
            break;
        /* Success proves that fn, env and tasks are this job's: it cannot end before this task. */
        if (!atomic_compare_exchange_weak_explicit(&pool->ticket, &ticket, ticket + 1,
                                                   memory_order_acq_rel, memory_order_acquire))
            continue;
        fn(env, task);
        done++;
        ticket = atomic_load_explicit(&pool->ticket, memory_order_acquire);
        /* A job whose tasks this thread has finished but not reported stays open, so no newer
         * generation can appear here. */
    }
    inside = NULL;
    if (done)
        atomic_fetch_add_explicit(&pool->finished, done, memory_order_acq_rel);
}

static void sleep_until_changed(Pool *pool, uint32_t seen) {
    atomic_fetch_add(&pool->sleepers, 1);
    syscall(SYS_futex, &pool->generation, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
    atomic_fetch_sub(&pool->sleepers, 1);
}

static void *worker_main(void *arg) {
    Worker *w = arg;
    Pool *pool = w->pool;
    if (w->cpu >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET((size_t)w->cpu, &set);
        pthread_setaffinity_np(pthread_self(), sizeof set, &set);
    }
    uint32_t seen = 0;
    for (;;) {
        int64_t until = nanoseconds() + SPIN_NANOSECONDS;
        uint32_t now;
        for (int spin = 1;
             (now = atomic_load_explicit(&pool->generation, memory_order_acquire)) == seen;
             spin++) {
            RELAX();
            if (spin % SPINS_PER_LOOK == 0 && nanoseconds() > until)
                sleep_until_changed(pool, seen);
        }
        seen = now;
        if (atomic_load(&pool->stop))
            return NULL;
        take_tasks(pool, w->number);
    }
}

static void wake(Pool *pool) {
    atomic_fetch_add(&pool->generation, 1);
    if (atomic_load(&pool->sleepers) > 0)
        syscall(SYS_futex, &pool->generation, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

static void run_inline(int64_t tasks, StgcTask fn, void *env) {
    for (int64_t task = 0; task < tasks; task++)
        fn(env, task);
}

/* At most TASK_MASK - 1 tasks, more than one thread, not nested. */
static void run_shared(Pool *pool, int64_t tasks, StgcTask fn, void *env) {
    uint64_t job = (atomic_load_explicit(&pool->ticket, memory_order_relaxed) >> 32) + 1;
    atomic_store(&pool->ticket, job << 32 | TASK_MASK); /* closed while the fields change */
    atomic_thread_fence(memory_order_release);
    atomic_store_explicit(&pool->tasks, tasks, memory_order_relaxed);
    atomic_store_explicit(&pool->fn, fn, memory_order_relaxed);
    atomic_store_explicit(&pool->env, env, memory_order_relaxed);
    atomic_store_explicit(&pool->finished, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->ticket, job << 32, memory_order_release);
    wake(pool);
    take_tasks(pool, 0);
    for (int64_t spin = 1; atomic_load_explicit(&pool->finished, memory_order_acquire) < tasks;
         spin++) {
        RELAX();
        if (spin % 4096 == 0)
            sched_yield(); /* more threads than CPUs: let the others finish */
    }
}

typedef struct Slice {
    StgcTask fn;
    void *env;
    int64_t tasks, size;
} Slice;

static void run_slice(void *env, int64_t slice) {
    const Slice *s = env;
    int64_t end = (slice + 1) * s->size;
    for (int64_t task = slice * s->size; task < s->tasks && task < end; task++)
        s->fn(s->env, task);
}

void pool_run(Pool *pool, int64_t tasks, StgcTask fn, void *env) {
    if (tasks <= 1 || pool->threads == 1 || inside) {
        run_inline(tasks, fn, env);
    } else if (tasks < TASK_MASK) {
        run_shared(pool, tasks, fn, env);
    } else { /* more tasks than a ticket can count */
        Slice s = {fn, env, tasks, tasks / (1 << 20) + 1};
        run_shared(pool, (tasks + s.size - 1) / s.size, run_slice, &s);
    }
}

Pool *pool_new(int threads) {
    Pool *pool = aligned_alloc(LINE, sizeof *pool);
    if (!pool)
        return NULL;
    *pool = (Pool){.threads = threads};
    atomic_init(&pool->ticket, TASK_MASK);
    pool->workers = calloc((size_t)threads, sizeof *pool->workers);
    cpu_set_t allowed;
    const char *wish = getenv("STGC_PIN"); /* 0: let the system move threads */
    bool pin = threads == cpu_count() && !(wish && strcmp(wish, "0") == 0) &&
               sched_getaffinity(0, sizeof allowed, &allowed) == 0;
    int cpu = -1;
    for (int i = 0; pool->workers && i < threads; i++) {
        if (pin)
            do
                cpu++;
            while (!CPU_ISSET((size_t)cpu, &allowed));
        Worker *w = &pool->workers[i];
        *w = (Worker){.pool = pool, .number = i, .cpu = pin ? cpu : -1};
        if (i == 0) /* the caller */
            continue;
        if (pthread_create(&w->thread, NULL, worker_main, w) != 0)
            break;
        pool->started++;
    }
    if (!pool->workers || pool->started != threads - 1) {
        pool_free(pool);
        return NULL;
    }
    return pool;
}

void pool_free(Pool *pool) {
    if (!pool)
        return;
    atomic_store(&pool->stop, true);
    wake(pool);
    for (int i = 1; i <= pool->started; i++)
        pthread_join(pool->workers[i].thread, NULL);
    free(pool->workers);
    free(pool);
}
