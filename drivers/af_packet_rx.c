/* AF_PACKET, receiving: see af_packet.h for the two ways. */
#define _GNU_SOURCE
#include "af_packet.h"

#include <errno.h>
#include <linux/if_ether.h>

/* The interface is down, gone or moved: remember it, the owner acts. Would-block is no error. */
static int refused(struct pr_afp *q)
{
    if (errno != EAGAIN && errno != EINTR)
        q->dev.error = errno;
    return 0;
}

static void tag_back(struct pr_arrival *a, uint32_t status, uint16_t tci, uint16_t tpid)
{
    if (status & TP_STATUS_VLAN_VALID) {
        a->tci = tci;
        a->tpid = status & TP_STATUS_VLAN_TPID_VALID ? tpid : ETH_P_8021Q;
    }
}

/* ---- TPACKET_V3 ---- */

static struct pr_arrival in_map(const struct pr_afp *q, struct tpacket3_hdr *f)
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

int pr_afp_rx_ring(struct pr_device *dev, struct pr_ringh *h)
{
    struct pr_afp *q = (struct pr_afp *)dev;
    struct pr_arriving w = pr_arriving(h);
    for (uint32_t blocks = 0; blocks < q->n_blocks && w.left; blocks++) {
        struct tpacket_block_desc *b = (void *)(q->map + (size_t)q->block * q->block_size);
        struct tpacket_hdr_v1 *bh = &b->hdr.bh1;
        if (!(__atomic_load_n(&bh->block_status, __ATOMIC_ACQUIRE) & TP_STATUS_USER)) /* pairs with the kernel's retire */
            break;
        if (!q->next_offset) {
            q->next_offset = bh->offset_to_first_pkt;
            q->in_block = bh->num_pkts;
        }
        for (; q->in_block; q->in_block--) {
            struct tpacket3_hdr *f = (void *)((uint8_t *)b + q->next_offset);
            struct pr_arrival a = in_map(q, f);
            if (f->tp_snaplen < f->tp_len) { /* longer than the block: never passed on as if it were whole */
                pr_count(h->row, PR_C_rx_kernel, 1);
                pr_count(h->row, PR_C_drop_trunc, 1);
            } else if (!pr_arrive(&w, &a, h)) {
                return pr_arrived(&w, h);
            }
            q->next_offset += f->tp_next_offset;
        }
        q->next_offset = 0;
        __atomic_store_n(&bh->block_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
        q->block = q->block + 1 == q->n_blocks ? 0 : q->block + 1;
    }
    return pr_arrived(&w, h);
}

/* ---- recvmmsg ---- */

static void lay_out(struct pr_afp *q, const struct pr_ringh *h)
{
    struct pr_afp_mail *m = q->mail;
    for (uint32_t i = 0; i < PR_AFP_BURST; i++) {
        m->iov[i][0] = (struct iovec){&m->vnet[i], sizeof m->vnet[i]};
        m->iov[i][1] = (struct iovec){pr_buf(h->rg, q->landing[i]), pr_buf_room(h->rg)};
        m->iov[i][2] = (struct iovec){q->overflow + (size_t)i * PR_AFP_LONGEST, PR_AFP_LONGEST};
        m->msg[i].msg_hdr = (struct msghdr){.msg_name = &m->from[i], .msg_namelen = sizeof m->from[i], .msg_iov = m->iov[i],
                                            .msg_iovlen = 3, .msg_control = m->control[i],
                                            .msg_controllen = sizeof m->control[i]};
    }
}

static struct pr_arrival in_mail(struct pr_afp *q, uint32_t i, uint32_t room)
{
    struct pr_afp_mail *m = q->mail;
    uint32_t len = m->msg[i].msg_len - (uint32_t)sizeof m->vnet[i];
    uint32_t here = len < room ? len : room;
    struct pr_arrival a = {.iov = {{m->iov[i][1].iov_base, here}, {m->iov[i][2].iov_base, len - here}},
                           .n_iov = len > room ? 2 : 1, .len = len, .landing = &q->landing[i], .vnet = m->vnet[i],
                           .port = q->port, .whole = q->dev.flags & PR_DEV_WHOLE,
                           .flags = m->from[i].sll_pkttype == PACKET_OUTGOING ? PR_META_OUTGOING : 0};
    struct msghdr *mh = &m->msg[i].msg_hdr;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(mh); c; c = CMSG_NXTHDR(mh, c)) {
        if (c->cmsg_level == SOL_PACKET && c->cmsg_type == PACKET_AUXDATA) {
            struct tpacket_auxdata aux;
            memcpy(&aux, CMSG_DATA(c), sizeof aux);
            tag_back(&a, aux.tp_status, aux.tp_vlan_tci, aux.tp_vlan_tpid);
        } else if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SO_TIMESTAMPNS) {
            struct timespec ts;
            memcpy(&ts, CMSG_DATA(c), sizeof ts);
            a.ts_ns = (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
        }
    }
    return a;
}

int pr_afp_rx_recv(struct pr_device *dev, struct pr_ringh *h)
{
    struct pr_afp *q = (struct pr_afp *)dev;
    struct pr_arriving w = pr_arriving(h);
    if (q->first == q->last) {
        if (!w.left)
            return 0;
        lay_out(q, h);
        int n = recvmmsg(q->rx, q->mail->msg, PR_AFP_BURST, MSG_DONTWAIT, NULL);
        pr_count(h->row, PR_C_syscalls, 1);
        if (n <= 0)
            return n < 0 ? refused(q) : 0;
        q->first = 0;
        q->last = (uint32_t)n;
    }
    for (; q->first < q->last; q->first++) {
        struct msghdr *mh = &q->mail->msg[q->first].msg_hdr;
        struct pr_arrival a = in_mail(q, q->first, pr_buf_room(h->rg));
        if ((mh->msg_flags & MSG_TRUNC) || q->mail->msg[q->first].msg_len < sizeof a.vnet) {
            pr_count(h->row, PR_C_rx_kernel, 1);
            pr_count(h->row, PR_C_drop_trunc, 1);
        } else if (!pr_arrive(&w, &a, h)) {
            break;
        }
    }
    return pr_arrived(&w, h);
}

void pr_afp_stats(struct pr_device *dev, struct pr_ringh *h)
{
    struct pr_afp *q = (struct pr_afp *)dev;
    struct tpacket_stats_v3 s; /* the kernel starts from zero after each reading: this is the only place that reads */
    socklen_t len = sizeof s;
    if (q->rx >= 0 && h->k->dir == PR_RX && getsockopt(q->rx, SOL_PACKET, PACKET_STATISTICS, &s, &len) == 0)
        pr_count(h->row, PR_C_drop_kernel, s.tp_drops);
}
