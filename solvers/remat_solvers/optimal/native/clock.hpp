// From a choice to its plan, exact in every event: the rules of simulate.py, with one rule for when copies happen.
//
// - copy out: a value is copied after its last use, or as soon as it is computed (`early`). It is copied only once; the
//   copy serves later swaps
// - leave: its bytes are freed when the copy has ended. Compute waits for a copy under way only where the next op would not
//   fit otherwise, and then for the copy that ends first
// - fetch: as late as the queue allows without a wait on a clock that never stalls, `lead` positions sooner, and where the
//   value fits up to its reader; at the latest before that reader. Fetches are in the order of reading
// - a value whose copy is still under way when it is read again stays, and so does one that the host has no room for
//
// Where an op does not fit although all copies have ended and their values are freed, the choice has no plan.
#pragma once

#include <limits>

#include "swaps.hpp"

namespace offload {

enum Kind { COMPUTE, FREE, OFFLOAD, FETCH };

struct Action {
    int kind, index;
};

constexpr Time NO_LIMIT = std::numeric_limits<Time>::max();

struct Evaluation {
    Time time = -1;   // -1: no plan, or none within the limit
    Bytes moved = 0;  // to the host
    Bytes peak = 0;
    int position = -1;  // of the occurrence that does not fit; -1: the plan takes too long
    Bytes excess = 0;   // at that position
};

class Clock {
public:
    Clock(const Graph& graph, const Link& link, Bytes budget) : g(graph), link_(link), budget_(budget) {
        const int values = g.values;
        needed_.resize(values), last_.resize(values), computed_.resize(values), arrival_.resize(values);
        copied_.resize(values), host_.resize(values), state_.resize(values);
    }

    vector<IdleInterval> idle_intervals;     // of the last choice evaluated
    vector<Action>* record = nullptr;

    // Replays the plan of a choice. Removes from the choice repeats whose outputs nobody reads, and swaps without an idle
    // interval. Stops when the time is beyond `limit`.
    Evaluation evaluate(Choice& choice, Time limit = NO_LIMIT) {
        find_lifetimes(choice);
        for (int op : choice.sequence) limit -= g.time[op];
        if (limit < 0) return {};
        plan_swaps(choice);
        return replay(choice, limit);
    }

    // Only finds the idle intervals.
    void find_idle_intervals(Choice& choice) {
        find_lifetimes(choice);
        plan_swaps(choice);
    }

private:
    struct PlannedSwap {
        int value, last, back, out, trigger;
    };
    enum State : char { RESIDENT, LEAVING, OFF_DEVICE };

    // The last reader of each instance, from the end to the start, as in schedule.py.
    void find_lifetimes(Choice& choice) {
        bool changed = true;
        while (changed) {
            changed = false;
            const vector<int>& sequence = choice.sequence;
            const int count = choice.size();
            first_.assign(g.ops, -1);
            for (int p = 0; p < count; ++p)
                if (first_[sequence[p]] < 0) first_[sequence[p]] = p;
            std::fill(needed_.begin(), needed_.end(), 0);
            const int end = g.end();
            for (auto v = g.inputs.begin(end); v != g.inputs.end(end); ++v) needed_[*v] = 1;
            ends_.clear();
            end_of_.assign(count + 1, 0);
            for (int p = count - 1; p >= 0; --p) {
                const int op = sequence[p];
                bool useful = first_[op] == p;
                for (auto v = g.outputs.begin(op); v != g.outputs.end(op); ++v)
                    useful |= needed_[*v] && !(g.forward_result[*v] && p >= choice.boundary);
                if (!useful) {
                    choice.remove(g, p);
                    changed = true;
                    continue;
                }
                for (auto v = g.outputs.begin(op); v != g.outputs.end(op); ++v) {
                    if (g.forward_result[*v] && p >= choice.boundary) continue;
                    if (!needed_[*v]) ends_.push_back(*v);
                    needed_[*v] = 0;
                }
                for (auto v = g.inputs.begin(op); v != g.inputs.end(op); ++v)
                    if (!needed_[*v]) ends_.push_back(*v), needed_[*v] = 1;
                end_of_[p] = static_cast<int>(ends_.size());
            }
        }
    }

    // Finds the idle intervals and the swaps that take place, and the bytes during each occurrence if no copy is late.
    void plan_swaps(Choice& choice) {
        const int count = choice.size();
        idle_intervals.clear(), planned_swaps_.clear();
        bytes_planned_.assign(count + 1, 0);
        starts_.resize(count + 1);
        Bytes held = g.base;
        Time now = 0;
        std::size_t next = 0, kept = 0;
        vector<Swap>& swaps = choice.swaps;
        for (int p = 0; p <= count; ++p) {
            const int op = p < count ? choice.sequence[p] : g.end();
            starts_[p] = now;
            now += g.time[op];
            for (auto v = g.inputs.begin(op); v != g.inputs.end(op); ++v) {
                const int last = last_[*v];
                last_[*v] = p;
                if (p - last > 1 && !g.forward_result[*v] && link_.moves[*v]) idle_intervals.push_back({*v, last, p});
            }
            for (; next < swaps.size() && swaps[next].back <= p; ++next) {
                const Swap swap = swaps[next];
                const IdleInterval* interval = nullptr;
                for (auto a = idle_intervals.rbegin(); a != idle_intervals.rend() && a->back == p; ++a)
                    if (a->value == swap.value) interval = &*a;
                if (swap.back != p || interval == nullptr) continue;
                swaps[kept++] = swap;
                const int out = swap.early ? computed_[swap.value] : interval->last;
                planned_swaps_.push_back({swap.value, interval->last, p, out, swap.lead});
            }
            bytes_planned_[p] += held + g.top[op];
            for (auto v = g.outputs.begin(op); v != g.outputs.end(op); ++v) {
                last_[*v] = computed_[*v] = p;
                if (!(g.forward_result[*v] && p >= choice.boundary)) held += g.size[*v];
            }
            if (p < count)
                for (int e = p + 1 < count ? end_of_[p + 1] : 0; e < end_of_[p]; ++e) held -= g.size[ends_[e]];
        }
        swaps.resize(kept);
        bytes_change_.assign(count + 2, 0);
        for (const PlannedSwap& planned : planned_swaps_) {
            bytes_change_[planned.last + 1] -= g.size[planned.value];
            bytes_change_[planned.back] += g.size[planned.value];
        }
        Bytes sum = 0;
        for (int p = 0; p <= count; ++p) bytes_planned_[p] += sum += bytes_change_[p];
        Time busy_from = now;
        for (auto planned = planned_swaps_.rbegin(); planned != planned_swaps_.rend(); ++planned) {
            busy_from = std::min(busy_from, starts_[planned->back]) - link_.to_device[planned->value];
            const auto later = std::upper_bound(starts_.begin(), starts_.end(), busy_from);
            const int latest = std::min(planned->back, static_cast<int>(later - starts_.begin()) - 1);
            planned->trigger = std::max(latest - planned->trigger, planned->last + 1);
        }
        copies_out_.clear(), departures_.clear();
        for (int k = 0; k < static_cast<int>(planned_swaps_.size()); ++k) {
            copies_out_.push_back({planned_swaps_[k].out, k});
            departures_.push_back({planned_swaps_[k].last, k});
        }
        std::sort(copies_out_.begin(), copies_out_.end());
        std::sort(departures_.begin(), departures_.end());
    }

    // `wait`: the longest time that compute may wait for copies in all.
    Evaluation replay(const Choice& choice, Time wait) {
        const int count = choice.size();
        now_ = to_host_ = to_device_ = 0;
        held_ = g.base, evaluation_ = Evaluation{}, used_ = 0;
        evaluation_.peak = held_;
        next_fetch_ = 0;
        leaving_.clear();
        std::fill(arrival_.begin(), arrival_.end(), 0);
        std::fill(copied_.begin(), copied_.end(), 0);
        std::fill(host_.begin(), host_.end(), 0);
        std::fill(state_.begin(), state_.end(), RESIDENT);
        std::size_t out = 0, leave = 0;
        for (int p = 0; p < count; ++p) {
            const int op = choice.sequence[p];
            while (!leaving_.empty() && copied_[leaving_.front()] <= now_) leave_device(leaving_.begin());
            if (!fetch_due(p, g.top[op])) return evaluation_;
            emit(COMPUTE, op);
            Time start = now_;
            for (auto v = g.inputs.begin(op); v != g.inputs.end(op); ++v) start = std::max(start, arrival_[*v]);
            now_ = start + g.time[op];
            if (start - starts_[p] > wait) return {};
            evaluation_.peak = std::max(evaluation_.peak, held_ + g.top[op]);
            for (auto v = g.outputs.begin(op); v != g.outputs.end(op); ++v)
                if (!(g.forward_result[*v] && p >= choice.boundary)) held_ += g.size[*v];
            for (int e = p + 1 < count ? end_of_[p + 1] : 0; e < end_of_[p]; ++e) free_value(ends_[e]);
            for (; out < copies_out_.size() && copies_out_[out].first == p; ++out)
                copy_out(planned_swaps_[copies_out_[out].second].value);
            for (; leave < departures_.size() && departures_[leave].first == p; ++leave)
                start_leaving(planned_swaps_[departures_[leave].second]);
        }
        if (!fetch_due(count, 0)) return evaluation_;
        const int last = g.end();
        for (auto v = g.inputs.begin(last); v != g.inputs.end(last); ++v) now_ = std::max(now_, arrival_[*v]);
        if (now_ - starts_[count] <= wait) evaluation_.time = now_;
        return evaluation_;
    }

    void emit(int kind, int index) {
        if (record != nullptr) record->push_back({kind, index});
    }

    // Fetches the values that are due, as far as they fit beside the op at `position`, and makes room for that op.
    bool fetch_due(int position, Bytes need) {
        while (next_fetch_ < planned_swaps_.size() && planned_swaps_[next_fetch_].trigger <= position) {
            const PlannedSwap& planned = planned_swaps_[next_fetch_];
            const int v = planned.value;
            if (state_[v] == LEAVING) {
                if (planned.back > position) break;
                leaving_.erase(std::find(leaving_.begin(), leaving_.end(), v));  // its copy is too late: it stays
                state_[v] = RESIDENT;
            } else if (state_[v] == OFF_DEVICE) {
                if (planned.back > position && !fits(planned, position, need)) break;
                for (int p = position; p < planned.back; ++p) bytes_planned_[p] += g.size[v];
                make_room(need + g.size[v]);
                emit(FETCH, v);
                state_[v] = RESIDENT;
                arrival_[v] = to_device_ = std::max(now_, to_device_) + link_.to_device[v];
                held_ += g.size[v];
                evaluation_.peak = std::max(evaluation_.peak, held_);
            }
            ++next_fetch_;
        }
        make_room(need);
        if (held_ + need <= budget_) return true;
        evaluation_.position = position;
        evaluation_.excess = held_ + need - budget_;
        return false;
    }

    bool fits(const PlannedSwap& planned, int position, Bytes need) const {
        const Bytes room = budget_ - g.size[planned.value];
        if (held_ + need > room) return false;
        for (int p = position; p < planned.back; ++p)
            if (bytes_planned_[p] > room) return false;
        return true;
    }

    void make_room(Bytes need) {
        while (!leaving_.empty() && held_ + need > budget_) {
            now_ = std::max(now_, copied_[leaving_.front()]);
            leave_device(leaving_.begin());
        }
    }

    void copy_out(int v) {
        if (host_[v] || used_ + g.size[v] > link_.host) return;
        host_[v] = 1;
        used_ += g.size[v];
        emit(OFFLOAD, v);
        copied_[v] = to_host_ = std::max({now_, to_host_, arrival_[v]}) + link_.to_host[v];
        evaluation_.moved += g.size[v];
    }

    void start_leaving(const PlannedSwap& planned) {
        const int v = planned.value;
        if (!host_[v]) {  // the host has no room
            for (int p = planned.last + 1; p < planned.back; ++p) bytes_planned_[p] += g.size[v];
            return;
        }
        state_[v] = LEAVING;
        auto at = leaving_.end();
        while (at != leaving_.begin() && copied_[*(at - 1)] > copied_[v]) --at;
        at = leaving_.insert(at, v);
        if (copied_[v] <= now_) leave_device(at);
    }

    void leave_device(vector<int>::iterator at) {
        const int v = *at;
        leaving_.erase(at);
        state_[v] = OFF_DEVICE;
        free_value(v);
    }

    void free_value(int v) {
        emit(FREE, v);
        now_ = std::max({now_, arrival_[v], copied_[v]});
        held_ -= g.size[v];
    }

    const Graph& g;
    const Link& link_;
    const Bytes budget_;
    vector<int> first_;  // per op: its first position
    vector<int> ends_, end_of_;  // values whose instance ends, from the last occurrence to the first; where each has its own
    vector<char> needed_, host_, state_;
    vector<int> last_, computed_;
    vector<Bytes> bytes_planned_, bytes_change_;
    vector<Time> starts_, arrival_, copied_;
    vector<PlannedSwap> planned_swaps_;
    vector<std::pair<int, int>> copies_out_, departures_;
    vector<int> leaving_;  // ordered by the end of their copies
    std::size_t next_fetch_ = 0;
    Time now_ = 0, to_host_ = 0, to_device_ = 0;
    Bytes held_ = 0, used_ = 0;
    Evaluation evaluation_;
};

}  // namespace moving
