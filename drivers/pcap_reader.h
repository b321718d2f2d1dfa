/* Reading pcap and pcapng from a descriptor that need not seek (a pipe, stdin), through one buffer of bounded size.
 * Nothing in the file is believed: every length is compared in 64 bits with what is there before it is used.
 *
 *   buf   |..... passed ......|== frame shown ==|.... more of the file ....|      free      |
 *         0                   at                at+step                    have           PR_PCAP_READ
 *
 * pr_pcap_next shows a frame, again and again until pr_pcap_take passes it: a ring without room loses nothing. */
#ifndef PR_PCAP_READER_H
#define PR_PCAP_READER_H

#include "pcap_file.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <unistd.h>

#define PR_PCAP_READ (512u << 10) /* more than the longest frame and its header */
#define PR_PCAP_READS 16          /* read(2)s a call of pr_pcap_next's caller may cost */
#define PR_PCAP_INTERFACES 4096   /* of all sections together */

_Static_assert(PR_PCAP_READ > PR_PCAP_CAPLEN_MAX + 64, "a frame fits the buffer");

enum pr_pcap_seen { PR_PCAP_BAD = -2, PR_PCAP_END = -1, PR_PCAP_LATER = 0, PR_PCAP_FRAME = 1, PR_PCAP_GO_ON = 2 };

/* An interface of the file. A time stamp counts units of 10^-n (ns = units * mul / div) or 2^-n seconds (shift). */
struct pr_pcap_from {
    uint64_t mul, div;
    int64_t offset_s;
    uint64_t frames, drops; /* seen; dropped before them, as their options say */
    uint64_t stats[PR_PCAP_N_STATS];
    uint64_t speed;
    uint32_t snaplen;
    uint16_t linktype;
    uint8_t shift, has_stats; /* bit i: stats[i] was given */
    char name[64];
};

struct pr_pcap_reader {
    int fd;
    uint8_t waits;    /* not a regular file: ask before reading */
    uint8_t any_link; /* show frames of any link type, not only Ethernet */
    uint8_t format, swapped, eof;
    uint32_t at, have, step;
    uint32_t budget;   /* reads left in this call */
    uint32_t shown_if; /* of the frame shown: its interface, the drops before it */
    uint64_t shown_drops;
    uint64_t offset; /* of buf[at] in the file */
    uint64_t skip;   /* bytes to pass over before the next record */
    uint64_t reads;
    uint32_t section, n_ifs; /* interfaces of the current section start at `section` */
    int error;               /* errno of read(2), EBADMSG: the file is bad */
    char trouble[160];       /* what is wrong with it, and where */
    uint8_t *buf;            /* PR_PCAP_READ bytes */
    struct pr_pcap_from *ifs; /* PR_PCAP_INTERFACES of them */
};

struct pr_pcap_frame {
    const uint8_t *data;
    uint64_t ts_ns;
    uint32_t caplen, wire_len, interface;
    int outgoing;
};

static inline uint16_t pr_pcap_u16(const struct pr_pcap_reader *r, const uint8_t *p)
{
    uint16_t v;
    memcpy(&v, p, 2);
    return r->swapped ? __builtin_bswap16(v) : v;
}

static inline uint32_t pr_pcap_u32(const struct pr_pcap_reader *r, const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return r->swapped ? __builtin_bswap32(v) : v;
}

static inline uint64_t pr_pcap_u64(const struct pr_pcap_reader *r, const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
    return r->swapped ? __builtin_bswap64(v) : v;
}

#define PR_PCAP_REFUSE(r, ...)                                                                                         \
    (snprintf((r)->trouble, sizeof(r)->trouble, __VA_ARGS__), (r)->error = EBADMSG, PR_PCAP_BAD)
#define PR_AT(r) ((unsigned long long)(r)->offset)

/* Have n bytes at buf[at]: GO_ON. Else LATER, END (the file has fewer) or BAD (read failed). */
static inline int pr_pcap_want(struct pr_pcap_reader *r, uint32_t n)
{
    while (r->have - r->at < n) {
        if (r->eof)
            return PR_PCAP_END;
        if (r->budget == 0)
            return PR_PCAP_LATER;
        r->budget--;
        if (r->waits && poll(&(struct pollfd){.fd = r->fd, .events = POLLIN}, 1, 0) == 0)
            return PR_PCAP_LATER;
        memmove(r->buf, r->buf + r->at, r->have - r->at);
        r->have -= r->at;
        r->at = 0;
        ssize_t got = read(r->fd, r->buf + r->have, PR_PCAP_READ - r->have);
        r->reads++;
        if (got < 0 && (errno == EAGAIN || errno == EINTR))
            return PR_PCAP_LATER;
        if (got < 0) {
            r->error = errno;
            snprintf(r->trouble, sizeof r->trouble, "offset=%llu read: %s", PR_AT(r), strerror(errno));
            return PR_PCAP_BAD;
        }
        r->eof = got == 0;
        r->have += (uint32_t)got;
    }
    return PR_PCAP_GO_ON;
}

/* As above, where the file may not end any more. */
static inline int pr_pcap_need(struct pr_pcap_reader *r, uint32_t n)
{
    int rc = pr_pcap_want(r, n);
    if (rc != PR_PCAP_END)
        return rc;
    return PR_PCAP_REFUSE(r, "offset=%llu the file ends %u bytes into a record of %u or more", PR_AT(r),
                          r->have - r->at, n);
}

/* Pass over what was shown or is not wanted; what is not in the buffer yet is passed over as it comes. */
static inline void pr_pcap_pass(struct pr_pcap_reader *r, uint64_t n)
{
    uint32_t here = n < r->have - r->at ? (uint32_t)n : r->have - r->at;
    r->at += here;
    r->offset += here;
    r->skip = n - here;
}

static inline int pr_pcap_skipped(struct pr_pcap_reader *r)
{
    while (r->skip) {
        int rc = pr_pcap_want(r, 1);
        if (rc == PR_PCAP_END)
            return PR_PCAP_REFUSE(r, "offset=%llu the file ends %llu bytes before its last block does", PR_AT(r),
                                  (unsigned long long)r->skip);
        if (rc != PR_PCAP_GO_ON)
            return rc;
        pr_pcap_pass(r, r->skip);
    }
    return PR_PCAP_GO_ON;
}

/* ---- time ---- */

/* if_tsresol: 10^-n, or 2^-n with the high bit set. */
static inline void pr_pcap_resolution(struct pr_pcap_from *f, uint8_t tsresol)
{
    uint8_t n = tsresol & 0x7f;
    f->shift = tsresol & 0x80 ? n : 0;
    f->mul = tsresol & 0x80 ? 1000000000u : 1;
    f->div = 1;
    if (tsresol & 0x80)
        return;
    for (; n < 9; n++)
        f->mul *= 10;
    for (; n > 9 && f->div; n--)
        f->div = f->div > UINT64_MAX / 10 ? 0 : f->div * 10; /* 0 = units so small that 64 bits of them are no second */
}

/* Nanoseconds since the epoch, held to what 64 bits can say. */
static inline uint64_t pr_pcap_ns(const struct pr_pcap_from *f, uint64_t units)
{
    __extension__ typedef __int128 wide;
    wide ns = (wide)units * f->mul; /* < 2^94 */
    if (f->div != 1)
        ns = f->div ? ns / f->div : 0;
    ns = (ns >> f->shift) + (wide)f->offset_s * 1000000000;
    return ns < 0 ? 0 : ns > (wide)UINT64_MAX ? UINT64_MAX : (uint64_t)ns;
}

/* ---- pcap ---- */

static inline int pr_pcap_header(struct pr_pcap_reader *r, uint32_t magic)
{
    int rc = pr_pcap_need(r, 24);
    if (rc != PR_PCAP_GO_ON)
        return rc;
    const uint8_t *p = r->buf + r->at;
    r->swapped = magic != PR_PCAP_US && magic != PR_PCAP_NS;
    if (pr_pcap_u16(r, p + 4) != 2)
        return PR_PCAP_REFUSE(r, "offset=4 version %u.%u is not 2", pr_pcap_u16(r, p + 4), pr_pcap_u16(r, p + 6));
    r->format = 1;
    r->n_ifs = 1;
    r->ifs[0] = (struct pr_pcap_from){.snaplen = pr_pcap_u32(r, p + 16), .linktype = (uint16_t)pr_pcap_u32(r, p + 20)};
    pr_pcap_resolution(&r->ifs[0], pr_pcap_u32(r, p) == PR_PCAP_NS ? 9 : 6);
    pr_pcap_pass(r, 24);
    return PR_PCAP_GO_ON;
}

static inline int pr_pcap_record(struct pr_pcap_reader *r, struct pr_pcap_frame *f)
{
    int rc = pr_pcap_want(r, 16);
    if (rc == PR_PCAP_END && r->have == r->at)
        return rc;
    if (rc != PR_PCAP_GO_ON)
        return rc == PR_PCAP_END ? pr_pcap_need(r, 16) : rc;
    const uint8_t *p = r->buf + r->at;
    uint32_t caplen = pr_pcap_u32(r, p + 8);
    if (caplen > PR_PCAP_CAPLEN_MAX)
        return PR_PCAP_REFUSE(r, "offset=%llu caplen=%u > %u", PR_AT(r), caplen, PR_PCAP_CAPLEN_MAX);
    if ((rc = pr_pcap_need(r, 16 + caplen)) != PR_PCAP_GO_ON)
        return rc;
    p = r->buf + r->at;
    uint64_t unit = r->ifs[0].mul == 1 ? 1000000000 : 1000000;
    *f = (struct pr_pcap_frame){.data = p + 16, .caplen = caplen, .wire_len = pr_pcap_u32(r, p + 12),
                                .ts_ns = pr_pcap_ns(&r->ifs[0], pr_pcap_u32(r, p) * unit + pr_pcap_u32(r, p + 4))};
    r->step = 16 + caplen;
    return PR_PCAP_FRAME;
}

/* ---- pcapng ---- */

struct pr_option {
    const uint8_t *value;
    uint16_t code, len;
};

/* The next option of [*p, end): 1, 0 at the end of the list, -1 when its value is not all there. */
static inline int pr_pcap_option(const struct pr_pcap_reader *r, const uint8_t **p, const uint8_t *end,
                                 struct pr_option *o)
{
    if (end - *p < 4)
        return 0;
    *o = (struct pr_option){.value = *p + 4, .code = pr_pcap_u16(r, *p), .len = pr_pcap_u16(r, *p + 2)};
    if (o->code == PR_OPT_END)
        return 0;
    if ((uint64_t)(end - o->value) < pr_pad4(o->len))
        return -1;
    *p = o->value + pr_pad4(o->len);
    return 1;
}

/* A block while it is looked at: its body without the two lengths. */
struct pr_block {
    const uint8_t *body, *end;
    uint32_t type, total;
    int cut; /* the buffer holds its beginning only: its options may end anywhere */
};

/* After the last option: `rc`, or BAD when it was cut short. */
static inline int pr_pcap_options_end(struct pr_pcap_reader *r, const struct pr_block *b, const struct pr_option *o,
                                      int more, int rc)
{
    if (!more || b->cut)
        return rc;
    return PR_PCAP_REFUSE(r, "offset=%llu option %u of %u bytes passes the end of its block", PR_AT(r), o->code,
                          o->len);
}

static inline int pr_pcap_section(struct pr_pcap_reader *r, const struct pr_block *b)
{
    if (b->end - b->body < 16)
        return PR_PCAP_REFUSE(r, "offset=%llu section header of %u bytes", PR_AT(r), b->total);
    if (pr_pcap_u16(r, b->body + 4) != 1)
        return PR_PCAP_REFUSE(r, "offset=%llu version %u.%u is not 1", PR_AT(r), pr_pcap_u16(r, b->body + 4),
                              pr_pcap_u16(r, b->body + 6));
    r->section = r->n_ifs;
    return PR_PCAP_GO_ON;
}

static inline int pr_pcap_interface(struct pr_pcap_reader *r, const struct pr_block *b)
{
    if (b->end - b->body < 8)
        return PR_PCAP_REFUSE(r, "offset=%llu interface block of %u bytes", PR_AT(r), b->total);
    if (r->n_ifs == PR_PCAP_INTERFACES)
        return PR_PCAP_REFUSE(r, "offset=%llu more than %u interfaces", PR_AT(r), PR_PCAP_INTERFACES);
    struct pr_pcap_from *f = &r->ifs[r->n_ifs];
    *f = (struct pr_pcap_from){.linktype = pr_pcap_u16(r, b->body), .snaplen = pr_pcap_u32(r, b->body + 4)};
    pr_pcap_resolution(f, 6);
    const uint8_t *p = b->body + 8;
    struct pr_option o;
    int more;
    while ((more = pr_pcap_option(r, &p, b->end, &o)) > 0) {
        if (o.code == PR_IF_TSRESOL && o.len == 1)
            pr_pcap_resolution(f, o.value[0]);
        else if (o.code == PR_IF_TSOFFSET && o.len == 8)
            f->offset_s = (int64_t)pr_pcap_u64(r, o.value);
        else if (o.code == PR_IF_SPEED && o.len == 8)
            f->speed = pr_pcap_u64(r, o.value);
        else if (o.code == PR_IF_NAME)
            memcpy(f->name, o.value, o.len < sizeof f->name ? o.len : sizeof f->name - 1);
    }
    r->n_ifs++;
    return pr_pcap_options_end(r, b, &o, more, PR_PCAP_GO_ON);
}

static inline int pr_pcap_statistics(struct pr_pcap_reader *r, const struct pr_block *b)
{
    if (b->end - b->body < 12)
        return PR_PCAP_REFUSE(r, "offset=%llu statistics block of %u bytes", PR_AT(r), b->total);
    uint64_t i = (uint64_t)r->section + pr_pcap_u32(r, b->body);
    if (i >= r->n_ifs)
        return PR_PCAP_GO_ON; /* of nothing we know: no frame is wrong for it */
    const uint8_t *p = b->body + 12;
    struct pr_option o;
    int more;
    while ((more = pr_pcap_option(r, &p, b->end, &o)) > 0)
        if (o.code >= PR_ISB_IFRECV && o.code <= PR_ISB_USRDELIV && o.len == 8) {
            r->ifs[i].stats[o.code - PR_ISB_IFRECV] = pr_pcap_u64(r, o.value);
            r->ifs[i].has_stats |= (uint8_t)(1 << (o.code - PR_ISB_IFRECV));
        }
    return pr_pcap_options_end(r, b, &o, more, PR_PCAP_GO_ON);
}

static inline int pr_pcap_packet_options(struct pr_pcap_reader *r, const struct pr_block *b, const uint8_t *p,
                                         struct pr_pcap_frame *f)
{
    struct pr_option o;
    int more;
    while ((more = pr_pcap_option(r, &p, b->end, &o)) > 0) {
        if (o.code == PR_EPB_FLAGS && o.len == 4)
            f->outgoing = (pr_pcap_u32(r, o.value) & PR_EPB_DIRECTION) == PR_EPB_OUTBOUND;
        else if (o.code == PR_EPB_DROPCOUNT && o.len == 8 && b->type == PR_PCAPNG_EPB)
            r->shown_drops = pr_pcap_u64(r, o.value);
    }
    return pr_pcap_options_end(r, b, &o, more, PR_PCAP_FRAME);
}

/* EPB and the obsolete PB: they differ in the first four bytes. */
static inline int pr_pcap_packet(struct pr_pcap_reader *r, const struct pr_block *b, struct pr_pcap_frame *f)
{
    const uint8_t *p = b->body;
    if (b->end - p < 20)
        return PR_PCAP_REFUSE(r, "offset=%llu packet block of %u bytes", PR_AT(r), b->total);
    uint32_t id = b->type == PR_PCAPNG_EPB ? pr_pcap_u32(r, p) : pr_pcap_u16(r, p), caplen = pr_pcap_u32(r, p + 12);
    uint16_t drops = b->type == PR_PCAPNG_PB ? pr_pcap_u16(r, p + 2) : 0;
    uint64_t i = (uint64_t)r->section + id;
    if (i >= r->n_ifs)
        return PR_PCAP_REFUSE(r, "offset=%llu interface %u is not described before its frame", PR_AT(r), id);
    if (caplen > PR_PCAP_CAPLEN_MAX)
        return PR_PCAP_REFUSE(r, "offset=%llu caplen=%u > %u", PR_AT(r), caplen, PR_PCAP_CAPLEN_MAX);
    if ((uint64_t)(b->end - p) < 20 + pr_pad4(caplen))
        return PR_PCAP_REFUSE(r, "offset=%llu caplen=%u passes the end of a block of %u", PR_AT(r), caplen, b->total);
    uint64_t units = (uint64_t)pr_pcap_u32(r, p + 4) << 32 | pr_pcap_u32(r, p + 8);
    *f = (struct pr_pcap_frame){.data = p + 20, .caplen = caplen, .wire_len = pr_pcap_u32(r, p + 16),
                                .interface = (uint32_t)i, .ts_ns = pr_pcap_ns(&r->ifs[i], units)};
    r->shown_drops = drops == 0xffff ? 0 : drops;
    return pr_pcap_packet_options(r, b, p + 20 + pr_pad4(caplen), f);
}

/* SPB: as much of the frame as interface 0's snap length lets through, no time. */
static inline int pr_pcap_simple(struct pr_pcap_reader *r, const struct pr_block *b, struct pr_pcap_frame *f)
{
    if (b->end - b->body < 4)
        return PR_PCAP_REFUSE(r, "offset=%llu packet block of %u bytes", PR_AT(r), b->total);
    if (r->section >= r->n_ifs)
        return PR_PCAP_REFUSE(r, "offset=%llu interface 0 is not described before its frame", PR_AT(r));
    uint32_t wire_len = pr_pcap_u32(r, b->body), snaplen = r->ifs[r->section].snaplen;
    uint32_t caplen = snaplen && wire_len > snaplen ? snaplen : wire_len;
    if (caplen > PR_PCAP_CAPLEN_MAX)
        return PR_PCAP_REFUSE(r, "offset=%llu caplen=%u > %u", PR_AT(r), caplen, PR_PCAP_CAPLEN_MAX);
    if ((uint64_t)(b->end - b->body) < 4 + (uint64_t)caplen)
        return PR_PCAP_REFUSE(r, "offset=%llu caplen=%u passes the end of a block of %u", PR_AT(r), caplen, b->total);
    *f = (struct pr_pcap_frame){.data = b->body + 4, .caplen = caplen, .wire_len = wire_len, .interface = r->section};
    r->shown_drops = 0;
    return PR_PCAP_FRAME;
}

static inline int pr_pcap_block(struct pr_pcap_reader *r, struct pr_pcap_frame *f)
{
    int rc = pr_pcap_want(r, 12);
    if (rc == PR_PCAP_END && r->have == r->at)
        return rc;
    if (rc != PR_PCAP_GO_ON)
        return rc == PR_PCAP_END ? pr_pcap_need(r, 12) : rc;
    uint32_t order;
    memcpy(&order, r->buf + r->at + 8, 4);
    struct pr_block b = {.type = pr_pcap_u32(r, r->buf + r->at)};
    if (b.type == PR_PCAPNG_SHB) { /* reads the same in both byte orders */
        if (order != PR_PCAPNG_ORDER && order != __builtin_bswap32(PR_PCAPNG_ORDER))
            return PR_PCAP_REFUSE(r, "offset=%llu byte-order magic 0x%08x", PR_AT(r), order);
        r->swapped = order != PR_PCAPNG_ORDER;
    }
    b.total = pr_pcap_u32(r, r->buf + r->at + 4);
    if (b.total < 12 || b.total % 4)
        return PR_PCAP_REFUSE(r, "offset=%llu block of %u bytes", PR_AT(r), b.total);
    int known = b.type == PR_PCAPNG_SHB || b.type == PR_PCAPNG_ISB || b.type == PR_PCAPNG_EPB ||
                (b.type >= PR_PCAPNG_IDB && b.type <= PR_PCAPNG_SPB);
    if (!known) {
        pr_pcap_pass(r, b.total);
        return PR_PCAP_GO_ON;
    }
    uint32_t here = b.total < PR_PCAP_READ ? b.total : PR_PCAP_READ; /* options past a whole buffer are passed over */
    if ((rc = pr_pcap_need(r, here)) != PR_PCAP_GO_ON)
        return rc;
    const uint8_t *p = r->buf + r->at;
    b.body = p + 8;
    b.cut = here < b.total;
    b.end = p + here - (b.cut ? 0 : 4);
    if (!b.cut && pr_pcap_u32(r, b.end) != b.total)
        return PR_PCAP_REFUSE(r, "offset=%llu block of %u bytes in front, %u behind", PR_AT(r), b.total,
                              pr_pcap_u32(r, b.end));
    switch (b.type) {
    case PR_PCAPNG_SHB: rc = pr_pcap_section(r, &b); break;
    case PR_PCAPNG_IDB: rc = pr_pcap_interface(r, &b); break;
    case PR_PCAPNG_ISB: rc = pr_pcap_statistics(r, &b); break;
    case PR_PCAPNG_SPB: rc = pr_pcap_simple(r, &b, f); break;
    default: rc = pr_pcap_packet(r, &b, f);
    }
    r->step = b.total;
    if (rc == PR_PCAP_GO_ON)
        pr_pcap_pass(r, b.total);
    return rc;
}

/* ---- what a driver calls ---- */

static inline int pr_pcap_format(struct pr_pcap_reader *r)
{
    int rc = pr_pcap_want(r, 4);
    if (rc == PR_PCAP_END)
        return PR_PCAP_REFUSE(r, "offset=0 %u bytes are no capture file", r->have);
    if (rc != PR_PCAP_GO_ON)
        return rc;
    uint32_t magic, other;
    memcpy(&magic, r->buf + r->at, 4);
    other = __builtin_bswap32(magic);
    if (magic == PR_PCAPNG_SHB) {
        r->format = 2;
        return PR_PCAP_GO_ON;
    }
    if (magic == PR_PCAP_US || magic == PR_PCAP_NS || other == PR_PCAP_US || other == PR_PCAP_NS)
        return pr_pcap_header(r, magic);
    const uint8_t *p = r->buf + r->at;
    return PR_PCAP_REFUSE(r, "offset=0 magic %02x%02x%02x%02x is neither pcap's nor pcapng's%s", p[0], p[1], p[2], p[3],
                          p[0] == 0x1f && p[1] == 0x8b ? " (it is gzip's: decompress it first)" : "");
}

/* Show the next frame. FRAME, LATER (nothing there now), END, or BAD: `trouble` says what, `error` the errno. */
static inline int pr_pcap_next(struct pr_pcap_reader *r, struct pr_pcap_frame *f)
{
    int rc = r->error ? PR_PCAP_BAD : PR_PCAP_GO_ON;
    while (rc == PR_PCAP_GO_ON) {
        if ((rc = pr_pcap_skipped(r)) != PR_PCAP_GO_ON)
            break;
        rc = r->format == 0 ? pr_pcap_format(r) : r->format == 1 ? pr_pcap_record(r, f) : pr_pcap_block(r, f);
    }
    if (rc == PR_PCAP_FRAME) {
        r->shown_if = f->interface;
        if (!r->any_link && r->ifs[f->interface].linktype != PR_PCAP_LINK_ETHERNET)
            return PR_PCAP_REFUSE(r, "offset=%llu interface %u has link type %u, not Ethernet", PR_AT(r), f->interface,
                                  r->ifs[f->interface].linktype);
    }
    return rc;
}

/* Pass the frame that was shown. */
static inline void pr_pcap_take(struct pr_pcap_reader *r)
{
    r->ifs[r->shown_if].frames++;
    r->ifs[r->shown_if].drops += r->shown_drops;
    pr_pcap_pass(r, r->step);
}

#endif
