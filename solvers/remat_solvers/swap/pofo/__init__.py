"""POFO (Beaumont, Eyraud-Dubois, Shilova, NeurIPS 2021): keeps, moves or recomputes the stages of a chain.

solver.py has the method, program.py its dynamic program over the stages.
"""

from remat_solvers.swap.pofo.solver import POFO

__all__ = ["POFO"]
