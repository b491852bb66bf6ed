"""Tests of the coarse program: it is valid for every plan and all anchors, and exact where the refinement claims it."""

import random
from itertools import combinations, count, pairwise

import numpy as np
import pytest

from remat_solvers.errors import InputError
from remat_solvers.generate import adversarial, chain, random_layered, random_plan, training_graph
from remat_solvers.optimal.program.decoding import bytes_at_first_computations, decode_point, encode_plan
from remat_solvers.optimal.program.fractional_memory import fractional_memory
from remat_solvers.optimal.program.graph import OpGraph
from remat_solvers.optimal.program.interval_cuts import add_interval
from remat_solvers.optimal.program.program import StageProgram
from remat_solvers.optimal.program.refinement import Refinement
from remat_solvers.optimal.program.stages import Stages
from remat_solvers.plan import Compute
from remat_solvers.problem import Op, Problem, Value
from remat_solvers.recompute.brute_force.solver import best_sequence, smallest_peak_bytes
from remat_solvers.result import Order
from remat_solvers.schedule import baseline, plan_from_sequence, store_all
from remat_solvers.simulate import simulate
from remat_solvers.toolkit.programs.highs import SolveEnd, margin, solve_lp, solve_mip
from remat_solvers.validate import validate
from tests.solvers.makers import corpus_problem

EXACT = 1e-9


def tiny(seed: int) -> Problem:
    """A problem of at most 9 ops, so that brute force is quick; the kinds of `adversarial` take turns."""
    rng = random.Random(seed)
    if seed % 4 == 0:
        return next(p for p in map(adversarial, count(seed // 4, 11)) if len(p.ops) <= 9)
    candidates = (
        random_layered(rng.randint(3, 8), k) if seed % 4 == 1 else training_graph(4, k) for k in count(seed, 1000)
    )
    return next(p for p in candidates if len(p.ops) <= 9)


def random_anchors(graph: OpGraph, rng: random.Random, max_count: int) -> list[int]:
    """Random ops whose first computations are ordered in every plan."""
    ops = len(graph.time_ns)
    ids = rng.sample(range(ops), min(ops, rng.randint(0, max_count)))
    if graph.order is Order.GIVEN:
        return sorted(ids)
    chain_ops: list[int] = []
    for op in ids:
        if all(graph.before(other)[op] or graph.after(other)[op] for other in chain_ops):
            chain_ops.append(op)
    return sorted(chain_ops, key=lambda op: sum(bool(graph.before(op)[other]) for other in chain_ops))


def all_intervals(program: StageProgram) -> StageProgram:
    for pair in combinations(range(len(program.stages.anchors) + 1), 2):
        add_interval(program, *pair)
    return program


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("seed", range(120))
def test_every_plan_is_a_point_that_costs_no_more(seed: int, order: Order) -> None:
    """Random plans test the proof of program.py and interval_cuts.py: all rows hold, within the plan's own peak."""
    rng = random.Random(seed)
    problem = tiny(seed)
    graph = OpGraph(problem, order)
    for turn in range(3):
        plan = random_plan(problem, 3 * seed + turn)
        timeline = simulate(problem, plan)
        stages = Stages(graph, random_anchors(graph, rng, 5))
        program = all_intervals(StageProgram(stages, timeline.peak_bytes))
        point = program.point(*encode_plan(stages, plan))
        starts, columns, coefficients, low, high = program.rows.matrix()
        sums = np.zeros(len(low))
        np.add.at(sums, np.repeat(np.arange(len(low)), np.diff(starts)), coefficients * point[columns])
        assert (sums >= low - EXACT).all()
        assert (sums <= high + EXACT).all()
        assert program.base_ns + program.costs() @ point * program.time_unit_ns <= timeline.time_ns * (1 + EXACT)


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("seed", range(150))
def test_bounds_stay_below_brute_force_and_the_refinement_meets_it(seed: int, order: Order) -> None:
    """Random anchors and the refinement are tested, at budgets from the smallest peak to store-all."""
    rng = random.Random(seed)
    problem = tiny(seed)
    smallest_bytes = smallest_peak_bytes(problem, order=order.value)
    budget = rng.randint(smallest_bytes, baseline(problem).peak_bytes)
    best = best_sequence(problem, budget, order=order.value)
    assert best is not None
    optimum_ns = sum(problem.ops[op].time_ns for op in best)
    graph = OpGraph(problem, order)
    program = StageProgram(Stages(graph, random_anchors(graph, rng, 4)), budget)
    answer = solve_mip(program, seconds=10, gap=0)
    assert answer.ended is SolveEnd.COMPLETE
    coarse_ns = program.bound_ns(answer.bound, margin(program, answer.bound))
    assert coarse_ns <= optimum_ns

    refinement = Refinement(problem, budget, order=order, tolerance_ns=0)
    bound_ns, step = 0, refinement.step(10)
    while not step.done and refinement.refine():
        step = refinement.step(10)
        assert bound_ns <= step.bound_ns <= optimum_ns
        assert not step.infeasible
        bound_ns = step.bound_ns
    if step.done:
        assert refinement.incumbent_ns == refinement.bound_ns == optimum_ns
    if refinement.incumbent is not None:
        assert validate(problem, plan_from_sequence(problem, refinement.incumbent), budget) == []


@pytest.mark.parametrize("seed", range(40))
def test_more_anchors_and_smaller_budgets_never_lower_the_bound(seed: int) -> None:
    problem = training_graph(6, seed)
    graph = OpGraph(problem, Order.GIVEN)
    rng = random.Random(seed)
    coarse_anchors = random_anchors(graph, rng, 2)
    fine_anchors = sorted({*coarse_anchors, *random_anchors(graph, rng, 3)})
    peak = baseline(problem).peak_bytes

    def optimum(anchors: list[int], budget: float) -> float:
        return program_optimum(StageProgram(Stages(graph, anchors), int(budget)))

    assert optimum(coarse_anchors, 0.9 * peak) <= optimum(fine_anchors, 0.9 * peak) + EXACT
    assert optimum(coarse_anchors, 0.9 * peak) <= optimum(coarse_anchors, 0.8 * peak) + EXACT


def program_optimum(program: StageProgram) -> float:
    answer = solve_mip(program, seconds=10, gap=0)
    return program.base_ns + answer.bound * program.time_unit_ns


@pytest.mark.parametrize("seed", range(40))
def test_intervals_keep_the_optimum_and_raise_the_relaxation(seed: int) -> None:
    problem = training_graph(6, seed)
    graph = OpGraph(problem, Order.GIVEN)
    anchors = random_anchors(graph, random.Random(seed), 5)
    budget = int(0.85 * baseline(problem).peak_bytes)
    plain, cut = (
        StageProgram(Stages(graph, anchors), budget),
        all_intervals(StageProgram(Stages(graph, anchors), budget)),
    )
    assert program_optimum(plain) == pytest.approx(program_optimum(cut))
    assert solve_lp(plain).bound <= solve_lp(cut).bound + 1e-6


def test_intervals_cut_off_fractional_recomputations() -> None:
    """The study's LP bounds for U-Net at 40 % with 21 slices are 11.0 % plain and 12.6 % with intervals."""
    problem, budget = at_share("unet", 0.4)
    graph = OpGraph(problem, Order.GIVEN)
    profile, _ = bytes_at_first_computations(problem, store_all(problem))
    edges = [len(problem.ops) * k // 20 for k in range(21)]
    anchors = [max(range(a, b), key=lambda op: profile[op]) for a, b in pairwise(edges)]
    plain = StageProgram(Stages(graph, anchors), budget)
    bounds = [
        solve_lp(program).bound for program in (plain, all_intervals(StageProgram(Stages(graph, anchors), budget)))
    ]
    percent = [100 * ((plain.base_ns + b * plain.time_unit_ns) / graph.time_ns.sum() - 1) for b in bounds]
    assert percent[0] == pytest.approx(11.0, abs=0.1)
    assert percent[1] == pytest.approx(12.7, abs=0.1)


def at_share(name: str, share: float) -> tuple[Problem, int]:
    problem = corpus_problem(name)
    floor = problem.static_bytes
    return problem, floor + int(share * (baseline(problem).peak_bytes - floor))


def refine_to_the_end(
    problem: Problem, budget: int, order: Order = Order.GIVEN, tolerance_ns: int | None = None
) -> Refinement:
    refinement = Refinement(problem, budget, order=order, tolerance_ns=tolerance_ns)
    while not refinement.step(20).done and refinement.refine():
        pass
    return refinement


@pytest.mark.parametrize(
    ("name", "share", "low", "high"),
    [
        ("unet", 0.8, 2.877, 2.878),
        ("r50", 0.9, 1.14, 1.16),
        ("r50", 0.8, 2.17, 2.22),
        ("r50", 0.4, 12.99, 13.01),
        ("gpt", 0.8, 1.53, 1.54),
        ("gpt", 0.4, 15.66, 15.67),
    ],
)
def test_the_studys_figures_in_the_given_order(name: str, share: float, low: float, high: float) -> None:
    """The overhead in percent lies between what the study proved and what it found."""
    problem, budget = at_share(name, share)
    refinement = refine_to_the_end(problem, budget)
    assert refinement.incumbent is not None
    assert validate(problem, plan_from_sequence(problem, refinement.incumbent), budget) == []
    overhead = [100 * (t / refinement.total_ns - 1) for t in (refinement.bound_ns, refinement.incumbent_ns or 0)]
    assert low - 0.05 <= overhead[0] <= overhead[1] <= high + 0.05
    assert overhead[1] - overhead[0] <= 0.05


@pytest.mark.parametrize(
    ("name", "share", "percent"), [("gpt", 0.8, 1.538), ("gpt", 0.4, 15.667), ("r50", 0.8, 2.217), ("unet", 0.8, 2.877)]
)
def test_the_studys_figures_over_all_orders(name: str, share: float, percent: float) -> None:
    problem, budget = at_share(name, share)
    refinement = Refinement(problem, budget, order=Order.FREE)
    bound = 100 * (refinement.step(20).bound_ns / refinement.total_ns - 1)
    assert percent - 0.06 <= bound <= percent + 0.001


def test_a_chain_is_solved_exactly() -> None:
    """The closed form of Griewank and Walther gives 31 extra forward ops with 20 slots, as in the study."""
    refinement = refine_to_the_end(corpus_problem("chain50"), 20, tolerance_ns=0)
    assert refinement.incumbent_ns == refinement.bound_ns == 150 + 31
    assert refinement.incumbent is not None
    assert len(refinement.incumbent) == 100 + 31


def test_below_the_smallest_peak_the_program_is_infeasible() -> None:
    problem = chain(6)
    assert Refinement(problem, 2).step(5).infeasible
    assert Refinement(problem, 2, order=Order.FREE).step(5).infeasible
    assert not Refinement(problem, 3).step(5).infeasible


def test_an_incumbent_cuts_off_plans_that_are_no_better() -> None:
    problem, budget = at_share("r50", 0.8)
    incumbent = refine_to_the_end(problem, budget).incumbent
    refinement = Refinement(problem, budget)
    assert incumbent is not None
    refinement.set_incumbent(incumbent)
    step = refinement.step(20)
    assert step.done
    assert refinement.incumbent == incumbent
    assert refinement.incumbent_ns is not None
    assert refinement.incumbent_ns - refinement.tolerance_ns <= step.bound_ns <= refinement.incumbent_ns
    assert Refinement(problem, budget).step(20, cutoff_ns=refinement.total_ns).done


def test_decoding_recomputes_late_and_once_per_stage() -> None:
    """In a -> b -> c, two readers of c are in one stage; b and c are recomputed just before the first of them."""
    values = tuple(Value(name, 1, "activation") for name in "abcdef")
    reads = ((), (0,), (1,), (), (2,), (2, 4))
    ops = tuple(Op(f"op{i}", "forward", inputs, (i,), 1) for i, inputs in enumerate(reads))
    problem = Problem("diamond", ops, values, (5,))
    stages = Stages(OpGraph(problem, Order.GIVEN), [3])
    present = np.zeros((2, 6), dtype=bool)
    present[0, [0, 3]] = present[1, 5] = True
    computed = np.zeros((2, 6), dtype=bool)
    computed[0, :4] = computed[1, [1, 2, 4, 5]] = True
    assert decode_point(stages, present, computed) == [0, 1, 2, 3, 1, 2, 4, 5]


def test_bytes_at_first_computations_are_those_of_the_replay() -> None:
    for seed in range(30):
        problem = training_graph(5, seed)
        plan = random_plan(problem, seed)
        first, repeats = bytes_at_first_computations(problem, plan)
        peak = simulate(problem, plan).peak_bytes
        last = [i for i, a in enumerate(plan) if isinstance(a, Compute)][-1]
        trailing = simulate(problem, plan).peak_action > last
        assert max(first.max(), repeats.max()) <= peak
        if len(set(plan)) == len(plan) and not trailing:
            assert first.max() == peak


def test_anchors_must_be_a_chain() -> None:
    problem = random_layered(12, 1)
    graph = OpGraph(problem, Order.FREE)
    unordered = next((a, b) for a, b in combinations(range(12), 2) if not graph.after(a)[b])
    with pytest.raises(InputError, match="one after the other"):
        Stages(graph, unordered)
    with pytest.raises(InputError, match="one after the other"):
        Stages(OpGraph(problem, Order.GIVEN), [5, 3])


@pytest.mark.parametrize("seed", range(40))
def test_the_fractional_memory_of_a_plan_without_recomputations_is_its_memory(seed: int) -> None:
    problem = training_graph(6, seed)
    plan = store_all(problem)
    stages = Stages(
        OpGraph(problem, Order.GIVEN), random_anchors(OpGraph(problem, Order.GIVEN), random.Random(seed), 4)
    )
    program = StageProgram(stages, simulate(problem, plan).peak_bytes)
    memory = fractional_memory(program, program.point(*encode_plan(stages, plan)))
    first, _ = bytes_at_first_computations(problem, plan)
    assert memory.tolist() == first.tolist()
