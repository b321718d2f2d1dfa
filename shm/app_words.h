/* The few words that an attached app and the engine tell each other in the app's own rings, beside netmap's: believed by
 * nobody but their reader, who only loses by lying. Both sides include this; the engine's is engine/border.h, the app's
 * is app_device.h. */
#ifndef PR_APP_WORDS_H
#define PR_APP_WORDS_H

#include "desc.h"
#include "ring.h"

enum pr_app_state { PR_APP_NONE, PR_APP_LIVE, PR_APP_LEAVING, PR_APP_QUARANTINED };

/* In pr_ring.pad, from the engine. */
struct pr_app_told {
    uint32_t state;   /* enum pr_app_state; NONE = no worker has looked yet */
    uint32_t need;    /* the worker sleeps: ring when this is not what it was when you last rang */
    uint64_t dropped; /* RX: frames dropped for want of room, so far */
};
/* In pr_ring.sem, from the app. */
struct pr_app_asks {
    uint32_t need; /* the same, the other way round */
};
_Static_assert(sizeof(struct pr_app_told) <= sizeof(((struct pr_ring *)0)->pad) && offsetof(struct pr_ring, pad) % 8 == 0,
               "room beside netmap's words");

static inline struct pr_app_told *pr_app_told(const struct pr_ringh *h) { return (struct pr_app_told *)h->ring->pad; }
static inline struct pr_app_asks *pr_app_asks(const struct pr_ringh *h) { return (struct pr_app_asks *)h->ring->sem; }

/* A slot is a descriptor in front of a pointer that nobody here follows: one load, one store. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "a slot's first eight bytes are a descriptor");
typedef uint64_t pr_slot_word __attribute__((may_alias));

static inline uint64_t pr_slot_desc(const struct pr_ringh *h, uint32_t i)
{
    return __atomic_load_n((const pr_slot_word *)&h->ring->slot[i], __ATOMIC_RELAXED);
}

static inline void pr_slot_set(struct pr_ringh *h, uint32_t i, uint64_t desc)
{
    __atomic_store_n((pr_slot_word *)&h->ring->slot[i], desc, __ATOMIC_RELAXED);
}

#endif
