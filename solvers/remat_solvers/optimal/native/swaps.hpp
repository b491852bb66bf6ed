// The choice that determines a plan with a link: a sequence of op occurrences, and the swaps of values to the host.
//
// A swap takes a value off the device between two uses of an instance: the use at position `back`, and the last one before
// it. Where `back` is the length of the sequence, a result is fetched for the end. All else follows (clock.hpp).
#pragma once

#include <algorithm>

#include "graph.hpp"

namespace offload {

using search::Bytes;
using search::Graph;
using search::Random;
using std::vector;
using Time = std::int64_t;

struct Link {
    vector<Time> to_host, to_device;  // per value: the time of a copy, ns
    Bytes host = 0;                   // limit on the bytes of distinct copied values
    vector<char> moves;               // per value: whether it may be moved
};

struct Swap {
    int value, back;
    int lead = 0;        // positions by which the fetch may start before the latest one that causes no wait
    bool early = false;  // the copy to the host starts when the instance is computed, not after its last use
};

inline bool operator<(const Swap& a, const Swap& b) { return a.back != b.back ? a.back < b.back : a.value < b.value; }

// The positions between two uses of an instance, which is alive in between.
struct IdleInterval {
    int value, last, back;
};

struct Choice {
    vector<int> sequence;
    vector<Swap> swaps;  // by position, then value
    int boundary = 0;    // occurrences of the forward call; the tangents, if there are any, are next

    int size() const { return static_cast<int>(sequence.size()); }

    int find(int value, int back) const {
        const auto at = std::lower_bound(swaps.begin(), swaps.end(), Swap{value, back});
        return at != swaps.end() && at->value == value && at->back == back ? static_cast<int>(at - swaps.begin()) : -1;
    }
    void add(const Swap& swap) {
        const auto at = std::lower_bound(swaps.begin(), swaps.end(), swap);
        if (at == swaps.end() || swap < *at) swaps.insert(at, swap);
    }
    void drop(int index) { swaps.erase(swaps.begin() + index); }

    // The position of an occurrence inserted before `position`: no occurrence is between the boundary and the tangents.
    int place(const Graph& g, int position) const {
        const bool tangents = position == boundary && position < size() && sequence[position] == g.tangents;
        return position + tangents;
    }

    void insert(int position, int op) {
        sequence.insert(sequence.begin() + position, op);
        for (Swap& swap : swaps) swap.back += swap.back >= position;
        boundary += position < boundary;
    }

    // Removes an occurrence; a value that was fetched for it is fetched for the next reader.
    void remove(const Graph& g, int position) {
        const int op = sequence[position];
        vector<Swap> postponed;
        for (auto v = g.inputs.begin(op); v != g.inputs.end(op); ++v) {
            const int index = find(*v, position);
            if (index < 0) continue;
            Swap swap = swaps[index];
            drop(index);
            swap.back = next_reader(g, *v, position + 1);
            if (swap.back >= 0) postponed.push_back(swap);
        }
        for (const Swap& swap : postponed) add(swap);
        sequence.erase(sequence.begin() + position);
        for (Swap& swap : swaps) swap.back -= swap.back > position;
        boundary -= position < boundary;
    }

    // The next reader, from `position` on, of the instance of v that is alive at `position`; the length stands for the end;
    // -1: there is none.
    int next_reader(const Graph& g, int v, int position) const {
        for (int p = position; p < size(); ++p) {
            const int op = sequence[p];
            if (op == g.producer[v]) return -1;
            if (std::find(g.inputs.begin(op), g.inputs.end(op), v) != g.inputs.end(op)) return p;
        }
        const int end = g.end();
        return std::find(g.inputs.begin(end), g.inputs.end(end), v) != g.inputs.end(end) ? size() : -1;
    }
};

}  // namespace moving
