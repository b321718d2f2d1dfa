/* Python's hold on capture files and the null device. pcap.py opens and closes the descriptors; here they are lent.
 * One thread at a time: whoever syncs the ring is who rotates and finishes. */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>
#include <structmember.h>
#include <sys/stat.h>

#include "doors.h"
#include "null.h"
#include "pcap.h"
#include "pcap_recount.h"

#define TEXT_MOST 60000 /* an option's length has 16 bits */

static int is_file(int fd)
{
    struct stat st;
    return fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
}

/* ---- reader ---- */

typedef struct {
    PyObject_HEAD
    struct pr_pcap_in in;
} Reader;

static void reader_dealloc(PyObject *self)
{
    Reader *o = (Reader *)self;
    PyMem_RawFree(o->in.from.buf);
    PyMem_RawFree(o->in.from.ifs);
    Py_TYPE(self)->tp_free(self);
}

static int reader_init(PyObject *self, PyObject *args, PyObject *kw)
{
    static char *names[] = {"fd", "port", "any_link", NULL};
    struct pr_pcap_in *p = &((Reader *)self)->in;
    int fd, port = -1, any_link = 0;
    if (p->from.buf || !PyArg_ParseTupleAndKeywords(args, kw, "i|ip", names, &fd, &port, &any_link))
        return -1;
    int file = is_file(fd);
    p->dev = (struct pr_device){.ops = &pr_pcap_in_ops, .rx_fd = file ? -1 : fd, .tx_fd = -1, .serial = pr_serial_of(fd)};
    p->port = port;
    p->from = (struct pr_pcap_reader){.fd = fd, .waits = !file, .any_link = (uint8_t)any_link,
                                      .buf = PyMem_RawMalloc(PR_PCAP_READ),
                                      .ifs = PyMem_RawCalloc(PR_PCAP_INTERFACES, sizeof *p->from.ifs)};
    return p->from.buf && p->from.ifs ? 0 : (PyErr_NoMemory(), -1);
}

static PyObject *reader_look(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct pr_pcap_reader *r = &((Reader *)self)->in.from;
    struct pr_pcap_frame f;
    int seen;
    Py_BEGIN_ALLOW_THREADS
    r->budget = UINT32_MAX;
    seen = pr_pcap_next(r, &f);
    Py_END_ALLOW_THREADS
    return seen == PR_PCAP_FRAME ? PyLong_FromUnsignedLongLong(f.ts_ns) : Py_NewRef(Py_None);
}

static PyObject *reader_close(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct pr_pcap_in *p = &((Reader *)self)->in;
    p->from.fd = -1;
    p->from.error = p->from.error ? p->from.error : EBADF;
    p->dev.flags |= PR_DEV_END;
    p->dev.rx_fd = -1;
    Py_RETURN_NONE;
}

static PyObject *counts(const uint64_t *v, uint8_t known)
{
    PyObject *t = PyTuple_New(PR_PCAP_N_STATS);
    for (int i = 0; t && i < PR_PCAP_N_STATS; i++)
        PyTuple_SET_ITEM(t, i, known >> i & 1 ? PyLong_FromUnsignedLongLong(v[i]) : Py_NewRef(Py_None));
    return t;
}

static PyObject *reader_interfaces(PyObject *self, void *unused)
{
    (void)unused;
    const struct pr_pcap_reader *r = &((Reader *)self)->in.from;
    PyObject *list = PyList_New(0);
    for (uint32_t i = 0; list && i < r->n_ifs; i++) {
        const struct pr_pcap_from *f = &r->ifs[i];
        PyObject *name = PyUnicode_DecodeUTF8(f->name, (Py_ssize_t)strlen(f->name), "replace");
        PyObject *item = Py_BuildValue("{s:N,s:I,s:I,s:K,s:K,s:K,s:N}", "name", name, "link", f->linktype, "snaplen",
                                       f->snaplen, "speed", f->speed, "frames", f->frames, "dropped", f->drops, "stats",
                                       counts(f->stats, f->has_stats));
        if (!item || PyList_Append(list, item) < 0)
            Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}

static PyObject *reader_trouble(PyObject *self, void *unused)
{
    (void)unused;
    const char *text = ((Reader *)self)->in.from.trouble;
    return *text ? PyUnicode_DecodeUTF8(text, (Py_ssize_t)strlen(text), "replace") : Py_NewRef(Py_None);
}

static PyObject *reader_end(PyObject *self, void *unused)
{
    (void)unused;
    return PyBool_FromLong(((Reader *)self)->in.dev.flags & PR_DEV_END);
}

static PyObject *reader_device(PyObject *self, void *unused)
{
    (void)unused;
    return pr_device_capsule(self, &((Reader *)self)->in.dev);
}

static PyMethodDef reader_methods[] = {
    {"look", reader_look, METH_NOARGS, "read as far as the first frame -> its time in ns, or None"},
    {"close", reader_close, METH_NOARGS, "read no more: the descriptor is about to be closed"},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef reader_fields[] = {
    {"device", reader_device, NULL, "the capsule to bind a receive ring to", NULL},
    {"interfaces", reader_interfaces, NULL, "the interfaces described so far, a dict each", NULL},
    {"trouble", reader_trouble, NULL, "what is wrong with the file and where, None = nothing", NULL},
    {"end", reader_end, NULL, "nothing will come any more", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef reader_members[] = {
    {"fd", T_INT, offsetof(Reader, in.from.fd), READONLY, "-1 = closed"},
    {"errno", T_INT, offsetof(Reader, in.from.error), READONLY, "EBADMSG: the file is bad; else read(2)'s; 0 = none"},
    {"offset", T_ULONGLONG, offsetof(Reader, in.from.offset), READONLY, "bytes of the file that are behind us"},
    {NULL, 0, 0, 0, NULL},
};

static PyTypeObject reader_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "pktring.drivers._drivers.PcapReader",
    .tp_basicsize = sizeof(Reader),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "PcapReader(fd, port=-1, any_link=False): pcap or pcapng, from where the descriptor stands",
    .tp_new = PyType_GenericNew,
    .tp_init = reader_init,
    .tp_dealloc = reader_dealloc,
    .tp_methods = reader_methods,
    .tp_getset = reader_fields,
    .tp_members = reader_members,
};

/* ---- writer ---- */

typedef struct {
    PyObject_HEAD
    struct pr_pcap_out out;
    int patience_ms;
} Writer;

static void writer_dealloc(PyObject *self)
{
    struct pr_pcap_out *p = &((Writer *)self)->out;
    PyMem_RawFree(p->to.buf);
    PyMem_RawFree(p->to.ifs);
    PyMem_RawFree(p->to.header);
    PyMem_RawFree(p->interface_of);
    Py_TYPE(self)->tp_free(self);
}

static int too_long(const char *text)
{
    if (strlen(text) <= TEXT_MOST)
        return 0;
    PyErr_Format(PyExc_ValueError, "a text of %zu bytes does not fit an option", strlen(text));
    return 1;
}

/* Append one interface's description to the header and its port to the table. */
static int describe(struct pr_pcap_out *p, uint32_t i, PyObject *item)
{
    struct pr_pcap_describe d;
    Py_ssize_t n_mac;
    int port;
    if (!PyArg_ParseTuple(item, "sssssz#KIi", &d.name, &d.description, &d.filter, &d.os, &d.hardware, &d.mac, &n_mac,
                          &d.speed, &d.snaplen, &port))
        return -1;
    const char *texts[] = {d.name, d.description, d.filter, d.os, d.hardware};
    size_t need = 256;
    for (int t = 0; t < 5; t++) {
        if (too_long(texts[t]))
            return -1;
        need += strlen(texts[t]);
    }
    if ((d.mac && n_mac != 6) || d.snaplen == 0 || d.snaplen > PR_PCAP_CAPLEN_MAX || port < 0 || port > UINT16_MAX)
        return PyErr_Format(PyExc_ValueError, "interface %u: mac of 6 bytes, snaplen 1 to %u, port 0 to 65535", i,
                            PR_PCAP_CAPLEN_MAX), -1;
    uint8_t *more = PyMem_RawRealloc(p->to.header, p->to.header_len + need);
    if (!more)
        return PyErr_NoMemory(), -1;
    p->to.header = more;
    p->to.header_len += (uint32_t)(pr_put_interface(more + p->to.header_len, &d) - (more + p->to.header_len));
    p->to.ifs[i].snaplen = d.snaplen;
    if (p->interface_of)
        p->interface_of[port] = (uint16_t)i;
    return 0;
}

/* Go on with a file that another process began: where that was, its whole records in bytes, when the capture began, and
 * the frames of each interface. */
static int goes_on(struct pr_pcap_writer *w, int fd, PyObject *known)
{
    unsigned long long start, bytes, start_ns;
    PyObject *frames;
    if (!PyArg_ParseTuple(known, "KKKO!", &start, &bytes, &start_ns, &PyList_Type, &frames))
        return -1;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(frames) && i < (Py_ssize_t)w->n_ifs; i++)
        w->ifs[i].frames = PyLong_AsUnsignedLongLong(PyList_GET_ITEM(frames, i));
    w->fd = fd;
    w->is_file = is_file(fd);
    w->start = start;
    w->bytes = bytes;
    w->start_ns = start_ns;
    return PyErr_Occurred() ? -1 : 0;
}

static int writer_init(PyObject *self, PyObject *args, PyObject *kw)
{
    static char *names[] = {"fd", "interfaces", "hardware", "os", "application", "max_bytes", "patience_ms", "known",
                            NULL};
    Writer *o = (Writer *)self;
    struct pr_pcap_out *p = &o->out;
    int fd;
    PyObject *interfaces, *known = Py_None;
    const char *hardware = "", *os = "", *application = "";
    unsigned long long max_bytes = 0;
    o->patience_ms = 2000;
    if (p->to.buf || !PyArg_ParseTupleAndKeywords(args, kw, "iO!|sssKiO", names, &fd, &PyList_Type, &interfaces,
                                                  &hardware, &os, &application, &max_bytes, &o->patience_ms, &known))
        return -1;
    Py_ssize_t n = PyList_GET_SIZE(interfaces);
    if (n < 1 || n > PR_PCAP_INTERFACES)
        return PyErr_Format(PyExc_ValueError, "1 to %u interfaces, not %zd", PR_PCAP_INTERFACES, n), -1;
    if (too_long(hardware) || too_long(os) || too_long(application))
        return -1;
    p->dev = (struct pr_device){.ops = &pr_pcap_out_ops, .rx_fd = -1, .tx_fd = is_file(fd) ? -1 : fd,
                                .serial = pr_serial_of(fd)};
    p->max_bytes = max_bytes;
    struct pr_pcap_writer *w = &p->to;
    w->n_ifs = (uint32_t)n;
    w->buf = PyMem_RawMalloc(PR_PCAP_WRITE);
    w->ifs = PyMem_RawCalloc((size_t)n, sizeof *w->ifs);
    w->header = PyMem_RawMalloc(strlen(hardware) + strlen(os) + strlen(application) + 128);
    if (n > 1) { /* one interface takes every port's frames */
        p->n_ports = UINT16_MAX + 1;
        p->interface_of = PyMem_RawMalloc(sizeof *p->interface_of * p->n_ports);
    }
    if (!w->buf || !w->ifs || !w->header || (n > 1 && !p->interface_of))
        return PyErr_NoMemory(), -1;
    if (p->interface_of)
        memset(p->interface_of, 0xff, sizeof *p->interface_of * p->n_ports); /* PR_PCAP_NO_INTERFACE */
    w->header_len = (uint32_t)(pr_put_section(w->header, hardware, os, application) - w->header);
    for (Py_ssize_t i = 0; i < n; i++)
        if (describe(p, (uint32_t)i, PyList_GET_ITEM(interfaces, i)) < 0)
            return -1;
    if (known != Py_None)
        return goes_on(w, fd, known);
    int refused;
    Py_BEGIN_ALLOW_THREADS
    refused = pr_pcap_start(w, fd, is_file(fd), o->patience_ms);
    Py_END_ALLOW_THREADS
    errno = refused;
    return refused ? (PyErr_SetFromErrno(PyExc_OSError), -1) : 0;
}

/* None, or a list of (received, dropped, accepted, dropped by the kernel, delivered), None = not known. */
static int parse_stats(struct pr_pcap_out *p, PyObject *given, int64_t (*stats)[PR_PCAP_N_STATS])
{
    memset(stats, 0xff, p->to.n_ifs * sizeof *stats);
    if (given == Py_None)
        return 0;
    if (!PyList_Check(given) || PyList_GET_SIZE(given) != (Py_ssize_t)p->to.n_ifs)
        return PyErr_Format(PyExc_ValueError, "statistics: a list of %u", p->to.n_ifs), -1;
    for (uint32_t i = 0; i < p->to.n_ifs; i++) {
        PyObject *row = PyList_GET_ITEM(given, i);
        if (!PyTuple_Check(row) || PyTuple_GET_SIZE(row) != PR_PCAP_N_STATS)
            return PyErr_Format(PyExc_ValueError, "statistics %u: a tuple of %d", i, PR_PCAP_N_STATS), -1;
        for (int k = 0; k < PR_PCAP_N_STATS; k++) {
            PyObject *v = PyTuple_GET_ITEM(row, k);
            if (v != Py_None && ((stats[i][k] = PyLong_AsLongLong(v)) < 0 || PyErr_Occurred()))
                return PyErr_Occurred() ? -1 : (PyErr_Format(PyExc_ValueError, "statistics %u: %R", i, v), -1);
        }
    }
    return 0;
}

/* End the current file; -1 = a Python exception is set, else 0 or the errno that refused its last blocks. */
static int end_file(Writer *o, PyObject *given)
{
    struct pr_pcap_out *p = &o->out;
    int64_t(*stats)[PR_PCAP_N_STATS] = PyMem_Calloc(p->to.n_ifs, sizeof *stats);
    if (!stats)
        return PyErr_NoMemory(), -1;
    int refused = parse_stats(p, given, stats);
    if (refused == 0) {
        Py_BEGIN_ALLOW_THREADS
        refused = pr_pcap_finish(&p->to, stats, o->patience_ms);
        Py_END_ALLOW_THREADS
    }
    PyMem_Free(stats);
    return refused;
}

static PyObject *writer_rotate(PyObject *self, PyObject *args)
{
    Writer *o = (Writer *)self;
    struct pr_pcap_out *p = &o->out;
    int fd;
    PyObject *stats = Py_None;
    if (!PyArg_ParseTuple(args, "i|O", &fd, &stats))
        return NULL;
    int refused = p->to.fd < 0 ? 0 : end_file(o, stats), start;
    if (refused < 0)
        return NULL;
    p->dev.tx_fd = is_file(fd) ? -1 : fd;
    p->dev.serial = pr_serial_of(fd);
    Py_BEGIN_ALLOW_THREADS
    start = pr_pcap_start(&p->to, fd, is_file(fd), o->patience_ms);
    Py_END_ALLOW_THREADS
    pr_pcap_resume(p);
    if (start) {
        p->dev.error = p->to.error = errno = start;
        pr_pcap_pause(p, PR_PCAP_ERROR);
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return PyLong_FromLong(refused);
}

static void no_more(struct pr_pcap_out *p, int why)
{
    p->to.fd = p->dev.tx_fd = -1;
    p->to.at = p->to.have = 0;
    p->dev.error = why;
    pr_pcap_pause(p, PR_PCAP_CLOSED);
}

static PyObject *writer_finish(PyObject *self, PyObject *args)
{
    Writer *o = (Writer *)self;
    PyObject *stats = Py_None;
    if (!PyArg_ParseTuple(args, "|O", &stats))
        return NULL;
    int refused = end_file(o, stats);
    if (refused < 0)
        return NULL;
    no_more(&o->out, refused);
    return PyLong_FromLong(refused);
}

static PyObject *writer_leave(PyObject *self, PyObject *unused)
{
    (void)unused;
    no_more(&((Writer *)self)->out, 0);
    Py_RETURN_NONE;
}

static PyObject *writer_recount(PyObject *self, PyObject *arg)
{
    struct pr_pcap_writer *w = &((Writer *)self)->out.to;
    int fd = (int)PyLong_AsLong(arg), ended;
    if (fd == -1 && PyErr_Occurred())
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    ended = pr_pcap_recount(w, fd);
    if (!ended && w->fd >= 0)
        pr_pcap_cut_back(w, w->bytes);
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(ended);
}

static PyObject *writer_resume(PyObject *self, PyObject *unused)
{
    (void)unused;
    Writer *o = (Writer *)self;
    if (o->out.to.fd >= 0)
        pr_pcap_resume(&o->out);
    Py_RETURN_NONE;
}

static PyObject *writer_dropped(PyObject *self, PyObject *args)
{
    struct pr_pcap_writer *w = &((Writer *)self)->out.to;
    unsigned i;
    unsigned long long n;
    if (!PyArg_ParseTuple(args, "IK", &i, &n))
        return NULL;
    if (i >= w->n_ifs)
        return PyErr_Format(PyExc_IndexError, "interface %u of %u", i, w->n_ifs);
    w->ifs[i].dropped += n;
    Py_RETURN_NONE;
}

static PyObject *writer_device(PyObject *self, void *unused)
{
    (void)unused;
    return pr_device_capsule(self, &((Writer *)self)->out.dev);
}

static PyObject *writer_paused(PyObject *self, void *unused)
{
    (void)unused;
    static const char *const why[] = {"", "size", "time", "error", "closed"};
    enum pr_pcap_pause w = ((Writer *)self)->out.why;
    return w ? PyUnicode_FromString(why[w]) : Py_NewRef(Py_None);
}

static PyObject *writer_frames(PyObject *self, void *unused)
{
    (void)unused;
    const struct pr_pcap_writer *w = &((Writer *)self)->out.to;
    PyObject *t = PyTuple_New(w->n_ifs);
    for (uint32_t i = 0; t && i < w->n_ifs; i++)
        PyTuple_SET_ITEM(t, i, PyLong_FromUnsignedLongLong(w->ifs[i].frames));
    return t;
}

static PyMethodDef writer_methods[] = {
    {"rotate", writer_rotate, METH_VARARGS, "rotate(fd, stats=None): end the file, go on in this -> errno of its end"},
    {"finish", writer_finish, METH_VARARGS, "finish(stats=None): end the file, take no more -> errno, 0 = all well"},
    {"leave", writer_leave, METH_NOARGS, "take no more, and leave the file to those who hold it too"},
    {"recount", writer_recount, METH_O, "recount(fd to read by): count what others wrote, cut off half a record -> is it ended?"},
    {"resume", writer_resume, METH_NOARGS, "try again after an error"},
    {"dropped", writer_dropped, METH_VARARGS, "dropped(interface, n): n frames were lost before its next one"},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef writer_fields[] = {
    {"device", writer_device, NULL, "the capsule to bind a transmit ring to", NULL},
    {"paused", writer_paused, NULL, "why nothing is taken: size, time, error, closed; None = going", NULL},
    {"frames", writer_frames, NULL, "frames written, of each interface", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef writer_members[] = {
    {"error", T_INT, offsetof(Writer, out.to.error), READONLY, "errno that stopped it, 0 = none"},
    {"start", T_ULONGLONG, offsetof(Writer, out.to.start), READONLY, "where in the file our first byte lies"},
    {"start_ns", T_ULONGLONG, offsetof(Writer, out.to.start_ns), READONLY, "when the capture began"},
    {"written", T_ULONGLONG, offsetof(Writer, out.to.bytes), READONLY, "bytes of whole records in this file"},
    {"max_bytes", T_ULONGLONG, offsetof(Writer, out.max_bytes), 0, "pause before the file grows past this, 0 = never"},
    {"until_ns", T_ULONGLONG, offsetof(Writer, out.until_ns), 0, "pause before a frame of this time, 0 = never"},
    {"next_ns", T_ULONGLONG, offsetof(Writer, out.next_ns), READONLY, "time of the frame that waits for the next file"},
    {NULL, 0, 0, 0, NULL},
};

static PyTypeObject writer_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "pktring.drivers._drivers.PcapWriter",
    .tp_basicsize = sizeof(Writer),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "PcapWriter(fd, interfaces, hardware='', os='', application='', max_bytes=0, patience_ms=2000, known=None)\n\n"
              "interfaces: [(name, description, filter, os, hardware, mac, speed, snaplen, port), ...]\n"
              "known: (start, written, start_ns, [frames]) of a file that another process began",
    .tp_new = PyType_GenericNew,
    .tp_init = writer_init,
    .tp_dealloc = writer_dealloc,
    .tp_methods = writer_methods,
    .tp_getset = writer_fields,
    .tp_members = writer_members,
};

/* ---- null ---- */

typedef struct {
    PyObject_HEAD
    struct pr_null null;
} Null;

static int null_init(PyObject *self, PyObject *args, PyObject *kw)
{
    static char *names[] = {"frame", "count", "port", NULL};
    struct pr_null *p = &((Null *)self)->null;
    Py_buffer b = {0};
    unsigned long long count = 0;
    unsigned port = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kw, "|y*KI", names, &b, &count, &port))
        return -1;
    int fits = b.len <= PR_NULL_LONGEST;
    if (fits) {
        p->dev = (struct pr_device){.ops = &pr_null_ops, .rx_fd = -1, .tx_fd = -1, .serial = PR_NULL_SERIAL};
        p->left = p->count = count ? count : UINT64_MAX;
        p->port = (uint16_t)port;
        p->len = (uint32_t)b.len;
        if (b.len)
            memcpy(p->template, b.buf, (size_t)b.len);
    } else {
        PyErr_Format(PyExc_ValueError, "a frame of %zd bytes, %d at most", b.len, PR_NULL_LONGEST);
    }
    PyBuffer_Release(&b);
    return fits ? 0 : -1;
}

static PyObject *null_device(PyObject *self, void *unused)
{
    (void)unused;
    return pr_device_capsule(self, &((Null *)self)->null.dev);
}

static PyGetSetDef null_fields[] = {
    {"device", null_device, NULL, "the capsule to bind rings to", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyTypeObject null_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "pktring.drivers._drivers.Null",
    .tp_basicsize = sizeof(Null),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Null(frame=b'', count=0, port=0): receives copies of the frame, count = 0 without end; no frame = nothing",
    .tp_new = PyType_GenericNew,
    .tp_init = null_init,
    .tp_getset = null_fields,
};

int pr_add_pcap(PyObject *m)
{
    PyTypeObject *types[] = {&reader_type, &writer_type, &null_type};
    const char *names[] = {"PcapReader", "PcapWriter", "Null"};
    for (int i = 0; i < 3; i++) {
        if (PyType_Ready(types[i]) < 0 || PyModule_AddObject(m, names[i], Py_NewRef((PyObject *)types[i])) < 0)
            return -1;
    }
    return PyModule_AddIntConstant(m, "PCAP_SNAPLEN", PR_PCAP_CAPLEN_MAX);
}
