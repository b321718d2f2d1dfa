/* Damaged capture files against the reader, under ASan and UBSan: pcap_fuzz SECONDS SEED FILE...
 *
 * Each round damages one of the files in memory and reads it twice through a receive ring: in one piece, and in small
 * pieces as a pipe gives them, with everything of the buffer that was not read poisoned. Both must end, in bounded
 * steps, with the same frames and the same complaint, and the books must balance. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <sanitizer/asan_interface.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static struct {
    const uint8_t *p;
    size_t len, at;
    int small;
} input;
static uint64_t state;

static uint32_t below(uint32_t n)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((state >> 33) % n);
}

static ssize_t fuzz_read(int fd, void *buf, size_t n)
{
    (void)fd;
    size_t here = input.len - input.at, want = input.small ? below(40) : n;
    if (input.small && want == 0 && here)
        return errno = EAGAIN, -1;
    want = want < n ? want : n;
    want = want < here ? want : here;
    ASAN_UNPOISON_MEMORY_REGION(buf, n);
    memcpy(buf, input.p + input.at, want);
    ASAN_POISON_MEMORY_REGION((char *)buf + want, n - want);
    input.at += want;
    return (ssize_t)want;
}

static int fuzz_poll(struct pollfd *p, nfds_t n, int ms)
{
    (void)p, (void)n, (void)ms;
    return 1;
}

#define read fuzz_read
#define poll fuzz_poll
#include "pcap.c"

#define CHECK(what)                                                                                                    \
    do {                                                                                                               \
        if (!(what)) {                                                                                                 \
            fprintf(stderr, "round %llu: %s\n", rounds, #what);                                                        \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)
static unsigned long long rounds;

enum { SLOTS = 64, STRIDE = 512 };
static struct pr_region rg;
static struct pr_kring kring;
static struct pr_ringh ring;
static struct pr_pcap_in reader;

static void set_up(void)
{
    rg.mem = calloc(1, pr_carve(&rg.g, 4, 1, SLOTS, SLOTS + 2, STRIDE));
    rg.rows = calloc(1, sizeof *rg.rows);
    kring = (struct pr_kring){.num_slots = SLOTS, .dir = PR_RX};
    ring = (struct pr_ringh){.ring = (struct pr_ring *)(rg.mem + rg.g.ring_ofs), .k = &kring, .row = rg.rows, .rg = &rg,
                             .n = SLOTS, .dev = &reader.dev};
    reader.from.buf = malloc(PR_PCAP_READ);
    reader.from.ifs = calloc(PR_PCAP_INTERFACES, sizeof *reader.from.ifs);
}

static uint64_t mix(uint64_t h, const void *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        h = (h ^ ((const uint8_t *)p)[i]) * 0x100000001b3u;
    return h;
}

/* A fingerprint of everything the file gave. */
static uint64_t read_all(const uint8_t *p, size_t len, int small)
{
    uint32_t bufs[SLOTS];
    for (uint32_t i = 0; i < SLOTS; i++)
        bufs[i] = i + 2;
    memset(rg.rows->v, 0, sizeof rg.rows->v);
    memset(reader.from.ifs, 0, reader.from.n_ifs * sizeof *reader.from.ifs);
    reader = (struct pr_pcap_in){
        .dev = {.ops = &pr_pcap_in_ops},
        .port = -1,
        .from = {.buf = reader.from.buf, .ifs = reader.from.ifs, .waits = (uint8_t)small, .any_link = 1},
    };
    pr_ring_deal(&ring, bufs);
    input.p = p, input.len = len, input.at = 0, input.small = small;
    uint64_t h = 0xcbf29ce484222325u, calls = 0;
    for (;;) {
        int ended = reader.dev.flags & PR_DEV_END;
        CHECK(pr_rxsync(&ring) >= 0);
        CHECK(calls++ < 4 * len + 64);
        while (pr_ring_ready(&ring)) {
            uint32_t i = ring.ring->head, slots = pr_frame_slots(&ring, i, ring.ring->tail);
            CHECK(slots);
            const struct pr_meta *m = pr_meta_of(&rg, ring.ring->slot[i].buf_idx);
            uint64_t facts[] = {m->ts_ns, m->wire_len, m->port, m->flags};
            h = mix(h, facts, sizeof facts);
            for (uint32_t k = 0; k < slots; k++, i = pr_next(&ring, i)) {
                const struct pr_slot *s = &ring.ring->slot[i];
                CHECK(pr_buf_ok(&rg, s->buf_idx) && s->len <= pr_buf_room(&rg));
                h = mix(h, pr_buf(&rg, s->buf_idx), s->len);
            }
            pr_ring_advance(&ring, i);
        }
        if (ended)
            break;
    }
    const uint64_t *v = rg.rows->v;
    CHECK(v[PR_C_rx_kernel] == v[PR_C_rx_frames] + v[PR_C_drop_trunc]);
    CHECK(v[PR_C_rx_bytes] <= len);
    CHECK(reader.from.n_ifs <= PR_PCAP_INTERFACES && reader.from.have <= PR_PCAP_READ);
    CHECK(!reader.from.error == !reader.from.trouble[0]);
    h = mix(h, reader.from.trouble, strlen(reader.from.trouble));
    return mix(h, v, sizeof(uint64_t) * PR_C_tx_queued);
}

static size_t damage(uint8_t *p, size_t len, size_t most)
{
    static const uint32_t odd[] = {0,          1,          3,      4,      12,     0xffff, 0x7fffffff,
                                   0x80000000, 0xffffffff, 0xfffffffc, 262144, 262145, 524288};
    for (uint32_t times = 1 + below(4); times && len >= 8; times--) {
        uint32_t at = below((uint32_t)len);
        switch (below(6)) {
        case 0: p[at] ^= (uint8_t)(1 << below(8)); break;
        case 1: p[at] = (uint8_t)below(256); break;
        case 2:
            at = at / 4 * 4;
            if (at + 4 <= len)
                memcpy(p + at, &odd[below(sizeof odd / sizeof *odd)], 4);
            break;
        case 3: len = at; break;
        case 4: { /* a piece twice */
            uint32_t n = 1 + below(96);
            if (at + n <= len && len + n <= most) {
                memmove(p + at + n, p + at, len - at);
                len += n;
            }
            break;
        }
        default: { /* a piece less */
            uint32_t n = 4 * (1 + below(8));
            if (at + n <= len) {
                memmove(p + at, p + at + n, len - at - n);
                len -= n;
            }
        }
        }
    }
    return len;
}

int main(int argc, char **argv)
{
    enum { MOST = 1 << 16 };
    static uint8_t files[64][MOST], copy[MOST];
    size_t lens[64];
    int n = argc - 3;
    if (n < 1 || n > 64)
        return 2;
    for (int i = 0; i < n; i++) {
        FILE *f = fopen(argv[i + 3], "rb");
        if (!f)
            return 2;
        lens[i] = fread(files[i], 1, MOST / 2, f);
        fclose(f);
    }
    state = strtoull(argv[2], NULL, 0);
    set_up();
    double until = (double)clock() / CLOCKS_PER_SEC + atof(argv[1]);
    for (; (double)clock() / CLOCKS_PER_SEC < until; rounds++) {
        int i = (int)below((uint32_t)n);
        memcpy(copy, files[i], lens[i]);
        size_t len = damage(copy, lens[i], MOST);
        uint64_t whole = read_all(copy, len, 0);
        CHECK(whole == read_all(copy, len, 1));
    }
    printf("%llu\n", rounds);
    return 0;
}
