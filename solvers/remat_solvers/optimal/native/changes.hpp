// Random changes of a choice: which values are kept, recomputed or swapped, and when.
#pragma once

#include "clock.hpp"

namespace offload {

class Changes {
public:
    Changes(const Graph& graph, Random& random) : g(graph), random_(random) {}

    // One change of `choice`, which has these idle intervals; false: the change drawn does not apply.
    bool make(Choice& choice, const vector<IdleInterval>& idle_intervals) {
        const int kind = random_.below(100);
        if (kind < 10) return drop_swap(choice);
        if (kind < 22) return add_swap(choice, idle_intervals);
        if (kind < 40) return drop_swap(choice) && add_swap(choice, idle_intervals);
        if (kind < 55) return shift_copies(choice);
        if (kind < 70) return recompute(choice, idle_intervals);
        if (kind < 82) return drop_repeat(choice, false);
        if (kind < 92) return drop_repeat(choice, true);
        return move_repeat(choice);
    }

    // Takes a value that is idle at `position` off the device: of a few random ones, the one whose size fits `excess` best.
    bool make_room(Choice& choice, const vector<IdleInterval>& idle_intervals, int position, Bytes excess) {
        candidates_.clear();
        for (const IdleInterval& a : idle_intervals)
            if (a.last < position && position < a.back && choice.find(a.value, a.back) < 0) candidates_.push_back(a);
        if (candidates_.empty()) return false;
        const auto misfit = [&](const IdleInterval& a) {
            const Bytes size = g.size[a.value];
            return size >= excess ? size - excess : 2 * (excess - size);
        };
        IdleInterval chosen = random_of(candidates_);
        for (int k = 1; k < CANDIDATES; ++k) {
            const IdleInterval other = random_of(candidates_);
            if (misfit(other) < misfit(chosen)) chosen = other;
        }
        if (random_.below(4) == 0 && recompute_before(choice, chosen.value, chosen.back)) return true;
        choice.add({chosen.value, chosen.back});
        return true;
    }

private:
    const IdleInterval& random_of(const vector<IdleInterval>& intervals) {
        return intervals[random_.below(static_cast<int>(intervals.size()))];
    }

    bool drop_swap(Choice& choice) {
        if (choice.swaps.empty()) return false;
        choice.drop(random_.below(static_cast<int>(choice.swaps.size())));
        return true;
    }

    bool add_swap(Choice& choice, const vector<IdleInterval>& idle_intervals) {
        if (idle_intervals.empty()) return false;
        IdleInterval a = random_of(idle_intervals);
        const IdleInterval other = random_of(idle_intervals);
        if (g.size[other.value] > g.size[a.value]) a = other;
        choice.add({a.value, a.back});
        return true;
    }

    bool shift_copies(Choice& choice) {
        if (choice.swaps.empty()) return false;
        Swap& swap = choice.swaps[random_.below(static_cast<int>(choice.swaps.size()))];
        if (random_.below(3) == 0) swap.early = !swap.early;
        else swap.lead = std::max(0, swap.lead + (random_.below(2) ? 1 : -1) * (1 << random_.below(7)));
        return true;
    }

    bool recompute(Choice& choice, const vector<IdleInterval>& idle_intervals) {
        if (!choice.swaps.empty() && random_.below(2)) {
            const Swap swap = choice.swaps[random_.below(static_cast<int>(choice.swaps.size()))];
            return recompute_before(choice, swap.value, swap.back);
        }
        if (idle_intervals.empty()) return false;
        const IdleInterval a = random_of(idle_intervals);
        return recompute_before(choice, a.value, a.back);
    }

    // Recomputes `value` right before it is read at `back`, with some of the inputs that are not resident by then.
    bool recompute_before(Choice& choice, int value, int back) {
        recomputed_.clear();
        if (!collect(choice, value, back, DEPTH)) return false;
        const int index = choice.find(value, back);
        if (index >= 0) choice.drop(index);
        int place = choice.place(g, back);
        for (int op : recomputed_) choice.insert(place++, op);
        return true;
    }

    bool collect(const Choice& choice, int value, int position, int depth) {
        const int producer = g.producer[value];
        if (!g.recomputable[producer]) return false;
        if (std::find(recomputed_.begin(), recomputed_.end(), producer) != recomputed_.end()) return true;
        if (depth > 0)
            for (auto v = g.inputs.begin(producer); v != g.inputs.end(producer); ++v)
                if (random_.below(2) && !stays_resident(choice, *v, position)) collect(choice, *v, position, depth - 1);
        recomputed_.push_back(producer);
        return true;
    }

    // Whether an instance of v is used both before and behind the position, and on the device in between.
    bool stays_resident(const Choice& choice, int v, int position) const {
        const int reader = choice.next_reader(g, v, position);
        return reader >= 0 && choice.find(v, reader) < 0;
    }

    int random_repeat(const Choice& choice) {
        first_.assign(g.ops, 0);
        int found = 0, chosen = -1;
        for (int p = 0; p < choice.size(); ++p)
            if (first_[choice.sequence[p]]++ && random_.below(++found) == 0) chosen = p;
        return chosen;
    }

    // Removes a repeat; its outputs are kept from before, or fetched.
    bool drop_repeat(Choice& choice, bool fetch) {
        const int position = random_repeat(choice);
        if (position < 0) return false;
        if (fetch) {
            const int op = choice.sequence[position];
            for (auto v = g.outputs.begin(op); v != g.outputs.end(op); ++v) {
                const int reader = choice.next_reader(g, *v, position + 1);
                if (reader >= 0) choice.add({*v, reader});
            }
        }
        choice.remove(g, position);
        return true;
    }

    // Moves a repeat to an earlier or later position, between the producers of its inputs and the readers of its outputs.
    bool move_repeat(Choice& choice) {
        const int position = random_repeat(choice);
        if (position < 0) return false;
        const int op = choice.sequence[position];
        const auto reads = [&](int reader, int value) {
            return std::find(g.inputs.begin(reader), g.inputs.end(reader), value) != g.inputs.end(reader);
        };
        int low = position, high = position + 1;
        const int reach = 1 << random_.below(8);
        while (low > 0 && position - low < reach && choice.sequence[low - 1] != op) {
            const int other = choice.sequence[low - 1];
            bool needed = false;
            for (auto v = g.inputs.begin(op); v != g.inputs.end(op); ++v) needed |= g.producer[*v] == other;
            if (needed) break;
            --low;
        }
        while (high < choice.size() && high - position < reach && choice.sequence[high] != op) {
            const int other = choice.sequence[high];
            bool needed = false;
            for (auto v = g.outputs.begin(op); v != g.outputs.end(op); ++v) needed |= reads(other, *v);
            if (needed) break;
            ++high;
        }
        int to = low + random_.below(high - low);
        if (to == position) return false;
        if (to == choice.boundary && choice.sequence[to] == g.tangents) return false;
        vector<Swap> moved_swaps;
        for (auto v = g.inputs.begin(op); v != g.inputs.end(op); ++v) {
            const int index = choice.find(*v, position);
            if (index >= 0) moved_swaps.push_back(choice.swaps[index]);
        }
        choice.remove(g, position);
        to = choice.place(g, to);
        choice.insert(to, op);
        for (Swap& swap : moved_swaps) {
            swap.back = to;
            choice.add(swap);
        }
        return true;
    }

    static constexpr int CANDIDATES = 3;
    static constexpr int DEPTH = 4;  // of ops that are recomputed for another one

    const Graph& g;
    Random& random_;
    vector<int> recomputed_;
    vector<IdleInterval> candidates_;
    vector<char> first_;
};

}  // namespace moving
