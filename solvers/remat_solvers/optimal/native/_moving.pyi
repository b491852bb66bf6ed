from remat_solvers.optimal.local_search.annealing import FlatGraph

class Mover:
    def __new__(
        cls,
        graph: FlatGraph,
        to_host_ns: list[int],
        to_device_ns: list[int],
        moves: list[int],
        host_bytes: int,
        budget_bytes: int,
        seed: int,
    ) -> Mover: ...
    def offer(
        self,
        sequence: list[int],
        boundary: int,
        values: list[int],
        backs: list[int],
        leads: list[int],
        early: list[int],
    ) -> bool: ...
    def run(self, moves: int, seconds: float, hot_ns: float, cold_ns: float) -> int: ...
    def restart(self) -> None: ...
    def best(self) -> tuple[int, int, int] | None: ...
    def choice(self) -> tuple[list[int], list[tuple[int, int, int, int]]]: ...
    def actions(self) -> list[tuple[int, int]] | None: ...
