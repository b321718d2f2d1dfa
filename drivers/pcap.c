/* Frames between rings and capture files: a burst of slots is filled from the reader's buffer, or becomes one batch of
 * records and one write(2). */
#define _GNU_SOURCE
#include "pcap.h"
#include "move.h"

/* ---- receiving ---- */

static struct pr_meta meta_of(const struct pr_pcap_in *p, const struct pr_pcap_frame *f)
{
    struct pr_meta m = {.ts_ns = f->ts_ns, .port = (uint16_t)(p->port < 0 ? (int)f->interface : p->port)};
    if (f->wire_len > f->caplen) {
        m.wire_len = f->wire_len;
        m.flags = PR_META_TRUNCATED;
    }
    if (f->outgoing)
        m.flags |= PR_META_OUTGOING;
    return m;
}

int pr_pcap_rx(struct pr_device *dev, struct pr_ringh *h)
{
    struct pr_pcap_in *p = (struct pr_pcap_in *)dev;
    uint64_t reads = p->from.reads, room = pr_buf_room(h->rg);
    uint64_t longest = room * (h->n - 1 < PR_MAX_FRAGS ? h->n - 1 : PR_MAX_FRAGS); /* that an empty ring holds */
    uint32_t at = h->k->hwtail, left = pr_rx_space(h), frames = 0, bytes = 0, cut = 0, too_long = 0;
    int seen = PR_PCAP_FRAME, breach = 0;
    struct pr_pcap_frame f;
    if (!pr_device_known(dev, h))
        pr_device_meet(dev, h, 0, 0);
    p->from.budget = PR_PCAP_READS;
    while (left && (seen = pr_pcap_next(&p->from, &f)) == PR_PCAP_FRAME) {
        if (f.caplen > longest) {
            too_long++;
            pr_pcap_take(&p->from);
            continue;
        }
        struct iovec whole = {(void *)f.data, f.caplen};
        uint32_t used = pr_copy_in(h, at, left, &whole, 1, f.caplen);
        if (!used) { /* no room for all its pieces now; or there is, and a slot names no buffer */
            breach = f.caplen <= room * left;
            break;
        }
        struct pr_meta *m = pr_meta_of(h->rg, h->ring->slot[at].buf_idx);
        *m = meta_of(p, &f);
        cut += m->flags & PR_META_TRUNCATED ? 1 : 0;
        bytes += f.caplen;
        frames++;
        pr_pcap_take(&p->from);
        at = pr_ahead(h, at, used);
        left -= used;
    }
    if (seen < 0) {
        dev->flags |= PR_DEV_END;
        dev->error = p->from.error;
    }
    pr_rx_taken(h, frames + too_long);
    pr_count(h->row, PR_C_rx_kernel, frames + too_long);
    pr_count(h->row, PR_C_drop_trunc, too_long);
    pr_count(h->row, PR_C_rx_frames, frames);
    pr_count(h->row, PR_C_rx_bytes, bytes);
    pr_count(h->row, PR_C_rx_trunc, cut);
    pr_count(h->row, PR_C_syscalls, p->from.reads - reads);
    uint32_t filled = pr_dist(h, h->k->hwtail, at);
    if (filled)
        pr_rx_publish(h, filled);
    return breach ? pr_ring_reinit(h) : (int)filled;
}

static void in_resume(struct pr_device *dev, struct pr_ringh *h)
{
    struct pr_pcap_reader *r = &((struct pr_pcap_in *)dev)->from;
    struct pr_pcap_frame f;
    if (h->k->dir != PR_RX || !pr_device_known(dev, h))
        return;
    r->at = r->have = r->section = r->n_ifs = 0;
    r->offset = r->skip = r->format = r->eof = 0;
    if (r->waits || lseek(r->fd, 0, SEEK_SET) < 0) {
        r->error = dev->error = EPIPE; /* the next record begins somewhere in what the dead one read */
        return;
    }
    r->budget = UINT32_MAX;
    for (uint64_t n = h->k->taken - h->k->base; n && pr_pcap_next(r, &f) == PR_PCAP_FRAME; n--)
        pr_pcap_take(r);
}

/* ---- sending ---- */

/* The bytes of the frame in `slots` slots, `most` of them at most, to dst. Its length, -1 = a slot was filled wrongly.
 * Each slot is read once: an app of the trust domain may still scribble over it. */
static int64_t copy_out(const struct pr_ringh *h, uint32_t i, uint32_t slots, uint8_t *dst, uint32_t most)
{
    uint32_t len = 0;
    for (; slots; slots--, i = pr_next(h, i)) {
        uint32_t idx = h->ring->slot[i].buf_idx, n = h->ring->slot[i].len;
        if (!pr_buf_ok(h->rg, idx) || n > pr_buf_room(h->rg))
            return -1;
        if (len < most)
            memcpy(dst + len, pr_buf(h->rg, idx), n < most - len ? n : most - len);
        len += n;
    }
    return len;
}

/* Slots of a chain that has no end before `end` or is too long: up to its end, for the next frame to start well. */
static uint32_t bad_run(const struct pr_ringh *h, uint32_t i, uint32_t end)
{
    uint32_t n = 1;
    for (; h->ring->slot[i].flags & PR_NS_MOREFRAG && pr_next(h, i) != end; i = pr_next(h, i))
        n++;
    return n;
}

static uint32_t interface_of(const struct pr_pcap_out *p, uint16_t port)
{
    if (!p->n_ports)
        return 0;
    return port < p->n_ports ? p->interface_of[port] : PR_PCAP_NO_INTERFACE;
}

/* Would a record of n bytes behind `fill` make the file too long? A file takes one frame, however long. */
static int too_big(const struct pr_pcap_out *p, uint32_t fill, uint32_t n)
{
    const struct pr_pcap_writer *w = &p->to;
    uint64_t now = w->bytes + fill;
    return p->max_bytes && now > w->header_len && now + n + (uint64_t)w->n_ifs * PR_PCAPNG_ISB_LEN > p->max_bytes;
}

/* The record of one frame at buf + fill, and what becomes of it when that is written. Nonzero = not into this file. */
static enum pr_pcap_pause build(struct pr_pcap_out *p, const struct pr_ringh *h, uint32_t i, uint32_t fill,
                                uint64_t now, struct pr_pcap_record_of *rec)
{
    struct pr_pcap_writer *w = &p->to;
    uint32_t slots = pr_frame_slots(h, i, h->k->rhead), first = h->ring->slot[i].buf_idx;
    *rec = (struct pr_pcap_record_of){.end = fill, .slots = (uint16_t)(slots ? slots : bad_run(h, i, h->k->rhead)),
                                      .counter = PR_C_drop_bad_slot};
    if (!slots || !pr_buf_ok(h->rg, first))
        return PR_PCAP_GOING;
    const struct pr_meta *m = pr_meta_of(h->rg, first);
    uint32_t interface = interface_of(p, m->port);
    if (interface >= w->n_ifs) {
        rec->counter = PR_C_drop_error;
        return PR_PCAP_GOING;
    }
    struct pr_pcap_to *to = &w->ifs[interface];
    uint64_t ts = m->ts_ns ? m->ts_ns : now;
    if (p->until_ns && ts >= p->until_ns) {
        p->next_ns = ts;
        return PR_PCAP_TIME;
    }
    uint8_t *block = w->buf + fill;
    int64_t len = copy_out(h, i, slots, block + 28, to->snaplen);
    if (len < 0)
        return PR_PCAP_GOING;
    uint32_t caplen = len < to->snaplen ? (uint32_t)len : to->snaplen, wire_len = m->wire_len;
    uint8_t *end = pr_put_packet(block, interface, ts, caplen, wire_len > len ? wire_len : (uint32_t)len,
                                 m->flags & PR_META_OUTGOING ? PR_EPB_OUTBOUND : PR_EPB_INBOUND, to->dropped);
    if (too_big(p, fill, (uint32_t)(end - block))) {
        p->next_ns = ts;
        return PR_PCAP_SIZE;
    }
    rec->told = to->dropped;
    to->dropped = 0;
    rec->end = (uint32_t)(end - w->buf);
    rec->bytes = (uint32_t)len;
    rec->interface = (uint16_t)interface;
    rec->counter = PR_C_tx_frames;
    return PR_PCAP_GOING;
}

/* Build records until the batch is full, the ring is empty or a frame belongs into the next file. Frames built. */
static uint32_t build_batch(struct pr_pcap_out *p, const struct pr_ringh *h)
{
    uint64_t now = pr_pcap_now();
    uint32_t n = 0, fill = 0;
    for (uint32_t i = h->k->hwcur; n < PR_PCAP_BURST && fill < PR_PCAP_BATCH && i != h->k->rhead; n++) {
        enum pr_pcap_pause why = build(p, h, i, fill, now, &p->batch[n]);
        if (why) {
            pr_pcap_pause(p, why);
            break;
        }
        fill = p->batch[n].end;
        i = pr_ahead(h, i, p->batch[n].slots);
    }
    return n;
}

/* What of the ring is in the file: both told by one store. */
static void stand(const struct pr_pcap_out *p, struct pr_ringh *h, uint32_t slots)
{
    uint64_t end = p->to.start + p->to.bytes;
    __atomic_store_n(&h->k->place, end << PR_PCAP_PLACE_BITS | pr_ahead(h, h->k->hwcur, slots), __ATOMIC_RELEASE);
}

/* The file holds the first `whole` bytes of the batch: give the slots of these frames back. */
static uint32_t settle(struct pr_pcap_out *p, struct pr_ringh *h, uint32_t n, uint32_t whole)
{
    uint32_t slots = 0, frames = 0, f = 0;
    uint64_t bytes = 0;
    for (; f < n && p->batch[f].end <= whole; f++)
        slots += p->batch[f].slots;
    stand(p, h, slots);
    pr_tx_done(h, slots); /* before they are counted: an heir may find them in the file while they still lie here */
    for (f = 0; f < n && p->batch[f].end <= whole; f++) {
        const struct pr_pcap_record_of *rec = &p->batch[f];
        if (rec->counter == PR_C_tx_frames) {
            frames++;
            bytes += rec->bytes;
            p->to.ifs[rec->interface].frames++;
        } else {
            pr_count(h->row, rec->counter, 1);
        }
    }
    for (; f < n; f++)
        p->to.ifs[p->batch[f].interface].dropped += p->batch[f].told;
    pr_count(h->row, PR_C_tx_frames, frames);
    pr_count(h->row, PR_C_tx_bytes, bytes);
    return slots;
}

static void refuse(struct pr_pcap_out *p)
{
    p->dev.error = p->to.error;
    pr_pcap_pause(p, PR_PCAP_ERROR);
}

int pr_pcap_tx(struct pr_device *dev, struct pr_ringh *h)
{
    struct pr_pcap_out *p = (struct pr_pcap_out *)dev;
    uint64_t writes = p->to.writes;
    uint32_t taken = 0;
    if (!pr_device_known(dev, h)) {
        stand(p, h, 0);
        pr_device_meet(dev, h, 0, h->k->place);
    }
    while (pr_tx_pending(h) && !(dev->flags & PR_DEV_PAUSED) && pr_pcap_drain(&p->to)) {
        uint32_t n = build_batch(p, h), fill = n ? p->batch[n - 1].end : 0;
        uint32_t whole = fill ? pr_pcap_put(&p->to, fill) : 0;
        taken += settle(p, h, n, whole);
        if (whole < fill)
            break;
    }
    if (p->to.error && p->why != PR_PCAP_CLOSED)
        refuse(p);
    pr_count(h->row, PR_C_syscalls, p->to.writes - writes);
    return (int)taken;
}

/* Now and then, also when nothing is sent: a pipe's reader may have made room. */
static void out_stats(struct pr_device *dev, struct pr_ringh *h)
{
    (void)h;
    struct pr_pcap_out *p = (struct pr_pcap_out *)dev;
    if (!(dev->flags & PR_DEV_PAUSED) && !pr_pcap_drain(&p->to) && p->to.error)
        refuse(p);
}

/* The file may be longer than what was told of: that goes, and its frames are still in the ring. */
static void out_resume(struct pr_device *dev, struct pr_ringh *h)
{
    struct pr_pcap_out *p = (struct pr_pcap_out *)dev;
    struct pr_pcap_writer *w = &p->to;
    if (h->k->dir != PR_TX || !pr_device_known(dev, h) || w->fd < 0)
        return;
    uint64_t end = h->k->place >> PR_PCAP_PLACE_BITS;
    uint32_t slot = (uint32_t)(h->k->place & ((1u << PR_PCAP_PLACE_BITS) - 1)), done = pr_dist(h, h->k->hwcur, slot);
    w->at = w->have = 0;
    w->bytes = end - w->start;
    if (slot < h->n && done <= pr_tx_pending(h))
        pr_tx_done(h, done);
    if (!w->is_file || end < w->start || ftruncate(w->fd, (off_t)end) < 0 || lseek(w->fd, (off_t)end, SEEK_SET) < 0) {
        w->error = EPIPE; /* there may be half a record behind what we know of */
        refuse(p);
    }
}

const struct pr_device_ops pr_pcap_in_ops = {"pcap reader", pr_pcap_rx, NULL, NULL, in_resume};
const struct pr_device_ops pr_pcap_out_ops = {"pcap writer", NULL, pr_pcap_tx, out_stats, out_resume};
