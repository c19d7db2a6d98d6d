"""Fixed points and their gradients: immutable settings in, a solution with per-block results out.

A model is three independent choices: the map that is iterated, the solver that iterates it, the adjoint that
differentiates through it. Deep unrolling is Picard with a fixed number of iterations and the `Unrolled` adjoint; a deep
equilibrium model is any solver with another one.
"""

from hpcdeq.solvers.adjoint import Adjoint, Implicit, JacobianFree, Phantom, Solver, Unrolled, equilibrium
from hpcdeq.solvers.anderson import Anderson
from hpcdeq.solvers.broyden import Broyden
from hpcdeq.solvers.fixed_point import FixedPointMap, Solution, transpose_by_autograd
from hpcdeq.solvers.jacobian import jacobian_penalty, spectral_radius
from hpcdeq.solvers.picard import Picard

__all__ = [
    "Adjoint",
    "Anderson",
    "Broyden",
    "FixedPointMap",
    "Implicit",
    "JacobianFree",
    "Phantom",
    "Picard",
    "Solution",
    "Solver",
    "Unrolled",
    "equilibrium",
    "jacobian_penalty",
    "spectral_radius",
    "transpose_by_autograd",
]
