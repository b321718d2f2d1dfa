/* The world in which a process is killed, and the laws that must hold in it afterwards.
 *
 *   shared:   | log | region: rings, metadata, buffers | ledger | counters | lanes | two-step queue | pktqueue |
 *   private:  `now`, what each living process keeps in its own memory
 *
 * A kill leaves the shared part as it is and takes the victim's private part away, so one copy of the first and one of
 * the second are a whole crash: they are put back before every judgement, and everything stays at its address.
 *
 * Frames carry their number four times over, in their length and in their metadata; whoever processes one writes its
 * number into the log with a single store. */
#ifndef WORLD_H
#define WORLD_H

#include "lane.h"
#include "move.h"
#include "pktqueue.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { A = 1, B, C, N_PROCS = 3 };               /* process ids: owners of homes */
enum { APP = 9, PORT = 5, SOCKET = 7, LANE = 40, MPSC = 60, QUEUE_LANE = 20 };
enum { HOME = 24, N_BUFS = 2 + N_PROCS * HOME, SLOTS = 8, N_RINGS = 2, CAP = 8, N_LANES = 2, NCPU = 2, MANY = 24 };
enum { LOG = 160, BURST = 101, TRAFFIC = 1001, PATIENCE = 64 };

enum kind { LOST, TWICE, STUCK, TORN, DUPLICATE, N_KINDS };
static const char *const kind_name[N_KINDS] = {"lost", "twice", "stuck", "torn", "duplicate"};

/* What a run of frame numbers may come to. */
enum rule { ALL, SOME, WHOLE }; /* each once; each at most once, at most `lose` missing; either ALL or none of them */
struct group {
    uint64_t first, n;
    enum rule rule;
    uint64_t lose;
};

struct two_step { /* the classic queue of many producers, see misordered.h */
    uint32_t tail, head;
    struct { uint64_t desc; uint32_t turn; } slot[CAP];
};

static struct world {
    uint8_t *base;
    size_t size;
    uint64_t *log; /* ends at a zero */
    uint32_t *births; /* the last generation given out */
    struct pr_region rg;
    struct pr_lane *lane[N_LANES + NCPU * N_PROCS]; /* mine, then the pktqueue's once it is made */
    struct two_step *mpsc;
    void *queue;
} W;

static struct {
    uint32_t n, queued, at; /* the burst, frames there before, where the cursors stand */
} par;

static struct cast {
    uint32_t gen[N_PROCS + 1];
    struct pr_pool pool[N_PROCS + 1];
    uint32_t stack[N_PROCS + 1][HOME];
    struct pr_lane_end out[N_LANES], in[N_LANES];
    struct pr_ringh ring[N_RINGS];
    struct pr_pktq q;
    struct pr_pktq_producer producer[N_PROCS + 1];
    struct pr_lane_end produces[N_PROCS + 1][NCPU];
    struct pr_pktq_consumer consumer;
    struct pr_lane_end consumes[N_PROCS];
    uint32_t bufs[MANY], n; /* what the victim has in its hands when it begins */
    uint64_t desc[MANY];
    uint32_t lanes;   /* that are in use */
    uint64_t in_ring; /* what the words of buffers in rings say */
    int app_lives, stale_ok;
    struct group group[8];
    uint32_t groups;
    uint64_t seq; /* of the next frame of the traffic that follows a recovery */
    uint64_t queue[40]; /* of a driver, see on_device.h */
} now;

/* ---- the verdict ---- */

__attribute__((noreturn)) static void give_up(const char *what)
{
    perror(what);
    exit(3);
}

static unsigned verdict;
static char first_words[200];

__attribute__((format(printf, 2, 3))) static void bad(enum kind k, const char *how, ...)
{
    va_list args;
    va_start(args, how);
    if (!verdict)
        vsnprintf(first_words, sizeof first_words, how, args);
    va_end(args);
    verdict |= 1u << k;
}

/* ---- frames ---- */

static uint16_t frame_len(uint64_t seq) { return (uint16_t)(60 + seq % 64); }

static void stamp(uint32_t b, uint64_t seq)
{
    uint64_t *p = (uint64_t *)pr_buf(&W.rg, b);
    p[0] = seq;
    p[1] = ~seq;
    p[2] = seq * 0x9e3779b97f4a7c15ull;
    p[3] = seq << 32 | b;
    pr_meta_of(&W.rg, b)->hash = (uint32_t)seq;
}

static uint64_t described(uint32_t b, uint64_t seq) { return pr_desc(b, frame_len(seq), (uint16_t)seq); }

enum { TORN_FRAME = 1 << 20 };

/* Process a frame: one store says that it was done. */
static void see(uint32_t b, uint16_t len)
{
    uint32_t i = 0;
    uint64_t seq = TORN_FRAME;
    if (pr_buf_ok(&W.rg, b)) {
        const uint64_t *p = (const uint64_t *)pr_buf(&W.rg, b);
        seq = p[0];
        if (!seq || p[1] != ~seq || p[2] != seq * 0x9e3779b97f4a7c15ull || p[3] >> 32 != seq || len != frame_len(seq) ||
            pr_meta_of(&W.rg, b)->hash != seq)
            seq |= TORN_FRAME;
    }
    while (W.log[i] && i < LOG - 1)
        i++;
    __atomic_store_n(&W.log[i], seq, __ATOMIC_RELEASE);
}

static void see_desc(uint64_t d)
{
    uint32_t b = pr_desc_idx(d);
    int whole = pr_buf_ok(&W.rg, b) && pr_desc_flags(d) == (uint16_t)*(const uint64_t *)pr_buf(&W.rg, b);
    see(b, whole ? pr_desc_len(d) : 0);
}

static void expect(uint64_t first, uint64_t n, enum rule rule, uint64_t lose)
{
    if (n)
        now.group[now.groups++] = (struct group){first, n, rule, lose};
}

static void check_frames(void)
{
    uint64_t seen[8] = {0}, last = 0;
    for (uint32_t i = 0; i < LOG && W.log[i]; i++) {
        uint64_t seq = W.log[i];
        uint32_t g = 0;
        if (seq & TORN_FRAME) {
            bad(TORN, "frame %lu is torn", seq & ~(uint64_t)TORN_FRAME);
            continue;
        }
        while (g < now.groups && seq - now.group[g].first >= now.group[g].n)
            g++;
        if (g == now.groups)
            bad(TORN, "frame %lu was never sent", seq);
        else
            seen[g]++;
        if (seq <= last)
            bad(DUPLICATE, "frame %lu after frame %lu", seq, last);
        last = seq;
    }
    for (uint32_t g = 0; g < now.groups; g++) {
        uint64_t gone = now.group[g].n > seen[g] ? now.group[g].n - seen[g] : 0;
        if (gone && (now.group[g].rule == ALL || (now.group[g].rule == WHOLE && seen[g]) || gone > now.group[g].lose))
            bad(LOST, "%lu frames from %lu on were never seen", gone, now.group[g].first);
    }
}

/* ---- buffers: each is in one place, and in one that somebody living can reach ---- */

static void check_ring_slots(uint8_t *places)
{
    for (uint32_t r = 0; r < N_RINGS; r++)
        for (uint32_t i = 0; now.ring[r].ring && i < now.ring[r].n; i++) {
            uint32_t b = now.ring[r].ring->slot[i].buf_idx;
            if (!pr_buf_ok(&W.rg, b)) {
                bad(LOST, "ring %u slot %u names no buffer", r, i);
                continue;
            }
            places[b]++;
            if ((W.rg.owner[b] & (PR_WORD_NAME | (now.app_lives ? 0 : PR_WORD_GEN))) != now.in_ring)
                bad(TWICE, "ring %u slot %u: buffer %u says %lx", r, i, b, W.rg.owner[b]);
        }
}

static void check_lane(const struct pr_lane *l, uint8_t *places)
{
    if (l->head - l->tail > l->capacity) {
        bad(STUCK, "lane %u: head %u tail %u", l->id, l->head, l->tail);
        return;
    }
    for (uint32_t pos = l->tail; pos != l->head; pos++) {
        uint32_t b = pr_desc_idx(l->slot[pos & (l->capacity - 1)]);
        uint64_t w = b < N_BUFS ? W.rg.owner[b] : 0;
        if ((w & (PR_WORD_NAME | PR_WORD_AUX)) == pr_word(PR_INFLIGHT, (uint16_t)l->id, 0, (uint16_t)pos))
            places[b]++;
        else if (!now.stale_ok)
            bad(TWICE, "lane %u position %u: buffer %u says %lx", l->id, pos, b, w);
    }
}

static int reachable(uint32_t b, uint64_t w, unsigned places)
{
    uint16_t owner = pr_word_owner(w);
    switch (pr_word_state(w)) {
    case PR_FREE: return w == pr_pool_at_home(&now.pool[A], b);
    case PR_OWNED: return places && owner && owner <= N_PROCS && pr_word_gen(w) == now.gen[owner];
    case PR_INFLIGHT: return places != 0;
    case PR_LENT: return now.app_lives && owner == APP;
    case PR_KERNEL: return owner == PORT && pr_word_gen(w) == SOCKET;
    }
    return 0;
}

static void check_buffers(void)
{
    uint8_t places[N_BUFS] = {0};
    check_ring_slots(places);
    for (uint32_t i = 0; i < now.lanes; i++)
        check_lane(W.lane[i], places);
    for (uint32_t b = 2; b < N_BUFS; b++) {
        uint64_t w = W.rg.owner[b];
        if (places[b] > 1 || (places[b] && pr_word_state(w) == PR_FREE))
            bad(TWICE, "buffer %u is in %u places and says %lx", b, places[b], w);
        if (!reachable(b, w, places[b]))
            bad(LOST, "buffer %u is out of reach, its word says %lx", b, w);
    }
    for (uint32_t b = 0; b < 2; b++)
        if (W.rg.owner[b])
            bad(TWICE, "reserved buffer %u says %lx", b, W.rg.owner[b]);
}

/* Nobody holds anything: each process can take all of its home, once. */
static void check_all_home(void)
{
    uint8_t seen[N_BUFS] = {0};
    for (uint16_t o = A; o <= N_PROCS; o++) {
        uint32_t bufs[N_BUFS], n = pr_pool_take(&now.pool[o], bufs, N_BUFS);
        if (n != HOME)
            bad(LOST, "process %u finds %u buffers of %u", o, n, HOME);
        for (uint32_t i = 0; i < n; i++)
            if (seen[bufs[i]]++)
                bad(TWICE, "buffer %u was taken twice", bufs[i]);
        if (pr_pool_give(&now.pool[o], bufs, n) != n)
            bad(TWICE, "process %u cannot give back what it took", o);
    }
}

/* ---- making it ---- */

static void begin(uint16_t o, uint32_t gen)
{
    now.gen[o] = gen;
    pr_pool_init(&now.pool[o], W.rg.owner, N_BUFS, o, gen, HOME, now.stack[o]);
}

/* A process of the same id takes a dead one's place. */
static void replace(uint16_t o)
{
    begin(o, ++*W.births);
    pr_pool_reclaim_process(&now.pool[o], o);
    pr_pool_deal(&now.pool[o]);
}

static void make_world(void)
{
    uint64_t mem = pr_carve(&W.rg.g, 1, N_RINGS, SLOTS, N_BUFS, 512), ledger = pr_ledger_size(&W.rg.g);
    uint64_t log = PR_PAGE, counters = pr_counters_size(&W.rg.g), lane = pr_round(pr_lane_size(CAP), 64);
    uint64_t lanes = pr_round(N_LANES * lane + sizeof *W.mpsc, 64);
    uint64_t queue = pr_pktq_size(NCPU, N_PROCS, CAP);
    W.size = pr_round(log + mem + ledger + counters + lanes + queue, PR_PAGE);
    W.base = mmap(NULL, W.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    uint8_t *at = W.base + log;
    W.log = (uint64_t *)W.base;
    W.births = (uint32_t *)(W.log + LOG);
    W.rg.mem = at;
    W.rg.owner = (uint64_t *)((at += mem) + PR_PAGE);
    W.rg.krings = (struct pr_kring *)(at + pr_ledger_krings(&W.rg.g));
    W.rg.rows = (struct pr_row *)((at += ledger) + PR_PAGE);
    W.rg.n_rows = N_RINGS;
    at += counters;
    for (uint32_t i = 0; i < N_LANES; i++)
        W.lane[i] = (struct pr_lane *)(at + i * lane);
    W.mpsc = (struct two_step *)(at + N_LANES * lane);
    W.queue = at + lanes;
}

static void reset_world(void)
{
    memset(W.base, 0, W.size);
    now = (struct cast){.seq = TRAFFIC};
    for (uint16_t o = A; o <= N_PROCS; o++) {
        begin(o, 1);
        *W.births = 1;
        pr_pool_deal(&now.pool[o]);
    }
}

#endif
