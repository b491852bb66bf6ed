"""vDNN (Rhu et al., MICRO 2016): offloads the inputs of layers in the forward, prefetches them in the backward.

solver.py has the method and its policies, layer_types.py the types of layers that the policies distinguish.
"""

from remat_solvers.swap.vdnn.solver import VDNN

__all__ = ["VDNN"]
