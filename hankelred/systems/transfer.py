"""State-space realisations of transfer functions: companion blocks for polynomials, cascades for poles and zeros.

A cascade never multiplies the poles out, so they stay where they were given; the polynomial of twenty clustered
poles has lost them already. Both forms work for s and for z, so nothing here depends on `dt`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.linalg as sla
from numpy.typing import ArrayLike

from ..checks import Array, check_array
from ..errors import InputError

Realisation = tuple[Array, Array, Array, Array]

PAIRING_RTOL = 100 * np.finfo(np.float64).eps  # two roots this close, relative to their size, are a conjugate pair


def realise_polynomials(num: Sequence[Sequence[ArrayLike]], den: Sequence[Sequence[ArrayLike]]) -> Realisation:
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


def realise_zeros_poles(z: ArrayLike, p: ArrayLike, gain: Any, discrete: bool) -> Realisation:
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
    sections, real = _sections(zeros, poles, np.imag(gain) == 0)
    gain = float(np.real(gain)) if real else complex(gain)
    # of the stability boundary, the points next to the poles: there the gains peak
    points = np.exp(1j * np.angle(poles)) if discrete else np.where(poles.imag < 0, -1j, 1j) * np.abs(poles)
    points = points[~np.isin(points, poles)]
    partial = np.ones(len(points), dtype=np.complex128)  # response of the sections so far
    A, B, C, D = np.empty((0, 0)), np.empty((0, 1)), np.empty((1, 0)), np.ones((1, 1))
    for section_poles, section_zeros in sections:
        partial *= np.prod(points[:, None] - section_zeros, axis=1) / np.prod(points[:, None] - section_poles, axis=1)
        scale = 1 / (np.abs(partial).max(initial=0.0) or 1.0)
        partial *= scale
        gain /= scale
        Ak, Bk, Ck, Dk = _section(section_poles, section_zeros, scale)
        A = np.block([[A, np.zeros((len(A), len(Ak)))], [Bk @ C, Ak]])
        B, C, D = np.vstack([B, Bk @ D]), np.hstack([Dk @ C, Ck]), Dk @ D
    return A, B, gain * C, gain * D


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


def _realise_columns(entries: list[list[tuple[Array, Array]]]) -> Realisation:
    """Return A, B, C, D with one companion block for each column and denominator in it."""
    p, m = len(entries), len(entries[0])
    D = np.array([[num[0] for num, _ in row] for row in entries])
    blocks = [(np.empty((0, 0)), np.empty((0, m)), np.empty((p, 0)))]
    for j in range(m):
        shared: dict[tuple[Any, ...], list[int]] = {}
        for i in range(p):
            shared.setdefault(tuple(entries[i][j][1]), []).append(i)
        for key, outputs in shared.items():
            den = np.array(key)
            C = np.zeros((p, len(den) - 1), dtype=np.result_type(D, den))
            for i in outputs:
                C[i] = entries[i][j][0][1:] - D[i, j] * den[1:]  # remainder after the feedthrough
            if C.shape[1]:  # otherwise a constant: all in D
                A, input_column, C = _scaled_companion(den, C)
                blocks.append((A, np.outer(input_column, np.arange(m) == j), C))
    As, Bs, Cs = zip(*blocks, strict=True)
    return sla.block_diag(*As), np.vstack(Bs), np.hstack(Cs), D


def _scaled_companion(den: Array, C: Array) -> tuple[Array, Array, Array]:
    """Return the controller form of a monic denominator, its states scaled by powers of two.

    Unscaled, the coefficients of a filter at 1 kHz run from 1 to 1e38 and the Schur form loses eight digits of
    the poles; powers of two are exact.
    """
    n = len(den) - 1
    A = np.eye(n, k=-1, dtype=den.dtype)
    A[0] = -den[1:]
    gebal: Any = sla.get_lapack_funcs("gebal", (A,))
    A, _, _, scale, _ = gebal(A, scale=1, permute=0)
    return A, (np.arange(n) == 0) / scale, C * scale


def _section(poles: Array, zeros: Array, scale: float) -> Realisation:
    """Return A, B, C, D of ``scale prod(x - zeros) / prod(x - poles)`` with one pole, or two and real matrices."""
    if len(poles) == 1:
        A = np.array([[poles[0]]])
        C = np.array([[poles[0] - zeros[0] if len(zeros) else 1.0]])
    else:
        a, second = poles[0].real, poles[1].real
        b = abs(poles[0].imag)
        lower = -b  # of a conjugate pair
        if b == 0:
            b, lower = np.abs(poles).max() or 1.0, 0.0
        A = np.array([[a, b], [lower, second]])
        num = np.pad(np.atleast_1d(np.poly(zeros)).real, (2 - len(zeros), 0))
        remainder = num[1:] - num[0] * np.poly(poles).real[1:]
        # with B = [0, 1]: (x - A)^-1 B = [b, x - a] / den
        C = np.array([[(remainder[1] + a * remainder[0]) / b, remainder[0]]])
    D = np.array([[scale if len(zeros) == len(poles) else 0.0]])
    balance = np.sqrt(scale * np.linalg.norm(C)) or 1.0  # B and C of one size
    return A, balance * np.eye(len(poles))[:, -1:], scale / balance * C, D


def _sections(zeros: Array, poles: Array, real: bool) -> tuple[list[tuple[Array, Array]], bool]:
    """Return poles and zeros by sections, of one or two poles closed under conjugation, and whether that is so.

    Without `real`, or a partner for every complex root, each section has one pole.
    """
    zero_pairs: list[Array] = []
    left, free = zeros, list(poles[:, None])
    split_zeros, split_poles = (_conjugate_pairs(roots) if real else None for roots in (zeros, poles))
    real = False
    if split_zeros is not None and split_poles is not None:
        real = True
        (zero_pairs, left), (pole_pairs, real_poles) = split_zeros, split_poles
        free = [*pole_pairs, *(real_poles[k : k + 2] for k in range(0, len(real_poles), 2))]
    taken: list[Array] = [np.empty(0)] * len(free)
    order = list(range(len(free)))
    for pair in zero_pairs:  # each to the nearest two poles: what is left of the section is then small
        k = min((k for k in order if len(free[k]) == 2), key=lambda k: abs(free[k][0] - pair[0]))
        taken[k] = pair
        order.remove(k)
    for k in order:
        nearest = np.argsort(np.abs(left - free[k][0]))[: len(free[k])]
        taken[k], left = left[nearest], np.delete(left, nearest)
    return list(zip(free, taken, strict=True)), real


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
