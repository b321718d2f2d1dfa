/* Classic BPF over a frame: what pcap-filter(7) compiles to. The instructions are struct sock_filter's (linux/filter.h,
 * Documentation/networking/filter.rst); a program that passes pr_filter_check ends, and reads nothing outside the frame
 * and its own scratch memory. A load beyond the bytes that are here ends it with 0, no match, as in the kernel. */
#ifndef PR_FILTER_H
#define PR_FILTER_H

#include <linux/filter.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* The kernel's ancillary loads (SKF_AD_OFF and up) mean nothing here: tags are in the frame. */
static inline int pr_filter_op_ok(const struct sock_filter *f)
{
    switch (f->code) {
    case BPF_LD | BPF_W | BPF_ABS:
    case BPF_LD | BPF_H | BPF_ABS:
    case BPF_LD | BPF_B | BPF_ABS: return f->k < 0x80000000u;
    case BPF_LD | BPF_W | BPF_IND:
    case BPF_LD | BPF_H | BPF_IND:
    case BPF_LD | BPF_B | BPF_IND:
    case BPF_LD | BPF_W | BPF_LEN:
    case BPF_LD | BPF_IMM:
    case BPF_LDX | BPF_W | BPF_LEN:
    case BPF_LDX | BPF_IMM:
    case BPF_LDX | BPF_B | BPF_MSH:
    case BPF_ALU | BPF_NEG:
    case BPF_RET | BPF_K:
    case BPF_RET | BPF_A:
    case BPF_MISC | BPF_TAX:
    case BPF_MISC | BPF_TXA: return 1;
    case BPF_LD | BPF_MEM:
    case BPF_LDX | BPF_MEM:
    case BPF_ST:
    case BPF_STX: return f->k < BPF_MEMWORDS;
    case BPF_ALU | BPF_DIV | BPF_K:
    case BPF_ALU | BPF_MOD | BPF_K: return f->k != 0;
    case BPF_ALU | BPF_LSH | BPF_K:
    case BPF_ALU | BPF_RSH | BPF_K: return f->k < 32;
    default: break;
    }
    if (BPF_CLASS(f->code) == BPF_ALU)
        return BPF_OP(f->code) <= BPF_XOR && BPF_OP(f->code) != BPF_NEG && !(f->code & ~0xffu);
    if (BPF_CLASS(f->code) == BPF_JMP)
        return BPF_OP(f->code) <= BPF_JSET && !(f->code & ~0xffu) && f->code != (BPF_JMP | BPF_JA | BPF_X);
    return 0;
}

/* 0, or -1: unknown instruction, a jump out of the program, an end that is no return. */
static inline int pr_filter_check(const struct sock_filter *f, uint32_t n)
{
    if (n == 0 || n > BPF_MAXINSNS || BPF_CLASS(f[n - 1].code) != BPF_RET)
        return -1;
    for (uint32_t i = 0; i < n; i++) {
        if (!pr_filter_op_ok(&f[i]))
            return -1;
        if (BPF_CLASS(f[i].code) == BPF_JMP) {
            uint64_t far = f[i].jt > f[i].jf ? f[i].jt : f[i].jf;
            if (BPF_OP(f[i].code) == BPF_JA)
                far = f[i].k;
            if (i + 1 + far >= n)
                return -1;
        }
    }
    return 0;
}

static inline int pr_filter_load(const uint8_t *p, uint32_t len, uint64_t at, uint32_t size, uint32_t *v)
{
    if (at + size > len)
        return 0;
    p += at;
    *v = size == 1 ? p[0] : size == 2 ? (uint32_t)p[0] << 8 | p[1]
                                      : (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
    return 1;
}

static inline uint32_t pr_filter_size(uint16_t code) { return BPF_SIZE(code) == BPF_W ? 4 : BPF_SIZE(code) == BPF_H ? 2 : 1; }

static inline int pr_filter_alu(uint16_t op, uint32_t *a, uint32_t v)
{
    switch (op) {
    case BPF_ADD: *a += v; break;
    case BPF_SUB: *a -= v; break;
    case BPF_MUL: *a *= v; break;
    case BPF_OR: *a |= v; break;
    case BPF_AND: *a &= v; break;
    case BPF_XOR: *a ^= v; break;
    case BPF_LSH: *a <<= v & 31; break;
    case BPF_RSH: *a >>= v & 31; break;
    case BPF_NEG: *a = -*a; break;
    default: /* BPF_DIV, BPF_MOD: by zero ends the program */
        if (!v)
            return 0;
        *a = op == BPF_DIV ? *a / v : *a % v;
    }
    return 1;
}

static inline int pr_filter_jump(uint16_t op, uint32_t a, uint32_t v)
{
    return op == BPF_JEQ ? a == v : op == BPF_JGT ? a > v : op == BPF_JGE ? a >= v : (a & v) != 0;
}

/* Bytes of the frame to keep, 0 = it does not match. `len` bytes are here, `wire_len` were on the wire. */
static inline uint32_t pr_filter_run(const struct sock_filter *f, uint32_t n, const uint8_t *p, uint32_t len,
                                     uint32_t wire_len)
{
    uint32_t a = 0, x = 0, v, mem[BPF_MEMWORDS] = {0};
    for (uint32_t i = 0; i < n; i++) {
        const struct sock_filter *g = &f[i];
        switch (BPF_CLASS(g->code)) {
        case BPF_LD:
            switch (BPF_MODE(g->code)) {
            case BPF_ABS:
                if (!pr_filter_load(p, len, g->k, pr_filter_size(g->code), &a))
                    return 0;
                break;
            case BPF_IND:
                if (!pr_filter_load(p, len, (uint64_t)x + g->k, pr_filter_size(g->code), &a))
                    return 0;
                break;
            case BPF_LEN: a = wire_len; break;
            case BPF_IMM: a = g->k; break;
            default: a = mem[g->k];
            }
            break;
        case BPF_LDX:
            switch (BPF_MODE(g->code)) {
            case BPF_MSH:
                if (!pr_filter_load(p, len, g->k, 1, &v))
                    return 0;
                x = (v & 15) << 2;
                break;
            case BPF_LEN: x = wire_len; break;
            case BPF_IMM: x = g->k; break;
            default: x = mem[g->k];
            }
            break;
        case BPF_ST: mem[g->k] = a; break;
        case BPF_STX: mem[g->k] = x; break;
        case BPF_ALU:
            if (!pr_filter_alu(BPF_OP(g->code), &a, BPF_SRC(g->code) == BPF_X ? x : g->k))
                return 0;
            break;
        case BPF_JMP:
            if (BPF_OP(g->code) == BPF_JA)
                i += g->k;
            else
                i += pr_filter_jump(BPF_OP(g->code), a, BPF_SRC(g->code) == BPF_X ? x : g->k) ? g->jt : g->jf;
            break;
        case BPF_RET: return BPF_RVAL(g->code) == BPF_A ? a : g->k;
        default: /* BPF_MISC */
            if (BPF_MISCOP(g->code) == BPF_TAX)
                x = a;
            else
                a = x;
        }
    }
    return 0;
}

#endif
