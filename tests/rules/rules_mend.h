/* mend.h, and what ring.h tells an heir: each kind of thing that a kill leaves, made by hand. */

static struct pr_mended mended;

static int mend_now(void)
{
    uint8_t seen[N_BUFS];
    begin(A, now.gen[A] + 1);
    return pr_rings_mend(&W.rg, &now.pool[A], seen, &mended);
}

/* Ring 0 holds frames in [3, 6), ring 1 in [3, 5), of which the first is in doubt. */
static void mend_fresh(void)
{
    reset_world();
    memset(&par, 0, sizeof par);
    par.at = 3;
    mend_rings_used();
    comes(&now.ring[0], 3, 11);
    app_write(&now.ring[1], 2, 1);
    pr_count(now.ring[1].row, PR_C_tx_queued, 2);
    pr_tx_enter(&now.ring[1]);
    pr_tx_doubt(&now.ring[1], 1);
}

static struct pr_slot *slot_of(uint32_t r, uint32_t i) { return &now.ring[r].ring->slot[i]; }
static uint64_t word_of(uint32_t r, uint32_t i) { return W.rg.owner[slot_of(r, i)->buf_idx]; }

/* Every slot has one buffer, the heir's, and no buffer has two. */
static int mend_is_whole(void)
{
    uint8_t times[N_BUFS] = {0};
    int whole = 1;
    for (uint32_t r = 0; r < N_RINGS; r++)
        for (uint32_t i = 0; i < SLOTS; i++) {
            uint32_t b = slot_of(r, i)->buf_idx;
            whole &= pr_buf_ok(&W.rg, b) && !times[b]++ && W.rg.owner[b] == now.pool[A].as_owned;
        }
    return whole;
}

static void a_worker_that_died_at_rest_leaves_nothing_to_mend(void)
{
    uint32_t before[N_RINGS * SLOTS];
    mend_fresh();
    for (uint32_t k = 0; k < N_RINGS * SLOTS; k++)
        before[k] = slot_of(k / SLOTS, k % SLOTS)->buf_idx;
    now.ring[0].ring->tail = 4; /* hwtail was moved, and no more */
    RULE(mend_now() == 0 && mend_is_whole());
    for (uint32_t k = 0; k < N_RINGS * SLOTS; k++)
        RULE(before[k] == slot_of(k / SLOTS, k % SLOTS)->buf_idx);
    RULE(mended.rings == 2 && mended.slots == 0 && mended.reclaimed == 0 && mended.torn == 0 && mended.missing == 0);
    RULE(mended.doubt == 1 && now.ring[1].k->hwcur == 4 && pr_tx_pending(&now.ring[1]) == 1);
    RULE(now.ring[1].ring->tail == 3 && pr_ring_ready(&now.ring[0]) == 3);
    RULE(slot_of(0, 3)->len == frame_len(11) && slot_of(1, 4)->len == frame_len(2));
}

static void only_the_dead_ones_rings_are_mended(void)
{
    mend_fresh();
    now.ring[0].k->owner = B;
    now.ring[1].k->owner = 0;
    RULE(mend_now() == 0 && mended.rings == 0 && mended.reclaimed == 2 * SLOTS);
    mend_fresh();
    now.ring[0].k->ring_ofs = 0; /* dropped */
    RULE(mend_now() == 0 && mended.rings == 1 && mended.reclaimed == SLOTS);
}

/* Slots 0 to 2 of ring 0 are nobody's: the claimed burst. */
static void what_lies_in_two_slots_stays_where_a_frame_needs_it(void)
{
    mend_fresh();
    uint32_t frame = slot_of(0, 4)->buf_idx, lost = slot_of(0, 1)->buf_idx;
    slot_of(0, 1)->buf_idx = frame; /* the lower index is looked at first, and has no frame */
    RULE(mend_now() == 0 && mend_is_whole() && mended.slots == 1 && mended.reclaimed == 0);
    RULE(slot_of(0, 4)->buf_idx == frame && slot_of(0, 4)->len == frame_len(12));
    RULE(slot_of(0, 1)->buf_idx == lost && slot_of(0, 1)->len == 0 && slot_of(0, 1)->flags == PR_NS_BUF_CHANGED);
    mend_fresh();
    pr_ring_advance(&now.ring[0], 6); /* no slot holds a frame */
    slot_of(0, 1)->buf_idx = slot_of(0, 4)->buf_idx;
    RULE(mend_now() == 0 && mend_is_whole() && mended.slots == 1 && pr_ring_ready(&now.ring[0]) == 0);
    mend_fresh();
    slot_of(0, 0)->buf_idx = slot_of(1, 4)->buf_idx; /* between two rings */
    RULE(mend_now() == 0 && mend_is_whole() && slot_of(0, 0)->len == 0 && slot_of(1, 4)->len == frame_len(2));
}

static void what_is_not_the_dead_ones_is_replaced(void)
{
    uint64_t strange[] = {0, pr_word(PR_FREE, A, 0, 0), pr_word(PR_OWNED, B, 1, 0), pr_word(PR_INFLIGHT, LANE, 1, 7)};
    for (uint32_t k = 0; k < 4; k++) {
        mend_fresh();
        uint32_t b = slot_of(0, 1)->buf_idx;
        W.rg.owner[b] = strange[k];
        RULE(mend_now() == 0 && mend_is_whole() && mended.slots == 1 && mended.torn == 0);
        RULE(k == 1 || (slot_of(0, 1)->buf_idx != b && W.rg.owner[b] == strange[k]));
    }
    mend_fresh();
    slot_of(1, 2)->buf_idx = N_BUFS;
    slot_of(1, 1)->buf_idx = 1;
    RULE(mend_now() == 0 && mend_is_whole() && mended.slots == 2);
}

static void what_others_may_write_is_left_alone(void)
{
    uint64_t others[] = {pr_word(PR_LENT, APP, 1, 0), pr_word(PR_KERNEL, PORT, SOCKET, 0)};
    for (uint32_t k = 0; k < 2; k++) {
        mend_fresh();
        uint32_t b = slot_of(0, 4)->buf_idx;
        W.rg.owner[b] = others[k];
        RULE(mend_now() == 0 && mended.slots == 0 && slot_of(0, 4)->buf_idx == b && word_of(0, 4) == others[k]);
    }
}

static void what_was_in_his_hands_goes_home(void)
{
    uint32_t b[3];
    mend_fresh();
    pr_pool_take(&now.pool[A], b, 2);
    pr_pool_take(&now.pool[B], b + 2, 1);
    W.rg.owner[b[2]] = now.pool[A].as_owned; /* B's, come by lane */
    RULE(mend_now() == 0 && mended.reclaimed == 3 && mended.slots == 0);
    RULE(W.rg.owner[b[0]] == pr_word(PR_FREE, A, 0, 0) && W.rg.owner[b[2]] == pr_word(PR_FREE, B, 0, 0));
}

static void a_frame_without_its_buffer_is_suspect(void)
{
    mend_fresh();
    W.rg.owner[slot_of(0, 4)->buf_idx] = pr_word(PR_FREE, A, 0, 0);
    RULE(mend_now() < 0 && mended.torn == 1 && mend_is_whole());
    mend_fresh();
    slot_of(1, 4)->buf_idx = slot_of(0, 3)->buf_idx; /* two frames, one buffer */
    RULE(mend_now() < 0 && mended.torn == 1 && mend_is_whole());
    mend_fresh();
    now.ring[0].ring->head = SLOTS;
    RULE(mend_now() < 0 && mended.torn == 1);
    mend_fresh();
    now.ring[1].ring->head = 1;
    RULE(mend_now() < 0);
    mend_fresh();
    now.ring[1].k->doubt = 7; /* more than was queued */
    RULE(mend_now() < 0 && mended.doubt == 0);
    now.ring[1].k->doubt = SLOTS;
    RULE(mend_now() < 0);
}

static void a_slot_for_which_there_is_no_buffer_is_suspect(void)
{
    uint32_t b[HOME];
    mend_fresh();
    uint32_t n = pr_pool_take(&now.pool[A], b, HOME);
    for (uint32_t i = 0; i < n; i++)
        W.rg.owner[b[i]] = pr_word(PR_LENT, APP, 1, 0);
    slot_of(0, 1)->buf_idx = slot_of(0, 4)->buf_idx;
    RULE(mend_now() == 0 && mend_is_whole()); /* the one that lay nowhere */
    W.rg.owner[slot_of(0, 1)->buf_idx] = pr_word(PR_LENT, APP, 1, 0);
    slot_of(0, 1)->buf_idx = 0;
    RULE(mend_now() < 0 && mended.missing == 1);
}

static void what_was_fetched_is_taken(void)
{
    mend_fresh();
    struct pr_ringh *h = &now.ring[0];
    uint64_t taken = h->k->taken;
    uint8_t *one = pr_rx_fetch(h, 0);
    RULE(h->k->begun == taken + 1 && one[0] == 0xff && one[15] == 0xff);
    RULE(mend_now() == 0 && h->k->taken == taken);
    one[3] = 0;
    uint8_t *two = pr_rx_fetch(h, 1);
    RULE(two != one && one[3] == 0);
    RULE(mend_now() == 0 && h->k->taken == taken + 1 && mend_now() == 0 && h->k->taken == taken + 1);
    two[0] = 0;
    RULE(mend_now() == 0 && h->k->taken == taken + 2);
    pr_rx_taken(h, 5);
    RULE(mend_now() == 0 && h->k->taken == taken + 7); /* told of since */
    h->k->begun = h->k->taken;
    memset(h->k->fetched, 0xff, sizeof h->k->fetched);
    RULE(mend_now() == 0 && h->k->taken == taken + 7);
}

static uint64_t declared(uint32_t r) { return now.ring[r].row->v[PR_C_drop_crash]; }

static void books_are_put_right_once(void)
{
    mend_fresh();
    RULE(pr_settle(&now.ring[0]) == 0 && pr_settle(&now.ring[1]) == 0);
    pr_ring_advance(&now.ring[0], 5); /* claimed */
    mend_now();
    RULE(pr_settle(&now.ring[0]) == 2 && declared(0) == 2 && pr_settle(&now.ring[0]) == 0);
    RULE(pr_settle(&now.ring[1]) == 1 && declared(1) == 1); /* was in doubt */
    pr_rx_taken(&now.ring[0], 4); /* left the kernel, and no more is known */
    RULE(pr_settle(&now.ring[0]) == 4 && declared(0) == 6 && now.ring[0].row->v[PR_C_rx_kernel] == now.ring[0].k->taken);
    pr_count(now.ring[0].row, PR_C_rx_pieces, 3);
    RULE(pr_settle(&now.ring[0]) == 3);
    slot_of(0, 5)->flags |= PR_NS_MOREFRAG; /* a chain is one frame, wherever it ends */
    RULE(pr_settle(&now.ring[0]) == 1);
}

static void each_outcome_is_in_the_books(void)
{
    const enum pr_counter rx[] = {PR_C_drop_gso, PR_C_drop_csum, PR_C_drop_trunc, PR_C_drop_runt, PR_C_rx_supers},
                          path[] = {PR_C_delivered, PR_C_forwarded, PR_C_classified, PR_C_drop_filter, PR_C_drop_direction,
                                    PR_C_drop_limit, PR_C_drop_tx_full, PR_C_drop_bad_slot, PR_C_drop_no_rule,
                                    PR_C_drop_no_buffer},
                          tx[] = {PR_C_tx_frames, PR_C_drop_mtu, PR_C_drop_runt, PR_C_drop_gso, PR_C_drop_csum, PR_C_drop_trunc,
                                  PR_C_drop_bad_slot, PR_C_drop_down, PR_C_drop_tx_kernel, PR_C_drop_error};
    mend_fresh();
    for (uint32_t i = 0; i < sizeof rx / sizeof *rx; i++) {
        pr_count(now.ring[0].row, rx[i], 1);
        RULE(pr_settle(&now.ring[0]) < 0);
        pr_count(now.ring[0].row, PR_C_rx_kernel, 1);
        RULE(pr_settle(&now.ring[0]) == 0);
    }
    for (uint32_t i = 0; i < sizeof path / sizeof *path; i++) {
        pr_count(now.ring[0].row, PR_C_rx_kernel, 1);
        pr_count(now.ring[0].row, path[i], 1);
        RULE(pr_settle(&now.ring[0]) < 0);
        pr_count(now.ring[0].row, PR_C_rx_frames, 1);
        RULE(pr_settle(&now.ring[0]) == 0);
    }
    for (uint32_t i = 0; i < sizeof tx / sizeof *tx; i++) {
        pr_count(now.ring[1].row, tx[i], 1);
        RULE(pr_settle(&now.ring[1]) < 0);
        pr_count(now.ring[1].row, PR_C_tx_queued, 1);
        RULE(pr_settle(&now.ring[1]) == 0);
    }
}

static void books_that_no_kill_explains_are_refused(void)
{
    int64_t most = SLOTS + 2 * PR_BURST_MOST;
    mend_fresh();
    pr_count(now.ring[0].row, PR_C_rx_kernel, (uint64_t)most);
    RULE(pr_settle(&now.ring[0]) == most);
    pr_count(now.ring[0].row, PR_C_rx_kernel, (uint64_t)most + 1);
    RULE(pr_settle(&now.ring[0]) < 0 && declared(0) == (uint64_t)most);
    mend_fresh();
    pr_rx_taken(&now.ring[0], (uint32_t)most + 1);
    RULE(pr_settle(&now.ring[0]) < 0 && now.ring[0].row->v[PR_C_rx_kernel] == 3);
    mend_fresh();
    pr_count(now.ring[0].row, PR_C_rx_frames, 1); /* what is missing on the way in is too much on the way on */
    RULE(pr_settle(&now.ring[0]) < 0);
    mend_fresh();
    pr_count(now.ring[1].row, PR_C_tx_frames, 1);
    RULE(pr_settle(&now.ring[1]) < 0);
    mend_fresh();
    pr_count(now.ring[0].row, PR_C_drop_crash, 1); /* declared, and nothing is missing */
    RULE(pr_settle(&now.ring[0]) < 0);
    mend_fresh();
    now.ring[0].ring->cur = 99;
    RULE(pr_settle(&now.ring[0]) < 0);
}

static void a_burst_is_a_limit_for_a_sync(void)
{
    struct pr_ringh *h = ring_fresh(PR_RX, 2);
    RULE(pr_rx_space(h) == 7);
    h->burst = 3;
    RULE(pr_rx_space(h) == 3 && pr_rx_room(h) == 7);
    ring_fill(h, 3, 1);
    ring_fill(h, 3, 4);
    RULE(pr_rx_space(h) == 1);
}

static void doubt_ends_where_sending_does(void)
{
    struct pr_ringh *h = ring_fresh(PR_TX, 5);
    app_write(h, 6, 1);
    pr_tx_enter(h);
    RULE(h->k->doubt == 5 && h->k->hwcur == 5);
    pr_tx_doubt(h, 4);
    RULE(h->k->doubt == 1 && h->k->hwcur == 5);
    pr_tx_done(h, 2);
    RULE(h->k->doubt == 7 && h->k->hwcur == 7);
    pr_tx_doubt(h, 2);
    pr_tx_doubt(h, 0);
    RULE(h->k->doubt == 7);
    pr_tx_doubt(h, 2);
    pr_ring_reinit(h);
    RULE(h->k->doubt == h->k->hwcur);
}

static void a_ring_that_is_none_is_not_opened(void)
{
    struct pr_ringh h;
    mend_fresh();
    RULE(pr_ring_open(&W.rg, 1, &h) == 0 && h.k == &W.rg.krings[1] && h.n == SLOTS && h.row == &W.rg.rows[1] && !h.dev);
    RULE(h.ring == now.ring[1].ring && pr_ring_open(&W.rg, N_RINGS, &h) < 0);
    struct pr_kring was = W.rg.krings[1];
    W.rg.krings[1].ring_ofs += 128;
    RULE(pr_ring_open(&W.rg, 1, &h) < 0);
    W.rg.krings[1] = was;
    W.rg.krings[1].num_slots = SLOTS + 1;
    RULE(pr_ring_open(&W.rg, 1, &h) < 0);
    W.rg.krings[1].num_slots = 1;
    RULE(pr_ring_open(&W.rg, 1, &h) < 0);
    W.rg.krings[1] = was;
    W.rg.krings[1].row = N_RINGS;
    RULE(pr_ring_open(&W.rg, 1, &h) < 0);
    W.rg.krings[1] = was;
}

static void mend_rules(void)
{
    a_worker_that_died_at_rest_leaves_nothing_to_mend();
    only_the_dead_ones_rings_are_mended();
    what_lies_in_two_slots_stays_where_a_frame_needs_it();
    what_is_not_the_dead_ones_is_replaced();
    what_others_may_write_is_left_alone();
    what_was_in_his_hands_goes_home();
    a_frame_without_its_buffer_is_suspect();
    a_slot_for_which_there_is_no_buffer_is_suspect();
    what_was_fetched_is_taken();
    books_are_put_right_once();
    each_outcome_is_in_the_books();
    books_that_no_kill_explains_are_refused();
    a_burst_is_a_limit_for_a_sync();
    doubt_ends_where_sending_does();
    a_ring_that_is_none_is_not_opened();
}
