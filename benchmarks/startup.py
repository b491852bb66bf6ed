"""Measures the start-up of the command line: `scripts/bench startup`. Target: `remat --help` takes less than 0.3 s.

Every run is a new process. The time of the first, which may have to read files from disk, is shown beside the median.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

RUNS = 11
COMMANDS = (["--help"], ["solve", "--help"], ["solvers", "--json"])


def seconds(args: list[str]) -> float:
    """Return the wall-clock time of one `remat` process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "remat", *args], check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Print the first and the median time of each command."""
    for args in COMMANDS:
        times = [seconds(args) for _ in range(RUNS)]
        print(f"remat {' '.join(args):16} first {times[0]:.3f} s  median {statistics.median(times):.3f} s")


if __name__ == "__main__":
    main()
