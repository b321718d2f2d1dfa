/* The capture formats: what the reader and the writer share.
 *
 *   pcap    24-byte file header, then records: 16-byte header (seconds, fraction, caplen, len), caplen bytes
 *   pcapng  blocks: type | length | body, padded to 4 | length again
 *           SHB  starts a section, tells its byte order        IDB  describes the section's next interface
 *           EPB  a frame of an interface, with options         SPB  a frame of interface 0, without a time
 *           PB   the obsolete form of EPB                      ISB  counts of an interface
 *           an option is code | length | value, padded to 4; code 0 ends the list
 *
 * draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng, pcap-savefile(5). No Python here. */
#ifndef PR_PCAP_FILE_H
#define PR_PCAP_FILE_H

#include <stdint.h>
#include <string.h>

#define PR_PCAP_CAPLEN_MAX 262144u /* libpcap's MAXIMUM_SNAPLEN: what tcpdump -s 0 means */
#define PR_PCAP_LINK_ETHERNET 1

enum { /* block types */
    PR_PCAPNG_SHB = 0x0a0d0d0a,
    PR_PCAPNG_IDB = 1,
    PR_PCAPNG_PB = 2,
    PR_PCAPNG_SPB = 3,
    PR_PCAPNG_ISB = 5,
    PR_PCAPNG_EPB = 6,
};
#define PR_PCAPNG_ORDER 0x1a2b3c4du
#define PR_PCAP_US 0xa1b2c3d4u
#define PR_PCAP_NS 0xa1b23c4du

enum { /* options: the code means another thing in each block */
    PR_OPT_END = 0,
    PR_SHB_HARDWARE = 2, PR_SHB_OS = 3, PR_SHB_APPLICATION = 4,
    PR_IF_NAME = 2, PR_IF_DESCRIPTION = 3, PR_IF_MAC = 6, PR_IF_SPEED = 8, PR_IF_TSRESOL = 9, PR_IF_FILTER = 11,
    PR_IF_OS = 12, PR_IF_TSOFFSET = 14, PR_IF_HARDWARE = 15,
    PR_EPB_FLAGS = 2, PR_EPB_DROPCOUNT = 4,
    PR_ISB_START = 2, PR_ISB_END = 3,
    PR_ISB_IFRECV = 4, PR_ISB_USRDELIV = 8, /* and between them ifdrop, filteraccept, osdrop */
};
enum { PR_EPB_INBOUND = 1, PR_EPB_OUTBOUND = 2, PR_EPB_DIRECTION = 3 };

#define PR_PCAP_N_STATS 5 /* isb options 4 to 8, in their order */

static inline uint64_t pr_pad4(uint64_t n) { return (n + 3) & ~3ull; }

#endif
