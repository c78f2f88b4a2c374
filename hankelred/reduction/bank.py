"""Balanced truncation of banks of diagonal systems of one size, without a Python loop over them.

The same steps as for one system, each for all systems at once: factors, hsv, order, bases, small matrices, their
eigenvectors. Orders may differ from system to system; arrays are then filled up with zeros, and a mask says where.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import order as orders
from ..checks import SINGLE, Array, check_result, exactly_one, in_family
from ..errors import DiagonalisationError, NumericalError
from ..hankel import bank_hsv, bank_of, each
from ..linalg.cauchy import NEARLY_REAL
from ..linalg.cauchy_bank import Bank, factors
from ..linalg.hankel_svd import batched_products, batched_vectors
from ..linalg.threads import one_blas_thread
from ..markup import html_table
from ..parts import ROUNDINGS
from ..systems import DiagonalBank, DiagonalSystem, Poles
from ..weighting import Weighting
from .rediagonalise import CONDITION_LIMIT, ROUNDING, balancing_scale
from .result import Reduction

Alone = Callable[[DiagonalSystem, Weighting | None], Any]

# Systems whose poles lie at distances from the stability boundary that differ by more than this are reduced one by one,
# where eigenpairs of graded matrices are corrected.
GRADED_FROM = 1e5

MOST_ROWS = 20  # of a table in a notebook

# Beyond this, and below its inverse, squares of continuous poles near the ends of the range.
FAR = 1e100


@dataclass(frozen=True, eq=False, repr=False)
class BankReduction:
    """Reduced diagonal systems with their Hankel singular values and error bounds.

    Attributes
    ----------
    spectrum : Poles
        Poles of the reduced systems as they were given, values or rates, (batch, k).
    lam, rates : (batch, k) ndarray
        Poles of the reduced systems, k the most states that one of them stores, and their logarithms where the
        systems were given by theirs, else None.
    B, C : (batch, k, m) and (batch, p, k) ndarray
        Input and output matrices.
    mask : (batch, k) bool ndarray
        True for the states of each system, which come first. The rest is filled up with zeros in lam, B and C.
    order : (batch,) int ndarray
        Hankel singular values kept; more than the states stored where the output is real.
    hsv : (batch, n) ndarray
        All Hankel singular values, decreasing; 2n of them for real output.
    error_bound : (batch,) ndarray
        Bounds on the H-infinity norms of the errors, with their rounding floors.
    T, Ti : (batch, n, order) and (batch, order, n) ndarray
        Bases as in `Reduction`, filled up with zeros.
    original : DiagonalBank
        The bank that was reduced.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> lam = -np.arange(1.0, 9.0) * np.linspace(0.5, 2.0, 300)[:, None]
    >>> bank = hr.DiagonalBank(lam, np.ones((300, 8, 1)), np.ones((300, 1, 8)), dt=0)
    >>> small = hr.balanced_truncation(bank, rtol=1e-4)
    >>> small.lam.shape, small.hsv.shape, small[0].order
    ((300, 4), (300, 8), 4)
    """

    spectrum: Poles
    B: Array
    C: Array
    mask: Array
    order: Array
    hsv: Array
    error_bound: Array
    T: Array
    Ti: Array
    original: DiagonalBank

    @property
    def lam(self) -> Array:
        """Poles, (batch, k); 0 where there is no state."""
        return np.where(self.mask, self.spectrum.lam, 0)

    @property
    def rates(self) -> Array | None:
        """Logarithms of the poles, where the systems were given by theirs."""
        return self.spectrum.rates

    @property
    def states(self) -> Array:
        """Number of states that each reduced system stores, (batch,)."""
        return self.mask.sum(axis=1)

    def __len__(self) -> int:
        """Return the number of systems."""
        return len(self.order)

    def __repr__(self) -> str:
        """Return the sizes, not the matrices."""
        least, most = (int(self.order.min()), int(self.order.max())) if len(self) else (0, 0)
        return f"BankReduction({len(self)} systems, order {self.hsv.shape[1]} -> {least} to {most})"

    def _repr_html_(self) -> str:
        """Return a row for each of the first systems for notebooks."""
        rows: list[tuple[object, ...]] = [
            (i, f"{self.hsv.shape[1]} -> {self.order[i]}", self.states[i], f"{self.error_bound[i]:.4g}")
            for i in range(min(len(self), MOST_ROWS))
        ]
        rows += [("...",) * 4] * (len(self) > MOST_ROWS)
        return html_table(rows, ("system", "order", "states", "error bound"), repr(self))

    def __getitem__(self, i: int) -> Reduction:
        """Return the reduction of one system, which can measure its errors."""
        original = self.original[i]
        order, stored = int(self.order[i]), int(self.states[i])
        B, C = self.B[i, :stored], self.C[i][:, :stored]
        poles = self.spectrum.map(lambda x: x[i, :stored])
        D, names = original.D, original.outer_names
        reduced = DiagonalSystem.trusted(poles, B, C, D, original.dt, original.output, names)
        T, Ti, bound = self.T[i][:, :order], self.Ti[i][:order], float(self.error_bound[i])
        return Reduction(reduced, original, order, self.hsv[i], bound, T, Ti, _reduced=reduced)

    @property
    def systems(self) -> list[DiagonalSystem]:
        """The reduced systems, each of its own size."""
        return [self[i].system for i in range(len(self))]


def reduce_bank(system: DiagonalBank, alone: Alone, weighting: Weighting | None, **criteria: Any) -> BankReduction:
    """Reduce the systems of a bank, all of them stable, by one criterion; `alone` balances one that needs care."""
    name, value = exactly_one(**criteria)
    whole = {"order": system.order, "states": system.n}.get(name)
    if whole is None:
        orders.least_order(np.ones(1), 1, **{name: value}, floor=0.0)  # raises where the value is out of its range
    else:
        value = orders.check_count(value, whole, name)
    if not system.is_discrete and system.n:
        fastest = np.maximum(np.abs(system.lam.real), np.abs(system.lam.imag)).max(axis=1)
        if np.any(fastest > FAR) or np.any(fastest < 1 / FAR):
            worst = fastest[np.argmax(np.abs(np.log10(np.maximum(fastest, 5e-324))))]
            raise NumericalError(
                f"The fastest pole of each system of a bank must lie between {1 / FAR:.0e} and {FAR:.0e}; got "
                f"{worst:.3g}. Change the unit of time, or reduce bank[i]."
            )
    bank = bank_of(system)
    if weighting is not None:
        own = enumerate(each(system, weighting))
        found = [_reduce_alone(one, alone, i, name, value, weights) for i, (one, weights) in own]
        hsv = np.reshape([values for values, _ in found], (len(system), system.order))
        return _assembled(system, bank, [part for _, part in found], hsv)
    if value == whole:
        return _assembled(system, bank, [_unchanged(system)], bank_hsv(system))
    parts: list[_Part] = []
    hsv = np.zeros((len(system), system.order))
    if not bank.is_silent:
        with one_blas_thread(system.order):
            for piece in bank.pieces():
                systems = np.arange(len(system))[piece]
                hsv[piece], some = _reduce_piece(system, bank, systems, alone, name, value)
                parts += some
        _refuse_failed(parts)
    check_result("Hankel singular values", hsv)
    return _assembled(system, bank, parts, hsv)


@dataclass(frozen=True, eq=False)
class _Part:
    """Reduced systems of one order; poles are values, or rates where the bank has them; states stored come first."""

    systems: Array
    poles: Array
    B: Array
    C: Array
    T: Array
    Ti: Array
    stored: Array
    failed: Array
    change: Array

    def take(self, some: Array) -> _Part:
        """Return some of the systems."""
        return _Part(*(x[some] for x in vars(self).values()))


def _orders(hsv: Array, name: str, value: Any, pairs: bool) -> Array:
    """Return the order that the criterion asks for in each system, by `states` with pairs the highest possible one."""
    rank = np.sum(hsv > 0, axis=1)
    if name in ("order", "states"):
        wanted = np.full(len(hsv), 2 * value if name == "states" and pairs else value)
    else:
        wanted = np.array([orders.least_order(row, len(row), **{name: value}) for row in hsv], dtype=int)
    return np.minimum(wanted, rank)


def _reduce_piece(
    system: DiagonalBank, bank: Bank, systems: Array, alone: Alone, name: str, value: Any
) -> tuple[Array, list[_Part]]:
    """Return the Hankel singular values of some systems of a bank and these systems reduced."""
    piece = bank.take(systems)
    S, R, w, distance = factors(piece)
    M = batched_products(S, R, bank.pairs)
    hsv = np.zeros((len(M), bank.order))
    hsv[:, : M.shape[1]] = np.linalg.svd(M, compute_uv=False)
    unit = 1.0 if name in ("order", "states", "rtol", "energy") else piece.unit
    wanted = _orders(hsv * unit, name, value, bank.pairs)
    U, Vh = batched_vectors(M, hsv, wanted)
    hsv *= piece.unit
    # pairs lose digits near the real axis, and real data stored as half of a pair have none
    is_alone = piece.poles.gap.max(axis=1) > GRADED_FROM * piece.poles.gap.min(axis=1)
    is_alone |= distance < NEARLY_REAL if bank.pairs else np.full(len(M), system.has_real_output)
    parts = []
    for i in np.flatnonzero(is_alone):
        hsv[i], part = _reduce_alone(system[int(systems[i])], alone, int(systems[i]), name, value)
        parts.append(part)
    pending = np.flatnonzero(~is_alone)
    while len(pending):
        order = wanted[pending].max()
        group = pending[wanted[pending] == order]
        root = np.sqrt(hsv[group, None, :order] / piece.unit[group, :, None])
        T = S[group] @ (Vh[group, :order].conj().swapaxes(1, 2) / root)
        Ti = (U[group][:, :, :order] / root).conj().swapaxes(1, 2) @ R[group]
        part = _diagonalised(system.spectrum, piece.take(group), T, Ti, w[group], systems[group], system.is_discrete)
        if name == "states":
            fits = part.stored <= value
            part = part.take(fits)
            wanted[group[~fits]] -= 1  # the next order down, until conjugate pairs and real poles fit
        parts += [part] if len(part.systems) else []
        pending = pending[wanted[pending] < order]
    return hsv, parts


def _reduce_alone(
    one: DiagonalSystem, alone: Alone, i: int, name: str, value: Any, weighting: Weighting | None = None
) -> tuple[Array, _Part]:
    """Return the Hankel singular values of one system and what `_diagonalised` returns for many."""
    balancing = alone(one, weighting)
    if name == "order" and value < one.order:
        value = min(value, balancing.rank)
    found = balancing.reduce(**{name: value})
    system, poles = found.system, found.system.spectrum.data_like(one.spectrum)
    change = found.error_bound - _bound(found.hsv, found.order)
    arrays = (poles, system.B, system.C, found.T, found.Ti, np.array(system.n), np.array(False), np.array(change))
    return found.hsv, _Part(np.array([i]), *(x[None] for x in arrays))


def _diagonalised(spectrum: Poles, bank: Bank, T: Array, Ti: Array, w: Array, systems: Array, discrete: bool) -> _Part:
    """Project systems with bases of their scaled states, and bring them back to diagonal form."""
    given, shift = spectrum.map(lambda x: x[systems]).less_shift()
    back = np.divide(1.0, w, out=np.zeros_like(w), where=w != 0)
    T, Ti = back[:, :, None] * T, Ti * w[:, None, :]
    A, B, C = Ti @ (given[:, :, None] * T), Ti @ bank.B, bank.C @ T
    terms = np.abs(Ti) @ (np.abs(given)[:, :, None] * np.abs(T))
    if bank.pairs:
        A, B, C = A.real, B.real, C.real
        T, Ti = np.concatenate([T, T.conj()], axis=1), 0.5 * np.concatenate([Ti, Ti.conj()], axis=2)
    poles, X = np.linalg.eig(A)
    stored = np.ones(poles.shape, dtype=bool)
    if bank.pairs:  # pairs, their conjugates, reals
        kind = np.where(poles.imag > 0, 0, np.where(poles.imag < 0, 1, 2))
        turn = np.argsort(kind, axis=1, kind="stable")
        poles, kind = np.take_along_axis(poles, turn, 1), np.take_along_axis(kind, turn, 1)
        X = np.take_along_axis(X, turn[:, None, :], 2)
        stored = kind != 1
    failed = ~(np.linalg.cond(X) <= CONDITION_LIMIT) if X.shape[1] else np.zeros(len(X), dtype=bool)
    X = np.where(failed[:, None, None], np.eye(X.shape[1]), X)  # not used; an exactly singular one stops the others
    Xi = np.linalg.inv(X)
    B, C = bank.divisor[:, :, None] * (Xi @ B), (bank.unit / bank.divisor)[:, :, None] * C @ X
    reduced = spectrum.like(poles, shift)
    margin, data = -reduced.excess(discrete), reduced.data_like(spectrum)
    failed |= np.any(margin <= 0, axis=1)
    E = np.abs(Xi @ (A @ X - X * poles[:, None, :])) + ROUNDING * (np.abs(Xi) @ terms @ np.abs(X))
    rows, columns = np.linalg.norm(B, axis=2) / np.abs(margin), np.linalg.norm(C, axis=1) / np.abs(margin)
    change = np.einsum("bi,bij,bj->b", columns, E, rows)  # at most, whatever the frequency
    scale = balancing_scale(B, C)
    X, Xi, B, C = X * scale[:, None, :], Xi / scale[:, :, None], B / scale[:, :, None], C * scale[:, None, :]
    T, Ti = T @ X, Xi @ Ti
    if bank.pairs:
        real = kind == 2
        B = np.where(real[:, :, None], B.real, B)
        C = np.where(real[:, None, :], C.real, np.where(stored[:, None, :], 2 * C, C))
        first = np.argsort(~stored, axis=1, kind="stable")
        data = np.take_along_axis(data, first, 1)
        B, C = np.take_along_axis(B, first[:, :, None], 1), np.take_along_axis(C, first[:, None, :], 2)
    return _Part(systems, data, B, C, T, Ti, stored.sum(axis=1), failed, 2 * change)


def _unchanged(system: DiagonalBank) -> _Part:
    """Return the bank itself, which is its only model of full order where a system is not minimal."""
    batch, n = len(system), system.n
    B, C, _ = system.double_matrices()
    identity = np.broadcast_to(np.eye(system.order), (batch, system.order, system.order))
    poles = system.spectrum.data_like(system.spectrum)
    sizes = np.full(batch, n), np.zeros(batch, bool), np.zeros(batch)
    return _Part(np.arange(batch), poles, B, C, identity, identity, *sizes)


def _refuse_failed(parts: list[_Part]) -> None:
    failed = np.sort(np.concatenate([part.systems[part.failed] for part in parts]))
    if len(failed) == 0:
        return
    raise DiagonalisationError(
        f"Every reduced system of a bank must be a stable diagonal one; got {len(failed)} that are not, the first of "
        f"them number {failed[0]}. Choose another order, or reduce these alone: balance names orders that work.",
        systems=failed.tolist(),
    )


def _assembled(system: DiagonalBank, bank: Bank, parts: list[_Part], hsv: Array) -> BankReduction:
    """Put the parts together, filled up with zeros to one size."""
    batch, full = len(system), system.order
    most = max((int(part.stored.max(initial=0)) for part in parts), default=0)
    order, change = np.zeros(batch, dtype=int), np.zeros(batch)
    parts = [part for part in parts if len(part.systems)]
    for part in parts:
        order[part.systems], change[part.systems] = part.T.shape[2], part.change
    widest = int(order.max(initial=0))
    dtype = np.result_type(bank.B, *(part.poles for part in parts))
    basis = np.result_type(dtype, *(part.T for part in parts))
    poles, mask = np.zeros((batch, most), dtype), np.zeros((batch, most), dtype=bool)
    B, C = np.zeros((batch, most, system.m), dtype), np.zeros((batch, system.p, most), dtype)
    T, Ti = np.zeros((batch, full, widest), basis), np.zeros((batch, widest, full), basis)
    for part in parts:
        k, i = min(most, part.poles.shape[1]), part.systems
        kept = np.arange(k) < part.stored[:, None]
        mask[i, :k] = kept
        poles[i, :k] = np.where(kept, part.poles[:, :k], 0.0)
        B[i, :k] = np.where(kept[:, :, None], part.B[:, :k], 0.0)
        C[i, :, :k] = np.where(kept[:, None, :], part.C[:, :, :k], 0.0)
        T[i, :, : part.T.shape[2]], Ti[i, : part.T.shape[2]] = part.T, part.Ti
    bound = np.array([_bound(values, k) for values, k in zip(hsv, order, strict=True)]) + change
    if system.dtype in SINGLE and order.max(initial=0) < full:
        bound += _rounding(system.spectrum.rebuilt(poles), system.is_discrete, mask, B, C)
    poles, B, C, T, Ti = (in_family(x, system.dtype) for x in (poles, B, C, T, Ti))
    hsv = in_family(hsv, system.dtype)
    return BankReduction(system.spectrum.rebuilt(poles), B, C, mask, order, hsv, bound, T, Ti, system)


def _bound(hsv: Array, order: int) -> float:
    """Return the bound of one system on what truncation and its own rounding do."""
    return orders.error_bound(hsv, order, ROUNDINGS * orders.rounding_floor(hsv))


def _rounding(poles: Poles, discrete: bool, mask: Array, B: Array, C: Array) -> Array:
    """Bound what storing poles (or rates), B and C in single precision changes, to first order, term by term.

    ``|c_i| |b_i| / d_i`` times the rounding of ``1 / (s - lam_i)``, ``|lam_i| / d_i`` or for rates ``|z_i| / d_i``, and
    of b and c, d_i the distance from the stability boundary.
    """
    unit = float(np.finfo(np.float32).eps) / 2
    margin, size = poles.rounding(discrete)
    margin = np.where(mask, margin, 1.0)
    gain = np.linalg.norm(B, axis=2) * np.linalg.norm(C, axis=1) / np.minimum(margin, 1.0)
    return np.sum(gain * unit * (2.0 + size / margin), axis=1)
