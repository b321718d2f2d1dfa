/* The pool's door, which the doors of lanes and queues are handed objects of. */
#ifndef PR_DOOR_POOL_H
#define PR_DOOR_POOL_H

#include "doors.h"
#include "pool.h"

typedef struct {
    PyObject_HEAD
    PyObject *view;   /* either the region's View, */
    Py_buffer words;  /* or memory of our caller's */
    struct pr_pool p;
} PrPool;

#define PR_POOL_CAPSULE "pktring.pool" /* struct pr_pool *, for C code of other extensions */

extern PyTypeObject pr_pool_type;

int pr_add_pool(PyObject *module);
int pr_add_pktqueue(PyObject *module);

/* Borrow memory aligned to `align` (flags: PyBUF_SIMPLE or PyBUF_WRITABLE); -1 with an exception. */
static inline int pr_borrow(PyObject *o, Py_buffer *b, size_t align, int flags)
{
    if (PyObject_GetBuffer(o, b, flags) < 0)
        return -1;
    if (b->len == 0 || (uintptr_t)b->buf % align == 0)
        return 0;
    PyErr_Format(PyExc_ValueError, "memory at %p is not aligned to %zu bytes", b->buf, align);
    PyBuffer_Release(b);
    return -1;
}

/* For PyArg_ParseTuple's O&, as the last argument: an array of u64 to read, to write into; of u32 to read. */
static inline int pr_u64_in(PyObject *o, void *b) { return pr_borrow(o, b, 8, PyBUF_SIMPLE) == 0; }
static inline int pr_u64_out(PyObject *o, void *b) { return pr_borrow(o, b, 8, PyBUF_WRITABLE) == 0; }
static inline int pr_u32_in(PyObject *o, void *b) { return pr_borrow(o, b, 4, PyBUF_SIMPLE) == 0; }

/* How many items of `size` bytes it holds. */
static inline uint32_t pr_items(const Py_buffer *b, size_t size)
{
    size_t n = (size_t)b->len / size;
    return n < UINT32_MAX ? (uint32_t)n : UINT32_MAX;
}

#endif
