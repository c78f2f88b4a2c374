"""Putting a reduced stable part together again with the states that were put aside: their bases, and the systems."""

from __future__ import annotations

import numpy as np
import scipy.linalg as sla

from ..checks import Array
from ..parts import DiagonalParts
from ..systems import DiagonalSystem


def with_fixed_states(T: Array, Ti: Array, parts: DiagonalParts, reduced: DiagonalSystem) -> tuple[Array, Array]:
    """Extend bases of the stable part by the states kept as they are, in front of each kind of coordinate."""
    fixed, stable, full = parts.fixed, parts.rest, parts.system
    if len(fixed) == 0:
        return T, Ti
    X, Y = parts.fixed_bases()
    n, k, copies = full.n, len(Y), full.order // full.n
    pairs, size = T.shape[1] - reduced.n if copies == 2 else 0, copies * k + T.shape[1]
    # where the fixed and the reduced columns go: [fixed, pairs, conj fixed, conj pairs, reals]
    at_fixed = np.concatenate([np.arange(k), k + pairs + np.arange(k)]) if copies == 2 else np.arange(k)
    at_rest = np.setdiff1d(np.arange(size), at_fixed)
    rows_fixed = np.concatenate([fixed + n * c for c in range(copies)])
    rows_stable = np.concatenate([stable + n * c for c in range(copies)])
    wide_T = np.zeros((copies * n, size), dtype=T.dtype)
    wide_Ti = np.zeros((size, copies * n), dtype=Ti.dtype)
    wide_T[np.ix_(rows_fixed, at_fixed)] = sla.block_diag(*[X, X.conj()][:copies])
    wide_Ti[np.ix_(at_fixed, rows_fixed)] = sla.block_diag(*[Y, Y.conj()][:copies])
    wide_T[np.ix_(rows_stable, at_rest)] = T
    wide_Ti[np.ix_(at_rest, rows_stable)] = Ti
    return wide_T, wide_Ti


def joined(fixed: DiagonalSystem, reduced: DiagonalSystem) -> DiagonalSystem:
    """Put the states kept as they are in front of the reduced ones."""
    if fixed.n == 0:
        return reduced
    B, C = np.vstack([fixed.B, reduced.B]), np.hstack([fixed.C, reduced.C])
    poles = fixed.spectrum.joined(reduced.spectrum)
    return DiagonalSystem.trusted(poles, B, C, reduced.D, reduced.dt, reduced.output, reduced.outer_names)
