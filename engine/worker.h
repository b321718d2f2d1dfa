/* One worker's turn: pull, sort, deliver, push. What a process does all day, without the interpreter.
 *
 *   receive ring ─▶ claim a burst ─▶ apps and mirrors get copies
 *                                 ─▶ an app that consumes takes it
 *                                 ─▶ [[forward]] rules in order: exchanged into my transmit ring of the target,
 *                                    or by lane to the worker that has the only one
 *                                 ─▶ its protocol (ethertype): netisr places and dispatches, a handler gives a verdict
 *   apps' transmit rings ─▶ their port's transmit ring
 *   my workstream's queues ─▶ handlers; frames of other workers ─▶ my transmit rings
 *   transmit rings ─▶ devices
 *
 * A burst is claimed (the ring's head moves) before its frames are looked at: at most once. It is claimed only when every
 * target of the port's rules has room for it, so that a full transmit ring holds frames back in the kernel, which counts
 * what it drops; only copies and verdicts are dropped for want of room. Outcomes are counted once a burst, in the order
 * tx_queued, forwarded, head: a death in between is found as a remainder by pr_settle, never as a frame too many. */
#ifndef PR_WORKER_H
#define PR_WORKER_H

#include "worker_sort.h"

/* ---- pull ---- */

/* May `slots` more be put into every transmit ring that the port's rules lead to? */
static inline int pr_w_room(struct pr_worker *w, const struct pr_wport *from, uint32_t slots)
{
    for (uint32_t r = 0; r < from->n_rules; r++) {
        struct pr_wport *to = &w->port[from->rule[r].to];
        if (!to->tx || pr_tx_room(to->tx, to->at) >= slots)
            continue;
        pr_w_push(to);
        uint32_t room = pr_tx_room(to->tx, to->at);
        if (room < slots && room < to->tx->n - 1)
            return 0;
    }
    return 1;
}

/* The order is that of counters.h: frames come before what becomes of them. */
static inline void pr_w_settle_up(struct pr_ringh *h, const struct pr_tally *t)
{
    const struct {
        uint32_t n;
        enum pr_counter c;
    } of[] = {{t->pieces, PR_C_rx_pieces},              {t->supers, PR_C_rx_supers},
              {t->pieces - t->supers, PR_C_rx_frames},
              {t->forwarded, PR_C_forwarded},           {t->classified, PR_C_classified},
              {t->delivered, PR_C_delivered},           {t->drop_direction, PR_C_drop_direction},
              {t->drop_no_rule, PR_C_drop_no_rule},     {t->drop_bad_slot, PR_C_drop_bad_slot},
              {t->drop_no_buffer, PR_C_drop_no_buffer}, {t->drop_tx_full, PR_C_drop_tx_full},
              {t->mirrored, PR_C_mirrored},             {t->drop_mirror, PR_C_drop_mirror}};
    for (uint32_t k = 0; k < sizeof of / sizeof of[0]; k++)
        if (of[k].n)
            pr_count(h->row, of[k].c, of[k].n);
}

/* One burst of a receive ring. Slots it took. */
static inline uint32_t pr_w_burst(struct pr_worker *w, struct pr_wport *from, struct pr_ringh *h)
{
    uint32_t begun = h->ring->head, tail = pr_load(&h->ring->tail), end = begun, slots, ready = pr_dist(h, begun, tail);
    struct pr_tally t = {0};
    if (!ready)
        return 0;
    if (!pr_w_room(w, from, ready < PR_BURST ? ready : PR_BURST))
        return 0;
    while ((slots = pr_frame_slots(h, end, tail)) != 0 && pr_dist(h, begun, end) + slots <= PR_BURST)
        end = pr_ahead(h, end, slots);
    pr_ring_advance(h, end); /* claimed: whatever happens now, nobody does these frames again */
    for (uint32_t i = begun; i != end; i = pr_ahead(h, i, slots)) {
        slots = pr_frame_slots(h, i, end);
        pr_w_frame(w, from, h, i, slots, &t);
    }
    pr_w_settle_up(h, &t);
    pr_record_add(&w->record->bursts, 1);
    for (; w->used; w->used &= w->used - 1) {
        uint32_t proto = (uint32_t)__builtin_ctz(w->used) % PR_W_PROTOS;
        pr_netisr_dispatch_src(w->ns, proto, 0, &w->batch[proto]);
        pr_batch_begin(&w->batch[proto]);
    }
    for (uint32_t p = 0; p < w->n_ports; p++) /* before the next burst is claimed: whoever dies then loses that one */
        pr_w_hand_over(&w->port[p]);
    return pr_dist(h, begun, end);
}

/* ---- apps ---- */

static inline void pr_w_attach(struct pr_worker *w, uint32_t port, struct pr_app *a)
{
    struct pr_wport *p = &w->port[port];
    w->app[w->n_apps++] = a;
    p->app[p->n_apps++] = a;
}

/* What apps sent goes out by their ports. Slots taken. */
static inline uint32_t pr_w_collect(struct pr_worker *w)
{
    uint32_t moved = 0;
    for (uint32_t k = 0; k < w->n_apps; k++) {
        struct pr_app *a = w->app[k];
        struct pr_batch *b = &w->sent;
        if (!pr_app_turn(a) || !pr_app_pending(a))
            continue;
        pr_batch_begin(b);
        moved += pr_app_collect(a, w->pool, b);
        pr_w_dispose(w, b);
        pr_w_make_room(w);
    }
    return moved;
}

static inline void pr_w_publish(struct pr_worker *w)
{
    for (uint32_t k = 0; k < w->n_apps; k++)
        pr_app_publish(w->app[k]);
}

/* ---- the turn ---- */

/* One turn of everything. What moved; 0 = there is nothing to do. */
static inline uint32_t pr_w_turn(struct pr_worker *w)
{
    uint32_t moved = pr_w_collect(w);
    for (uint32_t p = 0; p < w->n_ports; p++)
        for (uint32_t r = 0; r < w->port[p].n_rx; r++) {
            struct pr_ringh *h = w->port[p].rx[r];
            int got = pr_rxsync(h);
            moved += pr_w_burst(w, &w->port[p], h) + (got > 0 ? (uint32_t)got : 0);
        }
    pr_w_publish(w);
    moved += pr_netisr_serve(w->ns);
    uint32_t waits = 0;
    for (uint32_t p = 0; p < w->n_ports; p++)
        if (w->port[p].tx) {
            moved += pr_w_push(&w->port[p]);
            waits += pr_tx_pending(w->port[p].tx);
        }
    if (!waits)
        pr_netisr_left(w->ns);
    return moved;
}

/* ---- rest ---- */

/* The kernel's own drop counts come into the rows. -> when that was done last */
static inline uint64_t pr_w_stats(struct pr_worker *w, uint64_t now, uint64_t last)
{
    if (now - last < PR_STATS_NS)
        return last;
    for (uint32_t p = 0; p < w->n_ports; p++)
        for (uint32_t r = 0; r <= w->port[p].n_rx; r++) {
            struct pr_ringh *h = r < w->port[p].n_rx ? w->port[p].rx[r] : w->port[p].tx;
            if (h && h->dev && h->dev->ops->stats)
                h->dev->ops->stats(h->dev, h);
        }
    return now;
}

/* Nothing moved: sleep until a device, another worker or an event wakes us. */
static inline int pr_w_sleep(struct pr_worker *w, uint64_t until_ns)
{
    struct pollfd fd[PR_W_POLL + 1];
    uint32_t n = 0, apps;
    int ms = pr_rest_ms(until_ns), ready = 0;
    for (; n < w->n_events; n++)
        fd[n] = (struct pollfd){.fd = w->event[n], .events = POLLIN};
    fd[n++] = (struct pollfd){.fd = w->bell, .events = POLLIN};
    for (apps = n; n < apps + w->n_apps; n++)
        fd[n] = (struct pollfd){.fd = w->app[n - apps]->gone ? -1 : w->app[n - apps]->bell, .events = POLLIN};
    for (uint32_t p = 0; p < w->n_ports && n < PR_W_POLL; p++) {
        const struct pr_wport *port = &w->port[p];
        if (port->tx && port->tx->dev && pr_tx_pending(port->tx))
            fd[n++] = (struct pollfd){.fd = port->tx->dev->tx_fd, .events = POLLOUT};
        for (uint32_t r = 0; r < port->n_rx && n < PR_W_POLL; r++) {
            const struct pr_ringh *h = port->rx[r];
            if (!h->dev || (h->dev->flags & PR_DEV_END) || pr_ring_ready(h))
                continue;
            fd[n++] = (struct pollfd){.fd = h->dev->rx_fd, .events = POLLIN};
            if (h->dev->rx_fd < 0 && h->dev->ops->rx && ms > 1)
                ms = 1; /* a source without a descriptor wakes nobody */
        }
    }
    pr_record_add(&w->record->sleeps, 1);
    __atomic_store_n(&w->record->busy, 0, __ATOMIC_RELAXED);
    pr_doorbell_arm(pr_netisr_need(w->ns));
    int busy = pr_netisr_ready(w->ns);
    for (uint32_t k = 0; k < w->n_apps; k++)
        busy |= pr_app_arm(w->app[k]);
    if (!busy)
        ready = poll(fd, n, ms);
    pr_doorbell_disarm(pr_netisr_need(w->ns));
    if (ready < 0 && errno == EINTR)
        return PR_WHY_SIGNAL;
    for (uint32_t k = 0; ready > 0 && k < w->n_apps; k++)
        if (fd[apps + k].revents)
            pr_app_heard(w->app[k]);
    uint64_t rings;
    if (ready > 0 && fd[w->n_events].revents && read(w->bell, &rings, sizeof rings) < 0)
        return -1; /* it had been read already */
    for (uint32_t i = 0; ready > 0 && i < w->n_events; i++)
        if (fd[i].revents)
            return PR_WHY_EVENT;
    return -1;
}

/* Run until `until_ns` (CLOCK_MONOTONIC), or until the caller must act: why. */
static inline enum pr_why pr_w_run(struct pr_worker *w, uint64_t until_ns)
{
    uint64_t last = pr_now_ns(), now = last, looked = last, counted = 0;
    uint32_t streak = 0;
    for (uint32_t turn = 0;; turn++) {
        int why;
        pr_record_add(&w->record->progress, 1);
        if (__atomic_load_n(&w->record->ask, __ATOMIC_ACQUIRE) == PR_ASK_STOP)
            return PR_WHY_ASKED;
        uint32_t moved = pr_w_turn(w);
        streak = pr_rest_gather(streak, moved, __atomic_load_n(&w->record->gather_ns, __ATOMIC_RELAXED));
        if (moved && turn % 16)
            continue;
        now = pr_now_ns();
        if (now >= until_ns)
            return PR_WHY_TIME;
        counted = pr_w_stats(w, now, counted);
        if (moved) {
            last = now;
            if (now - looked > PR_LOOK_NS) {
                looked = now;
                __atomic_store_n(&w->record->busy, 1, __ATOMIC_RELAXED);
                if (pr_rest_called(w->event, w->n_events))
                    return PR_WHY_EVENT;
            }
        } else if (now - last > PR_SPIN_NS) {
            if ((why = pr_w_sleep(w, until_ns)) >= 0)
                return (enum pr_why)why;
            last = pr_now_ns();
        }
    }
}

#endif
