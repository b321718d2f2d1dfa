/* Apps that rewrite their own rings at full speed, beside two that keep the rules, under ASan and UBSan: flood SECONDS SEED
 *
 *   seat 0  shared memory, hostile        seat 2  shared memory, well-behaved
 *   seat 1  sealed memory, hostile        seat 3  sealed memory, well-behaved
 *
 * One thread is the worker, one each is a hostile app, one the well-behaved apps. Every frame carries whom it is for, its
 * number and a pattern. Forbidden: an access outside of the memories (ASan's to see), a frame of a well-behaved app that is
 * lost, torn, twice or out of order, a stranger's frame in the sealed memory of a hostile app, a buffer in two places, and
 * one that is not free at the end. An app in quarantine is attached anew. */
#define _GNU_SOURCE
#include "border_tx.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

enum { SLOTS = 128, BUFS = 2 + 1024, STRIDE = 512, N_SEATS = 4, WORKER = 1 };
#define MAGIC 0x7e57c0de00000000ull

struct seat {
    int hostile, trusted;
    struct pr_region *rg;
    struct pr_app a;
    struct pr_ringh app_rx, app_tx; /* the app's own handles; it has no krings */
    uint64_t offered, received, sent, collected; /* numbers of the next frame; each has one thread that writes it */
    uint64_t mutations;
};

static struct pr_region shared, sealed[2];
static struct pr_app_record records[N_SEATS];
static struct seat seat[N_SEATS];
static struct pr_pool pool;
static uint64_t quarantined[4], turns;
static int stop;

#define CHECK(what)                                                                                                    \
    do {                                                                                                               \
        if (!(what)) {                                                                                                 \
            fprintf(stderr, "turn %lu: %s\n", turns, #what);                                                           \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

static uint64_t mix(uint64_t *state)
{
    uint64_t x = *state += 0x9e3779b97f4a7c15ull;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

/* ---- frames ---- */

static uint32_t frame_len(uint64_t n) { return 24 + (uint32_t)(n * 37 % 700); } /* one to three slots */

static uint8_t frame_byte(uint64_t whose, uint64_t n, uint32_t i)
{
    uint64_t words[3] = {MAGIC | whose, n, ~n};
    return i < sizeof words ? ((uint8_t *)words)[i] : (uint8_t)(n * 131 + i * 7 + whose);
}

/* Write the piece of a frame that begins at byte `at`. */
static void write_piece(uint8_t *to, uint64_t whose, uint64_t n, uint32_t at, uint32_t len)
{
    for (uint32_t i = 0; i < len; i++)
        to[i] = frame_byte(whose, n, at + i);
}

static int is_piece(const uint8_t *p, uint64_t whose, uint64_t n, uint32_t at, uint32_t len)
{
    for (uint32_t i = 0; i < len; i++)
        if (p[i] != frame_byte(whose, n, at + i))
            return 0;
    return 1;
}

static uint32_t pieces(uint32_t len, uint32_t room) { return (len + room - 1) / room; }

/* ---- memories: each its own allocation, so that ASan sees its end ---- */

static void make_region(struct pr_region *rg, uint32_t rings, uint32_t bufs)
{
    uint64_t size = pr_carve(&rg->g, 1, rings, SLOTS, bufs, STRIDE);
    CHECK(posix_memalign((void **)&rg->mem, PR_PAGE, size) == 0);
    memset(rg->mem, 0, size);
    rg->owner = calloc(bufs, 8);
    rg->krings = calloc(rings, sizeof *rg->krings);
    rg->rows = calloc(rings, sizeof *rg->rows);
    rg->n_rows = rings;
}

static struct pr_ringh make_ring(struct pr_region *rg, uint32_t index, uint32_t dir)
{
    uint64_t at = rg->g.ring_ofs + (uint64_t)index * rg->g.ring_size;
    rg->krings[index] = (struct pr_kring){.num_slots = SLOTS, .ring_ofs = at, .dir = dir, .row = index};
    return (struct pr_ringh){.ring = (struct pr_ring *)(rg->mem + at), .k = &rg->krings[index], .row = &rg->rows[index],
                             .rg = rg, .n = SLOTS};
}

static void deal(struct seat *s, struct pr_ringh *h)
{
    uint32_t bufs[SLOTS];
    if (s->trusted)
        CHECK(pr_pool_take(&pool, bufs, SLOTS) == SLOTS);
    for (uint32_t i = 0; i < SLOTS; i++)
        if (s->trusted)
            CHECK(pr_pool_lend(&pool, bufs[i], s->a.id));
        else
            bufs[i] = pr_app_first(h, i);
    pr_ring_deal(h, bufs);
}

/* The controller: what the app had comes back, and it is attached anew. */
static void attach(struct seat *s, uint32_t i, uint32_t ring)
{
    struct pr_app_record *rec = &records[i];
    struct pr_app_side counted = rec->side[0];
    *rec = (struct pr_app_record){.generation = rec->generation + 1, .id = (uint16_t)(i + 1), .trusted = (uint16_t)s->trusted,
                                  .port = (uint16_t)i, .sides = 1};
    memcpy(rec->side[0].v, counted.v, sizeof counted.v);
    s->a = (struct pr_app){.rec = rec, .side = &rec->side[0], .rx = make_ring(s->rg, ring, PR_RX),
                           .tx = make_ring(s->rg, ring + 1, PR_TX), .rg = &shared, .generation = rec->generation,
                           .id = rec->id, .port = rec->port, .trusted = (uint8_t)s->trusted, .bell = -1};
    if (s->trusted)
        pr_pool_reclaim_app(&pool, s->a.id);
    deal(s, &s->a.rx);
    deal(s, &s->a.tx);
    s->app_rx = s->a.rx;
    s->app_tx = s->a.tx;
    rec->state = PR_APP_LIVE;
    CHECK(pr_app_begin(&s->a, &pool));
}

static uint32_t first_ring(uint32_t i) { return i < 2 ? 0 : i == 2 ? 2 : 0; }

/* ---- the worker ---- */

static uint32_t lift(uint64_t whose, uint64_t n, uint64_t *desc)
{
    uint32_t bufs[PR_MAX_FRAGS], len = frame_len(n), room = pr_buf_room(&shared), slots = pieces(len, room);
    CHECK(pr_pool_take(&pool, bufs, slots) == slots);
    *pr_meta_of(&shared, bufs[0]) = (struct pr_meta){.ts_ns = n};
    for (uint32_t k = 0; k < slots; k++) {
        uint32_t put = len - k * room < room ? len - k * room : room;
        write_piece(pr_buf(&shared, bufs[k]), whose, n, k * room, put);
        desc[k] = pr_desc(bufs[k], (uint16_t)put, k + 1 < slots ? PR_NS_MOREFRAG : 0);
    }
    return slots;
}

static void offer(struct seat *s, uint32_t i)
{
    uint64_t desc[PR_MAX_FRAGS];
    for (uint32_t k = 0; k < 8; k++) {
        uint32_t slots = lift(i, s->offered, desc);
        int give = (s->offered + k) % 2, got = give ? pr_app_give(&s->a, &pool, desc, slots)
                                                   : pr_app_offer(&s->a, &pool, desc, slots);
        if (!give || got == 0)
            pr_hand_free(&pool, desc, slots);
        if (got <= 0)
            break;
        s->offered++;
    }
    pr_app_publish(&s->a);
}

static void collect(struct seat *s, uint32_t i)
{
    struct pr_batch b;
    uint8_t seen[BUFS] = {0};
    pr_batch_begin(&b);
    pr_app_collect(&s->a, &pool, &b);
    for (uint32_t f = 0; f < b.n; f++) {
        uint32_t at = 0, room = pr_buf_room(&shared);
        CHECK(b.verdict[f] == (int32_t)i);
        for (uint32_t d = b.first[f]; d < b.first[f + 1]; d++) {
            uint32_t idx = pr_desc_idx(b.desc[d]), len = pr_desc_len(b.desc[d]);
            CHECK(pr_pool_owns(&pool, idx) && len <= room && !seen[idx]++);
            CHECK(!(pr_desc_flags(b.desc[d]) & PR_NS_MOREFRAG) == (d + 1 == b.first[f + 1]));
            CHECK(s->hostile || is_piece(pr_buf(&shared, idx), i, s->collected, at, len));
            at += len;
        }
        CHECK(s->hostile || at == frame_len(s->collected));
        s->collected++;
    }
    pr_hand_free(&pool, b.desc, b.n_desc);
}

/* As long as all but a few buffers are elsewhere. */
static void collect_when_short(struct seat *s, uint32_t i)
{
    static uint32_t bufs[BUFS];
    uint32_t n = pr_pool_take(&pool, bufs, BUFS), few = (uint32_t)(turns / 16 % 70);
    few = few < n ? few : n;
    pr_pool_give(&pool, bufs, few);
    collect(s, i);
    pr_pool_give(&pool, bufs + few, n - few);
}

static void turn(uint32_t i)
{
    struct seat *s = &seat[i];
    if (pr_app_turn(&s->a)) {
        offer(s, i);
        if (turns % 16)
            collect(s, i);
        else
            collect_when_short(s, i);
        return;
    }
    CHECK(s->hostile);
    if (!s->a.gone)
        return;
    CHECK(s->a.side->seen == s->a.generation && s->a.side->fault.field < 4);
    quarantined[s->a.side->fault.field]++;
    attach(s, i, first_ring(i));
}

/* ---- the well-behaved ---- */

static int receive(struct seat *s, uint32_t whose)
{
    struct pr_ringh *h = &s->app_rx;
    uint32_t head = h->ring->head, tail = pr_load(&h->ring->tail), slots, n = 0;
    for (; (slots = pr_frame_slots(h, head, tail)) != 0; n++, s->received++) {
        uint32_t at = 0;
        CHECK(pr_frame_len(h, head, slots) == frame_len(s->received));
        for (uint32_t k = 0; k < slots; k++, head = pr_next(h, head)) {
            const struct pr_slot *slot = &h->ring->slot[head];
            CHECK(pr_buf_ok(s->rg, slot->buf_idx));
            CHECK(is_piece(pr_buf(s->rg, slot->buf_idx), whose, s->received, at, slot->len));
            at += slot->len;
        }
    }
    pr_ring_advance(h, head);
    return n != 0;
}

static int transmit(struct seat *s, uint32_t whose)
{
    struct pr_ringh *h = &s->app_tx;
    uint32_t room = pr_buf_room(s->rg), at = h->ring->head, n = 0;
    for (;; n++, s->sent++) {
        uint32_t len = frame_len(s->sent), slots = pieces(len, room);
        if (pr_dist(h, at, pr_load(&h->ring->tail)) < slots)
            break;
        for (uint32_t k = 0; k < slots; k++, at = pr_next(h, at)) {
            struct pr_slot *slot = &h->ring->slot[at];
            uint32_t put = len - k * room < room ? len - k * room : room;
            CHECK(pr_buf_ok(s->rg, slot->buf_idx));
            write_piece(pr_buf(s->rg, slot->buf_idx), whose, s->sent, k * room, put);
            slot->len = (uint16_t)put;
            slot->flags = k + 1 < slots ? PR_NS_MOREFRAG : 0;
        }
    }
    pr_ring_advance(h, at);
    return n != 0;
}

static void *behave(void *unused)
{
    while (!__atomic_load_n(&stop, __ATOMIC_ACQUIRE)) {
        int busy = 0;
        for (uint32_t i = 2; i < N_SEATS; i++)
            busy |= receive(&seat[i], i) | transmit(&seat[i], i);
        if (!busy)
            sched_yield();
    }
    return unused;
}

/* ---- the hostile ---- */

static uint32_t wild(uint64_t r, uint32_t near)
{
    static const uint32_t odd[] = {0, 1, 2, SLOTS - 1, SLOTS, SLOTS + 1, 0x7fffffff, 0x80000000, 0xffff0000, 0xffffffff};
    switch (r & 3) {
    case 0: return odd[(r >> 2) % 10];
    case 1: return near + (uint32_t)(r >> 2 & 7) - 3;
    case 2: return (uint32_t)(r >> 2) % SLOTS;
    default: return (uint32_t)(r >> 32);
    }
}

static uint64_t wild_slot(uint64_t r, const struct seat *s)
{
    static const uint16_t lens[] = {60, 200, 256, 257, 512, 0xffff, 1, 0}, flags[] = {0, 1, 0x20, 0x20, 0x10, 0xff00, 0x21, 0};
    uint32_t idx = r & 1 ? 2 + (uint32_t)(r >> 8) % (s->rg->g.buf_num + 2) : wild(r >> 9, s->rg->g.buf_num);
    return pr_desc(idx, lens[r >> 1 & 7], flags[r >> 4 & 7]);
}

/* One write into what is its own. Cursors are mostly moved as they should be, so that its slots are looked at. */
static void mutate(struct seat *s, uint64_t r)
{
    struct pr_ringh *h = r & 1 ? &s->app_rx : &s->app_tx;
    struct pr_ring *ring = h->ring;
    uint32_t i = (uint32_t)(r >> 40) % SLOTS, what = r >> 1 & 0xfff;
    r >>= 13;
    if (what < 10) {
        pr_store(what < 1 ? &ring->head : &ring->cur, wild(r, ring->tail));
    } else if (what < 12) {
        ((volatile uint32_t *)ring)[r % 64] = wild(r >> 8, SLOTS);
    } else if (what < 1200) {
        uint32_t tail = pr_load(&ring->tail) % SLOTS, head = ring->head % SLOTS;
        pr_ring_advance(h, (head + (uint32_t)(r % (pr_dist(h, head, tail) + 1))) % SLOTS);
    } else if (what < 1300) {
        ((volatile uint16_t *)&ring->slot[i])[r & 7] = (uint16_t)(r >> 8);
    } else if (what < 1400) {
        pr_slot_set(h, i, wild_slot(r, s));
    } else if (what < 1700) {
        pr_slot_set(h, i, pr_slot_desc(h, (uint32_t)(r >> 8) % SLOTS)); /* one that is its own, perhaps twice */
    } else if (!s->trusted) {
        uint64_t size = s->rg->g.buf_ofs + (uint64_t)(s->rg->g.buf_num + 1) * STRIDE, rings = s->rg->g.ring_ofs;
        uint64_t at = r % size & ~7ull; /* anywhere in its memory; in the rings only as above */
        if (at < rings || at >= s->rg->g.meta_ofs)
            *(volatile uint64_t *)(s->rg->mem + at) = r;
    } else {
        uint16_t len = (uint16_t)(r % 257);
        pr_slot_set(h, i, (pr_slot_desc(h, i) & 0xffffffff) | (uint64_t)len << 32); /* its buffer, a length that is right */
    }
}

static void *attack(void *arg)
{
    struct seat *s = arg;
    uint64_t state = s->mutations;
    s->mutations = 0;
    while (!__atomic_load_n(&stop, __ATOMIC_ACQUIRE)) {
        for (uint32_t k = 0; k < 1000; k++)
            mutate(s, mix(&state));
        s->mutations += 1000;
    }
    return NULL;
}

/* ---- the end ---- */

static void check_memories(void)
{
    uint64_t size = sealed[0].g.buf_ofs + (uint64_t)(sealed[0].g.buf_num + 1) * STRIDE;
    for (uint64_t at = 0; at + 8 <= size; at += 8) {
        uint64_t word = *(uint64_t *)(sealed[0].mem + at);
        CHECK((word & ~0xffull) != MAGIC || word == (MAGIC | 1));
    }
    uint64_t count[PR_N_OWNER_STATES + 1];
    for (uint32_t i = 0; i < N_SEATS; i++)
        pr_pool_reclaim_app(&pool, (uint16_t)(i + 1));
    pr_pool_count(&pool, count);
    CHECK(count[PR_FREE] == BUFS - 2);
}

static uint64_t sum(enum pr_app_counter c) { return records[0].side[0].v[c] + records[1].side[0].v[c]; }

int main(int argc, char **argv)
{
    double seconds = argc > 1 ? atof(argv[1]) : 2;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1, end = pr_now_ns() + (uint64_t)(seconds * 1e9);
    make_region(&shared, 4, BUFS);
    make_region(&sealed[0], 2, 2 + 2 * SLOTS);
    make_region(&sealed[1], 2, 2 + 2 * SLOTS);
    pr_pool_init(&pool, shared.owner, BUFS, WORKER, 1, BUFS - 2, malloc(4 * BUFS));
    pr_pool_deal(&pool);
    pthread_t thread[3];
    for (uint32_t i = 0; i < N_SEATS; i++) {
        seat[i] = (struct seat){.hostile = i < 2, .trusted = !(i % 2), .rg = i % 2 ? &sealed[i / 2] : &shared,
                                .mutations = seed * 1000 + i};
        attach(&seat[i], i, first_ring(i));
    }
    for (uint32_t i = 0; i < 3; i++)
        pthread_create(&thread[i], NULL, i < 2 ? attack : behave, &seat[i]);
    for (; turns % 64 || pr_now_ns() < end; turns++)
        for (uint32_t i = 0; i < N_SEATS; i++)
            turn(i);
    __atomic_store_n(&stop, 1, __ATOMIC_RELEASE);
    for (uint32_t i = 0; i < 3; i++)
        pthread_join(thread[i], NULL);
    for (uint32_t i = 2; i < N_SEATS; i++) {
        receive(&seat[i], i);
        CHECK(pr_app_turn(&seat[i].a));
        while (seat[i].collected < seat[i].sent)
            collect(&seat[i], i);
        CHECK(seat[i].received == seat[i].offered && seat[i].offered);
        CHECK(!records[i].side[0].v[PR_AC_violations]);
    }
    check_memories();
    printf("{\"mutations\": %lu, \"turns\": %lu, \"head\": %lu, \"cur\": %lu, \"idx\": %lu, \"well_received\": %lu, "
           "\"well_sent\": %lu",
           seat[0].mutations + seat[1].mutations, turns, quarantined[PR_APP_HEAD], quarantined[PR_APP_CUR],
           quarantined[PR_APP_IDX], seat[2].received + seat[3].received, seat[2].collected + seat[3].collected);
#define X(name, text) printf(", \"" #name "\": %lu", sum(PR_AC_##name));
    PR_APP_COUNTER_LIST(X)
#undef X
    printf("}\n");
    return 0;
}
