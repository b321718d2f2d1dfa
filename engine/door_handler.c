/* Python's hold on handlers: _engine.HandlerTable, which handlers.py extends. The worker's loop runs without the GIL; what is
 * Python here takes it for the call (PyGILState_Ensure and Release: 30 ns), lets nothing out that was raised, and looks
 * at what a verdict or an answer says before it is believed. */
#include "door_handler.h"
#include "doors.h"

#define TELL_NS 1000000000u /* a handler that fails is told at most so often */

enum { M2FLOW, M2CPUID, DRAINED, N_CALLBACKS };

typedef struct {
    PyObject_HEAD
    PyObject *view, *pool;
    Py_buffer stats; /* PR_N_HANDLERS of struct pr_handler_stats; until there is one: */
    struct pr_handler_stats before[PR_N_HANDLERS];
    PyObject *batch;             /* the Python object that a handler is called with, */
    PrFrames *frames;            /* and what it looks at; made anew only for a handler called from within a handler */
    PyObject *kept[PR_N_HANDLERS]; /* the Python function, or what keeps the C function and its state in memory */
    PyObject *asked[PR_N_HANDLERS][N_CALLBACKS];
    struct pr_handlers hs;
} PrHandlers;

static PyTypeObject handlers_type;

static PrHandlers *table_of(struct pr_handlers *hs)
{
    return (PrHandlers *)((char *)hs - offsetof(PrHandlers, hs));
}

/* ---- failures ---- */

/* The exception that is set, taken away; NULL = none. */
static PyObject *caught(void)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (!type)
        return NULL;
    PyErr_NormalizeException(&type, &value, &traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    return value;
}

/* self.tell(proto, exception or None, how many times) -> the line that becomes last_error. With the GIL. */
static void tell(PrHandlers *t, struct pr_handler *h, PyObject *error, uint64_t times)
{
    uint64_t now = pr_handler_now_ns();
    h->untold += times;
    if (h->told_ns && now - h->told_ns < TELL_NS)
        return;
    h->told_ns = now;
    PyObject *line = PyObject_CallMethod((PyObject *)t, "tell", "IOK", h->proto, error ? error : Py_None,
                                         (unsigned long long)h->untold);
    const char *text = line && PyUnicode_Check(line) ? PyUnicode_AsUTF8(line) : NULL;
    if (text)
        strncpy(h->stats->last_error, text, sizeof h->stats->last_error - 1);
    h->untold = 0;
    Py_XDECREF(line);
    PyErr_Clear();
}

/* A Python function raised: whatever it was, it ends here. */
static void failed(PrHandlers *t, struct pr_handler *h, uint64_t lost)
{
    PyObject *error = caught();
    pr_stat_add(&h->stats->raised, 1);
    pr_stat_add(&h->stats->lost, lost);
    tell(t, h, error, 1);
    Py_XDECREF(error);
}

static void function_failed(struct pr_handlers *hs, struct pr_handler *h, uint64_t times)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    tell(table_of(hs), h, NULL, times);
    PyGILState_Release(gil);
}

/* ---- Python functions ---- */

/* The batch object to call with, and its frames: two references. NULL with an exception. */
static PyObject *batch_for(PrHandlers *t, PrFrames **frames)
{
    if (t->batch && !t->frames->b) {
        *frames = (PrFrames *)Py_NewRef(t->frames);
        return Py_NewRef(t->batch);
    }
    if (!(*frames = pr_frames_new(t->view, t->hs.rg)))
        return NULL;
    PyObject *batch = PyObject_CallMethod((PyObject *)t, "batch", "O", *frames);
    if (!batch)
        Py_CLEAR(*frames);
    else if (!t->batch) {
        t->batch = Py_NewRef(batch);
        t->frames = (PrFrames *)Py_NewRef(*frames);
    }
    return batch;
}

static void run_batch(struct pr_handlers *hs, struct pr_handler *h, struct pr_batch *b)
{
    PrHandlers *t = table_of(hs);
    PrFrames *frames = NULL;
    PyGILState_STATE gil = PyGILState_Ensure();
    PyObject *batch = batch_for(t, &frames), *done = NULL;
    if (batch) {
        frames->b = b;
        done = PyObject_CallOneArg(h->state, batch);
        if (!done) {
            failed(t, h, b->n);
            for (uint32_t i = 0; i < b->n; i++)
                b->verdict[i] = PR_DONE;
        }
        pr_frames_end(frames);
    } else {
        failed(t, h, b->n);
    }
    Py_XDECREF(done);
    Py_XDECREF(batch);
    Py_XDECREF(frames);
    PyGILState_Release(gil);
}

/* What a per-frame handler said: None or False, True (its own target), a port's number, or something that self.number
 * makes one of. -2 with an exception. */
static int32_t verdict_of(PrHandlers *t, const struct pr_handler *h, PyObject *said)
{
    if (said == Py_None || said == Py_False)
        return PR_DONE;
    if (said == Py_True && h->target >= 0)
        return h->target;
    said = PyLong_CheckExact(said) ? Py_NewRef(said) : PyObject_CallMethod((PyObject *)t, "number", "Oi", said, h->target);
    long number = said ? PyLong_AsLong(said) : -1;
    int wrong = !said || PyErr_Occurred();
    Py_XDECREF(said);
    if (wrong)
        return -2;
    if (number >= PR_DONE && number < (long)t->hs.port_count)
        return (int32_t)number;
    PyErr_Format(PyExc_ValueError, "there is no port %ld: ports are 0 to %ld, -1 ends the frame", number,
                 (long)t->hs.port_count - 1);
    return -2;
}

static void run_per_frame(struct pr_handlers *hs, struct pr_handler *h, struct pr_batch *b)
{
    PrHandlers *t = table_of(hs);
    PyGILState_STATE gil = PyGILState_Ensure();
    PrFrames *frames = NULL;
    PyObject *batch = batch_for(t, &frames);
    if (!batch)
        failed(t, h, b->n);
    for (uint32_t i = 0; batch && i < b->n; i++) {
        uint32_t slots;
        const uint64_t *desc = pr_batch_frame(b, i, &slots);
        PyObject *view = pr_frames_show(frames, desc, slots), *said = view ? PyObject_CallOneArg(h->state, view) : NULL;
        int32_t verdict = said ? verdict_of(t, h, said) : -2;
        if (verdict == -2)
            failed(t, h, 1);
        b->verdict[i] = verdict < 0 ? PR_DONE : verdict;
        Py_XDECREF(said);
        if (view)
            pr_frames_shut(view);
    }
    Py_XDECREF(batch);
    Py_XDECREF(frames);
    PyGILState_Release(gil);
}

/* ---- callbacks in Python ---- */

/* What the callback says about a frame: 0 to 4294967295, or -1 = it is not wanted. 0 = it says nothing: None, or it failed.
 * Takes the GIL. */
static int ask(struct pr_handlers *hs, uint32_t proto, int which, const uint64_t *desc, uint32_t n, uint32_t source,
               int64_t *answer)
{
    PrHandlers *t = table_of(hs);
    PrFrames *frames = NULL;
    PyGILState_STATE gil = PyGILState_Ensure();
    PyObject *batch = batch_for(t, &frames), *view = batch ? pr_frames_show(frames, desc, n) : NULL, *said = NULL;
    if (view && which == M2CPUID)
        said = PyObject_CallFunction(t->asked[proto][which], "OI", view, source);
    else if (view)
        said = PyObject_CallOneArg(t->asked[proto][which], view);
    *answer = said && said != Py_None ? PyLong_AsLongLong(said) : 0;
    if (!PyErr_Occurred() && (*answer < -1 || *answer > UINT32_MAX))
        PyErr_Format(PyExc_ValueError, "it said %R: 0 to 4294967295, or -1, is wanted", said);
    int answered = !PyErr_Occurred() && said != Py_None;
    if (PyErr_Occurred())
        failed(t, &t->hs.h[proto], 0);
    Py_XDECREF(said);
    if (view)
        pr_frames_shut(view);
    Py_XDECREF(batch);
    Py_XDECREF(frames);
    PyGILState_Release(gil);
    return answered;
}

/* The callback has disposed of the frame: netisr asks no more. */
static int unwanted(const struct pr_handlers *hs, const uint64_t *desc, uint32_t n)
{
    if (hs->pool)
        pr_hand_free(hs->pool, desc, n);
    return -1;
}

static int ask_m2flow(void *ctx, uint32_t proto, uint64_t *desc, uint32_t n, uint32_t *hash)
{
    int64_t answer;
    if (!ask(ctx, proto, M2FLOW, desc, n, 0, &answer))
        return 0;
    if (answer < 0)
        return unwanted(ctx, desc, n);
    *hash = (uint32_t)answer;
    return 1;
}

static int ask_m2cpuid(void *ctx, uint32_t proto, uint64_t *desc, uint32_t n, uint32_t source, uint32_t *v)
{
    int64_t answer;
    if (ask(ctx, proto, M2CPUID, desc, n, source, &answer)) {
        if (answer < 0)
            return unwanted(ctx, desc, n);
        *v = (uint32_t)answer;
    }
    return 0;
}

static void ask_drained(void *ctx, uint32_t proto, uint32_t cpu)
{
    PrHandlers *t = table_of(ctx);
    PyGILState_STATE gil = PyGILState_Ensure();
    PyObject *done = PyObject_CallFunction(t->asked[proto][DRAINED], "I", cpu);
    if (!done)
        failed(t, &t->hs.h[proto], 0);
    Py_XDECREF(done);
    PyGILState_Release(gil);
}

/* ---- the table ---- */

static void keep_books_in(PrHandlers *t, struct pr_handler_stats *stats)
{
    for (int i = 0; i < PR_N_HANDLERS; i++)
        t->hs.h[i].stats = &stats[i];
}

static int handlers_init(PyObject *self, PyObject *args, PyObject *kw)
{
    static char *names[] = {"view", "port_count", NULL};
    PrHandlers *t = (PrHandlers *)self;
    PyObject *view;
    unsigned port_count;
    if (t->view || !PyArg_ParseTupleAndKeywords(args, kw, "OI", names, &view, &port_count) ||
        !(t->hs.rg = pr_lent(view, PR_REGION_CAPSULE)))
        return -1;
    t->view = Py_NewRef(view);
    t->hs.port_count = port_count;
    t->hs.failed = function_failed;
    for (uint32_t i = 0; i < PR_N_HANDLERS; i++)
        t->hs.h[i] = (struct pr_handler){.proto = i, .target = -1};
    keep_books_in(t, t->before);
    return 0;
}

/* attach(memory for the statistics, pool): from now on this is a worker's. What was counted before is forgotten. */
static PyObject *attach(PyObject *self, PyObject *args)
{
    PrHandlers *t = (PrHandlers *)self;
    PyObject *memory, *pool;
    struct pr_pool *p;
    Py_buffer stats;
    if (!PyArg_ParseTuple(args, "OO", &memory, &pool) || !(p = pr_lent(pool, PR_POOL_CAPSULE)) ||
        PyObject_GetBuffer(memory, &stats, PyBUF_WRITABLE) < 0)
        return NULL;
    if ((size_t)stats.len < sizeof t->before || (uintptr_t)stats.buf % 8) {
        PyErr_Format(PyExc_ValueError, "%zd bytes at %p for statistics: %zu are needed, aligned to 8", stats.len, stats.buf,
                     sizeof t->before);
        PyBuffer_Release(&stats);
        return NULL;
    }
    keep_books_in(t, stats.buf);
    PyBuffer_Release(&t->stats);
    t->stats = stats;
    t->hs.pool = p;
    Py_XSETREF(t->pool, Py_NewRef(pool));
    Py_RETURN_NONE;
}

static void handlers_dealloc(PyObject *self)
{
    PrHandlers *t = (PrHandlers *)self;
    for (int i = 0; i < PR_N_HANDLERS; i++) {
        Py_CLEAR(t->kept[i]);
        for (int k = 0; k < N_CALLBACKS; k++)
            Py_CLEAR(t->asked[i][k]);
    }
    Py_CLEAR(t->batch);
    Py_CLEAR(t->frames);
    Py_CLEAR(t->view);
    Py_CLEAR(t->pool);
    PyBuffer_Release(&t->stats);
    Py_TYPE(self)->tp_free(self);
}

static int proto_ok(unsigned proto)
{
    if (proto < PR_N_HANDLERS)
        return 1;
    PyErr_Format(PyExc_ValueError, "protocol %u of %d", proto, PR_N_HANDLERS);
    return 0;
}

/* In an order that a loop in another thread may see: nothing runs while it is exchanged. */
static void install(PrHandlers *t, unsigned proto, struct pr_handler as, PyObject *kept)
{
    struct pr_handler *h = &t->hs.h[proto];
    h->run = NULL;
    as.proto = proto;
    as.stats = h->stats;
    Py_XSETREF(t->kept[proto], Py_XNewRef(kept));
    *h = as;
}

/* set_python(proto, function, per frame?, target of True or -1) */
static PyObject *set_python(PyObject *self, PyObject *args)
{
    unsigned proto;
    PyObject *function;
    int per_frame, target;
    if (!PyArg_ParseTuple(args, "IOpi", &proto, &function, &per_frame, &target) || !proto_ok(proto))
        return NULL;
    install((PrHandlers *)self, proto,
            (struct pr_handler){.run = per_frame ? run_per_frame : run_batch, .state = function, .target = target}, function);
    Py_RETURN_NONE;
}

/* set_function(proto, address, address of its state or 0, object that keeps both) */
static PyObject *set_function(PyObject *self, PyObject *args)
{
    unsigned proto;
    unsigned long long address, state;
    PyObject *kept;
    if (!PyArg_ParseTuple(args, "IKKO", &proto, &address, &state, &kept) || !proto_ok(proto))
        return NULL;
    if (!address)
        return PyErr_Format(PyExc_ValueError, "no function at address 0");
    install((PrHandlers *)self, proto,
            (struct pr_handler){.run = pr_run_function, .function = (pktring_handler)(uintptr_t)address,
                                .state = (void *)(uintptr_t)state, .target = -1}, kept);
    Py_RETURN_NONE;
}

/* set_builtin(proto, drop | count | forward | mirror, target or -1) */
static PyObject *set_builtin(PyObject *self, PyObject *args)
{
    unsigned proto;
    const char *name;
    int target;
    if (!PyArg_ParseTuple(args, "Isi", &proto, &name, &target) || !proto_ok(proto))
        return NULL;
    struct pr_handler as = {.target = target};
    if (!strcmp(name, "drop") || !strcmp(name, "count"))
        as.run = pr_run_done;
    else if (!strcmp(name, "forward") && target >= 0)
        as.run = pr_run_forward;
    else if (!strcmp(name, "mirror"))
        as.run = target < 0 ? pr_run_mirror : pr_run_forward;
    else
        return PyErr_Format(PyExc_ValueError, "no built-in %s to port %d", name, target);
    install((PrHandlers *)self, proto, as, NULL);
    Py_RETURN_NONE;
}

static PyObject *clear(PyObject *self, PyObject *number)
{
    unsigned long proto = PyLong_AsUnsignedLong(number);
    if (PyErr_Occurred() || !proto_ok((unsigned)proto))
        return NULL;
    PrHandlers *t = (PrHandlers *)self;
    install(t, (unsigned)proto, (struct pr_handler){.target = -1}, NULL);
    t->hs.callbacks[proto] = (struct pr_callbacks){0};
    for (int k = 0; k < N_CALLBACKS; k++)
        Py_CLEAR(t->asked[proto][k]);
    Py_RETURN_NONE;
}

/* The address of a callback: a number is that of a C function; of a Python function it is what asks it. */
static int callback(PrHandlers *t, unsigned proto, int which, PyObject *o, void *asks, void **at)
{
    *at = NULL;
    if (o != Py_None && PyLong_Check(o))
        *at = PyLong_AsVoidPtr(o);
    else if (o != Py_None)
        *at = asks;
    Py_XSETREF(t->asked[proto][which], Py_NewRef(o));
    return PyErr_Occurred() ? -1 : 0;
}

/* set_callbacks(proto, m2flow, m2cpuid, drained): None, a Python function, or the address of a C function. */
static PyObject *set_callbacks(PyObject *self, PyObject *args)
{
    PrHandlers *t = (PrHandlers *)self;
    unsigned proto;
    PyObject *m2flow, *m2cpuid, *drained;
    void *flow, *cpuid, *after;
    if (!PyArg_ParseTuple(args, "IOOO", &proto, &m2flow, &m2cpuid, &drained) || !proto_ok(proto) ||
        callback(t, proto, M2FLOW, m2flow, (void *)ask_m2flow, &flow) < 0 ||
        callback(t, proto, M2CPUID, m2cpuid, (void *)ask_m2cpuid, &cpuid) < 0 ||
        callback(t, proto, DRAINED, drained, (void *)ask_drained, &after) < 0)
        return NULL;
    struct pr_callbacks *c = &t->hs.callbacks[proto];
    memcpy(&c->m2flow, &flow, sizeof flow);
    memcpy(&c->m2cpuid, &cpuid, sizeof cpuid);
    memcpy(&c->drained, &after, sizeof after);
    Py_RETURN_NONE;
}

static PyObject *get_capsule(PyObject *self, void *unused)
{
    (void)unused;
    return PyCapsule_New(&((PrHandlers *)self)->hs, PR_HANDLERS_CAPSULE, NULL); /* the holder keeps the table alive beside it */
}

static PyObject *get_port_count(PyObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLong(((PrHandlers *)self)->hs.port_count);
}

/* handler_stats(memory, proto) -> (frames, bytes, batches, raised, lost, ns_total, ns_max, ns_last, last_error) */
PyObject *pr_handler_stats_read(PyObject *module, PyObject *args)
{
    (void)module;
    Py_buffer memory;
    unsigned proto;
    if (!PyArg_ParseTuple(args, "y*I", &memory, &proto))
        return NULL;
    const struct pr_handler_stats *s = (const struct pr_handler_stats *)memory.buf + proto;
    PyObject *row = NULL;
    if (proto_ok(proto) && (size_t)memory.len >= (proto + 1) * sizeof *s) {
        uint64_t v[8];
        for (int i = 0; i < 8; i++)
            v[i] = __atomic_load_n((const uint64_t *)s + i, __ATOMIC_RELAXED);
        PyObject *text = PyUnicode_DecodeUTF8(s->last_error, (Py_ssize_t)strnlen(s->last_error, sizeof s->last_error), "replace");
        row = text ? Py_BuildValue("(KKKKKKKKN)", v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], text) : NULL;
    } else if (!PyErr_Occurred()) {
        PyErr_Format(PyExc_ValueError, "no statistics of protocol %u in %zd bytes", proto, memory.len);
    }
    PyBuffer_Release(&memory);
    return row;
}

static PyMethodDef handlers_methods[] = {
    {"attach", attach, METH_VARARGS, "attach(memory for the statistics, pool)"},
    {"set_python", set_python, METH_VARARGS, "set_python(proto, function, per_frame, target)"},
    {"set_function", set_function, METH_VARARGS, "set_function(proto, address, state address, kept)"},
    {"set_builtin", set_builtin, METH_VARARGS, "set_builtin(proto, name, target)"},
    {"set_callbacks", set_callbacks, METH_VARARGS, "set_callbacks(proto, m2flow, m2cpuid, drained)"},
    {"clear", clear, METH_O, "clear(proto): no handler and no callbacks"},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef handlers_fields[] = {
    {"capsule", get_capsule, NULL, "struct pr_handlers *, for the worker's door", NULL},
    {"port_count", get_port_count, NULL, "ports are numbered from 0 to this - 1", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyTypeObject handlers_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "pktring.engine._engine.HandlerTable",
    .tp_basicsize = sizeof(PrHandlers),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_doc = "HandlerTable(view, port_count): a worker's handlers by protocol",
    .tp_new = PyType_GenericNew,
    .tp_init = handlers_init,
    .tp_dealloc = handlers_dealloc,
    .tp_methods = handlers_methods,
    .tp_getset = handlers_fields,
};

int pr_add_handlers(PyObject *m)
{
    static PyMethodDef functions[] = {
        {"handler_stats", pr_handler_stats_read, METH_VARARGS, "handler_stats(memory, proto) -> tuple"},
        {NULL, NULL, 0, NULL},
    };
    if (PyType_Ready(&handlers_type) < 0 || PyModule_AddFunctions(m, functions) < 0)
        return -1;
    Py_INCREF(&handlers_type);
    return PyModule_AddObject(m, "HandlerTable", (PyObject *)&handlers_type) < 0 ||
                   PyModule_AddIntMacro(m, PR_N_HANDLERS) < 0 || PyModule_AddIntMacro(m, PR_DONE) < 0 ||
                   PyModule_AddIntMacro(m, PR_BURST) < 0 || PyModule_AddIntMacro(m, PKTRING_HANDLER_VERSION) < 0 ||
                   PyModule_AddIntConstant(m, "PR_HANDLER_STATS", PR_N_HANDLERS * sizeof(struct pr_handler_stats)) < 0 ||
                   PyModule_AddObject(m, "PR_ANY_CPU", PyLong_FromUnsignedLong(PR_ANY_CPU)) < 0
               ? -1
               : 0;
}
