// The Python binding of the search: one type, Engine, over the limited API, so that one build serves every Python 3.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <memory>
#include <new>

#include "anneal.hpp"
#include "python.hpp"

namespace {

using search::Annealer;
using search::Found;
using search::Graph;
using search::read_numbers;
using std::vector;

struct Engine {
    PyObject_HEAD
    Annealer* annealer;
};

PyObject* engine_new(PyTypeObject* type, PyObject* args, PyObject*) {
    PyObject* graph;
    long long budget, seed;
    int free_order;
    if (!PyArg_ParseTuple(args, "OLpL", &graph, &budget, &free_order, &seed)) return nullptr;
    try {
        Graph g;
        if (!search::read_graph(graph, g)) return nullptr;
        auto allocate = reinterpret_cast<allocfunc>(PyType_GetSlot(type, Py_tp_alloc));
        auto* self = reinterpret_cast<Engine*>(allocate(type, 0));
        if (self == nullptr) return nullptr;
        self->annealer = new Annealer(std::move(g), budget, free_order != 0, static_cast<std::uint64_t>(seed));
        return reinterpret_cast<PyObject*>(self);
    } catch (const std::bad_alloc&) {
        return PyErr_NoMemory();
    }
}

void engine_dealloc(PyObject* self) {
    delete reinterpret_cast<Engine*>(self)->annealer;
    PyTypeObject* type = Py_TYPE(self);
    reinterpret_cast<freefunc>(PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

Annealer& annealer_of(PyObject* self) { return *reinterpret_cast<Engine*>(self)->annealer; }

PyObject* engine_offer(PyObject* self, PyObject* args) {
    PyObject* list;
    Py_ssize_t boundary;
    if (!PyArg_ParseTuple(args, "On", &list, &boundary)) return nullptr;
    try {
        vector<int> sequence;
        if (!read_numbers(list, sequence)) return nullptr;
        annealer_of(self).offer(sequence, static_cast<std::size_t>(boundary));
    } catch (const std::bad_alloc&) {
        return PyErr_NoMemory();
    }
    Py_RETURN_NONE;
}

PyObject* engine_run(PyObject* self, PyObject* args) {
    long long moves, made = 0;
    double seconds;
    if (!PyArg_ParseTuple(args, "Ld", &moves, &seconds)) return nullptr;
    bool memory = true;
    Py_BEGIN_ALLOW_THREADS
    try {
        made = annealer_of(self).run(moves, seconds);
    } catch (const std::bad_alloc&) {
        memory = false;
    }
    Py_END_ALLOW_THREADS
    return memory ? PyLong_FromLongLong(made) : PyErr_NoMemory();
}

PyObject* engine_set_budget(PyObject* self, PyObject* args) {
    long long budget;
    if (!PyArg_ParseTuple(args, "L", &budget)) return nullptr;
    annealer_of(self).set_budget(budget);
    Py_RETURN_NONE;
}

PyObject* engine_cool(PyObject* self, PyObject* args) {
    int first, last;
    long long moves;
    double heat;
    if (!PyArg_ParseTuple(args, "iiLd", &first, &last, &moves, &heat)) return nullptr;
    try {
        annealer_of(self).anneal_window(first, last, moves, heat);
    } catch (const std::bad_alloc&) {
        return PyErr_NoMemory();
    }
    Py_RETURN_NONE;
}

PyObject* found(const Found& what) {
    if (what.time < 0) Py_RETURN_NONE;
    PyObject* list = PyList_New(static_cast<Py_ssize_t>(what.sequence.size()));
    if (list == nullptr) return nullptr;
    for (std::size_t i = 0; i < what.sequence.size(); ++i)
        PyList_SetItem(list, static_cast<Py_ssize_t>(i), PyLong_FromLong(what.sequence[i]));
    return Py_BuildValue("NLL", list, static_cast<long long>(what.time), static_cast<long long>(what.peak));
}

PyObject* engine_best(PyObject* self, PyObject*) { return found(annealer_of(self).best()); }
PyObject* engine_smallest(PyObject* self, PyObject*) { return found(annealer_of(self).smallest()); }
PyObject* engine_current(PyObject* self, PyObject*) { return found(annealer_of(self).current()); }
PyObject* engine_done(PyObject* self, PyObject*) { return PyBool_FromLong(annealer_of(self).done()); }

PyMethodDef methods[] = {
    {"offer", engine_offer, METH_VARARGS, "offer(sequence, boundary): continue from here, if nothing better is known"},
    {"run", engine_run, METH_VARARGS, "run(moves, seconds) -> moves made; releases the GIL"},
    {"set_budget", engine_set_budget, METH_VARARGS, "set_budget(bytes)"},
    {"cool", engine_cool, METH_VARARGS,
     "cool(first, last, moves, heat): only between the first computations of two ops"},
    {"best", engine_best, METH_NOARGS, "(sequence, time, peak) of the fastest within the budget, or None"},
    {"smallest", engine_smallest, METH_NOARGS, "(sequence, time, peak) of the smallest peak met, or None"},
    {"current", engine_current, METH_NOARGS, "(sequence, time, peak) of the state, or None"},
    {"done", engine_done, METH_NOARGS, "whether nothing can be gained any more"},
    {nullptr, nullptr, 0, nullptr},
};

PyType_Slot slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(engine_new)},
    {Py_tp_dealloc, reinterpret_cast<void*>(engine_dealloc)},
    {Py_tp_methods, methods},
    {0, nullptr},
};
PyType_Spec spec = {"remat_solvers.optimal.native._search.Engine", sizeof(Engine), 0, Py_TPFLAGS_DEFAULT, slots};

int execute(PyObject* module) {
    PyObject* type = PyType_FromSpec(&spec);
    if (type == nullptr) return -1;
    const int result = PyModule_AddObjectRef(module, "Engine", type);
    Py_DECREF(type);
    return result;
}

PyModuleDef_Slot module_slots[] = {{Py_mod_exec, reinterpret_cast<void*>(execute)}, {0, nullptr}};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "_search", "Simulated annealing over op sequences.", 0, nullptr, module_slots,
                      nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__search(void) { return PyModuleDef_Init(&module); }
