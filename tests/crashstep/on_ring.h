/* Operations on netmap rings: ring.h, move.h. */
#ifndef ON_RING_H
#define ON_RING_H

#include "rings.h"

static void ring_rx_app(void)
{
    rings_used(1, 0, 1);
    ring_fill(&now.ring[0], par.queued, 1);
    expect(1, par.queued, ALL, 0);
    expect(BURST, par.n, WHOLE, par.n);
}

static void ring_rx_app_dies(void)
{
    rings_used(1, 0, 1);
    ring_fill(&now.ring[0], par.queued, 1);
    expect(1, par.queued, SOME, par.queued);
}

static void ring_tx_app(void)
{
    rings_used(0, 1, 1);
    app_write(&now.ring[1], par.queued, 1);
    expect(1, par.queued, SOME, par.n); /* the dead engine's burst */
}

static void ring_tx_app_dies(void)
{
    rings_used(0, 1, 1);
    app_write(&now.ring[1], par.queued, 1);
    expect(1, par.queued, ALL, 0);
    expect(BURST, par.n, WHOLE, par.n);
}

static void ring_pair(int app)
{
    rings_used(1, 1, app);
    app_write(&now.ring[1], 7 - par.queued, 1);
    ring_fill(&now.ring[0], par.queued, 11);
    expect(1, 7 - par.queued, SOME, 8);
    expect(11, par.queued, SOME, 8);
}

static void ring_bridge(void) { ring_pair(0); }
static void ring_app_bridge(void) { ring_pair(1); }

/* An app that breaks the rules: par.n says which. */
static void ring_broken(uint32_t r, struct pr_ring *ring)
{
    static const uint32_t word[][2] = {{8, 8}, {1u << 31, 0}, {0, 0xffffffff}, {3, 1}, {7, 7}, {1, 1}};
    uint32_t hwcur = now.ring[r].k->hwcur, head = word[par.n][0], cur = word[par.n][1];
    ring->head = head < SLOTS ? (head + hwcur) % SLOTS : head;
    ring->cur = cur < SLOTS ? (cur + hwcur) % SLOTS : cur;
    ring->slot[2].len = 60000;
    ring->slot[5].buf_idx = 0xfffffff0;
}

static void ring_rx_broken(void)
{
    rings_used(1, 0, 1);
    ring_fill(&now.ring[0], par.queued, 1);
    expect(1, par.queued, SOME, par.queued);
    ring_broken(0, now.ring[0].ring);
}

static void ring_tx_broken(void)
{
    rings_used(0, 1, 1);
    app_write(&now.ring[1], par.queued, 1);
    pr_tx_enter(&now.ring[1]);
    expect(1, par.queued, SOME, par.queued);
    ring_broken(1, now.ring[1].ring);
}

/* ---- the victims ---- */

static void ring_rx_turn(void)
{
    pr_rx_enter(&now.ring[0]);
    ring_fill(&now.ring[0], par.n, BURST);
}

static void ring_rx_enter(void) { pr_rx_enter(&now.ring[0]); }
static void ring_tx_enter(void) { pr_tx_enter(&now.ring[1]); }

static void ring_tx_turn(void)
{
    if (pr_tx_enter(&now.ring[1]) == 0)
        while (ring_send(&now.ring[1], par.n))
            ;
}

static void ring_app_reads(void) { app_read(&now.ring[0], par.n); }
static void ring_app_writes(void) { app_write(&now.ring[1], par.n, BURST); }
static void ring_app_forwards(void) { app_forward(&now.ring[0], &now.ring[1]); }

static void ring_app_copies(void) { app_copy(&now.ring[0], &now.ring[1]); }

static void ring_bridge_turn(void)
{
    pr_rx_enter(&now.ring[0]);
    app_forward(&now.ring[0], &now.ring[1]);
    ring_tx_turn();
}

static void ring_deal(void) { rings_dealt(); }

/* A frame that lies in a buffer of A's goes into the app's ring without a copy: lend, slot, then take back what the
 * slot held. */
static void ring_lend_turn(void)
{
    struct pr_ringh *h = &now.ring[0];
    uint32_t at = h->k->hwtail;
    for (uint32_t i = 0; i < par.n; i++, at = pr_next(h, at)) {
        struct pr_slot *s = &h->ring->slot[at];
        uint32_t b, old = s->buf_idx;
        if (!pr_pool_take(&now.pool[A], &b, 1))
            break;
        stamp(b, BURST + i);
        pr_pool_lend(&now.pool[A], b, APP);
        s->len = frame_len(BURST + i);
        s->flags = PR_NS_BUF_CHANGED;
        s->buf_idx = b; /* not a struct at once: the compiler may store zeros first, and a kill leaves them */
        if (pr_pool_unlend(&now.pool[A], old, APP))
            pr_pool_give(&now.pool[A], &old, 1);
    }
    pr_rx_publish(h, par.n);
}

/* ---- the app, while nobody has noticed that the engine died ---- */

static void ring_app_goes_on_reading(void) { app_read(&now.ring[0], SLOTS); }

static void ring_app_goes_on_writing(void) { now.group[0].n += app_write(&now.ring[1], 2, par.queued + 1); }

/* ---- who puts it right ---- */

/* The engine's heir goes on where the ledger says; the publishing store may have been missed. */
static void ring_rx_adopted(void)
{
    replace(A);
    pr_rx_enter(&now.ring[0]);
    pr_rx_publish(&now.ring[0], 0);
}

static void ring_tx_adopted(void)
{
    struct pr_ringh *h = &now.ring[1];
    if (*W.births > 1)
        now.group[0].lose += par.n; /* two deaths, two bursts */
    replace(A);
    uint32_t doubt = pr_tx_enter(h) == 0 ? pr_dist(h, h->k->hwcur, h->k->doubt) : 0;
    pr_tx_done(h, doubt <= pr_tx_pending(h) ? doubt : 0);
}

static void rings_dealt_anew(void)
{
    replace(A);
    if (now.app_lives)
        pr_pool_reclaim_app(&now.pool[A], APP);
    rings_dealt();
    rings_expect_words();
}

/* What a dead app had published goes out before its ring is dealt anew. An engine killed over that leaves the same
 * doubt as in a turn. */
static void ring_drained(void)
{
    struct pr_ringh *h = &now.ring[1];
    int heir = *W.births > 1;
    replace(A);
    if (pr_tx_enter(h) == 0) {
        if (heir) {
            uint32_t doubt = pr_dist(h, h->k->hwcur, h->k->doubt);
            pr_tx_done(h, doubt <= pr_tx_pending(h) ? doubt : 0);
            for (uint32_t g = 0; g < now.groups; g++) {
                now.group[g].rule = SOME;
                now.group[g].lose += 3;
            }
        }
        while (ring_send(h, 3))
            ;
    }
    rings_dealt_anew();
}

/* ---- and the traffic after that ---- */

static uint32_t ring_pass(uint64_t seq)
{
    struct pr_ringh *rx = &now.ring[0], *tx = &now.ring[1];
    uint32_t sent = 0;
    if (rx->ring) {
        if (pr_rx_enter(rx) < 0)
            bad(STUCK, "receive ring broken: head %u cur %u hwtail %u", rx->ring->head, rx->ring->cur, rx->k->hwtail);
        sent = ring_fill(rx, 2, seq);
        if (tx->ring)
            app_forward(rx, tx);
        else
            app_read(rx, SLOTS);
    } else {
        sent = app_write(tx, 2, seq);
    }
    if (tx->ring) {
        if (pr_tx_enter(tx) < 0)
            bad(STUCK, "transmit ring broken: head %u cur %u hwtail %u", tx->ring->head, tx->ring->cur, tx->k->hwtail);
        while (ring_send(tx, 3))
            ;
    }
    return sent;
}

static void ring_traffic(void)
{
    uint32_t sent = 0;
    check_buffers();
    if (!now.ring[1].ring)
        app_read(&now.ring[0], SLOTS); /* what was there when the engine died */
    for (uint32_t round = 0; sent < 3 * SLOTS && round < PATIENCE; round++)
        sent += ring_pass(TRAFFIC + sent);
    if (sent < 3 * SLOTS)
        bad(STUCK, "%u frames in %u rounds", sent, PATIENCE);
    expect(TRAFFIC, sent, ALL, 0);
    check_buffers();
    check_frames();
}

/* Everything ends: no buffer stays behind. */
static void rings_end(void)
{
    ring_traffic();
    memset(now.ring, 0, sizeof now.ring);
    now.app_lives = 0;
    pr_pool_reclaim_app(&now.pool[A], APP);
    replace(A);
    check_buffers();
    check_all_home();
}

/* After a breach the heir needs at most two turns; then the app that broke the rules is shown the door. */
static void ring_mended(void)
{
    struct pr_ringh *h = now.ring[0].ring ? &now.ring[0] : &now.ring[1];
    int tries = 0;
    while (tries++ < 2 && (h->k->dir == PR_RX ? pr_rx_enter(h) : pr_tx_enter(h)) < 0)
        ;
    if (tries > 2)
        bad(STUCK, "still broken: head %u cur %u", h->ring->head, h->ring->cur);
    for (uint32_t i = 0; i < h->n; i++)
        if (h->ring->slot[i].len > pr_buf_room(&W.rg) || h->ring->slot[i].buf_idx >= N_BUFS)
            bad(TORN, "slot %u keeps what the app wrote into it", i);
    rings_dealt_anew();
    rings_end();
}

static void ring_only_replaced(void) { replace(A); }

#define RX_TURNS "1,0,0 3,2,6 7,0,3 4,3,13"
#define TX_TURNS "1,3,0 3,7,6 7,7,3 2,5,13"
#define BREACHES "0,3,0 1,3,5 2,3,0 3,4,5"
#define RING(name, cases, set_up, op, recover) {name, cases, set_up, op, NULL, recover, rings_end, 0}
static const struct scenario ring_scenarios[] = {
    {"ring rx turn", RX_TURNS, ring_rx_app, ring_rx_turn, ring_app_goes_on_reading, ring_rx_adopted, rings_end, 0},
    {"ring rx turn, lending", RX_TURNS, ring_rx_app, ring_lend_turn, ring_app_goes_on_reading, ring_rx_adopted,
     rings_end, 0},
    {"ring tx turn", TX_TURNS, ring_tx_app, ring_tx_turn, ring_app_goes_on_writing, ring_tx_adopted, rings_end, 0},
    {"ring reinit, rx", BREACHES " 4,2,3", ring_rx_broken, ring_rx_enter, NULL, ring_only_replaced, ring_mended, 0},
    {"ring reinit, tx", BREACHES " 5,3,2", ring_tx_broken, ring_tx_enter, NULL, ring_only_replaced, ring_mended, 0},
    RING("ring app reads", TX_TURNS, ring_rx_app_dies, ring_app_reads, rings_dealt_anew),
    RING("ring app writes", RX_TURNS, ring_tx_app_dies, ring_app_writes, ring_drained),
    RING("ring app forwards", TX_TURNS, ring_app_bridge, ring_app_forwards, rings_dealt_anew),
    RING("ring app copies", TX_TURNS, ring_app_bridge, ring_app_copies, rings_dealt_anew),
    RING("ring bridge turn", TX_TURNS, ring_bridge, ring_bridge_turn, rings_dealt_anew),
    RING("ring deal", "0,3,2", ring_bridge, ring_deal, rings_dealt_anew),
};

#endif
