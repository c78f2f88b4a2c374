"""Linear time-invariant systems: frozen matrices with their sampling time. Nothing is solved here.

Two classes share one vocabulary (``n m p dt poles() frequency_response() G - H``): `StateSpace` for any A, and
`DiagonalSystem` for diagonal A, which is what state space layers and modal models are.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import scipy.linalg as sla
from numpy.typing import ArrayLike

from ._checks import (
    B_HINT,
    C_HINT,
    Array,
    check_array,
    check_descriptor,
    check_dt,
    check_feedthrough,
    check_frequencies,
    check_square,
    double,
    instability,
    is_discrete,
    readonly,
)
from ._system_base import Labels, System, common_dt, freeze
from .errors import InputError

# Frequency responses of many states are computed some frequencies at a time, in arrays of about this many entries.
PIECE = 2**21


@dataclass(frozen=True, eq=False, init=False, repr=False)
class StateSpace(System):
    """A linear system ``E x' = A x + B u, y = C x + D u``, or ``E x+ = ...`` in discrete time.

    Parameters
    ----------
    A : (n, n) array_like
        State matrix, real or complex.
    B : (n, m) array_like
        Input matrix.
    C : (p, n) array_like
        Output matrix.
    D : (p, m) array_like, optional
        Feedthrough; zero by default. A scalar is accepted for one input and one output, and 0 always.
    dt : float or bool, default 0
        Sampling time in seconds; 0 is continuous, True is discrete without a stated time.
    E : (n, n) array_like, optional
        Nonsingular descriptor matrix; the identity by default.
    labels : Labels, optional
        Names of the system, its inputs, outputs and states.

    Attributes
    ----------
    A, B, C, D, E : ndarray
        Read-only copies in one common dtype; E is None where it is the identity.
    n, m, p : int
        Numbers of states, inputs and outputs.

    Raises
    ------
    InputError
        If shapes disagree, an entry is not finite, `dt` is None or negative, or E is singular.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> plant = hr.StateSpace([[-1.0, 0.5], [0.0, -3.0]], [[1.0], [1.0]], [[1.0, 0.0]])
    >>> plant.n, plant.m, plant.p, plant.is_stable()
    (2, 1, 1, True)
    """

    A: Array
    B: Array
    C: Array
    D: Array
    dt: Any
    E: Array | None
    labels: Labels = field(repr=False)

    def __init__(
        self,
        A: ArrayLike,
        B: ArrayLike,
        C: ArrayLike,
        D: ArrayLike | None = None,
        dt: Any = 0,
        E: ArrayLike | None = None,
        *,
        labels: Labels | None = None,
    ) -> None:
        A, B, C = check_square(A), check_array(B, "B", 2, B_HINT), check_array(C, "C", 2, C_HINT)
        n = len(A)
        if len(B) != n:
            hint = " Did you pass B transposed?" if B.shape[1] == n else ""
            raise InputError(f"B must have as many rows as A; got A {A.shape} and B {B.shape}.{hint}")
        if C.shape[1] != n:
            hint = " Did you pass C transposed?" if len(C) == n else ""
            raise InputError(f"C must have as many columns as A; got A {A.shape} and C {C.shape}.{hint}")
        D = check_feedthrough(D, len(C), B.shape[1])
        arrays = {"A": A, "B": B, "C": C, "D": D}
        if E is not None:
            arrays["E"] = check_descriptor(E, n)
        object.__setattr__(self, "E", None)  # unless among the arrays
        freeze(self, arrays, dt, labels)

    def poles(self) -> Array:
        """Return the eigenvalues of A, of the pencil (A, E) where E is given."""
        if self.n == 0:
            return np.empty(0, dtype=np.complex128)
        if self.E is None:
            return sla.eigvals(double(self.A))
        return sla.eigvals(double(self.A), double(self.E))

    def is_stable(self) -> bool:
        """Tell whether every pole lies strictly inside the stability region."""
        return instability(self.poles(), self.dt) < 0

    def standard(self) -> StateSpace:
        """Return the same system in double precision with E absorbed: ``(E^-1 A, E^-1 B, C, D)``."""
        if self.E is None and self.dtype in (np.float64, np.complex128):
            return self
        A, B, C, D = (double(x) for x in (self.A, self.B, self.C, self.D))
        if self.E is not None:
            A, B = np.split(sla.solve(double(self.E), np.hstack([A, B])), [self.n], axis=1)
        return StateSpace(A, B, C, D, self.dt, labels=self.labels)

    def frequency_response(self, omega: ArrayLike) -> Array:
        """Return the transfer function on the stability boundary.

        Parameters
        ----------
        omega : (k,) array_like
            Angular frequencies in rad per second (rad per sample for ``dt=True``); infinity is allowed in
            continuous time.

        Returns
        -------
        (k, p, m) ndarray
            ``C (s E - A)^-1 B + D`` at ``s = 1j omega``, or at ``z = exp(1j omega dt)``.
        """
        omega = check_frequencies(omega)
        G = self.standard()
        T, Z = sla.schur(G.A, output="complex") if self.n else (G.A, G.A)
        B, C = Z.conj().T @ G.B, G.C @ Z
        identity, response = np.eye(self.n), np.empty((len(omega), self.p, self.m), dtype=np.complex128)
        for k, w in enumerate(omega):
            response[k] = G.D
            if self.n and np.isfinite(w):
                s = np.exp(1j * _angle(w, self.dt)) if self.is_discrete else 1j * w
                response[k] += C @ sla.solve_triangular(s * identity - T, B)  # one Schur form, O(n^2 m) each
        return response

    def __sub__(self, other: StateSpace | DiagonalSystem) -> StateSpace:
        """Return the error system, whose transfer function is the difference of the two."""
        if isinstance(other, DiagonalSystem):
            other = other.to_state_space()
        if not isinstance(other, StateSpace):
            return NotImplemented
        dt = common_dt(self, other)
        G, H = self.standard(), other.standard()
        return StateSpace(
            sla.block_diag(G.A, H.A).reshape(G.n + H.n, G.n + H.n),
            np.vstack([G.B, H.B]),
            np.hstack([G.C, -H.C]),
            G.D - H.D,
            dt,
        )


@dataclass(frozen=True, eq=False, init=False, repr=False)
class DiagonalSystem(System):
    """A linear system with diagonal state matrix, ``x' = lam x + B u`` or ``x+ = lam x + B u``.

    The output is ``y = C x + D u``, or ``y = Re(C x) + D u`` with ``output="real"``, the form of LRU and S5
    layers: there the inputs are real, every stored complex state stands for itself and its conjugate, and the
    system has 2n Hankel singular values.

    Parameters
    ----------
    lam : (n,) array_like
        Diagonal of the state matrix, real or complex.
    B : (n, m) array_like
        Input matrix.
    C : (p, n) array_like
        Output matrix.
    D : (p, m) array_like, optional
        Feedthrough, zero by default; real if the output is.
    dt : float or bool
        Sampling time in seconds; 0 is continuous, True is discrete without a stated time. There is no default.
    output : {"complex", "real"}, default "complex"
        Whether the output is ``C x`` or its real part.
    labels : Labels, optional
        Names of the system, its inputs, outputs and states.

    Attributes
    ----------
    lam, B, C, D : ndarray
        Read-only copies in one common dtype.
    rates : (n,) ndarray or None
        ``z`` with ``lam = exp(z)`` where the system was made by `from_rates`.
    n, m, p : int
        Numbers of stored states, inputs and outputs.

    Raises
    ------
    InputError
        If shapes disagree, an entry is not finite, or `dt` is None or negative.

    Examples
    --------
    >>> import hankelred as hr
    >>> hr.DiagonalSystem([0.9, -0.5], [[1.0], [1.0]], [[1.0, 2.0]], dt=True).is_stable()
    True
    """

    lam: Array
    B: Array
    C: Array
    D: Array
    dt: Any
    output: Literal["complex", "real"]
    rates: Array | None
    labels: Labels = field(repr=False)

    def __init__(
        self,
        lam: ArrayLike,
        B: ArrayLike,
        C: ArrayLike,
        D: ArrayLike | None = None,
        *,
        dt: Any,
        output: Literal["complex", "real"] = "complex",
        labels: Labels | None = None,
    ) -> None:
        self._set(check_array(lam, "lam", 1), None, B, C, D, dt, output, labels)

    @classmethod
    def from_rates(
        cls,
        z: ArrayLike,
        B: ArrayLike,
        C: ArrayLike,
        D: ArrayLike | None = None,
        *,
        dt: Any,
        output: Literal["complex", "real"] = "complex",
        labels: Labels | None = None,
    ) -> DiagonalSystem:
        """Build a discrete system from rates, ``lam = exp(z)``.

        Poles within 1e-13 of the unit circle keep all their digits this way, because ``1 - |lam|`` is computed
        from ``Re z`` and not from the rounded ``lam``.

        Parameters
        ----------
        z : (n,) array_like
            Logarithms of the poles; the real parts are decay rates per sample, negative if stable.
        B, C, D, dt, output, labels
            As for `DiagonalSystem`.

        Returns
        -------
        DiagonalSystem
            With ``lam = exp(z)`` and ``rates = z``.

        Raises
        ------
        InputError
            As for `DiagonalSystem`, and for ``dt=0``: the poles of a continuous system are rates already.
        """
        if not is_discrete(check_dt(dt)):
            raise InputError(
                "from_rates is for discrete systems, lam = exp(z); got dt=0. "
                "A continuous system's lam are rates already: pass them to DiagonalSystem."
            )
        system = cls.__new__(cls)
        rates = check_array(z, "z", 1)
        system._set(_poles_of_rates(rates).astype(rates.dtype), rates, B, C, D, dt, output, labels)
        return system

    def _set(
        self,
        lam: Array,
        rates: Array | None,
        B: ArrayLike,
        C: ArrayLike,
        D: ArrayLike | None,
        dt: Any,
        output: str,
        labels: Labels | None,
    ) -> None:
        B, C = check_array(B, "B", 2, B_HINT), check_array(C, "C", 2, C_HINT)
        n = len(lam)
        if len(B) != n:
            raise InputError(f"B must have one row per pole; got {n} poles and B {B.shape}. B is (n, m).")
        if C.shape[1] != n:
            raise InputError(f"C must have one column per pole; got {n} poles and C {C.shape}. C is (p, n).")
        if output not in ("complex", "real"):
            raise InputError(f'output must be "complex" or "real"; got {output!r}.')
        D = check_feedthrough(D, len(C), B.shape[1])
        if output == "real" and D.dtype.kind == "c":
            raise InputError('D must be real where output="real"; got a complex D. Pass D.real if that is meant.')
        arrays = {"lam": lam, "B": B, "C": C}
        if rates is not None:
            arrays["rates"] = rates
        if output == "complex":
            arrays["D"] = D
        freeze(self, arrays, dt, labels)
        if output == "real":
            object.__setattr__(self, "D", readonly(D.astype(self.lam.real.dtype)))
        if rates is None:
            object.__setattr__(self, "rates", None)
        object.__setattr__(self, "output", output)

    @property
    def order(self) -> int:
        """Number of Hankel singular values: n, or 2n where the output is real."""
        return 2 * self.n if self.output == "real" else self.n

    def poles(self) -> Array:
        """Return the poles in double precision: lam, and the conjugates of the complex ones for real output."""
        lam = (double(self.lam) if self.rates is None else _poles_of_rates(self.rates)).astype(np.complex128)
        if self.output == "complex":
            return lam
        return np.concatenate([lam, lam[lam.imag != 0].conj()])

    def instability(self) -> Array:
        """Return how far each pole lies beyond the stability boundary, ``(n,)``; negative means stable."""
        if not self.is_discrete:
            return double(self.lam.real)
        if self.rates is not None:
            return np.expm1(double(self.rates.real))
        return np.abs(double(self.lam)) - 1.0

    def is_stable(self) -> bool:
        """Tell whether every pole lies strictly inside the stability region."""
        return bool(np.all(self.instability() < 0))

    def take(self, states: ArrayLike) -> DiagonalSystem:
        """Return the system that keeps only the given states, by index or mask."""
        states = np.asarray(states)
        rates = None if self.rates is None else self.rates[states]
        system = DiagonalSystem.__new__(DiagonalSystem)
        labels = replace(self.labels, states=None)
        system._set(self.lam[states], rates, self.B[states], self.C[:, states], self.D, self.dt, self.output, labels)
        return system

    def to_state_space(self) -> StateSpace:
        """Return the same system with a matrix A, in double precision.

        With real output the 2n states are the real and imaginary parts times the square root of two, so that
        the change of coordinates from ``[x, conj(x)]`` is unitary and everything is real.
        """
        lam, B, C, D = (double(x) for x in (self.lam, self.B, self.C, self.D))
        if self.rates is not None:
            lam = _poles_of_rates(self.rates)
        if self.output == "complex":
            return StateSpace(np.diag(lam), B, C, D, self.dt, labels=self.labels)
        A = np.block([[np.diag(lam.real), -np.diag(lam.imag)], [np.diag(lam.imag), np.diag(lam.real)]])
        B = np.sqrt(2) * np.vstack([B.real, B.imag])
        C = np.sqrt(0.5) * np.hstack([C.real, -C.imag])
        return StateSpace(A, B, C, D, self.dt, labels=replace(self.labels, states=None))

    def frequency_response(self, omega: ArrayLike) -> Array:
        """Return the transfer function on the stability boundary, at no more than O(n m p) a frequency.

        Parameters
        ----------
        omega : (k,) array_like
            Angular frequencies in rad per second (rad per sample for ``dt=True``); infinity is allowed in
            continuous time.

        Returns
        -------
        (k, p, m) ndarray
            ``C diag(1 / (s - lam)) B + D`` at ``s = 1j omega`` or ``z = exp(1j omega dt)``; with real output
            the mean of that and its mirror image ``conj(H(conj(s)))``.
        """
        omega = check_frequencies(omega)
        response = self._response(omega)
        if self.output == "real":
            response = (response + self._response(-omega).conj()) / 2
        return response + double(self.D)

    def _response(self, omega: Array) -> Array:
        B, C = double(self.B), double(self.C)
        response = np.empty((len(omega), self.p, self.m), dtype=np.complex128)
        step = max(1, PIECE // max(1, self.n * self.p))
        for start in range(0, len(omega), step):
            piece = slice(start, start + step)
            response[piece] = (C * (1.0 / self._distance(omega[piece]))[:, None, :]) @ B
        return response

    def _distance(self, omega: Array) -> Array:
        """Return ``s - lam`` or ``z - lam``, (k, n)."""
        if not self.is_discrete:
            return 1j * np.where(np.isinf(omega), np.finfo(float).max, omega)[:, None] - double(self.lam)
        if self.rates is None:
            return np.exp(1j * _angle(omega, self.dt))[:, None] - double(self.lam)
        angle = _angle(omega, self.dt)[:, None]  # z - exp(rate) = -z expm1(rate - log z), exact next to the circle
        offset = double(self.rates) - 1j * angle
        offset.imag = (offset.imag + np.pi) % (2 * np.pi) - np.pi
        return -np.exp(1j * angle) * np.expm1(offset)

    def __sub__(self, other: StateSpace | DiagonalSystem) -> StateSpace | DiagonalSystem:
        """Return the error system: diagonal if both are and their outputs are of one kind."""
        if isinstance(other, StateSpace) or isinstance(other, DiagonalSystem) and other.output != self.output:
            return self.to_state_space() - other
        if not isinstance(other, DiagonalSystem):
            return NotImplemented
        dt = common_dt(self, other)
        B = np.vstack([double(self.B), double(other.B)])
        C = np.hstack([double(self.C), -double(other.C)])
        D = double(self.D) - double(other.D)
        if self.rates is None and other.rates is None or np.any(self.lam == 0) or np.any(other.lam == 0):
            lam = np.concatenate([double(self.lam), double(other.lam)])
            return DiagonalSystem(lam, B, C, D, dt=dt, output=self.output)
        rates = [double(G.rates) if G.rates is not None else np.log(G.lam.astype(complex)) for G in (self, other)]
        return DiagonalSystem.from_rates(np.concatenate(rates), B, C, D, dt=dt, output=self.output)


def _poles_of_rates(rates: Array) -> Array:
    """Return ``exp(rates)`` in double precision; half a turn is exactly a negative real pole."""
    lam = np.exp(double(rates))
    if rates.dtype.kind == "c":
        lam.imag[np.abs(rates.imag) == rates.imag.dtype.type(np.pi)] = 0.0
    return lam


def _angle(omega: Array, dt: Any) -> Array:
    """Return the angle on the unit circle, in rad per sample."""
    return omega if dt is True else omega * dt
