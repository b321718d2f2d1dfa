/* One process's hold on netisr: what it produces, what its workstream consumes, and whom to call. */
#ifndef PR_NETISR_END_H
#define PR_NETISR_END_H

#include "classify.h"
#include "doorbell.h"
#include "netisr_memory.h"

#define PR_NETISR_BUDGET (4 * PR_BURST) /* frames of one pr_netisr_serve: what a worker's receive rings wait for */

struct pr_netisr_end {
    struct pr_netisr v;
    struct pr_pool *pool;
    const struct pr_region *rg;
    uint32_t producer;        /* my row; a worker's is that of its workstream */
    uint32_t ws;              /* mine, or PR_NO_WS */
    struct pr_lane_end *out;  /* [protocol][workstream]; lane == NULL: not yet attached */
    struct pr_lane_end *in;   /* [protocol][producer], with a workstream only */
    uint32_t *stop;           /* [producer]: what was detached of the protocol that is served ends here */
    uint32_t *seen;           /* [workstream]: see netisr_moves.h */
    const int *bell;          /* an eventfd a workstream, -1 = nobody's */
    const struct pr_toeplitz_table *flows; /* hash frames for policy FLOW that have no hash yet; NULL = do not */
    void *ctx;
    void (*handle)(void *ctx, uint32_t proto, struct pr_batch *b); /* runs the handler, and disposes of every frame */
    /* Of the frame desc[0..n), which may be replaced. 1 = *hash, 0 = no hash, -1 = the frame was kept */
    int (*m2flow)(void *ctx, uint32_t proto, uint64_t *desc, uint32_t n, uint32_t *hash);
    /* 0 = *v, or PR_NO_CPU; -1 = the frame was kept */
    int (*m2cpuid)(void *ctx, uint32_t proto, uint64_t *desc, uint32_t n, uint32_t source, uint32_t *v);
    void (*drained)(void *ctx, uint32_t proto, uint32_t cpu);
    uint32_t budget;
    uint32_t later;           /* what handlers are through with has yet to leave: the caller tells by pr_netisr_left */
    uint32_t handled;         /* protocols of which that is still to be told, a bit each */
    uint32_t found;           /* frames that the last holder of the workstream had in its hands */

    uint64_t n_seen, n_empty; /* which of `seen` hold, and of which lanes that was all; a bit each */
    uint32_t inside;          /* a serve is running: a handler may not start another */
    uint32_t left;            /* of the snapshot of pending protocols, those still to be served */
    uint32_t serving;         /* the protocol whose detached frames are being handled, or PR_NETISR_PROTOS */
    uint32_t served;          /* how many of them were */
    uint32_t allowed[PR_NETISR_VNETS]; /* as it was when they were detached */
    struct pr_batch batch;
};

/* Bytes for the arrays of an end. */
static inline size_t pr_netisr_end_room(const struct pr_netisr *v)
{
    size_t both = v->n_ws + v->n_producers;
    return sizeof(struct pr_lane_end) * PR_NETISR_PROTOS * both + sizeof(uint32_t) * both;
}

static inline struct pr_netisr_row *pr_netisr_my_row(const struct pr_netisr_end *e, uint32_t proto)
{
    return pr_netisr_row(&e->v, proto, e->producer);
}

/* Killed between head and `put`: the slots in between are all there, for nobody else fills any. */
static inline void pr_netisr_mend_put(const struct pr_lane_end *l, struct pr_netisr_cell *c)
{
    uint64_t put = pr_netisr_look(&c->put);
    uint32_t frames = pr_netisr_frames(put), head = l->mine;
    if (pr_netisr_position(put) != head) {
        frames += pr_netisr_ends(l, pr_netisr_position(put), head);
        pr_netisr_say(&c->put, pr_netisr_mark(frames, head));
    }
    pr_netisr_count(&c->queued, frames - (uint32_t)c->queued);
}

/* My lane to a workstream; NULL = it was never made, or makes no sense. Attached when it is first used: until then its
 * pages need not be there. */
static inline struct pr_lane_end *pr_netisr_out(struct pr_netisr_end *e, uint32_t proto, uint32_t ws)
{
    struct pr_lane_end *l = &e->out[proto * e->v.n_ws + ws];
    if (l->lane)
        return l;
    struct pr_lane *lane = pr_netisr_lane(&e->v, proto, ws, e->producer);
    if (!pr_netisr_ready_proto(&e->v, proto) || pr_lane_attach(l, lane, pr_lane_size(e->v.capacity), PR_PRODUCER) < 0)
        return NULL;
    pr_netisr_mend_put(l, pr_netisr_cell(&e->v, proto, ws, e->producer));
    return l;
}

#endif
