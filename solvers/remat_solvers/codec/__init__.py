"""The former name of `remat_solvers.formats`, which stays importable."""

from remat_solvers.formats import *  # noqa: F403
from remat_solvers.formats import __all__ as __all__
