"""Places the values of a plan in SuperNeurons' preallocated pool, and counts the bytes that fragmentation costs.

Wang et al.: SuperNeurons, PPoPP 2018 (see solver.py): cudaMalloc and cudaFree are too slow for liveness, so a pool is
allocated once, and managed by

- blocks of 1 KB: every request takes whole blocks
- two lists of nodes, each a run of blocks: the empty ones and the allocated ones, in the order of their addresses
- a hash table from a node's id to the node: a caller that frees has only the id

    allocate   the first empty node that is large enough (first fit); what is left of it stays empty
    free       the node goes back to the empty list and joins the empty nodes that touch it

A plan determines which values are resident, not where they lie. `pool_use` places a whole plan: constants and the
reserve first, then every output, fetched value and workspace when the replay counts it. The pool that it needs is the
highest address used. It exceeds the peak by the rounding to blocks and by the holes that no request fitted into; both
are reported. So a plan whose peak is within the budget may not fit in a pool of as many bytes.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from remat_solvers.plan import Compute, Fetch, Free, Plan
from remat_solvers.problem import Problem

BLOCK_BYTES = 1024


@dataclass(frozen=True, slots=True)
class _Node:
    """A run of blocks."""

    start: int  # first block
    count: int

    @property
    def end(self) -> int:
        return self.start + self.count


class PoolAllocator:
    """First fit over blocks of 1 KB. `size_bytes` None: an unlimited pool, which shows how much is needed."""

    def __init__(self, size_bytes: int | None = None) -> None:
        self._empty: list[_Node] = [] if size_bytes is None else [_Node(0, size_bytes // BLOCK_BYTES)]
        self._unlimited = size_bytes is None
        self._allocated: dict[int, _Node] = {}  # id -> node
        self._next_id = 0
        self._top = 0  # of an unlimited pool: everything from here on is empty
        self.high_bytes = 0  # the end of the highest block that was ever allocated
        self.used_bytes = 0  # in whole blocks

    def allocate(self, size_bytes: int) -> int | None:
        """The id of a node of at least `size_bytes`; None where no empty node is large enough.

        A request of 0 bytes takes no blocks, but has an id as well.
        """
        count = -(-size_bytes // BLOCK_BYTES)
        place = next((i for i, node in enumerate(self._empty) if node.count >= count), None)
        if place is not None:
            node = self._empty[place]
            rest = _Node(node.start + count, node.count - count)
            self._empty[place : place + 1] = [rest] if rest.count else []
            start = node.start
        elif self._unlimited or not count:
            start = self._grow(count)
        else:
            return None
        self._next_id += 1
        self._allocated[self._next_id] = _Node(start, count)
        self.used_bytes += count * BLOCK_BYTES
        self.high_bytes = max(self.high_bytes, (start + count) * BLOCK_BYTES)
        return self._next_id

    def _grow(self, count: int) -> int:
        """Take the missing blocks from the top; an empty node that ends there is the first part."""
        start = self._empty.pop().start if count and self._empty and self._empty[-1].end == self._top else self._top
        self._top = start + count
        return start

    def free(self, node_id: int) -> None:
        """Give the node back. Raises KeyError for an id that is not allocated."""
        node = self._allocated.pop(node_id)
        self.used_bytes -= node.count * BLOCK_BYTES
        if not node.count:
            return
        place = bisect_left(self._empty, node.start, key=lambda empty: empty.start)
        first, last = node.start, node.end
        begin = end = place
        if place and self._empty[place - 1].end == first:
            begin, first = place - 1, self._empty[place - 1].start
        if place < len(self._empty) and self._empty[place].start == last:
            end, last = place + 1, self._empty[place].end
        self._empty[begin:end] = [_Node(first, last - first)]

    def address(self, node_id: int) -> int:
        """The node's first byte. Raises KeyError for an id that is not allocated."""
        return self._allocated[node_id].start * BLOCK_BYTES

    def empty(self) -> list[tuple[int, int]]:
        """First byte and bytes of every empty node, by address."""
        return [(node.start * BLOCK_BYTES, node.count * BLOCK_BYTES) for node in self._empty]


@dataclass(frozen=True, slots=True)
class PoolUse:
    """The bytes that a plan needs in a pool, and the address of each allocation."""

    pool_bytes: int  # the highest address used: the smallest pool in which first fit succeeds
    blocks_bytes: int  # most bytes in use at any moment, in whole blocks: no placement needs a smaller pool
    peak_bytes: int  # most bytes in use at any moment, as the replay counts them
    addresses: tuple[int, ...]  # per action: first byte that it allocates (a Compute: its first output); -1: nothing

    @property
    def rounding_bytes(self) -> int:
        """Lost to whole blocks."""
        return self.blocks_bytes - self.peak_bytes

    @property
    def fragmentation_bytes(self) -> int:
        """Lost to holes."""
        return self.pool_bytes - self.blocks_bytes


def pool_use(problem: Problem, plan: Plan) -> PoolUse:
    """Place `plan`, a valid one, in a pool by first fit: constants, the reserve, then action by action.

    A value that is recomputed while it is resident gets room for the fresh copy, which is freed after the op as it is
    in the replay.
    """
    pool = PoolAllocator()
    held = {v: _allocated(pool, value.bytes) for v, value in enumerate(problem.values) if value.kind == "constant"}
    _allocated(pool, problem.reserve_bytes)
    held_bytes = peak = problem.static_bytes
    blocks = pool.used_bytes
    addresses: list[int] = []
    for action in plan:
        address, passing, extra = -1, [], 0
        if isinstance(action, Compute):
            op = problem.ops[action.op]
            for value in op.outputs:
                node = _allocated(pool, problem.values[value].bytes)
                address = pool.address(node) if address < 0 else address
                if value in held:
                    passing.append(node)
                    extra += problem.values[value].bytes
                else:
                    held[value] = node
                    held_bytes += problem.values[value].bytes
            passing.append(_allocated(pool, op.workspace_bytes))
            extra += op.workspace_bytes
        elif isinstance(action, Fetch):
            held[action.value] = _allocated(pool, problem.values[action.value].bytes)
            address = pool.address(held[action.value])
            held_bytes += problem.values[action.value].bytes
        peak, blocks = max(peak, held_bytes + extra), max(blocks, pool.used_bytes)
        for node in passing:
            pool.free(node)
        if isinstance(action, Free):
            pool.free(held.pop(action.value))
            held_bytes -= problem.values[action.value].bytes
        addresses.append(address)
    return PoolUse(pool.high_bytes, blocks, peak, tuple(addresses))


def _allocated(pool: PoolAllocator, size_bytes: int) -> int:
    node = pool.allocate(size_bytes)
    assert node is not None, "an unlimited pool has room"
    return node
