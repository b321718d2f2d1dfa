/* A frame as the kernel hands it over becomes wire-true frames in slots: the VLAN tag put back, a partial checksum
 * completed, a super-frame cut (or carried whole, with its facts in the metadata, where the owner of the ring asked).
 *
 * The kernel's facts: struct virtio_net_hdr in front of the frame (packet(7) PACKET_VNET_HDR, IFF_VNET_HDR), the tag in
 * TPACKET's header. A driver whose kernel writes straight into the slots' own buffers, from slot `at` on, says `in_place`:
 * nothing moves at all.
 *
 * Frames come together in `struct pr_arriving` and are told of a burst at a time, in the order that an heir needs (ring.h):
 * taken, counters, tail. Nothing is in shared memory's books before that, so a driver whose frames stay in the kernel's
 * memory until then loses none by dying. */
#ifndef PR_ARRIVAL_H
#define PR_ARRIVAL_H

#include "move.h"

#include <linux/virtio_net.h>

/* Frames that came since the books were last brought up to date; the names are counters'. */
struct pr_arrivals {
    uint32_t kernel, supers, pieces, frames, gso, csum, trunc, runt, tags, sums;
    uint64_t bytes;
};

struct pr_arrival {
    struct iovec iov[2];
    uint32_t n_iov, len;
    int in_place;      /* no iov: the slots hold it already (not for a frame that is to be cut, or has lost its tag) */
    struct virtio_net_hdr vnet;
    uint64_t ts_ns;
    uint16_t tci, tpid; /* tpid 0 = no tag was taken out */
    uint16_t port, flags;
    int whole;
};

/* The frame with its tag back, as pieces; `tag` is storage for it. Pieces used. */
static inline uint32_t pr_arrival_tagged(const struct pr_arrival *a, struct iovec *iov, uint8_t tag[4])
{
    memcpy(iov, a->iov, sizeof a->iov);
    if (!a->tpid)
        return a->n_iov;
    tag[0] = (uint8_t)(a->tpid >> 8), tag[1] = (uint8_t)a->tpid;
    tag[2] = (uint8_t)(a->tci >> 8), tag[3] = (uint8_t)a->tci;
    iov[0] = (struct iovec){a->iov[0].iov_base, 12};
    iov[1] = (struct iovec){tag, 4};
    iov[2] = (struct iovec){(uint8_t *)a->iov[0].iov_base + 12, a->iov[0].iov_len - 12};
    if (a->n_iov == 2)
        iov[3] = a->iov[1];
    return a->n_iov + 2;
}

/* The bytes are in the slots. */
static inline int pr_arrival_finish(struct pr_ringh *h, uint32_t at, uint32_t used, const struct pr_meta *meta)
{
    if (meta->vnet_flags & VIRTIO_NET_HDR_F_NEEDS_CSUM && !(meta->flags & PR_META_GSO)) {
        struct iovec out[PR_MAX_FRAGS];
        if (!pr_frame_pieces(h, at, used, out) || pr_csum_complete_iov(out, used, meta->csum_start, meta->csum_offset) < 0)
            return -1;
    }
    *pr_meta_of(h->rg, h->ring->slot[at].buf_idx) = *meta;
    return (int)used;
}

static inline int pr_arrival_stay(const struct pr_arrival *a, struct pr_ringh *h, uint32_t at, const struct pr_meta *meta)
{
    uint32_t room = pr_buf_room(h->rg), used = 0;
    for (uint32_t left = a->len, i = at; left; used++, i = pr_next(h, i)) {
        struct pr_slot *s = &h->ring->slot[i];
        s->len = (uint16_t)(left < room ? left : room);
        left -= s->len;
        s->flags = (uint16_t)(PR_NS_BUF_CHANGED | (left ? PR_NS_MOREFRAG : 0));
    }
    return pr_arrival_finish(h, at, used, meta);
}

static inline int pr_arrival_copy(struct pr_arrival *a, struct pr_ringh *h, uint32_t at, uint32_t left, struct pr_meta *meta)
{
    struct iovec iov[4];
    uint8_t tag[4];
    uint32_t n = pr_arrival_tagged(a, iov, tag), len = a->len + (a->tpid ? 4 : 0);
    uint32_t used = pr_copy_in(h, at, left, iov, n, len);
    if (!used)
        return len > (uint64_t)pr_buf_room(h->rg) * PR_MAX_FRAGS ? -1 : 0;
    return pr_arrival_finish(h, at, used, meta);
}

static inline int pr_arrival_cut(struct pr_arrival *a, struct pr_ringh *h, uint32_t at, uint32_t left, struct pr_meta *meta,
                                 struct pr_arrivals *sum)
{
    struct iovec iov[4];
    uint8_t tag[4];
    uint32_t n = pr_arrival_tagged(a, iov, tag), pieces = 0;
    int used = pr_copy_cut(h, at, left, iov, n, meta, &pieces);
    if (used > 0) {
        sum->supers++;
        sum->pieces += pieces;
        sum->frames += pieces;
    }
    return used;
}

/* Place one arrival at slot `at`, of which `left` may be filled. Slots used; 0 = no room now, offer it again;
 * -1 = dropped. */
static inline int pr_arrival_place(struct pr_arrival *a, struct pr_ringh *h, uint32_t at, uint32_t left,
                                   struct pr_arrivals *sum)
{
    const struct virtio_net_hdr *v = &a->vnet;
    uint32_t shift = a->tpid ? 4 : 0;
    if (a->len < 14) {
        sum->kernel++;
        sum->runt++;
        return -1;
    }
    struct pr_meta meta = {.ts_ns = a->ts_ns, .port = a->port, .flags = a->flags};
    if (v->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) {
        meta.vnet_flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
        meta.csum_start = (uint16_t)(v->csum_start + shift);
        meta.csum_offset = v->csum_offset;
    } else if (v->flags & VIRTIO_NET_HDR_F_DATA_VALID) {
        meta.flags |= PR_META_CSUM_DONE;
    }
    int used, gso = v->gso_type != VIRTIO_NET_HDR_GSO_NONE;
    if (gso) {
        meta.flags |= PR_META_GSO;
        meta.gso_type = v->gso_type;
        meta.gso_size = v->gso_size;
        meta.hdr_len = (uint16_t)(v->hdr_len + shift);
    }
    if (a->in_place) {
        used = pr_arrival_stay(a, h, at, &meta);
    } else if (gso) {
        used = a->whole ? pr_arrival_copy(a, h, at, left, &meta) : pr_arrival_cut(a, h, at, left, &meta, sum);
    } else {
        used = pr_arrival_copy(a, h, at, left, &meta);
    }
    if (used == 0 && left < h->n - 1)
        return 0;
    sum->kernel++;
    if (used <= 0) { /* 0: all of the ring is free and it does not fit, so it never will */
        sum->gso += gso;
        sum->csum += !gso && meta.vnet_flags;
        sum->trunc += !gso && !meta.vnet_flags;
        return -1;
    }
    sum->frames += !gso || a->whole;
    sum->bytes += pr_frame_len(h, at, (uint32_t)used);
    sum->tags += shift != 0;
    sum->sums += meta.vnet_flags && !(gso && a->whole);
    return used;
}

/* The loop that every driver's rx is: arrive while there is something on offer, then tell of it. */
struct pr_arriving {
    uint32_t at, left; /* the slot that is filled next, and how many the engine has from there on */
    uint32_t used, new; /* slots filled in this sync, and since the books were brought up to date */
    struct pr_arrivals sum;
};

static inline struct pr_arriving pr_arriving(const struct pr_ringh *h)
{
    return (struct pr_arriving){.at = h->k->hwtail, .left = pr_rx_room(h)};
}

/* Slots for the next frame. The first of a sync may have them all: a super-frame's pieces are more than a burst. */
static inline uint32_t pr_arriving_offer(const struct pr_arriving *w, const struct pr_ringh *h)
{
    if (!h->burst || !w->used)
        return w->left;
    uint32_t more = w->used < h->burst ? h->burst - w->used : 0;
    return w->left < more ? w->left : more;
}

/* false = no room, the frame is to be offered again */
static inline int pr_arrive(struct pr_arriving *w, struct pr_arrival *a, struct pr_ringh *h)
{
    int used = pr_arrival_place(a, h, w->at, pr_arriving_offer(w, h), &w->sum);
    if (used <= 0)
        return used < 0;
    w->at = pr_ahead(h, w->at, (uint32_t)used);
    w->left -= (uint32_t)used;
    w->used += (uint32_t)used;
    w->new += (uint32_t)used;
    return 1;
}

static inline void pr_arrived_count(struct pr_row *row, enum pr_counter c, uint64_t n)
{
    if (n)
        pr_count(row, c, n);
}

/* Tell of what came: it is the app's now. Slots filled in this sync. */
static inline int pr_arrived(struct pr_arriving *w, struct pr_ringh *h)
{
    const struct pr_arrivals *sum = &w->sum;
    if (sum->kernel) {
        pr_rx_taken(h, sum->kernel);
        pr_count(h->row, PR_C_rx_kernel, sum->kernel);
        pr_arrived_count(h->row, PR_C_rx_pieces, sum->pieces);
        pr_arrived_count(h->row, PR_C_rx_supers, sum->supers);
        pr_arrived_count(h->row, PR_C_drop_gso, sum->gso);
        pr_arrived_count(h->row, PR_C_drop_csum, sum->csum);
        pr_arrived_count(h->row, PR_C_drop_trunc, sum->trunc);
        pr_arrived_count(h->row, PR_C_drop_runt, sum->runt);
        pr_count(h->row, PR_C_rx_frames, sum->frames);
        pr_count(h->row, PR_C_rx_bytes, sum->bytes);
        pr_arrived_count(h->row, PR_C_vlan_restored, sum->tags);
        pr_arrived_count(h->row, PR_C_csum_completed, sum->sums);
        w->sum = (struct pr_arrivals){0};
    }
    if (w->new)
        pr_rx_publish(h, w->new);
    w->new = 0;
    return (int)w->used;
}

#endif
