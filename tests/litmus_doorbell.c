/* The doorbell's two lines on the CPUs that are here: one thread arms and looks, the other publishes and asks, over
 * many bells one after the other. Both missing each other is a lost wake-up. Prints how often that happened in SECONDS
 * at most; ends at the first. */
#define _GNU_SOURCE /* CPU_SET */
#include "doorbell.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { BELLS = 512 };

static struct {
    uint32_t need __attribute__((aligned(64)));
    uint32_t head __attribute__((aligned(64)));
} bell[BELLS];
static uint8_t seen[BELLS], asked[BELLS];
static uint32_t round_of[2] __attribute__((aligned(64)));

static void pin(int nth)
{
    cpu_set_t allowed, one;
    sched_getaffinity(0, sizeof allowed, &allowed);
    CPU_ZERO(&one);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &allowed) && nth-- == 0)
            CPU_SET(cpu, &one);
    pthread_setaffinity_np(pthread_self(), sizeof one, &one);
}

/* Both threads leave here together, or one a little later: where they meet among the bells drifts. */
static void meet(int side, uint32_t round)
{
    __atomic_store_n(&round_of[side], round, __ATOMIC_RELEASE);
    for (uint32_t spins = 0; __atomic_load_n(&round_of[!side], __ATOMIC_ACQUIRE) < round; spins++)
        if (spins % 4096 == 4095)
            sched_yield();
    if (side == (int)(round / 2 & 1))
        for (uint32_t late = round * 7 % 1024; late; late--)
            __asm__ volatile("");
}

static void *producer(void *unused)
{
    pin(1);
    for (uint32_t round = 1;; round += 2) {
        meet(1, round);
        for (int i = 0; i < BELLS; i++) {
            __atomic_store_n(&bell[i].head, 1, __ATOMIC_RELEASE);
            asked[i] = (uint8_t)pr_doorbell_needed(&bell[i].need);
        }
        meet(1, round + 1);
    }
    return unused;
}

int main(int argc, char **argv)
{
    pthread_t t;
    uint32_t lost = 0, round = 1;
    time_t end = time(NULL) + (argc > 1 ? atoi(argv[1]) : 1);
    if (pthread_create(&t, NULL, producer, NULL))
        return 2;
    pin(0);
    for (; !lost && time(NULL) < end; round += 2) {
        for (int i = 0; i < BELLS; i++) {
            pr_doorbell_disarm(&bell[i].need);
            __atomic_store_n(&bell[i].head, 0, __ATOMIC_RELAXED);
        }
        meet(0, round);
        for (int i = 0; i < BELLS; i++) {
            pr_doorbell_arm(&bell[i].need);
            seen[i] = (uint8_t)__atomic_load_n(&bell[i].head, __ATOMIC_ACQUIRE);
        }
        meet(0, round + 1);
        for (int i = 0; i < BELLS; i++)
            lost += !seen[i] && !asked[i];
    }
    printf("lost=%u rounds=%u\n", lost, round / 2);
    return 0;
}
