/* A pktqueue under fire: `kill_pktqueue producer|consumer KILLS SEED`. One end lives on; the process at the other is
 * killed at a random moment, buried and replaced, again and again.
 *   producer killed: what was published comes out in order and once, the next one goes on from there
 *   consumer killed: no frame comes out twice, and a death loses at most the burst in hand
 * At the end every buffer is home, and enqueue = dequeue + lost. Prints the facts; exit status 0 = all of it held. */
#define _GNU_SOURCE /* CPU_SET */
#include "pktqueue.h"

#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

enum { ROWS = 2, CEILING = 256, BURST = 64, HOME = 2 * CEILING, N_BUFS = PR_FIRST_BUF + ROWS * HOME };
enum { MARKS = 1 << 26, MOST_US = 400 };

struct shared {
    uint64_t words[N_BUFS];
    uint64_t number[N_BUFS]; /* the payload of each buffer */
    uint8_t seen[MARKS];     /* frames dequeued, by number */
    uint8_t queue[1 << 16] __attribute__((aligned(64)));
};

static struct shared *sh;
static struct pr_pktq view;
static uint32_t stack[HOME];

static void expect(int held, const char *rule, uint64_t a, uint64_t b)
{
    if (held)
        return;
    printf("FAILED: %s (%llu, %llu)\n", rule, (unsigned long long)a, (unsigned long long)b);
    fflush(stdout);
    _exit(1);
}

/* ---- the two ends ---- */

struct party {
    struct pr_pool pool;
    struct pr_pktq_producer p;
    struct pr_pktq_consumer k;
    struct pr_lane_end end[ROWS];
    int bell;
    uint64_t next; /* number to send, or least number to see */
};

static struct party *join(uint32_t row, int produces, uint64_t next)
{
    struct party *w = calloc(1, sizeof *w);
    w->next = next;
    w->bell = -1;
    view.rows[row].gen++;
    pr_pool_init(&w->pool, sh->words, N_BUFS, (uint16_t)(1 + row), view.rows[row].gen, HOME, stack);
    pr_pool_deal(&w->pool);
    int got = produces ? pr_pktq_produce(&w->p, &view, row, w->end, &w->bell)
                       : pr_pktq_consume(&w->k, &view, 0, w->end);
    expect(got == 0, "the queue can be joined", row, produces);
    return w;
}

static uint32_t produce(struct party *w)
{
    uint32_t bufs[BURST], n = pr_pool_take(&w->pool, bufs, 1 + (uint32_t)w->next % BURST);
    uint64_t desc[BURST];
    for (uint32_t i = 0; i < n; i++) {
        sh->number[bufs[i]] = w->next + i;
        desc[i] = pr_desc(bufs[i], 8, 0);
    }
    uint32_t put = pr_pktq_put(&w->p, &w->pool, 0, desc, n);
    pr_pool_give(&w->pool, bufs + put, n - put);
    w->next += put;
    return put;
}

/* gaps: may numbers be missing? */
static uint32_t consume(struct party *w, int gaps)
{
    uint64_t desc[BURST];
    uint32_t bufs[BURST], n = pr_pktq_take(&w->k, &w->pool, desc, BURST);
    for (uint32_t i = 0; i < n; i++) {
        bufs[i] = pr_desc_idx(desc[i]);
        uint64_t number = sh->number[bufs[i]];
        expect(number < MARKS, "few enough frames for the marks", number, MARKS);
        expect(gaps ? number >= w->next : number == w->next, "the frames are in order", number, w->next);
        expect(!sh->seen[number]++, "a frame comes once", number, 0);
        w->next = number + 1;
    }
    expect(pr_pool_give(&w->pool, bufs, n) == n, "what was dequeued is the consumer's", n, 0);
    return n;
}

/* ---- kills ---- */

/* On CPUs of their own, or the kernel alternates the two and every kill falls where the victim yields. */
static void pin(int nth)
{
    static cpu_set_t allowed;
    cpu_set_t one;
    if (!CPU_COUNT(&allowed))
        sched_getaffinity(0, sizeof allowed, &allowed);
    CPU_ZERO(&one);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &allowed) && nth-- == 0)
            CPU_SET(cpu, &one);
    sched_setaffinity(0, sizeof one, &one); /* with one CPU only the second is refused: unpinned */
}

static pid_t start(struct party *(*begin)(void), uint32_t (*step)(struct party *))
{
    pid_t parent = getpid(), pid = fork();
    if (pid)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(2);
    pin(1);
    uint32_t idle = 0;
    for (struct party *w = begin();;)
        if (!step(w) && ++idle % 32 == 0) /* seldom, or that is where every kill finds it */
            sched_yield();
}

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static void kill_soon(pid_t victim, struct party *survivor, uint32_t (*step)(struct party *))
{
    for (double end = now_us() + rand() % MOST_US; now_us() < end;)
        if (!step(survivor))
            sched_yield();
    kill(victim, SIGKILL);
    int status;
    waitpid(victim, &status, 0);
    expect(WIFSIGNALED(status), "the victim did not find a fault itself", (uint64_t)status, 0);
}

static uint64_t resume_at; /* of the next producer: inherited by fork */
static struct party *begin_producer(void) { return join(0, 1, resume_at); }
static struct party *begin_consumer(void) { return join(1, 0, 0); }
static uint32_t consume_all(struct party *w) { return consume(w, 0); }
static uint32_t consume_some(struct party *w) { return consume(w, 1); }

static uint64_t kill_producers(int kills)
{
    struct party *consumer = join(1, 0, 0);
    for (int k = 0; k < kills; k++) {
        resume_at = consumer->next;
        kill_soon(start(begin_producer, produce), consumer, consume_all);
        if (k % 2) /* the order of these two does not matter */
            pr_pktq_bury(&view, &consumer->pool, 0);
        while (consume_all(consumer))
            ;
        if (k % 2 == 0)
            pr_pktq_bury(&view, &consumer->pool, 0);
    }
    (void)join(0, 1, 0); /* puts the counters of the last dead right */
    return consumer->next;
}

static uint64_t kill_consumers(int kills)
{
    struct party *producer = join(0, 1, 0);
    for (int k = 0; k < kills; k++) {
        kill_soon(start(begin_consumer, consume_some), producer, produce);
        pr_pktq_bury(&view, &producer->pool, 1);
    }
    struct party *last = begin_consumer();
    while (consume_some(last))
        ;
    uint64_t missing = 0;
    for (uint64_t number = 0; number < producer->next; number++)
        missing += !sh->seen[number];
    expect(missing <= (uint64_t)kills * BURST, "a death loses at most a burst", missing, (uint64_t)kills * BURST);
    printf("missing=%llu ", (unsigned long long)missing);
    return producer->next;
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    srand((unsigned)atoi(argv[3]));
    pin(0);
    sh = mmap(NULL, sizeof *sh, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct pr_pktqueue geometry = {.ncpu = 1, .rows = ROWS, .capacity = CEILING, .ceiling = CEILING, .limit = CEILING,
                                   .first_owner = 1};
    if (sh == MAP_FAILED || pr_pktq_format(sh->queue, sizeof sh->queue, &geometry) < 0 ||
        pr_pktq_attach(&view, sh->queue, sizeof sh->queue) < 0)
        return 2;
    uint64_t frames = (argv[1][0] == 'p' ? kill_producers : kill_consumers)(atoi(argv[2]));

    struct pr_pool all;
    uint64_t count[PR_N_OWNER_STATES + 1];
    pr_pool_init(&all, sh->words, N_BUFS, 1, 0, HOME, stack);
    pr_pool_count(&all, count);
    expect(count[PR_FREE] == ROWS * HOME && count[PR_RESERVED] == PR_FIRST_BUF, "every buffer is home", count[PR_FREE],
           ROWS * HOME);
    const struct pr_pktq_cell *c = pr_pktq_cell(&view, 0, 0);
    expect(c->enqueue == c->dequeue + c->lost && c->enqueue == frames, "nothing is unaccounted for", c->enqueue,
           c->dequeue + c->lost);
    printf("frames=%llu lost=%llu crashed=%llu over=%llu\n", (unsigned long long)frames, (unsigned long long)c->lost,
           (unsigned long long)(view.rows[0].crashed + view.rows[1].crashed), (unsigned long long)c->over);
    return 0;
}
