"""H2, H-infinity and Hankel norms of a system; of an error system ``G - H`` they are the true errors.

Unstable systems have infinite norms: none of the three is finite off the stability region.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg as sla

from ._checks import Array, double
from .gramians import CrossProduct, accuracy, hankel_singular_values, padded, stable_factors, system_order
from .interop import as_system
from .order import error_bound
from .projection import model_of, project, square_root_bases
from .systems import DiagonalSystem, StateSpace

# Systems of this order and more are reduced before their level sets are computed: below, that costs more than it saves.
COMPACT_FROM = 64

# Local maxima of the gain that are climbed before the first level set.
MAXIMA = 4


def h2_norm(sys: Any) -> float:
    """Compute the H2 norm: the root mean square output under white noise of unit intensity.

    Parameters
    ----------
    sys : StateSpace, DiagonalSystem or anything `as_system` accepts
        Continuous or discrete system.

    Returns
    -------
    float
        ``||C S||_F``, with ``||D||_F`` added in quadrature in discrete time. Infinite for an unstable system and
        for a continuous one with feedthrough.

    Notes
    -----
    Formed from a factor of the Gramian. The textbook form ``sqrt(tr(C P C^H))`` has lost every digit once the
    norm of an error system falls below the square root of the rounding unit.

    Examples
    --------
    >>> import hankelred as hr
    >>> print(f"{hr.h2_norm(hr.StateSpace([[-2.0]], [[1.0]], [[2.0]])):.4f}")  # sqrt(b^2 c^2 / (2 a))
    1.0000
    """
    system = as_system(sys)
    if not system.is_stable():
        return np.inf
    feedthrough = float(np.linalg.norm(system.D))
    if not system.is_discrete and feedthrough > 0:
        return np.inf
    S, _ = stable_factors(system)
    C = double(system.C)
    if isinstance(system, DiagonalSystem) and system.output == "real":
        C = np.sqrt(0.5) * np.hstack([C.real, -C.imag])  # the coordinates of S
    elif isinstance(system, StateSpace):
        C = double(system.standard().C)
    return float(np.hypot(np.linalg.norm(C @ S), feedthrough))


def hankel_norm(sys: Any) -> float:
    """Compute the Hankel norm: the largest Hankel singular value.

    Parameters
    ----------
    sys : StateSpace, DiagonalSystem or anything `as_system` accepts
        Continuous or discrete system.

    Returns
    -------
    float
        In units of y per unit of u; infinite for an unstable system.

    Examples
    --------
    >>> import hankelred as hr
    >>> print(f"{hr.hankel_norm(hr.StateSpace([[-2.0]], [[1.0]], [[2.0]])):.4f}")  # b c / (2 a)
    0.5000
    """
    system = as_system(sys)
    if not system.is_stable():
        return np.inf
    return float(np.max(hankel_singular_values(system), initial=0.0))


def hinf_norm(sys: Any, return_peak: bool = False, *, rtol: float = 1e-8) -> Any:
    """Compute the H-infinity norm: the largest gain over all frequencies.

    Level sets of the gain are found as imaginary eigenvalues of a Hamiltonian matrix [1]_ and the interval
    between neighbouring ones is searched next [2]_, which converges quadratically. The value returned is attained
    at the frequency returned, so it is a lower bound in exact terms; that no frequency exceeds it by more than
    the relative `rtol` follows from the absence of further level crossings, up to rounding in the eigenvalues.

    Parameters
    ----------
    sys : StateSpace, DiagonalSystem or anything `as_system` accepts
        Continuous or discrete system.
    return_peak : bool, default False
        Return the frequency of the peak as well.
    rtol : float, default 1e-8
        Relative accuracy of the norm.

    Returns
    -------
    norm : float
        In units of y per unit of u; infinite for an unstable system.
    peak : float
        Only with `return_peak`: angular frequency of the largest gain, in rad per second (rad per sample for
        ``dt=True``); negative values occur for complex systems only.

    References
    ----------
    .. [1] S. Boyd, V. Balakrishnan, P. Kabamba, "A bisection method for computing the H-infinity norm of a
       transfer matrix and related problems", Math. Control Signals Systems 2, 1989.
    .. [2] N. A. Bruinsma, M. Steinbuch, "A fast algorithm to compute the H-infinity norm of a transfer function
       matrix", Systems & Control Letters 14, 1990.

    Examples
    --------
    >>> import hankelred as hr
    >>> resonance = hr.StateSpace([[0.0, 1.0], [-1.0, -0.02]], [[0.0], [1.0]], [[1.0, 0.0]])
    >>> norm, peak = hr.hinf_norm(resonance, return_peak=True)
    >>> print(f"{norm:.4f} at {peak:.4f} rad/s")  # 1 / (2 zeta sqrt(1 - zeta^2)) with zeta = 0.01
    50.0025 at 0.9999 rad/s
    """
    system = as_system(sys)
    norm, peak = _peak_gain(system, rtol) if system.is_stable() else (np.inf, np.nan)
    return (norm, peak) if return_peak else norm


def _peak_gain(system: StateSpace | DiagonalSystem, rtol: float) -> tuple[float, float]:
    """Return the largest gain and its frequency by repeated level sets."""
    dense, slack = _compact(system, rtol)
    gain = _gain_function(system)
    norm, peak = _climb(gain, _first_frequencies(dense), rtol)
    if norm == 0.0 or dense.n == 0:
        return norm, peak
    crossings = _discrete_crossings(dense) if dense.is_discrete else _continuous_crossings(dense)
    while True:
        level = (1 + rtol - slack) * norm
        omega = np.sort(crossings(level))
        if dense.dtype.kind != "c":
            omega = np.abs(omega)
        candidates = np.unique(np.concatenate([omega, (omega[1:] + omega[:-1]) / 2]))
        if len(candidates) == 0:
            return norm, peak
        values = gain(candidates)
        best = int(np.argmax(values))
        if values[best] <= level:  # all candidates were rounding: the level is not exceeded
            if values[best] > norm:
                norm, peak = float(values[best]), float(candidates[best])
            return norm, peak
        norm, peak = float(values[best]), float(candidates[best])


def _compact(system: StateSpace | DiagonalSystem, rtol: float) -> tuple[StateSpace, float]:
    """Return a dense system whose norm is that of `system` but for a share of it, as small as it can be; and the share.

    Eigenvalues of a Hamiltonian matrix cost the cube of its size. A system of many states is therefore replaced by
    its balanced truncation to an error bound of ``rtol / 4`` times the largest Hankel singular value, which is no
    more than the norm, unless rounding forbids so small an error or it would not be much smaller.
    """
    n = system_order(system)
    if n >= COMPACT_FROM:
        S, R = stable_factors(system)
        cross = CrossProduct(S, R)
        hsv = padded(cross.values, n)
        floor, rank = accuracy(hsv, S, R, system)
        orders = range(min(rank, n // 2) + 1)
        order = next((k for k in orders if error_bound(hsv, k, floor) <= rtol / 4 * hsv[0]), None)
        if order is not None:
            bases = square_root_bases(S, R, cross.triples(order), slice(0, order))
            reduced = project(model_of(system), *bases)
            A = reduced.A + reduced.shift * np.eye(order)
            return StateSpace(A, reduced.B, reduced.C, reduced.D, system.dt), rtol / 4
    return system.to_state_space() if isinstance(system, DiagonalSystem) else system.standard(), 0.0


def _gain_function(system: StateSpace | DiagonalSystem) -> Callable[[Array], Array]:
    """Return the function from frequencies to largest singular values of the response."""

    def gain(omega: Array) -> Array:
        response = system.frequency_response(omega)
        if min(response.shape[1:]) == 0:
            return np.zeros(len(omega))
        return np.linalg.norm(response, ord=2, axis=(1, 2))

    return gain


def _climb(gain: Callable[[Array], Array], omega: Array, rtol: float) -> tuple[float, float]:
    """Return the highest gain found by zooming in on the highest local maxima of a first sample, and where.

    Only a lower bound, but a cheap one: each level set that it saves costs the eigenvalues of a Hamiltonian matrix.
    """
    finite = omega[np.isfinite(omega)]
    omega = np.unique(np.concatenate([omega, (finite[1:] + finite[:-1]) / 2]))
    values = gain(omega)
    best = int(np.argmax(values))
    norm, peak = float(values[best]), float(omega[best])
    inner = np.flatnonzero((values[1:-1] >= values[:-2]) & (values[1:-1] >= values[2:]) & np.isfinite(omega[2:])) + 1
    for k in inner[np.argsort(values[inner])[::-1][:MAXIMA]]:
        left, right, last = omega[k - 1], omega[k + 1], 0.0
        for _ in range(30):
            points = np.linspace(left, right, 9)
            values_here = gain(points)
            top = int(np.argmax(values_here))
            left, right = points[max(top - 1, 0)], points[min(top + 1, 8)]
            if values_here[top] > norm:
                norm, peak = float(values_here[top]), float(points[top])
            if values_here[top] - last <= rtol / 100 * values_here[top]:
                break
            last = values_here[top]
    return norm, peak


def _first_frequencies(dense: StateSpace) -> Array:
    """Return where peaks are likely: at the ends of the axis and next to the poles."""
    poles = dense.poles()
    if dense.is_discrete:
        step = 1.0 if dense.dt is True else float(dense.dt)
        omega = np.concatenate([np.angle(poles), [0.0, np.pi]]) / step
    else:
        omega = np.concatenate([poles.imag, np.abs(poles), [0.0, np.inf]])
    return np.unique(omega if dense.dtype.kind == "c" else np.abs(omega))


def _continuous_crossings(dense: StateSpace) -> Callable[[float], Array]:
    """Return the function from a level to the frequencies where a singular value of the response equals it."""
    A, B, C, D = dense.A, dense.B, dense.C, dense.D
    _Ah, Bh, Ch, Dh = (x.conj().T for x in (A, B, C, D))

    def crossings(level: float) -> Array:
        weight = level**2 * np.eye(dense.m) - Dh @ D
        feedback = sla.solve(weight, np.hstack([Dh @ C, Bh]), assume_a="her")
        FC, FB = feedback[:, : dense.n], feedback[:, dense.n :]
        M = A + B @ FC
        hamiltonian = np.block([[M, level * (B @ FB)], [-(Ch @ C + Ch @ D @ FC) / level, -M.conj().T]])
        return _imaginary(sla.eigvals(hamiltonian))

    return crossings


def _discrete_crossings(dense: StateSpace) -> Callable[[float], Array]:
    """Map the unit circle to the imaginary axis, ``z = z0 (s + 1) / (s - 1)``, and cross levels there.

    The point z0 that goes to infinity is taken far from all poles: 1 or -1 keep real data real and are preferred,
    unless a pole comes within 0.1 of them.
    """
    poles = dense.poles()
    points = np.exp(2j * np.pi * np.arange(64) / 64)
    room = np.abs(points[:, None] - poles).min(axis=1)
    real_points = np.array([0, 32])
    if dense.dtype.kind != "c" and room[real_points].max() >= 0.1:
        z0 = float(points[real_points[np.argmax(room[real_points])]].real)
    else:
        z0 = points[np.argmax(room)]
    shifted = z0 * np.eye(dense.n) - dense.A
    CW = sla.solve(shifted.T, dense.C.T.astype(shifted.dtype)).T
    image = StateSpace(
        -sla.solve(shifted, z0 * np.eye(dense.n) + dense.A),
        sla.solve(shifted, dense.B.astype(shifted.dtype)),
        -2 * z0 * CW,
        dense.D + CW @ dense.B,
        dt=0,
    )
    continuous = _continuous_crossings(image)
    step = 1.0 if dense.dt is True else float(dense.dt)

    def crossings(level: float) -> Array:
        s = 1j * continuous(level)
        return np.angle(z0 * (s + 1) / (s - 1)) / step

    return crossings


def _imaginary(eigenvalues: Array) -> Array:
    """Return the imaginary parts of the eigenvalues that may lie on the imaginary axis.

    Two crossings about to meet are perturbed off the axis by the square root of rounding. Taking too many costs
    evaluations of the gain only; missing one would cost the guarantee.
    """
    scale = np.abs(eigenvalues).max(initial=0.0)
    near = np.abs(eigenvalues.real) <= 1e-6 * np.abs(eigenvalues) + 1e-8 * scale
    return np.asarray(eigenvalues.imag[near])
