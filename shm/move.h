/* A frame goes from a receive ring to a transmit ring: by exchanging buffers where both lie in one region (nothing is
 * copied), by copying where not, or where the original stays (a mirror). A super-frame is cut on the way when the
 * device behind the transmit ring does not carry it whole.
 *
 * `at` is the app's private cursor in the transmit ring: the caller moves it over a burst and then hands the burst
 * over with one pr_ring_advance. */
#ifndef PR_MOVE_H
#define PR_MOVE_H

#include "device.h"
#include "offload.h"

#include <string.h>
#include <sys/uio.h>

static inline uint32_t pr_tx_room(const struct pr_ringh *to, uint32_t at)
{
    return pr_dist(to, at, pr_load(&to->ring->tail));
}

/* The frame's bytes as pieces; false when a slot names no buffer or more than fits one. */
static inline int pr_frame_pieces(const struct pr_ringh *h, uint32_t i, uint32_t slots, struct iovec *iov)
{
    for (uint32_t k = 0; k < slots; k++, i = pr_next(h, i)) {
        const struct pr_slot *s = &h->ring->slot[i];
        uint32_t idx = s->buf_idx, len = s->len;
        if (!pr_buf_ok(h->rg, idx) || len > pr_buf_room(h->rg))
            return 0;
        iov[k] = (struct iovec){pr_buf(h->rg, idx), len};
    }
    return 1;
}

/* Exchange buffers. Slots taken of the transmit ring, 0 = no room. */
static inline uint32_t pr_move_swap(struct pr_ringh *from, uint32_t i, uint32_t slots, struct pr_ringh *to, uint32_t at)
{
    if (pr_tx_room(to, at) < slots)
        return 0;
    for (uint32_t k = 0; k < slots; k++, i = pr_next(from, i), at = pr_next(to, at))
        pr_slot_swap(&from->ring->slot[i], &to->ring->slot[at]);
    return slots;
}

/* Write `len` bytes of pieces into the ring from slot `at`, of which `left` may be filled. Slots used, 0 = no room. */
static inline uint32_t pr_copy_in(struct pr_ringh *to, uint32_t at, uint32_t left, const struct iovec *iov,
                                  size_t n_iov, size_t len)
{
    uint32_t room = pr_buf_room(to->rg), need = len ? (uint32_t)((len + room - 1) / room) : 1;
    if (need > PR_MAX_FRAGS || left < need)
        return 0;
    size_t piece = 0, off = 0;
    for (uint32_t k = 0; k < need; k++, at = pr_next(to, at)) {
        struct pr_slot *s = &to->ring->slot[at];
        if (!pr_buf_ok(to->rg, s->buf_idx))
            return 0;
        uint8_t *dst = pr_buf(to->rg, s->buf_idx);
        uint32_t put = 0, want = (uint32_t)(len < room ? len : room);
        while (put < want && piece < n_iov) {
            size_t take = iov[piece].iov_len - off;
            if (take > want - put)
                take = want - put;
            memcpy(dst + put, (const uint8_t *)iov[piece].iov_base + off, take);
            put += (uint32_t)take;
            off += take;
            if (off == iov[piece].iov_len)
                piece++, off = 0;
        }
        len -= want;
        s->len = (uint16_t)want;
        s->flags = (uint16_t)(PR_NS_BUF_CHANGED | (k + 1 < need ? PR_NS_MOREFRAG : 0));
    }
    return need;
}

/* Cut a super-frame straight into the ring, as above. Slots used, 0 = no room for all of it, -1 = cannot be cut. */
static inline int pr_copy_cut(struct pr_ringh *to, uint32_t at, uint32_t left, const struct iovec *iov, size_t n_iov,
                              const struct pr_meta *meta, uint32_t *pieces)
{
    struct pr_cut cut;
    if (pr_cut_begin(&cut, iov, n_iov, meta) < 0)
        return -1;
    uint32_t room = pr_buf_room(to->rg), used = 0;
    uint32_t frame = (uint32_t)pr_cut_frame_max(&cut), per = (frame + room - 1) / room;
    *pieces = (uint32_t)pr_cut_count(&cut);
    if (per > PR_MAX_FRAGS || (uint64_t)*pieces * per > to->n - 1)
        return -1; /* no ring of this size ever holds it */
    if (*pieces * per > left)
        return 0;
    for (uint32_t p = 0; p < *pieces; p++) {
        struct iovec dst[PR_MAX_FRAGS];
        uint32_t j = at;
        for (uint32_t k = 0; k < per; k++, j = pr_next(to, j)) {
            if (!pr_buf_ok(to->rg, to->ring->slot[j].buf_idx))
                return -1;
            dst[k] = (struct iovec){pr_buf(to->rg, to->ring->slot[j].buf_idx), room};
        }
        size_t len = pr_cut_next(&cut, dst, per);
        struct pr_meta *m = pr_meta_of(to->rg, to->ring->slot[at].buf_idx);
        *m = (struct pr_meta){.ts_ns = meta->ts_ns, .port = meta->port, .hash = meta->hash,
                              .flags = meta->flags & PR_META_OUTGOING};
        for (uint32_t k = 0; len; k++, used++, at = pr_next(to, at)) {
            struct pr_slot *s = &to->ring->slot[at];
            s->len = (uint16_t)(len < room ? len : room);
            len -= s->len;
            s->flags = (uint16_t)(PR_NS_BUF_CHANGED | (len ? PR_NS_MOREFRAG : 0));
        }
    }
    return (int)used;
}

/* Copy a frame, cutting it where `to` cannot carry it. Slots used, 0 = no room, -1 = cannot be carried at all. */
static inline int pr_move_copy(const struct pr_ringh *from, uint32_t i, uint32_t slots, struct pr_ringh *to,
                               uint32_t at, uint32_t *frames)
{
    struct iovec iov[PR_MAX_FRAGS];
    if (!pr_frame_pieces(from, i, slots, iov))
        return -1;
    const struct pr_meta *meta = pr_meta_of(from->rg, from->ring->slot[i].buf_idx);
    *frames = 1;
    if ((meta->flags & PR_META_GSO) && !(to->dev && (to->dev->flags & PR_DEV_CARRIES_GSO)))
        return pr_copy_cut(to, at, pr_tx_room(to, at), iov, slots, meta, frames);
    uint32_t used = pr_copy_in(to, at, pr_tx_room(to, at), iov, slots, pr_frame_len(from, i, slots));
    if (used)
        *pr_meta_of(to->rg, to->ring->slot[at].buf_idx) = *meta;
    return (int)used;
}

#endif
