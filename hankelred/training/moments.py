"""How gradients and their running averages follow a diagonal system through a reduction.

An optimizer keeps, for every parameter, averages of its gradient (first moments) and of the squared gradient
(second moments). When balanced truncation replaces the states by fewer new ones, a gradient with respect to the new
parameters is a linear image of the gradients with respect to the old ones, and so are the first moments. Second
moments have no exact image; they are estimated.

Gradients follow one convention throughout: for a real loss L and complex z, ``g = dL/dRe(z) + i dL/dIm(z)``. Those of
the poles are taken with respect to their *rates* (``lam = exp(rate)`` in discrete time, lam itself in continuous
time), which is what layers store: ``g_rate = conj(lam) g_lam``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ..checks import Array, check_array, check_number, check_real_array, check_result, check_type
from ..errors import InputError
from ..reduction import Reduction
from ..systems import DiagonalSystem, real_output

# Poles at a pseudo-hyperbolic distance below this are one pole to rounding: |lam_i - lam_j| / |1 - lam_i conj(lam_j)|
# of two copies of one stored pole is some eps.
ONE_POLE = 1e-12


class Moments(NamedTuple):
    """First or second moments of the gradient of a diagonal system.

    Attributes
    ----------
    rates : (n,) ndarray
        With respect to the rates of the poles.
    B : (n, m) ndarray
        With respect to the input matrix.
    C : (p, n) ndarray
        With respect to the output matrix.

    Notes
    -----
    First moments are complex gradients. Second moments hold the average square of the real part as their real part
    and that of the imaginary part as their imaginary part, as optimizers do for complex parameters.
    """

    rates: Array
    B: Array
    C: Array


def align_states(
    system: DiagonalSystem, reduction: Reduction, input_factor: Callable[[DiagonalSystem], Array] | None = None
) -> Reduction:
    """Choose scale, phase and orientation of reduced states to resemble the states they came from.

    A diagonal system is unchanged when row i of B is multiplied and column i of C divided by one number, and, with
    real output, when a state is replaced by its conjugate. This freedom is used so that a reduced state that *is* an
    old state has the parameters of that state again, and a mixture has those of a weighted mean.

    Parameters
    ----------
    system : DiagonalSystem
        The system before the reduction.
    reduction : Reduction
        Its reduction by `balance`.
    input_factor : callable, optional
        Maps a system to the (n,) positive factors by which a layer stores its rows of B larger than they are; 1 by
        default. The norms compared are those of what is stored.

    Returns
    -------
    Reduction
        The same reduction with `system`, `T` and `Ti` in the chosen coordinates.

    Raises
    ------
    InputError
        If the reduction is none of a diagonal system of this size, or the factors are not positive.
    NumericalError
        If the new coordinates overflow.
    """
    check_reduction(system, reduction)
    new, T, Ti = reduction.system, reduction.T, reduction.Ti
    pairs = _pairs(system, reduction)
    weight = np.abs(Ti * T.T)  # participation of old coordinates (columns) in new ones (rows)
    source = weight.argmax(axis=1)
    flipped = np.zeros(new.n, dtype=bool)
    if pairs:  # the state came from a conjugate: store the conjugate of the pair
        flipped[:pairs] = source[:pairs] >= system.n
        at = np.flatnonzero(flipped)
        columns = np.arange(reduction.order)
        columns[at], columns[pairs + at] = pairs + at, at
        T, Ti, weight, source = T[:, columns], Ti[columns], weight[columns], source[columns]
    stored = real_output.stored_states(new.n, pairs)
    phase = Ti[stored, source[stored]].conj()
    if system.has_real_output:  # a real pole stays real: only its sign is free
        phase[pairs:] = np.where(phase[pairs:].real < 0, -1.0, 1.0)
    phase = np.divide(phase, np.abs(phase), out=np.ones_like(phase), where=phase != 0)
    old_ratio, new_ratio = (_stored_ratio(x, input_factor) for x in (system, new))
    size = np.sqrt(_weighted_mean(weight[stored], old_ratio) / np.where(new_ratio > 0, new_ratio, 1.0))
    scale = phase * size
    full_scale = _full_scale(scale, pairs) if system.has_real_output else scale
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        aligned = _rescaled(new, scale, flipped)
        T, Ti = (T / full_scale).astype(T.dtype), (Ti * full_scale[:, None]).astype(Ti.dtype)
    check_result("The aligned reduction", aligned.B, aligned.C, T, Ti)
    return replace(reduction, system=aligned, T=T, Ti=Ti)


def carry_first_moments(
    system: DiagonalSystem, reduction: Reduction, moments: Moments, *, staleness: float = 0.0
) -> Moments:
    """Carry first moments, or a gradient, over to the reduced system.

    With bases ``Rb = T`` and ``Lb = Ti`` the images are ``Rb^H m_B``, ``m_C Lb^H`` and, for the poles,
    ``diag(Rb^H M_A Lb^H)``, where M_A belongs to a dense A. Its diagonal is known. Off the diagonal it follows from
    the invariance of the loss under a change of basis:
    ``(M_A)_ij = (C^H m_C - m_B B^H)_ij / conj(lam_j - lam_i)``.

    Parameters
    ----------
    system : DiagonalSystem
        The system before the reduction, at its current parameters.
    reduction : Reduction
        Its reduction, possibly aligned by `align_states`.
    moments : Moments
        Of `system`, finite; pass zeros for what was not collected.
    staleness : float, default 0
        Pseudo-hyperbolic distance of two poles below which moments cannot tell them apart, because they were
        collected while the parameters moved. Entries of M_A between such poles lean towards
        ``(M_A)_ii (B B^H)_ij / (B B^H)_ii``, their value for one common pole and white input. 0 trusts the formula
        down to rounding, right for a gradient at the current parameters.

    Returns
    -------
    Moments
        Of ``reduction.system``. Exact for a gradient where the dropped states are inert and, up to the one
        approximation of M_A between equal poles, the exact image ``diag(Rb^H M_A Lb^H)`` of the dense gradient
        otherwise; that image is itself the gradient of the reduced system only as far as both systems respond alike.

    Raises
    ------
    InputError
        If the reduction is none of a diagonal system of this size, or `moments` do not fit the system or are not
        finite.
    NumericalError
        If a moment overflows.
    """
    check_reduction(system, reduction)
    moments = _checked(system, moments)
    staleness = check_number(staleness, "staleness", least=0.0)
    new, left, right, weight = _state_maps(system, reduction)
    with np.errstate(over="ignore", invalid="ignore"):
        B = weight[:, None] * (left[0].conj().T @ moments.B + left[1].conj().T @ moments.B.conj())
        C = moments.C @ right[0].conj().T + moments.C.conj() @ right[1].conj().T
        T, Ti = np.vstack(left), np.hstack(right)  # stored new states only
        if not system.has_real_output:
            T, Ti = left[0], right[0]
        dense = _dense_moment(system, moments, staleness)
        poles = np.sum((T.conj().T @ dense) * Ti.conj(), axis=1)
        rates = _common_factor(system, weight) * _rate_derivative(new).conj() * poles
    return _carried(system, reduction, Moments(rates, B, C))


def carry_second_moments(system: DiagonalSystem, reduction: Reduction, moments: Moments) -> Moments:
    """Estimate second moments of the reduced system.

    Every gradient of the reduced system is a sum of old ones with known coefficients; the estimate takes the terms as
    uncorrelated and sums squares, real and imaginary parts separately. The terms of the poles that stem from the
    off-diagonal part of the dense gradient get the mean square of a product of a row of m_B and a column of m_C,
    scaled to agree on the diagonal. Exact where the reduced states are old states, an estimate otherwise.

    Parameters
    ----------
    system : DiagonalSystem
        The system before the reduction.
    reduction : Reduction
        Its reduction, possibly aligned by `align_states`.
    moments : Moments
        Second moments of `system`: squares of real parts as real parts, of imaginary parts as imaginary parts.

    Returns
    -------
    Moments
        Of ``reduction.system``, not negative.

    Raises
    ------
    InputError
        If the reduction is none of a diagonal system of this size, or `moments` do not fit the system, are not finite,
        or negative.
    NumericalError
        If a moment overflows.
    """
    check_reduction(system, reduction)
    moments = _checked(system, moments)
    if any(np.any(x.real < 0) or np.any(x.imag < 0) for x in moments):
        raise InputError("Second moments must not be negative; got negative parts. Pass squares, not gradients.")
    new, left, right, weight = _state_maps(system, reduction)
    with np.errstate(over="ignore", invalid="ignore"):
        found = _second_moments(system, new, left, right, weight, moments)
    return _carried(system, reduction, found)


def _second_moments(
    system: DiagonalSystem,
    new: DiagonalSystem,
    left: tuple[Array, Array],
    right: tuple[Array, Array],
    weight: Array,
    moments: Moments,
) -> Moments:
    """Return what `carry_second_moments` says, by the parts of the bases that `_state_maps` gives."""
    B = _squared_map(weight[:, None] * left[0].conj().T, weight[:, None] * left[1].conj().T, moments.B)
    C = _squared_map(right[0].conj(), right[1].conj(), moments.C.T).T
    old_derivative, new_derivative = _rate_derivative(system), _rate_derivative(new)
    gain = (weight * new_derivative.conj())[:, None]
    same = _quotient(gain * (left[0].T * right[0]).conj(), old_derivative.conj())
    mirrored = _quotient(gain * (left[1].T * right[1]).conj(), old_derivative)
    rates = _squared_map(same, mirrored, moments.rates[:, None])[:, 0]

    poles = _quotient(_total(moments.rates), np.abs(old_derivative) ** 2)
    rows, columns = _total(moments.B).mean(axis=1), _total(moments.C).mean(axis=0)
    scale = np.sum(poles) / np.sum(rows * columns) if np.any(rows * columns > 0) else 0.0
    sides = (0, 1) if system.has_real_output else (0,)
    from_rows = [np.abs(left[i].T) ** 2 * rows for i in sides]
    from_columns = [np.abs(right[i]) ** 2 * columns for i in sides]
    everything = sum(x.sum(axis=1) for x in from_rows) * sum(x.sum(axis=1) for x in from_columns)
    diagonal = sum(np.sum(x * y, axis=1) for x, y in zip(from_rows, from_columns, strict=True))
    # M_A of the doubled system has half of every entry, and a complex pole adds both halves: weight does both
    mixed = scale * (weight * np.abs(new_derivative)) ** 2 * np.maximum(everything - diagonal, 0.0)
    return Moments(rates + mixed * (0.5 + 0.5j), B, C)


def _dense_moment(system: DiagonalSystem, moments: Moments, staleness: float) -> Array:
    """Return the first moment M_A that a dense state matrix would have, in the doubled coordinates for real output."""
    poles, (B, C, _) = system.spectrum, system.double_matrices()
    m_lam, m_B, m_C = _quotient(moments.rates, _rate_derivative(system).conj()), moments.B, moments.C
    if system.has_real_output:
        poles, (B, C) = poles.map(real_output.with_conjugates), real_output.doubled(B, C)
        m_lam, m_B = np.concatenate([m_lam, m_lam.conj()]) / 2, np.vstack([m_B, m_B.conj()]) / 2
        m_C = np.hstack([m_C, m_C.conj()])
    difference, scale = poles.differences(system.is_discrete)
    coupling = C.conj().T @ m_C - m_B @ B.conj().T
    inner = B @ B.conj().T
    one_pole = _quotient(m_lam[:, None] * inner, np.diag(inner)[:, None])
    blur = (max(staleness, ONE_POLE) * scale) ** 2
    dense = (coupling * difference + blur * one_pole) / (np.abs(difference) ** 2 + blur)
    np.fill_diagonal(dense, m_lam)
    return dense


def _state_maps(
    system: DiagonalSystem, reduction: Reduction
) -> tuple[DiagonalSystem, tuple[Array, Array], tuple[Array, Array], Array]:
    """Return the new system and the stored part of its bases, split into old states and their conjugates.

    ``left`` holds the columns of T, ``right`` the rows of Ti; the halves for conjugates are 0 where the output is
    complex. The weight of a new state is 1/2 for a real pole under real output, whose two halves add up to twice its
    real part, and 1 otherwise.
    """
    n, new, pairs = system.n, reduction.system, _pairs(system, reduction)
    stored = real_output.stored_states(new.n, pairs) if system.has_real_output else np.arange(new.n)
    T, Ti = reduction.T[:, stored].astype(complex), reduction.Ti[stored].astype(complex)
    if not system.has_real_output:
        return new, (T, np.zeros_like(T)), (Ti, np.zeros_like(Ti)), np.ones(new.n)
    weight = np.where(np.arange(new.n) < pairs, 1.0, 0.5)
    return new, (T[:n], T[n:]), (Ti[:, :n], Ti[:, n:]), weight


def _pairs(system: DiagonalSystem, reduction: Reduction) -> int:
    """Return how many stored states of the reduced system stand for a conjugate pair; 0 if the output is complex."""
    return reduction.order - reduction.system.n if system.has_real_output else 0


def _full_scale(scale: Array, pairs: int) -> Array:
    """Return scales of stored states as scales of all coordinates."""
    return np.concatenate([scale[:pairs], scale[:pairs].conj(), scale[pairs:]])


def _rescaled(system: DiagonalSystem, scale: Array, flipped: Array) -> DiagonalSystem:
    """Return the system with flipped states conjugated, then B multiplied and C divided by the scales."""
    scale = (scale if system.dtype.kind == "c" else scale.real).astype(system.dtype)
    B = np.where(flipped[:, None], system.B.conj(), system.B) * scale[:, None]
    C = np.where(flipped, system.C.conj(), system.C) / scale
    poles = system.spectrum.map(lambda x: np.where(flipped, x.conj(), x))
    names = {key: getattr(system, key) for key in ("name", "inputs", "outputs", "states")}
    return DiagonalSystem.trusted(poles, B, C, system.D, system.dt, system.output, names)


def _stored_ratio(system: DiagonalSystem, input_factor: Callable[[DiagonalSystem], Array] | None) -> Array:
    """Return the norm of every stored row of B over that of the column of C; 0 for states without one of the two."""
    rows, columns = np.linalg.norm(system.B, axis=1), np.linalg.norm(system.C, axis=0)
    if input_factor is not None:
        factor = check_real_array(input_factor(system), "input_factor(system)", 1)
        if len(factor) != system.n or not np.all(factor > 0):
            raise InputError(
                f"input_factor must return one positive factor for each of {system.n} states; got {len(factor)} "
                f"from {factor.min(initial=np.inf):.3g} up."
            )
        rows = rows * factor
    return _quotient(rows, columns)


def _weighted_mean(weight: Array, ratio: Array) -> Array:
    """Return the weighted geometric mean of the old states' ratios, for every new state."""
    linked = ratio > 0
    logs = np.log(np.where(linked, ratio, 1.0))
    copies = weight.shape[1] // len(ratio)  # 2 for real output: a state and its conjugate have one ratio
    weight = weight * np.tile(linked, copies)
    return np.exp(_quotient(weight @ np.tile(logs, copies), weight.sum(axis=1)))


def _rate_derivative(system: DiagonalSystem) -> Array:
    """Return ``d lam / d rate``: lam in discrete time, 1 in continuous time."""
    return system.lam.astype(complex) if system.is_discrete else np.ones(system.n, dtype=complex)


def _common_factor(system: DiagonalSystem, weight: Array) -> Array:
    """Return the factor of a stored pole's gradient: a pair counts twice, once for its conjugate."""
    return 2 * weight if system.has_real_output else weight


def _quotient(x: Array, y: Array) -> Array:
    """Return ``x / y`` with 0 where y is 0: a pole at 0 has no rate, an inert state no input."""
    x, y = np.broadcast_arrays(x, y)
    return np.divide(x, y, out=np.zeros(x.shape, dtype=np.result_type(x, y)), where=y != 0)


def _squared_map(same: Array, mirrored: Array, second: Array) -> Array:
    """Return the second moments of ``same @ g + mirrored @ conj(g)`` for uncorrelated parts of g."""
    re = (same.real + mirrored.real) ** 2 @ second.real + (mirrored.imag - same.imag) ** 2 @ second.imag
    im = (same.imag + mirrored.imag) ** 2 @ second.real + (same.real - mirrored.real) ** 2 @ second.imag
    return re + 1j * im


def _total(second: Array) -> Array:
    """Return the mean square of a complex gradient, both parts."""
    return second.real + second.imag


def check_reduction(system: DiagonalSystem, reduction: Reduction) -> None:
    """Refuse what is no reduction of a diagonal system of the size and kind of this one."""
    check_type(system, "system", DiagonalSystem)
    check_type(reduction, "reduction", Reduction)
    new = check_type(reduction.system, "reduction.system", DiagonalSystem)
    order = 2 * system.n if system.has_real_output else system.n
    if reduction.T.shape != (order, reduction.order) or (new.m, new.p, new.output) != (
        system.m,
        system.p,
        system.output,
    ):
        raise InputError(
            f"reduction must be one of the system, with {order} rows in T; got T {reduction.T.shape} and {new!r} for "
            f"{system!r}. Did you pass the reduction of another layer?"
        )


def _carried(system: DiagonalSystem, reduction: Reduction, moments: Moments) -> Moments:
    """Return finite moments, cleared of the imaginary parts of real poles, which are rounding and would move them."""
    check_result("Carried moments", *moments, hint="Check the gradients for overflow.")
    if not system.has_real_output:
        return moments
    real = np.arange(reduction.system.n) >= _pairs(system, reduction)
    rates, B, C = moments
    return Moments(np.where(real, rates.real, rates), np.where(real[:, None], B.real, B), np.where(real, C.real, C))


def _checked(system: DiagonalSystem, moments: Moments) -> Moments:
    """Return moments as finite arrays in the shapes of the system."""
    check_type(moments, "moments", Moments, "Write Moments(rates, B, C).")
    wanted = {"rates": (system.n,), "B": (system.n, system.m), "C": (system.p, system.n)}
    found = {name: check_array(getattr(moments, name), f"moments.{name}", None, copy=False) for name in wanted}
    for name, shape in wanted.items():
        if found[name].shape != shape:
            raise InputError(
                f"moments.{name} must have shape {shape}, that of the system; got {found[name].shape}. "
                f"Pass the moments collected before the reduction."
            )
    return Moments(**found)
