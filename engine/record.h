/* A worker's record in the engine's memory: is it alive, does it get on, what is asked of it.
 *
 *   line 0, 1   the worker writes     progress moves each turn: a worker that has work and no progress is stuck
 *   line 2      the controller writes ask: go on, or stop at the next burst boundary; `gen` of the worker that is meant;
 *               and gather_ns, at any time
 *
 * Killed at any instruction: each word is true by itself. The heir goes on counting where the dead one stopped. */
#ifndef PR_RECORD_H
#define PR_RECORD_H

#include <stdint.h>

enum pr_worker_state { PR_WS_NONE, PR_WS_STARTING, PR_WS_RUNNING, PR_WS_STOPPED };
enum pr_worker_ask { PR_ASK_GO, PR_ASK_STOP };

struct pr_worker_record {
    uint64_t progress;
    uint64_t bursts, sleeps;
    uint64_t drop_tx_full; /* frames in hand for which a transmit ring, or the way to one, had no room */
    uint64_t start;        /* of the process `pid`: field 22 of /proc/PID/stat */
    uint32_t state, pid;
    uint32_t busy;         /* there was something to do when it last looked up */
    uint32_t spare;
    uint8_t pad0[72];
    uint32_t ask, gen;
    uint32_t gather_ns; /* for how long it may let frames come together: dev.netmap.generic_mit */
    uint8_t pad1[52];
};
_Static_assert(sizeof(struct pr_worker_record) == 192, "two lines and one");

static inline void pr_record_add(uint64_t *counter, uint64_t n)
{
    __atomic_store_n(counter, *counter + n, __ATOMIC_RELAXED);
}

#endif
