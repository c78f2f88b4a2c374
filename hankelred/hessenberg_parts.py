"""A dense system with few inputs and outputs, by low-rank factors: its Hankel singular values below one Schur form.

A Hessenberg form costs a quarter of a Schur form. On it the recursion of `linalg.adi` finds factors of both Gramians,
whose rank is low where a model is worth reducing. What a Schur form tells besides is found in other ways:

- *stability* of all poles, those included that no input reaches: by `linalg.stability`, or by eigenvalues;
- *rounding*: by the resolvent at a few frequencies, `HessenbergParts.accuracy`.

Where anything stays in doubt, a Schur form decides, and begins with the Hessenberg form that is there.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from typing import Any

import numpy as np

from .checks import EPS, Array
from .linalg.adi import LowRankGramians, Outcome
from .linalg.gain import largest_gain
from .linalg.hankel_svd import HankelSVD, graded, norm_estimate
from .linalg.hessenberg import HessenbergForm, HessenbergPencil
from .linalg.marginality import BACKWARD, none_in_doubt
from .linalg.pencils import Cayley, Pencil
from .linalg.response import boundary_points
from .linalg.schur import margins
from .linalg.shifts import CYCLE
from .linalg.stability import decay, has_pole_beyond, is_contraction
from .parts import BACKWARD_OF_MANY, Begun, DenseParts, InBalancedUnits, parts_of
from .rounding import SAFETY, Matrices, sample_frequencies
from .systems import StateSpace

# From so many states on, and where this share of as many columns are enough: below, loops and calls of the recursion
# take as long as the Schur form of few states, and long products as the factors of many columns.
FROM, SHARE = 300, 1 / 3

# Columns for each input or output that a model worth the attempt takes: 30 to 50 were seen, rates over three decades.
COLUMNS = 30

# From so many shifts on it is foretold how many columns there will be; foretold too high by this ratio at most, in runs
# that converged after all.
EARLIEST, LENIENCY = 8, 1.25

# Residual, the root of the product of both sides, at which the recursion has converged, to foretell when it will be.
CONVERGED = 1e-8

# Largest share of the distance to the next unstable matrix that the backward error of a form may be.
CLOSE = 1e-4

# Frequencies at which rounding is measured, out of those of all poles of the model that has been found.
SAMPLES = 8


def balanced_parts(system: Any, offset: float) -> Any:
    """Return the parts of a system for balanced truncation, by low-rank factors where these are worth it and hold."""
    if system.is_diagonal or system.is_sparse or system.n < max(FROM, COLUMNS * max(system.m, system.p) / SHARE):
        return parts_of(system, offset)
    attempt = HessenbergParts(system)
    return attempt if attempt.holds(offset) else DenseParts(system, offset, begun=attempt.begun)


class HessenbergParts:
    """A stable dense system and low-rank factors of its Gramians, in the coordinates of a Hessenberg form.

    What `DenseParts` is to a Schur form, for systems without poles to put aside. It `holds` or not.
    """

    kept, is_split, is_low_rank = 0, False, False  # all hsv are told, the smallest as zeros

    def __init__(self, system: StateSpace) -> None:
        given = InBalancedUnits(system)
        A, B, C = given.matrices()
        self.begun = Begun(given, (A, B, C), HessenbergForm(A))
        self.system, self._given, self._form = given.system, given, self.begun.form
        self.B, self.C = self._form.rotated(B, adjoint=True), self._form.rotated(C.conj().T, adjoint=True).conj().T
        self._recursion = self._recur()

    @property
    def discrete(self) -> bool:
        """Whether time is discrete."""
        return self._given.discrete

    @cached_property
    def poles(self) -> Array:
        """All poles, computed when they are asked for."""
        return self._form.eigenvalues()

    def _pencil(self, margin: float = 0.0) -> Pencil:
        """Return the pencil of the recursion, for poles that are stable by a margin."""
        if self.discrete:
            return Cayley(HessenbergPencil(self._form, scale=1.0 - margin))
        return HessenbergPencil(self._form, moved=margin)

    def _recur(self) -> LowRankGramians:
        """Run the recursion as long as it promises to end with few columns."""
        n, gain = self.system.n, Cayley.GAIN if self.discrete else 1.0
        most = int(SHARE * n)
        found = LowRankGramians(self._pencil(), gain * self.B, gain * self.C, rtol=n * EPS, most=most)
        with suppress(np.linalg.LinAlgError):  # a pole at a shift or at zero, overflow: it has not converged
            for _ in found:
                if found.steps >= EARLIEST and found.steps % CYCLE == 0 and _columns_foretold(found) > LENIENCY * most:
                    break
        return found

    def holds(self, offset: float) -> bool:
        """Tell whether the factors are complete and all poles stable by more than `offset` and their rounding errors.

        A `no` means nothing more than doubt.
        """
        if self._recursion.outcome is not Outcome.CONVERGED:
            return False
        size = float(np.linalg.norm(self._form.H))
        margin = offset + BACKWARD * EPS * size
        if is_contraction(self.begun.matrices[0], self.discrete, margin + self.system.n * EPS * size):
            return True
        inverse = decay(self._pencil(margin), self._recursion.shifts)
        if inverse * BACKWARD * EPS * (size**2 if self.discrete else size) <= CLOSE:
            return True
        if has_pole_beyond(self._form, self._recursion.S, self.discrete, margin):
            return False
        return none_in_doubt(self.poles, margins(self.poles, self.discrete), size, self.discrete, offset)

    @cached_property
    def factors(self) -> tuple[Array, Array]:
        """Graded factors S and R of both Gramians."""
        return graded(self._recursion.S), graded(self._recursion.R.conj().T).conj().T

    def lift(self, T: Array, Ti: Array) -> tuple[Array, Array]:
        """Return bases in the coordinates of the system."""
        rows = self._form.rotated(Ti.conj().T).conj().T
        return self._given.out(self._form.rotated(T)), self._given.rows_out(rows)

    def stable_response(self, omega: Array) -> Array:
        """Return the response of the system at frequencies in rad per unit of time."""
        return self.system._response(omega)

    def projected(self, X: Array, Y: Array) -> tuple[Array, Array, Matrices]:
        """Return bases in the coordinates of the system, and the given system in them."""
        T, Ti = self.lift(X, Y)
        return T, Ti, self._given.in_bases(T, Ti)

    projected_schur_form = projected

    def whole(self, stable: Matrices) -> Matrices:
        """Return a model as it is: nothing was put aside."""
        return stable

    def accuracy(self, svd: HankelSVD) -> tuple[float, int, bool]:
        """Return the rounding error of the hsv, how many are more than that, and False.

        The largest of four: the product of factors loses ``n eps |R| |S|``; the recursion says what the columns that
        are missing change; a backward error E of the form changes the response by ``C Phi E Phi B`` with the resolvent
        Phi, measured as ``eps |A| |C Phi| |Phi B|``; and the response of the system in all its balanced states differs
        from that on the Hessenberg form.
        """
        product = float(np.linalg.norm(svd.S) * np.linalg.norm(svd.R))
        floor = EPS * self.system.n * product
        if product == 0.0:
            return 0.0, 0, False
        rank = int(np.count_nonzero(svd.values > floor))
        X, Y = svd.bases(slice(0, rank), rank)
        model = Matrices(Y @ (self._form.H @ X), Y @ self.B, self.C @ X, 0 * self.system.D)
        omega = self._telling_frequencies(model, X, Y)
        points = boundary_points(omega, self.discrete)
        inner, outer = _resolvents(self._form, self.B, self.C, points)
        gain = max((_spectral(x) * _spectral(y) for x, y in zip(inner, outer, strict=True)), default=0.0)
        response = np.array([self.C @ x for x in inner])
        change = largest_gain(response - model.response(omega, self.discrete))
        backward = BACKWARD_OF_MANY * EPS * norm_estimate(self._form.H) * gain
        floor = max(floor, float(self._recursion.change), backward, SAFETY * change)
        return floor, int(np.count_nonzero(svd.values > floor)), False

    def _telling_frequencies(self, model: Matrices, X: Array, Y: Array) -> Array:
        """Return the frequencies of the poles of a model in bases X and Y where rounding counts most, and zero."""
        omega = sample_frequencies(np.linalg.eigvals(model.A), self.discrete, not self._form.real)[::2]
        if len(omega) <= SAMPLES:
            return omega
        form = HessenbergForm(model.A)
        B, C = form.rotated(model.B, adjoint=True), form.rotated(model.C.conj().T, adjoint=True).conj().T
        inner, outer = _resolvents(form, B, C, boundary_points(omega, self.discrete))
        triangles = (np.asarray(np.linalg.qr(x, mode="r")) for x in (X, Y.conj().T))
        right, left = (form.rotated(x.conj().T, adjoint=True).conj().T for x in triangles)
        gain = [
            np.linalg.norm(right @ x) * np.linalg.norm(y @ left.conj().T) for x, y in zip(inner, outer, strict=True)
        ]
        chosen = np.argsort(gain)[-SAMPLES:]
        return omega[np.union1d(chosen, np.flatnonzero(omega == 0))]


def _resolvents(form: HessenbergForm, B: Array, C: Array, points: Array) -> tuple[list[Array], list[Array]]:
    """Return ``(s I - H)^-1 B`` and ``C (s I - H)^-1`` at the points s."""
    inner = [-form.solve(-s, B) for s in points]
    return inner, [-form.solve_adjoint(-s, C.conj().T).conj().T for s in points]


def _spectral(x: Array) -> float:
    return float(np.linalg.norm(x, 2)) if x.size else 0.0


def _columns_foretold(found: LowRankGramians) -> float:
    """Return how many columns the recursion will have taken in the end if it goes on as it has begun."""
    left = float(np.sqrt(np.prod(found.residuals)))
    columns = max(found.S.shape[1], len(found.R))
    if left <= CONVERGED:
        return columns
    return columns * float(np.log(CONVERGED) / np.log(left)) if left < 1 else np.inf
