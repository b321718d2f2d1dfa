/* Python's hold on a ring: _shm.Ring. One call a burst; the frames stay where they are. */
#include "doors.h"
#include "mend.h"
#include "move.h"
#include "view.h"

static PyTypeObject ring_type;

PyObject *pr_ring_handle(PrView *v, unsigned index)
{
    struct pr_ringh h;
    if (pr_ring_open(&v->rg, index, &h) < 0)
        return PyErr_Format(PyExc_ValueError, "no ring %u", index);
    PrRing *r = PyObject_New(PrRing, &ring_type);
    if (!r)
        return NULL;
    Py_INCREF(v);
    r->view = v;
    r->device = NULL;
    r->h = h;
    return (PyObject *)r;
}

static void ring_dealloc(PyObject *self)
{
    PrRing *r = (PrRing *)self;
    Py_CLEAR(r->device);
    Py_CLEAR(r->view);
    PyObject_Free(self);
}

static PyObject *ring_bind(PyObject *self, PyObject *capsule)
{
    PrRing *r = (PrRing *)self;
    struct pr_device *dev = NULL;
    if (capsule != Py_None && !(dev = PyCapsule_GetPointer(capsule, PR_DEVICE_CAPSULE)))
        return NULL;
    Py_INCREF(capsule);
    Py_XSETREF(r->device, capsule);
    r->h.dev = dev;
    Py_RETURN_NONE;
}

static PyObject *ring_sync(PyObject *self, PyObject *unused)
{
    (void)unused;
    PrRing *r = (PrRing *)self;
    int n;
    Py_BEGIN_ALLOW_THREADS
    n = r->h.k->dir == PR_RX ? pr_rxsync(&r->h) : pr_txsync(&r->h);
    Py_END_ALLOW_THREADS
    return PyLong_FromLong(n);
}

static PyObject *ring_stats(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct pr_ringh *h = &((PrRing *)self)->h;
    if (h->dev && h->dev->ops->stats)
        h->dev->ops->stats(h->dev, h);
    Py_RETURN_NONE;
}

/* resume() -> frames that a dead process took along, -1 = its books make no sense (mend.h). */
static PyObject *ring_resume(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct pr_ringh *h = &((PrRing *)self)->h;
    pr_resume(h);
    return PyLong_FromLongLong(pr_settle(h));
}

static PyObject *ring_slot(PyObject *self, PyObject *index)
{
    struct pr_ringh *h = &((PrRing *)self)->h;
    unsigned long i = PyLong_AsUnsignedLong(index);
    if (PyErr_Occurred())
        return NULL;
    if (i >= h->n)
        return PyErr_Format(PyExc_IndexError, "slot %lu of %u", i, h->n);
    const struct pr_slot *s = &h->ring->slot[i];
    return Py_BuildValue("(IIIK)", s->buf_idx, s->len, s->flags, s->ptr);
}

static PyObject *ring_set_slot(PyObject *self, PyObject *args)
{
    struct pr_ringh *h = &((PrRing *)self)->h;
    unsigned i, buf, len, flags;
    if (!PyArg_ParseTuple(args, "IIII", &i, &buf, &len, &flags))
        return NULL;
    if (i >= h->n)
        return PyErr_Format(PyExc_IndexError, "slot %u of %u", i, h->n);
    h->ring->slot[i].buf_idx = buf;
    h->ring->slot[i].len = (uint16_t)len;
    h->ring->slot[i].flags = (uint16_t)flags;
    Py_RETURN_NONE;
}

static PyObject *ring_move_to(PyObject *self, PyObject *args)
{
    struct pr_ringh *h = &((PrRing *)self)->h;
    unsigned head, cur;
    if (!PyArg_ParseTuple(args, "II", &head, &cur))
        return NULL;
    pr_store(&h->ring->cur, cur);
    pr_store(&h->ring->head, head);
    Py_RETURN_NONE;
}

/* peek(starts, most) -> (frames, end): writes the first slot of each whole frame from head on; end = slot after them. */
static PyObject *ring_peek(PyObject *self, PyObject *args)
{
    struct pr_ringh *h = &((PrRing *)self)->h;
    Py_buffer out;
    unsigned most;
    if (!PyArg_ParseTuple(args, "w*I", &out, &most))
        return NULL;
    uint32_t *starts = out.buf, n = 0, i = h->ring->head, tail = pr_load(&h->ring->tail);
    if (most > (size_t)out.len / 4)
        most = (unsigned)((size_t)out.len / 4);
    if (i < h->n && tail < h->n)
        for (uint32_t slots; n < most && (slots = pr_frame_slots(h, i, tail)); i = pr_ahead(h, i, slots))
            starts[n++] = i;
    PyBuffer_Release(&out);
    return Py_BuildValue("(II)", n, i);
}

enum { COL_LENGTH, COL_TIMESTAMP, COL_FLAGS, COL_PORT, COL_BUFFER, COL_WIRE, N_COLS };
static const size_t col_size[N_COLS] = {4, 8, 2, 2, 4, 4};

static uint32_t frame_len_at(const struct pr_ringh *h, uint32_t i)
{
    return pr_frame_len(h, i, pr_frame_slots(h, i, pr_prev(h, h->ring->head)));
}

/* column(which, starts, n, out): one fact of n frames. */
static PyObject *ring_column(PyObject *self, PyObject *args)
{
    struct pr_ringh *h = &((PrRing *)self)->h;
    unsigned which, n;
    Py_buffer in, out;
    if (!PyArg_ParseTuple(args, "Iy*Iw*", &which, &in, &n, &out))
        return NULL;
    int ok = which < N_COLS && (size_t)in.len >= 4ull * n && (size_t)out.len >= col_size[which] * n;
    const uint32_t *starts = in.buf;
    for (unsigned i = 0; ok && i < n; i++) {
        if (starts[i] >= h->n) {
            ok = 0;
            break;
        }
        uint32_t buf = h->ring->slot[starts[i]].buf_idx;
        static const struct pr_meta none;
        const struct pr_meta *m = pr_buf_ok(h->rg, buf) ? pr_meta_of(h->rg, buf) : &none;
        switch (which) {
        case COL_LENGTH: ((uint32_t *)out.buf)[i] = frame_len_at(h, starts[i]); break;
        case COL_TIMESTAMP: ((uint64_t *)out.buf)[i] = m->ts_ns; break;
        case COL_FLAGS: ((uint16_t *)out.buf)[i] = m->flags; break;
        case COL_PORT: ((uint16_t *)out.buf)[i] = m->port; break;
        case COL_BUFFER: ((uint32_t *)out.buf)[i] = buf; break;
        case COL_WIRE: ((uint32_t *)out.buf)[i] = m->wire_len ? m->wire_len : frame_len_at(h, starts[i]); break;
        }
    }
    PyBuffer_Release(&in);
    PyBuffer_Release(&out);
    if (!ok)
        return PyErr_Format(PyExc_ValueError, "column %u of %u frames does not fit", which, n);
    Py_RETURN_NONE;
}

/* gather(starts, n, width, out): the first `width` bytes of n frames, one row each, zero-filled behind short frames. */
static PyObject *ring_gather(PyObject *self, PyObject *args)
{
    struct pr_ringh *h = &((PrRing *)self)->h;
    unsigned n, width;
    Py_buffer in, out;
    if (!PyArg_ParseTuple(args, "y*IIw*", &in, &n, &width, &out))
        return NULL;
    int ok = (size_t)in.len >= 4ull * n && (size_t)out.len >= (size_t)n * width;
    const uint32_t *starts = in.buf;
    uint8_t *row = out.buf;
    for (unsigned i = 0; ok && i < n; i++, row += width) {
        struct iovec iov[PR_MAX_FRAGS];
        uint32_t slots = starts[i] < h->n ? pr_frame_slots(h, starts[i], pr_prev(h, h->ring->head)) : 0;
        size_t put = 0;
        if (!slots || !pr_frame_pieces(h, starts[i], slots, iov))
            slots = 0;
        for (uint32_t k = 0; k < slots && put < width; k++) {
            size_t take = iov[k].iov_len < width - put ? iov[k].iov_len : width - put;
            memcpy(row + put, iov[k].iov_base, take);
            put += take;
        }
        memset(row + put, 0, width - put);
    }
    PyBuffer_Release(&in);
    PyBuffer_Release(&out);
    if (!ok)
        return PyErr_Format(PyExc_ValueError, "%u rows of %u bytes do not fit", n, width);
    Py_RETURN_NONE;
}

/* The frame that starts at a slot, as pieces. Its slots, 0 with an exception when there is none. */
static uint32_t frame_at(const struct pr_ringh *h, unsigned long i, struct iovec *iov)
{
    uint32_t slots = i < h->n ? pr_frame_slots(h, (uint32_t)i, pr_prev(h, h->ring->head)) : 0;
    if (slots && pr_frame_pieces(h, (uint32_t)i, slots, iov))
        return slots;
    PyErr_Format(PyExc_IndexError, "no frame at slot %lu", i);
    return 0;
}

static void join(char *to, const struct iovec *iov, uint32_t pieces)
{
    for (uint32_t k = 0; k < pieces; to += iov[k].iov_len, k++)
        memcpy(to, iov[k].iov_base, iov[k].iov_len);
}

/* frame(start) -> (offset in the region, length) when it lies in one buffer, else its bytes. */
static PyObject *ring_frame(PyObject *self, PyObject *start)
{
    struct pr_ringh *h = &((PrRing *)self)->h;
    unsigned long i = PyLong_AsUnsignedLong(start);
    struct iovec iov[PR_MAX_FRAGS];
    uint32_t slots = PyErr_Occurred() ? 0 : frame_at(h, i, iov);
    if (!slots)
        return NULL;
    if (slots == 1)
        return Py_BuildValue("(nn)", (Py_ssize_t)((uint8_t *)iov->iov_base - h->rg->mem), (Py_ssize_t)iov->iov_len);
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, pr_frame_len(h, (uint32_t)i, slots));
    if (bytes)
        join(PyBytes_AS_STRING(bytes), iov, slots);
    return bytes;
}

/* parts(start) -> [bytes, ...]: the wire frames of a super-frame; an ordinary frame is its only part. */
static PyObject *ring_parts(PyObject *self, PyObject *start)
{
    struct pr_ringh *h = &((PrRing *)self)->h;
    unsigned long i = PyLong_AsUnsignedLong(start);
    struct iovec iov[PR_MAX_FRAGS];
    uint32_t slots = PyErr_Occurred() ? 0 : frame_at(h, i, iov);
    if (!slots)
        return NULL;
    const struct pr_meta *m = pr_meta_of(h->rg, h->ring->slot[i].buf_idx);
    struct pr_cut cut;
    int whole = !(m->flags & PR_META_GSO) || pr_cut_begin(&cut, iov, slots, m) < 0;
    size_t most = whole ? pr_frame_len(h, (uint32_t)i, slots) : pr_cut_frame_max(&cut), len = most;
    size_t n = whole ? 1 : pr_cut_count(&cut);
    PyObject *list = PyList_New(0);
    for (size_t k = 0; list && k < n; k++) {
        PyObject *part = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)most);
        if (part && whole)
            join(PyBytes_AS_STRING(part), iov, slots);
        else if (part)
            len = pr_cut_next(&cut, &(struct iovec){PyBytes_AS_STRING(part), most}, 1);
        if (!part || _PyBytes_Resize(&part, (Py_ssize_t)len) < 0 || PyList_Append(list, part) < 0)
            Py_CLEAR(list);
        Py_XDECREF(part);
    }
    return list;
}

/* forward(starts, n, to, mask or None) -> frames moved. mask: n bytes, 0 = not this one. What finds no room stays behind
 * and is counted drop_tx_full by the release. */
static PyObject *ring_forward(PyObject *self, PyObject *args)
{
    struct pr_ringh *h = &((PrRing *)self)->h;
    Py_buffer in;
    unsigned n;
    PyObject *to_ring;
    const char *mask;
    Py_ssize_t n_mask;
    if (!PyArg_ParseTuple(args, "y*IO!z#", &in, &n, &ring_type, &to_ring, &mask, &n_mask))
        return NULL;
    struct pr_ringh *to = &((PrRing *)to_ring)->h;
    if ((size_t)in.len < 4ull * n || (mask && (size_t)n_mask < n) || to->k->dir != PR_TX) {
        PyBuffer_Release(&in);
        return PyErr_Format(PyExc_ValueError, "starts or mask shorter than %u frames, or not a transmit ring", n);
    }
    const uint32_t *starts = in.buf;
    uint32_t at = to->ring->head, moved = 0, full = 0, queued = 0, copied = 0;
    for (unsigned f = 0; f < n; f++) {
        uint32_t slots = starts[f] < h->n ? pr_frame_slots(h, starts[f], pr_prev(h, h->ring->head)) : 0, frames = 1;
        if ((mask && !mask[f]) || !slots)
            continue;
        int whole = !(pr_meta_of(h->rg, h->ring->slot[starts[f]].buf_idx)->flags & PR_META_GSO) ||
                    (to->dev && (to->dev->flags & PR_DEV_CARRIES_GSO));
        int zero_copy = h->rg->mem == to->rg->mem && whole;
        int used = zero_copy ? (int)pr_move_swap(h, starts[f], slots, to, at)
                             : pr_move_copy(h, starts[f], slots, to, at, &frames);
        if (used <= 0) {
            full++;
            continue;
        }
        copied += !zero_copy;
        at = pr_ahead(to, at, (uint32_t)used);
        moved++;
        queued += frames;
    }
    PyBuffer_Release(&in);
    pr_count(to->row, PR_C_tx_queued, queued);
    pr_ring_advance(to, at);
    pr_count(h->row, PR_C_forwarded, moved);
    pr_count(h->row, PR_C_drop_tx_full, full);
    pr_count(h->row, PR_C_copies, copied);
    return Py_BuildValue("(II)", moved, full);
}

/* release(end, delivered): everything before slot `end` goes back to the engine. */
static PyObject *ring_release(PyObject *self, PyObject *args)
{
    struct pr_ringh *h = &((PrRing *)self)->h;
    unsigned end, delivered;
    if (!PyArg_ParseTuple(args, "II", &end, &delivered))
        return NULL;
    if (end >= h->n)
        return PyErr_Format(PyExc_ValueError, "slot %u of %u", end, h->n);
    pr_count(h->row, PR_C_delivered, delivered);
    pr_ring_advance(h, end);
    Py_RETURN_NONE;
}

/* put(frames) -> how many found room: bytes-like objects copied into the transmit ring. */
static PyObject *ring_put(PyObject *self, PyObject *frames)
{
    struct pr_ringh *h = &((PrRing *)self)->h;
    PyObject *fast = PySequence_Fast(frames, "a sequence of frames");
    if (!fast)
        return NULL;
    uint32_t at = h->ring->head, n = 0;
    Py_ssize_t total = PySequence_Fast_GET_SIZE(fast);
    for (Py_ssize_t f = 0; f < total; f++) {
        Py_buffer b;
        if (PyObject_GetBuffer(PySequence_Fast_GET_ITEM(fast, f), &b, PyBUF_SIMPLE) < 0) {
            Py_DECREF(fast);
            return NULL;
        }
        if ((size_t)b.len > (size_t)pr_buf_room(h->rg) * PR_MAX_FRAGS) {
            PyErr_Format(PyExc_ValueError, "frame %zd of %zd bytes is longer than a ring can hold", f, b.len);
            PyBuffer_Release(&b);
            Py_DECREF(fast);
            return NULL;
        }
        struct iovec iov = {b.buf, (size_t)b.len};
        uint32_t used = pr_copy_in(h, at, pr_tx_room(h, at), &iov, 1, (size_t)b.len);
        PyBuffer_Release(&b);
        if (!used)
            break;
        *pr_meta_of(h->rg, h->ring->slot[at].buf_idx) = (struct pr_meta){0};
        at = pr_ahead(h, at, used);
        n++;
    }
    Py_DECREF(fast);
    pr_count(h->row, PR_C_tx_queued, n);
    pr_ring_advance(h, at);
    return PyLong_FromUnsignedLong(n);
}

static PyObject *ring_count(PyObject *self, PyObject *args)
{
    struct pr_ringh *h = &((PrRing *)self)->h;
    unsigned which, n;
    if (!PyArg_ParseTuple(args, "II", &which, &n))
        return NULL;
    if (which >= PR_N_COUNTERS)
        return PyErr_Format(PyExc_IndexError, "no counter %u", which);
    pr_count(h->row, which, n);
    Py_RETURN_NONE;
}

static PyMethodDef ring_methods[] = {
    {"bind", ring_bind, METH_O, "bind(device capsule or None): the driver's queue that serves this ring"},
    {"sync", ring_sync, METH_NOARGS, "one turn of the driver: slots filled or taken, -1 after a protocol violation"},
    {"stats", ring_stats, METH_NOARGS, "bring the kernel's drop counts into the row"},
    {"resume", ring_resume, METH_NOARGS, "go on in another's place, after Region.mend -> frames lost, -1 = suspect state"},
    {"slot", ring_slot, METH_O, "slot(i) -> (buf_idx, len, flags, ptr)"},
    {"set_slot", ring_set_slot, METH_VARARGS, "set_slot(i, buf_idx, len, flags)"},
    {"move_to", ring_move_to, METH_VARARGS, "move_to(head, cur): the app's cursors, as a netmap app moves them"},
    {"peek", ring_peek, METH_VARARGS, "peek(starts, most) -> (frames, end)"},
    {"column", ring_column, METH_VARARGS, "column(which, starts, n, out)"},
    {"gather", ring_gather, METH_VARARGS, "gather(starts, n, width, out)"},
    {"frame", ring_frame, METH_O, "frame(start) -> (offset, length) or bytes"},
    {"parts", ring_parts, METH_O, "parts(start) -> [bytes]"},
    {"forward", ring_forward, METH_VARARGS, "forward(starts, n, to, mask) -> (moved, without room)"},
    {"release", ring_release, METH_VARARGS, "release(end, delivered)"},
    {"put", ring_put, METH_O, "put(frames) -> accepted"},
    {"count", ring_count, METH_VARARGS, "count(which, n): add to one of the row's counters"},
    {NULL, NULL, 0, NULL},
};

#define H(self) (&((PrRing *)self)->h)
static PyObject *get_u32(PyObject *self, void *what)
{
    const struct pr_ringh *h = H(self);
    switch ((intptr_t)what) {
    case 'h': return PyLong_FromUnsignedLong(pr_load(&h->ring->head));
    case 'c': return PyLong_FromUnsignedLong(pr_load(&h->ring->cur));
    case 't': return PyLong_FromUnsignedLong(pr_load(&h->ring->tail));
    case 'n': return PyLong_FromUnsignedLong(h->n);
    case 'd': return PyLong_FromUnsignedLong(h->k->dir);
    case 'C': return PyLong_FromUnsignedLong(h->k->hwcur);
    case 'T': return PyLong_FromUnsignedLong(h->k->hwtail);
    case 'r': return PyLong_FromUnsignedLong(pr_ring_ready(h));
    case 'b': return PyLong_FromUnsignedLong(h->burst);
    case 'f': return PyLong_FromUnsignedLong(h->dev ? h->dev->flags : 0);
    default: return PyLong_FromUnsignedLong(h->dev ? (unsigned)h->dev->error : 0);
    }
}

static int set_flags(PyObject *self, PyObject *value, void *what)
{
    struct pr_ringh *h = H(self);
    unsigned long v = value ? PyLong_AsUnsignedLong(value) : 0;
    if (PyErr_Occurred())
        return -1;
    if (h->dev && (intptr_t)what == 'f')
        h->dev->flags = (uint32_t)v;
    else if (h->dev)
        h->dev->error = (int)v;
    return 0;
}

static int set_burst(PyObject *self, PyObject *value, void *unused)
{
    (void)unused;
    unsigned long v = value ? PyLong_AsUnsignedLong(value) : 0;
    if (PyErr_Occurred())
        return -1;
    if (v && (v < PR_MAX_FRAGS || v > UINT32_MAX))
        return PyErr_Format(PyExc_ValueError, "burst %lu: 0, or %d and more: a frame may need so many", v, PR_MAX_FRAGS), -1;
    H(self)->burst = (uint32_t)v;
    return 0;
}

static PyObject *get_capsule(PyObject *self, void *unused)
{
    (void)unused;
    return PyCapsule_New(H(self), PR_RINGH_CAPSULE, NULL); /* the holder keeps the Ring alive beside it */
}

static PyGetSetDef ring_fields[] = {
    {"head", get_u32, NULL, "first slot the app owns", (void *)'h'},
    {"cur", get_u32, NULL, "the app's wake-up point", (void *)'c'},
    {"tail", get_u32, NULL, "first slot the engine owns", (void *)'t'},
    {"num_slots", get_u32, NULL, "slots; one is always unusable", (void *)'n'},
    {"dir", get_u32, NULL, "PR_RX or PR_TX", (void *)'d'},
    {"hwcur", get_u32, NULL, "the engine's own head", (void *)'C'},
    {"hwtail", get_u32, NULL, "the engine's own tail", (void *)'T'},
    {"ready", get_u32, NULL, "slots the app owns", (void *)'r'},
    {"burst", get_u32, set_burst, "slots that one sync may fill, 0 = no limit", (void *)'b'},
    {"device_flags", get_u32, set_flags, "PR_DEV_ flags of the bound device", (void *)'f'},
    {"device_error", get_u32, set_flags, "errno the bound device ran into, 0 = none", (void *)'e'},
    {"capsule", get_capsule, NULL, "the handle, for C code of other extensions", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyTypeObject ring_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "pktring.shm._shm.Ring",
    .tp_basicsize = sizeof(PrRing),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_doc = "One ring of a region, held by this process",
    .tp_dealloc = ring_dealloc,
    .tp_methods = ring_methods,
    .tp_getset = ring_fields,
};

int pr_add_rings(PyObject *m)
{
    if (PyType_Ready(&ring_type) < 0)
        return -1;
    Py_INCREF(&ring_type);
    return PyModule_AddObject(m, "Ring", (PyObject *)&ring_type) < 0 ||
                   PyModule_AddIntMacro(m, COL_LENGTH) < 0 || PyModule_AddIntMacro(m, COL_TIMESTAMP) < 0 ||
                   PyModule_AddIntMacro(m, COL_FLAGS) < 0 || PyModule_AddIntMacro(m, COL_PORT) < 0 ||
                   PyModule_AddIntMacro(m, COL_BUFFER) < 0 || PyModule_AddIntMacro(m, COL_WIRE) < 0 ||
                   PyModule_AddIntMacro(m, PR_DEV_CARRIES_GSO) < 0 || PyModule_AddIntMacro(m, PR_DEV_WHOLE) < 0 ||
                   PyModule_AddIntMacro(m, PR_DEV_END) < 0 || PyModule_AddIntMacro(m, PR_DEV_PAUSED) < 0
               ? -1
               : 0;
}
