/* 64-bit counters: one row a ring, one writer a row, readable by everyone through a read-only mapping.
 *
 * The list below is the only place where a counter is named; Python reads it from here. The law that tests assert at rest:
 *   rx_kernel + rx_pieces = rx_frames + rx_supers + the driver's drops (PR_DROPS_RX)           + d
 *   rx_frames = delivered + forwarded + classified + the path's drops (PR_DROPS_PATH) + in the ring + p
 *   tx_queued = tx_frames + the driver's drops (PR_DROPS_TX) + in the ring                      + t
 * d + p, or t, is drop_crash: 0 in a process that nobody has killed. Between any two instructions none of the three is
 * negative, because a frame's coming is counted before what became of it: rx_kernel and rx_pieces, then rx_supers and
 * drops, then rx_frames, then tail; head (the claim), then outcomes; tx_queued, then head; tx_frames and drops, then
 * hwcur, and until then the frames are in doubt (ring.h). So what a kill leaves over is the dead one's burst (mend.h).
 * drop_kernel and drop_tap_queue are frames that nobody here ever held: offered = rx_kernel + drop_kernel. mirrored and
 * drop_mirror are about copies; the law is about originals. What apps got and sent is counted apart (border_record.h). */
#ifndef PR_COUNTERS_H
#define PR_COUNTERS_H

#include "layout.h"

/*          name            what it counts */
#define PR_COUNTER_LIST(X)                                                                                             \
    X(rx_kernel, "frames the kernel or file handed to the driver, a super-frame as one")                               \
    X(rx_supers, "super-frames (GSO/GRO) that were cut into wire frames")                                              \
    X(rx_pieces, "wire frames that came of cutting them")                                                              \
    X(rx_frames, "frames placed in the receive ring")                                                                  \
    X(rx_bytes, "their bytes")                                                                                         \
    X(delivered, "frames an app released after looking at them")                                                       \
    X(forwarded, "frames that went on to a transmit ring")                                                             \
    X(classified, "frames handed to their protocol (netisr)")                                                          \
    X(tx_queued, "frames placed in the transmit ring")                                                                 \
    X(tx_frames, "frames the kernel or file accepted")                                                                 \
    X(tx_bytes, "their bytes")                                                                                         \
    X(drop_kernel, "dropped by the kernel before the driver saw them (PACKET_STATISTICS)")                             \
    X(drop_tap_queue, "dropped by a TAP's own queue")                                                                  \
    X(drop_gso, "super-frames that could be neither cut nor carried")                                                  \
    X(drop_csum, "frames whose partial checksum could not be completed")                                               \
    X(drop_trunc, "frames longer than the slots can hold")                                                             \
    X(drop_mtu, "frames longer than the interface's MTU allows")                                                       \
    X(drop_runt, "frames shorter than an Ethernet header")                                                             \
    X(drop_filter, "frames a filter did not match")                                                                    \
    X(drop_direction, "frames of the direction not asked for")                                                         \
    X(drop_limit, "frames past the number asked for")                                                                  \
    X(drop_tx_full, "frames for which the transmit ring had no room")                                                  \
    X(drop_bad_slot, "slots an app filled wrongly: length, index, chain")                                              \
    X(drop_no_rule, "frames that no rule took")                                                                        \
    X(drop_no_buffer, "frames for which no buffer was free")                                                           \
    X(drop_down, "frames for an interface that is down or gone")                                                       \
    X(drop_tx_kernel, "frames the kernel's transmit path dropped (ENOBUFS)")                                           \
    X(drop_error, "frames the kernel refused for another reason")                                                      \
    X(drop_crash, "frames in the burst of a process that died")                                                        \
    X(mirrored, "copies that went to a mirror")                                                                        \
    X(drop_mirror, "copies for which the mirror had no room")                                                          \
    X(copies, "frames copied between buffers (0 = zero-copy)")                                                         \
    X(vlan_restored, "VLAN tags put back into frames")                                                                 \
    X(csum_completed, "partial checksums completed")                                                                   \
    X(rx_trunc, "frames cut to the snap length, marked as such")                                                       \
    X(reinits, "ring re-initialised after a protocol violation")                                                       \
    X(syscalls, "calls into the kernel on this ring's behalf")                                                         \
    X(wakeups, "times the owner slept and was woken")

enum pr_counter {
#define X(name, text) PR_C_##name,
    PR_COUNTER_LIST(X)
#undef X
    PR_N_COUNTERS
};

/* The drops of each law. A receive ring's are the driver's, on the way in, and the path's, on the way on. */
#define PR_DROPS_RX(X) X(drop_gso) X(drop_csum) X(drop_trunc) X(drop_runt)
#define PR_DROPS_PATH(X)                                                                                               \
    X(drop_filter) X(drop_direction) X(drop_limit) X(drop_tx_full) X(drop_bad_slot) X(drop_no_rule) X(drop_no_buffer)
#define PR_DROPS_TX(X)                                                                                                 \
    X(drop_mtu) X(drop_runt) X(drop_gso) X(drop_csum) X(drop_trunc) X(drop_bad_slot) X(drop_down) X(drop_tx_kernel)    \
    X(drop_error)

#define PR_ROW_VALUES 56
struct pr_row {
    char name[48]; /* "eth0 rx0" */
    uint32_t writer; /* owner id */
    uint32_t used;
    uint64_t pad;
    uint64_t v[PR_ROW_VALUES];
};
_Static_assert(sizeof(struct pr_row) == 512 && PR_N_COUNTERS <= PR_ROW_VALUES, "row");

/* The owner is the only writer, so a plain add would do; the relaxed store keeps a reader from seeing half of it. */
static inline void pr_count(struct pr_row *row, enum pr_counter c, uint64_t n)
{
    __atomic_store_n(&row->v[c], row->v[c] + n, __ATOMIC_RELAXED);
}

#endif
