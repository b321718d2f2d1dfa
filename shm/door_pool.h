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

extern PyTypeObject pr_pool_type;

int pr_add_pool(PyObject *module);
int pr_add_pktqueue(PyObject *module);

/* Fill `b` with writable memory aligned to `align`; -1 with an exception. */
static inline int pr_get_memory(PyObject *o, Py_buffer *b, size_t align)
{
    if (PyObject_GetBuffer(o, b, PyBUF_WRITABLE) < 0)
        return -1;
    if ((uintptr_t)b->buf % align == 0)
        return 0;
    PyErr_Format(PyExc_ValueError, "memory at %p is not aligned to %zu bytes", b->buf, align);
    PyBuffer_Release(b);
    return -1;
}

/* One number of an array of `size`-byte items that the caller lends for a call. */
static inline uint32_t pr_items(const Py_buffer *b, size_t size)
{
    size_t n = (size_t)b->len / size;
    return n < UINT32_MAX ? (uint32_t)n : UINT32_MAX;
}

#endif
