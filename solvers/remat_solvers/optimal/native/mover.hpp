// Simulated annealing over choices, each judged by the time of its plan.
#pragma once

#include <chrono>
#include <cmath>

#include "changes.hpp"

namespace moving {

class Mover {
public:
    Mover(Graph graph, Link link, Bytes budget, std::uint64_t seed)
        : g(std::move(graph)), link_(std::move(link)), random_(seed), clock_(g, link_, budget), changes_(g, random_) {
        for (Time time : g.time) once_ += time;
    }

    // Where the next run starts, mended where it does not fit; whether it could be.
    bool offer(Choice choice) {
        best_set_ = false;
        Verdict verdict = clock_.tell(choice);
        for (int k = 0; verdict.position >= 0 && k < MOST_MENDING; ++k) {
            if (!changes_.relieve(choice, clock_.absences, verdict.position, verdict.excess)) return false;
            verdict = clock_.tell(choice);
        }
        if (verdict.time < 0) return false;
        current_ = {std::move(choice), clock_.absences, verdict};
        best_ = current_;
        best_set_ = true;
        return true;
    }

    // So many changes from the best, with the temperature falling from `hot` to `cold` ns; how many were made.
    long long run(long long moves, double seconds, double hot, double cold) {
        if (!best_set_) return 0;
        const auto begin = std::chrono::steady_clock::now();
        long long made = 0;
        while (made < moves && best_.verdict.time > once_) {
            if ((made & 15) == 0) {
                const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin;
                if (spent.count() >= seconds) break;
            }
            const double share = static_cast<double>(made) / static_cast<double>(moves);
            step(hot * std::pow(cold / hot, share));
            ++made;
        }
        return made;
    }
    void restart() { current_ = best_; }

    const Verdict& verdict() const { return best_.verdict; }
    const Choice& choice() const { return best_.choice; }
    bool started() const { return best_set_; }

    vector<Action> actions() {
        vector<Action> all;
        clock_.record = &all;
        Choice choice = best_.choice;
        clock_.tell(choice);
        clock_.record = nullptr;
        return all;
    }

private:
    struct Place {
        Choice choice;
        vector<Absence> absences;
        Verdict verdict;
    };

    void step(double temperature) {
        trial_ = current_.choice;
        if (!changes_.make(trial_, current_.absences)) return;
        if (random_.below(10) < 3) {
            clock_.look(trial_);
            if (!changes_.make(trial_, clock_.absences)) return;
        }
        const double slack = std::min(-temperature * std::log(1 - random_.unit()), 0x1p60);
        const Time limit = current_.verdict.time + static_cast<Time>(slack);
        Verdict verdict = clock_.tell(trial_, limit);
        for (int k = 0; verdict.position >= 0 && k < MENDING; ++k) {
            if (!changes_.relieve(trial_, clock_.absences, verdict.position, verdict.excess)) return;
            verdict = clock_.tell(trial_, limit);
        }
        if (verdict.time < 0) return;
        std::swap(current_.choice, trial_);
        std::swap(current_.absences, clock_.absences);
        current_.verdict = verdict;
        const bool better = verdict.time < best_.verdict.time || (verdict.time == best_.verdict.time && verdict.moved < best_.verdict.moved);
        if (better) best_ = current_;
    }

    static constexpr int MENDING = 3;
    static constexpr int MOST_MENDING = 2000;

    Graph g;
    Link link_;
    Random random_;
    Clock clock_;
    Changes changes_;
    Time once_ = 0;
    Place current_, best_;
    Choice trial_;
    bool best_set_ = false;
};

}  // namespace moving
