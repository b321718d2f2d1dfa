/* Sleeping without losing a wake-up: an eventfd, and a word in shared memory that says "I am going to sleep".
 *
 *   consumer (only writer of the word)      producer
 *   ----------------------------------      ---------------------------
 *   need = 1                                publish (head, release)
 *   fence (seq_cst)                         fence (seq_cst)
 *   look again; if there is nothing:        if need: write(eventfd, 1)
 *     poll(eventfd, at most 100 ms)
 *   need = 0
 *
 * With both fences one of the two sees the other's store (Dekker); without either both may miss, even on x86, whose
 * stores wait in a buffer while later loads go ahead. tests/model/wakeup.pml shows it with and without.
 *
 * Killed between publish and write, a producer leaves a sleeper: whoever learns of a death kicks every bell, and no
 * sleep is longer than PR_DOORBELL_MAX_MS anyway. The consumer killed: need stays 1, the next producer's write goes
 * into an eventfd that nobody reads, which never blocks (EFD_NONBLOCK: a full counter gives EAGAIN). */
#ifndef PR_DOORBELL_H
#define PR_DOORBELL_H

#include <poll.h>
#include <stdint.h>
#include <unistd.h>

#define PR_DOORBELL_MAX_MS 100

static inline void pr_doorbell_arm(uint32_t *need)
{
    __atomic_store_n(need, 1, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* pairs with pr_doorbell_needed */
}

static inline void pr_doorbell_disarm(uint32_t *need) { __atomic_store_n(need, 0, __ATOMIC_RELAXED); }

/* After publishing: does the consumer have to be woken? */
static inline int pr_doorbell_needed(const uint32_t *need)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* pairs with pr_doorbell_arm */
    return __atomic_load_n(need, __ATOMIC_RELAXED) != 0;
}

/* An eventfd of -1 is nobody's. */
static inline void pr_doorbell_ring(int efd)
{
    uint64_t one = 1;
    if (efd >= 0 && write(efd, &one, sizeof one) < 0) {
        /* EAGAIN: it is ringing already. Anything else: the sleeper wakes by itself within 100 ms. */
    }
}

static inline void pr_doorbell_kick(const uint32_t *need, int efd)
{
    if (pr_doorbell_needed(need))
        pr_doorbell_ring(efd);
}

/* Wait for the ring and take it in. A signal ends the wait too; so does nothing at all, after timeout_ms. */
static inline void pr_doorbell_sleep(int efd, int timeout_ms)
{
    struct pollfd p = {.fd = efd, .events = POLLIN};
    uint64_t rings;
    if (poll(&p, 1, timeout_ms < PR_DOORBELL_MAX_MS ? timeout_ms : PR_DOORBELL_MAX_MS) > 0 &&
        read(efd, &rings, sizeof rings) < 0)
        return; /* another holder of the eventfd read it first */
}

static inline void pr_relax(void)
{
#if defined __x86_64__ || defined __i386__
    __builtin_ia32_pause();
#elif defined __aarch64__
    __asm__ volatile("yield");
#endif
}

/* Look `spins` times, then sleep once. Whether ready(arg) in the end. */
static inline int pr_doorbell_wait(uint32_t *need, int efd, uint32_t spins, int timeout_ms, int (*ready)(void *),
                                   void *arg)
{
    for (; !ready(arg); spins--, pr_relax())
        if (!spins) {
            pr_doorbell_arm(need);
            if (!ready(arg))
                pr_doorbell_sleep(efd, timeout_ms);
            pr_doorbell_disarm(need);
            return ready(arg);
        }
    return 1;
}

#endif
