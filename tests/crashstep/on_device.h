/* Receiving from a kernel that is none: the rings that AF_PACKET's sockets share with us (drivers/af_packet_rx.c, whole),
 * and calls that take a frame out at once (a TAP's read). While nobody has noticed the death the kernel goes on, and fills
 * whatever was given back to it. */
#ifndef ON_DEVICE_H
#define ON_DEVICE_H

#include "on_mend.h"

#include "af_packet_rx.c"

enum { PIECES = 6, PIECE = 256, BLOCKS = 3, BLOCK = 512, PER_BLOCK = 2, SERIAL = 77 };

/* In the world's first page, behind the log: shared, and not the victim's. */
static struct kernel {
    uint64_t next;     /* number of the frame that comes next, less one */
    uint32_t at, in;   /* where it goes; frames in the block */
    uint8_t ring[PIECES * PIECE] __attribute__((aligned(64)));
} *kernel;

_Static_assert(sizeof(struct pr_afp) <= sizeof now.queue, "private to each process");
#define afp (*(struct pr_afp *)now.queue)
static int blocks;

static struct pr_device_ops device_ops = {.name = "fake"};

/* A queue as whoever has just been started sees it. */
static struct pr_device *device(int of_blocks)
{
    kernel = (struct kernel *)(W.base + 2048);
    _Static_assert(sizeof *kernel <= 2048, "the page");
    blocks = of_blocks;
    device_ops.rx = of_blocks ? pr_afp_rx_blocks : pr_afp_rx_frames;
    device_ops.resume = of_blocks ? pr_afp_resume_blocks : pr_afp_resume_frames;
    afp = (struct pr_afp){.dev = {.ops = &device_ops, .serial = SERIAL}, .map = kernel->ring, .piece = of_blocks ? BLOCK : PIECE,
                          .n_pieces = of_blocks ? BLOCKS : PIECES, .rx = -1};
    now.ring[0].dev = &afp.dev;
    return &afp.dev;
}

static uint8_t *mac_of(uint64_t seq, uint8_t *mac)
{
    const uint64_t word[] = {seq, ~seq, seq * 0x9e3779b97f4a7c15ull, seq << 32};
    memset(mac - sizeof(struct virtio_net_hdr), 0, sizeof(struct virtio_net_hdr));
    memcpy(mac, word, sizeof word);
    return mac;
}

static int kernel_fills_frame(uint64_t seq)
{
    struct tpacket2_hdr *f = (void *)(kernel->ring + kernel->at * PIECE);
    if (f->tp_status != TP_STATUS_KERNEL)
        return 0;
    f->tp_mac = 80;
    f->tp_snaplen = f->tp_len = frame_len(seq);
    f->tp_sec = 0;
    f->tp_nsec = (uint32_t)seq;
    mac_of(seq, (uint8_t *)f + f->tp_mac);
    f->tp_status = TP_STATUS_USER;
    kernel->at = (kernel->at + 1) % PIECES;
    return 1;
}

/* A block is handed over when it is full. */
static int kernel_fills_block(uint64_t seq)
{
    struct tpacket_hdr_v1 *bh = &((struct tpacket_block_desc *)(kernel->ring + kernel->at * BLOCK))->hdr.bh1;
    if (bh->block_status != TP_STATUS_KERNEL)
        return 0;
    struct tpacket3_hdr *f = (void *)((uint8_t *)bh - offsetof(struct tpacket_block_desc, hdr) + 48 + kernel->in * 224);
    bh->offset_to_first_pkt = 48;
    f->tp_mac = 96;
    f->tp_snaplen = f->tp_len = frame_len(seq);
    f->tp_sec = 0;
    f->tp_nsec = (uint32_t)seq;
    f->tp_next_offset = kernel->in + 1 < PER_BLOCK ? 224 : 0;
    mac_of(seq, (uint8_t *)f + f->tp_mac);
    if (++kernel->in < PER_BLOCK)
        return 1;
    bh->num_pkts = PER_BLOCK;
    bh->block_status = TP_STATUS_USER;
    kernel->in = 0;
    kernel->at = (kernel->at + 1) % BLOCKS;
    return 1;
}

static uint32_t kernel_fills(uint32_t n)
{
    uint32_t done = 0;
    for (; done < n && (blocks ? kernel_fills_block : kernel_fills_frame)(kernel->next + 1); done++)
        kernel->next++;
    return done;
}

/* The app looks at what there is, and lets go of it. The stamp is all that the metadata can carry. */
static void looks(struct pr_ringh *h)
{
    uint32_t begun = h->ring->head, n = pr_ring_ready(h);
    pr_ring_advance(h, pr_ahead(h, begun, n));
    for (uint32_t i = 0; i < n; i++) {
        const struct pr_slot *s = ring_slot(h, begun + i);
        struct pr_meta *m = pr_meta_of(&W.rg, s->buf_idx);
        m->hash = (uint32_t)m->ts_ns;
        see(s->buf_idx, s->len);
    }
    pr_count(h->row, PR_C_delivered, n);
}

static void receives(void)
{
    if (pr_rxsync(&now.ring[0]) < 0)
        bad(STUCK, "receive ring broken");
}

/* par.at frames went by; queued are with the app, n with the kernel. */
static void device_used(int of_blocks)
{
    uint32_t at = par.at;
    par.at = 0;
    mend_rings_used();
    par.at = at;
    device(of_blocks);
    for (uint32_t i = 0; i < par.at * (of_blocks ? PER_BLOCK : 1); i++) {
        kernel_fills(1);
        receives();
        looks(&now.ring[0]);
    }
    memset(W.log, 0, LOG * sizeof *W.log);
    uint64_t first = kernel->next + 1;
    uint32_t with_app = kernel_fills(par.queued);
    receives();
    if (pr_ring_ready(&now.ring[0]) != with_app)
        give_up("a block that is not full");
    expect(first, with_app, ALL, 0);
    uint32_t more = kernel_fills(par.n);
    expect(first + with_app, more, SOME, more);
}

static void device_frames(void) { device_used(0); }
static void device_blocks(void) { device_used(1); }

/* What comes meanwhile is nobody's burst: none of it may be lost. */
static void device_kernel_goes_on(void)
{
    uint64_t first = kernel->next + 1;
    uint32_t n = kernel_fills(4);
    expect(first, n, ALL, 0);
}

static void device_heir(void)
{
    mend_heir();
    device(blocks);
    afp.at = 1, afp.in_block = 7, afp.next_offset = 99, afp.held = 5; /* what it believes is anything */
    pr_resume(&now.ring[0]);
    mend_books(0);
}

/* Nothing is declared that was not lost, and the other way. */
static void device_exact(void)
{
    uint64_t sent = 0, seen = 0;
    for (uint32_t g = 0; g < now.groups; g++)
        sent += now.group[g].n;
    while (seen < LOG && W.log[seen])
        seen++;
    if (sent != seen + mend_crashed())
        bad(sent > seen ? LOST : DUPLICATE, "%lu frames, %lu seen, %lu declared", sent, seen, mend_crashed());
}

static void device_ends(void)
{
    mend_books(1);
    device_exact();
    check_buffers();
    check_frames();
    memset(now.ring, 0, sizeof now.ring);
    replace(A);
    check_buffers();
    check_all_home();
}

static void device_end(void)
{
    uint64_t first = kernel->next + 1;
    uint32_t sent = 0;
    check_buffers();
    for (uint32_t round = 0; round < PATIENCE && sent < 4 * SLOTS; round++) {
        looks(&now.ring[0]);
        receives();
        sent += kernel_fills(2);
    }
    for (uint32_t round = 0; round < 4; round++) {
        looks(&now.ring[0]);
        receives();
    }
    if (sent < 4 * SLOTS)
        bad(STUCK, "the kernel could place %u frames in %u rounds", sent, PATIENCE);
    expect(first, sent, ALL, 0);
    device_ends();
}

/* ---- calls that take a frame out at once ---- */

/* The frame leaves the kernel, and its first bytes are here, in one instruction: nobody is killed inside of a call. */
typedef uint64_t cell __attribute__((vector_size(16)));

static uint64_t fetch_next(const struct pr_ringh *h)
{
    uint64_t next = 1, seq;
    for (int i = 0; i < 2; i++) {
        memcpy(&seq, h->k->fetched[i], sizeof seq);
        next = seq + 1 > next && seq != ~0ull ? seq + 1 : next;
    }
    return next;
}

static void fetch_burst(uint32_t n)
{
    struct pr_ringh *h = &now.ring[0];
    uint32_t at = h->k->hwtail;
    pr_rx_enter(h);
    n = n < pr_rx_space(h) ? n : pr_rx_space(h);
    for (uint32_t i = 0; i < n; i++, at = pr_next(h, at)) {
        uint64_t seq = fetch_next(h);
        struct pr_slot *s = &h->ring->slot[at];
        *(volatile cell *)pr_rx_fetch(h, i) = (cell){seq, 0};
        stamp(s->buf_idx, seq);
        s->len = frame_len(seq);
        s->flags = PR_NS_BUF_CHANGED;
        pr_meta_of(&W.rg, s->buf_idx)->ts_ns = seq;
    }
    pr_rx_taken(h, n);
    pr_count(h->row, PR_C_rx_kernel, n);
    pr_count(h->row, PR_C_rx_frames, n);
    pr_rx_publish(h, n);
}

static void fetch_used(void)
{
    uint32_t at = par.at;
    par.at = 0;
    mend_rings_used();
    par.at = at;
    kernel = NULL;
    memset(now.ring[0].k->fetched, 0xff, sizeof now.ring[0].k->fetched);
    for (uint32_t i = 0; i < par.at; i++) {
        fetch_burst(1);
        looks(&now.ring[0]);
    }
    memset(W.log, 0, LOG * sizeof *W.log);
    uint64_t first = fetch_next(&now.ring[0]);
    fetch_burst(par.queued);
    expect(first, par.queued, ALL, 0);
    now.seq = first + par.queued;
}

static void fetch_turn(void) { fetch_burst(par.n); }

static void fetch_end(void)
{
    uint64_t then = fetch_next(&now.ring[0]);
    check_buffers();
    expect(now.seq, then - now.seq, SOME, par.n);
    while (fetch_next(&now.ring[0]) < then + 3 * SLOTS) {
        looks(&now.ring[0]);
        fetch_burst(2);
    }
    looks(&now.ring[0]);
    expect(then, 3 * SLOTS, ALL, 0);
    device_ends();
}

#define AFP(name, cases, set_up) {name, cases, set_up, receives, device_kernel_goes_on, device_heir, device_end, 0}
static const struct scenario device_scenarios[] = {
    AFP("device rx frames", "1,0,0 3,3,4 6,1,11 4,5,2", device_frames),
    AFP("device rx blocks", "2,0,0 4,2,1 6,0,2 2,4,4", device_blocks),
    {"device rx fetch", "1,0,0 4,2,3 7,0,5 3,4,6", fetch_used, fetch_turn, NULL, mend_heir, fetch_end, 0},
};

#endif
