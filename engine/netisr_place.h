/* Which workstream a frame goes to: netisr(9)'s three policies. Array[i] is the CPU of workstream i.
 *
 *   policy   the frame                          key; the workstream is key % count
 *   ------   --------------------------------   -------------------------------------------------------------
 *   any      there is one workstream            none asked for: nobody is called (N-P1)
 *   SOURCE   any                                interface's ifindex + source, 64-bit; without interface source (N-P2)
 *   FLOW     has a hash, or its headers give one   hash (N-P3)
 *            m2flow gives one                   that (N-P4)
 *            otherwise                          as SOURCE (N-P5)
 *   CPU      m2cpuid gives a number             that: an index, not a CPU (N-P6)
 *            it gives none; called in hybrid    the caller's own CPU, and so not always its own workstream (N-P7)
 *            it gives none; queued              as SOURCE
 *
 * A callback may keep the frame (N-P8: counted as `nobufs`, by nothing of BSD's) or put another in its place (N-P10).
 * It may not call netisr. A protocol whose policy needs a callback that this process lacks is placed as SOURCE. */
#ifndef PR_NETISR_PLACE_H
#define PR_NETISR_PLACE_H

#include "netisr_moves.h"

#define PR_KEPT UINT32_MAX /* by a callback */

/* A burst being placed. */
struct pr_netisr_placing {
    struct pr_netisr_end *e;
    struct pr_netisr_moves *m;
    uint32_t proto, source, policy, flags;
    int hybrid;
};

static inline struct pr_netisr_placing pr_netisr_placing(struct pr_netisr_end *e, uint32_t proto, uint32_t source,
                                                         int hybrid)
{
    const struct pr_netisr_proto *p = &e->v.proto[proto];
    return (struct pr_netisr_placing){.e = e, .m = pr_netisr_moves_look(e), .proto = proto, .source = source,
                                      .hybrid = hybrid, .policy = __atomic_load_n(&p->policy, __ATOMIC_RELAXED),
                                      .flags = __atomic_load_n(&p->flags, __ATOMIC_RELAXED)};
}

/* Does everything go to one workstream? */
static inline int pr_netisr_single(const struct pr_netisr_placing *p) { return p->m->from == 1 && !p->m->moving; }

static inline uint64_t pr_netisr_source_key(const struct pr_netisr_placing *p, const struct pr_meta *meta)
{
    uint64_t port = meta->port < PR_NETISR_PORTS ? pr_netisr_look(&p->e->v.control->port[meta->port]) : 0;
    return ((uint32_t)port ? port >> 32 : 0) + p->source; /* life 0: there is no such port */
}

static inline uint64_t pr_netisr_flow_key(struct pr_netisr_placing *p, uint64_t *desc, uint32_t n)
{
    struct pr_netisr_end *e = p->e;
    struct pr_meta *meta = pr_meta_of(e->rg, pr_desc_idx(*desc));
    if (!(meta->flags & PR_META_HASH) && (p->flags & PR_NPR_M2FLOW) && e->m2flow) {
        uint32_t hash;
        int found = e->m2flow(e->ctx, p->proto, desc, n, &hash);
        if (found < 0)
            return UINT64_MAX;
        meta = pr_meta_of(e->rg, pr_desc_idx(*desc));
        if (found) {
            meta->hash = hash;
            meta->flags |= PR_META_HASH;
        }
    }
    return meta->flags & PR_META_HASH ? meta->hash : pr_netisr_source_key(p, meta);
}

static inline uint64_t pr_netisr_cpu_key(struct pr_netisr_placing *p, uint64_t *desc, uint32_t n)
{
    struct pr_netisr_end *e = p->e;
    uint32_t v = PR_NO_CPU;
    if (e->m2cpuid && e->m2cpuid(e->ctx, p->proto, desc, n, p->source, &v) < 0)
        return UINT64_MAX;
    if (v != PR_NO_CPU)
        return v;
    return p->hybrid ? e->v.ws[e->ws].cpu : pr_netisr_source_key(p, pr_meta_of(e->rg, pr_desc_idx(*desc)));
}

/* The workstream of the frame desc[0..n), or PR_KEPT. Not for a single one. */
static inline uint32_t pr_netisr_place(struct pr_netisr_placing *p, uint64_t *desc, uint32_t n)
{
    uint64_t key;
    if (p->policy == PR_POLICY_FLOW)
        key = pr_netisr_flow_key(p, desc, n);
    else if (p->policy == PR_POLICY_CPU)
        key = pr_netisr_cpu_key(p, desc, n);
    else
        key = pr_netisr_source_key(p, pr_meta_of(p->e->rg, pr_desc_idx(*desc)));
    if (key == UINT64_MAX)
        return PR_KEPT;
    return p->m->moving ? pr_netisr_move(p->e, p->m, p->proto, key) : (uint32_t)(key % p->m->from);
}

/* netisr_get_cpucount, netisr_get_cpuid, netisr_default_flow2cpu: total, and equal for equal arguments (N-P9). */
static inline uint32_t pr_netisr_cpucount(const struct pr_netisr *v)
{
    uint32_t n = __atomic_load_n(&v->control->active, __ATOMIC_RELAXED);
    return n && n <= v->n_ws ? n : v->n_ws;
}

static inline uint32_t pr_netisr_cpuid(const struct pr_netisr *v, uint32_t n)
{
    return v->ws[n % pr_netisr_cpucount(v)].cpu;
}

static inline uint32_t pr_netisr_flow2cpu(const struct pr_netisr *v, uint32_t flow) { return pr_netisr_cpuid(v, flow); }

#endif
