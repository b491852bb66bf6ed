"""Beaumont et al. 2021."""

from remat_solvers.swap.pofo.solver import POFO

__all__ = ["POFO"]
