/* AF_PACKET, sending: a burst of frames, one sendmmsg. A frame that the kernel refuses is dropped under its reason and
 * the burst goes on behind it; a full socket stops the burst and loses nothing. */
#define _GNU_SOURCE
#include "af_packet.h"
#include "vnet.h"

#include <errno.h>

struct burst {
    uint32_t n, slots[PR_AFP_BURST], bytes[PR_AFP_BURST];
    uint32_t bad; /* slots at the end of it that hold nothing sendable */
};

/* Lay out the frames of [i, end). Stops before a slot that an app filled wrongly; `bad` says how many such. The slots
 * that something will happen to now. */
static uint32_t gather(struct pr_afp *q, struct pr_ringh *h, uint32_t i, uint32_t end, struct burst *b)
{
    struct pr_afp_mail *m = q->mail;
    uint32_t head = q->tx_vnet ? 1 : 0, begun = i;
    b->n = b->bad = 0;
    while (b->n < PR_AFP_BURST && i != end) {
        struct iovec *iov = m->iov[b->n];
        uint32_t slots = pr_frame_slots(h, i, end);
        if (!slots || !pr_frame_pieces(h, i, slots, iov + head)) {
            b->bad = slots ? slots : pr_dist(h, i, end);
            return b->n ? pr_dist(h, begun, i) : b->bad;
        }
        if (head) {
            m->vnet[b->n] = pr_vnet_of(pr_meta_of(h->rg, h->ring->slot[i].buf_idx));
            iov[0] = (struct iovec){&m->vnet[b->n], sizeof m->vnet[b->n]};
        }
        m->msg[b->n].msg_hdr = (struct msghdr){.msg_iov = iov, .msg_iovlen = slots + head};
        b->slots[b->n] = slots;
        b->bytes[b->n] = pr_frame_len(h, i, slots);
        i = pr_ahead(h, i, slots);
        b->n++;
    }
    return pr_dist(h, begun, i);
}

/* Why the kernel refused the frame in front. -1 = nothing to do with the frame: keep it, try again later. */
static int reason(struct pr_afp *q, uint32_t bytes)
{
    switch (errno) {
    case EAGAIN:
    case EINTR: return -1;
    case EMSGSIZE: return PR_C_drop_mtu;
    case ENOBUFS: return PR_C_drop_tx_kernel;
    case EINVAL: return bytes < 14 ? PR_C_drop_runt : PR_C_drop_error;
    case ENETDOWN:
    case ENXIO:
    case ENODEV: q->dev.error = errno; return PR_C_drop_down;
    default: return PR_C_drop_error;
    }
}

int pr_afp_tx(struct pr_device *dev, struct pr_ringh *h)
{
    struct pr_afp *q = (struct pr_afp *)dev;
    uint32_t taken = 0, pending;
    while ((pending = pr_tx_pending(h)) != 0) {
        struct burst b;
        pr_tx_doubt(h, gather(q, h, h->k->hwcur, h->k->rhead, &b));
        if (b.n == 0) {
            pr_count(h->row, PR_C_drop_bad_slot, 1);
            pr_tx_done(h, b.bad);
            taken += b.bad;
            continue;
        }
        uint32_t slots = 0, bytes = 0, f = 0;
        if (__atomic_load_n(&q->live->no_carrier, __ATOMIC_RELAXED)) {
            for (; f < b.n; f++)
                slots += b.slots[f];
            pr_count(h->row, PR_C_drop_down, b.n);
            pr_tx_done(h, slots);
            taken += slots;
            q->dev.error = ENETDOWN; /* whoever is told looks at the link again: it may be back */
            continue;
        }
        int sent = sendmmsg(q->tx, q->mail->msg, b.n, MSG_DONTWAIT);
        pr_count(h->row, PR_C_syscalls, 1);
        for (; (int)f < sent; f++) {
            slots += b.slots[f];
            bytes += b.bytes[f];
        }
        if (sent > 0) {
            pr_count(h->row, PR_C_tx_frames, (uint32_t)sent);
            pr_count(h->row, PR_C_tx_bytes, bytes);
        } else {
            int why = reason(q, b.bytes[0]);
            if (why < 0) {
                pr_tx_doubt(h, 0);
                break;
            }
            pr_count(h->row, (enum pr_counter)why, 1);
            slots = b.slots[0];
        }
        pr_tx_done(h, slots);
        taken += slots;
    }
    return (int)taken;
}
