/* AF_PACKET, receiving: see af_packet.h for the two ways. */
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

static void drop(struct pr_ringh *h, enum pr_counter why)
{
    pr_count(h->row, PR_C_rx_kernel, 1);
    pr_count(h->row, why, 1);
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

int pr_afp_rx_blocks(struct pr_device *dev, struct pr_ringh *h)
{
    struct pr_afp *q = (struct pr_afp *)dev;
    struct pr_arriving w = pr_arriving(h);
    for (uint32_t blocks = 0; blocks < q->n_pieces && w.left; blocks++) {
        struct tpacket_block_desc *b = (void *)(q->map + (size_t)q->at * q->piece);
        struct tpacket_hdr_v1 *bh = &b->hdr.bh1;
        if (!(__atomic_load_n(&bh->block_status, __ATOMIC_ACQUIRE) & TP_STATUS_USER)) /* pairs with the kernel's retire */
            break;
        if (!q->next_offset) {
            q->next_offset = bh->offset_to_first_pkt;
            q->in_block = bh->num_pkts;
        }
        for (; q->in_block; q->in_block--) {
            struct tpacket3_hdr *f = (void *)((uint8_t *)b + q->next_offset);
            struct pr_arrival a = in_block(q, f);
            if (f->tp_snaplen < f->tp_len) /* longer than the block: never passed on as if it were whole */
                drop(h, PR_C_drop_trunc);
            else if (!pr_arrive(&w, &a, h))
                return pr_arrived(&w, h);
            q->next_offset += f->tp_next_offset;
        }
        q->next_offset = 0;
        __atomic_store_n(&bh->block_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
        q->at = q->at + 1 == q->n_pieces ? 0 : q->at + 1;
    }
    return pr_arrived(&w, h);
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

/* The kernel's copy of a long frame: into the slots themselves where it stays as it is (no tag to put back, nothing to
 * cut), else into `big`. 1 = a holds it, 0 = no room yet, -1 = it is lost. */
static int fetch(struct pr_afp *q, struct pr_ringh *h, struct pr_arriving *w, struct pr_arrival *a, uint32_t len)
{
    struct iovec iov[PR_MAX_FRAGS + 1] = {{&a->vnet, sizeof a->vnet}};
    uint32_t room = pr_buf_room(h->rg), need = (len + room - 1) / room, k = 1;
    a->in_place = a->whole && !a->tpid && need <= PR_MAX_FRAGS;
    if (a->in_place) {
        if (need > w->left)
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
    struct msghdr m = {.msg_iov = iov, .msg_iovlen = k};
    ssize_t n = recvmsg(q->rx, &m, MSG_DONTWAIT);
    pr_count(h->row, PR_C_syscalls, 1);
    if (n != (ssize_t)(len + sizeof a->vnet) || (m.msg_flags & MSG_TRUNC))
        return -1;
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
            drop(h, PR_C_drop_trunc);
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
    for (uint32_t n = 0; n < q->n_pieces && w.left; n++) {
        struct tpacket2_hdr *f = (void *)(q->map + (size_t)q->at * q->piece);
        uint32_t status = __atomic_load_n(&f->tp_status, __ATOMIC_ACQUIRE); /* pairs with the kernel's release of the frame */
        if (!(status & TP_STATUS_USER))
            break;
        struct pr_arrival a = in_frame(q, f, status);
        if (status & TP_STATUS_COPY) {
            if (!arrive_big(q, h, &w, &a, f->tp_len))
                break;
        } else if (f->tp_snaplen < f->tp_len) { /* no memory was left for a copy of it */
            drop(h, PR_C_drop_trunc);
        } else {
            uint8_t *mac = (uint8_t *)f + f->tp_mac;
            a.iov[0] = (struct iovec){mac, a.len = f->tp_snaplen};
            memcpy(&a.vnet, mac - sizeof a.vnet, sizeof a.vnet);
            if (!pr_arrive(&w, &a, h))
                break;
        }
        __atomic_store_n(&f->tp_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
        q->at = q->at + 1 == q->n_pieces ? 0 : q->at + 1;
    }
    return pr_arrived(&w, h);
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
