/* Python's hold on the forwarding loop: _engine.Loop. It owns copies of the filters; the rings are kept by forward.py. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "doors.h"
#include "forward.h"

typedef struct {
    PyObject_HEAD
    struct pr_loop loop;
    PyObject *kept; /* rings and filters that the paths point into */
} Loop;

static struct pr_ringh *ring_of(Loop *o, PyObject *ring)
{
    PyObject *capsule = PyObject_GetAttrString(ring, "capsule");
    struct pr_ringh *h = capsule ? PyCapsule_GetPointer(capsule, "pktring.ring") : NULL;
    Py_XDECREF(capsule);
    return h && PyList_Append(o->kept, ring) == 0 ? h : NULL;
}

static int loop_init(PyObject *self, PyObject *args, PyObject *kw)
{
    (void)args, (void)kw;
    Loop *o = (Loop *)self;
    if (!o->kept && !(o->kept = PyList_New(0)))
        return -1;
    o->loop.left = UINT64_MAX;
    return 0;
}

static void loop_dealloc(PyObject *self)
{
    Py_CLEAR(((Loop *)self)->kept);
    Py_TYPE(self)->tp_free(self);
}

/* add_path(from, to or None, filter bytes, directions, [mirror rings]) */
static PyObject *loop_add_path(PyObject *self, PyObject *args)
{
    Loop *o = (Loop *)self;
    PyObject *from, *to, *filter, *mirrors;
    unsigned directions;
    if (!PyArg_ParseTuple(args, "OOSIO!", &from, &to, &filter, &directions, &PyList_Type, &mirrors))
        return NULL;
    Py_ssize_t n_mirrors = PyList_GET_SIZE(mirrors), bytes = PyBytes_GET_SIZE(filter);
    if (o->loop.n_paths == PR_MAX_PATHS || n_mirrors > PR_MAX_MIRRORS || bytes % (Py_ssize_t)sizeof(struct sock_filter))
        return PyErr_Format(PyExc_ValueError, "too many paths or mirrors, or half an instruction");
    struct pr_path p = {.directions = directions, .left = &o->loop.left, .n_mirrors = (uint32_t)n_mirrors};
    if (!(p.from = ring_of(o, from)) || (to != Py_None && !(p.to = ring_of(o, to))))
        return NULL;
    for (Py_ssize_t i = 0; i < n_mirrors; i++)
        if (!(p.mirror[i] = ring_of(o, PyList_GET_ITEM(mirrors, i))))
            return NULL;
    if (bytes) {
        p.filter = (const struct sock_filter *)PyBytes_AS_STRING(filter);
        p.n_filter = (uint32_t)(bytes / (Py_ssize_t)sizeof(struct sock_filter));
        if (pr_filter_check(p.filter, p.n_filter) < 0)
            return PyErr_Format(PyExc_ValueError, "not a filter program");
        if (PyList_Append(o->kept, filter) < 0)
            return NULL;
    }
    o->loop.path[o->loop.n_paths++] = p;
    Py_RETURN_NONE;
}

static PyObject *loop_add_event(PyObject *self, PyObject *fd)
{
    Loop *o = (Loop *)self;
    long n = PyLong_AsLong(fd);
    if (PyErr_Occurred())
        return NULL;
    if (o->loop.n_events == PR_REST_EVENTS)
        return PyErr_Format(PyExc_ValueError, "too many event descriptors");
    o->loop.event[o->loop.n_events++] = (int)n;
    Py_RETURN_NONE;
}

/* run(nanoseconds) -> why it came back, a PR_WHY_ number. Without the GIL. */
static PyObject *loop_run(PyObject *self, PyObject *ns)
{
    Loop *o = (Loop *)self;
    unsigned long long span = PyLong_AsUnsignedLongLong(ns);
    if (PyErr_Occurred())
        return NULL;
    enum pr_why why;
    Py_BEGIN_ALLOW_THREADS
    why = pr_loop_run(&o->loop, pr_now_ns() + span);
    Py_END_ALLOW_THREADS
    return PyLong_FromLong((long)why);
}

static PyObject *get_left(PyObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(((Loop *)self)->loop.left);
}

static int set_left(PyObject *self, PyObject *value, void *unused)
{
    (void)unused;
    unsigned long long left = value ? PyLong_AsUnsignedLongLong(value) : 0;
    if (PyErr_Occurred())
        return -1;
    ((Loop *)self)->loop.left = left;
    return 0;
}

static PyGetSetDef loop_fields[] = {
    {"left", get_left, set_left, "frames that may still pass, 2**64 - 1 = no limit", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef loop_methods[] = {
    {"add_path", loop_add_path, METH_VARARGS, "add_path(from, to, filter, directions, mirrors)"},
    {"add_event", loop_add_event, METH_O, "add_event(fd): its readability ends a run"},
    {"run", loop_run, METH_O, "run(nanoseconds) -> why it came back"},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject loop_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "pktring.engine._engine.Loop",
    .tp_basicsize = sizeof(Loop),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Paths between rings, and the loop that runs them",
    .tp_new = PyType_GenericNew,
    .tp_init = loop_init,
    .tp_dealloc = loop_dealloc,
    .tp_methods = loop_methods,
    .tp_getset = loop_fields,
};

int pr_add_forward(PyObject *m)
{
    if (PyType_Ready(&loop_type) < 0)
        return -1;
    Py_INCREF(&loop_type);
    return PyModule_AddObject(m, "Loop", (PyObject *)&loop_type) < 0 || PyModule_AddIntMacro(m, PR_WHY_TIME) < 0 ||
                   PyModule_AddIntMacro(m, PR_WHY_LIMIT) < 0 || PyModule_AddIntMacro(m, PR_WHY_END) < 0 ||
                   PyModule_AddIntMacro(m, PR_WHY_PAUSED) < 0 || PyModule_AddIntMacro(m, PR_WHY_EVENT) < 0 ||
                   PyModule_AddIntMacro(m, PR_WHY_SIGNAL) < 0 || PyModule_AddIntMacro(m, PR_DIR_IN) < 0 ||
                   PyModule_AddIntMacro(m, PR_DIR_OUT) < 0
               ? -1
               : 0;
}
