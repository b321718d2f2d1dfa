/* lane.h: cursors that make no sense are never believed, and a burst is what was said. */

static void lane_fresh(uint32_t at)
{
    reset_world();
    pr_lane_format(W.lane[0], LANE, CAP);
    W.lane[0]->head = W.lane[0]->tail = at;
    lane_ends(0);
}

static void capacities_are_powers_of_two(void)
{
    RULE(pr_lane_capacity_ok(1) && pr_lane_capacity_ok(8) && pr_lane_capacity_ok(65536));
    RULE(!pr_lane_capacity_ok(0) && !pr_lane_capacity_ok(6) && !pr_lane_capacity_ok(131072));
}

static void attaching_checks_what_is_there(void)
{
    struct pr_lane *l = W.lane[0];
    struct pr_lane_end e;
    size_t size = pr_lane_size(CAP);
    lane_fresh(5);
    RULE(pr_lane_attach(&e, l, size, PR_CONSUMER) == 0 && e.id == LANE && e.capacity == CAP && e.mine == 5);
    RULE(pr_lane_attach(&e, l, size - 1, PR_CONSUMER) < 0 && pr_lane_attach(&e, l, 100, PR_CONSUMER) < 0);
    l->head = 5 + CAP;
    RULE(pr_lane_attach(&e, l, size, PR_PRODUCER) == 0 && e.mine == 5 + CAP && e.peer == 5);
    RULE(pr_lane_attach(&e, l, size, PR_CONSUMER) == 0 && e.mine == 5 && e.peer == 5 + CAP);
    l->head = 5 + CAP + 1;
    RULE(pr_lane_attach(&e, l, size, PR_PRODUCER) < 0);
    l->head = 4;
    RULE(pr_lane_attach(&e, l, size, PR_PRODUCER) < 0);
    lane_fresh(0);
    l->capacity = 6;
    RULE(pr_lane_attach(&e, l, size, PR_PRODUCER) < 0);
    l->capacity = 2 * CAP;
    RULE(pr_lane_attach(&e, l, size, PR_PRODUCER) < 0); /* more slots than bytes */
    l->capacity = CAP;
    l->id = 65536;
    RULE(pr_lane_attach(&e, l, size, PR_PRODUCER) < 0);
    l->id = 65535;
    RULE(pr_lane_attach(&e, l, size, PR_PRODUCER) == 0);
}

static void a_full_lane_refuses_and_an_empty_one_has_nothing(void)
{
    for (uint32_t at = 0xfffffffa; at != 2; at++) {
        lane_fresh(at);
        RULE(lane_receive(0, B, 4) == 0);
        RULE(lane_send(0, A, CAP - 1, 1) == CAP - 1 && lane_send(0, A, 3, CAP) == 1 && lane_send(0, A, 1, 20) == 0);
        RULE(W.lane[0]->head == at + CAP && W.lane[0]->tail == at);
        RULE(lane_receive(0, B, 3) == 3 && lane_send(0, A, CAP, CAP + 1) == 3);
        RULE(lane_receive(0, B, CAP) == CAP && lane_receive(0, B, CAP) == 0);
        RULE(W.lane[0]->head == W.lane[0]->tail);
        expect(1, CAP + 3, ALL, 0);
        check_frames();
        RULE(!verdict);
    }
}

static void descriptors_keep_their_fields(void)
{
    uint64_t d = pr_desc(0xfedcba98, 0x1234, 0xabcd);
    RULE(pr_desc_idx(d) == 0xfedcba98 && pr_desc_len(d) == 0x1234 && pr_desc_flags(d) == 0xabcd);
}

/* As in the spec: not clamped, quarantined; full to one, empty to the other, for ever. */
static void nonsense_from_the_consumer_ends_production(void)
{
    const uint32_t wrong[] = {CAP + 1, 0xffffffff, 1u << 31, 2}; /* beyond head, before the tail last seen */
    for (uint32_t i = 0; i < 4; i++) {
        lane_fresh(0);
        lane_send(0, A, 4, 1);
        lane_receive(0, B, 3);
        lane_send(0, A, CAP - 1, 9); /* reads tail = 3 */
        W.lane[0]->tail = i == 0 ? 3 + CAP + 1 : wrong[i];
        RULE(pr_lane_reserve(&now.out[0], 4) == 0 && now.out[0].broken);
        W.lane[0]->tail = W.lane[0]->head;
        RULE(pr_lane_reserve(&now.out[0], 1) == 0 && lane_send(0, A, 1, 30) == 0);
    }
}

static void a_tail_does_not_pass_head(void)
{
    lane_fresh(0);
    lane_send(0, A, 4, 1);
    W.lane[0]->tail = 4;
    RULE(pr_lane_reserve(&now.out[0], CAP) == CAP);
    lane_fresh(0);
    lane_send(0, A, 4, 1);
    W.lane[0]->tail = 5;
    RULE(pr_lane_reserve(&now.out[0], CAP) == 0 && now.out[0].broken);
}

static void nonsense_from_the_producer_ends_consumption(void)
{
    const uint32_t wrong[] = {CAP + 1, 0xffffffff, 1u << 31, 2};
    for (uint32_t i = 0; i < 4; i++) {
        lane_fresh(0);
        lane_send(0, A, 3, 1);
        RULE(pr_lane_peek(&now.in[0], 2) == 2);
        W.lane[0]->head = wrong[i];
        RULE(pr_lane_peek(&now.in[0], CAP) == 0 && now.in[0].broken && now.in[0].mine == 0);
        W.lane[0]->head = 3;
        RULE(pr_lane_peek(&now.in[0], 1) == 0 && lane_receive(0, B, CAP) == 0);
    }
    lane_fresh(0);
    W.lane[0]->head = CAP; /* the most that can be true */
    RULE(pr_lane_peek(&now.in[0], CAP + 5) == CAP && !now.in[0].broken);
}

static void a_burst_ends_at_what_is_not_mine(void)
{
    uint32_t b[3];
    lane_fresh(0);
    pr_pool_take(&now.pool[A], b, 3);
    uint64_t desc[] = {described(b[0], 1), described(2 + HOME, 2), described(b[1], 3)};
    RULE(pr_lane_put(&now.out[0], &now.pool[A], desc, 3) == 1 && now.pool[A].refused == 1 && W.lane[0]->head == 1);
    RULE(W.lane[0]->slot[0] == desc[0] && pr_pool_owns(&now.pool[A], b[1]));
    desc[0] = described(N_BUFS, 1);
    RULE(pr_lane_put(&now.out[0], &now.pool[A], desc, 1) == 0 && W.lane[0]->head == 1);
    RULE(W.rg.owner[b[0]] == pr_word(PR_INFLIGHT, LANE, 1, 0));
}

static void stale_slots_are_skipped_and_counted(void)
{
    uint64_t desc[CAP];
    lane_fresh(6);
    lane_send(0, A, 5, 1);
    W.rg.owner[pr_desc_idx(W.lane[0]->slot[6])] = pr_word(PR_FREE, A, 0, 0);
    W.lane[0]->slot[7] = pr_desc(N_BUFS + 7, 1, 0);
    RULE(pr_lane_take(&now.in[0], &now.pool[B], desc, 2) == 2 && now.in[0].skipped == 2); /* it goes on */
    RULE(pr_lane_take(&now.in[0], &now.pool[B], desc, 4) == 1 && W.lane[0]->tail == 11);
    RULE(pr_pool_owns(&now.pool[B], pr_desc_idx(desc[0])));
}

static void reclaiming_leaves_what_was_published(void)
{
    uint32_t b[5];
    lane_fresh(65534);
    lane_send(0, A, 3, 1);
    pr_pool_take(&now.pool[A], b, 5);
    pr_pool_hand_over(&now.pool[A], b[0], LANE, W.lane[0]->head); /* killed before the slot */
    pr_pool_hand_over(&now.pool[A], b[1], LANE + 1, W.lane[0]->head);
    pr_pool_hand_over(&now.pool[A], b[2], LANE, W.lane[0]->tail - 1); /* behind */
    pr_pool_hand_over(&now.pool[A], b[3], LANE, W.lane[0]->tail); /* the slot names another */
    pr_pool_hand_over(&now.pool[A], b[4], LANE, W.lane[0]->head); /* and killed after it */
    W.lane[0]->slot[W.lane[0]->head % CAP] = described(b[4], 9);
    begin(A, 2);
    RULE(pr_lane_reclaim(&now.out[0], &now.pool[A]) == 4);
    RULE(W.rg.owner[b[0]] == pr_word(PR_FREE, A, 0, 0) && W.rg.owner[b[2]] == pr_word(PR_FREE, A, 0, 0));
    RULE(W.rg.owner[b[3]] == pr_word(PR_FREE, A, 0, 0) && W.rg.owner[b[4]] == pr_word(PR_FREE, A, 0, 0));
    RULE(pr_word_state(W.rg.owner[b[1]]) == PR_INFLIGHT);
    RULE(lane_receive(0, B, CAP) == 3 && now.in[0].skipped == 0);
}

static void lane_rules(void)
{
    capacities_are_powers_of_two();
    attaching_checks_what_is_there();
    a_full_lane_refuses_and_an_empty_one_has_nothing();
    descriptors_keep_their_fields();
    nonsense_from_the_consumer_ends_production();
    a_tail_does_not_pass_head();
    nonsense_from_the_producer_ends_consumption();
    a_burst_ends_at_what_is_not_mine();
    stale_slots_are_skipped_and_counted();
    reclaiming_leaves_what_was_published();
}
