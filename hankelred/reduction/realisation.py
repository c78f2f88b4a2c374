"""Minimal and balanced realisations: models that leave out nothing but what links no input to any output."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..checks import SINGLE, Array, check_number, double
from ..hankel import factored, unstable_error
from ..linalg.hankel_svd import padded
from ..linalg.riccati import in_last_digits
from ..linalg.threads import one_blas_thread
from ..systems import StateSpace, one_system
from ..weighting.base import ROUNDINGS
from .balanced import OFFSET, Balancing, _balance
from .result import Reduction

# Where poles were split off, values up to so many floors link nothing: 8 were seen of states hidden by a rotation.
SPLITTING = 10.0


def minimal(sys: Any, rtol: float | None = None) -> Reduction:
    """Leave out the states that link no input to any output.

    Parameters
    ----------
    sys : StateSpace, DiagonalSystem or anything `as_system` accepts
        Continuous or discrete, real or complex, stable or not.
    rtol : float, optional
        Drop Hankel singular values up to ``rtol * hsv[0]``; by default those that are rounding, of stable states in
        single precision those that the last digits of the data decide on. Of unstable and marginal poles: values up to
        `rtol` of the largest of each group of poles that are nearly equal.

    Returns
    -------
    Reduction
        To the numerical rank; of a minimal system the system itself. `unstable` counts the unstable and marginal poles
        that link inputs to outputs, the others are left out. Their Hankel singular values are zero, and the error bound
        and `hinf_error` are those of the stable part: what is left out beside it has no gain but rounding.

    Raises
    ------
    InputError
        If `sys` is not a system or `rtol` is out of range.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> twice = hr.StateSpace(-np.eye(2), [[1.0], [1.0]], [[1.0, 1.0]])  # the same state twice
    >>> hr.minimal(twice).system.n
    1
    >>> integrators = hr.StateSpace(np.zeros((3, 3)), [[1.0], [1.0], [0.0]], [[1.0, 2.0, 3.0]])  # 3 / s
    >>> hr.minimal(integrators).system.n
    1
    """
    bal = _without_idle(_balance(one_system(sys), sys, OFFSET), rtol)
    if rtol is not None:
        order = bal.order(rtol=rtol)
    else:
        order = _order_in_single_precision(bal) if bal.system.dtype in SINGLE else bal.rank
    is_all = order == len(bal.hsv) and not bal._found.parts.is_low_rank
    return bal._unchanged() if is_all else bal.reduce(order)


def _without_idle(bal: Balancing, rtol: float | None) -> Balancing:
    """Leave out the unstable and marginal states that link no input to any output."""
    found, rtol = bal._found, check_number(0.0 if rtol is None else rtol, "rtol", least=0.0)
    if bal.unstable == 0:
        return bal
    with one_blas_thread(len(bal.hsv)):
        parts = found.parts.without_idle(bal._offset, rtol)
    k, idle = parts.kept, bal.unstable - parts.kept
    stable = bal.hsv[bal.unstable :]
    hsv = np.concatenate([np.full(k, np.inf), stable, np.zeros(idle)])
    linked = int(np.count_nonzero(stable > SPLITTING * found.uncertain))
    found = found._replace(parts=parts, hsv=hsv, rank=k + linked)
    return replace(bal, hsv=hsv, unstable=k, rank=found.rank, _found=found)


def _order_in_single_precision(bal: Balancing) -> int:
    """Return how many values are certain in a dense system if the last digits of its data, single ones, are not."""
    G = bal.system
    if G.is_diagonal or G.is_sparse:  # no rotation has linked their states
        return bal.rank
    A, B, C = in_last_digits(*(double(x) for x in (G.A, G.B, G.C)), unit=float(np.finfo(G.dtype).eps))
    near = factored(StateSpace.trusted(A, B, C, double(G.D), G.dt), bal._offset)
    stable, other = (hsv[np.isfinite(hsv)] for hsv in (bal.hsv[: bal.rank], near.hsv))
    floor = ROUNDINGS * float(np.abs(stable - padded(other, len(stable))).max(initial=0.0))
    return bal.unstable + int(np.count_nonzero(stable > floor))


def balanced_realization(sys: Any) -> tuple[Any, Array, Array, Array]:
    """Return a system in balanced coordinates, in which both Gramians are the diagonal matrix of its hsv.

    Parameters
    ----------
    sys : StateSpace, DiagonalSystem or anything `as_system` accepts
        Stable system, continuous or discrete, real or complex; a diagonal one is balanced as a `StateSpace`.

    Returns
    -------
    system : StateSpace, or of the class of `sys` if that is a model of another library
        Balanced, of the order of the numerical rank: states beyond it cannot be balanced.
    hsv : (n,) ndarray
        All Hankel singular values, decreasing, in units of y per unit of u.
    T, Ti : (n, rank) and (rank, n) ndarray
        Bases, ``(Ti A T, Ti B, C T, D)``.

    Raises
    ------
    StabilityError
        If a pole lies on or beyond the stability boundary.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> plant = hr.StateSpace([[-1.0, 0.5], [0.0, -3.0]], [[1.0], [1.0]], [[1.0, 0.0]])
    >>> system, hsv, T, Ti = hr.balanced_realization(plant)
    >>> P, Q = hr.gramians(system)
    >>> bool(np.allclose(P, np.diag(hsv)) and np.allclose(Q, np.diag(hsv)))
    True
    """
    system = one_system(sys)
    bal = _balance(system.dense(), sys, 0.0)
    if bal.unstable:
        raise unstable_error(bal._found.parts.poles[: bal.unstable], system.dt)
    with one_blas_thread(bal.rank):
        reduction = bal._dense_result(bal.rank, *bal._reduce_stable(bal.rank, False), "balanced realisation")
    return reduction.system, bal.hsv, reduction.T, reduction.Ti
