/* pool.h: the legal changes happen, the prohibited ones are refused and counted. */

static void a_word_keeps_its_fields(void)
{
    uint64_t w = pr_word(PR_KERNEL, 0xabcd, 0xfedcba, 0x1234);
    RULE(pr_word_state(w) == PR_KERNEL && pr_word_owner(w) == 0xabcd);
    RULE(pr_word_gen(w) == 0xfedcba && pr_word_aux(w) == 0x1234);
    RULE(pr_word(PR_FREE, 2, 0x1000002, 0) == pr_word(PR_FREE, 2, 2, 0)); /* 24 bits */
}

static void homes_are_even(void)
{
    struct pr_pool p;
    uint32_t stack[HOME];
    pr_pool_init(&p, W.rg.owner, N_BUFS, 2, 0, HOME, stack);
    RULE(p.home == 2 + HOME && p.home_end == 2 + 2 * HOME);
    RULE(!pr_pool_is_home(&p, 1 + HOME) && pr_pool_is_home(&p, 2 + HOME));
    RULE(pr_pool_is_home(&p, 1 + 2 * HOME) && !pr_pool_is_home(&p, 2 + 2 * HOME));
    RULE(pr_pool_at_home(&p, 2) == pr_word(PR_FREE, A, 0, 0));
    RULE(pr_pool_at_home(&p, 1 + HOME) == pr_word(PR_FREE, A, 0, 0));
    RULE(pr_pool_at_home(&p, 2 + 2 * HOME) == pr_word(PR_FREE, C, 0, 0));
    pr_pool_init(&p, W.rg.owner, 2 + HOME + 5, 2, 0, HOME, stack);
    RULE(p.home_end == 2 + HOME + 5); /* not beyond the words */
    pr_pool_init(&p, W.rg.owner, 2 + HOME, 3, 0, HOME, stack);
    RULE(p.home == p.home_end);
}

static void dealing_takes_what_was_never_dealt(void)
{
    reset_world();
    W.rg.owner[2] = 0;
    W.rg.owner[3] = pr_word(PR_LENT, APP, 1, 0);
    W.rg.owner[2 + HOME] = 0;
    pr_pool_deal(&now.pool[A]);
    RULE(W.rg.owner[2] == pr_word(PR_FREE, A, 0, 0) && W.rg.owner[3] == pr_word(PR_LENT, APP, 1, 0));
    RULE(W.rg.owner[2 + HOME] == 0 && W.rg.owner[1 + HOME] == pr_word(PR_FREE, A, 0, 0));
}

static void taking_gives_each_buffer_once(void)
{
    uint32_t bufs[N_BUFS], more[4];
    reset_world();
    W.rg.owner[5] = pr_word(PR_LENT, APP, 1, 0);
    RULE(pr_pool_take(&now.pool[A], bufs, N_BUFS) == HOME - 1);
    for (uint32_t i = 0; i + 1 < HOME; i++)
        RULE(bufs[i] >= 2 && bufs[i] < 2 + HOME && bufs[i] != 5 && W.rg.owner[bufs[i]] == now.pool[A].as_owned);
    RULE(pr_pool_take(&now.pool[A], more, 4) == 0);
    RULE(pr_pool_give(&now.pool[A], bufs, 2) == 2);
    W.rg.owner[bufs[1]] = pr_word(PR_LENT, APP, 1, 0); /* the stack may be out of date, the word is not */
    RULE(pr_pool_take(&now.pool[A], more, 4) == 1 && more[0] == bufs[0]);
    RULE(pr_pool_take(&now.pool[A], more, 0) == 0);
}

static void giving_sends_home(void)
{
    uint32_t b, foreign = 2 + HOME, bad[] = {0, N_BUFS, UINT32_MAX, 3};
    reset_world();
    pr_pool_take(&now.pool[A], &b, 1);
    W.rg.owner[foreign] = now.pool[A].as_owned;
    RULE(pr_pool_give(&now.pool[A], &foreign, 1) == 1 && W.rg.owner[foreign] == pr_word(PR_FREE, B, 0, 0));
    RULE(now.pool[A].depth == 0 || now.pool[A].stack[now.pool[A].depth - 1] != foreign);
    RULE(pr_pool_give(&now.pool[A], &b, 1) == 1 && now.pool[A].stack[now.pool[A].depth - 1] == b);
    RULE(pr_pool_give(&now.pool[A], &b, 1) == 0); /* a double give */
    RULE(pr_pool_give(&now.pool[A], bad, 4) == 0 && now.pool[A].refused == 5);
}

static void no_word_beyond_the_last(void)
{
    uint32_t b = N_BUFS - 1;
    reset_world();
    W.rg.owner[b] = now.pool[A].as_owned;
    now.pool[A].n = b;
    RULE(pr_pool_give(&now.pool[A], &b, 1) == 0 && !pr_pool_owns(&now.pool[A], b));
    RULE(pr_pool_reclaim_process(&now.pool[B], A) == 1 && pr_word_state(W.rg.owner[b]) == PR_FREE);
}

static void an_older_generation_is_a_stranger(void)
{
    uint32_t b;
    reset_world();
    pr_pool_take(&now.pool[A], &b, 1);
    RULE(pr_pool_owns(&now.pool[A], b));
    begin(A, 2);
    RULE(!pr_pool_owns(&now.pool[A], b) && pr_pool_give(&now.pool[A], &b, 1) == 0);
    RULE(!pr_pool_owns(&now.pool[A], N_BUFS));
}

/* Each change starts from OWNED(me) or comes back to it, and nothing else will do. */
static void only_the_owner_hands_on(void)
{
    struct pr_pool *a = &now.pool[A], *b = &now.pool[B];
    uint32_t x;
    reset_world();
    RULE(!pr_pool_lend(a, 2, APP) && !pr_pool_to_kernel(a, 2, PORT, SOCKET)); /* FREE */
    RULE(!pr_pool_hand_over(a, 2, LANE, 0));
    pr_pool_take(a, &x, 1);
    RULE(!pr_pool_lend(b, x, APP) && !pr_pool_to_kernel(b, x, PORT, SOCKET) && !pr_pool_hand_over(b, x, LANE, 0));
    RULE(pr_pool_lend(a, x, APP) && W.rg.owner[x] == pr_word(PR_LENT, APP, 1, 0));
    RULE(!pr_pool_lend(a, x, APP) && !pr_pool_unlend(a, x, APP + 1) && !pr_pool_accept(a, x, APP, 0));
    RULE(pr_pool_unlend(b, x, APP) && pr_pool_owns(b, x)); /* another worker than the lender may take it back */
    RULE(!pr_pool_unlend(b, x, APP)); /* a double return */
    RULE(pr_pool_to_kernel(b, x, PORT, SOCKET) && W.rg.owner[x] == pr_word(PR_KERNEL, PORT, SOCKET, 0));
    RULE(!pr_pool_from_kernel(a, x, PORT, SOCKET + 1) && !pr_pool_from_kernel(a, x, PORT + 1, SOCKET));
    RULE(pr_pool_from_kernel(a, x, PORT, SOCKET) && pr_pool_owns(a, x));
    RULE(pr_pool_hand_over(a, x, LANE, 0x10007) && W.rg.owner[x] == pr_word(PR_INFLIGHT, LANE, 1, 7));
    RULE(!pr_pool_accept(b, x, LANE, 8) && !pr_pool_accept(b, x, LANE + 1, 7) && !pr_pool_accept(b, N_BUFS, LANE, 7));
    RULE(pr_pool_accept(b, x, LANE, 0x20007) && pr_pool_owns(b, x));
    RULE(!pr_pool_accept(b, x, LANE, 7));
}

static void reclaiming_touches_only_the_dead(void)
{
    const uint64_t other[] = {pr_word(PR_FREE, A, 0, 0), pr_word(PR_OWNED, B, 1, 0), pr_word(PR_INFLIGHT, A, 1, 0),
                              pr_word(PR_LENT, A, 1, 0), pr_word(PR_KERNEL, A, 1, 0)};
    reset_world();
    memcpy(&W.rg.owner[2], other, sizeof other);
    W.rg.owner[7] = pr_word(PR_OWNED, A, 1, 0);
    W.rg.owner[8] = pr_word(PR_OWNED, A, 9, 0);
    W.rg.owner[N_BUFS - 1] = pr_word(PR_OWNED, A, 1, 0);
    W.rg.owner[0] = W.rg.owner[1] = 0;
    begin(A, 9);
    RULE(pr_pool_reclaim_process(&now.pool[A], A) == 2 && !memcmp(&W.rg.owner[2], other, sizeof other));
    RULE(W.rg.owner[7] == pr_word(PR_FREE, A, 0, 0) && W.rg.owner[8] == pr_word(PR_OWNED, A, 9, 0)); /* that is me */
    RULE(W.rg.owner[N_BUFS - 1] == pr_word(PR_FREE, C, 0, 0) && W.rg.owner[0] == 0);
    W.rg.owner[0] = pr_word(PR_LENT, APP, 1, 0); /* reserved: no home to go to */
    W.rg.owner[9] = pr_word(PR_LENT, APP, 1, 0);
    W.rg.owner[10] = pr_word(PR_KERNEL, PORT, SOCKET, 0);
    W.rg.owner[11] = pr_word(PR_KERNEL, PORT, SOCKET + 1, 0);
    RULE(pr_pool_reclaim_app(&now.pool[A], APP) == 1 && W.rg.owner[9] == pr_word(PR_FREE, A, 0, 0));
    RULE(pr_pool_reclaim_socket(&now.pool[A], PORT, SOCKET) == 1 && pr_word_state(W.rg.owner[11]) == PR_KERNEL);
}

static void counting_counts_every_word(void)
{
    uint64_t count[PR_N_OWNER_STATES + 1];
    reset_world();
    W.rg.owner[2] = pr_word(PR_LENT, APP, 1, 0);
    W.rg.owner[3] = (uint64_t)PR_N_OWNER_STATES << 56;
    W.rg.owner[4] = (uint64_t)0xff << 56;
    pr_pool_count(&now.pool[A], count);
    RULE(count[PR_RESERVED] == 2 && count[PR_LENT] == 1 && count[PR_N_OWNER_STATES] == 2);
    RULE(count[PR_FREE] == N_BUFS - 5);
}

static void a_dry_stack_is_filled_a_part_at_a_time(void)
{
    enum { MANY_BUFS = PR_FIRST_BUF + PR_POOL_REFILL + 1 };
    static uint64_t words[MANY_BUFS];
    static uint32_t stack[MANY_BUFS], bufs[MANY_BUFS];
    struct pr_pool p;
    pr_pool_init(&p, words, MANY_BUFS, 1, 0, MANY_BUFS - PR_FIRST_BUF, stack);
    pr_pool_deal(&p);
    RULE(pr_pool_take(&p, bufs, 1) == 1 && bufs[0] == PR_FIRST_BUF && p.depth < PR_POOL_REFILL);
    RULE(pr_pool_take(&p, bufs, MANY_BUFS) == MANY_BUFS - PR_FIRST_BUF - 1 && pr_pool_take(&p, bufs, 1) == 0);
    for (uint32_t b = PR_FIRST_BUF; b < MANY_BUFS; b++) /* others send all of them back */
        words[b] = p.as_free;
    RULE(pr_pool_take(&p, bufs, 1) == 1 && p.depth < PR_POOL_REFILL);
    RULE(pr_pool_take(&p, bufs, MANY_BUFS) == MANY_BUFS - PR_FIRST_BUF - 1);
    for (uint32_t b = MANY_BUFS - 1; b >= PR_FIRST_BUF; b--) { /* each alone is found, wherever the last search ended */
        words[b] = pr_word(PR_FREE, 1, 0, 0);
        RULE(pr_pool_take(&p, bufs, 2) == 1 && bufs[0] == b);
    }
}

static void a_rebuilt_stack_is_a_new_one(void)
{
    uint32_t b[3];
    reset_world();
    pr_pool_take(&now.pool[A], b, 3);
    RULE(b[0] == 2 && b[1] == 3 && b[2] == 4); /* the lowest first */
    pr_pool_give(&now.pool[A], b, 3);
    pr_pool_take(&now.pool[A], b, 1);
    RULE(b[0] == 4); /* the last given is taken first: it is in the cache */
    pr_pool_rebuild(&now.pool[A]);
    RULE(pr_pool_take(&now.pool[A], b + 1, 2) == 2 && b[1] == 2 && b[2] == 3);
    RULE(now.pool[A].depth == HOME - 3);
}

static void pool_rules(void)
{
    a_word_keeps_its_fields();
    homes_are_even();
    dealing_takes_what_was_never_dealt();
    taking_gives_each_buffer_once();
    giving_sends_home();
    no_word_beyond_the_last();
    an_older_generation_is_a_stranger();
    only_the_owner_hands_on();
    reclaiming_touches_only_the_dead();
    counting_counts_every_word();
    a_dry_stack_is_filled_a_part_at_a_time();
    a_rebuilt_stack_is_a_new_one();
}
