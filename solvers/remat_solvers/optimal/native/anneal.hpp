// Simulated annealing over sequences: time + price * (bytes beyond the budget, summed over the sequence).
#pragma once

#include <chrono>

#include "moves.hpp"

namespace search {

struct Found {
    vector<int> sequence;
    std::int64_t time = -1;  // -1: nothing found yet
    Bytes peak = 0;
};

class Annealer {
public:
    Annealer(Graph graph, Bytes budget, bool free_order, std::uint64_t seed)
        : g_(std::move(graph)), state_(g_), random_(seed), moves_(state_, random_, free_order), free_order_(free_order),
          budget_(budget) {
        for (auto t : g_.time) base_time_ += t;
    }

    const Found& best() const { return best_; }
    const Found& smallest() const { return smallest_; }

    void set_budget(Bytes budget) {
        budget_ = budget;
        state_.profile.set_budget(budget);
        if (best_.time >= 0 && best_.peak > budget) best_ = Found();
        if (smallest_.time >= 0 && smallest_.peak <= budget && (best_.time < 0 || smallest_.time < best_.time)) best_ = smallest_;
        left_ = 0;
        price_ = 0;
    }

    void offer(const vector<int>& sequence, std::size_t boundary) {
        state_.build(sequence, boundary);
        state_.profile.set_budget(budget_);
        started_ = true;
        note();
        if (best_.time < 0 && (start_.time < 0 || state_.profile.peak() < start_.peak)) start_ = snapshot();
        left_ = 0;
    }

    // Makes up to `moves` moves within `seconds`; how many were made. Fewer: time is up, or nothing to gain.
    std::int64_t run(std::int64_t moves, double seconds) {
        const auto start = std::chrono::steady_clock::now();
        std::int64_t made = 0;
        while (made < moves && started_ && !done()) {
            if (left_ == 0) begin_cycle();
            const int batch = static_cast<int>(std::min<std::int64_t>({BATCH - made_ % BATCH, left_, moves - made}));
            for (int i = 0; i < batch; ++i) step();
            made += batch, left_ -= batch, made_ += batch;
            if (made_ % BATCH == 0 || left_ == 0) adapt();
            if (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() >= seconds) break;
        }
        return made;
    }

    Found current() const { return started_ ? snapshot() : Found(); }
    bool done() const { return best_.time == base_time_ || g_.ops == 0 || (!moves_.any() && !free_order_); }

private:
    static constexpr int BATCH = 64;

    Found snapshot() const { return {state_.sequence(), state_.time(), state_.profile.peak()}; }

    void note() {
        const Bytes peak = state_.profile.peak();
        if (peak <= budget_ && (best_.time < 0 || state_.time() < best_.time)) best_ = snapshot();
        if (smallest_.time < 0 || peak < smallest_.peak || (peak == smallest_.peak && state_.time() < smallest_.time))
            smallest_ = snapshot();
    }

    // Heats up again, from the best sequence where there is one.
    void begin_cycle() {
        const Found& from = best_.time >= 0 ? best_ : start_;
        if (from.time >= 0 && cycles_ > 0) {
            state_.build(from.sequence, boundary_of(from.sequence));
            state_.profile.set_budget(budget_);
        }
        const double scale = std::max(1.0, static_cast<double>(base_time_));  // even where nothing takes any time
        if (price_ == 0) {
            const double excess = state_.profile.excess();
            price_ = excess > 0 ? 0.3 * scale / excess : 1;
        }
        const double hot = cycles_ == 0 ? 0.005 : 0.001 * std::pow(5.0, random_.unit());
        length_ = left_ = static_cast<std::int64_t>(100.0 * (g_.ops + 100) * std::pow(1.3, std::min(cycles_, 12)));
        hot_ = hot * scale;
        cold_ = 0.01 * hot_;
        temperature_ = hot_;
        ++cycles_;
    }

    std::size_t boundary_of(const vector<int>& sequence) const {
        vector<char> seen(g_.ops, 0);
        std::size_t boundary = 0;
        for (std::size_t i = 0; i < sequence.size(); ++i)
            if (!seen[sequence[i]] && !g_.backward[sequence[i]]) seen[sequence[i]] = 1, boundary = i + 1;
        return boundary;
    }

    void adapt() {
        const double done = 1.0 - static_cast<double>(left_) / static_cast<double>(length_);
        temperature_ = hot_ * std::pow(cold_ / hot_, done);
        const double swing = best_.time < 0 ? 1.1 : 1.02;
        price_ *= state_.profile.excess() > 0 ? swing : 1 / swing;
    }

    double value() const { return static_cast<double>(state_.time()) + price_ * state_.profile.excess(); }

    void step() {
        const double before = value();
        const bool over = state_.profile.excess() > 0;
        const double way = random_.unit();
        bool changed;
        if (free_order_ && way < 0.3) changed = moves_.reorder();
        else {
            const double kind = random_.unit();
            if (kind < (over ? 0.4 : 0.2)) changed = moves_.insert(price_);
            else if (kind < 0.7) changed = moves_.remove();
            else changed = moves_.shift();
        }
        if (!changed) return;
        const double worse = value() - before;
        if (worse > 0 && random_.unit() >= std::exp(-worse / temperature_)) {
            state_.undo();
            return;
        }
        state_.commit();
        if (worse != 0) note();
    }

    const Graph g_;
    State state_;
    Random random_;
    Moves moves_;
    const bool free_order_;
    Bytes budget_;
    std::int64_t base_time_ = 0;
    Found best_, smallest_, start_;
    std::int64_t made_ = 0, left_ = 0, length_ = 1;
    int cycles_ = 0;
    double price_ = 0, hot_ = 0, cold_ = 0, temperature_ = 0;
    bool started_ = false;  // a sequence was offered
};

}  // namespace search
