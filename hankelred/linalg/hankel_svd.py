"""The product of two Gramian factors, ``R S = U diag(hsv) V^H``: its values, vectors and bases. The only place.

How that product is formed and decomposed decides how many digits the small Hankel singular values keep. Factors come
graded, large columns of S and rows of R first; then LAPACK's singular values without vectors (dqds) and its implicit
QR driver (gesvd) keep the digits of every value, divide and conquer those of the large ones.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import scipy.linalg as sla
from scipy.linalg import lapack

from ..checks import EPS, Array, check_result
from .bidiagonal import Triples, bidiagonalised
from .compiled import Kernels
from .rows import HERE, RowSplit

kernels = Kernels("hankelred.linalg._dense_kernels")

# Columns of a dense factor below this share of the largest are noise: an entry's own rounding error is half of eps.
# With both factors cut here, Hankel singular values down to 1e-34 of the largest are still resolved.
NOISE = EPS / 16

# Singular vectors of values above this share of the largest lose at most four of their sixteen digits to the faster
# algorithms; below it they are computed by the one that keeps the digits of every value.
GRADED_BELOW = 1e-4

# Up to this size LAPACK's divide and conquer does not divide and keeps the digits of every singular value.
UNDIVIDED = 25

# Up to this size the implicit QR driver costs no more than anything else, values and vectors at once.
SMALL = 64

# Columns that LAPACK's QR takes at once.
BLOCK = 32


def graded(S: Array, noise: float = NOISE) -> Array:
    """Return a factor of the same Gramian with columns of falling size, those that are rounding noise left out.

    A pivoted QR of ``S^H``: without it the product ``R S`` buries the small Hankel singular values under the
    rounding errors of the large ones.
    """
    if S.size == 0:
        return S
    n = len(S)
    geqp3 = lapack.zgeqp3 if S.dtype.kind == "c" else lapack.dgeqp3
    triangle, pivots, *_ = geqp3(S.conj().T, lwork=2 * n + BLOCK * (n + 1))
    return np.asarray(kernels.graded_factor(triangle, pivots, noise))  # S S^H = P triangle^H triangle P^H


class HankelSVD:
    """``R S = U diag(hsv) V^H``: the values at once, vectors when they are asked for.

    With `rows` split over processes, S holds the own rows and R the own columns; bases are whole.

    Attributes
    ----------
    values : (k,) ndarray
        Singular values, decreasing; small ones of graded factors keep their digits.
    """

    def __init__(self, S: Array, R: Array, rows: RowSplit = HERE) -> None:
        self.S, self.R, self._rows = S, R, rows
        product = self._product()
        check_result("Hankel singular values", product)
        self._small = max(product.shape, default=0) <= SMALL
        self._wide = product.shape[0] < product.shape[1]
        if product.size == 0:
            self.values = np.zeros(0)
            return
        if self._small:
            self.values = self._implicit(product)[1]
        else:
            self._form = bidiagonalised(product.conj().T if self._wide else product)
            self.values = self._form.values()
        self.values = rows.every(self.values)[0]
        if not self.values[0] < np.inf:  # where they overflow, the largest does
            check_result("Hankel singular values", self.values)

    @property
    def size(self) -> float:
        """Norms of both factors, multiplied."""
        norms = self._rows.every((np.linalg.norm(self.S), np.linalg.norm(self.R)))
        return float(np.prod(np.linalg.norm(norms, axis=0)))

    def _product(self) -> Array:
        return self._rows.total(self.R @ self.S)

    def triples(self, count: int) -> Triples:
        """Return ``U, hsv, V^H`` for the first `count` singular values, or for more.

        Vectors of values above `GRADED_BELOW` are right to rounding relative to the largest value; where smaller
        ones are asked for, all are right relative to their own.
        """
        hsv = self.values
        if not hsv.size or count == 0:
            return np.zeros((len(self.R), 0)), np.zeros(0), np.zeros((0, self.S.shape[1]))
        if self._small or hsv[count - 1] < GRADED_BELOW * hsv[0]:
            return self._graded
        found = self._form.leading(count)
        if found is None:
            return self._fast
        U, hsv, Vh = found
        return (Vh.conj().T, hsv, U.conj().T) if self._wide else found

    @cached_property
    def _graded(self) -> Triples:
        return self._implicit(self._product())

    def _implicit(self, product: Array) -> Triples:
        """Return the triples that implicit QR finds, and keep them."""
        gesvd = lapack.zgesvd if product.dtype.kind == "c" else lapack.dgesvd
        U, hsv, Vh, info = gesvd(product, full_matrices=0)
        if info:
            raise np.linalg.LinAlgError(f"LAPACK's gesvd must converge; got info={info}.")
        self._graded = U, hsv, Vh
        return self._graded

    @cached_property
    def _fast(self) -> Triples:
        return sla.svd(self._product(), full_matrices=False, lapack_driver="gesdd")  # divide and conquer

    def bases(self, kept: slice, count: int) -> tuple[Array, Array]:
        """Compute the two bases of square-root balanced truncation for some of the first `count` states.

        ``T = S V hsv^-1/2`` and ``Ti = hsv^-1/2 U^H R``, so that ``Ti T = I`` [1]_. The largest entry of each column
        of U is positive, so that equal questions have equal answers whatever was asked before.

        References
        ----------
        .. [1] M. S. Tombs, I. Postlethwaite, "Truncated balanced realization of a stable non-minimal state-space
           system", Int. J. Control 46, 1987, pp. 1319-1330.
        """
        U, hsv, Vh = self.triples(count)
        U = U[:, kept]
        unit = kernels.phases(U, hsv[kept])
        T, Ti = self.S @ (Vh[kept].conj().T * unit), (U * unit).conj().T @ self.R
        return self._rows.whole(T), self._rows.whole(Ti.T).T


def batched_products(S: Array, R: Array, real: bool) -> Array:
    """Return ``R S`` of many pairs of factors, or its real part, which holds what conjugate halves make together."""
    return (R @ S).real if real else R @ S


def batched_vectors(M: Array, hsv: Array, wanted: Array) -> tuple[Array, Array]:
    """Return singular vectors of many products, with the digits of small values where so many are wanted."""
    U, _, Vh = np.linalg.svd(M)
    if M.shape[1] > UNDIVIDED:
        least = np.take_along_axis(hsv, np.maximum(wanted - 1, 0)[:, None], axis=1)[:, 0]
        for i in np.flatnonzero(least < GRADED_BELOW * hsv[:, 0]):
            U[i], _, Vh[i] = sla.svd(M[i], lapack_driver="gesvd")
    return U, Vh


def padded(values: Array, order: int) -> Array:
    """Return `order` Hankel singular values: zeros appended where the factors are thin."""
    hsv = np.zeros(order)
    found = values[:order]
    hsv[: len(found)] = found
    return hsv


def norm_estimate(S: Array) -> float:
    """Estimate the spectral norm of a factor from below, to four digits of a small one and to some per cent of others.

    Infinite where an entry is not finite.
    """
    return float(kernels.power_norm(S if S.flags.c_contiguous else np.ascontiguousarray(S.T))) if S.size else 0.0


def real_pair(S: Array, R: Array, divide_and_conquer: bool) -> tuple[Array, Array]:
    """Return real factors of real Gramians for complex ones in real coordinates.

    A pole next to its conjugate makes a pair of columns nearly dependent, while the unpaired elimination of both is as
    accurate as ever; only its factors are not real. But a singular vector of a simple hsv is real up to its phase: so
    balance first, ``R S = U hsv V^H``, and turn the phases of ``S V`` and ``U^H R``.
    """
    if min(S.shape[1], len(R)) > 0:
        U, _, Vh = sla.svd(R @ S, lapack_driver="gesdd" if divide_and_conquer else "gesvd")
        S, R = S @ Vh.conj().T, U.conj().T @ R
    return _real_columns(S), _real_columns(R.T).T


def _real_columns(S: Array) -> Array:
    """Return a real factor of the real matrix ``S S^H``, column by column where each is real up to a phase.

    Neighbours that are not, which belong to equal singular values, are replaced together by as many real ones.
    """
    phase = np.sqrt((S * S).sum(axis=0))
    modulus = np.abs(phase)
    S = S * np.where(modulus > 0, modulus, 1.0) / np.where(modulus > 0, phase, 1.0)
    mixed = np.linalg.norm(S.imag, axis=0) > 1e-7 * np.linalg.norm(S, axis=0)  # its square is dropped with Im S
    out = S.real.copy()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mixed, [False]])))
    for start, stop in edges.reshape(-1, 2):
        group = np.hstack([S[:, start:stop].real, S[:, start:stop].imag])
        left, s, _ = sla.svd(group, full_matrices=False, lapack_driver="gesvd")
        out[:, start:stop] = (left * s)[:, : stop - start]
    return out
