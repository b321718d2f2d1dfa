/* A worker and its heir: mend.h, and engine/hand.h between them. A runs both sides of ring 0 (in) and ring 1 (out), and
 * counts as a worker does; recovery is what its heir does. */
#ifndef ON_MEND_H
#define ON_MEND_H

#include "hand.h"
#include "mend.h"
#include "rings.h"

enum { SENT_AT_ONCE = 3 };

/* What a wrong worker does otherwise, see misordered.h. */
static struct {
    int claims_late, sends_untold;
} worker_is;

/* ---- counting as drivers and workers do ---- */

/* Frames come out of nowhere, a burst at a time. */
static uint32_t comes(struct pr_ringh *h, uint32_t n, uint64_t seq)
{
    uint32_t space = pr_rx_space(h), at = h->k->hwtail;
    n = n < space ? n : space;
    for (uint32_t i = 0; i < n; i++, at = pr_next(h, at)) {
        struct pr_slot *s = &h->ring->slot[at];
        stamp(s->buf_idx, seq + i);
        s->len = frame_len(seq + i);
        s->flags = PR_NS_BUF_CHANGED;
    }
    pr_rx_taken(h, n);
    pr_count(h->row, PR_C_rx_kernel, n);
    pr_count(h->row, PR_C_rx_frames, n);
    pr_rx_publish(h, n);
    return n;
}

static void goes(struct pr_ringh *h)
{
    if (pr_tx_enter(h) < 0)
        bad(STUCK, "transmit ring broken: head %u cur %u hwtail %u", h->ring->head, h->ring->cur, h->k->hwtail);
    for (uint32_t n; (n = pr_tx_pending(h)) != 0;) {
        n = n < SENT_AT_ONCE ? n : SENT_AT_ONCE;
        if (!worker_is.sends_untold)
            pr_tx_doubt(h, n);
        for (uint32_t i = 0; i < n; i++) {
            const struct pr_slot *s = ring_slot(h, h->k->hwcur + i);
            see(s->buf_idx, s->len);
        }
        pr_count(h->row, PR_C_tx_frames, n);
        pr_tx_done(h, n);
    }
}

/* A burst of the worker's: exchanged, lifted and laid, or (`drops`) lifted and dropped, in turn. */
static void works(uint32_t burst, int drops)
{
    struct pr_ringh *rx = &now.ring[0], *tx = &now.ring[1];
    uint32_t begun = rx->ring->head, end = pr_ahead(rx, begun, burst), at = tx->ring->head, out = 0, gone = 0;
    uint64_t desc;
    if (!worker_is.claims_late)
        pr_ring_advance(rx, end);
    for (uint32_t i = begun, k = 0; i != end; i = pr_next(rx, i), k++) {
        if (drops && k % 3 == 2) {
            gone += pr_hand_lift(&now.pool[A], rx, i, 1, &desc);
            pr_hand_free(&now.pool[A], &desc, 1);
            continue;
        }
        uint32_t used = 0;
        if (k % 2 == 0)
            used = pr_move_swap(rx, i, 1, tx, at);
        else if (pr_hand_lift(&now.pool[A], rx, i, 1, &desc) && !(used = pr_hand_lay(&now.pool[A], &desc, 1, tx, at)))
            pr_hand_free(&now.pool[A], &desc, 1);
        pr_count(tx->row, PR_C_tx_queued, used);
        at = pr_ahead(tx, at, used);
        out += used;
        gone += !used;
    }
    pr_ring_advance(tx, at);
    pr_count(rx->row, PR_C_forwarded, out);
    pr_count(rx->row, PR_C_drop_tx_full, gone);
    if (worker_is.claims_late)
        pr_ring_advance(rx, end);
}

/* ---- the scene ---- */

static void mend_rings_used(void)
{
    rings_used(1, 1, 0);
    for (uint32_t r = 0; r < N_RINGS; r++) {
        W.rg.krings[r].owner = A;
        memset(now.ring[r].row->v, 0, sizeof now.ring[r].row->v);
        now.ring[r].k->taken = 0;
    }
}

/* 7 - queued frames wait to be sent, queued to be worked on, of which the victim will claim n. */
static void mend_worker(void)
{
    uint32_t waiting = 7 - par.queued;
    mend_rings_used();
    app_write(&now.ring[1], waiting, 1);
    pr_count(now.ring[1].row, PR_C_tx_queued, waiting);
    comes(&now.ring[0], par.queued, 11);
    expect(1, waiting, SOME, SENT_AT_ONCE); /* what is being sent */
    expect(11, par.n, SOME, par.n);         /* what is claimed */
    expect(11 + par.n, par.queued - par.n, ALL, 0);
}

static void mend_turn(void)
{
    works(par.n, 1);
    goes(&now.ring[1]);
}

static void mend_only_works(void) { works(par.n, 0); }
static void mend_only_sends(void) { goes(&now.ring[1]); }

/* ---- the heir ---- */

static void mend_books(int at_rest)
{
    for (uint32_t r = 0; r < N_RINGS; r++) {
        int64_t more = pr_settle(&now.ring[r]);
        if (more < 0 || (at_rest && more))
            bad(more < 0 ? TWICE : LOST, "the books of ring %u are out by %ld: taken %lu kernel %lu", r,
                pr_short_of(&now.ring[r]), now.ring[r].k->taken, now.ring[r].row->v[PR_C_rx_kernel]);
    }
}

static void mend_heir(void)
{
    uint8_t seen[N_BUFS];
    struct pr_mended sum;
    begin(A, ++*W.births);
    if (pr_rings_mend(&W.rg, &now.pool[A], seen, &sum) < 0)
        bad(TORN, "torn %u missing %u", sum.torn, sum.missing);
    mend_books(0);
    rings_expect_words();
}

static uint64_t mend_crashed(void) { return W.rg.rows[0].v[PR_C_drop_crash] + W.rg.rows[1].v[PR_C_drop_crash]; }

/* No frame is missing that was not declared. */
static void mend_declared(void)
{
    uint64_t sent = 0, seen = 0, dropped = W.rg.rows[0].v[PR_C_drop_tx_full];
    for (uint32_t g = 0; g < now.groups; g++)
        sent += now.group[g].n;
    while (seen < LOG && W.log[seen])
        seen++;
    if (sent > seen + dropped + mend_crashed())
        bad(LOST, "%lu frames, %lu seen, %lu dropped, %lu declared", sent, seen, dropped, mend_crashed());
}

static void mend_traffic(void)
{
    uint32_t sent = 0;
    check_buffers();
    while (pr_ring_ready(&now.ring[0])) {
        uint32_t ready = pr_ring_ready(&now.ring[0]);
        goes(&now.ring[1]);
        works(ready < SENT_AT_ONCE ? ready : SENT_AT_ONCE, 0);
    }
    goes(&now.ring[1]);
    for (uint32_t round = 0; sent < 3 * SLOTS && round < PATIENCE; round++) {
        if (pr_rx_enter(&now.ring[0]) < 0)
            bad(STUCK, "receive ring broken");
        sent += comes(&now.ring[0], 2, TRAFFIC + sent);
        works(pr_ring_ready(&now.ring[0]), 0);
        goes(&now.ring[1]);
    }
    if (sent < 3 * SLOTS)
        bad(STUCK, "%u frames in %u rounds", sent, PATIENCE);
    expect(TRAFFIC, sent, ALL, 0);
    mend_books(1);
    mend_declared();
    check_buffers();
    check_frames();
}

static void mend_end(void)
{
    mend_traffic();
    memset(now.ring, 0, sizeof now.ring);
    replace(A);
    check_buffers();
    check_all_home();
}

#define WORK "1,1,0 3,5,6 6,6,3 5,7,13"
#define MEND(name, cases, op) {name, cases, mend_worker, op, NULL, mend_heir, mend_end, 0}
static const struct scenario mend_scenarios[] = {
    MEND("mend worker works", WORK, mend_only_works),
    MEND("mend worker sends", "0,0,0 0,1,5 0,4,14", mend_only_sends),
    MEND("mend worker turn", WORK, mend_turn),
};

#endif
