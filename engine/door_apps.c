/* Python's hold on app records (_engine.AppRecords), and on the app's own side of the border (_engine.AppDevice). */
#include "door_border.h"

#include "app_device.h"
#include "border_record.h"
#include "view.h"

#include <structmember.h>

typedef struct {
    PyObject_HEAD
    Py_buffer memory;
} Records;

/* ---- AppRecords ---- */

static int records_init(PyObject *self, PyObject *args, PyObject *kw)
{
    (void)kw;
    Records *o = (Records *)self;
    if (o->memory.obj || !PyArg_ParseTuple(args, "w*", &o->memory))
        return -1;
    if ((size_t)o->memory.len >= sizeof(struct pr_app_record) * PR_MAX_APPS && (uintptr_t)o->memory.buf % 64 == 0)
        return 0;
    PyErr_Format(PyExc_ValueError, "%zd bytes do not hold the records of %d apps", o->memory.len, PR_MAX_APPS);
    return -1;
}

static void records_dealloc(PyObject *self)
{
    if (((Records *)self)->memory.obj)
        PyBuffer_Release(&((Records *)self)->memory);
    Py_TYPE(self)->tp_free(self);
}

static struct pr_app_record *record(PyObject *self, unsigned place)
{
    if (place < PR_MAX_APPS)
        return (struct pr_app_record *)((Records *)self)->memory.buf + place;
    PyErr_Format(PyExc_IndexError, "app record %u of %d", place, PR_MAX_APPS);
    return NULL;
}

/* fill(place, id, mode, trusted, port, sides, pid, uid, slots): a new generation of this place, not yet live. */
static PyObject *records_fill(PyObject *self, PyObject *args)
{
    unsigned place, id, mode, trusted, port, sides, pid, uid, slots;
    if (!PyArg_ParseTuple(args, "IIIIIIIII", &place, &id, &mode, &trusted, &port, &sides, &pid, &uid, &slots))
        return NULL;
    struct pr_app_record *r = record(self, place);
    if (!r)
        return NULL;
    if (sides > PR_APP_SIDES || pr_load(&r->state) != PR_APP_NONE)
        return PyErr_Format(PyExc_ValueError, "record %u is in use, or %u workers are too many", place, sides);
    uint32_t generation = r->generation + 1;
    memset(r, 0, sizeof *r);
    r->generation = generation ? generation : 1;
    r->id = (uint16_t)id;
    r->mode = (uint16_t)mode;
    r->trusted = (uint16_t)trusted;
    r->port = (uint16_t)port;
    r->sides = sides;
    r->pid = pid;
    r->uid = uid;
    r->slots = slots;
    return PyLong_FromUnsignedLong(r->generation);
}

static PyObject *records_set_state(PyObject *self, PyObject *args)
{
    unsigned place, state;
    struct pr_app_record *r;
    if (!PyArg_ParseTuple(args, "II", &place, &state) || !(r = record(self, place)))
        return NULL;
    __atomic_exchange_n(&r->state, state, __ATOMIC_SEQ_CST); /* a worker may be just at quarantine, or taking hold */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    Py_RETURN_NONE;
}

/* seen(place, side) -> is that worker without a hold on this generation? Asked after the state was set. */
static PyObject *records_seen(PyObject *self, PyObject *args)
{
    unsigned place, side;
    struct pr_app_record *r;
    if (!PyArg_ParseTuple(args, "II", &place, &side) || !(r = record(self, place)))
        return NULL;
    if (side >= PR_APP_SIDES)
        return PyErr_Format(PyExc_IndexError, "worker %u", side);
    uint32_t held = __atomic_load_n(&r->side[side].held, __ATOMIC_SEQ_CST);
    return PyBool_FromLong(held != r->generation || pr_load(&r->side[side].seen) == r->generation);
}

static PyObject *side_faults(const struct pr_app_record *r)
{
    PyObject *list = PyList_New(0);
    for (uint32_t i = 0; list && i < r->sides && i < PR_APP_SIDES; i++) {
        const struct pr_app_fault *f = &r->side[i].fault;
        uint32_t field = pr_load(&f->field);
        PyObject *fault = field ? Py_BuildValue("(IIIKK)", i, field, f->dir, f->value, f->limit) : NULL;
        if (field && (!fault || PyList_Append(list, fault) < 0))
            Py_CLEAR(list);
        Py_XDECREF(fault);
    }
    return list;
}

static PyObject *sums(const struct pr_app_record *r)
{
    PyObject *t = PyTuple_New(PR_N_APP_COUNTERS);
    for (int c = 0; t && c < PR_N_APP_COUNTERS; c++) {
        uint64_t sum = 0;
        for (uint32_t i = 0; i < r->sides && i < PR_APP_SIDES; i++)
            sum += __atomic_load_n(&r->side[i].v[c], __ATOMIC_RELAXED);
        PyTuple_SET_ITEM(t, c, PyLong_FromUnsignedLongLong(sum));
    }
    return t;
}

/* read(place) -> (state, generation, id, mode, trusted, port, sides, pid, uid, slots, counters summed over workers,
 *                 [(worker, field, dir, value, limit)] of the rules broken) */
static PyObject *records_read(PyObject *self, PyObject *args)
{
    unsigned place;
    struct pr_app_record *r;
    if (!PyArg_ParseTuple(args, "I", &place) || !(r = record(self, place)))
        return NULL;
    return Py_BuildValue("(IIIIIIIIIINN)", pr_load(&r->state), r->generation, r->id, r->mode, r->trusted, r->port, r->sides,
                         r->pid, r->uid, r->slots, sums(r), side_faults(r));
}

static PyMethodDef records_methods[] = {
    {"fill", records_fill, METH_VARARGS, "fill(place, id, mode, trusted, port, sides, pid, uid, slots) -> generation"},
    {"set_state", records_set_state, METH_VARARGS, "set_state(place, state)"},
    {"seen", records_seen, METH_VARARGS, "seen(place, worker) -> bool: it has let go"},
    {"read", records_read, METH_VARARGS, "read(place) -> what it says"},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject records_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "pktring.engine._engine.AppRecords",
    .tp_basicsize = sizeof(Records),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "AppRecords(memory): the records of attached apps in the engine's memory",
    .tp_new = PyType_GenericNew,
    .tp_init = records_init,
    .tp_dealloc = records_dealloc,
    .tp_methods = records_methods,
};

static PyObject *counter_names(void)
{
    static const char *const names[][2] = {
#define X(name, text) {#name, text},
        PR_APP_COUNTER_LIST(X)
#undef X
    };
    PyObject *t = PyTuple_New(PR_N_APP_COUNTERS);
    for (int i = 0; t && i < PR_N_APP_COUNTERS; i++)
        PyTuple_SET_ITEM(t, i, Py_BuildValue("(ss)", names[i][0], names[i][1]));
    return t;
}

int pr_add_app_records(PyObject *m)
{
    PyObject *names = counter_names();
    if (!names || PyModule_AddObject(m, "APP_COUNTERS", names) < 0 || PyModule_AddType(m, &records_type) < 0)
        return -1;
    return PyModule_AddIntConstant(m, "APP_RECORDS_SIZE", sizeof(struct pr_app_record) * PR_MAX_APPS) < 0 ||
                   PyModule_AddIntMacro(m, PR_MAX_APPS) < 0 || PyModule_AddIntMacro(m, PR_APP_SIDES) < 0 ||
                   PyModule_AddIntMacro(m, PR_APP_NONE) < 0 || PyModule_AddIntMacro(m, PR_APP_LIVE) < 0 ||
                   PyModule_AddIntMacro(m, PR_APP_LEAVING) < 0 || PyModule_AddIntMacro(m, PR_APP_QUARANTINED) < 0 ||
                   PyModule_AddIntMacro(m, PR_APP_COPY) < 0 || PyModule_AddIntMacro(m, PR_APP_CONSUME) < 0 ||
                   PyModule_AddIntMacro(m, PR_APP_HEAD) < 0 || PyModule_AddIntMacro(m, PR_APP_CUR) < 0 ||
                   PyModule_AddIntMacro(m, PR_APP_IDX) < 0
               ? -1
               : 0;
}

/* ---- the app's side ---- */

typedef struct {
    PyObject_HEAD
    struct pr_appdev d;
    PyObject *device;
} AppDevice;

/* AppDevice(bell): takes the descriptor over. */
static int appdev_init(PyObject *self, PyObject *args, PyObject *kw)
{
    (void)kw;
    AppDevice *o = (AppDevice *)self;
    int bell;
    if (o->device || !PyArg_ParseTuple(args, "i", &bell))
        return -1;
    if (pr_appdev_open(&o->d, bell) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    o->device = PyCapsule_New(&o->d.dev, PR_DEVICE_CAPSULE, NULL);
    return o->device ? 0 : -1;
}

static PyObject *appdev_close(PyObject *self, PyObject *unused)
{
    (void)unused;
    if (((AppDevice *)self)->device)
        pr_appdev_close(&((AppDevice *)self)->d);
    Py_RETURN_NONE;
}

static void appdev_dealloc(PyObject *self)
{
    Py_XDECREF(appdev_close(self, NULL));
    Py_CLEAR(((AppDevice *)self)->device);
    Py_TYPE(self)->tp_free(self);
}

static PyMethodDef appdev_methods[] = {
    {"close", appdev_close, METH_NOARGS, "close its descriptors"},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef appdev_members[] = {
    {"device", T_OBJECT_EX, offsetof(AppDevice, device), READONLY, "the capsule to bind rings to"},
    {"rx_fd", T_INT, offsetof(AppDevice, d.dev.rx_fd), READONLY, "readable while there is something to receive"},
    {"tx_fd", T_INT, offsetof(AppDevice, d.dev.tx_fd), READONLY, "the socket to the worker"},
    {"error", T_INT, offsetof(AppDevice, d.dev.error), READONLY, "EPERM: in quarantine, ESHUTDOWN: let go, 0 = served"},
    {NULL, 0, 0, 0, NULL},
};

static PyTypeObject appdev_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "pktring.engine._engine.AppDevice",
    .tp_basicsize = sizeof(AppDevice),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "AppDevice(bell): an app's pair of rings, whose kernel is a worker",
    .tp_new = PyType_GenericNew,
    .tp_init = appdev_init,
    .tp_dealloc = appdev_dealloc,
    .tp_methods = appdev_methods,
    .tp_members = appdev_members,
};

/* app_ring(view, index, dir, slots, label): a ring that is there already becomes one of this process's view, whose ledger
 * and counters are its own memory. */
static PyObject *app_ring(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *view;
    unsigned index, dir, slots;
    const char *label;
    const struct pr_region *rg;
    if (!PyArg_ParseTuple(args, "OIIIs", &view, &index, &dir, &slots, &label) ||
        !(rg = pr_borrowed(view, PR_REGION_CAPSULE)))
        return NULL;
    uint64_t fits = (rg->g.ring_size - sizeof(struct pr_ring)) / sizeof(struct pr_slot);
    if (index >= rg->g.ring_num || slots < 2 || slots > fits || dir > PR_TX)
        return PyErr_Format(PyExc_ValueError, "no ring %u of %u slots there", index, slots);
    const struct pr_ring *ring = (const struct pr_ring *)(rg->mem + rg->g.ring_ofs + (uint64_t)index * rg->g.ring_size);
    uint32_t head = pr_load(&ring->head);
    if (head >= slots || ring->num_slots != slots || ring->dir != dir)
        return PyErr_Format(PyExc_ValueError, "ring %u is not what was promised", index);
    pr_appdev_kring(&rg->krings[index], &rg->g, index, dir, slots, head);
    strncpy(rg->rows[index].name, label, sizeof rg->rows[index].name - 1);
    rg->rows[index].used = 1;
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"app_ring", app_ring, METH_VARARGS, "app_ring(view, index, dir, slots, label): make it known to the view"},
    {NULL, NULL, 0, NULL},
};

int pr_add_app_side(PyObject *m)
{
    return PyModule_AddType(m, &appdev_type) < 0 || PyModule_AddFunctions(m, functions) < 0 ? -1 : 0;
}
