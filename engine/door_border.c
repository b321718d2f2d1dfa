/* Python's hold on the border: _engine.App, a worker's side of an app, and _engine.AppRecords, the controller's. */
#include "door_border.h"

#include "border_tx.h"
#include "door_pool.h"
#include "doors.h"
#include "view.h"

#include <structmember.h>

/* ---- App ---- */

typedef struct {
    PyObject_HEAD
    struct pr_app a;
    Py_buffer records;
    PyObject *kept; /* view, rings, filter */
} App;

/* Once, before a worker uses it: everything fits what the record says. */
static int app_fits(struct pr_app *a, unsigned worker)
{
    if (worker >= a->rec->sides || a->rec->sides > PR_APP_SIDES || a->rx.k->dir != PR_RX || a->tx.k->dir != PR_TX)
        return 0;
    if (a->rx.rg->g.buf_stride != a->rg->g.buf_stride || a->rx.rg->mem != a->tx.rg->mem)
        return 0; /* a slot here is a buffer there */
    uint64_t first = pr_app_first(&a->tx, a->tx.n), last = pr_app_first(&a->rx, a->rx.n);
    return a->trusted ? a->rx.rg->mem == a->rg->mem : (first > last ? first : last) <= a->rx.rg->g.buf_num;
}

static int app_filter(struct pr_app *a, PyObject *filter)
{
    Py_ssize_t bytes = PyBytes_GET_SIZE(filter);
    a->filter = (const struct sock_filter *)PyBytes_AS_STRING(filter);
    a->n_filter = (uint32_t)((size_t)bytes / sizeof(struct sock_filter));
    return bytes % (Py_ssize_t)sizeof(struct sock_filter) == 0 && (!bytes || pr_filter_check(a->filter, a->n_filter) == 0);
}

/* App(records, place, worker, view, rx, tx, bell, filter, generation, whole): the rings of the pair as they stand; see begin(). */
static int app_init(PyObject *self, PyObject *args, PyObject *kw)
{
    static char *names[] = {"records", "place", "worker", "view", "rx", "tx", "bell", "filter", "generation", "whole", NULL};
    App *o = (App *)self;
    PyObject *view, *rx, *tx, *filter;
    unsigned place, worker, generation;
    int bell, whole = 0;
    if (o->kept || !PyArg_ParseTupleAndKeywords(args, kw, "w*IIOOOiSI|p", names, &o->records, &place, &worker, &view,
                                                &rx, &tx, &bell, &filter, &generation, &whole))
        return -1;
    const struct pr_region *rg = pr_borrowed(view, PR_REGION_CAPSULE);
    const struct pr_ringh *r = rg ? pr_borrowed(rx, PR_RINGH_CAPSULE) : NULL, *t = r ? pr_borrowed(tx, PR_RINGH_CAPSULE) : NULL;
    if (!t || !(o->kept = PyTuple_Pack(4, view, rx, tx, filter)))
        return -1;
    if (place >= PR_MAX_APPS || (size_t)o->records.len < sizeof(struct pr_app_record) * PR_MAX_APPS ||
        (uintptr_t)o->records.buf % 64) {
        PyErr_Format(PyExc_ValueError, "no record %u in %zd bytes", place, o->records.len);
        return -1;
    }
    struct pr_app_record *rec = (struct pr_app_record *)o->records.buf + place;
    o->a = (struct pr_app){.rec = rec, .side = &rec->side[worker % PR_APP_SIDES], .rx = *r, .tx = *t, .rg = rg,
                           .generation = generation, .id = rec->id, .port = rec->port, .bell = bell,
                           .trusted = rec->trusted != 0, .consume = rec->mode == PR_APP_CONSUME, .whole = whole != 0,
                           .fill = r->k->hwtail};
    if (app_fits(&o->a, worker) && app_filter(&o->a, filter))
        return 0;
    PyErr_SetString(PyExc_ValueError, "rings, worker or filter do not fit the app's record");
    return -1;
}

static void app_dealloc(PyObject *self)
{
    App *o = (App *)self;
    if (o->records.obj)
        PyBuffer_Release(&o->records);
    Py_CLEAR(o->kept);
    Py_TYPE(self)->tp_free(self);
}

static PyObject *app_turn(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyBool_FromLong(pr_app_turn(&((App *)self)->a));
}

/* A frame's bytes into buffers of the pool. Slots, 0 = it has too few. */
static uint32_t lift_bytes(const struct pr_region *rg, struct pr_pool *pool, const Py_buffer *b, uint64_t *desc)
{
    uint32_t room = pr_buf_room(rg), bufs[PR_MAX_FRAGS], len = (uint32_t)b->len, slots = len ? (len + room - 1) / room : 1;
    uint32_t got = slots <= PR_MAX_FRAGS ? pr_pool_take(pool, bufs, slots) : 0;
    if (got < slots) {
        pr_pool_give(pool, bufs, got);
        return 0;
    }
    *pr_meta_of(rg, bufs[0]) = (struct pr_meta){0};
    for (uint32_t k = 0, at = 0; k < slots; k++) {
        uint32_t put = len - at < room ? len - at : room;
        memcpy(pr_buf(rg, bufs[k]), (const char *)b->buf + at, put);
        at += put;
        desc[k] = pr_desc(bufs[k], (uint16_t)put, k + 1 < slots ? PR_NS_MOREFRAG : 0);
    }
    return slots;
}

/* offer(pool, frames, give) -> how many it took; give: for good, else a copy. Ends with publish(). */
static PyObject *app_offer(PyObject *self, PyObject *args)
{
    struct pr_app *a = &((App *)self)->a;
    PyObject *pool, *frames;
    int give = 0;
    struct pr_pool *p;
    if (!PyArg_ParseTuple(args, "OO|p", &pool, &frames, &give) || !(p = pr_borrowed(pool, PR_POOL_CAPSULE)))
        return NULL;
    PyObject *fast = PySequence_Fast(frames, "a sequence of frames");
    long took = 0;
    for (Py_ssize_t i = 0; fast && i < PySequence_Fast_GET_SIZE(fast); i++) {
        uint64_t desc[PR_MAX_FRAGS];
        Py_buffer b;
        if (PyObject_GetBuffer(PySequence_Fast_GET_ITEM(fast, i), &b, PyBUF_SIMPLE) < 0) {
            Py_CLEAR(fast);
            break;
        }
        uint32_t slots = lift_bytes(a->rg, p, &b, desc);
        int answer = !slots ? -1 : give ? pr_app_give(a, p, desc, slots) : pr_app_offer(a, p, desc, slots);
        PyBuffer_Release(&b);
        if (slots && (!give || answer == 0))
            pr_hand_free(p, desc, slots);
        took += answer > 0;
    }
    pr_app_publish(a);
    if (!fast)
        return NULL;
    Py_DECREF(fast);
    return PyLong_FromLong(took);
}

/* collect(pool) -> [bytes]: what it sent, a burst at most. */
static PyObject *app_collect(PyObject *self, PyObject *pool)
{
    struct pr_app *a = &((App *)self)->a;
    struct pr_pool *p = pr_borrowed(pool, PR_POOL_CAPSULE);
    PyObject *list = p ? PyList_New(0) : NULL;
    if (!list)
        return NULL;
    struct pr_batch batch;
    pr_batch_begin(&batch);
    pr_app_collect(a, p, &batch);
    for (uint32_t i = 0; list && i < batch.n; i++) {
        const uint64_t *desc = &batch.desc[batch.first[i]];
        uint32_t slots = batch.first[i + 1] - batch.first[i];
        PyObject *frame = PyBytes_FromStringAndSize(NULL, pr_desc_frame_len(desc, slots));
        char *at = frame ? PyBytes_AS_STRING(frame) : NULL;
        for (uint32_t k = 0; at && k < slots; at += pr_desc_len(desc[k]), k++)
            memcpy(at, pr_buf(a->rg, pr_desc_idx(desc[k])), pr_desc_len(desc[k]));
        if (!frame || PyList_Append(list, frame) < 0)
            Py_CLEAR(list);
        Py_XDECREF(frame);
    }
    pr_hand_free(p, batch.desc, batch.n_desc);
    return list;
}

static PyObject *app_begin(PyObject *self, PyObject *pool)
{
    struct pr_pool *p = pr_borrowed(pool, PR_POOL_CAPSULE);
    return p ? PyBool_FromLong(pr_app_begin(&((App *)self)->a, p)) : NULL;
}

static PyObject *app_arm(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyBool_FromLong(pr_app_arm(&((App *)self)->a));
}

static PyObject *app_heard(PyObject *self, PyObject *unused)
{
    (void)unused;
    pr_app_heard(&((App *)self)->a);
    return PyLong_FromLong(((App *)self)->a.bell);
}

static PyObject *app_capsule(PyObject *self, void *unused)
{
    (void)unused;
    return PyCapsule_New(&((App *)self)->a, "pktring.app", NULL);
}

static PyMethodDef app_methods[] = {
    {"turn", app_turn, METH_NOARGS, "turn() -> bool: is it to be served?"},
    {"offer", app_offer, METH_VARARGS, "offer(pool, frames, give=False) -> how many it took, published"},
    {"collect", app_collect, METH_O, "collect(pool) -> [bytes]: a burst of what it sent"},
    {"begin", app_begin, METH_O, "begin(pool) -> bool: take hold, mend what a predecessor left; False = it is not to be served"},
    {"arm", app_arm, METH_NOARGS, "arm() -> bool: have it ring; is there something already?"},
    {"heard", app_heard, METH_NOARGS, "heard() -> the bell, -1 when it is of no use any more"},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef app_members[] = {
    {"gone", T_UBYTE, offsetof(App, a.gone), READONLY, "this worker's hands are off its rings"},
    {"bell", T_INT, offsetof(App, a.bell), READONLY, "readable when it has sent something"},
    {"consume", T_UBYTE, offsetof(App, a.consume), READONLY, "it wants the frames themselves"},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef app_fields[] = {
    {"capsule", app_capsule, NULL, "struct pr_app, for a worker's loop", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyTypeObject app_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "pktring.engine._engine.App",
    .tp_basicsize = sizeof(App),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "App(records, place, worker, view, rx, tx, bell, filter, generation, whole=False): a worker's side of an app",
    .tp_new = PyType_GenericNew,
    .tp_init = app_init,
    .tp_dealloc = app_dealloc,
    .tp_methods = app_methods,
    .tp_members = app_members,
    .tp_getset = app_fields,
};

int pr_add_border(PyObject *m)
{
    return PyModule_AddType(m, &app_type) < 0 || pr_add_app_records(m) < 0 || pr_add_app_side(m) < 0 ? -1 : 0;
}
