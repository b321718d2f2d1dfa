/* Operations at the border to an attached app whose buffers are lent: engine/border.h. A is the worker; ring 0 is the
 * app's receive ring, ring 1 what it sends. */
#ifndef ON_BORDER_H
#define ON_BORDER_H

#include <time.h>

/* The clock is only asked how long ago the last wrong buffer came, and takes another number of steps each time. */
static int border_clock(struct timespec *t) { return *t = (struct timespec){.tv_sec = 1}, 0; }
#define clock_gettime(which, t) border_clock(t)
#include "border_tx.h"
#undef clock_gettime

#include "on_ring.h"

static struct pr_app_record app_record; /* counts and cursors of faults: nothing here depends on them */

/* A worker's hold on the app, as it stands in shared memory. */
static struct pr_app border_hold(void)
{
    app_record.state = PR_APP_LIVE;
    app_record.generation = 1;
    return (struct pr_app){.rec = &app_record, .side = &app_record.side[0], .rx = now.ring[0], .tx = now.ring[1],
                           .rg = &W.rg, .generation = 1, .id = APP, .trusted = 1, .whole = 1, .bell = -1,
                           .fill = now.ring[0].k->hwtail};
}

static uint32_t border_give_frames(struct pr_app *a, uint32_t n, uint64_t seq, int copy)
{
    uint32_t given = 0;
    for (; given < n && pr_app_space(a); given++) {
        uint32_t b;
        if (!pr_pool_take(&now.pool[A], &b, 1))
            break;
        stamp(b, seq + given);
        uint64_t desc = pr_desc(b, frame_len(seq + given), 0);
        int got = copy ? pr_app_offer(a, &now.pool[A], &desc, 1) : pr_app_give(a, &now.pool[A], &desc, 1);
        if (copy)
            pr_pool_give(&now.pool[A], &b, 1);
        if (got <= 0)
            break;
    }
    pr_app_publish(a);
    return given;
}

/* Frames that were taken are done one by one, then their buffers go home. */
static uint32_t border_collect_frames(struct pr_app *a)
{
    struct pr_batch batch;
    pr_batch_begin(&batch);
    uint32_t n = pr_app_collect(a, &now.pool[A], &batch);
    for (uint32_t i = 0; i < batch.n_desc; i++)
        see(pr_desc_idx(batch.desc[i]), pr_desc_len(batch.desc[i]));
    pr_hand_free(&now.pool[A], batch.desc, batch.n_desc);
    return n;
}

/* ---- before ---- */

static void border_rx(void)
{
    rings_used(1, 1, 1);
    ring_fill(&now.ring[0], par.queued, 1);
    expect(1, par.queued, ALL, 0);
    expect(BURST, par.n, WHOLE, par.n);
}

static void border_tx(void)
{
    rings_used(1, 1, 1);
    app_write(&now.ring[1], par.queued, 1);
    expect(1, par.queued, SOME, par.queued); /* the dead worker's burst */
}

/* The second and the fourth slot name buffers that are not the app's. */
static void border_tx_wrong(void)
{
    border_tx();
    struct pr_ring *r = now.ring[1].ring;
    for (uint32_t k = 1; k < 4; k += 2) {
        struct pr_slot *s = &r->slot[(now.ring[1].k->hwcur + k) % SLOTS];
        W.rg.owner[s->buf_idx] = pr_pool_at_home(&now.pool[A], s->buf_idx); /* what it loses it has lost */
        s->buf_idx = 2 + HOME + k;                                          /* free, of B's home */
    }
}

/* ---- the victims ---- */

static void border_give(void)
{
    struct pr_app a = border_hold();
    border_give_frames(&a, par.n, BURST, 0);
}

static void border_offer(void)
{
    struct pr_app a = border_hold();
    border_give_frames(&a, par.n, BURST, 1);
}

static void border_collect(void)
{
    struct pr_app a = border_hold();
    border_collect_frames(&a);
}

/* ---- the heir ---- */

static void border_replaced(void)
{
    replace(A);
    struct pr_app a = border_hold();
    pr_app_begin(&a, &now.pool[A]);
}

/* ---- and the traffic after that ---- */

/* As many are lent as the app has slots: none lies about that nobody can name. */
static void border_check(void)
{
    uint32_t lent = 0;
    for (uint32_t b = 2; b < N_BUFS; b++)
        lent += (W.rg.owner[b] & PR_WORD_NAME) == pr_word(PR_LENT, APP, 0, 0);
    if (lent != N_RINGS * SLOTS)
        bad(LOST, "%u buffers are lent for %u slots", lent, N_RINGS * SLOTS);
    check_buffers();
}

static void border_go_on(void)
{
    struct pr_app a = border_hold();
    uint32_t sent = 0;
    border_check();
    app_read(&now.ring[0], SLOTS);
    while (border_collect_frames(&a))
        ;
    for (uint32_t round = 0; sent < 3 * SLOTS && round < PATIENCE; round++) {
        if (!pr_app_turn(&a))
            bad(STUCK, "the app is not served: state %u", app_record.state);
        sent += border_give_frames(&a, 2, TRAFFIC + sent, round % 2);
        app_forward(&now.ring[0], &now.ring[1]);
        border_collect_frames(&a);
    }
    if (sent < 3 * SLOTS)
        bad(STUCK, "%u frames in %u rounds", sent, PATIENCE);
    expect(TRAFFIC, sent, ALL, 0);
    border_check();
    check_frames();
    memset(now.ring, 0, sizeof now.ring);
    now.app_lives = 0;
    pr_pool_reclaim_app(&now.pool[A], APP);
    replace(A);
    check_buffers();
    check_all_home();
}

/* What the app did wrong is put right when the worker comes to it. */
static void border_wrong_go_on(void)
{
    struct pr_app a = border_hold();
    while (border_collect_frames(&a))
        ;
    border_go_on();
}

/* The wrong order: the spare is lent before any slot names it. */
static void border_lent_too_early(void)
{
    struct pr_app a = border_hold();
    struct pr_ringh *h = &now.ring[1];
    uint32_t spare[SLOTS], at = h->k->hwcur, got = pr_pool_take(&now.pool[A], spare, par.queued);
    pr_tx_enter(h);
    pr_store(&h->k->hwcur, pr_ahead(h, at, got));
    for (uint32_t i = 0; i < got; i++, at = pr_next(h, at)) {
        uint32_t b = pr_desc_idx(pr_slot_desc(h, at));
        pr_pool_unlend(&now.pool[A], b, a.id);
        pr_pool_lend(&now.pool[A], spare[i], a.id);
        pr_slot_set(h, at, pr_desc(spare[i], 0, 0));
        pr_pool_give(&now.pool[A], &b, 1);
    }
    pr_tx_done(h, 0);
}

/* The wrong order: the cursor moves when the frames are done. */
static void border_cursor_too_late(void)
{
    struct pr_app a = border_hold();
    struct pr_ringh *h = &now.ring[1];
    pr_tx_enter(h);
    for (uint32_t at = h->k->hwcur, i = 0; i < par.queued; i++, at = pr_next(h, at)) {
        uint64_t d = pr_slot_desc(h, at);
        if (!pr_app_is_lent(&a, &now.pool[A], pr_desc_idx(d)))
            break;
        see(pr_desc_idx(d), pr_desc_len(d));
    }
    pr_tx_done(h, par.queued);
}

#define BORDER(name, cases, set_up, op, live) {name, cases, set_up, op, live, border_replaced, border_go_on, 0}
static const struct scenario border_scenarios[] = {
    BORDER("border give", RX_TURNS, border_rx, border_give, ring_app_goes_on_reading),
    BORDER("border offer", RX_TURNS, border_rx, border_offer, ring_app_goes_on_reading),
    BORDER("border collect", TX_TURNS, border_tx, border_collect, ring_app_goes_on_writing),
    {"border collect, wrong", "1,7,0 1,5,6", border_tx_wrong, border_collect, NULL, border_replaced, border_wrong_go_on, 0},
};

static const struct scenario wrong_border_scenarios[] = {
    {"lent before its slot", TX_TURNS, border_tx, border_lent_too_early, NULL, border_replaced, border_go_on, LOST},
    {"cursor behind the frames", TX_TURNS, border_tx, border_cursor_too_late, NULL, border_replaced, border_go_on, DUPLICATE},
};

#endif
