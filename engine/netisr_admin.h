/* What the controller does with netisr's tables: registrations, limits, vnets, ports, and reading the counters.
 *
 *   register     fields ▸ lanes made ▸ bases taken ▸ used ▸ the word of every vnet that exists becomes odd
 *   unregister   every vnet's word becomes even ▸ purge of all workstreams ▸ used = 0
 *
 * One writer: the controller. Killed between two steps, a protocol is in use that few or no vnets let in: its successor
 * unregisters it. Counters are never reset: what they stood at is subtracted when they are read, so that a reset is the
 * reader's matter and the writers' cells stay theirs. The base of `queued` is what had left the queues by then, so that
 * what still stands there counts for the new registration, as its length does. The rules are in netisr.py. */
#ifndef PR_NETISR_ADMIN_H
#define PR_NETISR_ADMIN_H

#include "netisr_end.h"

static inline void pr_netisr_word(uint32_t *word, uint32_t to) { __atomic_store_n(word, to, __ATOMIC_RELEASE); }

/* ---- reading ---- */

/* A queue's counters, as netisr(9)'s tables have them: since the protocol was registered. */
struct pr_netisr_sums {
    uint64_t len, watermark, dispatched, hybrid, qdrops, queued, handled;
    uint64_t purged, crashed, over, batches, drained, noproto, nobufs, wakes; /* ours */
};

/* As the cells have them, summed over producers. */
static inline struct pr_netisr_base pr_netisr_raw(const struct pr_netisr *v, uint32_t proto, uint32_t ws)
{
    const struct pr_netisr_work *w = pr_netisr_work(v, proto, ws);
    struct pr_netisr_base b = {.handled = pr_netisr_look(&w->handled), .purged = pr_netisr_look(&w->purged),
                               .crashed = pr_netisr_look(&w->crashed), .batches = pr_netisr_look(&w->batches),
                               .drained = pr_netisr_look(&w->drained)};
    for (uint32_t producer = 0; producer < v->n_producers; producer++) {
        const struct pr_netisr_cell *c = pr_netisr_cell(v, proto, ws, producer);
        b.queued += pr_netisr_look(&c->queued);
        b.qdrops += pr_netisr_look(&c->qdrops);
        b.over += pr_netisr_look(&c->over);
    }
    return b;
}

static inline uint32_t pr_netisr_watermark(const struct pr_netisr *v, uint32_t proto, uint32_t ws)
{
    uint32_t generation = v->proto[proto].generation, most = 0;
    for (uint32_t producer = 0; producer < v->n_producers; producer++) {
        uint64_t w = pr_netisr_look(&pr_netisr_cell(v, proto, ws, producer)->watermark);
        if (w >> 32 == generation && (uint32_t)w > most)
            most = (uint32_t)w;
    }
    return most;
}

/* What a producer did by itself, since the protocol was registered. */
static inline struct pr_netisr_row pr_netisr_did(const struct pr_netisr *v, uint32_t proto, uint32_t producer)
{
    const struct pr_netisr_row *r = pr_netisr_row(v, proto, producer);
    const struct pr_netisr_row *base = &v->row_bases[proto * v->n_producers + producer];
    return (struct pr_netisr_row){.dispatched = pr_netisr_look(&r->dispatched) - base->dispatched,
                                  .hybrid = pr_netisr_look(&r->hybrid) - base->hybrid,
                                  .noproto = pr_netisr_look(&r->noproto) - base->noproto,
                                  .nobufs = pr_netisr_look(&r->nobufs) - base->nobufs,
                                  .wakes = pr_netisr_look(&r->wakes) - base->wakes};
}

/* Row of (protocol, workstream): the queue, and what its worker did by itself. */
static inline struct pr_netisr_sums pr_netisr_sums(const struct pr_netisr *v, uint32_t proto, uint32_t ws)
{
    const struct pr_netisr_base *base = pr_netisr_base(v, proto, ws);
    struct pr_netisr_row did = pr_netisr_did(v, proto, ws);
    struct pr_netisr_base now = pr_netisr_raw(v, proto, ws);
    return (struct pr_netisr_sums){.len = pr_netisr_len(v, proto, ws), .watermark = pr_netisr_watermark(v, proto, ws),
                                   .dispatched = did.dispatched, .hybrid = did.hybrid,
                                   .qdrops = now.qdrops - base->qdrops, .queued = now.queued - base->queued,
                                   .handled = now.handled - base->handled + did.dispatched + did.hybrid,
                                   .purged = now.purged - base->purged, .crashed = now.crashed - base->crashed,
                                   .over = now.over - base->over, .batches = now.batches - base->batches,
                                   .drained = now.drained - base->drained, .noproto = did.noproto, .nobufs = did.nobufs,
                                   .wakes = did.wakes};
}

/* ---- registrations ---- */

/* Where the lanes of a protocol lie in the block: these pages have to be there before pr_netisr_open. */
static inline size_t pr_netisr_lanes_at(const struct pr_netisr *v, uint32_t proto)
{
    return (size_t)((uintptr_t)v->lanes - (uintptr_t)v->head) + proto * v->lanes_size;
}

/* Make the lanes of a protocol, once. */
static inline void pr_netisr_open(const struct pr_netisr *v, uint32_t proto)
{
    if (v->proto[proto].ready)
        return;
    for (uint32_t ws = 0; ws < v->n_ws; ws++)
        for (uint32_t producer = 0; producer < v->n_producers; producer++)
            pr_lane_format(pr_netisr_lane(v, proto, ws, producer),
                           (uint16_t)(v->g.first_lane + pr_netisr_lane_index(v, proto, ws, producer)), v->capacity);
    pr_netisr_word(&v->proto[proto].ready, 1);
}

/* All counters of a protocol read 0 from now on, but for what is still queued. */
static inline void pr_netisr_rebase(const struct pr_netisr *v, uint32_t proto)
{
    for (uint32_t ws = 0; ws < v->n_ws; ws++) {
        struct pr_netisr_base now = pr_netisr_raw(v, proto, ws);
        now.queued = now.handled + now.purged + now.crashed;
        *pr_netisr_base(v, proto, ws) = now;
    }
    for (uint32_t producer = 0; producer < v->n_producers; producer++)
        v->row_bases[proto * v->n_producers + producer] = *pr_netisr_row(v, proto, producer);
}

/* Is the protocol let in by the vnet? */
static inline int pr_netisr_allowed(const struct pr_netisr *v, uint32_t proto, uint32_t vnet)
{
    return __atomic_load_n(&v->proto[proto].allowed[vnet], __ATOMIC_ACQUIRE) & 1;
}

static inline void pr_netisr_allow(const struct pr_netisr *v, uint32_t proto, uint32_t vnet, int yes)
{
    if (pr_netisr_allowed(v, proto, vnet) != yes)
        pr_netisr_word(&v->proto[proto].allowed[vnet], v->proto[proto].allowed[vnet] + 1);
}

/* The slot is free, the values are checked, the pages of its lanes are there. */
static inline void pr_netisr_register(const struct pr_netisr *v, uint32_t proto, const char *name, uint32_t policy,
                                      uint32_t dispatch, uint32_t qlimit, uint32_t flags)
{
    struct pr_netisr_proto *p = &v->proto[proto];
    memset(p->name, 0, sizeof p->name);
    strncpy(p->name, name, sizeof p->name - 1);
    pr_netisr_word(&p->policy, policy);
    pr_netisr_word(&p->dispatch, dispatch);
    pr_netisr_word(&p->qlimit, qlimit);
    pr_netisr_word(&p->flags, flags);
    pr_netisr_open(v, proto);
    pr_netisr_word(&p->generation, p->generation + 1);
    pr_netisr_rebase(v, proto);
    pr_netisr_word(&p->used, 1);
    for (uint32_t vnet = 0; vnet < PR_NETISR_VNETS; vnet++)
        if (v->control->vnets >> vnet & 1)
            pr_netisr_allow(v, proto, vnet, 1);
}

/* No vnet lets it in any more. What is queued has yet to be purged, then pr_netisr_unregistered. */
static inline void pr_netisr_forbid(const struct pr_netisr *v, uint32_t proto)
{
    for (uint32_t vnet = 0; vnet < PR_NETISR_VNETS; vnet++)
        pr_netisr_allow(v, proto, vnet, 0);
}

static inline void pr_netisr_unregistered(const struct pr_netisr *v, uint32_t proto)
{
    pr_netisr_word(&v->proto[proto].used, 0);
    pr_netisr_rebase(v, proto);
}

/* netisr_clearqdrops: drops only, on all workstreams. */
static inline void pr_netisr_clear_qdrops(const struct pr_netisr *v, uint32_t proto)
{
    for (uint32_t ws = 0; ws < v->n_ws; ws++)
        __atomic_store_n(&pr_netisr_base(v, proto, ws)->qdrops, pr_netisr_raw(v, proto, ws).qdrops, __ATOMIC_RELAXED);
}

/* ---- vnets and ports ---- */

/* Exists from now on, with no protocol; or not any more. Not vnet 0. */
static inline void pr_netisr_set_vnet(const struct pr_netisr *v, uint32_t vnet, int exists)
{
    uint64_t bit = 1ull << vnet;
    for (uint32_t proto = 0; proto < PR_NETISR_PUBLIC; proto++)
        pr_netisr_allow(v, proto, vnet, 0);
    pr_netisr_say(&v->control->vnets, exists ? v->control->vnets | bit : v->control->vnets & ~bit);
}

/* A port begins another life: frames of the last one that are still queued are nobody's. */
static inline void pr_netisr_set_port(const struct pr_netisr *v, uint32_t port, uint32_t ifindex, uint32_t vnet)
{
    uint32_t generation = ((uint32_t)v->control->port[port] >> 8) + 1;
    if (!(generation & 0xffffff))
        generation = 1;
    pr_netisr_say(&v->control->port[port], (uint64_t)ifindex << 32 | (generation & 0xffffff) << 8 | (vnet & 0xff));
}

/* ---- purge: asked for here, done by the worker ---- */

/* Ask a workstream to free what its vnets no longer let in. A ticket. */
static inline uint32_t pr_netisr_ask_purge(const struct pr_netisr *v, uint32_t ws, int bell)
{
    uint32_t ticket = __atomic_add_fetch(&v->ws[ws].purge_asked, 1, __ATOMIC_ACQ_REL);
    pr_doorbell_ring(bell);
    return ticket;
}

static inline int pr_netisr_purge_done(const struct pr_netisr *v, uint32_t ws, uint32_t ticket)
{
    return (int32_t)(__atomic_load_n(&v->ws[ws].purged, __ATOMIC_ACQUIRE) - ticket) >= 0;
}

#endif
