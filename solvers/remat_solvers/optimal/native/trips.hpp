// What a plan with a link chooses: a sequence of op occurrences, and the trips of values to the host.
//
// A trip takes a value away between the last use of an instance before position `back` and the use there; where `back`
// is the length of the sequence, a result comes back for the end. Everything else follows (clock.hpp).
#pragma once

#include <algorithm>

#include "graph.hpp"

namespace moving {

using search::Bytes;
using search::Graph;
using search::Random;
using std::vector;
using Time = std::int64_t;

struct Link {
    vector<Time> to_host, to_device;  // per value: how long a copy takes
    Bytes host = 0;                   // most bytes of distinct copied values
    vector<char> moves;               // per value: whether it may be moved
};

struct Trip {
    int value, back;
    int lead = 0;        // positions by which the copy back may start before the latest one without a wait
    bool early = false;  // the copy to the host starts when the instance is made, not after its last use
};

inline bool operator<(const Trip& a, const Trip& b) { return a.back != b.back ? a.back < b.back : a.value < b.value; }

// A stretch in which an instance is alive and not used.
struct Absence {
    int value, last, back;
};

struct Choice {
    vector<int> sequence;
    vector<Trip> trips;  // ordered
    int boundary = 0;    // occurrences of the first call; the tangents, if there are any, come next

    int size() const { return static_cast<int>(sequence.size()); }

    int find(int value, int back) const {
        const auto at = std::lower_bound(trips.begin(), trips.end(), Trip{value, back});
        return at != trips.end() && at->value == value && at->back == back ? static_cast<int>(at - trips.begin()) : -1;
    }
    void add(const Trip& trip) {
        const auto at = std::lower_bound(trips.begin(), trips.end(), trip);
        if (at == trips.end() || trip < *at) trips.insert(at, trip);
    }
    void drop(int index) { trips.erase(trips.begin() + index); }

    // Where an occurrence inserted before `position` really goes: nothing comes between the boundary and the tangents.
    int place(const Graph& g, int position) const {
        const bool tangents = position == boundary && position < size() && sequence[position] == g.tangents;
        return position + tangents;
    }

    void insert(int position, int op) {
        sequence.insert(sequence.begin() + position, op);
        for (Trip& trip : trips) trip.back += trip.back >= position;
        boundary += position < boundary;
    }

    // Leaves an occurrence out; what would have come back for it comes back for the next reader.
    void remove(const Graph& g, int position) {
        const int op = sequence[position];
        vector<Trip> moved;
        for (auto v = g.inputs.begin(op); v != g.inputs.end(op); ++v) {
            const int index = find(*v, position);
            if (index < 0) continue;
            Trip trip = trips[index];
            drop(index);
            trip.back = next_reader(g, *v, position + 1);
            if (trip.back >= 0) moved.push_back(trip);
        }
        for (const Trip& trip : moved) add(trip);
        sequence.erase(sequence.begin() + position);
        for (Trip& trip : trips) trip.back -= trip.back > position;
        boundary -= position < boundary;
    }

    // The next reader from `position` on of the instance of v that is alive there, the length for the end; -1: none.
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
