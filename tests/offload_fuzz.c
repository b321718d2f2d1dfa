/* Throw random frames and facts at csum.h and offload.h, under ASan and UBSan: offload_fuzz SECONDS SEED. Memory is
 * allocated to the byte, so that any step outside is seen. Prints how often each was done. See test_offload.py. */
#include "offload.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { MOST = 6000, PIECES = 6 };

static uint64_t state;

static uint32_t below(uint32_t n)
{
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return n ? (uint32_t)((state >> 32) % n) : 0;
}

static int one_in(uint32_t n) { return below(n) == 0; }

/* Mostly a sound header, so that the code behind the first check is reached, and a few bytes of it then spoilt. */
static uint32_t make_frame(uint8_t *f, struct pr_meta *m)
{
    uint32_t len = one_in(8) ? below(100) : 60 + below(MOST - 60), l3 = 14, v6 = below(2), udp = below(2);
    for (uint32_t i = 0; i < len; i++)
        f[i] = (uint8_t)below(256);
    *m = (struct pr_meta){.gso_type = (uint8_t)(udp ? 5 : v6 ? 4 : 1), .vnet_flags = (uint8_t)below(2),
                          .gso_size = (uint16_t)(one_in(4) ? below(65536) : below(2000)),
                          .csum_offset = (uint16_t)(udp ? 6 : 16)};
    if (len < 60 + 8 + 40 + 60)
        return len;
    for (uint32_t tags = one_in(20) ? below(80) : below(3); tags-- && l3 + 106 < len; l3 += 4)
        pr_set_be16(f + l3 - 2, one_in(2) ? 0x8100 : 0x88a8);
    pr_set_be16(f + l3 - 2, v6 ? 0x86dd : 0x0800);
    uint32_t l4 = l3;
    if (v6) {
        f[l3] = 0x60;
        pr_set_be16(f + l3 + 4, one_in(8) ? 0 : len - l3 - 40);
        uint8_t *next = &f[l3 + 6];
        for (l4 += 40; one_in(2) && l4 < len / 2; l4 += (f[l4 + 1] + 1u) * 8) {
            *next = (uint8_t[]){0, 43, 60}[below(3)];
            next = &f[l4];
            f[l4 + 1] = (uint8_t)(one_in(8) ? below(256) : below(3));
        }
        *next = udp ? 17 : 6;
    } else {
        f[l3] = (uint8_t)(0x45 + (one_in(3) ? below(11) : 0));
        pr_set_be16(f + l3 + 2, one_in(8) ? 0 : len - l3);
        pr_set_be16(f + l3 + 6, 0x4000);
        f[l3 + 9] = udp ? 17 : 6;
        l4 += (f[l3] & 15) * 4u;
    }
    m->csum_start = (uint16_t)l4;
    if (l4 + 60 < len) {
        if (udp)
            pr_set_be16(f + l4 + 4, len - l4);
        else
            f[l4 + 12] = (uint8_t)((5 + below(11)) << 4);
    }
    for (uint32_t spoil = one_in(2) ? 0 : below(4); spoil--;)
        f[below(len < 120 ? len : 120)] = (uint8_t)below(256);
    if (one_in(8))
        ((uint8_t *)m)[offsetof(struct pr_meta, gso_type) + below(10)] = (uint8_t)below(256);
    return len;
}

static size_t take_apart(const uint8_t *f, uint32_t len, struct iovec *iov)
{
    size_t n = 0;
    for (uint32_t at = 0, size; at < len; at += size) {
        size = below(one_in(2) ? 40 : len - at + 1);
        if (n + 1 == PIECES || size > len - at)
            size = len - at;
        iov[n] = (struct iovec){malloc(size ? size : 1), size};
        memcpy(iov[n++].iov_base, f + at, size);
    }
    return n;
}

static void drop(struct iovec *iov, size_t n)
{
    while (n--)
        free(iov[n].iov_base);
}

static uint32_t cut_it(const struct iovec *iov, size_t n, const struct pr_meta *m)
{
    struct pr_cut c;
    if (pr_cut_begin(&c, iov, n, m) < 0)
        return 0;
    size_t want = pr_cut_count(&c), most = pr_cut_frame_max(&c), got = 0, len;
    uint8_t *whole = malloc(most);
    struct iovec out[PIECES];
    size_t pieces = take_apart(whole, (uint32_t)most, out);
    while ((len = pr_cut_next(&c, out, pieces)) != 0) {
        if (len > most)
            abort();
        got++;
    }
    drop(out, pieces);
    free(whole);
    if (got != want)
        abort();
    return 1;
}

int main(int argc, char **argv)
{
    double seconds = argc > 1 ? atof(argv[1]) : 2;
    state = argc > 2 ? strtoull(argv[2], NULL, 0) | 1 : 1;
    struct timespec begun, now;
    clock_gettime(CLOCK_MONOTONIC, &begun);
    uint32_t cut = 0, refused = 0, completed = 0, outside = 0, tagged = 0;
    for (uint32_t round = 0;; round++) {
        static uint8_t f[MOST];
        struct pr_meta m;
        struct iovec iov[PIECES];
        uint32_t len = make_frame(f, &m);
        size_t n = take_apart(f, len, iov);
        if (cut_it(iov, n, &m))
            cut++;
        else
            refused++;
        uint16_t start = (uint16_t)below(one_in(4) ? 65536 : len + 4), offset = (uint16_t)below(one_in(4) ? 65536 : 20);
        int here = pr_csum_complete_iov(iov, n, start, offset);
        drop(iov, n);
        uint32_t spare = below(8);
        uint8_t *exact = malloc(len + spare + !(len + spare));
        memcpy(exact, f, len);
        if (pr_csum_complete(exact, len, start, offset) != here)
            abort();
        *(here < 0 ? &outside : &completed) += 1;
        tagged += pr_vlan_insert(exact, len, len + spare, 0x8100, (uint16_t)round) != 0;
        free(exact);
        clock_gettime(CLOCK_MONOTONIC, &now);
        if ((double)(now.tv_sec - begun.tv_sec) + (double)(now.tv_nsec - begun.tv_nsec) / 1e9 > seconds)
            break;
    }
    printf("cut %u refused %u completed %u outside %u tagged %u\n", cut, refused, completed, outside, tagged);
}
