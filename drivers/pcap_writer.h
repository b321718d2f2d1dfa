/* Writing pcapng: whole records only, whatever happens to the disk.
 *
 * A batch of records is built in one buffer and written with one write(2). Nothing waits in the buffer between calls:
 * a frame leaves its ring when its record is in the kernel, so the counts are exact and a crash loses nothing that was
 * counted. Two exceptions prove it:
 *   - a regular file that refuses part of a batch (ENOSPC, EFBIG, EIO) is cut back behind its last whole record;
 *   - a full pipe may have taken half a record: its rest stays in buf[at, have) and goes first, next time. */
#ifndef PR_PCAP_WRITER_H
#define PR_PCAP_WRITER_H

#include "pcap_file.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <time.h>
#include <unistd.h>

#define PR_PCAP_BATCH (256u << 10)                          /* a batch is written when it has grown past this */
#define PR_PCAP_WRITE (PR_PCAP_BATCH + PR_PCAP_CAPLEN_MAX + 64) /* the buffer */
#define PR_PCAPNG_ISB_LEN 112u                              /* with every option */

/* An interface of the file that is written. */
struct pr_pcap_to {
    uint32_t snaplen;
    uint64_t frames, dropped; /* written; dropped since its last frame, to be told with the next */
};

struct pr_pcap_writer {
    int fd; /* -1 = closed */
    int is_file, error;
    uint32_t at, have;     /* the rest of a record that a full pipe took half of */
    uint64_t start, bytes; /* of this file: where our first byte lies; whole records behind it */
    uint64_t start_ns;     /* of the capture: ISBs count from there, whatever the file */
    uint64_t writes;
    uint32_t n_ifs;
    struct pr_pcap_to *ifs;
    uint8_t *buf;    /* PR_PCAP_WRITE bytes */
    uint8_t *header; /* what every file starts with: SHB and IDBs */
    uint32_t header_len;
};

static inline uint64_t pr_pcap_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- blocks: each function writes at p and returns what is behind it ---- */

static inline uint8_t *pr_put_u16(uint8_t *p, uint16_t v) { return (uint8_t *)memcpy(p, &v, 2) + 2; }
static inline uint8_t *pr_put_u32(uint8_t *p, uint32_t v) { return (uint8_t *)memcpy(p, &v, 4) + 4; }
static inline uint8_t *pr_put_ns(uint8_t *p, uint64_t ns)
{
    return pr_put_u32(pr_put_u32(p, (uint32_t)(ns >> 32)), (uint32_t)ns);
}

static inline uint8_t *pr_put_pad(uint8_t *p, uint64_t len)
{
    memset(p, 0, pr_pad4(len) - len);
    return p + (pr_pad4(len) - len);
}

static inline uint8_t *pr_put_option(uint8_t *p, uint16_t code, const void *value, uint16_t len)
{
    p = pr_put_u16(pr_put_u16(p, code), len);
    memcpy(p, value, len);
    return pr_put_pad(p + len, len);
}

/* A text, left out when it is empty. */
static inline uint8_t *pr_put_text(uint8_t *p, uint16_t code, const char *text)
{
    return *text ? pr_put_option(p, code, text, (uint16_t)strlen(text)) : p;
}

/* End the options and the block that began at `block`. */
static inline uint8_t *pr_put_end(uint8_t *p, uint8_t *block)
{
    p = pr_put_u32(p, PR_OPT_END);
    uint32_t total = (uint32_t)(p + 4 - block);
    pr_put_u32(block + 4, total);
    return pr_put_u32(p, total);
}

static inline uint8_t *pr_put_section(uint8_t *p, const char *hardware, const char *os, const char *application)
{
    uint8_t *block = p;
    p = pr_put_u32(p, PR_PCAPNG_SHB) + 4;
    p = pr_put_u16(pr_put_u16(pr_put_u32(p, PR_PCAPNG_ORDER), 1), 0);
    p = pr_put_u32(pr_put_u32(p, UINT32_MAX), UINT32_MAX); /* the section's length is not known */
    p = pr_put_text(p, PR_SHB_HARDWARE, hardware);
    p = pr_put_text(p, PR_SHB_OS, os);
    return pr_put_end(pr_put_text(p, PR_SHB_APPLICATION, application), block);
}

struct pr_pcap_describe {
    const char *name, *description, *filter, *os, *hardware;
    uint64_t speed; /* bit/s, 0 = not known */
    const uint8_t *mac; /* NULL = not known */
    uint32_t snaplen;
};

static inline uint8_t *pr_put_interface(uint8_t *p, const struct pr_pcap_describe *d)
{
    uint8_t *block = p, text_filter = 0;
    p = pr_put_u32(p, PR_PCAPNG_IDB) + 4;
    p = pr_put_u32(pr_put_u16(pr_put_u16(p, PR_PCAP_LINK_ETHERNET), 0), d->snaplen);
    p = pr_put_text(pr_put_text(p, PR_IF_NAME, d->name), PR_IF_DESCRIPTION, d->description);
    if (d->mac)
        p = pr_put_option(p, PR_IF_MAC, d->mac, 6);
    if (d->speed)
        p = pr_put_option(p, PR_IF_SPEED, &d->speed, 8);
    p = pr_put_option(p, PR_IF_TSRESOL, "\x09", 1);
    if (*d->filter) { /* in front of the text: 0 = it is libpcap's language */
        uint16_t len = (uint16_t)(strlen(d->filter) + 1);
        p = pr_put_u16(pr_put_u16(p, PR_IF_FILTER), len);
        *p++ = text_filter;
        memcpy(p, d->filter, len - 1u);
        p = pr_put_pad(p + len - 1, len);
    }
    return pr_put_end(pr_put_text(pr_put_text(p, PR_IF_OS, d->os), PR_IF_HARDWARE, d->hardware), block);
}

/* The block around `caplen` bytes that lie at p + 28 already: they were copied there first, and counted doing it. */
static inline uint8_t *pr_put_packet(uint8_t *p, uint32_t interface, uint64_t ts_ns, uint32_t caplen, uint32_t wire_len,
                                     uint32_t flags, uint64_t dropped)
{
    uint8_t *block = p;
    p = pr_put_u32(pr_put_u32(p, PR_PCAPNG_EPB) + 4, interface);
    p = pr_put_u32(pr_put_u32(pr_put_ns(p, ts_ns), caplen), wire_len);
    p = pr_put_pad(p + caplen, caplen);
    p = pr_put_u32(pr_put_u16(pr_put_u16(p, PR_EPB_FLAGS), 4), flags);
    if (dropped)
        p = pr_put_option(p, PR_EPB_DROPCOUNT, &dropped, 8);
    return pr_put_end(p, block);
}

/* stats[i] < 0: that one is not known and not written. */
static inline uint8_t *pr_put_statistics(uint8_t *p, uint32_t interface, uint64_t start_ns, uint64_t end_ns,
                                         const int64_t stats[PR_PCAP_N_STATS])
{
    uint8_t *block = p, t[8];
    p = pr_put_ns(pr_put_u32(pr_put_u32(p, PR_PCAPNG_ISB) + 4, interface), end_ns);
    pr_put_ns(t, start_ns);
    p = pr_put_option(p, PR_ISB_START, t, 8);
    pr_put_ns(t, end_ns);
    p = pr_put_option(p, PR_ISB_END, t, 8);
    for (uint16_t i = 0; i < PR_PCAP_N_STATS; i++)
        if (stats[i] >= 0)
            p = pr_put_option(p, (uint16_t)(PR_ISB_IFRECV + i), &stats[i], 8);
    return pr_put_end(p, block);
}

/* ---- the descriptor ---- */

/* Ends of whole blocks in buf[0, n): the last one at or before n, or with `after` the first one at or behind n. */
static inline uint32_t pr_pcap_boundary(const uint8_t *buf, uint32_t n, int after)
{
    for (uint32_t end = 0, total;; end += total) {
        if (end >= n)
            return end;
        memcpy(&total, buf + end + 4, 4);
        if (!after && end + total > n)
            return end;
    }
}

static inline ssize_t pr_pcap_write(struct pr_pcap_writer *w, const uint8_t *p, uint32_t n)
{
    ssize_t put;
    do {
        put = write(w->fd, p, n);
        w->writes++;
    } while (put < 0 && errno == EINTR);
    return put;
}

/* The file ends behind its first `bytes` bytes of ours. (What is not a file has no way back, and fails for good.) */
static inline void pr_pcap_cut_back(struct pr_pcap_writer *w, uint64_t bytes)
{
    off_t end = (off_t)(w->start + bytes);
    if (w->is_file && ftruncate(w->fd, end) == 0)
        (void)!lseek(w->fd, end, SEEK_SET);
}

/* Put the batch buf[0, n) into the file. Bytes of it that are now whole records of the file; fewer than n: `error`
 * says why, or a pipe is full. */
static inline uint32_t pr_pcap_put(struct pr_pcap_writer *w, uint32_t n)
{
    uint32_t done = 0;
    while (done < n) {
        ssize_t put = pr_pcap_write(w, w->buf + done, n - done);
        if (put <= 0) {
            w->error = put < 0 && errno == EAGAIN ? 0 : put < 0 ? errno : ENOSPC;
            break;
        }
        done += (uint32_t)put;
    }
    uint32_t whole = pr_pcap_boundary(w->buf, done, !w->is_file && !w->error);
    if (whole < done)
        pr_pcap_cut_back(w, w->bytes + whole);
    if (whole > done) { /* the pipe took half of a record */
        w->at = done;
        w->have = whole;
    }
    w->bytes += whole;
    return whole;
}

/* Bring the rest of a record into a pipe that was full. Nonzero = the buffer is free. */
static inline int pr_pcap_drain(struct pr_pcap_writer *w)
{
    while (w->at < w->have && !w->error) {
        ssize_t put = pr_pcap_write(w, w->buf + w->at, w->have - w->at);
        if (put < 0 && errno == EAGAIN)
            return 0;
        if (put <= 0)
            w->error = put < 0 ? errno : ENOSPC;
        else
            w->at += (uint32_t)put;
    }
    return !w->error;
}

/* Put bytes into the file with patience: its start and its end, which are not on the path. Nonzero = all of them. */
static inline int pr_pcap_push(struct pr_pcap_writer *w, const uint8_t *p, uint32_t n, int timeout_ms)
{
    while (n && !w->error) {
        ssize_t put = pr_pcap_write(w, p, n);
        if (put > 0) {
            p += put;
            n -= (uint32_t)put;
        } else if (put == 0 || errno != EAGAIN) {
            w->error = put < 0 ? errno : ENOSPC;
        } else if (poll(&(struct pollfd){.fd = w->fd, .events = POLLOUT}, 1, timeout_ms) == 0) {
            w->error = ETIMEDOUT;
        }
    }
    if (w->error)
        pr_pcap_cut_back(w, w->bytes);
    return !w->error;
}

/* ---- a file's start and end ---- */

/* Start a file on this descriptor. 0, or the errno that refused its header. */
static inline int pr_pcap_start(struct pr_pcap_writer *w, int fd, int is_file, int timeout_ms)
{
    int flags = fcntl(fd, F_GETFL);
    off_t here = is_file ? lseek(fd, 0, flags >= 0 && flags & O_APPEND ? SEEK_END : SEEK_CUR) : 0;
    w->fd = fd;
    w->is_file = is_file;
    w->error = 0;
    w->at = w->have = 0;
    w->start = here < 0 ? 0 : (uint64_t)here;
    w->bytes = 0;
    if (!w->start_ns)
        w->start_ns = pr_pcap_now();
    if (pr_pcap_push(w, w->header, w->header_len, timeout_ms))
        w->bytes = w->header_len;
    return w->error;
}

/* End the file with one ISB an interface: stats[n_ifs][5], negative = not known; what was delivered we know ourselves.
 * 0, or the errno that refused; the file then ends with its last whole block. */
static inline int pr_pcap_finish(struct pr_pcap_writer *w, int64_t (*stats)[PR_PCAP_N_STATS], int timeout_ms)
{
    if (w->fd < 0)
        return EBADF;
    if (w->error == EPIPE)
        return EPIPE;
    w->error = 0; /* the disk may have room again */
    if (!pr_pcap_push(w, w->buf + w->at, w->have - w->at, timeout_ms))
        return w->error;
    w->at = w->have = 0;
    uint64_t now = pr_pcap_now();
    for (uint32_t i = 0; i < w->n_ifs && !w->error; i++) {
        if (stats[i][PR_PCAP_N_STATS - 1] < 0)
            stats[i][PR_PCAP_N_STATS - 1] = (int64_t)w->ifs[i].frames;
        uint32_t n = (uint32_t)(pr_put_statistics(w->buf, i, w->start_ns, now, stats[i]) - w->buf);
        if (pr_pcap_push(w, w->buf, n, timeout_ms))
            w->bytes += n;
    }
    return w->error;
}

#endif
