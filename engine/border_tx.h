/* What an app sends: out of its transmit ring into a worker's hands; and what the heir of a dead worker does first. */
#ifndef PR_BORDER_TX_H
#define PR_BORDER_TX_H

#include "border.h"

#define PR_APP_TX_FLAGS (PR_NS_BUF_CHANGED | PR_NS_REPORT | PR_NS_FORWARD | PR_NS_NO_LEARN | PR_NS_MOREFRAG)

/* ---- a burst, read once ---- */

/* Slots of the chain that begins at d[0]: to its end, or as many as may be one frame. */
static inline uint32_t pr_app_chain(const uint64_t *d, uint32_t n)
{
    uint32_t k = 0;
    while (k < n && k < PR_MAX_FRAGS)
        if (!(pr_desc_flags(d[k++]) & PR_NS_MOREFRAG))
            break;
    return k;
}

static inline int pr_app_ends(const uint64_t *d, uint32_t slots) { return !(pr_desc_flags(d[slots - 1]) & PR_NS_MOREFRAG); }

/* Read the slots of the next burst into d: whole frames, PR_BURST slots and what the last frame has more, no more than
 * `out` and `most` allow. A chain that can never end, or is too long, counts as whole: it will be dropped. Slots. */
static inline uint32_t pr_app_read(const struct pr_app *a, const struct pr_batch *out, uint32_t most, uint64_t *d)
{
    uint32_t n = 0, whole = 0, frames = out->n, pending = pr_tx_pending(&a->tx);
    uint32_t room = PR_BATCH_DESC - out->n_desc < most ? PR_BATCH_DESC - out->n_desc : most;
    while (n < pending && n < room && whole < PR_BURST && frames < PR_BURST) {
        d[n] = pr_slot_desc(&a->tx, pr_ahead(&a->tx, a->tx.k->hwcur, n));
        n++;
        if (pr_app_ends(d, n) || n - whole == PR_MAX_FRAGS) {
            whole = n;
            frames++;
        }
    }
    return !whole && n == a->tx.n - 1 ? n : whole;
}

/* ---- a frame of it ---- */

/* The slots of a burst, one by one, before any buffer of it changes hands. wrong[i]: 0 = sound, else 1 + the counter that
 * says what is wrong. A buffer that becomes the app's during the burst was not its own when it sent it. */
static inline void pr_app_check(struct pr_app *a, const struct pr_pool *pool, const uint64_t *d, uint32_t n, uint8_t *wrong)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t b = pr_desc_idx(d[i]);
        wrong[i] = 0;
        if (!pr_buf_ok(a->tx.rg, b)) {
            pr_app_bad(a, &a->tx, b, 0);
            wrong[i] = PR_AC_drop_bad_idx + 1;
        } else if (a->trusted && !pr_app_is_lent(a, pool, b)) {
            pr_app_bad(a, &a->tx, b, pr_pool_look(pool, b));
            wrong[i] = PR_AC_drop_not_owner + 1;
        }
    }
}

/* What is wrong with a frame: the counter that says so, -1 = nothing. */
static inline int pr_app_judge(const struct pr_app *a, const uint64_t *d, uint32_t slots, const uint8_t *wrong)
{
    uint64_t len = 0;
    for (uint32_t k = 0; k < slots; k++) {
        if (pr_desc_flags(d[k]) & ~PR_APP_TX_FLAGS)
            return PR_AC_drop_bad_flags;
        if (pr_desc_len(d[k]) > pr_buf_room(a->tx.rg))
            return PR_AC_drop_bad_len;
        if (wrong[k])
            return wrong[k] - 1;
        len += pr_desc_len(d[k]);
    }
    if (!pr_app_ends(d, slots))
        return PR_AC_drop_bad_flags;
    return len ? -1 : PR_AC_drop_bad_len;
}

/* The slot gets a spare, lent to the app. */
static inline void pr_app_refill(struct pr_app *a, struct pr_pool *pool, uint32_t at, uint32_t spare)
{
    pr_slot_set(&a->tx, at, pr_desc(spare, 0, PR_NS_BUF_CHANGED));
    pr_pool_lend(pool, spare, a->id); /* after the slot: killed between, it goes home by its word */
}

/* Take a sound frame into desc[0..slots), one of spare[0..slots) for each slot. 0 = a buffer of it came twice: dropped. */
static inline int pr_app_take(struct pr_app *a, struct pr_pool *pool, uint32_t at, const uint64_t *d, uint32_t slots,
                              const uint32_t *spare, uint64_t *desc)
{
    int sound = 1;
    for (uint32_t k = 0; k < slots; k++, at = pr_next(&a->tx, at)) {
        uint32_t b = pr_desc_idx(d[k]), len = pr_desc_len(d[k]);
        uint16_t more = k + 1 < slots ? PR_NS_MOREFRAG : 0;
        if (!a->trusted) {
            memcpy(pr_buf(a->rg, spare[k]), pr_buf(a->tx.rg, b), len);
            desc[k] = pr_desc(spare[k], (uint16_t)len, more);
            continue;
        }
        int mine = pr_pool_unlend(pool, b, a->id);
        pr_app_refill(a, pool, at, spare[k]);
        desc[k] = mine ? pr_desc(b, (uint16_t)len, more) : 0;
        sound &= mine;
    }
    if (!sound) {
        pr_app_bad(a, &a->tx, pr_desc_idx(d[0]), pr_pool_look(pool, pr_desc_idx(d[0])));
        pr_hand_free(pool, desc, slots);
    } else if (!a->whole || !a->trusted) { /* what some frame before had been must not be said of this one */
        *pr_meta_of(a->rg, pr_desc_idx(desc[0])) = (struct pr_meta){.port = a->port};
    }
    return sound;
}

/* A frame is dropped: its slots that named what is not the app's get another buffer. How many of the spares that took. */
static inline uint32_t pr_app_refuse(struct pr_app *a, struct pr_pool *pool, uint32_t at, uint32_t slots,
                                     const uint8_t *wrong, const uint32_t *spare)
{
    uint32_t used = 0;
    for (uint32_t k = 0; k < slots; k++, at = pr_next(&a->tx, at))
        if (wrong[k] && a->trusted)
            pr_app_refill(a, pool, at, spare[used++]);
        else if (wrong[k])
            pr_slot_set(&a->tx, at, pr_desc(pr_app_first(&a->tx, at), 0, PR_NS_BUF_CHANGED));
    return used;
}

/* One frame out of the burst. Spares used. */
static inline uint32_t pr_app_one(struct pr_app *a, struct pr_pool *pool, uint32_t at, const uint64_t *d, uint32_t slots,
                                  const uint8_t *wrong, const uint32_t *spare, struct pr_batch *out)
{
    int rest = a->skip != 0, why = rest ? PR_AC_drop_bad_flags : pr_app_judge(a, d, slots, wrong);
    a->skip = !pr_app_ends(d, slots);
    if (why >= 0) {
        if (!rest) /* of one frame, however many pieces it comes in */
            pr_app_count(a->side, (enum pr_app_counter)why, 1);
        return pr_app_refuse(a, pool, at, slots, wrong, spare);
    }
    uint64_t *desc = &out->desc[out->n_desc];
    if (!pr_app_take(a, pool, at, d, slots, spare, desc)) {
        pr_app_count(a->side, PR_AC_drop_not_owner, 1);
        return slots;
    }
    pr_app_count(a->side, PR_AC_tx_frames, 1);
    pr_app_count(a->side, PR_AC_tx_bytes, pr_desc_frame_len(desc, slots));
    pr_batch_close(out, slots);
    out->verdict[out->n - 1] = a->port;
    return slots;
}

/* ---- the turn ---- */

/* Take a burst of what the app sent, as frames in hand with their port as verdict. Slots taken.
 * At most PR_BURST slots, and the rest of a frame, a turn: a flood of one app is one bounded step. */
static inline uint32_t pr_app_collect(struct pr_app *a, struct pr_pool *pool, struct pr_batch *out)
{
    uint64_t d[PR_BATCH_DESC];
    uint32_t spare[PR_BATCH_DESC], used = 0;
    uint8_t wrong[PR_BATCH_DESC];
    struct pr_kring *k = a->tx.k;
    int64_t head = a->gone || (a->leaving && !a->drain) ? -1 : pr_app_enter(a, &a->tx, k->rhead);
    if (head < 0)
        return 0;
    k->rhead = (uint32_t)head;
    uint32_t n = pr_app_read(a, out, PR_BATCH_DESC, d), got = pr_pool_take(pool, spare, n), begun = k->hwcur;
    if (got < n)
        n = pr_app_read(a, out, got, d); /* read anew: only this copy is looked at from here on */
    if (n) {
        pr_store(&k->hwcur, pr_ahead(&a->tx, begun, n)); /* before the first buffer is taken: at most once */
        pr_app_check(a, pool, d, n, wrong);
        for (uint32_t i = 0, slots; i < n; i += slots) {
            slots = pr_app_chain(d + i, n - i);
            used += pr_app_one(a, pool, pr_ahead(&a->tx, begun, i), d + i, slots, wrong + i, spare + used, out);
        }
        k->hwtail = pr_prev(&a->tx, k->hwcur);
        pr_store(&a->tx.ring->tail, k->hwtail); /* pairs with the app's acquire of tail */
        a->drain -= a->drain < n ? a->drain : n;
    } else {
        a->drain = 0; /* what is left is half a frame, or there is no buffer for it */
    }
    pr_pool_give(pool, spare + used, got - used);
    return n;
}

/* ---- sleep ---- */

/* Before a sleep: have the app ring. 1 = there is something that was not there at the last collect. */
static inline int pr_app_arm(struct pr_app *a)
{
    if (a->gone)
        return 0;
    __atomic_store_n(&pr_app_told(&a->tx)->need, ++a->need, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* pairs with the one in pr_appdev_tx */
    return pr_load(&a->tx.ring->head) != a->tx.k->rhead || pr_load(&a->rec->state) != PR_APP_LIVE;
}

/* After it: a->bell was readable. A socket that somebody shut down would be readable for ever: it is -1 then. */
static inline void pr_app_heard(struct pr_app *a)
{
    char rings[256];
    ssize_t n = a->bell < 0 ? 1 : recv(a->bell, rings, sizeof rings, MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
        a->bell = -1;
}

/* ---- the beginning, and the heir's ---- */

static inline void pr_app_mend_ring(struct pr_app *a, struct pr_pool *pool, struct pr_ringh *h, uint32_t slots)
{
    for (uint32_t at = h->k->hwtail; a->trusted && slots; slots--, at = pr_next(h, at))
        if (!pr_app_is_lent(a, pool, pr_desc_idx(pr_slot_desc(h, at))) && !pr_app_fresh(a, pool, h, at))
            pr_slot_set(h, at, 0); /* no buffer is free: this slot has none */
}

/* Go on where a predecessor stopped, or was killed: after its own buffers were reclaimed by their words. */
static inline void pr_app_mend(struct pr_app *a, struct pr_pool *pool)
{
    struct pr_kring *rx = a->rx.k, *tx = a->tx.k;
    pr_app_mend_ring(a, pool, &a->rx, a->rx.n - pr_dist(&a->rx, rx->hwcur, rx->hwtail));
    pr_store(&a->rx.ring->tail, rx->hwtail);
    uint32_t mine = pr_dist(&a->tx, tx->hwtail, tx->hwcur); /* the slot before hwcur, and a burst in hand, if there was one */
    mine = mine ? mine : a->tx.n;                           /* of a ring that was full */
    pr_app_mend_ring(a, pool, &a->tx, mine);
    if (mine > 1) {
        pr_app_count(a->side, PR_AC_drop_crash, mine - 1);
        tx->hwtail = pr_prev(&a->tx, tx->hwcur);
    }
    pr_store(&a->tx.ring->tail, tx->hwtail);
    a->fill = rx->hwtail;
    a->need = pr_app_told(&a->tx)->need + 1;
    a->rung = ~pr_app_asks(&a->rx)->need; /* whoever died between publish and kick left a sleeper */
    pr_app_tell(a, PR_APP_LIVE);
}

/* A worker takes hold of the app. 0 = it is not to be served: it is leaving, in quarantine, or another has its place. */
static inline int pr_app_begin(struct pr_app *a, struct pr_pool *pool)
{
    __atomic_store_n(&a->side->held, a->generation, __ATOMIC_SEQ_CST);
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* pairs with the controller's exchange of the state */
    if (pr_load(&a->rec->state) == PR_APP_LIVE && pr_load(&a->rec->generation) == a->generation) {
        pr_app_mend(a, pool);
        return 1;
    }
    a->gone = 1;
    pr_store(&a->side->seen, a->generation);
    return 0;
}

#endif
