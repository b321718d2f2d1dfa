/* Two threads over one mapping, to be run under ThreadSanitizer, after tsan_lanes.c: the two sides of a receive ring
 * and of a transmit ring, whose slots, buffers and metadata are plain memory that only tail and head order; a row of a
 * pktqueue that is claimed and left in turn; a flush, after which the requester may touch what was queued; heirs, who
 * go on from what the dead left in a lane though nothing but its cursors orders them. Exit status 0 = every frame came,
 * in order. */
#define _GNU_SOURCE
#include "move.h"
#include "pktqueue.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

enum { SLOTS = 16, BURST = 6, N = 100000, TURNS = 5000 };

static struct pr_region rg;
static struct pr_kring kring;
static struct pr_row row;

static struct pr_ringh handle(void)
{
    struct pr_ring *ring = (struct pr_ring *)(rg.mem + rg.g.ring_ofs);
    return (struct pr_ringh){.ring = ring, .k = &kring, .row = &row, .rg = &rg, .n = SLOTS};
}

static void deal(uint32_t dir)
{
    struct pr_ringh h = handle();
    uint32_t bufs[SLOTS];
    for (uint32_t i = 0; i < SLOTS; i++)
        bufs[i] = 2 + i;
    kring = (struct pr_kring){.num_slots = SLOTS, .dir = dir};
    pr_ring_deal(&h, bufs);
}

static void fill(const struct pr_ringh *h, uint32_t at, uint64_t number)
{
    struct pr_slot *s = &h->ring->slot[at];
    *(uint64_t *)pr_buf(&rg, s->buf_idx) = number;
    pr_meta_of(&rg, s->buf_idx)->ts_ns = number;
    s->len = (uint16_t)(60 + number % 100);
}

static int wrong(const struct pr_ringh *h, uint32_t at, uint64_t number)
{
    const struct pr_slot *s = &h->ring->slot[at];
    return *(uint64_t *)pr_buf(&rg, s->buf_idx) != number || pr_meta_of(&rg, s->buf_idx)->ts_ns != number ||
           s->len != 60 + number % 100;
}

/* ---- receiving: the engine fills, the app reads and spoils ---- */

static void *engine_receives(void *unused)
{
    struct pr_ringh h = handle();
    for (uint64_t number = 0; number < N;) {
        if (pr_rx_enter(&h) < 0)
            return &rg;
        uint32_t n = pr_rx_space(&h) < BURST ? pr_rx_space(&h) : BURST, at = h.k->hwtail;
        for (uint32_t i = 0; i < n; i++, at = pr_next(&h, at))
            fill(&h, at, number++);
        pr_rx_publish(&h, n);
        if (!n)
            sched_yield();
    }
    return unused;
}

static int app_reads(void)
{
    struct pr_ringh h = handle();
    for (uint64_t number = 0; number < N;) {
        uint32_t n = pr_ring_ready(&h), at = h.ring->head;
        for (uint32_t i = 0; i < n; i++, at = pr_next(&h, at)) {
            if (wrong(&h, at, number++))
                return 1;
            fill(&h, at, 0); /* it is the app's: it may write it */
        }
        pr_ring_advance(&h, at);
        if (!n)
            sched_yield();
    }
    return 0;
}

/* ---- transmitting: the app fills, the engine reads and spoils ---- */

static void *app_writes(void *unused)
{
    struct pr_ringh h = handle();
    for (uint64_t number = 0; number < N;) {
        uint32_t n = pr_ring_ready(&h) < BURST ? pr_ring_ready(&h) : BURST, at = h.ring->head;
        if (n > pr_tx_room(&h, at))
            return &rg;
        for (uint32_t i = 0; i < n; i++, at = pr_next(&h, at))
            fill(&h, at, number++);
        pr_ring_advance(&h, at);
        if (!n)
            sched_yield();
    }
    return unused;
}

static int engine_transmits(void)
{
    struct pr_ringh h = handle();
    for (uint64_t number = 0; number < N;) {
        if (pr_tx_enter(&h) < 0)
            return 1;
        uint32_t n = pr_tx_pending(&h), at = h.k->hwcur;
        for (uint32_t i = 0; i < n; i++, at = pr_next(&h, at)) {
            if (wrong(&h, at, number++))
                return 1;
            fill(&h, at, 0);
        }
        pr_tx_done(&h, n);
        if (!n)
            sched_yield();
    }
    return 0;
}

/* ---- a pktqueue's row, and its flush ---- */

enum { HOME = 16, CAP = 16 };
static uint64_t queue_memory[1024] __attribute__((aligned(64)));
static uint64_t words[PR_FIRST_BUF + HOME];
static uint64_t guarded; /* by the row: plain memory of whoever holds it */
static uint64_t flushes; /* by flushed: plain memory of the consumer, then of whoever asked */
static int stop;

static struct pr_pktq queue(void)
{
    struct pr_pktq v;
    if (pr_pktq_attach(&v, queue_memory, sizeof queue_memory) < 0)
        abort();
    return v;
}

static void hold_the_row(uint64_t me)
{
    struct pr_pktq v = queue();
    for (uint32_t turn = 0; turn < TURNS; turn++) {
        while (!pr_pktq_claim(&v.rows[0].holder, 0, me))
            sched_yield();
        guarded++;
        pr_pktq_claim(&v.rows[0].holder, me, 0);
    }
}

static void *one_holder(void *unused)
{
    hold_the_row(1);
    return unused;
}

static int other_holder(void)
{
    hold_the_row(2);
    return 0;
}

static void *consumer(void *unused)
{
    struct pr_pktq v = queue();
    struct pr_pktq_consumer k;
    struct pr_lane_end end;
    uint32_t stack[HOME];
    struct pr_pool p;
    pr_pool_init(&p, words, PR_FIRST_BUF + HOME, 1, 0, HOME, stack);
    pr_pktq_consume(&k, &v, 0, &end);
    while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
        if (pr_pktq_flush_wanted(&k)) {
            flushes++;
            pr_pktq_flush(&k, &p);
        }
        sched_yield();
    }
    return unused;
}

static int asks_for_flushes(void)
{
    struct pr_pktq v = queue();
    for (uint64_t turn = 1; turn <= TURNS; turn++) {
        uint32_t ticket = pr_pktq_ask_flush(&v, 0);
        while (!pr_pktq_flush_done(&v, 0, ticket))
            sched_yield();
        if (flushes++ != 2 * turn - 1)
            return 1;
    }
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    return 0;
}

/* ---- the heirs of a lane's ends ---- */

static uint64_t lane_memory[(sizeof(struct pr_lane) + 8 * CAP) / 8] __attribute__((aligned(64)));

static struct pr_lane_end attach(enum pr_lane_side side)
{
    struct pr_lane_end e;
    if (pr_lane_attach(&e, (struct pr_lane *)lane_memory, sizeof lane_memory, side) < 0)
        abort();
    return e;
}

static void produce(uint64_t first)
{
    struct pr_lane_end e = attach(PR_PRODUCER);
    uint32_t n = pr_lane_reserve(&e, CAP);
    for (uint32_t i = 0; i < n; i++)
        *pr_lane_slot(&e, i) = first + i;
    pr_lane_submit(&e, n);
}

static int consume(uint64_t first)
{
    struct pr_lane_end e = attach(PR_CONSUMER);
    uint32_t n = pr_lane_peek(&e, CAP), bad = n != CAP;
    for (uint32_t i = 0; i < n; i++)
        bad |= *pr_lane_slot(&e, i) != first + i;
    pr_lane_release(&e, n);
    return (int)bad;
}

static void wait_for_death(void)
{
    while (!__atomic_load_n(&stop, __ATOMIC_RELAXED))
        sched_yield();
}

static void *producer_dies(void *unused)
{
    produce(1);
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    return unused;
}

static int consumer_attaches(void)
{
    wait_for_death();
    return consume(1);
}

static void *consumer_dies(void *unused)
{
    void *failed = consume(100) ? &rg : unused;
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    return failed;
}

static int producer_attaches(void)
{
    wait_for_death();
    produce(200);
    return 0;
}

/* A thread that fails returns something. */
static int both(void *(*one)(void *), int (*other)(void))
{
    pthread_t t;
    void *failed = NULL;
    stop = 0;
    if (pthread_create(&t, NULL, one, NULL) || other())
        return 1;
    pthread_join(t, &failed);
    return failed != NULL;
}

int main(void)
{
    const struct pr_pktqueue geometry = {.ncpu = 1, .rows = 1, .capacity = CAP, .ceiling = CAP, .first_lane = 1,
                                         .first_owner = 1, .limit = CAP};
    uint64_t size = pr_carve(&rg.g, 1, 1, SLOTS, SLOTS + 2, 512);
    rg.mem = calloc(1, size + 128);
    rg.mem += 128 - (uintptr_t)rg.mem % 128;
    deal(PR_RX);
    int bad = both(engine_receives, app_reads);
    deal(PR_TX);
    bad = bad || both(app_writes, engine_transmits);
    bad = bad || pr_pktq_format(queue_memory, sizeof queue_memory, &geometry) < 0;
    bad = bad || both(one_holder, other_holder) || guarded != 2 * TURNS;
    bad = bad || both(consumer, asks_for_flushes);
    pr_lane_format((struct pr_lane *)lane_memory, 1, CAP);
    bad = bad || both(producer_dies, consumer_attaches);
    produce(100);
    bad = bad || both(consumer_dies, producer_attaches) || consume(200);
    puts(bad ? "out of order" : "in order");
    return bad;
}
