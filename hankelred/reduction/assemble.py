"""Putting a reduced system together: states kept as they are, coordinates, labels and precision."""

from __future__ import annotations

import numpy as np

from .._checks import Array
from .._system_base import Labels
from ..systems import DiagonalSystem, StateSpace
from .split import Split


def surviving_labels(labels: Labels) -> Labels:
    """Return the labels that survive a change of states."""
    return Labels(labels.name, labels.inputs, labels.outputs)


def augmented(T: Array, Ti: Array) -> tuple[Array, Array]:
    """Move bases from the 2n real coordinates to ``[x; conj(x)]``, by the unitary that relates them."""
    upper, lower = np.split(T, 2)
    left, right = np.split(Ti, 2, axis=1)
    half = np.sqrt(0.5)
    T = half * np.vstack([upper + 1j * lower, upper - 1j * lower])
    Ti = half * np.hstack([left - 1j * right, left + 1j * right])
    return T, Ti


def insert_states(
    T: Array, Ti: Array, split: Split, full: DiagonalSystem, reduced: DiagonalSystem
) -> tuple[Array, Array]:
    """Extend bases of the stable part by the states kept as they are, in front of each kind of coordinate."""
    fixed, stable, n = split.fixed_states, split.stable_states, full.n
    assert fixed is not None
    assert stable is not None
    if len(fixed) == 0:
        return T, Ti
    copies = 2 if full.output == "real" else 1
    k, pairs = len(fixed), T.shape[1] - reduced.n if full.output == "real" else 0
    size = copies * k + T.shape[1]
    # where the fixed and the reduced columns go: [fixed, pairs, conj fixed, conj pairs, reals]
    if copies == 1:
        at_fixed, at_rest = np.arange(k), np.arange(k, size)
    else:
        at_fixed = np.concatenate([np.arange(k), k + pairs + np.arange(k)])
        at_rest = np.setdiff1d(np.arange(size), at_fixed)
    rows_fixed = np.concatenate([fixed + n * c for c in range(copies)])
    rows_stable = np.concatenate([stable + n * c for c in range(copies)])
    wide_T = np.zeros((copies * n, size), dtype=T.dtype)
    wide_Ti = np.zeros((size, copies * n), dtype=Ti.dtype)
    wide_T[rows_fixed, at_fixed] = wide_Ti[at_fixed, rows_fixed] = 1.0
    wide_T[np.ix_(rows_stable, at_rest)] = T
    wide_Ti[np.ix_(at_rest, rows_stable)] = Ti
    return wide_T, wide_Ti


def append(fixed: DiagonalSystem, reduced: DiagonalSystem, full: DiagonalSystem) -> DiagonalSystem:
    """Put the states kept as they are in front of the reduced ones."""
    labels = surviving_labels(full.labels)
    B, C = np.vstack([fixed.B, reduced.B]), np.hstack([fixed.C, reduced.C])
    if reduced.rates is not None and fixed.rates is not None:
        z = np.concatenate([fixed.rates, reduced.rates])
        return DiagonalSystem.from_rates(z, B, C, reduced.D, dt=full.dt, output=full.output, labels=labels)
    lam = np.concatenate([fixed.lam, reduced.lam])
    return DiagonalSystem(lam, B, C, reduced.D, dt=full.dt, output=full.output, labels=labels)


def single_array(x: Array) -> Array:
    """Return an array rounded to single precision."""
    return x.astype(np.complex64 if x.dtype.kind == "c" else np.float32)


def single(system: StateSpace | DiagonalSystem) -> StateSpace | DiagonalSystem:
    """Return a system rounded to single precision."""
    B, C, D = (single_array(x) for x in (system.B, system.C, system.D))
    if isinstance(system, StateSpace):
        return StateSpace(single_array(system.A), B, C, D, system.dt, labels=system.labels)
    kind = {"dt": system.dt, "output": system.output, "labels": system.labels}
    if system.rates is not None:
        return DiagonalSystem.from_rates(single_array(system.rates), B, C, D, **kind)
    return DiagonalSystem(single_array(system.lam), B, C, D, **kind)
