"""Gramian factors and Hankel singular values of one system, and what rounding can have done to them.

Every analysis and every reduction begins here: `factored` splits off the poles that balanced truncation must not
touch, factors both Gramians of the rest, decomposes their product, and says how far all that can be trusted. Dense
systems go through a Schur form in balanced units, diagonal ones through structured elimination.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg as sla

from .checks import EPS, Array, check_result, double, in_family, is_discrete
from .errors import AccuracyWarning, InputError, StabilityError
from .linalg import cauchy, cauchy_bank
from .linalg.hammarling import gramian_factor
from .linalg.hankel_svd import HankelSVD, graded, norm_estimate, padded, real_pair
from .linalg.response import dense_response
from .linalg.schur import Units, apply_units, balanced_units, decouple, inverse_norm, ordered_schur
from .linalg.threads import one_blas_thread
from .linalg.triangular import flipped
from .systems import DiagonalBank, DiagonalSystem, LinearSystem, StateSpace, as_system, boundary_points, real_output

# An estimated rounding error above this share of the largest Hankel singular value is measured instead: the estimate
# takes the worst case of a norm, which stiff systems stay far below. Measuring takes some responses, which are cheap
# where there are few states.
MEASURE_FROM, MEASURE_SMALL_FROM, FEW_STATES = 1e-9, 1e-12, 16

# Frequencies at which it is measured, and how much more than the largest error seen there is granted.
SAMPLES, SAFETY = 40, 4.0

# Backward error of Schur form, factors and projection, in eps |A|: up to 18 were seen over random systems of 5 states;
# of many states |A| is large next to what each entry loses, and 2 were enough.
BACKWARD, MANY_STATES = 32, 64

# Roundings of a diagonal system's reduced matrices, in n eps hsv[0]: at most 12 were seen over stiff random systems.
ROUNDINGS = 32

# A response this near to a marginal pole, relative to the frequency, says nothing.
NEAR = 1e-3

# A pole this many error bars beyond the stability boundary is unstable and not marginal.
CLEAR = 1e3

# Hankel singular values that are less certain than this, relative to the largest, come with a warning.
WARN_FROM = 1e-6


class Matrices(NamedTuple):
    """A projected system ``(A, B, C, D)``; A lacks `shift` times the identity, see `Poles.less_shift`.

    `terms` holds ``|Ti| |A| |T|`` of a diagonal system: the sizes of what was added up to A.
    """

    A: Array
    B: Array
    C: Array
    D: Array
    shift: float = 0.0
    terms: Array | None = None

    def response(self, omega: Array, discrete: bool) -> Array:
        """Return the response at frequencies in rad per unit of time."""
        points = boundary_points(omega, discrete)
        return dense_response(self.A, self.B, self.C, self.D, points - self.shift)


class DenseParts:
    """A dense system, its unstable and marginal part first, in the coordinates of a Schur form in balanced units.

    Attributes
    ----------
    kept : int
        Unstable and marginal poles.
    poles : (n,) ndarray
        All poles, those kept first.
    S, R : ndarray
        Graded factors of the Gramians of the stable part.
    """

    def __init__(self, system: StateSpace, offset: float) -> None:
        self.system = G = system.dense()
        self.units: Units = balanced_units(G.A, G.B, G.C)
        A, B, C = apply_units(self.units, G.A, G.B, G.C)
        form = ordered_schur(A, G.is_discrete, offset)
        self.kept, self.poles, self._size = form.kept, form.poles, norm_estimate(A)
        excess = np.abs(form.poles) - 1.0 if G.is_discrete else form.poles.real
        self._clearly_unstable = (excess > CLEAR * form.error)[: form.kept]  # a response near others says nothing
        self._on_schur_form = False
        self._Z, k = form.Z, form.kept
        self.fixed_A, self._T = form.T[:k, :k], form.T[k:, k:]
        left, right = self._Z[:, k:], self._Z[:, k:]
        self._fixed_right, self._fixed_left = self._Z[:, :k], self._Z[:, :k].conj().T
        if k:
            Y = decouple(form.T, k)
            right = right + self._fixed_right @ Y
            self._fixed_left = self._fixed_left - Y @ left.conj().T
        self._right, self._left = right, left.conj().T
        self._B, self._C = self._left @ B, C @ right
        self.S, self.R = _dense_factors(self._T, self._B, self._C, G.is_discrete)

    @property
    def discrete(self) -> bool:
        """Whether time is discrete."""
        return self.system.is_discrete

    def lift(self, T: Array, Ti: Array) -> tuple[Array, Array]:
        """Return bases of the stable part in the coordinates of the system."""
        return self._out(self._right @ T), self._in(Ti @ self._left)

    def fixed_bases(self) -> tuple[Array, Array]:
        """Return bases of the part that is kept, in the coordinates of the system."""
        return self._out(self._fixed_right), self._in(self._fixed_left)

    def _out(self, T: Array) -> Array:
        w, order, gain, given = self.units
        if given:
            return T
        out = np.empty_like(T)
        out[order] = T
        out *= w[:, None]
        return out if gain == 1.0 else out / gain

    def _in(self, Ti: Array) -> Array:
        w, order, gain, given = self.units
        if given:
            return Ti
        out = np.empty_like(Ti)
        out[:, order] = Ti
        out /= w
        return out if gain == 1.0 else out * gain

    def reduced(self, X: Array, Y: Array) -> tuple[Array, Array, Matrices]:
        """Return bases in the coordinates of the system, for bases of its stable part, and the system in them.

        The system that was given is projected, unless its Schur form is seen to lose less: in oblique bases of
        rotated stiff systems, products with entries of every size cancel.
        """
        T, Ti = self.lift(X, Y)
        G = self.system
        if self._on_schur_form:
            return T, Ti, Matrices(Y @ (self._T @ X), Y @ self._B, self._C @ X, G.D)
        return T, Ti, Matrices(Ti @ (G.A @ T), Ti @ G.B, G.C @ T, G.D)

    def whole(self, stable: Matrices) -> Matrices:
        """Return a model of the stable part with the part that is kept beside it."""
        if self.kept == 0:
            return stable
        T, Ti = self.fixed_bases()
        A = sla.block_diag(self.fixed_A, stable.A).reshape((self.kept + len(stable.A),) * 2)
        return Matrices(
            A, np.vstack([Ti @ self.system.B, stable.B]), np.hstack([self.system.C @ T, stable.C]), stable.D
        )

    def stable_part(self) -> Matrices:
        """Return the stable part in its own coordinates, for measures of errors in which the rest cancels."""
        return Matrices(self._T, self._B, self._C, self.system.D)

    def accuracy(self, svd: HankelSVD) -> tuple[float, int]:
        """Return the rounding error of the Hankel singular values and how many of them link inputs to outputs.

        The product of factors loses about ``n eps |R| |S|``. A backward error ``eps |A|`` of the Schur form changes
        the Gramians by a relative ``2 eps |A| |L^-1|``, L the Lyapunov operator, and |L^-1| is attained at the
        identity. Where that is much, or a part was split off, the system in all its balanced states is compared with
        the one given.
        """
        product = norm_estimate(self.S) * norm_estimate(self.R)
        floor = EPS * self.system.n * product
        if product == 0.0:
            return 0.0, 0
        size = self._size**2 if self.discrete else self._size
        roundings = BACKWARD if self.system.n <= MANY_STATES else 2
        estimate = roundings * EPS * size * inverse_norm(self._T, self.discrete) * product
        limit = MEASURE_SMALL_FROM if self.system.n <= FEW_STATES else MEASURE_FROM
        if self.kept or not estimate <= limit * svd.values[0]:
            estimate = self._measured(svd, floor)
        floor = max(floor, estimate)
        return floor, int(np.count_nonzero(svd.values > floor))

    def _measured(self, svd: HankelSVD, floor: float) -> float:
        """Return a multiple of the largest difference seen between the system and its balanced realisation.

        Both ways to project are tried, and the better one is kept for all orders. How far the values of the balanced
        realisation lie from those found counts too.
        """
        rank = int(np.sum(svd.values > floor))
        poles = np.concatenate([self.poles[: self.kept][self._clearly_unstable], self.poles[self.kept :]])
        omega = sample_frequencies(poles, self.discrete, self.system.dtype.kind == "c")
        marginal = self.poles[: self.kept][~self._clearly_unstable]
        if len(marginal):
            points = boundary_points(omega, self.discrete)[:, None]
            least = np.abs(omega[omega != 0]).min(initial=np.inf)
            size = np.maximum(np.abs(points), least if np.isfinite(least) else 0.0)
            omega = omega[np.all(np.abs(points - marginal) > NEAR * size, axis=1)]
            omega = np.concatenate([omega, [0.1 * least, 0.3 * least] if np.isfinite(least) else []])
        given = self.system._response(omega)
        X, Y = svd.bases(slice(0, rank), rank)
        changes, models = [], []
        for self._on_schur_form in (True, False):
            with np.errstate(all="ignore"):
                models.append(self.reduced(X, Y)[2])
                model = self.whole(models[-1])
                finite = all(np.isfinite(x).all() for x in model[:4])
                changes.append(largest_gain(given - model.response(omega, self.discrete)) if finite else np.inf)
        self._on_schur_form = changes[0] < changes[1]
        if not np.isfinite(min(changes)):
            return np.inf
        again = self._values_again(models[0 if self._on_schur_form else 1])
        moved = float(np.abs(again - svd.values[:rank]).max(initial=0.0))
        return max(SAFETY * max(min(changes), moved), self._sensitivity(omega))

    def _values_again(self, model: Matrices) -> Array:
        """Return the Hankel singular values of a model in balanced coordinates, where rounding does other things."""
        units = balanced_units(model.A, model.B, model.C)
        A, B, C = apply_units(units, model.A, model.B, model.C)
        form = ordered_schur(A, self.discrete)
        if form.kept:
            return np.full(len(A), np.inf)
        S, R = _dense_factors(form.T, form.Z.conj().T @ B, C @ form.Z, self.discrete)
        return padded(HankelSVD(S, R).values, len(A))

    def _sensitivity(self, omega: Array) -> float:
        """Return what a rounding of every entry of A does to the response: ``eps |C R| (|A| + |s|) |R B|``."""
        G, points = self.system, boundary_points(omega, self.discrete)
        n, none = G.n, np.zeros
        left = np.abs(dense_response(G.A.T, G.C.T, np.eye(n), none((n, G.p)), points)).swapaxes(1, 2)
        right = np.abs(dense_response(G.A, G.B, np.eye(n), none((n, G.m)), points))
        weight = np.abs(G.A)[None] + np.abs(points)[:, None, None] * np.eye(n)
        with np.errstate(all="ignore"):
            return EPS * largest_gain(left @ weight @ right)


class DiagonalParts:
    """A diagonal system, its unstable and marginal states put aside; factors as structured elimination gives them.

    Attributes
    ----------
    kept : int
        Hankel singular values of the states put aside.
    fixed, rest : (k,) int ndarray
        Which states are put aside, and which are not.
    S, R : ndarray
        Graded factors of the Gramians of the rest, in real coordinates where the output is real.
    """

    def __init__(self, system: DiagonalSystem, offset: float) -> None:
        self.system = system
        unstable = system.spectrum.excess(system.is_discrete) >= (-offset if offset > 0 else 0.0)
        self.fixed, self.rest = np.flatnonzero(unstable), np.flatnonzero(~unstable)
        self.fixed_system = system.take(self.fixed)
        self.stable = system.take(self.rest) if len(self.fixed) else system
        self.kept = self.fixed_system.order
        self.poles = np.concatenate([self.fixed_system.poles(), self.stable.poles()])
        self.S, self.R = _diagonal_factors(self.stable)

    def lift(self, T: Array, Ti: Array) -> tuple[Array, Array]:
        """Return the bases as they are: those of the stable part."""
        return T, Ti

    def reduced(self, T: Array, Ti: Array) -> tuple[Array, Array, Matrices]:
        """Return bases of the stable part, real ones where the output is real, and the stable part in them."""
        lam, shift = self.stable.spectrum.less_shift()
        B, C, D = self.stable.double_matrices()
        size = np.tile(np.abs(lam), len(T) // max(1, len(lam)))[:, None]
        terms = np.abs(Ti) @ (size * np.abs(T))
        if not self.stable.has_real_output:
            return T, Ti, Matrices(Ti @ (lam[:, None] * T), Ti @ B, C @ T, D, shift, terms)
        B, C = real_output.real_matrices(B, C)
        return T, Ti, Matrices(Ti @ real_output.real_product(lam, T), Ti @ B, C @ T, D, shift, terms)

    def accuracy(self, svd: HankelSVD) -> tuple[float, int]:
        """Return the rounding error of the reduced matrices, and how many values are not zero.

        The factors stop where their own rounding begins, so every nonzero value counts.
        """
        values = svd.values
        return ROUNDINGS * len(values) * EPS * float(values.max(initial=0.0)), int(np.sum(values > 0))


@dataclass(frozen=True, eq=False)
class Factored:
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
    """

    system: Any
    parts: Any
    svd: HankelSVD
    hsv: Array
    floor: float
    rank: int

    @property
    def kept(self) -> int:
        """Number of unstable and marginal poles."""
        return int(self.parts.kept)

    @property
    def uncertain(self) -> float:
        """How far two equal values may lie apart; those of diagonal systems are right relative to themselves."""
        return self.floor if not self.system.is_diagonal else 0.0


def factored(system: LinearSystem, offset: float = 0.0) -> Factored:
    """Factor a system of this library; poles within `offset` of the stability boundary are kept aside."""
    with one_blas_thread(system.order):
        parts = parts_of(system, offset)
        svd = HankelSVD(parts.S, parts.R)
        check_result("Hankel singular values", svd.values)
        floor, rank = parts.accuracy(svd)
        hsv = padded(svd.values, system.order - parts.kept)
        if parts.kept:
            hsv = np.concatenate([np.full(parts.kept, np.inf), hsv])
    return Factored(system, parts, svd, hsv, floor, parts.kept + rank)


def stable(system: LinearSystem) -> Factored:
    """Factor a system all of whose poles must be stable."""
    found = factored(system)
    if found.kept:
        raise unstable_error(found.parts.poles[: found.kept], system.dt)
    return found


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


@singledispatch
def parts_of(system: Any, offset: float) -> Any:
    """Return the parts of a system."""
    raise InputError(f"One system is wanted here; got {system!r}. Pass the systems of a bank one by one.")


parts_of.register(StateSpace, DenseParts)
parts_of.register(DiagonalSystem, DiagonalParts)


def gramian_factors(sys: Any) -> tuple[Array, Array]:
    """Compute factors of both Gramians.

    In continuous time ``A P + P A^H + B B^H = 0`` and ``A^H Q + Q A + C^H C = 0``; in discrete time
    ``A P A^H - P + B B^H = 0`` and ``A^H Q A - Q + C^H C = 0``.

    Parameters
    ----------
    sys : StateSpace, DiagonalSystem, DiagonalBank or anything `as_system` accepts
        Stable system.

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
    system = as_system(sys)
    if system.is_bank:
        found = [gramian_factors(one) for one in system]
        k, l = max((S.shape[1] for S, _ in found), default=0), max((len(R) for _, R in found), default=0)
        S = (
            np.stack([np.pad(S, ((0, 0), (0, k - S.shape[1]))) for S, _ in found])
            if found
            else np.zeros((0, system.order, 0))
        )
        R = (
            np.stack([np.pad(R, ((0, l - len(R)), (0, 0))) for _, R in found])
            if found
            else np.zeros((0, 0, system.order))
        )
        return S, R
    parts = stable(system).parts
    S, R = parts.lift(parts.S, parts.R)
    check_result("Gramian factors", S, R)
    return in_family(S, system.dtype), in_family(R, system.dtype)


def gramians(sys: Any) -> tuple[Array, Array]:
    """Compute the controllability and the observability Gramian.

    Prefer `gramian_factors`, or `hankel_singular_values`, where they do: a product of factors has lost half of the
    digits of everything small.

    Parameters
    ----------
    sys : StateSpace, DiagonalSystem, DiagonalBank or anything `as_system` accepts
        Stable system.

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
    S, R = (double(x) for x in gramian_factors(sys))
    with np.errstate(over="ignore", invalid="ignore"):
        P, Q = S @ S.conj().swapaxes(-1, -2), R.conj().swapaxes(-1, -2) @ R
    check_result("Gramians", P, Q)
    dtype = as_system(sys).dtype
    return in_family(P, dtype), in_family(Q, dtype)


def hankel_singular_values(sys: Any) -> Array:
    """Compute all Hankel singular values of a stable system, or of a bank of them.

    Parameters
    ----------
    sys : StateSpace, DiagonalSystem, DiagonalBank or anything `as_system` accepts
        Stable system, continuous or discrete, real or complex.

    Returns
    -------
    (n,) or (batch, n) ndarray
        Decreasing, in units of y per unit of u; 2n values for real output.

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
    system = as_system(sys)
    if system.is_bank:
        hsv = bank_hsv(system)
    else:
        found = stable(system)
        hsv = found.hsv
        warn_if_inaccurate(found)
    return in_family(hsv, system.dtype)


def warn_if_inaccurate(found: Factored, stacklevel: int = 3) -> None:
    """Warn where the rounding error of the Hankel singular values is more than `WARN_FROM` of the largest."""
    values = found.svd.values
    if values.size and 0 < WARN_FROM * values[0] < found.floor:
        warnings.warn(
            f"Hankel singular values are certain to {found.floor:.2g} only, {found.floor / values[0]:.1g} of the "
            f"largest: the Lyapunov equations are ill-conditioned. Bounds take that into account.",
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


def bank_hsv(bank: DiagonalBank) -> Array:
    """Return the Hankel singular values of a bank of stable systems, (batch, order)."""
    with one_blas_thread(bank.order):
        hsv = _bank(bank, *_in_own_time(bank)).hankel_singular_values()
    check_result("Hankel singular values", hsv)
    return hsv


def sample_frequencies(poles: Array, discrete: bool, both_signs: bool) -> Array:
    """Return frequencies in rad per unit of time at which a system shows what it does: those of its poles."""
    if len(poles) == 0:
        return np.zeros(1)
    if discrete:
        near = np.log(np.where(poles == 0, 1e-300, poles).astype(complex))
        omega = np.concatenate([np.abs(near.imag), np.minimum(np.abs(near), np.pi), [np.pi]])
    else:
        omega = np.concatenate([np.abs(poles.imag), np.abs(poles)])
    omega = np.unique(omega[omega > 0])
    if len(omega) > SAMPLES:
        omega = omega[np.round(np.linspace(0, len(omega) - 1, SAMPLES)).astype(int)]
    omega = np.concatenate([[0.0], omega])
    return np.concatenate([-omega[:0:-1], omega]) if both_signs else omega


def largest_gain(response: Array) -> float:
    """Return the largest singular value over all frequencies."""
    if response.size == 0:
        return 0.0
    if not np.isfinite(response).all():
        return np.inf
    return float(np.linalg.norm(response, ord=2, axis=(1, 2)).max())


def _dense_factors(T: Array, B: Array, C: Array, discrete: bool) -> tuple[Array, Array]:
    """Return graded factors of both Gramians on a stable Schur form T, in its coordinates."""
    with np.errstate(over="ignore", invalid="ignore"):
        S = gramian_factor(T, B, discrete)
        J = slice(None, None, -1)  # the dual system A^H, C^H has the Schur form J T^H J
        R = gramian_factor(flipped(T), np.ascontiguousarray(C.conj().T[J]), discrete)[J]
        hint = (
            "A pole lies so close to the stability boundary that its energy overflows: raise offset, or scale inputs."
        )
        check_result("The Gramian", S, R, hint=hint)
        return graded(S), graded(R).conj().T


def _in_own_time(system: DiagonalSystem | DiagonalBank) -> tuple[Array, Array, Array]:
    """Return lam, B and C in a unit of time in which the largest continuous pole is near 1.

    Gramians and their factors do not depend on it, and powers of two are exact. Far from 1 the squares of poles, which
    complex divisions form, leave the range.
    """
    lam, (B, C, _) = system.spectrum.values(), system.double_matrices()
    if system.is_discrete:
        return lam, B, C
    size = np.maximum(np.abs(lam.real), np.abs(lam.imag)).max(axis=-1, initial=0.0)
    inverse_root = np.exp2(-np.round(np.log2(np.where(size > 0, size, 1.0)) / 2))[..., None]
    B, C = (x * inverse_root[..., None] for x in (B, C))
    return lam * inverse_root * inverse_root, B, C


def _diagonal_factors(system: DiagonalSystem) -> tuple[Array, Array]:
    """Return factors of a stable diagonal system, in its own coordinates or, for real output, in the real ones."""
    lam, B, C = _in_own_time(system)
    discrete = system.is_discrete
    poles = cauchy.pole_data(lam, system.spectrum.logarithms(), discrete)
    if not system.has_real_output:
        return cauchy.factor_pair(poles, B, C)[:2]
    if not system.stores_pairs:  # the imaginary parts of all states are zero
        return real_output.real_factors(*cauchy.factor_pair(poles, B, C)[:2])
    S, R, distance = cauchy.factor_pair(poles, B, C, pairs=True)
    if distance >= cauchy.NEARLY_REAL:
        return real_output.real_factors(S, R)
    S, R, _ = cauchy.factor_pair(poles.doubled(), *real_output.doubled(B, C))
    # past FULL_STATES there are no digits below eps hsv[0] that divide and conquer could lose
    return real_pair(*real_output.to_real(S, R), divide_and_conquer=len(lam) > cauchy.FULL_STATES)
