"""H2, H-infinity and Hankel norms of a system; of an error system ``G - H`` they are the true errors.

Unstable systems have infinite norms: none of the three is finite off the stability region. Of a bank, each function
returns one norm per system.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .checks import EPS, Array, check_flag, check_number, check_result
from .hankel import bank_hsv, factored
from .linalg.gain import gain_function, largest_singular_values, peak_gain
from .linalg.threads import one_blas_thread
from .order import first_within
from .parts import parts_of, svd_of
from .rounding import sample_frequencies
from .systems import LinearSystem, as_system

# Systems of this order and more are reduced before their level sets are computed: below, that costs more than it saves.
COMPACT_FROM = 64

# Frequencies at which an error is sampled between the two neighbours of the largest.
ROUND_PEAK = 8

# A pole this many error bars beyond the stability boundary is unstable and not marginal.
CLEAR_OF_BAR = 1e3

# An infinite gain of a stable system is an overflow where inputs times outputs come near the largest number.
OVERFLOW = 1e200


def h2_norm(sys: Any) -> Any:
    """Compute the H2 norm: the root mean square output under white noise of unit intensity.

    Parameters
    ----------
    sys : StateSpace, DiagonalSystem, DiagonalBank or anything `as_system` accepts
        Continuous or discrete system.

    Returns
    -------
    float or (batch,) ndarray
        ``||C S||_F``, with ``||D||_F`` added in quadrature in discrete time. Infinite for an unstable system and
        for a continuous one with feedthrough.

    Raises
    ------
    NumericalError
        If the norm overflows.

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
    return _for_each(as_system(sys), _h2_norm)


def _h2_norm(system: Any) -> float:
    feedthrough = _norm(system.ports[2] if system.is_sparse else system.D)
    with one_blas_thread(system.order):
        parts = parts_of(system, 0.0)
        if parts.kept or (not system.is_discrete and feedthrough > 0):
            return np.inf
        with np.errstate(over="ignore", invalid="ignore"):
            S, R = parts.factors
            norm = float(np.hypot(_norm(parts.projected(S, R[:0])[2].C), feedthrough))
    check_result("The H2 norm", norm)
    return norm


def _norm(x: Array) -> float:
    """Return the Frobenius norm without overflow of squares."""
    size = _largest_entry(x)
    return size * float(np.linalg.norm(np.abs(x) / size)) if 0 < size < np.inf else size


def hankel_norm(sys: Any) -> Any:
    """Compute the Hankel norm: the largest Hankel singular value.

    Parameters
    ----------
    sys : StateSpace, DiagonalSystem, DiagonalBank or anything `as_system` accepts
        Continuous or discrete system.

    Returns
    -------
    float or (batch,) ndarray
        In units of y per unit of u; infinite for an unstable system.

    Raises
    ------
    NumericalError
        If the norm overflows.

    Examples
    --------
    >>> import hankelred as hr
    >>> print(f"{hr.hankel_norm(hr.StateSpace([[-2.0]], [[1.0]], [[2.0]])):.4f}")  # b c / (2 a)
    0.5000
    """
    system = as_system(sys)
    if system.is_bank and np.all(system.is_stable()):
        return bank_hsv(system).max(axis=1, initial=0.0)
    return _for_each(system, lambda one: float(np.max(factored(one, hsv_only=True).hsv, initial=0.0)))


def hinf_norm(sys: Any, rtol: float = 1e-8, return_peak: bool = False, stable: bool = True) -> Any:
    """Compute the H-infinity norm: the largest gain over all frequencies.

    Level sets of the gain are found as eigenvalues of a pencil on the stability boundary [1]_ and the interval
    between neighbouring ones is searched next [2]_, which converges quadratically. Neither the feedthrough nor the
    level is inverted. The value returned is the gain of the system given at the frequency returned, so it is a lower
    bound in exact terms; that no frequency exceeds it by more than the relative `rtol` follows from the absence of
    further level crossings, up to rounding in the eigenvalues.

    Parameters
    ----------
    sys : StateSpace, DiagonalSystem, DiagonalBank or anything `as_system` accepts
        Continuous or discrete system.
    rtol : float, default 1e-8
        Relative accuracy of the norm, from 1e-14 to below 1.
    return_peak : bool, default False
        Return the frequency of the peak as well.
    stable : bool, default True
        Count an unstable system as infinite. False asks for the L-infinity norm, the largest gain on the boundary
        whatever the poles beyond it; a pole within its rounding error of the boundary makes that infinite too.

    Returns
    -------
    norm : float or (batch,) ndarray
        In units of y per unit of u; infinite for an unstable system unless ``stable=False``.
    peak : float or (batch,) ndarray
        Only with `return_peak`: angular frequency of the largest gain, in rad per second (rad per sample for
        ``dt=True``); negative values occur for complex systems only; NaN for an unstable system.

    Raises
    ------
    InputError
        If `rtol` is out of its range.
    NumericalError
        If the norm overflows.

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
    rtol = check_number(rtol, "rtol", least=1e-14, below=1.0)
    check_flag(return_peak, "return_peak")
    system = as_system(sys)
    check_flag(stable, "stable")
    found = _for_each(system, lambda one: _hinf_norm(one, rtol, stable))
    norm, peak = found.reshape(-1, 2).T if system.is_bank else found
    return (norm, peak) if return_peak else norm


def _hinf_norm(system: Any, rtol: float, stable: bool = True) -> tuple[float, float]:
    with one_blas_thread(system.order):
        sought = system.order >= COMPACT_FROM or system.is_sparse or not stable
        parts = parts_of(system, 0.0) if sought else None
        if parts.kept if parts else not system.is_stable():
            if stable or parts is None or not np.all(parts.clearly_unstable(CLEAR_OF_BAR)):
                return np.inf, np.nan
            parts = None
        norm, peak = peak_gain(*_compact(system, parts, rtol), system.is_discrete, rtol, gain_of(system))
    if norm == np.inf and _largest_entry(system.B) * _largest_entry(system.C) > OVERFLOW:
        check_result("The H-infinity norm", norm)  # else a pole within rounding of the boundary
    return norm, peak if system.dt is True or not system.is_discrete else peak / float(system.dt)


def _largest_entry(x: Array) -> float:
    return float(np.abs(x).max(initial=0.0))


def gain_of(system: LinearSystem) -> Callable[[Array], Array]:
    """Return the function from frequencies, in rad per unit of time, to the largest gain of a system."""
    if not (system.is_diagonal or system.is_sparse):
        G = system.dense()
        return gain_function(G.A, G.B, G.C, G.D, G.is_discrete)  # its calls share one Schur form
    return lambda omega: largest_singular_values(system._response(omega))


def _compact(system: LinearSystem, parts: Any, rtol: float) -> tuple[Array, Array, Array, Array]:
    """Return matrices whose gain peaks where that of the system does, as few as can be; the gain itself is not theirs.

    Eigenvalues of a pencil cost the cube of its size. A system of many states is therefore searched by its balanced
    truncation to an error bound of ``rtol / 4`` times the largest Hankel singular value, which is no more than the
    norm, unless rounding forbids so small an error or it would not be much smaller.
    """
    if parts:
        svd = svd_of(parts)
        most = min(len(svd.values), system.order // 2)
        small = rtol / 4 * float(svd.values.max(initial=0.0))
        order = first_within(svd.values, range(most + 1), small)
        if parts.is_low_rank:  # its peak is that of the system to its floor, and there are no other matrices
            order = most if order is None else order
        if order is not None:
            A, B, C, D, shift, _ = parts.projected(*svd.bases(slice(0, order), order))[2]
            return A + shift * np.eye(order), B, C, D
    G = system.dense()
    return G.A, G.B, G.C, G.D


def stable_error(
    full: LinearSystem,
    reduced: LinearSystem,
    full_part: LinearSystem,
    reduced_part: LinearSystem,
    poles: Array | None = None,
) -> float:
    """Measure the H-infinity norm of an error in which the same unstable and marginal poles cancel.

    It is that of the parts without these poles. At the frequencies of `poles`, by default the stable ones of the full
    system, the difference of the systems themselves counts too, less the rounding of two gains that are large near a
    pole they share: it holds what separating the parts has changed.
    """
    difference = (full_part - reduced_part).dense()
    if not difference.is_stable():
        return np.inf
    norm = _hinf_norm(difference, 1e-8)[0]
    poles = full_part.poles() if poles is None else poles
    omega = sample_frequencies(poles, full.is_discrete, full.dtype.kind == "c")
    omega = omega[omega != 0]
    G, H = full._response(omega), reduced._response(omega)
    finite = np.isfinite(G).all(axis=(1, 2)) & np.isfinite(H).all(axis=(1, 2))  # a pole that is kept may be at -1
    G, H = G[finite], H[finite]
    whole = largest_singular_values(G - H) - full.order * EPS * largest_singular_values(G)
    return max(norm, float(np.max(whole, initial=0.0)))


def sampled_error(full: LinearSystem, reduced: LinearSystem) -> float:
    """Measure the largest gain of an error at the frequencies of the reduced poles, and round the largest of these.

    It is a lower figure for the H-infinity norm, of systems so large that every frequency is a factorisation.
    """

    def gains(omega: Array) -> Array:
        return largest_singular_values(full._response(omega) - reduced._response(omega))

    omega = sample_frequencies(reduced.poles(), full.is_discrete, full.dtype.kind == "c")
    found = gains(omega)
    peak = int(np.argmax(found))
    low, high = omega[max(peak - 1, 0)], omega[min(peak + 1, len(omega) - 1)]
    return float(max(found[peak], gains(np.linspace(low, high, ROUND_PEAK + 2)[1:-1]).max()))


def _for_each(system: Any, function: Callable[[Any], Any]) -> Any:
    """Return the value of a function for a system, or for each of a bank."""
    if system.is_bank:
        return np.array([function(one) for one in system])
    return function(system)
