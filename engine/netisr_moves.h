/* A flow changes its workstream without being reordered, when the number of active workstreams changes.
 *
 * At rest frames go to key % count, the key being what the protocol's policy says (netisr_place.h). When the count
 * changes, from A to B, most flows belong elsewhere at once; but frames of theirs may still wait where they were. So
 * each producer for itself follows the rule of Linux's RFS (net/core/dev.c, get_rps_cpu): a flow goes to its new
 * workstream when what this producer queued for it on the old one has been handled (`done` of the lane's cell), not
 * earlier.
 *
 *   barrier[lane]   the lane's frames when the change began: flows of which nothing else is known wait for it
 *   flow[key]       flows that sent more meanwhile: they wait for their own last frame
 *   horizon[lane]   the last frame that anybody waits for. All horizons passed: the change is over
 *
 * While its barrier stands, a flow that finds no free entry (8 looks) raises the barrier instead: of the flows that
 * have no entry none has moved yet, so waiting longer harms none of them. Once it is passed no entry is made any more.
 * Entries are kept until the next change: one that vanished would let its flow go back.
 *
 * `until` is set before the frame is put, to a burst more than were put before, so that a producer that is killed, or
 * refused, leaves it too late and never too early. Therefore an empty lane is through too (`done` = put), and `until` is
 * then set to what is done: a flow that may go does not have to come back when others fill the lane again.
 *
 * Nothing of this is looked at while nothing moves. A second change waits for the first one's end; a flow that never
 * lets its queue run empty never moves, as with RFS. All of it lies in shared memory: an heir goes on with it. */
#ifndef PR_NETISR_MOVES_H
#define PR_NETISR_MOVES_H

#include "netisr_end.h"

#define PR_NETISR_LOOKS 8u

static inline uint32_t *pr_netisr_barrier(const struct pr_netisr *v, struct pr_netisr_moves *m, uint32_t proto,
                                          uint32_t ws)
{
    return &m->until[2 * (proto * v->n_ws + ws)];
}

static inline uint32_t *pr_netisr_horizon(const struct pr_netisr *v, struct pr_netisr_moves *m, uint32_t proto,
                                          uint32_t ws)
{
    return pr_netisr_barrier(v, m, proto, ws) + 1;
}

static inline int pr_netisr_passed(const struct pr_netisr_cell *c, uint32_t until)
{
    uint32_t done = __atomic_load_n(&c->done, __ATOMIC_ACQUIRE); /* pairs with pr_netisr_through */
    return (int32_t)(done - until) >= 0 || done == pr_netisr_frames(c->put);
}

static inline void pr_netisr_moves_begin(struct pr_netisr_end *e, struct pr_netisr_moves *m, uint32_t to)
{
    const struct pr_netisr *v = &e->v;
    for (uint32_t i = 0; i < PR_NETISR_MOVES; i++)
        m->flow[i] = (struct pr_netisr_move){0};
    for (uint32_t proto = 0; proto < PR_NETISR_PUBLIC; proto++)
        for (uint32_t ws = 0; ws < v->n_ws; ws++)
            *pr_netisr_barrier(v, m, proto, ws) = *pr_netisr_horizon(v, m, proto, ws) =
                pr_netisr_frames(pr_netisr_cell(v, proto, ws, e->producer)->put);
    m->to = to;
    __atomic_store_n(&m->moving, 1, __ATOMIC_RELEASE); /* killed before: it is begun again, for nothing has moved */
}

static inline int pr_netisr_moves_over(struct pr_netisr_end *e, struct pr_netisr_moves *m)
{
    for (uint32_t proto = 0; proto < PR_NETISR_PUBLIC; proto++)
        for (uint32_t ws = 0; ws < m->from; ws++) {
            uint32_t horizon = *pr_netisr_horizon(&e->v, m, proto, ws);
            if (!pr_netisr_passed(pr_netisr_cell(&e->v, proto, ws, e->producer), horizon))
                return 0;
        }
    return 1;
}

/* Once a burst, before its frames are placed. */
static inline struct pr_netisr_moves *pr_netisr_moves_look(struct pr_netisr_end *e)
{
    struct pr_netisr_moves *m = pr_netisr_moves(&e->v, e->producer);
    if (m->moving && pr_netisr_moves_over(e, m)) {
        m->from = m->to;
        __atomic_store_n(&m->moving, 0, __ATOMIC_RELEASE);
    }
    if (!m->moving) {
        uint32_t active = __atomic_load_n(&e->v.control->active, __ATOMIC_RELAXED);
        if (active != m->from && active && active <= e->v.n_ws)
            pr_netisr_moves_begin(e, m, active);
    }
    e->n_seen = 0;
    return m;
}

/* Was everything up to `until` on this lane handled when this burst first asked? One answer a burst: a later one might
 * be yes for the second of two frames of a flow, while the first, placed and not yet put, is to go to the old place. */
static inline int pr_netisr_settled(struct pr_netisr_end *e, const struct pr_netisr_cell *c, uint32_t ws,
                                    uint32_t *until)
{
    if (!(e->n_seen >> ws & 1)) {
        e->n_seen |= 1ull << ws;
        e->seen[ws] = __atomic_load_n(&c->done, __ATOMIC_ACQUIRE);
        e->n_empty &= ~(1ull << ws);
        e->n_empty |= (uint64_t)(e->seen[ws] == pr_netisr_frames(c->put)) << ws;
    }
    if ((int32_t)(e->seen[ws] - *until) >= 0)
        return 1;
    if (!(e->n_empty >> ws & 1))
        return 0;
    __atomic_store_n(until, e->seen[ws], __ATOMIC_RELAXED);
    return 1;
}

/* Where a frame goes while flows move. `key` has its protocol in the highest byte. */
static inline uint32_t pr_netisr_move(struct pr_netisr_end *e, struct pr_netisr_moves *m, uint32_t proto, uint64_t key)
{
    uint32_t old = (uint32_t)(key % m->from), new = (uint32_t)(key % m->to), at;
    if (old == new)
        return new;
    const struct pr_netisr_cell *c = pr_netisr_cell(&e->v, proto, old, e->producer);
    uint32_t *barrier = pr_netisr_barrier(&e->v, m, proto, old), next = pr_netisr_frames(c->put) + PR_BURST;
    uint64_t name = (uint64_t)(proto + 1) << 56 | key;
    struct pr_netisr_move *f = NULL;
    for (uint32_t look = 0; look < PR_NETISR_LOOKS && !f; look++) {
        at = (uint32_t)((name * 0x9e3779b97f4a7c15ull) >> 52) + look;
        struct pr_netisr_move *g = &m->flow[at & (PR_NETISR_MOVES - 1)];
        if (g->key == name || !g->key)
            f = g;
    }
    if (f && f->key) {
        if (pr_netisr_settled(e, c, old, &f->until))
            return new; /* and so it stays: what was handled remains handled */
        f->until = next;
    } else if (pr_netisr_settled(e, c, old, barrier)) {
        return new;
    } else if (f) {
        f->until = next;
        __atomic_store_n(&f->key, name, __ATOMIC_RELEASE);
    } else {
        *barrier = next;
    }
    *pr_netisr_horizon(&e->v, m, proto, old) = next;
    return old;
}

#endif
