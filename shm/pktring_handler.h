/* A handler in C: a function that a worker of pktring calls with a burst of frames of its protocol.
 *
 *     #include <pktring_handler.h>                  cc -O2 -shared -fPIC -I$(python -c 'import pktring; print(pktring.get_include())')
 *
 *     void only_ip(struct pktring_batch *b)
 *     {
 *         for (uint32_t i = 0; i < b->n; i++)
 *             if (b->length[i] >= 14 && b->frame[i][12] == 8 && b->frame[i][13] == 0)
 *                 b->verdict[i] = 1;                // leaves by port 1; the others end here
 *     }
 *
 * It is named to the engine as `so:/path/lib.so:only_ip`. It runs on the path, without the Python interpreter, one call at
 * a time in each worker process: static variables are a worker's own. It may write into frames, but keeps no pointer
 * after it has returned; it does not sleep. Arrays have n entries, entry i is frame i. */
#ifndef PKTRING_HANDLER_H
#define PKTRING_HANDLER_H

#include <stdint.h>

#define PKTRING_HANDLER_VERSION 1 /* grows when fields are added at the end; nothing is ever moved */
#define PKTRING_DONE (-1)         /* verdict: the frame ends here. What every verdict says before the call */

struct pktring_batch {
    uint32_t version;
    uint32_t n;                   /* frames, 1 to 64 */
    uint32_t port_count;          /* ports are numbered from 0 to port_count - 1 */
    uint32_t raised;              /* 0; the handler may write how many frames it failed at, for the statistics */
    uint8_t *const *frame;        /* the frame's first buffer, */
    const uint32_t *length;       /* the bytes that it holds: all of the frame, */
    const uint32_t *frame_length; /* unless this is more (a jumbo frame or a super-frame goes on in other buffers) */
    const uint64_t *timestamp_ns; /* received then, since the epoch; 0 = not known */
    const uint16_t *port;         /* number of the port it came in by */
    const uint32_t *hash;         /* of its flow, 0 = none computed */
    int32_t *verdict;             /* PKTRING_DONE, or the number of the port to send the frame by */
    void *state;                  /* what was registered with the function, NULL = nothing */
};

typedef void (*pktring_handler)(struct pktring_batch *batch);

#endif
