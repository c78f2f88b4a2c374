"""What a reduction does to a second system in the same state coordinates, such as a running average of the first."""

from __future__ import annotations

import numpy as np

from ._checks import Array, double
from .errors import InputError
from .reduction import Reduction
from .systems import DiagonalSystem


def follow(copy: DiagonalSystem, system: DiagonalSystem, reduction: Reduction) -> DiagonalSystem:
    """Reduce a copy that has drifted from a system by the bases that reduce the system.

    With bases ``T`` and ``Ti`` the copy becomes ``(Ti Lam T, Ti B, C T, D)``, whose state matrix is diagonal only for
    the system itself: the poles are its diagonal, right to first order in the distance of the two. An average of
    reduced systems is thereby close to the reduction of the average.

    Parameters
    ----------
    copy : DiagonalSystem
        Of the sizes of `system`.
    system : DiagonalSystem
        The system that was reduced.
    reduction : Reduction
        Its reduction, possibly aligned by `align_states`.

    Returns
    -------
    DiagonalSystem
        In the coordinates of ``reduction.system``; equal to it if `copy` equals `system`. Possibly unstable: ask
        ``is_stable()``.

    Raises
    ------
    InputError
        If the two systems differ in size, time or output.
    """
    if (copy.n, copy.m, copy.p, copy.dt, copy.output) != (system.n, system.m, system.p, system.dt, system.output):
        raise InputError(
            f"The copy must be of the kind and size of the system; got {copy.n} and {system.n} states, "
            f"{copy.m} and {system.m} inputs, {copy.p} and {system.p} outputs. Is it a copy of another layer?"
        )
    new = reduction.system
    drift, B, C = _pole_drift(copy, system), double(copy.B), double(copy.C)
    stored, real, weight = np.arange(new.n), np.zeros(new.n, dtype=bool), np.ones(new.n)
    if copy.output == "real":
        pairs = reduction.order - new.n
        stored = np.concatenate([np.arange(pairs), np.arange(2 * pairs, reduction.order)])
        real = np.arange(new.n) >= pairs
        weight = np.where(real, 1.0, 2.0)  # a stored state stands for its conjugate too
        drift, B, C = np.r_[drift, drift.conj()], np.vstack([B, B.conj()]), np.hstack([C, C.conj()]) / 2
    T, Ti = reduction.T[:, stored], reduction.Ti[stored]
    moved = np.einsum("ij,j,ji->i", Ti, drift, T)
    moved, B, C = (
        np.where(mask, x.real, x) for mask, x in ((real, moved), (real[:, None], Ti @ B), (real, C @ T * weight))
    )
    return _with_moved_poles(new, moved, B, C, copy.D)


def _pole_drift(copy: DiagonalSystem, system: DiagonalSystem) -> Array:
    """Return the differences of the poles, from rates where there are rates: slow poles keep their digits."""
    if copy.rates is None or system.rates is None:
        return double(copy.lam) - double(system.lam)
    return system.lam * np.expm1(copy.rates - system.rates)


def _with_moved_poles(new: DiagonalSystem, moved: Array, B: Array, C: Array, D: Array) -> DiagonalSystem:
    """Return the system with other matrices and its poles moved by so much."""
    if new.rates is None:
        return DiagonalSystem(new.lam + moved, B, C, D, dt=new.dt, output=new.output, labels=new.labels)
    ratio = moved / new.lam
    growth = 0.5 * np.log1p(2 * ratio.real + np.abs(ratio) ** 2)  # log|1 + z| without the rounding of 1 + z
    rates = new.rates + growth + 1j * np.arctan2(ratio.imag, 1 + ratio.real)
    return DiagonalSystem.from_rates(rates, B, C, D, dt=new.dt, output=new.output, labels=new.labels)
