/* netisr killed at every instruction: queueing, serving, purging, hybrid dispatch, adoption and burial. The harness is
 * that of crashstep.c, in a world of its own: a region, its ledger, and netisr's block with one workstream. A is its
 * worker, B the controller, who only produces. */
#define main crashstep_main
#include "crashstep.c"
#undef main

#include "netisr.h"

enum { PROTO = 1, TX = PR_NETISR_INTERNAL, KEPT_VNET = 0, GONE_VNET = 1, KEPT_PORT = 3, GONE_PORT = 4 };

static const struct pr_netisr_geometry geometry = {
    .workstreams = 1, .maxqlimit = 64, .defaultqlimit = 64, .first_lane = 100};
static const int nobody[1] = {-1};

/* What the two processes have in memory of their own. */
static struct ends {
    struct pr_netisr_end a, b;
    uint64_t room_a[300], room_b[300];
} ends, ends_before;
static int lived;

static struct pr_netisr N; /* the block */

/* ---- frames: every third has two slots ---- */

static uint32_t slots_of(uint64_t seq) { return seq % 3 ? 1 : 2; }

static uint32_t make_frame(uint16_t from, uint64_t seq, uint16_t port, uint64_t *desc)
{
    uint32_t bufs[2], n = slots_of(seq);
    if (pr_pool_take(&now.pool[from], bufs, n) < n)
        give_up("the pool is dry");
    for (uint32_t k = 0; k < n; k++) {
        stamp(bufs[k], seq);
        desc[k] = pr_desc(bufs[k], frame_len(seq), k + 1 < n ? PR_NS_MOREFRAG : 0);
    }
    pr_meta_of(&W.rg, bufs[0])->port = port;
    return n;
}

static void see_batch(void *ctx, uint32_t proto, struct pr_batch *b)
{
    (void)proto;
    for (uint32_t i = 0; i < b->n; i++) {
        uint64_t first = b->desc[b->first[i]], last = b->desc[b->first[i + 1] - 1];
        uint64_t seq = *(uint64_t *)(void *)pr_buf(&W.rg, pr_desc_idx(first));
        uint64_t end = *(uint64_t *)(void *)pr_buf(&W.rg, pr_desc_idx(last));
        int whole = b->first[i + 1] == b->first[i] + slots_of(seq) && end == seq;
        see(pr_desc_idx(first), whole ? pr_desc_len(first) : 0);
    }
    pr_hand_free(((struct pr_netisr_end *)ctx)->pool, b->desc, b->n_desc);
}

static void begin_end(struct pr_netisr_end *e, uint64_t *room, uint16_t who, uint32_t producer, uint32_t ws)
{
    memset(room, 0, sizeof ends.room_a);
    pr_netisr_begin(e, &N, &now.pool[who], &W.rg, producer, ws, room, nobody);
    e->ctx = e;
    e->handle = see_batch;
}

static void batch_of(struct pr_batch *b, uint16_t from, uint32_t n, uint64_t seq, uint16_t port)
{
    pr_batch_begin(b);
    for (uint32_t i = 0; i < n; i++)
        pr_batch_close(b, make_frame(from, seq + i, port, &b->desc[b->n_desc]));
}

static uint32_t queue_frames(struct pr_netisr_end *e, uint16_t from, uint32_t n, uint64_t seq, uint16_t port)
{
    struct pr_batch b;
    batch_of(&b, from, n, seq, port);
    return pr_netisr_queue_src(e, PROTO, 0, &b) == 0 ? n : 0;
}

static void serve_all(void)
{
    for (uint32_t round = 0; pr_netisr_serve(&ends.a) && round < PATIENCE; round++)
        ;
}

/* ---- the world: B's lane stands at par.at and its frames near their wrap; par.queued of them wait ---- */

static void lane_stands_at(uint32_t producer, uint32_t at, uint32_t frames)
{
    struct pr_lane *l = pr_netisr_lane(&N, PROTO, 0, producer);
    struct pr_netisr_cell *c = pr_netisr_cell(&N, PROTO, 0, producer);
    l->head = l->tail = at;
    c->put = c->taken = pr_netisr_mark(frames, at);
    c->detached = pr_netisr_mark(frames, 0);
    c->done = frames;
    c->queued = frames;
}

static struct pr_batch in_hand;

static void netisr_used(void)
{
    size_t size = pr_netisr_size(&geometry);
    if (pr_netisr_format(W.queue, size, &geometry) < 0 || pr_netisr_attach(&N, W.queue, size) < 0)
        give_up("netisr");
    pr_netisr_set_vnet(&N, GONE_VNET, 1);
    pr_netisr_set_port(&N, KEPT_PORT, 7, KEPT_VNET);
    pr_netisr_set_port(&N, GONE_PORT, 8, GONE_VNET);
    pr_netisr_register(&N, PROTO, "ip", PR_POLICY_SOURCE, PR_DISPATCH_HYBRID, 64, 0);
    lane_stands_at(1, par.at, 0xfffffffe);
    pr_netisr_work(&N, PROTO, 0)->handled = 0xfffffffe;
    now.lanes = 0;
    for (uint32_t producer = 0; producer < 2; producer++)
        W.lane[now.lanes++] = pr_netisr_lane(&N, PROTO, 0, producer);
    begin_end(&ends.a, ends.room_a, A, 0, 0);
    begin_end(&ends.b, ends.room_b, B, 1, PR_NO_WS);
    for (uint64_t seq = 1; seq <= 6; seq++) {
        queue_frames(&ends.b, B, 1, seq, KEPT_PORT);
        serve_all();
    }
    memset(W.log, 0, LOG * sizeof *W.log);
}

static void remember_ends(void)
{
    ends_before = ends;
    lived = 0;
}

static void to_put(void)
{
    netisr_used();
    queue_frames(&ends.b, B, par.queued, 1, KEPT_PORT);
    batch_of(&in_hand, B, par.n, BURST, KEPT_PORT);
    expect(1, par.queued, ALL, 0);
    expect(BURST, par.n, WHOLE, par.n);
    remember_ends();
}

static void to_serve(void)
{
    netisr_used();
    queue_frames(&ends.b, B, par.queued, 1, KEPT_PORT);
    expect(1, par.queued, SOME, par.queued);
    now.stale_ok = 1;
    remember_ends();
}

/* Frames of the vnet that goes are those from BURST on, between the others. */
static void to_purge(void)
{
    netisr_used();
    for (uint32_t i = 0; i < par.queued; i++) {
        queue_frames(&ends.b, B, 1, 1 + i, KEPT_PORT);
        if (i < par.n)
            queue_frames(&ends.b, B, 1, BURST + i, GONE_PORT);
    }
    pr_netisr_allow(&N, PROTO, GONE_VNET, 0);
    pr_netisr_ask_purge(&N, 0, -1);
    expect(1, par.queued, ALL, 0);
    now.stale_ok = 1;
    remember_ends();
}

static void to_dispatch(void)
{
    netisr_used();
    batch_of(&in_hand, A, par.n, BURST, KEPT_PORT);
    expect(BURST, par.n, SOME, par.n);
    remember_ends();
}

/* ---- the victims ---- */

static void put(void) { pr_netisr_queue_src(&ends.b, PROTO, 0, &in_hand); }
static void serve(void) { pr_netisr_serve(&ends.a); }
static void purge(void) { pr_netisr_purge(&ends.a); }
static void hybrid(void) { pr_netisr_dispatch_src(&ends.a, PROTO, 0, &in_hand); }
static void leave(void) { pr_netisr_leave(&ends.a); }

/* ---- the living, the heirs ---- */

static void worker_lives(void)
{
    ends = ends_before;
    lived = 1;
    serve_all();
}

static void controller_lives(void)
{
    ends = ends_before;
    lived = 1;
    expect(TRAFFIC, queue_frames(&ends.b, B, 3, TRAFFIC, KEPT_PORT), ALL, 0);
    now.seq = TRAFFIC + 3;
}

static void survivors(void)
{
    if (!lived)
        ends = ends_before;
    lived = 0;
}

static void controller_again(void)
{
    survivors();
    replace(B);
    pr_netisr_bury_producer(&N, &now.pool[B], 1, nobody);
    begin_end(&ends.b, ends.room_b, B, 1, PR_NO_WS);
}

static void worker_again(void)
{
    survivors();
    replace(A);
    pr_netisr_bury_producer(&N, &now.pool[A], 0, nobody);
    begin_end(&ends.a, ends.room_a, A, 0, 0);
}

/* ---- the laws ---- */

static void check_cells(void)
{
    const struct pr_netisr_work *w = pr_netisr_work(&N, PROTO, 0);
    const struct pr_netisr_ws *s = &N.ws[0];
    uint64_t queued = 0;
    for (uint32_t producer = 0; producer < 2; producer++) {
        const struct pr_netisr_cell *c = pr_netisr_cell(&N, PROTO, 0, producer);
        const struct pr_lane *l = pr_netisr_lane(&N, PROTO, 0, producer);
        queued += c->queued;
        if (pr_netisr_position(c->put) != l->head || pr_netisr_position(c->taken) != l->tail || c->put != c->taken ||
            c->done != pr_netisr_frames(c->taken) || (uint32_t)c->queued != pr_netisr_frames(c->put))
            bad(LOST, "producer %u: put %lx taken %lx head %u tail %u done %u queued %lu", producer, c->put, c->taken,
                l->head, l->tail, c->done, c->queued);
    }
    if (queued != w->handled + w->purged + w->crashed)
        bad(LOST, "queued %lu, handled %lu purged %lu crashed %lu", queued, w->handled, w->purged, w->crashed);
    if (pr_netisr_len(&N, PROTO, 0) || s->pending || s->flags || s->purged != s->purge_asked)
        bad(STUCK, "len %u pending %x flags %x purged %u of %u", pr_netisr_len(&N, PROTO, 0), s->pending, s->flags,
            s->purged, s->purge_asked);
}

/* Right after a recovery, with frames waiting: lengths are those of the lanes, and all is served without more. */
static void check_waiting(void)
{
    for (uint32_t producer = 0; producer < 2; producer++) {
        const struct pr_netisr_cell *c = pr_netisr_cell(&N, PROTO, 0, producer);
        const struct pr_lane *l = pr_netisr_lane(&N, PROTO, 0, producer);
        uint32_t frames = 0;
        for (uint32_t pos = l->tail, begins = 1; pos != l->head; pos++) {
            uint64_t d = l->slot[pos & (l->capacity - 1)];
            frames += begins && pr_desc_idx(d);
            begins = !(pr_desc_flags(d) & PR_NS_MOREFRAG);
        }
        if (pr_netisr_waiting(c) != frames || c->done != pr_netisr_frames(c->taken))
            bad(LOST, "producer %u: %u wait, %u are in the lane; done %u taken %lx", producer, pr_netisr_waiting(c),
                frames, c->done, c->taken);
    }
    serve_all();
    for (uint32_t producer = 0; producer < 2; producer++) {
        const struct pr_lane *l = pr_netisr_lane(&N, PROTO, 0, producer);
        if (l->head != l->tail)
            bad(STUCK, "producer %u: nobody serves what lies between %u and %u", producer, l->tail, l->head);
    }
}

static void go_on(void)
{
    uint64_t first = now.seq, sent = 0;
    check_buffers();
    check_waiting();
    for (uint32_t i = 0; i < 9; i++) {
        sent += queue_frames(&ends.b, B, 3, first + sent, KEPT_PORT);
        serve_all();
        sent += queue_frames(&ends.a, A, 2, first + sent, KEPT_PORT);
        serve_all();
    }
    expect(first, sent, ALL, 0);
    if (sent != 45)
        bad(STUCK, "%lu of 45 frames were queued", sent);
    check_buffers();
    check_frames();
    check_cells();
    check_all_home();
    ends = ends_before;
    lived = 0;
}

/* A hole may cost the frame's purge its count, never another frame: crashed is bounded by what was in a hand. */
static void go_on_losing_none(void)
{
    uint64_t crashed = pr_netisr_work(&N, PROTO, 0)->crashed;
    go_on();
    if (pr_netisr_work(&N, PROTO, 0)->crashed - crashed > 2)
        bad(LOST, "%lu frames crashed in a purge", pr_netisr_work(&N, PROTO, 0)->crashed);
}

#define PUTS "1,0,8 3,2,65533 5,3,4294967294"
#define SERVES "0,1,8 0,7,65533 0,6,4294967293"
static const struct scenario netisr_scenarios[] = {
    {"netisr queue", PUTS, to_put, put, worker_lives, controller_again, go_on, 0},
    {"netisr serve", SERVES, to_serve, serve, controller_lives, worker_again, go_on, 0},
    {"netisr purge", "1,2,8 3,3,65533 2,2,4294967293", to_purge, purge, NULL, worker_again, go_on_losing_none, 0},
    {"netisr hybrid", "1,0,8 4,0,8", to_dispatch, hybrid, controller_lives, worker_again, go_on, 0},
    {"netisr leave", SERVES, to_serve, leave, controller_lives, worker_again, go_on, 0},
    {"netisr adopt", SERVES, to_serve, worker_again, controller_lives, worker_again, go_on, 0},
    {"netisr bury", PUTS, to_put, controller_again, worker_lives, controller_again, go_on, 0},
};

static void make_netisr_world(void)
{
    uint64_t mem = pr_carve(&W.rg.g, 1, N_RINGS, SLOTS, N_BUFS, 512), ledger = pr_ledger_size(&W.rg.g);
    uint64_t counters = pr_counters_size(&W.rg.g);
    W.size = PR_PAGE + mem + ledger + counters + pr_round(pr_netisr_size(&geometry), PR_PAGE);
    W.base = mmap(NULL, W.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    uint8_t *at = W.base + PR_PAGE;
    W.log = (uint64_t *)(void *)W.base;
    W.births = (uint32_t *)(void *)(W.log + LOG);
    W.rg.mem = at;
    W.rg.owner = (uint64_t *)(void *)((at += mem) + PR_PAGE);
    W.rg.krings = (struct pr_kring *)(void *)(at + pr_ledger_krings(&W.rg.g));
    W.rg.rows = (struct pr_row *)(void *)((at += ledger) + PR_PAGE);
    W.rg.n_rows = N_RINGS;
    W.queue = at + counters;
}

int main(int argc, char **argv)
{
    int all_good = 1;
    for (int i = 1; i < argc; i++)
        json |= !strcmp(argv[i], "--json");
    phase = mmap(NULL, PR_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    make_netisr_world();
    alarm(600);
    again_states = 1;
    for (size_t i = 0; i < LEN(netisr_scenarios); i++)
        if (argc < 2 || json || !strncmp(netisr_scenarios[i].name, argv[1], strlen(argv[1])))
            all_good &= run(&netisr_scenarios[i]);
    return !all_good;
}
