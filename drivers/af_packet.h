/* AF_PACKET: one queue of an interface (packet(7)).
 *
 * Receiving, two ways, the measurements are in README.md:
 *   ring   TPACKET_V3: the kernel packs frames into mapped blocks and wakes us once a block; one copy here, hardly any
 *          call into the kernel. Best for watching: it loses nothing at rates where the others do.
 *   recv   recvmmsg straight into buffers of the region ("landing" buffers, exchanged for the slots'): no copy of ours
 *          and no waiting for a block to fill. Best where a frame must go on at once.
 * Sending: sendmmsg, which beats the TX ring on every interface measured. */
#ifndef PR_AF_PACKET_H
#define PR_AF_PACKET_H

#include "arrival.h"

#include <linux/if_packet.h>
#include <sys/socket.h>

#define PR_AFP_BURST 64
#define PR_AFP_LONGEST (65536 + 4096) /* a super-frame and what may stand in front of it */

struct pr_afp {
    struct pr_device dev;
    int rx, tx; /* sockets, -1 = that direction is not used */
    uint16_t port;
    int tx_vnet; /* the TX socket wants a virtio-net header in front of each frame */

    /* ring */
    uint8_t *map;
    uint32_t block_size, n_blocks, block; /* the block that is read now */
    uint32_t in_block, next_offset;       /* frames left in it, where the next one is; 0 = not begun */

    /* recv: what arrived and is not in the ring yet is [first, last) */
    uint32_t first, last;
    uint32_t landing[PR_AFP_BURST];
    struct pr_afp_mail *mail;
    uint8_t *overflow; /* PR_AFP_BURST * PR_AFP_LONGEST: what did not fit the landing buffer */
};

/* The scratch of one recvmmsg or sendmmsg. */
struct pr_afp_mail {
    struct mmsghdr msg[PR_AFP_BURST];
    struct virtio_net_hdr vnet[PR_AFP_BURST];
    struct iovec iov[PR_AFP_BURST][PR_MAX_FRAGS + 1];
    struct sockaddr_ll from[PR_AFP_BURST];
    _Alignas(8) char control[PR_AFP_BURST][CMSG_SPACE(sizeof(struct tpacket_auxdata)) + CMSG_SPACE(sizeof(struct timespec))];
};

int pr_afp_rx_ring(struct pr_device *dev, struct pr_ringh *h);
int pr_afp_rx_recv(struct pr_device *dev, struct pr_ringh *h);
int pr_afp_tx(struct pr_device *dev, struct pr_ringh *h);
void pr_afp_stats(struct pr_device *dev, struct pr_ringh *h);

#endif
