"""Checks of arguments, made once at the border of the library; private functions trust them.

Every message has three parts: what was wrong, what was got, what to do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import InputError, NumericalError, OrderError

Array = NDArray[Any]
T = TypeVar("T")

# The rounding unit of everything inside: computations run in double precision.
EPS = float(np.finfo(np.float64).eps)

SINGLE = (np.dtype(np.float32), np.dtype(np.complex64))
KEPT = (*SINGLE, np.dtype(np.float64), np.dtype(np.complex128))

# Said where a vector comes in place of a matrix.
B_HINT = "B is (n, m): write B[:, None] for one input."
C_HINT = "C is (p, n): write C[None, :] for one output."


def check_array(
    x: Any, name: str, ndim: int | None, hint: str = "", *, copy: bool = True, finite: bool = True
) -> Array:
    """Return `x` as a float or complex array of `ndim` axes without mask, NaN or infinity; of any if `ndim` is None."""
    array = _numbers(x, name, copy)
    if ndim is not None and array.ndim != ndim:
        raise InputError(f"{name} must have {ndim} axes; got shape {array.shape}. {hint}".rstrip())
    if finite and not is_finite(array):
        bad = int(array.size - np.isfinite(array).sum())
        raise InputError(
            f"{name} must be finite; got {bad} NaN or infinite of {array.size} entries. "
            f"Check the computation that produced this array."
        )
    return array


def check_real_array(
    x: Any, name: str, ndim: int | None, hint: str = "", *, copy: bool = True, finite: bool = True
) -> Array:
    """Return `x` as `check_array` does if it is real."""
    array = check_array(x, name, ndim, hint, copy=copy, finite=finite)
    if array.dtype.kind == "c":
        raise InputError(f"{name} must be real; got {array.dtype}. Pass {name}.real if that is meant.")
    return array


def _numbers(x: Any, name: str, copy: bool) -> Array:
    """Return `x` as an array in one of the four dtypes kept, infinite entries allowed."""
    if type(x) is np.ndarray and x.dtype in KEPT:
        return x.copy() if copy else x
    array = _plain_array(x, name, copy)
    if array.dtype not in KEPT:
        with np.errstate(over="ignore"):  # of extended precision: infinite then, and refused
            array = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
    return array


def _plain_array(x: Any, name: str, copy: bool) -> Array:
    """Return `x` as an array of numbers of any kind."""
    if _is_masked(x):
        raise InputError(f"{name} must not be masked; got a masked array. Fill or leave out its masked entries first.")
    if is_sparse(x):
        raise InputError(f"{name} must be a dense array; got {type(x).__name__}. Pass {name}.toarray().")
    try:
        array = np.array(x) if copy else np.asarray(x)
    except Exception as error:  # whatever __array__ of a foreign object raises
        reason = " ".join(str(error).split())
        raise InputError(f"{name} must be an array of numbers; got {type(x).__name__} ({reason}).") from error
    if array.dtype.kind not in "biufc":
        raise InputError(f"{name} must hold real or complex numbers; got dtype {array.dtype}.")
    return array


def is_sparse(x: Any) -> bool:
    """Tell whether this is a sparse matrix or array of SciPy, which need not be imported."""
    return type(x).__module__.startswith("scipy.sparse")


def as_dense(x: Any) -> Any:
    """Return a sparse matrix as an array, and everything else as it is."""
    return x.toarray() if is_sparse(x) else x


def _is_masked(x: Any) -> bool:
    masked = np.ma.MaskedArray
    return isinstance(x, masked) or isinstance(x, (list, tuple)) and any(isinstance(row, masked) for row in x)


def check_square(A: ArrayLike, name: str = "A") -> Array:
    """Return `A` as a finite square matrix."""
    array = check_array(A, name, 2)
    if array.shape[0] != array.shape[1]:
        raise InputError(f"{name} must be square; got shape {array.shape}.")
    return array


def check_dt(dt: Any) -> Any:
    """Return the sampling time, a Python number or True: 0 is continuous, a positive number or True is discrete."""
    if type(dt) is int and dt == 0:
        return 0
    if isinstance(dt, (bool, np.bool_)) and dt:
        return True
    if dt is None:
        raise InputError(
            "dt must be given; got None. Pass dt=0 for a continuous system, the sampling time in seconds "
            "for a discrete one, or True for a discrete system of unspecified sampling time."
        )
    if isinstance(dt, (bool, np.bool_)) or not isinstance(dt, Real):
        raise InputError(f"dt must be 0, a positive number of seconds, or True; got {dt!r}.")
    if dt < 0:
        raise InputError(f"dt must not be negative; got {dt!r}. Pass 0 if the system is continuous.")
    step = check_number(dt, "dt", hint="Pass 0 if the system is continuous.")
    if step == 0 and dt != 0:
        raise InputError(f"dt must be a number that double precision can hold; got {dt!r}. Use another unit of time.")
    return int(dt) if isinstance(dt, Integral) else step


def check_number(
    value: Any, name: str, *, least: float = -math.inf, below: float = math.inf, most: float = math.inf, hint: str = ""
) -> float:
    """Return a finite real number from `least` to `most` and less than `below` as a float."""
    if type(value) is not float and (isinstance(value, (bool, np.bool_)) or not isinstance(value, Real)):
        raise InputError(f"{name} must be a real number; got {value!r}. {hint}".rstrip())
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and least <= number <= most and number < below):
        limits = [f"at least {least:g}"] * (least > -math.inf) + [f"at most {most:g}"] * (most < math.inf)
        limits += [f"below {below:g}"] * (below < math.inf)
        raise InputError(f"{name} must be {' and '.join(limits) or 'finite'}; got {value!r}. {hint}".rstrip())
    return number


def check_integer(
    value: Any, name: str, least: int, most: int | None = None, hint: str = "", error: type[InputError] = InputError
) -> int:
    """Return an integer from `least` to `most` as an int."""
    if type(value) is not int and (isinstance(value, (bool, np.bool_)) or not isinstance(value, Integral)):
        raise error(f"{name} must be an integer; got {value!r}. {hint}".rstrip())
    number = int(value)
    if number < least or (most is not None and number > most):
        limits = f"at least {least}" if most is None else f"from {least} to {most}"
        raise error(f"{name} must be {limits}; got {value}. {hint}".rstrip())
    return number


def check_choice(value: Any, name: str, choices: Sequence[Any]) -> Any:
    """Return `value` if it is one of the choices."""
    if not isinstance(value, (str, int)) or value not in choices:
        raise InputError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}.")
    return value


def check_flag(value: Any, name: str) -> bool:
    """Return a truth value that is one: the string "false" is none."""
    if type(value) is not bool and (not isinstance(value, (np.bool_, Integral)) or value not in (0, 1)):
        raise InputError(f"{name} must be True or False; got {value!r}.")
    return bool(value)


def check_names(names: Any, what: str, count: int) -> tuple[str, ...] | None:
    """Return as many names as there are signals, or None."""
    if names is None:
        return None
    if type(names) is list and len(names) == count and set(map(type, names)) <= {str}:
        return tuple(names)
    if isinstance(names, (str, bytes)) or not isinstance(names, Iterable):
        raise InputError(f"{what} must be a sequence of {count} names; got {names!r}. Write {what}=[...].")
    found = tuple(check_items(names, what))
    if len(found) != count or not all(isinstance(name, str) for name in found):
        raise InputError(f"{what} must be a sequence of {count} names; got {len(found)}: {list(found)!r}.")
    return tuple(map(str, found))  # of classes derived from str too


def check_items(values: Any, name: str, hint: str = "") -> list[Any]:
    """Return the items of a sequence, or of whatever else can be walked through."""
    try:
        return list(values)
    except Exception as error:  # whatever iteration over a foreign object raises
        raise InputError(f"{name} must be a sequence; got {type(values).__name__}. {hint}".rstrip()) from error


def check_indices(indices: ArrayLike, name: str, count: int) -> Array:
    """Return indices into `count` things, or a truth value for each, as one axis of integers from 0 on."""
    array = _plain_array(indices, name, copy=False)
    if array.ndim == 1 and array.dtype.kind == "b" and len(array) == count:
        return np.flatnonzero(array)
    whole = array.dtype.kind in "iu" or array.size == 0
    if array.ndim != 1 or not whole or np.any(array < -count) or np.any(array >= count):
        raise InputError(
            f"{name} must be one axis of integers from {-count} to {count - 1}, or of {count} truth values; "
            f"got {indices!r}."
        )
    return array.astype(np.intp) % max(1, count)


def check_feedthrough(D: ArrayLike | None, p: int, m: int, lead: tuple[int, ...] = ()) -> Array:
    """Return D as a (..., p, m) matrix."""
    if D is None:
        return np.zeros((*lead, p, m), dtype=np.float32)  # takes the precision of the other matrices
    array = check_array(D, "D", None)
    if array.ndim == 0 and (array == 0 or p == m == 1):
        return np.full((*lead, p, m), array)
    if array.shape != (*lead, p, m):
        raise InputError(f"D must be {(*lead, p, m)}, rows as in C and columns as in B; got {array.shape}.")
    return array


def check_frequencies(omega: ArrayLike, discrete: bool) -> Array:
    """Return frequencies as one axis of floats; infinity is one in continuous time."""
    array = np.atleast_1d(_numbers(omega, "omega", copy=True))
    if array.ndim != 1 or array.dtype.kind == "c" or np.isnan(array).any():
        raise InputError(
            f"omega must be one axis of real frequencies without NaN; got {array.dtype}, shape {array.shape}."
        )
    if discrete and np.isinf(array).any():
        raise InputError("omega must be finite for a discrete system; got infinity. Its response is periodic.")
    return array.astype(np.float64)


def check_type(value: Any, name: str, kind: type[T], hint: str = "") -> T:
    """Return `value` if it is an instance of a class."""
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        got = "the class itself" if value is kind else type(value).__name__
        raise InputError(f"{name} must be {article} {kind.__name__}; got {got}. {hint}".rstrip())
    return value


def check_result(what: str, *values: Any, hint: str = "Scale inputs, outputs or time.") -> None:
    """Raise `NumericalError` unless every value is finite: what overflows must not look like a result."""
    if not all(map(is_finite, values)):
        raise NumericalError(f"{what} must be finite in double precision; got overflow. {hint}")


def is_finite(x: Any) -> bool:
    """Tell whether every entry is finite."""
    return 0 not in np.isfinite(x).tobytes("A")  # of a few entries twice as fast as a reduction


def exactly_one(**criteria: Any) -> tuple[str, Any]:
    """Return name and value of the one criterion given."""
    given = {name: value for name, value in criteria.items() if value is not None}
    if len(given) != 1:
        raise OrderError(
            f"Exactly one of {', '.join(criteria)} must be given; got {', '.join(given) or 'none'}. "
            f"For example rtol=1e-3 keeps every Hankel singular value above a thousandth of the largest."
        )
    return given.popitem()


def is_discrete(dt: Any) -> bool:
    """Tell whether a checked `dt` denotes a discrete system."""
    return bool(dt is True or dt > 0)


def double(x: Array) -> Array:
    """Return `x` in double precision, real or complex as it is: the precision of everything inside."""
    return x.astype(np.complex128 if x.dtype.kind == "c" else np.float64, copy=False)


def single(x: Array) -> Array:
    """Return `x` in single precision."""
    return x.astype(np.complex64 if x.dtype.kind == "c" else np.float32, copy=False)


def in_family(x: Array, dtype: np.dtype[Any]) -> Array:
    """Return `x` in single precision where `dtype` is."""
    return single(x) if dtype in SINGLE else x


def readonly(x: Array) -> Array:
    """Return `x` with writing switched off, so that a frozen system stays frozen."""
    x.flags.writeable = False
    return x
