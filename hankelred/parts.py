"""The stable part of a system: how it lies in the system, and graded factors of its Gramians.

Dense systems go through a Schur form in balanced units, diagonal ones through structured elimination. The unstable and
marginal poles, which balanced truncation must not touch, are put aside.
"""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg as sla

from .checks import EPS, Array
from .linalg import cauchy
from .linalg.hankel_svd import HankelSVD, real_pair
from .linalg.hessenberg import HessenbergForm
from .linalg.linked import linked_bases
from .linalg.riccati import in_last_digits
from .linalg.schur import apply_units, balanced_units, decouple, ordered_schur, rounding_norms
from .linalg.triangular import schur_factors
from .rounding import Matrices, measured
from .systems import DiagonalBank, DiagonalSystem, StateSpace, real_output

# An estimated rounding error above this share of the largest Hankel singular value is measured instead. Measuring takes
# some responses, which are cheap where there are few states.
MEASURE_FROM, MEASURE_SMALL_FROM, FEW_STATES = 1e-9, 1e-12, 16

# Backward error of Schur form, factors and projection, in eps |A|: up to 18 were seen over random systems of 5 states;
# of many states |A| is large next to what each entry loses, and 2 were enough.
BACKWARD, BACKWARD_OF_MANY, MANY_STATES = 32, 2, 64

# Roundings of a diagonal system's reduced matrices, in n eps hsv[0]: at most 12 were seen over stiff random systems.
ROUNDINGS = 32


class InBalancedUnits:
    """A dense system in balanced units, and the way back; what its parts have in common.

    Attributes
    ----------
    system : StateSpace
        The system that was given.
    units : Units
        Of its states, inputs and outputs.
    """

    def __init__(self, system: StateSpace) -> None:
        self.system = G = system.dense()
        self.units = balanced_units(G.A, G.B, G.C)

    def matrices(self) -> tuple[Array, Array, Array]:
        """Return A, B and C in these units."""
        return apply_units(self.units, self.system.A, self.system.B, self.system.C)

    @property
    def discrete(self) -> bool:
        """Whether time is discrete."""
        return self.system.is_discrete

    def out(self, T: Array, power: int = 1) -> Array:
        """Return columns in the coordinates of the system; with the power -1 those that rows are turned into."""
        w, order, gain, given = self.units
        out = T
        if not given:
            out = np.empty_like(T)
            out[order] = T
            out *= (w**power)[:, None]
        return out if gain == 1.0 else out * gain**-power

    def rows_out(self, Ti: Array) -> Array:
        """Return rows in the coordinates of the system."""
        return self.out(Ti.T, -1).T

    def in_bases(self, T: Array, Ti: Array) -> Matrices:
        """Return the system as it was given in these bases."""
        G = self.system
        return Matrices(Ti @ (G.A @ T), Ti @ G.B, G.C @ T, G.D)


class Begun(NamedTuple):
    """A dense system on its way to a Schur form."""

    given: InBalancedUnits
    matrices: tuple[Array, Array, Array]
    form: HessenbergForm


class DenseParts:
    """A dense system, its unstable and marginal part first, in the coordinates of a Schur form in balanced units.

    Attributes
    ----------
    kept : int
        Unstable and marginal poles.
    poles : (n,) ndarray
        All poles, those kept first.
    T, B, C : ndarray
        The stable part in its own coordinates.
    """

    is_low_rank = False

    def __init__(self, system: StateSpace, offset: float, splits: bool = True, begun: Begun | None = None) -> None:
        if begun is None:
            self._given, form = InBalancedUnits(system), None
            A, B, C = self._given.matrices()
        else:
            self._given, (A, B, C), form = begun
        self.system = self._given.system
        self._form = ordered = ordered_schur(A, self.discrete, offset if splits else None, form)
        self.poles, self.kept = ordered.poles, ordered.kept
        k = self.kept
        self.T, self._right = ordered.T[k:, k:], ordered.Z[:, k:]
        self._left = self._right.conj().T
        if k:
            Y = decouple(ordered.T, k)
            self._fixed_left = ordered.Z[:, :k].conj().T - Y @ self._left
            self._right = self._right + ordered.Z[:, :k] @ Y
        self._fixed_right, self._fixed = ordered.Z[:, :k], ordered.T[:k, :k]
        self.B, self.C = self._left @ B, C @ self._right

    @cached_property
    def factors(self) -> tuple[Array, Array]:
        """Graded factors S and R of the Gramians of the stable part."""
        return schur_factors(self.T, self.B, self.C, self.discrete)

    @property
    def discrete(self) -> bool:
        """Whether time is discrete."""
        return self._given.discrete

    @property
    def is_split(self) -> bool:
        """Whether poles were put aside."""
        return len(self.T) < self.system.n

    def clearly_unstable(self, bars: float) -> Array:
        """Tell which poles of those kept lie beyond the boundary by more than so many of their error bars."""
        poles, error = self.poles[: self.kept], self._form.error[: self.kept]
        excess = np.abs(poles) - 1.0 if self.discrete else poles.real
        return np.greater(excess, bars * error)

    def lift(self, T: Array, Ti: Array) -> tuple[Array, Array]:
        """Return bases of the stable part in the coordinates of the system."""
        return self._given.out(self._right @ T), self._given.rows_out(Ti @ self._left)

    def fixed_bases(self) -> tuple[Array, Array]:
        """Return bases of the part that is kept, in the coordinates of the system."""
        return self._given.out(self._fixed_right), self._given.rows_out(self._fixed_left)

    def without_idle(self, offset: float, rtol: float) -> DenseParts:
        """Return the parts without the states put aside that link no input to any output; itself if there are none."""
        G = self.system
        A, B, C = in_last_digits(G.A, G.B, G.C)
        near = DenseParts(StateSpace.trusted(A, B, C, G.D, G.dt), offset)
        if self.kept == 0 or near.kept != self.kept:
            return self
        norms = (float(np.linalg.norm(x)) for x in (*self._given.matrices(), self._fixed_left, self._fixed_right))
        size, inputs, outputs, left, right = norms
        sizes = size, left * inputs, outputs * right
        X, Y = linked_bases(self._put_aside(), near._put_aside(), sizes, rtol)
        if X.shape[1] == self.kept:
            return self
        found = copy.copy(self)
        found._fixed_right, found._fixed_left = self._fixed_right @ X, Y @ self._fixed_left
        found._fixed, found.kept = Y @ self._fixed @ X, X.shape[1]
        found.poles = np.concatenate([np.linalg.eigvals(found._fixed), self.poles[self.kept :]])
        return found

    def _put_aside(self) -> tuple[Array, Array, Array]:
        """Return A, B and C of the states that are put aside, in balanced units."""
        _, B, C = self._given.matrices()
        return self._fixed, self._fixed_left @ B, C @ self._fixed_right

    def stable_response(self, omega: Array) -> Array:
        """Return the response of the stable part at frequencies in rad per unit of time."""
        if self.kept == 0:
            return self.system._response(omega)
        return Matrices(self.T, self.B, self.C, self.system.D).response(omega, self.discrete)

    def projected(self, X: Array, Y: Array) -> tuple[Array, Array, Matrices]:
        """Return bases in the coordinates of the system for bases of its stable part, and the given system in them."""
        T, Ti = self.lift(X, Y)
        return T, Ti, self._given.in_bases(T, Ti)

    def projected_schur_form(self, X: Array, Y: Array) -> tuple[Array, Array, Matrices]:
        """Return the same bases, and in them the Schur form, where that is seen to lose less."""
        return *self.lift(X, Y), Matrices(Y @ (self.T @ X), Y @ self.B, self.C @ X, self.system.D)

    def whole(self, stable: Matrices) -> Matrices:
        """Return a model of the stable part with the part that is kept beside it."""
        if self.kept == 0:
            return stable
        T, Ti = self.fixed_bases()
        A = sla.block_diag(self._fixed, stable.A).reshape((self.kept + len(stable.A),) * 2)
        return Matrices(
            A, np.vstack([Ti @ self.system.B, stable.B]), np.hstack([self.system.C @ T, stable.C]), stable.D
        )

    def accuracy(self, svd: HankelSVD) -> tuple[float, int, bool]:
        """Return the rounding error of the hsv, how many are more than that, and whether to project the Schur form.

        The product of factors loses about ``n eps |R| |S|``. A backward error ``eps |A|`` of the Schur form changes
        the Gramians by a relative ``2 eps |A| |L^-1|``, L the Lyapunov operator, and |L^-1| is attained at the
        identity. Where that is much, or a part was split off, the error is measured.
        """
        product, size, inverse = rounding_norms(self._form.T, self.T, svd.S, svd.R, self.discrete)
        floor, on_schur_form = EPS * self.system.n * product, False
        if product == 0.0:
            return 0.0, 0, False
        size = size**2 if self.discrete else size
        roundings = BACKWARD if self.system.n <= MANY_STATES else BACKWARD_OF_MANY
        estimate = roundings * EPS * size * inverse * product
        limit = MEASURE_SMALL_FROM if self.system.n <= FEW_STATES else MEASURE_FROM
        if self.kept or not estimate <= limit * svd.values[0]:
            estimate, on_schur_form = measured(self, svd, floor)
        floor = max(floor, estimate)
        return floor, int(np.count_nonzero(svd.values > floor)), on_schur_form


class DiagonalParts:
    """A diagonal system, its unstable and marginal states put aside; factors as structured elimination gives them.

    Attributes
    ----------
    kept : int
        Hankel singular values of the states put aside.
    fixed, rest : (k,) int ndarray
        Which states are put aside, and which are not.
    """

    is_low_rank = False

    def __init__(self, system: DiagonalSystem, offset: float, splits: bool = True) -> None:
        self.system = system
        limit = -offset if offset > 0 else 0.0
        unstable = system.spectrum.excess(system.is_discrete) >= (limit if splits else np.inf)
        self.fixed, self.rest = np.flatnonzero(unstable), np.flatnonzero(~unstable)
        self.fixed_system = system.take(self.fixed)
        self.stable = system.take(self.rest) if len(self.fixed) else system
        self.kept = self.fixed_system.order
        self.poles = np.concatenate([self.fixed_system.poles(), self.stable.poles()])
        self._bases = np.eye(len(self.fixed)), np.eye(len(self.fixed))

    def fixed_bases(self) -> tuple[Array, Array]:
        """Return bases of the states put aside, in their own coordinates."""
        return self._bases

    def without_idle(self, offset: float, rtol: float) -> DiagonalParts:
        """Return the parts without the states put aside that link no input to any output; itself if there are none.

        States of one pole make one matrix of residues, ``C B``, whose rank says how many of them are needed.
        """
        lam, (B, C, _) = self.fixed_system.spectrum.values(), self.fixed_system.double_matrices()
        X, Y = [np.zeros((len(lam), 0), B.dtype)], [np.zeros((0, len(lam)), B.dtype)]
        chosen: list[int] = []
        for pole in np.unique(lam):
            same = np.flatnonzero(lam == pole)
            svd = HankelSVD(B[same], C[:, same])
            rank = int(np.count_nonzero(svd.values > max(rtol, len(same) * EPS) * svd.values.max(initial=0.0)))
            x, y = svd.bases(slice(0, rank), rank)
            one = np.eye(len(lam))[:, same]
            X.append(one @ x)
            Y.append(y @ one.T)
            chosen.extend(same[:rank])
        if len(chosen) == len(lam):
            return self
        found, (x, y) = copy.copy(self), (np.hstack(X), np.vstack(Y))
        found._bases, few = (x, y), self.fixed_system.take(np.array(chosen, int))
        found.fixed_system = few.with_(B=y @ B, C=C @ x)
        found.kept = found.fixed_system.order
        found.poles = np.concatenate([found.fixed_system.poles(), self.stable.poles()])
        return found

    @cached_property
    def factors(self) -> tuple[Array, Array]:
        """Graded factors S and R of the Gramians of the rest, in real coordinates where the output is real."""
        return _diagonal_factors(self.stable)

    def clearly_unstable(self, bars: float) -> Array:
        """Tell which poles of those kept lie beyond the boundary by more than so many of their last digits."""
        spectrum, discrete = self.fixed_system.spectrum, self.system.is_discrete
        return np.greater(spectrum.excess(discrete), bars * EPS * spectrum.rounding(discrete)[1])

    def lift(self, T: Array, Ti: Array) -> tuple[Array, Array]:
        """Return the bases as they are: those of the stable part."""
        return T, Ti

    def stable_response(self, omega: Array) -> Array:
        """Return the response of the stable part at frequencies in rad per unit of time."""
        return self.stable._response(omega)

    def projected(self, T: Array, Ti: Array) -> tuple[Array, Array, Matrices]:
        """Return bases of the stable part, real ones where the output is real, and the stable part in them."""
        lam, shift = self.stable.spectrum.less_shift()
        B, C, D = self.stable.double_matrices()
        size = np.tile(np.abs(lam), len(T) // max(1, len(lam)))[:, None]
        terms = np.abs(Ti) @ (size * np.abs(T))
        if not self.stable.has_real_output:
            return T, Ti, Matrices(Ti @ (lam[:, None] * T), Ti @ B, C @ T, D, shift, terms)
        B, C = real_output.real_matrices(B, C)
        return T, Ti, Matrices(Ti @ real_output.real_product(lam, T), Ti @ B, C @ T, D, shift, terms)

    def accuracy(self, svd: HankelSVD) -> tuple[float, int, bool]:
        """Return the rounding error of the reduced matrices, how many hsv are not zero, and False.

        The factors stop where their own rounding begins, so every nonzero value counts.
        """
        values = svd.values
        return ROUNDINGS * len(values) * EPS * float(values.max(initial=0.0)), int(np.sum(values > 0)), False


def parts_of(system: Any, offset: float, splits: bool = True) -> Any:
    """The parts of one system; poles within `offset` of the stability boundary are put aside, unless none shall be."""
    found = None
    if system.is_sparse and splits:
        from .low_rank import low_rank_parts  # scipy.sparse, which most programs never need

        found = low_rank_parts(system, offset)
    return found or (DiagonalParts if system.is_diagonal else DenseParts)(system, offset, splits)


def svd_of(parts: Any) -> HankelSVD:
    """Return the product of the factors of parts, with its values."""
    return parts.svd if parts.is_low_rank else HankelSVD(*parts.factors)


def in_own_time(system: DiagonalSystem | DiagonalBank) -> tuple[Array, Array, Array]:
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
    lam, B, C = in_own_time(system)
    discrete = system.is_discrete
    poles = cauchy.pole_data(lam, system.spectrum.logarithms(), discrete)
    if not system.has_real_output:
        return cauchy.factor_pair(poles, B, C)[:2]
    if not system.stores_pairs:  # the imaginary parts of all states are zero
        return real_output.real_matrices(*cauchy.factor_pair(poles, B, C)[:2])
    S, R, distance = cauchy.factor_pair(poles, B, C, pairs=True)
    if distance >= cauchy.NEARLY_REAL:
        return real_output.real_matrices(S, R)
    S, R, _ = cauchy.factor_pair(poles.doubled(), *real_output.doubled(B, C))
    # past FULL_STATES there are no digits below eps hsv[0] that divide and conquer could lose
    return real_pair(*real_output.to_real(S, R), divide_and_conquer=len(lam) > cauchy.FULL_STATES)
