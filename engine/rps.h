/* Receive packet steering: the hash by which a pktqueue chooses the CPU that processes a frame (CPU = hash % ncpu).
 * NetBSD's four routines (sys/net/pktqueue.c, pktq_rps_hash_*), with the numbers of CPUs given, not asked for.
 *
 * Which routine is a word that may be switched at any moment: whoever hashes reads it relaxed, once a frame or a burst.
 * A switch may reorder the frames of a flow; none is lost, for every value of the word gives some CPU. */
#ifndef PR_RPS_H
#define PR_RPS_H

#include "flow.h"

enum pr_rps {
    PR_RPS_ZERO,     /* everything on CPU 0 */
    PR_RPS_CURCPU,   /* where it came in: the driver's own spreading stays */
    PR_RPS_TOEPLITZ, /* by flow; all that is not IP on CPU 0 */
    PR_RPS_OTHERS,   /* by flow, on all CPUs but the one it came in on */
    PR_RPS_ROUTINES,
};

static const char *const pr_rps_names[PR_RPS_ROUTINES] = {"zero", "curcpu", "toeplitz", "toeplitz-othercpus"};

static inline uint32_t pr_rps_others(uint32_t hash, uint32_t ncpu, uint32_t curcpu)
{
    if (ncpu < 2)
        return 0;
    uint32_t cpu = hash % (ncpu - 1);
    return cpu >= curcpu ? cpu + 1 : cpu;
}

/* `t` is prepared with the Microsoft key. A routine that does not exist is zero. */
static inline uint32_t pr_rps_hash(uint32_t routine, const uint8_t *frame, uint32_t len, const struct pr_toeplitz_table *t,
                                   uint32_t ncpu, uint32_t curcpu)
{
    int kind;
    switch (routine) {
    case PR_RPS_CURCPU: return curcpu;
    case PR_RPS_TOEPLITZ: return pr_flow_hash(frame, len, t, &kind);
    case PR_RPS_OTHERS: return pr_rps_others(pr_flow_hash(frame, len, t, &kind), ncpu, curcpu);
    default: return 0;
    }
}

#endif
