"""Exceptions and warnings of the adapter: on top of those of `hankelred.errors`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hankelred.errors import HankelredError, HankelredWarning, InputError


class SurgeryError(HankelredError, RuntimeError):
    """A cut left the model or an optimizer inconsistent, and everything was put back.

    Examples
    --------
    >>> import hankelred as hr, hankelred_torch as ht
    >>> issubclass(ht.SurgeryError, hr.HankelredError)
    True
    """


class OptimizerStateWarning(HankelredWarning):
    """What an optimizer keeps for a parameter is not carried through a cut: it is of an unknown kind, or not finite.

    Examples
    --------
    >>> import hankelred as hr, hankelred_torch as ht
    >>> issubclass(ht.OptimizerStateWarning, hr.HankelredWarning)
    True
    """


class RefusedCutWarning(HankelredWarning):
    """A layer was not cut to the order that was given, because it would have lost too much.

    Examples
    --------
    >>> import hankelred as hr, hankelred_torch as ht
    >>> issubclass(ht.RefusedCutWarning, hr.HankelredWarning)
    True
    """


@contextmanager
def reading(name: str, what: str) -> Iterator[None]:
    """Turn whatever reading a saved state of another form leads to into one error; nothing is taken over inside."""
    try:
        yield
    except HankelredError:
        raise
    except Exception as error:
        raise InputError(f"{name} must be {what}; got another: {type(error).__name__}: {error}.") from error
