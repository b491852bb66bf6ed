"""Wang et al. 2018."""

from remat_solvers.swap.superneurons.solver import SuperNeurons

__all__ = ["SuperNeurons"]
