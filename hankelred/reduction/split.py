"""Splitting off the poles that balanced truncation must not touch: unstable ones, and those within `offset`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg as sla

from .._checks import Array, is_discrete
from .._triangular import schur_eigenvalues
from ..errors import InputError, NumericalError
from ..systems import DiagonalSystem, StateSpace


@dataclass(frozen=True)
class Split:
    """A system as the sum of a part that is kept as it is and a stable part.

    ``T = [fixed_T, stable_T]`` and ``Ti = [fixed_Ti; stable_Ti]`` are the block-diagonalising bases of a dense
    system, both None where nothing was split off; for a diagonal system `fixed_states` and `stable_states` are
    the indices.
    """

    fixed: StateSpace | DiagonalSystem
    stable: StateSpace | DiagonalSystem
    bases: tuple[Array, Array] | None = None
    fixed_states: Array | None = None
    stable_states: Array | None = None


def check_offset(offset: float) -> float:
    """Return the distance from the stability boundary within which poles count as unstable."""
    if not isinstance(offset, (int, float, np.floating)) or not 0 <= offset < np.inf:
        raise InputError(f"offset must be a distance from the stability boundary, 0 or more; got {offset!r}.")
    return float(offset)


def split_diagonal(system: DiagonalSystem, offset: float) -> Split:
    """Split a diagonal system by selecting states."""
    unstable = system.instability() >= -offset
    fixed, stable = np.flatnonzero(unstable), np.flatnonzero(~unstable)
    return Split(system.take(fixed), system.take(stable), None, fixed, stable)


def split_dense(system: StateSpace, offset: float) -> Split:
    """Split a system in standard form by an ordered Schur form and a Sylvester equation.

    With the unstable eigenvalues leading, ``Z^H A Z = [[A1, A12], [0, A2]]`` and ``A1 Y - Y A2 = -A12``, the
    basis ``Z [[I, Y], [0, I]]`` decouples the two parts.
    """
    A = system.A
    discrete = is_discrete(system.dt)

    def unstable(re: Any, im: float = 0.0) -> bool:  # SciPy asks with one complex number or with two real ones
        pole = complex(re) + 1j * im
        return bool(abs(pole) >= 1.0 - offset if discrete else pole.real >= -offset)

    kind: Any = "complex" if A.dtype.kind == "c" else "real"
    empty = StateSpace(A[:0, :0], system.B[:0], system.C[:, :0], dt=system.dt)
    if system.n == 0:
        return Split(empty, system)
    schur, Z = sla.schur(A, output=kind)
    kept = sum(unstable(pole) for pole in schur_eigenvalues(schur))
    if kept == 0:  # the Schur form serves the Gramians next
        stable = StateSpace(schur, Z.conj().T @ system.B, system.C @ Z, system.D, dt=system.dt)
        return Split(empty, stable, (Z, Z.conj().T))
    if kept != (counted := sum(unstable(pole) for pole in system.poles())):  # eigenvalues after scaling
        raise NumericalError(
            f"The unstable poles must be the same with and without rounding; got {counted} of A and {kept} of its "
            f"Schur form. The states seem to be in units of very different size: pass scale=True."
        )
    schur, Z, k = sla.schur(A, output=kind, sort=unstable)
    A1, A12, A2 = schur[:k, :k], schur[:k, k:], schur[k:, k:]
    try:
        Y = sla.solve_sylvester(A1, -A2, -A12) if 0 < k < system.n else np.zeros((k, system.n - k))
    except np.linalg.LinAlgError as error:
        raise NumericalError(
            f"The {k} poles beyond offset={offset:.3g} cannot be separated from the others; got a singular Sylvester "
            f"equation. Choose an offset that does not cut through a cluster of poles."
        ) from error
    T = np.hstack([Z[:, :k], Z[:, :k] @ Y + Z[:, k:]])
    Ti = np.vstack([Z[:, :k].conj().T - Y @ Z[:, k:].conj().T, Z[:, k:].conj().T])
    B, C = Ti @ system.B, system.C @ T
    fixed = StateSpace(A1, B[:k], C[:, :k], dt=system.dt)
    stable = StateSpace(A2, B[k:], C[:, k:], system.D, dt=system.dt)
    return Split(fixed, stable, (T, Ti))
