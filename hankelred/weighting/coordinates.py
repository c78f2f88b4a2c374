"""The coordinates in which weighted Gramians are factored: a triangular state matrix, or a diagonal one.

A weighting makes one factor, that of the side of the inputs; the side of the outputs is the same of the dual system.
Both kinds of coordinates answer the same few questions: powers of the flow, the integral of the resolvent over bands,
the solution of a Lyapunov equation, the states that inputs drive.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.linalg as sla

from ..checks import Array, check_result
from ..linalg.cauchy import row_norms
from ..linalg.hankel_svd import graded
from ..linalg.logarithm import triangular_logarithm
from ..linalg.semidefinite import equal_sizes
from ..linalg.triangular import (
    flipped,
    schur_eigenvalues,
    schur_form,
    solve_hermitian_stein,
    solve_hermitian_sylvester,
)
from ..parts import DenseParts, DiagonalParts
from ..systems import Poles, real_output

# Nodes of the Gauss-Legendre rule on a step in which A moves a state by no more than its own size: exact to rounding.
NODES = 10

HINT = "Shorten the horizon, or scale inputs or time."

# Terms of the exponential series over such a step.
TERMS = 20


class Triangular(NamedTuple):
    """A Schur form T, or for the dual system ``J T^H J``, with the inputs B and the outputs C of those coordinates.

    `mirrored` tells that rows are in reversed order.
    """

    T: Array
    B: Array
    C: Array
    discrete: bool
    mirrored: bool = False

    def dual(self) -> Triangular:
        """Return the dual system ``(A^H, C^H, B^H)``."""
        J = slice(None, None, -1)
        return Triangular(
            flipped(self.T), self.C.conj().T[J].copy(), self.B.conj().T[:, J], self.discrete, not self.mirrored
        )

    def native(self, S: Array) -> Array:
        """Return a factor in the order of the part's own states."""
        return S[::-1] if self.mirrored else S

    @property
    def size(self) -> float:
        """How fast a state can move, relative to its size."""
        return float(np.abs(self.T).sum(axis=0).max(initial=0.0))

    def flow(self, unit: float) -> _TriangularFlow:
        """Return the powers of ``exp(T unit)``, or of T."""
        return _TriangularFlow(self, unit)

    def over_step(self, unit: float) -> Array:
        """Return a factor of the integral of ``e^{T s} B B^H e^{T^H s}`` over a short step `unit`."""
        powers = [self.B]
        for k in range(1, TERMS):
            powers.append(self.T @ powers[-1] * (unit / k))
        nodes, weights = _rule()
        columns = [w * sum(x * t**k for k, x in enumerate(powers)) for t, w in zip(nodes, weights, strict=True)]
        return np.sqrt(unit) * np.hstack(columns)

    def on_bands(self, bands: Array) -> Array:
        """Return F B, F the integral of the resolvent over the bands and their mirror images, divided by 2 pi."""
        U, Z = schur_form(self.T, np.dtype(complex))
        F: Array = np.sum([self._below(high, U, Z) - self._below(low, U, Z) for low, high in bands], axis=0)
        return F @ self.B

    def _below(self, omega: float, U: Array, Z: Array) -> Array:
        """Return F for the band from -omega to omega."""
        identity, real = np.eye(len(U)), self.T.dtype.kind != "c"
        if omega in (0.0, np.inf):
            return identity * (0.5 if omega else 0.0)
        ends = [identity - U * np.exp(-1j * w) if self.discrete else 1j * w * identity - U for w in (omega, -omega)]
        logarithms = [Z @ triangular_logarithm(end) @ Z.conj().T for end in ends[: 1 if real else 2]]
        turn = 2 * logarithms[0].imag if real else -1j * (logarithms[0] - logarithms[1])
        return ((omega * identity if self.discrete else 0.0) + turn) / (2 * np.pi)

    def lyapunov(self, X: Array) -> Array:
        """Return P with ``T P + P T^H + X = 0``, or ``T P T^H - P + X = 0``, X Hermitian."""
        P = X.astype(np.result_type(X, self.T)) if self.discrete else -X.astype(np.result_type(X, self.T))
        if self.discrete:
            solve_hermitian_stein(self.T, P)
        else:
            solve_hermitian_sylvester(self.T, P)
        return P

    def triangular(self) -> Triangular:
        """Return these coordinates."""
        return self

    def held(self, dt: float) -> tuple[Array, Array]:
        """Return the transposes of the matrices of a step `dt` in which the input is held."""
        n, m = self.B.shape
        both = np.zeros((n + m, n + m), np.result_type(self.T, self.B))
        both[:n, :n], both[:n, n:] = self.T * dt, self.B * dt
        both = sla.expm(both)
        return both[:n, :n].T, both[:n, n:].T

    def step(self, x: Array, A: Array) -> Array:
        """Return states (batch, n) one step later, without the input."""
        return x @ A

    def stepping(self, dt: float) -> tuple[Array, Array]:
        """Return what moves states by a step, and what brings the inputs in."""
        return (self.T.T, self.B.T) if self.discrete else self.held(dt)


class _TriangularFlow:
    """Powers of ``exp(T unit)``, or of T, by doubling; the diagonal of each is that of its function of the poles."""

    def __init__(self, part: Triangular, unit: float) -> None:
        self._T, self._unit, self._discrete = part.T, unit, part.discrete
        self._one = part.T if part.discrete else self._short_exponential()
        self.count, self._power = 1, self._one

    def _short_exponential(self) -> Array:
        term = total = np.eye(len(self._T), dtype=self._T.dtype)
        for k in range(1, TERMS):
            term = self._T @ term * (self._unit / k)
            total = total + term
        return total

    def __call__(self, X: Array) -> Array:
        """Return the present power times X."""
        return self._power @ X

    def once(self, X: Array) -> Array:
        """Return the first power times X."""
        return self._one @ X

    def double(self) -> None:
        """Go on to twice the exponent."""
        self.count *= 2
        self._power = self._exact(self._power @ self._power)

    def increment(self) -> None:
        """Go on to the next exponent."""
        self.count += 1
        self._power = self._exact(self._power @ self._one)

    def _exact(self, power: Array) -> Array:
        """Return a power with the right diagonal: what slow poles lose by rounding does not add up."""
        T, lam = self._T, schur_eigenvalues(self._T)
        with np.errstate(all="ignore"):
            value = lam**self.count if self._discrete else np.exp(lam * (self._unit * self.count))
        n = np.arange(len(T))
        if T.dtype.kind == "c":
            power[n, n] = value
            return power
        power[n, n] = value.real
        i = np.flatnonzero(np.diag(T, -1))
        for j, k in ((i, i + 1), (i + 1, i)):
            power[j, k] = value[i].imag * T[j, k] / lam[i].imag
        return power


class Modal(NamedTuple):
    """A diagonal part: poles, inputs B and outputs C, with the conjugates of all states where these are not stored."""

    lam: Array
    z: Array | None
    B: Array
    C: Array
    discrete: bool

    def dual(self) -> Modal:
        """Return the dual system."""
        z = None if self.z is None else self.z.conj()
        return Modal(self.lam.conj(), z, self.C.conj().T, self.B.conj().T, self.discrete)

    def native(self, S: Array) -> Array:
        """Return a factor as it is."""
        return S

    @property
    def size(self) -> float:
        """How fast a state can move, relative to its size."""
        return float(np.abs(self.lam).max(initial=0.0))

    def flow(self, unit: float) -> _ModalFlow:
        """Return the powers of ``exp(lam unit)``, or of lam."""
        return _ModalFlow(self, unit)

    def over_step(self, unit: float) -> Array:
        """Return a factor of the integral of ``e^{lam s} b b^H e^{lam^H s}`` over a short step `unit`."""
        nodes, weights = _rule()
        columns = [w * np.exp(self.lam * (t * unit))[:, None] * self.B for t, w in zip(nodes, weights, strict=True)]
        return np.sqrt(unit) * np.hstack(columns)

    def on_bands(self, bands: Array) -> Array:
        """Return F B, F the integral of the resolvent over the bands and their mirror images, divided by 2 pi."""
        F: Array = np.sum([self._below(high) - self._below(low) for low, high in bands], axis=0)
        return (F.real if self.lam.dtype.kind != "c" else F)[:, None] * self.B

    def _below(self, omega: float) -> Array:
        """Return F for the band from -omega to omega."""
        if omega in (0.0, np.inf):
            return np.full(len(self.lam), 0.5 if omega else 0.0)
        if self.discrete:
            ends = [np.log(self._distance(w)) for w in (omega, -omega)]
            return (omega - 1j * (ends[0] - ends[1])) / (2 * np.pi)
        ends = [np.log(1j * w - self.lam) for w in (omega, -omega)]
        return (ends[0] - ends[1]) / (2j * np.pi)

    def _distance(self, omega: float) -> Array:
        """Return ``1 - lam exp(-i omega)``, from logarithms where there are any."""
        if self.z is None:
            return 1.0 - self.lam * np.exp(-1j * omega)
        return -np.expm1(self.z - 1j * omega)

    def lyapunov(self, X: Array) -> Array:
        """Return P with ``lam_i P_ij + P_ij conj(lam_j) + X_ij = 0``, or the same in discrete time."""
        if not self.discrete:
            return -X / (self.lam[:, None] + self.lam.conj())
        if self.z is None:
            return X / (1.0 - self.lam[:, None] * self.lam.conj())
        return -X / np.expm1(self.z[:, None] + self.z.conj())

    def triangular(self) -> Triangular:
        """Return the same as a triangular system."""
        return Triangular(np.diag(self.lam), self.B, self.C, self.discrete)

    def step(self, x: Array, A: Array) -> Array:
        """Return states (batch, n) one step later, without the input."""
        return x * A

    def stepping(self, dt: float) -> tuple[Array, Array]:
        """Return what moves states by a step, and what brings the inputs in."""
        if self.discrete:
            return self.lam, self.B.T
        growth = np.expm1(self.lam * dt)
        gain = np.where(self.lam == 0, dt, growth / np.where(self.lam == 0, 1.0, self.lam))
        return growth + 1.0, (gain[:, None] * self.B).T


class _ModalFlow:
    """Powers of ``exp(lam unit)``, or of lam."""

    def __init__(self, part: Modal, unit: float) -> None:
        self._part, self._unit, self.count = part, unit, 1

    def _power(self, count: int) -> Array:
        part = self._part
        with np.errstate(all="ignore"):
            if part.discrete and part.z is None:
                return part.lam**count
            exponent = part.lam if part.z is None else part.z
            return np.exp(exponent * (self._unit * count))

    def __call__(self, X: Array) -> Array:
        """Return the present power times X."""
        return self._power(self.count)[:, None] * X

    def once(self, X: Array) -> Array:
        """Return the first power times X."""
        return self._power(1)[:, None] * X

    def double(self) -> None:
        """Go on to twice the exponent."""
        self.count *= 2

    def increment(self) -> None:
        """Go on to the next exponent."""
        self.count += 1


class Coordinates(NamedTuple):
    """The coordinates of a part, and how factors found there become factors in the coordinates of the part."""

    inner: Any
    pairs: bool = False
    halves: bool = False

    def factors(self, S: Array, R: Array) -> tuple[Array, Array]:
        """Return graded factors in the coordinates of the part for factors in the inner ones."""
        check_result("Weighted Gramians", S, R, hint=HINT)
        if self.pairs:  # factors of real matrices
            S, R = real_output.to_real(S, R)
            S, R = np.hstack([S.real, S.imag]), np.vstack([R.real, R.imag])
        d = equal_sizes(row_norms(S), row_norms(R.T))[:, None]
        S, R = graded(S / d), graded((R * d.T).conj().T).conj().T  # what is noise does not depend on units
        return self.whole(S * d, R / d.T)

    def matrix(self, P: Array) -> Array:
        """Return a Hermitian matrix in the coordinates of the part, of half of its states if all are real."""
        if self.pairs:  # the change of coordinates is unitary
            half = real_output.to_real(P, P)[0]
            P = real_output.to_real(half, half)[1].real
        return (P + P.conj().T) / 2

    def half(self, R: Array) -> Array:
        """Return a factor R of the part for half of its states if all are real."""
        return np.sqrt(2.0) * R[:, : R.shape[1] // 2] if self.halves else R

    def whole(self, S: Array, R: Array) -> tuple[Array, Array]:
        """Return factors for all states where those that are left, imaginary parts of real ones, are zero."""
        return real_output.real_matrices(S, R) if self.halves else (S, R)


def coordinates_of(parts: DenseParts | DiagonalParts) -> Coordinates:
    """The coordinates in which the stable part of a system is factored."""
    if isinstance(parts, DenseParts):
        return Coordinates(Triangular(parts.T, parts.B, parts.C, parts.discrete))
    system = parts.stable
    B, C, _ = system.double_matrices()
    spectrum: Poles = system.spectrum
    lam, z = spectrum.values(), spectrum.logarithms()
    if system.stores_pairs:
        B, C = real_output.doubled(B, C)
        lam, z = real_output.with_conjugates(lam), None if z is None else real_output.with_conjugates(z)
    inner = Modal(lam, z, B, C, system.is_discrete)
    return Coordinates(inner, system.stores_pairs, system.has_real_output and not system.stores_pairs)


def _rule() -> tuple[Array, Array]:
    """Return nodes on (0, 1) and the roots of the weights of the Gauss-Legendre rule."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    return (nodes + 1) / 2, np.sqrt(weights / 2)
