/* Kill a process at every instruction of every ring, lane and ledger operation, and see that nothing is lost, owned
 * twice, stuck, torn or seen twice. The method is in steps.h, the laws in world.h, the operations in on_*.h, wrong
 * operations that must be caught in misordered.h; README.md says what is claimed.
 *
 *   crashstep [--json] [--first] [--again N | --all] [--kills N] [NAME]   every operation whose name begins so
 *   crashstep [--json] --misordered [NAME]                                the wrong ones
 *
 * --first ends with the first that is not clean; N are recoveries killed, and real kills, per case. */
#define _GNU_SOURCE
#include "on_border.h"

#include "misordered.h"
#include "on_device.h"
#include "on_lane.h"
#include "on_mend.h"
#include "on_pktqueue.h"
#include "on_pool.h"
#include "on_ring.h"
#include "steps.h"

#include <time.h>
#include <unistd.h>

#define LEN(a) (sizeof(a) / sizeof *(a))

static const struct scenario *the;
static int json, misordered, first_only;
static uint32_t again_states = 2, kill_samples = 3;

static struct total {
    struct tally once, again; /* the operation killed; its recovery killed too */
    uint64_t cases, kills, differ;
    double seconds;
    char words[200];
} total;

/* Both orders: the living notice the death at once, or go on for a while first. */
static unsigned judge(void)
{
    uint8_t *left = malloc(W.size);
    struct cast alive = now;
    unsigned found = 0;
    memcpy(left, W.base, W.size);
    for (int late = 0; late <= (the->live_on != NULL); late++) {
        verdict = 0;
        if (late)
            the->live_on();
        the->recover();
        the->go_on();
        if (verdict && !total.words[0])
            memcpy(total.words, first_words, sizeof total.words);
        found |= verdict;
        now = alive;
        memcpy(W.base, left, W.size);
    }
    free(left);
    return found;
}

/* Operations are deterministic: what a kill leaves must be what was seen at that instruction. */
static void really_kill(const uint8_t *start, const struct states *s, uint64_t points)
{
    for (uint32_t k = 0; k < kill_samples && k < s->n; k++) {
        uint32_t i = s->n * (k + 1) / (kill_samples + 1);
        uint64_t last = i + 1 < s->n ? s->first[i + 1] - 1 : points - 1; /* the last point with this memory */
        memcpy(W.base, start, W.size);
        kill_at(the->operation, k % 2 ? last : s->first[i]);
        total.differ += memcmp(W.base, s->copy[i], W.size) != 0;
        total.kills++;
        if (!misordered && judge())
            total.differ++;
    }
}

static void recovery_killed(const struct states *s)
{
    uint32_t n = again_states < s->n ? again_states : s->n;
    for (uint32_t k = 0; k < n; k++) {
        struct states more = {0};
        memcpy(W.base, s->copy[s->n * (2 * k + 1) / (2 * n)], W.size);
        walk(the->recover, judge, &more, &total.again);
        forget(&more);
    }
}

static void run_case(void)
{
    struct states s = {0};
    uint8_t *start = malloc(W.size);
    reset_world();
    the->set_up();
    memcpy(start, W.base, W.size);
    struct tally t = {0};
    walk(the->operation, judge, &s, &t);
    total.once.points += t.points;
    total.once.states += t.states;
    total.once.clean += t.clean;
    for (int k = 0; k < N_KINDS; k++)
        total.once.bad[k] += t.bad[k];
    really_kill(start, &s, t.points);
    if (!misordered)
        recovery_killed(&s);
    total.cases++;
    free(start);
    forget(&s);
}

static double clock_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void print_json(void)
{
    printf("{\"operation\": \"%s\", \"cases\": %lu, \"points\": %lu, \"states\": %lu, \"clean\": %lu, \"again\": %lu, "
           "\"again_clean\": %lu, \"kills\": %lu, \"kills_differ\": %lu, \"seconds\": %.3f",
           the->name, total.cases, total.once.points, total.once.states, total.once.clean, total.again.points,
           total.again.clean, total.kills, total.differ, total.seconds);
    for (int k = 0; k < N_KINDS; k++)
        printf(", \"%s\": %lu", kind_name[k], total.once.bad[k] + total.again.bad[k]);
    if (misordered)
        printf(", \"expected\": \"%s\"", kind_name[the->expected]);
    printf(", \"first\": \"%s\"}\n", total.words);
}

static void print_row(void)
{
    printf("%-28s %5lu %7lu %6lu %7lu %8lu %6lu  %.2f s", the->name, total.cases, total.once.points, total.once.states,
           total.once.points - total.once.clean, total.again.points, total.kills, total.seconds);
    for (int k = 0; k < N_KINDS; k++)
        if (total.once.bad[k] + total.again.bad[k])
            printf("  %s %lu", kind_name[k], total.once.bad[k] + total.again.bad[k]);
    printf("%s%s%s\n", total.differ ? "  KILLS DIFFER" : "", total.words[0] ? "  " : "", total.words);
}

static int is_good(void)
{
    uint64_t bad_points = total.once.points - total.once.clean + total.again.points - total.again.clean;
    if (total.differ)
        return 0;
    return misordered ? total.once.bad[the->expected] > 0 : bad_points == 0;
}

static int run(const struct scenario *s)
{
    double begun = clock_s();
    the = s;
    total = (struct total){0};
    for (const char *at = s->cases; at; at = strchr(at, ' ')) {
        at += *at == ' ';
        if (sscanf(at, "%u,%u,%u", &par.n, &par.queued, &par.at) != 3)
            give_up(s->cases);
        run_case();
    }
    total.seconds = clock_s() - begun;
    if (json)
        print_json();
    else
        print_row();
    fflush(stdout);
    return is_good();
}

static const struct table {
    const struct scenario *s;
    size_t n;
} right[] = {
    {pool_scenarios, LEN(pool_scenarios)},
    {lane_scenarios, LEN(lane_scenarios)},
    {ring_scenarios, LEN(ring_scenarios)},
    {queue_scenarios, LEN(queue_scenarios)},
    {border_scenarios, LEN(border_scenarios)},
    {mend_scenarios, LEN(mend_scenarios)},
    {device_scenarios, LEN(device_scenarios)},
}, wrong[] = {
    {wrong_scenarios, LEN(wrong_scenarios)},
    {wrong_border_scenarios, LEN(wrong_border_scenarios)},
};

static int run_all(const struct table *t, size_t n, const char *name)
{
    int all_good = 1;
    for (; n; t++, n--)
        for (size_t i = 0; i < t->n; i++)
            if (!strncmp(t->s[i].name, name, strlen(name)) && (all_good || !first_only))
                all_good &= run(&t->s[i]);
    return all_good;
}

int main(int argc, char **argv)
{
    const char *name = "";
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], "--json"))
            json = 1;
        else if (!strcmp(argv[i], "--misordered"))
            misordered = 1;
        else if (!strcmp(argv[i], "--first"))
            first_only = 1;
        else if (!strcmp(argv[i], "--all"))
            again_states = UINT32_MAX;
        else if (!strcmp(argv[i], "--again") && i + 1 < argc)
            again_states = (uint32_t)atoi(argv[++i]);
        else if (!strcmp(argv[i], "--kills") && i + 1 < argc)
            kill_samples = (uint32_t)atoi(argv[++i]);
        else
            name = argv[i];
    phase = mmap(NULL, PR_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    make_world();
    alarm(600);
    if (!json)
        printf("%-28s %5s %7s %6s %7s %8s %6s\n", "operation", "cases", "points", "states", "bad", "again", "kills");
    return !(misordered ? run_all(wrong, LEN(wrong), name) : run_all(right, LEN(right), name));
}
