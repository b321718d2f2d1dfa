/* Which flow a frame belongs to, as a hash that is the same for all of its frames; on it rests who processes the frame.
 * The rules are those of NetBSD's pktqueue (sys/net/pktqueue.c, pktq_rps_hash_toeplitz), behind VLAN tags:
 *
 *      addresses and ports    TCP, if its header is all there
 *      addresses              everything else over IP: UDP, whose fragments would else be parted from the rest of the
 *                             flow; a fragment, as in FreeBSD, for only the first has ports; IPv6 extension headers
 *      nothing, 0             no IP header, or one of another version than the ethertype says
 *
 * Lengths that the headers claim are not looked at: what is in the frame is there. Nothing here trusts a byte of it. */
#ifndef PR_FLOW_H
#define PR_FLOW_H

#include "offload.h"
#include "toeplitz.h"

/* What was found, more finely than what is hashed: UDP's ports are seen, but not in the hash. */
enum pr_flow_kind {
    PR_FLOW_NONE,
    PR_FLOW_IP4, /* and no transport header that may be used */
    PR_FLOW_UDP4,
    PR_FLOW_TCP4,
    PR_FLOW_IP6,
    PR_FLOW_UDP6,
    PR_FLOW_TCP6,
    PR_FLOW_KINDS,
};

static const char *const pr_flow_names[PR_FLOW_KINDS] = {"none", "ip4", "udp4", "tcp4", "ip6", "udp6", "tcp6"};

#define PR_FLOW_LOOK 128 /* an IP header that begins behind this is not found: 28 tags, and no frame costs more than others */

/* Where the parts of the tuple lie in the frame. */
struct pr_flow {
    uint32_t addresses, n_addresses; /* source and destination, together 8 or 32 bytes; 0 = not IP */
    uint32_t ports;                  /* source and destination, 4 bytes; 0 = not seen */
    enum pr_flow_kind kind;
};

/* The transport header, which would begin at `l4`; the address's kind becomes that of TCP or UDP over it. */
static inline void pr_flow_transport(struct pr_flow *f, uint8_t proto, uint32_t l4, uint32_t len)
{
    enum { TCP_HEADER = 20, UDP_HEADER = 8 };
    _Static_assert(PR_FLOW_UDP6 - PR_FLOW_IP6 == PR_FLOW_UDP4 - PR_FLOW_IP4, "the same step for both versions");
    _Static_assert(PR_FLOW_TCP6 - PR_FLOW_IP6 == PR_FLOW_TCP4 - PR_FLOW_IP4, "the same step for both versions");
    uint32_t have = l4 < len ? len - l4 : 0;
    if (proto == PR_PROTO_TCP && have >= TCP_HEADER)
        f->ports = l4, f->kind += PR_FLOW_TCP4 - PR_FLOW_IP4;
    else if (proto == PR_PROTO_UDP && have >= UDP_HEADER)
        f->ports = l4, f->kind += PR_FLOW_UDP4 - PR_FLOW_IP4;
}

static inline void pr_flow_ip4(struct pr_flow *f, const uint8_t *frame, uint32_t l3, uint32_t len)
{
    const uint8_t *ip = frame + l3;
    if (len < l3 + 20 || ip[0] >> 4 != 4)
        return;
    *f = (struct pr_flow){.addresses = l3 + 12, .n_addresses = 8, .kind = PR_FLOW_IP4};
    uint32_t header = (ip[0] & 15) * 4u, fragment = pr_be16(ip + 6) & 0x3fff; /* more to come, or not the first */
    if (!fragment && header >= 20)
        pr_flow_transport(f, ip[9], l3 + header, len);
}

static inline void pr_flow_ip6(struct pr_flow *f, const uint8_t *frame, uint32_t l3, uint32_t len)
{
    const uint8_t *ip = frame + l3;
    if (len < l3 + 40 || ip[0] >> 4 != 6)
        return;
    *f = (struct pr_flow){.addresses = l3 + 8, .n_addresses = 32, .kind = PR_FLOW_IP6};
    pr_flow_transport(f, ip[6], l3 + 40, len); /* an extension header is neither TCP nor UDP */
}

static inline struct pr_flow pr_flow_find(const uint8_t *frame, uint32_t len)
{
    struct pr_headers h;
    struct pr_flow f = {.kind = PR_FLOW_NONE};
    pr_headers_find(&h, frame, len < PR_FLOW_LOOK ? len : PR_FLOW_LOOK, len); /* version and l3 hold, whatever it says */
    if (h.version == 4)
        pr_flow_ip4(&f, frame, h.l3, len);
    else if (h.version == 6)
        pr_flow_ip6(&f, frame, h.l3, len);
    return f;
}

/* The hash of a frame, of which the first `len` bytes are here, and its kind. */
static inline uint32_t pr_flow_hash(const uint8_t *frame, uint32_t len, const struct pr_toeplitz_table *t, int *kind)
{
    struct pr_flow f = pr_flow_find(frame, len);
    *kind = (int)f.kind;
    if (f.kind == PR_FLOW_NONE)
        return 0;
    const uint8_t *addresses = frame + f.addresses; /* constant counts below: the look-ups are laid out side by side */
    uint32_t hash = f.n_addresses == 8 ? pr_toeplitz_part(t, 0, addresses, 8) : pr_toeplitz_part(t, 0, addresses, 32);
    int tcp = f.kind == PR_FLOW_TCP4 || f.kind == PR_FLOW_TCP6;
    return tcp ? hash ^ pr_toeplitz_part(t, f.n_addresses, frame + f.ports, 4) : hash;
}

#endif
