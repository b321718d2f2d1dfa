/* Frames go into netisr's queues: who is let in, how many fit, whom to wake.
 *
 *   stamp ▸ place ▸ put into the lane ▸ set the pending bit ▸ wake the worker if nobody has
 *
 * Stamp: which life of its port the frame came in by, and the word that let its vnet in, are written beside the frame.
 * A worker that finds other words when it takes the frame knows that the port is gone, or that the protocol was taken
 * from the vnet meanwhile, however long a producer had dawdled between looking and putting.
 *
 * Admission reads the lengths of all producers' lanes: at the limit frames are dropped at the tail, freed and counted
 * (N-W2). Exact with one active producer; what several that look at once admit too many, at most a burst each but one,
 * is counted in `over`. A lane whose slots are full (long chains) refuses too.
 *
 * Wake (N-W3): pending bit (seq_cst), then flags 0 -> SCHEDULED; who wins that kicks the doorbell. The worker clears
 * its flags, then looks at pending again (seq_cst): one of the two sees the other. Killed before the bit was set, the
 * frames wait for the next ones or for pr_netisr_bury_producer; killed before the kick, a sleeper looks by itself in
 * 100 ms. */
#ifndef PR_NETISR_QUEUE_H
#define PR_NETISR_QUEUE_H

#include "netisr_place.h"

#include <errno.h>

static inline void pr_netisr_wake(struct pr_netisr_end *e, uint32_t proto, uint32_t ws)
{
    struct pr_netisr_ws *s = &e->v.ws[ws];
    uint32_t none = 0;
    if (!__atomic_compare_exchange_n(&s->flags, &none, PR_NWS_SCHEDULED, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        return;
    pr_netisr_count(&pr_netisr_my_row(e, proto)->wakes, 1);
    pr_doorbell_kick(&s->need, e->bell[ws]);
}

static inline void pr_netisr_pend(struct pr_netisr_end *e, uint32_t proto, uint32_t ws)
{
    __atomic_fetch_or(&e->v.ws[ws].pending, 1u << proto, __ATOMIC_SEQ_CST);
    pr_netisr_wake(e, proto, ws);
}

/* Put whole frames of desc[0..n_desc), at most `most`, from the first on. Descriptors put; *frames of them. */
static inline uint32_t pr_netisr_fill(struct pr_netisr_end *e, struct pr_lane_end *l, struct pr_netisr_cell *c,
                                      const uint64_t *desc, uint32_t n_desc, uint32_t most, uint32_t *frames)
{
    uint32_t room = pr_lane_reserve(l, n_desc), slots = 0, n = 0;
    for (uint32_t i = 0; i < room && n < most; i++)
        if (!(pr_desc_flags(desc[i]) & PR_NS_MOREFRAG))
            slots = i + 1, n++;
    *frames = n;
    if (!n)
        return 0;
    for (uint32_t i = 0; i < slots; i++) { /* a buffer that is not mine goes in too: its taker drops the frame */
        pr_pool_hand_over(e->pool, pr_desc_idx(desc[i]), l->id, l->mine + i);
        __atomic_store_n(pr_lane_slot(l, i), desc[i], __ATOMIC_RELAXED);
    }
    pr_lane_submit(l, slots);
    pr_netisr_say(&c->put, pr_netisr_mark(pr_netisr_frames(c->put) + n, l->mine));
    return slots;
}

static inline void pr_netisr_highest(struct pr_netisr_cell *c, uint32_t generation, uint32_t len)
{
    if (c->watermark >> 32 != generation || (uint32_t)c->watermark < len)
        __atomic_store_n(&c->watermark, (uint64_t)generation << 32 | len, __ATOMIC_RELAXED);
}

/* Queue frames for one workstream, those behind the limit are freed. How many were queued. */
static inline uint32_t pr_netisr_enqueue(struct pr_netisr_end *e, uint32_t proto, uint32_t ws, const uint64_t *desc,
                                         uint32_t n_desc, uint32_t n)
{
    const struct pr_netisr_proto *p = &e->v.proto[proto];
    struct pr_netisr_cell *c = pr_netisr_cell(&e->v, proto, ws, e->producer);
    struct pr_lane_end *l = pr_netisr_out(e, proto, ws);
    uint32_t limit = __atomic_load_n(&p->qlimit, __ATOMIC_RELAXED), len = pr_netisr_len(&e->v, proto, ws), put = 0;
    uint32_t slots = l && len < limit ? pr_netisr_fill(e, l, c, desc, n_desc, limit - len, &put) : 0;
    if (put < n) {
        pr_netisr_count(&c->qdrops, n - put);
        pr_hand_free(e->pool, desc + slots, n_desc - slots);
    }
    if (!put)
        return 0;
    pr_netisr_count(&c->queued, put);
    pr_netisr_highest(c, __atomic_load_n(&p->generation, __ATOMIC_RELAXED), len + put);
    pr_netisr_pend(e, proto, ws);
    if (len + put + e->v.n_producers * PR_BURST > limit && (len = pr_netisr_len(&e->v, proto, ws)) > limit)
        pr_netisr_count(&c->over, len - limit < put ? len - limit : put); /* of two that overshoot, one sees it */
    return put;
}

/* ---- a batch ---- */

/* Frames of `b` that `which` names (bit i: frame i), one after the other. How many descriptors. */
static inline uint32_t pr_netisr_gather(const struct pr_batch *b, uint64_t which, uint64_t *desc)
{
    uint32_t n = 0;
    for (; which; which &= which - 1) {
        uint32_t i = (uint32_t)__builtin_ctzll(which);
        for (uint32_t k = b->first[i]; k < b->first[i + 1]; k++)
            desc[n++] = b->desc[k];
    }
    return n;
}

static inline uint64_t pr_netisr_all(const struct pr_batch *b) { return b->n == 64 ? ~0ull : (1ull << b->n) - 1; }
_Static_assert(PR_BURST == 64, "a bit a frame");

/* Keep only those frames in the batch. */
static inline void pr_netisr_keep(struct pr_batch *b, uint64_t which)
{
    struct pr_batch kept;
    if (which == pr_netisr_all(b))
        return;
    pr_batch_begin(&kept);
    for (; which; which &= which - 1) {
        uint32_t i = (uint32_t)__builtin_ctzll(which);
        pr_batch_add(&kept, &b->desc[b->first[i]], b->first[i + 1] - b->first[i]);
    }
    *b = kept;
}

static inline void pr_netisr_free(struct pr_netisr_end *e, const struct pr_batch *b, uint64_t which)
{
    uint64_t desc[PR_BATCH_DESC];
    if (which)
        pr_hand_free(e->pool, desc, pr_netisr_gather(b, which, desc));
}

static inline void pr_netisr_stamp_one(struct pr_netisr_end *e, uint32_t proto, struct pr_meta *meta)
{
    const struct pr_netisr *v = &e->v;
    meta->life = meta->port < PR_NETISR_PORTS ? (uint32_t)pr_netisr_look(&v->control->port[meta->port]) : 0;
    meta->allowed = __atomic_load_n(&v->proto[proto].allowed[meta->life % PR_NETISR_VNETS], __ATOMIC_ACQUIRE);
}

/* Stamp the frames. Those whose vnet does not let the protocol in; holes are nobody's and vanish from *frames. */
static inline uint64_t pr_netisr_stamp(struct pr_netisr_end *e, uint32_t proto, const struct pr_batch *b,
                                       uint64_t *frames)
{
    uint32_t port = UINT32_MAX, life = 0, allowed = 0;
    uint64_t out = 0;
    for (uint32_t i = 0; i < b->n; i++) {
        uint64_t d = b->desc[b->first[i]];
        if (!d) {
            *frames &= ~(1ull << i);
            continue;
        }
        struct pr_meta *meta = pr_meta_of(e->rg, pr_desc_idx(d));
        if (meta->port != port) {
            pr_netisr_stamp_one(e, proto, meta);
            port = meta->port, life = meta->life, allowed = meta->allowed;
        }
        meta->life = life;
        meta->allowed = allowed;
        out |= (uint64_t)!(allowed & 1) << i;
    }
    return out;
}

/* Place every frame: to[w] gets those of workstream w. Those that callbacks kept. */
static inline uint64_t pr_netisr_place_all(struct pr_netisr_placing *p, struct pr_batch *b, uint64_t frames,
                                           uint64_t *to, uint64_t *used)
{
    uint64_t kept = 0;
    if (p->policy == PR_POLICY_FLOW && p->e->flows) {
        const struct pr_netisr_control *c = p->e->v.control;
        uint32_t routine = __atomic_load_n(&c->rps, __ATOMIC_RELAXED);
        uint32_t n = __atomic_load_n(&c->active, __ATOMIC_RELAXED);
        pr_classify_flows(p->e->rg, b, p->e->flows, routine, n, p->e->ws == PR_NO_WS ? 0 : p->e->ws);
    }
    for (*used = 0; frames; frames &= frames - 1) {
        uint32_t i = (uint32_t)__builtin_ctzll(frames);
        uint64_t *desc = &b->desc[b->first[i]], was = *desc;
        uint32_t ws = pr_netisr_place(p, desc, (uint32_t)(b->first[i + 1] - b->first[i]));
        if (ws == PR_KEPT) {
            kept |= 1ull << i;
            continue;
        }
        if (*desc != was) /* another frame: it is let in, whatever its port is */
            pr_netisr_stamp_one(p->e, p->proto, pr_meta_of(p->e->rg, pr_desc_idx(*desc)));
        if (!(*used >> ws & 1))
            to[ws] = 0;
        *used |= 1ull << ws;
        to[ws] |= 1ull << i;
    }
    return kept;
}

/* Queue the frames of `which` for a workstream. 0, or -ENOBUFS: some, or all, were dropped. */
static inline int pr_netisr_queue_to(struct pr_netisr_end *e, uint32_t proto, uint32_t ws, const struct pr_batch *b,
                                     uint64_t which)
{
    uint64_t desc[PR_BATCH_DESC];
    uint32_t n = (uint32_t)__builtin_popcountll(which);
    if (which == pr_netisr_all(b))
        return pr_netisr_enqueue(e, proto, ws, b->desc, b->n_desc, n) == n ? 0 : -ENOBUFS;
    return pr_netisr_enqueue(e, proto, ws, desc, pr_netisr_gather(b, which, desc), n) == n ? 0 : -ENOBUFS;
}

/* Place and queue them. */
static inline int pr_netisr_spread(struct pr_netisr_end *e, uint32_t proto, uint32_t source, struct pr_batch *b,
                                   uint64_t frames)
{
    struct pr_netisr_placing p = pr_netisr_placing(e, proto, source, 0);
    uint64_t to[PR_NETISR_WS_MAX], used;
    if (pr_netisr_single(&p))
        return frames ? pr_netisr_queue_to(e, proto, 0, b, frames) : 0;
    uint64_t kept = pr_netisr_place_all(&p, b, frames, to, &used);
    int status = kept ? -ENOBUFS : 0;
    if (kept)
        pr_netisr_count(&pr_netisr_my_row(e, proto)->nobufs, (uint64_t)__builtin_popcountll(kept));
    for (; used; used &= used - 1) {
        uint32_t ws = (uint32_t)__builtin_ctzll(used);
        int got = pr_netisr_queue_to(e, proto, ws, b, to[ws]);
        status = status ? status : got;
    }
    return status;
}

/* The frames that the protocol may have, stamped; the others are freed and counted. */
static inline uint64_t pr_netisr_admit(struct pr_netisr_end *e, uint32_t proto, const struct pr_batch *b, int *status)
{
    uint64_t frames = pr_netisr_all(b), out = pr_netisr_stamp(e, proto, b, &frames);
    *status = out ? -ENOPROTOOPT : 0;
    if (out) {
        pr_netisr_count(&pr_netisr_my_row(e, proto)->noproto, (uint64_t)__builtin_popcountll(out));
        pr_netisr_free(e, b, out);
    }
    return frames & ~out;
}

/* netisr_queue_src over a burst. Every frame is queued or freed, and the batch empty afterwards. 0; or the first of
 * -EINVAL no such protocol, -ENOPROTOOPT a vnet does not have it (N-D3), -ENOBUFS no room, or a callback kept it. */
static inline int pr_netisr_queue_src(struct pr_netisr_end *e, uint32_t proto, uint32_t source, struct pr_batch *b)
{
    int status = -EINVAL, spread;
    if (proto >= PR_NETISR_PUBLIC) {
        pr_hand_free(e->pool, b->desc, b->n_desc);
    } else {
        uint64_t frames = pr_netisr_admit(e, proto, b, &status);
        spread = pr_netisr_spread(e, proto, source, b, frames);
        status = status ? status : spread;
    }
    pr_batch_begin(b);
    return status;
}

/* Whole frames for a workstream of the caller's choice, as many as the lane has room for: the engine's own traffic,
 * which no limit or vnet holds back. Descriptors put; the others stay the caller's. */
static inline uint32_t pr_netisr_put_frames(struct pr_netisr_end *e, uint32_t proto, uint32_t ws, const uint64_t *desc,
                                            uint32_t n_desc)
{
    struct pr_lane_end *l = proto == PR_NETISR_INTERNAL && ws < e->v.n_ws ? pr_netisr_out(e, proto, ws) : NULL;
    struct pr_netisr_cell *c = l ? pr_netisr_cell(&e->v, proto, ws, e->producer) : NULL;
    uint32_t frames, slots = l ? pr_netisr_fill(e, l, c, desc, n_desc, UINT32_MAX, &frames) : 0;
    if (slots) {
        pr_netisr_count(&c->queued, frames);
        pr_netisr_pend(e, proto, ws);
    }
    return slots;
}

/* One frame: 1, or 0 = refused, it stays the caller's. */
static inline int pr_netisr_put(struct pr_netisr_end *e, uint32_t proto, uint32_t ws, const uint64_t *desc,
                                uint32_t n_desc)
{
    return pr_netisr_put_frames(e, proto, ws, desc, n_desc) != 0;
}

#endif
