/* Frames of Python's own in hand: _engine.Hand. What is to be given to netisr from outside, and what tests give to handlers. */
#include "door_handler.h"
#include "doors.h"

typedef struct {
    PyObject_HEAD
    PyObject *view, *pool; /* kept for what they lend: */
    const struct pr_region *rg;
    struct pr_pool *p;
    struct pr_batch b;
} PrHand;

static PrHand *hand(PyObject *self) { return (PrHand *)self; }

static int hand_init(PyObject *self, PyObject *args, PyObject *kw)
{
    static char *names[] = {"view", "pool", NULL};
    PrHand *o = hand(self);
    PyObject *view, *pool;
    if (o->view || !PyArg_ParseTupleAndKeywords(args, kw, "OO", names, &view, &pool) ||
        !(o->rg = pr_lent(view, PR_REGION_CAPSULE)) || !(o->p = pr_lent(pool, PR_POOL_CAPSULE)))
        return -1;
    o->view = Py_NewRef(view);
    o->pool = Py_NewRef(pool);
    pr_batch_begin(&o->b);
    return 0;
}

static void hand_dealloc(PyObject *self)
{
    Py_CLEAR(hand(self)->view);
    Py_CLEAR(hand(self)->pool);
    Py_TYPE(self)->tp_free(self);
}

/* Copy a frame into buffers of the pool. Its slots, 0 = no room here or in the pool. */
static uint32_t take_frame(PrHand *o, const uint8_t *bytes, size_t len)
{
    uint32_t room = pr_buf_room(o->rg), bufs[PR_MAX_FRAGS];
    size_t slots = len ? (len + room - 1) / room : 1;
    if (slots > PR_MAX_FRAGS || !pr_batch_room(&o->b, (uint32_t)slots))
        return 0;
    uint32_t got = pr_pool_take(o->p, bufs, (uint32_t)slots);
    if (got < slots) {
        pr_pool_give(o->p, bufs, got);
        return 0;
    }
    for (uint32_t k = 0; k < slots; k++) {
        size_t piece = len - (size_t)k * room < room ? len - (size_t)k * room : room;
        memcpy(pr_buf(o->rg, bufs[k]), bytes + (size_t)k * room, piece);
        o->b.desc[o->b.n_desc + k] = pr_desc(bufs[k], (uint16_t)piece, k + 1 < slots ? PR_NS_MOREFRAG : 0);
    }
    *pr_meta_of(o->rg, bufs[0]) = (struct pr_meta){0};
    pr_batch_close(&o->b, (uint32_t)slots);
    return (uint32_t)slots;
}

/* take_frames(sequence of bytes-like) -> how many found room behind those that are here. */
static PyObject *take_frames(PyObject *self, PyObject *frames)
{
    PyObject *fast = PySequence_Fast(frames, "a sequence of frames");
    if (!fast)
        return NULL;
    Py_ssize_t n = PySequence_Fast_GET_SIZE(fast), i = 0;
    for (uint32_t slots = 1; i < n; i++) {
        Py_buffer bytes;
        if (PyObject_GetBuffer(PySequence_Fast_GET_ITEM(fast, i), &bytes, PyBUF_SIMPLE) < 0) {
            Py_DECREF(fast);
            return NULL;
        }
        slots = take_frame(hand(self), bytes.buf, (size_t)bytes.len);
        PyBuffer_Release(&bytes);
        if (!slots)
            break;
    }
    Py_DECREF(fast);
    return PyLong_FromSsize_t(i);
}

/* set(i, timestamp=0, wire_length=0, hash=None, port=0, flags=0): facts about frame i. */
static PyObject *set(PyObject *self, PyObject *args, PyObject *kw)
{
    static char *names[] = {"i", "timestamp", "wire_length", "hash", "port", "flags", NULL};
    unsigned i, wire_length = 0, port = 0, flags = 0;
    unsigned long long timestamp = 0;
    PyObject *hash = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kw, "I|KIOII", names, &i, &timestamp, &wire_length, &hash, &port, &flags))
        return NULL;
    unsigned long h = hash == Py_None ? 0 : PyLong_AsUnsignedLong(hash);
    if (PyErr_Occurred())
        return NULL;
    if (i >= hand(self)->b.n)
        return PyErr_Format(PyExc_IndexError, "frame %u of %u", i, hand(self)->b.n);
    struct pr_meta *m = pr_batch_meta(hand(self)->rg, &hand(self)->b, i);
    m->ts_ns = timestamp;
    m->wire_len = wire_length;
    m->hash = (uint32_t)h;
    m->port = (uint16_t)port;
    m->flags = (uint16_t)(flags | (hash == Py_None ? 0 : PR_META_HASH));
    Py_RETURN_NONE;
}

static PyObject *verdicts(PyObject *self, void *unused)
{
    (void)unused;
    const struct pr_batch *b = &hand(self)->b;
    PyObject *list = PyList_New(b->n);
    for (uint32_t i = 0; list && i < b->n; i++)
        PyList_SET_ITEM(list, i, PyLong_FromLong(b->verdict[i]));
    return list;
}

/* run(handler table, protocol) -> verdicts, as a worker runs it: without the GIL. */
static PyObject *run(PyObject *self, PyObject *args)
{
    PyObject *table;
    unsigned proto;
    struct pr_handlers *hs;
    if (!PyArg_ParseTuple(args, "OI", &table, &proto) || !(hs = pr_lent(table, PR_HANDLERS_CAPSULE)))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    pr_handlers_run(hs, proto, &hand(self)->b);
    Py_END_ALLOW_THREADS
    return verdicts(self, NULL);
}

/* ask(handler table, protocol, "m2flow" or "m2cpuid", i, source=0) -> (what the callback returned, its number), as netisr asks. */
static PyObject *ask(PyObject *self, PyObject *args)
{
    PyObject *table;
    const char *what;
    unsigned proto, i, source = 0;
    struct pr_handlers *hs;
    if (!PyArg_ParseTuple(args, "OIsI|I", &table, &proto, &what, &i, &source) || !(hs = pr_lent(table, PR_HANDLERS_CAPSULE)))
        return NULL;
    struct pr_batch *b = &hand(self)->b;
    if (i >= b->n)
        return PyErr_Format(PyExc_IndexError, "frame %u of %u", i, b->n);
    uint64_t *desc = &b->desc[b->first[i]];
    uint32_t slots = (uint32_t)b->first[i + 1] - b->first[i], number = 0;
    int said;
    Py_BEGIN_ALLOW_THREADS
    said = strcmp(what, "m2flow") ? pr_handlers_m2cpuid(hs, proto, desc, slots, source, &number)
                                  : pr_handlers_m2flow(hs, proto, desc, slots, &number);
    Py_END_ALLOW_THREADS
    for (uint32_t k = 0; said < 0 && k < slots; k++)
        desc[k] = 0; /* it went elsewhere */
    return Py_BuildValue("(iI)", said, number);
}

/* frames() -> [bytes, ...]: what is in hand now. */
static PyObject *frames(PyObject *self, PyObject *unused)
{
    (void)unused;
    const PrHand *o = hand(self);
    PyObject *list = PyList_New(0);
    for (uint32_t i = 0; list && i < o->b.n; i++) {
        struct iovec iov[PR_MAX_FRAGS];
        uint32_t slots, len = pr_batch_frame_len(&o->b, i);
        const uint64_t *desc = pr_batch_frame(&o->b, i, &slots);
        PyObject *frame = PyBytes_FromStringAndSize(NULL, len);
        if (frame)
            pr_pieces_copy((uint8_t *)PyBytes_AS_STRING(frame), len, iov, pr_desc_pieces(o->rg, desc, slots, iov));
        if (!frame || PyList_Append(list, frame) < 0)
            Py_CLEAR(list);
        Py_XDECREF(frame);
    }
    return list;
}

/* free(): every buffer goes home. */
static PyObject *free_all(PyObject *self, PyObject *unused)
{
    (void)unused;
    PrHand *o = hand(self);
    pr_hand_free(o->p, o->b.desc, o->b.n_desc);
    pr_batch_begin(&o->b);
    Py_RETURN_NONE;
}

static Py_ssize_t hand_len(PyObject *self) { return (Py_ssize_t)hand(self)->b.n; }

static PyObject *get_capsule(PyObject *self, void *unused)
{
    (void)unused;
    return PyCapsule_New(&hand(self)->b, PR_BATCH_CAPSULE, NULL); /* the holder keeps the Hand alive beside it */
}

static PyMethodDef methods[] = {
    {"take_frames", take_frames, METH_O, "take_frames(frames) -> how many found room"},
    {"set", (PyCFunction)(void (*)(void))set, METH_VARARGS | METH_KEYWORDS, "set(i, timestamp, wire_length, hash, port, flags)"},
    {"run", run, METH_VARARGS, "run(handler table, protocol) -> verdicts"},
    {"ask", ask, METH_VARARGS, "ask(handler table, protocol, m2flow or m2cpuid, i, source) -> (returned, number)"},
    {"frames", frames, METH_NOARGS, "frames() -> [bytes]"},
    {"free", free_all, METH_NOARGS, "send every buffer home"},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef fields[] = {
    {"verdicts", verdicts, NULL, "PR_DONE or a port's number, for each frame", NULL},
    {"capsule", get_capsule, NULL, "struct pr_batch *", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PySequenceMethods as_sequence = {.sq_length = hand_len};

static PyTypeObject hand_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "pktring.engine._engine.Hand",
    .tp_basicsize = sizeof(PrHand),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Hand(view, pool): frames in buffers of a pool, as a batch",
    .tp_new = PyType_GenericNew,
    .tp_init = hand_init,
    .tp_dealloc = hand_dealloc,
    .tp_methods = methods,
    .tp_getset = fields,
    .tp_as_sequence = &as_sequence,
};

int pr_add_hand(PyObject *m)
{
    if (PyType_Ready(&hand_type) < 0)
        return -1;
    Py_INCREF(&hand_type);
    return PyModule_AddObject(m, "Hand", (PyObject *)&hand_type);
}
