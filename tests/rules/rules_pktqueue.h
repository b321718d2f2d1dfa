/* pktqueue.h: the limit, the counters, flush, barriers, and who may take whose place. */

static void queue_fresh(void)
{
    reset_world();
    par.n = par.queued = 0;
    par.at = CAP;
    queue_used();
}

static const struct pr_pktq_cell *cell_of(uint16_t o) { return pr_pktq_cell(&now.q, 0, o - A); }

static void a_queue_is_checked_before_use(void)
{
    struct pr_pktq v;
    size_t size = pr_pktq_size(NCPU, N_PROCS, CAP);
    queue_fresh();
    struct pr_pktqueue good = *now.q.q, *q = now.q.q;
    RULE(pr_pktq_attach(&v, q, size) == 0 && pr_pktq_attach(&v, q, size - 1) < 0 && pr_pktq_attach(&v, q, 60) < 0);
#define REFUSED(field, value) (*q = good, q->field = value, pr_pktq_attach(&v, q, size) < 0)
    RULE(REFUSED(ncpu, 0) && REFUSED(ncpu, NCPU + 1) && REFUSED(ncpu, 1025) && REFUSED(ncpu, 0x80000000));
    RULE(REFUSED(rows, 0) && REFUSED(rows, N_PROCS + 1) && REFUSED(rows, 1025) && REFUSED(rows, 0x80000000));
    RULE(REFUSED(capacity, 0) && REFUSED(capacity, 6) && REFUSED(capacity, 2 * CAP));
    RULE(REFUSED(ceiling, 0) && REFUSED(ceiling, 65536) && REFUSED(first_owner, 0));
    RULE(REFUSED(first_lane, 65530) && REFUSED(first_owner, 65533));
#undef REFUSED
    *q = good;
    RULE(pr_pktq_capacity(512, 64) == 512 && pr_pktq_capacity(500, 64) == 512 && pr_pktq_capacity(10, 64) == 64);
    RULE(pr_pktq_capacity(65535, 64) == 65536 && pr_pktq_capacity(1, 1) == 1);
}

static void a_queue_has_a_thousand_of_each_at_most(void)
{
    static uint64_t memory[1 << 17] __attribute__((aligned(64)));
    struct pr_pktqueue g = {.ncpu = 1024, .rows = 1, .capacity = 1, .ceiling = 1, .first_owner = 1, .limit = 1};
    RULE(pr_pktq_format(memory, sizeof memory, &g) == 0);
    g.ncpu = 1025;
    RULE(pr_pktq_format(memory, sizeof memory, &g) < 0);
    g.ncpu = 1, g.rows = 1024;
    RULE(pr_pktq_format(memory, sizeof memory, &g) == 0);
    g.rows = 1025;
    RULE(pr_pktq_format(memory, sizeof memory, &g) < 0);
}

static void the_limit_is_exact(void)
{
    queue_fresh();
    now.q.q->limit = 5;
    RULE(queue_send(A, 3, 1) == 3 && queue_send(C, 4, 10) == 2 && queue_send(A, 1, 20) == 0);
    RULE(pr_pktq_depth(&now.q, 0) == 5 && pr_pktq_depth(&now.q, 1) == 0);
    RULE(cell_of(A)->enqueue == CAP + 3 && cell_of(A)->drop == 1 && cell_of(C)->enqueue == 2 && cell_of(C)->drop == 2);
    RULE(cell_of(A)->over == 0 && cell_of(C)->over == 0);
    now.q.q->limit = 2; /* lowered: what is there stays */
    RULE(queue_send(C, 1, 30) == 0 && queue_receive(CAP) == 5);
    RULE(queue_send(C, 3, 30) == 2 && cell_of(A)->dequeue == CAP + 3 && cell_of(C)->dequeue == 2);
}

/* Two that looked at the same moment: what is beyond the limit is counted, but no more than one's own. */
static uint32_t others;
static void others_enqueue(void) { W.lane[N_LANES]->head += others; }

static uint64_t over_when(uint32_t n)
{
    queue_fresh();
    now.q.q->limit = 6;
    others = n;
    meanwhile = others_enqueue;
    RULE(queue_send(C, 3, 10) == 3);
    meanwhile = NULL;
    return cell_of(C)->over;
}

static void going_over_is_counted(void)
{
    RULE(over_when(3) == 0 && over_when(4) == 1 && over_when(6) == 3 && over_when(8) == 3);
}

static void lanes_take_turns(void)
{
    queue_fresh();
    queue_send(A, 4, 1);
    queue_send(C, 4, 11);
    RULE(queue_receive(1) == 1 && queue_receive(1) == 1 && queue_receive(1) == 1 && queue_receive(1) == 1);
    RULE(cell_of(A)->dequeue - CAP == 2 && cell_of(C)->dequeue == 2);
    RULE(queue_receive(CAP) == 4 && queue_receive(CAP) == 0);
}

static void a_flush_empties_and_answers(void)
{
    queue_fresh();
    queue_send(A, 5, 1);
    queue_send(C, 3, 11);
    uint32_t ticket = pr_pktq_ask_flush(&now.q, 0), other = pr_pktq_ask_flush(&now.q, 1);
    RULE(pr_pktq_flush_wanted(&now.consumer) && !pr_pktq_flush_done(&now.q, 0, ticket) && pr_pktq_ready(&now.consumer));
    RULE(queue_receive(CAP) == 0 && pr_pktq_flush_done(&now.q, 0, ticket) && !pr_pktq_flush_done(&now.q, 1, other));
    RULE(!pr_pktq_flush_wanted(&now.consumer) && !pr_pktq_ready(&now.consumer) && pr_pktq_depth(&now.q, 0) == 0);
    RULE(cell_of(A)->dequeue == CAP + 5 && cell_of(C)->dequeue == 3);
    RULE(W.log[0] == 0);
    pr_pktq_ask_flush(&now.q, 0);
    RULE(pr_pktq_ready(&now.consumer) && queue_receive(CAP) == 0 && !pr_pktq_ready(&now.consumer));
    now.groups = 0;
    check_all_home();
    RULE(!verdict);
    queue_send(C, 1, 20);
    RULE(pr_pktq_ready(&now.consumer) && queue_receive(CAP) == 1);
}

static void a_barrier_is_a_snapshot(void)
{
    uint32_t heads[NCPU * N_PROCS];
    queue_fresh();
    queue_send(A, 2, 1);
    pr_pktq_heads(&now.q, heads);
    queue_send(A, 2, 3);
    RULE(!pr_pktq_passed(&now.q, 0, heads) && pr_pktq_passed(&now.q, 1, heads));
    queue_receive(1);
    RULE(!pr_pktq_passed(&now.q, 0, heads));
    queue_receive(1);
    RULE(pr_pktq_passed(&now.q, 0, heads));
    queue_receive(2);
    RULE(pr_pktq_passed(&now.q, 0, heads));
}

static void a_place_is_claimed_once(void)
{
    uint64_t holder = 0;
    RULE(pr_pktq_claim(&holder, 0, 7) && holder == 7 && !pr_pktq_claim(&holder, 0, 8) && holder == 7);
    RULE(pr_pktq_claim(&holder, 7, 0) && holder == 0);
    RULE(pr_pktq_cpu_of(&now.q, 7) == 7 % NCPU);
}

static void the_dead_are_buried_and_counted(void)
{
    uint32_t b[4];
    queue_fresh();
    queue_send(A, 2, 1);
    pr_pool_take(&now.pool[A], b, 4);
    pr_pool_hand_over(&now.pool[A], b[0], QUEUE_LANE, W.lane[N_LANES]->head); /* killed before it was published */
    pr_pool_hand_over(&now.pool[A], b[1], QUEUE_LANE + N_PROCS, 0);           /* the same, for CPU 1 */
    now.q.rows[0].crashed = 10;
    pr_pktq_cell(&now.q, 0, 0)->enqueue -= 2; /* and before it was counted */
    begin(A, 2);
    RULE(pr_pktq_bury(&now.q, &now.pool[A], 0) == 4 && now.q.rows[0].crashed == 14 && now.q.rows[1].crashed == 0);
    RULE(pr_pktq_produce(&now.producer[A], &now.q, 0, now.produces[A], no_bells) == 0);
    RULE(cell_of(A)->enqueue == CAP + 2 && now.produces[A][0].mine == W.lane[N_LANES]->head);
    RULE(queue_receive(1) == 1);
    pr_pktq_cell(&now.q, 0, 0)->dequeue--;
    pr_pktq_cell(&now.q, 0, 0)->lost = 3;
    pr_pktq_cell(&now.q, 0, 0)->dequeue -= 3;
    RULE(pr_pktq_consume(&now.consumer, &now.q, 0, now.consumes) == 0);
    RULE(cell_of(A)->dequeue + cell_of(A)->lost == CAP + 1 && cell_of(A)->lost == 3);
    RULE(queue_receive(CAP) == 1);
    W.lane[N_LANES]->head += 100; /* a lane that makes no sense */
    RULE(pr_pktq_consume(&now.consumer, &now.q, 0, now.consumes) < 0);
    RULE(pr_pktq_produce(&now.producer[A], &now.q, 0, now.produces[A], no_bells) < 0);
}

static void lost_slots_are_counted(void)
{
    queue_fresh();
    queue_send(A, 3, 1);
    W.rg.owner[pr_desc_idx(W.lane[N_LANES]->slot[W.lane[N_LANES]->tail % CAP])] = pr_word(PR_FREE, A, 0, 0);
    RULE(queue_receive(CAP) == 2 && cell_of(A)->lost == 1 && cell_of(A)->dequeue == CAP + 2);
}

static void pktqueue_rules(void)
{
    a_queue_is_checked_before_use();
    a_queue_has_a_thousand_of_each_at_most();
    the_limit_is_exact();
    going_over_is_counted();
    lanes_take_turns();
    a_flush_empties_and_answers();
    a_barrier_is_a_snapshot();
    a_place_is_claimed_once();
    the_dead_are_buried_and_counted();
    lost_slots_are_counted();
}
