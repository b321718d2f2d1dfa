/* Two pinned processes and a lane between them: descriptors handed over a second. Compiled and run by bench_ring.py;
 * it needs nothing but the headers, as any C program that joins a region.
 *
 *   bench_ring MODE SECONDS BURST     MODE  bare    descriptors only: what shared memory itself allows
 *                                           owned   buffers with their owner words, there and back again: what the engine does
 *                                           touch   the same, and 64 bytes of each written by one side and read by the other
 * Prints buffers a second. */
#define _GNU_SOURCE
#include "lane.h"

#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

enum { BUFFERS = 4096, CAPACITY = 2048, STRIDE = 2048, MOST = 1024 };

struct stage {
    uint64_t word[BUFFERS];
    _Alignas(64) uint8_t there[sizeof(struct pr_lane) + 8 * CAPACITY];
    _Alignas(64) uint8_t back[sizeof(struct pr_lane) + 8 * CAPACITY];
    _Alignas(64) uint64_t done;
    _Alignas(64) uint8_t buffer[BUFFERS][STRIDE];
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void pin(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    sched_setaffinity(0, sizeof set, &set);
}

static void attach(struct pr_lane_end *e, void *lane, size_t size, enum pr_lane_side side)
{
    if (pr_lane_attach(e, lane, size, side) < 0)
        exit(1);
}

static void consume(struct stage *s, const char *mode, uint32_t burst)
{
    static uint32_t stack[BUFFERS];
    struct pr_lane_end in, out;
    struct pr_pool pool;
    uint64_t desc[MOST], n, sum = 0;
    attach(&in, (void *)s->there, sizeof s->there, PR_CONSUMER);
    attach(&out, (void *)s->back, sizeof s->back, PR_PRODUCER);
    pr_pool_init(&pool, s->word, BUFFERS, 2, 1, BUFFERS, stack);
    for (;;) {
        if (*mode == 'b') {
            if (!(n = pr_lane_peek(&in, burst)))
                continue;
            for (uint64_t i = 0; i < n; i++)
                sum += __atomic_load_n(pr_lane_slot(&in, (uint32_t)i), __ATOMIC_RELAXED);
            pr_lane_release(&in, (uint32_t)n);
        } else {
            if (!(n = pr_lane_take(&in, &pool, desc, burst)))
                continue;
            if (*mode == 't')
                for (uint64_t i = 0; i < n; i++)
                    for (int w = 0; w < 8; w++)
                        sum += ((uint64_t *)s->buffer[pr_desc_idx(desc[i])])[w];
            for (uint64_t sent = 0; sent < n;)
                sent += pr_lane_put(&out, &pool, desc + sent, (uint32_t)(n - sent));
        }
        __atomic_store_n(&s->done, s->done + n, __ATOMIC_RELAXED);
        __asm__ volatile("" ::"r"(sum));
    }
}

static void produce(struct stage *s, const char *mode, uint32_t burst, double seconds)
{
    static uint32_t stack[BUFFERS];
    struct pr_lane_end out, in;
    struct pr_pool pool;
    uint64_t desc[MOST], spare[BUFFERS];
    uint32_t free_n = 0, n;
    attach(&out, (void *)s->there, sizeof s->there, PR_PRODUCER);
    attach(&in, (void *)s->back, sizeof s->back, PR_CONSUMER);
    pr_pool_init(&pool, s->word, BUFFERS, 1, 1, BUFFERS, stack);
    pr_pool_deal(&pool);
    uint32_t bufs[CAPACITY];
    for (n = pr_pool_take(&pool, bufs, CAPACITY); free_n < n; free_n++)
        spare[free_n] = pr_desc(bufs[free_n], 64, 0);
    for (double end = now() + seconds; now() < end;)
        for (int turn = 0; turn < 256; turn++) {
            if (*mode == 'b') {
                n = pr_lane_reserve(&out, burst);
                for (uint32_t i = 0; i < n; i++)
                    __atomic_store_n(pr_lane_slot(&out, i), i, __ATOMIC_RELAXED);
                if (n)
                    pr_lane_submit(&out, n);
                continue;
            }
            if (free_n < burst && (n = pr_lane_take(&in, &pool, desc, MOST)) != 0) {
                memcpy(spare + free_n, desc, n * sizeof *desc);
                free_n += n;
            }
            n = free_n < burst ? free_n : burst;
            uint64_t *give = spare + free_n - n;
            if (*mode == 't')
                for (uint32_t i = 0; i < n; i++)
                    memset(s->buffer[pr_desc_idx(give[i])], turn, 64);
            uint32_t put = pr_lane_put(&out, &pool, give, n);
            memmove(give, give + put, (n - put) * sizeof *give);
            free_n -= put;
        }
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    uint32_t burst = (uint32_t)atoi(argv[3]);
    if (burst < 1 || burst > MOST)
        return 2;
    struct stage *s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (s == MAP_FAILED)
        return 1;
    pr_lane_format((void *)s->there, 1, CAPACITY);
    pr_lane_format((void *)s->back, 2, CAPACITY);
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        pin(1);
        consume(s, argv[1], burst);
    }
    pin(0);
    double began = now();
    produce(s, argv[1], burst, atof(argv[2]));
    double took = now() - began;
    uint64_t done = __atomic_load_n(&s->done, __ATOMIC_RELAXED);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    printf("%.0f\n", (double)done / took);
    return 0;
}
