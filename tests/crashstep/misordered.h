/* Wrong operations, each a small copy of a right one with one order changed or one step left out. The harness must see
 * what the scenario says is expected of it, or it proves nothing. */
#ifndef MISORDERED_H
#define MISORDERED_H

#include "on_device.h"
#include "on_lane.h"
#include "on_mend.h"
#include "on_pool.h"
#include "on_ring.h"

static void wrong_words(uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        pr_pool_hand_over(&now.pool[A], now.bufs[i], now.out[0].id, now.out[0].mine + i);
}

static void wrong_slots(uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        __atomic_store_n(pr_lane_slot(&now.out[0], i), now.desc[i], __ATOMIC_RELAXED);
}

static void wrong_stamps(uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        stamp(now.bufs[i], BURST + i);
}

/* Undo submit's move of the private cursor: what follows still fills the burst that was just published. */
static void wrong_early_head(uint32_t n)
{
    pr_lane_submit(&now.out[0], n);
    now.out[0].mine -= n;
}

static uint32_t wrong_room(void) { return pr_lane_reserve(&now.out[0], now.n); }

static void head_before_slots(void)
{
    uint32_t n = wrong_room();
    wrong_stamps(n);
    wrong_words(n);
    wrong_early_head(n);
    wrong_slots(n);
}

static void head_before_words(void)
{
    uint32_t n = wrong_room();
    wrong_stamps(n);
    wrong_slots(n);
    wrong_early_head(n);
    wrong_words(n);
}

static void head_before_payload(void)
{
    uint32_t n = wrong_room();
    wrong_words(n);
    wrong_slots(n);
    pr_lane_submit(&now.out[0], n);
    wrong_stamps(n);
}

/* Half a burst can be seen. */
static void head_by_ones(void)
{
    uint32_t n = wrong_room();
    wrong_stamps(n);
    for (uint32_t i = 0; i < n; i++)
        pr_lane_put(&now.out[0], &now.pool[A], &now.desc[i], 1);
}

/* Ownership stays with the producer. */
static void no_words(void)
{
    uint32_t n = wrong_room();
    wrong_stamps(n);
    wrong_slots(n);
    pr_lane_submit(&now.out[0], n);
}

/* Ownership is moved before the head, which is right, but nobody looks for it after a death. */
static void no_lane_reclaim(void)
{
    replace(A);
    pr_lane_attach(&now.out[0], W.lane[0], pr_lane_size(CAP), PR_PRODUCER);
}

/* The cursor moves after the frames are processed, and it alone says what was. */
static void processed_before_accepted(void)
{
    uint32_t ready = pr_lane_peek(&now.in[0], par.n);
    for (uint32_t i = 0; i < ready; i++) {
        uint64_t d = *pr_lane_slot(&now.in[0], i);
        see_desc(d);
    }
    for (uint32_t i = 0; i < ready; i++)
        pr_pool_accept(&now.pool[B], pr_desc_idx(*pr_lane_slot(&now.in[0], i)), now.in[0].id, now.in[0].mine + i);
    pr_lane_release(&now.in[0], ready);
}

static void tail_before_words(void)
{
    uint64_t desc[MANY];
    uint32_t ready = pr_lane_peek(&now.in[0], par.n), first = now.in[0].mine;
    for (uint32_t i = 0; i < ready; i++)
        desc[i] = *pr_lane_slot(&now.in[0], i);
    pr_lane_release(&now.in[0], ready);
    for (uint32_t i = 0; i < ready; i++)
        if (pr_pool_accept(&now.pool[B], pr_desc_idx(desc[i]), now.in[0].id, first + i))
            see_desc(desc[i]);
}

/* ---- rings ---- */

static void tail_before_slots(void)
{
    struct pr_ringh *h = &now.ring[0];
    uint32_t at = h->k->hwtail;
    pr_rx_enter(h);
    pr_rx_publish(h, par.n);
    for (uint32_t i = 0; i < par.n; i++, at = pr_next(h, at)) {
        stamp(h->ring->slot[at].buf_idx, BURST + i);
        h->ring->slot[at].len = frame_len(BURST + i);
    }
}

static void slot_before_lend(void)
{
    struct pr_ringh *h = &now.ring[0];
    uint32_t at = h->k->hwtail;
    for (uint32_t i = 0; i < par.n; i++, at = pr_next(h, at)) {
        struct pr_slot *s = &h->ring->slot[at];
        uint32_t b, old = s->buf_idx;
        if (!pr_pool_take(&now.pool[A], &b, 1))
            break;
        stamp(b, BURST + i);
        s->len = frame_len(BURST + i);
        __atomic_store_n(&s->buf_idx, b, __ATOMIC_RELEASE);
        pr_pool_lend(&now.pool[A], b, APP);
        if (pr_pool_unlend(&now.pool[A], old, APP))
            pr_pool_give(&now.pool[A], &old, 1);
    }
    pr_rx_publish(h, par.n);
}

/* The heir believes the cursors: what was sent but not yet counted is sent again. */
static void adopted_without_skipping(void)
{
    replace(A);
    pr_tx_enter(&now.ring[1]);
    pr_tx_done(&now.ring[1], 0);
}

/* The heir believes the slots of a dead process's rings, not the owner words. */
static void adopted_by_slots(void)
{
    uint32_t gen = now.gen[A];
    begin(A, ++*W.births);
    for (uint32_t r = 0; r < N_RINGS; r++)
        for (uint32_t i = 0; i < SLOTS; i++)
            W.rg.owner[now.ring[r].ring->slot[i].buf_idx] = now.pool[A].as_owned;
    pr_pool_reclaim(&now.pool[A], PR_WORD_ALL, pr_word(PR_OWNED, A, gen, 0));
    rings_expect_words();
    pr_rx_enter(&now.ring[0]);
    pr_rx_publish(&now.ring[0], 0);
    pr_tx_enter(&now.ring[1]);
    pr_tx_done(&now.ring[1], 0);
}

/* ---- a worker, and a driver's books ---- */

/* (These are set in the victim alone: whoever comes after it does right.) */
static void claimed_when_done(void)
{
    worker_is.claims_late = 1;
    mend_turn();
}

static void sent_without_a_word(void)
{
    worker_is.sends_untold = 1;
    mend_turn();
}

/* The heir takes what slots name for what they have. */
static void mended_by_slots(void)
{
    begin(A, ++*W.births);
    for (uint32_t r = 0; r < N_RINGS; r++)
        for (uint32_t i = 0; i < SLOTS; i++)
            W.rg.owner[now.ring[r].ring->slot[i].buf_idx] = now.pool[A].as_owned;
    pr_pool_reclaim(&now.pool[A], PR_WORD_NAME, pr_word(PR_OWNED, A, 0, 0));
    rings_expect_words();
    pr_rx_publish(&now.ring[0], 0);
    pr_tx_enter(&now.ring[1]);
    pr_tx_done(&now.ring[1], pr_dist(&now.ring[1], now.ring[1].k->hwcur, now.ring[1].k->doubt));
    mend_books(0);
}

static void mended_without_books(void)
{
    uint8_t seen[N_BUFS];
    struct pr_mended sum;
    begin(A, ++*W.births);
    pr_rings_mend(&W.rg, &now.pool[A], seen, &sum);
    rings_expect_words();
}

/* What lies in the kernel's ring, in slots and not yet told of; `first` and how many. */
static uint32_t wrong_arrivals(struct pr_arriving *w, uint32_t *first)
{
    struct pr_ringh *h = &now.ring[0];
    uint32_t n = 0;
    pr_rx_enter(h);
    *w = pr_arriving(h);
    *first = afp.at;
    for (; frame_at(&afp, afp.at)->tp_status && w->left; n++, afp.at = (afp.at + 1) % PIECES) {
        struct tpacket2_hdr *f = frame_at(&afp, afp.at);
        struct pr_arrival a = in_frame(&afp, f, f->tp_status);
        a.iov[0] = (struct iovec){(uint8_t *)f + f->tp_mac, a.len = f->tp_len};
        pr_arrive(w, &a, h);
    }
    return n;
}

static void published_before_taken(void)
{
    struct pr_arriving w;
    uint32_t first, n = wrong_arrivals(&w, &first);
    mark(frame_at(&afp, first));
    pr_rx_publish(&now.ring[0], w.new);
    w.new = 0;
    pr_arrived(&w, &now.ring[0]);
    give_frames_back(&afp, &now.ring[0], first, n);
}

static void given_back_before_taken(void)
{
    struct pr_arriving w;
    uint32_t first, n = wrong_arrivals(&w, &first);
    for (uint32_t i = n; i--;)
        frame_at(&afp, (first + i) % PIECES)->tp_status = TP_STATUS_KERNEL;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    pr_arrived(&w, &now.ring[0]);
    now.ring[0].k->handed = now.ring[0].k->taken;
}

static void given_back_in_order(void)
{
    struct pr_arriving w;
    uint32_t first, n = wrong_arrivals(&w, &first);
    mark(frame_at(&afp, first));
    pr_arrived(&w, &now.ring[0]);
    for (uint32_t i = 0; i < n; i++)
        __atomic_store_n(&frame_at(&afp, (first + i) % PIECES)->tp_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
    give_frames_back(&afp, &now.ring[0], first, 0);
}

static void given_back_unmarked(void)
{
    struct pr_arriving w;
    uint32_t first, n = wrong_arrivals(&w, &first);
    pr_arrived(&w, &now.ring[0]);
    give_frames_back(&afp, &now.ring[0], first, n);
}

static void counted_backwards(void)
{
    struct pr_arriving w;
    uint32_t first, n = wrong_arrivals(&w, &first);
    mark(frame_at(&afp, first));
    pr_count(now.ring[0].row, PR_C_rx_frames, n);
    pr_rx_taken(&now.ring[0], n);
    pr_count(now.ring[0].row, PR_C_rx_kernel, n);
    pr_rx_publish(&now.ring[0], n);
    give_frames_back(&afp, &now.ring[0], first, n);
}

/* ---- the classic queue of many producers: reserve a place, then fill it (Vyukov; NetBSD's pcq) ---- */

static int mpsc_put(uint64_t desc)
{
    struct two_step *q = W.mpsc;
    uint32_t pos = q->tail;
    if (pos - q->head >= CAP)
        return 0;
    __atomic_compare_exchange_n(&q->tail, &pos, pos + 1, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
    q->slot[pos % CAP].desc = desc;
    __atomic_store_n(&q->slot[pos % CAP].turn, pos + 1, __ATOMIC_RELEASE);
    return 1;
}

static uint32_t mpsc_take(void)
{
    struct two_step *q = W.mpsc;
    uint32_t pos = q->head, n = 0;
    for (; __atomic_load_n(&q->slot[pos % CAP].turn, __ATOMIC_ACQUIRE) == pos + 1; pos++, n++) {
        uint64_t d = q->slot[pos % CAP].desc;
        see_desc(d);
        __atomic_store_n(&q->head, pos + 1, __ATOMIC_RELEASE);
    }
    return n;
}

static void mpsc_made(void)
{
    now.n = pr_pool_take(&now.pool[A], now.bufs, par.n);
    expect(BURST, par.n, SOME, par.n);
}

static void two_step_reserve(void)
{
    for (uint32_t i = 0; i < now.n; i++) {
        stamp(now.bufs[i], BURST + i);
        mpsc_put(described(now.bufs[i], BURST + i));
    }
}

static void mpsc_go_on(void)
{
    uint32_t sent = 0, got = mpsc_take(), b = 0;
    pr_pool_take(&now.pool[C], &b, 1);
    for (uint32_t round = 0; sent < CAP && round < PATIENCE; round++) {
        stamp(b, TRAFFIC + sent);
        sent += (uint32_t)mpsc_put(described(b, TRAFFIC + sent));
        got = mpsc_take();
    }
    if (sent < CAP || !got)
        bad(STUCK, "the consumer waits for a dead producer");
}

#define WRONG_PUT(name, op, kind) \
    {name, LANE_PUTS, lane_with_burst, op, lane_consumer_lives, lane_producer_replaced, lane_go_on, kind}
#define WRONG_TAKE(name, op, kind) \
    {name, LANE_TAKES, lane_with_frames, op, lane_producer_lives, lane_consumer_replaced, lane_go_on, kind}
#define WRONG_RX(name, op, kind) \
    {name, "3,3,4 6,0,11", device_frames, op, device_kernel_goes_on, device_heir, device_end, kind}
static const struct scenario wrong_scenarios[] = {
    WRONG_PUT("head before slots", head_before_slots, LOST),
    WRONG_PUT("head before words", head_before_words, LOST),
    WRONG_PUT("head before payload", head_before_payload, TORN),
    WRONG_PUT("head by ones", head_by_ones, LOST),
    WRONG_PUT("no words", no_words, TWICE),
    {"no lane reclaim", LANE_PUTS, lane_with_burst, lane_put, lane_consumer_lives, no_lane_reclaim, lane_go_on, LOST},
    WRONG_TAKE("processed before accepted", processed_before_accepted, DUPLICATE),
    WRONG_TAKE("tail before words", tail_before_words, LOST),
    {"tail before slots", RX_TURNS, ring_rx_app, tail_before_slots, NULL, ring_rx_adopted, rings_end, TORN},
    {"slot before lend", RX_TURNS, ring_rx_app, slot_before_lend, NULL, ring_rx_adopted, rings_end, TWICE},
    {"adopted without skipping", TX_TURNS, ring_tx_app, ring_tx_turn, NULL, adopted_without_skipping, rings_end,
     DUPLICATE},
    {"adopted by slots", TX_TURNS, ring_bridge, ring_app_forwards, NULL, adopted_by_slots, rings_end, TWICE},
    {"claimed when done", WORK, mend_worker, claimed_when_done, NULL, mend_heir, mend_end, TORN},
    {"sent without a word", WORK, mend_worker, sent_without_a_word, NULL, mend_heir, mend_end, DUPLICATE},
    {"mended by slots", WORK, mend_worker, mend_turn, NULL, mended_by_slots, mend_end, TWICE},
    {"mended without books", WORK, mend_worker, mend_turn, NULL, mended_without_books, mend_end, LOST},
    WRONG_RX("published before taken", published_before_taken, DUPLICATE),
    WRONG_RX("given back before taken", given_back_before_taken, LOST),
    WRONG_RX("given back in order", given_back_in_order, LOST),
    WRONG_RX("given back unmarked", given_back_unmarked, DUPLICATE),
    WRONG_RX("counted backwards", counted_backwards, TWICE),
    {"two-step reserve", "3,0,0", mpsc_made, two_step_reserve, NULL, pool_replace_a, mpsc_go_on, STUCK},
};

#endif
