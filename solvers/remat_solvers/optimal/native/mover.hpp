// Simulated annealing over choices, each judged by the time of its plan.
#pragma once

#include <chrono>
#include <cmath>

#include "changes.hpp"

namespace offload {

class Mover {
public:
    Mover(Graph graph, Link link, Bytes budget, std::uint64_t seed)
        : g(std::move(graph)), link_(std::move(link)), random_(seed), clock_(g, link_, budget), changes_(g, random_) {
        for (Time time : g.time) every_op_once_ += time;
    }

    // Sets the point where the next run starts. Where it does not fit, more values leave the device; false: no plan fits.
    bool offer(Choice choice) {
        best_set_ = false;
        Evaluation evaluation = clock_.evaluate(choice);
        for (int k = 0; evaluation.position >= 0 && k < OFFER_REPAIRS; ++k) {
            if (!changes_.make_room(choice, clock_.idle_intervals, evaluation.position, evaluation.excess)) return false;
            evaluation = clock_.evaluate(choice);
        }
        if (evaluation.time < 0) return false;
        current_ = {std::move(choice), clock_.idle_intervals, evaluation};
        best_ = current_;
        best_set_ = true;
        return true;
    }

    // Tries so many changes, with the temperature falling from `hot` to `cold` ns; returns how many were tried.
    long long run(long long moves, double seconds, double hot, double cold) {
        if (!best_set_) return 0;
        const auto begin = std::chrono::steady_clock::now();
        long long moves_made = 0;
        while (moves_made < moves && best_.evaluation.time > every_op_once_) {
            if ((moves_made & 15) == 0) {
                const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin;
                if (spent.count() >= seconds) break;
            }
            const double share = static_cast<double>(moves_made) / static_cast<double>(moves);
            step(hot * std::pow(cold / hot, share));
            ++moves_made;
        }
        return moves_made;
    }
    void restart() { current_ = best_; }

    const Evaluation& evaluation() const { return best_.evaluation; }
    const Choice& choice() const { return best_.choice; }
    bool started() const { return best_set_; }

    vector<Action> actions() {
        vector<Action> all;
        clock_.record = &all;
        Choice choice = best_.choice;
        clock_.evaluate(choice);
        clock_.record = nullptr;
        return all;
    }

private:
    struct Point {
        Choice choice;
        vector<IdleInterval> idle_intervals;
        Evaluation evaluation;
    };

    void step(double temperature) {
        trial_ = current_.choice;
        if (!changes_.make(trial_, current_.idle_intervals)) return;
        if (random_.below(10) < 3) {
            clock_.find_idle_intervals(trial_);
            if (!changes_.make(trial_, clock_.idle_intervals)) return;
        }
        const double slack = std::min(-temperature * std::log(1 - random_.unit()), 0x1p60);
        const Time limit = current_.evaluation.time + static_cast<Time>(slack);
        Evaluation evaluation = clock_.evaluate(trial_, limit);
        for (int k = 0; evaluation.position >= 0 && k < REPAIRS; ++k) {
            if (!changes_.make_room(trial_, clock_.idle_intervals, evaluation.position, evaluation.excess)) return;
            evaluation = clock_.evaluate(trial_, limit);
        }
        if (evaluation.time < 0) return;
        std::swap(current_.choice, trial_);
        std::swap(current_.idle_intervals, clock_.idle_intervals);
        current_.evaluation = evaluation;
        const Evaluation& best = best_.evaluation;
        const bool better =
            evaluation.time < best.time || (evaluation.time == best.time && evaluation.moved < best.moved);
        if (better) best_ = current_;
    }

    static constexpr int REPAIRS = 3;
    static constexpr int OFFER_REPAIRS = 2000;

    Graph g;
    Link link_;
    Random random_;
    Clock clock_;
    Changes changes_;
    Time every_op_once_ = 0;
    Point current_, best_;
    Choice trial_;
    bool best_set_ = false;
};

}  // namespace moving
