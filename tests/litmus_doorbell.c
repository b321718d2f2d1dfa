/* Two threads meet again and again in the doorbell's two lines: one arms and looks, the other publishes and asks. Both missing
 * each other is a lost wake-up. Prints how often that happened in at most SECONDS; ends early at the first. */
#include "doorbell.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static struct {
    uint32_t need __attribute__((aligned(64)));
    uint32_t head __attribute__((aligned(64)));
    uint32_t round __attribute__((aligned(64)));
    uint32_t met __attribute__((aligned(64)));
    uint32_t asked;
} x;

static void wait_for(const uint32_t *word, uint32_t value)
{
    for (uint32_t spins = 0; __atomic_load_n(word, __ATOMIC_ACQUIRE) != value; spins++)
        if (spins % 1000 == 999)
            sched_yield();
}

static void *producer(void *unused)
{
    for (uint32_t round = 1;; round++) {
        wait_for(&x.round, round);
        __atomic_store_n(&x.head, round, __ATOMIC_RELEASE);
        x.asked = (uint32_t)pr_doorbell_needed(&x.need);
        __atomic_store_n(&x.met, round, __ATOMIC_RELEASE);
    }
    return unused;
}

int main(int argc, char **argv)
{
    pthread_t t;
    uint32_t lost = 0, round = 0;
    time_t end = time(NULL) + (argc > 1 ? atoi(argv[1]) : 1);
    if (pthread_create(&t, NULL, producer, NULL))
        return 2;
    while (!lost && (++round % 1024 || time(NULL) < end)) {
        __atomic_store_n(&x.round, round, __ATOMIC_RELEASE);
        for (uint32_t spins = round % 64; spins; spins--) /* the moment at which the two meet drifts */
            __asm__ volatile("");
        pr_doorbell_arm(&x.need);
        int seen = __atomic_load_n(&x.head, __ATOMIC_ACQUIRE) == round;
        wait_for(&x.met, round);
        lost += !seen && !x.asked;
        pr_doorbell_disarm(&x.need);
    }
    printf("lost=%u rounds=%u\n", lost, round);
    return 0;
}
