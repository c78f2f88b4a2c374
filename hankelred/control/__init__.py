"""The model reduction functions of python-control under their own names, argument order and return types.

``from hankelred.control import balred, hsvd, gram, lyap, dlyap, minreal, modred`` in place of ``from control import
...`` is all a script needs; errors are caught by what catches those of python-control. What changes: discrete-time and
complex systems are treated as what they are, `dt` and signal names survive, a list of orders costs one factorisation,
and Slycot is not needed.
"""

from .elimination import modred
from .equations import dlyap, lyap
from .models import balred, gram, hsvd, minreal

balanced_reduction, hankel_singular_values, minimal_realization, model_reduction = balred, hsvd, minreal, modred

__all__ = [
    "balanced_reduction",
    "balred",
    "dlyap",
    "gram",
    "hankel_singular_values",
    "hsvd",
    "lyap",
    "minimal_realization",
    "minreal",
    "model_reduction",
    "modred",
]
