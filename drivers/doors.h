/* What each driver's door adds to the extension, and what they share. */
#ifndef PR_DRIVERS_DOORS_H
#define PR_DRIVERS_DOORS_H

#include <Python.h>

struct pr_device;

/* A capsule of the device that keeps `owner`, whose memory it is, alive. */
PyObject *pr_device_capsule(PyObject *owner, struct pr_device *dev);

/* Borrow the page of a device's link. 0 = it is too small for struct pr_live; an exception is set. */
int pr_borrow_live(PyObject *page, Py_buffer *live);

int pr_add_af_packet(PyObject *module);
int pr_add_pcap(PyObject *module); /* pcap and null */
int pr_add_tap(PyObject *module);

#endif
