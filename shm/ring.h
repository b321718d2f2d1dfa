/* netmap rings: who owns which slots, and how a burst changes hands.
 *
 *        head          cur                tail                          indexes run 0 .. n-1 and wrap
 *   ......|=== app ====|==== app, seen ===|........ engine ........|    n slots carry at most n-1 frames
 *
 * The app owns [head, tail): received frames (RX) or room to send (TX). It gives slots back by moving head; cur only
 * says when it wants to be woken. The engine keeps its own hwcur and hwtail in the ledger, reads head and cur once a
 * sync, checks the copy, and repairs tail. Rules and their breaches: netmap(4), "sync validation".
 *
 * Sync = one side's turn:
 *   pr_rx_enter   take back [hwcur, head)          pr_tx_enter   see what was queued: [hwcur, rhead)
 *   fill slots from hwtail on                      send them, in order
 *   pr_rx_publish move tail past them (release)    pr_tx_done    move hwcur past them, tail behind it (release)
 *
 * Killed at any instruction: slots are filled before tail moves, so the app sees whole bursts or nothing; the ledger's
 * owner words do not change while a buffer is exchanged between rings of one owner, so pr_ring_deal over them restores
 * every ring of a dead owner with no buffer lost and none twice; what lay in them is lost with it, and counted.
 * An heir that keeps a ring as it stands instead: RX, publish 0 slots (the dead one may have moved hwtail and not yet
 * tail); TX, enter and pass over one burst (it may have been sent and not yet been done), counted as drop_crash.
 * Slots are written field by field: a compiler may store a whole struct in pieces that name buffer 0 in between. */
#ifndef PR_RING_H
#define PR_RING_H

#include "region.h"

struct pr_device;

/* One process's handle of one ring. */
struct pr_ringh {
    struct pr_ring *ring;
    struct pr_kring *k;
    struct pr_row *row;
    const struct pr_region *rg;
    struct pr_device *dev; /* the queue of a driver that serves it, NULL = none */
    uint32_t n;            /* num_slots, a private copy */
};

static inline uint32_t pr_next(const struct pr_ringh *h, uint32_t i) { return i + 1 == h->n ? 0 : i + 1; }
static inline uint32_t pr_prev(const struct pr_ringh *h, uint32_t i) { return i == 0 ? h->n - 1 : i - 1; }
static inline uint32_t pr_dist(const struct pr_ringh *h, uint32_t from, uint32_t to)
{
    return to >= from ? to - from : to + h->n - from;
}
static inline uint32_t pr_ahead(const struct pr_ringh *h, uint32_t i, uint32_t by)
{
    return i + by >= h->n ? i + by - h->n : i + by;
}

static inline uint32_t pr_load(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void pr_store(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }

/* ---- the engine's side ---- */

/* A breach: the ring starts anew. What the app held is given back, bad indexes and lengths are wiped
 * (netmap_ring_reinit). The caller gets -1 and reports POLLERR. */
static inline int pr_ring_reinit(struct pr_ringh *h)
{
    struct pr_ring *r = h->ring;
    for (uint32_t i = 0; i < h->n; i++) {
        struct pr_slot *s = &r->slot[i];
        if (!pr_buf_ok(h->rg, s->buf_idx)) {
            s->buf_idx = 0;
            s->len = 0;
        } else if (s->len > pr_buf_room(h->rg)) {
            s->len = 0;
        }
    }
    h->k->rhead = h->k->hwcur;
    h->k->reinits++;
    pr_count(h->row, PR_C_reinits, 1);
    r->head = r->cur = h->k->hwcur;
    pr_store(&r->tail, h->k->hwtail);
    return -1;
}

/* Is `i` in the circular interval [from, to]? All three below n. */
static inline int pr_within(const struct pr_ringh *h, uint32_t from, uint32_t i, uint32_t to)
{
    return pr_dist(h, from, i) <= pr_dist(h, from, to);
}

/* Take back what the app released. hwcur <= head <= cur <= hwtail, else the ring is re-initialised and -1 comes back. */
static inline int pr_rx_enter(struct pr_ringh *h)
{
    struct pr_kring *k = h->k;
    uint32_t head = pr_load(&h->ring->head); /* pairs with the app's release of head */
    uint32_t cur = pr_load(&h->ring->cur);
    if (head >= h->n || cur >= h->n || !pr_within(h, k->hwcur, head, k->hwtail) || !pr_within(h, head, cur, k->hwtail))
        return pr_ring_reinit(h);
    k->hwcur = head;
    return 0;
}

/* Slots that may be filled from hwtail on. */
static inline uint32_t pr_rx_space(const struct pr_ringh *h) { return h->n - 1 - pr_dist(h, h->k->hwcur, h->k->hwtail); }

/* Hand `n` filled slots to the app. */
static inline void pr_rx_publish(struct pr_ringh *h, uint32_t n)
{
    h->k->hwtail = pr_ahead(h, h->k->hwtail, n);
    pr_store(&h->ring->tail, h->k->hwtail); /* pairs with the app's acquire of tail */
}

/* See what the app queued. Previous head <= head <= cur <= hwtail, else -1. */
static inline int pr_tx_enter(struct pr_ringh *h)
{
    struct pr_kring *k = h->k;
    uint32_t head = pr_load(&h->ring->head);
    uint32_t cur = pr_load(&h->ring->cur);
    if (head >= h->n || cur >= h->n || !pr_within(h, k->rhead, head, k->hwtail) || !pr_within(h, head, cur, k->hwtail))
        return pr_ring_reinit(h);
    k->rhead = head;
    return 0;
}

static inline uint32_t pr_tx_pending(const struct pr_ringh *h) { return pr_dist(h, h->k->hwcur, h->k->rhead); }

/* `n` slots were taken by a driver that is done with their buffers: they are the app's again. */
static inline void pr_tx_done(struct pr_ringh *h, uint32_t n)
{
    h->k->hwcur = pr_ahead(h, h->k->hwcur, n);
    h->k->hwtail = pr_prev(h, h->k->hwcur);
    pr_store(&h->ring->tail, h->k->hwtail);
}

/* Give a ring its initial state over the buffers `bufs[0..n)`: used at creation and after its owner died. */
static inline void pr_ring_deal(struct pr_ringh *h, const uint32_t *bufs)
{
    struct pr_ring *r = h->ring;
    for (uint32_t i = 0; i < h->n; i++)
        r->slot[i] = (struct pr_slot){.buf_idx = bufs[i], .len = (uint16_t)pr_buf_room(h->rg)};
    h->k->hwcur = h->k->rhead = 0;
    h->k->hwtail = h->k->dir == PR_TX ? h->n - 1 : 0;
    r->head = r->cur = 0;
    pr_store(&r->tail, h->k->hwtail);
}

/* ---- the app's side ---- */

static inline uint32_t pr_ring_ready(const struct pr_ringh *h)
{
    return pr_dist(h, h->ring->head, pr_load(&h->ring->tail));
}

static inline void pr_ring_advance(struct pr_ringh *h, uint32_t to)
{
    pr_store(&h->ring->cur, to);
    pr_store(&h->ring->head, to);
}

/* Slots of the frame that starts at slot i, 0 when its end is not before `end` or the chain is too long. */
static inline uint32_t pr_frame_slots(const struct pr_ringh *h, uint32_t i, uint32_t end)
{
    uint32_t left = pr_dist(h, i, end);
    for (uint32_t k = 1; k <= left && k <= PR_MAX_FRAGS; k++, i = pr_next(h, i))
        if (!(h->ring->slot[i].flags & PR_NS_MOREFRAG))
            return k;
    return 0;
}

static inline uint32_t pr_frame_len(const struct pr_ringh *h, uint32_t i, uint32_t slots)
{
    uint32_t len = 0;
    for (; slots; slots--, i = pr_next(h, i))
        len += h->ring->slot[i].len;
    return len;
}

/* Zero-copy: the two slots exchange buffers, the metadata follows by index. Both rings are of one region and one owner. */
static inline void pr_slot_swap(struct pr_slot *from, struct pr_slot *to)
{
    uint32_t spare = to->buf_idx;
    to->buf_idx = from->buf_idx;
    to->len = from->len;
    to->flags = (uint16_t)((from->flags & PR_NS_MOREFRAG) | PR_NS_BUF_CHANGED);
    from->buf_idx = spare;
    from->flags = PR_NS_BUF_CHANGED;
}

#endif
