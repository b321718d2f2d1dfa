/* A process's own view of a region: where its three segments are mapped, and a private copy of the geometry.
 * The copy is made once, checked, and never read from shared memory again: an app that scribbles over the header
 * after that changes nothing for us (spec of trust: README.md). */
#ifndef PR_REGION_H
#define PR_REGION_H

#include "counters.h"
#include "layout.h"

struct pr_region {
    uint8_t *mem;
    uint64_t *owner;         /* ledger: one word a buffer */
    struct pr_kring *krings; /* ledger: ring_num of them */
    struct pr_row *rows;     /* counters */
    uint32_t n_rows;
    struct pr_geometry g;
};

/* The facts that two builds must share before one may map the other's memory: every offset and size above. */
static inline uint64_t pr_layout_hash(void)
{
#define F(s, f) offsetof(struct s, f), sizeof(((struct s *)0)->f)
    static const uint16_t facts[] = {
        sizeof(struct pr_slot),     F(pr_slot, buf_idx),   F(pr_slot, len),          F(pr_slot, flags),
        F(pr_slot, ptr),            sizeof(struct pr_ring), F(pr_ring, buf_ofs),     F(pr_ring, num_slots),
        F(pr_ring, nr_buf_size),    F(pr_ring, ringid),    F(pr_ring, dir),          F(pr_ring, head),
        F(pr_ring, cur),            F(pr_ring, tail),      F(pr_ring, flags),        F(pr_ring, ts),
        F(pr_ring, offset_mask),    F(pr_ring, buf_align), F(pr_ring, sem),          sizeof(struct pr_if),
        offsetof(struct pr_if, ring_ofs), sizeof(struct pr_meta), F(pr_meta, ts_ns), F(pr_meta, wire_len),
        F(pr_meta, hash),           F(pr_meta, port),      F(pr_meta, flags),        F(pr_meta, gso_type),
        F(pr_meta, vnet_flags),     F(pr_meta, hdr_len),   F(pr_meta, gso_size),     F(pr_meta, csum_start),
        F(pr_meta, csum_offset),    sizeof(struct pr_kring), F(pr_kring, hwcur),     F(pr_kring, hwtail),
        F(pr_kring, rhead),         F(pr_kring, ring_ofs), F(pr_kring, row),         sizeof(struct pr_row),
        F(pr_kring, owner),         F(pr_kring, doubt),    F(pr_kring, taken),       F(pr_kring, begun),
        F(pr_kring, handed),        F(pr_kring, base),     F(pr_kring, place),       F(pr_kring, serial),
        F(pr_kring, fetched),
        PR_N_COUNTERS,              sizeof(struct pr_header), PR_HEADROOM,
        F(pr_header, flags),        F(pr_header, owners),
    };
#undef F
    uint64_t h = 0xcbf29ce484222325ull; /* FNV-1a */
    for (size_t i = 0; i < sizeof facts / sizeof facts[0]; i++)
        h = (h ^ facts[i]) * 0x100000001b3ull;
    return h;
}

static inline uint64_t pr_round(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }

/* Lay a region out: sizes in, offsets and the segment's total size out. */
static inline uint64_t pr_carve(struct pr_geometry *g, uint32_t ifs, uint32_t rings, uint32_t slots, uint32_t bufs,
                                uint32_t stride)
{
    g->if_num = ifs;
    g->if_size = 1024;
    g->ring_num = rings;
    g->ring_size = (uint32_t)pr_round(sizeof(struct pr_ring) + (uint64_t)slots * sizeof(struct pr_slot), 128);
    g->buf_num = bufs;
    g->buf_stride = stride;
    g->if_ofs = PR_PAGE;
    g->ring_ofs = g->if_ofs + pr_round((uint64_t)ifs * g->if_size, PR_PAGE);
    g->meta_ofs = pr_round(g->ring_ofs + (uint64_t)rings * g->ring_size, PR_PAGE);
    g->buf_ofs = pr_round(g->meta_ofs + (uint64_t)bufs * sizeof(struct pr_meta), PR_PAGE);
    return pr_round(g->buf_ofs + ((uint64_t)bufs + 1) * stride, PR_PAGE);
}

/* The ledger: header page | owner words | krings. The counters: header page | rows. */
static inline uint64_t pr_ledger_krings(const struct pr_geometry *g) { return pr_round(PR_PAGE + 8ull * g->buf_num, 64); }
static inline uint64_t pr_ledger_size(const struct pr_geometry *g)
{
    return pr_round(pr_ledger_krings(g) + (uint64_t)g->ring_num * sizeof(struct pr_kring), PR_PAGE);
}
static inline uint64_t pr_counters_size(const struct pr_geometry *g)
{
    return pr_round(PR_PAGE + (uint64_t)g->ring_num * sizeof(struct pr_row), PR_PAGE);
}

/* A geometry that came from outside: does everything it names lie inside `size` bytes? 64-bit throughout. */
static inline int pr_geometry_ok(const struct pr_geometry *g, uint64_t size)
{
    struct pr_geometry again;
    if (g->if_num > 10000 || g->ring_num > 65536 || g->ring_size < sizeof(struct pr_ring) || g->ring_size > (1u << 22) ||
        g->buf_num < 4 || g->buf_num > (1u << 24) || g->buf_stride < 512 || g->buf_stride > 65536 || g->buf_stride % 64)
        return 0;
    uint32_t slots = (uint32_t)((g->ring_size - sizeof(struct pr_ring)) / sizeof(struct pr_slot));
    return pr_carve(&again, g->if_num, g->ring_num, slots, g->buf_num, g->buf_stride) == size &&
           __builtin_memcmp(&again, g, sizeof again) == 0;
}

static inline uint8_t *pr_buf(const struct pr_region *rg, uint32_t i)
{
    return rg->mem + rg->g.buf_ofs + PR_HEADROOM + (uint64_t)i * rg->g.buf_stride;
}

static inline uint32_t pr_buf_room(const struct pr_region *rg) { return rg->g.buf_stride - PR_HEADROOM; }

static inline struct pr_meta *pr_meta_of(const struct pr_region *rg, uint32_t i)
{
    return (struct pr_meta *)(rg->mem + rg->g.meta_ofs) + i;
}

/* Buffers 0 and 1 are reserved: 0 means none, 1 is a sink. */
static inline int pr_buf_ok(const struct pr_region *rg, uint32_t i) { return i >= 2 && i < rg->g.buf_num; }

#endif
