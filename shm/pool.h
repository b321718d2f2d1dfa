/* The ledger: who owns which buffer. One u64 a buffer, the owner word, in memory that only the engine maps.
 *
 *    63    56 55       40 39              16 15      0
 *   +--------+-----------+------------------+---------+
 *   | state  |   owner   |    generation    |   aux   |      stored and loaded whole: never torn, never half true
 *   +--------+-----------+------------------+---------+
 *    RESERVED 0           0                  0            buffers 0 and 1 (netmap's "none" and "sink"), or never dealt
 *    FREE     process     0                  0            at home: that process may take it
 *    OWNED    process     of that process    0            it may read and write the buffer
 *    INFLIGHT lane        of the producer    position     put into the lane, not yet taken out of it
 *    LENT     app         of the lender      0            in the app's rings: the app may write it at any moment
 *    KERNEL   port        of the socket      0            in an AF_XDP socket's rings: the kernel may
 *
 * The word names who may write it next, so there is one writer at a time and no lock. Process ids start at 1 and each
 * has a home, the same number of consecutive buffers: buffer b lives with process 1 + (b - 2) / home_size. A process
 * takes buffers only from its home, and whoever gives one back sends it home; there is no shared free list. A process
 * that replaces a dead one has the same id and a new generation, and finds the home as it is.
 *
 * The legal changes:
 *
 *   Who        Change                 When
 *   --------   --------------------   -------------------------------------------------------------------------------
 *   process    RESERVED -> FREE       deal: its home, before its first take
 *   process    FREE -> OWNED          take: FREE(itself) only
 *   process    OWNED -> FREE(home)    give
 *   producer   OWNED -> INFLIGHT      hand over: after the payload, before the slot and the lane's head
 *   consumer   INFLIGHT -> OWNED      accept: after the head was seen, before the lane's tail moves
 *   worker     OWNED -> LENT          lend: before the index is published in the app's ring
 *   worker     LENT -> OWNED          unlend: the app returned the index, and it was lent to that very app
 *   worker     OWNED -> KERNEL        before the address goes into the fill or transmit ring
 *   worker     KERNEL -> OWNED        the kernel returned it, through the socket it was given to
 *   heir       dead one's -> FREE     reclaim: the dead process is fenced (its pidfd is readable), the socket closed in
 *                                     every holder. INFLIGHT only outside of [tail, head): see lane.h
 *   heir       dead one's OWNED ->    mend: it lies in a slot of the dead one's rings, and in one only: mend.h. What is in
 *              OWNED(heir)            a slot that holds no frame is only room
 *
 * These are PROHIBITED, and refused:
 *
 *   anyone     FREE -> INFLIGHT, LENT, KERNEL   a stack still holds it: it would be handed out a second time
 *   anyone     OWNED(a) -> OWNED(b)             two writers; what a killed a had done with it nobody could tell
 *   producer   INFLIGHT -> anything             the consumer may be reading it
 *   anyone     LENT -> FREE, INFLIGHT, KERNEL   the app may still write it: it has to come back first. Another's index,
 *                                               a duplicate, a double return all fail here: no longer LENT to that app
 *   heir       KERNEL -> FREE, socket open      the kernel would write into a stranger's frame
 *   anyone     OWNED -> FREE, word not mine     a double give
 *
 * The stack is ordinary memory of its process and holds nothing that the words do not say: free buffers of the home,
 * most recently given on top. When it is dry it is filled from the words; whoever dies takes its stack along and loses
 * no buffer.
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

#define PR_FIRST_BUF 2u    /* 0 and 1 belong to nobody */
#define PR_POOL_REFILL 256 /* free buffers looked for when the stack is dry */

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
    uint32_t n;                 /* words */
    uint32_t home_size;
    uint32_t home, home_end;    /* mine: [home, home_end) */
    uint64_t as_free, as_owned; /* what my words say */
    uint32_t *stack;            /* room for home_size */
    uint32_t depth;             /* buffers in it */
    uint32_t hand, high;        /* where to look next for free buffers, in [home, high) */
    uint64_t refused;           /* operations on a buffer whose word said otherwise */
};

/* owner (from 1 on) and gen: this process's. stack: ordinary memory of home_size entries. */
static inline void pr_pool_init(struct pr_pool *p, uint64_t *word, uint32_t n, uint16_t owner, uint32_t gen,
                                uint32_t home_size, uint32_t *stack)
{
    uint64_t home = PR_FIRST_BUF + (uint64_t)(owner - 1u) * home_size, end = home + home_size;
    *p = (struct pr_pool){.word = word, .n = n, .home_size = home_size, .home = (uint32_t)(home < n ? home : n),
                          .home_end = (uint32_t)(end < n ? end : n), .as_free = pr_word(PR_FREE, owner, 0, 0),
                          .as_owned = pr_word(PR_OWNED, owner, gen, 0), .stack = stack};
    p->hand = p->high = p->home;
}

static inline int pr_pool_is_home(const struct pr_pool *p, uint32_t b) { return b >= p->home && b < p->home_end; }

/* What the word of b says when b is free. */
static inline uint64_t pr_pool_at_home(const struct pr_pool *p, uint32_t b)
{
    if (pr_pool_is_home(p, b))
        return p->as_free;
    return pr_word(PR_FREE, (uint16_t)(1 + (b - PR_FIRST_BUF) / p->home_size), 0, 0);
}

static inline uint64_t pr_pool_look(const struct pr_pool *p, uint32_t b)
{
    return __atomic_load_n(&p->word[b], __ATOMIC_ACQUIRE); /* pairs with pr_pool_store */
}

static inline void pr_pool_store(struct pr_pool *p, uint32_t b, uint64_t word)
{
    __atomic_store_n(&p->word[b], word, __ATOMIC_RELEASE); /* what was done with the buffer comes first */
}

/* Every change of every word that is not dealt or reclaimed: only if it says `from` (under `mask`), else refused. */
static inline int pr_pool_change(struct pr_pool *p, uint32_t b, uint64_t mask, uint64_t from, uint64_t to)
{
    if (b >= p->n || (pr_pool_look(p, b) & mask) != from) {
        p->refused++;
        return 0;
    }
    pr_pool_store(p, b, to);
    return 1;
}

/* Make those buffers of my home FREE that were never dealt. */
static inline void pr_pool_deal(struct pr_pool *p)
{
    for (uint32_t b = p->home; b < p->home_end; b++)
        if (pr_word_state(pr_pool_look(p, b)) == PR_RESERVED)
            pr_pool_store(p, b, p->as_free);
}

/* Forget the stack and what was looked through. */
static inline void pr_pool_rebuild(struct pr_pool *p)
{
    p->depth = 0;
    p->hand = p->high = p->home;
}

/* Fill a dry stack from the words. The hand goes round over the part of the home that is in use, [home, high), so that
 * it meets buffers in the order in which they come back, and reads few words that others are just writing; that part
 * grows when a round finds too little. It goes downwards because the stack turns the order round. */
static inline void pr_pool_refill(struct pr_pool *p)
{
    for (uint32_t left = p->high - p->home;;) {
        for (; left && p->depth < PR_POOL_REFILL; left--) {
            p->hand = (p->hand == p->home ? p->high : p->hand) - 1;
            if (pr_pool_look(p, p->hand) == p->as_free)
                p->stack[p->depth++] = p->hand;
        }
        if (p->depth >= PR_POOL_REFILL / 2 || p->high == p->home_end)
            return;
        left = p->home_end - p->high < PR_POOL_REFILL ? p->home_end - p->high : PR_POOL_REFILL;
        p->hand = p->high += left;
    }
}

/* Up to n free buffers. How many there were. */
static inline uint32_t pr_pool_take(struct pr_pool *p, uint32_t *bufs, uint32_t n)
{
    uint32_t got = 0;
    while (got < n) {
        if (!p->depth)
            pr_pool_refill(p);
        if (!p->depth)
            break;
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
    for (uint32_t i = 0; i < n; i++) {
        uint32_t b = bufs[i];
        if (!pr_pool_change(p, b, PR_WORD_ALL, p->as_owned, pr_pool_at_home(p, b)))
            continue;
        if (pr_pool_is_home(p, b))
            p->stack[p->depth++] = b;
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
    uint64_t to = pr_word(PR_INFLIGHT, lane, pr_word_gen(p->as_owned), (uint16_t)pos);
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
    return pr_pool_change(p, b, PR_WORD_ALL, p->as_owned, pr_word(PR_LENT, app, pr_word_gen(p->as_owned), 0));
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

/* ---- after a death: words of the dead go home. How many were changed. ---- */

static inline uint32_t pr_pool_reclaim(struct pr_pool *p, uint64_t mask, uint64_t of)
{
    uint32_t n = 0;
    for (uint32_t b = PR_FIRST_BUF; b < p->n; b++) {
        uint64_t w = pr_pool_look(p, b);
        if ((w & mask) == of && w != p->as_owned) {
            pr_pool_store(p, b, pr_pool_at_home(p, b));
            n++;
        }
    }
    return n;
}

/* What process `dead` had in its hands, whatever its generation; each may have carried a frame. What it was putting
 * into lanes is found by pr_lane_reclaim, lane by lane; its successor produces only after both. */
static inline uint32_t pr_pool_reclaim_process(struct pr_pool *p, uint16_t dead)
{
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
