/* The contract between whoever runs rings and the drivers that serve them: a burst in, a burst out, a descriptor to
 * wait on. One pr_device is one queue of an interface (a socket, a TAP queue, a file) and serves one RX ring, one TX
 * ring, or both. Devices cross from the drivers' extension to the others' as a capsule named PR_DEVICE_CAPSULE.
 *
 * The caller has done pr_rx_enter / pr_tx_enter. A driver never blocks, never allocates and enters the kernel a bounded
 * number of times a call. */
#ifndef PR_DEVICE_H
#define PR_DEVICE_H

#include "ring.h"

#include <sys/stat.h>

#define PR_DEVICE_CAPSULE "pktring.device"

enum { /* pr_device.flags */
    PR_DEV_CARRIES_GSO = 1, /* tx takes super-frames whole (metadata says how to cut them) */
    PR_DEV_WHOLE = 2,       /* rx hands super-frames up whole; set by the owner of the rings, default is to cut them */
    PR_DEV_END = 4,         /* rx has reached the end of its input (a file): nothing will come any more */
    PR_DEV_PAUSED = 8,      /* tx takes nothing until somebody acts (a file that is to be rotated, a full disk) */
};

struct pr_device {
    const struct pr_device_ops *ops;
    int rx_fd; /* readable when rx has something; -1 = always worth a call */
    int tx_fd; /* writable when tx can go on; -1 = always */
    uint32_t flags;
    int error; /* errno of the last refusal that is not about one frame (ENETDOWN, ENXIO, ENOSPC), 0 = none */
    uint64_t serial; /* tells this queue from another that a ring is bound to later, in every process that has it */
};

struct pr_device_ops {
    const char *name;
    /* Fill slots from hwtail on with frames and their metadata, publish them. Slots filled; 0 = nothing there. */
    int (*rx)(struct pr_device *, struct pr_ringh *);
    /* Take [hwcur, rhead) as far as the device will, pr_tx_done what it took. Slots taken; counts what it drops. */
    int (*tx)(struct pr_device *, struct pr_ringh *);
    /* Bring the kernel's own drop counts into the row. At most a few times a second. */
    void (*stats)(struct pr_device *, struct pr_ringh *);
    /* A dead process drove the queue: what this one believes is older than what the kring says (mend.h). NULL = there is
     * nothing but the ring. */
    void (*resume)(struct pr_device *, struct pr_ringh *);
};

/* What all holders of a descriptor agree on, and no other socket or file has. */
static inline uint64_t pr_serial_of(int fd)
{
    struct stat s;
    return fstat(fd, &s) < 0 ? 0 : (uint64_t)s.st_dev << 40 ^ s.st_ino;
}

/* Is what the kring says about this queue? */
static inline int pr_device_known(const struct pr_device *dev, const struct pr_ringh *h)
{
    return h->k->serial == dev->serial;
}

/* It is from now on; the queue stands at frame `at` of its ring, or `place` in its own terms. */
static inline void pr_device_meet(const struct pr_device *dev, struct pr_ringh *h, uint64_t at, uint64_t place)
{
    struct pr_kring *k = h->k;
    k->handed = k->begun = k->taken;
    k->base = k->taken - at;
    k->place = place;
    __atomic_store_n(&k->serial, dev->serial, __ATOMIC_RELEASE);
}

static inline void pr_resume(struct pr_ringh *h)
{
    if (h->dev && h->dev->ops->resume)
        h->dev->ops->resume(h->dev, h);
}

static inline int pr_rxsync(struct pr_ringh *h)
{
    if (pr_rx_enter(h) < 0)
        return -1;
    return h->dev && h->dev->ops->rx ? h->dev->ops->rx(h->dev, h) : 0;
}

static inline int pr_txsync(struct pr_ringh *h)
{
    if (pr_tx_enter(h) < 0)
        return -1;
    return h->dev && h->dev->ops->tx && pr_tx_pending(h) ? h->dev->ops->tx(h->dev, h) : 0;
}

#endif
