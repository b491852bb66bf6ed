// A sequence of op occurrences with the lifetime of every instance of every value, changed one occurrence at a time.
//
// The semantics are those of schedule.py and simulate.py. An occurrence reads the latest instance of each input, and
// an instance lives from its computation s to its last reader e. While an occurrence runs, its outputs and workspace
// (`top`) are resident beside the values that are held; so the bytes during an occurrence are top + the sizes of all instances with
// s before it and e not before it, and an instance adds its size to the range (s, e]. The bytes held between two
// neighbours are those during the later one less its top. Results are read by the end. An instance of a forward
// result behind the boundary is a fresh copy that vanishes: all later readers read the last one before the boundary.
//
// So inserting or removing an occurrence of u changes one range per output of u (the instance before it ends sooner or
// later) and at most one per input (its instance is read longer). Ends are found through the occurrences of consumers.
// `undo` takes changes back in reverse order.
#pragma once

#include <utility>

#include "profile.hpp"

namespace search {

class State {
public:
    explicit State(const Graph& graph) : g(graph), of_(graph.all_ops()), spare_(graph.all_ops()) {}

    const Graph& g;
    Profile profile;

    // Replaces the state by `sequence`, which must be valid, tangents first; `boundary` occurrences lie before it.
    void build(const vector<int>& sequence, std::size_t boundary) {
        for (int u = 0; u < g.all_ops(); ++u) of_[u].clear(), spare_[u].clear();
        op_.clear(), ends_.clear(), first_end_.clear(), index_.clear(), repeats_.clear(), undo_.clear();
        time_ = 0;
        profile.clear();
        append(g.begin());
        for (std::size_t i = 0; i < sequence.size(); ++i) {
            if (i == boundary) append(g.boundary());
            append(sequence[i]);
        }
        if (boundary >= sequence.size()) append(g.boundary());
        append(g.end());
        // The profile of every occurrence is its top and the instances alive during it.
        begin_ = of_[g.begin()][0], boundary_ = of_[g.boundary()][0], end_ = of_[g.end()][0];
        vector<int> latest(g.values, -1), last(g.values, -1);
        const int count = static_cast<int>(op_.size());
        vector<Bytes> change(count + 1, 0);
        auto close = [&](int v) {
            if (latest[v] < 0) return;
            ends_[first_end_[latest[v]] + g.slot[v]] = last[v];
            change[latest[v] + 1] += g.size[v];
            change[last[v] + 1] -= g.size[v];
        };
        for (int x = 0; x < count; ++x) {  // numbers are positions while building
            const int u = op_[x];
            for (auto v = g.inputs.begin(u); v != g.inputs.end(u); ++v) last[*v] = x;
            for (auto v = g.outputs.begin(u); v != g.outputs.end(u); ++v) {
                if (g.forward_result[*v] && x > boundary_) {
                    ends_[first_end_[x] + g.slot[*v]] = x;
                    continue;
                }
                close(*v);
                latest[*v] = last[*v] = x;
            }
        }
        for (int v = 0; v < g.values; ++v) close(v);
        Bytes held = g.base;
        for (int x = 0; x < count; ++x) {
            held += change[x];
            profile.append(x, held + g.top[op_[x]]);
        }
        profile.finish();
    }

    int op(int x) const { return op_[x]; }
    const vector<int>& of(int u) const { return of_[u]; }
    const vector<int>& repeats() const { return repeats_; }
    std::int64_t time() const { return time_; }
    bool repeated(int x) const { return index_[x] >= 0; }
    int begin() const { return begin_; }
    int boundary() const { return boundary_; }
    int end() const { return end_; }
    bool present(int x) const { return index_[x] >= FIRST; }
    bool before(int a, int b) const { return profile.before(a, b); }

    vector<int> sequence() const {
        vector<int> result;
        profile.for_each([&](int x) {
            if (op_[x] < g.ops) result.push_back(op_[x]);
        });
        return result;
    }

    // The last occurrence of u before `key`; -1: none.
    int latest(int u, int key) const {
        const vector<int>& all = of_[u];
        int high = static_cast<int>(all.size());
        if (high > 8) {
            int low = 0;
            while (low < high) {
                const int middle = (low + high) / 2;
                if (profile.key(all[middle]) < key) low = middle + 1;
                else high = middle;
            }
        } else {
            while (high > 0 && profile.key(all[high - 1]) >= key) --high;
        }
        return high ? all[high - 1] : -1;
    }
    // The first occurrence of u behind `key`; -1: none.
    int earliest(int u, int key) const {
        for (int x : of_[u])
            if (profile.key(x) > key) return x;
        return -1;
    }

    // The occurrence that computed the instance of v which a reader at `key` reads; -1: none.
    int source(int v, int key) const {
        if (g.forward_result[v]) key = std::min(key, profile.key(boundary_));
        return latest(g.producer[v], key);
    }
    int end_of(int v, int source) const { return ends_[first_end_[source] + g.slot[v]]; }

    // The next reader of v behind `key`; -1: none.
    int next_reader(int v, int key) const {
        int best = -1, best_key = 0;
        for (auto c = g.consumers.begin(v); c != g.consumers.end(v); ++c) {
            const int x = earliest(*c, key);
            if (x >= 0 && (best < 0 || profile.key(x) < best_key)) best = x, best_key = profile.key(x);
        }
        return best;
    }

    // A repeat whose outputs nobody reads.
    bool useless(int x) const {
        const int u = op_[x];
        if (u >= g.ops || of_[u][0] == x) return false;
        for (int j = 0; j < g.outputs.size(u); ++j)
            if (ends_[first_end_[x] + j] != x) return false;
        return true;
    }

    int insert_after(int place, int u) {
        const int x = make(u);
        put(place, x);
        undo_.push_back({x, -1});
        return x;
    }
    void remove(int x) {
        undo_.push_back({x, profile.previous(x)});
        take(x);
    }
    // Moves any occurrence behind another one. A first computation must stay before its readers and its repeats.
    void move_after(int place, int x) {
        remove(x);
        put(place, x);
        undo_.push_back({x, -1});
    }

    void undo() {
        while (!undo_.empty()) {
            const Change change = undo_.back();
            undo_.pop_back();
            if (change.place < 0) {
                take(change.occurrence);
                taken_.push_back(change.occurrence);
            } else {
                put(change.place, change.occurrence);
            }
        }
        recycle();
    }
    void commit() {
        for (const Change& change : undo_) taken_.push_back(change.occurrence);
        undo_.clear();
        recycle();
    }

private:
    struct Change {
        int occurrence;
        int place;  // the occurrence before it when it was removed; -1: it was inserted
    };

    int make(int u) {
        if (!spare_[u].empty()) {
            const int x = spare_[u].back();
            spare_[u].pop_back();
            return x;
        }
        const int x = static_cast<int>(op_.size());
        op_.push_back(u);
        first_end_.push_back(static_cast<int>(ends_.size()));
        ends_.resize(ends_.size() + g.outputs.size(u), x);
        index_.push_back(OUT);
        profile.reserve(x);
        return x;
    }

    void append(int u) {
        const int x = make(u);
        of_[u].push_back(x);
        enter(x, static_cast<int>(of_[u].size()) - 1);
    }

    // Numbers of occurrences that are not in the sequence any more can be used again.
    void recycle() {
        for (int x : taken_) {
            if (index_[x] != OUT) continue;
            index_[x] = SPARE;
            spare_[op_[x]].push_back(x);
        }
        taken_.clear();
    }

    // Records an occurrence as the rank-th of its op.
    void enter(int x, int rank) {
        time_ += g.time[op_[x]];
        index_[x] = FIRST;
        if (rank > 0) {
            index_[x] = static_cast<int>(repeats_.size());
            repeats_.push_back(x);
        }
    }
    void leave(int x) {
        time_ -= g.time[op_[x]];
        if (index_[x] >= 0) {
            const int moved = repeats_.back();
            repeats_[index_[x]] = moved;
            index_[moved] = index_[x];
            repeats_.pop_back();
        }
        index_[x] = OUT;
    }

    // The last reader, before `key`, of the instance of v that `source` computed; or `source` itself.
    int last_reader(int v, int source, int key) const {
        int best = source, best_key = profile.key(source);
        for (auto c = g.consumers.begin(v); c != g.consumers.end(v); ++c) {
            const int x = latest(*c, key);
            if (x >= 0 && profile.key(x) > best_key) best = x, best_key = profile.key(x);
        }
        return best;
    }

    bool vanishes(int v, int x) const { return g.forward_result[v] && before(boundary_, x); }

    void put(int place, int x) {
        const int u = op_[x], follower = profile.next(place);
        profile.insert_after(place, x, profile.bytes(follower) - g.top[op_[follower]] + g.top[u]);
        vector<int>& all = of_[u];
        const int key = profile.key(x);
        int rank = static_cast<int>(all.size());
        while (rank > 0 && profile.key(all[rank - 1]) > key) --rank;
        int* ends = ends_.data() + first_end_[x];
        for (auto v = g.outputs.begin(u); v != g.outputs.end(u); ++v, ++ends) {
            if (vanishes(*v, x)) {
                *ends = x;
            } else if (rank == 0) {  // a first computation that moves; its readers do not
                if (*ends != x) profile.add(x, *ends, g.size[*v]);
            } else {
                int& end = ends_[first_end_[all[rank - 1]] + g.slot[*v]];
                if (profile.key(end) > key) {
                    *ends = end;
                    end = last_reader(*v, all[rank - 1], key);
                    profile.add(end, x, -g.size[*v]);
                } else {
                    *ends = x;
                }
            }
        }
        all.insert(all.begin() + rank, x);
        for (auto v = g.inputs.begin(u); v != g.inputs.end(u); ++v) {
            int& end = ends_[first_end_[source(*v, key)] + g.slot[*v]];
            if (profile.key(end) < key) {
                profile.add(end, x, g.size[*v]);
                end = x;
            }
        }
        enter(x, rank);
    }

    void take(int x) {
        const int u = op_[x], key = profile.key(x);
        for (auto v = g.inputs.begin(u); v != g.inputs.end(u); ++v) {
            const int from = source(*v, key);
            int& end = ends_[first_end_[from] + g.slot[*v]];
            if (end == x) {
                end = last_reader(*v, from, key);
                profile.add(end, x, -g.size[*v]);
            }
        }
        vector<int>& all = of_[u];
        int rank = 0;
        while (all[rank] != x) ++rank;
        const int* ends = ends_.data() + first_end_[x];
        for (auto v = g.outputs.begin(u); v != g.outputs.end(u); ++v, ++ends) {
            if (*ends == x) continue;
            if (rank == 0) {
                profile.add(x, *ends, -g.size[*v]);
            } else {
                int& end = ends_[first_end_[all[rank - 1]] + g.slot[*v]];
                profile.add(end, x, g.size[*v]);
                end = *ends;
            }
        }
        all.erase(all.begin() + rank);
        profile.remove(x);
        leave(x);
    }

    static constexpr int FIRST = -1, OUT = -2, SPARE = -3;

    vector<vector<int>> of_;     // per op: its occurrences, in order
    vector<vector<int>> spare_;  // per op: numbers to use again
    vector<int> op_;             // per occurrence
    vector<int> first_end_, ends_;  // per occurrence, where its row is; per output of it, the last reader
    vector<int> index_;          // per occurrence: its place in repeats_, or FIRST, OUT, SPARE
    vector<int> repeats_;        // the occurrences that are not the first of their op
    vector<Change> undo_;
    vector<int> taken_;
    std::int64_t time_ = 0;
    int begin_ = 0, boundary_ = 0, end_ = 0;
};

}  // namespace search
