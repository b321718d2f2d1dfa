/* Python's hold on pktqueues: _shm.Queues (the shared part), _shm.Producer, _shm.Consumer. Names and documentation:
 * pktqueue.py. */
#include "door_pool.h"
#include "pktqueue.h"

#include <structmember.h>

/* ---- Queues: what all processes share ---- */

typedef struct {
    PyObject_HEAD
    Py_buffer mem;
    struct pr_pktq v;
} PrQueues;

static PyTypeObject queues_type;

static struct pr_pktq *view_of(PyObject *o) { return &((PrQueues *)o)->v; }
static struct pr_pool *pool_of(PyObject *o) { return &((PrPool *)o)->p; }

static int queues_init(PyObject *o, PyObject *args, PyObject *kw)
{
    static char *names[] = {"mem", NULL};
    PrQueues *self = (PrQueues *)o;
    PyObject *mem;
    if (self->mem.obj || !PyArg_ParseTupleAndKeywords(args, kw, "O", names, &mem) ||
        pr_borrow(mem, &self->mem, _Alignof(struct pr_lane), PyBUF_WRITABLE) < 0)
        return -1;
    if (pr_pktq_attach(&self->v, self->mem.buf, (size_t)self->mem.len) == 0)
        return 0;
    PyErr_Format(PyExc_ValueError, "no pktqueue in these %zd bytes", self->mem.len);
    return -1;
}

static void queues_dealloc(PyObject *o)
{
    PyBuffer_Release(&((PrQueues *)o)->mem);
    Py_TYPE(o)->tp_free(o);
}

static int cpu_arg(const struct pr_pktq *v, unsigned cpu)
{
    if (cpu < v->ncpu)
        return 1;
    PyErr_Format(PyExc_IndexError, "CPU %u of %u", cpu, v->ncpu);
    return 0;
}

/* A holder word: of CPU i, or of row i - ncpu. */
static uint64_t *holder_word(const struct pr_pktq *v, unsigned i)
{
    if (i < v->ncpu)
        return &v->cpus[i].holder;
    if (i - v->ncpu < v->n_rows)
        return &v->rows[i - v->ncpu].holder;
    PyErr_Format(PyExc_IndexError, "holder %u of %u", i, v->ncpu + v->n_rows);
    return NULL;
}

static PyObject *queues_holder(PyObject *o, PyObject *index)
{
    unsigned long i = PyLong_AsUnsignedLong(index);
    uint64_t *word = PyErr_Occurred() ? NULL : holder_word(view_of(o), (unsigned)i);
    return word ? PyLong_FromUnsignedLongLong(__atomic_load_n(word, __ATOMIC_ACQUIRE)) : NULL;
}

static PyObject *queues_claim(PyObject *o, PyObject *args)
{
    unsigned i;
    unsigned long long old, next;
    if (!PyArg_ParseTuple(args, "IKK", &i, &old, &next))
        return NULL;
    uint64_t *word = holder_word(view_of(o), i);
    return word ? PyBool_FromLong(pr_pktq_claim(word, old, next)) : NULL;
}

static PyObject *queues_next_gen(PyObject *o, PyObject *row)
{
    unsigned long r = PyLong_AsUnsignedLong(row);
    if (PyErr_Occurred())
        return NULL;
    if (r >= view_of(o)->n_rows)
        return PyErr_Format(PyExc_IndexError, "row %lu of %u", r, view_of(o)->n_rows);
    uint32_t *gen = &view_of(o)->rows[r].gen;
    __atomic_store_n(gen, (*gen + 1) & 0xffffff, __ATOMIC_RELEASE);
    return PyLong_FromUnsignedLong(*gen);
}

static PyObject *queues_bury(PyObject *o, PyObject *args)
{
    PyObject *pool;
    unsigned row;
    if (!PyArg_ParseTuple(args, "O!I", &pr_pool_type, &pool, &row))
        return NULL;
    if (row >= view_of(o)->n_rows)
        return PyErr_Format(PyExc_IndexError, "row %u of %u", row, view_of(o)->n_rows);
    return PyLong_FromUnsignedLong(pr_pktq_bury(view_of(o), pool_of(pool), row));
}

static PyObject *queues_depth(PyObject *o, PyObject *index)
{
    unsigned long cpu = PyLong_AsUnsignedLong(index);
    if (PyErr_Occurred() || !cpu_arg(view_of(o), (unsigned)cpu))
        return NULL;
    return PyLong_FromUnsignedLongLong(pr_pktq_depth(view_of(o), (uint32_t)cpu));
}

/* heads() -> bytes: where every lane's head stands, to be given to passed(). */
static PyObject *queues_heads(PyObject *o, PyObject *unused)
{
    (void)unused;
    const struct pr_pktq *v = view_of(o);
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(4ull * v->ncpu * v->n_rows));
    if (bytes)
        pr_pktq_heads(v, (uint32_t *)(void *)PyBytes_AS_STRING(bytes));
    return bytes;
}

static PyObject *queues_passed(PyObject *o, PyObject *args)
{
    const struct pr_pktq *v = view_of(o);
    unsigned cpu;
    Py_buffer b;
    if (!PyArg_ParseTuple(args, "IO&", &cpu, pr_u32_in, &b))
        return NULL;
    PyObject *passed = NULL;
    if ((size_t)b.len != 4ull * v->ncpu * v->n_rows)
        PyErr_Format(PyExc_ValueError, "%zd bytes are not the heads of this queue", b.len);
    else if (cpu_arg(v, cpu))
        passed = PyBool_FromLong(pr_pktq_passed(v, cpu, b.buf));
    PyBuffer_Release(&b);
    return passed;
}

static PyObject *queues_ask_flush(PyObject *o, PyObject *index)
{
    unsigned long cpu = PyLong_AsUnsignedLong(index);
    if (PyErr_Occurred() || !cpu_arg(view_of(o), (unsigned)cpu))
        return NULL;
    return PyLong_FromUnsignedLong(pr_pktq_ask_flush(view_of(o), (uint32_t)cpu));
}

static PyObject *queues_flush_done(PyObject *o, PyObject *args)
{
    unsigned cpu, ticket;
    if (!PyArg_ParseTuple(args, "II", &cpu, &ticket) || !cpu_arg(view_of(o), cpu))
        return NULL;
    return PyBool_FromLong(pr_pktq_flush_done(view_of(o), cpu, ticket));
}

/* cell(cpu, row) -> (enqueue, drop, over, dequeue, lost) */
static PyObject *queues_cell(PyObject *o, PyObject *args)
{
    const struct pr_pktq *v = view_of(o);
    unsigned cpu, row;
    if (!PyArg_ParseTuple(args, "II", &cpu, &row) || !cpu_arg(v, cpu))
        return NULL;
    if (row >= v->n_rows)
        return PyErr_Format(PyExc_IndexError, "row %u of %u", row, v->n_rows);
    const struct pr_pktq_cell *c = pr_pktq_cell(v, cpu, row);
#define GET(field) (unsigned long long)__atomic_load_n(&c->field, __ATOMIC_RELAXED)
    unsigned long long dequeue = GET(dequeue), lost = GET(lost); /* first: nothing leaves before it has come */
    return Py_BuildValue("(KKKKK)", GET(enqueue), GET(drop), GET(over), dequeue, lost);
#undef GET
}

static PyObject *queues_crashed(PyObject *o, void *unused)
{
    (void)unused;
    unsigned long long n = 0;
    for (uint32_t row = 0; row < view_of(o)->n_rows; row++)
        n += __atomic_load_n(&view_of(o)->rows[row].crashed, __ATOMIC_RELAXED);
    return PyLong_FromUnsignedLongLong(n);
}

static PyObject *queues_limit(PyObject *o, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLong(__atomic_load_n(&view_of(o)->q->limit, __ATOMIC_RELAXED));
}

static int queues_set_limit(PyObject *o, PyObject *value, void *unused)
{
    (void)unused;
    unsigned long n = value ? PyLong_AsUnsignedLong(value) : 0;
    if (PyErr_Occurred())
        return -1;
    if (n < 1 || n > view_of(o)->ceiling) {
        PyErr_Format(PyExc_ValueError, "limit %lu is not in 1..%u", n, view_of(o)->ceiling);
        return -1;
    }
    __atomic_store_n(&view_of(o)->q->limit, (uint32_t)n, __ATOMIC_RELAXED);
    return 0;
}

static PyMethodDef queues_methods[] = {
    {"holder", queues_holder, METH_O, "holder(i) -> word: of CPU i, or of row i - ncpu; 0 = nobody"},
    {"claim", queues_claim, METH_VARARGS, "claim(i, old, new) -> bool: compare and swap a holder word"},
    {"next_gen", queues_next_gen, METH_O, "next_gen(row) -> the generation of its new holder"},
    {"bury", queues_bury, METH_VARARGS, "bury(pool, row) -> buffers of its dead holder that went home"},
    {"depth", queues_depth, METH_O, "depth(cpu) -> descriptors queued"},
    {"heads", queues_heads, METH_NOARGS, "a snapshot of every lane's head"},
    {"passed", queues_passed, METH_VARARGS, "passed(cpu, heads) -> dequeued up to there?"},
    {"ask_flush", queues_ask_flush, METH_O, "ask_flush(cpu) -> ticket"},
    {"flush_done", queues_flush_done, METH_VARARGS, "flush_done(cpu, ticket) -> bool"},
    {"cell", queues_cell, METH_VARARGS, "cell(cpu, row) -> (enqueue, drop, over, dequeue, lost)"},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef queues_members[] = {
    {"ncpu", T_UINT, offsetof(PrQueues, v.ncpu), READONLY, "CPU queues"},
    {"rows", T_UINT, offsetof(PrQueues, v.n_rows), READONLY, "producers"},
    {"capacity", T_UINT, offsetof(PrQueues, v.capacity), READONLY, "slots of a lane"},
    {"ceiling", T_UINT, offsetof(PrQueues, v.ceiling), READONLY, "the largest limit"},
    {"first_owner", T_USHORT, offsetof(PrQueues, v.first_owner), READONLY, "owner id of row 0's holder"},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef queues_getset[] = {
    {"limit", queues_limit, queues_set_limit, "descriptors a CPU's queue may hold", NULL},
    {"crashed", queues_crashed, NULL, "buffers found in the hands of the dead", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyTypeObject queues_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "pktring.shm._shm.Queues",
    .tp_basicsize = sizeof(PrQueues),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Queues(mem): the queues of one protocol, a CPU each",
    .tp_new = PyType_GenericNew,
    .tp_init = queues_init,
    .tp_dealloc = queues_dealloc,
    .tp_methods = queues_methods,
    .tp_members = queues_members,
    .tp_getset = queues_getset,
};

/* ---- Producer ---- */

typedef struct {
    PyObject_HEAD
    PyObject *queues;
    struct pr_pktq_producer p;
    int *bells;
} PrProducer;

static int producer_bells(PrProducer *self, PyObject *bells)
{
    uint32_t ncpu = view_of(self->queues)->ncpu;
    PyObject *list = PySequence_Fast(bells, "eventfds: one a CPU, -1 for none");
    int ok = list && (size_t)PySequence_Fast_GET_SIZE(list) == ncpu;
    if (list && !ok)
        PyErr_Format(PyExc_ValueError, "%zd eventfds for %u CPUs", PySequence_Fast_GET_SIZE(list), ncpu);
    for (uint32_t cpu = 0; ok && cpu < ncpu; cpu++) {
        self->bells[cpu] = (int)PyLong_AsLong(PySequence_Fast_GET_ITEM(list, cpu));
        ok = !PyErr_Occurred();
    }
    Py_XDECREF(list);
    return ok ? 0 : -1;
}

static int producer_init(PyObject *o, PyObject *args, PyObject *kw)
{
    static char *names[] = {"queues", "row", "bells", NULL};
    PrProducer *self = (PrProducer *)o;
    PyObject *queues, *bells;
    unsigned row;
    if (self->queues || !PyArg_ParseTupleAndKeywords(args, kw, "O!IO", names, &queues_type, &queues, &row, &bells))
        return -1;
    const struct pr_pktq *v = view_of(queues);
    if (row >= v->n_rows) {
        PyErr_Format(PyExc_IndexError, "row %u of %u", row, v->n_rows);
        return -1;
    }
    self->queues = Py_NewRef(queues);
    self->bells = PyMem_RawCalloc(v->ncpu, sizeof *self->bells);
    self->p.end = PyMem_RawCalloc(v->ncpu, sizeof *self->p.end);
    if (!self->bells || !self->p.end) {
        PyErr_NoMemory();
        return -1;
    }
    if (producer_bells(self, bells) < 0)
        return -1;
    if (pr_pktq_produce(&self->p, v, row, self->p.end, self->bells) == 0)
        return 0;
    PyErr_Format(PyExc_ValueError, "a lane of row %u is broken", row);
    return -1;
}

static void producer_dealloc(PyObject *o)
{
    PrProducer *self = (PrProducer *)o;
    PyMem_RawFree(self->p.end);
    PyMem_RawFree(self->bells);
    Py_CLEAR(self->queues);
    Py_TYPE(o)->tp_free(o);
}

/* put(pool, cpu, uint64 array) -> how many went in. */
static PyObject *producer_put(PyObject *o, PyObject *args)
{
    PrProducer *self = (PrProducer *)o;
    PyObject *pool;
    unsigned cpu;
    Py_buffer b;
    if (!PyArg_ParseTuple(args, "O!IO&", &pr_pool_type, &pool, &cpu, pr_u64_in, &b))
        return NULL;
    PyObject *n = NULL;
    if (cpu_arg(&self->p.v, cpu))
        n = PyLong_FromUnsignedLong(pr_pktq_put(&self->p, pool_of(pool), cpu, b.buf, pr_items(&b, 8)));
    PyBuffer_Release(&b);
    return n;
}

/* put_one(pool, hash, descriptor) -> bool */
static PyObject *producer_put_one(PyObject *o, PyObject *args)
{
    PrProducer *self = (PrProducer *)o;
    PyObject *pool;
    unsigned hash;
    unsigned long long desc;
    if (!PyArg_ParseTuple(args, "O!IK", &pr_pool_type, &pool, &hash, &desc))
        return NULL;
    uint64_t d = desc;
    return PyBool_FromLong((long)pr_pktq_put(&self->p, pool_of(pool), pr_pktq_cpu_of(&self->p.v, hash), &d, 1));
}

static PyMethodDef producer_methods[] = {
    {"put", producer_put, METH_VARARGS, "put(pool, cpu, uint64 array) -> how many went in; the others are still mine"},
    {"put_one", producer_put_one, METH_VARARGS, "put_one(pool, hash, descriptor) -> whether it went in"},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject producer_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "pktring.shm._shm.Producer",
    .tp_basicsize = sizeof(PrProducer),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Producer(queues, row, bells): the enqueueing end of a row",
    .tp_new = PyType_GenericNew,
    .tp_init = producer_init,
    .tp_dealloc = producer_dealloc,
    .tp_methods = producer_methods,
};

/* ---- Consumer ---- */

typedef struct {
    PyObject_HEAD
    PyObject *queues;
    struct pr_pktq_consumer k;
} PrConsumer;

static struct pr_pktq_consumer *consumer_of(PyObject *o) { return &((PrConsumer *)o)->k; }

static int consumer_init(PyObject *o, PyObject *args, PyObject *kw)
{
    static char *names[] = {"queues", "cpu", NULL};
    PrConsumer *self = (PrConsumer *)o;
    PyObject *queues;
    unsigned cpu;
    if (self->queues || !PyArg_ParseTupleAndKeywords(args, kw, "O!I", names, &queues_type, &queues, &cpu) ||
        !cpu_arg(view_of(queues), cpu))
        return -1;
    self->queues = Py_NewRef(queues);
    self->k.end = PyMem_RawCalloc(view_of(queues)->n_rows, sizeof *self->k.end);
    if (!self->k.end) {
        PyErr_NoMemory();
        return -1;
    }
    if (pr_pktq_consume(&self->k, view_of(queues), cpu, self->k.end) == 0)
        return 0;
    PyErr_Format(PyExc_ValueError, "a lane of CPU %u is broken", cpu);
    return -1;
}

static void consumer_dealloc(PyObject *o)
{
    PrConsumer *self = (PrConsumer *)o;
    PyMem_RawFree(self->k.end);
    Py_CLEAR(self->queues);
    Py_TYPE(o)->tp_free(o);
}

static PyObject *consumer_take(PyObject *o, PyObject *args)
{
    PyObject *pool;
    Py_buffer b;
    if (!PyArg_ParseTuple(args, "O!O&", &pr_pool_type, &pool, pr_u64_out, &b))
        return NULL;
    uint32_t n = pr_pktq_take(consumer_of(o), pool_of(pool), b.buf, pr_items(&b, 8));
    PyBuffer_Release(&b);
    return PyLong_FromUnsignedLong(n);
}

static PyObject *consumer_take_one(PyObject *o, PyObject *args)
{
    PyObject *pool;
    uint64_t desc;
    if (!PyArg_ParseTuple(args, "O!", &pr_pool_type, &pool))
        return NULL;
    if (!pr_pktq_take(consumer_of(o), pool_of(pool), &desc, 1))
        Py_RETURN_NONE;
    return PyLong_FromUnsignedLongLong(desc);
}

static PyObject *consumer_flush(PyObject *o, PyObject *args)
{
    PyObject *pool;
    if (!PyArg_ParseTuple(args, "O!", &pr_pool_type, &pool))
        return NULL;
    pr_pktq_flush(consumer_of(o), pool_of(pool));
    Py_RETURN_NONE;
}

/* wait(eventfd, spins, timeout_ms) -> whether something is queued or a flush is asked for */
static PyObject *consumer_wait(PyObject *o, PyObject *args)
{
    int efd, timeout_ms, ready;
    unsigned spins;
    if (!PyArg_ParseTuple(args, "iIi", &efd, &spins, &timeout_ms))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    ready = pr_pktq_wait(consumer_of(o), efd, spins, timeout_ms);
    Py_END_ALLOW_THREADS
    return PyErr_CheckSignals() < 0 ? NULL : PyBool_FromLong(ready);
}

static PyObject *consumer_ready(PyObject *o, PyObject *unused)
{
    (void)unused;
    return PyBool_FromLong(pr_pktq_ready(consumer_of(o)));
}

static PyMethodDef consumer_methods[] = {
    {"take", consumer_take, METH_VARARGS, "take(pool, uint64 array) -> how many were dequeued into it"},
    {"take_one", consumer_take_one, METH_VARARGS, "take_one(pool) -> descriptor or None"},
    {"flush", consumer_flush, METH_VARARGS, "flush(pool): empty the lanes up to where their heads stand"},
    {"wait", consumer_wait, METH_VARARGS, "wait(eventfd, spins, timeout_ms) -> bool"},
    {"ready", consumer_ready, METH_NOARGS, "is something queued, or a flush asked for?"},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject consumer_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "pktring.shm._shm.Consumer",
    .tp_basicsize = sizeof(PrConsumer),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Consumer(queues, cpu): the dequeueing end of a CPU",
    .tp_new = PyType_GenericNew,
    .tp_init = consumer_init,
    .tp_dealloc = consumer_dealloc,
    .tp_methods = consumer_methods,
};

/* ---- making one ---- */

/* pktqueue_size(ncpu, rows, ceiling, burst) -> bytes */
static PyObject *pktqueue_size(PyObject *m, PyObject *args)
{
    (void)m;
    unsigned ncpu, rows, ceiling, burst;
    if (!PyArg_ParseTuple(args, "IIII", &ncpu, &rows, &ceiling, &burst))
        return NULL;
    return PyLong_FromSize_t(pr_pktq_size(ncpu, rows, pr_pktq_capacity(ceiling, burst)));
}

/* pktqueue_format(mem, ncpu, rows, ceiling, burst, limit, first_lane, first_owner) */
static PyObject *pktqueue_format(PyObject *m, PyObject *args)
{
    (void)m;
    PyObject *mem;
    unsigned ncpu, rows, ceiling, burst, limit, first_lane, first_owner;
    Py_buffer b;
    if (!PyArg_ParseTuple(args, "OIIIIIII", &mem, &ncpu, &rows, &ceiling, &burst, &limit, &first_lane, &first_owner) ||
        pr_borrow(mem, &b, _Alignof(struct pr_lane), PyBUF_WRITABLE) < 0)
        return NULL;
    struct pr_pktqueue geometry = {.ncpu = ncpu, .rows = rows, .capacity = pr_pktq_capacity(ceiling, burst),
                                   .ceiling = ceiling, .first_lane = (uint16_t)first_lane,
                                   .first_owner = (uint16_t)first_owner, .limit = limit};
    int ok = limit >= 1 && limit <= ceiling && first_lane <= UINT16_MAX && first_owner <= UINT16_MAX &&
             (size_t)b.len >= sizeof geometry && pr_pktq_format(b.buf, (size_t)b.len, &geometry) == 0;
    PyBuffer_Release(&b);
    if (!ok)
        return PyErr_Format(PyExc_ValueError, "no pktqueue of %u CPUs, %u rows, limit %u of %u fits", ncpu, rows, limit,
                            ceiling);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"pktqueue_size", pktqueue_size, METH_VARARGS, "pktqueue_size(ncpu, rows, ceiling, burst) -> bytes"},
    {"pktqueue_format", pktqueue_format, METH_VARARGS, "make queues in zeroed memory"},
    {NULL, NULL, 0, NULL},
};

/* Where words that different processes write lie: {name: (offset in its struct, size)}. */
static PyObject *layout(void)
{
#define F(s, f) {#s "." #f, offsetof(struct s, f), sizeof(((struct s *)0)->f)}
    static const struct { const char *name; size_t offset, size; } facts[] = {
        F(pr_lane, capacity), F(pr_lane, head), F(pr_lane, tail), F(pr_lane, slot[0]), F(pr_pktqueue, ncpu),
        F(pr_pktqueue, limit), F(pr_pktq_cpu, need), F(pr_pktq_cpu, flushed), F(pr_pktq_cpu, holder),
        F(pr_pktq_cpu, flush_asked), F(pr_pktq_row, holder), F(pr_pktq_cell, enqueue), F(pr_pktq_cell, drop),
        F(pr_pktq_cell, over), F(pr_pktq_cell, dequeue), F(pr_pktq_cell, lost),
        {"pr_pktqueue", 0, sizeof(struct pr_pktqueue)}, {"pr_pktq_cpu", 0, sizeof(struct pr_pktq_cpu)},
        {"pr_pktq_row", 0, sizeof(struct pr_pktq_row)}, {"pr_pktq_cell", 0, sizeof(struct pr_pktq_cell)},
    };
#undef F
    PyObject *d = PyDict_New();
    for (size_t i = 0; d && i < sizeof facts / sizeof *facts; i++) {
        PyObject *v = Py_BuildValue("(nn)", (Py_ssize_t)facts[i].offset, (Py_ssize_t)facts[i].size);
        if (!v || PyDict_SetItemString(d, facts[i].name, v) < 0)
            Py_CLEAR(d);
        Py_XDECREF(v);
    }
    return d;
}

int pr_add_pktqueue(PyObject *module)
{
    PyObject *facts = layout();
    if (!facts || PyModule_AddObjectRef(module, "LANE_LAYOUT", facts) < 0) {
        Py_XDECREF(facts);
        return -1;
    }
    Py_DECREF(facts);
    if (PyModule_AddFunctions(module, methods) < 0 || PyModule_AddIntMacro(module, PR_PKTQ_MAX) < 0 ||
        PyModule_AddType(module, &queues_type) < 0 || PyModule_AddType(module, &producer_type) < 0)
        return -1;
    return PyModule_AddType(module, &consumer_type);
}
