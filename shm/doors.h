/* What each door adds to the extension _shm. */
#ifndef PR_SHM_DOORS_H
#define PR_SHM_DOORS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

int pr_add_view(PyObject *module);  /* View */
int pr_add_rings(PyObject *module); /* Ring */
int pr_add_lanes(PyObject *module); /* pool, lanes, pktqueues, doorbells */

#endif
