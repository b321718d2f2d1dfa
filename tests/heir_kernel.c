/* A worker's loop at its smallest, for tests that kill it: claim a burst, exchange it into the transmit ring, send. */
#define _GNU_SOURCE
#include "device.h"
#include "move.h"

#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/socket.h>

static uint32_t forward(struct pr_ringh *rx, struct pr_ringh *tx)
{
    uint32_t begun = rx->ring->head, tail = pr_load(&rx->ring->tail), end = begun, slots, at = tx->ring->head, frames = 0;
    while ((slots = pr_frame_slots(rx, end, tail)) != 0 && pr_dist(rx, begun, end) + slots <= PR_BURST_MOST)
        end = pr_ahead(rx, end, slots);
    if (begun == end || pr_tx_room(tx, at) < PR_BURST_MOST)
        return 0;
    pr_ring_advance(rx, end);
    for (uint32_t i = begun; i != end; i = pr_ahead(rx, i, slots), frames++) {
        slots = pr_frame_slots(rx, i, end);
        at = pr_ahead(tx, at, pr_move_swap(rx, i, slots, tx, at));
        pr_count(tx->row, PR_C_tx_queued, 1);
    }
    pr_ring_advance(tx, at);
    pr_count(rx->row, PR_C_forwarded, frames);
    return frames;
}

/* Until killed; with `idle`, until nothing has come for so many ms. 0, or -1 after a breach. */
int work(struct pr_ringh *rx, struct pr_ringh *tx, int idle)
{
    for (;;) {
        int got = pr_rxsync(rx);
        uint32_t moved = forward(rx, tx);
        int sent = pr_txsync(tx);
        if (got < 0 || sent < 0)
            return -1;
        if (got || moved || sent)
            continue;
        struct pollfd fd[] = {{.fd = rx->dev->rx_fd, .events = POLLIN},
                              {.fd = pr_tx_pending(tx) ? tx->dev->tx_fd : -1, .events = POLLOUT}};
        if (poll(fd, 2, idle ? idle : 10) == 0 && idle)
            return 0;
    }
}

/* `sent` counts as it goes. */
void send_all(int fd, const uint8_t *frames, uint32_t n, uint32_t size, uint32_t *sent)
{
    for (uint32_t i = 0; i < n; i++)
        if (send(fd, frames + (size_t)i * size, size, 0) == (ssize_t)size)
            pr_store(sent, *sent + 1);
}

/* Kill when so many are sent. */
int kill_at(int pid, uint32_t *sent, uint32_t n)
{
    while (pr_load(sent) < n)
        sched_yield();
    return kill(pid, SIGKILL);
}
