"""Exceptions and warnings of hankelred: one class for each way out.

Whatever is wrong with an argument is an `InputError` (also a ``ValueError``); whatever fails in the numerics of
a correct argument is a `NumericalError` (also a ``numpy.linalg.LinAlgError``).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


class HankelredError(Exception):
    """Base class of every error that hankelred raises on purpose.

    Examples
    --------
    >>> import hankelred as hr
    >>> try:
    ...     hr.StateSpace([[-1.0]], [[1.0], [2.0]], [[1.0]])
    ... except hr.HankelredError as error:
    ...     print(type(error).__name__)
    InputError
    """


class InputError(HankelredError, ValueError):
    """An argument has the wrong shape, type or value.

    Examples
    --------
    >>> import hankelred as hr
    >>> hr.StateSpace([[-1.0]], [[1.0], [2.0]], [[1.0]])
    Traceback (most recent call last):
    ...
    hankelred.errors.InputError: B must have as many rows as A; got A (1, 1) and B (2, 1)...
    """


class OrderError(InputError):
    """The requested order, or a tolerance that asks for one, cannot be met.

    Examples
    --------
    >>> import hankelred as hr
    >>> hr.balanced_truncation(hr.StateSpace([[-1.0]], [[1.0]], [[1.0]]), order=5)
    Traceback (most recent call last):
    ...
    hankelred.errors.OrderError: ...
    """


class StabilityError(InputError):
    """The operation needs a stable system and the system given is not.

    Examples
    --------
    >>> import hankelred as hr
    >>> hr.gramians(hr.StateSpace([[1.0]], [[1.0]], [[1.0]]))
    Traceback (most recent call last):
    ...
    hankelred.errors.StabilityError: ...
    """


class NumericalError(HankelredError, np.linalg.LinAlgError):
    """A computation on valid input failed, or its result cannot be trusted.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> try:
    ...     hr.solve_lyapunov([[0.0]], [[1.0]])  # 0 x + x 0 + 1 = 0
    ... except np.linalg.LinAlgError as error:
    ...     print(type(error).__name__)
    NumericalError
    """


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

    Examples
    --------
    >>> import hankelred as hr
    >>> error = hr.DiagonalisationError("order 3 has a double pole.", orders=[2, 4])
    >>> isinstance(error, hr.NumericalError), error.orders
    (True, [2, 4])
    """

    def __init__(self, message: str, orders: Iterable[int] = (), systems: Iterable[int] = ()) -> None:
        super().__init__(message)
        self.orders, self.systems = list(orders), list(systems)


class HankelredWarning(UserWarning):
    """Base class of every warning of hankelred.

    Examples
    --------
    >>> import warnings, hankelred as hr
    >>> warnings.simplefilter("error", hr.HankelredWarning)  # a script that stops at any of them
    >>> warnings.resetwarnings()
    """


class RepeatedHsvWarning(HankelredWarning):
    """The cut separates Hankel singular values that are equal to working precision.

    Examples
    --------
    >>> import warnings, numpy as np, hankelred as hr
    >>> twice = hr.StateSpace(-np.eye(2), np.eye(2), np.eye(2))  # two equal systems side by side
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     reduction = hr.balanced_truncation(twice, order=1)
    >>> [warning.category.__name__ for warning in caught]
    ['RepeatedHsvWarning']
    """


class NonMinimalWarning(HankelredWarning):
    """Fewer states than asked for link inputs to outputs; the model returned has only those.

    Examples
    --------
    >>> import hankelred as hr
    >>> issubclass(hr.NonMinimalWarning, hr.HankelredWarning)
    True
    """


class AccuracyWarning(HankelredWarning):
    """The result is usable, but less accurate than usual; the message holds its estimated rounding error.

    Examples
    --------
    >>> import hankelred as hr
    >>> issubclass(hr.AccuracyWarning, hr.HankelredWarning)
    True
    """
