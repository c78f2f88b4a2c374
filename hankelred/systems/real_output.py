"""Diagonal systems with real output, ``y = Re(C x) + D u``: every stored state stands for itself and its conjugate.

The only place that knows the two sets of coordinates. In ``[x, conj(x)]`` such a system is
``(diag(lam, conj lam), [B; conj B], [C, conj C] / 2)``, of order 2n. In the real coordinates
``sqrt(2) [Re x; Im x]``, which a unitary matrix relates to the former, all its matrices are real.

Reduced states come in the order of pairs, their conjugates, real poles; of a pair the first is stored, so that k
stored states with q pairs among them have the order k + q.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..checks import Array, check_choice
from ..errors import InputError

OUTPUTS = ("complex", "real")


def check_output(output: Any, D: Array) -> str:
    """Return a checked kind of output, for which D must be real."""
    output = str(check_choice(output, "output", OUTPUTS))
    if is_real(output) and D.dtype.kind == "c":
        raise InputError('D must be real where output="real"; got a complex D. Pass D.real if that is meant.')
    return output


def is_real(output: str) -> bool:
    """Whether stored states stand for their conjugates too."""
    return output == "real"


def with_conjugates(lam: Array) -> Array:
    """Return all poles of the doubled system, (..., 2n)."""
    return np.concatenate([lam, lam.conj()], axis=-1)


def doubled(B: Array, C: Array) -> tuple[Array, Array]:
    """Return input and output matrix in the coordinates ``[x, conj(x)]``."""
    return np.concatenate([B, B.conj()], axis=-2), np.concatenate([C, C.conj()], axis=-1) / 2


def real_matrices(B: Array, C: Array) -> tuple[Array, Array]:
    """Return input and output matrix, or factors of Gramians given by upper halves, in the real coordinates."""
    return np.sqrt(2) * np.vstack([B.real, B.imag]), np.sqrt(0.5) * np.hstack([C.real, -C.imag])


def real_state_matrix(lam: Array) -> Array:
    """Return the state matrix in the real coordinates."""
    re, im = np.diag(lam.real), np.diag(lam.imag)
    return np.block([[re, -im], [im, re]])


def real_product(lam: Array, X: Array) -> Array:
    """Return the state matrix in the real coordinates times X."""
    re, im = lam.real[:, None], lam.imag[:, None]
    upper, lower = np.split(X, 2)
    return np.vstack([re * upper - im * lower, im * upper + re * lower])


def to_conjugates(T: Array, Ti: Array) -> tuple[Array, Array]:
    """Move bases from the real coordinates to ``[x; conj(x)]``."""
    upper, lower = np.split(T, 2)
    left, right = np.split(Ti, 2, axis=1)
    half = np.sqrt(0.5)
    T = half * np.vstack([upper + 1j * lower, upper - 1j * lower])
    Ti = half * np.hstack([left - 1j * right, left + 1j * right])
    return T, Ti


def to_real(S: Array, R: Array) -> tuple[Array, Array]:
    """Move factors from ``[x; conj(x)]`` to the real coordinates, where they may still be complex."""
    n = len(S) // 2
    S = np.sqrt(0.5) * np.vstack([S[:n] + S[n:], -1j * (S[:n] - S[n:])])
    R = np.sqrt(0.5) * np.hstack([R[:, :n] + R[:, n:], 1j * (R[:, :n] - R[:, n:])])
    return S, R


def stored_states(states: int, pairs: int) -> Array:
    """Which coordinates, ordered pairs, their conjugates, real poles, are stored states."""
    return np.concatenate([np.arange(pairs), np.arange(2 * pairs, pairs + states)])
