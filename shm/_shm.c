/* The door of shm: lends the C core memory through the buffer protocol, checks sizes and headers, returns numbers.
 * Names and documentation are in the Python files beside it. */
#include "doors.h"
#include "view.h"

#include <string.h>

static uint32_t crc32_of(const void *data, size_t n)
{
    const uint8_t *p = data;
    uint32_t c = ~0u;
    for (size_t i = 0; i < n; i++) {
        c ^= p[i];
        for (int k = 0; k < 8; k++)
            c = c >> 1 ^ (0xedb88320u & -(c & 1));
    }
    return ~c;
}

static PyObject *geometry_dict(const struct pr_geometry *g, uint64_t size)
{
    return Py_BuildValue("{s:K,s:K,s:K,s:K,s:I,s:I,s:I,s:I,s:I,s:I,s:K,s:K,s:K}", "if_ofs", g->if_ofs, "ring_ofs",
                         g->ring_ofs, "meta_ofs", g->meta_ofs, "buf_ofs", g->buf_ofs, "if_num", g->if_num, "if_size",
                         g->if_size, "ring_num", g->ring_num, "ring_size", g->ring_size, "buf_num", g->buf_num,
                         "buf_stride", g->buf_stride, "size", size, "ledger_size", pr_ledger_size(g), "counters_size",
                         pr_counters_size(g));
}

static PyObject *carve(PyObject *self, PyObject *args)
{
    (void)self;
    unsigned ifs, rings, slots, bufs, stride;
    struct pr_geometry g;
    if (!PyArg_ParseTuple(args, "IIIII", &ifs, &rings, &slots, &bufs, &stride))
        return NULL;
    uint64_t size = pr_carve(&g, ifs, rings, slots, bufs, stride);
    if (!pr_geometry_ok(&g, size))
        return PyErr_Format(PyExc_ValueError, "no such geometry: %u rings, %u slots, %u buffers of %u", rings, slots,
                            bufs, stride);
    return geometry_dict(&g, size);
}

/* header_write(segment, kind, ifs, rings, slots, bufs, stride, generation, pid, start, name, flags, owners): everything
 * but READY. */
static PyObject *header_write(PyObject *self, PyObject *args)
{
    (void)self;
    Py_buffer b;
    unsigned kind, ifs, rings, slots, bufs, stride, pid, flags, owners;
    unsigned long long generation, start;
    const char *name;
    if (!PyArg_ParseTuple(args, "w*IIIIIIKIKsII", &b, &kind, &ifs, &rings, &slots, &bufs, &stride, &generation, &pid,
                          &start, &name, &flags, &owners))
        return NULL;
    struct pr_header hd = {.magic = PR_MAGIC, .abi_major = PR_ABI_MAJOR, .abi_minor = PR_ABI_MINOR,
                           .layout_hash = pr_layout_hash(), .size = (uint64_t)b.len, .generation = generation,
                           .kind = kind, .owner_pid = pid, .owner_start = start, .state = PR_MAKING,
                           .flags = flags, .owners = owners};
    pr_carve(&hd.geometry, ifs, rings, slots, bufs, stride);
    hd.geometry_crc = crc32_of(&hd.geometry, sizeof hd.geometry);
    strncpy(hd.name, name, sizeof hd.name - 1);
    int fits = (size_t)b.len >= PR_PAGE;
    if (fits)
        memcpy(b.buf, &hd, sizeof hd);
    PyBuffer_Release(&b);
    if (!fits)
        return PyErr_Format(PyExc_ValueError, "segment too small");
    Py_RETURN_NONE;
}

/* header_owner(segment, pid, start): another maker. No start time is no living process: nobody takes half for whole. */
static PyObject *header_owner(PyObject *self, PyObject *args)
{
    (void)self;
    Py_buffer b;
    unsigned pid;
    unsigned long long start;
    if (!PyArg_ParseTuple(args, "w*IK", &b, &pid, &start))
        return NULL;
    if ((size_t)b.len >= sizeof(struct pr_header)) {
        struct pr_header *hd = b.buf;
        __atomic_store_n(&hd->owner_start, 0, __ATOMIC_RELEASE);
        __atomic_store_n(&hd->owner_pid, pid, __ATOMIC_RELEASE);
        __atomic_store_n(&hd->owner_start, start, __ATOMIC_RELEASE);
    }
    PyBuffer_Release(&b);
    Py_RETURN_NONE;
}

static PyObject *header_state(PyObject *self, PyObject *args)
{
    (void)self;
    Py_buffer b;
    unsigned state;
    if (!PyArg_ParseTuple(args, "w*I", &b, &state))
        return NULL;
    if ((size_t)b.len >= sizeof(struct pr_header))
        __atomic_store_n(&((struct pr_header *)b.buf)->state, state, __ATOMIC_RELEASE);
    PyBuffer_Release(&b);
    Py_RETURN_NONE;
}

/* header_read(segment) -> dict with `trouble`: None, or why nobody should map it. Reads a private copy. */
static PyObject *header_read(PyObject *self, PyObject *args)
{
    (void)self;
    Py_buffer b;
    if (!PyArg_ParseTuple(args, "y*", &b))
        return NULL;
    struct pr_header hd = {0};
    uint32_t state = 0;
    if ((size_t)b.len >= sizeof hd) {
        state = __atomic_load_n(&((const struct pr_header *)b.buf)->state, __ATOMIC_ACQUIRE); /* pairs with header_state */
        memcpy(&hd, b.buf, sizeof hd);
    }
    PyBuffer_Release(&b);
    hd.name[sizeof hd.name - 1] = 0;
    const char *trouble = NULL;
    if (hd.magic != PR_MAGIC)
        trouble = "magic";
    else if (hd.abi_major != PR_ABI_MAJOR)
        trouble = "abi";
    else if (hd.layout_hash != pr_layout_hash())
        trouble = "layout";
    else if (state != PR_READY)
        trouble = state == PR_DEAD ? "dead" : "not ready";
    else if (hd.geometry_crc != crc32_of(&hd.geometry, sizeof hd.geometry))
        trouble = "geometry";
    PyObject *geometry = geometry_dict(&hd.geometry, hd.size);
    if (!geometry)
        return NULL;
    return Py_BuildValue("{s:z,s:I,s:I,s:K,s:K,s:K,s:I,s:I,s:K,s:I,s:I,s:I,s:s,s:N}", "trouble", trouble, "abi_major",
                         hd.abi_major, "abi_minor", hd.abi_minor, "layout_hash", hd.layout_hash, "size", hd.size,
                         "generation", hd.generation, "kind", hd.kind, "owner_pid", hd.owner_pid, "owner_start",
                         hd.owner_start, "state", state, "flags", hd.flags, "owners", hd.owners, "name", hd.name, "geometry", geometry);
}

/* rows(counters segment) -> [(ring, name, writer, (values...)), ...] of the rows in use. */
static PyObject *rows(PyObject *self, PyObject *args)
{
    (void)self;
    Py_buffer b;
    if (!PyArg_ParseTuple(args, "y*", &b))
        return NULL;
    PyObject *list = PyList_New(0);
    const struct pr_row *row = (const void *)((const char *)b.buf + PR_PAGE);
    size_t n = b.len < PR_PAGE ? 0 : ((size_t)b.len - PR_PAGE) / sizeof *row;
    for (size_t i = 0; list && i < n; i++, row++) {
        if (!row->used)
            continue;
        PyObject *values = PyTuple_New(PR_N_COUNTERS);
        for (int c = 0; values && c < PR_N_COUNTERS; c++)
            PyTuple_SET_ITEM(values, c, PyLong_FromUnsignedLongLong(__atomic_load_n(&row->v[c], __ATOMIC_RELAXED)));
        char name[sizeof row->name + 1] = {0};
        memcpy(name, row->name, sizeof row->name);
        PyObject *item = values ? Py_BuildValue("(nsIN)", (Py_ssize_t)i, name, row->writer, values) : NULL;
        if (!item || PyList_Append(list, item) < 0)
            Py_CLEAR(list);
        Py_XDECREF(item);
    }
    PyBuffer_Release(&b);
    return list;
}

static PyMethodDef methods[] = {
    {"carve", carve, METH_VARARGS, "carve(ifs, rings, slots, bufs, stride) -> geometry"},
    {"header_write", header_write, METH_VARARGS, "write a segment's header, not yet READY"},
    {"header_owner", header_owner, METH_VARARGS, "header_owner(segment, pid, start): another maker"},
    {"header_state", header_state, METH_VARARGS, "publish the state of a segment"},
    {"header_read", header_read, METH_VARARGS, "read and judge a segment's header"},
    {"rows", rows, METH_VARARGS, "the counter rows in use"},
    {NULL, NULL, 0, NULL},
};

#define F(s, f) #s "." #f, (int)offsetof(struct s, f), (int)sizeof(((struct s *)0)->f)
static int add_layout(PyObject *m)
{
    PyObject *d = PyDict_New();
    struct { const char *name; int offset, size; } facts[] = {
        {F(pr_slot, buf_idx)}, {F(pr_slot, len)}, {F(pr_slot, flags)}, {F(pr_slot, ptr)}, {F(pr_ring, buf_ofs)},
        {F(pr_ring, num_slots)}, {F(pr_ring, nr_buf_size)}, {F(pr_ring, ringid)}, {F(pr_ring, dir)},
        {F(pr_ring, head)}, {F(pr_ring, cur)}, {F(pr_ring, tail)}, {F(pr_ring, flags)}, {F(pr_ring, ts)},
        {F(pr_ring, offset_mask)}, {F(pr_ring, buf_align)}, {F(pr_ring, sem)}, {F(pr_if, ni_name)},
        {F(pr_if, ni_version)}, {F(pr_if, ni_flags)}, {F(pr_if, ni_tx_rings)}, {F(pr_if, ni_rx_rings)},
        {F(pr_if, ni_bufs_head)}, {F(pr_if, ni_host_tx_rings)}, {F(pr_if, ni_host_rx_rings)}, {F(pr_if, ni_spare1)},
        {"pr_if.ring_ofs", offsetof(struct pr_if, ring_ofs), 8}, {"pr_slot", 0, sizeof(struct pr_slot)},
        {"pr_ring", 0, sizeof(struct pr_ring)}, {"pr_if", 0, sizeof(struct pr_if)},
        {"pr_meta", 0, sizeof(struct pr_meta)}, {"pr_kring", 0, sizeof(struct pr_kring)},
        {"pr_header", 0, sizeof(struct pr_header)}, {"pr_row", 0, sizeof(struct pr_row)},
        {F(pr_header, magic)}, {F(pr_header, abi_major)}, {F(pr_header, layout_hash)}, {F(pr_header, size)},
        {F(pr_header, generation)}, {F(pr_header, geometry)}, {F(pr_header, state)}, {F(pr_meta, ts_ns)},
        {F(pr_meta, wire_len)}, {F(pr_meta, port)}, {F(pr_meta, flags)},
    };
    for (size_t i = 0; d && i < sizeof facts / sizeof *facts; i++) {
        PyObject *v = Py_BuildValue("(ii)", facts[i].offset, facts[i].size);
        if (!v || PyDict_SetItemString(d, facts[i].name, v) < 0)
            Py_CLEAR(d);
        Py_XDECREF(v);
    }
    return d ? PyModule_AddObject(m, "LAYOUT", d) : -1;
}

static int add_counters(PyObject *m)
{
    static const char *const names[][2] = {
#define X(name, text) {#name, text},
        PR_COUNTER_LIST(X)
#undef X
    };
    PyObject *t = PyTuple_New(PR_N_COUNTERS);
    for (int i = 0; t && i < PR_N_COUNTERS; i++)
        PyTuple_SET_ITEM(t, i, Py_BuildValue("(ss)", names[i][0], names[i][1]));
    return t ? PyModule_AddObject(m, "COUNTERS", t) : -1;
}

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_shm", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__shm(void)
{
    PyObject *m = PyModule_Create(&module);
    if (!m || add_layout(m) < 0 || add_counters(m) < 0 || pr_add_view(m) < 0 || pr_add_rings(m) < 0 || pr_add_lanes(m) < 0 ||
        PyModule_AddIntConstant(m, "HEADROOM", PR_HEADROOM) < 0 || PyModule_AddIntConstant(m, "PAGE", PR_PAGE) < 0 ||
        PyModule_AddIntConstant(m, "ABI_MAJOR", PR_ABI_MAJOR) < 0 ||
        PyModule_AddIntConstant(m, "ABI_MINOR", PR_ABI_MINOR) < 0 ||
        PyModule_AddObject(m, "LAYOUT_HASH", PyLong_FromUnsignedLongLong(pr_layout_hash())) < 0 ||
        PyModule_AddIntMacro(m, PR_RX) < 0 || PyModule_AddIntMacro(m, PR_TX) < 0 ||
        PyModule_AddIntMacro(m, PR_MEM) < 0 || PyModule_AddIntMacro(m, PR_LEDGER) < 0 ||
        PyModule_AddIntMacro(m, PR_COUNTERS) < 0 || PyModule_AddIntMacro(m, PR_ENGINE) < 0 ||
        PyModule_AddIntMacro(m, PR_KEPT) < 0 || PyModule_AddIntConstant(m, "FIRST_BUF", 2) < 0 || PyModule_AddIntMacro(m, PR_READY) < 0 ||
        PyModule_AddIntMacro(m, PR_DEAD) < 0 || PyModule_AddIntMacro(m, PR_MAKING) < 0)
        return NULL;
    return m;
}
