"""Optimal Hankel-norm approximation, by dilation of a balanced system to one whose error is all-pass."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from .. import norms
from .. import order as orders
from ..checks import SINGLE, Array, check_flag, check_number, check_result
from ..errors import AccuracyWarning, NumericalError, RepeatedHsvWarning
from ..hankel import Factored, factored
from ..linalg.bilinear import continuous_image, discrete_image, image_point
from ..linalg.threads import one_blas_thread
from ..parts import DenseParts
from ..reduction import Reduction, balance
from ..reduction.balanced import OFFSET
from ..reduction.bases import matching_feedthrough
from ..reduction.single_precision import in_single_precision
from ..rounding import Matrices
from ..systems import StateSpace, as_container, one_system
from ..weighting.base import HINF

# Values closer than this, relative to themselves, are one repeated value: their distance is divided by.
REPEATED = 1e-9
# Steps in which D is chosen for the part that is left out; further values of it enter the bound twice.
STEPS = 20
# A Hankel norm of the error that differs from the optimum by more, relative to itself, comes with a warning.
WARN_FROM = 1e-6


def hankel_norm_approximation(sys: Any, order: int, offset: float = OFFSET, match_dc: bool = False) -> Reduction:
    """Approximate a system so that the Hankel norm of the error is the least there is: the next hsv.

    Parameters
    ----------
    sys : StateSpace or anything `as_system` accepts
        Continuous or discrete, real or complex. The model of a diagonal system is a `StateSpace`.
    order : int
        Hankel singular values to keep, those of unstable and marginal poles included.
    offset : float, default 1e-8
        Poles closer than this to the stability boundary, or beyond it, are split off and kept, as by `balance`.
    match_dc : bool, default False
        Choose D, which the Hankel norm leaves free, so that the model matches the system at s = 0 or z = 1, instead of
        for a small H-infinity error. The error is all-pass no more, and the bound twice as large.

    Returns
    -------
    Reduction
        Stable but for the poles kept, with ``hankel_error()`` equal to ``hsv[order]``, and a bound on the H-infinity
        error that is the sum of the tail or less, half of that of balanced truncation. T and Ti are None: the model is
        no projection.

    Raises
    ------
    OrderError
        If `order` is out of its range.
    NumericalError
        If the dilation has other poles than theory says.

    Warns
    -----
    RepeatedHsvWarning
        If ``hsv[order - 1]`` equals ``hsv[order]``: a model of lower order attains the optimum and is returned.
    AccuracyWarning
        If rounding has changed the Hankel norm of the error by more than 1e-6 of itself.

    References
    ----------
    .. [1] K. Glover, "All optimal Hankel-norm approximations of linear multivariable systems and their L-infinity
       error bounds", Int. J. Control 39, 1984, pp. 1115-1193, theorem 6.3 and section 9.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> from hankelred.optimal import hankel_norm_approximation
    >>> plant = hr.StateSpace(np.diag([-1.0, -2.0, -30.0]), np.ones((3, 1)), np.ones((1, 3)))
    >>> best = hankel_norm_approximation(plant, order=1)
    >>> print(f"{best.hankel_error() / best.hsv[1]:.8f}")
    1.00000000
    >>> best.hinf_error() <= best.error_bound < hr.balanced_truncation(plant, order=1).error_bound
    True
    """
    offset = check_number(offset, "offset", least=0.0, hint="It is a distance from the stability boundary.")
    system = one_system(sys)
    G = system.dense()
    order, match_dc = orders.check_count(order, G.n), check_flag(match_dc, "match_dc")
    found = factored(G, offset)
    if not found.kept <= order < found.rank:
        return balance(sys, offset).reduce(order, match_dc=match_dc)
    with one_blas_thread(G.n):
        small, k, bound = _approximation(found, order - found.kept)
        if k < order - found.kept:
            warnings.warn(
                f"hsv[{order - 1}] = {found.hsv[order]:.6g} repeats: the optimum of order {order} has "
                f"{k + found.kept} states. Choose an order that splits no repeated value.",
                RepeatedHsvWarning,
                stacklevel=2,
            )
        if match_dc:
            zero = np.zeros(1)
            given, own = found.parts.stable_response(zero), small.response(zero, found.parts.discrete)
            small = small._replace(D=matching_feedthrough(small.D, given, own))
        A, B, C, D, *_ = found.parts.whole(small)
    model = StateSpace.trusted(A, B, C, D, G.dt, G.outer_names)
    stable = StateSpace.trusted(small.A.copy(), small.B.copy(), small.C.copy(), small.D.copy(), G.dt)
    whole = StateSpace.trusted(found.parts.T, found.parts.B, found.parts.C, G.D, G.dt)
    bound += _excess(found, stable, whole, found.hsv[k + found.kept])
    bound *= 1 + match_dc  # |E - E(0)| is at most twice |E|
    pair = (whole, stable) if found.kept else None
    if system.dtype in SINGLE:
        model, pair, changed = in_single_precision(model, pair)
        bound += changed
    kind = None, None, found.kept, "optimal Hankel-norm approximation", HINF, model, pair
    return Reduction(as_container(model, sys), system, k + found.kept, found.hsv, float(bound), *kind)


def _approximation(found: Factored, k: int) -> tuple[Matrices, int, float]:
    """Return the optimal model of the stable part, its order and the bound of its H-infinity error."""
    balanced, hsv, a = _balanced(found)
    first = int(np.count_nonzero(hsv > hsv[k] * (1 + REPEATED) + 2 * found.floor))
    with np.errstate(all="ignore"):
        dilated = _dilation(balanced, hsv, first, 2 * found.floor)
    check_result("The dilation", *dilated[:4], hint="Scale inputs and outputs.")
    parts = DenseParts(StateSpace.trusted(dilated.A, dilated.B, dilated.C, dilated.D, 0), 0.0)
    if len(parts.T) != first:
        raise NumericalError(
            f"The dilation must have {first} stable poles; got {len(parts.T)}: hsv[{k}] = {hsv[k]:.6g} is too "
            f"near to its neighbours for working precision. Choose another order."
        )
    X, Y = parts.fixed_bases() if parts.kept else (np.zeros((len(dilated.A), 0)), np.zeros((0, len(dilated.A))))
    inside = Y @ dilated.A @ X, Y @ dilated.B, dilated.C @ X  # antistable; its mirror image is stable
    mirror = -inside[0].conj().T, -inside[2].conj().T, inside[1].conj().T
    D, rest = _constant(*mirror)
    A, B, C, D = parts.T, parts.B, parts.C, dilated.D + D.conj().T
    if found.parts.discrete:
        A, B, C, D = discrete_image(A, B, C, D, a)
    return Matrices(A, B, C, D), first, float(hsv[k]) + rest + 2 * found.floor


def _balanced(found: Factored) -> tuple[Matrices, Array, float]:
    """Return the stable part, or its continuous image by a point, balanced to its numerical rank, and its values."""
    rank = found.rank - found.kept
    small, a = found.reduced(rank)[2], 1.0
    if found.parts.discrete:
        a = image_point(small.A)
        small = Matrices(*continuous_image(*small[:4], a))
    return small, found.svd.values[:rank], a


def _dilation(G: Matrices, hsv: Array, k: int, near: float = 0.0) -> Matrices:
    """Return the system without the states of value ``s = hsv[k]`` from which G differs by s at every frequency.

    G is balanced and in continuous time. Of its poles k are stable and the others antistable. With
    ``Gamma = Sigma^2 - s^2`` of the other values and U of norm 1 with ``B2 = -C2^H U``, B2 and C2 of the states of
    value s [1]_.
    """
    s = hsv[k]  # whose square may overflow
    equal = np.abs(hsv - s) <= s * REPEATED + near
    A, B, C = G.A[np.ix_(~equal, ~equal)], G.B[~equal], G.C[:, ~equal]
    X, sizes, Yh = np.linalg.svd(G.C[:, equal] @ G.B[equal], full_matrices=False)
    rank = int(np.count_nonzero(sizes > 1e-6 * sizes.max(initial=0.0)))
    U = -X[:, :rank] @ Yh[:rank]
    sigma = hsv[~equal]
    gamma, sigma = (sigma**2 - s**2)[:, None], sigma[:, None]
    reached, seen = C.conj().T @ U, U @ B.conj().T
    return Matrices(
        (s**2 * A.conj().T + sigma * A * sigma.T - s * reached @ B.conj().T) / gamma,
        (sigma * B + s * reached) / gamma,
        C * sigma.T + s * seen,
        G.D - s * U,
    )


def _constant(A: Array, B: Array, C: Array) -> tuple[Array, float]:
    """Return a constant near to a stable system, and how far at most: the sum of its values, dilated one by one."""
    D, total, left = np.zeros((len(C), B.shape[1]), A.dtype), 0.0, STEPS
    while len(A) and left:
        found = factored(StateSpace.trusted(A.copy(), B.copy(), C.copy(), D.copy(), 0))
        rank = min(found.rank, left)
        if rank == 0:
            break
        G, hsv = found.reduced(rank)[2], found.svd.values[:rank]
        total += 2 * math.fsum(found.svd.values[rank:]) + 2 * found.floor
        left = rank - 1
        A, B, C, D, *_ = _dilation(G, hsv, rank - 1)
        total += float(hsv[-1])
    return D, total


def _excess(found: Factored, model: StateSpace, whole: StateSpace, optimum: float) -> float:
    """Return by how much rounding has raised the Hankel norm of the error above its optimum, and warn if it is much."""
    error = norms.hankel_norm(whole - model)
    excess = max(0.0, error - optimum)
    if excess > WARN_FROM * optimum + 2 * found.floor:
        warnings.warn(
            f"The Hankel norm of the error is {error:.10g} where {optimum:.10g} is optimal: neighbouring hsv are near.",
            AccuracyWarning,
            stacklevel=3,
        )
    return 2 * excess if np.isfinite(excess) else np.inf
