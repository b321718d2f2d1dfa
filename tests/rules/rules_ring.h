/* ring.h: sync validation (netmap(4)), cursors at the seam, frames of several slots. */

static struct pr_ringh *ring_fresh(uint32_t dir, uint32_t at)
{
    reset_world();
    memset(&par, 0, sizeof par);
    par.at = at;
    rings_used(dir == PR_RX, dir == PR_TX, 0);
    return &now.ring[dir];
}

static void indexes_wrap(void)
{
    struct pr_ringh h = {.n = 5};
    RULE(pr_next(&h, 3) == 4 && pr_next(&h, 4) == 0 && pr_prev(&h, 0) == 4 && pr_prev(&h, 1) == 0);
    RULE(pr_dist(&h, 1, 4) == 3 && pr_dist(&h, 4, 1) == 2 && pr_dist(&h, 2, 2) == 0);
    RULE(pr_ahead(&h, 3, 1) == 4 && pr_ahead(&h, 3, 2) == 0 && pr_ahead(&h, 4, 4) == 3);
    RULE(pr_within(&h, 3, 3, 3) && pr_within(&h, 3, 0, 0) && !pr_within(&h, 3, 1, 0) && !pr_within(&h, 3, 2, 0));
}

static void a_ring_is_dealt_whole(void)
{
    struct pr_ringh *h = ring_fresh(PR_RX, 3);
    uint32_t bufs[SLOTS];
    for (uint32_t i = 0; i < SLOTS; i++)
        bufs[i] = 30 + i;
    h->k->rhead = 4;
    pr_ring_deal(h, bufs);
    RULE(h->k->hwcur == 0 && h->k->hwtail == 0 && h->k->rhead == 0);
    RULE(h->ring->head == 0 && h->ring->cur == 0 && h->ring->tail == 0);
    for (uint32_t i = 0; i < SLOTS; i++)
        RULE(h->ring->slot[i].buf_idx == 30 + i && h->ring->slot[i].len == ROOM && !h->ring->slot[i].flags);
    h->k->dir = PR_TX;
    pr_ring_deal(h, bufs);
    RULE(h->k->hwcur == 0 && h->k->hwtail == SLOTS - 1 && h->ring->tail == SLOTS - 1 && h->ring->head == 0);
}

static void receiving_goes_round(void)
{
    for (uint32_t at = 0; at < SLOTS; at++) {
        struct pr_ringh *h = ring_fresh(PR_RX, at);
        RULE(pr_rx_space(h) == SLOTS - 1 && ring_fill(h, SLOTS, 1) == SLOTS - 1 && pr_rx_space(h) == 0);
        RULE(pr_ring_ready(h) == SLOTS - 1 && h->k->hwcur == at && h->k->hwtail == (at + 7) % SLOTS);
        RULE(app_read(h, 3) == 3 && pr_rx_space(h) == 0); /* not yet synced */
        RULE(h->ring->head == h->ring->cur && h->ring->head == (at + 3) % SLOTS);
        RULE(pr_rx_enter(h) == 0 && pr_rx_space(h) == 3 && h->k->hwcur == (at + 3) % SLOTS);
    }
}

static void transmitting_goes_round(void)
{
    for (uint32_t at = 0; at < SLOTS; at++) {
        struct pr_ringh *h = ring_fresh(PR_TX, at);
        RULE(app_write(h, SLOTS, 1) == SLOTS - 1 && pr_tx_pending(h) == 0);
        RULE(pr_tx_enter(h) == 0 && pr_tx_pending(h) == SLOTS - 1);
        pr_tx_done(h, 2);
        RULE(pr_tx_pending(h) == SLOTS - 3 && h->k->hwcur == (at + 2) % SLOTS && h->ring->tail == (at + 1) % SLOTS);
        RULE(h->k->hwtail == h->ring->tail && pr_ring_ready(h) == 2);
    }
}

/* Is it refused, and is the ring then as new? */
static int ring_refuses(uint32_t dir, uint32_t queued, uint32_t head, uint32_t cur)
{
    struct pr_ringh *h = ring_fresh(dir, 3);
    if (dir == PR_RX) {
        ring_fill(h, queued, 1);
    } else {
        app_write(h, queued, 1);
        pr_tx_enter(h);
    }
    h->ring->head = head;
    h->ring->cur = cur;
    h->ring->tail = 99;
    int refused = (dir == PR_RX ? pr_rx_enter(h) : pr_tx_enter(h)) < 0;
    if (refused) {
        RULE(h->ring->head == 3 && h->ring->cur == 3 && h->ring->tail == h->k->hwtail && h->k->rhead == h->k->hwcur);
        RULE(h->k->hwcur == 3 && h->k->reinits == 1 && W.rg.rows[dir].v[PR_C_reinits] == 1);
    } else {
        RULE((dir == PR_RX ? h->k->hwcur : h->k->rhead) == head && h->k->reinits == 0);
    }
    return refused;
}

static void a_breach_restarts_the_ring(void)
{
    RULE(!ring_refuses(PR_RX, 4, 3, 3) && !ring_refuses(PR_RX, 4, 5, 5)); /* hwcur 3, hwtail 7 */
    RULE(!ring_refuses(PR_RX, 4, 7, 7) && !ring_refuses(PR_RX, 4, 4, 7));
    RULE(ring_refuses(PR_RX, 4, 0, 0) && ring_refuses(PR_RX, 4, 2, 2)); /* past hwtail, before hwcur */
    RULE(ring_refuses(PR_RX, 4, 5, 4) && ring_refuses(PR_RX, 4, 5, 0)); /* cur before head, past hwtail */
    RULE(ring_refuses(PR_RX, 4, 8, 3) && ring_refuses(PR_RX, 4, 3, 8) && ring_refuses(PR_RX, 4, 0xffffffff, 3));
    /* hwtail 2: the interval goes round, and so would an index out of range */
    RULE(ring_refuses(PR_RX, 7, 8, 8) && ring_refuses(PR_RX, 7, 5, 8) && ring_refuses(PR_RX, 7, 9, 1));
    RULE(ring_refuses(PR_RX, 0, 4, 4) && ring_refuses(PR_RX, 7, 4, 0x80000004));
    RULE(!ring_refuses(PR_TX, 2, 5, 5) && !ring_refuses(PR_TX, 2, 2, 2)); /* rhead 5, hwtail 2 */
    RULE(!ring_refuses(PR_TX, 2, 7, 1));
    RULE(ring_refuses(PR_TX, 2, 4, 4) && ring_refuses(PR_TX, 2, 3, 3)); /* what was queued cannot be unqueued */
    RULE(ring_refuses(PR_TX, 2, 7, 6) && ring_refuses(PR_TX, 2, 7, 3) && ring_refuses(PR_TX, 2, 8, 8));
    RULE(ring_refuses(PR_TX, 2, 7, 8) && ring_refuses(PR_TX, 2, 9, 1) && ring_refuses(PR_TX, 2, 0xffffffff, 1));
}

static void a_restart_wipes_what_could_hurt(void)
{
    struct pr_ringh *h = ring_fresh(PR_RX, 0);
    const uint32_t idx[SLOTS] = {0xffffffff, N_BUFS, N_BUFS - 1, 1, 2, 2, 2, 2};
    const uint16_t len[SLOTS] = {60, 60, 60, 60, 60, 65535, 0, 0};
    for (uint32_t i = 0; i < SLOTS; i++)
        h->ring->slot[i] = (struct pr_slot){.buf_idx = idx[i], .len = len[i]};
    h->ring->slot[6].len = (uint16_t)pr_buf_room(&W.rg);
    h->ring->slot[7].len = (uint16_t)(pr_buf_room(&W.rg) + 1);
    RULE(pr_ring_reinit(h) == -1);
    RULE(h->ring->slot[0].buf_idx == 0 && h->ring->slot[0].len == 0 && h->ring->slot[1].buf_idx == 0);
    RULE(h->ring->slot[2].buf_idx == N_BUFS - 1 && h->ring->slot[2].len == 60 && h->ring->slot[3].buf_idx == 0);
    RULE(h->ring->slot[4].buf_idx == 2 && h->ring->slot[4].len == 60 && h->ring->slot[5].len == 0);
    RULE(h->ring->slot[6].len == pr_buf_room(&W.rg) && h->ring->slot[7].len == 0 && h->ring->slot[7].buf_idx == 2);
}

static void frames_of_several_slots(void)
{
    enum { BIG = PR_MAX_FRAGS + 8 };
    static struct {
        struct pr_ring ring;
        struct pr_slot slot[BIG];
    } big;
    struct pr_ringh h = {.ring = &big.ring, .n = BIG};
    big.ring.slot[BIG - 1] = (struct pr_slot){.len = 100, .flags = PR_NS_MOREFRAG};
    big.ring.slot[0] = (struct pr_slot){.len = 100, .flags = PR_NS_MOREFRAG | PR_NS_BUF_CHANGED};
    big.ring.slot[1] = (struct pr_slot){.len = 7, .flags = PR_NS_BUF_CHANGED};
    RULE(pr_frame_slots(&h, BIG - 1, 5) == 3 && pr_frame_len(&h, BIG - 1, 3) == 207 && pr_frame_slots(&h, 1, 5) == 1);
    RULE(pr_frame_slots(&h, BIG - 1, 2) == 3 && pr_frame_slots(&h, BIG - 1, 1) == 0); /* its end is not here yet */
    RULE(pr_frame_slots(&h, 1, 1) == 0);
    for (uint32_t i = 0; i < PR_MAX_FRAGS; i++)
        big.ring.slot[i].flags = PR_NS_MOREFRAG;
    RULE(pr_frame_slots(&h, 0, BIG - 1) == 0 && pr_frame_slots(&h, 1, BIG - 1) == PR_MAX_FRAGS);
}

static void exchanging_two_slots(void)
{
    struct pr_slot from = {.buf_idx = 5, .len = 60, .flags = PR_NS_MOREFRAG | PR_NS_REPORT | 0x300, .ptr = 1};
    struct pr_slot to = {.buf_idx = 9, .len = 7, .flags = PR_NS_INDIRECT, .ptr = 2};
    pr_slot_swap(&from, &to);
    RULE(to.buf_idx == 5 && to.len == 60 && to.flags == (PR_NS_MOREFRAG | PR_NS_BUF_CHANGED) && to.ptr == 2);
    RULE(from.buf_idx == 9 && from.flags == PR_NS_BUF_CHANGED);
}

static void ring_rules(void)
{
    indexes_wrap();
    a_ring_is_dealt_whole();
    receiving_goes_round();
    transmitting_goes_round();
    a_breach_restarts_the_ring();
    a_restart_wipes_what_could_hurt();
    frames_of_several_slots();
    exchanging_two_slots();
}
