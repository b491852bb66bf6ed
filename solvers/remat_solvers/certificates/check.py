"""Computes the bound that a certificate proves about a problem, independently and in exact arithmetic.

This file, with rows.py, shares no code with the search, with the program that bounds it, or with the code that writes
certificates, and trusts no solver's tolerance: any multipliers at all give a valid bound, and that bound is computed
here in integers.

Weak duality. rows.py states which rows g(x) >= 0 every plan satisfies with its 0/1 values x, and which of these values
are known. For weights w >= 0 no such x has an objective c(x) below the minimum of c(x) - sum of w g(x) over the ranges
that are known of the single variables, and this minimum is a sum of one minimum per variable. With the objective 0, a
minimum above 0 proves that there is no such x: that no plan fits. A certificate of several leaves branches on
variables; every plan belongs to one of the leaves, so the smallest of their bounds holds for all plans.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import TypeAlias

from remat_solvers.certificates.rows import Relaxation, Variable
from remat_solvers.errors import CertificateError
from remat_solvers.problem import MAX_INT, Problem
from remat_solvers.processes.stdout import silence_stdout
from remat_solvers.result import Certificate, Leaf, Order

Fixed: TypeAlias = Mapping[Variable, int]

ARITY = {"memory": 1, "stay": 3, "input": 4, "inside": 5, "split": 4, "once": 1, "only": 1}
VARIABLE_ARITY = {"stay": 2, "run": 3}
SCALE = 1e4  # the step's time, and all bytes, in units of the LP that is solved if a certificate has no leaves


def check_certificate(problem: Problem, certificate: Certificate) -> int | None:
    """The bound that `certificate` proves for the plans of `problem`, in ns; None: that no plan is within its budget.

    The bound is at least the claimed one. For a certificate without leaves the relaxation is solved here. Raises
    CertificateError, which says what is wrong: another problem, a wrong type, ops that need not run one after the
    other, stages, rows or variables that do not exist, leaves that miss a case, or multipliers that prove less than the
    certificate claims.
    """
    proven = proven_ns(problem, certificate)
    claimed = certificate.bound_ns
    if proven is not None and (claimed is None or claimed > proven):
        claim = "that no plan fits" if claimed is None else f"{claimed} ns"
        raise CertificateError(f"bound_ns: {claim} is claimed, {proven} ns are proven")
    return proven


def proven_ns(problem: Problem, certificate: Certificate) -> int | None:
    """Return the bound that `certificate` proves, whatever it claims. Raises as `check_certificate` does."""
    _check_types(certificate)
    if certificate.problem != problem.fingerprint:
        raise CertificateError("problem: the certificate is for another problem (the fingerprints differ)")
    if problem.link is not None:
        raise CertificateError("problem: it has a link, but a certificate is about plans without offload only")
    relaxation = Relaxation(problem, certificate)
    leaves = certificate.leaves or (Leaf(multipliers=_solve(relaxation, infeasible=certificate.bound_ns is None)),)
    _check_cover([leaf.fixed for leaf in leaves])
    bounds = [_bound(relaxation, index, leaf) for index, leaf in enumerate(leaves)]
    known = [bound for bound in bounds if bound is not None]
    return min(known, default=None)


def _check_types(certificate: Certificate) -> None:
    def require(holds: bool, place: str, expected: str) -> None:
        if not holds:
            raise CertificateError(f"{place}: must be {expected}")

    require(type(certificate) is Certificate, "certificate", "a Certificate")
    require(isinstance(certificate.problem, str), "problem", "a fingerprint")
    require(_is_index(certificate.budget_bytes), "budget_bytes", "an integer from 0 to 2**63 - 1")
    require(isinstance(certificate.order, Order), "order", "given or free")
    require(_are_indices(certificate.at), "at", "a tuple of ops")
    require(certificate.bound_ns is None or _is_index(certificate.bound_ns), "bound_ns", "None or an integer from 0")
    for name in ("intervals", "leaves"):
        require(type(getattr(certificate, name)) is tuple, name, "a tuple")
    for k, interval in enumerate(certificate.intervals):
        require(_are_indices(interval) and len(interval) == 2, f"intervals[{k}]", "a pair of stages")
    for k, leaf in enumerate(certificate.leaves):
        where = f"leaves[{k}]"
        require(type(leaf) is Leaf and type(leaf.fixed) is tuple, where, "a Leaf of tuples")
        require(type(leaf.multipliers) is tuple, where, "a Leaf of tuples")
        for entry in leaf.fixed:
            good = _names(entry, VARIABLE_ARITY) and type(entry[2]) is int and entry[2] in (0, 1)
            require(good, f"{where}: {entry!r:.60}", "stay or run, indices, and 0 or 1")
        for weighed in leaf.multipliers:
            good = _names(weighed, ARITY) and type(weighed[2]) is float and math.isfinite(weighed[2])
            require(good, f"{where}: {weighed!r:.60}", f"{', '.join(ARITY)}, indices, and a finite float")


def _is_index(number: object) -> bool:
    return type(number) is int and 0 <= number <= MAX_INT


def _are_indices(numbers: object) -> bool:
    return type(numbers) is tuple and all(map(_is_index, numbers))


def _names(entry: object, arity: Mapping[str, int]) -> bool:
    """Whether an entry is a triple of a kind, its indices and a number; a split may have more indices than `arity`."""
    if type(entry) is not tuple or len(entry) != 3 or type(entry[0]) is not str or not _are_indices(entry[1]):
        return False
    kind, count = entry[0], len(entry[1])
    return kind in arity and (count == arity[kind] or (kind == "split" and count > arity[kind]))


def _check_cover(branches: list[tuple[tuple[str, tuple[int, ...], int], ...]]) -> None:
    """Raise CertificateError unless the branches are the leaves of a binary tree that splits one variable per node."""
    stack = [(branches, 0)]
    while stack:
        group, depth = stack.pop()
        if len(group) == 1 and len(group[0]) == depth:
            continue
        if any(len(branch) == depth for branch in group) or len({branch[depth][:2] for branch in group}) != 1:
            raise CertificateError(f"leaves: those that fix {group[0][:depth]!r:.200} do not split one variable")
        for side in (0, 1):
            part = [branch for branch in group if branch[depth][2] == side]
            if not part:
                kind, indices, _ = group[0][depth]
                raise CertificateError(f"leaves: no leaf covers {kind} {indices} = {side}")
            stack.append((part, depth + 1))


def _bound(relaxation: Relaxation, index: int, leaf: Leaf) -> int | None:
    """The bound that the multipliers of one leaf prove, rounded up to whole ns; None: the leaf contains no plan."""
    fixed: dict[Variable, int] = {}
    for kind, indices, side in leaf.fixed:
        if not relaxation.exists((kind, indices)):
            raise CertificateError(f"leaves[{index}]: there is no {kind} {indices}")
        if fixed.setdefault((kind, indices), side) != side or not _allows(relaxation, (kind, indices), side):
            return None  # no plan falls into this case
    weights = [Fraction(max(0.0, weight)) for _, _, weight in leaf.multipliers]
    scale = math.lcm(*(weight.denominator for weight in weights))
    reduced: dict[Variable, int] = {}
    constant = 0
    for (kind, indices, _), weight in zip(leaf.multipliers, weights, strict=True):
        factor = weight.numerator * (scale // weight.denominator)
        coefficients, known = relaxation.row(kind, indices)
        constant -= factor * known
        for variable, coefficient in coefficients.items():
            reduced[variable] = reduced.get(variable, 0) - factor * coefficient
    if _minimum(relaxation, reduced, fixed) + constant > 0:
        return None
    for op, item in enumerate(relaxation.problem.ops):
        for stage in range(relaxation.low[op], relaxation.last + 1):
            variable = ("run", (op, stage, stage))
            reduced[variable] = reduced.get(variable, 0) + item.time_ns * scale
    return -(-(_minimum(relaxation, reduced, fixed) + constant) // scale)


def _allows(relaxation: Relaxation, variable: Variable, side: int) -> bool:
    low, high = relaxation.box(variable)
    return low <= side <= high


def _minimum(relaxation: Relaxation, objective: dict[Variable, int], fixed: Fixed) -> int:
    """The minimum of a linear objective over the known ranges of the variables."""
    total = 0
    for variable, coefficient in objective.items():
        if coefficient:
            low, high = relaxation.box(variable)
            side = fixed.get(variable)
            total += coefficient * (side if side is not None else low if coefficient > 0 else high)
    return total


def _solve(relaxation: Relaxation, *, infeasible: bool) -> tuple[tuple[str, tuple[int, ...], float], ...]:
    """Multipliers from HiGHS: those of the relaxation or, to prove that no plan fits, of the smallest excess of memory.

    Nothing here needs to be exact, or even right: the bound is computed from the multipliers afterwards.
    """
    import highspy
    import numpy as np

    names = list(relaxation.rows())
    columns: dict[Variable, int] = {}
    entries: list[tuple[int, int, float]] = []  # row, column, coefficient
    lower = np.empty(len(names))
    bytes_unit = max(1, sum(value.bytes for value in relaxation.problem.values)) / SCALE
    time_unit = max(1, sum(op.time_ns for op in relaxation.problem.ops)) / SCALE
    scales = [1 / bytes_unit if kind == "memory" else 1.0 for kind, _ in names]
    for r, (kind, indices) in enumerate(names):
        coefficients, constant = relaxation.row(kind, indices)
        lower[r] = -constant * scales[r]
        for variable, coefficient in coefficients.items():
            entries.append((r, columns.setdefault(variable, len(columns)), coefficient * scales[r]))
    boxes = [relaxation.box(variable) for variable in columns]

    def weights(*, excess: bool) -> tuple[bool, list[float]]:
        """Whether the program was solved to its end, and the weights of its rows."""
        lp = highspy.HighsLp()
        width = len(columns) + excess
        cost = [0.0] * len(columns) + [1.0] * excess
        if not excess:
            for (kind, indices), column in columns.items():
                if kind == "run" and indices[1] == indices[2]:
                    cost[column] = relaxation.problem.ops[indices[0]].time_ns / time_unit
        cells = entries + [(r, len(columns), 1.0) for r, (kind, _) in enumerate(names) if kind == "memory" and excess]
        lp.num_col_, lp.num_row_ = width, len(names)
        lp.col_cost_ = np.array(cost)
        lp.col_lower_ = np.array([float(low) for low, _ in boxes] + [0.0] * excess)
        lp.col_upper_ = np.array([float(high) for _, high in boxes] + [highspy.kHighsInf] * excess)
        lp.row_lower_, lp.row_upper_ = lower, np.full(len(names), highspy.kHighsInf)
        cells.sort()
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.start_ = np.searchsorted([r for r, _, _ in cells], range(len(names) + 1)).astype(np.int32)
        lp.a_matrix_.index_ = np.array([c for _, c, _ in cells], dtype=np.int32)
        lp.a_matrix_.value_ = np.array([x for _, _, x in cells])
        with silence_stdout():  # it prints a banner when constructed
            solver = highspy.Highs()  # type: ignore[no-untyped-call]
        solver.setOptionValue("output_flag", False)
        solver.setOptionValue("threads", 1)
        solver.passModel(lp)
        solver.run()
        solved = solver.getModelStatus() == highspy.HighsModelStatus.kOptimal
        unit = bytes_unit if excess else time_unit
        duals = [float(dual) * scale * unit for dual, scale in zip(solver.getSolution().row_dual, scales, strict=True)]
        rounded = [float(round(weight)) for weight in duals]  # most likely the exact weights
        return solved, [n if abs(w - n) < 1e-9 * max(1.0, abs(w)) else w for w, n in zip(duals, rounded, strict=True)]

    solved, multipliers = weights(excess=infeasible)
    if not solved and not infeasible:
        _, multipliers = weights(excess=True)
    return tuple((*name, weight) for name, weight in zip(names, multipliers, strict=True) if weight > 0)
