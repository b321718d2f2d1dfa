/* Python's way to the hashes: toeplitz.py, flow.py and rps.py have the names and say what they mean. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "doors.h"
#include "rps.h"

static struct pr_toeplitz_table microsoft; /* made ready once, by pr_add_hashes; never written again */

static uint32_t bytes_of(const Py_buffer *b)
{
    return b->len < UINT32_MAX ? (uint32_t)b->len : UINT32_MAX;
}

/* toeplitz(data, key) -> hash */
static PyObject *py_toeplitz(PyObject *m, PyObject *args)
{
    (void)m;
    Py_buffer data, key;
    if (!PyArg_ParseTuple(args, "y*y*", &data, &key))
        return NULL;
    uint32_t hash = pr_toeplitz(key.buf, (size_t)key.len, data.buf, (size_t)data.len);
    PyBuffer_Release(&data);
    PyBuffer_Release(&key);
    return PyLong_FromUnsignedLong(hash);
}

/* flow_hash(frame[, key]) -> (hash, kind) */
static PyObject *py_flow_hash(PyObject *m, PyObject *args)
{
    (void)m;
    Py_buffer frame, key = {0};
    if (!PyArg_ParseTuple(args, "y*|y*", &frame, &key))
        return NULL;
    struct pr_toeplitz_table own;
    if (key.obj)
        pr_toeplitz_prepare(&own, key.buf, (size_t)key.len);
    int kind;
    uint32_t hash = pr_flow_hash(frame.buf, bytes_of(&frame), key.obj ? &own : &microsoft, &kind);
    PyBuffer_Release(&frame);
    if (key.obj)
        PyBuffer_Release(&key);
    return Py_BuildValue("Ii", hash, kind);
}

/* rps_hash(routine, frame, ncpu, curcpu) -> hash */
static PyObject *py_rps_hash(PyObject *m, PyObject *args)
{
    (void)m;
    unsigned routine, ncpu, curcpu;
    Py_buffer frame;
    if (!PyArg_ParseTuple(args, "Iy*II", &routine, &frame, &ncpu, &curcpu))
        return NULL;
    uint32_t hash = pr_rps_hash(routine, frame.buf, bytes_of(&frame), &microsoft, ncpu, curcpu);
    PyBuffer_Release(&frame);
    return PyLong_FromUnsignedLong(hash);
}

static PyMethodDef functions[] = {
    {"toeplitz", py_toeplitz, METH_VARARGS, "toeplitz(data, key) -> hash"},
    {"flow_hash", py_flow_hash, METH_VARARGS, "flow_hash(frame[, key]) -> (hash, index in FLOW_KINDS)"},
    {"rps_hash", py_rps_hash, METH_VARARGS, "rps_hash(index in RPS_ROUTINES, frame, ncpu, curcpu) -> hash"},
    {NULL, NULL, 0, NULL},
};

static PyObject *words(const char *const *name, Py_ssize_t n)
{
    PyObject *tuple = PyTuple_New(n);
    for (Py_ssize_t i = 0; tuple && i < n; i++) {
        PyObject *word = PyUnicode_InternFromString(name[i]);
        if (!word)
            Py_CLEAR(tuple);
        else
            PyTuple_SET_ITEM(tuple, i, word);
    }
    return tuple;
}

static int add(PyObject *m, const char *name, PyObject *value)
{
    int status = PyModule_AddObjectRef(m, name, value); /* refuses NULL */
    Py_XDECREF(value);
    return status;
}

static PyObject *key(const uint8_t *bytes)
{
    return PyBytes_FromStringAndSize((const char *)bytes, PR_TOEPLITZ_KEY);
}

int pr_add_hashes(PyObject *m)
{
    pr_toeplitz_prepare(&microsoft, pr_toeplitz_microsoft, sizeof pr_toeplitz_microsoft);
    return PyModule_AddFunctions(m, functions) < 0 || add(m, "MICROSOFT_KEY", key(pr_toeplitz_microsoft)) < 0 ||
                   add(m, "SYMMETRIC_KEY", key(pr_toeplitz_symmetric)) < 0 ||
                   add(m, "FLOW_KINDS", words(pr_flow_names, PR_FLOW_KINDS)) < 0 ||
                   add(m, "RPS_ROUTINES", words(pr_rps_names, PR_RPS_ROUTINES)) < 0
               ? -1
               : 0;
}
