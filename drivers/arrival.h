/* A frame as the kernel hands it over becomes wire-true frames in slots: the VLAN tag put back, a partial checksum
 * completed, a super-frame cut (or carried whole, with its facts in the metadata, where the owner of the ring asked).
 *
 * The kernel's facts: struct virtio_net_hdr in front of the frame (packet(7) PACKET_VNET_HDR, IFF_VNET_HDR), the tag in
 * TPACKET's header. A driver whose kernel writes straight into the slots' own buffers, from slot `at` on, says `in_place`:
 * nothing moves at all. */
#ifndef PR_ARRIVAL_H
#define PR_ARRIVAL_H

#include "move.h"

#include <linux/virtio_net.h>

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

static inline int pr_arrival_cut(struct pr_arrival *a, struct pr_ringh *h, uint32_t at, uint32_t left, struct pr_meta *meta)
{
    struct iovec iov[4];
    uint8_t tag[4];
    uint32_t n = pr_arrival_tagged(a, iov, tag), pieces = 0;
    int used = pr_copy_cut(h, at, left, iov, n, meta, &pieces);
    if (used > 0) {
        pr_count(h->row, PR_C_rx_supers, 1);
        pr_count(h->row, PR_C_rx_pieces, pieces);
        pr_count(h->row, PR_C_rx_frames, pieces);
    }
    return used;
}

/* Place one arrival at slot `at`, of which `left` may be filled. Slots used; 0 = no room now, offer it again;
 * -1 = dropped and counted. */
static inline int pr_arrival_place(struct pr_arrival *a, struct pr_ringh *h, uint32_t at, uint32_t left)
{
    const struct virtio_net_hdr *v = &a->vnet;
    uint32_t shift = a->tpid ? 4 : 0;
    if (a->len < 14) {
        pr_count(h->row, PR_C_rx_kernel, 1);
        pr_count(h->row, PR_C_drop_runt, 1);
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
        used = a->whole ? pr_arrival_copy(a, h, at, left, &meta) : pr_arrival_cut(a, h, at, left, &meta);
    } else {
        used = pr_arrival_copy(a, h, at, left, &meta);
    }
    if (used == 0 && left < h->n - 1)
        return 0;
    pr_count(h->row, PR_C_rx_kernel, 1);
    if (used <= 0) { /* 0: all of the ring is free and it does not fit, so it never will */
        enum pr_counter why = gso ? PR_C_drop_gso : meta.vnet_flags ? PR_C_drop_csum : PR_C_drop_trunc;
        pr_count(h->row, why, 1);
        return -1;
    }
    pr_count(h->row, PR_C_rx_frames, !gso || a->whole);
    pr_count(h->row, PR_C_rx_bytes, pr_frame_len(h, at, (uint32_t)used));
    pr_count(h->row, PR_C_vlan_restored, shift != 0);
    pr_count(h->row, PR_C_csum_completed, meta.vnet_flags && !(gso && a->whole));
    return used;
}

/* Call again for more, or stop: the loop that every driver's rx is. */
struct pr_arriving {
    uint32_t at, left, used;
};

static inline struct pr_arriving pr_arriving(const struct pr_ringh *h)
{
    return (struct pr_arriving){.at = h->k->hwtail, .left = pr_rx_space(h)};
}

/* false = no room, the frame is to be offered again */
static inline int pr_arrive(struct pr_arriving *w, struct pr_arrival *a, struct pr_ringh *h)
{
    int used = pr_arrival_place(a, h, w->at, w->left);
    if (used <= 0)
        return used < 0;
    w->at = pr_ahead(h, w->at, (uint32_t)used);
    w->left -= (uint32_t)used;
    w->used += (uint32_t)used;
    return 1;
}

static inline int pr_arrived(const struct pr_arriving *w, struct pr_ringh *h)
{
    if (w->used)
        pr_rx_publish(h, w->used);
    return (int)w->used;
}

#endif
