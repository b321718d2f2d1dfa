/* A TAP queue: a burst in, a burst out, its own drops. The picture is in tap.h. */
#define _GNU_SOURCE
#include "tap.h"
#include "vnet.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const struct pr_device_ops ops = {"tap", pr_tap_rx, pr_tap_tx, pr_tap_stats, pr_tap_resume};

static uint64_t serial_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

void pr_tap_init(struct pr_tap *q, int fd, int quiet, uint16_t port, struct pr_live *live, uint8_t *super)
{
    *q = (struct pr_tap){.dev = {.ops = &ops, .rx_fd = fd, .tx_fd = fd, .flags = PR_DEV_CARRIES_GSO,
                                 .serial = serial_now()}, .fd = fd,
                         .quiet = quiet, .net_dev = -1, .live = live, .port = port, .super = super};
}

static uint32_t mtu(const struct pr_tap *q) { return __atomic_load_n(&q->live->mtu, __ATOMIC_RELAXED); }

static void gone(struct pr_tap *q)
{
    q->dev.error = errno;
    q->gone = 1;
    dup2(q->quiet, q->fd);
}

/* ---- receive ---- */

/* Lay the free slots out for one frame. How many, 0 = the ring has no room. */
static uint32_t lay_out(struct pr_tap *q, const struct pr_ringh *h, const struct pr_arriving *w)
{
    uint32_t room = pr_buf_room(h->rg), longest = q->spread ? PR_TAP_LONGEST : mtu(q) + PR_TAP_HEADERS;
    uint32_t want = (longest + room - 1) / room, k = 0;
    for (uint32_t i = w->at; k < want && k < w->left && k < PR_MAX_FRAGS; k++, i = pr_next(h, i)) {
        uint32_t buf = h->ring->slot[i].buf_idx;
        if (!pr_buf_ok(h->rg, buf))
            break;
        q->iov[k + 1] = (struct iovec){pr_buf(h->rg, buf), room};
    }
    q->iov[k + 1] = (struct iovec){q->super + (size_t)k * room, PR_TAP_LONGEST};
    return k;
}

/* The frame lies in the first `k` slots and the rest of `super`: make it one piece. */
static void bring_together(struct pr_tap *q, uint32_t len, uint32_t k)
{
    uint8_t *to = q->super;
    for (uint32_t i = 1; i <= k && len; i++) {
        size_t n = q->iov[i].iov_len < len ? q->iov[i].iov_len : len;
        memcpy(to, q->iov[i].iov_base, n);
        to += n;
        len -= (uint32_t)n;
    }
}

static void take(struct pr_tap *q, struct pr_ringh *h, struct pr_arriving *w, uint32_t len, uint32_t k, uint64_t ts_ns)
{
    struct pr_arrival a = {.iov = {{q->super, len}}, .n_iov = 1, .len = len, .vnet = q->vnet, .ts_ns = ts_ns,
                           .port = q->port, .whole = q->dev.flags & PR_DEV_WHOLE};
    int cut = q->vnet.gso_type != VIRTIO_NET_HDR_GSO_NONE && !a.whole;
    a.in_place = !cut && len <= (uint64_t)k * pr_buf_room(h->rg);
    if (!a.in_place)
        bring_together(q, len, k);
    if (!pr_arrive(w, &a, h))
        q->held = a;
    if (a.whole && len > mtu(q) + PR_TAP_HEADERS)
        q->spread = PR_TAP_BURST; /* a slot more to offer costs 4 ns a read, a super-frame that did not fit a copy */
    else if (q->spread)
        q->spread--;
}

/* What a read that brought nothing means. 1 = read on. */
static int missed(struct pr_tap *q, struct pr_arriving *w)
{
    switch (errno) {
    case EAGAIN: return 0;
    case EINTR: return 1;
    case EINVAL: /* a kind of super-frame that no virtio-net header can describe; the kernel has freed it */
        w->sum.kernel++;
        w->sum.gso++;
        return 1;
    case EBADFD: gone(q); return 0;
    default: q->dev.error = errno; return 0;
    }
}

static uint64_t real_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

int pr_tap_rx(struct pr_device *dev, struct pr_ringh *h)
{
    struct pr_tap *q = (struct pr_tap *)dev;
    struct pr_arriving w = pr_arriving(h);
    if (!pr_device_known(dev, h))
        pr_device_meet(dev, h, 0, q->queue_drops);
    if (q->held.len && !pr_arrive(&w, &q->held, h))
        return 0;
    q->held.len = 0;
    uint64_t ts_ns = 0;
    uint32_t reads = 0, k;
    while (!q->gone && !q->held.len && reads < PR_TAP_BURST && pr_arriving_offer(&w, h) &&
           (k = lay_out(q, h, &w)) != 0) {
        struct iovec *iov = q->iov;
        iov[0].iov_base = pr_rx_fetch(h, w.sum.kernel);
        iov[0].iov_len = sizeof q->vnet;
        ssize_t n = readv(q->fd, iov, (int)k + 2);
        reads++;
        if (n < 0) {
            if (!missed(q, &w))
                break;
            continue;
        }
        memcpy(&q->vnet, q->iov[0].iov_base, sizeof q->vnet);
        if (!ts_ns)
            ts_ns = real_ns();
        take(q, h, &w, (size_t)n > sizeof q->vnet ? (uint32_t)((size_t)n - sizeof q->vnet) : 0, k, ts_ns);
    }
    pr_count(h->row, PR_C_syscalls, reads);
    return pr_arrived(&w, h);
}

/* ---- send ---- */

enum { SENT = -1, WAIT = -2 };

/* MTU, header, and the tags that an Ethernet carries on top of it. */
static uint32_t longest(const struct pr_tap *q, const struct iovec *first)
{
    uint32_t most = mtu(q) + 14;
    const uint8_t *p = first->iov_base;
    for (size_t at = 12; at + 4 <= first->iov_len && at < 20; at += 4, most += 4)
        if (!(p[at] == 0x81 && p[at + 1] == 0x00) && !(p[at] == 0x88 && p[at + 1] == 0xa8))
            break;
    return most;
}

/* Why the frame must not be written, SENT = it may. */
static int unfit(const struct pr_tap *q, const struct iovec *first, uint32_t bytes, int gso)
{
    if (bytes < 14)
        return PR_C_drop_runt;
    if (gso)
        return bytes > PR_TAP_GSO_MAX ? PR_C_drop_gso : SENT;
    return bytes > mtu(q) + 14 && bytes > longest(q, first) ? PR_C_drop_mtu : SENT;
}

/* Why the kernel refused it. */
static int reason(struct pr_tap *q, int gso)
{
    switch (errno) {
    case EAGAIN:
    case EINTR: return WAIT;
    case EINVAL: return gso ? PR_C_drop_gso : PR_C_drop_error;
    case ENOBUFS:
    case ENOMEM: return PR_C_drop_tx_kernel;
    case EIO: q->dev.error = errno; return PR_C_drop_down;
    case EBADFD: gone(q); return PR_C_drop_down;
    default: return PR_C_drop_error;
    }
}

/* One frame, its pieces in iov[1..slots]: SENT, WAIT, or the counter it was dropped under. */
static int send_one(struct pr_tap *q, uint32_t slots, uint32_t bytes, const struct pr_meta *meta)
{
    int gso = meta->flags & PR_META_GSO, why = unfit(q, &q->iov[1], bytes, gso);
    if (why != SENT)
        return why;
    if (q->gone)
        return PR_C_drop_down;
    q->vnet = pr_vnet_of(meta);
    q->iov[0] = (struct iovec){&q->vnet, sizeof q->vnet};
    return writev(q->fd, q->iov, (int)slots + 1) < 0 ? reason(q, gso) : SENT;
}

int pr_tap_tx(struct pr_device *dev, struct pr_ringh *h)
{
    struct pr_tap *q = (struct pr_tap *)dev;
    uint32_t taken = 0, calls = 0, slots;
    while (pr_tx_pending(h)) {
        uint32_t i = h->k->hwcur, len = 0;
        int why = PR_C_drop_bad_slot;
        int whole = (slots = pr_frame_slots(h, i, h->k->rhead)) != 0;
        if (!whole)
            slots = pr_tx_pending(h);
        pr_tx_doubt(h, slots);
        if (whole && pr_frame_pieces(h, i, slots, q->iov + 1)) {
            len = pr_frame_len(h, i, slots);
            why = send_one(q, slots, len, pr_meta_of(h->rg, h->ring->slot[i].buf_idx));
            calls++;
        }
        if (why == WAIT) {
            pr_tx_doubt(h, 0);
            break;
        }
        if (why == SENT) {
            pr_count(h->row, PR_C_tx_frames, 1);
            pr_count(h->row, PR_C_tx_bytes, len);
        } else {
            pr_count(h->row, (enum pr_counter)why, 1);
        }
        pr_tx_done(h, slots);
        taken += slots;
    }
    pr_count(h->row, PR_C_syscalls, calls);
    return (int)taken;
}

/* ---- what the TAP's own queue dropped ---- */

enum { TX_DROP = 12 }; /* its column in /proc/net/dev, from 1 (proc_pid_net(5)) */

static const char *line_of(const char *text, const char *name)
{
    size_t n = strlen(name);
    for (const char *p = text; p; p = strchr(p, '\n') ? strchr(p, '\n') + 1 : NULL) {
        p += strspn(p, " ");
        if (strncmp(p, name, n) == 0 && p[n] == ':')
            return p + n + 1;
    }
    return NULL;
}

/* Open /proc/net/dev of a namespace that this thread is not in. */
static int net_dev_of(const char *netns, uint64_t inode)
{
    int there = open(netns, O_RDONLY | O_CLOEXEC), home = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC), fd = -1;
    struct stat s;
    if (home >= 0 && there >= 0 && fstat(there, &s) == 0 && s.st_ino == inode && setns(there, CLONE_NEWNET) == 0) {
        fd = open("/proc/thread-self/net/dev", O_RDONLY | O_CLOEXEC);
        if (setns(home, CLONE_NEWNET) < 0)
            abort(); /* every socket from here on would be another network's */
    }
    close(home);
    close(there);
    return fd;
}

/* tx_dropped of the interface, false = it is not there. lseek and read: a worker's jail has no pread. Only the queue that
 * counts for all reads here, so that nobody else moves the offset. */
static int find_drops(int net_dev, const char *name, uint64_t *drops)
{
    char text[8192]; /* a read of a page or more brings whole lines (seq_file) */
    if (lseek(net_dev, 0, SEEK_SET) < 0)
        return 0;
    for (ssize_t n; (n = read(net_dev, text, sizeof text - 1)) > 0;) {
        text[n] = 0;
        const char *p = line_of(text, name);
        if (!p)
            continue;
        for (int column = 1; column <= TX_DROP; column++) {
            char *end;
            *drops = strtoull(p, &end, 10);
            if (end == p)
                return 0;
            p = end;
        }
        return 1;
    }
    return 0;
}

/* From /proc/net/dev, because rtnetlink waits for the rtnl lock, which whoever deletes an interface holds for 16 ms. */
static int read_drops(const struct pr_tap *q, uint64_t *drops)
{
    struct pr_live l = *q->live;
    l.name[sizeof l.name - 1] = l.netns[sizeof l.netns - 1] = 0;
    if (q->net_dev < 0 || !l.netns[0])
        return q->net_dev >= 0 && find_drops(q->net_dev, l.name, drops);
    int fd = net_dev_of(l.netns, l.netns_inode), found = fd >= 0 && find_drops(fd, l.name, drops);
    if (fd >= 0)
        close(fd);
    return found;
}

void pr_tap_stats(struct pr_device *dev, struct pr_ringh *h)
{
    struct pr_tap *q = (struct pr_tap *)dev;
    uint64_t drops;
    if (h->k->dir != PR_RX || !read_drops(q, &drops))
        return;
    pr_count(h->row, PR_C_drop_tap_queue, drops >= q->queue_drops ? drops - q->queue_drops : drops);
    h->k->place = q->queue_drops = drops;
}

void pr_tap_resume(struct pr_device *dev, struct pr_ringh *h)
{
    struct pr_tap *q = (struct pr_tap *)dev;
    if (h->k->dir != PR_RX || !pr_device_known(dev, h))
        return;
    pr_rx_found(h);
    q->held.len = 0;
    q->queue_drops = h->k->place;
}

void pr_tap_anew(struct pr_tap *q)
{
    if (!read_drops(q, &q->queue_drops))
        q->queue_drops = 0;
    q->dev.serial = serial_now();
}
