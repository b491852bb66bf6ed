"""Kusumoto et al. 2019."""

from remat_solvers.recompute.kusumoto.solver import Kusumoto

__all__ = ["Kusumoto"]
