/* The Toeplitz hash of receive-side scaling (Microsoft, "RSS Hashing Functions"; Intel 82599, 7.1.2.8.1): for each bit of
 * the input that is set, the 32 bits of the key that begin at that bit's number are added (xor).
 *
 *      key    0110 1101 0101 1010 ...           bit i of the input  ->  key bits i .. i + 31
 *      input  0100 ...                          so H(a ^ b) = H(a) ^ H(b), H(0) = 0
 *
 * Behind its end a key goes on with zeros, as FreeBSD's does (VPP's begins anew; the same up to 36 bytes of input). */
#ifndef PR_TOEPLITZ_H
#define PR_TOEPLITZ_H

#include <endian.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define PR_TOEPLITZ_KEY 40 /* bytes of the two keys here */

/* What Windows, FreeBSD and NetBSD hash with if nobody chose a key; the published test suite is made with it. */
static const uint8_t pr_toeplitz_microsoft[PR_TOEPLITZ_KEY] = {
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca, 0x2b, 0xcb,
    0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
};

/* A period of 16 bits: both directions of a connection get one hash (Woo and Park 2012). Its two halves are always equal,
 * so there are only 65536 hashes: no table may be indexed by both. */
static const uint8_t pr_toeplitz_symmetric[PR_TOEPLITZ_KEY] = {
    0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a,
    0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a, 0x6d, 0x5a,
};

/* The 40 bits of the key that the byte of input at `at` meets. */
static inline uint64_t pr_toeplitz_window(const uint8_t *key, size_t n_key, size_t at)
{
    uint64_t window = 0;
    for (size_t i = at; i < at + 5; i++)
        window = window << 8 | (i < n_key ? key[i] : 0);
    return window;
}

static inline uint32_t pr_toeplitz_byte(uint64_t window, uint8_t byte)
{
    uint32_t hash = 0;
    for (int bit = 0; bit < 8; bit++)
        hash ^= (uint32_t)(window >> (8 - bit)) & -(uint32_t)(byte >> (7 - bit) & 1);
    return hash;
}

/* Any input under any key, bit by bit. */
static inline uint32_t pr_toeplitz(const uint8_t *key, size_t n_key, const uint8_t *data, size_t n)
{
    uint32_t hash = 0;
    for (size_t at = 0; at < n && at < n_key; at++) /* behind the key all is zero */
        hash ^= pr_toeplitz_byte(pr_toeplitz_window(key, n_key, at), data[at]);
    return hash;
}

/* ---- a key made ready for frames: a look-up a byte ---- */

#define PR_TOEPLITZ_TUPLE 36 /* two IPv6 addresses, two ports: the longest input */

struct pr_toeplitz_table {
    uint32_t at[PR_TOEPLITZ_TUPLE][256]; /* [where a byte stands][what it is] */
};

static inline void pr_toeplitz_prepare(struct pr_toeplitz_table *t, const uint8_t *key, size_t n_key)
{
    for (size_t at = 0; at < PR_TOEPLITZ_TUPLE; at++) {
        uint64_t window = pr_toeplitz_window(key, n_key, at);
        for (uint32_t byte = 0; byte < 256; byte++)
            t->at[at][byte] = pr_toeplitz_byte(window, (uint8_t)byte);
    }
}

/* The share of `n` bytes, a multiple of 4, that stand at `at` of the input: the hash is the xor of all its parts. The
 * caller sees that at + n <= PR_TOEPLITZ_TUPLE. Bytes are read by fours: with tables of 36 KB the loads are what it costs. */
static inline uint32_t pr_toeplitz_part(const struct pr_toeplitz_table *t, size_t at, const uint8_t *p, size_t n)
{
    uint32_t hash = 0, word;
    for (const uint8_t *end = p + n; p < end; p += 4, at += 4) {
        memcpy(&word, p, sizeof word);
        word = le32toh(word);
        hash ^= t->at[at][word & 255] ^ t->at[at + 1][word >> 8 & 255] ^ t->at[at + 2][word >> 16 & 255] ^
                t->at[at + 3][word >> 24];
    }
    return hash;
}

#endif
