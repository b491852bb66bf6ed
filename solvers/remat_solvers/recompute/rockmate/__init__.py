"""Zhao, Le Hellard, Eyraud-Dubois, Gusak, Beaumont: Rockmate. ICML 2023, PMLR 202.

`blocks` turns the stages of a chain into problems of their own and solves them by Checkmate's program; `solver` holds
the method: the chains, their blocks, and the dynamic program over the options that the blocks offer.
"""

from remat_solvers.recompute.rockmate.solver import Rockmate

__all__ = ["Rockmate"]
