"""Exceptions and warnings of hankelred: classes only, no logic.

Whatever is wrong with an argument is an `InputError` (also a ``ValueError``); whatever fails in the numerics of
a correct argument is a `NumericalError` (also a ``numpy.linalg.LinAlgError``).
"""

from __future__ import annotations

import numpy as np


class HankelredError(Exception):
    """Base class of every error that hankelred raises on purpose."""


class InputError(HankelredError, ValueError):
    """An argument has the wrong shape, type or value."""


class OrderError(InputError):
    """The requested order, or a tolerance that asks for one, cannot be met."""


class StabilityError(InputError):
    """The operation needs a stable system and the system given is not."""


class NumericalError(HankelredError, np.linalg.LinAlgError):
    """A computation on valid input failed, or its result cannot be trusted."""


class DiagonalisationError(NumericalError):
    """A reduced diagonal system could not be brought back to diagonal form."""


class HankelredWarning(UserWarning):
    """Base class of every warning of hankelred."""


class RepeatedHsvWarning(HankelredWarning):
    """The cut separates Hankel singular values that are equal to working precision."""


class NonMinimalWarning(HankelredWarning):
    """Fewer states than asked for link inputs to outputs; the model returned has only those."""


class AccuracyWarning(HankelredWarning):
    """The result is usable, but less accurate than usual; the message holds the measured residual."""
