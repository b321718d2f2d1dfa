/* What every process that holds a device has to know of its link at once. One of them follows the link and writes it; the
 * others read it on the path, from the same page (live.py): a word at a time, each true by itself.
 * Who reads the name while it is written finds no such interface, and counts its drops the next time. */
#ifndef PR_LIVE_H
#define PR_LIVE_H

#include <stdint.h>

struct pr_live {
    uint32_t no_carrier; /* the kernel would drop what it is sent, and not say so */
    uint32_t mtu;
    uint64_t netns_inode; /* what the file below must be */
    char netns[64]; /* where the interface is now: the file that is its namespace; "" = where it was opened */
    char name[16];  /* of the interface, whose drops are counted */
};

#endif
