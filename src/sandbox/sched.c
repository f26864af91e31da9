/* sandbox/sched.c - who runs when: the ready queue with its workers, lenders, and a clock thread.
 *
 * The ready queue is first in, first out, so every program that is ready gets a slice before any gets a second one. A
 * program that uses more than a third of a processor, beyond a few milliseconds at once, goes to the background
 * (background.c): there it runs at full speed while a processor is idle, and hardly at all while the engine or programs
 * that behave need them. It is back when it has paid, by waiting, for what it used; a short nap is not enough.
 *
 * A lender takes the place of a worker for instances that were brief so far: what is pushed between its begin and its
 * run wakes nobody, if it is the only one. A second one wakes a worker, so that none waits behind another for long.
 *
 * The clock thread has two tasks. While instances run it advances the epoch, which makes them look at their slice:
 * every tick, or far more rarely while all that run are known to be brief, because each tick takes 20 us of a processor
 * that computes. Meanwhile a lender's begin advances it, which comes with every step of a model. When nothing has run
 * for a while the clock stops and costs nothing. And it wakes or ends instances whose deadline has come: a heap holds
 * each instance's least deadline (wall time, grace after cancel, the end of a wait). The heap has room for every
 * instance from the start, so setting a deadline cannot fail.
 */
#include <string.h>

#include "sandbox/internal.h"

#define IDLE_TICKS 10u                       /* without need for its pace, before the clock thread takes a slower one */
#define LEND_MORE_NS (100 * REALM_NS_PER_US) /* how long a lender that is called back still takes what is ready */
#define DUE_MAX 64u                          /* instances taken from the heap at once */

/* ---- ready queue ---- */

/* One wake-up is under way at a time: a system call costs the caller (often the engine between two steps) more than all
 * else here. The worker that gets up wakes the next one when there is more than it takes itself. */
static bool must_wake(realm_ready *q) {
    if (q->waking || q->n_asleep == 0) return false;
    q->waking = true;
    return true;
}

void realm_sched_push(realm_sandbox *s, realm_instance *i) {
    if (i->long_call && realm_long_push(s, i)) return;
    if (i->background) { /* what it did not use since may have paid its debt */
        realm_instance_earn(i);
        i->background = i->credit_ns < 0;
    }
    if (i->background) {
        realm_background_push(s, i);
        return;
    }
    realm_ready *q = &s->ready;
    i->next_ready = NULL;
    realm_mutex_lock(&s->ready_mu);
    if (q->tail)
        q->tail->next_ready = i;
    else
        q->head = i;
    q->tail = i;
    atomic_fetch_add_explicit(&q->n, 1, memory_order_relaxed);
    bool lent = s->n_lenders > 0 && s->ready.head == i && realm_instance_is_brief(i);
    bool wake = !lent && must_wake(q);
    realm_mutex_unlock(&s->ready_mu);
    if (wake) realm_cond_signal(&q->cond); /* not under the lock, which the worker would find taken */
}

/* The head of the queue, which is not empty, under ready_mu. */
static realm_instance *take_head(realm_ready *q) {
    realm_instance *i = q->head;
    q->head = i->next_ready;
    if (!q->head) q->tail = NULL;
    atomic_fetch_sub_explicit(&q->n, 1, memory_order_relaxed);
    return i;
}

/* ---- slices, as the clock thread sees them ---- */

static void need_pace(realm_sandbox *s, realm_pace pace) {
    if (atomic_load(&s->pace) >= (int)pace) return; /* seq_cst: pairs with slow_down */
    realm_mutex_lock(&s->timer_mu);
    if (atomic_load(&s->pace) < (int)pace) {
        atomic_store(&s->pace, (int)pace);
        realm_cond_signal(&s->timer_cond);
    }
    realm_mutex_unlock(&s->timer_mu);
}

void realm_sched_slice_begin(realm_sandbox *s, realm_instance *i, bool brief) {
    i->long_slice = !brief;
    atomic_fetch_add_explicit(&s->n_slices, 1, memory_order_relaxed);
    if (!brief) atomic_fetch_add(&s->n_long, 1);
    atomic_fetch_add(&s->n_running, 1);
    need_pace(s, brief ? REALM_PACE_SLOW : REALM_PACE_FAST);
}

void realm_sched_slice_long(realm_sandbox *s, realm_instance *i) {
    if (i->long_slice) return;
    i->long_slice = true;
    atomic_fetch_add(&s->n_long, 1);
    need_pace(s, REALM_PACE_FAST);
}

void realm_sched_slice_end(realm_sandbox *s, realm_instance *i) {
    if (i->long_slice) atomic_fetch_sub(&s->n_long, 1);
    atomic_fetch_sub(&s->n_running, 1);
}

/* ---- workers ---- */

static void *worker_main(void *arg) {
    realm_ready *q = arg;
    realm_sandbox *s = q->sandbox;
    realm_thread_be_modest();
    realm_mutex_lock(&s->ready_mu);
    for (;;) {
        while (!q->head && !s->stopping) {
            q->n_asleep++;
            realm_cond_wait(&q->cond, &s->ready_mu);
            q->n_asleep--;
            q->waking = false;
        }
        if (!q->head) break;
        realm_instance *i = take_head(q);
        bool more = q->head && must_wake(q);
        realm_mutex_unlock(&s->ready_mu);
        if (more) realm_cond_signal(&q->cond);
        realm_instance_run(i, NULL);
        realm_mutex_lock(&s->ready_mu);
    }
    realm_mutex_unlock(&s->ready_mu);
    return NULL;
}

/* ---- lenders ---- */

realm_status realm_lender_open(realm_sandbox *s, realm_lender **out, realm_error *err) {
    *out = realm_calloc(1, sizeof **out);
    if (!*out) return realm_error_set(err, REALM_E_NOMEM, "no memory for a thread that lends itself");
    (*out)->sandbox = s;
    realm_mutex_init(&(*out)->mu, REALM_RANK_LEAF);
    return REALM_OK;
}

void realm_lender_close(realm_lender *l) {
    if (!l) return;
    realm_lender_finish(l);
    realm_mutex_destroy(&l->mu);
    realm_free(l);
}

void realm_lender_begin(realm_lender *l) {
    realm_sandbox *s = l->sandbox;
    atomic_store(&l->thread, pthread_self());
    atomic_store(&l->recalled, false);
    atomic_store(&l->running, true);
    if (atomic_load_explicit(&s->pace, memory_order_relaxed) == REALM_PACE_SLOW &&
        atomic_load_explicit(&s->n_running, memory_order_relaxed) > 0)
        wasmtime_engine_increment_epoch(s->engine);
    realm_mutex_lock(&s->ready_mu);
    s->n_lenders++;
    realm_mutex_unlock(&s->ready_mu);
}

void realm_lender_run(realm_lender *l, uint64_t most_ns) {
    realm_sandbox *s = l->sandbox;
    realm_ready *q = &s->ready;
    uint64_t until = most_ns ? realm_clock_ns() + most_ns : 0;
    realm_mutex_lock(&s->ready_mu);
    while (q->head && realm_instance_is_brief(q->head)) {
        if (until || atomic_load_explicit(&l->recalled, memory_order_relaxed)) {
            uint64_t now = realm_clock_ns();
            if (until == 0) until = now + LEND_MORE_NS;
            if (now >= until) break;
        }
        realm_instance *i = take_head(q);
        bool more = q->head && must_wake(q);
        realm_mutex_unlock(&s->ready_mu);
        if (more) realm_cond_signal(&q->cond);
        realm_instance_run(i, l);
        realm_mutex_lock(&s->ready_mu);
        if (atomic_load_explicit(&l->rest, memory_order_relaxed) == i) break;
    }
    s->n_lenders--;
    bool wake = q->head && must_wake(q);
    realm_mutex_unlock(&s->ready_mu);
    if (wake) realm_cond_signal(&q->cond);
    atomic_store(&l->running, false);
}

bool realm_lender_has_rest(realm_lender *l) {
    realm_mutex_lock(&l->mu);
    bool any = l->n_deferred > 0 || atomic_load_explicit(&l->rest, memory_order_relaxed);
    realm_mutex_unlock(&l->mu);
    return any;
}

/* May be called by two threads at once, and more comes meanwhile. */
void realm_lender_finish(realm_lender *l) {
    realm_instance *rest = atomic_exchange(&l->rest, NULL);
    if (rest) realm_instance_run(rest, l);
    realm_mutex_lock(&l->mu);
    while (l->n_deferred > 0) {
        void (*fn)(void *user) = l->deferred[--l->n_deferred].fn;
        void *user = l->deferred[l->n_deferred].user;
        realm_mutex_unlock(&l->mu);
        fn(user);
        realm_mutex_lock(&l->mu);
    }
    realm_mutex_unlock(&l->mu);
}

void realm_lender_recall(realm_lender *l) {
    atomic_store(&l->recalled, true);
    /* From its own thread it is what it runs that made the work: it goes on to its next wait. */
    if (atomic_load(&l->running) && !pthread_equal(atomic_load(&l->thread), pthread_self()))
        wasmtime_engine_increment_epoch(l->sandbox->engine);
}

/* ---- heap of deadlines, under timer_mu ---- */

static void heap_place(realm_sandbox *s, uint32_t at, realm_instance *i) {
    s->heap[at] = i;
    i->heap_at = at;
}

static void heap_sift(realm_sandbox *s, uint32_t at, realm_instance *i) {
    while (at > 1 && s->heap[at / 2]->heap_key > i->heap_key) {
        heap_place(s, at, s->heap[at / 2]);
        at /= 2;
    }
    for (;;) {
        uint32_t child = at * 2;
        if (child > s->n_heap) break;
        if (child < s->n_heap && s->heap[child + 1]->heap_key < s->heap[child]->heap_key) child++;
        if (s->heap[child]->heap_key >= i->heap_key) break;
        heap_place(s, at, s->heap[child]);
        at = child;
    }
    heap_place(s, at, i);
}

static void heap_remove(realm_sandbox *s, realm_instance *i) {
    if (!i->heap_at) return;
    uint32_t at = i->heap_at;
    realm_instance *last = s->heap[s->n_heap--];
    i->heap_at = 0;
    if (last != i) heap_sift(s, at, last);
}

static uint64_t least(uint64_t a, uint64_t b) { return !a ? b : !b ? a : REALM_MIN(a, b); }

void realm_timer_update(realm_sandbox *s, realm_instance *i) {
    uint64_t key = least(least(i->wall_ns, i->grace_ns), i->wake_ns);
    if (!key) {
        heap_remove(s, i);
        return;
    }
    i->heap_key = key;
    if (i->heap_at)
        heap_sift(s, i->heap_at, i);
    else
        heap_sift(s, ++s->n_heap, i);
    if (key < s->timer_sleeps_until_ns) realm_cond_signal(&s->timer_cond);
}

void realm_timer_set_wake(realm_sandbox *s, realm_instance *i, uint64_t at_ns) {
    realm_mutex_lock(&s->timer_mu);
    i->wake_ns = at_ns;
    realm_timer_update(s, i);
    realm_mutex_unlock(&s->timer_mu);
}

void realm_timer_remove(realm_sandbox *s, realm_instance *i) {
    realm_mutex_lock(&s->timer_mu);
    i->wall_ns = i->grace_ns = i->wake_ns = 0;
    heap_remove(s, i);
    realm_mutex_unlock(&s->timer_mu);
}

/* ---- clock thread ---- */

typedef struct due {
    realm_instance *i;
    realm_status kill; /* REALM_OK: a wake-up alone */
} due;

/* Takes instances whose deadline has come, with a reference each. */
static size_t take_due(realm_sandbox *s, uint64_t now, due *out) {
    size_t n = 0;
    while (n < DUE_MAX && s->n_heap > 0 && s->heap[1]->heap_key <= now) {
        realm_instance *i = s->heap[1];
        out[n] = (due){.i = realm_instance_retain(i), .kill = REALM_OK};
        if (i->wall_ns && i->wall_ns <= now) {
            out[n].kill = REALM_E_TIMEOUT;
            i->wall_ns = 0;
        }
        if (i->grace_ns && i->grace_ns <= now) {
            out[n].kill = REALM_E_CANCELLED;
            i->grace_ns = 0;
        }
        if (i->wake_ns <= now) i->wake_ns = 0;
        realm_timer_update(s, i);
        n++;
    }
    return n;
}

/* What the clock thread has seen of late, in ticks of whatever length. */
typedef struct pulse {
    uint32_t n_slices;       /* at the last tick */
    unsigned still, no_long; /* ticks since something ran; since something ran that is not brief */
    realm_pace pace;
    uint64_t tick_at; /* the next one; UINT64_MAX: none */
} pulse;

static uint64_t period(realm_pace pace) { return pace == REALM_PACE_FAST ? REALM_TICK_NS : REALM_SLOW_TICK_NS; }

/* Under timer_mu, at a tick: a slower pace when nothing needed this one for a while. */
static void slow_down(realm_sandbox *s, pulse *p) {
    uint32_t n = atomic_load_explicit(&s->n_slices, memory_order_relaxed);
    p->still = n == p->n_slices && atomic_load(&s->n_running) == 0 ? p->still + 1 : 0;
    p->no_long = atomic_load(&s->n_long) == 0 ? p->no_long + 1 : 0;
    p->n_slices = n;
    realm_pace next = p->still > IDLE_TICKS ? REALM_PACE_STILL : p->no_long > IDLE_TICKS ? REALM_PACE_SLOW : p->pace;
    if (next >= p->pace) return;
    /* Whoever begins a slice counts it, then reads `pace`; here it is the other way round. */
    atomic_store(&s->pace, (int)next);
    if (atomic_load(&s->n_long) > 0)
        next = REALM_PACE_FAST;
    else if (next == REALM_PACE_STILL && atomic_load(&s->n_running) > 0)
        next = REALM_PACE_SLOW;
    atomic_store(&s->pace, (int)next);
    p->pace = next;
}

/* Under timer_mu. */
static void tick(realm_sandbox *s, pulse *p, uint64_t now) {
    realm_pace asked = (realm_pace)atomic_load(&s->pace);
    if (asked > p->pace) { /* since the last look */
        p->pace = asked;
        p->still = p->no_long = 0;
        p->tick_at = REALM_MIN(p->tick_at, now + period(asked));
    }
    if (now < p->tick_at) return;
    if (atomic_load(&s->n_running) > 0) wasmtime_engine_increment_epoch(s->engine);
    slow_down(s, p);
    p->tick_at = p->pace == REALM_PACE_STILL ? UINT64_MAX : now + period(p->pace);
}

static void *timer_main(void *arg) {
    realm_sandbox *s = arg;
    due list[DUE_MAX];
    pulse p = {.pace = REALM_PACE_STILL, .tick_at = UINT64_MAX};
    realm_mutex_lock(&s->timer_mu);
    while (!s->timer_stop) {
        uint64_t now = realm_clock_ns();
        size_t n = take_due(s, now, list);
        if (n > 0) {
            realm_mutex_unlock(&s->timer_mu);
            for (size_t k = 0; k < n; k++) {
                if (list[k].kill)
                    realm_instance_kill(list[k].i, list[k].kill);
                else
                    realm_instance_wake(list[k].i);
                realm_instance_release(list[k].i);
            }
            realm_mutex_lock(&s->timer_mu);
            continue;
        }
        tick(s, &p, now);
        uint64_t until = p.tick_at;
        if (s->n_heap > 0) until = REALM_MIN(until, s->heap[1]->heap_key);
        s->timer_sleeps_until_ns = until;
        if (until == UINT64_MAX)
            realm_cond_wait(&s->timer_cond, &s->timer_mu);
        else
            realm_cond_wait_until(&s->timer_cond, &s->timer_mu, until);
        s->timer_sleeps_until_ns = 0;
    }
    realm_mutex_unlock(&s->timer_mu);
    return NULL;
}

realm_status realm_sched_start(realm_sandbox *s, realm_error *err) {
    realm_ready *q = &s->ready;
    realm_status st = realm_thread_start(&s->timer, "sandbox-clock", timer_main, s, err);
    if (st) return st;
    s->timer_started = true;
    q->sandbox = s;
    for (; q->n_started < s->n_workers; q->n_started++)
        if ((st = realm_thread_start(&q->workers[q->n_started], "sandbox", worker_main, q, err))) return st;
    if ((st = realm_long_start(s, err))) return st;
    return realm_background_start(s, err);
}

void realm_sched_stop(realm_sandbox *s) {
    realm_mutex_lock(&s->ready_mu);
    s->stopping = true;
    realm_cond_broadcast(&s->ready.cond);
    realm_mutex_unlock(&s->ready_mu);
    for (uint32_t k = 0; k < s->ready.n_started; k++) pthread_join(s->ready.workers[k], NULL);
    realm_long_stop(s);
    realm_background_stop(s);
    realm_mutex_lock(&s->timer_mu);
    s->timer_stop = true;
    realm_cond_signal(&s->timer_cond);
    realm_mutex_unlock(&s->timer_mu);
    if (s->timer_started) pthread_join(s->timer, NULL);
}
