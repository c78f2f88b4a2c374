"""From factors to bases, and from bases to the small matrices they make of a system.

`Model` is what every method here reads: B, C, D and the product of A with a few columns. A dense system brings a
matrix product, a diagonal one a multiplication by lam, so no n x n matrix is formed that was not given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg as sla

from ._bidiagonal import Triples
from ._checks import Array, double, is_discrete
from .systems import DiagonalSystem, StateSpace


@dataclass(frozen=True)
class Model:
    """A stable system as the reduction sees it: ``times_A(X) = A X``, B, C, D, dt.

    `shift` is subtracted from A throughout: 1 for diagonal systems given by rates, whose slow poles keep their
    digits in ``A - I = diag(expm1(z))`` only; 0 otherwise.
    """

    times_A: Callable[[Array], Array]
    B: Array
    C: Array
    D: Array
    dt: float | bool
    shift: float = 0.0


@dataclass(frozen=True)
class Small:
    """The reduced matrices ``(A, B, C, D)``; A lacks `shift` times the identity."""

    A: Array
    B: Array
    C: Array
    D: Array
    shift: float


def model_of(system: StateSpace | DiagonalSystem) -> Model:
    """Read a system; a diagonal one with real output in the real coordinates of ``to_state_space``."""
    if isinstance(system, DiagonalSystem):
        return _diagonal_model(system)
    G = system.standard()
    return Model(lambda X: G.A @ X, G.B, G.C, G.D, G.dt)


def _diagonal_model(system: DiagonalSystem) -> Model:
    lam, B, C, D = (double(x) for x in (system.lam, system.B, system.C, system.D))
    shift = 0.0
    if system.rates is not None:
        lam, shift = np.expm1(double(system.rates)), 1.0
    if system.output == "complex":
        return Model(lambda X: lam[:, None] * X, B, C, D, system.dt, shift)
    re, im = lam.real[:, None], lam.imag[:, None]

    def rotate(X: Array) -> Array:
        upper, lower = np.split(X, 2)
        return np.vstack([re * upper - im * lower, im * upper + re * lower])

    B = np.sqrt(2) * np.vstack([B.real, B.imag])
    C = np.sqrt(0.5) * np.hstack([C.real, -C.imag])
    return Model(rotate, B, C, D, system.dt, shift)


def square_root_bases(S: Array, R: Array, triples: Triples, kept: slice) -> tuple[Array, Array]:
    """Compute the two bases of square-root balanced truncation.

    Parameters
    ----------
    S : (n, k) ndarray
        Controllability factor, ``P = S S^H``.
    R : (l, n) ndarray
        Observability factor, ``Q = R^H R``.
    triples : tuple of ndarray
        ``U, hsv, V^H`` with ``R S = U diag(hsv) V^H``.
    kept : slice
        States to keep: the first `order` of them, at most the numerical rank of ``R S``.

    Returns
    -------
    T, Ti : (n, order) and (order, n) ndarray
        Bases with ``Ti T = I``; the truncated model is ``(Ti A T, Ti B, C T, D)`` [1]_.

    References
    ----------
    .. [1] M. S. Tombs, I. Postlethwaite, "Truncated balanced realization of a stable non-minimal state-space
       system", Int. J. Control 46, 1987, pp. 1319-1330.
    """
    U, hsv, Vh = triples
    root = np.sqrt(hsv[kept])
    T = S @ (Vh[kept].conj().T / root)
    Ti = (U[:, kept] / root).conj().T @ R
    return T, Ti


def balancing_free_bases(S: Array, R: Array, triples: Triples, kept: slice) -> tuple[Array, Array]:
    """Compute bases of the subspaces of `square_root_bases` whose T has orthonormal columns.

    With orthonormal bases V and W of the two subspaces, ``T = V`` and ``Ti = (W^H V)^-1 W^H`` [1]_. The model is
    the same up to a similarity and not balanced; nothing is divided by small Hankel singular values on the way.

    References
    ----------
    .. [1] A. Varga, "Balancing free square-root algorithm for computing singular perturbation approximations",
       Proc. 30th IEEE CDC, 1991, pp. 1062-1065.
    """
    U, _, Vh = triples
    V = sla.qr(S @ Vh[kept].conj().T, mode="economic")[0]
    W = sla.qr(R.conj().T @ U[:, kept], mode="economic")[0]
    if V.shape[1] == 0:
        return V, W.conj().T
    return V, sla.solve(W.conj().T @ V, W.conj().T)


def project(model: Model, T: Array, Ti: Array) -> Small:
    """Return the reduced matrices of a pair of bases."""
    return Small(Ti @ model.times_A(T), Ti @ model.B, model.C @ T, model.D, model.shift)


def residualise(balanced: Small, order: int, dt: float | bool) -> Small:
    """Return the singular perturbation of a balanced model, which matches it at s = 0 or z = 1.

    The states after the first `order` follow the others without delay: ``A11 - A12 A22^-1 A21`` in continuous
    time [1]_, the same with ``A22 - I`` in discrete time.

    References
    ----------
    .. [1] Y. Liu, B. D. O. Anderson, "Singular perturbation approximation of balanced systems", Int. J. Control
       50, 1989, pp. 1379-1405.
    """
    kept, fast = slice(None, order), slice(order, None)
    A22 = balanced.A[fast, fast]
    if len(A22) == 0:
        return balanced
    if is_discrete(dt):
        A22 = A22 - (1.0 - balanced.shift) * np.eye(len(A22))
    follow = sla.solve(A22, np.hstack([balanced.A[fast, kept], balanced.B[fast]]))
    states, inputs = np.split(follow, [order], axis=1)
    return Small(
        balanced.A[kept, kept] - balanced.A[kept, fast] @ states,
        balanced.B[kept] - balanced.A[kept, fast] @ inputs,
        balanced.C[:, kept] - balanced.C[:, fast] @ states,
        balanced.D - balanced.C[:, fast] @ inputs,
        balanced.shift,
    )
