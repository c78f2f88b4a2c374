"""Low-rank factors of both Gramians by one alternating-directions iteration over shifted solves.

Of ``A P E^H + E P A^H + B B^H = 0`` and ``A^H Q E + E^H Q A + C^H C = 0``, for stable pencils with few inputs and
outputs, whose Gramians have small numerical rank. With a shift p in the left half plane [1]_

    ``V = (A + p E)^-1 W,   W <- W - 2 Re(p) E V,   S <- [S, sqrt(-2 Re p) V]``,   W = B at first,

and W is at every moment an exact factor of the residual, ``A S S^H E^H + E S S^H A^H + B B^H = W W^H``. One
factorisation of ``A + p E`` serves the other Gramian through its adjoint. Real pencils meet a conjugate pair of shifts
at once and in real arithmetic, from one complex solve [1]_. Shifts are Ritz values on the last blocks of both
sides [2]_.

The recursion knows of a pencil what `Pencil` says and nothing else: Hessenberg forms, sparse matrices, second-order and
descriptor models each bring their own. Discrete time is `Cayley`, another pencil with the same Gramians. Columns may
be split by rows over processes: norms, products and triangles of all of them come from `RowSplit`.

References
----------
.. [1] P. Benner, P. Kürschner, J. Saak, "Efficient handling of complex shift parameters in the low-rank Cholesky factor
   ADI method", Numer. Algorithms 62, 2013, pp. 225-251; "An improved numerical method for balanced truncation for
   symmetric second-order systems", Math. Comput. Model. Dyn. Syst. 19, 2013.
.. [2] P. Benner, P. Kürschner, J. Saak, "Self-generating and efficient shift parameters in ADI methods for large
   Lyapunov and Sylvester equations", Electron. Trans. Numer. Anal. 43, 2014, pp. 142-162.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from enum import Enum
from typing import Any

import numpy as np
import scipy.linalg as sla

from ..checks import EPS, Array
from .pencils import Pencil
from .rows import HERE, RowSplit
from .shifts import spread

# A cycle is the shifts taken from one projection, on so many columns at most; the blocks that follow tell the next.
SUBSPACE = 24

# Share of the largest direction below which others are left out: products of columns that are formed know no better.
DEPENDENT = 1e-6

# Columns below this share of the largest change no Hankel singular value by more than rounding of the factors does.
NOISE = EPS / 16

# Factors are compressed when they have grown by this ratio, and from so many columns on: fewer cost less as they are.
GROWTH, COMPRESS_FROM = 2.0, 400

# The recursion stands still where the residuals, as a product, fall by less than this in so many cycles.
STALLED, PATIENCE = 0.5, 24

# Where the product of both residuals has risen by this, poles are not stable; of A far from normal it rises by less.
DIVERGED = 1e16


class Outcome(Enum):
    """How the recursion ended, as a sentence."""

    RUNNING = "it goes on"
    CONVERGED = "the columns still missing change no Hankel singular value by more than the tolerance"
    STALLED = "the residuals no longer fall"
    RANK = "the factors have more columns than were allowed"
    UNSTABLE = "the residuals grow, as they do where a pole is not stable"
    LOST = "a shifted solve has no finite digits"


class LowRankGramians:
    """The recursion for both Gramians of a stable pencil: iterate over it, step by step, and take the factors.

    Every step takes one shift, or a conjugate pair, as often as asked for, and yields; whoever iterates may stop at any
    time, and the factors are then those of the steps taken. It ends by itself with an outcome other than
    `Outcome.RUNNING`.

    Parameters
    ----------
    pencil : Pencil
        A and E.
    B, C : (n, m) and (p, n) ndarray
        Right sides, in double precision.
    rtol : float
        Change of the Hankel singular values, relative to the largest, with which it has converged; one that is lost in
        the rounding of the product of the factors will do, too.
    most : int
        Columns that a factor may have.
    symmetric : bool, default False
        Whether the pencil is Hermitian and ``C = B^H``; there is one factor then.
    repeats : int, default 1
        How often a shift is taken before its factorisation goes: half as many shifts, each of them twice, leave nearly
        the same residual, and more columns than that are no work where factorisations are.
    rows : RowSplit, default all here
        How the rows of the factors are split over processes, all of which make the same steps.

    Attributes
    ----------
    S, R : (n, k) and (l, n) ndarray
        Factors, ``P = S S^H`` and ``Q = R^H R``; of S the own rows, and of R the own columns.
    change : float
        How far the columns still missing move a Hankel singular value, judged by those of the last cycle. New columns
        N beside and new rows L below the product ``M = R E S`` move its singular values in second order, by about
        ``|L| |N| / |M|``; in runs to the end, all later columns together moved them by up to 20 times that.
    residuals : (float, float)
        ``|W W^H| / |B B^H|`` of either Gramian, in the spectral norm.
    size : float
        Norm of the product ``R E S`` of both factors, that of Frobenius.
    solving : float
        Relative error of a solve with A, the least well conditioned of all: what one step of refinement changes.
    steps : int
        Factorisations so far.
    shifts : list of float or complex
        Those taken so far; of a conjugate pair one.
    outcome : Outcome
        Whether and why it has ended.
    """

    def __init__(
        self,
        pencil: Pencil,
        B: Array,
        C: Array,
        rtol: float,
        most: int,
        symmetric: bool = False,
        repeats: int = 1,
        rows: RowSplit = HERE,
    ) -> None:
        self.pencil, self.rtol, self.most, self._repeats = rows.pencil(pencil), rtol, most, repeats
        self.rows, self._tall = rows, _Tall(rows)
        self._reach = _Side(self.pencil, rows.own(B), False, self._tall)
        self._see = self._reach if symmetric else _Side(self.pencil, rows.own(C.conj().T), True, self._tall)
        self._sides = (self._reach,) if symmetric else (self._reach, self._see)
        self.size, self._factors = 0.0, (0.0, 0.0)
        self._least, self._stalled = np.inf, 0
        self._shifts: list[complex] = []
        self.shifts: list[complex] = []
        self.steps, self.change, self.solving, self.outcome = 0, np.inf, 0.0, Outcome.RUNNING

    @property
    def S(self) -> Array:
        """Factor of the controllability Gramian."""
        return self._reach.columns

    @property
    def R(self) -> Array:
        """Factor of the observability Gramian."""
        return self._see.columns.conj().T

    @property
    def residuals(self) -> tuple[float, float]:
        """Spectral norms of both residuals, relative to the right sides."""
        return self._reach.residual(), self._see.residual()

    def __iter__(self) -> Iterator[LowRankGramians]:
        """Take one step after the other."""
        if not all(self._tall.norm(side.W) for side in self._sides):
            self.change, self.outcome = 0.0, Outcome.CONVERGED
            return
        try:
            yield from self._cycles()
        except np.linalg.LinAlgError:  # a matrix of stable poles that is singular in double precision
            self.outcome = Outcome.LOST

    def _cycles(self) -> Iterator[LowRankGramians]:
        """Take the shifts of one cycle after the other."""
        self._choose(self._first_blocks())
        while self.outcome is Outcome.RUNNING:
            for shift in self._shifts:
                self._step(shift)
                yield self
            self._judge()
            if self.outcome is Outcome.RUNNING:
                self._choose([side.new for side in self._sides])
                for side in self._sides:
                    side.close(self.most)
                if max(side.count for side in self._sides) > self.most:
                    self.outcome = Outcome.RANK

    def _first_blocks(self) -> list[Array]:
        """Return columns that hold fast poles, the right sides, and slow ones, which A^-1 brings out of them."""
        at_zero = self.pencil.factor(0.0)
        blocks = []
        for side in self._sides:
            solve = at_zero.solve_adjoint if side.adjoint else at_zero.solve
            once = solve(side.W)
            refined = solve(side.W - self.pencil.A(once, side.adjoint))
            if not 0 < (size := self._tall.norm(once)) < np.inf:
                raise np.linalg.LinAlgError
            self.solving = max(self.solving, self._tall.norm(refined) / size)
            blocks.append(np.hstack([side.W, once, solve(self.pencil.E(once, side.adjoint))]))
        return blocks

    def _choose(self, blocks: list[Array]) -> None:
        """Take the shifts of the next cycle from a projection onto the last columns of each block."""
        each = max(1, SUBSPACE // len(blocks))
        tall = self._tall
        U = tall.basis(np.hstack([block[:, -each:] for block in blocks]))
        A, E = tall.product(U, self.pencil.A(U)), self.pencil.E(U)
        values: Array = (
            np.linalg.eigvals(A) if E is U else np.asarray(sla.eigvals(A, tall.product(U, E), check_finite=False))
        )
        values = tall.agreed(values[np.isfinite(values) & (values.real < 0)])
        if len(values):  # else those of the last cycle do once more
            self._shifts = spread(values, self.pencil.real)
        elif not self._shifts:
            self.outcome = Outcome.UNSTABLE

    def _step(self, shift: complex) -> None:
        """Extend both factors by the columns of one shift."""
        solver = self.pencil.factor(np.conj(shift))
        for count in range(self._repeats):
            columns = solver.solve(self._reach.W)
            if count == 1:  # where factorisations are kept, a solve more is little work; their errors differ by shift
                left = self._reach.W - self.pencil.A(columns) - np.conj(shift) * self.pencil.E(columns)
                moved, size = self._tall.norm(solver.solve(left)), self._tall.norm(columns)
                self.solving = max(self.solving, moved / (size or 1.0))
            self._reach.extend(columns, np.conj(shift))
            if self._see is not self._reach:
                self._see.extend(solver.solve_adjoint(self._see.W), shift)
        self.steps += 1
        self.shifts.append(shift)

    def _judge(self) -> None:
        """Measure what the cycle has changed, and say how things stand."""
        reached, seen, tall = self.pencil.E(self._reach.new), self._see.new, self._tall
        columns = rows = _frobenius(tall.product(self._see.columns, reached))
        if self._see is not self._reach:
            rows = _frobenius(tall.product(self.pencil.E(seen, adjoint=True), self._reach.columns))
        self.size = math.hypot(self.size, columns, rows)
        self.change = columns * (rows / self.size) if self.size else 0.0  # the product may underflow
        self._factors = (
            math.hypot(self._factors[0], tall.norm(reached)),
            math.hypot(self._factors[1], tall.norm(seen)),
        )
        left = float(np.prod(self.residuals))
        self._stalled = 0 if left < STALLED * self._least else self._stalled + 1
        self._least = min(left, self._least)
        if not left < DIVERGED:
            self.outcome = Outcome.UNSTABLE
        elif self.change <= max(self.rtol * self.size, EPS * math.prod(self._factors)):
            self.outcome = Outcome.CONVERGED
        elif self._stalled >= PATIENCE:
            self.outcome = Outcome.STALLED
        self.outcome = tall.agreed(self.outcome)


class _Tall:
    """What the recursion asks of tall arrays, whose rows may be split."""

    def __init__(self, rows: RowSplit) -> None:
        self._rows = rows

    def agreed(self, x: Any) -> Any:
        """Return what the first process has: what rounding decides must be the same in all, on machines of any make."""
        return self._rows.every(x)[0]

    def product(self, X: Array, Y: Array) -> Array:
        """Return ``X^H Y``."""
        return self._rows.total(X.conj().T @ Y)

    def norm(self, X: Array) -> float:
        """Return the norm of Frobenius, without over- and underflow of squares."""
        return _frobenius(np.array(self._rows.every(_frobenius(X))))

    def spectral_norm(self, X: Array) -> float:
        """Return the spectral norm of a matrix of few columns, by their products."""
        size = float(np.max(self._rows.every(float(np.abs(X).max(initial=0.0)))))
        if not math.isfinite(size):
            raise np.linalg.LinAlgError
        return size * math.sqrt(np.linalg.norm(self.product(X / size, X / size), 2)) if size else 0.0

    def triangle(self, X: Array) -> Array:
        """Return the triangle of a QR factorisation, from those of the parts."""
        first, *others = self._rows.every(np.linalg.qr(X, mode="r"))
        return np.asarray(np.linalg.qr(np.vstack([first, *others]), mode="r")) if others else first

    def basis(self, X: Array) -> Array:
        """Return a well-conditioned basis of columns of any size, directions left out that depend on others."""
        largest = np.max(self._rows.every(np.abs(X).max(axis=0, initial=0.0)), axis=0)
        if not (np.isfinite(largest).all() and largest.any()):
            raise np.linalg.LinAlgError
        X = X[:, largest > 0] / largest[largest > 0]  # squares may underflow
        X /= np.linalg.norm(self._rows.every(np.linalg.norm(X, axis=0)), axis=0)
        squares, V = self.agreed(sla.eigh(self.product(X, X), check_finite=False))
        kept = squares > DEPENDENT**2 * squares[-1]
        return np.asarray(X @ (V[:, kept] / np.sqrt(squares[kept])))


WHOLE = _Tall(HERE)


class _Side:
    """One of the two Gramians: its residual factor W and the columns found so far, those of the last cycle apart."""

    def __init__(self, pencil: Pencil, right: Array, adjoint: bool, tall: _Tall = WHOLE) -> None:
        self.adjoint, self._pencil, self.W, self._tall = adjoint, pencil, right, tall
        self._start, self._store = tall.spectral_norm(right), np.empty((len(right), 0), right.dtype, order="F")
        self.count = self._closed = self._compressed = 0

    @property
    def columns(self) -> Array:
        """The factor."""
        return self._store[:, : self.count]

    @property
    def new(self) -> Array:
        """Columns of the last cycle."""
        return self._store[:, self._closed : self.count]

    def residual(self) -> float:
        """Spectral norm of the residual, relative to the right side."""
        return (self._tall.spectral_norm(self.W) / self._start) ** 2 if self._start else 0.0

    def extend(self, V: Array, p: complex) -> None:
        """Append the columns that ``V = (A + p E)^-1 W`` gives, for p and conj(p) at once if all else is real."""
        if p.imag == 0 or not self._pencil.real:
            self.W = self.W - 2 * p.real * self._pencil.E(V, self.adjoint)
            self._append(np.sqrt(-2 * p.real) * V)
            return
        gain, slope = 2 * np.sqrt(-p.real), p.real / p.imag
        both = V.real + slope * V.imag
        self.W = self.W + gain**2 * self._pencil.E(both, self.adjoint)
        self._append(gain * both, gain * np.sqrt(slope**2 + 1) * V.imag)

    def _append(self, *blocks: Array) -> None:
        """Store columns, in twice the space where there is none left."""
        for block in blocks:
            end = self.count + block.shape[1]
            if end > self._store.shape[1]:
                dtype = np.result_type(self._store, block)
                wider = np.empty((len(block), max(end, 2 * self.count, COMPRESS_FROM)), dtype, order="F")
                wider[:, : self.count] = self.columns
                self._store = wider
            self._store[:, self.count : end] = block
            self.count = end

    def close(self, most: int) -> None:
        """End the cycle; compress the factor where it has grown by much since the last time, or beyond `most`."""
        if self.count >= max(COMPRESS_FROM, GROWTH * self._compressed) or self.count > most:
            triangle = self._tall.triangle(self.columns)
            _, sizes, Vh = sla.svd(triangle, full_matrices=False, check_finite=False, lapack_driver="gesvd")
            kept = self._tall.agreed(Vh[sizes > NOISE * sizes[0]].conj().T)
            self._store[:, : kept.shape[1]] = self.columns @ kept
            self.count = self._compressed = kept.shape[1]
        self._closed = self.count


def _frobenius(X: Array) -> float:
    """Return the norm of Frobenius, without over- and underflow of squares."""
    with np.errstate(over="ignore"):
        if 1e-150 < (norm := float(np.linalg.norm(X))) < np.inf:
            return norm
    size = float(np.abs(X).max(initial=0.0))
    return size * float(np.linalg.norm(X / size)) if 0 < size < np.inf else size
