/* An operation with its surroundings: who is killed in what, who puts it right, and who goes on. */
#ifndef SCENARIO_H
#define SCENARIO_H

#include "world.h"

struct scenario {
    const char *name;
    const char *cases;        /* "n,queued,at ..." */
    void (*set_up)(void);     /* the world just before */
    void (*operation)(void);  /* what the victim does */
    void (*live_on)(void);    /* what the living may do before anybody has noticed; NULL = nothing */
    void (*recover)(void);    /* what the heir does; killed at any instruction, it is done again by the next */
    void (*go_on)(void);      /* what everybody does after that, and the checks */
    enum kind expected;       /* of a wrong operation */
};

#endif
