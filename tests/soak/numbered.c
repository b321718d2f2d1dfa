/* Numbered frames at a rate, and who hears them: the truth that counters are compared with.
 *
 *   numbered tx INTERFACE FLOWS FRAMES_PER_S STATE      until SIGTERM; 0 = as fast as it goes
 *   numbered rx INTERFACE FLOWS PAUSE_US STATE          until SIGTERM
 *
 * Flow f is UDP from 10.1.0.f, port 1000 + f. A frame says its flow, its number in that flow, and a sum over both; the rest is a pattern.
 * Each says what it did as one JSON object at its end; STATE is a file of two words, [frames heard, frames sent], kept up to
 * date. Times are CLOCK_REALTIME in microseconds, those of the receiver are the kernel's. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { HEADERS = 14 + 20 + 8, SIZE = 80, BURST = 32, MAX_FLOWS = 256, MAX_PAUSES = 200000 };
#define MAGIC 0x706b7472u

struct payload {
    uint32_t magic, flow;
    uint64_t number;
    uint32_t sum, pattern[3];
};
_Static_assert(HEADERS + sizeof(struct payload) <= SIZE, "it fits");

static volatile sig_atomic_t over;
static uint64_t *state; /* [0] heard, [1] sent */
static uint32_t flows;

static void stop(int number) { over = number; }

static void need(int ok, const char *what)
{
    if (!ok) {
        perror(what);
        exit(1);
    }
}

static uint64_t now_us(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static uint32_t sum_of(const struct payload *p)
{
    uint64_t x = (p->number + 1) * 0x9e3779b97f4a7c15ull ^ (uint64_t)p->flow * 0xbf58476d1ce4e5b9ull;
    return (uint32_t)(x >> 32 ^ x);
}

static int opened(const char *name, int protocol)
{
    int fd = socket(AF_PACKET, SOCK_RAW, 0);
    need(fd >= 0, "socket");
    struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_protocol = htons((uint16_t)protocol),
                             .sll_ifindex = (int)if_nametoindex(name)};
    need(to.sll_ifindex > 0, name);
    int bytes = 512 << 20, on = 1;
    if (protocol) {
        if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes)) /* in a user namespace */
            setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
        need(!setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on), "SO_TIMESTAMPNS");
        need(!setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof on), "PACKET_IGNORE_OUTGOING");
    }
    need(!bind(fd, (struct sockaddr *)&to, sizeof to), "bind");
    return fd;
}

/* ---- send ---- */

static void fill(uint8_t *frame, uint32_t flow)
{
    static const uint8_t start[] = {2, 0, 0, 0, 9, 2, 2, 0, 0, 0, 9, 1, 8, 0, 0x45, 0, 0, SIZE - 14, 0, 0, 0x40, 0,
                                    64, 17, 0, 0, 10, 1, 0, 1, 10, 1, 0, 2};
    uint32_t sum = 0;
    memcpy(frame, start, sizeof start);
    frame[29] = (uint8_t)flow; /* UDP's ports are not in the hash that netisr places by */
    for (int i = 14; i < 34; i += 2)
        sum += (uint32_t)(frame[i] << 8 | frame[i + 1]);
    sum = ~((sum & 0xffff) + (sum >> 16)) & 0xffff;
    frame[24] = (uint8_t)(sum >> 8), frame[25] = (uint8_t)sum;
    const uint16_t udp[4] = {htons((uint16_t)(1000 + flow)), htons(2000), htons(SIZE - 34), 0};
    memcpy(frame + 34, udp, sizeof udp);
}

static void say(uint8_t *frame, uint32_t flow, uint64_t number)
{
    struct payload p = {.magic = MAGIC, .flow = flow, .number = number};
    p.sum = sum_of(&p);
    for (int i = 0; i < 3; i++)
        p.pattern[i] = p.sum * (uint32_t)(i + 2);
    memcpy(frame + HEADERS, &p, sizeof p);
}

static int send_them(const char *name, double rate)
{
    static uint8_t frame[BURST][SIZE];
    static uint64_t sent[MAX_FLOWS];
    struct iovec iov[BURST];
    struct mmsghdr msg[BURST] = {0};
    uint64_t refused = 0, total = 0, began = now_us(CLOCK_MONOTONIC);
    int fd = opened(name, 0);
    for (int i = 0; i < BURST; i++) {
        iov[i] = (struct iovec){frame[i], SIZE};
        msg[i].msg_hdr = (struct msghdr){.msg_iov = &iov[i], .msg_iovlen = 1};
    }
    while (!over) {
        if (rate > 0 && (double)total > rate * (double)(now_us(CLOCK_MONOTONIC) - began) / 1e6) {
            usleep(50);
            continue;
        }
        uint64_t ahead[MAX_FLOWS] = {0};
        for (uint32_t i = 0; i < BURST; i++) {
            uint32_t flow = (uint32_t)((total + i) % flows);
            fill(frame[i], flow);
            say(frame[i], flow, sent[flow] + ahead[flow]++);
        }
        int n = sendmmsg(fd, msg, BURST, 0);
        if (n < 0) {
            need(errno == ENOBUFS || errno == EINTR || errno == ENETDOWN || errno == EAGAIN, "sendmmsg");
            refused++;
            sched_yield();
            continue;
        }
        for (uint32_t i = 0; i < (uint32_t)n; i++)
            sent[(total + i) % flows]++;
        total += (uint64_t)n;
        __atomic_store_n(&state[1], total, __ATOMIC_RELAXED);
    }
    printf("{\"total\": %lu, \"refused\": %lu, \"seconds\": %f, \"sent\": [", total, refused,
           (double)(now_us(CLOCK_MONOTONIC) - began) / 1e6);
    for (uint32_t f = 0; f < flows; f++)
        printf("%s%lu", f ? ", " : "", sent[f]);
    puts("]}");
    return 0;
}

/* ---- receive ---- */

struct heard {
    uint64_t next, count, twice, reordered, last_us;
    uint8_t *seen; /* a bit a number */
    uint64_t room;
};

struct pause {
    uint64_t from_us, to_us, lost;
    uint32_t flow;
};

static struct heard heard[MAX_FLOWS];
static struct pause *pauses;
static uint64_t n_pauses, wrong, total;

static int seen_before(struct heard *h, uint64_t number)
{
    if (number >= h->room) {
        uint64_t more = (number + 8) * 2;
        need((h->seen = realloc(h->seen, more / 8 + 1)) != NULL, "realloc");
        memset(h->seen + h->room / 8, 0, more / 8 + 1 - h->room / 8);
        h->room = more / 8 * 8;
    }
    int was = h->seen[number / 8] >> number % 8 & 1;
    h->seen[number / 8] |= (uint8_t)(1u << number % 8);
    return was;
}

static void look(const uint8_t *frame, size_t length, uint64_t us, uint64_t pause_us)
{
    struct payload p;
    if (length < HEADERS + sizeof p)
        return;
    memcpy(&p, frame + HEADERS, sizeof p);
    if (p.magic != MAGIC)
        return;
    if (p.flow >= flows || length != SIZE || p.sum != sum_of(&p) || p.pattern[2] != p.sum * 4 || p.number > 1ull << 36) {
        wrong++;
        return;
    }
    struct heard *h = &heard[p.flow];
    if (seen_before(h, p.number)) {
        h->twice++;
        return;
    }
    h->count++;
    __atomic_store_n(&state[0], ++total, __ATOMIC_RELAXED);
    if (p.number < h->next) {
        h->reordered++;
        return;
    }
    uint64_t lost = p.number - h->next;
    if ((lost || us - h->last_us > pause_us) && h->last_us && n_pauses < MAX_PAUSES)
        pauses[n_pauses++] = (struct pause){h->last_us, us, lost, p.flow};
    h->next = p.number + 1;
    h->last_us = us;
}

static uint64_t stamp(struct msghdr *m)
{
    struct cmsghdr *c = CMSG_FIRSTHDR(m);
    struct timespec t = {0};
    if (c && c->cmsg_type == SCM_TIMESTAMPNS)
        memcpy(&t, CMSG_DATA(c), sizeof t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void tell_heard(int fd)
{
    struct tpacket_stats stats = {0};
    socklen_t size = sizeof stats;
    getsockopt(fd, SOL_PACKET, PACKET_STATISTICS, &stats, &size);
    printf("{\"total\": %lu, \"wrong\": %lu, \"listener_lost\": %u, \"heard\": [", total, wrong, stats.tp_drops);
    for (uint32_t f = 0; f < flows; f++)
        printf("%s%lu", f ? ", " : "", heard[f].count);
    printf("], \"twice\": [");
    for (uint32_t f = 0; f < flows; f++)
        printf("%s%lu", f ? ", " : "", heard[f].twice);
    printf("], \"reordered\": [");
    for (uint32_t f = 0; f < flows; f++)
        printf("%s%lu", f ? ", " : "", heard[f].reordered);
    printf("], \"pauses\": [");
    for (uint64_t i = 0; i < n_pauses; i++)
        printf("%s[%u, %lu, %lu, %lu]", i ? ", " : "", pauses[i].flow, pauses[i].from_us, pauses[i].to_us, pauses[i].lost);
    puts("]}");
}

static int hear_them(const char *name, uint64_t pause_us)
{
    static uint8_t frame[64][2048], control[64][64];
    struct iovec iov[64];
    struct mmsghdr msg[64] = {0};
    struct timeval wait = {.tv_usec = 20000};
    int fd = opened(name, ETH_P_ALL);
    need((pauses = calloc(MAX_PAUSES, sizeof *pauses)) != NULL, "calloc");
    need(!setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait), "SO_RCVTIMEO");
    for (int i = 0; i < 64; i++)
        iov[i] = (struct iovec){frame[i], sizeof frame[i]};
    puts("ready");
    fflush(stdout);
    for (int last = 0; !last;) {
        last = over; /* what had come by then is still read */
        int n;
        do {
            for (int i = 0; i < 64; i++)
                msg[i].msg_hdr = (struct msghdr){.msg_iov = &iov[i], .msg_iovlen = 1, .msg_control = control[i],
                                                 .msg_controllen = sizeof control[i]};
            n = recvmmsg(fd, msg, 64, MSG_WAITFORONE, NULL);
            for (int i = 0; i < n; i++)
                look(frame[i], msg[i].msg_len, stamp(&msg[i].msg_hdr), pause_us);
        } while (n > 0);
    }
    tell_heard(fd);
    return 0;
}

int main(int argc, char **argv)
{
    need(argc == 6, "numbered tx|rx INTERFACE FLOWS NUMBER STATE");
    flows = (uint32_t)atoi(argv[3]);
    need(flows > 0 && flows <= MAX_FLOWS, "FLOWS");
    int fd = open(argv[5], O_RDWR);
    state = mmap(NULL, 16, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    need(state != MAP_FAILED, argv[5]);
    struct sigaction act = {.sa_handler = stop};
    sigaction(SIGTERM, &act, NULL);
    sigaction(SIGINT, &act, NULL);
    return argv[1][0] == 't' ? send_them(argv[2], atof(argv[4])) : hear_them(argv[2], (uint64_t)atoll(argv[4]));
}
