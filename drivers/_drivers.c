/* The door of drivers: each driver adds its types. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "device.h"
#include "doors.h"
#include "live.h"

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

int pr_borrow_live(PyObject *page, Py_buffer *live)
{
    if (PyObject_GetBuffer(page, live, PyBUF_WRITABLE) < 0)
        return 0;
    if ((size_t)live->len >= sizeof(struct pr_live))
        return 1;
    PyBuffer_Release(live);
    PyErr_Format(PyExc_ValueError, "%zd bytes are too few for a link", live->len);
    return 0;
}

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_drivers", NULL, -1, NULL, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__drivers(void)
{
    PyObject *m = PyModule_Create(&module);
    if (!m || pr_add_af_packet(m) < 0 || pr_add_pcap(m) < 0 || pr_add_tap(m) < 0)
        return NULL;
    return m;
}
