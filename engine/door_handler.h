/* What the doors of handlers share: the burst as Python sees it while a handler runs. */
#ifndef PR_DOOR_HANDLER_H
#define PR_DOOR_HANDLER_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "handler.h"

/* What other extensions and doors lend as the `capsule` of an object: the object is kept for as long as that is used. */
#define PR_REGION_CAPSULE "pktring.region"     /* struct pr_region *, of shm's View */
#define PR_POOL_CAPSULE "pktring.pool"         /* struct pr_pool *, of shm's Pool */
#define PR_HANDLERS_CAPSULE "pktring.handlers" /* struct pr_handlers *, of HandlerTable */
#define PR_BATCH_CAPSULE "pktring.batch"       /* struct pr_batch *, of Hand */

/* NULL with an exception when `o` is no such object. */
static inline void *pr_lent(PyObject *o, const char *what)
{
    PyObject *capsule = PyObject_GetAttrString(o, "capsule");
    void *p = capsule ? PyCapsule_GetPointer(capsule, what) : NULL;
    Py_XDECREF(capsule);
    return p;
}

/* Frames in hand, shown to Python for the time of one call. */
typedef struct {
    PyObject_HEAD
    PyObject *view;             /* of the region: keeps it mapped */
    const struct pr_region *rg;
    struct pr_batch *b;         /* NULL: no handler is running */
    uint8_t *at;                /* the bytes that the next memoryview is of */
    Py_ssize_t len;
    PyObject *shown[PR_BURST];  /* memoryviews given out: they end with the call */
    uint32_t n_shown;           /* frames below this may have one */
} PrFrames;

PrFrames *pr_frames_new(PyObject *view, const struct pr_region *rg);

/* The handler has returned: what it was shown is shut, wherever it is kept. */
void pr_frames_end(PrFrames *f);

/* A frame as a memoryview, of the buffer itself where it lies in one. NULL with an exception. */
PyObject *pr_frames_show(PrFrames *f, const uint64_t *desc, uint32_t slots);

/* Done with a memoryview that pr_frames_show gave: whoever kept it cannot look at the buffer any more. */
void pr_frames_shut(PyObject *memoryview);

#endif
