// From a choice to its plan, exact in every event: the rules of simulate.py, with one rule for when copies happen.
//
// - out: a value is copied when it is to leave, or as soon as it was made (`early`); only once, the copy serves later trips
// - leave: its bytes go when the copy has ended; compute waits for a copy under way only where the next op would not fit
//   otherwise, for the one that ends first
// - fetch: as late as the queue allows without a wait on a clock that never stalls, `lead` positions sooner, and where it
//   fits up to its reader; at the latest before that reader. In the order of reading
// - a value whose copy is still under way when it is read again stays, and so does one that the host has no room for
//
// Where an op does not fit although every finished copy has left, the choice has no plan.
#pragma once

#include <limits>

#include "trips.hpp"

namespace moving {

enum Kind { COMPUTE, FREE, OFFLOAD, FETCH };

struct Action {
    int kind, index;
};

constexpr Time NO_LIMIT = std::numeric_limits<Time>::max();

struct Verdict {
    Time time = -1;   // -1: no plan, or none within the limit
    Bytes moved = 0;  // to the host
    Bytes peak = 0;
    int position = -1;  // where it does not fit; -1: it takes too long
    Bytes excess = 0;   // there
};

class Clock {
public:
    Clock(const Graph& graph, const Link& link, Bytes budget) : g(graph), link_(link), budget_(budget) {
        const int values = g.values;
        needed_.resize(values), last_.resize(values), made_.resize(values), arrival_.resize(values);
        copied_.resize(values), host_.resize(values), state_.resize(values);
    }

    vector<Absence> absences;     // of the last choice told
    vector<Action>* record = nullptr;

    // Repeats whose outputs nobody reads are left out of the choice, and trips that are none. `limit` is the time beyond
    // which nothing more need be known.
    Verdict tell(Choice& choice, Time limit = NO_LIMIT) {
        live(choice);
        for (int op : choice.sequence) limit -= g.time[op];
        if (limit < 0) return {};
        uses(choice);
        return replay(choice, limit);
    }

    // Absences only.
    void look(Choice& choice) {
        live(choice);
        uses(choice);
    }

private:
    struct Stay {
        int value, last, back, out, trigger;
    };
    enum State : char { HERE, LEAVING, GONE };

    // Who reads an instance last, from the end to the start (schedule.py).
    void live(Choice& choice) {
        bool again = true;
        while (again) {
            again = false;
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
                bool read = first_[op] == p;
                for (auto v = g.outputs.begin(op); v != g.outputs.end(op); ++v)
                    read |= needed_[*v] && !(g.forward_result[*v] && p >= choice.boundary);
                if (!read) {
                    choice.remove(g, p);
                    again = true;
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

    // Absences, which trips take place, and the bytes during each occurrence once everything is where it should be.
    void uses(Choice& choice) {
        const int count = choice.size();
        absences.clear(), stays_.clear();
        planned_.assign(count + 1, 0);
        starts_.resize(count + 1);
        Bytes held = g.base;
        Time now = 0;
        std::size_t next = 0, kept = 0;
        vector<Trip>& trips = choice.trips;
        for (int p = 0; p <= count; ++p) {
            const int op = p < count ? choice.sequence[p] : g.end();
            starts_[p] = now;
            now += g.time[op];
            for (auto v = g.inputs.begin(op); v != g.inputs.end(op); ++v) {
                const int last = last_[*v];
                last_[*v] = p;
                if (p - last > 1 && !g.forward_result[*v] && link_.moves[*v]) absences.push_back({*v, last, p});
            }
            for (; next < trips.size() && trips[next].back <= p; ++next) {
                const Trip trip = trips[next];
                const Absence* away = nullptr;
                for (auto a = absences.rbegin(); a != absences.rend() && a->back == p; ++a)
                    if (a->value == trip.value) away = &*a;
                if (trip.back != p || away == nullptr) continue;
                trips[kept++] = trip;
                stays_.push_back({trip.value, away->last, p, trip.early ? made_[trip.value] : away->last, trip.lead});
            }
            planned_[p] += held + g.top[op];
            for (auto v = g.outputs.begin(op); v != g.outputs.end(op); ++v) {
                last_[*v] = made_[*v] = p;
                if (!(g.forward_result[*v] && p >= choice.boundary)) held += g.size[*v];
            }
            if (p < count)
                for (int e = p + 1 < count ? end_of_[p + 1] : 0; e < end_of_[p]; ++e) held -= g.size[ends_[e]];
        }
        trips.resize(kept);
        change_.assign(count + 2, 0);
        for (const Stay& stay : stays_) {
            change_[stay.last + 1] -= g.size[stay.value];
            change_[stay.back] += g.size[stay.value];
        }
        Bytes sum = 0;
        for (int p = 0; p <= count; ++p) planned_[p] += sum += change_[p];
        Time busy_from = now;
        for (auto stay = stays_.rbegin(); stay != stays_.rend(); ++stay) {
            busy_from = std::min(busy_from, starts_[stay->back]) - link_.to_device[stay->value];
            const auto later = std::upper_bound(starts_.begin(), starts_.end(), busy_from);
            const int latest = std::min(stay->back, static_cast<int>(later - starts_.begin()) - 1);
            stay->trigger = std::max(latest - stay->trigger, stay->last + 1);
        }
        out_.clear(), leave_.clear();
        for (int k = 0; k < static_cast<int>(stays_.size()); ++k) {
            out_.push_back({stays_[k].out, k});
            leave_.push_back({stays_[k].last, k});
        }
        std::sort(out_.begin(), out_.end());
        std::sort(leave_.begin(), leave_.end());
    }

    // `wait`: the most that it may wait.
    Verdict replay(const Choice& choice, Time wait) {
        const int count = choice.size();
        now_ = to_host_ = to_device_ = 0;
        held_ = g.base, verdict_ = Verdict{}, used_ = 0;
        verdict_.peak = held_;
        back_ = 0;
        leaving_.clear();
        std::fill(arrival_.begin(), arrival_.end(), 0);
        std::fill(copied_.begin(), copied_.end(), 0);
        std::fill(host_.begin(), host_.end(), 0);
        std::fill(state_.begin(), state_.end(), HERE);
        std::size_t out = 0, leave = 0;
        for (int p = 0; p < count; ++p) {
            const int op = choice.sequence[p];
            while (!leaving_.empty() && copied_[leaving_.front()] <= now_) depart(leaving_.begin());
            if (!bring_back(p, g.top[op])) return verdict_;
            act(COMPUTE, op);
            Time start = now_;
            for (auto v = g.inputs.begin(op); v != g.inputs.end(op); ++v) start = std::max(start, arrival_[*v]);
            now_ = start + g.time[op];
            if (start - starts_[p] > wait) return {};
            verdict_.peak = std::max(verdict_.peak, held_ + g.top[op]);
            for (auto v = g.outputs.begin(op); v != g.outputs.end(op); ++v)
                if (!(g.forward_result[*v] && p >= choice.boundary)) held_ += g.size[*v];
            for (int e = p + 1 < count ? end_of_[p + 1] : 0; e < end_of_[p]; ++e) end(ends_[e]);
            for (; out < out_.size() && out_[out].first == p; ++out) send(stays_[out_[out].second].value);
            for (; leave < leave_.size() && leave_[leave].first == p; ++leave) go(stays_[leave_[leave].second]);
        }
        if (!bring_back(count, 0)) return verdict_;
        const int last = g.end();
        for (auto v = g.inputs.begin(last); v != g.inputs.end(last); ++v) now_ = std::max(now_, arrival_[*v]);
        if (now_ - starts_[count] <= wait) verdict_.time = now_;
        return verdict_;
    }

    void act(int kind, int index) {
        if (record != nullptr) record->push_back({kind, index});
    }

    // Fetches what is due, as far as it fits beside the op at `position`, and makes room for that op.
    bool bring_back(int position, Bytes need) {
        while (back_ < stays_.size() && stays_[back_].trigger <= position) {
            const Stay& stay = stays_[back_];
            const int v = stay.value;
            if (state_[v] == LEAVING) {
                if (stay.back > position) break;
                leaving_.erase(std::find(leaving_.begin(), leaving_.end(), v));  // too late to leave: it stays
                state_[v] = HERE;
            } else if (state_[v] == GONE) {
                if (stay.back > position && !fits(stay, position, need)) break;
                for (int p = position; p < stay.back; ++p) planned_[p] += g.size[v];
                make_room(need + g.size[v]);
                act(FETCH, v);
                state_[v] = HERE;
                arrival_[v] = to_device_ = std::max(now_, to_device_) + link_.to_device[v];
                held_ += g.size[v];
                verdict_.peak = std::max(verdict_.peak, held_);
            }
            ++back_;
        }
        make_room(need);
        if (held_ + need <= budget_) return true;
        verdict_.position = position;
        verdict_.excess = held_ + need - budget_;
        return false;
    }

    bool fits(const Stay& stay, int position, Bytes need) const {
        const Bytes room = budget_ - g.size[stay.value];
        if (held_ + need > room) return false;
        for (int p = position; p < stay.back; ++p)
            if (planned_[p] > room) return false;
        return true;
    }

    void make_room(Bytes need) {
        while (!leaving_.empty() && held_ + need > budget_) {
            now_ = std::max(now_, copied_[leaving_.front()]);
            depart(leaving_.begin());
        }
    }

    void send(int v) {
        if (host_[v] || used_ + g.size[v] > link_.host) return;
        host_[v] = 1;
        used_ += g.size[v];
        act(OFFLOAD, v);
        copied_[v] = to_host_ = std::max({now_, to_host_, arrival_[v]}) + link_.to_host[v];
        verdict_.moved += g.size[v];
    }

    void go(const Stay& stay) {
        const int v = stay.value;
        if (!host_[v]) {  // no room there
            for (int p = stay.last + 1; p < stay.back; ++p) planned_[p] += g.size[v];
            return;
        }
        state_[v] = LEAVING;
        auto at = leaving_.end();
        while (at != leaving_.begin() && copied_[*(at - 1)] > copied_[v]) --at;
        at = leaving_.insert(at, v);
        if (copied_[v] <= now_) depart(at);
    }

    void depart(vector<int>::iterator at) {
        const int v = *at;
        leaving_.erase(at);
        state_[v] = GONE;
        end(v);
    }

    void end(int v) {
        act(FREE, v);
        now_ = std::max({now_, arrival_[v], copied_[v]});
        held_ -= g.size[v];
    }

    const Graph& g;
    const Link& link_;
    const Bytes budget_;
    vector<int> first_, ends_, end_of_;  // per op; values whose instance ends, from the last occurrence to the first
    vector<char> needed_, host_, state_;
    vector<int> last_, made_;
    vector<Bytes> planned_, change_;
    vector<Time> starts_, arrival_, copied_;
    vector<Stay> stays_;
    vector<std::pair<int, int>> out_, leave_;
    vector<int> leaving_;  // by when their copies end
    std::size_t back_ = 0;
    Time now_ = 0, to_host_ = 0, to_device_ = 0;
    Bytes held_ = 0, used_ = 0;
    Verdict verdict_;
};

}  // namespace moving
