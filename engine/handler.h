/* Handlers: what runs over a burst of frames that netisr gives to a protocol.
 *
 *     pr_batch ── pr_handlers_run(proto) ──▶ verdict[i]: PR_DONE (the frame ends here), or the port that it leaves by
 *
 * Each protocol has at most one, of one of these kinds: a built-in below; a function over struct pktring_batch (from a
 * shared object, or compiled from Python by numba), which runs without the interpreter; a Python function (its `run` is
 * in door_handler.c). Whatever a handler does, there is a verdict for every frame, and the worker goes on.
 *
 * Callbacks answer netisr's questions about a frame (netisr_handler of netisr(9)): which flow, which CPU; and are told
 * that a queue was drained. */
#ifndef PR_HANDLER_H
#define PR_HANDLER_H

#include "hand.h"
#include "pktring_handler.h"

#include <time.h>

#define PR_N_HANDLERS 17 /* protocols 0 to 15, and the internal one */
#define PR_ANY_CPU UINT32_MAX /* netisr's NETISR_CPUID_NONE */

/* One handler's books in one worker: in shared memory, the worker is the only writer, and anybody may read.
 * last_error is text that is replaced while others read it: what they see may be half of each. It ends with a 0. */
struct pr_handler_stats {
    uint64_t frames, bytes, batches;
    uint64_t raised;   /* times that it failed */
    uint64_t lost;     /* frames that ended for that reason */
    uint64_t ns_total; /* spent in it, and in waiting for the interpreter */
    uint64_t ns_max;   /* of one batch */
    uint64_t ns_last;
    char last_error[192];
};
_Static_assert(sizeof(struct pr_handler_stats) == 256, "whole cache lines a handler");

struct pr_handlers;

struct pr_handler {
    void (*run)(struct pr_handlers *, struct pr_handler *, struct pr_batch *); /* NULL = there is none */
    pktring_handler function; /* pr_run_function: this */
    void *state;              /* and what it is given; of a Python function: the object */
    int32_t target;           /* pr_run_forward: to this port */
    uint32_t proto;
    uint64_t told_ns;         /* when a failure was last told */
    uint64_t untold;          /* failures since */
    struct pr_handler_stats *stats;
};

/* netisr's callbacks for one protocol; NULL = not given. A frame is desc[0..n). */
struct pr_callbacks {
    int (*m2flow)(void *ctx, uint32_t proto, uint64_t *desc, uint32_t n, uint32_t *hash);
    int (*m2cpuid)(void *ctx, uint32_t proto, uint64_t *desc, uint32_t n, uint32_t source, uint32_t *v);
    void (*drained)(void *ctx, uint32_t proto, uint32_t cpu);
};

/* All of a worker's; private memory, but for the statistics. It is `ctx` of the callbacks. */
struct pr_handlers {
    const struct pr_region *rg;
    struct pr_pool *pool; /* where frames go home that a callback does not want; NULL = nothing runs yet */
    uint32_t port_count;
    uint32_t depth; /* handlers that have been called and not yet returned */
    void (*failed)(struct pr_handlers *, struct pr_handler *, uint64_t times); /* tell somebody; NULL = nobody */
    struct pr_handler h[PR_N_HANDLERS];
    struct pr_callbacks callbacks[PR_N_HANDLERS];
};

static inline void pr_stat_add(uint64_t *at, uint64_t n)
{
    __atomic_store_n(at, *at + n, __ATOMIC_RELAXED); /* as pr_count: nobody reads half a number */
}

static inline uint64_t pr_handler_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- a frame of a batch ---- */

static inline const uint64_t *pr_batch_frame(const struct pr_batch *b, uint32_t i, uint32_t *slots)
{
    *slots = (uint32_t)b->first[i + 1] - b->first[i];
    return &b->desc[b->first[i]];
}

static inline uint32_t pr_batch_frame_len(const struct pr_batch *b, uint32_t i)
{
    uint32_t slots;
    const uint64_t *desc = pr_batch_frame(b, i, &slots);
    return slots == 1 ? pr_desc_len(*desc) : pr_desc_frame_len(desc, slots);
}

static inline struct pr_meta *pr_batch_meta(const struct pr_region *rg, const struct pr_batch *b, uint32_t i)
{
    return pr_meta_of(rg, pr_desc_idx(b->desc[b->first[i]]));
}

static inline uint32_t pr_meta_hash(const struct pr_meta *m) { return m->flags & PR_META_HASH ? m->hash : 0; }

/* Its bytes as pieces; how many. */
static inline uint32_t pr_desc_pieces(const struct pr_region *rg, const uint64_t *desc, uint32_t slots, struct iovec *iov)
{
    for (uint32_t k = 0; k < slots; k++)
        iov[k] = (struct iovec){pr_buf(rg, pr_desc_idx(desc[k])), pr_desc_len(desc[k])};
    return slots;
}

/* The first `width` bytes of pieces. How many there were. */
static inline uint32_t pr_pieces_copy(uint8_t *to, uint32_t width, const struct iovec *iov, uint32_t pieces)
{
    uint32_t put = 0;
    for (uint32_t k = 0; k < pieces && put < width; k++) {
        uint32_t take = iov[k].iov_len < width - put ? (uint32_t)iov[k].iov_len : width - put;
        memcpy(to + put, iov[k].iov_base, take);
        put += take;
    }
    return put;
}

/* ---- kinds ---- */

/* `drop` and `count`: the verdict is there already, the statistics are kept for all. */
static inline void pr_run_done(struct pr_handlers *hs, struct pr_handler *h, struct pr_batch *b)
{
    (void)hs, (void)h, (void)b;
}

static inline void pr_run_forward(struct pr_handlers *hs, struct pr_handler *h, struct pr_batch *b)
{
    (void)hs;
    for (uint32_t i = 0; i < b->n; i++)
        b->verdict[i] = h->target;
}

/* `mirror`: back out of the port that it came in by. */
static inline void pr_run_mirror(struct pr_handlers *hs, struct pr_handler *h, struct pr_batch *b)
{
    (void)h;
    for (uint32_t i = 0; i < b->n; i++)
        b->verdict[i] = pr_batch_meta(hs->rg, b, i)->port;
}

static inline void pr_run_function(struct pr_handlers *hs, struct pr_handler *h, struct pr_batch *b)
{
    uint8_t *frame[PR_BURST];
    uint32_t length[PR_BURST], frame_length[PR_BURST], hash[PR_BURST];
    uint64_t timestamp_ns[PR_BURST];
    uint16_t port[PR_BURST];
    for (uint32_t i = 0; i < b->n; i++) {
        uint64_t first = b->desc[b->first[i]];
        const struct pr_meta *m = pr_meta_of(hs->rg, pr_desc_idx(first));
        frame[i] = pr_buf(hs->rg, pr_desc_idx(first));
        length[i] = pr_desc_len(first);
        frame_length[i] = pr_batch_frame_len(b, i);
        timestamp_ns[i] = m->ts_ns;
        port[i] = m->port;
        hash[i] = pr_meta_hash(m);
    }
    struct pktring_batch view = {
        .version = PKTRING_HANDLER_VERSION, .n = b->n, .port_count = hs->port_count, .frame = frame, .length = length,
        .frame_length = frame_length, .timestamp_ns = timestamp_ns, .port = port, .hash = hash, .verdict = b->verdict,
        .state = h->state,
    };
    h->function(&view);
    if (view.raised) {
        pr_stat_add(&h->stats->raised, view.raised);
        pr_stat_add(&h->stats->lost, view.raised);
        if (hs->failed)
            hs->failed(hs, h, view.raised);
    }
}

/* ---- the worker calls this ---- */

/* Verdicts for all frames of the batch. Without a handler they end here, and nobody counts them. */
static inline void pr_handlers_run(struct pr_handlers *hs, uint32_t proto, struct pr_batch *b)
{
    for (uint32_t i = 0; i < b->n; i++)
        b->verdict[i] = PR_DONE;
    struct pr_handler *h = proto < PR_N_HANDLERS ? &hs->h[proto] : NULL;
    if (!h || !h->run || !b->n)
        return;
    uint64_t bytes = 0, begun = pr_handler_now_ns();
    for (uint32_t k = 0; k < b->n_desc; k++)
        bytes += pr_desc_len(b->desc[k]);
    hs->depth++;
    h->run(hs, h, b);
    hs->depth--;
    uint64_t ns = pr_handler_now_ns() - begun;
    struct pr_handler_stats *s = h->stats;
    pr_stat_add(&s->frames, b->n);
    pr_stat_add(&s->bytes, bytes);
    pr_stat_add(&s->batches, 1);
    pr_stat_add(&s->ns_total, ns);
    __atomic_store_n(&s->ns_last, ns, __ATOMIC_RELAXED);
    if (ns > s->ns_max)
        __atomic_store_n(&s->ns_max, ns, __ATOMIC_RELAXED);
}

/* ---- netisr calls these, with struct pr_handlers * as ctx ---- */

static inline const struct pr_callbacks *pr_handlers_callbacks(const struct pr_handlers *hs, uint32_t proto)
{
    static const struct pr_callbacks none;
    return proto < PR_N_HANDLERS ? &hs->callbacks[proto] : &none;
}

/* Which flow does the frame belong to? 1 = *hash, 0 = nobody knows, -1 = it is not wanted any more. */
static inline int pr_handlers_m2flow(void *ctx, uint32_t proto, uint64_t *desc, uint32_t n, uint32_t *hash)
{
    const struct pr_callbacks *c = pr_handlers_callbacks(ctx, proto);
    return c->m2flow ? c->m2flow(ctx, proto, desc, n, hash) : 0;
}

/* Which CPU is to do it? 0 = *v (PR_ANY_CPU: no matter which), -1 = it is not wanted any more. */
static inline int pr_handlers_m2cpuid(void *ctx, uint32_t proto, uint64_t *desc, uint32_t n, uint32_t source, uint32_t *v)
{
    const struct pr_callbacks *c = pr_handlers_callbacks(ctx, proto);
    *v = PR_ANY_CPU;
    return c->m2cpuid ? c->m2cpuid(ctx, proto, desc, n, source, v) : 0;
}

/* The protocol's queue on this CPU was served to its end. */
static inline void pr_handlers_drained(void *ctx, uint32_t proto, uint32_t cpu)
{
    const struct pr_callbacks *c = pr_handlers_callbacks(ctx, proto);
    if (c->drained)
        c->drained(ctx, proto, cpu);
}

#endif
