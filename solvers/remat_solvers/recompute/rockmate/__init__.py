"""Zhao et al. 2023."""

from remat_solvers.recompute.rockmate.solver import Rockmate

__all__ = ["Rockmate"]
