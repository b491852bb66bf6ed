"""Capuchin (Peng et al., ASPLOS 2020): evicts tensors between two accesses, by swapping or by recomputing.

solver.py has the method, policy.py the choice of what is evicted and how, guided.py the executions with feedback.
"""

from remat_solvers.swap.capuchin.solver import Capuchin

__all__ = ["Capuchin"]
