/* Shared by netisr's two doors. */
#ifndef PR_DOOR_NETISR_H
#define PR_DOOR_NETISR_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "doors.h"
#include "netisr.h"

#define PR_NETISR_END_CAPSULE "pktring.netisr_end" /* struct pr_netisr_end *, for the worker's loop */

typedef struct {
    PyObject_HEAD
    Py_buffer mem;
    struct pr_netisr v;
} PrNetisr;

extern PyTypeObject pr_netisr_type;

int pr_add_netisr_end(PyObject *module);

/* What `holder.capsule` holds; NULL with an exception. The caller keeps the holder. */
static inline void *pr_capsule_of(PyObject *holder, const char *name)
{
    PyObject *capsule = PyObject_GetAttrString(holder, "capsule");
    void *p = capsule ? PyCapsule_GetPointer(capsule, name) : NULL;
    Py_XDECREF(capsule);
    return p;
}

/* A sequence of descriptors, one a workstream, -1 = none. */
static inline int pr_netisr_bells(const struct pr_netisr *v, PyObject *bells, int *bell)
{
    PyObject *list = PySequence_Fast(bells, "bells are a sequence of descriptors");
    if (!list)
        return -1;
    int ok = (uint64_t)PySequence_Fast_GET_SIZE(list) == v->n_ws;
    for (uint32_t i = 0; ok && i < v->n_ws; i++)
        bell[i] = (int)PyLong_AsLong(PySequence_Fast_GET_ITEM(list, i));
    Py_DECREF(list);
    if (!ok)
        PyErr_Format(PyExc_ValueError, "%u bells are needed, one a workstream", v->n_ws);
    return PyErr_Occurred() ? -1 : 0;
}

#endif
