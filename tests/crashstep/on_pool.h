/* Operations on owner words: pool.h. A is killed, a new A finds its home as it is. */
#ifndef ON_POOL_H
#define ON_POOL_H

#include "scenario.h"

static void pool_hold(void)
{
    now.app_lives = 1;
    now.n = pr_pool_take(&now.pool[A], now.bufs, par.n);
}

/* Some buffers of B's home are in A's hands: given back, they go there. */
static void pool_hold_foreign(void)
{
    uint32_t n = par.n / 2;
    pool_hold();
    pr_pool_give(&now.pool[A], now.bufs, n);
    n = pr_pool_take(&now.pool[B], now.bufs, n);
    for (uint32_t i = 0; i < n; i++)
        W.rg.owner[now.bufs[i]] = now.pool[A].as_owned;
}

static void pool_undealt(void)
{
    for (uint32_t b = 2; b < 2 + HOME; b++)
        W.rg.owner[b] = 0;
}

static void pool_dry(void) { now.pool[A].depth = 0; }
static void pool_deal(void) { pr_pool_deal(&now.pool[A]); }
static void pool_rebuild(void) { pr_pool_rebuild(&now.pool[A]); }
static void pool_take(void) { now.n = pr_pool_take(&now.pool[A], now.bufs, par.n); }
static void pool_give(void) { pr_pool_give(&now.pool[A], now.bufs, now.n); }

static void pool_take_give(void)
{
    for (uint32_t round = 0; round < 3; round++) {
        pool_take();
        pr_pool_give(&now.pool[A], now.bufs + 1, now.n - 1);
    }
}

static void pool_lend(void)
{
    for (uint32_t i = 0; i < now.n; i++)
        pr_pool_lend(&now.pool[A], now.bufs[i], APP);
}

static void pool_unlend(void)
{
    for (uint32_t i = 0; i < now.n; i++)
        pr_pool_unlend(&now.pool[A], now.bufs[i], APP);
}

static void pool_to_kernel(void)
{
    for (uint32_t i = 0; i < now.n; i++)
        pr_pool_to_kernel(&now.pool[A], now.bufs[i], PORT, SOCKET);
}

static void pool_from_kernel(void)
{
    for (uint32_t i = 0; i < now.n; i++)
        pr_pool_from_kernel(&now.pool[A], now.bufs[i], PORT, SOCKET);
}

static void pool_lent(void)
{
    pool_hold();
    pool_lend();
}

static void pool_in_kernel(void)
{
    pool_hold();
    pool_to_kernel();
}

/* B puts right what A left, and is killed over it. */
static void pool_a_died(void)
{
    now.app_lives = 1;
    for (uint32_t i = 0; i < par.n; i++)
        pr_pool_take(&now.pool[A], &now.bufs[i], 1);
    now.n = par.n;
    now.stale_ok = 1;
}

static void pool_app_died(void)
{
    pool_lent();
    now.app_lives = 0;
}

static void pool_reclaim_process(void) { pr_pool_reclaim_process(&now.pool[B], A); }
static void pool_reclaim_app(void) { pr_pool_reclaim_app(&now.pool[B], APP); }
static void pool_reclaim_socket(void) { pr_pool_reclaim_socket(&now.pool[B], PORT, SOCKET); }

static void pool_replace_a(void) { replace(A); }

static void pool_replace_b(void)
{
    replace(A);
    replace(B);
    pr_pool_reclaim_app(&now.pool[B], APP);
}

static void pool_go_on(void)
{
    check_buffers();
    pr_pool_reclaim_app(&now.pool[A], APP); /* then the app ends, and the socket is closed */
    pr_pool_reclaim_socket(&now.pool[A], PORT, SOCKET);
    now.app_lives = 0;
    check_buffers();
    check_all_home();
}

#define POOL(name, cases, set_up, op) {name, cases, set_up, op, NULL, pool_replace_a, pool_go_on, 0}
static const struct scenario pool_scenarios[] = {
    POOL("pool deal", "0,0,0", pool_undealt, pool_deal),
    POOL("pool take", "1,0,0 5,0,0 24,0,0", pool_hold_foreign, pool_take),
    POOL("pool take, stack dry", "1,0,0 5,0,0 24,0,0", pool_dry, pool_take),
    POOL("pool give", "1,0,0 6,0,0 24,0,0", pool_hold, pool_give),
    POOL("pool give, foreign", "6,0,0 16,0,0", pool_hold_foreign, pool_give),
    POOL("pool take and give", "4,0,0 9,0,0", pool_dry, pool_take_give),
    POOL("pool rebuild", "5,0,0", pool_hold, pool_rebuild),
    POOL("pool lend", "1,0,0 8,0,0", pool_hold, pool_lend),
    POOL("pool unlend", "1,0,0 8,0,0", pool_lent, pool_unlend),
    POOL("pool to kernel", "1,0,0 8,0,0", pool_hold, pool_to_kernel),
    POOL("pool from kernel", "1,0,0 8,0,0", pool_in_kernel, pool_from_kernel),
    {"pool reclaim process", "1,0,0 8,0,0", pool_a_died, pool_reclaim_process, NULL, pool_replace_b, pool_go_on, 0},
    {"pool reclaim app", "1,0,0 8,0,0", pool_app_died, pool_reclaim_app, NULL, pool_replace_b, pool_go_on, 0},
    {"pool reclaim socket", "1,0,0 8,0,0", pool_in_kernel, pool_reclaim_socket, NULL, pool_replace_b, pool_go_on, 0},
};

#endif
