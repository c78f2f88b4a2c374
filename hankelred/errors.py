"""Exceptions and warnings of hankelred: one class for each way out.

Whatever is wrong with an argument is an `InputError` (also a ``ValueError``); whatever fails in the numerics of
a correct argument is a `NumericalError` (also a ``numpy.linalg.LinAlgError``).
"""

from __future__ import annotations

from collections.abc import Iterable

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
    """A reduced diagonal system could not be brought back to diagonal form.

    Parameters
    ----------
    message : str
        What was wrong, what was got, what to do.
    orders : iterable of int, optional
        The nearest orders that work, where they are known.
    systems : iterable of int, optional
        Which systems of a bank failed.
    """

    def __init__(self, message: str, orders: Iterable[int] = (), systems: Iterable[int] = ()) -> None:
        super().__init__(message)
        self.orders, self.systems = list(orders), list(systems)


class HankelredWarning(UserWarning):
    """Base class of every warning of hankelred."""


class RepeatedHsvWarning(HankelredWarning):
    """The cut separates Hankel singular values that are equal to working precision."""


class NonMinimalWarning(HankelredWarning):
    """Fewer states than asked for link inputs to outputs; the model returned has only those."""


class AccuracyWarning(HankelredWarning):
    """The result is usable, but less accurate than usual; the message holds its estimated rounding error."""
