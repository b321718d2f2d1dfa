/* Operations on lanes: lane.h. A produces into lane 0, B consumes it; B may pass on into lane 1, which C consumes. */
#ifndef ON_LANE_H
#define ON_LANE_H

#include "scenario.h"

static void lane_ends(uint32_t l)
{
    pr_lane_attach(&now.out[l], W.lane[l], pr_lane_size(CAP), PR_PRODUCER);
    pr_lane_attach(&now.in[l], W.lane[l], pr_lane_size(CAP), PR_CONSUMER);
}

static uint32_t lane_send(uint32_t l, uint16_t from, uint32_t n, uint64_t seq)
{
    uint32_t bufs[MANY];
    uint64_t desc[MANY];
    n = pr_pool_take(&now.pool[from], bufs, n);
    for (uint32_t i = 0; i < n; i++) {
        stamp(bufs[i], seq + i);
        desc[i] = described(bufs[i], seq + i);
    }
    uint32_t put = pr_lane_put(&now.out[l], &now.pool[from], desc, n);
    pr_pool_give(&now.pool[from], bufs + put, n - put);
    return put;
}

static uint32_t lane_receive(uint32_t l, uint16_t to, uint32_t n)
{
    uint64_t desc[MANY];
    n = pr_lane_take(&now.in[l], &now.pool[to], desc, n);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t b = pr_desc_idx(desc[i]);
        see_desc(desc[i]);
        pr_pool_give(&now.pool[to], &b, 1);
    }
    return n;
}

static uint32_t lane_forward(uint32_t n)
{
    uint64_t desc[MANY];
    n = pr_lane_take(&now.in[0], &now.pool[B], desc, n);
    for (uint32_t i = 0, put = 1; i < n && put; i += put)
        put = pr_lane_put(&now.out[1], &now.pool[B], desc + i, n - i);
    return n;
}

/* A lane that has been used, its cursors at par.at, with par.queued frames in it. */
static void lane_used(uint32_t l, uint16_t from, uint16_t to)
{
    pr_lane_format(W.lane[l], (uint16_t)(LANE + l), CAP);
    W.lane[l]->head = W.lane[l]->tail = par.at - CAP;
    lane_ends(l);
    for (uint64_t seq = 1; seq <= CAP; seq++) {
        lane_send(l, from, 1, seq);
        lane_receive(l, to, 1);
    }
    memset(W.log, 0, LOG * sizeof *W.log);
    now.lanes = l + 1;
}

static uint32_t lane_room(void) { return CAP - par.queued < par.n ? CAP - par.queued : par.n; }

static void lane_with_burst(void)
{
    lane_used(0, A, B);
    lane_send(0, A, par.queued, 1);
    expect(1, par.queued, ALL, 0);
    expect(BURST, lane_room(), WHOLE, lane_room());
    now.n = pr_pool_take(&now.pool[A], now.bufs, par.n);
    for (uint32_t i = 0; i < now.n; i++)
        now.desc[i] = described(now.bufs[i], BURST + i);
}

static void lane_with_frames(void)
{
    lane_used(0, A, B);
    lane_send(0, A, par.queued, 1);
    expect(1, par.queued, SOME, par.n); /* what the dead consumer had begun with, and no more */
    now.stale_ok = 1;
}

static void lane_pair(void)
{
    lane_used(0, A, B);
    lane_used(1, B, C);
    lane_send(0, A, par.queued, 1);
    expect(1, par.queued, SOME, par.n);
    now.stale_ok = 1;
}

/* ---- the victims ---- */

static void lane_put(void)
{
    for (uint32_t i = 0; i < now.n; i++)
        stamp(now.bufs[i], BURST + i);
    pr_lane_put(&now.out[0], &now.pool[A], now.desc, now.n);
}

static void lane_reserve_submit(void)
{
    uint32_t room = pr_lane_reserve(&now.out[0], now.n);
    for (uint32_t i = 0; i < room; i++) {
        stamp(now.bufs[i], BURST + i);
        pr_pool_hand_over(&now.pool[A], now.bufs[i], now.out[0].id, now.out[0].mine + i);
        *pr_lane_slot(&now.out[0], i) = now.desc[i];
    }
    pr_lane_submit(&now.out[0], room);
}

static void lane_take(void) { lane_receive(0, B, par.n); }

static void lane_peek_release(void)
{
    uint64_t desc[MANY];
    uint32_t ready = pr_lane_peek(&now.in[0], par.n), got = 0;
    for (uint32_t i = 0; i < ready; i++) {
        uint64_t d = *pr_lane_slot(&now.in[0], i);
        if (pr_pool_accept(&now.pool[B], pr_desc_idx(d), now.in[0].id, now.in[0].mine + i))
            desc[got++] = d;
    }
    pr_lane_release(&now.in[0], ready);
    for (uint32_t i = 0; i < got; i++)
        see_desc(desc[i]);
}

static void lane_take_put(void) { lane_forward(par.n); }

/* ---- who puts it right ---- */

static void lane_producer_replaced(void)
{
    replace(A);
    pr_lane_attach(&now.out[0], W.lane[0], pr_lane_size(CAP), PR_PRODUCER);
    pr_lane_reclaim(&now.out[0], &now.pool[A]);
}

static void lane_consumer_replaced(void)
{
    replace(B);
    pr_lane_attach(&now.in[0], W.lane[0], pr_lane_size(CAP), PR_CONSUMER);
}

static void lane_middle_replaced(void)
{
    lane_consumer_replaced();
    pr_lane_attach(&now.out[1], W.lane[1], pr_lane_size(CAP), PR_PRODUCER);
    pr_lane_reclaim(&now.out[1], &now.pool[B]);
}

/* The consumer has not heard of the death; nor has the producer. */
static void lane_consumer_lives(void) { lane_receive(0, B, CAP); }
static void lane_last_lives(void) { lane_receive(1, C, CAP); }

static void lane_producer_lives(void)
{
    uint32_t n = lane_send(0, A, 3, BURST);
    expect(BURST, n, ALL, 0);
}

/* ---- and the traffic after that ---- */

static void lane_traffic(uint32_t (*receive)(void), uint32_t want)
{
    check_buffers();
    for (uint32_t round = 0; receive() && round < PATIENCE; round++)
        ;
    check_buffers();
    uint32_t sent = 0, got = 0;
    for (uint32_t round = 0; got < want && round < PATIENCE; round++) {
        sent += lane_send(0, A, 3, TRAFFIC + sent);
        got += receive();
    }
    if (got < want)
        bad(STUCK, "%u of %u frames in %u rounds", got, want, PATIENCE);
    for (uint32_t round = 0; got < sent && round < PATIENCE; round++)
        got += receive();
    expect(TRAFFIC, sent, ALL, 0);
    check_buffers();
    check_frames();
    check_all_home();
}

static uint32_t lane_by_two(void) { return lane_receive(0, B, 2); }

static uint32_t lane_by_three(void)
{
    lane_forward(2);
    return lane_receive(1, C, 4);
}

static void lane_go_on(void) { lane_traffic(lane_by_two, 3 * CAP); }
static void lane_pair_goes_on(void) { lane_traffic(lane_by_three, 3 * CAP); }

/* Bursts of several sizes, an empty, a used and an almost full lane; cursors at the start, at the end of the slots, of
 * the owner word's position and of the cursor's own 32 bits. */
#define LANE_PUTS "1,0,8 3,2,13 8,0,8 8,0,65533 5,3,4294967293 8,6,65530 2,8,15"
#define LANE_TAKES "1,1,8 3,5,13 8,8,8 8,8,65533 5,7,4294967293 8,2,65530"
static const struct scenario lane_scenarios[] = {
    {"lane put", LANE_PUTS, lane_with_burst, lane_put, lane_consumer_lives, lane_producer_replaced, lane_go_on, 0},
    {"lane reserve, submit", LANE_PUTS, lane_with_burst, lane_reserve_submit, lane_consumer_lives,
     lane_producer_replaced, lane_go_on, 0},
    {"lane take", LANE_TAKES, lane_with_frames, lane_take, lane_producer_lives, lane_consumer_replaced, lane_go_on, 0},
    {"lane peek, release", LANE_TAKES, lane_with_frames, lane_peek_release, lane_producer_lives,
     lane_consumer_replaced, lane_go_on, 0},
    {"lane take and put", LANE_TAKES, lane_pair, lane_take_put, lane_last_lives, lane_middle_replaced,
     lane_pair_goes_on, 0},
};

#endif
