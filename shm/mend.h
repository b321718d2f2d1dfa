/* After a death: the rings of a process are made whole, and its books right, so that an heir goes on with them.
 *
 * Whose they are: a worker is alone in using its rings, both sides of them, and so are its heirs: the same owner id, a new
 * generation. The dead one is fenced (its pidfd is readable), and a controller that mends does so before an heir begins.
 * Rings of owner 0 are not looked at: those that an app holds are put right by whoever serves the app.
 *
 * What a worker does, and a kill may leave at any instruction:
 *   claim      it moves the ring's head over a burst (64 slots at most) before it looks at the frames. So what lies in
 *              [head, tail) nobody has begun with, and what the dead one had claimed nobody does again: at most once
 *   exchange   between two slots (pr_slot_swap), with its hands (pr_hand_lift, pr_hand_lay): half done, a buffer lies in two
 *              slots, or in none; or its word says that it went home or into a lane
 *   receive    slots behind hwtail are filled, hwtail moved and tail not yet; frames are taken and not yet counted, or their
 *              room in a kernel ring not yet given back (`taken`, `handed`, `begun`: ring.h)
 *   send       slots in [hwcur, doubt) may have been sent: nobody can know, so they are passed over
 *
 * pr_rings_mend      cursors: RX, hwtail is published; TX, what was queued is seen and what is in doubt passed over
 *                    slots: those that hold frames keep them ([head, tail) and [hwcur, rhead)); every slot gets one buffer,
 *                    OWNED by the heir's generation, and no buffer two slots: what is twice, or is not the dead one's, makes
 *                    room for one that lay nowhere, else for one of the heir's home, of length 0
 *                    buffers: what was OWNED and lies in no slot goes home
 *   slots whose buffer is LENT or the KERNEL's stay as they are
 * pr_device.resume   the queues go on where the kring says (device.h)
 * pr_settle          drop_crash grows by what the books are short of: the law is in counters.h
 *
 * A mend that is itself killed is run again, by the next heir. Nothing of it holds anything up: the others go on meanwhile,
 * who may give buffers home, and take none.
 *
 * -1 says that no kill leaves things so: a slot that holds a frame names a buffer which cannot hold it, cursors make no
 * sense, the books are out by more than a burst or the other way. The ring is usable, but what went through it is not
 * known any more: never go on with suspect state. */
#ifndef PR_MEND_H
#define PR_MEND_H

#include "pool.h"
#include "ring.h"

struct pr_mended {
    uint32_t rings;     /* that were looked at */
    uint32_t slots;     /* got another buffer */
    uint32_t doubt;     /* slots that were being sent */
    uint32_t reclaimed; /* buffers that were in the dead one's hands */
    uint32_t torn;      /* slots that hold a frame, and not its buffer; rings whose cursors made no sense */
    uint32_t missing;   /* slots for which no buffer was to be found */
};

/* Everything that the steps below share. */
struct pr_mend {
    const struct pr_region *rg;
    struct pr_pool *pool;
    uint64_t dead;  /* what words of the dead say, but for the generation */
    uint8_t *seen;  /* a byte a buffer: lies in a slot */
    uint32_t stray; /* buffers below were looked at by pr_mend_stray */
    struct pr_mended *sum;
};

static inline int pr_mend_is_dead_ones(const struct pr_mend *m, uint32_t b)
{
    return (pr_pool_look(m->pool, b) & PR_WORD_NAME) == m->dead;
}

static inline void pr_mend_cursors(struct pr_mend *m, struct pr_ringh *h)
{
    if (h->k->dir == PR_RX) {
        m->sum->torn += pr_rx_enter(h) < 0;
        pr_rx_publish(h, 0);
        pr_rx_found(h);
        return;
    }
    m->sum->torn += pr_tx_enter(h) < 0;
    uint32_t doubt = h->k->doubt, n = doubt < h->n ? pr_dist(h, h->k->hwcur, doubt) : h->n;
    if (n > pr_tx_pending(h)) {
        m->sum->torn++;
        n = 0;
    }
    m->sum->doubt += n;
    pr_tx_done(h, n);
}

/* The slot keeps its buffer if nobody else has it, else names none. 1 = it keeps it. */
static inline int pr_mend_keep(struct pr_mend *m, struct pr_slot *s)
{
    uint32_t b = s->buf_idx;
    if (pr_buf_ok(m->rg, b) && !m->seen[b]) {
        unsigned state = pr_word_state(pr_pool_look(m->pool, b));
        int mine = pr_mend_is_dead_ones(m, b);
        if (mine && !pr_pool_owns(m->pool, b))
            pr_pool_store(m->pool, b, m->pool->as_owned);
        if (mine || state == PR_LENT || state == PR_KERNEL)
            return m->seen[b] = 1;
    }
    __atomic_store_n(&s->buf_idx, 0, __ATOMIC_RELEASE);
    m->sum->slots++;
    return 0;
}

/* Slots that hold frames first: the others have nothing to lose. */
static inline void pr_mend_keep_all(struct pr_mend *m, struct pr_ringh *h, int with_frames)
{
    struct pr_kring *k = h->k;
    uint32_t from = k->hwcur, to = k->dir == PR_RX ? k->hwtail : k->rhead;
    for (uint32_t i = with_frames ? from : to, end = with_frames ? to : from; i != end; i = pr_next(h, i))
        if (!pr_mend_keep(m, &h->ring->slot[i]))
            m->sum->torn += (uint32_t)with_frames;
    if (!with_frames && from == to) /* a circle that is empty is all of it */
        for (uint32_t i = 0; i < h->n; i++)
            pr_mend_keep(m, &h->ring->slot[i]);
}

/* The next buffer of the dead one's that lies in no slot; 0 = there is none. */
static inline uint32_t pr_mend_stray(struct pr_mend *m)
{
    for (; m->stray < m->pool->n; m->stray++)
        if (!m->seen[m->stray] && pr_mend_is_dead_ones(m, m->stray))
            return m->stray;
    return 0;
}

static inline void pr_mend_fill(struct pr_mend *m, struct pr_ringh *h)
{
    for (uint32_t i = 0; i < h->n; i++) {
        struct pr_slot *s = &h->ring->slot[i];
        if (s->buf_idx)
            continue;
        uint32_t b = pr_mend_stray(m);
        if (b)
            pr_pool_store(m->pool, b, m->pool->as_owned);
        else if (!pr_pool_take(m->pool, &b, 1))
            m->sum->missing++;
        s->len = 0;
        s->flags = PR_NS_BUF_CHANGED;
        m->seen[b] = 1;
        __atomic_store_n(&s->buf_idx, b, __ATOMIC_RELEASE); /* after its word */
    }
}

/* Make the rings of the pool's owner whole; `seen` is memory for a byte a buffer. 0, or -1: see above. */
static inline int pr_rings_mend(const struct pr_region *rg, struct pr_pool *pool, uint8_t *seen, struct pr_mended *sum)
{
    uint16_t owner = pr_word_owner(pool->as_owned);
    struct pr_mend m = {.rg = rg, .pool = pool, .dead = pr_word(PR_OWNED, owner, 0, 0), .seen = seen,
                        .stray = PR_FIRST_BUF, .sum = sum};
    struct pr_ringh h;
    *sum = (struct pr_mended){0};
    memset(seen, 0, rg->g.buf_num);
    for (int step = 0; step < 4; step++)
        for (uint32_t i = 0; i < rg->g.ring_num; i++) {
            if (rg->krings[i].owner != owner || pr_ring_open(rg, i, &h) < 0)
                continue;
            switch (step) {
            case 0: pr_mend_cursors(&m, &h), sum->rings++; break;
            case 1: pr_mend_keep_all(&m, &h, 1); break;
            case 2: pr_mend_keep_all(&m, &h, 0); break;
            case 3: pr_mend_fill(&m, &h); break;
            }
        }
    for (uint32_t b; (b = pr_mend_stray(&m)) != 0; sum->reclaimed++)
        pr_pool_store(pool, b, pr_pool_at_home(pool, b));
    return sum->torn || sum->missing ? -1 : 0;
}

/* ---- the books ---- */

#define PR_PLUS(c) +v[PR_C_##c]

static inline uint64_t pr_frames_between(const struct pr_ringh *h, uint32_t from, uint32_t to)
{
    uint64_t n = 0;
    for (; from != to; from = pr_next(h, from))
        n += !(h->ring->slot[from].flags & PR_NS_MOREFRAG);
    return n;
}

/* What the books of a mended ring are short of. Negative = it makes no sense. */
static inline int64_t pr_short_of(const struct pr_ringh *h)
{
    const uint64_t *v = h->row->v;
    if (h->k->dir == PR_TX) {
        uint64_t gone = v[PR_C_tx_frames] PR_DROPS_TX(PR_PLUS) + pr_frames_between(h, h->k->hwcur, h->k->rhead);
        return (int64_t)(v[PR_C_tx_queued] - gone);
    }
    uint64_t came = v[PR_C_rx_kernel] + v[PR_C_rx_pieces];
    uint64_t placed = v[PR_C_rx_frames] + v[PR_C_rx_supers] PR_DROPS_RX(PR_PLUS);
    uint64_t gone = v[PR_C_delivered] + v[PR_C_forwarded] + v[PR_C_classified] PR_DROPS_PATH(PR_PLUS);
    int64_t d = (int64_t)(came - placed);
    int64_t p = (int64_t)(v[PR_C_rx_frames] - gone - pr_frames_between(h, h->k->hwcur, h->k->hwtail));
    return d < 0 || p < 0 ? -1 : d + p;
}

/* The most that one death leaves over: what a ring holds (the pieces of a super-frame), a burst on the way in, one out. */
static inline int64_t pr_short_most(const struct pr_ringh *h) { return (int64_t)h->n + 2 * PR_BURST_MOST; }

/* Count what died. How many frames, or -1. At rest and without a death before it, it does nothing and says 0. */
static inline int64_t pr_settle(struct pr_ringh *h)
{
    struct pr_row *row = h->row;
    if ((h->k->dir == PR_RX ? pr_rx_enter(h) : pr_tx_enter(h)) < 0)
        return -1;
    uint64_t heard = row->v[PR_C_rx_kernel], taken = h->k->dir == PR_RX ? h->k->taken : 0;
    uint64_t unheard = taken > heard ? taken - heard : 0;
    if (unheard > (uint64_t)pr_short_most(h))
        return -1;
    if (unheard)
        pr_count(row, PR_C_rx_kernel, unheard);
    int64_t more = pr_short_of(h) - (int64_t)row->v[PR_C_drop_crash];
    if (more < 0 || more > pr_short_most(h))
        return -1;
    if (more)
        pr_count(row, PR_C_drop_crash, (uint64_t)more);
    return more;
}

#endif
