/* Where a received frame goes: copies to mirrors and apps, then the first of app, rule, protocol that wants it. */
#ifndef PR_WORKER_SORT_H
#define PR_WORKER_SORT_H

#include "worker_cut.h"

static inline int pr_rule_matches(const struct pr_rule *r, const struct pr_ringh *h, uint32_t i, uint32_t slots,
                                  const struct pr_meta *meta)
{
    if (!(r->directions & (meta->flags & PR_META_OUTGOING ? PR_DIR_OUT : PR_DIR_IN)))
        return 0;
    if (!r->filter)
        return 1;
    const struct pr_slot *s = &h->ring->slot[i];
    return pr_filter_run(r->filter, r->n_filter, pr_buf(h->rg, s->buf_idx), s->len,
                         meta->wire_len ? meta->wire_len : pr_frame_len(h, i, slots)) != 0;
}

/* A copy of a frame in the ring, for another worker to send: its device may not carry super-frames. 1 = it is on its way. */
static inline int pr_w_copy_away(struct pr_worker *w, struct pr_ringh *h, uint32_t i, uint32_t slots, uint32_t to)
{
    uint64_t desc[PR_MAX_FRAGS];
    struct pr_w_cut cut;
    uint32_t bufs[PR_MAX_FRAGS], got, pieces = pr_w_cut_begin(&cut, h, i, slots);
    for (uint32_t k = 0; k < pieces; k++)
        if (!(got = pr_w_cut_next(w, &cut, desc)) || !pr_w_send(w, to, desc, got))
            return 0;
    if (pieces)
        return 1;
    got = pr_pool_take(w->pool, bufs, slots);
    if (got < slots) {
        pr_pool_give(w->pool, bufs, got);
        return 0;
    }
    *pr_meta_of(w->rg, bufs[0]) = *pr_meta_of(w->rg, h->ring->slot[i].buf_idx);
    for (uint32_t k = 0; k < slots; k++, i = pr_next(h, i)) {
        const struct pr_slot *s = &h->ring->slot[i];
        memcpy(pr_buf(w->rg, bufs[k]), pr_buf(w->rg, s->buf_idx), s->len);
        desc[k] = pr_desc(bufs[k], s->len, s->flags & PR_NS_MOREFRAG);
    }
    return pr_w_send(w, to, desc, slots);
}

static inline void pr_w_mirror(struct pr_worker *w, const struct pr_wport *from, struct pr_ringh *h, uint32_t i,
                               uint32_t slots, const struct pr_meta *meta, struct pr_tally *t)
{
    for (uint32_t m = 0; m < from->n_mirrors; m++) {
        const struct pr_rule *r = &from->mirror[m];
        if (!pr_rule_matches(r, h, i, slots, meta))
            continue;
        struct pr_wport *to = pr_w_port(w, r->to);
        uint32_t frames = 1;
        int used, done = 0;
        if (to && to->tx) {
            if ((used = pr_move_copy(h, i, slots, to->tx, to->at, &frames)) > 0) {
                pr_w_queued(to, (uint32_t)used, frames);
                done = 1;
            }
        } else if (to) {
            done = pr_w_copy_away(w, h, i, slots, r->to);
        }
        t->mirrored += (uint32_t)done;
        t->drop_mirror += (uint32_t)!done;
    }
}

/* By a rule of the port to another. */
static inline void pr_w_forward(struct pr_worker *w, struct pr_ringh *h, uint32_t i, uint32_t slots, uint32_t number,
                                struct pr_tally *t)
{
    struct pr_wport *to = &w->port[number];
    uint64_t desc[PR_MAX_FRAGS];
    if (to->tx) {
        uint32_t used = pr_move_swap(h, i, slots, to->tx, to->at);
        if (used)
            pr_w_queued(to, used, 1);
        t->forwarded += used != 0;
        t->drop_tx_full += !used;
    } else if (pr_hand_lift(w->pool, h, i, slots, desc)) {
        uint32_t sent = (uint32_t)pr_w_send(w, number, desc, slots);
        t->forwarded += sent;
        t->drop_tx_full += !sent;
    } else {
        t->drop_no_buffer++;
    }
}

/* The batch of a protocol, with room for one more frame. */
static inline struct pr_batch *pr_w_batch(struct pr_worker *w, uint32_t proto, uint32_t slots)
{
    struct pr_batch *b = &w->batch[proto];
    if (!pr_batch_room(b, slots)) { /* only behind a full batch */
        pr_netisr_dispatch_src(w->ns, proto, 0, b);
        pr_batch_begin(b);
    }
    w->used |= 1u << proto;
    return b;
}

/* Handlers get wire frames. The books say what they would if the driver had cut it: worker.h, pr_w_settle_up. */
static inline void pr_w_classify_cut(struct pr_worker *w, struct pr_w_cut *cut, uint32_t pieces, uint32_t proto,
                                     struct pr_tally *t)
{
    t->supers++;
    t->pieces += pieces;
    for (; pieces; pieces--) {
        uint64_t desc[PR_MAX_FRAGS];
        uint32_t slots = pr_w_cut_next(w, cut, desc);
        if (!slots)
            break;
        pr_batch_add(pr_w_batch(w, proto, slots), desc, slots);
        t->classified++;
    }
    t->drop_no_buffer += pieces;
}

/* What no rule wanted: to its protocol, if one is registered that this port feeds. */
static inline void pr_w_classify(struct pr_worker *w, struct pr_wport *from, struct pr_ringh *h, uint32_t i, uint32_t slots,
                                 struct pr_tally *t)
{
    const struct pr_slot *s = &h->ring->slot[i];
    struct pr_w_cut cut;
    uint32_t pieces, proto = pr_classify(pr_buf(h->rg, s->buf_idx), s->len);
    if (proto >= PR_W_PROTOS || !(from->protocols >> proto & 1)) {
        t->drop_no_rule += from->taking;
        t->delivered += !from->taking; /* the host has it */
        return;
    }
    if ((pieces = pr_w_cut_begin(&cut, h, i, slots)) != 0) {
        pr_w_classify_cut(w, &cut, pieces, proto, t);
        return;
    }
    struct pr_batch *b = pr_w_batch(w, proto, slots);
    if (!pr_hand_lift(w->pool, h, i, slots, &b->desc[b->n_desc])) {
        t->drop_no_buffer++;
        return;
    }
    pr_batch_close(b, slots);
    t->classified++;
}

/* Apps get copies; then the first that consumes and wants it gets the frame itself. 1 = it is gone from the ring. */
static inline int pr_w_apps(struct pr_worker *w, struct pr_wport *from, struct pr_ringh *h, uint32_t i, uint32_t slots)
{
    uint64_t desc[PR_MAX_FRAGS];
    pr_ring_descs(h, i, slots, desc);
    for (uint32_t k = 0; k < from->n_apps; k++)
        if (!from->app[k]->consume)
            pr_app_offer(from->app[k], w->pool, desc, slots);
    for (uint32_t k = 0; k < from->n_apps; k++)
        if (from->app[k]->consume && pr_app_give_slots(from->app[k], w->pool, h, i, slots))
            return 1;
    return 0;
}

static inline void pr_w_frame(struct pr_worker *w, struct pr_wport *from, struct pr_ringh *h, uint32_t i, uint32_t slots,
                              struct pr_tally *t)
{
    for (uint32_t k = 0, j = i; k < slots; k++, j = pr_next(h, j)) {
        const struct pr_slot *s = &h->ring->slot[j];
        if (!pr_buf_ok(h->rg, s->buf_idx) || s->len > pr_buf_room(h->rg)) {
            t->drop_bad_slot++;
            return;
        }
    }
    const struct pr_meta *meta = pr_meta_of(h->rg, h->ring->slot[i].buf_idx);
    if (from->n_mirrors)
        pr_w_mirror(w, from, h, i, slots, meta, t);
    if (from->n_apps && pr_w_apps(w, from, h, i, slots)) {
        t->delivered++;
        return;
    }
    for (uint32_t r = 0; r < from->n_rules; r++)
        if (pr_rule_matches(&from->rule[r], h, i, slots, meta)) {
            pr_w_forward(w, h, i, slots, from->rule[r].to, t);
            return;
        }
    if (meta->flags & PR_META_OUTGOING)
        t->drop_direction++;
    else
        pr_w_classify(w, from, h, i, slots, t);
}

#endif
