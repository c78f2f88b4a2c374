"""State-space realisations of transfer functions: companion blocks for polynomials, cascades for poles and zeros.

A cascade never multiplies the poles out, so they stay where they were given; the polynomial of twenty clustered
poles has lost them already. Both forms work for s and for z, so nothing here depends on `dt`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import scipy.linalg as sla
from numpy.typing import ArrayLike

from ..checks import Array, check_array
from ..errors import InputError

Matrices = tuple[Array, Array, Array, Array]

PAIRING_RTOL = 100 * np.finfo(np.float64).eps  # two roots this close, relative to their size, are a conjugate pair


def realise_polynomials(num: Sequence[Sequence[ArrayLike]], den: Sequence[Sequence[ArrayLike]]) -> Matrices:
    """Return A, B, C, D of a (p, m) table of ratios of polynomials, highest power first.

    The entries of one column that share a denominator share their states; or those of one row, where that takes
    fewer states. The realisation is not minimal in general.
    """
    entries = [
        [_proper(n, d, i, j) for j, (n, d) in enumerate(zip(*row, strict=True))]
        for i, row in enumerate(zip(num, den, strict=True))
    ]
    by_column = _realise_columns(entries)
    A, B, C, D = _realise_columns([list(column) for column in zip(*entries, strict=True)])
    return (A.T, C.T, B.T, D.T) if len(A) < len(by_column[0]) else by_column


def realise_zeros_poles(z: ArrayLike, p: ArrayLike, gain: Any, discrete: bool) -> Matrices:
    """Return A, B, C, D of ``gain prod(x - z_i) / prod(x - p_i)``, as a cascade of small sections.

    A is block triangular with the poles on its diagonal, unchanged; everything is real if the roots come in
    conjugate pairs and `gain` is real. Each section is scaled to make the largest gain up to it 1 on the imaginary
    axis, or the unit circle: the product of twenty raw gains leaves no digits in any other coordinates.
    """
    zeros, poles = check_array(z, "zeros", 1), check_array(p, "poles", 1)
    if len(zeros) > len(poles):
        raise InputError(
            f"A transfer function must have no more zeros than poles; got {len(zeros)} zeros and {len(poles)} poles. "
            f"An improper one has no state space: add the fast poles that were left out."
        )
    sections = None if np.iscomplexobj(gain) and np.imag(gain) != 0 else _real_sections(zeros, poles)
    if sections is None:
        sections = _complex_sections(zeros, poles)
        gain = complex(gain)
    else:
        gain = float(np.real(gain))
    points = _where_gains_peak(poles, discrete)
    partial = np.ones(len(points), dtype=np.complex128)  # response of the sections so far
    A, B, C, D = np.empty((0, 0)), np.empty((0, 1)), np.empty((1, 0)), np.ones((1, 1))
    for section_poles, section_zeros in sections:
        for root in section_zeros:
            partial *= points - root
        for root in section_poles:
            partial /= points - root
        scale = 1 / (np.abs(partial).max(initial=0.0) or 1.0)
        partial *= scale
        gain /= scale
        Ak, Bk, Ck, Dk = _section(section_poles, section_zeros, scale)
        A = np.block([[A, np.zeros((len(A), len(Ak)))], [Bk @ C, Ak]])
        B, C, D = np.vstack([B, Bk @ D]), np.hstack([Dk @ C, Ck]), Dk @ D
    return A, B, gain * C, gain * D


def _where_gains_peak(poles: Array, discrete: bool) -> Array:
    """Return points of the stability boundary next to the poles; none of them is a pole."""
    upper = np.where(poles.imag < 0, -1, 1)
    angle = np.angle(poles)
    points = np.exp(1j * angle) if discrete else 1j * upper * np.abs(poles)
    return points[~np.isin(points, poles)]


def _proper(numerator: ArrayLike, denominator: ArrayLike, i: int, j: int) -> tuple[Array, Array]:
    """Return numerator and denominator of one entry, as long as each other, with a leading 1 in the denominator."""
    both = (np.atleast_1d(x) for x in (numerator, denominator))
    num, den = (np.trim_zeros(check_array(x, "coefficients", 1), "f") for x in both)
    if len(den) == 0:
        raise InputError(f"Every denominator must have a coefficient other than zero; entry ({i}, {j}) has none.")
    if len(num) > len(den):
        raise InputError(
            f"A transfer function must be proper; entry ({i}, {j}) has a numerator of degree {len(num) - 1} and a "
            f"denominator of degree {len(den) - 1}. Add the fast poles that were left out."
        )
    return np.pad(num, (len(den) - len(num), 0)) / den[0], den / den[0]


def _realise_columns(entries: list[list[tuple[Array, Array]]]) -> Matrices:
    """Return A, B, C, D with one companion block for each column and denominator in it."""
    p, m = len(entries), len(entries[0])
    D = np.array([[num[0] for num, _ in row] for row in entries])
    blocks: list[Array] = []
    rows: list[Array] = []
    columns: list[Array] = []
    for j in range(m):
        shared: dict[tuple[Any, ...], list[int]] = {}
        for i in range(p):
            shared.setdefault(tuple(entries[i][j][1]), []).append(i)
        for key, outputs in shared.items():
            den = np.array(key)
            if len(den) == 1:  # a constant: all in D
                continue
            C = np.zeros((p, len(den) - 1), dtype=np.result_type(D, den))
            for i in outputs:
                num = entries[i][j][0]
                C[i] = num[1:] - num[0] * den[1:]  # remainder after the feedthrough
            A, input_column, C = _scaled_companion(den, C)
            blocks.append(A)
            rows.append(np.outer(input_column, np.arange(m) == j))
            columns.append(C)
    if not blocks:
        return np.empty((0, 0)), np.empty((0, m)), np.empty((p, 0)), D
    return sla.block_diag(*blocks), np.vstack(rows), np.hstack(columns), D


def _scaled_companion(den: Array, C: Array) -> tuple[Array, Array, Array]:
    """Return the controller form of a monic denominator, its states scaled by powers of two.

    Unscaled, the coefficients of a filter at 1 kHz run from 1 to 1e38 and the Schur form loses eight digits of
    the poles; powers of two are exact.
    """
    n = len(den) - 1
    A = np.eye(n, k=-1, dtype=den.dtype)
    A[0] = -den[1:]
    (gebal,) = cast("list[Any]", sla.get_lapack_funcs(("gebal",), (A,)))
    A, _, _, scale, _ = gebal(A, scale=1, permute=0)
    return A, (np.arange(n) == 0) / scale, C * scale


def _section(poles: Array, zeros: Array, scale: float) -> Matrices:
    """Return A, B, C, D of ``scale prod(x - zeros) / prod(x - poles)`` with one pole, or two and real matrices."""
    if len(poles) == 1:
        A = np.array([[poles[0]]])
        remainder = [poles[0] - zeros[0] if len(zeros) else 1.0]
        C = np.array([remainder])
    else:
        first, second = poles
        a = first.real
        if first.imag != 0:  # a conjugate pair
            b = abs(first.imag)
            A = np.array([[a, b], [-b, a]])
        else:
            b = max(abs(first), abs(second)) or 1.0
            A = np.array([[a, b], [0.0, second.real]])
        num = np.pad(np.atleast_1d(np.poly(zeros)).real, (2 - len(zeros), 0))
        remainder = num[1:] - num[0] * np.array([-(first + second).real, (first * second).real])
        # with B = [0, 1]: (x - A)^-1 B = [b, x - a] / den
        C = np.array([[(remainder[1] + a * remainder[0]) / b, remainder[0]]])
    D = np.array([[scale if len(zeros) == len(poles) else 0.0]])
    balance = np.sqrt(scale * np.linalg.norm(C)) or 1.0  # B and C of one size
    return A, balance * np.eye(len(poles))[:, -1:], scale / balance * C, D


def _real_sections(zeros: Array, poles: Array) -> list[tuple[Array, Array]] | None:
    """Return sections of one or two poles and their zeros, closed under conjugation; None if that cannot be."""
    split_zeros, split_poles = _conjugate_pairs(zeros), _conjugate_pairs(poles)
    if split_zeros is None or split_poles is None:
        return None
    (zero_pairs, real_zeros), (pole_pairs, real_poles) = split_zeros, split_poles
    single = [] if len(real_poles) % 2 == 0 else [real_poles[-1:]]
    free = [*pole_pairs, *real_poles[: len(real_poles) // 2 * 2].reshape(-1, 2), *single]
    taken: list[Array] = [np.empty(0)] * len(free)
    order = list(range(len(free)))
    for pair in zero_pairs:  # each to the nearest two poles: what is left of the section is then small
        k = min((k for k in order if len(free[k]) == 2), key=lambda k: abs(free[k][0] - pair[0]))
        taken[k] = pair
        order.remove(k)
    left = real_zeros
    for k in order:
        nearest = np.argsort(np.abs(left - free[k][0]))[: len(free[k])]
        taken[k], left = left[nearest], np.delete(left, nearest)
    return list(zip(free, taken, strict=True))


def _complex_sections(zeros: Array, poles: Array) -> list[tuple[Array, Array]]:
    """Return one section for each pole, with the nearest of the zeros that are left."""
    sections = []
    for pole in poles:
        nearest = np.argsort(np.abs(zeros - pole))[:1]
        sections.append((np.array([pole]), zeros[nearest]))
        zeros = np.delete(zeros, nearest)
    return sections


def _conjugate_pairs(roots: Array) -> tuple[list[Array], Array] | None:
    """Return the pairs (upper half plane first) and the real roots, or None if a complex root has no partner."""
    real = np.abs(roots.imag) <= PAIRING_RTOL * np.abs(roots)
    lower = roots[~real & (roots.imag < 0)]
    pairs = []
    for root in roots[~real & (roots.imag > 0)]:
        if len(lower) == 0:
            return None
        partner = int(np.argmin(np.abs(lower - root.conj())))
        if abs(lower[partner] - root.conj()) > PAIRING_RTOL * abs(root):
            return None
        pairs.append(np.array([root, root.conj()]))
        lower = np.delete(lower, partner)
    return None if len(lower) else (pairs, np.sort(roots[real].real))
