"""Tests of the smallest peak: it is never below the floor or the exact optimum, and its bottleneck is described."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remat_solvers.bounds import bottleneck, peak_bound, peak_bound_bytes
from remat_solvers.certificates.check import check_certificate
from remat_solvers.errors import BudgetError
from remat_solvers.generate import adversarial, chain, random_chain, training_graph
from remat_solvers.optimal.auto import Auto
from remat_solvers.optimal.certify import certify_floor
from remat_solvers.optimal.min_peak import MinPeak, floor_certificate, minimise_peak
from remat_solvers.plan import Compute
from remat_solvers.problem import Link, Op, Problem, Value
from remat_solvers.recompute.brute_force.solver import smallest_peak_bytes
from remat_solvers.result import Certificate, Limits, Order, Outcome, Progress, Status, Stopped
from remat_solvers.schedule import baseline, keeps_order, plan_from_sequence
from remat_solvers.simulate import simulate
from remat_solvers.solving import solve
from remat_solvers.sweeping import sweep
from remat_solvers.units import format_bytes, read_budget
from remat_solvers.validate import validate
from tests.solvers.makers import corpus_problem

QUICK = Limits(seconds=0.15)


def checked(problem: Problem, found: MinPeak) -> MinPeak:
    """Compares every claim with the replay, the validator and the checker of certificates."""
    assert validate(problem, found.plan, found.peak_bytes) == []
    timeline = simulate(problem, found.plan)
    assert (timeline.time_ns, timeline.peak_bytes) == (found.time_ns, found.peak_bytes)
    assert found.peak_bound_bytes <= found.peak_bytes <= baseline(problem).peak_bytes
    assert found.bottleneck.bytes == peak_bound_bytes(problem) <= found.peak_bound_bytes
    if found.certificate is not None:
        assert check_certificate(problem, found.certificate) is None
        assert found.certificate.budget_bytes < found.peak_bound_bytes
    return found


@given(seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_against_exhaustive_search(seed: int) -> None:
    for problem in (training_graph(1 + seed % 3, seed), random_chain(2 + seed % 2, seed), adversarial(seed)):
        if len(problem.ops) <= 8:
            found = checked(problem, minimise_peak(problem, limits=QUICK, seed=seed))
            assert found.peak_bytes >= smallest_peak_bytes(problem, order="free")


def test_a_certificate_may_prove_more_than_the_general_floor() -> None:
    """Op 7 reads value 10, which cannot be recomputed; so does the op that computes the result 13."""
    problem = training_graph(6, 11)
    certificate = floor_certificate(problem)
    assert certificate is not None
    assert check_certificate(problem, certificate) is None
    assert certificate.budget_bytes + 1 > peak_bound_bytes(problem)


def test_the_search_finds_the_smallest_peak_of_tiny_problems() -> None:
    """The search proves nothing here, but on all of these it reaches the result of exhaustive search."""
    for seed in range(12):
        problem = random_chain(4, seed)
        found = checked(problem, minimise_peak(problem, limits=QUICK, seed=seed))
        assert found.peak_bytes == smallest_peak_bytes(problem, order="free")


@pytest.mark.parametrize("n", [3, 6, 8])
def test_a_chain_needs_three_values_and_n_choose_2_forward_steps(n: int) -> None:
    problem = chain(n)
    found = checked(problem, minimise_peak(problem, limits=Limits(seconds=1)))
    assert found.peak_bytes == found.peak_bound_bytes == 3
    runs = sum(isinstance(action, Compute) for action in found.plan)
    assert runs - 2 * n == (n - 1) * (n - 2) // 2


def test_gpt_reaches_its_floor() -> None:
    problem = corpus_problem("gpt")
    reports: list[Progress] = []
    found = checked(problem, minimise_peak(problem, limits=Limits(seconds=10), on_progress=reports.append))
    assert found.peak_bytes == found.peak_bound_bytes
    assert found.peak_bytes / baseline(problem).peak_bytes == pytest.approx(0.248, abs=0.001)
    assert [p.peak_bytes for p in reports] == sorted((p.peak_bytes or 0 for p in reports), reverse=True)
    assert reports[-1].time_ns == found.time_ns


def test_both_orders_have_the_same_floor() -> None:
    problem = training_graph(6, 11)
    kept = checked(problem, minimise_peak(problem, limits=QUICK, order=Order.GIVEN))
    free = checked(problem, minimise_peak(problem, limits=QUICK, order=Order.FREE))
    assert keeps_order(kept.plan)
    assert free.peak_bound_bytes == kept.peak_bound_bytes


def test_a_seed_determines_the_plan_where_no_limit_strikes() -> None:
    problem = random_chain(8, 3)
    plans = [minimise_peak(problem, limits=Limits(None), seed=5).plan for _ in range(2)]
    assert plans[0] == plans[1]


def test_limits_and_links() -> None:
    problem = chain(20)
    cut = checked(problem, minimise_peak(problem, limits=Limits(seconds=1e-9)))
    assert cut.stopped is Stopped.TIME
    with_link = replace(problem, link=Link(10**9, 10**9))
    found = checked(with_link, minimise_peak(with_link, limits=QUICK))
    assert found.certificate is None


def test_one_moment_certifies_the_floor_where_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """On thousands of ops it takes seconds to certify the floor at every moment."""
    problem = corpus_problem("r50")
    certified: list[tuple[int, ...]] = []

    def recording_certify_floor(problem: Problem, *, order: Order, at: tuple[int, ...]) -> Certificate | None:
        certified.append(at)
        return certify_floor(problem, order=order, at=at)

    monkeypatch.setattr("remat_solvers.optimal.min_peak.certify_floor", recording_certify_floor)
    found = checked(problem, minimise_peak(problem, limits=Limits(0.01)))
    assert len(certified) == 1
    assert found.certificate is not None
    assert found.certificate.budget_bytes + 1 == found.peak_bound_bytes == peak_bound_bytes(problem)


@dataclass(frozen=True)
class Interrupted(Auto):
    """Raises Ctrl-C in the phase that makes the plan faster."""

    def solve(self, problem: Problem, budget_bytes: int, **_: object) -> Outcome:  # type: ignore[override]
        raise KeyboardInterrupt


def test_ctrl_c_after_the_smallest_peak_keeps_its_plan() -> None:
    result = solve(chain(8), "min", solver=Interrupted(), limits=Limits(1))
    assert (result.stopped, result.peak_bytes, result.peak_bound_bytes) == (Stopped.INTERRUPT, 3, 3)
    assert result.certificate is not None


def head() -> Problem:
    """A head whose logits are large: h -> mm (lm_head) -> log_softmax -> loss, and its backward ops."""
    sizes = {"w": 7, "h": 10, "logits": 1000, "logp": 1000, "loss": 4, "tangent": 4, "dlogits": 1000, "dw": 7}
    kinds = {"w": "constant", "dlogits": "gradient", "dw": "gradient", "tangent": "gradient"}
    number = {name: i for i, name in enumerate(sizes)}
    values = tuple(Value(name, size, kinds.get(name, "activation")) for name, size in sizes.items())  # type: ignore[arg-type]

    def op(name: str, phase: str, reads: str, writes: str, target: str, module: str = "", source: str = "") -> Op:
        inputs, outputs = (tuple(number[x] for x in text.split()) for text in (reads, writes))
        return Op(name, phase, inputs, outputs, 1, target=target, module=module, source=source)  # type: ignore[arg-type]

    back = replace(
        op("back", "backward", "tangent logp", "dlogits", "aten._log_softmax_backward_data.default", "", "model.py:41"),
        workspace_bytes=3,
    )
    ops = (
        op("embedding", "forward", "", "h", "aten.embedding.default", "emb", "model.py:38"),
        op("mm", "forward", "h w", "logits", "aten.mm.default", "lm_head", "model.py:40"),
        op("log_softmax", "forward", "logits", "logp", "aten._log_softmax.default", "", "model.py:41"),
        op("nll", "forward", "logp", "loss", "aten.nll_loss_forward.default", "", "model.py:41"),
        replace(op("tangents", "backward", "", "tangent", "tangents"), recomputable=False, time_ns=0),
        back,
        op("mm_1", "backward", "h dlogits", "dw", "aten.mm.default", "lm_head", "model.py:40"),
    )
    return Problem("head", ops, values, (number["loss"], number["dw"]), reserve_bytes=5)


def test_the_description_of_a_bottleneck() -> None:
    floor = bottleneck(head())
    assert floor.bytes == peak_bound_bytes(head()) == 1000 + 1000 + 4 + 4 + 3 + 7 + 5
    assert (floor.op, floor.workspace_bytes, floor.static_bytes) == (5, 3, 12)
    assert floor.moment == "during _log_softmax_backward_data (model.py:41, after lm_head)"
    assert [(item.bytes, item.description) for item in floor.resident[:2]] == [
        (1000, "output of _log_softmax (model.py:41, after lm_head)"),
        (1000, "gradient that it computes"),
    ]
    assert str(floor).startswith(
        "1.98 KiB during _log_softmax_backward_data (model.py:41, after lm_head): 1000 B output"
    )
    assert str(floor).endswith("3 B workspace, 12 B constants and reserve")


def test_the_description_of_the_end_of_a_step_and_of_many_values() -> None:
    values = tuple(Value(f"v{i}", 10 - i, "activation") for i in range(7))
    ops = tuple(Op(f"op{i}", "forward", (), (i,), 1) for i in range(7))
    floor = bottleneck(Problem("results", ops, values, tuple(range(7))))
    assert floor.op is None
    assert str(floor) == (
        "49 B for the results at the end of the step: 10 B output of op0, 9 B output of op1, 8 B output of op2, "
        "7 B output of op3, 15 B in 3 more values"
    )


@pytest.mark.parametrize("name", ["gpt", "unet", "r50", "lstm", "rl250", "chain50"])
def test_descriptions_add_up_on_the_corpus(name: str) -> None:
    problem = corpus_problem(name)
    description, floor = bottleneck(problem), peak_bound(problem)
    assert description.bytes == floor.bytes
    assert (
        description.bytes
        == sum(item.bytes for item in description.resident) + description.workspace_bytes + description.static_bytes
    )
    assert {item.value for item in description.resident} == set(floor.resident)
    assert str(description).startswith(format_bytes(floor.bytes))


@given(seed=st.integers(0, 10**6))
@settings(max_examples=150, deadline=None)
def test_the_resident_values_add_up_to_the_floor(seed: int) -> None:
    for problem in (training_graph(1 + seed % 9, seed), adversarial(seed)):
        floor = bottleneck(problem)
        assert floor.bytes == sum(item.bytes for item in floor.resident) + floor.workspace_bytes + floor.static_bytes
        assert str(floor)
        plan = plan_from_sequence(problem, range(len(problem.ops)))
        assert floor.bytes <= simulate(problem, plan).peak_bytes


# budget="min"


@pytest.mark.parametrize("name", ["auto", "revolve", "rotor", "store-all", "chen"])
def test_the_budget_min(name: str) -> None:
    """The floor of a chain is three values and store-all needs n + 1; with one byte less, no method has a plan."""
    problem = chain(8)
    result = solve(problem, "min", solver=name, limits=Limits(seconds=2))
    assert result.budget_bytes == result.peak_bytes == result.smallest_peak_bytes
    assert result.plan is not None
    assert validate(problem, result.plan, result.budget_bytes) == []
    assert result.peak_bytes == {"chen": result.peak_bytes, "store-all": 9}.get(name, 3)
    assert solve(problem, result.budget_bytes - 1, solver=name).plan is None
    assert result.peak_bound_bytes == 3
    if name == "auto":
        assert "no plan has a smaller peak" in result.reason
        assert "B8" in result.reason
        assert result.certificate is not None
        assert check_certificate(problem, result.certificate) is None
        assert result.certificate.budget_bytes == 2


def test_the_budget_min_where_nothing_can_be_saved() -> None:
    problem = Problem("one op", (Op("only", "forward", (), (0,), 1, 5),), (Value("v", 3, "activation"),), (0,))
    result = solve(problem, "min")
    assert (result.status, result.budget_bytes, result.gap) == (Status.OPTIMAL, 8, 0)


def test_sizes_beyond_the_arithmetic_of_the_search() -> None:
    """All values together have 2**63 bytes or more, but those of one moment fewer: other methods answer."""
    values = tuple(Value(f"v{i}", 2**61, "activation") for i in range(5))
    ops = tuple(Op(f"op{i}", "forward", (i - 1,) if i else (), (i,), 1) for i in range(5))
    problem = Problem("large", ops, values, (4,))
    result = solve(problem, "min", limits=Limits(1))
    assert result.budget_bytes == result.peak_bytes == 2**62
    assert [point.peak_bytes for point in sweep(problem, points=2, limits=Limits(2)).points] == [2**62]


def test_a_budget_below_the_floor_is_answered_with_the_floor() -> None:
    result = solve(head(), 2000)
    assert result.status is Status.INFEASIBLE
    assert result.reason == f"Every plan needs {bottleneck(head())}"
    with pytest.raises(BudgetError, match="min"):
        solve(head(), "smallest")
    assert read_budget("min", 100) == "min"
    assert read_budget("60%", 100) == 60
