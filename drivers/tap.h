/* A TAP: one queue of it (tuntap in the kernel's Documentation/networking; IFF_TAP | IFF_NO_PI | IFF_VNET_HDR).
 *
 * One read is one frame, so it goes straight into the ring's free slots, a super-frame over as many as it needs:
 *
 *     readv     [ virtio-net header ][ slot at ][ slot at+1 ] ... [ slot at+k-1 ][ the rest: super + k * room ]
 *                                     \_________ the ring's own buffers ________/
 *
 * Nothing is copied unless the frame is to be cut into wire frames or did not fit. Then the slots' part joins the rest
 * in `super`, and there it stays, one frame at most, until the ring has room (`held`).
 *
 * A deleted TAP (or one whose namespace died) is ready for ever, and says EBADFD. So that nobody spins on it, its
 * descriptor then becomes a copy of `quiet`, which is never ready; the error is reported once, and the owner may put
 * another TAP there.
 *
 * A TAP takes whatever is written to it, of any length: what an Ethernet of this MTU would not carry is dropped here.
 *
 * Killed at any instruction: a read takes the frame out of the kernel at once, so each is announced in the kring before it
 * is made, and its virtio-net header goes there: an heir (pr_tap_resume) knows by that what was read and not told of. It is
 * lost, 64 frames at most, and counted, all but one whose read failed with EINVAL just then. Of what was sent one frame is
 * in doubt. */
#ifndef PR_TAP_H
#define PR_TAP_H

#include "arrival.h"
#include "live.h"

#define PR_TAP_BURST 64
#define PR_TAP_LONGEST (65536 + 4096) /* a super-frame and its headers */
#define PR_TAP_SUPER (2 * PR_TAP_LONGEST + 65536) /* slots' part, at most one buffer more than a frame, and the rest */
#define PR_TAP_HEADERS 22 /* Ethernet and two tags */
#define PR_TAP_GSO_MAX (65535 + 14)

struct pr_tap {
    struct pr_device dev;
    int fd, quiet;
    int gone;      /* until the owner clears it: `fd` is no TAP */
    int net_dev;   /* /proc/net/dev where it was made, which its descriptor keeps alive anyway; -1 = count no drops */
    struct pr_live *live;
    uint16_t port;
    uint8_t spread; /* so many reads more are offered slots for a whole super-frame */
    uint64_t queue_drops; /* as last read; the kring's `place` */

    struct pr_arrival held; /* len 0 = none */
    uint8_t *super;
    struct virtio_net_hdr vnet; /* of the frame that is read or written now: iov[0] */
    struct iovec iov[PR_MAX_FRAGS + 2];
};

/* `super`: PR_TAP_SUPER bytes, the caller's to free. */
void pr_tap_init(struct pr_tap *q, int fd, int quiet, uint16_t port, struct pr_live *live, uint8_t *super);

int pr_tap_rx(struct pr_device *dev, struct pr_ringh *h);
int pr_tap_tx(struct pr_device *dev, struct pr_ringh *h);
void pr_tap_stats(struct pr_device *dev, struct pr_ringh *h);
void pr_tap_resume(struct pr_device *dev, struct pr_ringh *h);

/* There is another device behind it: its drops are counted from now on. */
void pr_tap_anew(struct pr_tap *q);

#endif
