/* Rings and the turns of both sides. Ring 0 receives, ring 1 transmits; A is the engine's side.
 *
 * One process runs both sides ("bridge"): it dies with its rings, which are dealt anew from the owner words.
 * An app runs the other side: the buffers are LENT to it. The engine's heir takes the ring over as the ledger has it,
 * skipping what its predecessor may have sent (it is in doubt); a dead app's ring is dealt anew. */
#ifndef RINGS_H
#define RINGS_H

#include "scenario.h"

static const struct pr_slot *ring_slot(const struct pr_ringh *h, uint32_t i) { return &h->ring->slot[i % h->n]; }

/* Give every ring fresh buffers of A's: LENT to the app, if there is one. */
static void rings_dealt(void)
{
    for (uint32_t r = 0; r < N_RINGS; r++) {
        struct pr_ringh *h = &now.ring[r];
        uint32_t bufs[SLOTS];
        if (!h->ring || pr_pool_take(&now.pool[A], bufs, h->n) != h->n)
            continue;
        for (uint32_t i = 0; now.app_lives && i < h->n; i++)
            pr_pool_lend(&now.pool[A], bufs[i], APP);
        pr_ring_deal(h, bufs);
    }
}

static void rings_expect_words(void)
{
    now.in_ring = now.app_lives ? pr_word(PR_LENT, APP, 0, 0) : now.pool[A].as_owned;
}

static void ring_made(uint32_t r, uint32_t dir)
{
    uint64_t at = W.rg.g.ring_ofs + (uint64_t)r * W.rg.g.ring_size;
    struct pr_ring *ring = (struct pr_ring *)(W.rg.mem + at);
    W.rg.krings[r] = (struct pr_kring){.num_slots = SLOTS, .dir = dir, .row = r, .ring_ofs = at};
    now.ring[r] = (struct pr_ringh){.ring = ring, .k = &W.rg.krings[r], .row = &W.rg.rows[r], .rg = &W.rg, .n = SLOTS};
}

/* ---- the engine's turns ---- */

static uint32_t ring_fill(struct pr_ringh *h, uint32_t n, uint64_t seq)
{
    uint32_t space = pr_rx_space(h), at = h->k->hwtail;
    n = n < space ? n : space;
    for (uint32_t i = 0; i < n; i++, at = pr_next(h, at)) {
        struct pr_slot *s = &h->ring->slot[at];
        stamp(s->buf_idx, seq + i);
        s->len = frame_len(seq + i);
        s->flags = PR_NS_BUF_CHANGED;
    }
    pr_rx_publish(h, n);
    return n;
}

/* A driver's turn: at most `burst` slots are sent before hwcur moves past them, and it says which. */
static uint32_t ring_send(struct pr_ringh *h, uint32_t burst)
{
    uint32_t n = pr_tx_pending(h) < burst ? pr_tx_pending(h) : burst;
    pr_tx_doubt(h, n);
    for (uint32_t i = 0; i < n; i++) {
        const struct pr_slot *s = ring_slot(h, h->k->hwcur + i);
        see(s->buf_idx, s->len);
    }
    pr_tx_done(h, n);
    return n;
}

/* ---- the app's turns ---- */

static uint32_t app_read(struct pr_ringh *h, uint32_t n)
{
    uint32_t ready = pr_ring_ready(h), head = h->ring->head;
    n = n < ready ? n : ready;
    for (uint32_t i = 0; i < n; i++) {
        const struct pr_slot *s = ring_slot(h, head + i);
        see(s->buf_idx, s->len);
    }
    pr_ring_advance(h, pr_ahead(h, head, n));
    return n;
}

static uint32_t app_write(struct pr_ringh *h, uint32_t n, uint64_t seq)
{
    uint32_t ready = pr_ring_ready(h), at = h->ring->head;
    n = n < ready ? n : ready;
    for (uint32_t i = 0; i < n; i++, at = pr_next(h, at)) {
        struct pr_slot *s = &h->ring->slot[at];
        stamp(s->buf_idx, seq + i);
        s->len = frame_len(seq + i);
        s->flags = 0;
    }
    pr_ring_advance(h, at);
    return n;
}

static void app_forward(struct pr_ringh *from, struct pr_ringh *to)
{
    uint32_t i = from->ring->head, tail = pr_load(&from->ring->tail), at = to->ring->head, slots;
    while ((slots = pr_frame_slots(from, i, tail)) != 0 && pr_move_swap(from, i, slots, to, at)) {
        at = pr_ahead(to, at, slots);
        i = pr_ahead(from, i, slots);
    }
    pr_ring_advance(to, at);
    pr_ring_advance(from, i);
}

static void app_copy(struct pr_ringh *from, struct pr_ringh *to)
{
    uint32_t i = from->ring->head, tail = pr_load(&from->ring->tail), at = to->ring->head, slots, frames;
    int used;
    while ((slots = pr_frame_slots(from, i, tail)) != 0 && (used = pr_move_copy(from, i, slots, to, at, &frames)) > 0) {
        at = pr_ahead(to, at, (uint32_t)used);
        i = pr_ahead(from, i, slots);
    }
    pr_ring_advance(to, at);
    pr_ring_advance(from, i);
}

/* ---- rings that have been used, their cursors at par.at ---- */

static void rings_used(int rx, int tx, int app)
{
    now.app_lives = app;
    if (rx)
        ring_made(0, PR_RX);
    if (tx)
        ring_made(1, PR_TX);
    rings_dealt();
    rings_expect_words();
    for (uint32_t i = 0; i < par.at; i++) {
        if (rx) {
            ring_fill(&now.ring[0], 1, 1 + i);
            app_read(&now.ring[0], 1);
            pr_rx_enter(&now.ring[0]);
        }
        if (tx) {
            app_write(&now.ring[1], 1, 1 + i);
            pr_tx_enter(&now.ring[1]);
            ring_send(&now.ring[1], 1);
        }
    }
    memset(W.log, 0, LOG * sizeof *W.log);
}

#endif
