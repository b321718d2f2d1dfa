/* Frames in hand as a handler sees them: _engine.Frames. One call a column; the frames stay where they are. */
#include "door_handler.h"
#include "doors.h"

#include "offload.h"

static PyTypeObject frames_type;
static PyObject *release_name;

PrFrames *pr_frames_new(PyObject *view, const struct pr_region *rg)
{
    PrFrames *f = PyObject_New(PrFrames, &frames_type);
    if (!f)
        return NULL;
    memset((char *)f + offsetof(PrFrames, view), 0, sizeof *f - offsetof(PrFrames, view));
    f->view = Py_NewRef(view);
    f->rg = rg;
    return f;
}

static void frames_dealloc(PyObject *self)
{
    PrFrames *f = (PrFrames *)self;
    for (uint32_t i = 0; i < PR_BURST; i++)
        Py_CLEAR(f->shown[i]);
    Py_CLEAR(f->view);
    PyObject_Free(self);
}

/* ---- memoryviews ---- */

/* The buffer protocol is how a memoryview of the frame at hand is made; it keeps us, and with us the mapping, alive. */
static int frames_getbuffer(PyObject *self, Py_buffer *out, int flags)
{
    PrFrames *f = (PrFrames *)self;
    static uint8_t none;
    return PyBuffer_FillInfo(out, self, f->at ? f->at : &none, f->len, 0, flags);
}

static PyBufferProcs frames_as_buffer = {.bf_getbuffer = frames_getbuffer};

static PyObject *joined(const struct pr_region *rg, const uint64_t *desc, uint32_t slots)
{
    struct iovec iov[PR_MAX_FRAGS];
    uint32_t len = pr_desc_frame_len(desc, slots);
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, len);
    if (bytes)
        pr_pieces_copy((uint8_t *)PyBytes_AS_STRING(bytes), len, iov, pr_desc_pieces(rg, desc, slots, iov));
    return bytes;
}

PyObject *pr_frames_show(PrFrames *f, const uint64_t *desc, uint32_t slots)
{
    if (slots == 1) {
        f->at = pr_buf(f->rg, pr_desc_idx(*desc));
        f->len = pr_desc_len(*desc);
        PyObject *view = PyMemoryView_FromObject((PyObject *)f);
        f->at = NULL;
        f->len = 0;
        return view;
    }
    PyObject *bytes = joined(f->rg, desc, slots), *view = bytes ? PyMemoryView_FromObject(bytes) : NULL;
    Py_XDECREF(bytes);
    return view;
}

void pr_frames_shut(PyObject *view)
{
    if (Py_REFCNT(view) > 1) { /* somebody kept it */
        PyObject *done = PyObject_CallMethodNoArgs(view, release_name);
        if (!done)
            PyErr_Clear(); /* an array over it was kept too, and that cannot be taken away */
        Py_XDECREF(done);
    }
    Py_DECREF(view);
}

void pr_frames_end(PrFrames *f)
{
    f->b = NULL;
    for (uint32_t i = 0, n = f->n_shown; i < n; i++) {
        PyObject *view = f->shown[i];
        f->shown[i] = NULL;
        if (view)
            pr_frames_shut(view);
    }
    f->n_shown = 0;
}

/* ---- what a handler may ask ---- */

static int raise(const char *code, const char *text)
{
    PyObject *errors = PyImport_ImportModule("pktring.shm.errors");
    PyObject *type = errors ? PyObject_GetAttrString(errors, "Error") : NULL;
    PyObject *error = type ? PyObject_CallFunction(type, "ss", code, text) : NULL;
    if (error)
        PyErr_SetObject(type, error);
    Py_XDECREF(error);
    Py_XDECREF(type);
    Py_XDECREF(errors);
    return -1;
}

static struct pr_batch *open_batch(PrFrames *f)
{
    if (!f->b)
        raise("E_BATCH", "the handler has returned: its frames are gone (copy what must stay: bytes(batch[i]))");
    return f->b;
}

static Py_ssize_t frames_len(PyObject *self)
{
    const struct pr_batch *b = open_batch((PrFrames *)self);
    return b ? (Py_ssize_t)b->n : -1;
}

/* These numbers are those of _shm.Ring's columns; handed.py checks it. */
enum { COL_LENGTH, COL_TIMESTAMP, COL_FLAGS, COL_PORT, COL_BUFFER, COL_WIRE, COL_HASH, N_COLS };
static const size_t col_size[N_COLS] = {4, 8, 2, 2, 4, 4, 4};

static void fill(const struct pr_region *rg, const struct pr_batch *b, unsigned which, void *out)
{
    for (uint32_t i = 0; i < b->n; i++) {
        const struct pr_meta *m = pr_batch_meta(rg, b, i);
        switch (which) {
        case COL_LENGTH: ((uint32_t *)out)[i] = pr_batch_frame_len(b, i); break;
        case COL_TIMESTAMP: ((uint64_t *)out)[i] = m->ts_ns; break;
        case COL_FLAGS: ((uint16_t *)out)[i] = m->flags; break;
        case COL_PORT: ((uint16_t *)out)[i] = m->port; break;
        case COL_BUFFER: ((uint32_t *)out)[i] = pr_desc_idx(b->desc[b->first[i]]); break;
        case COL_WIRE: ((uint32_t *)out)[i] = m->wire_len ? m->wire_len : pr_batch_frame_len(b, i); break;
        case COL_HASH: ((uint32_t *)out)[i] = pr_meta_hash(m); break;
        }
    }
}

/* column(which, out): one fact of every frame. */
static PyObject *frames_column(PyObject *self, PyObject *const *args, Py_ssize_t n_args)
{
    PrFrames *f = (PrFrames *)self;
    const struct pr_batch *b = open_batch(f);
    unsigned long which = b && n_args == 2 ? PyLong_AsUnsignedLong(args[0]) : N_COLS;
    Py_buffer out;
    if (!b || PyErr_Occurred())
        return NULL;
    if (which >= N_COLS)
        return PyErr_Format(PyExc_TypeError, "column(which, out)");
    if (PyObject_GetBuffer(args[1], &out, PyBUF_WRITABLE) < 0)
        return NULL;
    int ok = (size_t)out.len >= col_size[which] * b->n && (uintptr_t)out.buf % col_size[which] == 0;
    if (ok)
        fill(f->rg, b, (unsigned)which, out.buf);
    PyBuffer_Release(&out);
    if (!ok)
        return PyErr_Format(PyExc_ValueError, "column %lu of %u frames does not fit", which, b->n);
    Py_RETURN_NONE;
}

/* gather(width, out): the first `width` bytes of every frame, one row each, zeros behind short frames. */
static PyObject *frames_gather(PyObject *self, PyObject *args)
{
    PrFrames *f = (PrFrames *)self;
    const struct pr_batch *b = open_batch(f);
    unsigned width;
    Py_buffer out;
    if (!b || !PyArg_ParseTuple(args, "Iw*", &width, &out))
        return NULL;
    int ok = (size_t)out.len >= (size_t)b->n * width;
    uint8_t *row = out.buf;
    for (uint32_t i = 0; ok && i < b->n; i++, row += width) {
        struct iovec iov[PR_MAX_FRAGS];
        uint32_t slots;
        const uint64_t *desc = pr_batch_frame(b, i, &slots);
        uint32_t put = pr_pieces_copy(row, width, iov, pr_desc_pieces(f->rg, desc, slots, iov));
        memset(row + put, 0, width - put);
    }
    PyBuffer_Release(&out);
    if (!ok)
        return PyErr_Format(PyExc_ValueError, "%u rows of %u bytes do not fit", b->n, width);
    Py_RETURN_NONE;
}

/* The index of a frame, from the end when negative; -1 with an exception. */
static Py_ssize_t index_of(const struct pr_batch *b, PyObject *number)
{
    Py_ssize_t i = b ? PyNumber_AsSsize_t(number, PyExc_IndexError) : -1;
    if (!b || (i == -1 && PyErr_Occurred()))
        return -1;
    Py_ssize_t at = i < 0 ? i + (Py_ssize_t)b->n : i;
    if (at >= 0 && at < (Py_ssize_t)b->n)
        return at;
    PyErr_Format(PyExc_IndexError, "frame %zd of %u", i, b->n);
    return -1;
}

static int is_shut(PyObject *view)
{
    return (((PyMemoryViewObject *)view)->flags & _Py_MEMORYVIEW_RELEASED) != 0;
}

/* frame(i) -> memoryview */
static PyObject *frames_frame(PyObject *self, PyObject *number)
{
    PrFrames *f = (PrFrames *)self;
    struct pr_batch *b = open_batch(f);
    Py_ssize_t i = index_of(b, number);
    if (i < 0)
        return NULL;
    if (f->shown[i] && !is_shut(f->shown[i]))
        return Py_NewRef(f->shown[i]);
    uint32_t slots;
    const uint64_t *desc = pr_batch_frame(b, (uint32_t)i, &slots);
    PyObject *view = pr_frames_show(f, desc, slots);
    if (!view)
        return NULL;
    Py_XSETREF(f->shown[i], Py_NewRef(view));
    if (f->n_shown <= (uint32_t)i)
        f->n_shown = (uint32_t)i + 1;
    return view;
}

/* The pieces of a super-frame that can be cut, as bytes. */
static PyObject *cut_up(struct pr_cut *cut)
{
    size_t n = pr_cut_count(cut), most = pr_cut_frame_max(cut);
    PyObject *list = PyList_New(0);
    for (size_t k = 0; list && k < n; k++) {
        PyObject *part = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)most);
        size_t len = part ? pr_cut_next(cut, &(struct iovec){PyBytes_AS_STRING(part), most}, 1) : 0;
        if (!part || _PyBytes_Resize(&part, (Py_ssize_t)len) < 0 || PyList_Append(list, part) < 0)
            Py_CLEAR(list);
        Py_XDECREF(part);
    }
    return list;
}

/* parts(i) -> [bytes, ...]: the wire frames of a super-frame; an ordinary frame is its only part. */
static PyObject *frames_parts(PyObject *self, PyObject *number)
{
    PrFrames *f = (PrFrames *)self;
    const struct pr_batch *b = open_batch(f);
    Py_ssize_t i = index_of(b, number);
    if (i < 0)
        return NULL;
    const struct pr_region *rg = f->rg;
    const struct pr_meta *m = pr_batch_meta(rg, b, (uint32_t)i);
    uint32_t slots;
    const uint64_t *desc = pr_batch_frame(b, (uint32_t)i, &slots);
    struct iovec iov[PR_MAX_FRAGS];
    struct pr_cut cut;
    if ((m->flags & PR_META_GSO) && pr_cut_begin(&cut, iov, pr_desc_pieces(rg, desc, slots, iov), m) == 0)
        return cut_up(&cut);
    return Py_BuildValue("[N]", joined(rg, desc, slots));
}

/* forward(port number, mask or None) -> frames marked: those that have no verdict yet. mask: a byte a frame, 0 = not this one. */
static PyObject *frames_forward(PyObject *self, PyObject *args)
{
    PrFrames *f = (PrFrames *)self;
    struct pr_batch *b = open_batch(f);
    Py_buffer mask = {0};
    unsigned port, marked = 0;
    if (!b || !PyArg_ParseTuple(args, "Iz*", &port, &mask))
        return NULL;
    const char *wanted = mask.buf;
    int ok = (!wanted || mask.len == (Py_ssize_t)b->n) && port <= INT32_MAX;
    for (uint32_t i = 0; ok && i < b->n; i++)
        if (b->verdict[i] == PR_DONE && (!wanted || wanted[i])) {
            b->verdict[i] = (int32_t)port;
            marked++;
        }
    Py_ssize_t len = mask.len;
    PyBuffer_Release(&mask);
    if (!ok)
        return PyErr_Format(PyExc_ValueError, "a mask of %zd for %u frames, to port %u", len, b->n, port);
    return PyLong_FromUnsignedLong(marked);
}

static PyMethodDef frames_methods[] = {
    {"column", (PyCFunction)(void (*)(void))frames_column, METH_FASTCALL, "column(which, out)"},
    {"gather", frames_gather, METH_VARARGS, "gather(width, out)"},
    {"frame", frames_frame, METH_O, "frame(i) -> memoryview"},
    {"parts", frames_parts, METH_O, "parts(i) -> [bytes]"},
    {"forward", frames_forward, METH_VARARGS, "forward(port number, mask or None) -> frames marked"},
    {NULL, NULL, 0, NULL},
};

static PySequenceMethods frames_as_sequence = {.sq_length = frames_len};

static PyTypeObject frames_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "pktring.engine._engine.Frames",
    .tp_basicsize = sizeof(PrFrames),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_doc = "Frames in a worker's hands, while a handler runs",
    .tp_dealloc = frames_dealloc,
    .tp_methods = frames_methods,
    .tp_as_buffer = &frames_as_buffer,
    .tp_as_sequence = &frames_as_sequence,
};

int pr_add_frames(PyObject *m)
{
    if (PyType_Ready(&frames_type) < 0 || !(release_name = PyUnicode_InternFromString("release")))
        return -1;
    return PyModule_AddIntMacro(m, COL_LENGTH) < 0 || PyModule_AddIntMacro(m, COL_TIMESTAMP) < 0 ||
                   PyModule_AddIntMacro(m, COL_FLAGS) < 0 || PyModule_AddIntMacro(m, COL_PORT) < 0 ||
                   PyModule_AddIntMacro(m, COL_BUFFER) < 0 || PyModule_AddIntMacro(m, COL_WIRE) < 0 ||
                   PyModule_AddIntMacro(m, COL_HASH) < 0
               ? -1
               : 0;
}
