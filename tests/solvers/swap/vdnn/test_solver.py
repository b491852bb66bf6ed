"""Tests of vDNN by hand on small networks: which values are offloaded and fetched, and when."""

from __future__ import annotations

from dataclasses import replace

import pytest

from remat_solvers.errors import InputError
from remat_solvers.plan import Compute, Fetch, Free, Offload, Plan
from remat_solvers.problem import Link, Op, Phase, Problem, Value
from remat_solvers.registry import create
from remat_solvers.result import Limits, Status
from remat_solvers.schedule import store_all
from remat_solvers.simulate import simulate
from remat_solvers.solving import solve
from remat_solvers.swap.vdnn.solver import VDNN, dynamic_step, managed, offloading_plan
from remat_solvers.toolkit.transfers.layers import backward_layers
from remat_solvers.validate import validate

TARGETS = {"C": "convolution", "A": "relu", "P": "max_pool2d_with_indices", "F": "addmm", "L": "_log_softmax"}
SIZE = 10  # of every value; each op takes 10 ns, and so does a copy


def network(layers: str, rate: int = 10**9) -> Problem:
    """A chain of layers. Value 0 is the input, a constant; layer i reads value i and computes value i + 1.

    Backward of CONV and FC reads X, that of ACTV reads Y, and that of POOL both; each computes the gradient of its
    X."""
    count = len(layers)
    values = [Value("input", SIZE, "constant"), *(Value(f"y{i}", SIZE, "activation") for i in range(count))]
    ops = [Op(f"f{i}", "forward", (i,), (i + 1,), 10, target=TARGETS[kind]) for i, kind in enumerate(layers)]
    for i in reversed(range(count)):
        values.append(Value(f"g{i}", SIZE, "gradient"))
        saved = {"C": (i,), "F": (i,), "A": (i + 1,), "P": (i, i + 1), "L": (i + 1,)}[layers[i]]
        incoming = () if i == count - 1 else (len(values) - 2,)
        backward: Phase = "backward"
        ops.append(Op(f"b{i}", backward, (*saved, *incoming), (len(values) - 1,), 10, target="backward"))
    return Problem(layers, tuple(ops), tuple(values), (len(values) - 1,), link=Link(rate, rate))


def trace(problem: Problem, plan: Plan, values: set[int]) -> list[str]:
    """The ops by name, with the actions on `values`."""
    names = {Offload: "offload", Free: "free", Fetch: "prefetch"}
    events = []
    for action in plan:
        if isinstance(action, Compute):
            events.append(problem.ops[action.op].name)
        elif action.value in values:
            events.append(f"{names[type(action)]} {action.value}")
    return events


def test_events_of_six_layers() -> None:
    """The layers are CONV ACTV POOL CONV ACTV POOL. X of the first is the input, X of the last and of ACTV stays."""
    problem = network("CAPCAP")
    plan = offloading_plan(problem, "all")
    assert [a.value for a in managed(problem, "all")] == [2, 3]
    assert trace(problem, plan, {2, 3}) == [
        *("f0", "f1", "offload 2", "f2", "offload 3", "free 2", "f3", "free 3", "f4", "f5"),
        *("prefetch 3", "b5", "b4", "prefetch 2", "b3", "b2", "free 3", "b1", "free 2", "b0"),
    ]
    assert simulate(problem, plan).wait_ns == 0


def test_the_end_of_a_layer_waits_for_its_copy() -> None:
    """Copies take 20 ns and ops 10: f2 and f3 wait 10 each. Value 3 arrives after b5 and b4, value 2 arrives 10 after
    b3."""
    problem = network("CAPCAP", rate=5 * 10**8)
    assert simulate(problem, offloading_plan(problem, "all")).wait_ns == 10 + 10 + 10


def test_conv_offloads_the_inputs_of_convolutions_alone() -> None:
    problem = network("CPCAPCAP")
    assert [a.value for a in managed(problem, "conv")] == [2, 5]
    assert [a.value for a in managed(problem, "all")] == [1, 2, 4, 5]


def test_without_convolutions_matrix_products_are_the_expensive_layers() -> None:
    problem = network("FPFPFL")
    assert [a.value for a in managed(problem, "conv")] == [2]
    assert [a.value for a in managed(problem, "all")] == [1, 2]  # f3 is the last feature layer, f4 the classifier


def test_the_classifier_stays() -> None:
    problem = network("CPCPFFL")
    assert [a.value for a in managed(problem, "all")] == [1, 2]


def test_the_window_ends_at_the_nearest_convolution() -> None:
    """Backward of layer 3 would be early enough to fetch X of layer 1, but layer 2, a CONV, is between them."""
    problem = network("CCCPP")
    assert trace(problem, offloading_plan(problem, "conv"), {1, 2})[-9:] == [
        *("prefetch 2", "b4", "b3", "prefetch 1", "b2", "free 2", "b1", "free 1", "b0")
    ]
    pools = network("CPPPP")
    assert trace(pools, offloading_plan(pools, "all"), {1, 2, 3})[-11:] == [
        *("prefetch 3", "b4", "prefetch 2", "b3", "prefetch 1", "b2", "free 3", "b1", "free 1", "free 2", "b0")
    ]


def test_a_fork_is_freed_after_its_last_reader() -> None:
    """Layers 1 and 3 read value 1."""
    problem = network("CCCCPP")
    ops = list(problem.ops)
    ops[3] = replace(ops[3], inputs=(1, 3), target="convolution")
    problem = replace(problem, ops=tuple(ops))
    events = trace(problem, offloading_plan(problem, "all"), {1})
    assert events[:7] == ["f0", "f1", "f2", "offload 1", "f3", "free 1", "f4"]


def test_backward_ops_belong_to_layers_in_falling_order() -> None:
    """Backward of ACTV belongs to the layer that reads its Y; b0, which reads the input only, belongs to the last."""
    assert list(backward_layers(network("CAPCAP")).values()) == [5, 5, 3, 2, 2, 2]


def test_values_that_the_window_misses_are_fetched_on_demand() -> None:
    """b3 also reads X of layer 1, outside the window."""
    problem = network("CCCPP")
    index = next(i for i, op in enumerate(problem.ops) if op.name == "b4")
    ops = list(problem.ops)
    ops[index] = replace(ops[index], inputs=(1, *ops[index].inputs))
    problem = replace(problem, ops=tuple(ops))
    assert trace(problem, offloading_plan(problem, "conv"), {1, 2})[-9:-5] == ["prefetch 1", "prefetch 2", "b4", "b3"]


def usage(problem: Problem, plan: Plan) -> tuple[float, int]:
    """Bytes on the device during ops, without constants: the average over time, and the maximum."""
    line = simulate(problem, plan)
    total = 0
    for i, action in enumerate(plan):
        if isinstance(action, Compute):
            total += problem.ops[action.op].time_ns * int(line.memory_bytes[i])
    return total / sum(op.time_ns for op in problem.ops) - problem.constant_bytes, line.peak_bytes - 10


def test_average_and_peak_usage_by_hand() -> None:
    """The layers are CONV x 4. If all are kept, y0..y3 accumulate and are freed again, beside one or two gradients.

    Kept: 10 20 30 40 (f3 frees y3, which has no reader) | 40 40 30 20. Moved: 10 20 20 30 (y2, the last layer's X,
    stays) | with y2, then y1 being fetched; y1, y0; y0; gradients."""
    problem = network("CCCC")
    kept, moved = usage(problem, store_all(problem)), usage(problem, offloading_plan(problem, "all"))
    assert kept == ((10 + 20 + 30 + 40 + 40 + 40 + 30 + 20) / 8, 40)
    assert moved == ((10 + 20 + 20 + 20 + 30 + 40 + 30 + 20) / 8, 40)
    deep = network("C" * 40)
    kept, moved = usage(deep, store_all(deep)), usage(deep, offloading_plan(deep, "all"))
    assert (kept[1], moved[1]) == (400, 40)
    assert moved[0] < 0.15 * kept[0]


def test_dynamic_takes_the_first_step_of_the_ladder_that_fits() -> None:
    problem = network("CPCPCPCPCP")
    steps = [store_all(problem), offloading_plan(problem, "conv"), offloading_plan(problem, "all")]
    peaks = [simulate(problem, plan).peak_bytes for plan in steps]
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == 3

    def dynamic(budget_bytes: int) -> Plan | None:
        return VDNN().solve(problem, budget_bytes, limits=Limits(), on_progress=None, seed=0).plan

    for peak, plan in zip(peaks, steps, strict=True):
        assert dynamic(peak) == plan
        assert dynamic(peak + 1) == plan
    assert dynamic(peaks[2] - 1) is None


def test_the_steps_of_the_ladder() -> None:
    """Forward CONV take 10 ns without workspace, or 4 ns with 70 bytes. The table has the smallest budget of each step.

    (p): f8, the last CONV, has 100 bytes beside it if all are kept, 70 if only X of CONV are offloaded, and 30 if all
    are. Greedy fits wherever (m) does: the plans alone, whose peaks are in backward, need 90 and 60."""
    problem = network("CPCPCPCPCP")
    smallest_budgets: dict[str, int] = {}
    for budget_bytes in range(200, 40, -1):
        step = dynamic_step(problem, budget_bytes, {"convolution": ((10, 0), (4, 70))})
        smallest_budgets["none" if step is None else step.name] = budget_bytes
        if step is not None:
            assert validate(step.problem, step.plan, budget_bytes) == []
    steps = {
        "no offload (p)": 170,
        "conv (p)": 140,
        "all (p)": 100,
        "conv (greedy)": 90,
        "all (greedy)": 60,
        "none": 41,
    }
    assert list(smallest_budgets.items()) == list(steps.items())


def test_greedy_takes_the_fastest_kernels_that_fit() -> None:
    """Under conv, 20, 40, 50, 60 and 70 bytes are resident beside the forward CONV."""
    problem = network("CPCPCPCPCP")
    workspaces = {"convolution": ((10, 0), (7, 30), (5, 45), (4, 1000))}
    for budget_bytes, times in ((90, [5, 5, 7, 7, 10]), (105, [5, 5, 5, 5, 7])):
        step = dynamic_step(problem, budget_bytes, workspaces)
        assert step is not None
        assert step.name == "conv (greedy)"
        assert [op.time_ns for op in step.problem.ops if op.target == "convolution"] == times
        assert simulate(step.problem, step.plan).peak_bytes <= budget_bytes


def test_problems_too_large_for_policy_all_have_no_plan() -> None:
    problem = network("CPCPCPCPCP")
    smallest = simulate(problem, offloading_plan(problem, "all")).peak_bytes
    result = solve(problem, smallest - 1, solver="vdnn")
    assert (result.status, result.smallest_peak_bytes) == (Status.NOT_FOUND, smallest)


def test_vdnn_refuses_missing_links_and_unknown_policies() -> None:
    problem = network("CCCC")
    unlinked = replace(problem, link=None)
    assert solve(unlinked, 49, solver="vdnn").status is Status.NOT_APPLICABLE
    with pytest.raises(InputError, match="policy"):
        create("vdnn", policy="some")


def test_the_capacity_of_the_host_is_kept() -> None:
    problem = replace(network("CCCCCC"), link=Link(10**9, 10**9, host_bytes=25))
    assert [a.value for a in managed(problem, "all")] == [1, 2]
