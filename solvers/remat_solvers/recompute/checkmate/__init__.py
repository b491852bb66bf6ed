"""Jain et al. 2020."""

from remat_solvers.recompute.checkmate.solver import Checkmate

__all__ = ["Checkmate"]
