/* Python's hold on netisr's tables: _engine.Netisr. The controller's side; an end, which frames go through, is in
 * door_netisr_end.c. Names and rules: netisr.py. */
#include "door_netisr.h"

#include <structmember.h>

static struct pr_netisr *view_of(PyObject *o) { return &((PrNetisr *)o)->v; }

static int netisr_init(PyObject *o, PyObject *args, PyObject *kw)
{
    static char *names[] = {"mem", NULL};
    PrNetisr *self = (PrNetisr *)o;
    PyObject *mem;
    if (self->mem.obj || !PyArg_ParseTupleAndKeywords(args, kw, "O", names, &mem) ||
        PyObject_GetBuffer(mem, &self->mem, PyBUF_WRITABLE) < 0)
        return -1;
    if (pr_netisr_attach(&self->v, self->mem.buf, (size_t)self->mem.len) == 0)
        return 0;
    PyErr_Format(PyExc_ValueError, "no netisr in these %zd bytes", self->mem.len);
    return -1;
}

static void netisr_dealloc(PyObject *o)
{
    PyBuffer_Release(&((PrNetisr *)o)->mem);
    Py_TYPE(o)->tp_free(o);
}

/* An index below n, or an exception. */
static int below(unsigned i, unsigned n, const char *what)
{
    if (i < n)
        return 1;
    PyErr_Format(PyExc_IndexError, "%s %u of %u", what, i, n);
    return 0;
}

static int proto_ok(unsigned proto) { return below(proto, PR_NETISR_PROTOS, "protocol"); }
static int vnet_ok(unsigned vnet) { return below(vnet, PR_NETISR_VNETS, "vnet"); }
static int ws_ok(const struct pr_netisr *v, unsigned ws) { return below(ws, v->n_ws, "workstream"); }
static int producer_ok(const struct pr_netisr *v, unsigned i) { return below(i, v->n_producers, "producer"); }

/* ---- functions of the module ---- */

static int geometry_of(PyObject *args, struct pr_netisr_geometry *g, Py_buffer *mem)
{
    unsigned workstreams, maxqlimit, defaultqlimit, first_lane, bindthreads;
    *mem = (Py_buffer){0};
    if (PyTuple_GET_SIZE(args) == 5
            ? !PyArg_ParseTuple(args, "IIIII", &workstreams, &maxqlimit, &defaultqlimit, &first_lane, &bindthreads)
            : !PyArg_ParseTuple(args, "IIIIIw*", &workstreams, &maxqlimit, &defaultqlimit, &first_lane, &bindthreads,
                                 mem))
        return -1;
    *g = (struct pr_netisr_geometry){.workstreams = workstreams, .maxqlimit = maxqlimit, .defaultqlimit = defaultqlimit,
                                     .first_lane = (uint16_t)first_lane, .bindthreads = bindthreads != 0};
    if (first_lane <= UINT16_MAX && pr_netisr_geometry_ok(g))
        return 0;
    PyErr_Format(PyExc_ValueError, "no netisr of %u workstreams, limits %u and %u, lanes from %u on", workstreams,
                 defaultqlimit, maxqlimit, first_lane);
    PyBuffer_Release(mem);
    return -1;
}

/* netisr_size(workstreams, maxqlimit, defaultqlimit, first lane, bindthreads) -> bytes */
static PyObject *py_size(PyObject *m, PyObject *args)
{
    (void)m;
    struct pr_netisr_geometry g;
    Py_buffer none;
    return geometry_of(args, &g, &none) < 0 ? NULL : PyLong_FromSize_t(pr_netisr_size(&g));
}

/* Bytes at the end of a block that are lanes. */
static PyObject *py_lanes_size(PyObject *m, PyObject *args)
{
    (void)m;
    struct pr_netisr_geometry g;
    struct pr_netisr v;
    Py_buffer none;
    if (geometry_of(args, &g, &none) < 0)
        return NULL;
    pr_netisr_carve(&v, NULL, &g);
    return PyLong_FromSize_t(PR_NETISR_PROTOS * v.lanes_size);
}

/* netisr_lanes_range((the same), protocol) -> (offset, size) of its lanes in such a block */
static PyObject *py_lanes_range(PyObject *m, PyObject *args)
{
    (void)m;
    struct pr_netisr_geometry g;
    struct pr_netisr v;
    Py_buffer none;
    PyObject *geometry;
    unsigned proto;
    if (!PyArg_ParseTuple(args, "O!I", &PyTuple_Type, &geometry, &proto) || !proto_ok(proto) ||
        geometry_of(geometry, &g, &none) < 0)
        return NULL;
    pr_netisr_carve(&v, NULL, &g);
    return Py_BuildValue("(nn)", (Py_ssize_t)pr_netisr_lanes_at(&v, proto), (Py_ssize_t)v.lanes_size);
}

/* netisr_format(..., mem) */
static PyObject *py_format(PyObject *m, PyObject *args)
{
    (void)m;
    struct pr_netisr_geometry g;
    Py_buffer mem;
    if (geometry_of(args, &g, &mem) < 0)
        return NULL;
    int made = pr_netisr_format(mem.buf, (size_t)mem.len, &g);
    if (made < 0)
        PyErr_Format(PyExc_ValueError, "%zd bytes, or not at a page: a netisr needs %zu", mem.len, pr_netisr_size(&g));
    PyBuffer_Release(&mem);
    return made < 0 ? NULL : Py_NewRef(Py_None);
}

/* classify(frame) -> protocol number */
static PyObject *py_classify(PyObject *m, PyObject *frame)
{
    (void)m;
    Py_buffer b;
    if (PyObject_GetBuffer(frame, &b, PyBUF_SIMPLE) < 0)
        return NULL;
    uint32_t proto = pr_classify(b.buf, b.len < UINT32_MAX ? (uint32_t)b.len : UINT32_MAX);
    PyBuffer_Release(&b);
    return PyLong_FromUnsignedLong(proto);
}

/* ---- reading ---- */

/* sums(protocol, workstream) -> tuple, in the order of SUM_NAMES */
static PyObject *netisr_sums(PyObject *o, PyObject *args)
{
    const struct pr_netisr *v = view_of(o);
    unsigned proto, ws;
    if (!PyArg_ParseTuple(args, "II", &proto, &ws) || !proto_ok(proto) || !ws_ok(v, ws))
        return NULL;
    struct pr_netisr_sums s = pr_netisr_sums(v, proto, ws);
    _Static_assert(sizeof s == 15 * sizeof(uint64_t), "SUM_NAMES of netisr.py");
    PyObject *t = PyTuple_New(15);
    for (Py_ssize_t i = 0; t && i < 15; i++)
        PyTuple_SET_ITEM(t, i, PyLong_FromUnsignedLongLong(((uint64_t *)&s)[i]));
    return t;
}

/* did(protocol, producer) -> (dispatched, hybrid, noproto, nobufs, wakes) */
static PyObject *netisr_did(PyObject *o, PyObject *args)
{
    const struct pr_netisr *v = view_of(o);
    unsigned proto, producer;
    if (!PyArg_ParseTuple(args, "II", &proto, &producer) || !proto_ok(proto) || !producer_ok(v, producer))
        return NULL;
    struct pr_netisr_row r = pr_netisr_did(v, proto, producer);
    return Py_BuildValue("(KKKKK)", r.dispatched, r.hybrid, r.noproto, r.nobufs, r.wakes);
}

/* proto(n) -> (used, name, policy, dispatch, qlimit, flags, generation) */
static PyObject *netisr_proto(PyObject *o, PyObject *n)
{
    unsigned long proto = PyLong_AsUnsignedLong(n);
    if (PyErr_Occurred() || !proto_ok((unsigned)proto))
        return NULL;
    const struct pr_netisr_proto *p = &view_of(o)->proto[proto];
    char name[PR_NETISR_NAME];
    memcpy(name, p->name, sizeof name);
    name[sizeof name - 1] = 0;
    PyObject *text = PyUnicode_DecodeUTF8(name, (Py_ssize_t)strlen(name), "replace");
    return Py_BuildValue("(ONIIIII)", p->used ? Py_True : Py_False, text, p->policy, p->dispatch, p->qlimit,
                         p->flags, p->generation);
}

/* workstream(n) -> (cpu, pid, births, flags, pending, need) */
static PyObject *netisr_workstream(PyObject *o, PyObject *n)
{
    unsigned long ws = PyLong_AsUnsignedLong(n);
    if (PyErr_Occurred() || !ws_ok(view_of(o), (unsigned)ws))
        return NULL;
    const struct pr_netisr_ws *s = &view_of(o)->ws[ws];
    return Py_BuildValue("(IIIIII)", s->cpu, s->pid, s->births, s->flags, s->pending, s->need);
}

/* port(n) -> (ifindex, generation, vnet) */
static PyObject *netisr_port(PyObject *o, PyObject *n)
{
    unsigned long port = PyLong_AsUnsignedLong(n);
    if (PyErr_Occurred() || !below((unsigned)port, PR_NETISR_PORTS, "port"))
        return NULL;
    uint64_t w = pr_netisr_look(&view_of(o)->control->port[port]);
    return Py_BuildValue("(III)", (unsigned)(w >> 32), (unsigned)(w >> 8) & 0xffffff, (unsigned)w & 0xff);
}

/* allowed(protocol, vnet) -> bool */
static PyObject *netisr_allowed(PyObject *o, PyObject *args)
{
    unsigned proto, vnet;
    if (!PyArg_ParseTuple(args, "II", &proto, &vnet) || !proto_ok(proto) || !vnet_ok(vnet))
        return NULL;
    return PyBool_FromLong(pr_netisr_allowed(view_of(o), proto, vnet));
}

static PyObject *netisr_ready(PyObject *o, PyObject *n)
{
    unsigned long proto = PyLong_AsUnsignedLong(n);
    if (PyErr_Occurred() || !proto_ok((unsigned)proto))
        return NULL;
    return PyBool_FromLong(pr_netisr_ready_proto(view_of(o), (uint32_t)proto));
}

static PyObject *netisr_cpuid(PyObject *o, PyObject *n)
{
    unsigned long i = PyLong_AsUnsignedLongMask(n);
    return PyErr_Occurred() ? NULL : PyLong_FromUnsignedLong(pr_netisr_cpuid(view_of(o), (uint32_t)i));
}

static PyObject *netisr_flow2cpu(PyObject *o, PyObject *flow)
{
    unsigned long i = PyLong_AsUnsignedLongMask(flow);
    return PyErr_Occurred() ? NULL : PyLong_FromUnsignedLong(pr_netisr_flow2cpu(view_of(o), (uint32_t)i));
}

/* ---- writing ---- */

/* lanes_range(protocol) -> (offset, size) */
static PyObject *netisr_lanes_range(PyObject *o, PyObject *n)
{
    unsigned long proto = PyLong_AsUnsignedLong(n);
    if (PyErr_Occurred() || !proto_ok((unsigned)proto))
        return NULL;
    return Py_BuildValue("(nn)", (Py_ssize_t)pr_netisr_lanes_at(view_of(o), (uint32_t)proto),
                         (Py_ssize_t)view_of(o)->lanes_size);
}

/* add(protocol, name, policy, dispatch, qlimit, flags) */
static PyObject *netisr_add(PyObject *o, PyObject *args)
{
    unsigned proto, policy, dispatch, qlimit, flags;
    const char *name;
    if (!PyArg_ParseTuple(args, "IsIIII", &proto, &name, &policy, &dispatch, &qlimit, &flags) || !proto_ok(proto))
        return NULL;
    pr_netisr_register(view_of(o), proto, name, policy, dispatch, qlimit, flags);
    Py_RETURN_NONE;
}

/* Methods of a protocol number: method(protocol). */
#define ON_PROTO(name, call)                                                                                           \
    static PyObject *netisr_##name(PyObject *o, PyObject *n)                                                           \
    {                                                                                                                  \
        unsigned long proto = PyLong_AsUnsignedLong(n);                                                                \
        if (PyErr_Occurred() || !proto_ok((unsigned)proto))                                                            \
            return NULL;                                                                                               \
        call(view_of(o), (uint32_t)proto);                                                                             \
        Py_RETURN_NONE;                                                                                                \
    }
ON_PROTO(open_lanes, pr_netisr_open)
ON_PROTO(forbid, pr_netisr_forbid)
ON_PROTO(remove, pr_netisr_unregistered)
ON_PROTO(clear_qdrops, pr_netisr_clear_qdrops)

/* set_qlimit(protocol, limit) */
static PyObject *netisr_set_qlimit(PyObject *o, PyObject *args)
{
    unsigned proto, limit;
    if (!PyArg_ParseTuple(args, "II", &proto, &limit) || !proto_ok(proto))
        return NULL;
    pr_netisr_word(&view_of(o)->proto[proto].qlimit, limit);
    Py_RETURN_NONE;
}

/* allow(protocol, vnet, yes) */
static PyObject *netisr_allow(PyObject *o, PyObject *args)
{
    unsigned proto, vnet;
    int yes;
    if (!PyArg_ParseTuple(args, "IIp", &proto, &vnet, &yes) || !proto_ok(proto) || !vnet_ok(vnet))
        return NULL;
    pr_netisr_allow(view_of(o), proto, vnet, yes);
    Py_RETURN_NONE;
}

/* set_vnet(vnet, exists) */
static PyObject *netisr_set_vnet(PyObject *o, PyObject *args)
{
    unsigned vnet;
    int exists;
    if (!PyArg_ParseTuple(args, "Ip", &vnet, &exists) || !vnet_ok(vnet))
        return NULL;
    pr_netisr_set_vnet(view_of(o), vnet, exists);
    Py_RETURN_NONE;
}

/* set_port(port, ifindex, vnet) */
static PyObject *netisr_set_port(PyObject *o, PyObject *args)
{
    unsigned port, ifindex, vnet;
    if (!PyArg_ParseTuple(args, "III", &port, &ifindex, &vnet) || !below(port, PR_NETISR_PORTS, "port") ||
        !vnet_ok(vnet))
        return NULL;
    pr_netisr_set_port(view_of(o), port, ifindex, vnet);
    Py_RETURN_NONE;
}

/* set_worker(workstream, cpu, pid): its worker says its pid by itself when it begins */
static PyObject *netisr_set_worker(PyObject *o, PyObject *args)
{
    unsigned ws, cpu, pid;
    if (!PyArg_ParseTuple(args, "III", &ws, &cpu, &pid) || !ws_ok(view_of(o), ws))
        return NULL;
    pr_netisr_word(&view_of(o)->ws[ws].cpu, cpu);
    pr_netisr_word(&view_of(o)->ws[ws].pid, pid);
    Py_RETURN_NONE;
}

/* ask_purge(workstream, bell) -> ticket */
static PyObject *netisr_ask_purge(PyObject *o, PyObject *args)
{
    unsigned ws;
    int bell;
    if (!PyArg_ParseTuple(args, "Ii", &ws, &bell) || !ws_ok(view_of(o), ws))
        return NULL;
    return PyLong_FromUnsignedLong(pr_netisr_ask_purge(view_of(o), ws, bell));
}

static PyObject *netisr_purge_done(PyObject *o, PyObject *args)
{
    unsigned ws, ticket;
    if (!PyArg_ParseTuple(args, "II", &ws, &ticket) || !ws_ok(view_of(o), ws))
        return NULL;
    return PyBool_FromLong(pr_netisr_purge_done(view_of(o), ws, ticket));
}

/* bury(pool, producer, [bells]) -> buffers that went home */
static PyObject *netisr_bury(PyObject *o, PyObject *args)
{
    const struct pr_netisr *v = view_of(o);
    PyObject *pool, *bells;
    unsigned producer;
    int bell[PR_NETISR_WS_MAX];
    if (!PyArg_ParseTuple(args, "OIO", &pool, &producer, &bells) || !producer_ok(v, producer) ||
        pr_netisr_bells(v, bells, bell) < 0)
        return NULL;
    struct pr_pool *p = pr_capsule_of(pool, "pktring.pool");
    return p ? PyLong_FromUnsignedLong(pr_netisr_bury_producer(v, p, producer, bell)) : NULL;
}

/* ---- words of the control block ---- */

static uint32_t *word_of(PyObject *o, void *field)
{
    return (uint32_t *)(void *)((char *)view_of(o)->control + (size_t)field);
}

static PyObject *get_word(PyObject *o, void *field)
{
    return PyLong_FromUnsignedLong(__atomic_load_n(word_of(o, field), __ATOMIC_ACQUIRE));
}

static int set_word(PyObject *o, PyObject *value, void *field)
{
    unsigned long to = value ? PyLong_AsUnsignedLong(value) : 0;
    if (PyErr_Occurred())
        return -1;
    pr_netisr_word(word_of(o, field), (uint32_t)to);
    return 0;
}

static PyObject *get_vnets(PyObject *o, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(pr_netisr_look(&view_of(o)->control->vnets));
}

static PyObject *get_bindthreads(PyObject *o, void *unused)
{
    (void)unused;
    return PyBool_FromLong(view_of(o)->g.bindthreads);
}

static PyGetSetDef netisr_fields[] = {
    {"dispatch", get_word, set_word, "the global policy", (void *)offsetof(struct pr_netisr_control, dispatch)},
    {"rps", get_word, set_word, "the routine that hashes flows", (void *)offsetof(struct pr_netisr_control, rps)},
    {"active", get_word, set_word, "workstreams that frames are placed on",
     (void *)offsetof(struct pr_netisr_control, active)},
    {"defaultqlimit", get_word, set_word, "of registrations that name none",
     (void *)offsetof(struct pr_netisr_control, defaultqlimit)},
    {"vnets", get_vnets, NULL, "which vnets exist, a bit each", NULL},
    {"bindthreads", get_bindthreads, NULL, "whether workers are pinned to their CPUs", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef netisr_members[] = {
    {"workstreams", T_UINT, offsetof(PrNetisr, v.n_ws), READONLY, "how many there are"},
    {"producers", T_UINT, offsetof(PrNetisr, v.n_producers), READONLY, "rows: workers, then the controller"},
    {"maxqlimit", T_UINT, offsetof(PrNetisr, v.g.maxqlimit), READONLY, "the highest limit a queue may have"},
    {"capacity", T_UINT, offsetof(PrNetisr, v.capacity), READONLY, "slots of a lane"},
    {NULL, 0, 0, 0, NULL},
};

static PyMethodDef netisr_methods[] = {
    {"sums", netisr_sums, METH_VARARGS, "sums(protocol, workstream) -> the row's counters"},
    {"did", netisr_did, METH_VARARGS, "did(protocol, producer) -> (dispatched, hybrid, noproto, nobufs, wakes)"},
    {"proto", netisr_proto, METH_O, "proto(n) -> (used, name, policy, dispatch, qlimit, flags, generation)"},
    {"workstream", netisr_workstream, METH_O, "workstream(n) -> (cpu, pid, births, flags, pending, need)"},
    {"port", netisr_port, METH_O, "port(n) -> (ifindex, generation, vnet)"},
    {"allowed", netisr_allowed, METH_VARARGS, "allowed(protocol, vnet) -> bool"},
    {"cpuid", netisr_cpuid, METH_O, "cpuid(n) -> CPU of workstream n % active"},
    {"flow2cpu", netisr_flow2cpu, METH_O, "flow2cpu(flow) -> CPU"},
    {"lanes_range", netisr_lanes_range, METH_O, "lanes_range(protocol) -> (offset, size) of its lanes in the block"},
    {"add", netisr_add, METH_VARARGS, "add(protocol, name, policy, dispatch, qlimit, flags)"},
    {"open_lanes", netisr_open_lanes, METH_O, "open_lanes(protocol): make its lanes, whose pages are there"},
    {"ready", netisr_ready, METH_O, "ready(protocol) -> whether its lanes are made"},
    {"forbid", netisr_forbid, METH_O, "forbid(protocol): no vnet lets it in"},
    {"remove", netisr_remove, METH_O, "remove(protocol): after it is forbidden and purged"},
    {"clear_qdrops", netisr_clear_qdrops, METH_O, "clear_qdrops(protocol)"},
    {"set_qlimit", netisr_set_qlimit, METH_VARARGS, "set_qlimit(protocol, limit)"},
    {"allow", netisr_allow, METH_VARARGS, "allow(protocol, vnet, yes)"},
    {"set_vnet", netisr_set_vnet, METH_VARARGS, "set_vnet(vnet, exists)"},
    {"set_port", netisr_set_port, METH_VARARGS, "set_port(port, ifindex, vnet): its next life"},
    {"set_worker", netisr_set_worker, METH_VARARGS, "set_worker(workstream, cpu, pid)"},
    {"ask_purge", netisr_ask_purge, METH_VARARGS, "ask_purge(workstream, bell) -> ticket"},
    {"purge_done", netisr_purge_done, METH_VARARGS, "purge_done(workstream, ticket) -> bool"},
    {"bury", netisr_bury, METH_VARARGS, "bury(pool, producer, bells) -> buffers that went home"},
    {NULL, NULL, 0, NULL},
};

PyTypeObject pr_netisr_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "pktring.engine._engine.Netisr",
    .tp_basicsize = sizeof(PrNetisr),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_doc = "Netisr(mem): the tables in a block that netisr_format made",
    .tp_new = PyType_GenericNew,
    .tp_init = netisr_init,
    .tp_dealloc = netisr_dealloc,
    .tp_methods = netisr_methods,
    .tp_members = netisr_members,
    .tp_getset = netisr_fields,
};

static PyMethodDef functions[] = {
    {"netisr_size", py_size, METH_VARARGS,
     "netisr_size(workstreams, maxqlimit, defaultqlimit, first_lane, bindthreads) -> bytes"},
    {"netisr_lanes_range", py_lanes_range, METH_VARARGS, "netisr_lanes_range((as above), protocol) -> (offset, size)"},
    {"netisr_lanes_size", py_lanes_size, METH_VARARGS,
     "netisr_lanes_size(as netisr_size) -> bytes at its end that are lanes"},
    {"netisr_format", py_format, METH_VARARGS, "netisr_format(..., mem): make a block in zeroed memory, page-aligned"},
    {"classify", py_classify, METH_O, "classify(frame) -> netisr's protocol number"},
    {NULL, NULL, 0, NULL},
};

int pr_add_netisr(PyObject *m)
{
    return PyModule_AddFunctions(m, functions) < 0 || PyModule_AddType(m, &pr_netisr_type) < 0 ||
                   pr_add_netisr_end(m) < 0 ||
                   PyModule_AddIntMacro(m, PR_NETISR_PUBLIC) < 0 || PyModule_AddIntMacro(m, PR_NETISR_INTERNAL) < 0 ||
                   PyModule_AddIntMacro(m, PR_NETISR_VNETS) < 0 || PyModule_AddIntMacro(m, PR_NETISR_PORTS) < 0 ||
                   PyModule_AddIntMacro(m, PR_NETISR_WS_MAX) < 0 || PyModule_AddIntMacro(m, PR_NETISR_QLIMIT_MAX) < 0 ||
                   PyModule_AddIntMacro(m, PR_NO_PORT) < 0 || PyModule_AddIntMacro(m, PR_NWS_RUNNING) < 0 ||
                   PyModule_AddIntMacro(m, PR_NWS_DISPATCHING) < 0 || PyModule_AddIntMacro(m, PR_NWS_SCHEDULED) < 0 ||
                   PyModule_AddIntMacro(m, PR_META_HASH) < 0
               ? -1
               : 0;
}
