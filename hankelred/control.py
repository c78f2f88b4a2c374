"""The model reduction functions of python-control under their own names, argument order and return types.

``from hankelred.control import balred, hsvd, gram, lyap, dlyap, minreal, modred`` in place of ``from control import
...`` is all a script needs; errors are caught by what catches those of python-control. What changes: discrete-time and
complex systems are treated as what they are, `dt` and signal names survive, a list of orders costs one factorisation,
and Slycot is not needed.
"""

from __future__ import annotations

import sys as interpreter
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import scipy.linalg as sla
from numpy.typing import ArrayLike

from .checks import EPS, Array, check_array, check_choice, check_flag, check_integer, check_number, double, in_family
from .errors import HankelredWarning, InputError, NonMinimalWarning, NumericalError, OrderError
from .hankel import gramian_factors, gramians
from .hankel import hankel_singular_values as _hankel_singular_values
from .linalg import equations
from .linalg.descriptor import equilibrated
from .linalg.threads import one_blas_thread
from .lyapunov import solve_lyapunov
from .reduction import balance
from .reduction.balanced import OFFSET
from .reduction.realisation import without_idle_states
from .systems import StateSpace, as_container, as_system

METHODS = ("truncate", "matchdc")


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
    bal = balance(system, OFFSET if alpha is None else _offset(alpha, system))
    reduced = []
    for order in orders:
        if bal.rank < order < len(bal.hsv):
            warnings.warn(
                f"The numerical rank of the system is {bal.rank}, less than the order {order} asked for; the model "
                f"returned has order {bal.rank}. Its other states link no input to any output.",
                NonMinimalWarning,
                stacklevel=2,
            )
            order = bal.rank
        reduced.append(as_container(bal.reduce(order, match_dc=match_dc).system, sys))
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
    return _hankel_singular_values(sys)


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
    return _equation(A, Q, C, E, method, False)


def dlyap(
    A: ArrayLike, Q: ArrayLike, C: ArrayLike | None = None, E: ArrayLike | None = None, method: str | None = None
) -> Array:
    """Solve a discrete Lyapunov or Sylvester equation, like ``control.dlyap``.

    ``dlyap(A, Q)`` solves ``A X A^H - X + Q = 0``, ``dlyap(A, Q, C)`` solves ``A X Q^H - X + C = 0``, and
    ``dlyap(A, Q, None, E)`` solves ``A X A^H - E X E^H + Q = 0``.

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
    >>> from hankelred.control import dlyap
    >>> print(dlyap([[0.5]], [[3.0]]))
    [[4.]]
    """
    return _equation(A, Q, C, E, method, True)


def minreal(sys: Any, tol: float | None = None, verbose: bool = True) -> Any:
    """Leave out the states that link no input to any output, like ``control.minreal``.

    Parameters
    ----------
    sys : control.StateSpace, control.TransferFunction, StateSpace, or anything `as_system` accepts
        Continuous or discrete, real or complex, stable or not.
    tol : float, optional
        Drop states whose Hankel singular value is at most this share of the largest, of the stable and of the
        unstable states each; by default those whose values are rounding.
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

    Notes
    -----
    Unstable states have no Hankel singular values, but ``A - s I`` has the same uncontrollable and unobservable states
    as A, and so has ``A / s``: the part of unstable and marginal poles is moved into the stability region, reduced
    there, and moved back.

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
    system = as_system(sys)
    G = system.dense()
    found = without_idle_states(G, None if tol is None else check_number(tol, "tol", least=0.0, below=1.0))
    if verbose:
        print(f"{G.n - found.n} states have been removed from the model")
    if found is G:
        return as_container(system, sys) if isinstance(sys, tuple) else sys
    model = as_container(found, sys)
    if type(sys).__name__ == "TransferFunction":  # python-control's: those of scipy.signal have a longer name
        return interpreter.modules["control"].ss2tf(model, name=sys.name)
    return model


def modred(
    sys: Any,
    elim_states: Any = None,
    method: str = "matchdc",
    elim_inputs: Any = None,
    elim_outputs: Any = None,
    keep_states: Any = None,
    keep_inputs: Any = None,
    keep_outputs: Any = None,
    warn_unstable: bool = True,
) -> Any:
    """Leave out given states, inputs and outputs, like ``control.modred``.

    Parameters
    ----------
    sys : control.StateSpace, scipy.signal.StateSpace, StateSpace or tuple
        Continuous or discrete, real or complex.
    elim_states : int, str, slice or sequence of them, optional
        States to leave out, by number or name.
    method : {"matchdc", "truncate"}, default "matchdc"
        Let the states left out follow the others without delay, which keeps the gain at s = 0 or z = 1, or drop them.
    elim_inputs, elim_outputs : int, str, slice or sequence of them, optional
        Inputs and outputs to leave out.
    keep_states, keep_inputs, keep_outputs : int, str, slice or sequence of them, optional
        What is not to be left out, instead of what is.
    warn_unstable : bool, default True
        Warn if the system is not stable.

    Returns
    -------
    system
        In the class of `sys`, with its dt and the names of what is left.

    Raises
    ------
    InputError
        If `sys` is no state space model (a TypeError too), a name or number is unknown (an IndexError too if it is a
        number), or both ways to choose are used.
    NumericalError
        If the states left out have a pole at s = 0 or z = 1 and cannot follow.

    Warns
    -----
    HankelredWarning
        If the system is not stable: the reduced model says little about it.

    Examples
    --------
    >>> import hankelred as hr
    >>> from hankelred.control import modred
    >>> motor = hr.StateSpace([[-1.0, 2.0], [-1.0, -50.0]], [[0.0], [1.0]], [[1.0, 0.0]], states=["speed", "current"])
    >>> print(modred(motor, "current").A)
    [[-1.04]]
    """
    check_choice(method, "method", METHODS)
    check_flag(warn_unstable, "warn_unstable")
    try:
        system = as_system(sys)
    except InputError as error:
        raise _joint(InputError, TypeError)(str(error)) from None
    if (
        not isinstance(system, StateSpace)
        or hasattr(sys, "zeros")
        and not hasattr(sys, "A")
        or system.order != system.n
    ):
        raise _joint(InputError, TypeError)(
            f"sys must have states of its own; got {type(sys).__qualname__}. Pass a state space model with regular E."
        )
    G = system.dense()
    kept, left_out = _chosen("states", elim_states, keep_states, G.states, G.n)
    inputs, _ = _chosen("inputs", elim_inputs, keep_inputs, G.inputs, G.m)
    outputs, _ = _chosen("outputs", elim_outputs, keep_outputs, G.outputs, G.p)
    if warn_unstable and not G.is_stable():
        warnings.warn(
            "The system is not stable, and a model with fewer states may say nothing about it. Use balred, which keeps "
            "unstable poles, or pass warn_unstable=False.",
            HankelredWarning,
            stacklevel=2,
        )
    A, B, C, D = G.A[np.ix_(kept, kept)], G.B[kept], G.C[:, kept], G.D.copy()
    if method == "matchdc" and left_out:
        fast = G.A[np.ix_(left_out, left_out)] - G.is_discrete * np.eye(len(left_out))
        rows, columns = equilibrated(fast)
        sizes = sla.svdvals(fast * rows[:, None] * columns)
        if sizes[-1] <= EPS * len(fast) * sizes[0]:
            place = "z = 1" if G.is_discrete else "s = 0"
            raise NumericalError(
                f"The states left out must have no pole at {place}; got one, with which they follow no other state. "
                f'Keep one of them, or use method="truncate".'
            )
        follow = sla.solve(fast, np.hstack([G.A[np.ix_(left_out, kept)], G.B[left_out]]))
        across, states, driven = G.A[np.ix_(kept, left_out)], follow[:, : len(kept)], follow[:, len(kept) :]
        A, B = A - across @ states, B - across @ driven
        C, D = C - G.C[:, left_out] @ states, D - G.C[:, left_out] @ driven
    names = {
        "states": _names_left(G.states, kept),
        "inputs": _names_left(G.inputs, inputs),
        "outputs": _names_left(G.outputs, outputs),
    }
    A, B, C, D = (in_family(x, system.dtype) for x in (A, B[:, inputs], C[outputs], D[np.ix_(outputs, inputs)]))
    return as_container(StateSpace.trusted(A, B, C, D, G.dt, {"name": G.name, **names}), sys)


balanced_reduction, hankel_singular_values, minimal_realization, model_reduction = balred, hsvd, minreal, modred


@cache
def _joint(ours: Any, theirs: Any) -> Any:
    """Return a class of errors that is caught as either of two."""
    if issubclass(ours, theirs):
        return ours
    restore = {"__reduce__": lambda error: (_restored, (ours, theirs, *error.args)), "__module__": ours.__module__}
    return type(ours.__name__, (ours, theirs), restore)


def _restored(ours: Any, theirs: Any, *arguments: Any) -> Any:
    """Return an unpickled error."""
    return _joint(ours, theirs)(*arguments)


def _as_in_control(name: str, plain: type[Exception], message: str) -> Any:
    """Return an input error that is also python-control's of that name if it is loaded, else the built-in it is."""
    theirs: Any = getattr(interpreter.modules.get("control.exception"), name, plain)
    return _joint(InputError, theirs)(message)


def _order_list(orders: Any) -> list[int]:
    """Return orders as integers; whole floats are some."""
    if not isinstance(orders, (Sequence, np.ndarray)) or isinstance(orders, (str, bytes)) or np.ndim(orders) == 0:
        orders = [orders.item() if isinstance(orders, np.ndarray) else orders]
    whole = [int(k) if isinstance(k, (float, np.floating)) and float(k).is_integer() else k for k in orders]
    return [check_integer(k, "order", 0, hint="Pass an integer or a list of them.", error=OrderError) for k in whole]


def _offset(alpha: float, system: Any) -> float:
    """Return the distance from the stability boundary that `alpha` stands for."""
    if system.is_discrete:
        hint = "It is a modulus that moves the stability boundary inwards."
        return 1.0 - check_number(alpha, "alpha", least=0.0, most=1.0, hint=hint)
    return -check_number(alpha, "alpha", most=0.0, hint="It is a real part that moves the stability boundary inwards.")


def _chosen(what: str, elim: Any, keep: Any, names: Sequence[str] | None, count: int) -> tuple[list[int], list[int]]:
    """Return the places of what is kept and of what is left out."""
    left_out, kept = (set(_places(what, key, names, count)) for key in (elim, keep))
    if left_out and kept:
        raise InputError(f"elim_{what} and keep_{what} must not be given together; got both. Pass one of them.")
    left_out = set(range(count)) - kept if kept else left_out
    return sorted(set(range(count)) - left_out), sorted(left_out)


def _places(what: str, key: Any, names: Sequence[str] | None, count: int) -> list[int]:
    """Return the places that numbers, names and slices stand for."""
    if key is None:
        return []
    if isinstance(key, str):
        if names is None or key not in names:
            known = ", ".join(names or ()) or "none"
            raise InputError(f"{what} must be chosen by number or by a name they have; got {key!r}. Names: {known}.")
        return [names.index(key)]
    if isinstance(key, slice):
        return list(range(count)[key])
    if isinstance(key, (Sequence, np.ndarray)) and np.ndim(key):
        return [place for one in key for place in _places(what, one, names, count)]
    try:
        return [check_integer(key, f"elim_{what} or keep_{what}", -count, count - 1) % count]
    except InputError as error:
        raise _joint(InputError, IndexError)(str(error)) from None


def _names_left(names: Sequence[str] | None, places: list[int]) -> tuple[str, ...] | None:
    return None if names is None else tuple(names[i] for i in places)


def _equation(
    A: ArrayLike, Q: ArrayLike, C: ArrayLike | None, E: ArrayLike | None, method: Any, discrete: bool
) -> Array:
    """Solve one of the three forms; numbers alone have a number as their solution."""
    if all(x is None or np.ndim(x) == 0 for x in (A, Q, C, E)) and A is not None and Q is not None:
        a, q, c, e = (None if x is None else np.reshape(x, (1, 1)) for x in (A, Q, C, E))
        number: Array = _equation(a, q, c, e, method, discrete)[0, 0]  # type: ignore[arg-type]
        return number
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
        return solve_lyapunov(matrix, right, True if discrete else 0)
    third = _matrix_argument(C, "C") if E is None else _matrix_argument(E, "E", square=True)
    if third.shape != (len(matrix), len(right)):
        wanted = "E must have the shape of A" if C is None else "C must be (n, k) for A (n, n) and Q (k, k)"
        message = f"{wanted}; got A {matrix.shape}, Q {right.shape} and {'E' if C is None else 'C'} {third.shape}."
        raise _as_in_control("ControlDimension", ValueError, message)
    dtype = np.result_type(matrix, right, third)
    matrix, right, third = (double(x) for x in (matrix, right, third))
    with one_blas_thread(len(matrix)):
        if C is None:
            return equations.generalised(matrix, right, third, discrete).astype(dtype)
        return (equations.stein if discrete else equations.sylvester)(matrix, right, third).astype(dtype)


def _matrix_argument(x: Any, name: str, square: bool = False) -> Array:
    """Return a checked matrix; a number is one of one entry, a vector one of one row."""
    array = check_array(x, name, None)
    array = array.reshape(1, -1) if array.ndim < 2 else array
    if array.ndim != 2 or square and array.shape[0] != array.shape[1]:
        kind = "a square matrix" if square else "a matrix"
        raise _as_in_control("ControlDimension", ValueError, f"{name} must be {kind}; got shape {array.shape}.")
    return array
