"""Kusumoto, Inoue, Watanabe, Akiba, Koyama: A Graph Theoretic Framework of Recomputation Algorithms. NeurIPS 2019.

`lower_sets` holds the forward graph and its families of lower sets, `program` the dynamic program over them, and
`solver` the method: the search over the formula's budgets, and the canonical strategy as a sequence of ops.
"""

from remat_solvers.recompute.kusumoto.solver import Kusumoto

__all__ = ["Kusumoto"]
