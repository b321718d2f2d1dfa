/* netisr(9)'s shared memory: what is registered, what each workstream is doing, and the queues between processes.
 *
 *   head | control | protocols 0..16 | workstreams | cells | works | rows | bases | moves | lanes of 0, of 1, ...
 *
 *   head        geometry                                    written once
 *   control     policy, active workstreams, ports, vnets    the controller writes; so it does in
 *   protocol    name, policy, limit, vnets that let it in   ... this, and in
 *   base        what the counters stood at                  ... this: a reset never touches a counter
 *   workstream  line 0  pending, flags                      anybody, by atomic operations
 *               line 1  need, purged                        its worker
 *               line 2  cpu, purge_asked                    the controller
 *   cell        a lane's, (protocol, workstream, producer)
 *               line 0  put queued qdrops over watermark    its producer
 *               line 1  taken detached done                 the worker of the workstream
 *   work        (protocol, workstream)                      the worker
 *   row         (protocol, producer)                        the producer
 *   moves       a producer's flows on their way elsewhere   the producer: netisr_moves.h
 *   lanes       of one protocol together, at page bounds: their pages are allocated when it is first registered
 *
 * W workstreams, W + 1 producers: producer i is the worker of workstream i, the last one is the controller. Protocols
 * 0 to 15 may be registered; 16 is the engine's own and in no table.
 *
 * Limits, lengths and counters are in frames; lanes hold descriptors, several for a frame of several slots. A cursor of
 * frames and one of descriptors are true of the same instant because they are one word, `put` and `taken`:
 *
 *      63         frames         32 31        position         0      both run free
 *
 *   producer    slots ▸ head ▸ put           `put` is never ahead of what is published
 *   worker      owner words ▸ taken ▸ tail   `taken` is never behind what may be overwritten
 *
 * Killed between two of them, the heir finds the slots in between still there, counts the frames that end in them, and
 * sets the word right (pr_netisr_mend_put, pr_netisr_mend_taken). One writer a word; readers add up. */
#ifndef PR_NETISR_MEMORY_H
#define PR_NETISR_MEMORY_H

#include "hand.h"
#include "rps.h"

#define PR_NETISR_MAGIC 0x31727369746e7270ull /* "prntisr1" */
#define PR_NETISR_PROTOS 17u
#define PR_NETISR_PUBLIC 16u
#define PR_NETISR_INTERNAL 16u
#define PR_NETISR_PORTS 256u
#define PR_NETISR_VNETS 64u
#define PR_NETISR_WS_MAX 60u /* lanes have 16-bit names */
#define PR_NETISR_NAME 32
#define PR_NETISR_MOVES 4096u
#define PR_NETISR_QLIMIT_MAX 65536u
#define PR_NO_WS UINT32_MAX
#define PR_NO_CPU UINT32_MAX
#define PR_NO_PORT 0xffffu /* pr_meta.port of a frame that came in by none; so is every number from 256 on */

enum pr_netisr_policy { PR_POLICY_SOURCE = 1, PR_POLICY_FLOW, PR_POLICY_CPU };
enum pr_netisr_dispatch { PR_DISPATCH_DEFAULT, PR_DISPATCH_DEFERRED, PR_DISPATCH_HYBRID, PR_DISPATCH_DIRECT };
enum { PR_NWS_RUNNING = 1, PR_NWS_DISPATCHING = 2, PR_NWS_SCHEDULED = 4 };          /* workstream flags */
enum { PR_NPR_M2FLOW = 1, PR_NPR_M2CPUID = 2, PR_NPR_DRAINED = 4 };                 /* protocol flags */

struct pr_netisr_geometry {
    uint32_t workstreams, maxqlimit, defaultqlimit;
    uint16_t first_lane; /* lanes are named first_lane and up, in owner words */
    uint16_t bindthreads;
};

struct pr_netisr_head {
    uint64_t magic, size;
    struct pr_netisr_geometry g;
    uint32_t capacity; /* slots of a lane */
    uint8_t pad[28];
};

struct pr_netisr_control {
    uint32_t dispatch; /* when the protocol's own is DEFAULT */
    uint32_t active;   /* frames are placed on workstreams 0 .. active - 1 */
    uint64_t vnets;    /* which exist, a bit each; 0 always does */
    uint32_t defaultqlimit; /* of registrations that name none */
    uint32_t rps;      /* enum pr_rps: how frames get the hash that policy FLOW places them by */
    uint8_t pad[40];
    uint64_t port[PR_NETISR_PORTS]; /* ifindex << 32 | life: generation << 8 | vnet. Generation 0 = no such port */
};

struct pr_netisr_proto {
    uint32_t used, ready; /* registered; its lanes are made */
    uint32_t policy, dispatch, qlimit, flags;
    uint32_t generation; /* of registrations */
    uint32_t pad0;
    char name[PR_NETISR_NAME];
    uint32_t allowed[PR_NETISR_VNETS]; /* a count of changes: odd = the vnet lets it in */
};

struct pr_netisr_ws {
    uint32_t pending, flags;
    uint8_t pad0[56];
    uint32_t need, purged;
    uint32_t pid;    /* of its worker, 0 = none */
    uint32_t births; /* workers that it has had */
    uint8_t pad1[48];
    uint32_t cpu, purge_asked;
    uint8_t pad2[56];
};

struct pr_netisr_cell {
    uint64_t put;
    uint64_t queued, qdrops;
    uint64_t over;      /* admitted past the limit by producers that looked at the same moment; part of queued */
    uint64_t watermark; /* generation of the registration << 32 | the greatest length */
    uint8_t pad0[24];
    uint64_t taken;
    uint64_t detached; /* frames << 32 | holes: frames purged behind there */
    uint32_t done;     /* frames that handlers are through with */
    uint8_t pad1[44];
};

struct pr_netisr_work {
    uint64_t handled; /* by the worker, out of its queue */
    uint64_t purged, crashed;
    uint64_t batches, drained;
    uint8_t pad[24];
};

struct pr_netisr_row {
    uint64_t dispatched, hybrid;
    uint64_t noproto, nobufs; /* the vnet does not let it in; a placement callback kept the frame */
    uint64_t wakes;           /* decisions to wake a worker */
    uint8_t pad[24];
};

struct pr_netisr_base {
    uint64_t queued, qdrops, over, handled, purged, crashed, batches, drained;
};

struct pr_netisr_move {
    uint64_t key;
    uint32_t until, pad;
};

struct pr_netisr_moves {
    uint32_t from, to, moving; /* counts of workstreams */
    uint8_t pad[52];
    struct pr_netisr_move flow[PR_NETISR_MOVES];
    uint32_t until[]; /* [protocol][workstream][2]: flows without an entry wait for the first, the end for the second */
};

_Static_assert(sizeof(struct pr_netisr_head) == 64 && offsetof(struct pr_netisr_control, port) == 64 &&
               sizeof(struct pr_netisr_proto) == 320 && sizeof(struct pr_netisr_ws) == 192 &&
               offsetof(struct pr_netisr_ws, need) == 64 && offsetof(struct pr_netisr_ws, cpu) == 128 &&
               sizeof(struct pr_netisr_cell) == 128 && offsetof(struct pr_netisr_cell, taken) == 64 &&
               sizeof(struct pr_netisr_work) == 64 && sizeof(struct pr_netisr_row) == 64 &&
               sizeof(struct pr_netisr_base) == 64 && offsetof(struct pr_netisr_moves, flow) == 64, "a line a writer");

/* A process's view: the geometry, checked once and copied. */
struct pr_netisr {
    struct pr_netisr_head *head;
    struct pr_netisr_control *control;
    struct pr_netisr_proto *proto;
    struct pr_netisr_ws *ws;
    struct pr_netisr_cell *cells;
    struct pr_netisr_work *works;
    struct pr_netisr_row *rows, *row_bases;
    struct pr_netisr_base *bases;
    uint8_t *moves, *lanes;
    struct pr_netisr_geometry g;
    uint32_t n_ws, n_producers, capacity;
    size_t lane_size, lanes_size; /* of one; of one protocol's */
};

static inline int pr_netisr_geometry_ok(const struct pr_netisr_geometry *g)
{
    return g->workstreams && g->workstreams <= PR_NETISR_WS_MAX && g->maxqlimit &&
           g->maxqlimit <= PR_NETISR_QLIMIT_MAX && g->defaultqlimit && g->defaultqlimit <= g->maxqlimit &&
           g->first_lane &&
           g->first_lane + PR_NETISR_PROTOS * g->workstreams * (g->workstreams + 1) <= UINT16_MAX;
}

/* Twice the limit: what a worker has detached still lies in the lane (N-W6). */
static inline uint32_t pr_netisr_capacity(uint32_t maxqlimit)
{
    uint32_t most = maxqlimit > PR_BURST ? maxqlimit : PR_BURST, capacity = 1;
    while (capacity < 2 * most && capacity < PR_LANE_MAX)
        capacity *= 2;
    return capacity;
}

static inline size_t pr_netisr_moves_size(uint32_t workstreams)
{
    return pr_round(sizeof(struct pr_netisr_moves) + 8ull * PR_NETISR_PROTOS * workstreams, 64);
}

/* Where everything lies in `mem`, which may be NULL when only the size is wanted. The size. */
static inline size_t pr_netisr_carve(struct pr_netisr *v, uint8_t *mem, const struct pr_netisr_geometry *g)
{
    const size_t w = g->workstreams, p = w + 1;
    size_t at = 0;
    *v = (struct pr_netisr){.g = *g, .n_ws = (uint32_t)w, .n_producers = (uint32_t)p,
                            .capacity = pr_netisr_capacity(g->maxqlimit)};
    v->lane_size = pr_round(pr_lane_size(v->capacity), 64);
    v->lanes_size = pr_round(w * p * v->lane_size, PR_PAGE);
#define PART(field, bytes) (v->field = (void *)((uintptr_t)mem + at), at += (bytes))
    PART(head, sizeof *v->head);
    PART(control, sizeof *v->control);
    PART(proto, PR_NETISR_PROTOS * sizeof *v->proto);
    PART(ws, w * sizeof *v->ws);
    PART(cells, PR_NETISR_PROTOS * w * p * sizeof *v->cells);
    PART(works, PR_NETISR_PROTOS * w * sizeof *v->works);
    PART(rows, PR_NETISR_PROTOS * p * sizeof *v->rows);
    PART(row_bases, PR_NETISR_PROTOS * p * sizeof *v->row_bases);
    PART(bases, PR_NETISR_PROTOS * w * sizeof *v->bases);
    PART(moves, p * pr_netisr_moves_size((uint32_t)w));
    at = pr_round(at, PR_PAGE);
    PART(lanes, PR_NETISR_PROTOS * v->lanes_size);
#undef PART
    return at;
}

/* Bytes of a block; 0 = no such geometry. Most of it are lanes: only protocols that are registered need theirs. */
static inline size_t pr_netisr_size(const struct pr_netisr_geometry *g)
{
    struct pr_netisr v;
    return pr_netisr_geometry_ok(g) ? pr_netisr_carve(&v, NULL, g) : 0;
}

/* See the block in `bytes` bytes, page-aligned. 0, or -1: there is none. */
static inline int pr_netisr_attach(struct pr_netisr *v, void *mem, size_t bytes)
{
    struct pr_netisr_head h;
    if (bytes < sizeof h || (uintptr_t)mem % PR_PAGE)
        return -1;
    h = *(struct pr_netisr_head *)mem;
    if (h.magic != PR_NETISR_MAGIC || !pr_netisr_geometry_ok(&h.g) || h.capacity != pr_netisr_capacity(h.g.maxqlimit))
        return -1;
    return pr_netisr_carve(v, mem, &h.g) == h.size && h.size <= bytes ? 0 : -1;
}

/* Make a block in zeroed memory that nobody else uses yet. Direct dispatch, all workstreams active, workstream i on CPU
 * i, nothing registered, no lane made. 0, or -1: no such geometry. */
static inline int pr_netisr_format(void *mem, size_t bytes, const struct pr_netisr_geometry *g)
{
    struct pr_netisr v;
    size_t size = pr_netisr_size(g);
    if (!size || bytes < size || (uintptr_t)mem % PR_PAGE)
        return -1;
    pr_netisr_carve(&v, mem, g);
    *v.head = (struct pr_netisr_head){.size = size, .g = *g, .capacity = v.capacity};
    v.control->dispatch = PR_DISPATCH_DIRECT;
    v.control->active = v.n_ws;
    v.control->vnets = 1;
    v.control->rps = PR_RPS_TOEPLITZ;
    v.control->defaultqlimit = g->defaultqlimit;
    for (uint32_t w = 0; w < v.n_ws; w++)
        v.ws[w].cpu = w;
    for (uint32_t p = 0; p < v.n_producers; p++) {
        struct pr_netisr_moves *m = (void *)(v.moves + p * pr_netisr_moves_size(v.n_ws));
        m->from = m->to = v.n_ws;
    }
    __atomic_store_n(&v.head->magic, PR_NETISR_MAGIC, __ATOMIC_RELEASE);
    return 0;
}

/* ---- where things are ---- */

static inline uint32_t pr_netisr_lane_index(const struct pr_netisr *v, uint32_t proto, uint32_t ws, uint32_t producer)
{
    return (proto * v->n_ws + ws) * v->n_producers + producer;
}

static inline struct pr_lane *pr_netisr_lane(const struct pr_netisr *v, uint32_t proto, uint32_t ws, uint32_t producer)
{
    return (struct pr_lane *)(v->lanes + proto * v->lanes_size + (ws * v->n_producers + producer) * v->lane_size);
}

static inline struct pr_netisr_cell *pr_netisr_cell(const struct pr_netisr *v, uint32_t proto, uint32_t ws,
                                                    uint32_t producer)
{
    return &v->cells[pr_netisr_lane_index(v, proto, ws, producer)];
}

static inline struct pr_netisr_work *pr_netisr_work(const struct pr_netisr *v, uint32_t proto, uint32_t ws)
{
    return &v->works[proto * v->n_ws + ws];
}

static inline struct pr_netisr_base *pr_netisr_base(const struct pr_netisr *v, uint32_t proto, uint32_t ws)
{
    return &v->bases[proto * v->n_ws + ws];
}

static inline struct pr_netisr_row *pr_netisr_row(const struct pr_netisr *v, uint32_t proto, uint32_t producer)
{
    return &v->rows[proto * v->n_producers + producer];
}

static inline struct pr_netisr_moves *pr_netisr_moves(const struct pr_netisr *v, uint32_t producer)
{
    return (struct pr_netisr_moves *)(void *)(v->moves + producer * pr_netisr_moves_size(v->n_ws));
}

/* ---- words ---- */

/* Single writer: the relaxed store only keeps a reader from seeing half of it. */
static inline void pr_netisr_count(uint64_t *counter, uint64_t n)
{
    __atomic_store_n(counter, *counter + n, __ATOMIC_RELAXED);
}

static inline uint64_t pr_netisr_mark(uint32_t frames, uint32_t position) { return (uint64_t)frames << 32 | position; }
static inline uint32_t pr_netisr_frames(uint64_t mark) { return (uint32_t)(mark >> 32); }
static inline uint32_t pr_netisr_position(uint64_t mark) { return (uint32_t)mark; }

static inline uint64_t pr_netisr_look(const uint64_t *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }
static inline void pr_netisr_say(uint64_t *word, uint64_t to) { __atomic_store_n(word, to, __ATOMIC_RELEASE); }

/* Frames that end in the slots [from, to) of a lane. */
static inline uint32_t pr_netisr_ends(const struct pr_lane_end *e, uint32_t from, uint32_t to)
{
    uint32_t n = 0;
    for (; from != to; from++) {
        uint64_t d = __atomic_load_n(&e->lane->slot[from & (e->capacity - 1)], __ATOMIC_RELAXED);
        n += !(pr_desc_flags(d) & PR_NS_MOREFRAG);
    }
    return n;
}

/* Frames of this lane that wait: not in a batch, not purged. `detached` first: what is put meanwhile counts. */
static inline uint32_t pr_netisr_waiting(const struct pr_netisr_cell *c)
{
    uint64_t detached = pr_netisr_look(&c->detached);
    int32_t n = (int32_t)(pr_netisr_frames(pr_netisr_look(&c->put)) - pr_netisr_frames(detached) - (uint32_t)detached);
    return n > 0 ? (uint32_t)n : 0;
}

/* What netisr calls the length of a queue. */
static inline uint32_t pr_netisr_len(const struct pr_netisr *v, uint32_t proto, uint32_t ws)
{
    uint32_t n = 0;
    for (uint32_t producer = 0; producer < v->n_producers; producer++)
        n += pr_netisr_waiting(pr_netisr_cell(v, proto, ws, producer));
    return n;
}

static inline int pr_netisr_ready_proto(const struct pr_netisr *v, uint32_t proto)
{
    return proto < PR_NETISR_PROTOS && __atomic_load_n(&v->proto[proto].ready, __ATOMIC_ACQUIRE);
}

#endif
