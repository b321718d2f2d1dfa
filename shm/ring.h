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
 * every ring of a dead owner with no buffer lost and none twice; what lay in them is lost with it, and counted. An heir
 * that keeps the rings as they stand is written in mend.h.
 * Slots are written field by field: a compiler may store a whole struct in pieces that name buffer 0 in between.
 *
 * Where a device stands is told before anything that would show it, so that an heir never does a frame again:
 *   TX  pr_tx_doubt (a burst) ▸ the kernel is called ▸ tx_frames and drops are counted ▸ pr_tx_done
 *   RX  slots are filled ▸ pr_rx_taken ▸ counters ▸ pr_rx_publish ▸ room is given back to a kernel ring
 *       where a call takes a frame out of the kernel at once: pr_rx_fetch ▸ the call, which writes there first ▸ the above */
#ifndef PR_RING_H
#define PR_RING_H

#include "region.h"

#include <string.h>

#define PR_BURST_MOST 64 /* frames that a driver takes or sends between two updates of where it stands */

struct pr_device;

/* One process's handle of one ring. */
struct pr_ringh {
    struct pr_ring *ring;
    struct pr_kring *k;
    struct pr_row *row;
    const struct pr_region *rg;
    struct pr_device *dev; /* the queue of a driver that serves it, NULL = none */
    uint32_t n;            /* num_slots, a private copy */
    uint32_t burst;        /* RX: slots that one sync fills, 0 = as many as there are; any frame fits PR_MAX_FRAGS */
};

/* A process's hold on ring `index`, if the ledger has one there that makes sense: 0, else -1. */
static inline int pr_ring_open(const struct pr_region *rg, uint32_t index, struct pr_ringh *h)
{
    const struct pr_geometry *g = &rg->g;
    struct pr_kring *k = index < g->ring_num ? &rg->krings[index] : NULL;
    uint32_t most = (uint32_t)((g->ring_size - sizeof(struct pr_ring)) / sizeof(struct pr_slot));
    if (!k || k->ring_ofs != g->ring_ofs + (uint64_t)index * g->ring_size || k->num_slots < 2 || k->num_slots > most ||
        k->row >= rg->n_rows)
        return -1;
    *h = (struct pr_ringh){.ring = (struct pr_ring *)(rg->mem + k->ring_ofs), .k = k, .row = &rg->rows[k->row], .rg = rg,
                           .n = k->num_slots};
    return 0;
}

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
    h->k->doubt = h->k->hwcur;
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

/* Slots that the engine has, from hwtail on, and how many of them this sync may fill. */
static inline uint32_t pr_rx_room(const struct pr_ringh *h) { return h->n - 1 - pr_dist(h, h->k->hwcur, h->k->hwtail); }
static inline uint32_t pr_rx_space(const struct pr_ringh *h)
{
    uint32_t room = pr_rx_room(h);
    return h->burst && h->burst < room ? h->burst : room;
}

/* `n` frames more have left the kernel. */
static inline void pr_rx_taken(struct pr_ringh *h, uint32_t n)
{
    __atomic_store_n(&h->k->taken, h->k->taken + n, __ATOMIC_RELEASE);
}

/* Where a call that takes a frame out of the kernel is to write first; `before`: such frames since pr_rx_taken. */
static inline void *pr_rx_fetch(struct pr_ringh *h, uint32_t before)
{
    uint64_t nth = h->k->taken + before + 1;
    void *cell = memset(h->k->fetched[nth & 1], 0xff, sizeof h->k->fetched[0]); /* the last one's is the other */
    __atomic_store_n(&h->k->begun, nth, __ATOMIC_RELEASE);
    return cell;
}

/* What a dead one had fetched is taken, whatever it had yet done with it. */
static inline void pr_rx_found(struct pr_ringh *h)
{
    struct pr_kring *k = h->k;
    const uint8_t *cell = k->fetched[k->begun & 1];
    uint8_t nothing[16];
    memset(nothing, 0xff, sizeof nothing);
    if (k->begun > k->taken)
        pr_rx_taken(h, (uint32_t)(k->begun - k->taken) - (memcmp(cell, nothing, sizeof nothing) == 0));
}

/* Hand `n` filled slots to the app. */
static inline void pr_rx_publish(struct pr_ringh *h, uint32_t n)
{
    pr_store(&h->k->hwtail, pr_ahead(h, h->k->hwtail, n)); /* after counters and slots, for an heir */
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

/* The first `n` slots of what is pending are about to be sent: from now on nobody knows whether they were. */
static inline void pr_tx_doubt(struct pr_ringh *h, uint32_t n) { pr_store(&h->k->doubt, pr_ahead(h, h->k->hwcur, n)); }

/* `n` slots were taken by a driver that is done with their buffers: they are the app's again, and about the others there
 * is no doubt. */
static inline void pr_tx_done(struct pr_ringh *h, uint32_t n)
{
    pr_tx_doubt(h, n);
    pr_store(&h->k->hwcur, h->k->doubt);
    h->k->hwtail = pr_prev(h, h->k->hwcur);
    pr_store(&h->ring->tail, h->k->hwtail);
}

/* Give a ring its initial state over the buffers `bufs[0..n)`: used at creation and after its owner died. */
static inline void pr_ring_deal(struct pr_ringh *h, const uint32_t *bufs)
{
    struct pr_ring *r = h->ring;
    for (uint32_t i = 0; i < h->n; i++)
        r->slot[i] = (struct pr_slot){.buf_idx = bufs[i], .len = (uint16_t)pr_buf_room(h->rg)};
    pr_store(&h->k->doubt, 0); /* in this order nothing that lies in the slots now is ever taken for queued */
    pr_store(&h->k->rhead, 0);
    pr_store(&h->k->hwcur, 0);
    pr_store(&h->k->hwtail, 0);
    r->head = r->cur = 0;
    pr_store(&h->k->hwtail, h->k->dir == PR_TX ? h->n - 1 : 0);
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
