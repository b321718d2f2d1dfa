/* Python's hold on an AF_PACKET queue. The sockets are opened and set up by af_packet.py, which keeps them. */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>

#include "af_packet.h"
#include "doors.h"

typedef struct {
    PyObject_HEAD
    struct pr_afp q;
    Py_buffer map;
} AfpQueue;

static void queue_dealloc(PyObject *self)
{
    AfpQueue *o = (AfpQueue *)self;
    PyBuffer_Release(&o->map);
    PyMem_Free(o->q.mail);
    PyMem_RawFree(o->q.overflow);
    Py_TYPE(self)->tp_free(self);
}

static const struct pr_device_ops ring_ops = {"af_packet ring", pr_afp_rx_ring, pr_afp_tx, pr_afp_stats};
static const struct pr_device_ops recv_ops = {"af_packet recv", pr_afp_rx_recv, pr_afp_tx, pr_afp_stats};

/* AfPacketQueue(rx_fd, tx_fd, port, tx_vnet, map or None, block_size, landing or None) */
static int queue_init(PyObject *self, PyObject *args, PyObject *kw)
{
    static char *names[] = {"rx_fd", "tx_fd", "port", "tx_vnet", "map", "block_size", "landing", NULL};
    AfpQueue *o = (AfpQueue *)self;
    struct pr_afp *q = &o->q;
    int rx, tx, vnet;
    unsigned port, block_size;
    PyObject *map, *landing;
    if (q->mail || !PyArg_ParseTupleAndKeywords(args, kw, "iiIpOIO", names, &rx, &tx, &port, &vnet, &map, &block_size, &landing))
        return -1;
    q->dev = (struct pr_device){.ops = map != Py_None ? &ring_ops : &recv_ops, .rx_fd = rx, .tx_fd = tx,
                                .flags = vnet ? PR_DEV_CARRIES_GSO : 0};
    q->rx = rx;
    q->tx = tx;
    q->port = (uint16_t)port;
    q->tx_vnet = vnet;
    if (!(q->mail = PyMem_Calloc(1, sizeof *q->mail)))
        return PyErr_NoMemory(), -1;
    if (map != Py_None) {
        if (PyObject_GetBuffer(map, &o->map, PyBUF_WRITABLE) < 0)
            return -1;
        q->map = o->map.buf;
        q->block_size = block_size;
        q->n_blocks = block_size ? (uint32_t)((size_t)o->map.len / block_size) : 0;
        if (!q->n_blocks) {
            PyErr_SetString(PyExc_ValueError, "no blocks");
            return -1;
        }
    }
    if (landing != Py_None) {
        Py_buffer b;
        if (PyObject_GetBuffer(landing, &b, PyBUF_SIMPLE) < 0)
            return -1;
        int fits = (size_t)b.len == sizeof q->landing;
        if (fits)
            memcpy(q->landing, b.buf, sizeof q->landing);
        PyBuffer_Release(&b);
        if (!fits || !(q->overflow = PyMem_RawCalloc(PR_AFP_BURST, PR_AFP_LONGEST))) {
            PyErr_SetString(fits ? PyExc_MemoryError : PyExc_ValueError, "landing buffers");
            return -1;
        }
    }
    return 0;
}

static PyObject *queue_device(PyObject *self, void *unused)
{
    (void)unused;
    return pr_device_capsule(self, &((AfpQueue *)self)->q.dev);
}

/* The buffers that wait for frames now: the owner gives them back to the pool when the queue is closed. */
static PyObject *queue_landing(PyObject *self, void *unused)
{
    (void)unused;
    struct pr_afp *q = &((AfpQueue *)self)->q;
    return PyBytes_FromStringAndSize((char *)q->landing, q->overflow ? sizeof q->landing : 0);
}

static PyGetSetDef queue_fields[] = {
    {"device", queue_device, NULL, "the capsule to bind a ring to", NULL},
    {"landing", queue_landing, NULL, "uint32 indexes of the landing buffers", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyTypeObject queue_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "pktring.drivers._drivers.AfPacketQueue",
    .tp_basicsize = sizeof(AfpQueue),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "AfPacketQueue(rx_fd, tx_fd, port, tx_vnet, map, block_size, landing)",
    .tp_new = PyType_GenericNew,
    .tp_init = queue_init,
    .tp_dealloc = queue_dealloc,
    .tp_getset = queue_fields,
};

int pr_add_af_packet(PyObject *m)
{
    if (PyType_Ready(&queue_type) < 0)
        return -1;
    Py_INCREF(&queue_type);
    return PyModule_AddObject(m, "AfPacketQueue", (PyObject *)&queue_type) < 0 ||
                   PyModule_AddIntConstant(m, "AFP_BURST", PR_AFP_BURST) < 0
               ? -1
               : 0;
}
