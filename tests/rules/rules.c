/* What shm's headers promise about one call at a time: results, refusals, what is left alone. One file of checks a
 * header; the world and its frames are the crash-step harness's. Prints each broken rule; exit status 1 if any.
 * That these checks bite is shown by tests/mutants.py. */
#include "doorbell.h"

static void (*meanwhile)(void); /* what others do between a put and its count */
static void kicked(const uint32_t *need, int efd)
{
    if (meanwhile)
        meanwhile();
    pr_doorbell_kick(need, efd);
}
#define pr_doorbell_kick kicked

#include "on_lane.h"
#include "on_mend.h"
#include "on_pktqueue.h"
#include "on_ring.h"

enum { ROOM = 512 - PR_HEADROOM };

static unsigned broken;

#define RULE(held)                                                                                                     \
    do {                                                                                                               \
        if (!(held)) {                                                                                                 \
            printf("%s:%d: %s\n", strrchr(__FILE__, '/') ? strrchr(__FILE__, '/') + 1 : __FILE__, __LINE__, #held);    \
            broken++;                                                                                                  \
        }                                                                                                              \
    } while (0)

#include "rules_lane.h"
#include "rules_move.h"
#include "rules_pktqueue.h"
#include "rules_pool.h"
#include "rules_ring.h"

#include "rules_mend.h" /* behind the others: it uses them */

int main(void)
{
    make_world();
    alarm(20);
    pool_rules();
    lane_rules();
    ring_rules();
    move_rules();
    mend_rules();
    pktqueue_rules();
    return broken != 0;
}
