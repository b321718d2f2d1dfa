/* What the engine knows of an attached app: its record in the engine's memory. The few words that the two sides tell each
 * other in the app's own rings are in shm/app_words.h.
 *
 *   engine's memory, one record an app         word by word, who writes it
 *   +------------------------------------+
 *   | state                              |     controller; a worker only LIVE -> QUARANTINED, by compare and swap
 *   | generation, id, mode, port ...     |     controller, before LIVE
 *   +------------------------------------+
 *   | side 0: held, seen, fault, counters|     worker 0
 *   | side 1: ...                        |     worker 1
 *   +------------------------------------+
 *
 *            attach                  a worker sees a breach
 *     NONE ---------> LIVE ------------------------------> QUARANTINED
 *      ^                \ detach, death                       / detach, death
 *      |                 `----------> LEAVING <--------------'
 *      `------------------------------'   each living worker that `held` it has `seen` its end
 *
 * A worker takes hold: held = generation, fence, and only if the state is LIVE then. The controller: LEAVING, fence, and
 * only then looks at held. One of the two sees the other's store.
 *
 * These are PROHIBITED: LEAVING -> LIVE (workers may have let go), LENT -> FREE before every `seen` (a worker would hand
 * the buffer out once more), and before the app's process is gone or has closed the port (it may still write).
 *
 * Killed at any instruction: a controller before LIVE leaves a record that no worker looks at, and buffers LENT to an id
 * that is not live, which its successor reclaims; a worker after QUARANTINED leaves its fault, which it stored first. */
#ifndef PR_BORDER_RECORD_H
#define PR_BORDER_RECORD_H

#include "app_words.h"

#define PR_MAX_APPS 16
#define PR_APP_SIDES 64     /* workers */
#define PR_APP_BAD_MOST 16  /* wrong indexes in one second, and the app is in quarantine */

enum pr_app_mode { PR_APP_COPY, PR_APP_CONSUME };
enum pr_app_field { PR_APP_NO_FIELD, PR_APP_HEAD, PR_APP_CUR, PR_APP_IDX };

/*          name             what it counts; offered = copied + consumed + drop_app_full */
#define PR_APP_COUNTER_LIST(X)                                                                                         \
    X(offered, "frames of the port that the app's filter matched")                                                     \
    X(copied, "of those, copied into its ring")                                                                        \
    X(consumed, "of those, given to it: they go nowhere else")                                                         \
    X(drop_app_full, "of those, dropped because its ring had no room, or no buffer was to be had")                     \
    X(rx_bytes, "bytes copied or given to it")                                                                         \
    X(tx_frames, "frames that it sent")                                                                                \
    X(tx_bytes, "their bytes")                                                                                         \
    X(drop_bad_idx, "its frames in buffers that do not exist")                                                         \
    X(drop_not_owner, "its frames in buffers that are not, or no longer, lent to it")                                  \
    X(drop_bad_len, "its frames with an empty first, or a too long slot")                                              \
    X(drop_bad_flags, "its frames with unknown flags, or in chains too long")                                          \
    X(drop_crash, "its frames in the hands of a worker that died")                                                     \
    X(violations, "rules broken: cursors out of range, wrong buffers sent or given back")

enum pr_app_counter {
#define X(name, text) PR_AC_##name,
    PR_APP_COUNTER_LIST(X)
#undef X
    PR_N_APP_COUNTERS
};

/* The last rule broken. `field` is stored last. */
struct pr_app_fault {
    uint32_t field; /* enum pr_app_field */
    uint32_t dir;   /* PR_RX, PR_TX: which ring of the pair */
    uint64_t value; /* what it said */
    uint64_t limit; /* HEAD, CUR: slots of the ring; IDX: the buffer's owner word, 0 = there is no such buffer */
};

struct pr_app_side {
    uint32_t held; /* generation of the app whose rings this worker has, or had, its hands on */
    uint32_t seen; /* generation of the app that it has let go of */
    struct pr_app_fault fault;
    uint64_t v[20];
};
_Static_assert(sizeof(struct pr_app_side) == 192 && PR_N_APP_COUNTERS <= 20, "three lines a worker");

struct pr_app_record {
    uint32_t state;
    uint32_t generation; /* of this place's app; never 0 while there is one */
    uint16_t id;         /* what owner words say: LENT(id) */
    uint16_t mode;       /* enum pr_app_mode */
    uint16_t trusted;    /* its rings lie in the region, and its buffers are lent */
    uint16_t port;
    uint32_t sides;      /* workers that serve it */
    uint32_t pid, uid, slots;
    uint8_t spare[32];
    struct pr_app_side side[PR_APP_SIDES];
};
_Static_assert(sizeof(struct pr_app_record) == 64 + 192 * PR_APP_SIDES, "record");

static inline void pr_app_count(struct pr_app_side *s, enum pr_app_counter c, uint64_t n)
{
    __atomic_store_n(&s->v[c], s->v[c] + n, __ATOMIC_RELAXED);
}

#endif
