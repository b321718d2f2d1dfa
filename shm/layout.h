/* The shared memory of pktring, byte for byte: netmap API 14's structures inside one region, and our header in front.
 *
 *   region "mem" (apps of the trust domain may write it)
 *   0            header      magic, versions, geometry; state = READY is stored last
 *   if_ofs       if objects  one struct pr_if per port: names the rings by offsets relative to itself
 *   ring_ofs     ring objects  256-byte struct pr_ring + its slots
 *   meta_ofs     frame metadata, one struct pr_meta a buffer (receive time, offload facts), indexed by buf_idx
 *   buf_ofs = U  chunks of `stride` bytes, page-aligned; netmap buffer i is the bytes from U + 256 + i*stride on.
 *                One extra chunk pads the end. A frame in one slot is at most stride - 256 (PR_HEADROOM) bytes, so that
 *                a kernel that delivers at chunk start + 256 (AF_XDP) and a program that reads at offset 0 meet.
 *
 *   segment "ledger" (engine only): owner words, one u64 a buffer, and one struct pr_kring a ring
 *   segment "counters" (read-only for everyone but its writer): rows of 64-bit counters
 *
 * All links are offsets or indexes, never pointers: each process maps where it likes.
 * Names, offsets and constants: net/netmap.h of netmap API 14, netmap(4); checked by tests/test_layout.py. */
#ifndef PR_LAYOUT_H
#define PR_LAYOUT_H

#include <stddef.h>
#include <stdint.h>
#include <sys/time.h>

#define PR_MAGIC 0x31676e6972746b70ull /* "pktring1" */
#define PR_ABI_MAJOR 1
#define PR_ABI_MINOR 0
#define PR_HEADROOM 256
#define PR_MAX_FRAGS 64
#define PR_CACHE_LINE 64
#define PR_PAGE 4096

enum pr_state { PR_MAKING = 0, PR_READY = 1, PR_DEAD = 2 };
enum pr_kind { PR_MEM = 1, PR_LEDGER = 2, PR_COUNTERS = 3, PR_ENGINE = 4 };
enum { PR_KEPT = 1 }; /* pr_header.flags: it outlives its maker, for a successor to take over */

/* ---- netmap API 14 ---- */

enum { /* slot flags */
    PR_NS_BUF_CHANGED = 0x0001, /* app changed buf_idx */
    PR_NS_REPORT = 0x0002,
    PR_NS_FORWARD = 0x0004,
    PR_NS_NO_LEARN = 0x0008,
    PR_NS_INDIRECT = 0x0010,
    PR_NS_MOREFRAG = 0x0020, /* the frame continues in the next slot */
    PR_NS_TXMON = 0x0040,
    PR_NS_PORT_MASK = 0xff00 /* on receive: number of fragments */
};
enum { PR_NR_TIMESTAMP = 0x0002, PR_NR_FORWARD = 0x0004 }; /* ring flags */
enum { PR_RX = 0, PR_TX = 1 }; /* pr_ring.dir: the values the kernel module stores, not those of its header's comment */

struct pr_slot {
    uint32_t buf_idx; /* whoever owns the slot may exchange it */
    uint16_t len;
    uint16_t flags;
    uint64_t ptr;
};

struct pr_ring {
    int64_t buf_ofs; /* from this ring's address to buffer 0 */
    uint32_t num_slots;
    uint32_t nr_buf_size; /* stride */
    uint16_t ringid;
    uint16_t dir;
    uint32_t head; /* app: first slot it still owns */
    uint32_t cur;  /* app: wake-up point, head <= cur <= tail */
    uint32_t tail; /* engine: first slot the app does not own */
    uint32_t flags;
    struct timeval ts __attribute__((aligned(8))); /* last sync */
    uint64_t offset_mask;
    uint64_t buf_align;
    uint8_t pad[56];
    uint8_t sem[128]; /* the app's own: never written by the engine */
    struct pr_slot slot[];
} __attribute__((aligned(128)));

struct pr_if {
    char ni_name[16];
    uint32_t ni_version;
    uint32_t ni_flags;
    uint32_t ni_tx_rings;
    uint32_t ni_rx_rings;
    uint32_t ni_bufs_head;
    uint32_t ni_host_tx_rings;
    uint32_t ni_host_rx_rings;
    uint32_t ni_spare1[3];
    int64_t ring_ofs[]; /* relative to this struct: TX NIC, TX host, RX NIC, RX host; 0 = not bound */
};

_Static_assert(sizeof(struct pr_slot) == 16, "netmap_slot");
_Static_assert(sizeof(struct pr_ring) == 256 && offsetof(struct pr_ring, ts) == 40 && offsetof(struct pr_ring, sem) == 128, "netmap_ring");
_Static_assert(sizeof(struct pr_if) == 56 && offsetof(struct pr_if, ring_ofs) == 56, "netmap_if");

/* ---- ours ---- */

enum { /* pr_meta.flags */
    PR_META_OUTGOING = 1,    /* the host sent it (a watching port sees both directions) */
    PR_META_GSO = 2,         /* a super-frame: the gso_ fields hold; its pieces are what the wire sees */
    PR_META_CSUM_DONE = 4,   /* the kernel says that the checksum was verified */
    PR_META_TRUNCATED = 8,   /* wire_len > the bytes here (snap length) */
    PR_META_HASH = 16,       /* `hash` is one */
};

/* Facts about the frame whose first buffer this is; whoever owns the buffer owns the entry. */
struct pr_meta {
    uint64_t ts_ns;     /* receive time, ns since the epoch */
    uint32_t wire_len;  /* bytes on the wire, 0 = as many as are here */
    uint32_t hash;      /* flow hash, when the receiver computed one */
    uint16_t port;      /* number of the receiving port */
    uint16_t flags;     /* PR_META_ */
    uint8_t gso_type;   /* VIRTIO_NET_HDR_GSO_ */
    uint8_t vnet_flags; /* VIRTIO_NET_HDR_F_ */
    uint16_t hdr_len;   /* as in struct virtio_net_hdr, host byte order */
    uint16_t gso_size;
    uint16_t csum_start;
    uint16_t csum_offset;
    uint16_t out;       /* number of the port it is to leave by, while it is on its way to another worker */
    uint32_t life;      /* while it is queued: which life of `port`, and which vnet that was (engine/netisr_queue.h) */
    uint32_t allowed;   /* while it is queued: the word by which that vnet lets the protocol in */
    uint8_t spare[24];
};
_Static_assert(sizeof(struct pr_meta) == 64, "one cache line a buffer");

struct pr_geometry {
    uint64_t if_ofs, ring_ofs, meta_ofs, buf_ofs;
    uint32_t if_num, if_size, ring_num, ring_size, buf_num, buf_stride;
};

/* In front of every segment; 256 bytes. Written once by the maker; only `state` changes afterwards, and the maker's own
 * pid and start when a successor takes over what was kept for it. */
struct pr_header {
    uint64_t magic;
    uint32_t abi_major, abi_minor;
    uint64_t layout_hash; /* of every offset and size of this file: see region.h */
    uint64_t size;
    uint64_t generation;
    uint32_t kind;
    uint32_t owner_pid;
    uint64_t owner_start; /* the owner's start time, field 22 of /proc/PID/stat: a pid alone may be reused */
    struct pr_geometry geometry;
    uint32_t geometry_crc;
    uint32_t state; /* released last by the maker, acquired by whoever attaches */
    char name[48];
    uint32_t flags;  /* PR_KEPT */
    uint32_t owners; /* the buffers are split into so many homes of equal size */
    uint8_t pad[80];
};
_Static_assert(sizeof(struct pr_header) == 256, "header");

/* The engine's truth about a ring, outside of what an app can write (netmap's kring), and where the queue of the device
 * that serves it stands: whoever replaces a dead process goes on from there (mend.h). `taken` and what is below it are
 * the driver's. */
struct pr_kring {
    uint32_t hwcur;  /* RX: first slot not yet given back; TX: first slot not yet taken by the driver */
    uint32_t hwtail; /* what was published as ring->tail */
    uint32_t rhead;  /* TX: the app's head at the last valid sync */
    uint32_t num_slots;
    uint64_t ring_ofs; /* of the ring object in the region; 0 = unused */
    uint32_t dir;
    uint32_t row;     /* its counters */
    uint32_t reinits; /* protocol violations */
    uint32_t owner;   /* owner id of the process that syncs it, 0 = nobody's: not mended */
    uint32_t doubt;   /* TX: first slot behind those that may have been sent already; hwcur when there are none */
    uint32_t spare;
    uint64_t taken;    /* RX: frames that left the kernel or file; free-running. Stored before anything tells of them */
    uint64_t begun;    /* RX: frames that a call was made for which takes one out at once; above `taken`: in doubt */
    uint64_t handed;   /* RX: frames whose room in a kernel ring was given back */
    uint64_t base;     /* RX: `taken` when the queue was new */
    uint64_t place;    /* where the queue stands, in its driver's own terms */
    uint64_t serial;   /* of the queue that these are about */
    uint8_t fetched[2][16]; /* what such a call brings first (a virtio-net header), in turn; all ones = nothing yet */
};
_Static_assert(sizeof(struct pr_kring) == 128 && offsetof(struct pr_kring, fetched) == 96, "kring");

#endif
