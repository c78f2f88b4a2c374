"""Bringing the reduced model of a diagonal system back to diagonal form, with guards.

A reduced A is a full matrix. Its eigenvectors X make it diagonal again; they can be ill conditioned, and then no
diagonal system of that order is a faithful copy. That is an error here, never a silently different model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg as sla

from .._checks import Array, is_discrete
from ..errors import DiagonalisationError
from ..projection import Small
from ..systems import DiagonalSystem

# Transforming with X costs a relative error of about cond(X) eps: 1e-8 at this limit, far below the truncation
# error of any useful cut and below single precision.
CONDITION_LIMIT = 1e8


@dataclass(frozen=True)
class Diagonalised:
    """A reduced diagonal system and the eigenvector basis that led to it.

    `X` and `Xi` have one column and row per reduced state, ordered pairs, their conjugates, real poles where the
    output is real; ``Xi X = I``.
    """

    system: DiagonalSystem
    X: Array
    Xi: Array


def rediagonalise(small: Small, like: DiagonalSystem) -> Diagonalised:
    """Diagonalise reduced matrices into a system with the time, output and representation of `like`.

    Eigenvectors are scaled so that every state has input and output rows of one norm.

    Raises
    ------
    DiagonalisationError
        If the eigenvectors are too ill conditioned, or a pole is not inside the stability region.
    """
    poles, X = sla.eig(small.A) if len(small.A) else (np.zeros(0, dtype=complex), np.zeros((0, 0)))
    if like.output == "real":
        pairs, reals = np.flatnonzero(poles.imag > 0), np.flatnonzero(poles.imag == 0)
        X = np.hstack([X[:, pairs], X[:, pairs].conj(), X[:, reals]])
        poles = np.concatenate([poles[pairs], poles[pairs].conj(), poles[reals]])
        stored = np.concatenate([np.arange(len(pairs)), np.arange(2 * len(pairs), len(poles))])
        doubled = np.where(np.arange(len(stored)) < len(pairs), 2.0, 1.0)
    else:
        stored, doubled = np.arange(len(poles)), np.ones(len(poles))
        if like.dtype.kind != "c" and np.all(poles.imag == 0):
            poles, X = poles.real, X.real  # real in, real out where the reduced poles allow it
    _check_condition(X)
    B, C = sla.solve(X, small.B.astype(X.dtype)) if len(X) else X @ small.B, small.C @ X
    scale = _balancing_scale(B, C)
    X, B, C = X * scale, B / scale[:, None], C * scale
    Xi = sla.inv(X) if len(X) else X
    system = _diagonal_system(poles[stored], B[stored], C[:, stored] * doubled, small, like)
    if not system.is_stable():
        raise DiagonalisationError(
            f"The reduced poles must be stable; got one {np.max(system.instability()):.2e} beyond the boundary. "
            f"Choose a neighbouring order: a cut through nearly equal hsv can do this."
        )
    return Diagonalised(system, X, Xi)


def _check_condition(X: Array) -> None:
    condition = float(np.linalg.cond(X)) if len(X) else 1.0
    if not condition <= CONDITION_LIMIT:
        raise DiagonalisationError(
            f"The reduced state matrix of order {len(X)} is too close to a defective one to be diagonalised; got "
            f"eigenvectors of condition {condition:.1e} (limit {CONDITION_LIMIT:.0e}). Choose another order, or "
            f"reduce sys.to_state_space(), which need not stay diagonal."
        )


def _balancing_scale(B: Array, C: Array) -> Array:
    """Return the factors on the states that give each row of B the norm of its column of C."""
    rows, columns = np.linalg.norm(B, axis=1), np.linalg.norm(C, axis=0)
    linked = (rows > 0) & (columns > 0)
    return np.sqrt(np.divide(rows, columns, out=np.ones(len(rows)), where=linked), where=linked, out=np.ones(len(rows)))


def _diagonal_system(poles: Array, B: Array, C: Array, small: Small, like: DiagonalSystem) -> DiagonalSystem:
    """Build the reduced system, by rates where `like` has them and no pole is 0."""
    D, labels = small.D, like.labels
    if like.output == "real":
        real_poles = poles.imag == 0
        B, C = np.where(real_poles[:, None], B.real, B), np.where(real_poles, C.real, C)
        D = D.real
    lam = poles + small.shift
    if like.rates is not None and is_discrete(like.dt) and np.all(lam != 0):
        rates = log1p(poles) if small.shift else np.log(lam.astype(complex))
        return DiagonalSystem.from_rates(rates, B, C, D, dt=like.dt, output=like.output, labels=labels)
    return DiagonalSystem(lam, B, C, D, dt=like.dt, output=like.output, labels=labels)


def log1p(x: Array) -> Array:
    """Return ``log(1 + x)`` for complex x with its real part right to the last digits (NumPy's is not)."""
    x = x.astype(complex)
    return 0.5 * np.log1p(2 * x.real + x.real**2 + x.imag**2) + 1j * np.arctan2(x.imag, 1 + x.real)


def working_orders(works: Callable[[int], bool], order: int, lowest: int, highest: int) -> list[int]:
    """Return the orders next to `order`, below and above, that can be diagonalised."""
    below = next((k for k in range(order - 1, lowest - 1, -1) if works(k)), None)
    above = next((k for k in range(order + 1, highest + 1) if works(k)), None)
    return [k for k in (below, above) if k is not None]
