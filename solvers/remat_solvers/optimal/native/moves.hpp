// The moves of the search: each changes a State and leaves it valid; repeats that become useless are removed with it.
#pragma once

#include <cmath>
#include <limits>

#include "state.hpp"

namespace search {

class Moves {
public:
    Moves(State& state, Random& random, bool free_order) : s(state), g(state.g), random_(random), free_order_(free_order) {
        double by_bytes = 0, by_rate = 0, mean = 1;
        for (int u = 0; u < g.ops; ++u) mean += static_cast<double>(g.time[u]) / g.ops;
        for (int v = 0; v < g.values; ++v) {
            const int u = g.producer[v];
            if (!g.recomputable[u] || g.size[v] == 0) continue;
            droppable_.push_back(v);
            by_bytes_.push_back(by_bytes += static_cast<double>(g.size[v]));
            by_rate_.push_back(by_rate += static_cast<double>(g.size[v]) / (static_cast<double>(g.time[u]) + 0.1 * mean));
        }
        int previous = -1;
        effect_before_.assign(g.ops, -1), effect_after_.assign(g.ops, -1);
        for (int u = 0; u < g.ops; ++u) {
            if (!g.effect[u]) continue;
            if (previous >= 0) effect_before_[u] = previous, effect_after_[previous] = u;
            previous = u;
        }
        price_.resize(g.all_ops()), seen_.assign(g.all_ops(), 0);
    }

    // From now on moves begin between these two first computations, which do not move; -1: anywhere. Their effects elsewhere
    // (lifetimes that become longer or shorter) count as before.
    void focus(int first, int last) { first_ = first, last_ = last; }

    bool any() const { return !droppable_.empty(); }

    // Drops a value that is alive but not read at a moment beyond the budget, and recomputes it before its next reader.
    bool insert(double price_per_byte) {
        const int moment = s.profile.pick_excess(first(), last(), random_);
        return insert_at(moment >= 0 ? moment : pick(), price_per_byte);
    }

    bool insert_at(int moment, double price_per_byte) {
        if (!any()) return false;
        const int key = s.profile.key(moment);
        const vector<double>& weights = random_.below(2) ? by_bytes_ : by_rate_;
        for (int attempt = 0; attempt < 24; ++attempt) {
            const double at = random_.unit() * weights.back();
            const std::size_t i = std::lower_bound(weights.begin(), weights.end(), at) - weights.begin();
            const int v = droppable_[std::min(i, droppable_.size() - 1)];
            const int source = s.source(v, key);
            if (source < 0 || s.profile.key(s.end_of(v, source)) <= key || reads(s.op(moment), v)) continue;
            int reader = s.next_reader(v, key);
            if (g.forward_result[v] && !s.before(reader, s.boundary())) {
                if (s.before(s.boundary(), moment)) continue;  // it belongs to the caller, who keeps it
                reader = s.profile.previous(s.boundary());
                if (s.profile.key(reader) <= key) continue;
            }
            return recompute_before(g.producer[v], reader, price_per_byte);
        }
        return false;
    }

    // Removes a repeat; its outputs are kept from the computation before.
    bool remove() {
        const int x = random_repeat();
        if (x < 0) return false;
        drop(x);
        return true;
    }

    // Removes a repeat, and where the plan is then further beyond the budget, drops up to three other values.
    bool exchange(double price_per_byte) {
        const double before = s.profile.excess();
        if (!remove()) return false;
        for (int left = 1 + random_.below(3); left > 0 && s.profile.excess() > before; --left) insert(price_per_byte);
        return true;
    }

    // Moves a repeat to another place between its neighbours of the same op.
    bool shift() {
        const int x = random_repeat();
        if (x < 0) return false;
        const int u = s.op(x), key = s.profile.key(x);
        const int low = s.latest(u, key);
        int high = s.earliest(u, key);
        if (high < 0) high = s.end();
        int place;
        const int draw = random_.below(4);
        if (draw == 0) {  // as late as its readers allow
            const int reader = first_reader(x);
            if (reader < 0) return false;
            place = s.profile.previous(reader);
        } else if (draw == 1) {  // behind its first reader: that one reads the instance before
            place = first_reader(x);
            if (place < 0) return false;
        } else {
            place = draw == 2 ? walk(x, low, high) : pick();
        }
        if (place == x || place == s.profile.previous(x) || !fits(place, low, high)) return false;
        if (place == s.profile.previous(s.boundary())) return false;  // the last forward op ends the forward call
        collect_sources(u, key);
        stale_.push_back(low);
        s.move_after(place, x);
        tidy(x);
        return true;
    }

    // Free order only: moves the first computation of an op as far as dependencies, effects and phases allow.
    bool reorder() {
        if (!free_order_ || g.ops == 0) return false;
        const int u = first_ < 0 ? random_.below(g.ops) : s.op(pick());
        if (u >= g.ops) return false;  // a moment
        const int x = s.of(u)[0];
        if (u == g.tangents || x == s.profile.previous(s.boundary())) return false;
        int low = s.begin(), high = g.backward[u] ? s.end() : s.boundary();
        if (g.backward[u]) low = g.tangents >= 0 ? s.of(g.tangents)[0] : s.boundary();
        auto after = [&](int y) {
            if (s.before(low, y)) low = y;
        };
        auto until = [&](int y) {
            if (y >= 0 && s.before(y, high)) high = y;
        };
        for (auto v = g.inputs.begin(u); v != g.inputs.end(u); ++v) after(s.of(g.producer[*v])[0]);
        if (effect_before_[u] >= 0) after(s.of(effect_before_[u])[0]);
        if (effect_after_[u] >= 0) until(s.of(effect_after_[u])[0]);
        if (s.of(u).size() > 1) until(s.of(u)[1]);
        const int key = s.profile.key(x);
        for (auto v = g.outputs.begin(u); v != g.outputs.end(u); ++v) until(s.next_reader(*v, key));
        int place;
        switch (random_.below(4)) {
            case 0: place = s.profile.previous(high); break;
            case 1: place = low; break;
            case 2: place = walk(x, low, high); break;
            default: place = pick();
        }
        if (place == x || place == s.profile.previous(x) || !fits(place, low, high)) return false;
        collect_sources(u, key);
        s.move_after(place, x);
        tidy(-1);
        return true;
    }

private:
    bool reads(int u, int v) const { return std::find(g.inputs.begin(u), g.inputs.end(u), v) != g.inputs.end(u); }

    int first() const { return first_ < 0 ? s.begin() : first_; }
    int last() const { return last_ < 0 ? s.end() : last_; }
    int pick() { return s.profile.pick(first(), last(), random_); }

    // A random repeat; -1: there is none, or none was drawn.
    int random_repeat() {
        if (s.repeats().empty()) return -1;
        if (first_ < 0) return s.repeats()[random_.below(static_cast<int>(s.repeats().size()))];
        for (int attempt = 0; attempt < 8; ++attempt) {
            const int x = pick();
            if (s.repeated(x)) return x;
        }
        return -1;
    }

    // Whether an occurrence may go behind `place`: between low and high, and not between boundary and tangents.
    bool fits(int place, int low, int high) const {
        if (s.before(place, low) || !s.before(place, high)) return false;
        return place != s.boundary() || g.tangents < 0;
    }

    // Up to 8 steps to one side.
    int walk(int x, int low, int high) {
        int place = x, steps = 1 + random_.below(8);
        if (random_.below(2)) {
            while (steps-- && place != low) place = s.profile.previous(place);
        } else {
            while (steps-- && s.profile.next(place) != high) place = s.profile.next(place);
        }
        return place;
    }

    // The first reader of the outputs of an occurrence; -1: none.
    int first_reader(int x) const {
        int best = -1;
        const int u = s.op(x), key = s.profile.key(x);
        for (auto v = g.outputs.begin(u); v != g.outputs.end(u); ++v) {
            if (s.end_of(*v, x) == x) continue;
            const int y = s.next_reader(*v, key);
            if (best < 0 || s.before(y, best)) best = y;
        }
        return best;
    }

    void collect_sources(int u, int key) {
        for (auto v = g.inputs.begin(u); v != g.inputs.end(u); ++v) stale_.push_back(s.source(*v, key));
    }

    // Removes a repeat, and the repeats that only it needed.
    void drop(int x) {
        collect_sources(s.op(x), s.profile.key(x));
        s.remove(x);
        tidy(-1);
    }

    // Removes the occurrences among `stale_` and x that have become useless.
    void tidy(int x) {
        if (x >= 0) stale_.push_back(x);
        while (!stale_.empty()) {
            const int y = stale_.back();
            stale_.pop_back();
            if (!s.present(y) || !s.useless(y)) continue;
            collect_sources(s.op(y), s.profile.key(y));
            s.remove(y);
        }
    }

    // Inserts u before `reader`. Each input that is not resident by then is either kept for longer, at the price of memory,
    // or recomputed too, whichever seems cheaper.
    bool recompute_before(int u, int reader, double price_per_byte) {
        reader_ = reader, reader_key_ = s.profile.key(reader);
        price_per_byte_ = price_per_byte * std::exp(2.0 * random_.unit() - 1.5);
        ++round_;
        budget_ = CLOSURE;
        chosen_.clear();
        price_of(u, std::numeric_limits<double>::infinity());
        choose(u);
        for (int w : chosen_) {
            const int x = s.insert_after(s.profile.previous(reader), w);
            stale_.push_back(s.latest(w, s.profile.key(x)));
        }
        tidy(-1);
        return true;
    }

    // An estimate of the price of computing u before the reader; at least `limit` where it is more.
    double price_of(int u, double limit) {
        if (seen_[u] == round_) return price_[u];
        double price = static_cast<double>(g.time[u]);
        --budget_;
        for (auto v = g.inputs.begin(u); v != g.inputs.end(u) && price < limit; ++v) price += price_of_value(*v, limit - price);
        seen_[u] = round_;
        return price_[u] = price;
    }

    double price_of_value(int v, double limit) {
        const int w = g.producer[v], end = s.end_of(v, s.source(v, reader_key_));
        if (s.profile.key(end) >= reader_key_) return 0;
        const double keep = price_per_byte_ * s.profile.excess_if_added(end, reader_, g.size[v]);
        if (!g.recomputable[w] || keep == 0 || budget_ <= 0) return keep;
        return std::min(keep, price_of(w, std::min(limit, keep)));
    }

    void choose(int u) {
        seen_[u] = -round_;  // chosen, or being chosen
        for (auto v = g.inputs.begin(u); v != g.inputs.end(u); ++v) {
            const int w = g.producer[*v];
            if (seen_[w] != round_) continue;
            const int end = s.end_of(*v, s.source(*v, reader_key_));
            if (s.profile.key(end) >= reader_key_) continue;
            if (price_[w] < price_per_byte_ * s.profile.excess_if_added(end, reader_, g.size[*v])) choose(w);
        }
        chosen_.push_back(u);
    }

    static constexpr int CLOSURE = 400;  // ops considered for one insertion

    State& s;
    const Graph& g;
    Random& random_;
    const bool free_order_;
    int first_ = -1, last_ = -1;  // occurrences between which moves begin
    vector<int> droppable_;                   // values that can be recomputed
    vector<double> by_bytes_, by_rate_;       // cumulated weights to choose one of them
    vector<int> effect_before_, effect_after_;  // per op: its neighbours among the ops with effects
    vector<int> stale_;                       // occurrences that may have become useless
    int reader_ = 0, reader_key_ = 0, budget_ = 0, round_ = 0;
    double price_per_byte_ = 0;
    vector<double> price_;
    vector<int> seen_;  // per op: the round its price is from; negative: chosen in that round
    vector<int> chosen_;
};

}  // namespace search
