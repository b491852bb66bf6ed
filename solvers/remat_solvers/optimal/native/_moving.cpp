// The Python binding of the search with a link: one type, Mover, over the limited API, so that one build serves every Python 3.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <memory>
#include <new>

#include "mover.hpp"
#include "python.hpp"

namespace {

using offload::Action;
using offload::Choice;
using offload::Link;
using offload::Mover;
using offload::Swap;
using search::Graph;
using search::read_graph;
using search::read_numbers;
using std::vector;

struct Object {
    PyObject_HEAD
    Mover* mover;
};

Mover& mover_of(PyObject* self) { return *reinterpret_cast<Object*>(self)->mover; }

PyObject* mover_new(PyTypeObject* type, PyObject* args, PyObject*) {
    PyObject *graph, *to_host, *to_device, *moves;
    long long budget, host, seed;
    if (!PyArg_ParseTuple(args, "OOOOLLL", &graph, &to_host, &to_device, &moves, &host, &budget, &seed)) return nullptr;
    try {
        Graph g;
        Link link;
        link.host = host;
        if (!read_graph(graph, g) || !read_numbers(to_host, link.to_host) || !read_numbers(to_device, link.to_device) ||
            !read_numbers(moves, link.moves))
            return nullptr;
        auto allocate = reinterpret_cast<allocfunc>(PyType_GetSlot(type, Py_tp_alloc));
        auto* self = reinterpret_cast<Object*>(allocate(type, 0));
        if (self == nullptr) return nullptr;
        self->mover = new Mover(std::move(g), std::move(link), budget, static_cast<std::uint64_t>(seed));
        return reinterpret_cast<PyObject*>(self);
    } catch (const std::bad_alloc&) {
        return PyErr_NoMemory();
    }
}

void mover_dealloc(PyObject* self) {
    delete reinterpret_cast<Object*>(self)->mover;
    PyTypeObject* type = Py_TYPE(self);
    reinterpret_cast<freefunc>(PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

PyObject* mover_offer(PyObject* self, PyObject* args) {
    PyObject *sequence, *values, *backs, *leads, *early;
    int boundary;
    if (!PyArg_ParseTuple(args, "OiOOOO", &sequence, &boundary, &values, &backs, &leads, &early)) return nullptr;
    try {
        Choice choice;
        vector<int> value, back, lead, soon;
        if (!read_numbers(sequence, choice.sequence) || !read_numbers(values, value) || !read_numbers(backs, back) ||
            !read_numbers(leads, lead) || !read_numbers(early, soon))
            return nullptr;
        choice.boundary = boundary;
        for (std::size_t i = 0; i < value.size(); ++i) choice.add({value[i], back[i], lead[i], soon[i] != 0});
        return PyBool_FromLong(mover_of(self).offer(std::move(choice)));
    } catch (const std::bad_alloc&) {
        return PyErr_NoMemory();
    }
}

PyObject* mover_run(PyObject* self, PyObject* args) {
    long long moves, made = 0;
    double seconds, hot, cold;
    if (!PyArg_ParseTuple(args, "Lddd", &moves, &seconds, &hot, &cold)) return nullptr;
    bool memory = true;
    Py_BEGIN_ALLOW_THREADS
    try {
        made = mover_of(self).run(moves, seconds, hot, cold);
    } catch (const std::bad_alloc&) {
        memory = false;
    }
    Py_END_ALLOW_THREADS
    return memory ? PyLong_FromLongLong(made) : PyErr_NoMemory();
}

template <class Rows, class Item>
PyObject* list_of(const Rows& rows, Item item) {
    PyObject* list = PyList_New(static_cast<Py_ssize_t>(rows.size()));
    if (list == nullptr) return nullptr;
    for (std::size_t i = 0; i < rows.size(); ++i) PyList_SetItem(list, static_cast<Py_ssize_t>(i), item(rows[i]));
    return list;
}

PyObject* mover_actions(PyObject* self, PyObject*) {
    if (!mover_of(self).started()) Py_RETURN_NONE;
    return list_of(mover_of(self).actions(), [](const Action& a) { return Py_BuildValue("ii", a.kind, a.index); });
}

PyObject* mover_best(PyObject* self, PyObject*) {
    const Mover& mover = mover_of(self);
    if (!mover.started()) Py_RETURN_NONE;
    const auto& best = mover.evaluation();
    return Py_BuildValue("LLL", static_cast<long long>(best.time), static_cast<long long>(best.moved),
                         static_cast<long long>(best.peak));
}

PyObject* mover_choice(PyObject* self, PyObject*) {
    const Choice& choice = mover_of(self).choice();
    PyObject* sequence = list_of(choice.sequence, [](int op) { return PyLong_FromLong(op); });
    PyObject* swaps = list_of(
        choice.swaps, [](const Swap& s) { return Py_BuildValue("iiii", s.value, s.back, s.lead, s.early); });
    return Py_BuildValue("NN", sequence, swaps);
}

PyObject* mover_restart(PyObject* self, PyObject*) {
    mover_of(self).restart();
    Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"offer", mover_offer, METH_VARARGS, "offer(sequence, boundary, values, backs, leads, early) -> whether a plan fits"},
    {"run", mover_run, METH_VARARGS, "run(moves, seconds, hot, cold) -> moves made; releases the GIL"},
    {"restart", mover_restart, METH_NOARGS, "continue from the best plan"},
    {"best", mover_best, METH_NOARGS, "(time, moved bytes, peak) of the best, or None"},
    {"choice", mover_choice, METH_NOARGS, "(sequence, [(value, back, lead, early)]) of the best"},
    {"actions", mover_actions, METH_NOARGS, "[(kind, index)] of the best's plan, or None"},
    {nullptr, nullptr, 0, nullptr},
};

PyType_Slot slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(mover_new)},
    {Py_tp_dealloc, reinterpret_cast<void*>(mover_dealloc)},
    {Py_tp_methods, methods},
    {0, nullptr},
};
PyType_Spec spec = {"remat_solvers.optimal.native._moving.Mover", sizeof(Object), 0, Py_TPFLAGS_DEFAULT, slots};

int execute(PyObject* module) {
    PyObject* type = PyType_FromSpec(&spec);
    if (type == nullptr) return -1;
    const int result = PyModule_AddObjectRef(module, "Mover", type);
    Py_DECREF(type);
    return result;
}

PyModuleDef_Slot module_slots[] = {{Py_mod_exec, reinterpret_cast<void*>(execute)}, {0, nullptr}};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "_moving", "Simulated annealing over recomputations and offloads.", 0, nullptr, module_slots,
                      nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__moving(void) { return PyModuleDef_Init(&module); }
