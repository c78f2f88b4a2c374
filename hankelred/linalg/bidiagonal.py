"""The leading part of a singular value decomposition, for the price of all singular values and little more.

``M = Q B P^H`` with B real and bidiagonal takes most of the time of LAPACK's ``svdvals`` and half of its ``svd``. Here
it is kept: it gives all singular values to the accuracy of ``svdvals``, and later the vectors of as many of the
largest as a reduced model needs.

Vectors of B come from the tridiagonal matrix of Golub and Kahan, whose eigenvalues are plus and minus the singular
values [1]_. MRRR finds any number of its eigenvectors in time proportional to it, but two halves of an eigenvector
are singular vectors only where no other singular value is near. So they serve as a subspace, in which a small
decomposition gives the vectors (Rayleigh-Ritz), and a residual says whether the subspace was right.

References
----------
.. [1] G. H. Golub, W. Kahan, "Calculating the singular values and pseudo-inverse of a matrix", SIAM J. Numer. Anal.
   (Ser. B) 2, 1965, pp. 205-224.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg as sla

from ..checks import EPS, Array
from .routines import call_lapack

Triples = tuple[Array, Array, Array]

# Workspace of LAPACK's blocked routines, in columns; their block sizes are 32.
BLOCK = 64

# With more vectors than this share of all, divide and conquer for all of them is as fast from the beginning: at a
# quarter of 300 values both take 13 ms, at a third of 1024 it takes 1.5 times as long.
SHARE = 0.25

# Residual of the leading triples, relative to hsv[0] and per root of the size; MRRR leaves some 10 eps, or misses a
# direction where singular values agree across the edge of the subspace: then it is the distance to them, far more.
RESIDUAL = 100 * EPS


@dataclass(frozen=True, eq=False)
class Bidiagonal:
    """``M = Q B P^H`` as LAPACK stores it; M has at least as many rows as columns."""

    reflectors: Array
    diagonal: Array
    above: Array  # the superdiagonal, with a zero at its end
    tau_q: Array
    tau_p: Array

    def values(self) -> Array:
        """Return all singular values, decreasing, small ones of a graded matrix to their own accuracy (dqds)."""
        d, e, work = self.diagonal.copy(), self.above.copy(), np.empty(4 * len(self.diagonal))
        call_lapack("dlasq1", len(d), d, e, work)
        return d

    def leading(self, count: int) -> Triples | None:
        """Return ``U, hsv, V^H`` of the first `count` values to rounding relative to the largest; None if in doubt."""
        n = len(self.diagonal)
        if not 0 < count <= SHARE * n:
            return None
        subspace = self._leading_subspace(count)
        W, found, Xh = sla.svd(self._times(subspace), full_matrices=False, check_finite=False)
        V = subspace @ Xh.T
        residual = np.linalg.norm(self._times_transposed(W) - V * found)
        if not residual <= RESIDUAL * found[0] * np.sqrt(n):
            return None
        U = np.zeros((len(self.reflectors), count), self.reflectors.dtype, order="F")
        U[:n] = W
        V = np.asfortranarray(V, dtype=self.reflectors.dtype)
        self._multiply("Q", self.tau_q, U)
        self._multiply("P", self.tau_p, V)
        return U, found, V.conj().T

    def _leading_subspace(self, count: int) -> Array:
        """Return orthonormal columns that span the leading right singular vectors of B."""
        n = len(self.diagonal)
        coupling = np.empty(2 * n - 1)
        coupling[0::2], coupling[1::2] = self.diagonal, self.above[:-1]
        _, vectors = sla.eigh_tridiagonal(
            np.zeros(2 * n), coupling, select="i", select_range=(2 * n - count, 2 * n - 1), lapack_driver="stemr"
        )
        return sla.qr(vectors[0::2, ::-1], mode="economic", check_finite=False)[0]

    def _times(self, X: Array) -> Array:
        """Return ``B X``."""
        product = self.diagonal[:, None] * X
        product[:-1] += self.above[:-1, None] * X[1:]
        return product

    def _times_transposed(self, X: Array) -> Array:
        """Return ``B^T X``."""
        product = self.diagonal[:, None] * X
        product[1:] += self.above[:-1, None] * X[:-1]
        return product

    def _multiply(self, factor: str, tau: Array, X: Array) -> None:
        """Overwrite X by ``Q X`` or ``P X``."""
        rows, columns = self.reflectors.shape
        name = "zunmbr" if X.dtype.kind == "c" else "dormbr"
        inner = columns if factor == "Q" else rows
        work = np.empty(BLOCK * X.shape[1], X.dtype)
        call_lapack(name, factor, "L", "N", *X.shape, inner, self.reflectors, rows, tau, X, len(X), work, len(work))


def bidiagonalised(M: Array) -> Bidiagonal:
    """Return the bidiagonal form of a float64 or complex128 matrix that has at least as many rows as columns, and one.

    Raises
    ------
    LinAlgError
        If LAPACK does not accept the matrix.
    """
    reflectors = np.array(M, order="F")
    rows, columns = M.shape
    diagonal, above = np.empty(columns), np.zeros(columns)
    tau_q, tau_p = np.empty(columns, M.dtype), np.empty(columns, M.dtype)
    work = np.empty(BLOCK * (rows + columns), M.dtype)
    name = "zgebrd" if M.dtype.kind == "c" else "dgebrd"
    call_lapack(name, rows, columns, reflectors, rows, diagonal, above, tau_q, tau_p, work, len(work))
    return Bidiagonal(reflectors, diagonal, above, tau_q, tau_p)
