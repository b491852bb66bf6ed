"""Checkmate (Jain et al., MLSys 2020): an integer program over stages; with a link, also over what to offload.

solver.py has the method, program.py the paper's integer program, solve.py its exact and its rounded solution.
offload_program.py has the coarse program that also offloads (with POET's variables), offload_search.py the local search
that goes on from its choice.
"""

from remat_solvers.recompute.checkmate.solver import Checkmate

__all__ = ["Checkmate"]
