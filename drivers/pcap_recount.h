/* A file that several processes hold: one writes its records, another ends it. Who does counts first what was written.
 *
 *   |.... start .... header, records that we know of |.... records since .... | half a record of one who died |
 *                                                    start + bytes            ends here
 *
 * The truth is in the file: whole blocks follow each other, and an ISB is written only at a file's end. */
#ifndef PR_PCAP_RECOUNT_H
#define PR_PCAP_RECOUNT_H

#include "pcap_writer.h"

/* Count the whole records behind those that we know of. `fd` reads the file from anywhere; buf holds nothing (it is no
 * pipe). Nonzero = an ISB is among them: somebody ended the file. */
static inline int pr_pcap_recount(struct pr_pcap_writer *w, int fd)
{
    int ended = 0;
    for (uint32_t off = 1; off;) {
        ssize_t n = pread(fd, w->buf, PR_PCAP_WRITE, (off_t)(w->start + w->bytes));
        off = 0;
        for (uint32_t type, total, interface; n >= 12 && off <= (size_t)n - 12; off += total) {
            memcpy(&type, w->buf + off, 4);
            memcpy(&total, w->buf + off + 4, 4);
            memcpy(&interface, w->buf + off + 8, 4);
            if (total < 12 || total % 4 || total > (size_t)n - off)
                break;
            if (type == PR_PCAPNG_EPB && interface < w->n_ifs)
                w->ifs[interface].frames++;
            ended |= type == PR_PCAPNG_ISB;
        }
        w->bytes += off;
    }
    return ended;
}

#endif
