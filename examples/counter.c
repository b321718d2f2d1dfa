/* Count the frames and bytes of a port of a running engine, once a second; -s sends the first one back where it came from.
 *
 *     cc -O2 -I"$(python -c 'import pktring; print(pktring.get_include())')" -o counter counter.c
 *     ./counter left                      # until SIGINT
 *     ./counter -e edge -n 1000 -f 'udp' -s left
 *
 * counter.py does the same in Python. */
#include <pktring.h>

#include <signal.h>
#include <time.h>

static volatile sig_atomic_t over;

static void on_signal(int number)
{
    (void)number;
    over = 1;
}

/* A frame as it came, from its receiver to its sender. */
static int send_back(struct pktring_port *port, const struct pktring_frame *f)
{
    static uint8_t frame[65536];
    uint8_t sender[6];
    uint32_t length = pktring_copy(port, f, frame, sizeof frame);
    memcpy(sender, frame + 6, 6);
    memcpy(frame + 6, frame, 6);
    memcpy(frame, sender, 6);
    int sent = pktring_send(port, frame, length);
    pktring_flush(port);
    return sent;
}

int main(int argc, char **argv)
{
    const char *engine = NULL, *filter = NULL;
    uint64_t most = UINT64_MAX, frames = 0, bytes = 0, told_frames = 0, told_bytes = 0;
    int back = 0;
    for (int c; (c = getopt(argc, argv, "e:n:f:s")) != -1;) {
        if (c == 'e')
            engine = optarg;
        else if (c == 'n')
            most = strtoull(optarg, NULL, 10);
        else if (c == 'f')
            filter = optarg;
        else if (c == 's')
            back = 1;
        else
            return 2;
    }
    if (optind + 1 != argc)
        return fprintf(stderr, "usage: counter [-e ENGINE] [-n FRAMES] [-f FILTER] [-s] PORT\n"), 2;

    char why[512];
    struct pktring_port *port = pktring_attach(engine, argv[optind], 0, filter, why, sizeof why);
    if (!port)
        return fprintf(stderr, "counter: %s\n", why), 1;
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    fprintf(stderr, "counter: app %u on %s, %s memory\n", port->app, argv[optind], port->shared ? "shared" : "sealed");

    struct pollfd wait = {.fd = pktring_fd(port), .events = POLLIN};
    time_t second = time(NULL);
    while (!over && frames < most && !pktring_error(port)) {
        struct pktring_frame f[64];
        uint32_t n = pktring_recv(port, f, most - frames < 64 ? (uint32_t)(most - frames) : 64);
        for (uint32_t i = 0; i < n; i++) {
            bytes += f[i].frame_length;
            if (back && f[i].frame_length >= 14)
                back = send_back(port, &f[i]) == 0; /* the ring is full: with the next one */
        }
        frames += n;
        if (time(NULL) != second) {
            second = time(NULL);
            printf("%lu frames/s  %lu bytes/s\n", frames - told_frames, bytes - told_bytes);
            fflush(stdout);
            told_frames = frames;
            told_bytes = bytes;
        }
        if (!n)
            poll(&wait, 1, 1000);
    }
    int end = pktring_error(port);
    printf("%lu frames, %lu bytes, %lu dropped\n", frames, bytes, pktring_dropped(port));
    pktring_close(port);
    if (end)
        fprintf(stderr, "counter: %s\n", end == EPERM ? "E_RING_PROTO in quarantine" : "E_DETACHED the engine let go of us");
    return end != 0;
}
