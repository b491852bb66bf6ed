"""Runs the driver of driver.py, in this process or in another one, which works in parallel and can be killed.

HiGHS may ignore its time limit, so this code never blocks on it. Ctrl-C is for the caller: the other process is in a
session of its own. It ends by itself when the caller is gone.
"""

from __future__ import annotations

from collections.abc import Sequence

from remat_solvers.optimal.program.driver import ProgramTask, RefinementDriver
from remat_solvers.optimal.program.refinement import RefinementStep
from remat_solvers.processes.child import Connection, PipeChild, connect_to_caller

TARGET = "remat_solvers.optimal.program.worker:run_child"
FIRST_SLICE_S = 4.0  # for a program, before moments are added
FIRST_SLICE_INLINE_S = 0.5


class InlineWorker:
    """Runs the driver in this process, a turn per `poll`; for small problems."""

    def __init__(self, task: ProgramTask, nodes: int | None = None) -> None:
        self._driver = RefinementDriver(task, FIRST_SLICE_INLINE_S, nodes)

    @property
    def busy(self) -> bool:
        """Whether more steps may come without a better incumbent."""
        return not self._driver.done

    def set_incumbent(self, sequence: Sequence[int], time_ns: int) -> None:
        """See `RefinementDriver.set_incumbent`."""
        self._driver.set_incumbent(sequence, time_ns)

    def poll(self, seconds: float) -> list[RefinementStep]:
        """Work for up to `seconds`."""
        return [self._driver.turn(seconds)] if self.busy else []

    def close(self) -> None:
        """There is no process to end."""


class ProcessWorker(PipeChild):
    """Runs the driver in another process, which begins at once. `close` it, or use it as a context."""

    def __init__(self, task: ProgramTask) -> None:
        super().__init__(TARGET)
        self._done = False
        self.connection.send(task)

    @property
    def busy(self) -> bool:
        """Whether more steps may come without a better incumbent."""
        if self.process is None:
            return False
        return self.connection.pending or (not self._done and self.running)

    def set_incumbent(self, sequence: Sequence[int], time_ns: int) -> None:
        """See `RefinementDriver.set_incumbent`."""
        self._done = False
        self.connection.send((list(sequence), time_ns))

    def poll(self, seconds: float = 0.0) -> list[RefinementStep]:
        """Return the steps that have come since the last call; wait up to `seconds` for the first one."""
        steps: list[RefinementStep] = self.connection.receive(seconds)
        if steps:
            self._done = steps[-1].done
        return steps


def run_child() -> None:
    """Work in the other process: turn after turn, or wait for an incumbent where nothing more can come."""
    connection = connect_to_caller()
    driver = RefinementDriver(connection.receive_one(), FIRST_SLICE_S)
    while True:
        _receive_incumbents(driver, connection, None if driver.done else 0.0)
        if not driver.done:
            connection.send(driver.turn(on_news=lambda step: _report(driver, connection, step)))


def _receive_incumbents(driver: RefinementDriver, connection: Connection, seconds: float | None) -> None:
    for sequence, time_ns in connection.receive(seconds):
        driver.set_incumbent(sequence, time_ns)


def _report(driver: RefinementDriver, connection: Connection, step: RefinementStep) -> bool:
    """Send a step that is not the last of its turn; whether to stop, since the bound has come near an incumbent."""
    connection.send(step)
    _receive_incumbents(driver, connection, 0.0)
    refinement = driver.refinement
    if refinement.incumbent_ns is None:
        return False
    return refinement.bound_ns >= refinement.incumbent_ns - refinement.tolerance_ns
