/* Giving up what a worker does not need: capabilities, new privileges, system calls, files. No Python in here.
 *
 * The filter is a cBPF program of our own (seccomp(2)): an allow-list by number and, where a call can do harm, argument:
 *
 *     other architecture, x32 ──▶ EPERM
 *     call in the list ──▶ allowed        call with a check: arguments in bounds ──▶ allowed
 *     everything else ──▶ EPERM, not death: a handler that tries what it may not gets an OSError with a name
 *
 * libseccomp would write the same program; its binding for Python has seen no release since 2021 and needs a library found at
 * run time. Landlock is three system calls without a wrapper in libc. What is in force is inherited and can only get stricter. */
#ifndef PR_JAIL_H
#define PR_JAIL_H

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <linux/securebits.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined __x86_64__
#define PR_JAIL_ARCH AUDIT_ARCH_X86_64
#elif defined __aarch64__
#define PR_JAIL_ARCH AUDIT_ARCH_AARCH64
#elif defined __riscv && __riscv_xlen == 64
#define PR_JAIL_ARCH AUDIT_ARCH_RISCV64
#endif /* elsewhere there is no filter, and that is told */

#define PR_X32 0x40000000u
#define PR_O_TMPFILE (O_TMPFILE & ~O_DIRECTORY) /* opening a folder is no writing */

/* What a call's argument must look like. */
enum pr_jail_check {
    PR_JAIL_ANY,
    PR_JAIL_NO_EXEC,   /* argument 2 without PROT_EXEC: mmap */
    PR_JAIL_READ_ONLY, /* argument 2 opens nothing for writing: openat */
    PR_JAIL_NONBLOCK,  /* argument 1 is FIONBIO: ioctl */
    PR_JAIL_NAME,      /* argument 0 is PR_SET_NAME: prctl */
    PR_JAIL_BPF,       /* argument 0 runs a program or changes a map: bpf, on descriptors that are there already */
};

/* Who may make it. */
enum pr_jail_group { PR_JAIL_ALWAYS = 0, PR_JAIL_JIT = 1, PR_JAIL_RUN_BPF = 2, PR_JAIL_FILES = 4, PR_JAIL_EPOLL = 8 };

struct pr_jail_call {
    const char *name;
    uint32_t nr;
    uint8_t check;
    uint8_t group;
};

#define PR_CALL(name, check, group) {#name, __NR_##name, check, group}

static const struct pr_jail_call pr_jail_calls[] = {
    /* frames: sockets, TAPs, files and doorbells that were open before */
    PR_CALL(read, PR_JAIL_ANY, PR_JAIL_ALWAYS),
    PR_CALL(write, PR_JAIL_ANY, PR_JAIL_ALWAYS),
    PR_CALL(readv, PR_JAIL_ANY, PR_JAIL_ALWAYS),
    PR_CALL(writev, PR_JAIL_ANY, PR_JAIL_ALWAYS),
    PR_CALL(sendto, PR_JAIL_ANY, PR_JAIL_ALWAYS),
    PR_CALL(recvfrom, PR_JAIL_ANY, PR_JAIL_ALWAYS),
    PR_CALL(sendmsg, PR_JAIL_ANY, PR_JAIL_ALWAYS),
    PR_CALL(recvmsg, PR_JAIL_ANY, PR_JAIL_ALWAYS),
    PR_CALL(sendmmsg, PR_JAIL_ANY, PR_JAIL_ALWAYS),
    PR_CALL(getsockopt, PR_JAIL_ANY, PR_JAIL_ALWAYS),
    /* rest */
#ifdef __NR_poll
    PR_CALL(poll, PR_JAIL_ANY, PR_JAIL_ALWAYS),
#else
    PR_CALL(ppoll, PR_JAIL_ANY, PR_JAIL_ALWAYS),
#endif
    PR_CALL(pselect6, PR_JAIL_ANY, PR_JAIL_ALWAYS),
    PR_CALL(clock_nanosleep, PR_JAIL_ANY, PR_JAIL_ALWAYS),
    PR_CALL(clock_gettime, PR_JAIL_ANY, PR_JAIL_ALWAYS),   /* where the vDSO cannot read the clock */
    PR_CALL(restart_syscall, PR_JAIL_ANY, PR_JAIL_ALWAYS), /* a poll that SIGSTOP and SIGCONT went through */
    /* a new controller that calls */
    PR_CALL(accept4, PR_JAIL_ANY, PR_JAIL_ALWAYS),
    PR_CALL(ioctl, PR_JAIL_NONBLOCK, PR_JAIL_ALWAYS),
    PR_CALL(close, PR_JAIL_ANY, PR_JAIL_ALWAYS),
    PR_CALL(prctl, PR_JAIL_NAME, PR_JAIL_ALWAYS),
    PR_CALL(getpid, PR_JAIL_ANY, PR_JAIL_ALWAYS),
    /* Python: memory, a traceback, faulthandler */
    PR_CALL(mmap, PR_JAIL_NO_EXEC, PR_JAIL_ALWAYS),
    PR_CALL(munmap, PR_JAIL_ANY, PR_JAIL_ALWAYS),
    PR_CALL(brk, PR_JAIL_ANY, PR_JAIL_ALWAYS),
    PR_CALL(futex, PR_JAIL_ANY, PR_JAIL_ALWAYS),
    PR_CALL(openat, PR_JAIL_READ_ONLY, PR_JAIL_ALWAYS), /* and what may be read, Landlock says */
    PR_CALL(newfstatat, PR_JAIL_ANY, PR_JAIL_ALWAYS),
    PR_CALL(lseek, PR_JAIL_ANY, PR_JAIL_ALWAYS),
    PR_CALL(rt_sigaction, PR_JAIL_ANY, PR_JAIL_ALWAYS),
    PR_CALL(rt_sigreturn, PR_JAIL_ANY, PR_JAIL_ALWAYS),
    PR_CALL(exit_group, PR_JAIL_ANY, PR_JAIL_ALWAYS),
    /* what only some need */
    PR_CALL(mmap, PR_JAIL_ANY, PR_JAIL_JIT),
    PR_CALL(mprotect, PR_JAIL_ANY, PR_JAIL_JIT),
    PR_CALL(bpf, PR_JAIL_BPF, PR_JAIL_RUN_BPF),
    PR_CALL(ftruncate, PR_JAIL_ANY, PR_JAIL_FILES), /* a capture on a full disk is cut back to whole records */
    PR_CALL(epoll_pwait, PR_JAIL_ANY, PR_JAIL_EPOLL),
#ifdef __NR_epoll_wait
    PR_CALL(epoll_wait, PR_JAIL_ANY, PR_JAIL_EPOLL),
#endif
};

#define PR_JAIL_CALLS (sizeof pr_jail_calls / sizeof *pr_jail_calls)
#define PR_JAIL_MAX (8 + 8 * PR_JAIL_CALLS) /* instructions */

/* ---- the filter ---- */

#define PR_LOAD(offset) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offset)
#define PR_RET(what) BPF_STMT(BPF_RET | BPF_K, what)
#define PR_REFUSE PR_RET(SECCOMP_RET_ERRNO | EPERM)
#define PR_ALLOW PR_RET(SECCOMP_RET_ALLOW)
#define PR_IF_EQUAL(value, yes, no) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, yes, no)
#define PR_IF_BITS(bits, yes, no) BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, bits, yes, no)

/* The low half of an argument: the kernel's int and PROT_ bits are there (all our architectures are little endian). */
#define PR_ARG(i) ((uint32_t)offsetof(struct seccomp_data, args) + 8u * (i))

struct pr_jail_program {
    struct sock_filter code[PR_JAIL_MAX];
    uint32_t n;
};

static inline void pr_jail_emit(struct pr_jail_program *p, const struct sock_filter *code, uint32_t n)
{
    memcpy(p->code + p->n, code, n * sizeof *code);
    p->n += n;
}

#define PR_EMIT(p, ...)                                                                                                \
    do {                                                                                                               \
        const struct sock_filter code_[] = {__VA_ARGS__};                                                              \
        pr_jail_emit(p, code_, sizeof code_ / sizeof *code_);                                                          \
    } while (0)

/* One call; each branch ends in a verdict, so what the accumulator holds afterwards is the number still. */
static inline void pr_jail_one(struct pr_jail_program *p, const struct pr_jail_call *c)
{
    const uint32_t writes = O_ACCMODE | O_CREAT | O_TRUNC | O_APPEND | PR_O_TMPFILE;
    switch ((enum pr_jail_check)c->check) {
    case PR_JAIL_ANY:
        PR_EMIT(p, PR_IF_EQUAL(c->nr, 0, 1), PR_ALLOW);
        break;
    case PR_JAIL_NO_EXEC:
        PR_EMIT(p, PR_IF_EQUAL(c->nr, 0, 4), PR_LOAD(PR_ARG(2)), PR_IF_BITS(PROT_EXEC, 0, 1), PR_REFUSE, PR_ALLOW);
        break;
    case PR_JAIL_READ_ONLY:
        PR_EMIT(p, PR_IF_EQUAL(c->nr, 0, 4), PR_LOAD(PR_ARG(2)), PR_IF_BITS(writes, 0, 1), PR_REFUSE, PR_ALLOW);
        break;
    case PR_JAIL_NONBLOCK:
        PR_EMIT(p, PR_IF_EQUAL(c->nr, 0, 4), PR_LOAD(PR_ARG(1)), PR_IF_EQUAL(FIONBIO, 1, 0), PR_REFUSE, PR_ALLOW);
        break;
    case PR_JAIL_NAME:
        PR_EMIT(p, PR_IF_EQUAL(c->nr, 0, 4), PR_LOAD(PR_ARG(0)), PR_IF_EQUAL(PR_SET_NAME, 1, 0), PR_REFUSE, PR_ALLOW);
        break;
    case PR_JAIL_BPF:
        PR_EMIT(p, PR_IF_EQUAL(c->nr, 0, 5), PR_LOAD(PR_ARG(0)), PR_IF_EQUAL(BPF_PROG_TEST_RUN, 2, 0),
                PR_IF_EQUAL(BPF_MAP_UPDATE_ELEM, 1, 0), PR_REFUSE, PR_ALLOW);
        break;
    }
}

/* Does a call with fewer conditions follow in this choice of groups? (mmap for the JIT) */
static inline int pr_jail_wider(uint32_t groups, size_t i)
{
    for (size_t j = i + 1; j < PR_JAIL_CALLS; j++)
        if (pr_jail_calls[j].nr == pr_jail_calls[i].nr && (groups & pr_jail_calls[j].group))
            return 1;
    return 0;
}

static inline int pr_jail_has(uint32_t groups, size_t i)
{
    const struct pr_jail_call *c = &pr_jail_calls[i];
    return (c->group & ~groups) == 0 && !pr_jail_wider(groups, i);
}

/* The program for these groups (a sum of pr_jail_group). 0, or ENOSYS: this architecture has none. */
static inline int pr_jail_build(struct pr_jail_program *p, uint32_t groups)
{
    p->n = 0;
#ifndef PR_JAIL_ARCH
    (void)groups;
    return ENOSYS;
#else
    PR_EMIT(p, PR_LOAD(offsetof(struct seccomp_data, arch)), PR_IF_EQUAL(PR_JAIL_ARCH, 1, 0), PR_REFUSE,
            PR_LOAD(offsetof(struct seccomp_data, nr)));
#ifdef __x86_64__
    PR_EMIT(p, BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, PR_X32, 0, 1), PR_REFUSE);
#endif
    for (size_t i = 0; i < PR_JAIL_CALLS; i++)
        if (pr_jail_has(groups, i))
            pr_jail_one(p, &pr_jail_calls[i]);
    PR_EMIT(p, PR_REFUSE);
    return 0;
#endif
}

/* From now on, for every thread of the process. 0 or an errno; ESRCH: another thread has a filter of its own. */
static inline int pr_jail_filter(uint32_t groups)
{
    struct pr_jail_program p;
    int why = pr_jail_build(&p, groups);
    struct sock_fprog prog = {.len = (unsigned short)p.n, .filter = p.code};
    if (why)
        return why;
    long got = syscall(__NR_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &prog);
    return got < 0 ? errno : got ? ESRCH : 0;
}

/* ---- capabilities ---- */

#define PR_CAP_WORDS 2

/* No program that it may ever start can gain one. 0, or EPERM: without CAP_SETPCAP (no_new_privs does the same then). */
static inline int pr_jail_bounding(void)
{
    for (unsigned long cap = 0; prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
        if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0)
            return errno;
    return 0;
}

/* Being uid 0 means nothing any more, and that cannot be changed back. 0 or an errno (EPERM: as above). */
static inline int pr_jail_securebits(void)
{
    unsigned long bits = SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_SETUID_FIXUP | SECBIT_NO_SETUID_FIXUP_LOCKED |
                         SECBIT_KEEP_CAPS_LOCKED | SECBIT_NO_CAP_AMBIENT_RAISE | SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;
    return prctl(PR_SET_SECUREBITS, bits, 0, 0, 0) < 0 ? errno : 0;
}

static inline int pr_jail_ambient(void)
{
    return prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0 ? errno : 0;
}

/* Effective, permitted, inheritable. */
static inline int pr_jail_capabilities(void)
{
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
    struct __user_cap_data_struct none[PR_CAP_WORDS] = {{0, 0, 0}};
    return syscall(__NR_capset, &head, none) < 0 ? errno : 0;
}

static inline int pr_jail_no_new_privs(void)
{
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ? errno : 0;
}

/* Not dumpable: others of the same user may not trace it, and no frame gets into a core file. */
static inline int pr_jail_dumpable(int on)
{
    return prctl(PR_SET_DUMPABLE, on, 0, 0, 0) < 0 ? errno : 0;
}

/* ---- files ---- */

/* Rights by the Landlock ABI that brought them: whatever the kernel can refuse is refused (landlock(7)). Headers may be older. */
#define PR_LL_READ (LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR)
#define PR_LL_FS_1 ((LANDLOCK_ACCESS_FS_MAKE_SYM << 1) - 1)
#define PR_LL_REFER (1ULL << 13)    /* ABI 2 */
#define PR_LL_TRUNCATE (1ULL << 14) /* 3 */
#define PR_LL_TCP 3ULL              /* 4: bind, connect */
#define PR_LL_IOCTL (1ULL << 15)    /* 5 */
#define PR_LL_SCOPE 3ULL            /* 6: abstract sockets, signals */

struct pr_landlock_attr {
    uint64_t fs, net, scoped;
};

/* The Landlock ABI of this kernel; 0 = none. */
static inline int pr_landlock_abi(void)
{
    long abi = syscall(__NR_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    return abi < 0 ? 0 : (int)abi;
}

static inline int pr_landlock_ruleset(int abi)
{
    struct pr_landlock_attr attr = {.fs = PR_LL_FS_1};
    attr.fs |= (abi >= 2 ? PR_LL_REFER : 0) | (abi >= 3 ? PR_LL_TRUNCATE : 0) | (abi >= 5 ? PR_LL_IOCTL : 0);
    attr.net = abi >= 4 ? PR_LL_TCP : 0;
    attr.scoped = abi >= 6 ? PR_LL_SCOPE : 0;
    return (int)syscall(__NR_landlock_create_ruleset, &attr, abi >= 6 ? 24 : abi >= 4 ? 16 : 8, 0);
}

/* Only what lies beneath these n paths may be opened, for reading; descriptors that are open stay as they are. A path that
 * is not there is passed over. 0 or an errno; EOPNOTSUPP, ENOSYS: this kernel has no Landlock, or it is switched off. */
static inline int pr_jail_landlock(const char *const *path, size_t n)
{
    int abi = pr_landlock_abi(), rules = abi ? pr_landlock_ruleset(abi) : -1, why = 0;
    if (rules < 0)
        return errno;
    for (size_t i = 0; i < n && !why; i++) {
        struct landlock_path_beneath_attr beneath = {.allowed_access = PR_LL_READ};
        struct stat st;
        if ((beneath.parent_fd = open(path[i], O_PATH | O_CLOEXEC)) < 0)
            continue;
        if (fstat(beneath.parent_fd, &st) == 0 && !S_ISDIR(st.st_mode))
            beneath.allowed_access = LANDLOCK_ACCESS_FS_READ_FILE;
        if (syscall(__NR_landlock_add_rule, rules, LANDLOCK_RULE_PATH_BENEATH, &beneath, 0) < 0)
            why = errno;
        close(beneath.parent_fd);
    }
    if (!why && syscall(__NR_landlock_restrict_self, rules, 0) < 0)
        why = errno;
    close(rules);
    return why;
}

#endif
