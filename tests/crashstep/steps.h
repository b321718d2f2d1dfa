/* One operation, instruction by instruction: a forked victim runs it under ptrace(2) PTRACE_SINGLESTEP.
 *
 * After each instruction the shared memory is what a SIGKILL there would leave, so it is judged on the spot, while the
 * victim waits, and put back. Where it did not change since the instruction before, neither does the judgement. That
 * the shortcut tells the truth is shown by samples: victims that are really killed at an instruction leave, byte for
 * byte, the memory that was seen there. */
#ifndef STEPS_H
#define STEPS_H

#include "world.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

enum { BEFORE, INSIDE, BEHIND };
static volatile int *phase; /* a page of its own: where the victim is, not part of the world */

static pid_t victim(void (*operation)(void))
{
    int status;
    *phase = BEFORE;
    pid_t pid = fork();
    if (pid < 0)
        give_up("fork");
    if (pid == 0) {
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        raise(SIGSTOP);
        *phase = INSIDE;
        operation();
        *phase = BEHIND;
        for (;;)
            raise(SIGSTOP);
    }
    if (waitpid(pid, &status, 0) != pid || !WIFSTOPPED(status) ||
        ptrace(PTRACE_SETOPTIONS, pid, NULL, (void *)PTRACE_O_EXITKILL) < 0)
        give_up("the victim does not stop");
    return pid;
}

/* One instruction further. Whether it is inside of the operation, or has yet to come to it. */
static int step(pid_t pid)
{
    int status;
    if (ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL) < 0 || waitpid(pid, &status, 0) != pid)
        give_up("single-step");
    if (!WIFSTOPPED(status) || WSTOPSIG(status) != SIGTRAP) {
        fprintf(stderr, "the victim died by itself: status %x\n", status);
        exit(3);
    }
    return *phase != BEHIND;
}

static void bury(pid_t pid)
{
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

/* ---- every point of an operation ---- */

struct states { /* of the shared memory, in the order in which they come */
    uint8_t **copy;
    uint64_t *first; /* the point at which it appears */
    uint32_t n;
};

static void remember(struct states *s, uint64_t point)
{
    s->copy = realloc(s->copy, (s->n + 1) * sizeof *s->copy);
    s->first = realloc(s->first, (s->n + 1) * sizeof *s->first);
    s->copy[s->n] = malloc(W.size);
    memcpy(s->copy[s->n], W.base, W.size);
    s->first[s->n++] = point;
}

static void forget(struct states *s)
{
    while (s->n)
        free(s->copy[--s->n]);
    free(s->copy);
    free(s->first);
    *s = (struct states){0};
}

struct tally {
    uint64_t points, states, clean, bad[N_KINDS];
};

/* Judge every point. The verdict of `judge` is a mask of kinds; it finds the world as it was left and may change it. */
static void walk(void (*operation)(void), unsigned (*judge)(void), struct states *s, struct tally *t)
{
    unsigned found = 0;
    pid_t pid = victim(operation);
    while (step(pid)) {
        if (*phase != INSIDE)
            continue;
        if (!s->n || memcmp(W.base, s->copy[s->n - 1], W.size)) {
            remember(s, t->points);
            t->states++;
            found = judge();
            memcpy(W.base, s->copy[s->n - 1], W.size);
        }
        t->points++;
        t->clean += !found;
        for (int k = 0; k < N_KINDS; k++)
            t->bad[k] += found >> k & 1;
    }
    bury(pid);
}

/* Run the operation up to a point and kill it there. */
static void kill_at(void (*operation)(void), uint64_t point)
{
    pid_t pid = victim(operation);
    while (step(pid))
        if (*phase == INSIDE && point-- == 0)
            break;
    bury(pid);
}

#endif
