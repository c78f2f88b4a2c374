"""Gramian factors and Hankel singular values of one system or a bank, and how far they can be trusted.

Every analysis and every reduction begins here: `factored` splits off the poles that balanced truncation must not
touch, factors both Gramians of the rest, decomposes their product, and says how far all that can be trusted.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from . import order as orders
from .checks import Array, check_result, check_type, double, in_family, is_discrete
from .errors import AccuracyWarning, StabilityError
from .hessenberg_parts import FROM, balanced_parts
from .linalg import cauchy_bank
from .linalg.hankel_svd import HankelSVD, padded
from .linalg.threads import one_blas_thread
from .parts import in_own_time, parts_of, svd_of
from .rounding import Matrices, of_projection
from .systems import DiagonalBank, DiagonalSystem, LinearSystem, as_system
from .weighting import Weighting
from .weighting.base import HINF, Bound, Pair
from .weighting.guaranteed import guaranteed_pair

# Hankel singular values that are less certain than this, relative to the largest, come with a warning.
WARN_FROM = 1e-6


class Factored(NamedTuple):
    """A system with its factors and Hankel singular values, and how far these can be trusted.

    Attributes
    ----------
    system : LinearSystem
        The system that was given.
    parts : DenseParts or DiagonalParts
        How its stable part lies in it.
    svd : HankelSVD
        Of the product of the factors of the stable part.
    hsv : (order,) ndarray
        Decreasing, infinite for the poles that are kept.
    floor : float
        Rounding error of one of them.
    rank : int
        How many link inputs to outputs, those kept included.
    on_schur_form : bool
        Whether a model of the stable part loses less if its Schur form is projected instead of the system given.
    weighting : Weighting or None
        Which pair of matrices is in the place of the Gramians.
    pair : Pair or None
        That of the weighting.
    """

    system: Any
    parts: Any
    svd: HankelSVD
    hsv: Array
    floor: float
    rank: int
    on_schur_form: bool
    weighting: Weighting | None = None
    pair: Pair | None = None

    @property
    def gain(self) -> float:
        """The error bound of small values, in what it is for the Gramians; infinite where none holds."""
        return 1.0 if self.pair is None else self.pair.gain

    @property
    def bound(self) -> Bound | None:
        """What makes the bound from the values, if it is no multiple of that for the Gramians."""
        return None if self.pair is None else self.pair.bound

    def error_bound(self, order: int) -> float:
        """Return the error bound at an order, its rounding floor included."""
        if self.bound is not None:
            return self.bound(self.hsv, order, self.floor)
        if np.isfinite(self.gain):
            bound = orders.error_bound(self.hsv, order, self.floor)
            return self.gain * bound if bound < np.inf else bound  # a gain of 0 makes no NaN
        if order < len(self.hsv) or not self.keeps_poles:
            return np.inf
        return of_projection(self.parts, self.svd, self.pair)[0] if order == self.rank else 0.0

    def added(self, change: float, model: Any, changed: Any) -> float:
        """Return what a change of a model, of this H-infinity norm, adds to the error that is bounded."""
        added = None if self.pair is None else self.pair.change
        return added(change, model, changed) if added is not None and change else change

    @property
    def bounded(self) -> str:
        """What the bound is on."""
        return HINF if self.weighting is None else self.weighting.bounded

    @property
    def keeps_poles(self) -> bool:
        """Whether unstable and marginal poles were put aside, or there are none."""
        return self.weighting is None or self.weighting.splits or bool(self.system.is_stable())

    def reduced(self, order: int) -> tuple[Array, Array, Matrices]:
        """Return bases of `order` balanced states of the stable part and the system projected with them."""
        project = self.parts.projected_schur_form if self.on_schur_form else self.parts.projected
        T, Ti, small = project(*self.svd.bases(slice(0, order), order))
        return T, Ti, small

    def gramian_factors(self) -> tuple[Array, Array]:
        """Return factors of the Gramians of the stable part in the coordinates of the system."""
        with np.errstate(over="ignore", invalid="ignore"):
            S, R = self.parts.lift(self.svd.S, self.svd.R)
        check_result("Gramian factors", S, R)
        return S, R

    @property
    def kept(self) -> int:
        """Number of unstable and marginal poles."""
        return int(self.parts.kept)

    @property
    def uncertain(self) -> float:
        """How far two equal values may lie apart; those of diagonal systems are right relative to themselves."""
        return self.floor if not self.system.is_diagonal else 0.0


def factored(
    system: LinearSystem, offset: float = 0.0, weighting: Weighting | None = None, hsv_only: bool = False
) -> Factored:
    """Factor a system of this library; poles within `offset` of the stability boundary are kept aside.

    With `hsv_only` the factors serve Hankel singular values and bases; where they are of low rank, the Gramians they
    make are right to the error of the hsv and not to that of the equations.
    """
    with one_blas_thread(system.order):
        if weighting is not None:
            return _weighted(system.dense() if system.is_sparse else system, offset, weighting)
        parts = (balanced_parts if hsv_only and system.order >= FROM else parts_of)(system, offset)
        svd = svd_of(parts)
        if parts.is_low_rank:
            return _of_low_rank(system, parts, svd)
        return _with_hsv(system, parts, svd, *parts.accuracy(svd))


def _of_low_rank(system: LinearSystem, parts: Any, svd: HankelSVD) -> Factored:
    """Factor a large system: only values above the floor count, and the others add to it what their tail adds up to."""
    floor, rank, on_schur_form = parts.accuracy(svd)
    hidden = float(svd.values[rank:].sum())
    return Factored(system, parts, svd, svd.values[:rank], floor + hidden, rank, on_schur_form)


def _with_hsv(system: LinearSystem, parts: Any, svd: HankelSVD, floor: float, rank: int, *details: Any) -> Factored:
    hsv = padded(svd.values, system.order - parts.kept)
    if parts.kept:
        hsv = np.concatenate([np.full(parts.kept, np.inf), hsv])
    return Factored(system, parts, svd, hsv, floor, parts.kept + rank, *details)


def _weighted(system: LinearSystem, offset: float, weighting: Weighting) -> Factored:
    """Factor the pair of a weighting, or its guaranteed form."""
    parts = parts_of(system, offset, weighting.splits)
    pair = weighting.pair(parts)
    if weighting.guaranteed:
        pair = guaranteed_pair(factored(system, offset), pair, parts)
    svd, floor = HankelSVD(pair.S, pair.R), pair.floor
    on_schur_form = False
    if 0 < pair.gain < np.inf:  # a bound counts what the projection loses, too
        changes = of_projection(parts, svd, pair)
        floor += min(changes) / (2 * pair.gain)
        on_schur_form = changes[-1] < changes[0]
    rank = int(np.count_nonzero(svd.values > floor))
    return _with_hsv(system, parts, svd, floor, rank, on_schur_form, weighting, pair)


def stable(system: LinearSystem, weighting: Weighting | None = None, hsv_only: bool = False) -> Factored:
    """Factor a system all of whose poles must be stable, unless the weighting makes no difference of them."""
    found = factored(system, weighting=weighting, hsv_only=hsv_only)
    if found.kept:
        raise unstable_error(found.parts.poles[: found.kept], system.dt)
    return found


def check_weighting(weighting: Any) -> Weighting | None:
    """Return a weighting, or None."""
    hint = "hankelred.weighting has TimeLimited, FrequencyLimited, FrequencyWeighted, Sampled, LQG and others."
    return None if weighting is None else check_type(weighting, "weighting", Weighting, hint)


def unstable_error(poles: Array, dt: Any, what: str = "The system") -> StabilityError:
    """Return the error that names the poles on which a norm or a Gramian founders."""
    discrete = is_discrete(dt)
    outermost = poles[np.argsort(-(np.abs(poles) if discrete else poles.real))][:3]
    names = ", ".join(f"{pole.real:.6g}{pole.imag:+.6g}j" if pole.imag else f"{pole.real:.6g}" for pole in outermost)
    region = "inside the unit circle" if discrete else "in the left half plane"
    other = "pass dt=0 if it is continuous" if discrete else "pass dt if it is discrete"
    return StabilityError(
        f"{what} must be stable for dt={dt}, its poles {region} by more than their rounding error; got "
        f"{names}{' and others' if len(poles) > 3 else ''}. Use balance, which keeps such poles (offset says how near "
        f"to the boundary a pole counts as one of them), or {other}."
    )


def gramian_factors(sys: Any, weighting: Weighting | None = None) -> tuple[Array, Array]:
    """Compute factors of both Gramians.

    In continuous time ``A P + P A^H + B B^H = 0`` and ``A^H Q + Q A + C^H C = 0``; in discrete time
    ``A P A^H - P + B B^H = 0`` and ``A^H Q A - Q + C^H C = 0``.

    Parameters
    ----------
    sys : StateSpace, DiagonalSystem, DiagonalBank or anything `as_system` accepts
        Stable system; any one for `TimeLimited`.
    weighting : Weighting, optional
        What takes the place of the Gramians, see `hankelred.weighting`.

    Returns
    -------
    S : (n, k) ndarray
        ``P = S S^H``. For a `DiagonalSystem` with real output the coordinates are the 2n real ones of
        ``sys.dense()``. A bank has its axis in front.
    R : (l, n) ndarray
        ``Q = R^H R``.

    Raises
    ------
    StabilityError
        If a pole lies on or beyond the stability boundary.
    NumericalError
        If a Gramian overflows.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> plant = hr.StateSpace([[-1.0, 0.5], [0.0, -3.0]], [[1.0], [1.0]], [[1.0, 0.0]])
    >>> S, R = hr.gramian_factors(plant)
    >>> residual = plant.A @ S @ S.T + S @ S.T @ plant.A.T + plant.B @ plant.B.T
    >>> bool(np.linalg.norm(residual) < 1e-14)
    True
    """
    system, weighting = as_system(sys), check_weighting(weighting)
    if system.is_bank:
        factors = [gramian_factors(one, w) for one, w in each(system, weighting)]
        k, l = max((S.shape[1] for S, _ in factors), default=0), max((len(R) for _, R in factors), default=0)
        padded_S = [np.pad(S, ((0, 0), (0, k - S.shape[1]))) for S, _ in factors]
        padded_R = [np.pad(R, ((0, l - len(R)), (0, 0))) for _, R in factors]
        count, n = len(system), system.order
        return np.reshape(padded_S, (count, n, k)), np.reshape(padded_R, (count, l, n))
    S, R = stable(system, weighting).gramian_factors()
    return in_family(S, system.dtype), in_family(R, system.dtype)


def gramians(sys: Any, weighting: Weighting | None = None) -> tuple[Array, Array]:
    """Compute the controllability and the observability Gramian.

    Prefer `gramian_factors`, or `hankel_singular_values`, where they do: a product of factors has lost half of the
    digits of everything small.

    Parameters
    ----------
    sys : StateSpace, DiagonalSystem, DiagonalBank or anything `as_system` accepts
        Stable system; any one for `TimeLimited`.
    weighting : Weighting, optional
        What takes the place of the Gramians, see `hankelred.weighting`.

    Returns
    -------
    P, Q : (n, n) ndarray
        Hermitian and positive semidefinite, in the coordinates of `gramian_factors`. A bank has its axis in front.

    Raises
    ------
    StabilityError
        If a pole lies on or beyond the stability boundary.
    NumericalError
        If a Gramian overflows.

    Examples
    --------
    >>> import hankelred as hr
    >>> P, Q = hr.gramians(hr.StateSpace([[-2.0]], [[1.0]], [[3.0]]))
    >>> print(f"{P[0, 0]:.4f} {Q[0, 0]:.4f}")  # b^2 / (2 a) and c^2 / (2 a)
    0.2500 2.2500
    """
    system = as_system(sys)
    if system.is_sparse:
        system.check_dense_size()
    S, R = (double(x) for x in gramian_factors(system, weighting))
    with np.errstate(over="ignore", invalid="ignore"):
        P, Q = S @ S.conj().swapaxes(-1, -2), R.conj().swapaxes(-1, -2) @ R
    check_result("Gramians", P, Q)
    return in_family(P, system.dtype), in_family(Q, system.dtype)


def hankel_singular_values(sys: Any, weighting: Weighting | None = None) -> Array:
    """Compute all Hankel singular values of a stable system, or of a bank of them.

    Parameters
    ----------
    sys : StateSpace, DiagonalSystem, DiagonalBank or anything `as_system` accepts
        Stable system, continuous or discrete, real or complex; any one for `TimeLimited`.
    weighting : Weighting, optional
        What takes the place of the Gramians, see `hankelred.weighting`.

    Returns
    -------
    (n,) or (batch, n) ndarray
        Decreasing, in units of y per unit of u; 2n values for real output, and of a sparse system those only that are
        larger than their rounding error.

    Raises
    ------
    StabilityError
        If a pole lies on or beyond the stability boundary; `balance` splits such poles off instead.
    NumericalError
        If they overflow.

    Warns
    -----
    AccuracyWarning
        If rounding can have changed them by more than 1e-6 of the largest.

    Notes
    -----
    Values of dense systems are right to about ``n eps`` of the largest in any units of the states, and far below that
    where the factors are graded; those of diagonal systems are right to full relative accuracy, unless they repeat or
    span more than some 19 decades, where LAPACK's singular values leave 1e-10. In a bank that needs linearly
    independent inputs, and outputs, of each system.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> hilbert = hr.DiagonalSystem(-(np.arange(6) + 0.5), np.ones((6, 1)), np.ones((1, 6)), dt=0)
    >>> print(f"{hr.hankel_singular_values(hilbert)[-1]:.13e}")  # least eigenvalue of the 6 x 6 Hilbert matrix
    1.0827994845655e-07
    """
    system, weighting = as_system(sys), check_weighting(weighting)
    if system.is_bank:
        hsv = bank_hsv(system, weighting)
    else:
        found = stable(system, weighting, hsv_only=True)
        hsv = found.hsv
        warn_if_inaccurate(found)
    return in_family(hsv, system.dtype)


def warn_if_inaccurate(found: Factored, stacklevel: int = 3) -> None:
    """Warn where the rounding error of the Hankel singular values is more than `WARN_FROM` of the largest."""
    values = found.svd.values
    if values.size and 0 < WARN_FROM * values[0] < found.floor:
        why = (
            "the Lyapunov equations are ill-conditioned" if found.weighting is None else "rounding of the weighted pair"
        )
        warnings.warn(
            f"Hankel singular values are certain to {found.floor:.2g} only, {found.floor / values[0]:.1g} of the "
            f"largest: {why}. Bounds take that into account.",
            AccuracyWarning,
            stacklevel=stacklevel,
        )


def bank_of(bank: DiagonalBank) -> cauchy_bank.Bank:
    """Return the arrays of a bank of stable systems as its kernels want them."""
    B, C, _ = bank.double_matrices()
    return _bank(bank, bank.spectrum.values(), B, C)


def _bank(bank: DiagonalBank, lam: Array, B: Array, C: Array) -> cauchy_bank.Bank:
    """Return these arrays with the kind of a bank."""
    with one_blas_thread(bank.order):
        logarithms = bank.spectrum.logarithms()
        return cauchy_bank.make_bank(lam, logarithms, B, C, bank.is_discrete, bank.order, bank.stores_pairs)


def each(bank: DiagonalBank, weighting: Weighting | None) -> Iterator[tuple[DiagonalSystem, Weighting | None]]:
    """Yield each system of a bank with its own weighting."""
    for i, one in enumerate(bank):
        yield one, None if weighting is None else weighting.of(i, len(bank))


def bank_hsv(bank: DiagonalBank, weighting: Weighting | None = None) -> Array:
    """Return the Hankel singular values of a bank of stable systems, (batch, order)."""
    if weighting is not None:
        return np.reshape([stable(one, w).hsv for one, w in each(bank, weighting)], (len(bank), bank.order))
    with one_blas_thread(bank.order):
        hsv = _bank(bank, *in_own_time(bank)).hankel_singular_values()
    check_result("Hankel singular values", hsv)
    return hsv
