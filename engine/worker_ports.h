/* What a worker works with, and how it sends: frames in hand into transmit rings, or by lane to the worker that has one;
 * and what it does with frames that netisr delivers to it. */
#ifndef PR_WORKER_PORTS_H
#define PR_WORKER_PORTS_H

#include "border.h"
#include "border_tx.h"
#include "classify.h"
#include "filter.h"
#include "hand.h"
#include "handler.h"
#include "netisr.h"
#include "record.h"
#include "rest.h"

#define PR_W_PORTS 64
#define PR_W_RINGS 16
#define PR_W_RULES 16
#define PR_W_APPS 16
#define PR_W_PROTOS 16
#define PR_W_POLL 512 /* descriptors that a sleeping worker waits on */
#define PR_PROTO_TX 16 /* the internal protocol of frames on their way to the worker that can send them */

/* A rule of a port: frames of these directions that match go, or their copies, to port `to`. */
struct pr_rule {
    const struct sock_filter *filter;
    uint32_t n_filter;
    uint32_t directions;
    uint16_t to;
};

/* What became of a burst's frames; added to the ring's row when the burst is done. */
struct pr_tally {
    uint32_t forwarded, classified, delivered, drop_direction, drop_no_rule, drop_bad_slot, drop_no_buffer, drop_tx_full,
        mirrored, drop_mirror;
    uint32_t supers, pieces; /* cut here, and what came of them */
};

/* A port, as one worker sees it. */
struct pr_wport {
    struct pr_ringh *rx[PR_W_RINGS], *tx; /* mine; tx == NULL: */
    uint32_t n_rx, tx_ws;                 /* whose worker sends for me, PR_NO_WS = the port cannot send */
    uint32_t at, queued;                  /* of tx: where the next frame goes, frames put there and not yet handed over */
    uint32_t taking, protocols;           /* the host does not see its frames; which protocols it feeds, a bit each */
    struct pr_rule rule[PR_W_RULES], mirror[PR_W_RULES];
    uint32_t n_rules, n_mirrors;
    struct pr_app *app[PR_W_APPS];
    uint32_t n_apps;
};

struct pr_worker {
    struct pr_netisr_end *ns;
    struct pr_pool *pool;
    const struct pr_region *rg;
    struct pr_handlers *handlers;
    struct pr_worker_record *record;
    struct pr_wport port[PR_W_PORTS];
    uint32_t n_ports; /* numbers run from 0 to n_ports - 1 */
    struct pr_app *app[PR_W_APPS];
    uint32_t n_apps;
    struct pr_batch batch[PR_W_PROTOS], sent;
    uint32_t used;   /* protocols with frames in `batch`, a bit each */
    int event[PR_REST_EVENTS]; /* descriptors whose readability brings the caller back */
    uint32_t n_events;
    int bell; /* rung by whoever queues something for me while I sleep */
};

static inline struct pr_wport *pr_w_port(struct pr_worker *w, uint32_t number)
{
    return number < w->n_ports ? &w->port[number] : NULL;
}

/* Hand over what was put into the port's transmit ring. */
static inline void pr_w_hand_over(struct pr_wport *p)
{
    if (p->queued)
        pr_ring_advance(p->tx, p->at);
    p->queued = 0;
}

/* Give the device what lies in the transmit ring. Slots it took. */
static inline uint32_t pr_w_push(struct pr_wport *p)
{
    pr_w_hand_over(p);
    int taken = p->tx ? pr_txsync(p->tx) : 0;
    if (taken < 0) /* re-initialised: whatever was ours to fill is elsewhere now */
        p->at = p->tx->ring->head;
    return taken > 0 ? (uint32_t)taken : 0;
}

static inline void pr_w_queued(struct pr_wport *p, uint32_t slots, uint32_t frames)
{
    pr_count(p->tx->row, PR_C_tx_queued, frames);
    p->at = pr_ahead(p->tx, p->at, slots);
    p->queued += frames;
}

/* Room for the next batch, made while no frame is in hand: who died with one burst in hand and another half sent would
 * lose both. */
static inline void pr_w_make_room(struct pr_worker *w)
{
    for (uint32_t i = 0; i < w->n_ports; i++) {
        struct pr_wport *p = &w->port[i];
        if (p->tx && pr_tx_room(p->tx, p->at) < PR_BATCH_DESC)
            pr_w_push(p);
    }
}

/* Send a frame that is in hand by a port. 1 = it is on its way; 0 = there is no way or no room there, and it was dropped:
 * the caller counts it. */
static inline int pr_w_send(struct pr_worker *w, uint32_t number, const uint64_t *desc, uint32_t slots)
{
    struct pr_wport *p = pr_w_port(w, number);
    if (p && p->tx) {
        if (pr_tx_room(p->tx, p->at) < slots && p->tx->n <= PR_BATCH_DESC) /* room for a batch there never is */
            pr_w_push(p);
        if (pr_tx_room(p->tx, p->at) >= slots) {
            pr_hand_lay(w->pool, desc, slots, p->tx, p->at);
            pr_w_queued(p, slots, 1);
            return 1;
        }
    } else if (p && p->tx_ws != PR_NO_WS) {
        pr_meta_of(w->rg, pr_desc_idx(desc[0]))->out = (uint16_t)number;
        if (pr_netisr_put(w->ns, PR_PROTO_TX, p->tx_ws, desc, slots))
            return 1;
    }
    pr_hand_free(w->pool, desc, slots);
    return 0;
}

/* ---- deliver: netisr calls back ---- */

/* Frames that other workers cannot send. */
static inline void pr_w_transmit(struct pr_worker *w, struct pr_batch *b)
{
    for (uint32_t i = 0; i < b->n; i++) {
        const uint64_t *desc = &b->desc[b->first[i]];
        if (!pr_w_send(w, pr_meta_of(w->rg, pr_desc_idx(*desc))->out, desc, b->first[i + 1] - b->first[i]))
            pr_record_add(&w->record->drop_tx_full, 1);
    }
}

/* Frames go where their verdicts say. */
static inline void pr_w_dispose(struct pr_worker *w, const struct pr_batch *b)
{
    for (uint32_t i = 0; i < b->n; i++) {
        const uint64_t *desc = &b->desc[b->first[i]];
        uint32_t slots = b->first[i + 1] - b->first[i];
        if (b->verdict[i] < 0)
            pr_hand_free(w->pool, desc, slots);
        else if (!pr_w_send(w, (uint32_t)b->verdict[i], desc, slots))
            pr_record_add(&w->record->drop_tx_full, 1);
    }
}

static inline void pr_w_handle(void *ctx, uint32_t proto, struct pr_batch *b)
{
    struct pr_worker *w = ctx;
    if (proto == PR_PROTO_TX) {
        pr_w_transmit(w, b);
    } else {
        pr_handlers_run(w->handlers, proto, b);
        pr_w_dispose(w, b);
    }
    pr_w_make_room(w);
}

static inline int pr_w_m2flow(void *ctx, uint32_t proto, uint64_t *desc, uint32_t n, uint32_t *hash)
{
    struct pr_handlers *h = ((struct pr_worker *)ctx)->handlers;
    return h->callbacks[proto].m2flow ? h->callbacks[proto].m2flow(h, proto, desc, n, hash) : 0;
}

static inline int pr_w_m2cpuid(void *ctx, uint32_t proto, uint64_t *desc, uint32_t n, uint32_t source, uint32_t *v)
{
    struct pr_handlers *h = ((struct pr_worker *)ctx)->handlers;
    if (h->callbacks[proto].m2cpuid)
        return h->callbacks[proto].m2cpuid(h, proto, desc, n, source, v);
    *v = PR_NO_CPU;
    return 0;
}

static inline void pr_w_drained(void *ctx, uint32_t proto, uint32_t cpu)
{
    struct pr_handlers *h = ((struct pr_worker *)ctx)->handlers;
    if (h->callbacks[proto].drained)
        h->callbacks[proto].drained(h, proto, cpu);
}

static inline void pr_w_bind(struct pr_worker *w)
{
    w->ns->ctx = w;
    w->ns->handle = pr_w_handle;
    w->ns->m2flow = pr_w_m2flow;
    w->ns->m2cpuid = pr_w_m2cpuid;
    w->ns->drained = pr_w_drained;
    w->ns->later = 1;
}

#endif
