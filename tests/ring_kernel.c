/* The ring's C core over malloc'ed memory, for tests/test_ring.py: nothing here but names for ctypes. */
#include "ring.h"

#include <stdlib.h>
#include <string.h>

struct bench_ring {
    struct pr_region rg;
    struct pr_ringh h;
    struct pr_kring k;
    struct pr_row row;
};

struct bench_ring *ring_new(uint32_t n, uint32_t dir, uint32_t first_buf)
{
    struct bench_ring *b = calloc(1, sizeof *b);
    uint64_t size = pr_carve(&b->rg.g, 4, 1, n, n + 8, 2048);
    b->rg.mem = aligned_alloc(PR_PAGE, size);
    memset(b->rg.mem, 0, size);
    b->k = (struct pr_kring){.num_slots = n, .dir = dir};
    b->h = (struct pr_ringh){.ring = (struct pr_ring *)(b->rg.mem + b->rg.g.ring_ofs), .k = &b->k, .row = &b->row,
                             .rg = &b->rg, .n = n};
    uint32_t bufs[n];
    for (uint32_t i = 0; i < n; i++)
        bufs[i] = first_buf + i;
    pr_ring_deal(&b->h, bufs);
    return b;
}

void ring_free(struct bench_ring *b)
{
    free(b->rg.mem);
    free(b);
}

int ring_enter(struct bench_ring *b) { return b->k.dir == PR_RX ? pr_rx_enter(&b->h) : pr_tx_enter(&b->h); }
uint32_t ring_space(struct bench_ring *b) { return pr_rx_space(&b->h); }
uint32_t ring_pending(struct bench_ring *b) { return pr_tx_pending(&b->h); }
uint32_t ring_ready(struct bench_ring *b) { return pr_ring_ready(&b->h); }
void ring_done(struct bench_ring *b, uint32_t n) { pr_tx_done(&b->h, n); }
void ring_advance(struct bench_ring *b, uint32_t to) { pr_ring_advance(&b->h, to); }

void ring_fill(struct bench_ring *b, const uint16_t *lens, uint32_t n)
{
    for (uint32_t i = 0, at = b->k.hwtail; i < n; i++, at = pr_next(&b->h, at)) {
        b->h.ring->slot[at].len = lens[i];
        b->h.ring->slot[at].flags = PR_NS_BUF_CHANGED;
    }
    pr_rx_publish(&b->h, n);
}

void ring_app_writes(struct bench_ring *b, uint32_t head, uint32_t cur, uint32_t tail)
{
    b->h.ring->head = head;
    b->h.ring->cur = cur;
    b->h.ring->tail = tail;
}

void ring_app_slot(struct bench_ring *b, uint32_t i, uint32_t buf, uint16_t len)
{
    b->h.ring->slot[i].buf_idx = buf;
    b->h.ring->slot[i].len = len;
}

/* head cur tail hwcur hwtail rhead reinits, then (buf, len, flags) a slot */
void ring_state(struct bench_ring *b, uint32_t *out)
{
    const struct pr_ring *r = b->h.ring;
    uint32_t fixed[] = {r->head, r->cur, r->tail, b->k.hwcur, b->k.hwtail, b->k.rhead, b->k.reinits};
    memcpy(out, fixed, sizeof fixed);
    out += sizeof fixed / sizeof *fixed;
    for (uint32_t i = 0; i < b->h.n; i++, out += 3) {
        out[0] = r->slot[i].buf_idx;
        out[1] = r->slot[i].len;
        out[2] = r->slot[i].flags;
    }
}

uint64_t ring_counted_reinits(struct bench_ring *b) { return b->row.v[PR_C_reinits]; }

/* Forward what is ready of `a` into `b`, zero-copy: exchange and hand over. Slots moved. */
uint32_t ring_swap_all(struct bench_ring *a, struct bench_ring *b)
{
    uint32_t n = 0, i = a->h.ring->head, at = b->h.ring->head;
    while (i != a->h.ring->tail && at != b->h.ring->tail) {
        pr_slot_swap(&a->h.ring->slot[i], &b->h.ring->slot[at]);
        i = pr_next(&a->h, i);
        at = pr_next(&b->h, at);
        n++;
    }
    pr_ring_advance(&b->h, at);
    pr_ring_advance(&a->h, i);
    return n;
}
