"""Exhaustive search for the exact optimum of tiny problems: the oracle that other methods are tested against.

`states` searches the plans without offload, `states_with_copies` all plans of a problem with a link, and `solver` holds
the method, which chooses between the two and proves what it found.
"""

from remat_solvers.recompute.brute_force.solver import BruteForce

__all__ = ["BruteForce"]
