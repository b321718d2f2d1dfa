/* pktqueue(9) over lanes: the input queues of one protocol, one a CPU, fed by many processes.
 *
 *                  row 0      row 1      row 2            rows: the processes that enqueue, one owner id each
 *               +----------+----------+----------+
 *   CPU 0       |  lane    |  lane    |  lane    | -> its consumer, which takes the lanes in turn
 *   CPU 1       |  lane    |  lane    |  lane    | -> its consumer
 *               +----------+----------+----------+
 *
 *   header | control | CPU cells | rows | lane cells | lanes           each part 64-aligned
 *
 *   header      geometry, written once               CPU cell   line 0: need, flushed       its consumer writes
 *   control     limit: written by whoever                       line 1: holder, flush_asked  by compare-and-swap, add
 *               administers the queue                row        holder, generation, crashed
 *   lane cell   line 0: enqueue, drop, over          its producer writes
 *               line 1: dequeue, lost                its consumer writes
 *
 * Where NetBSD reserves a slot by compare-and-swap and publishes it later, so that a producer killed in between wedges
 * the queue for ever (P-M6), here nothing is shared by two writers, and a killed producer has published or has not.
 *
 * Enqueue: CPU = hash % ncpu. The depth of that CPU's lanes together is compared with the limit: a queue holds exactly
 * `limit` (NetBSD: one less, P-C4). Two producers that look at the same moment may both find room; what is admitted
 * past the limit, at most a burst for each producer but one, is counted in `over`. Full: drop is counted, the caller
 * keeps its buffers (P-E2). Order is kept within a lane, that is per producer and CPU (P-D5).
 *
 * The legal changes, beyond those of lanes and doorbells:
 *
 *   Who        Change                     When
 *   --------   ------------------------   ------------------------------------------------------------------------
 *   anyone     holder 0 -> me             claim a row, or a CPU's consumption
 *   heir       holder dead -> heir        the dead is fenced; then pr_pktq_bury
 *   holder     holder me -> 0             done; its buffers are given back
 *   holder     generation + 1             after the claim, before its first take from the pool
 *   admin      limit = n                  1 <= n <= ceiling. Lanes hold the ceiling from the start, so nothing moves,
 *                                         nothing is reordered (P-L2), nobody has to acknowledge
 *   anyone     flush_asked + 1            a purge: the consumer empties its lanes up to where their heads stand, then
 *   consumer   flushed = flush_asked      acknowledges
 *
 * PROHIBITED: a tail moved by anybody but the CPU's consumer (hence flush is a request); a row or a CPU taken from a
 * holder that lives (two producers in a lane, P-D4); a holder replaced before its death is certain.
 *
 * Counters have one writer a cell. A process may be killed between moving its cursor and counting, so enqueue (mod
 * 2^32) is put right from the lane's head, and dequeue + lost from its tail, by the next holder; what a killed consumer
 * had taken counts as dequeued, and its buffers, found by bury, as crashed. */
#ifndef PR_PKTQUEUE_H
#define PR_PKTQUEUE_H

#include "doorbell.h"
#include "lane.h"

#define PR_PKTQ_MAX 65535u /* PCQ_MAXLEN of NetBSD */
#define PR_PKTQ_FLUSH 64

struct pr_pktqueue {
    uint32_t ncpu, rows, capacity, ceiling; /* capacity: of each lane */
    uint16_t first_lane, first_owner;       /* ids: lane first_lane + cpu * rows + row, process first_owner + row */
    uint8_t pad0[44];
    uint32_t limit;
    uint8_t pad1[60];
};

struct pr_pktq_cpu {
    uint32_t need; /* the consumer's doorbell */
    uint32_t flushed;
    uint8_t pad0[56];
    uint64_t holder;
    uint32_t flush_asked;
    uint8_t pad1[52];
};

struct pr_pktq_row {
    uint64_t holder;
    uint64_t crashed; /* buffers found in the hands of dead holders of this row */
    uint32_t gen;
    uint8_t pad[44];
};

struct pr_pktq_cell {
    uint64_t enqueue, drop, over;
    uint8_t pad0[40];
    uint64_t dequeue, lost; /* lost: slots that a killed consumer had begun to take */
    uint8_t pad1[48];
};
_Static_assert(sizeof(struct pr_pktqueue) == 128 && offsetof(struct pr_pktqueue, limit) == 64, "two lines");
_Static_assert(sizeof(struct pr_pktq_cpu) == 128 && offsetof(struct pr_pktq_cpu, holder) == 64, "two lines");
_Static_assert(sizeof(struct pr_pktq_row) == 64, "a line");
_Static_assert(sizeof(struct pr_pktq_cell) == 128 && offsetof(struct pr_pktq_cell, dequeue) == 64, "two lines");

/* A process's view: the geometry, checked once and copied. */
struct pr_pktq {
    struct pr_pktqueue *q;
    struct pr_pktq_cpu *cpus;
    struct pr_pktq_row *rows;
    struct pr_pktq_cell *cells;
    uint8_t *lanes;
    uint32_t ncpu, n_rows, capacity, ceiling;
    uint16_t first_lane, first_owner;
};

static inline size_t pr_pktq_lane_size(uint32_t capacity) { return (pr_lane_size(capacity) + 63) & ~(size_t)63; }

static inline size_t pr_pktq_size(uint32_t ncpu, uint32_t rows, uint32_t capacity)
{
    size_t lanes = (size_t)ncpu * rows;
    return sizeof(struct pr_pktqueue) + ncpu * sizeof(struct pr_pktq_cpu) + rows * sizeof(struct pr_pktq_row) +
           lanes * sizeof(struct pr_pktq_cell) + lanes * pr_pktq_lane_size(capacity);
}

/* Slots of a lane for queues of up to `ceiling`, filled in bursts of `burst`. */
static inline uint32_t pr_pktq_capacity(uint32_t ceiling, uint32_t burst)
{
    uint32_t most = ceiling > burst ? ceiling : burst, capacity = 1;
    while (capacity < most && capacity < PR_LANE_MAX)
        capacity *= 2;
    return capacity;
}

static inline struct pr_lane *pr_pktq_lane(const struct pr_pktq *v, uint32_t cpu, uint32_t row)
{
    return (struct pr_lane *)(v->lanes + (cpu * v->n_rows + row) * pr_pktq_lane_size(v->capacity));
}

static inline struct pr_pktq_cell *pr_pktq_cell(const struct pr_pktq *v, uint32_t cpu, uint32_t row)
{
    return &v->cells[cpu * v->n_rows + row];
}

/* See the queue in `bytes` bytes. 0, or -1: there is none. */
static inline int pr_pktq_attach(struct pr_pktq *v, void *mem, size_t bytes)
{
    if (bytes < sizeof(struct pr_pktqueue))
        return -1;
    struct pr_pktqueue h = *(struct pr_pktqueue *)mem;
    if (!h.ncpu || h.ncpu > 1024 || !h.rows || h.rows > 1024 || !pr_lane_capacity_ok(h.capacity) ||
        !h.ceiling || h.ceiling > PR_PKTQ_MAX || bytes < pr_pktq_size(h.ncpu, h.rows, h.capacity) || !h.first_owner ||
        h.first_lane + h.ncpu * h.rows > UINT16_MAX || h.first_owner + h.rows > UINT16_MAX)
        return -1;
    uint8_t *at = (uint8_t *)mem + sizeof h;
    *v = (struct pr_pktq){.q = mem, .ncpu = h.ncpu, .n_rows = h.rows, .capacity = h.capacity, .ceiling = h.ceiling,
                          .first_lane = h.first_lane, .first_owner = h.first_owner};
    v->cpus = (struct pr_pktq_cpu *)at;
    v->rows = (struct pr_pktq_row *)(at += h.ncpu * sizeof *v->cpus);
    v->cells = (struct pr_pktq_cell *)(at += h.rows * sizeof *v->rows);
    v->lanes = at + (size_t)h.ncpu * h.rows * sizeof *v->cells;
    return 0;
}

/* Make a queue in zeroed memory that nobody else uses yet. 0, or -1: no such geometry. */
static inline int pr_pktq_format(void *mem, size_t bytes, const struct pr_pktqueue *geometry)
{
    struct pr_pktq v;
    *(struct pr_pktqueue *)mem = *geometry;
    if (pr_pktq_attach(&v, mem, bytes) < 0)
        return -1;
    for (uint32_t cpu = 0; cpu < v.ncpu; cpu++)
        for (uint32_t row = 0; row < v.n_rows; row++)
            pr_lane_format(pr_pktq_lane(&v, cpu, row), (uint16_t)(v.first_lane + cpu * v.n_rows + row), v.capacity);
    return 0;
}

/* Single writer: the relaxed store only keeps a reader from seeing half of it. */
static inline void pr_pktq_count(uint64_t *counter, uint64_t n)
{
    __atomic_store_n(counter, *counter + n, __ATOMIC_RELAXED);
}

static inline int pr_pktq_claim(uint64_t *holder, uint64_t old, uint64_t next)
{
    return __atomic_compare_exchange_n(holder, &old, next, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

/* Everything queued for a CPU. Tail before head: never less than there is of my own. */
static inline uint64_t pr_pktq_depth(const struct pr_pktq *v, uint32_t cpu)
{
    uint64_t depth = 0;
    for (uint32_t row = 0; row < v->n_rows; row++) {
        const struct pr_lane *l = pr_pktq_lane(v, cpu, row);
        uint32_t tail = __atomic_load_n(&l->tail, __ATOMIC_ACQUIRE);
        depth += __atomic_load_n(&l->head, __ATOMIC_RELAXED) - tail;
    }
    return depth;
}

/* ---- the producer: one row, an end in each CPU's lane ---- */

struct pr_pktq_producer {
    struct pr_pktq v;
    uint32_t row;
    struct pr_lane_end *end; /* ncpu of them */
    const int *bell;         /* ncpu eventfds, -1 = none */
};

static inline int pr_pktq_produce(struct pr_pktq_producer *p, const struct pr_pktq *v, uint32_t row,
                                  struct pr_lane_end *ends, const int *bells)
{
    *p = (struct pr_pktq_producer){.v = *v, .row = row, .end = ends, .bell = bells};
    for (uint32_t cpu = 0; cpu < v->ncpu; cpu++) {
        if (pr_lane_attach(&ends[cpu], pr_pktq_lane(v, cpu, row), pr_lane_size(v->capacity), PR_PRODUCER) < 0)
            return -1;
        struct pr_pktq_cell *c = pr_pktq_cell(v, cpu, row);
        pr_pktq_count(&c->enqueue, ends[cpu].mine - (uint32_t)c->enqueue);
    }
    return 0;
}

/* Enqueue a burst for one CPU. How many went in; the others stay the caller's, counted as dropped. */
static inline uint32_t pr_pktq_put(struct pr_pktq_producer *p, struct pr_pool *pool, uint32_t cpu,
                                   const uint64_t *desc, uint32_t n)
{
    struct pr_pktq_cell *c = pr_pktq_cell(&p->v, cpu, p->row);
    uint64_t depth = pr_pktq_depth(&p->v, cpu), limit = __atomic_load_n(&p->v.q->limit, __ATOMIC_RELAXED);
    uint64_t room = depth < limit ? limit - depth : 0;
    uint32_t put = pr_lane_put(&p->end[cpu], pool, desc, room < n ? (uint32_t)room : n);
    if (put < n)
        pr_pktq_count(&c->drop, n - put);
    if (!put)
        return 0;
    pr_pktq_count(&c->enqueue, put);
    pr_doorbell_kick(&p->v.cpus[cpu].need, p->bell[cpu]);
    depth = pr_pktq_depth(&p->v, cpu); /* after the kick's fence: of two that overshoot together, one sees it */
    if (depth > limit)
        pr_pktq_count(&c->over, depth - limit < put ? depth - limit : put);
    return put;
}

static inline uint32_t pr_pktq_cpu_of(const struct pr_pktq *v, uint32_t hash) { return hash % v->ncpu; }

/* ---- the consumer: one CPU, an end in each row's lane ---- */

struct pr_pktq_consumer {
    struct pr_pktq v;
    uint32_t cpu;
    uint32_t turn;           /* the row to begin with */
    struct pr_lane_end *end; /* n_rows of them */
};

static inline int pr_pktq_consume(struct pr_pktq_consumer *k, const struct pr_pktq *v, uint32_t cpu,
                                  struct pr_lane_end *ends)
{
    *k = (struct pr_pktq_consumer){.v = *v, .cpu = cpu, .end = ends};
    for (uint32_t row = 0; row < v->n_rows; row++) {
        if (pr_lane_attach(&ends[row], pr_pktq_lane(v, cpu, row), pr_lane_size(v->capacity), PR_CONSUMER) < 0)
            return -1;
        struct pr_pktq_cell *c = pr_pktq_cell(v, cpu, row);
        pr_pktq_count(&c->dequeue, ends[row].mine - (uint32_t)(c->dequeue + c->lost));
    }
    return 0;
}

static inline uint32_t pr_pktq_take_row(struct pr_pktq_consumer *k, struct pr_pool *pool, uint32_t row, uint64_t *desc,
                                        uint32_t n)
{
    struct pr_pktq_cell *c = pr_pktq_cell(&k->v, k->cpu, row);
    uint64_t skipped = k->end[row].skipped;
    uint32_t got = pr_lane_take(&k->end[row], pool, desc, n);
    if (got)
        pr_pktq_count(&c->dequeue, got);
    if (k->end[row].skipped != skipped)
        pr_pktq_count(&c->lost, k->end[row].skipped - skipped);
    return got;
}

/* Empty the lanes up to where their heads stand now: the buffers go home and count as dequeued (P-F1). */
static inline void pr_pktq_flush(struct pr_pktq_consumer *k, struct pr_pool *pool)
{
    uint32_t asked = __atomic_load_n(&k->v.cpus[k->cpu].flush_asked, __ATOMIC_ACQUIRE);
    for (uint32_t row = 0; row < k->v.n_rows; row++) {
        struct pr_lane_end *e = &k->end[row];
        uint32_t end = e->mine + pr_lane_peek(e, e->capacity), n = 1;
        for (int32_t left; n && (left = (int32_t)(end - e->mine)) > 0;) {
            uint64_t desc[PR_PKTQ_FLUSH];
            uint32_t bufs[PR_PKTQ_FLUSH];
            n = pr_pktq_take_row(k, pool, row, desc, left < PR_PKTQ_FLUSH ? (uint32_t)left : PR_PKTQ_FLUSH);
            for (uint32_t i = 0; i < n; i++)
                bufs[i] = pr_desc_idx(desc[i]);
            pr_pool_give(pool, bufs, n);
        }
    }
    __atomic_store_n(&k->v.cpus[k->cpu].flushed, asked, __ATOMIC_RELEASE); /* pairs with pr_pktq_flush_done */
}

static inline int pr_pktq_flush_wanted(const struct pr_pktq_consumer *k)
{
    const struct pr_pktq_cpu *c = &k->v.cpus[k->cpu];
    return __atomic_load_n(&c->flush_asked, __ATOMIC_ACQUIRE) != c->flushed;
}

/* Dequeue up to n, one lane after the other, beginning behind the one that came last. */
static inline uint32_t pr_pktq_take(struct pr_pktq_consumer *k, struct pr_pool *pool, uint64_t *desc, uint32_t n)
{
    uint32_t got = 0;
    if (pr_pktq_flush_wanted(k))
        pr_pktq_flush(k, pool);
    for (uint32_t tried = 0; got < n && tried < k->v.n_rows; tried++) {
        uint32_t row = k->turn;
        k->turn = row + 1 == k->v.n_rows ? 0 : row + 1;
        got += pr_pktq_take_row(k, pool, row, desc + got, n - got);
    }
    return got;
}

/* Changes nothing, so that one thread may wait while another dequeues. */
static inline int pr_pktq_ready(void *consumer)
{
    const struct pr_pktq_consumer *k = consumer;
    for (uint32_t row = 0; row < k->v.n_rows; row++) {
        const struct pr_lane_end *e = &k->end[row];
        if (__atomic_load_n(&e->lane->head, __ATOMIC_RELAXED) != e->mine && !e->broken)
            return 1;
    }
    return pr_pktq_flush_wanted(k);
}

/* Until something is queued (or a flush is asked for), at most timeout_ms. Whether there is. */
static inline int pr_pktq_wait(struct pr_pktq_consumer *k, int efd, uint32_t spins, int timeout_ms)
{
    return pr_doorbell_wait(&k->v.cpus[k->cpu].need, efd, spins, timeout_ms, pr_pktq_ready, k);
}

/* ---- anybody: barriers, flush requests, deaths ---- */

/* Where every lane's head stands: ncpu * n_rows of them. */
static inline void pr_pktq_heads(const struct pr_pktq *v, uint32_t *heads)
{
    for (uint32_t cpu = 0; cpu < v->ncpu; cpu++)
        for (uint32_t row = 0; row < v->n_rows; row++)
            *heads++ = __atomic_load_n(&pr_pktq_lane(v, cpu, row)->head, __ATOMIC_ACQUIRE);
}

/* Has a CPU's consumer dequeued everything up to there? heads: as above. */
static inline int pr_pktq_passed(const struct pr_pktq *v, uint32_t cpu, const uint32_t *heads)
{
    for (uint32_t row = 0; row < v->n_rows; row++) {
        uint32_t tail = __atomic_load_n(&pr_pktq_lane(v, cpu, row)->tail, __ATOMIC_ACQUIRE);
        if ((int32_t)(tail - heads[cpu * v->n_rows + row]) < 0)
            return 0;
    }
    return 1;
}

static inline uint32_t pr_pktq_ask_flush(const struct pr_pktq *v, uint32_t cpu)
{
    return __atomic_add_fetch(&v->cpus[cpu].flush_asked, 1, __ATOMIC_ACQ_REL);
}

static inline int pr_pktq_flush_done(const struct pr_pktq *v, uint32_t cpu, uint32_t ticket)
{
    return (int32_t)(__atomic_load_n(&v->cpus[cpu].flushed, __ATOMIC_ACQUIRE) - ticket) >= 0;
}

/* The caller holds the row, whose last holder is fenced: what that one had in its hands goes home, what it was putting
 * into lanes too. How many. Killed halfway, it is done again by the next. */
static inline uint32_t pr_pktq_bury(const struct pr_pktq *v, struct pr_pool *pool, uint32_t row)
{
    struct pr_lane_end end;
    uint32_t n = 0;
    for (uint32_t cpu = 0; cpu < v->ncpu; cpu++)
        if (pr_lane_attach(&end, pr_pktq_lane(v, cpu, row), pr_lane_size(v->capacity), PR_PRODUCER) == 0)
            n += pr_lane_reclaim(&end, pool);
    n += pr_pool_reclaim_process(pool, (uint16_t)(v->first_owner + row));
    pr_pktq_count(&v->rows[row].crashed, n);
    return n;
}

#endif
