"""Peng et al. 2020."""

from remat_solvers.swap.capuchin.solver import Capuchin

__all__ = ["Capuchin"]
