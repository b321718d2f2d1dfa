/* Capture files as devices: a file read is a receive queue, a file written a transmit queue.
 *
 * Killed at any instruction, a file's writer leaves nothing lost, twice or half: how long the file is with all records
 * that were told of, and which slot comes next, is one word of the kring, and an heir cuts the file back to that. What it
 * does not know are counts that only its ISBs tell, and files begun since (rotation). A file's reader begins anew and
 * passes over what was taken. What is not a file has no way back: its heir ends it. */
#ifndef PR_PCAP_H
#define PR_PCAP_H

#include "device.h"
#include "pcap_reader.h"
#include "pcap_writer.h"

struct pr_pcap_in {
    struct pr_device dev;
    struct pr_pcap_reader from;
    int port; /* pr_meta.port of every frame, negative = its interface's number in the file */
};

enum pr_pcap_pause { PR_PCAP_GOING = 0, PR_PCAP_SIZE, PR_PCAP_TIME, PR_PCAP_ERROR, PR_PCAP_CLOSED };

#define PR_PCAP_BURST 1024 /* records a batch */
#define PR_PCAP_PLACE_BITS 18 /* of the kring's place: the slot behind what the file holds; in front of it the file's end */
#define PR_PCAP_NO_INTERFACE 0xffff

/* A frame of the ring while its record waits to be written: taken when the file holds [0, end) of the batch. */
struct pr_pcap_record_of {
    uint32_t end, bytes;
    uint16_t slots, interface;
    uint8_t counter; /* PR_C_tx_frames, or why there is no record */
    uint64_t told;   /* drops that it tells of */
};

struct pr_pcap_out {
    struct pr_device dev;
    struct pr_pcap_writer to;
    enum pr_pcap_pause why; /* PR_DEV_PAUSED: what for */
    uint64_t max_bytes;     /* a file grows no longer than this, ISBs included; 0 = no limit */
    uint64_t until_ns;      /* a frame of this time or later belongs into the next file; 0 = no limit */
    uint64_t next_ns;       /* the time of the frame that waits for the next file */
    uint16_t *interface_of; /* port number -> interface, PR_PCAP_NO_INTERFACE; n_ports of them */
    uint32_t n_ports;       /* 0 = every port is interface 0 */
    struct pr_pcap_record_of batch[PR_PCAP_BURST];
};

int pr_pcap_rx(struct pr_device *, struct pr_ringh *);
int pr_pcap_tx(struct pr_device *, struct pr_ringh *);
extern const struct pr_device_ops pr_pcap_in_ops, pr_pcap_out_ops;

/* Stop taking frames, for the reason given. */
static inline void pr_pcap_pause(struct pr_pcap_out *p, enum pr_pcap_pause why)
{
    p->why = why;
    p->dev.flags |= PR_DEV_PAUSED;
}

/* Take frames again: after a new file was started, or somebody made room on the disk. */
static inline void pr_pcap_resume(struct pr_pcap_out *p)
{
    p->why = PR_PCAP_GOING;
    p->to.error = p->dev.error = 0;
    p->dev.flags &= ~(uint32_t)PR_DEV_PAUSED;
}

#endif
