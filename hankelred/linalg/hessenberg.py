"""Hessenberg form of a dense matrix: shifted solves in ``O(n^2)``, eigenvalues, and the Schur form it leads to.

A Hessenberg form takes about a quarter of the time of a Schur form, and a system of equations with it, whatever the
shift, as long as reading it [1]_. So it is all that the low-rank recursion of `adi` needs of a dense matrix. Should
that fail, the Schur form begins with the Hessenberg form anyway, and nothing of it was in vain.

References
----------
.. [1] G. Henry, "The shifted Hessenberg system solve computation", Cornell Theory Center report CTC94TR163, 1994.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from scipy.linalg import blas, lapack

from ..checks import Array
from ..errors import NumericalError
from .compiled import Kernels
from .routines import call_lapack

kernels = Kernels("hankelred.linalg._hessenberg_kernels")

# Columns that LAPACK's blocked routines take at once.
BLOCK = 32


class HessenbergForm:
    """``A = Z H Z^H`` with H zero below its subdiagonal and Z unitary, kept as reflectors.

    Parameters
    ----------
    A : (n, n) ndarray
        In balanced units, float64 or complex128, n at least 1.

    Attributes
    ----------
    n : int
        Order.
    real : bool
        Whether A is real.

    Examples
    --------
    >>> import numpy as np
    >>> A = np.array([[-1.0, 2.0, 0.0], [1.0, -3.0, 1.0], [2.0, 0.0, -2.0]])
    >>> form, b = HessenbergForm(A), np.ones((3, 1))
    >>> x = form.rotated(form.solve(0.5, form.rotated(b, adjoint=True)))
    >>> bool(np.allclose(A @ x + 0.5 * x, b))
    True
    """

    def __init__(self, A: Array) -> None:
        self.n, self.real = len(A), A.dtype.kind == "f"
        gehrd = lapack.dgehrd if self.real else lapack.zgehrd
        self._reflectors, self._tau, _ = gehrd(A, lwork=(BLOCK + 1) * self.n)

    @cached_property
    def H(self) -> Array:
        """The Hessenberg matrix, (n, n), in Fortran's order."""
        return np.asfortranarray(np.triu(self._reflectors, -1))

    @cached_property
    def _dual(self) -> Array:
        """The columns of ``J H^H J``, J the exchange matrix, which is a Hessenberg matrix again."""
        return np.ascontiguousarray(self._reflectors[::-1, ::-1]).conj()

    def rotated(self, X: Array, adjoint: bool = False) -> Array:
        """Return ``Z X``, or ``Z^H X``, for an (n, k) array."""
        if self.real and X.dtype.kind == "c":
            re, im = np.hsplit(self.rotated(np.hstack([X.real, X.imag]), adjoint), 2)
            return re + 1j * im
        out = np.array(X, dtype=self._tau.dtype, order="F")
        if out.size and self.n > 1:
            name, turn = ("dormhr", "T") if self.real else ("zunmhr", "C")
            work = np.empty(2 * BLOCK * (out.shape[1] + BLOCK), out.dtype)
            call_lapack(
                name, "L", turn if adjoint else "N", *out.shape, 1, self.n,
                self._reflectors, self.n, self._tau, out, self.n, work, len(work),
            )  # fmt: skip
        return out

    def times(self, X: Array, adjoint: bool = False) -> Array:
        """Return ``H X``, or ``H^H X``, for an (n, k) array: a triangular product and the subdiagonal."""
        if self.n == 1 or (self.real and X.dtype.kind == "c"):
            return np.asarray((self.H.conj().T if adjoint else self.H) @ X)
        trmm = blas.dtrmm if self.real else blas.ztrmm
        product = trmm(1.0, self._reflectors, X, trans_a=2 * adjoint)
        below = np.diagonal(self._reflectors, -1)[:, None]
        if adjoint:
            product[:-1] += below.conj() * X[1:]
        else:
            product[1:] += below * X[:-1]
        return np.asarray(product)

    def solve(self, p: complex, X: Array) -> Array:
        """Return ``(H + p I)^-1 X`` for an (n, k) array."""
        return self._solve(self._reflectors.T, p, X.T).T

    def solve_adjoint(self, p: complex, X: Array) -> Array:
        """Return ``(H + p I)^-H X`` for an (n, k) array."""
        return self._solve(self._dual, np.conj(p), X[::-1].T)[:, ::-1].T

    def _solve(self, columns: Array, p: complex, X: Array) -> Array:
        """Solve for the rows of X with the Hessenberg matrix of these columns."""
        if self.real and (p.imag != 0 or X.dtype.kind == "c"):
            re, im = np.array(X.real, order="C"), np.array(X.imag, order="C")
            kernels.solve_complex_shift(columns, complex(p), re, im)
            return re + 1j * im
        out = np.array(X, dtype=columns.dtype, order="C")
        kernels.solve_shifted(columns, float(p.real) if self.real else complex(p), out)
        return out

    def eigenvalues(self) -> Array:
        """Return the eigenvalues of A, without a Schur form.

        Raises
        ------
        NumericalError
            If the QR iteration does not converge.
        """
        return self._iterate("E", "N", np.empty((1, 1), self._tau.dtype))[1]

    def schur(self) -> tuple[Array, Array, Array]:
        """Return T, Z and the eigenvalues of the Schur form ``A = Z T Z^H``, real if A is.

        Raises
        ------
        NumericalError
            If the QR iteration does not converge.
        """
        orghr = lapack.dorghr if self.real else lapack.zunghr
        Z = np.ones((1, 1), self._tau.dtype)  # with one state there is no reflector, and SciPy refuses none
        if self.n > 1:
            Z = np.asfortranarray(orghr(self._reflectors, self._tau, lwork=(BLOCK + 1) * self.n)[0])
        T, poles = self._iterate("S", "V", Z)
        return T, Z, poles

    def _iterate(self, job: str, vectors: str, Z: Array) -> tuple[Array, Array]:
        """Return what QR iterations make of H, and its eigenvalues; Z is multiplied by them from the right."""
        T, n, work = self.H.copy(order="F"), self.n, np.empty((BLOCK + 1) * self.n, self._tau.dtype)
        poles = (np.empty(n), np.empty(n)) if self.real else (np.empty(n, np.complex128),)
        name = "dhseqr" if self.real else "zhseqr"
        try:
            call_lapack(name, job, vectors, n, 1, n, T, n, *poles, Z, len(Z), work, len(work))
        except np.linalg.LinAlgError as error:
            raise NumericalError(f"The Schur form of A {T.shape} must converge; got {error} Rescale A.") from None
        return T, poles[0] if len(poles) == 1 else poles[0] + 1j * poles[1]


class HessenbergPencil:
    """The pencil ``(H + moved I, scale I)`` of a Hessenberg form, for the recursion of `adi`.

    With `moved` or `scale` other than 0 and 1 its stability is that of A with a margin: by `moved` in continuous time,
    by ``1 - scale`` in discrete time.
    """

    def __init__(self, form: HessenbergForm, moved: float = 0.0, scale: float = 1.0) -> None:
        self.n, self.real = form.n, form.real
        self._form, self._moved, self._scale = form, moved, scale

    def A(self, X: Array, adjoint: bool = False) -> Array:
        """Return ``(H + moved I) X``, or that of the adjoint."""
        product = self._form.times(X, adjoint)
        return np.asarray(product + self._moved * X if self._moved else product)

    def E(self, X: Array, adjoint: bool = False) -> Array:
        """Return ``scale X``."""
        return X if self._scale == 1.0 else self._scale * X

    def factor(self, p: complex) -> _Shifted:
        """Return the solver for a shift; the work is in its solves, and it is they that raise a LinAlgError."""
        return _Shifted(self._form, self._moved + p * self._scale)


class _Shifted:
    def __init__(self, form: HessenbergForm, p: complex) -> None:
        self._form, self._p = form, p

    def solve(self, X: Array) -> Array:
        return _regular(self._form.solve(self._p, X))

    def solve_adjoint(self, X: Array) -> Array:
        return _regular(self._form.solve_adjoint(self._p, X))


def _regular(X: Array) -> Array:
    """Return a solution, or tell that there is none: without a factor it shows only now."""
    if not np.isfinite(X).all():
        raise np.linalg.LinAlgError("A + p E must be regular; got a pivot of zero, or an overflow.")
    return X
