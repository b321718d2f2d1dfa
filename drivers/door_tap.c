/* Python's hold on a TAP queue. The descriptor is opened and set up by tap.py, which keeps it. */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>

#include "doors.h"
#include "tap.h"

#include <structmember.h>

typedef struct {
    PyObject_HEAD
    struct pr_tap q;
} TapQueue;

static void queue_dealloc(PyObject *self)
{
    PyMem_RawFree(((TapQueue *)self)->q.super);
    Py_TYPE(self)->tp_free(self);
}

/* TapQueue(fd, quiet, port, mtu) */
static int queue_init(PyObject *self, PyObject *args, PyObject *kw)
{
    static char *names[] = {"fd", "quiet", "port", "mtu", NULL};
    struct pr_tap *q = &((TapQueue *)self)->q;
    int fd, quiet;
    unsigned port, mtu;
    if (q->super || !PyArg_ParseTupleAndKeywords(args, kw, "iiII", names, &fd, &quiet, &port, &mtu))
        return -1;
    uint8_t *super = PyMem_RawCalloc(1, PR_TAP_SUPER);
    if (!super)
        return PyErr_NoMemory(), -1;
    pr_tap_init(q, fd, quiet, (uint16_t)port, mtu, super);
    return 0;
}

static PyObject *queue_follow(PyObject *self, PyObject *args)
{
    struct pr_tap *q = &((TapQueue *)self)->q;
    int net_dev, anew;
    const char *netns, *name;
    unsigned long long inode;
    if (!PyArg_ParseTuple(args, "isKsp", &net_dev, &netns, &inode, &name, &anew))
        return NULL;
    if (strlen(netns) >= sizeof q->netns)
        return PyErr_Format(PyExc_ValueError, "%s: too long", netns);
    q->net_dev = net_dev;
    strcpy(q->netns, netns);
    q->netns_inode = inode;
    pr_tap_follow(q, name, anew);
    Py_RETURN_NONE;
}

static PyObject *queue_device(PyObject *self, void *unused)
{
    (void)unused;
    return pr_device_capsule(self, &((TapQueue *)self)->q.dev);
}

static PyMethodDef queue_methods[] = {
    {"follow", queue_follow, METH_VARARGS, "follow(net_dev or -1, netns, its inode, name, anew): whose drops to count"},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef queue_fields[] = {
    {"device", queue_device, NULL, "the capsule to bind rings to", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef queue_members[] = {
    {"mtu", T_UINT, offsetof(TapQueue, q.mtu), 0, "longer frames are dropped; follows the interface's"},
    {"gone", T_INT, offsetof(TapQueue, q.gone), 0, "fd is no TAP but a copy of quiet; cleared by whoever put one there"},
    {"queue_drops", T_ULONGLONG, offsetof(TapQueue, q.queue_drops), 0, "the device's drops that are counted already"},
    {NULL, 0, 0, 0, NULL},
};

static PyTypeObject queue_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "pktring.drivers._drivers.TapQueue",
    .tp_basicsize = sizeof(TapQueue),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "TapQueue(fd, quiet, port, mtu)",
    .tp_new = PyType_GenericNew,
    .tp_init = queue_init,
    .tp_dealloc = queue_dealloc,
    .tp_methods = queue_methods,
    .tp_members = queue_members,
    .tp_getset = queue_fields,
};

int pr_add_tap(PyObject *m)
{
    if (PyType_Ready(&queue_type) < 0)
        return -1;
    Py_INCREF(&queue_type);
    return PyModule_AddObject(m, "TapQueue", (PyObject *)&queue_type) < 0 ? -1 : 0;
}
