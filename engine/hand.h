/* Frames in a worker's hands: taken out of a receive ring or a lane, not yet in a transmit ring or a lane.
 *
 *      receive ring ── lift ──▶ descriptors in a batch ── lay ──▶ transmit ring
 *         slot gets a spare       the worker OWNs their         the slot's old buffer
 *         of the worker's         buffers, one by one            goes home
 *
 * A frame is one descriptor, or several that follow each other: all but the last have PR_NS_MOREFRAG in their flags.
 * Facts about it (struct pr_meta) lie beside its first buffer. A descriptor of 0 is a hole: its buffer went elsewhere.
 *
 * Killed at any instruction: every buffer in a batch says OWNED by this worker and lies in no ring or lane, so the heir
 * finds it by that and sends it home; its frame is lost with it, and counted. Between the two stores of a lift or lay a
 * buffer may lie in a slot and in the batch at once, or a slot may still name one that went home: pr_rings_mend. */
#ifndef PR_HAND_H
#define PR_HAND_H

#include "lane.h"
#include "move.h"

#define PR_BURST 64                                /* slots of a burst: what a killed worker may lose */
#define PR_BATCH_DESC (PR_BURST + PR_MAX_FRAGS)    /* and room for the frame that is longer than the rest of it */
#define PR_DONE (-1)                               /* verdict: whoever looked at the frame keeps or drops it */

/* A burst of frames in hand. */
struct pr_batch {
    uint32_t n, n_desc;
    uint64_t desc[PR_BATCH_DESC];
    uint16_t first[PR_BURST + 1]; /* frame i is desc[first[i]] .. desc[first[i + 1] - 1] */
    int32_t verdict[PR_BURST];    /* PR_DONE, or the number of the port that the frame goes to */
};

static inline void pr_batch_begin(struct pr_batch *b) { b->n = b->n_desc = b->first[0] = 0; }

/* Is there room for a frame of so many slots? */
static inline int pr_batch_room(const struct pr_batch *b, uint32_t slots)
{
    return b->n < PR_BURST && b->n_desc + slots <= PR_BATCH_DESC;
}

/* Descriptors desc[n_desc .. n_desc + slots) have been written: they are the next frame. */
static inline void pr_batch_close(struct pr_batch *b, uint32_t slots)
{
    b->n_desc += slots;
    b->verdict[b->n] = PR_DONE;
    b->first[++b->n] = (uint16_t)b->n_desc;
}

/* Add a frame that is given as descriptors. */
static inline void pr_batch_add(struct pr_batch *b, const uint64_t *desc, uint32_t slots)
{
    for (uint32_t i = 0; i < slots; i++)
        b->desc[b->n_desc + i] = desc[i];
    pr_batch_close(b, slots);
}

/* Slots of the frame that begins at desc[0], of which `n` descriptors are there; 0 = its end is not among them. */
static inline uint32_t pr_desc_slots(const uint64_t *desc, uint32_t n)
{
    for (uint32_t k = 0; k < n && k < PR_MAX_FRAGS; k++)
        if (!(pr_desc_flags(desc[k]) & PR_NS_MOREFRAG))
            return k + 1;
    return 0;
}

static inline uint32_t pr_desc_frame_len(const uint64_t *desc, uint32_t slots)
{
    uint32_t len = 0;
    for (uint32_t k = 0; k < slots; k++)
        len += pr_desc_len(desc[k]);
    return len;
}

/* Buffers of descriptors go home, holes are passed over. */
static inline void pr_hand_free(struct pr_pool *pool, const uint64_t *desc, uint32_t n)
{
    uint32_t bufs[PR_BATCH_DESC];
    for (uint32_t at = 0; at < n;) {
        uint32_t k = 0;
        for (; at < n && k < PR_BATCH_DESC; at++)
            if (desc[at])
                bufs[k++] = pr_desc_idx(desc[at]);
        pr_pool_give(pool, bufs, k);
    }
}

/* Take the frame at slot i of a receive ring into desc[0..slots): each slot gets a spare buffer. slots, or 0 = the pool
 * has too few. The caller has checked the slots. */
static inline uint32_t pr_hand_lift(struct pr_pool *pool, struct pr_ringh *from, uint32_t i, uint32_t slots, uint64_t *desc)
{
    uint32_t spare[PR_MAX_FRAGS], got = pr_pool_take(pool, spare, slots);
    if (got < slots) {
        pr_pool_give(pool, spare, got);
        return 0;
    }
    for (uint32_t k = 0; k < slots; k++, i = pr_next(from, i)) {
        struct pr_slot *s = &from->ring->slot[i];
        desc[k] = pr_desc(s->buf_idx, s->len, s->flags & PR_NS_MOREFRAG);
        s->buf_idx = spare[k];
        s->flags = PR_NS_BUF_CHANGED;
    }
    return slots;
}

/* Put a frame into a transmit ring from slot `at` on; the slots' old buffers go home. slots, or 0 = no room. */
static inline uint32_t pr_hand_lay(struct pr_pool *pool, const uint64_t *desc, uint32_t slots, struct pr_ringh *to, uint32_t at)
{
    uint32_t old[PR_MAX_FRAGS];
    if (pr_tx_room(to, at) < slots)
        return 0;
    for (uint32_t k = 0; k < slots; k++, at = pr_next(to, at)) {
        struct pr_slot *s = &to->ring->slot[at];
        old[k] = s->buf_idx;
        s->buf_idx = pr_desc_idx(desc[k]);
        s->len = pr_desc_len(desc[k]);
        s->flags = (uint16_t)((pr_desc_flags(desc[k]) & PR_NS_MOREFRAG) | PR_NS_BUF_CHANGED);
    }
    pr_pool_give(pool, old, slots);
    return slots;
}

#endif
