/* Operations on a pktqueue: pktqueue.h. Rows 0, 1, 2 are A, B, C; B consumes CPU 0, A and C feed it. */
#ifndef ON_PKTQUEUE_H
#define ON_PKTQUEUE_H

#include "scenario.h"

static const int no_bells[NCPU] = {-1, -1};

/* A process takes its row: claims it from nobody or from a dead holder, buries that one, and begins to produce. */
static void queue_join(uint16_t o)
{
    struct pr_pktq_row *row = &now.q.rows[o - A];
    pr_pktq_claim(&row->holder, row->holder, (uint64_t)o << 32 | (row->gen + 1));
    __atomic_store_n(&row->gen, (row->gen + 1) & 0xffffff, __ATOMIC_RELEASE);
    begin(o, row->gen);
    pr_pktq_bury(&now.q, &now.pool[o], o - A);
    if (pr_pktq_produce(&now.producer[o], &now.q, o - A, now.produces[o], no_bells) < 0)
        bad(STUCK, "row %u: a lane is broken", o - A);
}

static void queue_serve(uint16_t o)
{
    uint64_t *holder = &now.q.cpus[0].holder;
    pr_pktq_claim(holder, *holder, (uint64_t)o << 32 | now.gen[o]);
    if (pr_pktq_consume(&now.consumer, &now.q, 0, now.consumes) < 0)
        bad(STUCK, "CPU 0: a lane is broken");
}

static uint32_t queue_send(uint16_t from, uint32_t n, uint64_t seq)
{
    uint32_t bufs[MANY];
    uint64_t desc[MANY] = {0};
    n = pr_pool_take(&now.pool[from], bufs, n);
    for (uint32_t i = 0; i < n; i++) {
        stamp(bufs[i], seq + i);
        desc[i] = described(bufs[i], seq + i);
    }
    uint32_t put = pr_pktq_put(&now.producer[from], &now.pool[from], 0, desc, n);
    pr_pool_give(&now.pool[from], bufs + put, n - put);
    return put;
}

static uint32_t queue_receive(uint32_t n)
{
    uint64_t desc[MANY];
    n = pr_pktq_take(&now.consumer, &now.pool[B], desc, n);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t b = pr_desc_idx(desc[i]);
        see_desc(desc[i]);
        pr_pool_give(&now.pool[B], &b, 1);
    }
    return n;
}

/* A queue for CPU 0 that has been used: A's lane stands at par.at, and holds par.queued frames of limit `CAP`. */
static void queue_used(void)
{
    const struct pr_pktqueue geometry = {.ncpu = NCPU, .rows = N_PROCS, .capacity = CAP, .ceiling = CAP,
                                         .first_lane = QUEUE_LANE, .first_owner = A, .limit = CAP};
    pr_pktq_format(W.queue, pr_pktq_size(NCPU, N_PROCS, CAP), &geometry);
    if (pr_pktq_attach(&now.q, W.queue, pr_pktq_size(NCPU, N_PROCS, CAP)) < 0)
        give_up("pktqueue");
    now.lanes = N_LANES;
    for (uint32_t i = 0; i < NCPU * N_PROCS; i++)
        W.lane[now.lanes++] = pr_pktq_lane(&now.q, i / N_PROCS, i % N_PROCS);
    W.lane[N_LANES]->head = W.lane[N_LANES]->tail = par.at - CAP;
    for (uint16_t o = A; o <= N_PROCS; o++)
        queue_join(o);
    queue_serve(B);
    for (uint64_t seq = 1; seq <= CAP; seq++) {
        queue_send(A, 1, seq);
        queue_receive(1);
    }
    memset(W.log, 0, LOG * sizeof *W.log);
    queue_send(A, par.queued, 1);
}

static void queue_with_room(void)
{
    uint32_t room = CAP - par.queued < par.n ? CAP - par.queued : par.n;
    queue_used();
    expect(1, par.queued, ALL, 0);
    expect(BURST, room, WHOLE, room);
}

static void queue_with_frames(void)
{
    queue_used();
    expect(1, par.queued, SOME, par.n);
    now.stale_ok = 1;
}

static void queue_to_flush(void)
{
    queue_with_frames();
    now.group[0].lose = par.queued;
    pr_pktq_ask_flush(&now.q, 0);
}

static void queue_kept(void)
{
    queue_used();
    expect(1, par.queued, ALL, 0);
}

/* ---- the victims ---- */

static void queue_put(void) { queue_send(A, par.n, BURST); }
static void queue_take(void) { queue_receive(par.n); }
static void queue_flush(void) { pr_pktq_flush(&now.consumer, &now.pool[B]); }
static void queue_ask_flush(void) { pr_pktq_ask_flush(&now.q, 1); }
static void queue_resize(void) { __atomic_store_n(&now.q.q->limit, par.n, __ATOMIC_RELAXED); }

static void queue_join_a(void)
{
    queue_join(A);
    pr_pool_deal(&now.pool[A]);
}

static void queue_join_b(void)
{
    queue_join(B);
    queue_serve(B);
}

/* ---- the living, and the laws at the end ---- */

static void queue_consumer_lives(void) { queue_receive(CAP); }

static void queue_producer_lives(void)
{
    uint32_t n = queue_send(A, 3, BURST);
    expect(BURST, n, ALL, 0);
}

/* At rest: what went in came out or was lost with a consumer, and the counters of the dead were put right. */
static void queue_cells(void)
{
    for (uint32_t i = 0; i < NCPU * N_PROCS; i++) {
        const struct pr_pktq_cell *c = pr_pktq_cell(&now.q, i / N_PROCS, i % N_PROCS);
        const struct pr_lane *l = pr_pktq_lane(&now.q, i / N_PROCS, i % N_PROCS);
        if ((uint32_t)c->enqueue != l->head || (i < N_PROCS && (uint32_t)(c->dequeue + c->lost) != l->tail))
            bad(LOST, "cell %u: in %lu out %lu lost %lu, head %u tail %u", i, c->enqueue, c->dequeue, c->lost, l->head,
                l->tail);
    }
}

static void queue_go_on(void)
{
    uint32_t sent = 0, got = 0, asked = now.q.cpus[0].flush_asked;
    uint64_t limit = now.q.q->limit;
    check_buffers();
    if (asked && pr_pktq_flush_done(&now.q, 0, asked) && pr_pktq_depth(&now.q, 0))
        bad(DUPLICATE, "%lu are in the queue after a flush was acknowledged", pr_pktq_depth(&now.q, 0));
    for (uint32_t round = 0; queue_receive(2) && round < PATIENCE; round++)
        ;
    if (!pr_pktq_flush_done(&now.q, 0, asked))
        bad(STUCK, "the flush is not acknowledged");
    if (pr_pktq_depth(&now.q, 0))
        bad(STUCK, "%lu are left in the queue", pr_pktq_depth(&now.q, 0));
    for (uint32_t round = 0; got < 3 * CAP && round < PATIENCE; round++) {
        sent += queue_send(A, 3, TRAFFIC + sent);
        if (pr_pktq_depth(&now.q, 0) > limit)
            bad(TWICE, "depth %lu over the limit of %lu", pr_pktq_depth(&now.q, 0), limit);
        got += queue_receive(5);
        sent += queue_send(C, 1, TRAFFIC + sent);
        got += queue_receive(5);
    }
    if (got < 3 * CAP)
        bad(STUCK, "%u of %u frames in %u rounds", got, 3 * CAP, PATIENCE);
    expect(TRAFFIC, sent, ALL, 0);
    check_buffers();
    check_frames();
    queue_cells();
    check_all_home();
}

#define QUEUE_PUTS "1,0,8 3,2,13 8,0,65533 5,6,4294967293"
#define QUEUE_TAKES "1,1,8 3,5,13 8,8,65533 5,7,4294967293"
static const struct scenario queue_scenarios[] = {
    {"pktqueue put", QUEUE_PUTS, queue_with_room, queue_put, queue_consumer_lives, queue_join_a, queue_go_on, 0},
    {"pktqueue take", QUEUE_TAKES, queue_with_frames, queue_take, queue_producer_lives, queue_join_b, queue_go_on, 0},
    {"pktqueue flush", QUEUE_TAKES, queue_to_flush, queue_flush, NULL, queue_join_b, queue_go_on, 0},
    {"pktqueue ask flush", "0,3,8", queue_kept, queue_ask_flush, queue_consumer_lives, queue_join_a, queue_go_on, 0},
    {"pktqueue resize", "2,5,8 8,0,8", queue_kept, queue_resize, queue_consumer_lives, queue_join_a, queue_go_on, 0},
    {"pktqueue join", "0,3,13", queue_kept, queue_join_a, queue_consumer_lives, queue_join_a, queue_go_on, 0},
    {"pktqueue serve", "0,5,13", queue_kept, queue_join_b, queue_producer_lives, queue_join_b, queue_go_on, 0},
};

#endif
