/* Attach to a port of a running engine from C: no Python, no library, only this header and those beside it.
 *
 *     #include <pktring.h>            cc -O2 -I$(python -c 'import pktring; print(pktring.get_include())') app.c
 *
 *     char why[256];
 *     struct pktring_frame f[64];
 *     struct pktring_port *p = pktring_attach("edge", "left", 0, "udp port 53", why, sizeof why);
 *     for (struct pollfd fd = {pktring_fd(p), POLLIN, 0}; !pktring_error(p); poll(&fd, 1, -1))
 *         for (uint32_t n; (n = pktring_recv(p, f, 64));)
 *             ...                                          // f[i].frame, f[i].length: in the rings, not copied
 *     pktring_close(p);
 *
 * For those who know netmap, the rings lie open: p->rx[i] and p->tx[i], one pair for each of the engine's workers, have
 * netmap's head, cur, tail and slots; the app owns [head, tail).
 *
 *     while (pktring_ready(p) == 0) poll(...);             // as NIOCRXSYNC: only after a 0 does the descriptor tell
 *     struct pr_ring *r = p->rx[0];
 *     while (r->head != __atomic_load_n(&r->tail, __ATOMIC_ACQUIRE)) {
 *         use(pktring_buf(p, r->slot[r->head].buf_idx), r->slot[r->head].len);
 *         pktring_advance(r, 1);
 *     }
 *     pktring_flush(p);                                    // as NIOCTXSYNC
 *
 * Killed at any instruction, an app leaves nothing behind: the engine notices, and takes its buffers back by its own
 * words. A port belongs to one thread. The memory is the engine's own for members of its group (slots may be exchanged,
 * for buffers that lie in this port's rings), a sealed one of this app's for guests.
 *
 * GNU C11 or later, or C++; with -std=c11 it is the first include, or _GNU_SOURCE is defined. */
#ifndef PKTRING_H
#define PKTRING_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* when this comes first, as it may */
#endif
#ifdef __cplusplus
#ifndef _Static_assert
#define _Static_assert static_assert
#endif
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmissing-field-initializers" /* what is not named is 0, in C++ too */
#endif

#include "app_device.h"

#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/un.h>

#define PKTRING_RINGS 64 /* of each direction: workers that an engine may have */
#define PKTRING_WAIT_S 10 /* attaching replaces every worker by one that knows the app */
#ifndef PKTRING_SLOTS
#define PKTRING_SLOTS 256 /* of each ring; not more than the engine's own have */
#endif

/* A received frame. */
struct pktring_frame {
    uint8_t *frame;        /* its first buffer, */
    uint32_t length;       /* the bytes that it holds: all of the frame, */
    uint32_t frame_length; /* unless this is more: then the next slots go on (pktring_copy) */
    uint64_t timestamp_ns; /* received then, since the epoch; 0 = not known */
    uint32_t hash;         /* of its flow, 0 = none computed */
    uint16_t port;         /* number of the port it came in by */
    uint16_t flags;        /* PR_META_OUTGOING: the host sent it */
    uint32_t ring, slot, slots; /* where it lies: p->rx[ring]->slot[slot], and how many from there on */
};

struct pktring_queue { /* a pair of rings and the worker behind them */
    struct pr_appdev dev;
    struct pr_ringh rx, tx;
    uint32_t next, held; /* held: pktring_recv gave out what lies before `next` */
};

struct pktring_port {
    uint32_t n;                         /* pairs */
    struct pr_ring *rx[PKTRING_RINGS], *tx[PKTRING_RINGS];
    uint32_t app, shared;               /* its number; shared: the memory is the engine's */
    struct pr_region rg;
    int fd, control;                    /* an epoll; the connection that holds the app's place */
    uint32_t turn;
    uint64_t size;                      /* of the memory */
    struct pktring_queue queue[PKTRING_RINGS];
};

/* ---- frames ---- */

/* A descriptor that is readable while there is something to receive; it may be so once too often, never too rarely. */
static inline int pktring_fd(const struct pktring_port *p) { return p->fd; }

/* 0; EPERM: this app broke the rules of its rings, and is in quarantine; ESHUTDOWN: the engine has let go of it. */
static inline int pktring_error(const struct pktring_port *p)
{
    for (uint32_t i = 0; i < p->n; i++)
        if (p->queue[i].dev.dev.error)
            return p->queue[i].dev.dev.error;
    return 0;
}

/* Buffer `idx`; NULL where there is none. */
static inline uint8_t *pktring_buf(const struct pktring_port *p, uint32_t idx)
{
    return pr_buf_ok(&p->rg, idx) ? pr_buf(&p->rg, idx) : NULL;
}

static inline void pktring_advance(struct pr_ring *r, uint32_t slots)
{
    uint32_t to = (r->head + slots) % r->num_slots;
    pr_store(&r->cur, to);
    pr_store(&r->head, to); /* pairs with the engine's acquire of head */
}

/* Slots from *at on that are the app's. 0 also where somebody of the group scribbled over the cursors. */
static inline uint32_t pktring_span(const struct pr_ringh *h, uint32_t *at)
{
    uint32_t tail = pr_load(&h->ring->tail); /* pairs with the engine's release of tail */
    *at = h->ring->head;
    return *at < h->n && tail < h->n ? pr_dist(h, *at, tail) : 0;
}

/* Slots to be received, of all rings. When it is 0, the descriptor tells of the next; sees the engine's end too. */
static inline uint32_t pktring_ready(struct pktring_port *p)
{
    uint32_t at, n = 0;
    for (uint32_t i = 0; i < p->n; i++)
        n += pktring_span(&p->queue[i].rx, &at);
    for (uint32_t i = 0; !n && i < p->n; i++)
        if (!pr_appdev_rest(&p->queue[i].dev, &p->queue[i].rx))
            pr_appdev_live(&p->queue[i].dev, &p->queue[i].rx); /* what came before the end is ours */
        else
            return pktring_span(&p->queue[i].rx, &at);
    return n;
}

/* The frame at slot `at`, of at most `left` slots. Slots; `*sound`: its buffers exist, and its end. */
static inline uint32_t pktring_frame_at(const struct pktring_port *p, const struct pr_ringh *h, uint32_t at,
                                        uint32_t left, struct pktring_frame *f, int *sound)
{
    *sound = 1;
    for (uint32_t k = 0; k < left && k < PR_MAX_FRAGS; k++, at = pr_next(h, at)) {
        uint64_t desc = pr_slot_desc(h, at); /* read once */
        uint32_t b = pr_desc_idx(desc), len = pr_desc_len(desc);
        if (!pr_buf_ok(&p->rg, b) || len > pr_buf_room(&p->rg)) {
            *sound = 0;
        } else if (k == 0) {
            const struct pr_meta *m = pr_meta_of(&p->rg, b);
            f->frame = pr_buf(&p->rg, b);
            f->length = len;
            f->frame_length = 0;
            f->timestamp_ns = m->ts_ns;
            f->hash = m->flags & PR_META_HASH ? m->hash : 0;
            f->port = m->port;
            f->flags = m->flags;
            f->slot = at;
        }
        f->frame_length += *sound ? len : 0;
        if (!(pr_desc_flags(desc) & PR_NS_MOREFRAG))
            return f->slots = k + 1;
    }
    *sound = 0;
    return left;
}

/* Up to `max` frames, in their buffers, where they stay until the next call. 0: wait for pktring_fd, unless
 * pktring_error. */
static inline uint32_t pktring_recv(struct pktring_port *p, struct pktring_frame *f, uint32_t max)
{
    for (uint32_t i = 0; i < p->n; i++)
        if (p->queue[i].held) {
            pr_ring_advance(&p->queue[i].rx, p->queue[i].next);
            p->queue[i].held = 0;
        }
    uint32_t n = 0, at, slots;
    for (uint32_t k = pktring_ready(p) ? 0 : p->n; k < p->n && n < max; k++, p->turn++) {
        uint32_t i = p->turn % p->n;
        struct pktring_queue *q = &p->queue[i];
        int sound;
        for (uint32_t left = pktring_span(&q->rx, &at); left && n < max; left -= slots) {
            slots = pktring_frame_at(p, &q->rx, at, left, &f[n], &sound);
            f[n].ring = i;
            n += (uint32_t)sound;
            q->next = at = pr_ahead(&q->rx, at, slots);
            q->held = 1;
        }
    }
    return n;
}

/* All of a frame, however many buffers it lies in. Bytes written to `to`, at most `room`. */
static inline uint32_t pktring_copy(const struct pktring_port *p, const struct pktring_frame *f, void *to,
                                    uint32_t room)
{
    const struct pr_ringh *h = &p->queue[f->ring].rx;
    uint32_t put = 0;
    for (uint32_t k = 0, at = f->slot; k < f->slots && put < room; k++, at = pr_next(h, at)) {
        uint64_t desc = pr_slot_desc(h, at);
        uint32_t len = pr_desc_len(desc) < room - put ? pr_desc_len(desc) : room - put;
        if (!pr_buf_ok(&p->rg, pr_desc_idx(desc)) || len > pr_buf_room(&p->rg))
            break;
        memcpy((uint8_t *)to + put, pr_buf(&p->rg, pr_desc_idx(desc)), len);
        put += len;
    }
    return put;
}

/* What lies in the transmit rings goes out: workers that sleep are woken. */
static inline void pktring_flush(struct pktring_port *p)
{
    for (uint32_t i = 0; i < p->n; i++)
        if (pr_appdev_live(&p->queue[i].dev, &p->queue[i].tx))
            pr_appdev_kick(&p->queue[i].dev, &p->queue[i].tx);
}

/* Queue a frame, in order, in the first transmit ring. 1; 0 = the ring is full, and nobody is woken when it has room:
 * flush, try again in a moment; -1 = it never goes: it is empty or too long, or pktring_error. */
static inline int pktring_send(struct pktring_port *p, const void *frame, uint32_t len)
{
    struct pr_ringh *h = &p->queue[0].tx;
    uint32_t room = pr_buf_room(&p->rg), slots = len / room + (len % room != 0), at, sound = 1;
    if (!slots || slots > PR_MAX_FRAGS || slots >= h->n || pktring_error(p))
        return -1;
    if (pktring_span(h, &at) < slots)
        return 0;
    for (uint32_t k = 0, done = 0; k < slots; k++, at = pr_next(h, at)) {
        uint32_t b = pr_desc_idx(pr_slot_desc(h, at)), put = len - done < room ? len - done : room;
        if (pr_buf_ok(&p->rg, b))
            memcpy(pr_buf(&p->rg, b), (const uint8_t *)frame + done, put);
        else
            sound = 0; /* the engine had no buffer for this slot; it gets one when the slot comes back */
        done += put;
        uint16_t flags = PR_NS_BUF_CHANGED | (k + 1 < slots ? PR_NS_MOREFRAG : 0);
        pr_slot_set(h, at, pr_desc(b, (uint16_t)put, flags));
    }
    pr_ring_advance(h, at);
    return (int)sound;
}

/* Frames that the engine dropped because this app was slow. */
static inline uint64_t pktring_dropped(const struct pktring_port *p)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < p->n; i++)
        sum += __atomic_load_n(&pr_app_told(&p->queue[i].rx)->dropped, __ATOMIC_RELAXED);
    return sum;
}

/* Leave: what was sent goes out, the buffers go home. NULL is no port. */
static inline void pktring_close(struct pktring_port *p)
{
    if (!p)
        return;
    if (p->rg.mem) {
        pktring_flush(p);
        munmap(p->rg.mem, p->size);
    }
    for (uint32_t i = 0; i < p->n; i++)
        pr_appdev_close(&p->queue[i].dev);
    if (p->fd >= 0)
        close(p->fd);
    if (p->control >= 0)
        close(p->control);
    free(p);
}

#include "pktring_attach.h"

#ifdef __cplusplus
#pragma GCC diagnostic pop
#endif
#endif
