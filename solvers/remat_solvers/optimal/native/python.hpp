// Reads the arguments from Python: numbers, rows, and the problem's graph as local_search/annealing.py flattens it.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "graph.hpp"

namespace search {

// The integers of a list; false with an exception set where an item is no integer.
template <class Number>
bool read_numbers(PyObject* list, vector<Number>& out) {
    const Py_ssize_t count = PyList_Size(list);
    if (count < 0) return false;
    out.resize(count);
    for (Py_ssize_t i = 0; i < count; ++i) {
        const long long number = PyLong_AsLongLong(PyList_GetItem(list, i));
        if (number == -1 && PyErr_Occurred()) return false;
        out[i] = static_cast<Number>(number);
    }
    return true;
}

// A list of lists of integers.
inline bool read_rows(PyObject* lists, Rows& out) {
    const Py_ssize_t count = PyList_Size(lists);
    if (count < 0) return false;
    vector<int> row;
    for (Py_ssize_t i = 0; i < count; ++i) {
        if (!read_numbers(PyList_GetItem(lists, i), row)) return false;
        out.items.insert(out.items.end(), row.begin(), row.end());
        out.close_row();
    }
    return true;
}

inline void complete(Graph& g) {
    g.values = static_cast<int>(g.size.size());
    g.producer.assign(g.values, 0), g.slot.assign(g.values, 0);
    vector<vector<int>> readers(g.values);
    for (int u = 0; u < g.all_ops(); ++u) {
        for (auto v = g.inputs.begin(u); v != g.inputs.end(u); ++v) readers[*v].push_back(u);
        for (auto v = g.outputs.begin(u); v != g.outputs.end(u); ++v) {
            g.producer[*v] = u;
            g.slot[*v] = static_cast<int>(v - g.outputs.begin(u));
        }
    }
    for (const auto& row : readers) {
        g.consumers.items.insert(g.consumers.items.end(), row.begin(), row.end());
        g.consumers.close_row();
    }
}

// (base, tangents, inputs, outputs, size, forward_result, time, top, recomputable, backward, effect)
inline bool read_graph(PyObject* tuple, Graph& g) {
    long long base;
    PyObject *inputs, *outputs, *size, *forward_result, *time, *top, *recomputable, *backward, *effect;
    if (!PyArg_ParseTuple(tuple, "LiOOOOOOOOO", &base, &g.tangents, &inputs, &outputs, &size, &forward_result, &time, &top,
                          &recomputable, &backward, &effect))
        return false;
    g.base = base;
    if (!read_rows(inputs, g.inputs) || !read_rows(outputs, g.outputs) || !read_numbers(size, g.size) ||
        !read_numbers(forward_result, g.forward_result) || !read_numbers(time, g.time) || !read_numbers(top, g.top) ||
        !read_numbers(recomputable, g.recomputable) || !read_numbers(backward, g.backward) || !read_numbers(effect, g.effect))
        return false;
    g.ops = static_cast<int>(g.time.size()) - 3;
    complete(g);
    return true;
}

}  // namespace search
