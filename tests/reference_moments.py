"""Slow twin of hankelred.training: gradients of a dense discrete system by simulation and its adjoint."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.complex128]


class DenseGradient(NamedTuple):
    """Gradients ``dL/dRe + i dL/dIm`` with respect to the matrices of a dense system."""

    A: Array
    B: Array
    C: Array


def output(A: Array, B: Array, C: Array, u: Array, *, real: bool) -> tuple[Array, Array]:
    """Simulate ``x_t = A x_{t-1} + B u_t, y_t = C x_t`` from rest; u is (length, m), y its real part if `real`."""
    x = np.zeros((len(u) + 1, len(A)), dtype=complex)
    for t in range(len(u)):
        x[t + 1] = A @ x[t] + B @ u[t]
    y = x[1:] @ C.T
    return (y.real if real else y), x


def gradient(A: Array, B: Array, C: Array, u: Array, target: Array, *, real: bool) -> DenseGradient:
    """Differentiate ``1/2 sum |y - target|^2``: the adjoint runs backwards, ``p_t = C^H e_t + A^H p_{t+1}``."""
    y, x = output(A, B, C, u, real=real)
    error = y - target
    g = DenseGradient(np.zeros_like(A, dtype=complex), np.zeros_like(B, dtype=complex), np.zeros_like(C, dtype=complex))
    adjoint = np.zeros(len(A), dtype=complex)
    for t in reversed(range(len(u))):
        adjoint = C.conj().T @ error[t] + A.conj().T @ adjoint
        g.A[...] += np.outer(adjoint, x[t].conj())
        g.B[...] += np.outer(adjoint, u[t].conj())
        g.C[...] += np.outer(error[t], x[t + 1].conj())
    return g
