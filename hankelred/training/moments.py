"""How gradients and their running averages follow a diagonal system through a reduction.

An optimizer keeps, for every parameter, averages of its gradient (first moments) and of the squared gradient
(second moments). A gradient with respect to the parameters of the reduced system is a linear image of the gradients
with respect to the old ones, and so are the first moments; second moments have no exact image and are estimated.

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
from ..systems.base import NAMES

# Poles at a pseudo-hyperbolic distance below this are one pole to rounding: |lam_i - lam_j| / |1 - lam_i conj(lam_j)|
# of two copies of one stored pole is some eps.
ONE_POLE = 1e-12

# Averaged gradients were collected while the parameters moved; they do not tell poles apart that are closer than
# this. Measured with Adam (16 states, 150 steps, 3 seeds, lr 3e-3 and 1e-2) against the averages of a dense twin:
# relative error of the off-diagonal moments .16 to .83 at .1, .18 to .63 at .2, .19 to 1.0 when trusted to rounding.
STALENESS = 0.1


class Moments(NamedTuple):
    """First or second moments of the gradient of a diagonal system.

    First moments are complex gradients. Second moments hold the average square of the real part as their real part
    and that of the imaginary part as their imaginary part, as optimizers do for complex parameters.

    Attributes
    ----------
    rates : (n,) ndarray
        With respect to the rates of the poles.
    B : (n, m) ndarray
        With respect to the input matrix.
    C : (p, n) ndarray
        With respect to the output matrix.

    Examples
    --------
    >>> import numpy as np
    >>> from hankelred.training import Moments
    >>> Moments(np.zeros(4), np.zeros((4, 1)), np.zeros((2, 4))).C.shape
    (2, 4)
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
    InputError, NumericalError
        If the reduction is none of a diagonal system of this size, factors are not positive, or coordinates overflow.

    Examples
    --------
    >>> import hankelred as hr
    >>> from hankelred.training import align_states
    >>> system = hr.DiagonalSystem([0.9, 0.5, 0.1], [[1.0], [2.0], [0.0]], [[1.0, 1.0, 1.0]], dt=True)
    >>> reduction = hr.balance(system).reduce(order=2)  # the last state is inert
    >>> print(align_states(system, reduction).system.B.round(6).ravel())
    [1. 2.]
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
    full_scale = np.concatenate([scale[:pairs], scale[:pairs].conj(), scale[pairs:]])
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        scale = (scale if new.dtype.kind == "c" else scale.real).astype(new.dtype)
        B = np.where(flipped[:, None], new.B.conj(), new.B) * scale[:, None]
        C = np.where(flipped, new.C.conj(), new.C) / scale
        T, Ti = (T / full_scale).astype(T.dtype), (Ti * full_scale[:, None]).astype(Ti.dtype)
    check_result("The aligned reduction", B, C, T, Ti)
    poles = new.spectrum.map(lambda x: np.where(flipped, x.conj(), x))
    names = {key: getattr(new, key) for key in NAMES}
    aligned = DiagonalSystem.trusted(poles, B, C, new.D, new.dt, new.output, names)
    return replace(reduction, system=aligned, T=T, Ti=Ti)


def carry_first_moments(
    system: DiagonalSystem, reduction: Reduction, moments: Moments, *, staleness: float = STALENESS
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
    staleness : float, default 0.1
        Pseudo-hyperbolic distance of two poles below which moments cannot tell them apart, because they were
        collected while the parameters moved. Entries of M_A between such poles lean towards
        ``(M_A)_ii (B B^H)_ij / (B B^H)_ii``, their value for one common pole and white input. The default is for
        averages of an optimizer. 0 trusts the formula down to rounding, which is right for a gradient at the current
        parameters, and only for that: averages then grow by the inverse of the distance.

    Returns
    -------
    Moments
        Of ``reduction.system``. For a gradient it is the image of the dense gradient, but for M_A between equal poles,
        and exact where the dropped states are inert; else it is the gradient of the reduced system only as far as both
        systems respond alike.

    Raises
    ------
    InputError, NumericalError
        If the reduction is none of a diagonal system of this size, moments do not fit the system, or overflow.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> from hankelred.training import Moments, align_states, carry_first_moments
    >>> system = hr.DiagonalSystem([0.9, 0.5, 0.1], [[1.0], [2.0], [0.0]], [[1.0, 1.0, 1.0]], dt=True)
    >>> reduction = align_states(system, hr.balance(system).reduce(order=2))  # the last state is inert
    >>> moments = Moments(np.array([3.0, 2.0, 0.0]), np.ones((3, 1)), np.array([[5.0, 4.0, 0.0]]))
    >>> print(carry_first_moments(system, reduction, moments).C.real.round(6))
    [[5. 4.]]
    """
    check_reduction(system, reduction)
    moments = _checked(system, moments)
    staleness = check_number(staleness, "staleness", least=0.0)
    left, right, weight = _state_maps(system, reduction)
    with np.errstate(over="ignore", invalid="ignore"):
        B = weight[:, None] * (left[0].conj().T @ moments.B + left[1].conj().T @ moments.B.conj())
        C = moments.C @ right[0].conj().T + moments.C.conj() @ right[1].conj().T
        dense = _dense_moment(system, moments, staleness)
        T, Ti = np.vstack(left)[: len(dense)], np.hstack(right)[:, : len(dense)]  # stored new states only
        rates = weight * _rate_derivative(reduction.system).conj() * np.sum((T.conj().T @ dense) * Ti.conj(), axis=1)
        if system.has_real_output:  # a pair counts twice, once for its conjugate
            rates = 2 * rates
    return _carried(system, reduction, Moments(rates, B, C))


def carry_second_moments(system: DiagonalSystem, reduction: Reduction, moments: Moments) -> Moments:
    """Estimate second moments of the reduced system.

    Every gradient of the reduced system is a sum of old ones with known coefficients; the estimate takes the terms as
    uncorrelated and sums squares, real and imaginary parts separately. The terms of the poles that stem from the
    off-diagonal part of the dense gradient get the mean square of a product of a row of m_B and a column of m_C,
    scaled to agree on the diagonal. Exact where the reduced states are old states.

    Parameters
    ----------
    system, reduction : DiagonalSystem and Reduction
        As for `carry_first_moments`.
    moments : Moments
        Second moments of `system`: squares of real parts as real parts, of imaginary parts as imaginary parts.

    Returns
    -------
    Moments
        Of ``reduction.system``, not negative.

    Raises
    ------
    InputError, NumericalError
        As for `carry_first_moments`, or if moments are negative.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> from hankelred.training import Moments, align_states, carry_second_moments
    >>> system = hr.DiagonalSystem([0.9, 0.5, 0.1], [[1.0], [2.0], [0.0]], [[1.0, 1.0, 1.0]], dt=True)
    >>> reduction = align_states(system, hr.balance(system).reduce(order=2))  # the last state is inert
    >>> moments = Moments(np.array([3.0, 2.0, 0.0]), np.ones((3, 1)), np.array([[5.0, 4.0, 0.0]]))
    >>> print(carry_second_moments(system, reduction, moments).C.real.round(6))
    [[5. 4.]]
    """
    check_reduction(system, reduction)
    moments = _checked(system, moments)
    if any(np.any(x.real < 0) or np.any(x.imag < 0) for x in moments):
        raise InputError("Second moments must not be negative; got negative parts. Pass squares, not gradients.")
    left, right, weight = _state_maps(system, reduction)
    old_derivative, new_derivative = _rate_derivative(system), _rate_derivative(reduction.system)
    with np.errstate(over="ignore", invalid="ignore"):
        B = _squared_map(weight[:, None] * left[0].conj().T, weight[:, None] * left[1].conj().T, moments.B)
        C = _squared_map(right[0].conj(), right[1].conj(), moments.C.T).T
        gain = (weight * new_derivative.conj())[:, None]
        same, conjugate = (gain * (x.T * y).conj() for x, y in zip(left, right, strict=True))
        same, conjugate = _quotient(same, old_derivative.conj()), _quotient(conjugate, old_derivative)
        rates = _squared_map(same, conjugate, moments.rates[:, None])[:, 0]

        poles = _quotient(_total(moments.rates), np.abs(old_derivative) ** 2)
        rows, columns = _total(moments.B).mean(axis=1), _total(moments.C).mean(axis=0)
        scale = np.sum(poles) / np.sum(rows * columns) if np.any(rows * columns > 0) else 0.0
        from_rows = np.stack([np.abs(x.T) ** 2 * rows for x in left])  # (2, new states, old states)
        from_columns = np.stack([np.abs(x) ** 2 * columns for x in right])
        everything = from_rows.sum(axis=(0, 2)) * from_columns.sum(axis=(0, 2))
        diagonal = np.sum(from_rows * from_columns, axis=(0, 2))
        # M_A of the doubled system has half of every entry, and a complex pole adds both halves: weight does both
        mixed = scale * (weight * np.abs(new_derivative)) ** 2 * np.maximum(everything - diagonal, 0.0)
        rates = rates + mixed * (0.5 + 0.5j)
    return _carried(system, reduction, Moments(rates, B, C))


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


def _state_maps(system: DiagonalSystem, reduction: Reduction) -> tuple[tuple[Array, Array], tuple[Array, Array], Array]:
    """Return the bases of the stored new states, split into old states and their conjugates, and weights.

    ``left`` holds the columns of T, ``right`` the rows of Ti; the halves for conjugates are 0 where the output is
    complex. The weight of a new state is 1/2 for a real pole under real output, whose two halves add up to twice its
    real part, and 1 otherwise.
    """
    n, new_n, pairs = system.n, reduction.system.n, _pairs(system, reduction)
    T, Ti = reduction.T.astype(complex), reduction.Ti.astype(complex)
    if not system.has_real_output:
        return (T, np.zeros_like(T)), (Ti, np.zeros_like(Ti)), np.ones(new_n)
    stored = real_output.stored_states(new_n, pairs)
    T, Ti = T[:, stored], Ti[stored]
    return (T[:n], T[n:]), (Ti[:, :n], Ti[:, n:]), np.where(np.arange(new_n) < pairs, 1.0, 0.5)


def _pairs(system: DiagonalSystem, reduction: Reduction) -> int:
    """Return how many stored states of the reduced system stand for a conjugate pair; 0 if the output is complex."""
    return reduction.order - reduction.system.n if system.has_real_output else 0


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
    ratio = np.tile(ratio, weight.shape[1] // len(ratio))  # a state and its conjugate have one ratio
    weight = weight * (ratio > 0)
    return np.exp(_quotient(weight @ np.log(np.where(ratio > 0, ratio, 1.0)), weight.sum(axis=1)))


def _rate_derivative(system: DiagonalSystem) -> Array:
    """Return ``d lam / d rate``: lam in discrete time, 1 in continuous time."""
    return system.lam.astype(complex) if system.is_discrete else np.ones(system.n, dtype=complex)


def _quotient(x: Array, y: Array) -> Array:
    """Return ``x / y`` with 0 where y is 0: a pole at 0 has no rate, an inert state no input."""
    x, y = np.broadcast_arrays(x, y)
    return np.divide(x, y, out=np.zeros(x.shape, dtype=np.result_type(x, y)), where=y != 0)


def _squared_map(same: Array, conjugate: Array, second: Array) -> Array:
    """Return the second moments of ``same @ g + conjugate @ conj(g)`` for uncorrelated parts of g."""
    of_real, of_imag = same + conjugate, same - conjugate  # the map of Re g, and of i Im g
    re = of_real.real**2 @ second.real + of_imag.imag**2 @ second.imag
    im = of_real.imag**2 @ second.real + of_imag.real**2 @ second.imag
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
    kinds = [(x.m, x.p, x.output) for x in (system, new)]
    if reduction.T.shape != (order, reduction.order) or kinds[0] != kinds[1]:
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
    masks = real, real[:, None], real
    return Moments(*(np.where(mask, x.real, x) for mask, x in zip(masks, moments, strict=True)))


def _checked(system: DiagonalSystem, moments: Moments) -> Moments:
    """Return moments as finite arrays in the shapes of the system."""
    check_type(moments, "moments", Moments, "Write Moments(rates, B, C).")
    found = Moments(*(check_array(x, f"moments.{name}", None, copy=False) for name, x in moments._asdict().items()))
    shapes = (system.n,), (system.n, system.m), (system.p, system.n)
    for name, x, shape in zip(Moments._fields, found, shapes, strict=True):
        if x.shape != shape:
            raise InputError(
                f"moments.{name} must have shape {shape}, that of the system; got {x.shape}. "
                f"Pass the moments collected before the reduction."
            )
    return found
