"""SuperNeurons (Wang et al., PPoPP 2018): swaps checkpoints, recomputes the layers between them.

solver.py has the method and its strategies, tensor_pool.py the tensor pool and the cache that move checkpoints,
pool_allocator.py the pool of 1 KB blocks that places a plan.
"""

from remat_solvers.swap.superneurons.solver import SuperNeurons

__all__ = ["SuperNeurons"]
