/* A super-frame that a rule could have carried whole, but that goes to a handler, or to a mirror that another worker sends
 * for: the wire frames that it stands for, one by one, in buffers of the worker's own. The original stays in its ring.
 *
 * Killed at any instruction: buffers that were taken say OWNED by this worker, as any frame in hand (hand.h). */
#ifndef PR_WORKER_CUT_H
#define PR_WORKER_CUT_H

#include "worker_ports.h"

struct pr_w_cut {
    struct pr_cut cut;
    struct iovec from[PR_MAX_FRAGS];
    struct pr_meta meta;
    uint32_t per; /* buffers of a wire frame */
};

/* Begin with the frame at slot i. How many there will be; 0 = it is no super-frame, or one that cannot be cut (a tunnel). */
static inline uint32_t pr_w_cut_begin(struct pr_w_cut *c, const struct pr_ringh *h, uint32_t i, uint32_t slots)
{
    const struct pr_meta *meta = pr_meta_of(h->rg, h->ring->slot[i].buf_idx);
    uint32_t room = pr_buf_room(h->rg);
    if (!(meta->flags & PR_META_GSO))
        return 0;
    c->meta = *meta;
    if (!pr_frame_pieces(h, i, slots, c->from) || pr_cut_begin(&c->cut, c->from, slots, &c->meta) < 0)
        return 0;
    c->per = ((uint32_t)pr_cut_frame_max(&c->cut) + room - 1) / room;
    return c->per <= PR_MAX_FRAGS ? (uint32_t)pr_cut_count(&c->cut) : 0;
}

/* The next of them, as descriptors. How many; 0 = no buffer is free. */
static inline uint32_t pr_w_cut_next(struct pr_worker *w, struct pr_w_cut *c, uint64_t *desc)
{
    struct iovec to[PR_MAX_FRAGS];
    uint32_t bufs[PR_MAX_FRAGS], room = pr_buf_room(w->rg), got = pr_pool_take(w->pool, bufs, c->per), n = 0;
    if (got < c->per) {
        pr_pool_give(w->pool, bufs, got);
        return 0;
    }
    for (uint32_t k = 0; k < c->per; k++)
        to[k] = (struct iovec){pr_buf(w->rg, bufs[k]), room};
    *pr_meta_of(w->rg, bufs[0]) = (struct pr_meta){.ts_ns = c->meta.ts_ns, .port = c->meta.port, .hash = c->meta.hash,
                                                   .flags = c->meta.flags & PR_META_OUTGOING};
    for (size_t len = pr_cut_next(&c->cut, to, c->per); len; n++) {
        uint32_t put = (uint32_t)(len < room ? len : room);
        len -= put;
        desc[n] = pr_desc(bufs[n], (uint16_t)put, len ? PR_NS_MOREFRAG : 0);
    }
    pr_pool_give(w->pool, &bufs[n], c->per - n); /* the last is shorter */
    return n;
}

#endif
