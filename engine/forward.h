/* Paths: from a receive ring, past mirrors and a filter, to a transmit ring; and the loop that runs them.
 *
 *   rxsync ▸ [direction] ▸ mirrors get copies ▸ [filter] ▸ [limit] ▸ exchange buffers with the transmit ring ▸ txsync
 *
 * When the transmit ring is full the frames stay where they are: the wait spreads back to the kernel, which counts what
 * it drops. Nothing here drops for want of room but a mirror, which must never hold its original up. */
#ifndef PR_FORWARD_H
#define PR_FORWARD_H

#include "filter.h"
#include "move.h"
#include "rest.h"

#define PR_MAX_MIRRORS 8
#define PR_MAX_PATHS 64

struct pr_path {
    struct pr_ringh *from, *to; /* to == NULL: frames are counted as delivered and go no further */
    const struct sock_filter *filter;
    uint32_t n_filter;
    uint32_t directions;
    uint64_t *left; /* frames that may still pass, shared by the paths of a loop; UINT64_MAX = no limit */
    struct pr_ringh *mirror[PR_MAX_MIRRORS];
    uint32_t n_mirrors;
    int blocked; /* the transmit ring had no room for the frame in front */
};

static inline void pr_mirror(struct pr_path *p, uint32_t i, uint32_t slots)
{
    for (uint32_t m = 0; m < p->n_mirrors; m++) {
        struct pr_ringh *to = p->mirror[m];
        uint32_t at = to->ring->head, frames = 1;
        int used = pr_move_copy(p->from, i, slots, to, at, &frames);
        if (used > 0) {
            pr_ring_advance(to, pr_ahead(to, at, (uint32_t)used));
            pr_count(to->row, PR_C_tx_queued, frames);
            pr_count(p->from->row, PR_C_mirrored, 1);
        } else {
            pr_count(p->from->row, PR_C_drop_mirror, 1);
        }
    }
}

static inline int pr_path_matches(const struct pr_path *p, uint32_t i, uint32_t slots, const struct pr_meta *meta)
{
    if (!p->filter)
        return 1;
    const struct pr_slot *s = &p->from->ring->slot[i];
    uint32_t len = pr_frame_len(p->from, i, slots);
    return pr_filter_run(p->filter, p->n_filter, pr_buf(p->from->rg, s->buf_idx), s->len,
                         meta->wire_len ? meta->wire_len : len) != 0;
}

/* What becomes of a frame. 1 = it left the receive ring, 0 = it has to wait, -1 = the path's limit is reached. */
static inline int pr_path_step(struct pr_path *p, uint32_t i, uint32_t slots, uint32_t *at, uint32_t *queued)
{
    struct pr_ringh *from = p->from;
    struct pr_row *row = from->row;
    const struct pr_slot *s = &from->ring->slot[i];
    if (!pr_buf_ok(from->rg, s->buf_idx) || s->len > pr_buf_room(from->rg)) {
        pr_count(row, PR_C_drop_bad_slot, 1);
        return 1;
    }
    const struct pr_meta *meta = pr_meta_of(from->rg, s->buf_idx);
    if (!(p->directions & (meta->flags & PR_META_OUTGOING ? PR_DIR_OUT : PR_DIR_IN))) {
        pr_count(row, PR_C_drop_direction, 1);
        return 1;
    }
    if (!pr_path_matches(p, i, slots, meta)) {
        pr_mirror(p, i, slots);
        pr_count(row, PR_C_drop_filter, 1);
        return 1;
    }
    if (*p->left == 0)
        return -1;
    if (p->to) {
        struct pr_ringh *to = p->to;
        uint32_t used = 0, frames = 1;
        int zero_copy = from->rg->mem == to->rg->mem;
        if (pr_tx_room(to, *at) < slots)
            return 0;
        if (zero_copy) {
            pr_mirror(p, i, slots);
            used = pr_move_swap(from, i, slots, to, *at);
        } else {
            int n = pr_move_copy(from, i, slots, to, *at, &frames);
            if (n == 0 && pr_tx_room(to, *at) < to->n - 1)
                return 0;
            pr_mirror(p, i, slots);
            used = n > 0 ? (uint32_t)n : 0;
            pr_count(row, PR_C_copies, used != 0);
        }
        if (!used) { /* differing strides: what fits one ring may not fit all of the other */
            pr_count(row, PR_C_drop_tx_full, 1);
            return 1;
        }
        *at = pr_ahead(to, *at, used);
        *queued += frames;
        pr_count(row, PR_C_forwarded, 1);
    } else {
        pr_mirror(p, i, slots);
        pr_count(row, PR_C_delivered, 1);
    }
    *p->left -= *p->left != UINT64_MAX;
    return 1;
}

/* Run what lies in the receive ring. Slots consumed. */
static inline uint32_t pr_path_run(struct pr_path *p)
{
    struct pr_ringh *from = p->from, *to = p->to;
    uint32_t i = from->ring->head, tail = pr_load(&from->ring->tail), begun = i, queued = 0, slots;
    uint32_t at = to ? to->ring->head : 0;
    p->blocked = 0;
    while ((slots = pr_frame_slots(from, i, tail)) != 0) {
        int done = pr_path_step(p, i, slots, &at, &queued);
        if (done <= 0) {
            p->blocked = done == 0;
            break;
        }
        i = pr_ahead(from, i, slots);
    }
    if (to && queued) {
        pr_count(to->row, PR_C_tx_queued, queued);
        pr_ring_advance(to, at);
    }
    if (i != begun)
        pr_ring_advance(from, i);
    return pr_dist(from, begun, i);
}

struct pr_loop {
    struct pr_path path[PR_MAX_PATHS];
    uint32_t n_paths;
    uint64_t left;
    int event[PR_REST_EVENTS]; /* descriptors whose readability brings the caller back */
    uint32_t n_events;
};

static inline int pr_at_end(const struct pr_path *p)
{
    return p->from->dev && (p->from->dev->flags & PR_DEV_END) && !pr_ring_ready(p->from);
}

static inline int pr_troubled(const struct pr_ringh *h) { return h && h->dev && h->dev->error; }
static inline int pr_paused(const struct pr_ringh *h) { return h && h->dev && (h->dev->flags & PR_DEV_PAUSED); }

/* One turn of every path. Slots moved; *why is set when the caller must act. */
static inline uint32_t pr_loop_turn(struct pr_loop *l, int *why)
{
    uint32_t moved = 0, ended = 0;
    for (uint32_t i = 0; i < l->n_paths; i++) {
        struct pr_path *p = &l->path[i];
        int rx = p->blocked ? 0 : pr_rxsync(p->from);
        moved += pr_path_run(p) + (rx > 0 ? (uint32_t)rx : 0);
        if (p->to && pr_txsync(p->to) > 0 && p->blocked)
            moved++;
        for (uint32_t m = 0; m < p->n_mirrors; m++)
            pr_txsync(p->mirror[m]);
        if (pr_troubled(p->from) || pr_troubled(p->to))
            *why = PR_WHY_EVENT;
        if (pr_paused(p->to))
            *why = PR_WHY_PAUSED;
        ended += pr_at_end(p);
    }
    if (*why < 0 && l->n_paths && ended == l->n_paths && !moved)
        *why = PR_WHY_END;
    if (*why < 0 && l->left == 0)
        *why = PR_WHY_LIMIT;
    return moved;
}

/* Nothing moved: sleep until a device or an event wakes us. */
static inline int pr_loop_sleep(struct pr_loop *l, uint64_t until_ns)
{
    struct pollfd fd[PR_MAX_PATHS * 2 + PR_REST_EVENTS];
    uint32_t n = 0;
    for (; n < l->n_events; n++)
        fd[n] = (struct pollfd){.fd = l->event[n], .events = POLLIN};
    int ms = pr_rest_ms(until_ns);
    for (uint32_t i = 0; i < l->n_paths; i++) {
        const struct pr_path *p = &l->path[i];
        const struct pr_device *from = p->from->dev, *to = p->to ? p->to->dev : NULL;
        if (p->blocked || (to && pr_tx_pending(p->to)))
            fd[n++] = (struct pollfd){.fd = to ? to->tx_fd : -1, .events = POLLOUT};
        if (!p->blocked && from && !(from->flags & PR_DEV_END)) {
            fd[n++] = (struct pollfd){.fd = from->rx_fd, .events = POLLIN};
            if (from->rx_fd < 0 && ms > 1)
                ms = 1; /* a source without a descriptor wakes nobody */
        }
    }
    int ready = poll(fd, n, ms);
    if (ready < 0 && errno == EINTR)
        return PR_WHY_SIGNAL;
    for (uint32_t i = 0; ready > 0 && i < l->n_events; i++)
        if (fd[i].revents)
            return PR_WHY_EVENT;
    for (uint32_t i = 0; i < l->n_paths && ready > 0; i++)
        pr_count(l->path[i].from->row, PR_C_wakeups, 1);
    return -1;
}

/* Run until `until_ns` (CLOCK_MONOTONIC) or until the caller must act: why. */
static inline enum pr_why pr_loop_run(struct pr_loop *l, uint64_t until_ns)
{
    uint64_t last = pr_now_ns(), now = last, looked = last;
    uint32_t streak = 0;
    int why = -1;
    for (uint32_t turn = 0;; turn++) {
        uint32_t moved = pr_loop_turn(l, &why);
        if (why >= 0)
            return (enum pr_why)why;
        streak = pr_rest_gather(streak, moved, PR_GATHER_NS);
        if (moved && turn % 16)
            continue;
        now = pr_now_ns();
        if (now >= until_ns)
            return PR_WHY_TIME;
        if (moved) {
            last = now;
            if (now - looked > PR_LOOK_NS) {
                looked = now;
                if (pr_rest_called(l->event, l->n_events))
                    return PR_WHY_EVENT;
            }
        } else if (now - last > PR_SPIN_NS) {
            if ((why = pr_loop_sleep(l, until_ns)) >= 0)
                return (enum pr_why)why;
            last = pr_now_ns();
        }
    }
}

#endif
