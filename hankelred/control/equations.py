"""Lyapunov, Sylvester and Stein equations under the names of python-control."""

from __future__ import annotations

import sys as interpreter
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..checks import Array, check_array, double
from ..errors import InputError
from ..linalg import equations
from ..linalg.threads import one_blas_thread
from ..lyapunov import solve_lyapunov
from ._errors import caught_as_both


def lyap(
    A: ArrayLike, Q: ArrayLike, C: ArrayLike | None = None, E: ArrayLike | None = None, method: str | None = None
) -> Array:
    """Solve a continuous Lyapunov or Sylvester equation, like ``control.lyap``.

    ``lyap(A, Q)`` solves ``A X + X A^H + Q = 0``, ``lyap(A, Q, C)`` solves ``A X + X Q + C = 0``, and
    ``lyap(A, Q, None, E)`` solves ``A X E^H + E X A^H + Q = 0``.

    Parameters
    ----------
    A : (n, n) array_like
        Real or complex; here and below a number is a matrix of one entry, and a vector one of one row.
    Q : (n, n) or (k, k) array_like
        Right side, which need not be symmetric; or the second coefficient of the Sylvester equation.
    C : (n, k) array_like, optional
        Right side of the Sylvester equation.
    E : (n, n) array_like, optional
        Nonsingular.
    method : {"slycot", "scipy"}, optional
        Without effect: every equation goes to the solver of this library, which offers all forms.

    Returns
    -------
    (n, n) or (n, k) ndarray
        X; a number where all arguments are numbers.

    Raises
    ------
    InputError
        If shapes disagree, an entry is not finite, both C and E are given, E is singular, or `method` is unknown.
    NumericalError
        If the equation is singular.

    Examples
    --------
    >>> from hankelred.control import lyap
    >>> print(lyap(-1.0, -3.0, 8.0))
    2.0
    """
    return _solution(A, Q, C, E, method, False)


def dlyap(
    A: ArrayLike, Q: ArrayLike, C: ArrayLike | None = None, E: ArrayLike | None = None, method: str | None = None
) -> Array:
    """Solve a discrete Lyapunov or Sylvester equation, like ``control.dlyap``.

    ``dlyap(A, Q)`` solves ``A X A^H - X + Q = 0``, ``dlyap(A, Q, C)`` solves ``A X Q^H - X + C = 0``, and
    ``dlyap(A, Q, None, E)`` solves ``A X A^H - E X E^H + Q = 0``.

    Parameters
    ----------
    A, Q, C, E, method
        Of the shapes and kinds that `lyap` takes.

    Returns
    -------
    (n, n) or (n, k) ndarray
        X; a number where all arguments are numbers.

    Raises
    ------
    InputError, NumericalError
        In the cases in which `lyap` raises them.

    Examples
    --------
    >>> from hankelred.control import dlyap
    >>> print(dlyap([[0.5]], [[3.0]]))
    [[4.]]
    """
    return _solution(A, Q, C, E, method, True)


def _as_in_control(name: str, plain: type[Exception], message: str) -> Any:
    """Return an input error that is also python-control's of that name if it is loaded, else the built-in it is."""
    theirs: Any = getattr(interpreter.modules.get("control.exception"), name, plain)
    return caught_as_both(InputError, theirs)(message)


def _solution(
    A: ArrayLike, Q: ArrayLike, C: ArrayLike | None, E: ArrayLike | None, method: Any, discrete: bool
) -> Array:
    """Solve one of the three forms; numbers alone have a number as their solution."""
    if not (method is None or isinstance(method, str) and method in ("slycot", "scipy")):
        message = f'method must be "slycot", "scipy" or None, and makes no difference; got {method!r}.'
        raise _as_in_control("ControlArgument", TypeError, message)
    if C is not None and E is not None:
        message = "C and E must not be given together; got both. The generalised Sylvester form is not offered."
        raise _as_in_control("ControlArgument", TypeError, message)
    matrix, right = _matrix_argument(A, "A", square=True), _matrix_argument(Q, "Q", square=True)
    if C is None and matrix.shape != right.shape:
        message = f"Q must have the shape of A; got A {matrix.shape} and Q {right.shape}."
        raise _as_in_control("ControlDimension", ValueError, message)
    if C is None and E is None:
        X = solve_lyapunov(matrix, right, True if discrete else 0)
    else:
        third = _matrix_argument(C, "C") if E is None else _matrix_argument(E, "E", square=True)
        if third.shape != (len(matrix), len(right)):
            wanted = "E must have the shape of A" if C is None else "C must be (n, k) for A (n, n) and Q (k, k)"
            message = f"{wanted}; got A {matrix.shape}, Q {right.shape} and {'E' if C is None else 'C'} {third.shape}."
            raise _as_in_control("ControlDimension", ValueError, message)
        dtype = np.result_type(matrix, right, third)
        matrix, right, third = (double(x) for x in (matrix, right, third))
        with one_blas_thread(len(matrix)):
            if C is None:
                X = equations.generalised(matrix, right, third, discrete).astype(dtype)
            else:
                X = (equations.stein if discrete else equations.sylvester)(matrix, right, third).astype(dtype)
    only_numbers = all(x is None or np.ndim(x) == 0 for x in (A, Q, C, E))
    return X[0, 0] if only_numbers else X


def _matrix_argument(x: Any, name: str, square: bool = False) -> Array:
    """Return a checked matrix; a number is one of one entry, a vector one of one row."""
    array = check_array(x, name, None)
    array = array.reshape(1, -1) if array.ndim < 2 else array
    if array.ndim != 2 or square and array.shape[0] != array.shape[1]:
        kind = "a square matrix" if square else "a matrix"
        raise _as_in_control("ControlDimension", ValueError, f"{name} must be {kind}; got shape {array.shape}.")
    return array
