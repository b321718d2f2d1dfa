/* What the doors of the border share. */
#ifndef PR_DOOR_BORDER_H
#define PR_DOOR_BORDER_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

int pr_add_app_records(PyObject *module); /* AppRecords, the controller's side */
int pr_add_app_side(PyObject *module);    /* AppDevice, app_ring: the app's side */

/* What a View, a Pool or a Ring lends; NULL with an exception. The caller keeps the lender. */
static inline void *pr_borrowed(PyObject *lender, const char *name)
{
    PyObject *capsule = PyObject_GetAttrString(lender, "capsule");
    void *p = capsule ? PyCapsule_GetPointer(capsule, name) : NULL;
    Py_XDECREF(capsule);
    return p;
}

#endif
