/* Python's hold on an end of netisr: _engine.NetisrEnd, and the capsule by which a worker's loop drives the same end.
 * Frames are descriptors here; netisr_end.py makes them of bytes.
 *
 * Callbacks, while the end is driven from Python (the interpreter stays held; a worker's loop sets its own in C):
 *   handle(proto, descriptors)                  runs over a batch, whose frames are freed when it returns
 *   m2flow(proto, descriptors)                  None = no hash, an int, or False = the frame is kept
 *   m2cpuid(proto, descriptors, source)         None = no CPU, an int, or False
 *                                               (value, descriptors): that, and another frame of as many slots
 *   drained(proto, cpu)
 * What they raise comes out of the call that led to them, after it has come to its end. */
#include "door_netisr.h"

#include <structmember.h>

typedef struct {
    PyObject_HEAD
    struct pr_netisr_end e;
    PyObject *kept; /* netisr, pool, view */
    PyObject *handle, *m2flow, *m2cpuid, *drained;
    PyObject *raised; /* the first exception of a callback */
    void *room;
    int bell[PR_NETISR_WS_MAX];
} End;

static struct pr_toeplitz_table flows[2]; /* microsoft, symmetric: made ready once; never written again */

static struct pr_netisr_end *end_of(PyObject *o) { return &((End *)o)->e; }

/* ---- callbacks ---- */

static PyObject *descriptors(const uint64_t *desc, uint32_t n)
{
    PyObject *t = PyTuple_New(n);
    for (uint32_t i = 0; t && i < n; i++)
        PyTuple_SET_ITEM(t, i, PyLong_FromUnsignedLongLong(desc[i]));
    return t;
}

static void note(End *o)
{
    if (!PyErr_Occurred())
        return;
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback && value)
        PyException_SetTraceback(value, traceback);
    if (!o->raised && value)
        o->raised = Py_NewRef(value);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
}

static void on_handle(void *ctx, uint32_t proto, struct pr_batch *b)
{
    End *o = ctx;
    if (o->handle && o->handle != Py_None) {
        PyObject *list = descriptors(b->desc, b->n_desc);
        PyObject *got = list ? PyObject_CallFunction(o->handle, "IN", proto, list) : NULL;
        Py_XDECREF(got);
        note(o);
    }
    pr_hand_free(o->e.pool, b->desc, b->n_desc);
}

/* (value, descriptors): the frame is replaced. The value, still owned by the answer. */
static PyObject *replaced(PyObject *answer, uint64_t *desc, uint32_t n)
{
    if (!PyTuple_Check(answer) || PyTuple_GET_SIZE(answer) != 2)
        return answer;
    PyObject *list = PySequence_Fast(PyTuple_GET_ITEM(answer, 1), "descriptors");
    if (list && PySequence_Fast_GET_SIZE(list) != (Py_ssize_t)n)
        PyErr_Format(PyExc_ValueError, "%u descriptors are to be replaced", n);
    for (uint32_t i = 0; list && !PyErr_Occurred() && i < n; i++)
        desc[i] = PyLong_AsUnsignedLongLong(PySequence_Fast_GET_ITEM(list, i));
    Py_XDECREF(list);
    return PyTuple_GET_ITEM(answer, 0);
}

/* 1 = *value, 0 = none, -1 = the frame is kept. Takes the answer. */
static int answered(End *o, PyObject *answer, uint64_t *desc, uint32_t n, uint32_t *value)
{
    int status = 0;
    PyObject *v = answer ? replaced(answer, desc, n) : NULL;
    if (v == Py_False)
        status = -1;
    else if (v && v != Py_None) {
        *value = (uint32_t)PyLong_AsUnsignedLong(v);
        status = !PyErr_Occurred();
    }
    note(o);
    Py_XDECREF(answer);
    return status;
}

static int on_m2flow(void *ctx, uint32_t proto, uint64_t *desc, uint32_t n, uint32_t *hash)
{
    End *o = ctx;
    if (!o->m2flow || o->m2flow == Py_None)
        return 0;
    PyObject *list = descriptors(desc, n);
    return answered(o, list ? PyObject_CallFunction(o->m2flow, "IN", proto, list) : NULL, desc, n, hash);
}

static int on_m2cpuid(void *ctx, uint32_t proto, uint64_t *desc, uint32_t n, uint32_t source, uint32_t *v)
{
    End *o = ctx;
    *v = PR_NO_CPU;
    if (!o->m2cpuid || o->m2cpuid == Py_None)
        return 0;
    PyObject *list = descriptors(desc, n);
    int got = answered(o, list ? PyObject_CallFunction(o->m2cpuid, "INI", proto, list, source) : NULL, desc, n, v);
    return got < 0 ? -1 : 0;
}

static void on_drained(void *ctx, uint32_t proto, uint32_t cpu)
{
    End *o = ctx;
    if (o->drained && o->drained != Py_None)
        Py_XDECREF(PyObject_CallFunction(o->drained, "II", proto, cpu));
    note(o);
}

/* The result of a call, or what a callback raised in it. */
static PyObject *outcome(End *o, long n)
{
    if (!o->raised)
        return PyLong_FromLong(n);
    PyObject *e = o->raised;
    o->raised = NULL;
    PyErr_SetObject((PyObject *)Py_TYPE(e), e);
    Py_DECREF(e);
    return NULL;
}

/* ---- the end ---- */

/* NetisrEnd(netisr, pool, view, producer, workstream or -1, bells, flows=1): 0 hash none, 1 by Microsoft's key, 2 by
 * the symmetric one. */
static int end_init(PyObject *self, PyObject *args, PyObject *kw)
{
    static char *names[] = {"netisr", "pool", "view", "producer", "workstream", "bells", "flows", NULL};
    End *o = (End *)self;
    PyObject *netisr, *pool, *view, *bells;
    unsigned producer;
    int ws, hashed = 1;
    if (o->kept || !PyArg_ParseTupleAndKeywords(args, kw, "O!OOIiO|i", names, &pr_netisr_type, &netisr, &pool, &view,
                                                &producer, &ws, &bells, &hashed))
        return -1;
    const struct pr_netisr *v = &((PrNetisr *)netisr)->v;
    if (hashed < 0 || hashed > 2)
        return PyErr_Format(PyExc_ValueError, "flows = %d: 0, 1 or 2", hashed), -1;
    if (producer >= v->n_producers || (ws >= 0 && (unsigned)ws >= v->n_ws) || (ws >= 0 && (unsigned)ws != producer)) {
        PyErr_Format(PyExc_ValueError, "producer %u of %u with workstream %d: a worker's row is that of its workstream",
                     producer, v->n_producers, ws);
        return -1;
    }
    struct pr_pool *p = pr_capsule_of(pool, "pktring.pool");
    struct pr_region *rg = p ? pr_capsule_of(view, "pktring.region") : NULL;
    if (!rg || pr_netisr_bells(v, bells, o->bell) < 0 || !(o->kept = PyTuple_Pack(3, netisr, pool, view)))
        return -1;
    if (!(o->room = PyMem_RawCalloc(1, pr_netisr_end_room(v)))) {
        PyErr_NoMemory();
        return -1;
    }
    pr_netisr_begin(&o->e, v, p, rg, producer, ws < 0 ? PR_NO_WS : (uint32_t)ws, o->room, o->bell);
    if (ws >= 0)
        pr_netisr_present(&o->e, (uint32_t)getpid());
    o->e.ctx = o;
    o->e.handle = on_handle;
    o->e.m2flow = on_m2flow;
    o->e.m2cpuid = on_m2cpuid;
    o->e.drained = on_drained;
    o->e.flows = hashed ? &flows[hashed - 1] : NULL;
    return 0;
}

static int end_traverse(PyObject *self, visitproc visit, void *arg)
{
    End *o = (End *)self;
    Py_VISIT(o->kept);
    Py_VISIT(o->handle);
    Py_VISIT(o->m2flow);
    Py_VISIT(o->m2cpuid);
    Py_VISIT(o->drained);
    Py_VISIT(o->raised);
    return 0;
}

static int end_clear(PyObject *self)
{
    End *o = (End *)self;
    Py_CLEAR(o->handle);
    Py_CLEAR(o->m2flow);
    Py_CLEAR(o->m2cpuid);
    Py_CLEAR(o->drained);
    Py_CLEAR(o->raised);
    return 0;
}

static void end_dealloc(PyObject *self)
{
    PyObject_GC_UnTrack(self);
    end_clear(self);
    Py_CLEAR(((End *)self)->kept);
    PyMem_RawFree(((End *)self)->room);
    Py_TYPE(self)->tp_free(self);
}

/* ---- frames of bytes ---- */

/* make(bytes, port, hash or None) -> descriptors; none when the pool is dry */
static PyObject *end_make(PyObject *self, PyObject *args)
{
    struct pr_netisr_end *e = end_of(self);
    Py_buffer b;
    unsigned port;
    PyObject *hash;
    if (!PyArg_ParseTuple(args, "y*IO", &b, &port, &hash))
        return NULL;
    struct pr_meta meta = {.port = (uint16_t)port, .flags = hash == Py_None ? 0 : PR_META_HASH};
    if (hash != Py_None)
        meta.hash = (uint32_t)PyLong_AsUnsignedLong(hash);
    size_t len = (size_t)b.len, room = pr_buf_room(e->rg), slots = len ? (len + room - 1) / room : 1;
    uint32_t bufs[PR_MAX_FRAGS], got = 0;
    uint64_t desc[PR_MAX_FRAGS];
    if (slots > PR_MAX_FRAGS)
        PyErr_Format(PyExc_ValueError, "a frame of %zu bytes takes more than %d slots", len, PR_MAX_FRAGS);
    else if ((got = pr_pool_take(e->pool, bufs, (uint32_t)slots)) == slots)
        *pr_meta_of(e->rg, bufs[0]) = meta;
    else
        pr_pool_give(e->pool, bufs, got), got = 0;
    for (size_t k = 0, at = 0; k < got; k++, at += room) {
        size_t piece = len - at < room ? len - at : room;
        memcpy(pr_buf(e->rg, bufs[k]), (const uint8_t *)b.buf + at, piece);
        desc[k] = pr_desc(bufs[k], (uint16_t)piece, k + 1 < got ? PR_NS_MOREFRAG : 0);
    }
    PyBuffer_Release(&b);
    return PyErr_Occurred() ? NULL : descriptors(desc, got);
}

/* Whole frames out of a sequence of descriptors; how many descriptors, -1 with an exception. */
static Py_ssize_t listed(PyObject *sequence, uint64_t *desc, Py_ssize_t room)
{
    PyObject *list = PySequence_Fast(sequence, "descriptors are a sequence of numbers");
    if (!list)
        return -1;
    Py_ssize_t n = PySequence_Fast_GET_SIZE(list);
    for (Py_ssize_t i = 0; i < n && i < room; i++)
        desc[i] = PyLong_AsUnsignedLongLong(PySequence_Fast_GET_ITEM(list, i));
    Py_DECREF(list);
    if (n > room)
        PyErr_Format(PyExc_ValueError, "%zd descriptors, more than %zd", n, room);
    return PyErr_Occurred() ? -1 : n;
}

static PyObject *read_frame(const struct pr_netisr_end *e, const uint64_t *desc, uint32_t slots)
{
    const struct pr_meta *m = pr_meta_of(e->rg, pr_desc_idx(*desc));
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)pr_desc_frame_len(desc, slots));
    char *to = bytes ? PyBytes_AS_STRING(bytes) : NULL;
    for (uint32_t k = 0; to && k < slots; to += pr_desc_len(desc[k]), k++)
        memcpy(to, pr_buf(e->rg, pr_desc_idx(desc[k])), pr_desc_len(desc[k]));
    PyObject *hash = m->flags & PR_META_HASH ? PyLong_FromUnsignedLong(m->hash) : Py_NewRef(Py_None);
    return Py_BuildValue("(NINI)", bytes, m->port, hash, m->life & 0xff);
}

/* read(descriptors) -> [(bytes, port, hash or None, vnet)], a frame each */
static PyObject *end_read(PyObject *self, PyObject *sequence)
{
    struct pr_netisr_end *e = end_of(self);
    uint64_t desc[PR_BATCH_DESC];
    Py_ssize_t n = listed(sequence, desc, PR_BATCH_DESC), slots;
    PyObject *list = n < 0 ? NULL : PyList_New(0);
    for (Py_ssize_t at = 0; list && at < n; at += slots) {
        slots = (Py_ssize_t)pr_desc_slots(&desc[at], (uint32_t)(n - at));
        for (Py_ssize_t k = at; slots && k < at + slots; k++)
            if (!pr_buf_ok(e->rg, pr_desc_idx(desc[k])) || pr_desc_len(desc[k]) > pr_buf_room(e->rg))
                slots = 0;
        PyObject *frame = slots ? read_frame(e, &desc[at], (uint32_t)slots) : NULL;
        if (!slots)
            PyErr_SetString(PyExc_ValueError, "half a frame, or a buffer that is none");
        if (!frame || PyList_Append(list, frame) < 0)
            Py_CLEAR(list);
        Py_XDECREF(frame);
    }
    return list;
}

/* free(descriptors): their buffers go home */
static PyObject *end_free(PyObject *self, PyObject *sequence)
{
    uint64_t desc[PR_BATCH_DESC];
    Py_ssize_t n = listed(sequence, desc, PR_BATCH_DESC);
    if (n < 0)
        return NULL;
    pr_hand_free(end_of(self)->pool, desc, (uint32_t)n);
    Py_RETURN_NONE;
}

/* ---- frames go in and out ---- */

/* A batch of whole frames out of descriptors. */
static int batch_of(PyObject *sequence, struct pr_batch *b)
{
    uint64_t desc[PR_BATCH_DESC];
    Py_ssize_t n = listed(sequence, desc, PR_BATCH_DESC), at = 0, slots;
    pr_batch_begin(b);
    for (; at < n && (slots = (Py_ssize_t)pr_desc_slots(&desc[at], (uint32_t)(n - at))) && b->n < PR_BURST; at += slots)
        pr_batch_add(b, &desc[at], (uint32_t)slots);
    if (at == n)
        return 0;
    if (n >= 0)
        PyErr_Format(PyExc_ValueError, "not a batch: %d whole frames at most", PR_BURST);
    return -1;
}

/* queue_src(protocol, source, descriptors) -> 0 or -errno; dispatch_src the same */
static PyObject *send(PyObject *self, PyObject *args,
                      int (*call)(struct pr_netisr_end *, uint32_t, uint32_t, struct pr_batch *))
{
    unsigned proto, source;
    PyObject *array;
    struct pr_batch b;
    if (!PyArg_ParseTuple(args, "IIO", &proto, &source, &array) || batch_of(array, &b) < 0)
        return NULL;
    return outcome((End *)self, call(end_of(self), proto, source, &b));
}

static PyObject *end_queue_src(PyObject *self, PyObject *args) { return send(self, args, pr_netisr_queue_src); }
static PyObject *end_dispatch_src(PyObject *self, PyObject *args) { return send(self, args, pr_netisr_dispatch_src); }

/* put(protocol, workstream, descriptors) -> how many were put */
static PyObject *end_put(PyObject *self, PyObject *args)
{
    unsigned proto, ws;
    PyObject *array;
    struct pr_batch b;
    if (!PyArg_ParseTuple(args, "IIO", &proto, &ws, &array) || batch_of(array, &b) < 0)
        return NULL;
    return PyLong_FromUnsignedLong(pr_netisr_put_frames(end_of(self), proto, ws, b.desc, b.n_desc));
}

/* serve() -> descriptors taken */
static PyObject *end_serve(PyObject *self, PyObject *unused)
{
    (void)unused;
    return outcome((End *)self, (long)pr_netisr_serve(end_of(self)));
}

static PyObject *end_ready(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyBool_FromLong(pr_netisr_ready(end_of(self)));
}

static PyObject *end_leave(PyObject *self, PyObject *unused)
{
    (void)unused;
    pr_netisr_leave(end_of(self));
    Py_RETURN_NONE;
}

/* purge(): free what vnets no longer let in, in place of a worker that is not there; with a workstream only. */
static PyObject *end_purge(PyObject *self, PyObject *unused)
{
    (void)unused;
    if (end_of(self)->ws == PR_NO_WS)
        return PyErr_Format(PyExc_ValueError, "an end without a workstream has nothing to purge");
    pr_netisr_purge(end_of(self));
    Py_RETURN_NONE;
}

/* wait(ms) -> ready(): sleep on the workstream's doorbell, at most so long. */
static PyObject *end_wait(PyObject *self, PyObject *args)
{
    struct pr_netisr_end *e = end_of(self);
    unsigned ms;
    int ready = 0;
    if (!PyArg_ParseTuple(args, "I", &ms))
        return NULL;
    if (e->ws != PR_NO_WS) {
        Py_BEGIN_ALLOW_THREADS
        ready = pr_doorbell_wait(pr_netisr_need(e), e->bell[e->ws], 0, (int)ms, pr_netisr_ready, e);
        Py_END_ALLOW_THREADS
    }
    return PyBool_FromLong(ready);
}

static PyObject *end_capsule(PyObject *self, void *unused)
{
    (void)unused;
    return PyCapsule_New(end_of(self), PR_NETISR_END_CAPSULE, NULL); /* the holder keeps the end alive beside it */
}

static PyObject *end_moving(PyObject *self, void *unused)
{
    (void)unused;
    const struct pr_netisr_end *e = end_of(self);
    return PyBool_FromLong(pr_netisr_moves(&e->v, e->producer)->moving);
}

static PyGetSetDef end_fields[] = {
    {"capsule", end_capsule, NULL, "the end, for a worker's loop", NULL},
    {"moving", end_moving, NULL, "whether flows are on their way to other workstreams", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef end_members[] = {
    {"handle", T_OBJECT, offsetof(End, handle), 0, "handle(proto, descriptors)"},
    {"m2flow", T_OBJECT, offsetof(End, m2flow), 0, "m2flow(proto, descriptors)"},
    {"m2cpuid", T_OBJECT, offsetof(End, m2cpuid), 0, "m2cpuid(proto, descriptors, source)"},
    {"drained", T_OBJECT, offsetof(End, drained), 0, "drained(proto, cpu)"},
    {"budget", T_UINT, offsetof(End, e.budget), 0, "frames of one serve, about"},
    {"found", T_UINT, offsetof(End, e.found), READONLY, "frames that the workstream's last holder had in its hands"},
    {"producer", T_UINT, offsetof(End, e.producer), READONLY, "its row"},
    {NULL, 0, 0, 0, NULL},
};

static PyMethodDef end_methods[] = {
    {"make", end_make, METH_VARARGS, "make(bytes, port, hash or None) -> descriptors; none when the pool is dry"},
    {"read", end_read, METH_O, "read(descriptors) -> [(bytes, port, hash or None, vnet)]"},
    {"free", end_free, METH_O, "free(descriptors): their buffers go home"},
    {"queue_src", end_queue_src, METH_VARARGS, "queue_src(protocol, source, descriptors) -> 0 or -errno"},
    {"dispatch_src", end_dispatch_src, METH_VARARGS, "dispatch_src(protocol, source, descriptors) -> 0 or -errno"},
    {"put", end_put, METH_VARARGS, "put(protocol, workstream, descriptors) -> how many were put"},
    {"serve", end_serve, METH_NOARGS, "serve() -> descriptors taken, 0 = nothing is pending"},
    {"ready", end_ready, METH_NOARGS, "ready() -> whether there is something to serve"},
    {"leave", end_leave, METH_NOARGS, "leave(): what is detached is queued again, for a successor"},
    {"purge", end_purge, METH_NOARGS, "purge(): free what vnets no longer let in"},
    {"wait", end_wait, METH_VARARGS, "wait(ms) -> ready()"},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject end_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "pktring.engine._engine.NetisrEnd",
    .tp_basicsize = sizeof(End),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_doc = "NetisrEnd(netisr, pool, view, producer, workstream, bells, flows=1): one process's hold",
    .tp_new = PyType_GenericNew,
    .tp_init = end_init,
    .tp_dealloc = end_dealloc,
    .tp_traverse = end_traverse,
    .tp_clear = end_clear,
    .tp_methods = end_methods,
    .tp_members = end_members,
    .tp_getset = end_fields,
};

int pr_add_netisr_end(PyObject *m)
{
    pr_toeplitz_prepare(&flows[0], pr_toeplitz_microsoft, sizeof pr_toeplitz_microsoft);
    pr_toeplitz_prepare(&flows[1], pr_toeplitz_symmetric, sizeof pr_toeplitz_symmetric);
    return PyModule_AddType(m, &end_type);
}
