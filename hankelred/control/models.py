"""Reduction, Hankel singular values, Gramians and minimal realisations of models of python-control."""

from __future__ import annotations

import sys as interpreter
import warnings
from typing import Any

import numpy as np
import scipy.linalg as sla

from ..checks import Array, check_choice, check_flag, check_integer, check_number
from ..errors import NonMinimalWarning, OrderError
from ..hankel import gramian_factors, gramians, hankel_singular_values
from ..linalg.threads import one_blas_thread
from ..reduction import balance, minimal
from ..reduction.balanced import OFFSET, reduced_model
from ..systems import as_container, as_system, one_system
from .elimination import METHODS, is_list


def balred(sys: Any, orders: Any, method: str = "truncate", alpha: float | None = None) -> Any:
    """Reduce a system to one order or several, like ``control.balred``.

    Parameters
    ----------
    sys : control.StateSpace, StateSpace, or anything `as_system` accepts
        Continuous or discrete, real or complex. Unstable poles are split off and kept.
    orders : int or sequence of int
        States to keep, unstable ones included; whole floats count as integers.
    method : {"truncate", "matchdc"}, default "truncate"
        Balanced truncation, or singular perturbation, which is exact at s = 0 or z = 1.
    alpha : float, optional
        Stability boundary: poles with ``Re >= alpha``, or ``|.| >= alpha`` in discrete time, count as unstable.
        By default those within 1e-8 of the boundary do.

    Returns
    -------
    system or list of systems
        With the dt and the input and output names of `sys`, and in its class; a ``control.StateSpace`` or a
        ``scipy.signal.StateSpace`` for transfer functions. One system if one order was given, also in a sequence of
        one; otherwise a list.

    Raises
    ------
    InputError
        If `method` or `alpha` is unknown or out of range.
    OrderError
        If an order is no whole number, out of range, or below the number of unstable poles.

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
    match_dc = check_choice(method, "method", METHODS) == "matchdc"
    orders, system = _order_list(orders), as_system(sys)
    reduced = []
    with one_blas_thread(system.order):  # once for all steps
        bal = balance(system, OFFSET if alpha is None else _offset(alpha, system))
        for order in orders:
            if bal.rank < order < len(bal.hsv):
                warnings.warn(
                    f"The numerical rank of the system is {bal.rank}, less than the order {order} asked for; the model "
                    f"returned has order {bal.rank}. Its other states link no input to any output.",
                    NonMinimalWarning,
                    stacklevel=2,
                )
                order = bal.rank
            reduced.append(as_container(reduced_model(bal, order, match_dc), sys))
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
    if check_choice(type, "type", ("c", "o", "cf", "of")) in ("c", "o"):
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


def minreal(sys: Any, tol: float | None = None, verbose: bool = True) -> Any:
    """Leave out the states that link no input to any output, like ``control.minreal``.

    Parameters
    ----------
    sys : control.StateSpace, control.TransferFunction, StateSpace, or anything `as_system` accepts
        Continuous or discrete, real or complex, stable or not.
    tol : float, optional
        Drop states whose Hankel singular value is at most this share of the largest, of the stable states and of each
        group of unstable ones, as `minimal` does; by default those whose values are rounding.
    verbose : bool, default True
        Print how many states were left out.

    Returns
    -------
    system
        With the dt and the input and output names of `sys`, and in its class; a ``scipy.signal.StateSpace`` for all
        forms of scipy.signal, a `StateSpace` for a `DiagonalSystem`. A minimal system comes back as it is.

    Raises
    ------
    InputError
        If `sys` is not a system, or an argument is out of range.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> from hankelred.control import minreal
    >>> twice = hr.StateSpace(np.eye(2), [[1.0], [1.0]], [[1.0, 1.0]])  # the same unstable state twice
    >>> minreal(twice).n
    1 states have been removed from the model
    1
    """
    check_flag(verbose, "verbose")
    system = one_system(sys)
    G = system.dense()
    found = minimal(G, None if tol is None else check_number(tol, "tol", least=0.0, below=1.0)).system
    if verbose:
        print(f"{G.n - found.n} states have been removed from the model")
    if found is G:
        return as_container(system, sys) if isinstance(sys, tuple) else sys
    model = as_container(found, sys)
    if type(sys).__name__ == "TransferFunction":  # python-control's: those of scipy.signal have a longer name
        return interpreter.modules["control"].ss2tf(model, name=sys.name)
    return model


def _order_list(orders: Any) -> list[int]:
    """Return orders as integers; whole floats are some."""
    if not is_list(orders):
        orders = [orders.item() if isinstance(orders, np.ndarray) else orders]
    whole = [int(k) if isinstance(k, (float, np.floating)) and float(k).is_integer() else k for k in orders]
    return [check_integer(k, "order", 0, hint="Pass an integer or a list of them.", error=OrderError) for k in whole]


def _offset(alpha: float, system: Any) -> float:
    """Return the distance from the stability boundary that `alpha` stands for."""
    if system.is_discrete:
        hint = "It is a modulus that moves the stability boundary inwards."
        return 1.0 - check_number(alpha, "alpha", least=0.0, most=1.0, hint=hint)
    return -check_number(alpha, "alpha", most=0.0, hint="It is a real part that moves the stability boundary inwards.")
