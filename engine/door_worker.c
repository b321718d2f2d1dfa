/* Python's hold on a worker's loop: _engine.Worker; and on the records of workers, by their place in the engine's memory. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "doors.h"
#include "worker.h"

typedef struct {
    PyObject_HEAD
    struct pr_worker w;
    PyObject *kept;   /* rings, filters, apps, ends that the loop points into */
    Py_buffer record; /* the worker's own record */
} Worker;

static void *capsule_of(Worker *o, PyObject *holder, const char *name)
{
    PyObject *capsule = PyObject_GetAttrString(holder, "capsule");
    void *p = capsule ? PyCapsule_GetPointer(capsule, name) : NULL;
    Py_XDECREF(capsule);
    return p && PyList_Append(o->kept, holder) == 0 ? p : NULL;
}

static int record_of(PyObject *memory, Py_buffer *b)
{
    if (PyObject_GetBuffer(memory, b, PyBUF_WRITABLE) < 0)
        return -1;
    if (b->len == (Py_ssize_t)sizeof(struct pr_worker_record) && (uintptr_t)b->buf % 64 == 0)
        return 0;
    PyBuffer_Release(b);
    PyErr_SetString(PyExc_ValueError, "not the place of a worker's record");
    return -1;
}

/* Worker(record memory, netisr end, handlers, bell fd) */
static int worker_init(PyObject *self, PyObject *args, PyObject *kw)
{
    (void)kw;
    Worker *o = (Worker *)self;
    PyObject *memory, *end, *handlers;
    int bell;
    if (o->kept || !PyArg_ParseTuple(args, "OOOi", &memory, &end, &handlers, &bell) || !(o->kept = PyList_New(0)) ||
        record_of(memory, &o->record) < 0)
        return -1;
    struct pr_worker *w = &o->w;
    w->record = o->record.buf;
    w->bell = bell;
    if (!(w->ns = capsule_of(o, end, "pktring.netisr_end")) || !(w->handlers = capsule_of(o, handlers, "pktring.handlers")))
        return -1;
    w->pool = w->ns->pool;
    w->rg = w->ns->rg;
    pr_w_bind(w);
    return 0;
}

static void worker_dealloc(PyObject *self)
{
    Worker *o = (Worker *)self;
    if (o->record.obj)
        PyBuffer_Release(&o->record);
    Py_CLEAR(o->kept);
    Py_TYPE(self)->tp_free(self);
}

/* add_port(rx rings, tx ring or None, workstream that sends for me (-1 = cannot), taking, protocols) -> number */
static PyObject *worker_add_port(PyObject *self, PyObject *args)
{
    Worker *o = (Worker *)self;
    PyObject *rx, *tx;
    int tx_ws, taking;
    unsigned protocols;
    if (!PyArg_ParseTuple(args, "O!OipI", &PyList_Type, &rx, &tx, &tx_ws, &taking, &protocols))
        return NULL;
    if (o->w.n_ports == PR_W_PORTS || PyList_GET_SIZE(rx) > PR_W_RINGS)
        return PyErr_Format(PyExc_ValueError, "too many ports or rings");
    struct pr_wport p = {.n_rx = (uint32_t)PyList_GET_SIZE(rx), .tx_ws = tx_ws < 0 ? PR_NO_WS : (uint32_t)tx_ws,
                         .taking = (uint32_t)taking, .protocols = protocols};
    for (uint32_t i = 0; i < p.n_rx; i++)
        if (!(p.rx[i] = capsule_of(o, PyList_GET_ITEM(rx, i), "pktring.ring")))
            return NULL;
    if (tx != Py_None) {
        if (!(p.tx = capsule_of(o, tx, "pktring.ring")))
            return NULL;
        p.at = p.tx->ring->head;
    }
    o->w.port[o->w.n_ports++] = p;
    return PyLong_FromLong((long)o->w.n_ports - 1);
}

/* A rule from (port, filter bytes, directions, to); which list it joins is the caller's. */
static int rule_of(Worker *o, PyObject *args, struct pr_wport **from, struct pr_rule *rule)
{
    unsigned port, directions, to;
    PyObject *filter;
    if (!PyArg_ParseTuple(args, "ISII", &port, &filter, &directions, &to))
        return -1;
    Py_ssize_t bytes = PyBytes_GET_SIZE(filter);
    if (port >= o->w.n_ports || to >= o->w.n_ports || bytes % (Py_ssize_t)sizeof(struct sock_filter)) {
        PyErr_SetString(PyExc_ValueError, "no such port, or half an instruction");
        return -1;
    }
    *from = &o->w.port[port];
    *rule = (struct pr_rule){.directions = directions, .to = (uint16_t)to};
    if (!bytes)
        return 0;
    rule->filter = (const struct sock_filter *)PyBytes_AS_STRING(filter);
    rule->n_filter = (uint32_t)(bytes / (Py_ssize_t)sizeof(struct sock_filter));
    if (pr_filter_check(rule->filter, rule->n_filter) < 0) {
        PyErr_SetString(PyExc_ValueError, "not a filter program");
        return -1;
    }
    return PyList_Append(o->kept, filter);
}

static PyObject *add_rule(struct pr_rule *list, uint32_t *n, const struct pr_rule *rule)
{
    if (*n == PR_W_RULES)
        return PyErr_Format(PyExc_ValueError, "more than %d rules for one port", PR_W_RULES);
    list[(*n)++] = *rule;
    Py_RETURN_NONE;
}

static PyObject *worker_add_forward(PyObject *self, PyObject *args)
{
    struct pr_wport *p;
    struct pr_rule rule;
    return rule_of((Worker *)self, args, &p, &rule) < 0 ? NULL : add_rule(p->rule, &p->n_rules, &rule);
}

static PyObject *worker_add_mirror(PyObject *self, PyObject *args)
{
    struct pr_wport *p;
    struct pr_rule rule;
    return rule_of((Worker *)self, args, &p, &rule) < 0 ? NULL : add_rule(p->mirror, &p->n_mirrors, &rule);
}

/* add_app(port, app) */
static PyObject *worker_add_app(PyObject *self, PyObject *args)
{
    Worker *o = (Worker *)self;
    unsigned port;
    PyObject *app;
    if (!PyArg_ParseTuple(args, "IO", &port, &app))
        return NULL;
    if (port >= o->w.n_ports || o->w.n_apps == PR_W_APPS)
        return PyErr_Format(PyExc_ValueError, "no such port, or too many apps");
    struct pr_app *a = capsule_of(o, app, "pktring.app");
    if (!a)
        return NULL;
    pr_w_attach(&o->w, port, a);
    Py_RETURN_NONE;
}

static PyObject *worker_add_event(PyObject *self, PyObject *fd)
{
    Worker *o = (Worker *)self;
    long n = PyLong_AsLong(fd);
    if (PyErr_Occurred())
        return NULL;
    if (o->w.n_events == PR_REST_EVENTS)
        return PyErr_Format(PyExc_ValueError, "too many event descriptors");
    o->w.event[o->w.n_events++] = (int)n;
    Py_RETURN_NONE;
}

static PyObject *worker_drop_event(PyObject *self, PyObject *fd)
{
    Worker *o = (Worker *)self;
    long n = PyLong_AsLong(fd);
    if (PyErr_Occurred())
        return NULL;
    for (uint32_t i = 0; i < o->w.n_events; i++)
        if (o->w.event[i] == (int)n)
            o->w.event[i--] = o->w.event[--o->w.n_events];
    Py_RETURN_NONE;
}

/* run(nanoseconds) -> why it came back, a PR_WHY_ number. Without the GIL; Python handlers take it for their call. */
static PyObject *worker_run(PyObject *self, PyObject *ns)
{
    Worker *o = (Worker *)self;
    unsigned long long span = PyLong_AsUnsignedLongLong(ns);
    if (PyErr_Occurred())
        return NULL;
    enum pr_why why;
    Py_BEGIN_ALLOW_THREADS
    why = pr_w_run(&o->w, pr_now_ns() + span);
    Py_END_ALLOW_THREADS
    return PyLong_FromLong((long)why);
}

static PyMethodDef worker_methods[] = {
    {"add_port", worker_add_port, METH_VARARGS, "add_port(rx rings, tx ring or None, tx workstream, taking, protocols)"},
    {"add_forward", worker_add_forward, METH_VARARGS, "add_forward(port, filter, directions, to)"},
    {"add_mirror", worker_add_mirror, METH_VARARGS, "add_mirror(port, filter, directions, to)"},
    {"add_app", worker_add_app, METH_VARARGS, "add_app(port, app)"},
    {"add_event", worker_add_event, METH_O, "add_event(fd): its readability ends a run"},
    {"drop_event", worker_drop_event, METH_O, "drop_event(fd)"},
    {"run", worker_run, METH_O, "run(nanoseconds) -> why it came back"},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject worker_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "pktring.engine._engine.Worker",
    .tp_basicsize = sizeof(Worker),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Worker(record, netisr end, handlers, bell): one worker's loop",
    .tp_new = PyType_GenericNew,
    .tp_init = worker_init,
    .tp_dealloc = worker_dealloc,
    .tp_methods = worker_methods,
};

/* ---- records ---- */

static PyObject *record_read(PyObject *module, PyObject *memory)
{
    (void)module;
    Py_buffer b;
    if (record_of(memory, &b) < 0)
        return NULL;
    const struct pr_worker_record *r = b.buf;
    PyObject *d = Py_BuildValue("{sKsKsKsKsKsIsIsIsIsIsI}", "start", r->start, "progress", r->progress, "bursts", r->bursts, "sleeps", r->sleeps,
                                "drop_tx_full", r->drop_tx_full, "state", r->state, "pid", r->pid, "busy", r->busy, "ask",
                                r->ask, "gen", r->gen, "gather_ns", r->gather_ns);
    PyBuffer_Release(&b);
    return d;
}

/* record_ask(memory, what, gen): the controller's word */
static PyObject *record_ask(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *memory;
    unsigned what, gen;
    Py_buffer b;
    if (!PyArg_ParseTuple(args, "OII", &memory, &what, &gen) || record_of(memory, &b) < 0)
        return NULL;
    struct pr_worker_record *r = b.buf;
    r->gen = gen;
    __atomic_store_n(&r->ask, what, __ATOMIC_RELEASE); /* pairs with pr_w_run */
    PyBuffer_Release(&b);
    Py_RETURN_NONE;
}

/* record_gather(memory, ns): the controller's word */
static PyObject *record_gather(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *memory;
    unsigned ns;
    Py_buffer b;
    if (!PyArg_ParseTuple(args, "OI", &memory, &ns) || record_of(memory, &b) < 0)
        return NULL;
    __atomic_store_n(&((struct pr_worker_record *)b.buf)->gather_ns, ns, __ATOMIC_RELAXED);
    PyBuffer_Release(&b);
    Py_RETURN_NONE;
}

/* record_state(memory, state, pid, start): the worker's word */
static PyObject *record_state(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *memory;
    unsigned state, pid;
    unsigned long long start;
    Py_buffer b;
    if (!PyArg_ParseTuple(args, "OIIK", &memory, &state, &pid, &start) || record_of(memory, &b) < 0)
        return NULL;
    struct pr_worker_record *r = b.buf;
    r->start = start;
    r->pid = pid;
    __atomic_store_n(&r->state, state, __ATOMIC_RELEASE);
    PyBuffer_Release(&b);
    Py_RETURN_NONE;
}

static PyMethodDef record_functions[] = {
    {"record_read", record_read, METH_O, "record_read(memory) -> dict"},
    {"record_ask", record_ask, METH_VARARGS, "record_ask(memory, what, gen)"},
    {"record_gather", record_gather, METH_VARARGS, "record_gather(memory, ns)"},
    {"record_state", record_state, METH_VARARGS, "record_state(memory, state, pid, start)"},
    {NULL, NULL, 0, NULL},
};

int pr_add_worker(PyObject *m)
{
    if (PyType_Ready(&worker_type) < 0 || PyModule_AddFunctions(m, record_functions) < 0)
        return -1;
    Py_INCREF(&worker_type);
    return PyModule_AddObject(m, "Worker", (PyObject *)&worker_type) < 0 ||
                   PyModule_AddIntConstant(m, "RECORD_SIZE", sizeof(struct pr_worker_record)) < 0 ||
                   PyModule_AddIntMacro(m, PR_GATHER_NS) < 0 || PyModule_AddIntMacro(m, PR_WHY_ASKED) < 0 || PyModule_AddIntMacro(m, PR_ASK_GO) < 0 ||
                   PyModule_AddIntMacro(m, PR_ASK_STOP) < 0 || PyModule_AddIntMacro(m, PR_WS_STARTING) < 0 ||
                   PyModule_AddIntMacro(m, PR_WS_RUNNING) < 0 || PyModule_AddIntMacro(m, PR_WS_STOPPED) < 0 ||
                   PyModule_AddIntMacro(m, PR_W_PORTS) < 0 || PyModule_AddIntMacro(m, PR_W_RULES) < 0
               ? -1
               : 0;
}
