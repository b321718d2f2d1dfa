/* How an app in C finds an engine and asks it for rings: the second half of pktring.h, not to be included alone.
 *
 *     rundir ── control socket ──▶ one message: attach {port, mode, filter, slots}
 *                              ◀── one message: {app, slots, rx: [..], tx: [..]}, and descriptors: the memory, and
 *                                  a bell for each worker
 *
 * The messages are those of engine/control_wire.py; where engines live is in engine/rundir.py. Nothing that comes is
 * believed: sizes, versions, the memory's header and the rings in it are checked before they are used. */
#ifndef PKTRING_ATTACH_H
#define PKTRING_ATTACH_H

#ifndef O_PATH
#define O_PATH 010000000 /* fcntl.h came without _GNU_SOURCE */
#endif
#define PKTRING_ROOM 4032
#define PKTRING_FDS 128
enum { PKTRING_ANSWER = 1u, PKTRING_REFUSED = 2u };

struct pktring_message {
    char magic[4]; /* "prCT" */
    uint16_t major, minor;
    uint32_t flags, length;
    uint64_t request, layout;
    char verb[24], zero[8];
    char body[PKTRING_ROOM + 8]; /* JSON; what is behind PKTRING_ROOM is not sent, and ends it as a string */
};
_Static_assert(offsetof(struct pktring_message, body) == 64, "engine/control_wire.py");

struct pktring_why {
    char *text;
    size_t room;
};

/* Say why not, in one line. -1. */
__attribute__((format(printf, 2, 3))) static inline int pktring_no(struct pktring_why *why, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    if (why->room)
        vsnprintf(why->text, why->room, format, args);
    va_end(args);
    return -1;
}

/* ---- JSON: flat objects without spaces, in which only keys are followed by a colon ---- */

static inline const char *pktring_value(const struct pktring_message *m, const char *key)
{
    const char *at = strstr(m->body, key);
    return at ? at + strlen(key) : "";
}

/* A number, or a list of them. How many; at most `most`. */
static inline uint32_t pktring_numbers(const struct pktring_message *m, const char *key, uint32_t *to, uint32_t most)
{
    const char *at = pktring_value(m, key);
    uint32_t n = 0;
    for (at += *at == '['; n < most && *at >= '0' && *at <= '9'; at += *at == ',') {
        char *end;
        to[n++] = (uint32_t)strtoul(at, &end, 10);
        at = end;
    }
    return n;
}

static inline void pktring_text(const struct pktring_message *m, const char *key, char *to, size_t room)
{
    const char *at = pktring_value(m, key);
    size_t n = 0;
    for (at += *at == '"'; *at && *at != '"' && n + 1 < room; at++) {
        int escaped = *at == '\\' && at[1];
        at += escaped;
        int odd = (unsigned char)*at < ' ' || (escaped && strchr("bfnrtu", *at)); /* \u00e9 becomes ?00e9 */
        to[n++] = odd ? (*at == 'u' ? '?' : ' ') : *at;
    }
    to[n] = 0;
}

/* A string behind what is in the body already. 0; -1 = it was cut. */
static inline int pktring_quote(struct pktring_message *m, const char *key, const char *text)
{
    size_t n = strlen(m->body);
    n += (size_t)snprintf(m->body + n, sizeof m->body - n, "%s\"", key);
    for (; *text && n < PKTRING_ROOM - 64; text++)
        n += (size_t)snprintf(m->body + n, sizeof m->body - n, (unsigned char)*text < ' ' ? "\\u%04x"
                              : strchr("\"\\", *text)                                 ? "\\%c"
                                                                                      : "%c", *text);
    snprintf(m->body + n, sizeof m->body - n, "\"");
    return *text ? -1 : 0;
}

/* ---- where engines live ---- */

/* A folder of root's or this user's that nobody else can write to. */
static inline int pktring_believed(const char *folder)
{
    struct stat s;
    return lstat(folder, &s) == 0 && S_ISDIR(s.st_mode) && !(s.st_mode & 022) &&
           (s.st_uid == 0 || s.st_uid == geteuid());
}

/* A connection to the socket FOLDER/NAME, however long the path is. -1 with errno. */
static inline int pktring_dial(const char *folder, const char *name)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX, .sun_path = {0}};
    struct timeval wait = {.tv_sec = PKTRING_WAIT_S, .tv_usec = 0};
    int dir = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC), sock = -1, is;
    int fits = snprintf(to.sun_path, sizeof to.sun_path, "/proc/self/fd/%d/%s", dir, name) < (int)sizeof to.sun_path;
    if (dir >= 0 && fits && (sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)) >= 0) {
        setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof wait);
        setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
        if (connect(sock, (const struct sockaddr *)&to, sizeof to) < 0) {
            is = errno;
            close(sock);
            sock = -1;
            errno = is;
        }
    }
    is = fits ? errno : ENAMETOOLONG;
    if (dir >= 0)
        close(dir);
    errno = is;
    return sock;
}

static inline int pktring_refused(struct pktring_why *why, const char *where, int is)
{
    if (is == EACCES || is == EPERM)
        return pktring_no(why, "E_PERM may not connect to %s: be a member of its group, or root", where);
    if (is == ENOENT || is == ENOTDIR)
        return pktring_no(why, "E_NO_ENGINE name=%s: no such engine here: see `pktring ps`", where);
    return pktring_no(why, "E_NO_CONTROLLER name=%s: its controller is gone (%s): try again in a moment", where,
                      strerror(is));
}

/* A connection to the controller: of a path with a slash, or of an engine by name, wherever this user's may live. */
static inline int pktring_find(const char *engine, struct pktring_why *why)
{
    char folder[4096];
    const char *slash = strrchr(engine, '/'), *own = getenv("PKTRING_RUNDIR"), *xdg = getenv("XDG_RUNTIME_DIR");
    int sock, worst = ENOENT;
    if (slash) {
        snprintf(folder, sizeof folder, "%.*s", (int)(slash == engine ? 1 : slash - engine), engine);
        return (sock = pktring_dial(folder, slash + 1)) < 0 ? pktring_refused(why, engine, errno) : sock;
    }
    if (!*engine || *engine == '.' || *engine == '-' || strlen(engine) > 32)
        return pktring_no(why, "E_USAGE engine name '%.40s': 1 to 32 letters, digits, _ . -", engine);
    for (int place = 0; place < 3; place++) { /* root's, this user's own two */
        char base[2048];
        if (own)
            snprintf(base, sizeof base, "%s", own);
        else if (place == 1 && xdg && geteuid())
            snprintf(base, sizeof base, "%s/pktring", xdg);
        else
            snprintf(base, sizeof base, place == 0 ? "/run/pktring" : "/tmp/pktring-%u", geteuid());
        snprintf(folder, sizeof folder, "%s/%s", base, engine);
        if (!pktring_believed(base))
            continue;
        if ((sock = pktring_dial(folder, "control.sock")) >= 0)
            return sock;
        if (errno == ENOENT && access(folder, F_OK) == 0)
            worst = ECONNREFUSED; /* it is there, and between two controllers */
        else if (errno != ENOENT)
            worst = errno;
    }
    return pktring_refused(why, engine, worst);
}

/* ---- one question ---- */

static inline void pktring_drop(const int *fds, uint32_t n)
{
    while (n)
        close(fds[--n]);
}

/* The answer into `m`. How many descriptors came; -1: none is left open. */
static inline int pktring_hear(int sock, struct pktring_message *m, int *fds, struct pktring_why *why)
{
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(PKTRING_FDS * sizeof(int))];
    } notes;
    memset(m, 0, sizeof *m);
    struct iovec io = {m, offsetof(struct pktring_message, body) + PKTRING_ROOM + 1}; /* and a byte: too long */
    struct msghdr h;
    memset(&h, 0, sizeof h);
    h.msg_iov = &io;
    h.msg_iovlen = 1;
    h.msg_control = &notes;
    h.msg_controllen = sizeof notes;
    ssize_t got;
    do
        got = recvmsg(sock, &h, MSG_CMSG_CLOEXEC);
    while (got < 0 && errno == EINTR);
    if (got <= 0)
        return pktring_no(why, "E_NO_CONTROLLER the engine's controller %s",
                          got ? "did not answer: try again" : "hung up: see its log");
    uint32_t n = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&h); c; c = CMSG_NXTHDR(&h, c))
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS && !n)
            memcpy(fds, CMSG_DATA(c), (n = (uint32_t)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int))) * sizeof(int));
    int whole = got == (ssize_t)(io.iov_len - 1) && !(h.msg_flags & MSG_CTRUNC);
    int ours = got >= 8 && memcmp(m->magic, "prCT", 4) == 0;
    int refused = m->flags == (PKTRING_ANSWER | PKTRING_REFUSED) && !n;
    if (ours && m->major == 1 && whole && m->length <= PKTRING_ROOM && (refused || m->flags == PKTRING_ANSWER))
        return (int)n;
    pktring_drop(fds, n);
    if (ours && m->major != 1)
        return pktring_no(why, "E_ABI control version %u.%u there, 1.0 here: run the same pktring on both sides",
                          m->major, m->minor);
    return pktring_no(why, "E_CTRL_MSG no answer of a pktring engine");
}

/* Attach; `m` has the answer then. How many descriptors came, -1. */
static inline int pktring_ask(int sock, const char *port, int consume, const char *filter, struct pktring_message *m,
                              int *fds, struct pktring_why *why)
{
    memset(m, 0, sizeof *m);
    if (pktring_quote(m, "{\"port\":", port) + pktring_quote(m, ",\"filter\":", filter ? filter : "") < 0)
        return pktring_no(why, "E_CTRL_MSG port and filter are too long for a message: shorten the filter");
    size_t n = strlen(m->body);
    n += (size_t)snprintf(m->body + n, sizeof m->body - n, ",\"mode\":\"%s\",\"slots\":%d}",
                          consume ? "consume" : "copy", PKTRING_SLOTS);
    memcpy(m->magic, "prCT", 4);
    memcpy(m->verb, "attach", 6);
    m->major = 1;
    m->length = (uint32_t)n;
    m->request = 1;
    m->layout = pr_layout_hash();
    if (send(sock, m, offsetof(struct pktring_message, body) + PKTRING_ROOM, MSG_NOSIGNAL) < 0 && errno != EPIPE)
        return pktring_no(why, "E_NO_CONTROLLER %s: try again", strerror(errno)); /* EPIPE: turned away, and told why */
    int got = pktring_hear(sock, m, fds, why);
    if (got < 0 || !(m->flags & PKTRING_REFUSED))
        return got;
    char code[32], text[512];
    pktring_text(m, "\"code\":", code, sizeof code);
    pktring_text(m, "\"text\":", text, sizeof text);
    return pktring_no(why, "%s %s", code, text);
}

/* ---- what came with the answer ---- */

/* Map the memory, if it is what this header understands. */
static inline int pktring_map(struct pktring_port *p, int fd, struct pktring_why *why)
{
    struct pr_header h;
    struct stat s;
    const char *bad = NULL;
    memset(&h, 0, sizeof h);
    if (fstat(fd, &s) < 0 || pread(fd, &h, sizeof h, 0) != (ssize_t)sizeof h || h.magic != PR_MAGIC)
        bad = "magic";
    else if (h.abi_major != PR_ABI_MAJOR || h.layout_hash != pr_layout_hash())
        bad = "layout";
    else if (h.kind != PR_MEM || h.state != PR_READY)
        bad = "state";
    else if (h.size != (uint64_t)s.st_size || !pr_geometry_ok(&h.geometry, h.size))
        bad = "geometry";
    if (bad)
        return pktring_no(why, "E_ABI the engine's memory: %s: run the same pktring on both sides", bad);
    void *mem = mmap(NULL, h.size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mem == MAP_FAILED)
        return pktring_no(why, "E_SHM_SPACE map the engine's memory: %s", strerror(errno));
    p->rg.mem = (uint8_t *)mem;
    p->rg.g = h.geometry;
    p->size = h.size;
    return 0;
}

static inline int pktring_ring(struct pktring_port *p, uint32_t index, uint32_t dir, uint32_t slots, struct pr_ringh *h)
{
    const struct pr_geometry *g = &p->rg.g;
    if (index >= g->ring_num || slots < 2 || slots > (g->ring_size - sizeof(struct pr_ring)) / sizeof(struct pr_slot))
        return -1;
    h->ring = (struct pr_ring *)(p->rg.mem + g->ring_ofs + (uint64_t)index * g->ring_size);
    h->rg = &p->rg;
    h->n = slots;
    return h->ring->num_slots == slots && h->ring->dir == dir && h->ring->head < slots ? 0 : -1;
}

/* Takes the descriptors over. */
static inline int pktring_take_over(struct pktring_port *p, const struct pktring_message *m, const int *fds,
                                    uint32_t n_fds, struct pktring_why *why)
{
    uint32_t rx[PKTRING_RINGS], tx[PKTRING_RINGS], slots = 0, n = pktring_numbers(m, "\"rx\":", rx, PKTRING_RINGS);
    char memory[8];
    int fits = n && n == pktring_numbers(m, "\"tx\":", tx, PKTRING_RINGS) && n_fds == n + 1 &&
               pktring_numbers(m, "\"slots\":", &slots, 1) && pktring_numbers(m, "\"app\":", &p->app, 1);
    if (!fits || pktring_map(p, fds[0], why) < 0) {
        pktring_drop(fds, n_fds);
        return fits ? -1 : pktring_no(why, "E_ABI %u descriptors for %u rings: run the same pktring on both sides",
                                      n_fds, n);
    }
    close(fds[0]);
    pktring_text(m, "\"memory\":", memory, sizeof memory);
    p->shared = strcmp(memory, "shared") == 0;
    for (; p->n < n; p->n++) {
        struct pktring_queue *q = &p->queue[p->n];
        struct epoll_event e = {.events = EPOLLIN, .data = {.fd = 0}};
        if (pktring_ring(p, rx[p->n], PR_RX, slots, &q->rx) + pktring_ring(p, tx[p->n], PR_TX, slots, &q->tx) < 0) {
            pktring_drop(fds + 1 + p->n, n - p->n);
            return pktring_no(why, "E_ABI rings are not what was promised: run the same pktring on both sides");
        }
        if (pr_appdev_open(&q->dev, fds[1 + p->n]) < 0 || epoll_ctl(p->fd, EPOLL_CTL_ADD, q->dev.dev.rx_fd, &e) < 0) {
            pktring_no(why, "E_FD_LIMIT %s; raise LimitNOFILE", strerror(errno));
            pr_appdev_close(&q->dev);
            pktring_drop(fds + 2 + p->n, n - p->n - 1);
            return -1;
        }
        p->rx[p->n] = q->rx.ring;
        p->tx[p->n] = q->tx.ring;
    }
    return 0;
}

/* Attach to a port of a running engine. `engine`: its name, or the path of its control socket; NULL is "default".
 * `consume`: the frames themselves (members of the engine's group), else copies. `filter`: pcap-filter(7), NULL is all.
 * NULL: `err` is one line, "E_CODE what is wrong: what to do". */
static inline struct pktring_port *pktring_attach(const char *engine, const char *port, int consume, const char *filter,
                                                  char *err, size_t errlen)
{
    struct pktring_why why = {err, errlen};
    struct pktring_message m;
    int fds[PKTRING_FDS], got;
    struct pktring_port *p = (struct pktring_port *)calloc(1, sizeof *p);
    if (!p) {
        pktring_no(&why, "E_NO_MEMORY %zu bytes", sizeof *p);
        return NULL;
    }
    p->control = -1;
    p->fd = epoll_create1(EPOLL_CLOEXEC);
    if (p->fd < 0)
        pktring_no(&why, "E_FD_LIMIT %s; raise LimitNOFILE", strerror(errno));
    else if ((p->control = pktring_find(engine ? engine : "default", &why)) >= 0 &&
             (got = pktring_ask(p->control, port, consume, filter, &m, fds, &why)) >= 0 &&
             pktring_take_over(p, &m, fds, (uint32_t)got, &why) == 0)
        return p;
    pktring_close(p);
    return NULL;
}

#endif
