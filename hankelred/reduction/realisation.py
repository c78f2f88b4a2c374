"""Minimal and balanced realisations: models that leave out nothing but what links no input to any output."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg as sla

from ..checks import EPS, Array, check_result
from ..hankel import factored, unstable_error, warn_if_inaccurate
from ..linalg.threads import one_blas_thread
from ..order import least_order
from ..systems import StateSpace, one_system
from .balanced import OFFSET, _balance
from .result import Reduction

# Splitting off unstable poles moves the others by some n eps of the largest pole: what is smaller links nothing.
SPLITTING = 30.0


def minimal(sys: Any, rtol: float | None = None) -> Reduction:
    """Leave out the states that link no input to any output.

    Parameters
    ----------
    sys : StateSpace, DiagonalSystem or anything `as_system` accepts
        Continuous or discrete, real or complex. Unstable and marginal poles are kept.
    rtol : float, optional
        Drop Hankel singular values up to ``rtol * hsv[0]``; by default those that are rounding.

    Returns
    -------
    Reduction
        To the numerical rank; of a minimal system the system itself.

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
    """
    bal = _balance(one_system(sys), sys, OFFSET)
    order = bal.rank if rtol is None else bal.order(rtol=rtol)
    is_all = order == len(bal.hsv) and not bal._found.parts.is_low_rank
    return bal._unchanged() if is_all else bal.reduce(order)


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


def without_idle_states(G: StateSpace, rtol: float | None) -> StateSpace:
    """Return the system without the states that link no input to any output, unstable ones among them."""
    found = factored(G, OFFSET)
    warn_if_inaccurate(found, stacklevel=4)
    order = found.rank if rtol is None else least_order(found.hsv, found.rank, rtol=rtol)
    k = found.kept
    with one_blas_thread(G.n):
        A, B, C, D, *_ = found.parts.whole(found.reduced(order - k)[2])
    if k:
        unstable = A[:k, :k]
        sizes = np.abs(found.parts.poles)
        shift = 2.0 * float(sizes[:k].max()) or 1.0
        rounding = min(SPLITTING * EPS * G.n * max(1.0, float(sizes.max()) / shift), 1e-3)
        check_result("The unstable poles, moved to be stable,", shift, hint="Scale time.")
        moved = unstable / shift if G.is_discrete else unstable - shift * np.eye(k)
        inner = without_idle_states(
            StateSpace.trusted(moved, B[:k].copy(), C[:, :k].copy(), D.copy(), G.dt), max(rtol or 0.0, rounding)
        )
        unstable = inner.A * shift if G.is_discrete else inner.A + shift * np.eye(inner.n)
        A = sla.block_diag(unstable, A[k:, k:]).reshape((inner.n + order - k,) * 2)
        B, C = np.vstack([inner.B, B[k:]]), np.hstack([inner.C, C[:, k:]])
    return G if len(A) == G.n else StateSpace.trusted(A, B, C, D.copy(), G.dt, G.outer_names)
