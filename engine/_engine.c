/* The door of engine. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "doors.h"

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_engine", NULL, -1, NULL, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__engine(void)
{
    PyObject *m = PyModule_Create(&module);
    return m && pr_add_forward(m) == 0 && pr_add_border(m) == 0 && pr_add_hashes(m) == 0 && pr_add_frames(m) == 0 &&
                   pr_add_handlers(m) == 0 && pr_add_hand(m) == 0 && pr_add_jail(m) == 0 &&
                   pr_add_worker(m) == 0 && pr_add_netisr(m) == 0
               ? m
               : NULL;
}
