/* Two threads over one mapping, to be run under ThreadSanitizer. First the bare verbs: slots are plain memory, so that
 * only head and tail order them. Then put and take with owner words: buffers go home and come again, so that only the
 * words order their reuse. Exit status 0 = every number came, in order. */
#include "lane.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

enum { SLOTS = 64, HOME = 24, BURST = 16, N = 60000 }; /* fewer buffers than slots: the tail is seldom read */

static uint64_t memory[(sizeof(struct pr_lane) + 8 * SLOTS) / 8] __attribute__((aligned(64)));
static uint64_t words[PR_FIRST_BUF + HOME];
static uint64_t payload[PR_FIRST_BUF + HOME];
static uint32_t stack[2][HOME];

static struct pr_lane *lane(void) { return (struct pr_lane *)memory; }

static struct pr_lane_end attach(enum pr_lane_side side)
{
    struct pr_lane_end e;
    if (pr_lane_attach(&e, lane(), sizeof memory, side) < 0)
        abort();
    return e;
}

static void *produce_plain(void *unused)
{
    struct pr_lane_end e = attach(PR_PRODUCER);
    for (uint64_t sent = 0, n; sent < N; sent += n) {
        n = pr_lane_reserve(&e, BURST);
        for (uint32_t i = 0; i < n; i++)
            *pr_lane_slot(&e, i) = sent + i;
        pr_lane_submit(&e, (uint32_t)n);
        if (!n)
            sched_yield();
    }
    return unused;
}

static int consume_plain(void)
{
    struct pr_lane_end e = attach(PR_CONSUMER);
    for (uint64_t seen = 0, n; seen < N; seen += n) {
        n = pr_lane_peek(&e, BURST);
        for (uint32_t i = 0; i < n; i++)
            if (*pr_lane_slot(&e, i) != seen + i)
                return 1;
        pr_lane_release(&e, (uint32_t)n);
        if (!n)
            sched_yield();
    }
    return 0;
}

static void *produce(void *unused)
{
    struct pr_lane_end e = attach(PR_PRODUCER);
    struct pr_pool p;
    pr_pool_init(&p, words, PR_FIRST_BUF + HOME, 1, 0, HOME, stack[0]);
    for (uint64_t sent = 0; sent < N;) {
        uint32_t bufs[BURST], n = pr_pool_take(&p, bufs, BURST), done = 0;
        uint64_t desc[BURST];
        for (uint32_t i = 0; i < n; i++, sent++) {
            payload[bufs[i]] = sent;
            desc[i] = pr_desc(bufs[i], 8, 0);
        }
        while (done < n) {
            uint32_t put = pr_lane_put(&e, &p, desc + done, n - done);
            done += put;
            if (!put)
                sched_yield();
        }
        if (!n)
            sched_yield();
    }
    return unused;
}

static int consume(void)
{
    struct pr_lane_end e = attach(PR_CONSUMER);
    struct pr_pool p;
    pr_pool_init(&p, words, PR_FIRST_BUF + HOME, 2, 0, HOME, stack[1]);
    for (uint64_t seen = 0; seen < N;) {
        uint64_t desc[BURST];
        uint32_t bufs[BURST], n = pr_lane_take(&e, &p, desc, BURST);
        for (uint32_t i = 0; i < n; i++, seen++) {
            bufs[i] = pr_desc_idx(desc[i]);
            if (payload[bufs[i]] != seen)
                return 1;
        }
        if (pr_pool_give(&p, bufs, n) != n)
            return 1;
        if (!n)
            sched_yield();
    }
    return p.refused || e.skipped;
}

static int both(void *(*producer)(void *), int (*consumer)(void))
{
    pthread_t t;
    pr_lane_format(lane(), 3, SLOTS);
    if (pthread_create(&t, NULL, producer, NULL))
        return 1;
    int bad = consumer();
    if (!bad)
        pthread_join(t, NULL);
    return bad;
}

int main(void)
{
    struct pr_pool p;
    pr_pool_init(&p, words, PR_FIRST_BUF + HOME, 1, 0, HOME, stack[0]);
    pr_pool_deal(&p);
    int bad = both(produce_plain, consume_plain);
    bad |= bad ? 1 : both(produce, consume);
    puts(bad ? "out of order" : "in order");
    return bad;
}
