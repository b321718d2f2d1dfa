/* AF_PACKET: one queue of an interface (packet(7)).
 *
 * Receiving, two ways, both from memory that the kernel shares with us; the measurements are in README.md:
 *   blocks  TPACKET_V3: the kernel packs frames into blocks and hands over a block when it is full or some ms old. The
 *           fewest wake-ups, for watching: it loses nothing at rates where the others do.
 *   frames  TPACKET_V2: a frame is ours the moment it is there. For taking, where it has to go on at once. What is longer
 *           than a ring frame (super-frames) comes as a copy through the socket, in its place in the order.
 * Sending: sendmmsg, which beats the TX ring on every interface measured.
 *
 * Killed at any instruction: whoever has the sockets and the ring mapped goes on (pr_afp_resume) from what the kring says.
 * A frame is taken by one store, before the app can see it and before its room is given back, so none is ever seen twice;
 * what was taken and not yet published is lost, a burst at most. Of a burst that was being sent nobody can know how much
 * went out: all of it is passed over. PACKET_STATISTICS starts from zero at each reading: what a process reads and does
 * not live to count is missing in drop_kernel. */
#ifndef PR_AF_PACKET_H
#define PR_AF_PACKET_H

#include "arrival.h"
#include "live.h"

#include <linux/if_packet.h>
#include <sys/socket.h>

#define PR_AFP_BURST PR_BURST_MOST
#define PR_AFP_MARK (1u << 20) /* in a status that is ours: of a frame or block that is being given back. See af_packet_rx.c */
#define PR_AFP_LONGEST (65536 + 4096) /* a super-frame and what may stand in front of it */

struct pr_afp {
    struct pr_device dev;
    int rx, tx; /* sockets */
    uint16_t port;
    int tx_vnet; /* the TX socket wants a virtio-net header in front of each frame */
    struct pr_live *live;
    struct pr_afp_mail *mail;

    uint8_t *map;
    /* These are the kring's, and what a sync changes on the way. */
    uint32_t piece, n_pieces, at;   /* bytes of a block or ring frame, how many there are, the one that is next */
    uint32_t in_block, next_offset; /* blocks: frames left in this one, where the next is; 0 = not begun */

    uint8_t *big; /* frames: PR_AFP_LONGEST bytes for one that does not fit a ring frame */
    uint32_t held; /* and its length while it waits for room in the receive ring */
    struct virtio_net_hdr held_vnet;
};

/* The scratch of one sendmmsg. */
struct pr_afp_mail {
    struct mmsghdr msg[PR_AFP_BURST];
    struct virtio_net_hdr vnet[PR_AFP_BURST];
    struct iovec iov[PR_AFP_BURST][PR_MAX_FRAGS + 1];
};

int pr_afp_rx_blocks(struct pr_device *dev, struct pr_ringh *h);
int pr_afp_rx_frames(struct pr_device *dev, struct pr_ringh *h);
int pr_afp_tx(struct pr_device *dev, struct pr_ringh *h);
void pr_afp_stats(struct pr_device *dev, struct pr_ringh *h);
void pr_afp_resume_blocks(struct pr_device *dev, struct pr_ringh *h);
void pr_afp_resume_frames(struct pr_device *dev, struct pr_ringh *h);

#endif
