/* The ledger: who owns which buffer. One u64 a buffer, the owner word, in memory that only the engine maps.
 *
 *    63    56 55       40 39              16 15      0
 *   +--------+-----------+------------------+---------+
 *   | state  |   owner   |    generation    |   aux   |      stored and loaded whole: never torn, never half true
 *   +--------+-----------+------------------+---------+
 *    FREE     process     of that process    0            in that process's private stack
 *    OWNED    process     of that process    0            it may read and write the buffer
 *    INFLIGHT lane        of the producer    position     put into the lane, not yet taken out of it
 *    LENT     app         of the lender      0            in the app's rings: the app may write it at any moment
 *    KERNEL   port        of the socket      0            in an AF_XDP socket's rings: the kernel may
 *    RESERVED 0           0                  0            buffers 0 and 1 (netmap's "none" and "sink"), or never dealt
 *
 * The word names who may write it next, so there is one writer at a time and no lock. The legal changes:
 *
 *   Who        Change                 When
 *   --------   --------------------   -------------------------------------------------------------------------------
 *   process    FREE -> OWNED          take
 *   process    OWNED -> FREE          give
 *   producer   OWNED -> INFLIGHT      hand over: after the payload, before the slot and the lane's head
 *   consumer   INFLIGHT -> OWNED      accept: after the head was seen, before the lane's tail moves
 *   worker     OWNED -> LENT          lend: before the index is published in the app's ring
 *   worker     LENT -> OWNED          unlend: the app returned the index, and it was lent to that very app
 *   worker     OWNED -> KERNEL        before the address goes into the fill or transmit ring
 *   worker     KERNEL -> OWNED        the kernel returned it, through the socket it was given to
 *   heir       (a dead one's) -> FREE reclaim: the dead process is fenced (its pidfd is readable), the socket closed in
 *                                     every holder. INFLIGHT only outside of [tail, head): see lane.h
 *
 * These are PROHIBITED, and refused:
 *
 *   anyone     FREE -> INFLIGHT, LENT, KERNEL   the stack still holds it: it would be handed out a second time
 *   anyone     OWNED(a) -> OWNED(b)             two writers; what a killed a had done with it nobody could tell
 *   producer   INFLIGHT -> anything             the consumer may be reading it
 *   anyone     LENT -> FREE, INFLIGHT, KERNEL   the app may still write it: it has to come back first. Another's index,
 *                                               a duplicate, a double return all fail here: no longer LENT to that app
 *   heir       KERNEL -> FREE, socket open      the kernel would write into a stranger's frame
 *   anyone     OWNED -> FREE, word not mine     a double give
 *
 * Free buffers are found through a stack in ordinary memory of their process. It holds nothing that the words do not
 * say: whoever dies takes its stack along and loses no buffer, pr_pool_rebuild reads the words. Each process has a
 * home, a contiguous range of indexes that was dealt to it, so that two seldom write the same cache line; a buffer from
 * elsewhere may stay or be sent home, through a lane like any other.
 *
 * Killed at any instruction: every operation is one store to one word, before which the buffer is still the giver's and
 * after which it is the taker's. A reclaim that is itself killed is run again. */
#ifndef PR_POOL_H
#define PR_POOL_H

#include <stdint.h>

enum pr_owner_state {
    PR_RESERVED, PR_FREE, PR_OWNED, PR_INFLIGHT, PR_LENT, PR_KERNEL,
    PR_N_OWNER_STATES
};

#define PR_WORD_AUX 0x000000000000ffffull
#define PR_WORD_GEN 0x000000ffffff0000ull
#define PR_WORD_NAME 0xffffff0000000000ull /* state and owner */
#define PR_WORD_ALL (~0ull)

static inline uint64_t pr_word(enum pr_owner_state state, uint16_t owner, uint32_t gen, uint16_t aux)
{
    return (uint64_t)state << 56 | (uint64_t)owner << 40 | ((uint64_t)gen << 16 & PR_WORD_GEN) | aux;
}

static inline unsigned pr_word_state(uint64_t w) { return (unsigned)(w >> 56); }
static inline uint16_t pr_word_owner(uint64_t w) { return (uint16_t)(w >> 40); }
static inline uint32_t pr_word_gen(uint64_t w) { return (uint32_t)((w & PR_WORD_GEN) >> 16); }
static inline uint16_t pr_word_aux(uint64_t w) { return (uint16_t)w; }

/* One process's hold on the ledger; private memory. */
struct pr_pool {
    uint64_t *word;
    uint32_t n;                /* words */
    uint32_t home, home_end;   /* the indexes dealt to this process: [home, home_end) */
    uint32_t depth;            /* free buffers in the stack */
    uint32_t *stack;           /* room for n */
    uint64_t as_free, as_owned; /* what my words say */
    uint64_t refused;          /* operations on a buffer whose word said otherwise */
};

/* owner and gen: this process's. stack: ordinary memory of n entries. Follow with pr_pool_deal or pr_pool_rebuild. */
static inline void pr_pool_init(struct pr_pool *p, uint64_t *word, uint32_t n, uint16_t owner, uint32_t gen,
                                uint32_t home, uint32_t home_end, uint32_t *stack)
{
    *p = (struct pr_pool){.word = word, .n = n, .home = home, .home_end = home_end < n ? home_end : n, .stack = stack,
                          .as_free = pr_word(PR_FREE, owner, gen, 0), .as_owned = pr_word(PR_OWNED, owner, gen, 0)};
}

static inline int pr_pool_is_home(const struct pr_pool *p, uint32_t b) { return b >= p->home && b < p->home_end; }
static inline uint32_t pr_pool_me_gen(const struct pr_pool *p) { return pr_word_gen(p->as_owned); }

static inline uint64_t pr_pool_look(const struct pr_pool *p, uint32_t b)
{
    return __atomic_load_n(&p->word[b], __ATOMIC_ACQUIRE); /* pairs with the store in pr_pool_change */
}

/* Every change of every word that is not a reclaim: only if it says `from` (under `mask`), else it is refused. */
static inline int pr_pool_change(struct pr_pool *p, uint32_t b, uint64_t mask, uint64_t from, uint64_t to)
{
    if (b >= p->n || (pr_pool_look(p, b) & mask) != from) {
        p->refused++;
        return 0;
    }
    __atomic_store_n(&p->word[b], to, __ATOMIC_RELEASE); /* the payload comes first */
    return 1;
}

/* Find my free buffers again, whatever my stack said. They come out lowest first. */
static inline void pr_pool_rebuild(struct pr_pool *p)
{
    p->depth = 0;
    for (uint32_t b = p->n; b-- > 0;)
        if (pr_pool_look(p, b) == p->as_free)
            p->stack[p->depth++] = b;
}

/* Make my home FREE; nobody else knows of these buffers yet. */
static inline void pr_pool_deal(struct pr_pool *p)
{
    for (uint32_t b = p->home; b < p->home_end; b++)
        __atomic_store_n(&p->word[b], p->as_free, __ATOMIC_RELEASE);
    pr_pool_rebuild(p);
}

/* Up to n free buffers. How many there were. */
static inline uint32_t pr_pool_take(struct pr_pool *p, uint32_t *bufs, uint32_t n)
{
    uint32_t got = 0;
    while (got < n && p->depth) {
        uint32_t b = p->stack[--p->depth];
        if (pr_pool_change(p, b, PR_WORD_ALL, p->as_free, p->as_owned))
            bufs[got++] = b;
    }
    return got;
}

/* Give n buffers back. How many were mine to give; the others are left alone and counted as refused. */
static inline uint32_t pr_pool_give(struct pr_pool *p, const uint32_t *bufs, uint32_t n)
{
    uint32_t given = 0;
    for (uint32_t i = 0; i < n; i++)
        if (pr_pool_change(p, bufs[i], PR_WORD_ALL, p->as_owned, p->as_free)) {
            p->stack[p->depth++] = bufs[i];
            given++;
        }
    return given;
}

static inline int pr_pool_owns(const struct pr_pool *p, uint32_t b)
{
    return b < p->n && pr_pool_look(p, b) == p->as_owned;
}

/* ---- to others and back: 1 = done, 0 = refused ---- */

/* pos: the lane's cursor at which the descriptor will stand. */
static inline int pr_pool_hand_over(struct pr_pool *p, uint32_t b, uint16_t lane, uint32_t pos)
{
    uint64_t to = pr_word(PR_INFLIGHT, lane, pr_pool_me_gen(p), (uint16_t)pos);
    return pr_pool_change(p, b, PR_WORD_ALL, p->as_owned, to);
}

/* A slot whose buffer was reclaimed since (its last consumer was killed halfway) is refused: at most once. */
static inline int pr_pool_accept(struct pr_pool *p, uint32_t b, uint16_t lane, uint32_t pos)
{
    uint64_t from = pr_word(PR_INFLIGHT, lane, 0, (uint16_t)pos);
    return pr_pool_change(p, b, PR_WORD_NAME | PR_WORD_AUX, from, p->as_owned);
}

static inline int pr_pool_lend(struct pr_pool *p, uint32_t b, uint16_t app)
{
    return pr_pool_change(p, b, PR_WORD_ALL, p->as_owned, pr_word(PR_LENT, app, pr_pool_me_gen(p), 0));
}

static inline int pr_pool_unlend(struct pr_pool *p, uint32_t b, uint16_t app)
{
    return pr_pool_change(p, b, PR_WORD_NAME, pr_word(PR_LENT, app, 0, 0), p->as_owned);
}

static inline int pr_pool_to_kernel(struct pr_pool *p, uint32_t b, uint16_t port, uint32_t socket_gen)
{
    return pr_pool_change(p, b, PR_WORD_ALL, p->as_owned, pr_word(PR_KERNEL, port, socket_gen, 0));
}

static inline int pr_pool_from_kernel(struct pr_pool *p, uint32_t b, uint16_t port, uint32_t socket_gen)
{
    return pr_pool_change(p, b, PR_WORD_ALL, pr_word(PR_KERNEL, port, socket_gen, 0), p->as_owned);
}

/* ---- after a death: words of the dead become FREE(me); follow with pr_pool_rebuild. How many were changed. ---- */

static inline uint32_t pr_pool_reclaim(struct pr_pool *p, uint64_t mask, uint64_t of)
{
    uint32_t n = 0;
    for (uint32_t b = 0; b < p->n; b++) {
        uint64_t w = pr_pool_look(p, b);
        if ((w & mask) == of && w != p->as_free && w != p->as_owned) {
            __atomic_store_n(&p->word[b], p->as_free, __ATOMIC_RELEASE);
            n++;
        }
    }
    return n;
}

/* What process `dead` owned, of whatever generation: those in its stack, and those in its hands (the count is of these,
 * since each may have carried a frame). What it was putting into lanes is found by pr_lane_reclaim, lane by lane; its
 * successor produces only after both. */
static inline uint32_t pr_pool_reclaim_process(struct pr_pool *p, uint16_t dead)
{
    pr_pool_reclaim(p, PR_WORD_NAME, pr_word(PR_FREE, dead, 0, 0));
    return pr_pool_reclaim(p, PR_WORD_NAME, pr_word(PR_OWNED, dead, 0, 0));
}

static inline uint32_t pr_pool_reclaim_app(struct pr_pool *p, uint16_t app)
{
    return pr_pool_reclaim(p, PR_WORD_NAME, pr_word(PR_LENT, app, 0, 0));
}

/* Only after the socket of that generation is closed in every process that held it. */
static inline uint32_t pr_pool_reclaim_socket(struct pr_pool *p, uint16_t port, uint32_t socket_gen)
{
    return pr_pool_reclaim(p, PR_WORD_ALL, pr_word(PR_KERNEL, port, socket_gen, 0));
}

/* Buffers in each state; their sum is p->n at any moment of rest. A state that does not exist counts in the last. */
static inline void pr_pool_count(const struct pr_pool *p, uint64_t count[PR_N_OWNER_STATES + 1])
{
    for (int s = 0; s <= PR_N_OWNER_STATES; s++)
        count[s] = 0;
    for (uint32_t b = 0; b < p->n; b++) {
        unsigned s = pr_word_state(pr_pool_look(p, b));
        count[s < PR_N_OWNER_STATES ? s : PR_N_OWNER_STATES]++;
    }
}

#endif
