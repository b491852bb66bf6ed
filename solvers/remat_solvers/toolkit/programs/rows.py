"""Sparse rows of a linear program, collected block by block, and the one place where a `highspy.HighsLp` is filled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from remat_solvers.toolkit.arrays import Floats, Ints, Mask

Mark = tuple[int, int, int]  # numbers of rows, of blocks of entries, and of blocks of bounds


@dataclass
class Rows:
    """Rows lower <= A x <= upper. Entries keep their order within a row; a negative column stands for no entry."""

    count: int = 0
    entries: list[tuple[Ints, Ints, Floats]] = field(default_factory=list)  # (row, column, coefficient) per block
    lower: list[Floats] = field(default_factory=list)
    upper: list[Floats] = field(default_factory=list)

    def add(self, terms: Sequence[tuple[Ints, float]], lower: Floats | float, upper: Floats | float) -> None:
        """Add rows that have the same form.

        Each term is (columns, coefficient). Row i is the sum over the terms of coefficient times column i.
        """
        for columns, coefficient in terms:
            row = np.flatnonzero(columns >= 0)
            self.entries.append((row + self.count, columns[row], np.full(len(row), coefficient)))
        self._add_bounds(len(terms[0][0]), lower, upper)

    def add_sparse(
        self, rows: Ints, columns: Ints, coefficients: Floats, count: int, lower: Floats | float, upper: Floats | float
    ) -> None:
        """Add `count` rows, given entry by entry; `rows` count from 0."""
        used = columns >= 0
        self.entries.append((rows[used] + self.count, columns[used], coefficients[used]))
        self._add_bounds(count, lower, upper)

    def add_dense(self, coefficients: Floats, lower: Floats | float, upper: Floats | float) -> None:
        """Add the rows of a matrix, [row, column]. Zeros are entries, too."""
        count, width = coefficients.shape
        rows, columns = np.repeat(np.arange(count), width), np.tile(np.arange(width), count)
        self.add_sparse(rows, columns, coefficients.ravel(), count, lower, upper)

    def _add_bounds(self, count: int, lower: Floats | float, upper: Floats | float) -> None:
        self.lower.append(np.broadcast_to(np.asarray(lower, dtype=np.float64), (count,)))
        self.upper.append(np.broadcast_to(np.asarray(upper, dtype=np.float64), (count,)))
        self.count += count

    @property
    def mark(self) -> Mark:
        """The present end of the rows; `matrix` takes it to return only what is added later."""
        return self.count, len(self.entries), len(self.lower)

    def matrix(self, since: Mark = (0, 0, 0)) -> tuple[Ints, Ints, Floats, Floats, Floats]:
        """Return row starts, columns, coefficients, lower and upper bounds of the rows that were added since a mark."""
        first_row, first_block, first_bounds = since
        none = np.empty(0, dtype=np.int64)
        row, column, coefficient = (
            np.concatenate(parts) for parts in zip((none, none, np.empty(0)), *self.entries[first_block:], strict=True)
        )
        row = row - first_row
        by_row = np.argsort(row, kind="stable")
        starts = np.concatenate(([0], np.cumsum(np.bincount(row, minlength=self.count - first_row))))
        lower, upper = (np.concatenate([np.empty(0), *both[first_bounds:]]) for both in (self.lower, self.upper))
        return starts, column[by_row], coefficient[by_row], lower, upper

    def to_highs(
        self,
        costs: Floats,
        upper: Floats | float = 1.0,
        integers: Mask | None = None,
        *,
        lower: Floats | float = 0.0,
    ) -> Any:
        """Return the program "minimise costs x, lower <= x <= upper, over these rows" as a `highspy.HighsLp`.

        `upper` and `lower` bound the columns; `integers` marks the integer columns, None stands for a linear program.
        """
        import highspy

        starts, columns, coefficients, row_lower, row_upper = self.matrix()
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = len(costs), self.count
        lp.col_cost_ = costs
        lp.col_lower_, lp.col_upper_ = (
            np.broadcast_to(bound, costs.shape).astype(np.float64) for bound in (lower, upper)
        )
        lp.row_lower_, lp.row_upper_ = row_lower, row_upper
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.start_ = starts.astype(np.int32)
        lp.a_matrix_.index_ = columns.astype(np.int32)
        lp.a_matrix_.value_ = coefficients
        if integers is not None:
            kinds = highspy.HighsVarType
            lp.integrality_ = [kinds.kInteger if integer else kinds.kContinuous for integer in integers.tolist()]
        return lp
