/* A worker takes what is queued for its workstream, protocol by protocol (N-W5..W10).
 *
 *   snapshot of the pending mask ─▶ for each protocol, ascending:
 *     clear its bit ▸ detach: note where each lane ends now, and say so ─▶ len is 0, as much again fits (N-W6)
 *     bursts up to there: accept ▸ taken ▸ tail ▸ weed ▸ handle ▸ handled ▸ done
 *     drained()
 *
 * Nothing is moved when a queue is detached: `detached` of each lane's cell takes over the count of its `put`. A serve
 * handles `budget` frames at most and goes on where it stopped in the next; RUNNING stays set in between.
 *
 * Weed: frames whose port has lived another life since are freed unseen and count as handled (N-W10); those whose vnet
 * lost the protocol before they were detached are freed and count as purged; those that lack a buffer (their last taker
 * was killed) count as crashed.
 *
 * Purge (N-V2): whoever takes a protocol from a vnet has changed its word in the protocol's table by then, so that
 * every frame that was let in under the old one is out, wherever it stands. That is exact and done by one store; to
 * purge is to free their buffers early. The worker does it, asked by `purge_asked`, between bursts, behind what is
 * detached (N-V3):
 *
 *   owner words of the frame's buffers -> free ▸ its slots name no buffer ▸ `detached`'s count of holes + 1 ▸ `purged`
 *
 * The slots are the worker's to write: in [tail, head) no producer touches them. Others keep their places and order. A
 * hole is passed over when its turn comes. Killed in the middle, the heir finds a frame that lacks a buffer. */
#ifndef PR_NETISR_SERVE_H
#define PR_NETISR_SERVE_H

#include "netisr_queue.h"

static inline struct pr_netisr_ws *pr_netisr_my_ws(const struct pr_netisr_end *e) { return &e->v.ws[e->ws]; }

static inline struct pr_lane_end *pr_netisr_in(struct pr_netisr_end *e, uint32_t proto, uint32_t producer)
{
    struct pr_lane_end *l = &e->in[proto * e->v.n_producers + producer];
    struct pr_lane *lane = pr_netisr_lane(&e->v, proto, e->ws, producer);
    if (l->lane)
        return l;
    if (!pr_netisr_ready_proto(&e->v, proto) || pr_lane_attach(l, lane, pr_lane_size(e->v.capacity), PR_CONSUMER) < 0)
        return NULL;
    return l;
}

/* Descriptors between my cursor and `stop` that are there. */
static inline uint32_t pr_netisr_there(struct pr_lane_end *l, uint32_t stop)
{
    return pr_lane_peek(l, stop - l->mine);
}

static inline uint64_t pr_netisr_slot(const struct pr_lane_end *l, uint32_t i)
{
    return __atomic_load_n(pr_lane_slot(l, i), __ATOMIC_RELAXED);
}

/* Descriptors of the frame at slot i, of which `n` are there. A chain longer than a frame may be is cut. */
static inline uint32_t pr_netisr_chain(const struct pr_lane_end *l, uint32_t i, uint32_t n)
{
    uint32_t k = 1;
    while (k < n && k < PR_MAX_FRAGS && (pr_desc_flags(pr_netisr_slot(l, i + k - 1)) & PR_NS_MOREFRAG))
        k++;
    return k;
}

/* ---- the frames of a burst ---- */

/* What became of frames that no handler sees. */
struct pr_netisr_weeds {
    uint32_t vanished, purged, crashed;
};

/* Were the frame's vnet's rights to the protocol changed since it was let in? */
static inline int pr_netisr_stale(const struct pr_meta *meta, const uint32_t *allowed)
{
    return __atomic_load_n(&allowed[meta->life % PR_NETISR_VNETS], __ATOMIC_RELAXED) != meta->allowed;
}

static inline int pr_netisr_vanished(const struct pr_netisr_end *e, const struct pr_meta *meta)
{
    return meta->life && (meta->port >= PR_NETISR_PORTS ||
                          (uint32_t)pr_netisr_look(&e->v.control->port[meta->port]) >> 8 != meta->life >> 8);
}

/* Accept the buffers of the frame at slot i. Whether all were there; if not, those that were are freed. */
static inline int pr_netisr_accept(struct pr_netisr_end *e, struct pr_lane_end *l, uint32_t i, uint32_t slots,
                                   uint64_t *desc)
{
    uint32_t got = 0;
    for (uint32_t k = 0; k < slots; k++) {
        uint64_t d = pr_netisr_slot(l, i + k);
        if (pr_pool_accept(e->pool, pr_desc_idx(d), l->id, l->mine + i + k))
            desc[got++] = d;
    }
    if (got < slots)
        pr_hand_free(e->pool, desc, got);
    return got == slots;
}

/* The frames that only now turn out to be nobody's leave the batch. */
static inline void pr_netisr_weed(struct pr_netisr_end *e, uint32_t proto, struct pr_netisr_weeds *w)
{
    struct pr_batch *b = &e->batch;
    uint64_t keep = 0;
    if (proto >= PR_NETISR_PUBLIC)
        return;
    for (uint32_t i = 0; i < b->n; i++) {
        const struct pr_meta *meta = pr_meta_of(e->rg, pr_desc_idx(b->desc[b->first[i]]));
        int stale = pr_netisr_stale(meta, e->allowed), vanished = !stale && pr_netisr_vanished(e, meta);
        w->purged += (uint32_t)stale;
        w->vanished += (uint32_t)vanished;
        keep |= (uint64_t)!(stale | vanished) << i;
    }
    pr_netisr_free(e, b, pr_netisr_all(b) & ~keep);
    pr_netisr_keep(b, keep);
}

/* Add the frames of one lane to the batch, as many as it has room for. How many frames were taken. */
static inline uint32_t pr_netisr_take(struct pr_netisr_end *e, uint32_t proto, uint32_t producer,
                                      struct pr_netisr_weeds *w)
{
    struct pr_lane_end *l = pr_netisr_in(e, proto, producer);
    uint32_t n = l ? pr_netisr_there(l, e->stop[producer]) : 0, i = 0, frames = 0, slots;
    for (; i < n && pr_batch_room(&e->batch, slots = pr_netisr_chain(l, i, n - i)); i += slots) {
        int whole = !(pr_desc_flags(pr_netisr_slot(l, i + slots - 1)) & PR_NS_MOREFRAG);
        frames += (uint32_t)whole;
        if (!pr_desc_idx(pr_netisr_slot(l, i)))
            continue; /* a hole: it was counted when it was made */
        uint64_t *desc = &e->batch.desc[e->batch.n_desc];
        if (!pr_netisr_accept(e, l, i, slots, desc))
            w->crashed += (uint32_t)whole;
        else if (whole)
            pr_batch_close(&e->batch, slots);
        else
            pr_hand_free(e->pool, desc, slots);
    }
    if (i) {
        struct pr_netisr_cell *c = pr_netisr_cell(&e->v, proto, e->ws, producer);
        pr_netisr_say(&c->taken, pr_netisr_mark(pr_netisr_frames(c->taken) + frames, l->mine + i));
        pr_lane_release(l, i); /* after it */
    }
    return i;
}

/* All that was taken has been handled; pairs with pr_netisr_settled. */
static inline void pr_netisr_through(struct pr_netisr_end *e, uint32_t proto)
{
    for (uint32_t producer = 0; producer < e->v.n_producers; producer++) {
        struct pr_netisr_cell *c = pr_netisr_cell(&e->v, proto, e->ws, producer);
        uint32_t taken = pr_netisr_frames(c->taken);
        if (c->done != taken)
            __atomic_store_n(&c->done, taken, __ATOMIC_RELEASE);
    }
}

/* What was handled has left this process: a flow that goes elsewhere now is not overtaken by itself. */
static inline void pr_netisr_left(struct pr_netisr_end *e)
{
    for (; e->handled; e->handled &= e->handled - 1)
        pr_netisr_through(e, (uint32_t)__builtin_ctz(e->handled));
}

/* One burst of what is detached. Descriptors taken, 0 = that was all. */
static inline uint32_t pr_netisr_burst(struct pr_netisr_end *e, uint32_t proto)
{
    struct pr_netisr_work *work = pr_netisr_work(&e->v, proto, e->ws);
    struct pr_netisr_weeds w = {0};
    uint32_t slots = 0;
    pr_batch_begin(&e->batch);
    for (uint32_t producer = 0; producer < e->v.n_producers && e->batch.n < PR_BURST; producer++)
        slots += pr_netisr_take(e, proto, producer, &w);
    if (!slots)
        return 0;
    pr_netisr_weed(e, proto, &w);
    uint32_t n = e->batch.n;
    if (n)
        e->handle(e->ctx, proto, &e->batch);
    pr_netisr_count(&work->handled, n + w.vanished);
    pr_netisr_count(&work->batches, n != 0);
    if (w.purged | w.crashed) {
        pr_netisr_count(&work->purged, w.purged);
        pr_netisr_count(&work->crashed, w.crashed);
    }
    if (e->later)
        e->handled |= 1u << proto;
    else
        pr_netisr_through(e, proto);
    e->served += n + w.vanished;
    return slots;
}

/* ---- purge ---- */

static inline int pr_netisr_purge_wanted(const struct pr_netisr_end *e)
{
    const struct pr_netisr_ws *s = pr_netisr_my_ws(e);
    return __atomic_load_n(&s->purge_asked, __ATOMIC_ACQUIRE) != s->purged;
}

/* Make a hole of the frame at slot i: 1, or 0 = it lacked a buffer. */
static inline int pr_netisr_hollow(struct pr_netisr_end *e, struct pr_lane_end *l, uint32_t i, uint32_t slots)
{
    uint64_t desc[PR_MAX_FRAGS] = {0};
    int whole = pr_netisr_accept(e, l, i, slots, desc);
    if (whole)
        pr_hand_free(e->pool, desc, slots);
    for (uint32_t k = 0; k < slots; k++) {
        uint64_t d = pr_netisr_slot(l, i + k);
        __atomic_store_n(pr_lane_slot(l, i + k), pr_desc(0, pr_desc_len(d), pr_desc_flags(d)), __ATOMIC_RELEASE);
    }
    return whole;
}

static inline void pr_netisr_purge_lane(struct pr_netisr_end *e, uint32_t proto, uint32_t producer)
{
    struct pr_lane_end *l = pr_netisr_in(e, proto, producer);
    struct pr_netisr_cell *c = pr_netisr_cell(&e->v, proto, e->ws, producer);
    struct pr_netisr_work *work = pr_netisr_work(&e->v, proto, e->ws);
    const uint32_t *allowed = e->v.proto[proto].allowed;
    uint32_t n = l ? pr_netisr_there(l, pr_netisr_position(pr_netisr_look(&c->put))) : 0, slots;
    uint32_t i = n && e->serving == proto ? e->stop[producer] - l->mine : 0;
    for (; i < n; i += slots) {
        slots = pr_netisr_chain(l, i, n - i);
        uint32_t idx = pr_desc_idx(pr_netisr_slot(l, i));
        if (!pr_buf_ok(e->rg, idx) || !pr_netisr_stale(pr_meta_of(e->rg, idx), allowed))
            continue;
        int whole = pr_netisr_hollow(e, l, i, slots);
        pr_netisr_say(&c->detached, c->detached + 1);
        pr_netisr_count(whole ? &work->purged : &work->crashed, 1);
    }
}

static inline void pr_netisr_purge(struct pr_netisr_end *e)
{
    struct pr_netisr_ws *s = pr_netisr_my_ws(e);
    uint32_t asked = __atomic_load_n(&s->purge_asked, __ATOMIC_ACQUIRE);
    for (uint32_t proto = 0; proto < PR_NETISR_PUBLIC; proto++)
        for (uint32_t producer = 0; pr_netisr_ready_proto(&e->v, proto) && producer < e->v.n_producers; producer++)
            pr_netisr_purge_lane(e, proto, producer);
    __atomic_store_n(&s->purged, asked, __ATOMIC_RELEASE); /* pairs with pr_netisr_purge_done */
}

/* ---- the worker's turn ---- */

/* Take note of where the protocol's lanes end, before which its pending bit was cleared. */
static inline void pr_netisr_detach(struct pr_netisr_end *e, uint32_t proto)
{
    __atomic_fetch_and(&pr_netisr_my_ws(e)->pending, ~(1u << proto), __ATOMIC_SEQ_CST); /* set anew by what comes now */
    for (uint32_t vnet = 0; vnet < PR_NETISR_VNETS; vnet++)
        e->allowed[vnet] = __atomic_load_n(&e->v.proto[proto].allowed[vnet], __ATOMIC_ACQUIRE);
    for (uint32_t producer = 0; producer < e->v.n_producers; producer++) {
        struct pr_netisr_cell *c = pr_netisr_cell(&e->v, proto, e->ws, producer);
        uint64_t put = pr_netisr_look(&c->put);
        e->stop[producer] = pr_netisr_position(put);
        pr_netisr_say(&c->detached, pr_netisr_mark(pr_netisr_frames(put), 0));
    }
    e->serving = proto;
    e->served = 0;
}

static inline void pr_netisr_drained(struct pr_netisr_end *e)
{
    uint32_t proto = e->serving;
    e->serving = PR_NETISR_PROTOS;
    if (!e->served || !(__atomic_load_n(&e->v.proto[proto].flags, __ATOMIC_RELAXED) & PR_NPR_DRAINED) || !e->drained)
        return;
    e->drained(e->ctx, proto, pr_netisr_my_ws(e)->cpu);
    pr_netisr_count(&pr_netisr_work(&e->v, proto, e->ws)->drained, 1);
}

/* Nothing is pending: stop running. 1, or 0 = something came meanwhile. Whoever sets a pending bit after this look
 * finds no flag and wakes me. */
static inline int pr_netisr_retire(struct pr_netisr_end *e)
{
    struct pr_netisr_ws *s = pr_netisr_my_ws(e);
    __atomic_fetch_and(&s->flags, ~(uint32_t)(PR_NWS_RUNNING | PR_NWS_SCHEDULED), __ATOMIC_SEQ_CST);
    if (!__atomic_load_n(&s->pending, __ATOMIC_SEQ_CST))
        return 1;
    __atomic_fetch_or(&s->flags, PR_NWS_RUNNING, __ATOMIC_SEQ_CST);
    return 0;
}

/* The next protocol of the snapshot, or of a new one. 0 = there is none. */
static inline int pr_netisr_next(struct pr_netisr_end *e)
{
    do
        if (!e->left)
            e->left = __atomic_load_n(&pr_netisr_my_ws(e)->pending, __ATOMIC_SEQ_CST) & ((1u << PR_NETISR_PROTOS) - 1);
    while (!e->left && !pr_netisr_retire(e));
    if (!e->left)
        return 0;
    pr_netisr_detach(e, (uint32_t)__builtin_ctz(e->left));
    e->left &= e->left - 1;
    return 1;
}

/* Is there anything for me to do? Changes nothing. */
static inline int pr_netisr_ready(void *end)
{
    const struct pr_netisr_end *e = end;
    if (e->ws == PR_NO_WS)
        return 0;
    return e->serving < PR_NETISR_PROTOS || e->left || pr_netisr_purge_wanted(e) ||
           __atomic_load_n(&pr_netisr_my_ws(e)->pending, __ATOMIC_ACQUIRE);
}

/* Handle what is queued for my workstream, about `budget` frames. Descriptors taken; 0 = nothing is pending, or this
 * was called from inside a handler (N-W4). */
static inline uint32_t pr_netisr_serve(struct pr_netisr_end *e)
{
    uint32_t taken = 0, got;
    if (e->ws == PR_NO_WS || e->inside)
        return 0;
    struct pr_netisr_ws *s = pr_netisr_my_ws(e);
    uint32_t flags = __atomic_load_n(&s->flags, __ATOMIC_ACQUIRE);
    if (flags & PR_NWS_DISPATCHING)
        return 0;
    if (pr_netisr_purge_wanted(e))
        pr_netisr_purge(e);
    if (!flags && !__atomic_load_n(&s->pending, __ATOMIC_ACQUIRE))
        return 0;
    __atomic_fetch_or(&s->flags, PR_NWS_RUNNING, __ATOMIC_SEQ_CST);
    __atomic_fetch_and(&s->flags, ~(uint32_t)PR_NWS_SCHEDULED, __ATOMIC_SEQ_CST);
    e->inside = 1;
    while (taken < e->budget && (e->serving < PR_NETISR_PROTOS || pr_netisr_next(e))) {
        if ((got = pr_netisr_burst(e, e->serving)))
            taken += got;
        else
            pr_netisr_drained(e);
        if (pr_netisr_purge_wanted(e))
            pr_netisr_purge(e);
    }
    e->inside = 0;
    return taken;
}

/* The word for the worker's doorbell. */
static inline uint32_t *pr_netisr_need(struct pr_netisr_end *e) { return &pr_netisr_my_ws(e)->need; }

#endif
