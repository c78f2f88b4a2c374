"""Banks of diagonal systems of one size: thousands of small ones at a time, without a Python loop over them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from . import _diagonal_kernels as kernels
from ._checks import Array, check_array, check_dt, is_discrete
from ._diagonal_factors import SMALLEST_SHARE, Poles, pole_data
from .diagonal import NEARLY_REAL
from .errors import InputError

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
    if threads < 1:
        raise InputError(f"threads must be at least 1; got {threads}.")
    dtype = np.result_type(values, B, C)
    inner = np.complex128 if dtype.kind == "c" else np.float64
    values, B, C = values.astype(inner), B.astype(inner), C.astype(inner)
    flat = values.reshape(-1)
    poles = pole_data(flat, None, dt) if rates is None else pole_data(np.exp(flat), flat, dt)
    poles = poles.map(lambda x: x.reshape(batch, n))
    order = 2 * n if output == "real" else n
    hsv = np.zeros((batch, order))
    if hsv.size and B.shape[2] and C.shape[1]:
        step = max(1, PIECE // order**2)
        pieces = [slice(start, start + step) for start in range(0, batch, step)]
        compute = _real_hsv if output == "real" and inner is np.complex128 else _hsv

        def run(piece: slice) -> None:
            (B_unit, drive), (C_unit, sight) = _unit_scale(B[piece]), _unit_scale(C[piece])
            found = compute(poles.take(piece), B_unit, C_unit)
            hsv[piece, : found.shape[1]] = drive * sight * found

        if threads == 1:
            for piece in pieces:
                run(piece)
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(run, pieces))
    return hsv.astype(np.float32 if dtype in (np.float32, np.complex64) else np.float64, copy=False)


def _hsv(poles: Poles, B: Array, C: Array) -> Array:
    """Return the Hankel singular values of a piece of a bank, (batch, n)."""
    if B.shape[2] == C.shape[1] == 1:
        G, phase = _one_generator(B, C)
        L = _factors(poles, G)
        return _singular_values((L * phase) @ L.swapaxes(1, 2))
    B, C = _scaled_states(B, C)
    S = _factors(poles, B.swapaxes(1, 2))
    R = _factors(poles.conj(), C.conj())
    return _singular_values(R.conj() @ S.swapaxes(1, 2))


def _real_hsv(poles: Poles, B: Array, C: Array) -> Array:
    """Return those of the real system with outputs ``Re(C x)``, (batch, 2n)."""
    if B.shape[2] == C.shape[1] == 1:
        G, phase = _one_generator(B, C)
        L, distance = _pair_factors(poles, G)
        M = ((L * phase) @ L.swapaxes(1, 2)).real
    else:
        weighted_B, weighted_C = _scaled_states(B, C)
        S, distance = _pair_factors(poles, weighted_B.swapaxes(1, 2))
        R, other = _pair_factors(poles.conj(), weighted_C.conj())
        M = (R.conj() @ S.swapaxes(1, 2)).real
        distance = np.minimum(distance, other)
    hsv = _singular_values(M)
    close = np.flatnonzero(distance < NEARLY_REAL)  # pairs lose digits there: the doubled system does not
    if len(close):
        B, C = B[close], C[close]
        doubled = poles.take(close).doubled()
        hsv[close] = _hsv(doubled, np.concatenate([B, B.conj()], axis=1), np.concatenate([C, C.conj()], axis=2) / 2)
    return hsv


def _unit_scale(B: Array) -> tuple[Array, Array]:
    """Return the matrices over powers of two that bring their largest entries near 1, and those powers, (batch, 1)."""
    largest = np.abs(B).max(axis=(1, 2))
    scale = np.exp2(np.round(np.log2(np.where(largest > 0, largest, 1.0))))[:, None]
    return B / scale[:, :, None], scale


def _one_generator(B: Array, C: Array) -> tuple[Array, Array]:
    """Return ``sqrt|b_i c_i|``, the one generator of both Gramians, (batch, 1, n), and ``b_i c_i`` over its square."""
    b, c = B.swapaxes(1, 2), C
    G = np.sqrt(np.abs(b)) * np.sqrt(np.abs(c))
    divisor = np.where(G > 0, G, 1.0)
    return G.astype(b.dtype), (b / divisor) * (c / divisor)


def _scaled_states(B: Array, C: Array) -> tuple[Array, Array]:
    """Return B and C with ``|b_i| = |c_i|`` up to a factor of two, 0 for states that link no input to any output."""
    drive, sight = np.linalg.norm(B, axis=2), np.linalg.norm(C, axis=1)
    both = (drive > 0) & (sight > 0)
    ratio = np.divide(sight, drive, out=np.ones_like(drive), where=both)
    weight = np.where(both, np.exp2(np.round(0.5 * np.log2(ratio))), 0.0)
    back = np.divide(1.0, weight, out=np.zeros_like(weight), where=both)
    return weight[:, :, None] * B, back[:, None, :] * C


def _factors(poles: Poles, G: Array) -> Array:
    """Return transposed factors, (batch, n, n), of the Gramians with generators G, (batch, m, n)."""
    p = poles.map(np.copy)
    out = np.empty((len(G), G.shape[2], G.shape[2]), dtype=G.dtype)
    kernels.factor_bank(p.lam, p.logarithms, p.gap, p.mirror, p.turn, G.copy(order="C"), SMALLEST_SHARE, out)
    return out


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
