/* Python's hold on a region: _shm.View. */
#include "door_pool.h"
#include "doors.h"
#include "mend.h"
#include "view.h"

#include <string.h>

static int view_init(PyObject *self, PyObject *args, PyObject *kw)
{
    static char *names[] = {"mem", "ledger", "counters", NULL};
    PrView *v = (PrView *)self;
    if (v->mem.obj || !PyArg_ParseTupleAndKeywords(args, kw, "w*w*w*", names, &v->mem, &v->ledger, &v->counters))
        return -1;
    const struct pr_header *hd = v->mem.buf;
    if ((size_t)v->mem.len < PR_PAGE || (uintptr_t)hd % PR_PAGE) {
        PyErr_SetString(PyExc_ValueError, "not a mapped region");
        return -1;
    }
    struct pr_region *rg = &v->rg;
    rg->g = hd->geometry;
    if (!pr_geometry_ok(&rg->g, (uint64_t)v->mem.len) || (uint64_t)v->ledger.len < pr_ledger_size(&rg->g) ||
        (uint64_t)v->counters.len < pr_counters_size(&rg->g)) {
        PyErr_SetString(PyExc_ValueError, "the geometry does not fit the segments");
        return -1;
    }
    rg->mem = v->mem.buf;
    rg->owner = (uint64_t *)((char *)v->ledger.buf + PR_PAGE);
    rg->krings = (struct pr_kring *)((char *)v->ledger.buf + pr_ledger_krings(&rg->g));
    rg->rows = (struct pr_row *)((char *)v->counters.buf + PR_PAGE);
    rg->n_rows = rg->g.ring_num;
    return 0;
}

static void view_dealloc(PyObject *self)
{
    PrView *v = (PrView *)self;
    PyBuffer_Release(&v->mem);
    PyBuffer_Release(&v->ledger);
    PyBuffer_Release(&v->counters);
    Py_TYPE(self)->tp_free(self);
}

static PyObject *view_ring(PyObject *self, PyObject *index)
{
    unsigned long i = PyLong_AsUnsignedLong(index);
    return PyErr_Occurred() ? NULL : pr_ring_handle((PrView *)self, (unsigned)i);
}

/* make_ring(index, dir, slots, ringid, owner, name, bufs): bufs is a buffer of `slots` uint32 indexes that `owner` owns. */
static PyObject *view_make_ring(PyObject *self, PyObject *args)
{
    PrView *v = (PrView *)self;
    unsigned index, dir, slots, ringid, owner;
    const char *name;
    Py_buffer bufs;
    if (!PyArg_ParseTuple(args, "IIIIIsy*", &index, &dir, &slots, &ringid, &owner, &name, &bufs))
        return NULL;
    const struct pr_geometry *g = &v->rg.g;
    uint64_t fits = (g->ring_size - sizeof(struct pr_ring)) / sizeof(struct pr_slot);
    int ok = index < g->ring_num && slots >= 2 && slots <= fits && dir <= PR_TX && (size_t)bufs.len == 4ull * slots;
    for (unsigned i = 0; ok && i < slots; i++)
        ok = pr_buf_ok(&v->rg, ((const uint32_t *)bufs.buf)[i]);
    PyObject *ring = NULL;
    if (ok) {
        struct pr_row *row = &v->rg.rows[index];
        memset(row, 0, sizeof *row);
        strncpy(row->name, name, sizeof row->name - 1);
        row->writer = owner;
        v->rg.krings[index] = (struct pr_kring){.num_slots = slots, .dir = dir, .row = index, .owner = owner,
                                                .ring_ofs = g->ring_ofs + (uint64_t)index * g->ring_size};
        ring = pr_ring_handle(v, index);
    } else {
        PyErr_Format(PyExc_ValueError, "no room for ring %u of %u slots", index, slots);
    }
    if (ring) {
        struct pr_ringh *h = &((PrRing *)ring)->h;
        memset(h->ring, 0, sizeof *h->ring);
        h->ring->buf_ofs = (int64_t)(g->buf_ofs + PR_HEADROOM) - (int64_t)h->k->ring_ofs;
        h->ring->num_slots = slots;
        h->ring->nr_buf_size = g->buf_stride;
        h->ring->ringid = (uint16_t)ringid;
        h->ring->dir = (uint16_t)dir;
        pr_ring_deal(h, bufs.buf);
        v->rg.rows[index].used = 1;
    }
    PyBuffer_Release(&bufs);
    return ring;
}

static PyObject *view_drop_ring(PyObject *self, PyObject *index)
{
    PrView *v = (PrView *)self;
    unsigned long i = PyLong_AsUnsignedLong(index);
    if (PyErr_Occurred())
        return NULL;
    if (i < v->rg.g.ring_num) {
        v->rg.rows[i].used = 0;
        v->rg.krings[i] = (struct pr_kring){0};
    }
    Py_RETURN_NONE;
}

/* mend(pool) -> (0 or -1, rings, slots, doubt, reclaimed, torn, missing, lost): see mend.h. The pool is the heir's. */
static PyObject *view_mend(PyObject *self, PyObject *pool)
{
    const struct pr_region *rg = &((PrView *)self)->rg;
    struct pr_mended sum;
    struct pr_ringh h;
    int64_t lost = 0;
    if (!PyObject_TypeCheck(pool, &pr_pool_type) || ((PrPool *)pool)->p.word != rg->owner)
        return PyErr_Format(PyExc_TypeError, "the Pool of an owner of this region is wanted");
    struct pr_pool *p = &((PrPool *)pool)->p;
    uint8_t *seen = PyMem_Malloc(rg->g.buf_num);
    if (!seen)
        return PyErr_NoMemory();
    int rc = pr_rings_mend(rg, p, seen, &sum);
    PyMem_Free(seen);
    for (uint32_t i = 0; i < rg->g.ring_num; i++)
        if (rg->krings[i].owner == pr_word_owner(p->as_owned) && pr_ring_open(rg, i, &h) == 0) {
            int64_t n = pr_settle(&h);
            lost += n > 0 ? n : 0;
            rc = n < 0 ? -1 : rc;
        }
    return Py_BuildValue("(iIIIIIIL)", rc, sum.rings, sum.slots, sum.doubt, sum.reclaimed, sum.torn, sum.missing,
                         (long long)lost);
}

/* rings() -> [(index, owner, dir, slots, row), ...]: those in use, as the ledger has them. */
static PyObject *view_rings(PyObject *self, PyObject *unused)
{
    (void)unused;
    const struct pr_region *rg = &((PrView *)self)->rg;
    PyObject *list = PyList_New(0);
    for (unsigned i = 0; list && i < rg->g.ring_num; i++) {
        const struct pr_kring *k = &rg->krings[i];
        if (!k->ring_ofs)
            continue;
        PyObject *item = Py_BuildValue("(IIIII)", i, k->owner, k->dir, k->num_slots, k->row);
        if (!item || PyList_Append(list, item) < 0)
            Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}

/* name_port(index, name, tx rings, rx rings): the netmap_if of a port, its rings given as lists of ring indexes. */
static PyObject *view_name_port(PyObject *self, PyObject *args)
{
    PrView *v = (PrView *)self;
    const struct pr_geometry *g = &v->rg.g;
    unsigned index;
    const char *name;
    PyObject *tx, *rx;
    if (!PyArg_ParseTuple(args, "IsO!O!", &index, &name, &PyList_Type, &tx, &PyList_Type, &rx))
        return NULL;
    Py_ssize_t nt = PyList_GET_SIZE(tx), nr = PyList_GET_SIZE(rx);
    if (index >= g->if_num || sizeof(struct pr_if) + 8 * (size_t)(nt + nr + 2) > g->if_size)
        return PyErr_Format(PyExc_ValueError, "no room for port %u", index);
    uint64_t at = g->if_ofs + (uint64_t)index * g->if_size;
    struct pr_if *nif = (struct pr_if *)(v->rg.mem + at);
    memset(nif, 0, g->if_size);
    strncpy(nif->ni_name, name, sizeof nif->ni_name - 1);
    nif->ni_tx_rings = (uint32_t)nt;
    nif->ni_rx_rings = (uint32_t)nr;
    nif->ni_host_tx_rings = nif->ni_host_rx_rings = 1; /* as netmap shows ports without host rings: one, at offset 0 */
    for (Py_ssize_t i = 0; i < nt + nr; i++) {
        unsigned long ring = PyLong_AsUnsignedLong(i < nt ? PyList_GET_ITEM(tx, i) : PyList_GET_ITEM(rx, i - nt));
        if (PyErr_Occurred())
            return NULL;
        nif->ring_ofs[i < nt ? i : i + 1] = (int64_t)(g->ring_ofs + ring * g->ring_size) - (int64_t)at;
    }
    return PyLong_FromUnsignedLongLong(at);
}

static PyObject *view_buffer_offset(PyObject *self, PyObject *index)
{
    PrView *v = (PrView *)self;
    unsigned long i = PyLong_AsUnsignedLong(index);
    if (PyErr_Occurred())
        return NULL;
    if (!pr_buf_ok(&v->rg, (uint32_t)i))
        return PyErr_Format(PyExc_IndexError, "no buffer %lu", i);
    return PyLong_FromSsize_t(pr_buf(&v->rg, (uint32_t)i) - v->rg.mem);
}

static PyObject *view_capsule(PyObject *self, void *unused)
{
    (void)unused;
    return PyCapsule_New(&((PrView *)self)->rg, PR_REGION_CAPSULE, NULL); /* the holder keeps the View alive beside it */
}

static PyGetSetDef view_fields[] = {
    {"capsule", view_capsule, NULL, "the region, for C code of other extensions", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef view_methods[] = {
    {"ring", view_ring, METH_O, "ring(index) -> Ring"},
    {"make_ring", view_make_ring, METH_VARARGS, "make_ring(index, dir, slots, ringid, owner, name, bufs) -> Ring"},
    {"drop_ring", view_drop_ring, METH_O, "forget a ring and its counters"},
    {"mend", view_mend, METH_O, "make the rings of a dead owner whole, with its heir's Pool, and its books right"},
    {"rings", view_rings, METH_NOARGS, "rings() -> [(index, owner, dir, slots, row)] of those in use"},
    {"name_port", view_name_port, METH_VARARGS, "write a port's netmap_if; its offset in the region"},
    {"buffer_offset", view_buffer_offset, METH_O, "where buffer i starts in the region"},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject view_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "pktring.shm._shm.View",
    .tp_basicsize = sizeof(PrView),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "View(mem, ledger, counters): a region mapped into this process",
    .tp_new = PyType_GenericNew,
    .tp_init = view_init,
    .tp_dealloc = view_dealloc,
    .tp_methods = view_methods,
    .tp_getset = view_fields,
};

int pr_add_view(PyObject *m)
{
    if (PyType_Ready(&view_type) < 0)
        return -1;
    Py_INCREF(&view_type);
    return PyModule_AddObject(m, "View", (PyObject *)&view_type);
}
