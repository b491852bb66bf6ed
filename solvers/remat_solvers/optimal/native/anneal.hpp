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

    // Continues from a sequence, where it is better than the best one known.
    void offer(const vector<int>& sequence, std::size_t boundary) {
        State offered(g_);
        offered.build(sequence, boundary);
        const Found found{sequence, offered.time(), offered.profile.peak()};
        if (!note(found) && !(best_.time < 0 && (start_.time < 0 || found.peak < start_.peak))) return;
        if (best_.time < 0 || start_.time < 0) start_ = found;
        build(found);
        offered_ = started_;  // the first is where the first cycle starts anyway
        started_ = true;
        left_ = 0;
    }

    // The next `moves` anneal only the window between the first computations of two ops, from the best sequence, with a
    // temperature that falls from `heat` times the time of all ops.
    void anneal_window(int first, int last, std::int64_t moves, double heat) {
        if (best_.time < 0 || moves <= 0) return;
        build(best_);
        moves_.focus(state_.of(first)[0], state_.of(last)[0]);
        if (price_ == 0) price_ = scale() / std::max(1.0, static_cast<double>(budget_ - g_.base));
        fresh_ = offered_ = false;
        width_ = 0;
        hot_ = temperature_ = heat * scale();
        length_ = left_ = moves;
    }

    // Tries up to `moves` moves within `seconds`; returns how many. Fewer: the time is up, or no gain is possible.
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
    static constexpr int ARMS = 12, FIRST_ARM = 7, GENTLE_ARM = 3;
    static constexpr double WIDTHS[] = {0.005, 0.03, 0.1, 0.4}, HEATS[] = {0.0003, 0.001, 0.003}, COLD = 0.01;

    Found snapshot() const { return {state_.sequence(), state_.time(), state_.profile.peak()}; }

    // Keeps the fastest sequence within the budget, and the one of the smallest peak. Returns whether it became the fastest.
    bool note(const Found& found) {
        if (smaller(found.peak, found.time)) smallest_ = found;
        if (!faster(found.peak, found.time)) return false;
        best_ = found;
        return true;
    }
    void note() {
        const Bytes peak = state_.profile.peak();
        if (peak <= budget_) lowest_ = std::min(lowest_, static_cast<double>(state_.time()));
        if (faster(peak, state_.time()) || smaller(peak, state_.time())) note(snapshot());
    }
    bool faster(Bytes peak, std::int64_t time) const {
        return peak <= budget_ && (best_.time < 0 || time < best_.time);
    }
    bool smaller(Bytes peak, std::int64_t time) const {
        return smallest_.time < 0 || peak < smallest_.peak || (peak == smallest_.peak && time < smallest_.time);
    }

    // Begins a cycle of falling temperature: from the start, with a width and a temperature with which earlier cycles did
    // well; or from the best sequence, or from one that was offered. Cycles get longer.
    void begin_cycle() {
        moves_.focus(-1, -1);
        if (fresh_) reached_[arm_] = lowest_;
        const bool reheat = offered_ || (cycles_ > 1 && best_.time >= 0 && random_.below(2));
        if (cycles_ > 0 && !offered_) build(reheat ? best_ : start_);
        if (price_ == 0) {
            const double excess = state_.profile.excess();
            price_ = excess > 0 ? 0.3 * scale() / excess : 1;
        }
        fresh_ = !reheat;
        if (cycles_ == 0) arm_ = FIRST_ARM;
        else if (offered_) arm_ = GENTLE_ARM;
        else if (reheat || random_.below(2)) arm_ = random_.below(ARMS);
        else arm_ = static_cast<int>(std::min_element(reached_, reached_ + ARMS) - reached_);
        offered_ = false;
        width_ = WIDTHS[arm_ / 3];
        hot_ = temperature_ = HEATS[arm_ % 3] * scale();
        const double growth = std::min(std::pow(1.3, cycles_), 20.0);
        length_ = left_ = static_cast<std::int64_t>(100.0 * (g_.ops + 400) * growth);
        lowest_ = std::numeric_limits<double>::infinity();
        ++cycles_;
    }

    void build(const Found& from) {
        state_.build(from.sequence, boundary_of(from.sequence));
        state_.profile.set_budget(budget_);
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
        temperature_ = hot_ * std::pow(COLD, done);
        const double factor = best_.time < 0 ? 1.1 : 1.02;
        price_ *= state_.profile.peak() > budget_ ? factor : 1 / factor;
        if (++ticks_ % 16 == 0 || left_ == 0) {
            const double width = left_ == 0 ? 0 : width_ * std::pow(COLD, done) * static_cast<double>(budget_ - g_.base);
            state_.profile.set_budget(budget_ - static_cast<Bytes>(std::max(0.0, width)));
        }
    }

    double scale() const { return std::max(1.0, static_cast<double>(base_time_)); }  // even where no op takes time
    double value() const { return static_cast<double>(state_.time()) + price_ * state_.profile.excess(); }

    void step() {
        const double before = value();
        const bool over = state_.profile.excess() > 0;
        const double draw = random_.unit();
        bool changed;
        if (free_order_ && draw < 0.3) {
            changed = moves_.reorder();
        } else {
            const double kind = random_.unit();
            if (kind >= 0.9) changed = moves_.exchange(price_);
            else if (kind < (over ? 0.4 : 0.2)) changed = moves_.insert(price_);
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
    int cycles_ = 0, ticks_ = 0, arm_ = 0;
    double reached_[ARMS] = {};  // per arm: the time that its latest cycle reached
    double price_ = 0, hot_ = 0, width_ = 0, lowest_ = 0, temperature_ = 0;
    bool started_ = false;  // a sequence was offered
    bool offered_ = false;  // the next cycle starts from one
    bool fresh_ = false;    // this cycle started from the start
};

}  // namespace search
