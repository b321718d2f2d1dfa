#include "null.h"
#include "move.h"

#include <time.h>

int pr_null_rx(struct pr_device *dev, struct pr_ringh *h)
{
    struct pr_null *p = (struct pr_null *)dev;
    if (!pr_device_known(dev, h))
        pr_device_meet(dev, h, 0, 0);
    uint32_t at = h->k->hwtail, left = pr_rx_space(h), n = 0, used;
    struct iovec whole = {p->template, p->len};
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    uint64_t now = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
    while (p->len && p->left && (used = pr_copy_in(h, at, left, &whole, 1, p->len))) {
        *pr_meta_of(h->rg, h->ring->slot[at].buf_idx) = (struct pr_meta){.ts_ns = now, .port = p->port};
        at = pr_ahead(h, at, used);
        left -= used;
        p->left -= p->left != UINT64_MAX;
        n++;
    }
    dev->flags |= p->left == 0 ? PR_DEV_END : 0;
    pr_rx_taken(h, n);
    pr_count(h->row, PR_C_rx_kernel, n);
    pr_count(h->row, PR_C_rx_frames, n);
    pr_count(h->row, PR_C_rx_bytes, (uint64_t)n * p->len);
    uint32_t filled = pr_dist(h, h->k->hwtail, at);
    if (filled)
        pr_rx_publish(h, filled);
    return (int)filled;
}

int pr_null_tx(struct pr_device *dev, struct pr_ringh *h)
{
    (void)dev;
    uint32_t taken = pr_tx_pending(h);
    for (uint32_t left = taken, n; left; left -= n) {
        uint32_t frames = 0, bytes = 0;
        n = left < PR_BURST_MOST ? left : PR_BURST_MOST;
        pr_tx_doubt(h, n);
        for (uint32_t i = h->k->hwcur; i != h->k->doubt; i = pr_next(h, i)) {
            bytes += h->ring->slot[i].len;
            frames += !(h->ring->slot[i].flags & PR_NS_MOREFRAG);
        }
        pr_count(h->row, PR_C_tx_frames, frames);
        pr_count(h->row, PR_C_tx_bytes, bytes);
        pr_tx_done(h, n);
    }
    return (int)taken;
}

static void resume(struct pr_device *dev, struct pr_ringh *h)
{
    struct pr_null *p = (struct pr_null *)dev;
    uint64_t came = h->k->taken - h->k->base;
    if (h->k->dir == PR_RX && pr_device_known(dev, h) && p->count != UINT64_MAX)
        p->left = came < p->count ? p->count - came : 0;
}

const struct pr_device_ops pr_null_ops = {"null", pr_null_rx, pr_null_tx, NULL, resume};
