/* What the offload facts of a frame (struct pr_meta) mean, as functions over bytes: put a stripped VLAN tag back, cut a
 * super-frame into the frames that the wire would have seen; csum.h finishes a checksum that was left to the device.
 *
 * The facts are those of struct virtio_net_hdr (virtio 1.2, 5.1.6; linux/virtio_net.h). They come from the kernel, from
 * behind a TAP or from an app and are not believed: headers are parsed, from a private copy, and must agree. */
#ifndef PR_OFFLOAD_H
#define PR_OFFLOAD_H

#include "csum.h"
#include "layout.h"

#include <linux/virtio_net.h>

#ifndef VIRTIO_NET_HDR_GSO_UDP_L4
#define VIRTIO_NET_HDR_GSO_UDP_L4 5 /* since Linux 6.2 */
#endif

enum { PR_PROTO_TCP = 6, PR_PROTO_UDP = 17 };

static inline uint16_t pr_be16(const uint8_t *p)
{
    return (uint16_t)(p[0] << 8 | p[1]);
}

static inline uint32_t pr_be32(const uint8_t *p)
{
    return (uint32_t)pr_be16(p) << 16 | pr_be16(p + 2);
}

static inline void pr_set_be16(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}

static inline void pr_set_be32(uint8_t *p, uint32_t v)
{
    pr_set_be16(p, v >> 16);
    pr_set_be16(p + 2, v);
}

/* ---- VLAN ---- */

/* Put a stripped tag back behind the addresses. The new length, 0 = no room (or nothing to put it behind). */
static inline size_t pr_vlan_insert(uint8_t *frame, size_t len, size_t room, uint16_t tpid, uint16_t tci)
{
    if (len < 12 || room < 4 || len > room - 4)
        return 0;
    memmove(frame + 16, frame + 12, len - 12);
    pr_set_be16(frame + 12, tpid);
    pr_set_be16(frame + 14, tci);
    return len + 4;
}

/* ---- where the headers of a frame lie ---- */

struct pr_headers {
    uint32_t l3, l4, end; /* offsets of the IP header, the transport header, and the packet's end */
    uint8_t version, proto;
    uint8_t options; /* there are some that may name another destination than the checksum's */
};

static inline int pr_headers_ip4(struct pr_headers *h, const uint8_t *frame, size_t have, size_t len)
{
    const uint8_t *ip = frame + h->l3;
    if (have < h->l3 + 20u || ip[0] < 0x45 || ip[0] > 0x4f || (pr_be16(ip + 6) & 0x3fff)) /* a fragment */
        return -1;
    uint32_t header = (ip[0] & 15) * 4u, total = pr_be16(ip + 2);
    h->l4 = h->l3 + header;
    h->end = total ? h->l3 + total : (uint32_t)len; /* 0: more than 65535 (BIG TCP) */
    h->proto = ip[9];
    h->options = header > 20;
    return 0;
}

static inline int pr_headers_ip6(struct pr_headers *h, const uint8_t *frame, size_t have, size_t len)
{
    enum { HOP_BY_HOP = 0, ROUTING = 43, DESTINATION = 60 };
    const uint8_t *ip = frame + h->l3;
    if (have < h->l3 + 40u || ip[0] >> 4 != 6)
        return -1;
    uint32_t payload = pr_be16(ip + 4);
    h->l4 = h->l3 + 40;
    h->end = payload ? h->l4 + payload : (uint32_t)len;
    h->proto = ip[6];
    if (!payload && h->proto == HOP_BY_HOP) /* a jumbogram (RFC 2675): no piece could keep its option */
        return -1;
    while (h->proto == HOP_BY_HOP || h->proto == ROUTING || h->proto == DESTINATION) {
        if (h->l4 + 8 > have)
            return -1;
        h->options |= h->proto == ROUTING && frame[h->l4 + 3]; /* segments left */
        h->proto = frame[h->l4];
        h->l4 += (frame[h->l4 + 1] + 1u) * 8;
    }
    return 0;
}

/* Find TCP or UDP in an unfragmented IP packet, behind VLAN tags; the first `have` bytes of a frame of `len` are here.
 * 0, or -1: it is something else, or incomplete. */
static inline int pr_headers_find(struct pr_headers *h, const uint8_t *frame, size_t have, size_t len)
{
    *h = (struct pr_headers){.l3 = 14};
    uint16_t type;
    for (;; h->l3 += 4) {
        if (have < h->l3)
            return -1;
        type = pr_be16(frame + h->l3 - 2);
        if (type != 0x8100 && type != 0x88a8 && type != 0x9100)
            break;
    }
    h->version = type == 0x0800 ? 4 : type == 0x86dd ? 6 : 0;
    if (!h->version || (h->version == 4 ? pr_headers_ip4 : pr_headers_ip6)(h, frame, have, len) < 0)
        return -1;
    return h->end <= len && h->l4 <= have && h->l4 <= h->end ? 0 : -1;
}

/* ---- cutting a super-frame: what the kernel's skb_segment does ---- */

#define PR_CUT_HEADERS 256 /* Ethernet, tags, IP with options, TCP with options: 142 for IPv4 */

/* A super-frame being cut. What it was begun with, the iovec array too, must stay until the end. */
struct pr_cut {
    struct pr_cursor from; /* the next byte of payload */
    struct pr_headers h;
    uint32_t header_len;   /* bytes in front of the payload */
    uint32_t left;         /* bytes of payload not yet written */
    uint32_t frames;       /* frames not yet written */
    uint32_t gso_size;     /* payload of a frame; the last may have less */
    uint32_t pseudo;       /* sum of the pseudo header without the length */
    uint32_t seq;
    uint16_t id;
    uint8_t tcp_flags;
    uint8_t hdr[PR_CUT_HEADERS]; /* of the frame written next */
};

enum { PR_TCP_FIN = 0x01, PR_TCP_PSH = 0x08, PR_TCP_CWR = 0x80 };

static inline uint8_t *pr_cut_check(struct pr_cut *c)
{
    return c->hdr + c->h.l4 + (c->h.proto == PR_PROTO_TCP ? PR_TCP_CHECK : PR_UDP_CHECK);
}

/* Do the facts fit the headers? A tunnel's inner packet does not: its outer headers name another protocol. */
static inline int pr_cut_agrees(struct pr_cut *c, const struct pr_meta *m)
{
    int v = c->h.version, tcp = c->h.proto == PR_PROTO_TCP, udp = c->h.proto == PR_PROTO_UDP;
    switch (m->gso_type) {
    case VIRTIO_NET_HDR_GSO_TCPV4:
    case VIRTIO_NET_HDR_GSO_TCPV4 | VIRTIO_NET_HDR_GSO_ECN:
        if (v != 4 || !tcp)
            return 0;
        break;
    case VIRTIO_NET_HDR_GSO_TCPV6:
    case VIRTIO_NET_HDR_GSO_TCPV6 | VIRTIO_NET_HDR_GSO_ECN:
        if (v != 6 || !tcp)
            return 0;
        break;
    case VIRTIO_NET_HDR_GSO_UDP_L4:
        if (!udp)
            return 0;
        break;
    default: /* VIRTIO_NET_HDR_GSO_UDP among them: it makes fragments, and only guests of old still send it */
        return 0;
    }
    if (!(m->vnet_flags & VIRTIO_NET_HDR_F_NEEDS_CSUM))
        return !c->h.options;
    return m->csum_start == c->h.l4 && m->csum_offset == (tcp ? PR_TCP_CHECK : PR_UDP_CHECK);
}

/* The header of the transport protocol: its length, 0 = it is not all here, or not sound. */
static inline uint32_t pr_cut_l4_len(const struct pr_cut *c, size_t have)
{
    const uint8_t *l4 = c->hdr + c->h.l4;
    uint32_t room = (c->h.end < have ? c->h.end : (uint32_t)have) - c->h.l4;
    if (c->h.proto == PR_PROTO_UDP)
        return room >= 8 && pr_be16(l4 + 4) == c->h.end - c->h.l4 ? 8 : 0;
    uint32_t len = room >= 20 ? (l4[12] >> 4) * 4u : 0;
    return len >= 20 && len <= room ? len : 0;
}

/* A partial checksum holds the sum of the right pseudo header, even under a source route; else it is made here. */
static inline uint32_t pr_cut_pseudo(struct pr_cut *c, const struct pr_meta *m)
{
    if (m->vnet_flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) {
        uint16_t field;
        memcpy(&field, pr_cut_check(c), sizeof field);
        return pr_csum_plus(field, ~htobe32(c->h.end - c->h.l4));
    }
    const uint8_t *ip = c->hdr + c->h.l3;
    uint32_t addresses = c->h.version == 4 ? pr_csum_add(ip + 12, 8, 0) : pr_csum_add(ip + 8, 32, 0);
    return pr_csum_plus(addresses, htobe16(c->h.proto));
}

/* Bytes of the longest frame that will come. */
static inline size_t pr_cut_frame_max(const struct pr_cut *c)
{
    return c->header_len + (c->left < c->gso_size ? c->left : c->gso_size);
}

/* How many frames are still to come. */
static inline size_t pr_cut_count(const struct pr_cut *c)
{
    return c->frames;
}

/* Begin to cut the frame that these pieces are. 0, or -1 = it cannot be cut: a type that is not TCPV4, TCPV6 or UDP_L4
 * (tunnels, UFO), a fragment, headers that disagree with the facts, are cut short or take more than PR_CUT_HEADERS. */
static inline int pr_cut_begin(struct pr_cut *c, const struct iovec *iov, size_t n_iov, const struct pr_meta *m)
{
    size_t len = pr_pieces_len(iov, n_iov), have = len < PR_CUT_HEADERS ? len : PR_CUT_HEADERS;
    c->gso_size = __atomic_load_n(&m->gso_size, __ATOMIC_RELAXED); /* once: an app may be writing there */
    if (len > UINT32_MAX || !c->gso_size)
        return -1;
    struct pr_cursor start = {iov, n_iov, 0};
    c->from = start;
    pr_cursor_read(&start, c->hdr, have);
    if (pr_headers_find(&c->h, c->hdr, have, len) < 0 || !pr_cut_agrees(c, m))
        return -1;
    uint32_t l4_len = pr_cut_l4_len(c, have);
    if (!l4_len)
        return -1;
    c->header_len = c->h.l4 + l4_len;
    c->left = c->h.end - c->header_len;
    if (pr_cut_frame_max(c) - c->h.l3 - (c->h.version == 6 ? 40 : 0) > 0xffff)
        return -1;
    c->frames = c->left ? (c->left + c->gso_size - 1) / c->gso_size : 1;
    c->pseudo = pr_cut_pseudo(c, m);
    c->id = pr_be16(c->hdr + c->h.l3 + 4);
    c->seq = pr_be32(c->hdr + c->h.l4 + 4);
    c->tcp_flags = c->h.proto == PR_PROTO_TCP ? c->hdr[c->h.l4 + 13] : 0;
    pr_cursor_skip(&c->from, c->header_len);
    return 0;
}

static inline void pr_cut_patch_ip(struct pr_cut *c, uint32_t l4_len)
{
    uint8_t *ip = c->hdr + c->h.l3;
    uint32_t header = c->h.l4 - c->h.l3;
    if (c->h.version == 6) {
        pr_set_be16(ip + 4, header - 40 + l4_len);
        return;
    }
    pr_set_be16(ip + 2, header + l4_len);
    pr_set_be16(ip + 4, c->id++);
    pr_set_be16(ip + 10, 0);
    uint16_t check = pr_csum_fold(pr_csum_add(ip, header, 0));
    memcpy(ip + 10, &check, sizeof check);
}

static inline void pr_cut_patch_l4(struct pr_cut *c, uint32_t n, uint32_t l4_len, uint32_t payload)
{
    uint8_t *l4 = c->hdr + c->h.l4;
    if (c->h.proto == PR_PROTO_TCP) {
        pr_set_be32(l4 + 4, c->seq);
        l4[13] = c->tcp_flags & (c->frames > 1 ? (uint8_t)~(PR_TCP_FIN | PR_TCP_PSH) : 0xff);
        c->tcp_flags &= (uint8_t)~PR_TCP_CWR; /* once a window (RFC 3168, 6.1.2): in the first only */
        c->seq += n;
    } else {
        pr_set_be16(l4 + 4, l4_len);
    }
    uint8_t *field = pr_cut_check(c);
    pr_set_be16(field, 0);
    uint32_t sum = pr_csum_plus(payload, pr_csum_plus(c->pseudo, htobe32(l4_len)));
    uint16_t check = pr_csum_fold(pr_csum_add(l4, l4_len - n, sum));
    if (!check && c->h.proto == PR_PROTO_UDP)
        check = 0xffff;
    memcpy(field, &check, sizeof check);
}

/* Write the next frame into pieces of memory, filled in order. Its length; 0 = there is none, or it does not fit. */
static inline size_t pr_cut_next(struct pr_cut *c, const struct iovec *dst, size_t n_dst)
{
    uint32_t n = c->left < c->gso_size ? c->left : c->gso_size;
    if (!c->frames || pr_pieces_len(dst, n_dst) < c->header_len + n)
        return 0;
    struct pr_cursor head = {dst, n_dst, 0}, body = head;
    pr_cursor_skip(&body, c->header_len);
    uint32_t payload = pr_cursor_copy(&body, &c->from, n), l4_len = c->header_len - c->h.l4 + n;
    pr_cut_patch_ip(c, l4_len);
    pr_cut_patch_l4(c, n, l4_len, payload);
    pr_cursor_write(&head, c->hdr, c->header_len);
    c->left -= n;
    c->frames--;
    return c->header_len + n;
}

#endif
