/* AF_PACKET, receiving: see af_packet.h for the two ways.
 *
 * What is given back to the kernel is marked first, and the first of what is given back goes last. Until then the kernel,
 * which fills its ring in order, stops in front of it. So an heir who finds the mark there knows that all behind it that
 * is still ours is from the dead one's burst; who does not, that the kernel has it all and may have filled it again. */
#define _GNU_SOURCE
#include "af_packet.h"

#include <errno.h>
#include <linux/if_ether.h>

static void tag_back(struct pr_arrival *a, uint32_t status, uint16_t tci, uint16_t tpid)
{
    if (status & TP_STATUS_VLAN_VALID) {
        a->tci = tci;
        a->tpid = status & TP_STATUS_VLAN_TPID_VALID ? tpid : ETH_P_8021Q;
    }
}

/* Longer than what the kernel kept of it: never passed on as if it were whole. */
static void truncated(struct pr_arriving *w)
{
    w->sum.kernel++;
    w->sum.trunc++;
}

/* ---- blocks: TPACKET_V3 ---- */

static struct pr_arrival in_block(const struct pr_afp *q, struct tpacket3_hdr *f)
{
    uint8_t *mac = (uint8_t *)f + f->tp_mac;
    const struct sockaddr_ll *from = (void *)((uint8_t *)f + TPACKET_ALIGN(sizeof *f));
    struct pr_arrival a = {.iov = {{mac, f->tp_snaplen}}, .n_iov = 1, .len = f->tp_snaplen, .port = q->port,
                           .ts_ns = f->tp_sec * 1000000000ull + f->tp_nsec, .whole = q->dev.flags & PR_DEV_WHOLE,
                           .flags = from->sll_pkttype == PACKET_OUTGOING ? PR_META_OUTGOING : 0};
    memcpy(&a.vnet, mac - sizeof a.vnet, sizeof a.vnet);
    tag_back(&a, f->tp_status, f->hv1.tp_vlan_tci, f->hv1.tp_vlan_tpid);
    return a;
}

/* Where the queue stands, in one word, that one store moves: at:12 | next_offset:20 | in_block:16 | frames taken:16. */
static uint64_t place_of(const struct pr_afp *q, uint64_t taken)
{
    return (uint64_t)q->at << 52 | (uint64_t)q->next_offset << 32 | (uint64_t)q->in_block << 16 | (uint16_t)taken;
}

static struct tpacket_hdr_v1 *block_of(const struct pr_afp *q)
{
    return &((struct tpacket_block_desc *)(q->map + (size_t)q->at * q->piece))->hdr.bh1;
}

static void stand(const struct pr_afp *q, struct pr_ringh *h, uint64_t taken)
{
    __atomic_store_n(&h->k->place, place_of(q, taken), __ATOMIC_RELEASE);
}

static void told_of_blocks(const struct pr_afp *q, struct pr_ringh *h, struct pr_arriving *w)
{
    stand(q, h, h->k->taken + w->sum.kernel);
    pr_arrived(w, h);
}

static void next_block(struct pr_afp *q, struct pr_ringh *h)
{
    q->at = q->at + 1 == q->n_pieces ? 0 : q->at + 1;
    q->next_offset = 0;
    stand(q, h, h->k->taken);
}

/* Everything in it was told of. */
static void give_block_back(struct pr_afp *q, struct pr_ringh *h, struct pr_arriving *w, uint32_t status)
{
    uint32_t *at = &block_of(q)->block_status;
    __atomic_store_n(at, status | PR_AFP_MARK, __ATOMIC_RELEASE);
    told_of_blocks(q, h, w);
    __atomic_store_n(at, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
    next_block(q, h);
}

int pr_afp_rx_blocks(struct pr_device *dev, struct pr_ringh *h)
{
    struct pr_afp *q = (struct pr_afp *)dev;
    struct pr_arriving w = pr_arriving(h);
    if (!pr_device_known(dev, h))
        pr_device_meet(dev, h, 0, place_of(q, h->k->taken));
    for (uint32_t blocks = 0; blocks < q->n_pieces && pr_arriving_offer(&w, h); blocks++) {
        struct tpacket_hdr_v1 *bh = block_of(q);
        uint32_t status = __atomic_load_n(&bh->block_status, __ATOMIC_ACQUIRE); /* pairs with the kernel's retire */
        if (!(status & TP_STATUS_USER))
            break;
        if (!q->next_offset) {
            q->next_offset = bh->offset_to_first_pkt;
            q->in_block = bh->num_pkts;
        }
        for (; q->in_block; q->in_block--) {
            struct tpacket3_hdr *f = (void *)(q->map + (size_t)q->at * q->piece + q->next_offset);
            struct pr_arrival a = in_block(q, f);
            if (w.sum.kernel >= PR_BURST_MOST)
                told_of_blocks(q, h, &w);
            if (f->tp_snaplen < f->tp_len)
                truncated(&w);
            else if (!pr_arrive(&w, &a, h))
                goto full;
            q->next_offset += f->tp_next_offset;
        }
        give_block_back(q, h, &w, status);
    }
full:
    if (w.sum.kernel)
        told_of_blocks(q, h, &w);
    return (int)w.used;
}

void pr_afp_resume_blocks(struct pr_device *dev, struct pr_ringh *h)
{
    struct pr_afp *q = (struct pr_afp *)dev;
    uint64_t place = h->k->place;
    if (h->k->dir != PR_RX || !pr_device_known(dev, h))
        return;
    q->at = (uint32_t)(place >> 52);
    q->next_offset = place >> 32 & 0xfffff;
    q->in_block = place >> 16 & 0xffff;
    pr_rx_taken(h, (uint16_t)((uint16_t)place - (uint16_t)h->k->taken));
    if (!q->next_offset || q->in_block)
        return;
    uint32_t *status = &block_of(q)->block_status, ours = TP_STATUS_USER | PR_AFP_MARK;
    if ((__atomic_load_n(status, __ATOMIC_ACQUIRE) & ours) == ours)
        __atomic_store_n(status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
    next_block(q, h);
}

/* ---- frames: TPACKET_V2 ---- */

/* Everything but where its bytes are. */
static struct pr_arrival in_frame(const struct pr_afp *q, struct tpacket2_hdr *f, uint32_t status)
{
    const struct sockaddr_ll *from = (void *)((uint8_t *)f + TPACKET_ALIGN(sizeof *f));
    struct pr_arrival a = {.n_iov = 1, .port = q->port, .ts_ns = f->tp_sec * 1000000000ull + f->tp_nsec,
                           .whole = q->dev.flags & PR_DEV_WHOLE,
                           .flags = from->sll_pkttype == PACKET_OUTGOING ? PR_META_OUTGOING : 0};
    tag_back(&a, status, f->tp_vlan_tci, f->tp_vlan_tpid);
    return a;
}

static struct tpacket2_hdr *frame_at(const struct pr_afp *q, uint32_t at) { return (void *)(q->map + (size_t)at * q->piece); }

static void mark(struct tpacket2_hdr *f)
{
    uint32_t status = __atomic_load_n(&f->tp_status, __ATOMIC_RELAXED);
    __atomic_store_n(&f->tp_status, status | PR_AFP_MARK, __ATOMIC_RELEASE);
}

/* The kernel may fill `n` frames from `first` on again, as far as they are ours. */
static void give_frames_back(struct pr_afp *q, struct pr_ringh *h, uint32_t first, uint32_t n)
{
    while (n--) {
        uint32_t at = first + n < q->n_pieces ? first + n : first + n - q->n_pieces;
        __atomic_store_n(&frame_at(q, at)->tp_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
    }
    __atomic_store_n(&h->k->handed, h->k->taken, __ATOMIC_RELEASE);
}

/* What came since the last time is the app's, and its room the kernel's. */
static void told_of_frames(struct pr_afp *q, struct pr_ringh *h, struct pr_arriving *w)
{
    uint32_t n = w->sum.kernel, first = q->at >= n ? q->at - n : q->at + q->n_pieces - n;
    if (!n)
        return;
    mark(frame_at(q, first));
    pr_arrived(w, h);
    give_frames_back(q, h, first, n);
}

/* The kernel's copy of a long frame: into the slots themselves where it stays as it is (no tag to put back, nothing to
 * cut), else into `big`. 1 = a holds it, 0 = no room yet, -1 = it is lost. It leaves the socket at once, and nothing may
 * come between it and its place in the ring: what was before it is told of first. */
static int fetch(struct pr_afp *q, struct pr_ringh *h, struct pr_arriving *w, struct pr_arrival *a, uint32_t len)
{
    struct iovec iov[PR_MAX_FRAGS + 1];
    uint32_t room = pr_buf_room(h->rg), need = (len + room - 1) / room, k = 1;
    a->in_place = a->whole && !a->tpid && need <= PR_MAX_FRAGS;
    if (a->in_place) {
        if (need > pr_arriving_offer(w, h))
            return 0;
        for (uint32_t i = w->at; k <= need; k++, i = pr_next(h, i)) {
            uint32_t buf = h->ring->slot[i].buf_idx;
            if (!pr_buf_ok(h->rg, buf))
                return 0;
            iov[k] = (struct iovec){pr_buf(h->rg, buf), room};
        }
    } else {
        iov[k++] = (struct iovec){q->big, PR_AFP_LONGEST};
    }
    told_of_frames(q, h, w);
    mark(frame_at(q, q->at));
    iov[0] = (struct iovec){pr_rx_fetch(h, 0), sizeof a->vnet};
    struct msghdr m = {.msg_iov = iov, .msg_iovlen = k};
    ssize_t n = recvmsg(q->rx, &m, MSG_DONTWAIT);
    pr_count(h->row, PR_C_syscalls, 1);
    if (n != (ssize_t)(len + sizeof a->vnet) || (m.msg_flags & MSG_TRUNC))
        return -1;
    memcpy(&a->vnet, iov[0].iov_base, sizeof a->vnet);
    a->iov[0] = (struct iovec){q->big, len};
    a->len = len;
    return 1;
}

/* A frame that is longer than a ring frame. 0 = it has to wait. */
static int arrive_big(struct pr_afp *q, struct pr_ringh *h, struct pr_arriving *w, struct pr_arrival *a, uint32_t len)
{
    if (q->held) {
        a->iov[0] = (struct iovec){q->big, a->len = q->held};
        a->vnet = q->held_vnet;
    } else {
        int got = fetch(q, h, w, a, len);
        if (got < 0)
            truncated(w);
        if (got <= 0)
            return got < 0;
    }
    int done = pr_arrive(w, a, h);
    q->held = done ? 0 : a->len;
    q->held_vnet = a->vnet;
    return done;
}

int pr_afp_rx_frames(struct pr_device *dev, struct pr_ringh *h)
{
    struct pr_afp *q = (struct pr_afp *)dev;
    struct pr_arriving w = pr_arriving(h);
    if (!pr_device_known(dev, h))
        pr_device_meet(dev, h, q->at, 0);
    for (uint32_t n = 0; n < q->n_pieces && pr_arriving_offer(&w, h); n++) {
        struct tpacket2_hdr *f = frame_at(q, q->at);
        uint32_t status = __atomic_load_n(&f->tp_status, __ATOMIC_ACQUIRE); /* pairs with the kernel's release of the frame */
        if (!(status & TP_STATUS_USER))
            break;
        struct pr_arrival a = in_frame(q, f, status);
        if (w.sum.kernel >= PR_BURST_MOST)
            told_of_frames(q, h, &w);
        if (status & TP_STATUS_COPY) {
            if (!arrive_big(q, h, &w, &a, f->tp_len))
                break;
        } else if (f->tp_snaplen < f->tp_len) { /* no memory was left for a copy of it */
            truncated(&w);
        } else {
            uint8_t *mac = (uint8_t *)f + f->tp_mac;
            a.iov[0] = (struct iovec){mac, a.len = f->tp_snaplen};
            memcpy(&a.vnet, mac - sizeof a.vnet, sizeof a.vnet);
            if (!pr_arrive(&w, &a, h))
                break;
        }
        q->at = q->at + 1 == q->n_pieces ? 0 : q->at + 1;
    }
    told_of_frames(q, h, &w);
    return (int)w.used;
}

/* A copy that was fetched for the frame in front is gone with the dead one, and so is the frame. */
void pr_afp_resume_frames(struct pr_device *dev, struct pr_ringh *h)
{
    struct pr_afp *q = (struct pr_afp *)dev;
    struct pr_kring *k = h->k;
    if (k->dir != PR_RX || !pr_device_known(dev, h))
        return;
    pr_rx_found(h);
    uint32_t first = (uint32_t)((k->handed - k->base) % q->n_pieces), n = (uint32_t)(k->taken - k->handed);
    q->at = (uint32_t)((k->taken - k->base) % q->n_pieces);
    q->held = 0;
    uint32_t ours = TP_STATUS_USER | PR_AFP_MARK;
    if (n && n <= q->n_pieces && (__atomic_load_n(&frame_at(q, first)->tp_status, __ATOMIC_ACQUIRE) & ours) == ours)
        give_frames_back(q, h, first, n);
    __atomic_store_n(&k->handed, k->taken, __ATOMIC_RELEASE);
}

void pr_afp_stats(struct pr_device *dev, struct pr_ringh *h)
{
    struct pr_afp *q = (struct pr_afp *)dev;
    struct tpacket_stats_v3 s; /* the kernel starts from zero after each reading: this is the only place that reads */
    socklen_t len = sizeof s, four = sizeof(int);
    int error; /* of an interface that went down; poll(2) says POLLERR, and so never sleeps, until it is taken */
    if (q->rx >= 0)
        getsockopt(q->rx, SOL_SOCKET, SO_ERROR, &error, &four);
    if (q->rx >= 0 && h->k->dir == PR_RX && getsockopt(q->rx, SOL_PACKET, PACKET_STATISTICS, &s, &len) == 0)
        pr_count(h->row, PR_C_drop_kernel, s.tp_drops);
}
