/* Python's way to the jail: jail.py has the order and the words. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "doors.h"
#include "jail.h"

/* jail_filter(groups) -> errno */
static PyObject *py_filter(PyObject *m, PyObject *args)
{
    (void)m;
    unsigned groups;
    return PyArg_ParseTuple(args, "I", &groups) ? PyLong_FromLong(pr_jail_filter(groups)) : NULL;
}

/* jail_program(groups) -> bytes, struct sock_filter each */
static PyObject *py_program(PyObject *m, PyObject *args)
{
    (void)m;
    unsigned groups;
    struct pr_jail_program p;
    if (!PyArg_ParseTuple(args, "I", &groups))
        return NULL;
    pr_jail_build(&p, groups);
    return PyBytes_FromStringAndSize((const char *)p.code, (Py_ssize_t)(p.n * sizeof *p.code));
}

/* jail_calls(groups) -> {name: number} */
static PyObject *py_calls(PyObject *m, PyObject *args)
{
    (void)m;
    unsigned groups;
    PyObject *calls = PyArg_ParseTuple(args, "I", &groups) ? PyDict_New() : NULL;
    for (size_t i = 0; calls && i < PR_JAIL_CALLS; i++) {
        PyObject *nr = pr_jail_has(groups, i) ? PyLong_FromUnsignedLong(pr_jail_calls[i].nr) : NULL;
        if (nr && PyDict_SetItemString(calls, pr_jail_calls[i].name, nr) < 0)
            Py_CLEAR(calls);
        Py_XDECREF(nr);
        if (PyErr_Occurred())
            Py_CLEAR(calls);
    }
    return calls;
}

#define STEP(name, call)                                                                                               \
    static PyObject *py_##name(PyObject *m, PyObject *args)                                                            \
    {                                                                                                                  \
        (void)m;                                                                                                       \
        (void)args;                                                                                                    \
        return PyLong_FromLong(call);                                                                                  \
    }

STEP(bounding, pr_jail_bounding())
STEP(securebits, pr_jail_securebits())
STEP(ambient, pr_jail_ambient())
STEP(capabilities, pr_jail_capabilities())
STEP(no_new_privs, pr_jail_no_new_privs())
STEP(undumpable, pr_jail_dumpable(0))
STEP(landlock_abi, pr_landlock_abi())

/* jail_landlock([path as bytes, ...]) -> errno */
static PyObject *py_landlock(PyObject *m, PyObject *args)
{
    (void)m;
    PyObject *list;
    const char *path[64];
    if (!PyArg_ParseTuple(args, "O!", &PyList_Type, &list))
        return NULL;
    Py_ssize_t n = PyList_GET_SIZE(list);
    if (n > 64)
        return PyErr_Format(PyExc_ValueError, "%zd paths, at most 64", n);
    for (Py_ssize_t i = 0; i < n; i++)
        if (!(path[i] = PyBytes_AsString(PyList_GET_ITEM(list, i))))
            return NULL;
    return PyLong_FromLong(pr_jail_landlock(path, (size_t)n));
}

static PyMethodDef functions[] = {
    {"jail_filter", py_filter, METH_VARARGS, "jail_filter(groups) -> errno"},
    {"jail_program", py_program, METH_VARARGS, "jail_program(groups) -> the filter as bytes, struct sock_filter each"},
    {"jail_calls", py_calls, METH_VARARGS, "jail_calls(groups) -> {name: number} of the calls that it lets through"},
    {"jail_bounding", py_bounding, METH_NOARGS, "-> errno"},
    {"jail_securebits", py_securebits, METH_NOARGS, "-> errno"},
    {"jail_ambient", py_ambient, METH_NOARGS, "-> errno"},
    {"jail_capabilities", py_capabilities, METH_NOARGS, "-> errno"},
    {"jail_no_new_privs", py_no_new_privs, METH_NOARGS, "-> errno"},
    {"jail_undumpable", py_undumpable, METH_NOARGS, "-> errno"},
    {"jail_landlock", py_landlock, METH_VARARGS, "jail_landlock([path as bytes, ...]) -> errno"},
    {"jail_landlock_abi", py_landlock_abi, METH_NOARGS, "-> the Landlock ABI of this kernel, 0 = none"},
    {NULL, NULL, 0, NULL},
};

int pr_add_jail(PyObject *m)
{
    return PyModule_AddFunctions(m, functions) < 0 || PyModule_AddIntMacro(m, PR_JAIL_JIT) < 0 ||
                   PyModule_AddIntMacro(m, PR_JAIL_RUN_BPF) < 0 || PyModule_AddIntMacro(m, PR_JAIL_FILES) < 0 ||
                   PyModule_AddIntMacro(m, PR_JAIL_EPOLL) < 0
               ? -1
               : 0;
}
