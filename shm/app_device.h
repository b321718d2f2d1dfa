/* The app's side of the border, for apps that use this library in Python (engine/attach.py) or in C (pktring.h): a device
 * whose kernel is the engine's worker.
 *
 * The rings are those that the worker fills and empties; nothing is moved here. The ledger beside them is the process's
 * own and says "everything is yours", because the truth is the engine's and in memory that no app has.
 *
 * A descriptor that is readable while there is something to receive, although nobody enters the kernel for a frame:
 *
 *   app, ring empty:  drain the bell ▸ need = another number ▸ fence ▸ look again: if there is something, ring for ourselves
 *   worker:           tail ▸ fence ▸ if need is not what it was at the last ring: ring
 *
 * So either the bell has been rung and not drained, or the ring is empty and the next burst will ring it. */
#ifndef PR_APP_DEVICE_H
#define PR_APP_DEVICE_H

#include "app_words.h"
#include "device.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

struct pr_appdev {
    struct pr_device dev; /* rx_fd: an epoll over the two below */
    int bell;             /* to and from the worker */
    int own;              /* our own ring: an eventfd */
    int own_rung;
    uint32_t seen;        /* receive ring: tail as last seen */
    uint32_t rung;        /* the worker's need when we last rang */
};

/* Frames and bytes in [from, to), into a row. */
static inline void pr_appdev_count(struct pr_ringh *h, uint32_t from, uint32_t to, enum pr_counter frames,
                                   enum pr_counter bytes)
{
    uint64_t n = 0, sum = 0;
    for (; from != to; from = pr_next(h, from)) {
        n += !(h->ring->slot[from].flags & PR_NS_MOREFRAG);
        sum += h->ring->slot[from].len;
    }
    pr_count(h->row, frames, n);
    pr_count(h->row, bytes, sum);
    if (frames == PR_C_rx_frames)
        pr_count(h->row, PR_C_rx_kernel, n);
}

/* Does the engine still serve us? */
static inline int pr_appdev_live(struct pr_appdev *d, const struct pr_ringh *h)
{
    uint32_t state = pr_load(&pr_app_told(h)->state);
    if (state == PR_APP_LIVE || state == PR_APP_NONE)
        return 1; /* NONE: no worker has looked at us yet */
    d->dev.flags |= PR_DEV_END;
    d->dev.error = state == PR_APP_QUARANTINED ? EPERM : ESHUTDOWN;
    return 0;
}

/* Nothing there: see that the bell rings when there is. Slots that came meanwhile. */
static inline uint32_t pr_appdev_rest(struct pr_appdev *d, struct pr_ringh *h)
{
    char rings[256];
    uint64_t own;
    ssize_t got;
    while ((got = recv(d->bell, rings, sizeof rings, MSG_DONTWAIT)) == (ssize_t)sizeof rings)
        ;
    if (got == 0) { /* every process of the engine has ended, or it has taken us apart */
        d->dev.flags |= PR_DEV_END;
        d->dev.error = ESHUTDOWN;
    }
    if (d->own_rung && read(d->own, &own, sizeof own) > 0)
        d->own_rung = 0;
    struct pr_app_asks *asks = pr_app_asks(h);
    __atomic_store_n(&asks->need, asks->need + 1, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* pairs with the one in pr_app_publish */
    uint32_t ready = pr_ring_ready(h);
    if (ready) {
        own = 1;
        d->own_rung = write(d->own, &own, sizeof own) > 0;
    }
    return ready;
}

static inline int pr_appdev_rx(struct pr_device *dev, struct pr_ringh *h)
{
    struct pr_appdev *d = (struct pr_appdev *)dev;
    h->k->hwtail = pr_prev(h, h->k->hwcur); /* any head is right from here on */
    if (!pr_ring_ready(h) && !pr_appdev_rest(d, h))
        pr_appdev_live(d, h); /* what came before the end is ours */
    uint32_t from = d->seen, tail = pr_load(&h->ring->tail);
    if (tail >= h->n)
        return 0;
    pr_appdev_count(h, from, tail, PR_C_rx_frames, PR_C_rx_bytes);
    d->seen = tail;
    return (int)pr_ring_ready(h); /* not what came: it may have been taken before it was counted */
}

/* Something is in the transmit ring: wake the worker, if it sleeps. */
static inline void pr_appdev_kick(struct pr_appdev *d, const struct pr_ringh *h)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* pairs with the one in pr_app_arm */
    uint32_t need = __atomic_load_n(&pr_app_told(h)->need, __ATOMIC_RELAXED);
    if (need != d->rung && send(d->bell, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
        d->rung = need;
}

static inline int pr_appdev_tx(struct pr_device *dev, struct pr_ringh *h)
{
    struct pr_appdev *d = (struct pr_appdev *)dev;
    uint32_t n = pr_tx_pending(h);
    if (!pr_appdev_live(d, h))
        return 0;
    pr_appdev_count(h, h->k->hwcur, h->k->rhead, PR_C_tx_frames, PR_C_tx_bytes);
    h->k->hwcur = h->k->rhead;
    h->k->hwtail = pr_prev(h, h->k->hwcur);
    pr_appdev_kick(d, h);
    return (int)n;
}

/* What the engine dropped because we were slow. Who spoiled his own cursors learns of his quarantine here. */
static inline void pr_appdev_stats(struct pr_device *dev, struct pr_ringh *h)
{
    if (pr_load(&pr_app_told(h)->state) == PR_APP_QUARANTINED)
        pr_appdev_live((struct pr_appdev *)dev, h);
    uint64_t dropped = __atomic_load_n(&pr_app_told(h)->dropped, __ATOMIC_RELAXED);
    if (h->k->dir == PR_RX && dropped > h->row->v[PR_C_drop_kernel])
        pr_count(h->row, PR_C_drop_kernel, dropped - h->row->v[PR_C_drop_kernel]);
}

static const struct pr_device_ops pr_appdev_ops = {
    .name = "app", .rx = pr_appdev_rx, .tx = pr_appdev_tx, .stats = pr_appdev_stats};

static inline int pr_appdev_watch(struct pr_appdev *d, int fd)
{
    struct epoll_event e = {.events = EPOLLIN, .data = {.fd = fd}};
    return epoll_ctl(d->dev.rx_fd, EPOLL_CTL_ADD, fd, &e);
}

static inline void pr_appdev_close(struct pr_appdev *d)
{
    int fds[] = {d->dev.rx_fd, d->own, d->bell};
    for (int i = 0; i < 3; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    d->dev.rx_fd = d->own = d->bell = -1;
}

/* Over the socket to one worker, which is the device's from now on. 0, or -1 with errno. */
static inline int pr_appdev_open(struct pr_appdev *d, int bell)
{
    *d = (struct pr_appdev){.dev = {.ops = &pr_appdev_ops, .rx_fd = epoll_create1(EPOLL_CLOEXEC), .tx_fd = bell},
                            .bell = bell, .own = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
    if (d->dev.rx_fd < 0 || d->own < 0 || pr_appdev_watch(d, bell) < 0 || pr_appdev_watch(d, d->own) < 0) {
        pr_appdev_close(d);
        return -1;
    }
    return 0;
}

/* A kring of this process's own for a ring of the engine's: at the app's cursor, with every slot allowed. */
static inline void pr_appdev_kring(struct pr_kring *k, const struct pr_geometry *g, uint32_t index, uint32_t dir,
                                   uint32_t slots, uint32_t head)
{
    *k = (struct pr_kring){.hwcur = head, .hwtail = head ? head - 1 : slots - 1, .rhead = head, .num_slots = slots,
                           .ring_ofs = g->ring_ofs + (uint64_t)index * g->ring_size, .dir = dir, .row = index};
}

#endif
