"""Checks of arguments, made once at the border of the library; private functions trust them.

Every message has three parts: what was wrong, what was got, what to do.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import InputError, StabilityError

Array = NDArray[Any]

# The rounding unit of everything inside: computations run in double precision.
EPS = float(np.finfo(np.float64).eps)

# Said where a vector comes in place of a matrix.
B_HINT = "B is (n, m): write B[:, None] for one input."
C_HINT = "C is (p, n): write C[None, :] for one output."


def check_array(x: ArrayLike, name: str, ndim: int, hint: str = "") -> Array:
    """Return `x` as a new float or complex array of `ndim` axes without NaN or infinity."""
    try:
        array = np.array(x)
    except (ValueError, TypeError) as error:
        raise InputError(f"{name} must be an array of numbers; got {type(x).__name__} ({error}).") from error
    if array.dtype.kind not in "biufc":
        raise InputError(f"{name} must hold real or complex numbers; got dtype {array.dtype}.")
    if array.ndim != ndim:
        raise InputError(f"{name} must have {ndim} axes; got shape {array.shape}.{' ' + hint if hint else ''}")
    if array.dtype not in (np.float32, np.complex64, np.complex128):
        array = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
    if not np.isfinite(array).all():
        bad = int(array.size - np.isfinite(array).sum())
        raise InputError(
            f"{name} must be finite; got {bad} NaN or infinite of {array.size} entries. "
            f"Look for the first step that produced them."
        )
    return array


def check_square(A: ArrayLike, name: str = "A") -> Array:
    """Return `A` as a finite square matrix."""
    array = check_array(A, name, 2)
    if array.shape[0] != array.shape[1]:
        raise InputError(f"{name} must be square; got shape {array.shape}.")
    return array


def check_dt(dt: Any) -> Any:
    """Return the sampling time unchanged: 0 is continuous, a positive number or True is discrete."""
    if dt is True or isinstance(dt, np.bool_) and bool(dt):
        return True
    if dt is None:
        raise InputError(
            "dt must be given; got None. Pass dt=0 for a continuous system, the sampling time in seconds "
            "for a discrete one, or True for a discrete system of unspecified sampling time."
        )
    if isinstance(dt, (bool, np.bool_)) or not isinstance(dt, Real) or not math.isfinite(dt):
        raise InputError(f"dt must be 0, a positive number of seconds, or True; got {dt!r}.")
    if float(dt) < 0:
        raise InputError(f"dt must not be negative; got {dt!r}. Pass 0 if the system is continuous.")
    return dt


def check_feedthrough(D: ArrayLike | None, p: int, m: int) -> Array:
    """Return D as a (p, m) matrix."""
    if D is None or np.ndim(D) == 0 and (np.asarray(D) == 0 or p == m == 1):
        return np.full((p, m), 0.0 if D is None else D, dtype=np.result_type(np.float32, 0.0 if D is None else D))
    D = check_array(D, "D", 2)
    if D.shape != (p, m):
        raise InputError(f"D must be ({p}, {m}), rows as in C and columns as in B; got {D.shape}.")
    return D


def check_descriptor(E: ArrayLike, n: int) -> Array:
    """Return E if it is (n, n) and nonsingular to working precision."""
    E = check_square(E, "E")
    if len(E) != n:
        raise InputError(f"E must have the shape of A; got A ({n}, {n}) and E {E.shape}.")
    if n and np.linalg.matrix_rank(double(E)) < n:
        raise InputError(
            f"E must be nonsingular; got numerical rank {np.linalg.matrix_rank(double(E))} of {n}. "
            f"Remove the algebraic equations first: systems with singular E are not supported."
        )
    return E


def check_frequencies(omega: ArrayLike) -> Array:
    """Return frequencies as one axis of floats, infinity allowed."""
    omega = np.atleast_1d(np.asarray(omega, dtype=np.float64))
    if omega.ndim != 1 or np.isnan(omega).any():
        raise InputError(f"omega must be one axis of frequencies without NaN; got shape {omega.shape}.")
    return omega


def is_discrete(dt: Any) -> bool:
    """Tell whether a checked `dt` denotes a discrete system."""
    return bool(dt is True or dt > 0)


def instability(poles: Array, dt: Any) -> float:
    """Return how far the outermost pole lies beyond the stability boundary; negative means stable."""
    if len(poles) == 0:
        return -np.inf
    return float(np.max(np.abs(poles)) - 1.0) if is_discrete(dt) else float(np.max(np.real(poles)))


def check_stable(poles: Array, dt: Any, name: str = "A") -> None:
    """Raise `StabilityError` unless every pole lies strictly inside the stability region."""
    excess = instability(poles, dt)
    if excess < 0:
        return
    if is_discrete(dt):
        raise StabilityError(
            f"{name} must be stable for dt={dt} (all |eig| < 1); got |eig| = {excess + 1:.6g}. "
            f"Reduce the stable part (balance splits it off, with scale=True also where units differ by many "
            f"orders), or pass dt=0 if {name} is continuous."
        )
    raise StabilityError(
        f"{name} must be stable for dt=0 (all real parts < 0); got max Re eig = {excess:.6g}. "
        f"Reduce the stable part (balance splits it off, with scale=True also where units differ by many "
        f"orders), or pass dt if {name} is discrete."
    )


def double(x: Array) -> Array:
    """Return `x` in double precision, real or complex as it is: the precision of everything inside."""
    return x.astype(np.complex128 if x.dtype.kind == "c" else np.float64, copy=False)


def readonly(x: Array) -> Array:
    """Return `x` with writing switched off, so that a frozen system stays frozen."""
    x.flags.writeable = False
    return x
