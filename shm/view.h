/* The Python objects of this extension that other doors may be handed: a process's view of a region, and a ring in it. */
#ifndef PR_VIEW_H
#define PR_VIEW_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "device.h"

#define PR_RINGH_CAPSULE "pktring.ring"
#define PR_REGION_CAPSULE "pktring.region" /* struct pr_region *, for C code of other extensions */

/* Holds the three mapped segments (buffer protocol) for as long as anybody uses the view. */
typedef struct {
    PyObject_HEAD
    Py_buffer mem, ledger, counters;
    struct pr_region rg;
} PrView;

typedef struct {
    PyObject_HEAD
    PrView *view;
    PyObject *device; /* the bound capsule: keeps the driver's queue alive */
    struct pr_ringh h;
} PrRing;

/* A Ring over an existing kring of the view; NULL with an exception when there is none. */
PyObject *pr_ring_handle(PrView *view, unsigned index);

#endif
