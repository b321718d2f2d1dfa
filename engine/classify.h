/* Which of netisr's protocols a frame belongs to: by its ethertype, behind VLAN tags (net/ethernet.h, netisr(9)).
 *
 *      0800 ip 1    0806 arp 4    86dd ipv6 6    all else ether 5
 *
 * The others of netisr(9)'s numbers are not on the wire: igmp 2, route 3, epair 8, ip-direct 9 and ipv6-direct 10 are
 * queued by whoever makes such frames. */
#ifndef PR_CLASSIFY_H
#define PR_CLASSIFY_H

#include "flow.h"
#include "hand.h"
#include "rps.h"

enum pr_netisr_number {
    PR_NETISR_IP = 1, PR_NETISR_IGMP, PR_NETISR_ROUTE, PR_NETISR_ARP, PR_NETISR_ETHER, PR_NETISR_IPV6,
    PR_NETISR_EPAIR = 8, PR_NETISR_IP_DIRECT, PR_NETISR_IPV6_DIRECT
};

/* The protocol of a frame of which the first `len` bytes are here. Tags end at PR_FLOW_LOOK, as they do for flows. */
static inline uint32_t pr_classify(const uint8_t *frame, uint32_t len)
{
    if (len > PR_FLOW_LOOK)
        len = PR_FLOW_LOOK;
    for (uint32_t at = 12; at + 2 <= len; at += 4)
        switch (pr_be16(frame + at)) {
        case 0x8100:
        case 0x88a8:
        case 0x9100: continue;
        case 0x0800: return PR_NETISR_IP;
        case 0x0806: return PR_NETISR_ARP;
        case 0x86dd: return PR_NETISR_IPV6;
        default: return PR_NETISR_ETHER;
        }
    return PR_NETISR_ETHER;
}

/* Give every frame of the batch that has no flow hash one, by a routine of rps.h: `toeplitz` makes it of the headers, and
 * what is not IP gets none; by the others every frame has one. */
static inline void pr_classify_flows(const struct pr_region *rg, const struct pr_batch *b, const struct pr_toeplitz_table *t,
                                     uint32_t routine, uint32_t ncpu, uint32_t curcpu)
{
    for (uint32_t i = 0; i < b->n; i++) {
        uint64_t d = b->desc[b->first[i]];
        struct pr_meta *m = pr_meta_of(rg, pr_desc_idx(d));
        if (!d || (m->flags & PR_META_HASH))
            continue;
        const uint8_t *frame = pr_buf(rg, pr_desc_idx(d));
        int kind = PR_FLOW_KINDS;
        m->hash = routine == PR_RPS_TOEPLITZ ? pr_flow_hash(frame, pr_desc_len(d), t, &kind)
                                             : pr_rps_hash(routine, frame, pr_desc_len(d), t, ncpu, curcpu);
        if (kind != PR_FLOW_NONE)
            m->flags |= PR_META_HASH;
    }
}

#endif
