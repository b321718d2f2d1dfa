/* The door of drivers: each driver adds its types. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "device.h"
#include "doors.h"

static void let_go(PyObject *capsule) { Py_XDECREF((PyObject *)PyCapsule_GetContext(capsule)); }

PyObject *pr_device_capsule(PyObject *owner, struct pr_device *dev)
{
    PyObject *capsule = PyCapsule_New(dev, PR_DEVICE_CAPSULE, let_go);
    if (capsule) {
        Py_INCREF(owner);
        PyCapsule_SetContext(capsule, owner);
    }
    return capsule;
}

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_drivers", NULL, -1, NULL, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__drivers(void)
{
    PyObject *m = PyModule_Create(&module);
    if (!m || pr_add_af_packet(m) < 0 || pr_add_pcap(m) < 0 || pr_add_tap(m) < 0)
        return NULL;
    return m;
}
