/* A lane: a single-producer single-consumer ring of descriptors in memory shared by trusted processes.
 *
 *          line 0            line 1            line 2         from line 3 on
 *   +-----------------+-----------------+-----------------+----+----+----+----+----+----+----+----+
 *   | capacity, id    |      head       |      tail       |    | d2 | d3 | d4 |    |    |    |    |   u64 each
 *   | written once    | producer writes | consumer writes |    |    |    |    |    |    |    |    |
 *   +-----------------+-----------------+-----------------+----+----+----+----+----+----+----+----+
 *                                                                ^tail          ^head
 *   descriptor:  63  flags  48 47  length  32 31  buffer index  0
 *
 * Cursors run free (u32) and are masked at each use; head - tail descriptors are in flight, at most `capacity`, a power
 * of two. Each side keeps its own cursor and its last view of the other's in private memory (struct pr_lane_end), only
 * stores its own, and reads the other's once a burst. A cursor that makes no sense puts the lane into quarantine: it
 * looks full to its producer and empty to its consumer for ever, and `broken` says so. Nothing is clamped.
 *
 * The legal changes, in the order of a burst's life:
 *
 *   Who        Change                          When
 *   --------   -----------------------------   ----------------------------------------------------------------------
 *   producer   owner word OWNED -> INFLIGHT    its payload is written; the word holds the position too
 *   producer   slot[head + i] = descriptor     i < capacity - (head - tail)
 *   producer   head += n (release)             after the n words and slots: the consumer now sees them all, before none
 *   consumer   owner word INFLIGHT -> OWNED    the slot is in [tail, head), the word names this lane and position
 *   consumer   tail += n (release)             the words are its own, the slots copied: the producer may reuse them
 *   heir       end of the dead taken over      fenced; its cursor read back from the lane (pr_lane_attach)
 *   heir       INFLIGHT -> FREE                the producer is fenced, the position not in [tail, head)
 *
 * These are PROHIBITED:
 *
 *   producer   head before the owner words     killed between, the buffer is both in the lane and the dead one's: twice
 *   producer   writing a slot in [tail, head)  the consumer may be reading it
 *   producer   owner word back to OWNED        it cannot know whether the consumer has seen the head
 *   consumer   tail before the owner words     killed between, a buffer out of the lane still says INFLIGHT: lost; and
 *                                              a reclaim would take it for one that was never published
 *   consumer   using a frame before its word   killed there, its heir would do the frame a second time
 *   either     the other's cursor              two writers of one word
 *   either     its own cursor backwards        frames twice, or slots that nobody owns
 *   heir       producing before pr_lane_reclaim  new positions would hide the dead one's unpublished words
 *
 * Killed at any instruction, producer: what is published is the consumer's; words that are INFLIGHT beyond head, and
 * those OWNED by the dead, are reclaimed. Consumer: words it had made OWNED are reclaimed (at most one burst, every
 * frame of it lost and counted, none done twice); a new consumer that meets their slots again finds words that do not
 * name the slot's position, and skips them. */
#ifndef PR_LANE_H
#define PR_LANE_H

#include "desc.h"
#include "pool.h"

#include <stddef.h>

#define PR_LANE_MAX 65536u /* slots: a position must fit the owner word's aux */

struct pr_lane {
    uint32_t capacity, id;
    uint8_t pad0[56];
    uint32_t head;
    uint8_t pad1[60];
    uint32_t tail;
    uint8_t pad2[60];
    uint64_t slot[];
} __attribute__((aligned(64)));
_Static_assert(offsetof(struct pr_lane, head) == 64 && offsetof(struct pr_lane, tail) == 128 &&
               offsetof(struct pr_lane, slot) == 192, "a cache line for each writer");

enum pr_lane_side { PR_PRODUCER, PR_CONSUMER };

/* One side's private hold on a lane. */
struct pr_lane_end {
    struct pr_lane *lane;
    uint32_t capacity; /* a private copy, checked once */
    uint32_t mine;     /* my cursor; the lane's copy is only ever written */
    uint32_t peer;     /* the other's, as last read */
    uint16_t id;
    uint16_t broken;   /* quarantined */
    uint64_t skipped;  /* consumer: slots whose buffer had been reclaimed, or that name none */
};

static inline size_t pr_lane_size(uint32_t capacity) { return sizeof(struct pr_lane) + 8ull * capacity; }

static inline int pr_lane_capacity_ok(uint32_t capacity)
{
    return capacity && !(capacity & (capacity - 1)) && capacity <= PR_LANE_MAX;
}

/* Make a lane in pr_lane_size(capacity) bytes, 64-aligned, that nobody else uses yet. */
static inline void pr_lane_format(struct pr_lane *l, uint16_t id, uint32_t capacity)
{
    l->capacity = capacity;
    l->id = id;
    __atomic_store_n(&l->tail, 0, __ATOMIC_RELEASE);
    __atomic_store_n(&l->head, 0, __ATOMIC_RELEASE);
}

/* Take an end of the lane in `bytes` bytes, where its last holder left it. 0, or -1: this is no lane. */
static inline int pr_lane_attach(struct pr_lane_end *e, struct pr_lane *l, size_t bytes, enum pr_lane_side side)
{
    if (bytes < sizeof *l)
        return -1;
    uint32_t capacity = __atomic_load_n(&l->capacity, __ATOMIC_RELAXED), id = __atomic_load_n(&l->id, __ATOMIC_RELAXED);
    uint32_t tail = __atomic_load_n(&l->tail, __ATOMIC_ACQUIRE), head = __atomic_load_n(&l->head, __ATOMIC_ACQUIRE);
    if (!pr_lane_capacity_ok(capacity) || bytes < pr_lane_size(capacity) || id > UINT16_MAX || head - tail > capacity)
        return -1;
    *e = (struct pr_lane_end){.lane = l, .capacity = capacity, .id = (uint16_t)id,
                              .mine = side == PR_PRODUCER ? head : tail, .peer = side == PR_PRODUCER ? tail : head};
    return 0;
}

/* The i-th slot from my cursor on. */
static inline uint64_t *pr_lane_slot(const struct pr_lane_end *e, uint32_t i)
{
    return &e->lane->slot[(e->mine + i) & (e->capacity - 1)];
}

static inline uint32_t pr_lane_quarantine(struct pr_lane_end *e, uint32_t peer)
{
    e->broken = 1;
    e->peer = peer;
    return 0;
}

/* ---- the producer ---- */

/* Up to n slots to fill, from pr_lane_slot(e, 0) on; 0 = full. */
static inline uint32_t pr_lane_reserve(struct pr_lane_end *e, uint32_t n)
{
    if (e->capacity - (e->mine - e->peer) < n && !e->broken) {
        uint32_t tail = __atomic_load_n(&e->lane->tail, __ATOMIC_ACQUIRE); /* pairs with pr_lane_release */
        if (tail - e->peer > e->mine - e->peer)                            /* not in [peer, mine] */
            return pr_lane_quarantine(e, e->mine - e->capacity);
        e->peer = tail;
    }
    uint32_t room = e->capacity - (e->mine - e->peer);
    return room < n ? room : n;
}

/* Publish the first n of them. */
static inline void pr_lane_submit(struct pr_lane_end *e, uint32_t n)
{
    e->mine += n;
    __atomic_store_n(&e->lane->head, e->mine, __ATOMIC_RELEASE); /* after words and slots; pairs with pr_lane_peek */
}

/* Hand buffers that I own over to the consumer. How many: fewer than n when the lane is full, or from a descriptor on
 * whose buffer is not mine (then p->refused grew). */
static inline uint32_t pr_lane_put(struct pr_lane_end *e, struct pr_pool *p, const uint64_t *desc, uint32_t n)
{
    uint32_t room = pr_lane_reserve(e, n), i = 0;
    for (; i < room && pr_pool_hand_over(p, pr_desc_idx(desc[i]), e->id, e->mine + i); i++)
        __atomic_store_n(pr_lane_slot(e, i), desc[i], __ATOMIC_RELAXED);
    if (i)
        pr_lane_submit(e, i);
    return i;
}

/* ---- the consumer ---- */

/* Up to n filled slots, from pr_lane_slot(e, 0) on; 0 = empty. */
static inline uint32_t pr_lane_peek(struct pr_lane_end *e, uint32_t n)
{
    if (e->peer - e->mine < n && !e->broken) {
        uint32_t head = __atomic_load_n(&e->lane->head, __ATOMIC_ACQUIRE); /* pairs with pr_lane_submit */
        if (head - e->mine > e->capacity || head - e->mine < e->peer - e->mine) /* too far, or moved back */
            return pr_lane_quarantine(e, e->mine);
        e->peer = head;
    }
    uint32_t ready = e->peer - e->mine;
    return ready < n ? ready : n;
}

/* Let the producer reuse the first n of them. */
static inline void pr_lane_release(struct pr_lane_end *e, uint32_t n)
{
    e->mine += n;
    __atomic_store_n(&e->lane->tail, e->mine, __ATOMIC_RELEASE); /* after words and slots; pairs with pr_lane_reserve */
}

/* Take up to n buffers over from the producer: they are mine when this returns. How many; 0 = nothing there. */
static inline uint32_t pr_lane_take(struct pr_lane_end *e, struct pr_pool *p, uint64_t *desc, uint32_t n)
{
    uint32_t got = 0;
    for (uint32_t ready; !got && (ready = pr_lane_peek(e, n)); pr_lane_release(e, ready))
        for (uint32_t i = 0; i < ready; i++) {
            uint64_t d = __atomic_load_n(pr_lane_slot(e, i), __ATOMIC_RELAXED);
            if (pr_pool_accept(p, pr_desc_idx(d), e->id, e->mine + i))
                desc[got++] = d;
            else
                e->skipped++;
        }
    return got;
}

/* ---- after the producer's death ---- */

/* Buffers whose words say "in this lane" but that were never published go home. How many.
 * The consumer may be at work: [tail, head) only shrinks from the tail, so what lies outside of it now is nobody's. */
static inline uint32_t pr_lane_reclaim(const struct pr_lane_end *e, struct pr_pool *p)
{
    uint32_t tail = __atomic_load_n(&e->lane->tail, __ATOMIC_ACQUIRE); /* before the words are read */
    uint32_t head = __atomic_load_n(&e->lane->head, __ATOMIC_ACQUIRE), mask = e->capacity - 1, n = 0;
    for (uint32_t b = PR_FIRST_BUF; b < p->n; b++) {
        uint64_t w = pr_pool_look(p, b);
        if ((w & PR_WORD_NAME) != pr_word(PR_INFLIGHT, e->id, 0, 0))
            continue;
        uint32_t at = (pr_word_aux(w) - tail) & mask;
        uint64_t d = __atomic_load_n(&e->lane->slot[(tail + at) & mask], __ATOMIC_RELAXED);
        if (at < head - tail && pr_desc_idx(d) == b)
            continue;
        pr_pool_store(p, b, pr_pool_at_home(p, b));
        n++;
    }
    return n;
}

#endif
