/* The handler of bench job `engine`: so many turns of a loop a frame ($PKTRING_BENCH_TURNS), which is some microseconds. */
#include <pktring_handler.h>
#include <stdlib.h>

void work(uint64_t turns)
{
    for (uint64_t i = 0; i < turns; i++)
        __asm__ volatile("" ::: "memory");
}

void handle(struct pktring_batch *batch)
{
    static uint64_t turns;
    if (!turns)
        turns = strtoull(getenv("PKTRING_BENCH_TURNS"), NULL, 10);
    work(turns * batch->n);
}
