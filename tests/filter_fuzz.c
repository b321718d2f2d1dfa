/* Throw random programs and frames at filter.h, under ASan and UBSan: filter_fuzz SECONDS SEED. Frames and programs are
 * allocated to the byte, so that any step outside is seen. Prints how often each was done. See test_filter.py. */
#include "filter.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static uint64_t state;

static uint32_t below(uint32_t n)
{
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return n ? (uint32_t)((state >> 32) % n) : 0;
}

static int one_in(uint32_t n) { return below(n) == 0; }

#define CODE(code, name) code,
#define TWICE(code, name) (code) | BPF_K, (code) | BPF_X,
static const uint16_t codes[] = {PR_FILTER_ONE(CODE) PR_FILTER_TWO(TWICE)};

static uint32_t constant(uint16_t code, uint32_t left)
{
    if (one_in(300))
        return below(2) ? below(40) - 4 : ~below(8);
    if (BPF_CLASS(code) == BPF_JMP)
        return below(left);
    if (BPF_CLASS(code) == BPF_ST || BPF_CLASS(code) == BPF_STX || BPF_MODE(code) == BPF_MEM)
        return below(16);
    return one_in(4) ? below(0x80000000) : 1 + below(31);
}

/* Mostly sound; jumps are short, so that much of it runs. */
static void make_program(struct sock_filter *p, uint32_t n)
{
    for (uint32_t pc = 0; pc < n; pc++) {
        uint32_t left = n - pc - 1, reach = left < 5 ? left : 5;
        uint16_t code = one_in(400) ? (uint16_t)below(300) : codes[below(sizeof codes / sizeof *codes)];
        if (left == 0 && !one_in(20))
            code = BPF_RET | (below(2) ? BPF_A : BPF_K);
        if (pc < 16 && pc + 1 < n && one_in(2))
            p[pc] = (struct sock_filter){BPF_ST, 0, 0, pc}; /* without it few loads from M[] would be allowed */
        else
            p[pc] = (struct sock_filter){code, (uint8_t)below(reach + one_in(300)), (uint8_t)below(reach + one_in(300)),
                                         constant(code, reach)};
    }
}

int main(int argc, char **argv)
{
    double seconds = argc > 1 ? atof(argv[1]) : 2;
    state = argc > 2 ? strtoull(argv[2], NULL, 0) | 1 : 1;
    struct timespec begun, now;
    clock_gettime(CLOCK_MONOTONIC, &begun);
    uint32_t accepted = 0, refused = 0, matched = 0, passed_by = 0;
    do {
        uint32_t n = one_in(50) ? below(PR_FILTER_MAX + 2) : 1 + below(30);
        struct sock_filter *p = malloc(n ? n * sizeof *p : 1);
        make_program(p, n);
        int ok = pr_filter_check(p, n) == 0;
        *(ok ? &accepted : &refused) += 1;
        for (uint32_t k = 0; ok && k < 4; k++) {
            uint32_t len = below(one_in(4) ? 1600 : 70);
            uint8_t *frame = malloc(len ? len : 1);
            for (uint32_t i = 0; i < len; i++)
                frame[i] = (uint8_t)below(256);
            *(pr_filter_run(p, n, frame, len, len + below(3)) ? &matched : &passed_by) += 1;
            free(frame);
        }
        free(p);
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((double)(now.tv_sec - begun.tv_sec) + (double)(now.tv_nsec - begun.tv_nsec) / 1e9 < seconds);
    printf("accepted %u refused %u matched %u passed_by %u\n", accepted, refused, matched, passed_by);
}
