/* netisr under load: two workers and a third producer, a thread each, queue frames of many flows for each other and
 * serve them, while the controller changes the number of active workstreams, vnets and ports, asks for purges and reads
 * counters. To be run under ThreadSanitizer, and without. Exit status 0 = no frame of a flow overtook another of its
 * producer, the books agree, every buffer is home.      ./tsan_netisr SECONDS */
#include "netisr.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

enum { WORKERS = 2, PRODUCERS, HOME = 4096, N_BUFS = 2 + PRODUCERS * HOME, FLOWS = 64, PROTO = 1, GOING_PORT = 5 };

static struct pr_region rg;
static struct pr_pool pool[PRODUCERS];
static uint32_t stack[PRODUCERS][HOME];
static struct pr_netisr tables;
static struct pr_netisr_end end[PRODUCERS];
static uint32_t sent[PRODUCERS][FLOWS], seen[PRODUCERS][FLOWS];
static uint64_t done[WORKERS];
static int stop;

struct frame {
    uint32_t producer, flow, number;
};

static struct frame *frame_of(uint64_t desc) { return (struct frame *)(void *)pr_buf(&rg, pr_desc_idx(desc)); }

static void handle(void *ctx, uint32_t proto, struct pr_batch *b)
{
    struct pr_netisr_end *e = ctx;
    (void)proto;
    for (uint32_t i = 0; i < b->n; i++) {
        struct frame f = *frame_of(b->desc[b->first[i]]);
        uint32_t before = __atomic_exchange_n(&seen[f.producer][f.flow], f.number, __ATOMIC_RELAXED);
        if (before >= f.number) {
            printf("producer %u flow %u: %u after %u\n", f.producer, f.flow, f.number, before);
            exit(1);
        }
    }
    done[e->ws] += b->n;
    pr_hand_free(e->pool, b->desc, b->n_desc);
}

static void queue_some(uint32_t who, unsigned *seed)
{
    struct pr_batch b;
    uint32_t bufs[PR_BURST], n = pr_pool_take(&pool[who], bufs, 1 + (uint32_t)rand_r(seed) % 32);
    pr_batch_begin(&b);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t flow = (uint32_t)rand_r(seed) % FLOWS;
        uint64_t desc = pr_desc(bufs[i], sizeof(struct frame), 0);
        *frame_of(desc) = (struct frame){who, flow, ++sent[who][flow]};
        *pr_meta_of(&rg, bufs[i]) = (struct pr_meta){.port = who == WORKERS ? GOING_PORT : 0, .hash = flow,
                                                     .flags = PR_META_HASH};
        pr_batch_add(&b, &desc, 1);
    }
    pr_netisr_queue_src(&end[who], PROTO, 0, &b);
}

static void *live(void *arg)
{
    uint32_t who = (uint32_t)(uintptr_t)arg;
    unsigned seed = who + 1;
    while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
        if (rand_r(&seed) % 2)
            queue_some(who, &seed);
        while (who < WORKERS && pr_netisr_serve(&end[who]) && rand_r(&seed) % 3)
            ;
        if (who < WORKERS && rand_r(&seed) % 16 == 0)
            pr_doorbell_wait(pr_netisr_need(&end[who]), -1, 0, 1, pr_netisr_ready, &end[who]);
    }
    return NULL;
}

static void change_something(unsigned *seed)
{
    struct pr_netisr_sums s;
    switch (rand_r(seed) % 5) {
    case 0: pr_netisr_word(&tables.control->active, 1 + (uint32_t)rand_r(seed) % WORKERS); break;
    case 1:
        pr_netisr_allow(&tables, PROTO, 1, 0);
        pr_netisr_ask_purge(&tables, (uint32_t)rand_r(seed) % WORKERS, -1);
        break;
    case 2: pr_netisr_allow(&tables, PROTO, 1, 1); break;
    case 3: pr_netisr_set_port(&tables, 0, 7, 0); break;
    default:
        s = pr_netisr_sums(&tables, PROTO, (uint32_t)rand_r(seed) % WORKERS);
        if (s.watermark > 256 + PRODUCERS * PR_BURST)
            exit(1);
    }
}

static void *pages(size_t size)
{
    return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

static void make(void)
{
    static const int nobody[WORKERS] = {-1, -1};
    const struct pr_netisr_geometry g = {.workstreams = WORKERS, .maxqlimit = 512, .defaultqlimit = 256,
                                         .first_lane = 1};
    rg.mem = pages(pr_carve(&rg.g, 1, 4, 8, N_BUFS, 512));
    rg.owner = (uint64_t *)pages(pr_ledger_size(&rg.g)) + PR_PAGE / 8;
    void *block = pages(pr_netisr_size(&g));
    if (pr_netisr_format(block, pr_netisr_size(&g), &g) < 0 || pr_netisr_attach(&tables, block, pr_netisr_size(&g)) < 0)
        exit(1);
    for (uint32_t i = 0; i < PRODUCERS; i++) {
        pr_pool_init(&pool[i], rg.owner, N_BUFS, (uint16_t)(i + 1), 0, HOME, stack[i]);
        pr_pool_deal(&pool[i]);
        pr_netisr_begin(&end[i], &tables, &pool[i], &rg, i, i < WORKERS ? i : PR_NO_WS,
                        calloc(1, pr_netisr_end_room(&tables)), nobody);
        end[i].ctx = &end[i];
        end[i].handle = handle;
        end[i].budget = PR_BURST;
    }
    pr_netisr_set_vnet(&tables, 1, 1);
    pr_netisr_set_port(&tables, GOING_PORT, 9, 1);
    pr_netisr_register(&tables, PROTO, "ip", PR_POLICY_FLOW, PR_DISPATCH_DEFERRED, 256, 0);
}

static int books(void)
{
    uint64_t count[PR_N_OWNER_STATES + 1];
    int good = 1;
    for (uint32_t ws = 0; ws < WORKERS; ws++) {
        struct pr_netisr_sums s = pr_netisr_sums(&tables, PROTO, ws);
        printf("workstream %u: queued %lu handled %lu (seen %lu) purged %lu drops %lu over %lu\n", ws, s.queued, s.handled,
               done[ws], s.purged, s.qdrops, s.over);
        good &= s.queued == s.handled + s.purged && !s.crashed && !s.len && s.handled && s.purged;
        good &= done[ws] <= s.handled;
    }
    pr_pool_count(&pool[0], count);
    return good && count[PR_FREE] == N_BUFS - 2;
}

int main(int argc, char **argv)
{
    pthread_t thread[PRODUCERS];
    unsigned seed = 9;
    time_t until = time(NULL) + (argc > 1 ? atoi(argv[1]) : 2);
    make();
    for (uintptr_t i = 0; i < PRODUCERS; i++)
        pthread_create(&thread[i], NULL, live, (void *)i);
    while (time(NULL) <= until) {
        nanosleep(&(struct timespec){.tv_nsec = 300000}, NULL);
        change_something(&seed);
    }
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    for (uint32_t i = 0; i < PRODUCERS; i++)
        pthread_join(thread[i], NULL);
    for (uint32_t round = 0; round < 1000; round++)
        for (uint32_t i = 0; i < WORKERS; i++)
            pr_netisr_serve(&end[i]);
    return !books();
}
