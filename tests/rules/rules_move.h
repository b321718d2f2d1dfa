/* move.h: what an app wrote into slots is checked before a byte moves. */

static void move_fresh(uint32_t at)
{
    reset_world();
    memset(&par, 0, sizeof par);
    par.at = at;
    rings_used(1, 1, 0);
}

static void bad_slots_carry_nothing(void)
{
    struct pr_ringh *h = &now.ring[0];
    struct iovec iov[PR_MAX_FRAGS];
    uint32_t frames;
    move_fresh(SLOTS - 1);
    ring_fill(h, 2, 1);
    uint32_t i = h->ring->head, b = h->ring->slot[0].buf_idx;
    RULE(pr_frame_pieces(h, i, 2, iov) && iov[0].iov_len == frame_len(1) && iov[1].iov_base == pr_buf(&W.rg, b));
    h->ring->slot[0].len = ROOM;
    RULE(pr_frame_pieces(h, i, 2, iov) && iov[1].iov_len == ROOM);
    h->ring->slot[0].len = ROOM + 1;
    RULE(!pr_frame_pieces(h, i, 2, iov) && pr_frame_pieces(h, i, 1, iov));
    h->ring->slot[0].len = 60;
    for (uint32_t bad = 0; bad < 3; bad++) {
        h->ring->slot[0].buf_idx = (const uint32_t[]){1, N_BUFS, 0xffffffff}[bad];
        RULE(!pr_frame_pieces(h, i, 2, iov));
        RULE(pr_move_copy(h, i, 2, &now.ring[1], now.ring[1].ring->head, &frames) == -1);
    }
}

static void swapping_needs_room(void)
{
    struct pr_ringh *rx = &now.ring[0], *tx = &now.ring[1];
    move_fresh(5);
    ring_fill(rx, 3, 1);
    app_write(tx, 5, 50);
    uint32_t i = rx->ring->head, at = tx->ring->head, idx[3], spare[3];
    RULE(pr_tx_room(tx, at) == 2 && pr_move_swap(rx, i, 3, tx, at) == 0);
    rx->ring->slot[i].flags |= PR_NS_MOREFRAG;
    for (uint32_t k = 0; k < 2; k++) {
        idx[k] = ring_slot(rx, i + k)->buf_idx;
        spare[k] = ring_slot(tx, at + k)->buf_idx;
    }
    RULE(pr_move_swap(rx, i, 2, tx, at) == 2);
    for (uint32_t k = 0; k < 2; k++) {
        RULE(ring_slot(tx, at + k)->buf_idx == idx[k] && ring_slot(rx, i + k)->buf_idx == spare[k]);
        RULE(ring_slot(tx, at + k)->len == frame_len(1 + k));
        RULE(!!(ring_slot(tx, at + k)->flags & PR_NS_MOREFRAG) == (k == 0));
    }
}

/* Lengths about a slot's room: how many slots, what each holds, and that no byte goes elsewhere. */
static void copying_fills_slots(void)
{
    const size_t length[] = {0, 1, ROOM - 1, ROOM, ROOM + 1, 2 * ROOM, 3 * ROOM - 5};
    uint8_t frame[3 * ROOM];
    struct pr_ringh *tx = &now.ring[1];
    for (size_t i = 0; i < sizeof frame; i++)
        frame[i] = (uint8_t)(i * 7 + 1);
    for (uint32_t c = 0; c < 7; c++) {
        size_t len = length[c], first = len / 3;
        uint32_t need = len ? (uint32_t)((len + ROOM - 1) / ROOM) : 1;
        move_fresh(SLOTS - 2);
        uint32_t at = tx->ring->head;
        struct iovec iov[] = {{frame, first}, {frame + first, len - first}};
        RULE(pr_copy_in(tx, at, need - 1, iov, 2, len) == 0);
        for (uint32_t k = 0; k < need; k++)
            memset(pr_buf(&W.rg, ring_slot(tx, at + k)->buf_idx), 0xee, ROOM);
        RULE(pr_copy_in(tx, at, 7, iov, 2, len) == need);
        for (uint32_t k = 0; k < need; k++) {
            const struct pr_slot *s = ring_slot(tx, at + k);
            size_t here = len - k * ROOM < ROOM ? len - k * ROOM : ROOM;
            RULE(s->len == here && !memcmp(pr_buf(&W.rg, s->buf_idx), frame + k * ROOM, here));
            RULE(here == ROOM || pr_buf(&W.rg, s->buf_idx)[here] == 0xee);
            RULE(s->flags == (PR_NS_BUF_CHANGED | (k + 1 < need ? PR_NS_MOREFRAG : 0)));
        }
    }
}

static void copying_into_bad_slots_is_refused(void)
{
    static uint8_t frame[(size_t)ROOM * (PR_MAX_FRAGS + 1)];
    struct iovec iov = {frame, sizeof frame};
    struct pr_ringh *tx = &now.ring[1];
    move_fresh(0);
    RULE(pr_copy_in(tx, 0, 0xffff, &iov, 1, sizeof frame) == 0); /* longer than any chain */
    RULE(pr_copy_in(tx, 0, 7, &iov, 1, 2 * ROOM) == 2);
    tx->ring->slot[1].buf_idx = N_BUFS;
    RULE(pr_copy_in(tx, 0, 7, &iov, 1, 2 * ROOM) == 0);
}

static void a_copy_takes_its_facts_along(void)
{
    struct pr_ringh *rx = &now.ring[0], *tx = &now.ring[1];
    uint32_t frames = 0;
    move_fresh(0);
    ring_fill(rx, 1, 41);
    pr_meta_of(&W.rg, rx->ring->slot[0].buf_idx)->ts_ns = 12345;
    RULE(pr_move_copy(rx, 0, 1, tx, 0, &frames) == 1 && frames == 1);
    RULE(pr_meta_of(&W.rg, tx->ring->slot[0].buf_idx)->ts_ns == 12345);
    RULE(!memcmp(pr_buf(&W.rg, tx->ring->slot[0].buf_idx), pr_buf(&W.rg, rx->ring->slot[0].buf_idx), frame_len(41)));
    RULE(tx->ring->slot[0].buf_idx != rx->ring->slot[0].buf_idx);
    app_write(tx, 7, 1);
    RULE(pr_move_copy(rx, 0, 1, tx, tx->ring->head, &frames) == 0); /* no room */
}

static void move_rules(void)
{
    bad_slots_carry_nothing();
    swapping_needs_room();
    copying_fills_slots();
    copying_into_bad_slots_is_refused();
    a_copy_takes_its_facts_along();
}
