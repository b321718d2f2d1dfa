/* Python's hold on the ledger: _shm.Pool. Names and documentation: pool.py. */
#include "door_pool.h"
#include "view.h"

#include <structmember.h>

static PyTypeObject *view_type;

static int lend_words(PrPool *self, PyObject *words, uint64_t **word, uint32_t *n)
{
    if (view_type && PyObject_TypeCheck(words, view_type)) {
        self->view = Py_NewRef(words);
        *word = ((PrView *)words)->rg.owner;
        *n = ((PrView *)words)->rg.g.buf_num;
        return 0;
    }
    if (pr_borrow(words, &self->words, sizeof **word, PyBUF_WRITABLE) < 0)
        return -1;
    *word = self->words.buf;
    *n = pr_items(&self->words, sizeof **word);
    return 0;
}

static int pool_init(PyObject *o, PyObject *args, PyObject *kw)
{
    static char *names[] = {"words", "owner", "gen", "home_size", NULL};
    PrPool *self = (PrPool *)o;
    PyObject *words;
    unsigned owner, gen = 0, home_size = 0;
    uint64_t *word;
    uint32_t n;
    if (self->p.word || !PyArg_ParseTupleAndKeywords(args, kw, "OI|II", names, &words, &owner, &gen, &home_size) ||
        lend_words(self, words, &word, &n) < 0)
        return -1;
    if (owner < 1 || owner > UINT16_MAX || gen > 0xffffff || n < PR_FIRST_BUF + 1) {
        PyErr_Format(PyExc_ValueError, "owner %u is 1..65535, gen %u below 2^24, %u words at least 3", owner, gen, n);
        return -1;
    }
    if (!home_size)
        home_size = n - PR_FIRST_BUF;
    uint32_t *stack = PyMem_RawMalloc(sizeof *stack * home_size);
    if (!stack) {
        PyErr_NoMemory();
        return -1;
    }
    pr_pool_init(&self->p, word, n, (uint16_t)owner, gen, home_size, stack);
    return 0;
}

static void pool_dealloc(PyObject *o)
{
    PrPool *self = (PrPool *)o;
    PyMem_RawFree(self->p.stack);
    PyBuffer_Release(&self->words);
    Py_CLEAR(self->view);
    Py_TYPE(o)->tp_free(o);
}

static struct pr_pool *pool_of(PyObject *o) { return &((PrPool *)o)->p; }

static PyObject *pool_deal(PyObject *o, PyObject *unused)
{
    (void)unused;
    pr_pool_deal(pool_of(o));
    Py_RETURN_NONE;
}

static PyObject *pool_rebuild(PyObject *o, PyObject *unused)
{
    (void)unused;
    pr_pool_rebuild(pool_of(o));
    Py_RETURN_NONE;
}

static PyObject *pool_take(PyObject *o, PyObject *out)
{
    Py_buffer b;
    if (pr_borrow(out, &b, 4, PyBUF_WRITABLE) < 0)
        return NULL;
    uint32_t n = pr_pool_take(pool_of(o), b.buf, pr_items(&b, 4));
    PyBuffer_Release(&b);
    return PyLong_FromUnsignedLong(n);
}

static PyObject *pool_give(PyObject *o, PyObject *bufs)
{
    Py_buffer b;
    if (pr_borrow(bufs, &b, 4, PyBUF_SIMPLE) < 0)
        return NULL;
    uint32_t n = pr_pool_give(pool_of(o), b.buf, pr_items(&b, 4));
    PyBuffer_Release(&b);
    return PyLong_FromUnsignedLong(n);
}

/* The changes of one word: method(buffer, ...) -> done or refused. */
#define ON_WORD(name, format, call)                                                                                    \
    static PyObject *pool_##name(PyObject *o, PyObject *args)                                                          \
    {                                                                                                                  \
        struct pr_pool *p = pool_of(o);                                                                                \
        unsigned b, x, y;                                                                                              \
        return PyArg_ParseTuple(args, format, &b, &x, &y) ? PyBool_FromLong(call) : NULL;                              \
    }
ON_WORD(owns, "I", pr_pool_owns(p, b))
ON_WORD(hand_over, "III", pr_pool_hand_over(p, b, (uint16_t)x, y))
ON_WORD(accept, "III", pr_pool_accept(p, b, (uint16_t)x, y))
ON_WORD(lend, "II", pr_pool_lend(p, b, (uint16_t)x))
ON_WORD(unlend, "II", pr_pool_unlend(p, b, (uint16_t)x))
ON_WORD(to_kernel, "III", pr_pool_to_kernel(p, b, (uint16_t)x, y))
ON_WORD(from_kernel, "III", pr_pool_from_kernel(p, b, (uint16_t)x, y))

/* After a death: method(whose, ...) -> how many went home. */
#define RECLAIM(name, format, call)                                                                                    \
    static PyObject *pool_reclaim_##name(PyObject *o, PyObject *args)                                                  \
    {                                                                                                                  \
        struct pr_pool *p = pool_of(o);                                                                                \
        unsigned x, y;                                                                                                 \
        return PyArg_ParseTuple(args, format, &x, &y) ? PyLong_FromUnsignedLong(call) : NULL;                          \
    }
RECLAIM(process, "I", pr_pool_reclaim_process(p, (uint16_t)x))
RECLAIM(app, "I", pr_pool_reclaim_app(p, (uint16_t)x))
RECLAIM(socket, "II", pr_pool_reclaim_socket(p, (uint16_t)x, y))

/* word(b) -> (state, owner, generation, aux) */
static PyObject *pool_word(PyObject *o, PyObject *index)
{
    unsigned long b = PyLong_AsUnsignedLong(index);
    if (PyErr_Occurred())
        return NULL;
    if (b >= pool_of(o)->n)
        return PyErr_Format(PyExc_IndexError, "buffer %lu of %u", b, pool_of(o)->n);
    uint64_t w = pr_pool_look(pool_of(o), (uint32_t)b);
    return Py_BuildValue("(IIII)", pr_word_state(w), pr_word_owner(w), pr_word_gen(w), pr_word_aux(w));
}

static PyObject *pool_count(PyObject *o, PyObject *unused)
{
    (void)unused;
    uint64_t c[PR_N_OWNER_STATES + 1];
    pr_pool_count(pool_of(o), c);
    PyObject *t = PyTuple_New(PR_N_OWNER_STATES + 1);
    for (int i = 0; t && i <= PR_N_OWNER_STATES; i++)
        PyTuple_SET_ITEM(t, i, PyLong_FromUnsignedLongLong(c[i]));
    return t;
}

static PyObject *pool_free(PyObject *o, void *unused)
{
    (void)unused;
    const struct pr_pool *p = pool_of(o);
    unsigned long n = 0;
    for (uint32_t b = p->home; b < p->home_end; b++)
        n += pr_pool_look(p, b) == p->as_free;
    return PyLong_FromUnsignedLong(n);
}

static PyObject *pool_capsule(PyObject *o, void *unused)
{
    (void)unused;
    return PyCapsule_New(pool_of(o), PR_POOL_CAPSULE, NULL); /* the holder keeps the Pool alive beside it */
}

static PyMethodDef pool_methods[] = {
    {"deal", pool_deal, METH_NOARGS, "make the home's buffers FREE that were never dealt"},
    {"rebuild", pool_rebuild, METH_NOARGS, "start the private stack anew from the words"},
    {"take", pool_take, METH_O, "take(uint32 array) -> how many free buffers were written into it"},
    {"give", pool_give, METH_O, "give(uint32 array) -> how many were mine to give"},
    {"owns", pool_owns, METH_VARARGS, "owns(b) -> bool"},
    {"hand_over", pool_hand_over, METH_VARARGS, "hand_over(b, lane, position) -> bool"},
    {"accept", pool_accept, METH_VARARGS, "accept(b, lane, position) -> bool"},
    {"lend", pool_lend, METH_VARARGS, "lend(b, app) -> bool"},
    {"unlend", pool_unlend, METH_VARARGS, "unlend(b, app) -> bool"},
    {"to_kernel", pool_to_kernel, METH_VARARGS, "to_kernel(b, port, socket generation) -> bool"},
    {"from_kernel", pool_from_kernel, METH_VARARGS, "from_kernel(b, port, socket generation) -> bool"},
    {"reclaim_process", pool_reclaim_process, METH_VARARGS, "reclaim_process(dead) -> how many it had in its hands"},
    {"reclaim_app", pool_reclaim_app, METH_VARARGS, "reclaim_app(app) -> how many it was lent"},
    {"reclaim_socket", pool_reclaim_socket, METH_VARARGS, "reclaim_socket(port, generation) -> how many it held"},
    {"word", pool_word, METH_O, "word(b) -> (state, owner, generation, aux)"},
    {"count", pool_count, METH_NOARGS, "buffers in each state, then those in none"},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef pool_members[] = {
    {"n", T_UINT, offsetof(PrPool, p.n), READONLY, "buffers"},
    {"home", T_UINT, offsetof(PrPool, p.home), READONLY, "first buffer of my home"},
    {"home_end", T_UINT, offsetof(PrPool, p.home_end), READONLY, "end of my home"},
    {"stacked", T_UINT, offsetof(PrPool, p.depth), READONLY, "free buffers in the private stack"},
    {"refused", T_ULONGLONG, offsetof(PrPool, p.refused), READONLY, "operations that a word forbade"},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef pool_getset[] = {
    {"free", pool_free, NULL, "free buffers of my home", NULL},
    {"capsule", pool_capsule, NULL, "the pool, for C code of other extensions", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyTypeObject pr_pool_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "pktring.shm._shm.Pool",
    .tp_basicsize = sizeof(PrPool),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_doc = "Pool(words, owner, gen=0, home_size=all): one process's hold on the owner words",
    .tp_new = PyType_GenericNew,
    .tp_init = pool_init,
    .tp_dealloc = pool_dealloc,
    .tp_methods = pool_methods,
    .tp_members = pool_members,
    .tp_getset = pool_getset,
};

int pr_add_pool(PyObject *module)
{
    view_type = (PyTypeObject *)PyObject_GetAttrString(module, "View");
    if (!view_type)
        PyErr_Clear(); /* a module without regions: pools live in memory of the caller's */
    if (PyModule_AddIntMacro(module, PR_RESERVED) < 0 || PyModule_AddIntMacro(module, PR_FREE) < 0 ||
        PyModule_AddIntMacro(module, PR_OWNED) < 0 || PyModule_AddIntMacro(module, PR_INFLIGHT) < 0 ||
        PyModule_AddIntMacro(module, PR_LENT) < 0 || PyModule_AddIntMacro(module, PR_KERNEL) < 0 ||
        PyModule_AddIntMacro(module, PR_FIRST_BUF) < 0)
        return -1;
    return PyModule_AddType(module, &pr_pool_type);
}
