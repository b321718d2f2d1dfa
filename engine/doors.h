/* What each door adds to the extension _engine. */
#ifndef PR_ENGINE_DOORS_H
#define PR_ENGINE_DOORS_H

#include <Python.h>

int pr_add_border(PyObject *module);
int pr_add_forward(PyObject *module);
int pr_add_frames(PyObject *module);
int pr_add_hand(PyObject *module);
int pr_add_handlers(PyObject *module);
int pr_add_hashes(PyObject *module);
int pr_add_jail(PyObject *module);
int pr_add_netisr(PyObject *module);
int pr_add_worker(PyObject *module);

#endif
