// Random changes of a choice: what is kept, computed again or moved, and when.
#pragma once

#include "clock.hpp"

namespace moving {

class Changes {
public:
    Changes(const Graph& graph, Random& random) : g(graph), random_(random) {}

    // One change of `choice`, whose absences are `all`; false: there is nothing to change in that way.
    bool make(Choice& choice, const vector<Absence>& all) {
        const int kind = random_.below(100);
        if (kind < 10) return drop_trip(choice);
        if (kind < 22) return add_trip(choice, all);
        if (kind < 40) return drop_trip(choice) && add_trip(choice, all);
        if (kind < 55) return shift(choice);
        if (kind < 70) return compute_again(choice, all);
        if (kind < 82) return drop_repeat(choice, false);
        if (kind < 92) return drop_repeat(choice, true);
        return move_repeat(choice);
    }

    // Something that is alive at `position` goes for a while: of a few, the one that fits `excess` best.
    bool relieve(Choice& choice, const vector<Absence>& all, int position, Bytes excess) {
        around_.clear();
        for (const Absence& a : all)
            if (a.last < position && position < a.back && choice.find(a.value, a.back) < 0) around_.push_back(a);
        if (around_.empty()) return false;
        const auto lacks = [&](const Absence& a) { return g.size[a.value] >= excess ? g.size[a.value] - excess : 2 * (excess - g.size[a.value]); };
        Absence chosen = a_of(around_);
        for (int k = 1; k < FEW; ++k) {
            const Absence other = a_of(around_);
            if (lacks(other) < lacks(chosen)) chosen = other;
        }
        if (random_.below(4) == 0 && before(choice, chosen.value, chosen.back)) return true;
        choice.add({chosen.value, chosen.back});
        return true;
    }

private:
    const Absence& a_of(const vector<Absence>& some) { return some[random_.below(static_cast<int>(some.size()))]; }

    bool drop_trip(Choice& choice) {
        if (choice.trips.empty()) return false;
        choice.drop(random_.below(static_cast<int>(choice.trips.size())));
        return true;
    }

    bool add_trip(Choice& choice, const vector<Absence>& all) {
        if (all.empty()) return false;
        Absence a = a_of(all);
        const Absence other = a_of(all);
        if (g.size[other.value] > g.size[a.value]) a = other;
        choice.add({a.value, a.back});
        return true;
    }

    bool shift(Choice& choice) {
        if (choice.trips.empty()) return false;
        Trip& trip = choice.trips[random_.below(static_cast<int>(choice.trips.size()))];
        if (random_.below(3) == 0) trip.early = !trip.early;
        else trip.lead = std::max(0, trip.lead + (random_.below(2) ? 1 : -1) * (1 << random_.below(7)));
        return true;
    }

    bool compute_again(Choice& choice, const vector<Absence>& all) {
        if (!choice.trips.empty() && random_.below(2)) {
            const Trip trip = choice.trips[random_.below(static_cast<int>(choice.trips.size()))];
            return before(choice, trip.value, trip.back);
        }
        if (all.empty()) return false;
        const Absence a = a_of(all);
        return before(choice, a.value, a.back);
    }

    // `value` is made again right before it is read at `back`, with some of what is gone by then.
    bool before(Choice& choice, int value, int back) {
        again_.clear();
        if (!chain(choice, value, back, DEPTH)) return false;
        const int index = choice.find(value, back);
        if (index >= 0) choice.drop(index);
        int place = choice.place(g, back);
        for (int op : again_) choice.insert(place++, op);
        return true;
    }

    bool chain(const Choice& choice, int value, int position, int depth) {
        const int producer = g.producer[value];
        if (!g.recomputable[producer]) return false;
        if (std::find(again_.begin(), again_.end(), producer) != again_.end()) return true;
        if (depth > 0)
            for (auto v = g.inputs.begin(producer); v != g.inputs.end(producer); ++v)
                if (random_.below(2) && !held(choice, *v, position)) chain(choice, *v, position, depth - 1);
        again_.push_back(producer);
        return true;
    }

    // Whether an instance of v is used both before and behind the position, and on the device in between.
    bool held(const Choice& choice, int v, int position) const {
        const int reader = choice.next_reader(g, v, position);
        return reader >= 0 && choice.find(v, reader) < 0;
    }

    int a_repeat(const Choice& choice) {
        first_.assign(g.ops, 0);
        int found = 0, chosen = -1;
        for (int p = 0; p < choice.size(); ++p)
            if (first_[choice.sequence[p]]++ && random_.below(++found) == 0) chosen = p;
        return chosen;
    }

    // Something is not made again, but kept, or fetched.
    bool drop_repeat(Choice& choice, bool fetch) {
        const int position = a_repeat(choice);
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

    // A repeat comes sooner or later, between what it reads and what reads it.
    bool move_repeat(Choice& choice) {
        const int position = a_repeat(choice);
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
        vector<Trip> own;
        for (auto v = g.inputs.begin(op); v != g.inputs.end(op); ++v) {
            const int index = choice.find(*v, position);
            if (index >= 0) own.push_back(choice.trips[index]);
        }
        choice.remove(g, position);
        to = choice.place(g, to);
        choice.insert(to, op);
        for (Trip& trip : own) {
            trip.back = to;
            choice.add(trip);
        }
        return true;
    }

    static constexpr int FEW = 3;
    static constexpr int DEPTH = 4;  // of ops that are made again for another one

    const Graph& g;
    Random& random_;
    vector<int> again_;
    vector<Absence> around_;
    vector<char> first_;
};

}  // namespace moving
