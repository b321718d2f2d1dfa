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
    Py_buffer live;
} TapQueue;

static void queue_dealloc(PyObject *self)
{
    PyMem_RawFree(((TapQueue *)self)->q.super);
    PyBuffer_Release(&((TapQueue *)self)->live);
    Py_TYPE(self)->tp_free(self);
}

/* TapQueue(live, fd, quiet, port) */
static int queue_init(PyObject *self, PyObject *args, PyObject *kw)
{
    static char *names[] = {"live", "fd", "quiet", "port", NULL};
    TapQueue *o = (TapQueue *)self;
    int fd, quiet;
    unsigned port;
    PyObject *live;
    if (o->q.super || !PyArg_ParseTupleAndKeywords(args, kw, "OiiI", names, &live, &fd, &quiet, &port) ||
        !pr_borrow_live(live, &o->live))
        return -1;
    uint8_t *super = PyMem_RawCalloc(1, PR_TAP_SUPER);
    if (!super)
        return PyErr_NoMemory(), -1;
    pr_tap_init(&o->q, fd, quiet, (uint16_t)port, o->live.buf, super);
    return 0;
}

/* follow(mtu, name, netns, inode, anew) */
static PyObject *queue_follow(PyObject *self, PyObject *args)
{
    struct pr_tap *q = &((TapQueue *)self)->q;
    int anew;
    unsigned mtu;
    const char *netns, *name;
    unsigned long long inode;
    if (!PyArg_ParseTuple(args, "IssKp", &mtu, &name, &netns, &inode, &anew))
        return NULL;
    if (strlen(netns) >= sizeof q->live->netns || strlen(name) >= sizeof q->live->name)
        return PyErr_Format(PyExc_ValueError, "%s, %s: too long", netns, name);
    __atomic_store_n(&q->live->mtu, mtu, __ATOMIC_RELAXED);
    strcpy(q->live->name, name);
    strcpy(q->live->netns, netns);
    q->live->netns_inode = inode;
    if (anew)
        pr_tap_anew(q);
    Py_RETURN_NONE;
}

static PyObject *queue_mtu(PyObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLong(((TapQueue *)self)->q.live->mtu);
}

static PyObject *queue_device(PyObject *self, void *unused)
{
    (void)unused;
    return pr_device_capsule(self, &((TapQueue *)self)->q.dev);
}

static PyMethodDef queue_methods[] = {
    {"follow", queue_follow, METH_VARARGS, "follow(mtu, name, netns' file or '', its inode, anew): what it is now"},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef queue_fields[] = {
    {"device", queue_device, NULL, "the capsule to bind rings to", NULL},
    {"mtu", queue_mtu, NULL, "longer frames are dropped", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef queue_members[] = {
    {"net_dev", T_INT, offsetof(TapQueue, q.net_dev), 0, "/proc/net/dev where it was made; -1 = it counts no drops"},
    {"serial", T_ULONGLONG, offsetof(TapQueue, q.dev.serial), 0, "tells a ring whether it was served by this queue before"},
    {"gone", T_INT, offsetof(TapQueue, q.gone), 0, "fd is no TAP but a copy of quiet; cleared by whoever put one there"},
    {"queue_drops", T_ULONGLONG, offsetof(TapQueue, q.queue_drops), 0, "the device's drops that are counted already"},
    {NULL, 0, 0, 0, NULL},
};

static PyTypeObject queue_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "pktring.drivers._drivers.TapQueue",
    .tp_basicsize = sizeof(TapQueue),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "TapQueue(live, fd, quiet, port)",
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
