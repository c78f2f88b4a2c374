"""Whether all poles are stable, by less work than a Schur form: a factorisation, or a random vector that decays.

Low-rank factors of Gramians do not tell. A mode that no input reaches, or no output sees, leaves no trace in them,
stable or not. The two tests here look at all modes; where they leave it open, eigenvalues tell.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.linalg import lapack

from ..checks import Array
from .adi import _Side
from .hessenberg import HessenbergForm
from .pencils import Pencil

# A vector of independent normal entries has a component below this in any one direction with a probability below this.
UNSEEN = 1e-6

# What is left of the vector after all shifts once for them to be taken once more.
HALFWAY = 1e-3

# Steps of inverse iteration, and the residual, relative to A, with which it has found an eigenvalue.
INVERSE_STEPS, SETTLED = 3, 1e-12


def is_contraction(A: Array, discrete: bool, margin: float) -> bool:
    """Tell whether the energy ``|x|^2`` falls along every motion, so that all poles are stable by more than `margin`.

    A Cholesky factor of ``-(A + A^H) / 2 - margin I``, or of ``(1 - margin)^2 I - A A^H`` in discrete time, settles
    it: the numerical range, and with it every pole of every matrix nearby, lies on the stable side. Many stable
    matrices are no contractions.

    Examples
    --------
    >>> import numpy as np
    >>> is_contraction(np.array([[-1.0, 5.0], [-5.0, -1.0]]), False, 0.5)
    True
    >>> is_contraction(np.array([[-1.0, 5.0], [0.0, -1.0]]), False, 0.5)
    False
    """
    symmetric = A @ A.conj().T if discrete else A + A.conj().T
    symmetric *= -1.0 if discrete else -0.5
    symmetric.flat[:: len(A) + 1] += (1 - margin) ** 2 if discrete else -margin
    potrf = lapack.zpotrf if A.dtype.kind == "c" else lapack.dpotrf
    return bool((symmetric.diagonal().real > 0).all()) and potrf(symmetric.T, clean=0, overwrite_a=1)[1] == 0


def decay(pencil: Pencil, shifts: Sequence[complex]) -> float:
    """Show by one random vector that all poles of a pencil are stable; return what that says of their margin.

    Along the recursion of `adi` for C the component of the residual factor W in a right eigenvector is multiplied by
    ``(lam - conj(p)) / (lam + p)`` for every shift p, whose modulus is below 1 for the stable eigenvalues lam only. It
    can vanish in the end for an unstable one only if it was as small in the beginning, which `UNSEEN` makes unlikely
    of a random vector. One vector and shifts at hand make that cheap.

    Parameters
    ----------
    pencil : Pencil
        With E a positive multiple of the identity or, in discrete time, `Cayley`'s of such a one.
    shifts : sequence of complex
        Those with which the recursion has converged for B and C.

    Returns
    -------
    float
        Infinite if the vector has not vanished: nothing is said then. Otherwise ``w^H X w`` for the vector w and the
        solution of ``A X E^H + E X A^H + I = 0``; its mean, the trace of X, is at least ``|X|_2``, and the distance of
        A to the next unstable matrix is at least ``1 / (2 |X|_2)``.
    """
    rng = np.random.default_rng(0)
    w = rng.standard_normal((pencil.n, 1))
    if not pencil.real:
        w = w + 1j * rng.standard_normal((pencil.n, 1))
    side, left = _Side(pencil, w, adjoint=True), np.inf
    for _ in range(2):
        for shift in shifts:
            side.extend(pencil.factor(np.conj(shift)).solve_adjoint(side.W), shift)
            left = float(np.linalg.norm(side.W))
            if left <= UNSEEN:
                return float(np.linalg.norm(side.columns)) ** 2
        if not left <= HALFWAY:
            break
    return np.inf


def has_pole_beyond(form: HessenbergForm, columns: Array, discrete: bool, margin: float) -> bool:
    """Tell whether a pole that columns of a low-rank factor lead to is not stable by more than a margin.

    Where a pole is next to the boundary its modes are the largest columns of the factor, for they decay last. Some
    steps of inverse iteration from these two end at an eigenvalue, which costs less than all of them.

    Parameters
    ----------
    form : HessenbergForm
        Of A.
    columns : (n, k) ndarray
        A factor of the controllability Gramian, in the coordinates of the form.
    discrete : bool
        Whether time is discrete.
    margin : float
        Distance from the stability boundary.

    Returns
    -------
    bool
        True if one was found. That none was found says nothing.
    """
    largest = np.argsort(np.linalg.norm(columns, axis=0))[-2:]
    if not np.isfinite(columns[:, largest]).all():
        return False
    U = np.linalg.qr(columns[:, largest])[0]
    values, vectors = np.linalg.eig(U.conj().T @ form.times(U))
    for pole, vector in zip(values, vectors.T, strict=True):
        x, size = (U @ vector)[:, None], np.inf
        for _ in range(INVERSE_STEPS):
            y = form.solve(-pole, x.astype(np.complex128))
            size = float(np.linalg.norm(y))
            if not 0 < size < np.inf:
                break
            x = y / size
            pole = (x.conj().T @ form.times(x))[0, 0]
        settled = np.linalg.norm(form.times(x) - pole * x) <= SETTLED * np.linalg.norm(form.H)
        if settled and (abs(pole) - 1.0 if discrete else pole.real) >= -margin:
            return True
    return False
