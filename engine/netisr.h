/* netisr(9) between processes: a frame is handled here and now, or queued for the workstream that its source, flow or
 * CPU names. What is decided per frame is written in netisr_place.h (where), netisr_queue.h (whether), netisr_serve.h
 * (when); who may write what in netisr_memory.h; deaths in netisr_mend.h; the tables' owner in netisr_admin.h. Here:
 * dispatch.
 *
 *   policy     a worker                                    a process without a workstream (the controller, an app)
 *   --------   -----------------------------------------   -------------------------------------------------------
 *   DEFERRED   queues (N-D4)                               the same
 *   DIRECT     runs the handler before it returns (N-D5)   the same, counted in its own row (N-D7)
 *   HYBRID     places; what is its own, and nothing of     queues
 *              that workstream is running, scheduled or
 *              dispatching: runs the handler (N-D10);
 *              all else is queued (N-D8, N-D9, N-D12)
 *
 * Frames come in batches: those of one call that are run directly make one run of the handler. `dispatched` is raised
 * before the handler, `hybrid_dispatched` after it, as BSD does. A handler disposes of all its frames: netisr frees
 * only what it refuses, drops or purges.
 *
 * On one core a frame that is queued, served and freed costs 14 ns in bursts of 64; one dispatched directly 3 ns. */
#ifndef PR_NETISR_H
#define PR_NETISR_H

#include "netisr_admin.h"
#include "netisr_mend.h"
#include "netisr_serve.h"

/* Begin to hold `v` as a producer, and with ws != PR_NO_WS as the worker of that workstream, whose row `producer` then
 * is. room: pr_netisr_end_room() bytes, zeroed; bells: an eventfd a workstream. The callbacks are the caller's to set.
 * Whoever held this row or workstream before is dead or has let go; pr_netisr_bury_producer was called if it died. */
static inline void pr_netisr_begin(struct pr_netisr_end *e, const struct pr_netisr *v, struct pr_pool *pool,
                                   const struct pr_region *rg, uint32_t producer, uint32_t ws, void *room,
                                   const int *bells)
{
    *e = (struct pr_netisr_end){.v = *v, .pool = pool, .rg = rg, .producer = producer, .ws = ws, .out = room,
                                .bell = bells, .budget = PR_NETISR_BUDGET, .serving = PR_NETISR_PROTOS};
    e->in = e->out + PR_NETISR_PROTOS * v->n_ws;
    e->stop = (uint32_t *)(void *)(e->in + PR_NETISR_PROTOS * v->n_producers);
    e->seen = e->stop + v->n_producers;
    if (ws != PR_NO_WS)
        pr_netisr_adopt(e);
}

static inline int pr_netisr_run_direct(struct pr_netisr_end *e, uint32_t proto, struct pr_batch *b)
{
    pr_netisr_count(&pr_netisr_my_row(e, proto)->dispatched, b->n);
    if (b->n)
        e->handle(e->ctx, proto, b);
    return 0;
}

/* Frames of my own workstream, if nobody is at work there. */
static inline int pr_netisr_run_hybrid(struct pr_netisr_end *e, uint32_t proto, struct pr_batch *b)
{
    struct pr_netisr_ws *s = pr_netisr_my_ws(e);
    uint32_t none = 0, n = b->n;
    if (!__atomic_compare_exchange_n(&s->flags, &none, PR_NWS_DISPATCHING, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        return pr_netisr_queue_to(e, proto, e->ws, b, pr_netisr_all(b));
    e->handle(e->ctx, proto, b);
    __atomic_fetch_and(&s->flags, ~(uint32_t)PR_NWS_DISPATCHING, __ATOMIC_SEQ_CST);
    pr_netisr_count(&pr_netisr_my_row(e, proto)->hybrid, n);
    if (__atomic_load_n(&s->pending, __ATOMIC_SEQ_CST))
        pr_netisr_wake(e, proto, e->ws); /* N-D11: what came meanwhile is the worker's, in its next turn */
    return 0;
}

static inline int pr_netisr_hybrid(struct pr_netisr_end *e, uint32_t proto, uint32_t source, struct pr_batch *b)
{
    struct pr_netisr_placing p = pr_netisr_placing(e, proto, source, 1);
    uint64_t to[PR_NETISR_WS_MAX] = {0}, used = 1, kept = 0;
    if (pr_netisr_single(&p))
        to[0] = pr_netisr_all(b);
    else
        kept = pr_netisr_place_all(&p, b, pr_netisr_all(b), to, &used);
    if (kept)
        pr_netisr_count(&pr_netisr_my_row(e, proto)->nobufs, (uint64_t)__builtin_popcountll(kept));
    int status = kept ? -ENOBUFS : 0, got;
    uint64_t mine = used >> e->ws & 1 ? to[e->ws] : 0;
    for (used &= ~(1ull << e->ws); used; used &= used - 1) {
        uint32_t ws = (uint32_t)__builtin_ctzll(used);
        got = pr_netisr_queue_to(e, proto, ws, b, to[ws]);
        status = status ? status : got;
    }
    if (!mine)
        return status;
    pr_netisr_keep(b, mine);
    got = pr_netisr_run_hybrid(e, proto, b);
    return status ? status : got;
}

/* netisr_dispatch_src over a burst: handled or queued, as protocol and policy say; the batch is empty afterwards. What
 * it returns: see pr_netisr_queue_src. */
static inline int pr_netisr_dispatch_src(struct pr_netisr_end *e, uint32_t proto, uint32_t source, struct pr_batch *b)
{
    if (proto >= PR_NETISR_PUBLIC)
        return pr_netisr_queue_src(e, proto, source, b);
    uint32_t how = __atomic_load_n(&e->v.proto[proto].dispatch, __ATOMIC_RELAXED);
    if (how == PR_DISPATCH_DEFAULT)
        how = __atomic_load_n(&e->v.control->dispatch, __ATOMIC_RELAXED);
    if (how == PR_DISPATCH_DEFERRED || (how == PR_DISPATCH_HYBRID && e->ws == PR_NO_WS))
        return pr_netisr_queue_src(e, proto, source, b);
    int status, got;
    pr_netisr_keep(b, pr_netisr_admit(e, proto, b, &status));
    if (how == PR_DISPATCH_HYBRID)
        got = b->n ? pr_netisr_hybrid(e, proto, source, b) : 0;
    else
        got = pr_netisr_run_direct(e, proto, b);
    pr_batch_begin(b);
    return status ? status : got;
}

static inline int pr_netisr_queue(struct pr_netisr_end *e, uint32_t proto, struct pr_batch *b)
{
    return pr_netisr_queue_src(e, proto, 0, b);
}

static inline int pr_netisr_dispatch(struct pr_netisr_end *e, uint32_t proto, struct pr_batch *b)
{
    return pr_netisr_dispatch_src(e, proto, 0, b);
}

#endif
