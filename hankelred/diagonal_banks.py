"""Banks of diagonal systems of one size: thousands of small ones at a time, without a Python loop over them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from . import _diagonal_kernels as kernels
from ._checks import Array, check_array, check_dt, is_discrete
from ._diagonal_factors import SMALLEST_SHARE, Poles, pole_data
from .diagonal import NEARLY_REAL
from .errors import InputError
from .systems import DiagonalSystem

# Systems are handled in pieces of about this many matrix entries, so that factors and products stay in the cache.
PIECE = 2**15


def batched_hankel_singular_values(
    lam: ArrayLike,
    B: ArrayLike,
    C: ArrayLike,
    *,
    dt: Any,
    output: Literal["complex", "real"] = "complex",
    rates: ArrayLike | None = None,
    threads: int = 1,
) -> Array:
    """Compute the Hankel singular values of many diagonal systems of one size.

    Parameters
    ----------
    lam : (batch, n) array_like
        Poles of each system, strictly stable.
    B : (batch, n, m) array_like
        Input matrices.
    C : (batch, p, n) array_like
        Output matrices.
    dt : float or bool
        Sampling time in seconds; 0 is continuous, True is discrete without a stated time.
    output : {"complex", "real"}, default "complex"
        Whether the outputs are ``C x`` or their real parts.
    rates : (batch, n) array_like, optional
        Logarithms of discrete poles, as for `diagonal_factor`; `lam` is then not read.
    threads : int, default 1
        Threads to share the systems among; limit those of the BLAS yourself if you use more than one.

    Returns
    -------
    (batch, n) ndarray
        Decreasing along the last axis, in units of y per unit of u; 2n values for real output.

    Raises
    ------
    InputError
        If shapes disagree or an entry is not finite.
    StabilityError
        If a pole is not strictly stable.

    Notes
    -----
    Every value has the relative accuracy of `hankel_singular_values`, provided that the inputs of each system, and
    its outputs, are linearly independent over its states.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> lam = -np.arange(1.0, 5.0) * np.ones((1000, 1))  # a thousand times four poles
    >>> hsv = hr.batched_hankel_singular_values(lam, np.ones((1000, 4, 1)), np.ones((1000, 1, 4)), dt=0)
    >>> hsv.shape, f"{hsv[999, 0]:.6f}"
    ((1000, 4), '0.977556')
    """
    bank = checked_bank(lam, B, C, dt, output, rates)
    if threads < 1:
        raise InputError(f"threads must be at least 1; got {threads}.")
    hsv = np.zeros((len(bank.B), bank.order))
    if not bank.is_silent:
        pieces = bank.pieces()

        def run(piece: slice) -> None:
            part = bank.take(piece)
            found = _real_hsv(part) if part.pairs else _hsv(part)
            hsv[piece, : found.shape[1]] = part.unit * found

        if threads == 1:
            for piece in pieces:
                run(piece)
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(run, pieces))
    return hsv.astype(np.float32 if bank.dtype in (np.float32, np.complex64) else np.float64, copy=False)


@dataclass(frozen=True, eq=False)
class Bank:
    """Checked diagonal systems of one size, in double precision, each in units that bring its entries near 1.

    Attributes
    ----------
    poles : Poles
        Of shape (batch, n).
    B, C : (batch, n, m) and (batch, p, n) ndarray
        Divided by powers of two.
    unit : (batch, 1) ndarray
        The product of the two divisors: the unit of the Hankel singular values.
    split : (batch, 1) ndarray
        The divisor of B.
    dt, output
        As given.
    dtype : dtype
        Of the data.
    """

    poles: Poles
    B: Array
    C: Array
    unit: Array
    split: Array
    dt: Any
    output: str
    dtype: np.dtype[Any]

    @property
    def order(self) -> int:
        """Number of Hankel singular values of each system."""
        return (2 if self.output == "real" else 1) * self.B.shape[1]

    @property
    def pairs(self) -> bool:
        """Whether every stored state stands for itself and its conjugate."""
        return self.output == "real" and self.B.dtype.kind == "c"

    @property
    def is_silent(self) -> bool:
        """Whether there is nothing to compute."""
        return min(len(self.B), self.order, self.B.shape[2], self.C.shape[1]) == 0

    def pieces(self) -> list[slice]:
        """Return slices that fit into the cache."""
        step = max(1, PIECE // self.order**2)
        return [slice(start, start + step) for start in range(0, len(self.B), step)]

    def system(self, i: int) -> DiagonalSystem:
        """Return one of the systems."""
        kind: dict[str, Any] = {"dt": self.dt, "output": self.output}
        B, C = self.split[i] * self.B[i], self.unit[i] / self.split[i] * self.C[i]
        if self.poles.z is None:
            return DiagonalSystem(self.poles.lam[i], B, C, **kind)
        return DiagonalSystem.from_rates(self.poles.z[i], B, C, **kind)

    def take(self, systems: slice | Array) -> Bank:
        """Return some of the systems."""
        poles = self.poles.take(systems)
        B, C, unit, split = (x[systems] for x in (self.B, self.C, self.unit, self.split))
        return replace(self, poles=poles, B=B, C=C, unit=unit, split=split)


def checked_bank(lam: Any, B: Any, C: Any, dt: Any, output: str, rates: Any) -> Bank:
    """Return the systems if they are a bank of stable ones; errors as of `batched_hankel_singular_values`."""
    dt = check_dt(dt)
    name, data = ("lam", lam) if rates is None else ("rates", rates)
    values = check_array(data, name, 2, "The first axis counts the systems.")
    B = check_array(B, "B", 3, "B is (batch, n, m).")
    C = check_array(C, "C", 3, "C is (batch, p, n).")
    batch, n = values.shape
    if B.shape[:2] != (batch, n) or C.shape[0] != batch or C.shape[2] != n:
        raise InputError(
            f"{name}, B, C must be (batch, n), (batch, n, m), (batch, p, n); got {values.shape}, {B.shape}, {C.shape}."
        )
    if output not in ("complex", "real"):
        raise InputError(f'output must be "complex" or "real"; got {output!r}.')
    if rates is not None and not is_discrete(dt):
        raise InputError("rates are for discrete systems, lam = exp(rates); got dt=0. Pass the poles as lam.")
    dtype = np.result_type(values, B, C)
    inner = np.complex128 if dtype.kind == "c" else np.float64
    values, B, C = values.astype(inner), B.astype(inner), C.astype(inner)
    flat = values.reshape(-1)
    poles = pole_data(flat, None, dt) if rates is None else pole_data(np.exp(flat), flat, dt)
    (B, drive), (C, sight) = _unit_scale(B), _unit_scale(C)
    return Bank(poles.map(lambda x: x.reshape(batch, n)), B, C, drive * sight, drive, dt, output, dtype)


def factors(bank: Bank) -> tuple[Array, Array, Array, Array]:
    """Return factors of both Gramians of every system, in scaled states, with the scales and how near pairs are real.

    Returns
    -------
    S, R : (batch, n, k) and (batch, k, n) ndarray
        ``P = S S^H`` and ``Q = R^H R`` of the system with input matrix ``B w`` and output matrix ``C / w``; where
        `pairs`, the upper halves of factors of the doubled system, k = 2n, whose Hankel singular values are those of
        ``Re(R S)``.
    w : (batch, n) ndarray
        Scales, 0 for states that link no input to any output.
    distance : (batch,) ndarray
        `Factor.distance`, 1 where there are no pairs.
    """
    compute = _pair_factors if bank.pairs else _factors
    if bank.B.shape[2] == bank.C.shape[1] == 1:  # one factor serves both
        G, w, phase = _one_generator(bank.B, bank.C)
        L, distance = compute(bank.poles, G)
        return L.swapaxes(1, 2), L * phase, w, distance
    w = _state_scales(bank.B, bank.C)
    back = np.divide(1.0, w, out=np.zeros_like(w), where=w > 0)
    S, distance = compute(bank.poles, (w[:, :, None] * bank.B).swapaxes(1, 2))
    R, other = compute(bank.poles.conj(), (back[:, None, :] * bank.C).conj())
    return S.swapaxes(1, 2), R.conj(), w, np.minimum(distance, other)


def _hsv(bank: Bank) -> Array:
    """Return the Hankel singular values of a piece of a bank, (batch, n)."""
    S, R, _, _ = factors(bank)
    return _singular_values(R @ S)


def _real_hsv(bank: Bank) -> Array:
    """Return those of the real system with outputs ``Re(C x)``, (batch, 2n)."""
    S, R, _, distance = factors(bank)
    hsv = _singular_values((R @ S).real)
    close = np.flatnonzero(distance < NEARLY_REAL)  # pairs lose digits there: the doubled system does not
    if len(close):
        part = bank.take(close)
        B = np.concatenate([part.B, part.B.conj()], axis=1)
        C = np.concatenate([part.C, part.C.conj()], axis=2) / 2
        hsv[close] = _hsv(replace(part, poles=part.poles.doubled(), B=B, C=C, output="complex"))
    return hsv


def _unit_scale(B: Array) -> tuple[Array, Array]:
    """Return the matrices over powers of two that bring their largest entries near 1, and those powers, (batch, 1)."""
    largest = np.abs(B).max(axis=(1, 2), initial=0.0)
    scale = np.exp2(np.round(np.log2(np.where(largest > 0, largest, 1.0))))[:, None]
    return B / scale[:, :, None], scale


def _one_generator(B: Array, C: Array) -> tuple[Array, Array, Array]:
    """Return the one generator of both Gramians ``|b_i c_i|^½``, (batch, 1, n), the scales and the phases of b c.

    With the states scaled by ``w_i = |b_i c_i|^½ / b_i``, both Gramians have that generator up to the phases.
    """
    b, c = B.swapaxes(1, 2), C
    G = np.sqrt(np.abs(b)) * np.sqrt(np.abs(c))
    divisor = np.where(G > 0, G, 1.0)
    w = np.divide(G, b, out=np.zeros_like(b), where=G > 0)[:, 0]
    return G.astype(b.dtype), w, (b / divisor) * (c / divisor)


def _state_scales(B: Array, C: Array) -> Array:
    """Return the powers of two that make ``|b_i| = |c_i|`` nearly, 0 for states that link no input to any output."""
    drive, sight = np.linalg.norm(B, axis=2), np.linalg.norm(C, axis=1)
    both = (drive > 0) & (sight > 0)
    ratio = np.divide(sight, drive, out=np.ones_like(drive), where=both)
    return np.where(both, np.exp2(np.round(0.5 * np.log2(ratio))), 0.0)


def _factors(poles: Poles, G: Array) -> tuple[Array, Array]:
    """Return transposed factors, (batch, n, n), of the Gramians with generators G, (batch, m, n), and ones."""
    p = poles.map(np.copy)
    out = np.empty((len(G), G.shape[2], G.shape[2]), dtype=G.dtype)
    kernels.factor_bank(p.lam, p.logarithms, p.gap, p.mirror, p.turn, G.copy(order="C"), SMALLEST_SHARE, out)
    return out, np.ones(len(G))


def _pair_factors(poles: Poles, G: Array) -> tuple[Array, Array]:
    """Return transposed upper halves of factors of the doubled systems, (batch, 2n, n), and `Factor.distance`."""
    n = G.shape[2]
    spare = np.append(np.arange(n), 0)
    p = poles.map(lambda x: np.ascontiguousarray(x[:, spare]))
    out, distance = np.empty((len(G), 2 * n, n), dtype=G.dtype), np.empty(len(G))
    G = np.ascontiguousarray(G[:, :, spare])
    kernels.factor_pairs_bank(p.lam, p.logarithms, p.gap, p.mirror, p.turn, G, SMALLEST_SHARE, out, distance)
    return out, distance


def _singular_values(M: Array) -> Array:
    return np.linalg.svd(M, compute_uv=False)  # without vectors LAPACK keeps the digits of graded matrices
