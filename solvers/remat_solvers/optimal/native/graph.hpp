// The problem as flat arrays (local_search/annealing.py: flat_graph), and the random numbers of the searches.
#pragma once

#include <cstdint>
#include <vector>

namespace search {

using Bytes = std::int64_t;
using std::vector;

// Compressed rows: row i of `items` goes from start[i] to start[i + 1].
struct Rows {
    vector<int> start{0};
    vector<int> items;

    const int* begin(int row) const { return items.data() + start[row]; }
    const int* end(int row) const { return items.data() + start[row + 1]; }
    int size(int row) const { return start[row + 1] - start[row]; }
    void close_row() { start.push_back(static_cast<int>(items.size())); }
};

// The values are those that some op computes; constants are part of `base`. Three further ops stand for moments: `begin()`,
// `boundary()` and `end()`. The end reads the results.
struct Graph {
    int ops = 0;     // of the problem
    int values = 0;
    Bytes base = 0;  // static bytes: constants and reserve
    Rows inputs, outputs;  // per op, the three moments included
    Rows consumers;        // per value, the end included
    vector<Bytes> size;             // per value
    vector<int> producer, slot;     // per value: its op, and which of that op's outputs it is
    vector<char> forward_result;    // per value: belongs to the caller from the boundary on
    vector<std::int64_t> time;      // per op
    vector<Bytes> top;              // per op: its outputs and workspace, which are resident on top while it runs
    vector<char> recomputable, backward, effect;  // per op
    int tangents = -1;

    int begin() const { return ops; }
    int boundary() const { return ops + 1; }
    int end() const { return ops + 2; }
    int all_ops() const { return ops + 3; }
};

// xoshiro256** of Blackman and Vigna: the same numbers on every machine.
class Random {
public:
    explicit Random(std::uint64_t seed) {
        for (auto& word : state_) {  // splitmix64
            seed += 0x9e3779b97f4a7c15ull;
            std::uint64_t z = seed;
            z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
            z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
            word = z ^ (z >> 31);
        }
    }
    std::uint64_t next() {
        const std::uint64_t result = rotate(state_[1] * 5, 7) * 9, t = state_[1] << 17;
        state_[2] ^= state_[0];
        state_[3] ^= state_[1];
        state_[1] ^= state_[2];
        state_[0] ^= state_[3];
        state_[2] ^= t;
        state_[3] = rotate(state_[3], 45);
        return result;
    }
    double unit() { return static_cast<double>(next() >> 11) * 0x1p-53; }  // from 0 to below 1
    int below(int n) { return static_cast<int>((static_cast<std::uint64_t>(next() >> 32) * static_cast<std::uint64_t>(n)) >> 32); }

private:
    static std::uint64_t rotate(std::uint64_t x, int k) { return (x << k) | (x >> (64 - k)); }
    std::uint64_t state_[4];
};

}  // namespace search
