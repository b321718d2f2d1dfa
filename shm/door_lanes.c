/* Python's hold on lanes and doorbells: _shm.Lane, _shm.doorbell_*. Names and documentation: lane.py, doorbell.py. */
#include "door_pool.h"
#include "doorbell.h"
#include "lane.h"

#include <structmember.h>

/* ---- Lane ---- */

typedef struct {
    PyObject_HEAD
    Py_buffer mem;
    struct pr_lane_end e;
} PrLane;

static int lane_init(PyObject *o, PyObject *args, PyObject *kw)
{
    static char *names[] = {"mem", "side", NULL};
    PrLane *self = (PrLane *)o;
    PyObject *mem;
    int side;
    if (self->mem.obj || !PyArg_ParseTupleAndKeywords(args, kw, "Oi", names, &mem, &side) ||
        pr_borrow(mem, &self->mem, _Alignof(struct pr_lane), PyBUF_WRITABLE) < 0)
        return -1;
    if (pr_lane_attach(&self->e, self->mem.buf, (size_t)self->mem.len, side ? PR_CONSUMER : PR_PRODUCER) == 0)
        return 0;
    PyErr_Format(PyExc_ValueError, "no lane in these %zd bytes", self->mem.len);
    return -1;
}

static void lane_dealloc(PyObject *o)
{
    PyBuffer_Release(&((PrLane *)o)->mem);
    Py_TYPE(o)->tp_free(o);
}

static struct pr_lane_end *end_of(PyObject *o) { return &((PrLane *)o)->e; }

static PyObject *lane_reserve(PyObject *o, PyObject *n)
{
    unsigned long want = PyLong_AsUnsignedLong(n);
    return PyErr_Occurred() ? NULL : PyLong_FromUnsignedLong(pr_lane_reserve(end_of(o), (uint32_t)want));
}

static PyObject *lane_peek(PyObject *o, PyObject *n)
{
    unsigned long want = PyLong_AsUnsignedLong(n);
    return PyErr_Occurred() ? NULL : PyLong_FromUnsignedLong(pr_lane_peek(end_of(o), (uint32_t)want));
}

/* Slots between my cursor and the other's, as last read: what submit and release may pass. */
static uint32_t room_of(const struct pr_lane_end *e) { return e->capacity - (e->mine - e->peer); }
static uint32_t ready_of(const struct pr_lane_end *e) { return e->peer - e->mine; }

static PyObject *pass(PyObject *n, uint32_t most, struct pr_lane_end *e,
                      void (*verb)(struct pr_lane_end *, uint32_t))
{
    unsigned long k = PyLong_AsUnsignedLong(n);
    if (PyErr_Occurred())
        return NULL;
    if (k > most)
        return PyErr_Format(PyExc_ValueError, "%lu slots of %u", k, most);
    verb(e, (uint32_t)k);
    Py_RETURN_NONE;
}

static PyObject *lane_submit(PyObject *o, PyObject *n)
{
    return pass(n, room_of(end_of(o)), end_of(o), pr_lane_submit);
}

static PyObject *lane_release(PyObject *o, PyObject *n)
{
    return pass(n, ready_of(end_of(o)), end_of(o), pr_lane_release);
}

static PyObject *lane_fill(PyObject *o, PyObject *args)
{
    unsigned i;
    unsigned long long desc;
    if (!PyArg_ParseTuple(args, "IK", &i, &desc))
        return NULL;
    if (i >= room_of(end_of(o)))
        return PyErr_Format(PyExc_IndexError, "slot %u of %u", i, room_of(end_of(o)));
    __atomic_store_n(pr_lane_slot(end_of(o), i), desc, __ATOMIC_RELAXED);
    Py_RETURN_NONE;
}

static PyObject *lane_slot(PyObject *o, PyObject *index)
{
    unsigned long i = PyLong_AsUnsignedLong(index);
    if (PyErr_Occurred())
        return NULL;
    if (i >= ready_of(end_of(o)))
        return PyErr_Format(PyExc_IndexError, "slot %lu of %u", i, ready_of(end_of(o)));
    return PyLong_FromUnsignedLongLong(__atomic_load_n(pr_lane_slot(end_of(o), (uint32_t)i), __ATOMIC_RELAXED));
}

static PyObject *lane_put(PyObject *o, PyObject *args)
{
    PyObject *pool;
    Py_buffer b;
    if (!PyArg_ParseTuple(args, "O!O&", &pr_pool_type, &pool, pr_u64_in, &b))
        return NULL;
    uint32_t n = pr_lane_put(end_of(o), &((PrPool *)pool)->p, b.buf, pr_items(&b, 8));
    PyBuffer_Release(&b);
    return PyLong_FromUnsignedLong(n);
}

static PyObject *lane_take(PyObject *o, PyObject *args)
{
    PyObject *pool;
    Py_buffer b;
    if (!PyArg_ParseTuple(args, "O!O&", &pr_pool_type, &pool, pr_u64_out, &b))
        return NULL;
    uint32_t n = pr_lane_take(end_of(o), &((PrPool *)pool)->p, b.buf, pr_items(&b, 8));
    PyBuffer_Release(&b);
    return PyLong_FromUnsignedLong(n);
}

static PyObject *lane_reclaim(PyObject *o, PyObject *args)
{
    PyObject *pool;
    if (!PyArg_ParseTuple(args, "O!", &pr_pool_type, &pool))
        return NULL;
    return PyLong_FromUnsignedLong(pr_lane_reclaim(end_of(o), &((PrPool *)pool)->p));
}

static PyObject *lane_cursors(PyObject *o, void *unused)
{
    (void)unused;
    const struct pr_lane *l = end_of(o)->lane;
    uint32_t tail = __atomic_load_n(&l->tail, __ATOMIC_ACQUIRE), head = __atomic_load_n(&l->head, __ATOMIC_ACQUIRE);
    return Py_BuildValue("(II)", head, tail);
}

static PyMethodDef lane_methods[] = {
    {"reserve", lane_reserve, METH_O, "reserve(n) -> slots that may be filled"},
    {"fill", lane_fill, METH_VARARGS, "fill(i, descriptor): the i-th slot from my cursor on"},
    {"submit", lane_submit, METH_O, "submit(n): publish the first n"},
    {"peek", lane_peek, METH_O, "peek(n) -> slots that may be read"},
    {"slot", lane_slot, METH_O, "slot(i) -> descriptor: the i-th slot from my cursor on"},
    {"release", lane_release, METH_O, "release(n): let the first n be reused"},
    {"put", lane_put, METH_VARARGS, "put(pool, uint64 array) -> how many buffers were handed over"},
    {"take", lane_take, METH_VARARGS, "take(pool, uint64 array) -> how many buffers were taken over"},
    {"reclaim", lane_reclaim, METH_VARARGS, "reclaim(pool) -> unpublished buffers of a dead producer that went home"},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef lane_members[] = {
    {"capacity", T_UINT, offsetof(PrLane, e.capacity), READONLY, "slots"},
    {"mine", T_UINT, offsetof(PrLane, e.mine), READONLY, "my cursor"},
    {"peer", T_UINT, offsetof(PrLane, e.peer), READONLY, "the other's cursor, as last read"},
    {"id", T_USHORT, offsetof(PrLane, e.id), READONLY, "the lane's id in owner words"},
    {"broken", T_USHORT, offsetof(PrLane, e.broken), READONLY, "quarantined"},
    {"skipped", T_ULONGLONG, offsetof(PrLane, e.skipped), READONLY, "slots whose buffer had been reclaimed"},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef lane_getset[] = {
    {"cursors", lane_cursors, NULL, "(head, tail) as they are in the lane", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyTypeObject lane_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "pktring.shm._shm.Lane",
    .tp_basicsize = sizeof(PrLane),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_doc = "Lane(mem, side): one end of the lane in this memory",
    .tp_new = PyType_GenericNew,
    .tp_init = lane_init,
    .tp_dealloc = lane_dealloc,
    .tp_methods = lane_methods,
    .tp_members = lane_members,
    .tp_getset = lane_getset,
};

static PyObject *lane_size(PyObject *m, PyObject *capacity)
{
    (void)m;
    unsigned long n = PyLong_AsUnsignedLong(capacity);
    if (PyErr_Occurred())
        return NULL;
    if (n > PR_LANE_MAX || !pr_lane_capacity_ok((uint32_t)n))
        return PyErr_Format(PyExc_ValueError, "%lu slots: a power of two up to %u", n, PR_LANE_MAX);
    return PyLong_FromSize_t(pr_lane_size((uint32_t)n));
}

static PyObject *lane_format(PyObject *m, PyObject *args)
{
    (void)m;
    PyObject *mem;
    unsigned id, capacity;
    Py_buffer b;
    if (!PyArg_ParseTuple(args, "OII", &mem, &id, &capacity) ||
        pr_borrow(mem, &b, _Alignof(struct pr_lane), PyBUF_WRITABLE) < 0)
        return NULL;
    int ok = id <= UINT16_MAX && pr_lane_capacity_ok(capacity) && (size_t)b.len >= pr_lane_size(capacity);
    if (ok)
        pr_lane_format(b.buf, (uint16_t)id, capacity);
    PyBuffer_Release(&b);
    if (!ok)
        return PyErr_Format(PyExc_ValueError, "lane %u of %u slots does not fit", id, capacity);
    Py_RETURN_NONE;
}

/* ---- doorbells: the need word is the first of the memory given ---- */

static PyObject *on_word(PyObject *mem, int (*act)(uint32_t *))
{
    Py_buffer b;
    if (pr_borrow(mem, &b, 4, PyBUF_WRITABLE) < 0)
        return NULL;
    int got = b.len >= 4 ? act(b.buf) : -1;
    PyBuffer_Release(&b);
    if (got < 0)
        return PyErr_Format(PyExc_ValueError, "a doorbell is a word of 4 bytes");
    return PyBool_FromLong(got);
}

static int arm(uint32_t *need) { return pr_doorbell_arm(need), 1; }
static int disarm(uint32_t *need) { return pr_doorbell_disarm(need), 0; }
static int needed(uint32_t *need) { return pr_doorbell_needed(need); }

static PyObject *doorbell_arm(PyObject *m, PyObject *mem) { return (void)m, on_word(mem, arm); }
static PyObject *doorbell_disarm(PyObject *m, PyObject *mem) { return (void)m, on_word(mem, disarm); }
static PyObject *doorbell_needed(PyObject *m, PyObject *mem) { return (void)m, on_word(mem, needed); }

static PyMethodDef methods[] = {
    {"lane_size", lane_size, METH_O, "lane_size(capacity) -> bytes"},
    {"lane_format", lane_format, METH_VARARGS, "lane_format(mem, id, capacity)"},
    {"doorbell_arm", doorbell_arm, METH_O, "say that a sleep may follow; look again after this"},
    {"doorbell_disarm", doorbell_disarm, METH_O, "awake"},
    {"doorbell_needed", doorbell_needed, METH_O, "after publishing: does the sleeper have to be woken?"},
    {NULL, NULL, 0, NULL},
};

int pr_add_lanes(PyObject *module)
{
    if (PyModule_AddFunctions(module, methods) < 0 || PyModule_AddType(module, &lane_type) < 0 ||
        PyModule_AddIntMacro(module, PR_PRODUCER) < 0 || PyModule_AddIntMacro(module, PR_CONSUMER) < 0 ||
        PyModule_AddIntMacro(module, PR_LANE_MAX) < 0 || PyModule_AddIntMacro(module, PR_DOORBELL_MAX_MS) < 0)
        return -1;
    return pr_add_pool(module) < 0 ? -1 : pr_add_pktqueue(module);
}
