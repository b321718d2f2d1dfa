/* Python's hold on an AF_PACKET queue. The sockets are opened and set up by af_packet.py, which keeps them. */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>

#include "af_packet.h"
#include "doors.h"

typedef struct {
    PyObject_HEAD
    struct pr_afp q;
    Py_buffer map, live;
} AfpQueue;

static void queue_dealloc(PyObject *self)
{
    AfpQueue *o = (AfpQueue *)self;
    PyBuffer_Release(&o->map);
    PyBuffer_Release(&o->live);
    PyMem_RawFree(o->q.mail);
    PyMem_RawFree(o->q.big);
    Py_TYPE(self)->tp_free(self);
}

static const struct pr_device_ops blocks_ops = {"af_packet blocks", pr_afp_rx_blocks, pr_afp_tx, pr_afp_stats,
                                                pr_afp_resume_blocks};
static const struct pr_device_ops frames_ops = {"af_packet frames", pr_afp_rx_frames, pr_afp_tx, pr_afp_stats,
                                                pr_afp_resume_frames};
static const struct pr_device_ops tx_ops = {"af_packet sending", NULL, pr_afp_tx, NULL, NULL};

static const struct pr_device_ops *ops_of(int receives, int blocks)
{
    return !receives ? &tx_ops : blocks ? &blocks_ops : &frames_ops;
}

/* AfPacketQueue(live, rx_fd, tx_fd, port, tx_vnet, map, piece, blocks): the map is the socket's receive ring, of blocks
 * (TPACKET_V3) or frames (TPACKET_V2) of `piece` bytes; None = it only sends. */
static int queue_init(PyObject *self, PyObject *args, PyObject *kw)
{
    static char *names[] = {"live", "rx_fd", "tx_fd", "port", "tx_vnet", "map", "piece", "blocks", NULL};
    AfpQueue *o = (AfpQueue *)self;
    struct pr_afp *q = &o->q;
    int rx, tx, vnet, blocks;
    unsigned port, piece;
    PyObject *live, *map;
    if (q->mail || !PyArg_ParseTupleAndKeywords(args, kw, "OiiIpOIp", names, &live, &rx, &tx, &port, &vnet, &map, &piece,
                                                &blocks) ||
        !pr_borrow_live(live, &o->live) || (map != Py_None && PyObject_GetBuffer(map, &o->map, PyBUF_WRITABLE) < 0))
        return -1;
    *q = (struct pr_afp){.dev = {.ops = ops_of(map != Py_None, blocks), .rx_fd = rx, .tx_fd = tx,
                                 .flags = vnet ? PR_DEV_CARRIES_GSO : 0, .serial = pr_serial_of(rx)},
                         .live = o->live.buf, .rx = rx, .tx = tx, .port = (uint16_t)port, .tx_vnet = vnet,
                         .map = o->map.buf, .piece = piece,
                         .n_pieces = piece ? (uint32_t)((size_t)o->map.len / piece) : 0};
    q->mail = PyMem_RawCalloc(1, sizeof *q->mail);
    q->big = PyMem_RawCalloc(1, PR_AFP_LONGEST);
    int fits = q->n_pieces || map == Py_None;
    if (!q->mail || !q->big || !fits) {
        PyErr_SetString(fits ? PyExc_MemoryError : PyExc_ValueError, "receive ring");
        return -1;
    }
    return 0;
}

/* renew(map): the sockets' descriptors are those of others now, with a ring of the same shape. */
static PyObject *queue_renew(PyObject *self, PyObject *map)
{
    AfpQueue *o = (AfpQueue *)self;
    Py_buffer now;
    if (PyObject_GetBuffer(map, &now, PyBUF_WRITABLE) < 0)
        return NULL;
    if (!o->q.mail || now.len != o->map.len) {
        PyBuffer_Release(&now);
        return PyErr_Format(PyExc_ValueError, "receive ring");
    }
    PyBuffer_Release(&o->map);
    o->map = now;
    o->q.map = now.buf;
    o->q.at = o->q.in_block = o->q.next_offset = o->q.held = 0;
    o->q.dev.serial = pr_serial_of(o->q.rx);
    Py_RETURN_NONE;
}

static PyObject *queue_device(PyObject *self, void *unused)
{
    (void)unused;
    return pr_device_capsule(self, &((AfpQueue *)self)->q.dev);
}

static PyObject *get_carrier(PyObject *self, void *unused)
{
    (void)unused;
    return PyBool_FromLong(!((AfpQueue *)self)->q.live->no_carrier);
}

static int set_carrier(PyObject *self, PyObject *value, void *unused)
{
    (void)unused;
    int on = value ? PyObject_IsTrue(value) : 0;
    if (on < 0)
        return -1;
    __atomic_store_n(&((AfpQueue *)self)->q.live->no_carrier, !on, __ATOMIC_RELAXED);
    return 0;
}

static PyGetSetDef queue_fields[] = {
    {"carrier", get_carrier, set_carrier, "False: what is sent is dropped here, and counted, whoever sends", NULL},
    {"device", queue_device, NULL, "the capsule to bind a ring to", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef queue_methods[] = {
    {"renew", queue_renew, METH_O, "renew(map): go on with other sockets behind the same descriptors"},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject queue_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "pktring.drivers._drivers.AfPacketQueue",
    .tp_basicsize = sizeof(AfpQueue),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "AfPacketQueue(live, rx_fd, tx_fd, port, tx_vnet, map, piece, blocks)",
    .tp_new = PyType_GenericNew,
    .tp_init = queue_init,
    .tp_dealloc = queue_dealloc,
    .tp_methods = queue_methods,
    .tp_getset = queue_fields,
};

int pr_add_af_packet(PyObject *m)
{
    if (PyType_Ready(&queue_type) < 0)
        return -1;
    Py_INCREF(&queue_type);
    return PyModule_AddObject(m, "AfPacketQueue", (PyObject *)&queue_type);
}
