/* After a death, or a change of guard: counters and cursors agree again, and nothing waits that nobody will look at.
 *
 *   of a worker as consumer    its heir, before its first serve: pr_netisr_adopt
 *       taken                  mended: it may be ahead of the tail
 *       detached, holes        what was detached and not taken is queued again; holes are counted anew, in the slots
 *       crashed                taken, and neither handled, purged nor crashed: it died in the worker's hands
 *       flags, pending         as of a worker that has not begun, with all that is queued pending
 *   of anybody as producer     whoever fenced it: pr_netisr_bury_producer
 *       put, queued            mended: they may be behind the head
 *       pending                set where its frames are: it may have died before it could
 *       owner words            buffers that it was putting and did not publish go home
 *
 * What a dead process had OWNED is reclaimed by pr_pool_reclaim_process; before or after these is the same. Killed in
 * the middle, each is run again from the start. After a death up to twice the limit may be queued (N-A2 holds once more
 * when that is served), and a hole or a handled frame whose counter was not yet raised counts as crashed: sums stay
 * true. */
#ifndef PR_NETISR_MEND_H
#define PR_NETISR_MEND_H

#include "netisr_serve.h"

static inline void pr_netisr_mend_taken(const struct pr_lane_end *l, struct pr_netisr_cell *c)
{
    uint64_t taken = pr_netisr_look(&c->taken);
    uint32_t at = pr_netisr_position(taken), ahead = at - l->mine;
    if (ahead && ahead <= l->capacity)
        pr_netisr_say(&c->taken, pr_netisr_mark(pr_netisr_frames(taken) - pr_netisr_ends(l, l->mine, at), l->mine));
}

/* Frames between tail and `put` of which a purge left only holes. */
static inline uint32_t pr_netisr_holes(struct pr_lane_end *l, const struct pr_netisr_cell *c)
{
    uint32_t n = pr_netisr_there(l, pr_netisr_position(pr_netisr_look(&c->put))), holes = 0, slots;
    for (uint32_t i = 0; i < n; i += slots) {
        slots = pr_netisr_chain(l, i, n - i);
        holes += !pr_desc_idx(pr_netisr_slot(l, i));
    }
    return holes;
}

/* One lane. Frames that left it: taken, or purged on the spot. *queued: whether there are any. */
static inline uint32_t pr_netisr_adopt_lane(struct pr_netisr_end *e, uint32_t proto, uint32_t producer,
                                            uint32_t *queued)
{
    struct pr_lane_end *l = pr_netisr_in(e, proto, producer);
    struct pr_netisr_cell *c = pr_netisr_cell(&e->v, proto, e->ws, producer);
    if (!l)
        return 0;
    pr_netisr_mend_taken(l, c);
    uint32_t taken = pr_netisr_frames(c->taken), holes = pr_netisr_holes(l, c);
    pr_netisr_say(&c->detached, pr_netisr_mark(taken, holes));
    __atomic_store_n(&c->done, taken, __ATOMIC_RELEASE);
    *queued |= pr_netisr_position(pr_netisr_look(&c->put)) != l->mine;
    return taken + holes;
}

/* Take the workstream over from whoever had it; also the first of all does this. */
static inline void pr_netisr_adopt(struct pr_netisr_end *e)
{
    struct pr_netisr_ws *s = pr_netisr_my_ws(e);
    uint32_t pending = 0;
    e->found = 0;
    for (uint32_t proto = 0; proto < PR_NETISR_PROTOS; proto++) {
        struct pr_netisr_work *w = pr_netisr_work(&e->v, proto, e->ws);
        uint32_t gone = 0, queued = 0;
        if (!pr_netisr_ready_proto(&e->v, proto))
            continue;
        for (uint32_t producer = 0; producer < e->v.n_producers; producer++)
            gone += pr_netisr_adopt_lane(e, proto, producer, &queued);
        gone -= (uint32_t)(w->handled + w->purged + w->crashed);
        pr_netisr_count(&w->crashed, gone);
        e->found += gone;
        pending |= queued << proto;
    }
    __atomic_store_n(&s->flags, 0, __ATOMIC_SEQ_CST);
    __atomic_fetch_or(&s->pending, pending, __ATOMIC_SEQ_CST);
}

/* Say that process `pid` is the worker of the workstream from now on. */
static inline void pr_netisr_present(struct pr_netisr_end *e, uint32_t pid)
{
    struct pr_netisr_ws *s = pr_netisr_my_ws(e);
    __atomic_store_n(&s->births, s->births + 1, __ATOMIC_RELAXED);
    __atomic_store_n(&s->pid, pid, __ATOMIC_RELEASE);
}

/* A worker that ends in good order: what it had detached is queued again, for its successor to adopt. */
static inline void pr_netisr_leave(struct pr_netisr_end *e)
{
    if (e->ws == PR_NO_WS)
        return;
    e->left = 0;
    e->serving = PR_NETISR_PROTOS;
    pr_netisr_adopt(e);
    __atomic_store_n(&pr_netisr_my_ws(e)->pid, 0, __ATOMIC_RELEASE);
}

/* ---- producers ---- */

/* Is the buffer's word, which names lane `l`, that of a slot which was published and not yet taken? Tail, then head,
 * then the word: [tail, head) only shrinks, for its producer is dead. */
static inline int pr_netisr_published(const struct pr_netisr *v, const struct pr_lane *l, const struct pr_pool *pool,
                                      uint32_t b)
{
    uint32_t tail = __atomic_load_n(&l->tail, __ATOMIC_ACQUIRE), head = __atomic_load_n(&l->head, __ATOMIC_ACQUIRE);
    uint32_t mask = v->capacity - 1, at = (pr_word_aux(pr_pool_look(pool, b)) - tail) & mask;
    uint64_t d = __atomic_load_n(&l->slot[(tail + at) & mask], __ATOMIC_RELAXED);
    return at < head - tail && pr_desc_idx(d) == b;
}

/* Buffers that the dead producer was putting into any of its lanes go home. How many. One look at every word. */
static inline uint32_t pr_netisr_reclaim(const struct pr_netisr *v, struct pr_pool *pool, uint32_t producer)
{
    uint32_t lanes = PR_NETISR_PROTOS * v->n_ws * v->n_producers, n = 0;
    for (uint32_t b = PR_FIRST_BUF; b < pool->n; b++) {
        uint64_t w = pr_pool_look(pool, b);
        uint32_t lane = pr_word_owner(w) - (uint32_t)v->g.first_lane;
        if (pr_word_state(w) != PR_INFLIGHT || lane >= lanes || lane % v->n_producers != producer)
            continue;
        uint32_t queue = lane / v->n_producers, proto = queue / v->n_ws, ws = queue % v->n_ws;
        if (pr_netisr_published(v, pr_netisr_lane(v, proto, ws, producer), pool, b) || pr_pool_look(pool, b) != w)
            continue;
        pr_pool_store(pool, b, pr_pool_at_home(pool, b));
        n++;
    }
    return n;
}

/* After the producer's death, before its row is used again. bells: an eventfd a workstream. Buffers that went home. */
static inline uint32_t pr_netisr_bury_producer(const struct pr_netisr *v, struct pr_pool *pool, uint32_t producer,
                                               const int *bells)
{
    for (uint32_t ws = 0; ws < v->n_ws; ws++) {
        uint32_t pending = 0;
        for (uint32_t proto = 0; proto < PR_NETISR_PROTOS; proto++) {
            struct pr_netisr_cell *c = pr_netisr_cell(v, proto, ws, producer);
            struct pr_lane_end l;
            if (!pr_netisr_ready_proto(v, proto) || pr_lane_attach(&l, pr_netisr_lane(v, proto, ws, producer),
                                                                   pr_lane_size(v->capacity), PR_PRODUCER) < 0)
                continue;
            pr_netisr_mend_put(&l, c);
            pending |= (uint32_t)(l.mine != l.peer) << proto;
        }
        if (!pending)
            continue;
        __atomic_fetch_or(&v->ws[ws].pending, pending, __ATOMIC_SEQ_CST);
        pr_doorbell_ring(bells[ws]);
    }
    return pr_netisr_reclaim(v, pool, producer);
}

#endif
