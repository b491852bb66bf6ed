// An ordered list of occurrences with the bytes on the device during each of them.
//
// The list is cut into blocks of at most CAPACITY occurrences. A block holds bytes relative to a number of its own, so
// that adding to a whole range touches the elements of two blocks and one number of each block between them; inserting
// and removing moves the elements of one block. With n occurrences that is O(CAPACITY + n / CAPACITY) for each change,
// and positions compare by (rank of the block, offset): nothing is ever renumbered beyond a block.
#pragma once

#include <algorithm>
#include <cstddef>

#include "graph.hpp"

namespace search {

class Profile {
public:
    static constexpr int CAPACITY = 64;
    static constexpr int FILL = 40;  // of a block when the list is built

    void set_budget(Bytes budget) {
        budget_ = budget;
        for (std::size_t r = 0; r < order_.size(); ++r) refresh(static_cast<int>(r));
    }

    void clear() {
        blocks_.clear(), order_.clear(), rank_.clear(), add_.clear(), max_.clear(), excess_.clear();
        add_block(0);
    }

    // Appends while the list is built; `finish` sums up.
    void append(int occurrence, Bytes bytes) {
        int r = static_cast<int>(order_.size()) - 1;
        if (blocks_[order_[r]].count == FILL) add_block(++r);
        Block& block = blocks_[order_[r]];
        settle(occurrence, order_[r], block.count);
        block.bytes[block.count] = bytes;
        block.occurrence[block.count++] = occurrence;
    }
    void finish() {
        for (std::size_t r = 0; r < order_.size(); ++r) refresh(static_cast<int>(r));
    }

    // Larger is later; valid until the next change of the list.
    int key(int occurrence) const { return rank_[block_[occurrence]] * CAPACITY + offset_[occurrence]; }
    bool before(int a, int b) const { return key(a) < key(b); }

    int next(int occurrence) const {
        const int b = block_[occurrence], o = offset_[occurrence] + 1;
        return o < blocks_[b].count ? blocks_[b].occurrence[o] : blocks_[order_[rank_[b] + 1]].occurrence[0];
    }
    int previous(int occurrence) const {
        const int b = block_[occurrence], o = offset_[occurrence] - 1;
        if (o >= 0) return blocks_[b].occurrence[o];
        const Block& block = blocks_[order_[rank_[b] - 1]];
        return block.occurrence[block.count - 1];
    }
    Bytes bytes(int occurrence) const {
        const int b = block_[occurrence];
        return blocks_[b].bytes[offset_[occurrence]] + add_[rank_[b]];
    }

    void insert_after(int place, int occurrence, Bytes bytes) {
        int b = block_[place], o = offset_[place] + 1;
        if (blocks_[b].count == CAPACITY) {
            split(b);
            b = block_[place], o = offset_[place] + 1;
        }
        Block& block = blocks_[b];
        for (int i = block.count; i > o; --i) {
            block.bytes[i] = block.bytes[i - 1];
            offset_[block.occurrence[i] = block.occurrence[i - 1]] = i;
        }
        ++block.count;
        const int r = rank_[b];
        block.bytes[o] = bytes - add_[r];
        block.occurrence[o] = occurrence;
        settle(occurrence, b, o);
        max_[r] = std::max(max_[r], bytes);
        if (bytes > budget_) excess_[r] += static_cast<double>(bytes - budget_);
    }

    void remove(int occurrence) {
        const int b = block_[occurrence];
        Block& block = blocks_[b];
        --block.count;
        for (int i = offset_[occurrence]; i < block.count; ++i) {
            block.bytes[i] = block.bytes[i + 1];
            offset_[block.occurrence[i] = block.occurrence[i + 1]] = i;
        }
        if (block.count == 0) drop_block(b);
        else refresh(rank_[b]);
    }

    // Adds to the bytes of every occurrence behind `after`, up to and including `last`.
    void add(int after, int last, Bytes bytes) {
        const int r = rank_[block_[after]], end = rank_[block_[last]];
        if (r == end) {
            add_within(r, offset_[after] + 1, offset_[last] + 1, bytes);
            return;
        }
        add_within(r, offset_[after] + 1, blocks_[order_[r]].count, bytes);
        for (int k = r + 1; k < end; ++k) {
            add_[k] += bytes;
            max_[k] += bytes;
            if (max_[k] > budget_) sum_excess(k);
            else excess_[k] = 0;
        }
        add_within(end, 0, offset_[last] + 1, bytes);
    }

    Bytes peak() const { return *std::max_element(max_.begin(), max_.end()); }

    // Sum of the bytes beyond the budget, over all occurrences.
    double excess() const {
        double sum = 0;
        for (double e : excess_) sum += e;
        return sum;
    }

    // An estimate of the growth of `excess` if `bytes` were added between the two: inner blocks count with their maximum.
    double excess_if_added(int after, int last, Bytes bytes) const {
        double sum = 0;
        const int r = rank_[block_[after]], end = rank_[block_[last]];
        for (int k = r; k <= end; ++k) {
            const Bytes over = max_[k] + bytes - budget_;
            if (over <= 0) continue;
            const Block& block = blocks_[order_[k]];
            const int from = k == r ? offset_[after] + 1 : 0, to = k == end ? offset_[last] + 1 : block.count;
            if (k == r || k == end) {
                for (int i = from; i < to; ++i) {
                    const Bytes here = block.bytes[i] + add_[k] + bytes - budget_;
                    if (here > 0) sum += static_cast<double>(std::min(here, bytes));
                }
            } else {
                sum += static_cast<double>(to - from) * static_cast<double>(std::min(over, bytes));
            }
        }
        return sum;
    }

    // An occurrence beyond the budget from `first` to `last`, the likelier the more its block is beyond it; -1: none.
    int pick_excess(int first, int last, Random& random) const {
        const int low = rank_[block_[first]], high = rank_[block_[last]];
        double sum = 0;
        for (int r = low; r <= high; ++r) sum += excess_[r];
        double left = random.unit() * sum;
        for (int r = low; r <= high; ++r) {
            left -= excess_[r];
            if (excess_[r] <= 0 || left > 0) continue;
            const int from = r == low ? offset_[first] : 0, to = r == high ? offset_[last] + 1 : CAPACITY;
            return pick_over(r, from, to, random);
        }
        return -1;
    }

    // One of the occurrences from `first` to `last`, in a block chosen at random; `first` where that is not before.
    int pick(int first, int last, Random& random) const {
        const int low = rank_[block_[first]], high = rank_[block_[last]];
        if (!before(first, last)) return first;
        const int r = low + random.below(high - low + 1);
        const Block& block = blocks_[order_[r]];
        const int from = r == low ? offset_[first] : 0, to = r == high ? offset_[last] + 1 : block.count;
        return block.occurrence[from + random.below(to - from)];
    }

    // The occurrence with the most bytes.
    int at_peak() const {
        const int r = static_cast<int>(std::max_element(max_.begin(), max_.end()) - max_.begin());
        const Block& block = blocks_[order_[r]];
        return block.occurrence[std::max_element(block.bytes, block.bytes + block.count) - block.bytes];
    }

    template <class Visit>
    void for_each(Visit visit) const {
        for (int b : order_)
            for (int i = 0; i < blocks_[b].count; ++i) visit(blocks_[b].occurrence[i]);
    }

    // Makes room for an occurrence of this number.
    void reserve(int occurrence) {
        if (occurrence >= static_cast<int>(block_.size())) {
            block_.resize(occurrence + 1);
            offset_.resize(occurrence + 1);
        }
    }

private:
    struct Block {
        int count = 0;
        int occurrence[CAPACITY];
        Bytes bytes[CAPACITY];
    };

    void settle(int occurrence, int block, int offset) {
        block_[occurrence] = block;
        offset_[occurrence] = offset;
    }

    void add_block(int rank) {
        int b = static_cast<int>(blocks_.size());
        if (free_.empty() || blocks_.empty()) {
            if (blocks_.empty()) free_.clear();
            blocks_.emplace_back();
            rank_.push_back(0);
        } else {
            b = free_.back();
            free_.pop_back();
            blocks_[b].count = 0;
        }
        order_.insert(order_.begin() + rank, b);
        add_.insert(add_.begin() + rank, 0);
        max_.insert(max_.begin() + rank, 0);
        excess_.insert(excess_.begin() + rank, 0.0);
        rank_from(rank);
    }

    void drop_block(int b) {
        const int rank = rank_[b];
        order_.erase(order_.begin() + rank);
        add_.erase(add_.begin() + rank);
        max_.erase(max_.begin() + rank);
        excess_.erase(excess_.begin() + rank);
        free_.push_back(b);
        rank_from(rank);
    }

    void rank_from(int rank) {
        for (std::size_t r = rank; r < order_.size(); ++r) rank_[order_[r]] = static_cast<int>(r);
    }

    void split(int b) {
        const int rank = rank_[b];
        add_block(rank + 1);
        Block& from = blocks_[b];
        const int into = order_[rank + 1];
        Block& to = blocks_[into];
        to.count = CAPACITY / 2;
        from.count = CAPACITY - to.count;
        for (int i = 0; i < to.count; ++i) {
            to.bytes[i] = from.bytes[from.count + i];
            settle(to.occurrence[i] = from.occurrence[from.count + i], into, i);
        }
        add_[rank + 1] = add_[rank];
        refresh(rank);
        refresh(rank + 1);
    }

    void add_within(int rank, int from, int to, Bytes bytes) {
        Block& block = blocks_[order_[rank]];
        for (int i = from; i < to; ++i) block.bytes[i] += bytes;
        refresh(rank);
    }

    void refresh(int rank) {
        const Block& block = blocks_[order_[rank]];
        Bytes most = block.bytes[0];
        for (int i = 1; i < block.count; ++i) most = std::max(most, block.bytes[i]);
        max_[rank] = most + add_[rank];
        if (max_[rank] > budget_) sum_excess(rank);
        else excess_[rank] = 0;
    }

    void sum_excess(int rank) {
        const Block& block = blocks_[order_[rank]];
        const Bytes within = budget_ - add_[rank];
        double sum = 0;
        for (int i = 0; i < block.count; ++i) sum += static_cast<double>(std::max<Bytes>(0, block.bytes[i] - within));
        excess_[rank] = sum;
    }

    int pick_over(int rank, int from, int to, Random& random) const {
        const Block& block = blocks_[order_[rank]];
        int candidates[CAPACITY], count = 0;
        for (int i = from; i < std::min(to, block.count); ++i)
            if (block.bytes[i] + add_[rank] > budget_) candidates[count++] = block.occurrence[i];
        return count ? candidates[random.below(count)] : -1;
    }

    Bytes budget_ = 0;
    vector<Block> blocks_;
    vector<int> free_;                     // blocks not in use
    vector<int> order_, rank_;             // blocks in order, and the place of each in it
    vector<Bytes> add_, max_;              // by rank: what the block's bytes are relative to; their largest, absolute
    vector<double> excess_;                // by rank
    vector<int> block_, offset_;           // by occurrence
};

}  // namespace search
