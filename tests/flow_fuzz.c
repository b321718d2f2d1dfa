/* Throw random frames at rps.h, flow.h and toeplitz.h, under ASan and UBSan: flow_fuzz SECONDS SEED. Frames and keys are
 * allocated to the byte, so that any step outside is seen; the look-ups must agree with the hash bit by bit. Prints how
 * often each kind was met. See test_flow.py. */
#include "rps.h"

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

static uint8_t *noise(uint32_t len)
{
    uint8_t *p = malloc(len ? len : 1);
    for (uint32_t i = 0; i < len; i++)
        p[i] = (uint8_t)below(256);
    return p;
}

/* Write where there is room: frames of any length are half sound. */
static void set(uint8_t *f, uint32_t len, uint32_t at, uint8_t value)
{
    if (at < len)
        f[at] = value;
}

static void set_type(uint8_t *f, uint32_t len, uint32_t l3, uint16_t type)
{
    set(f, len, l3 - 2, (uint8_t)(type >> 8));
    set(f, len, l3 - 1, (uint8_t)type);
}

static uint8_t *make_frame(uint32_t len)
{
    uint8_t *f = noise(len), proto = (uint8_t[]){6, 17, 0, 44, 1}[below(5)];
    uint32_t l3 = 14, v6 = below(2);
    for (uint32_t tags = one_in(20) ? below(60) : below(3); tags--; l3 += 4)
        set_type(f, len, l3, (uint16_t[]){0x8100, 0x88a8, 0x9100}[below(3)]);
    if (one_in(10))
        return f;
    set_type(f, len, l3, v6 ? 0x86dd : 0x0800);
    set(f, len, l3, (uint8_t)(one_in(20) ? below(256) : v6 ? 0x60 : 0x40 + (one_in(3) ? below(16) : 5)));
    set(f, len, l3 + (v6 ? 6 : 9), proto);
    if (!v6 && !one_in(4))
        set(f, len, l3 + 6, 0x40), set(f, len, l3 + 7, 0);
    return f;
}

/* The same hash without tables. */
static uint32_t slowly(const uint8_t *f, uint32_t len, const uint8_t *key, uint32_t n_key)
{
    struct pr_flow flow = pr_flow_find(f, len);
    uint32_t n_ports = flow.kind == PR_FLOW_TCP4 || flow.kind == PR_FLOW_TCP6 ? 4 : 0;
    uint8_t *tuple = malloc(flow.n_addresses + n_ports + 1);
    memcpy(tuple, f + flow.addresses, flow.n_addresses);
    memcpy(tuple + flow.n_addresses, f + flow.ports, n_ports);
    uint32_t hash = pr_toeplitz(key, n_key, tuple, flow.n_addresses + n_ports);
    free(tuple);
    return hash;
}

int main(int argc, char **argv)
{
    double seconds = argc > 1 ? atof(argv[1]) : 2;
    state = argc > 2 ? strtoull(argv[2], NULL, 0) | 1 : 1;
    struct timespec begun, now;
    clock_gettime(CLOCK_MONOTONIC, &begun);
    static struct pr_toeplitz_table table;
    uint32_t met[PR_FLOW_KINDS] = {0};
    do {
        uint32_t n_key = one_in(2) ? PR_TOEPLITZ_KEY : below(80);
        uint8_t *key = noise(n_key);
        pr_toeplitz_prepare(&table, key, n_key);
        for (int i = 0; i < 1000; i++) {
            uint32_t len = one_in(4) ? below(400) : below(120), ncpu = below(9), curcpu = below(ncpu);
            uint8_t *f = make_frame(len);
            int kind;
            uint32_t hash = pr_flow_hash(f, len, &table, &kind), cpu = pr_rps_hash(PR_RPS_OTHERS, f, len, &table, ncpu, curcpu);
            met[kind]++;
            if (hash != slowly(f, len, key, n_key) || hash != pr_rps_hash(PR_RPS_TOEPLITZ, f, len, &table, ncpu, curcpu))
                return fprintf(stderr, "%s of %u bytes: the hashes disagree\n", pr_flow_names[kind], len), 1;
            if (ncpu > 1 ? cpu >= ncpu || cpu == curcpu : cpu != 0)
                return fprintf(stderr, "CPU %u, at %u of %u\n", cpu, curcpu, ncpu), 1;
            free(f);
        }
        free(key);
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((double)(now.tv_sec - begun.tv_sec) + (double)(now.tv_nsec - begun.tv_nsec) / 1e9 < seconds);
    for (int kind = 0; kind < PR_FLOW_KINDS; kind++)
        printf("%s %u\n", pr_flow_names[kind], met[kind]);
}
