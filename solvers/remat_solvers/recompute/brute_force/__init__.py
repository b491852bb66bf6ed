"""Exhaustive search."""

from remat_solvers.recompute.brute_force.solver import BruteForce

__all__ = ["BruteForce"]
