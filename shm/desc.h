/* A frame's buffer, the bytes in it and their slot flags in one word: what lanes carry, and the first eight bytes of a
 * netmap slot. */
#ifndef PR_DESC_H
#define PR_DESC_H

#include <stdint.h>

static inline uint64_t pr_desc(uint32_t idx, uint16_t len, uint16_t flags)
{
    return idx | (uint64_t)len << 32 | (uint64_t)flags << 48;
}

static inline uint32_t pr_desc_idx(uint64_t d) { return (uint32_t)d; }
static inline uint16_t pr_desc_len(uint64_t d) { return (uint16_t)(d >> 32); }
static inline uint16_t pr_desc_flags(uint64_t d) { return (uint16_t)(d >> 48); }

#endif
