/* The null device: receives copies of one frame as fast as it is asked, or nothing; swallows what is sent. */
#ifndef PR_NULL_H
#define PR_NULL_H

#include "device.h"

#define PR_NULL_LONGEST 65535
#define PR_NULL_SERIAL 0x6c6c756eull /* of every one: how many frames came is the ring's to know */

struct pr_null {
    struct pr_device dev;
    uint64_t count, left; /* frames in all and still to come, UINT64_MAX = no end */
    uint32_t len;  /* of a frame; 0 = nothing is ever received */
    uint16_t port;
    uint8_t template[PR_NULL_LONGEST];
};

int pr_null_rx(struct pr_device *, struct pr_ringh *);
int pr_null_tx(struct pr_device *, struct pr_ringh *);
extern const struct pr_device_ops pr_null_ops;

#endif
