/* The border between a worker and an attached app: one receive and one transmit ring for each pair of the two.
 *
 *                     trusted (LENT buffers of the region)            not trusted (a sealed memory of its own)
 *   to the app        copy: into the buffer that lies in the slot     copy: the same, in its memory
 *                     consume: the frame's buffer for the slot's      consume: copied, the frame's buffer goes home
 *   from the app      the slot's buffer for a spare                   copied into a buffer of the worker's
 *
 * What lies in memory that the app can write is read once, as one word, and the copy is checked: cursors, slots (index,
 * length and flags are eight bytes), payload. What the engine believes - hwcur, hwtail, owner words - lies elsewhere. A
 * buffer is the app's if its word says LENT(app), and it is taken back by that word alone: another's index, one sent
 * twice, one given back twice fail there. The slot then gets a fresh buffer, so that the app always finds one to write to.
 *
 * The orders that make a kill harmless, per slot:
 *
 *   give       unlend what the slot held ▸ slot = the frame ▸ lend it ▸ ... ▸ (whole burst) hwtail ▸ tail ▸ kick
 *   collect    hwcur past the burst ▸ unlend the frame ▸ slot = spare ▸ lend it ▸ ... ▸ (whole burst) hwtail ▸ tail
 *
 * Between the first and the last step of a slot its word says OWNED by the worker, so that a reclaim by word finds it; the
 * slot is the engine's until tail moves, and pr_app_mend gives each of the engine's slots whose word does not say
 * LENT(app) a fresh buffer. So nothing is lent that lies in no slot, and nothing in a slot is anybody else's. hwcur moves
 * before the burst is taken: at most once. */
#ifndef PR_BORDER_H
#define PR_BORDER_H

#include "border_record.h"
#include "filter.h"
#include "hand.h"
#include "rest.h"

#include <sys/socket.h>

/* A worker's private hold on one app. */
struct pr_app {
    struct pr_app_record *rec;
    struct pr_app_side *side;    /* mine */
    struct pr_ringh rx, tx;      /* as the app sees them; cursors in the engine's memory */
    const struct pr_region *rg;  /* the engine's, where frames in hand lie; rx.rg is the same if the app is trusted */
    const struct sock_filter *filter;
    uint32_t n_filter;
    uint32_t generation;
    uint16_t id, port;
    uint8_t trusted, consume, whole; /* whole: super-frames are not cut */
    uint8_t leaving, gone;           /* no more frames for it; hands off its rings */
    uint32_t fill;                   /* rx: next slot to be filled, not yet published */
    uint32_t drain;                  /* slots that may still be collected after it left */
    uint32_t skip;                   /* tx: in the rest of a chain that was dropped */
    int bell;                        /* a socket: a byte from the app wakes us, a byte to it wakes the app; -1 = none */
    uint32_t rung, need;             /* the app's need when we last rang it; ours as last told */
    uint64_t bad_since;              /* of wrong indexes in one second */
    uint32_t bad, bad_ever;
};

/* ---- breaches ---- */

/* Wake it, whether it sleeps or not. A full or closed socket is the app's own affair. */
static inline void pr_app_ring(const struct pr_app *a)
{
    if (a->bell >= 0 && send(a->bell, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
        /* EAGAIN: it is ringing already. Anything else: it wakes by itself within 100 ms. */
    }
}

static inline void pr_app_tell(struct pr_app *a, enum pr_app_state state)
{
    pr_store(&pr_app_told(&a->rx)->state, state);
    pr_store(&pr_app_told(&a->tx)->state, state);
    pr_app_ring(a);
}

static inline int pr_app_quarantine(struct pr_app *a, const struct pr_ringh *h, enum pr_app_field field, uint64_t value,
                                    uint64_t limit)
{
    uint32_t live = PR_APP_LIVE;
    struct pr_app_fault *f = &a->side->fault;
    f->dir = h->k->dir;
    f->value = value;
    f->limit = limit;
    pr_store(&f->field, field);
    __atomic_compare_exchange_n(&a->rec->state, &live, PR_APP_QUARANTINED, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
    a->leaving = 1;
    a->drain = 0;
    pr_app_tell(a, PR_APP_QUARANTINED);
    return -1;
}

/* A buffer that is not the app's came from it. -1 = once too often. An index of 0 is a slot for which we had no buffer. */
static inline int pr_app_bad(struct pr_app *a, const struct pr_ringh *h, uint32_t idx, uint64_t word)
{
    uint64_t now = pr_now_ns();
    pr_app_count(a->side, PR_AC_violations, 1);
    if (now - a->bad_since > 1000000000ull) {
        a->bad_since = now;
        a->bad = 0;
    }
    a->bad += idx != 0;
    if (a->bad >= PR_APP_BAD_MOST || ++a->bad_ever > h->n) /* each costs us a fresh buffer, however slowly they come */
        return pr_app_quarantine(a, h, PR_APP_IDX, idx, word);
    return 0;
}

/* The app's cursors, which may be anywhere in [from, hwtail], head before cur. The head; -1 = a breach. */
static inline int64_t pr_app_enter(struct pr_app *a, struct pr_ringh *h, uint32_t from)
{
    uint32_t head = pr_load(&h->ring->head); /* pairs with the app's release of head */
    uint32_t cur = pr_load(&h->ring->cur);
    int bad_head = head >= h->n || !pr_within(h, from, head, h->k->hwtail);
    if (!bad_head && cur < h->n && pr_within(h, head, cur, h->k->hwtail))
        return head;
    pr_app_count(a->side, PR_AC_violations, 1);
    return pr_app_quarantine(a, h, bad_head ? PR_APP_HEAD : PR_APP_CUR, bad_head ? head : cur, h->n);
}

/* Has it sent something, or done something that pr_app_collect should see? */
static inline int pr_app_pending(const struct pr_app *a) { return pr_load(&a->tx.ring->head) != a->tx.k->hwcur; }

/* Hands off, for good; say so. */
static inline void pr_app_let_go(struct pr_app *a, uint32_t state)
{
    a->gone = 1;
    pr_app_tell(a, state == PR_APP_QUARANTINED ? PR_APP_QUARANTINED : PR_APP_LEAVING);
    pr_store(&a->side->seen, a->generation); /* after the last look at its rings; the controller acquires it */
}

/* Once a turn, before anything else. 1 = serve it; 0 = it has nothing to do with us, now or any more. */
static inline int pr_app_turn(struct pr_app *a)
{
    if (a->gone)
        return 0;
    uint32_t state = pr_load(&a->rec->state);
    if (state == PR_APP_LIVE && !a->leaving) {
        int64_t head = pr_app_enter(a, &a->rx, a->rx.k->hwcur);
        if (head >= 0)
            a->rx.k->hwcur = (uint32_t)head;
        return head >= 0;
    }
    if (state == PR_APP_LEAVING && !a->leaving) {
        a->leaving = 1;
        a->drain = a->tx.n; /* what it had sent goes out */
    }
    int64_t head = state == PR_APP_LEAVING && a->drain ? pr_app_enter(a, &a->tx, a->tx.k->rhead) : -1;
    if (head >= 0 && (a->tx.k->rhead = (uint32_t)head, pr_tx_pending(&a->tx)))
        return 1;
    pr_app_let_go(a, state);
    return 0;
}

/* ---- the buffer in a slot ---- */

static inline int pr_app_is_lent(const struct pr_app *a, const struct pr_pool *pool, uint32_t b)
{
    return b >= PR_FIRST_BUF && b < pool->n && (pr_pool_look(pool, b) & PR_WORD_NAME) == pr_word(PR_LENT, a->id, 0, 0);
}

/* The buffer that an app's own memory was dealt for this slot: where it names none of its own, any of them will do. */
static inline uint32_t pr_app_first(const struct pr_ringh *h, uint32_t at) { return PR_FIRST_BUF + h->k->row * h->n + at; }

/* Give the slot a buffer of ours, lent to the app. Its index; 0 = none is free. */
static inline uint32_t pr_app_fresh(const struct pr_app *a, struct pr_pool *pool, struct pr_ringh *h, uint32_t at)
{
    uint32_t b = pr_app_first(h, at);
    if (a->trusted && !pr_pool_take(pool, &b, 1))
        return 0;
    pr_slot_set(h, at, pr_desc(b, 0, PR_NS_BUF_CHANGED));
    if (a->trusted)
        pr_pool_lend(pool, b, a->id); /* after the slot: killed between, it goes home by its word */
    return b;
}

/* The buffer that the app left in slot `at` of its receive ring, replaced if it is not its own. 0 = no buffer there. */
static inline uint32_t pr_app_slot_buf(struct pr_app *a, struct pr_pool *pool, uint32_t at)
{
    uint32_t b = pr_desc_idx(pr_slot_desc(&a->rx, at));
    if (a->trusted ? pr_app_is_lent(a, pool, b) : pr_buf_ok(a->rx.rg, b))
        return b;
    uint64_t word = a->trusted && b < pool->n ? pr_pool_look(pool, b) : 0;
    return pr_app_bad(a, &a->rx, b, word) < 0 ? 0 : pr_app_fresh(a, pool, &a->rx, at);
}

/* ---- to the app ---- */

static inline uint32_t pr_app_space(const struct pr_app *a)
{
    return a->rx.n - 1 - pr_dist(&a->rx, a->rx.k->hwcur, a->fill);
}

/* Does its filter match? The frame is in hand, or in a ring: desc[0] is its first slot. */
static inline int pr_app_wants(const struct pr_app *a, const uint64_t *desc, uint32_t slots)
{
    if (a->gone || a->leaving)
        return 0;
    if (!a->n_filter)
        return 1;
    const struct pr_meta *m = pr_meta_of(a->rg, pr_desc_idx(desc[0]));
    uint32_t wire = m->wire_len, len = wire ? wire : pr_desc_frame_len(desc, slots);
    return pr_filter_run(a->filter, a->n_filter, pr_buf(a->rg, pr_desc_idx(desc[0])), pr_desc_len(desc[0]), len) != 0;
}

/* Buffers of its next `slots` slots. 0 = no room. */
static inline int pr_app_reserve(struct pr_app *a, struct pr_pool *pool, uint32_t slots, uint32_t *bufs)
{
    if (pr_app_space(a) < slots)
        return 0;
    for (uint32_t k = 0; k < slots; k++)
        if (!(bufs[k] = pr_app_slot_buf(a, pool, pr_ahead(&a->rx, a->fill, k))))
            return 0;
    return 1;
}

/* Fill the next slot. */
static inline void pr_app_put(struct pr_app *a, uint32_t b, uint32_t len, int more)
{
    pr_slot_set(&a->rx, a->fill, pr_desc(b, (uint16_t)len, (uint16_t)(PR_NS_BUF_CHANGED | (more ? PR_NS_MOREFRAG : 0))));
    a->fill = pr_next(&a->rx, a->fill);
}

static inline int pr_app_copy(struct pr_app *a, struct pr_pool *pool, const uint64_t *desc, uint32_t slots)
{
    uint32_t bufs[PR_MAX_FRAGS];
    if (slots > PR_MAX_FRAGS || !pr_app_reserve(a, pool, slots, bufs))
        return 0;
    *pr_meta_of(a->rx.rg, bufs[0]) = *pr_meta_of(a->rg, pr_desc_idx(desc[0]));
    for (uint32_t k = 0; k < slots; k++) {
        memcpy(pr_buf(a->rx.rg, bufs[k]), pr_buf(a->rg, pr_desc_idx(desc[k])), pr_desc_len(desc[k]));
        pr_app_put(a, bufs[k], pr_desc_len(desc[k]), k + 1 < slots);
    }
    return 1;
}

/* The wire frames of a super-frame, all or none. 0 = no room, -1 = it cannot be cut. */
static inline int pr_app_cut(struct pr_app *a, struct pr_pool *pool, const uint64_t *desc, uint32_t slots,
                             const struct pr_meta *meta)
{
    struct iovec from[PR_MAX_FRAGS], to[PR_MAX_FRAGS];
    struct pr_cut cut;
    uint32_t bufs[PR_MAX_FRAGS], room = pr_buf_room(a->rx.rg);
    for (uint32_t k = 0; k < slots; k++)
        from[k] = (struct iovec){pr_buf(a->rg, pr_desc_idx(desc[k])), pr_desc_len(desc[k])};
    if (pr_cut_begin(&cut, from, slots, meta) < 0)
        return -1;
    uint64_t pieces = pr_cut_count(&cut), per = (pr_cut_frame_max(&cut) + room - 1) / room;
    if (per > PR_MAX_FRAGS || pieces * per > pr_app_space(a))
        return 0;
    for (uint32_t begun = a->fill; pieces; pieces--) {
        if (!pr_app_reserve(a, pool, (uint32_t)per, bufs)) {
            a->fill = begun;
            return 0;
        }
        for (uint32_t k = 0; k < per; k++)
            to[k] = (struct iovec){pr_buf(a->rx.rg, bufs[k]), room};
        size_t len = pr_cut_next(&cut, to, per);
        *pr_meta_of(a->rx.rg, bufs[0]) = (struct pr_meta){.ts_ns = meta->ts_ns, .port = meta->port, .hash = meta->hash,
                                                          .flags = meta->flags & PR_META_OUTGOING};
        for (uint32_t k = 0; len; k++) {
            uint32_t put = (uint32_t)(len < room ? len : room);
            len -= put;
            pr_app_put(a, bufs[k], put, len != 0);
        }
    }
    return 1;
}

static inline int pr_app_no_room(struct pr_app *a)
{
    pr_app_count(a->side, PR_AC_drop_app_full, 1);
    pr_app_told(&a->rx)->dropped = a->side->v[PR_AC_drop_app_full];
    return -1;
}

static inline int pr_app_copied(struct pr_app *a, struct pr_pool *pool, const uint64_t *desc, uint32_t slots,
                                enum pr_app_counter as)
{
    const struct pr_meta meta = *pr_meta_of(a->rg, pr_desc_idx(desc[0]));
    int cut = (meta.flags & PR_META_GSO) && !a->whole;
    uint64_t bytes = pr_desc_frame_len(desc, slots);
    if ((cut ? pr_app_cut(a, pool, desc, slots, &meta) : pr_app_copy(a, pool, desc, slots)) <= 0)
        return pr_app_no_room(a);
    pr_app_count(a->side, as, 1);
    pr_app_count(a->side, PR_AC_rx_bytes, bytes);
    return 1;
}

/* A copy of a frame, which stays where it is. The caller has checked its indexes and lengths.
 * 1 = the app has it; 0 = it does not want it; -1 = it has no room. Nobody waits for an app. */
static inline int pr_app_offer(struct pr_app *a, struct pr_pool *pool, const uint64_t *desc, uint32_t slots)
{
    if (!pr_app_wants(a, desc, slots))
        return 0;
    pr_app_count(a->side, PR_AC_offered, 1);
    return pr_app_copied(a, pool, desc, slots, PR_AC_copied);
}

/* The frame's own buffers into the app's slots; what they held goes home. */
static inline int pr_app_swap(struct pr_app *a, struct pr_pool *pool, const uint64_t *desc, uint32_t slots)
{
    uint32_t old[PR_MAX_FRAGS];
    if (slots > PR_MAX_FRAGS || !pr_app_reserve(a, pool, slots, old))
        return 0;
    for (uint32_t k = 0; k < slots; k++) {
        uint32_t b = pr_desc_idx(desc[k]);
        int mine = pr_pool_unlend(pool, old[k], a->id); /* not if it lay in two of these slots: it is home already */
        pr_app_put(a, b, pr_desc_len(desc[k]), k + 1 < slots);
        pr_pool_lend(pool, b, a->id);
        pr_pool_give(pool, &old[k], (uint32_t)mine);
    }
    return 1;
}

/* A frame in hand, for good: it and its buffers are no longer the caller's, unless the answer is 0. As pr_app_offer. */
static inline int pr_app_give(struct pr_app *a, struct pr_pool *pool, const uint64_t *desc, uint32_t slots)
{
    if (!pr_app_wants(a, desc, slots))
        return 0;
    pr_app_count(a->side, PR_AC_offered, 1);
    int got;
    if (!a->trusted || (!a->whole && (pr_meta_of(a->rg, pr_desc_idx(desc[0]))->flags & PR_META_GSO))) {
        got = pr_app_copied(a, pool, desc, slots, PR_AC_consumed);
    } else if ((got = pr_app_swap(a, pool, desc, slots)) == 1) {
        pr_app_count(a->side, PR_AC_consumed, 1);
        pr_app_count(a->side, PR_AC_rx_bytes, pr_desc_frame_len(desc, slots));
        return 1;
    } else {
        got = pr_app_no_room(a);
    }
    pr_hand_free(pool, desc, slots);
    return got;
}

/* ---- the same from slots of a ring that the caller has checked ---- */

static inline void pr_ring_descs(const struct pr_ringh *from, uint32_t i, uint32_t slots, uint64_t *desc)
{
    for (uint32_t k = 0; k < slots; k++, i = pr_next(from, i))
        desc[k] = pr_desc(from->ring->slot[i].buf_idx, from->ring->slot[i].len, from->ring->slot[i].flags & PR_NS_MOREFRAG);
}

static inline int pr_app_offer_slots(struct pr_app *a, struct pr_pool *pool, const struct pr_ringh *from, uint32_t i,
                                     uint32_t slots)
{
    uint64_t desc[PR_MAX_FRAGS];
    pr_ring_descs(from, i, slots, desc);
    return pr_app_offer(a, pool, desc, slots);
}

static inline int pr_app_give_slots(struct pr_app *a, struct pr_pool *pool, struct pr_ringh *from, uint32_t i, uint32_t slots)
{
    uint64_t desc[PR_MAX_FRAGS];
    pr_ring_descs(from, i, slots, desc);
    if (!pr_app_wants(a, desc, slots))
        return 0;
    if (pr_hand_lift(pool, from, i, slots, desc))
        return pr_app_give(a, pool, desc, slots);
    pr_app_count(a->side, PR_AC_offered, 1);
    return pr_app_no_room(a);
}

/* Once a burst: the app sees what was offered and given. Slots published. */
static inline uint32_t pr_app_publish(struct pr_app *a)
{
    uint32_t n = pr_dist(&a->rx, a->rx.k->hwtail, a->fill);
    if (!n || a->gone)
        return 0;
    pr_rx_publish(&a->rx, n);
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* pairs with the one in pr_appdev_rx */
    uint32_t need = __atomic_load_n(&pr_app_asks(&a->rx)->need, __ATOMIC_RELAXED);
    if (need != a->rung) {
        a->rung = need;
        pr_app_ring(a);
    }
    return n;
}

#endif
