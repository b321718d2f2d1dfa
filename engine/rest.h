/* When a loop rests: it spins a bounded time, gathers driblets under steady traffic, and sleeps in poll, at most 100 ms. */
#ifndef PR_REST_H
#define PR_REST_H

#include "doorbell.h"

#include <errno.h>
#include <time.h>

#define PR_SPIN_NS 50000         /* stay awake this long after the last frame: a sleep and wake costs 20 us */
#define PR_SLEEP_MS 100          /* and never sleep longer than this, whatever was lost */
#define PR_LOOK_NS 2000000       /* under traffic without a pause, look this often whether the caller must act */
#define PR_STATS_NS 100000000    /* how old the kernel's drop counts in the rows may be */
#define PR_FEW 16                /* frames that hardly pay for the calls that send them */
#define PR_STREAK 8              /* so many turns of few frames without an idle one are steady traffic: */
#define PR_GATHER_NS 25000u      /* let more come together */
#define PR_REST_EVENTS 32

enum pr_why { PR_WHY_TIME, PR_WHY_LIMIT, PR_WHY_END, PR_WHY_PAUSED, PR_WHY_EVENT, PR_WHY_SIGNAL, PR_WHY_ASKED };

static inline uint64_t pr_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

/* Under steady traffic that comes in driblets a call a frame would eat the time that the frames need. A question and
 * its answer are not steady: there is an idle turn between them, and they are never held up. */
static inline uint32_t pr_rest_gather(uint32_t streak, uint32_t moved, uint32_t gather_ns)
{
    if (!moved)
        return 0;
    if (moved < 2 * PR_FEW && streak >= PR_STREAK) /* a slot counts when it comes and when it goes */
        for (uint64_t until = pr_now_ns() + gather_ns; pr_now_ns() < until;)
            pr_relax();
    return streak + 1;
}

/* Milliseconds that a sleep may last. */
static inline int pr_rest_ms(uint64_t until_ns)
{
    uint64_t now = pr_now_ns(), ms = until_ns > now ? (until_ns - now + 999999) / 1000000 : 0;
    return (int)(ms > PR_SLEEP_MS ? PR_SLEEP_MS : ms);
}

/* Is one of the event descriptors readable? Where frames never pause there is no sleep to be woken from. */
static inline int pr_rest_called(const int *event, uint32_t n_events)
{
    struct pollfd fd[PR_REST_EVENTS];
    for (uint32_t n = 0; n < n_events; n++)
        fd[n] = (struct pollfd){.fd = event[n], .events = POLLIN};
    return n_events && poll(fd, n_events, 0) > 0;
}

#endif
