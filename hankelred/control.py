"""The model reduction functions of python-control under their own names, argument order and return types.

``from hankelred.control import balred, hsvd, gram, lyap, dlyap`` in place of ``from control import ...`` is
all a script needs. What changes: discrete-time and complex systems are treated as what they are, `dt` and signal
names survive, a list of orders costs one factorisation, and Slycot is not needed.
"""

from __future__ import annotations

import warnings
from numbers import Number
from typing import Any

import numpy as np
import scipy.linalg as sla
from numpy.typing import ArrayLike

from .checks import (
    Array,
    check_array,
    check_choice,
    check_integer,
    check_items,
    check_number,
    check_result,
    check_square,
    double,
)
from .errors import InputError, NonMinimalWarning, OrderError
from .hankel import gramian_factors, gramians, hankel_singular_values
from .linalg import equations
from .linalg.threads import one_blas_thread
from .lyapunov import solve_lyapunov
from .reduction import balance
from .systems import as_system


def balred(sys: Any, orders: Any, method: str = "truncate", alpha: float | None = None) -> Any:
    """Reduce a system to one order or several, like ``control.balred``.

    Parameters
    ----------
    sys : control.StateSpace, StateSpace, or anything `as_system` accepts
        Continuous or discrete, real or complex. Unstable poles are split off and kept.
    orders : int or sequence of int
        States to keep, unstable ones included.
    method : {"truncate", "matchdc"}, default "truncate"
        Balanced truncation, or singular perturbation, which is exact at s = 0 or z = 1.
    alpha : float, optional
        Stability boundary: poles with ``Re >= alpha``, or ``|.| >= alpha`` in discrete time, count as unstable.
        By default those within 1e-8 of the boundary do.

    Returns
    -------
    system or list of systems
        In the class of `sys`, with its dt and its input and output names. One system if one order was given, also
        in a sequence of one; otherwise a list.

    Raises
    ------
    InputError
        If `method` or `alpha` is unknown or out of range.
    OrderError
        If an order is out of range, or below the number of unstable poles.

    Warns
    -----
    NonMinimalWarning
        If the system has fewer states than asked for that link input to output; the result has that many.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> from hankelred.control import balred
    >>> plant = hr.StateSpace(np.diag([0.9, -0.5, 0.1]), np.ones((3, 1)), np.ones((1, 3)), dt=0.1)
    >>> [reduced.n for reduced in balred(plant, [1, 2])]
    [1, 2]
    """
    check_choice(method, "method", ("truncate", "matchdc"))
    system = as_system(sys)
    bal = balance(sys, 1e-8 if alpha is None else _offset(alpha, system.is_discrete))
    reduced = []
    for order in _whole_numbers(orders):
        if bal.rank < order < len(bal.hsv):
            warnings.warn(
                f"The numerical rank of the system is {bal.rank}, less than the order {order} asked for; the model "
                f"returned has order {bal.rank}. Its other states link no input to any output.",
                NonMinimalWarning,
                stacklevel=2,
            )
            order = bal.rank
        reduced.append(bal.reduce(order, match_dc=method == "matchdc").system)
    return reduced[0] if len(reduced) == 1 else reduced


def hsvd(sys: Any) -> Array:
    """Compute the Hankel singular values of a stable system, like ``control.hsvd``.

    Parameters
    ----------
    sys : control.StateSpace, StateSpace, or anything `as_system` accepts
        Continuous or discrete, real or complex.

    Returns
    -------
    (n,) ndarray
        Decreasing and real, in units of y per unit of u.

    Raises
    ------
    StabilityError
        If the system is not stable.

    Examples
    --------
    >>> from hankelred.control import hsvd
    >>> print(hsvd(([[1.0, -2.0], [3.0, -4.0]], [[5.0], [7.0]], [[6.0, 8.0]], [[9.0]])).round(5))
    [24.42686  0.57314]
    """
    return hankel_singular_values(sys)


def gram(sys: Any, type: str) -> Array:
    """Compute a Gramian or its triangular factor, like ``control.gram``.

    Parameters
    ----------
    sys : control.StateSpace, StateSpace, or anything `as_system` accepts
        Stable system.
    type : {"c", "o", "cf", "of"}
        Controllability or observability Gramian W, or its upper triangular factor R with ``W = R^H R``.

    Returns
    -------
    (n, n) ndarray
        W, or R with a nonnegative diagonal.

    Raises
    ------
    InputError
        If `type` is unknown.
    StabilityError
        If the system is not stable.

    Examples
    --------
    >>> from hankelred.control import gram
    >>> A, B, C = [[1.0, -2.0], [3.0, -4.0]], [[5.0, 6.0], [7.0, 8.0]], [[4.0, 5.0], [6.0, 7.0]]
    >>> print(gram((A, B, C, [[0.0, 0.0], [0.0, 0.0]]), "c").round(4))
    [[18.5 24.5]
     [24.5 32.5]]
    """
    check_choice(type, "type", ("c", "o", "cf", "of"))
    if type in ("c", "o"):
        return gramians(sys)["co".index(type)]
    S, R = gramian_factors(sys)
    factor = S.conj().T if type == "cf" else R
    n = factor.shape[1]
    triangle = np.zeros((n, n), dtype=factor.dtype)
    if factor.size:
        found = sla.qr(factor, mode="r")[0][: min(factor.shape)]
        phases = np.where(np.diag(found) == 0, 1, np.diag(found)).conj()
        triangle[: len(found)] = (phases / np.abs(phases))[:, None] * found
    return triangle


def lyap(A: ArrayLike, Q: ArrayLike, C: ArrayLike | None = None, E: ArrayLike | None = None) -> Array:
    """Solve a continuous Lyapunov or Sylvester equation, like ``control.lyap``.

    ``lyap(A, Q)`` solves ``A X + X A^H + Q = 0``, ``lyap(A, Q, C)`` solves ``A X + X Q + C = 0``, and
    ``lyap(A, Q, None, E)`` solves ``A X E^H + E X A^H + Q = 0``.

    Parameters
    ----------
    A : (n, n) array_like
        Real or complex.
    Q : (n, n) or (k, k) array_like
        Right side, which need not be symmetric; or the second coefficient of the Sylvester equation.
    C : (n, k) array_like, optional
        Right side of the Sylvester equation.
    E : (n, n) array_like, optional
        Nonsingular.

    Returns
    -------
    (n, n) or (n, k) ndarray
        X.

    Raises
    ------
    InputError
        If shapes disagree, an entry is not finite, both C and E are given, or E is singular.
    NumericalError
        If the equation is singular.

    Examples
    --------
    >>> from hankelred.control import lyap
    >>> print(lyap([[-1.0]], [[-3.0]], [[8.0]]))
    [[2.]]
    """
    return _equation(A, Q, C, E, 0)


def dlyap(A: ArrayLike, Q: ArrayLike, C: ArrayLike | None = None, E: ArrayLike | None = None) -> Array:
    """Solve a discrete Lyapunov or Sylvester equation, like ``control.dlyap``.

    ``dlyap(A, Q)`` solves ``A X A^H - X + Q = 0``, ``dlyap(A, Q, C)`` solves ``A X Q^H - X + C = 0``, and
    ``dlyap(A, Q, None, E)`` solves ``A X A^H - E X E^H + Q = 0``.

    Parameters
    ----------
    A : (n, n) array_like
        Real or complex.
    Q : (n, n) or (k, k) array_like
        Right side, which need not be symmetric; or the second coefficient of the Sylvester equation.
    C : (n, k) array_like, optional
        Right side of the Sylvester equation.
    E : (n, n) array_like, optional
        Nonsingular.

    Returns
    -------
    (n, n) or (n, k) ndarray
        X.

    Raises
    ------
    InputError
        If shapes disagree, an entry is not finite, both C and E are given, or E is singular.
    NumericalError
        If the equation is singular.

    Examples
    --------
    >>> from hankelred.control import dlyap
    >>> print(dlyap([[0.5]], [[3.0]]))
    [[4.]]
    """
    return _equation(A, Q, C, E, True)


def _whole_numbers(orders: Any) -> list[Any]:
    """Return one order or several as a list; floats that are whole numbers count as such, as in python-control."""
    one = isinstance(orders, Number) or isinstance(orders, np.ndarray) and orders.ndim == 0
    items = [np.asarray(orders)[()]] if one else check_items(orders, "orders")
    whole = [int(item) if isinstance(item, (float, np.floating)) and item.is_integer() else item for item in items]
    return [check_integer(item, "orders", 0, error=OrderError) for item in whole]


def _offset(alpha: float, discrete: bool) -> float:
    """Return the distance from the stability boundary that `alpha` stands for."""
    hint = "It moves the stability boundary inwards."
    if discrete:
        return 1.0 - check_number(alpha, "alpha", least=0.0, most=1.0, hint=hint)
    return 0.0 - check_number(alpha, "alpha", most=0.0, hint=hint)


def _equation(A: ArrayLike, Q: ArrayLike, C: ArrayLike | None, E: ArrayLike | None, dt: Any) -> Array:
    """Solve one of the three forms."""
    if C is not None and E is not None:
        raise InputError("C and E must not be given together; got both. The generalised Sylvester form is not offered.")
    if C is None and E is None:
        return solve_lyapunov(A, Q, dt)
    matrix, right = check_square(A), check_square(Q, "Q")
    if C is not None:
        C = check_array(C, "C", 2)
        if C.shape != (len(matrix), len(right)):
            raise InputError(
                f"C must be (n, k) for A (n, n) and Q (k, k); got A {matrix.shape}, Q {right.shape} and C {C.shape}."
            )
        dtype = np.result_type(matrix, right, C)
        solve = equations.stein if dt else equations.sylvester
        with one_blas_thread(len(matrix)):
            X = solve(double(matrix), double(right), double(C))
        check_result("The solution", X)
        return X.astype(dtype)
    descriptor = check_square(E, "E")
    if not matrix.shape == right.shape == descriptor.shape:
        raise InputError(f"Q and E must have the shape of A; got {matrix.shape}, {right.shape} and {descriptor.shape}.")
    dtype = np.result_type(matrix, right, descriptor)
    with one_blas_thread(len(matrix)):
        X = equations.generalised(double(matrix), double(right), double(descriptor), bool(dt))
    check_result("The solution", X)
    return X.astype(dtype)
