"""Balanced truncation of banks of diagonal systems of one size, without a Python loop over them.

The same steps as for one system, each for all systems at once: factors, hsv, order, bases, small matrices, their
eigenvectors. Orders may differ from system to system; arrays are then filled up with zeros, and a mask says where.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.linalg as sla
from numpy.typing import ArrayLike

from .. import order as orders
from .._checks import Array, is_discrete
from .._threads import one_blas_thread
from ..diagonal import NEARLY_REAL
from ..diagonal_banks import Bank, batched_hankel_singular_values, checked_bank, factors
from ..errors import DiagonalisationError, OrderError
from ..gramians import GRADED_BELOW
from ..systems import DiagonalSystem
from .assemble import single_array
from .balanced import balance
from .rediagonalise import CONDITION_LIMIT, log1p
from .result import Reduction

# Up to this size LAPACK's divide and conquer does not divide and keeps the digits of every singular value.
UNDIVIDED = 25


@dataclass(frozen=True, eq=False, repr=False)
class BankReduction:
    """Reduced diagonal systems with their Hankel singular values and error bounds.

    Attributes
    ----------
    lam : (batch, k) ndarray
        Poles of the reduced systems, k the most states that one of them stores.
    rates : (batch, k) ndarray or None
        Logarithms of the poles, where the systems were given by theirs.
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
    """

    lam: Array
    rates: Array | None
    B: Array
    C: Array
    mask: Array
    order: Array
    hsv: Array
    error_bound: Array
    T: Array
    Ti: Array
    _bank: Bank

    @property
    def states(self) -> Array:
        """Number of states that each reduced system stores, (batch,)."""
        return self.mask.sum(axis=1)

    def __len__(self) -> int:
        """Return the number of systems."""
        return len(self.lam)

    def __repr__(self) -> str:
        """Return the sizes, not the matrices."""
        least, most = (int(self.order.min()), int(self.order.max())) if len(self) else (0, 0)
        return f"BankReduction({len(self)} systems, order {self.hsv.shape[1]} -> {least} to {most})"

    def __getitem__(self, i: int) -> Reduction:
        """Return the reduction of one system, which can measure its errors."""
        order, stored = int(self.order[i]), int(self.states[i])
        kind: dict[str, Any] = {"dt": self._bank.dt, "output": self._bank.output}
        B, C = self.B[i, :stored], self.C[i][:, :stored]
        if self.rates is None:
            reduced = DiagonalSystem(self.lam[i, :stored], B, C, **kind)
        else:
            reduced = DiagonalSystem.from_rates(self.rates[i, :stored], B, C, **kind)
        T, Ti = self.T[i][:, :order], self.Ti[i][:order]
        pair = (self._bank.system(i), reduced)
        return Reduction(reduced, order, self.hsv[i], float(self.error_bound[i]), T, Ti, 0, False, pair)


def batched_balanced_truncation(
    lam: ArrayLike,
    B: ArrayLike,
    C: ArrayLike,
    *,
    dt: Any,
    order: int | None = None,
    states: int | None = None,
    rtol: float | None = None,
    energy: float | None = None,
    output: Literal["complex", "real"] = "complex",
    rates: ArrayLike | None = None,
) -> BankReduction:
    """Reduce many diagonal systems of one size by balanced truncation; they stay diagonal.

    Parameters
    ----------
    lam : (batch, n) array_like
        Poles of each system, strictly stable.
    B : (batch, n, m) array_like
        Input matrices.
    C : (batch, p, n) array_like
        Output matrices.
    dt : float or bool
        Sampling time in seconds; 0 is continuous, True is discrete without a stated time.
    order : int, optional
        Hankel singular values to keep in every system; in those of a smaller numerical rank, that many.
    states : int, optional
        Keep the largest order that fits this many stored states; with real output conjugate pairs stay together.
    rtol, energy : float, optional
        As for `balanced_truncation`, for each system by itself: orders may differ.
    output : {"complex", "real"}, default "complex"
        Whether the outputs are ``C x`` or their real parts.
    rates : (batch, n) array_like, optional
        Logarithms of discrete poles, as for `diagonal_factor`; `lam` is then not read.

    Returns
    -------
    BankReduction
        All reduced systems, with a mask where they differ in size; item i is the `Reduction` of one of them.

    Raises
    ------
    InputError
        If shapes disagree or an entry is not finite.
    OrderError
        If not exactly one of `order`, `states`, `rtol`, `energy` is given, or it is out of its range.
    StabilityError
        If a pole is not strictly stable.
    DiagonalisationError
        If a reduced system cannot be kept diagonal; its attribute `systems` lists those that cannot.

    See Also
    --------
    batched_hankel_singular_values : The values alone.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> lam = -np.arange(1.0, 9.0) * np.linspace(1, 2, 1000)[:, None]  # a thousand times eight poles
    >>> bank = hr.batched_balanced_truncation(lam, np.ones((1000, 8, 1)), np.ones((1000, 1, 8)), dt=0, order=3)
    >>> bank.lam.shape, bool(bank[7].hinf_error() <= bank.error_bound[7])
    ((1000, 3), True)
    """
    bank = checked_bank(lam, B, C, dt, output, rates)
    name, value = _criterion(bank, order=order, states=states, rtol=rtol, energy=energy)
    hsv, parts = np.zeros((len(bank.B), bank.order)), []
    if name in ("order", "states") and value == (bank.order if name == "order" else bank.B.shape[1]):
        hsv = batched_hankel_singular_values(lam, B, C, dt=dt, output=output, rates=rates).astype(float)
        return _assembled(bank, [_unchanged(bank)], hsv)
    if not bank.is_silent:
        with one_blas_thread(bank.order):
            for piece in bank.pieces():
                systems = np.arange(len(bank.B))[piece]
                hsv[piece], found = _reduce_piece(bank, systems, name, value)
                parts += found
        _refuse_failed(parts)
    return _assembled(bank, parts, hsv)


@dataclass(frozen=True, eq=False)
class _Part:
    """Reduced systems of one order: poles in the order pairs, conjugates, reals, states stored first in lam, B, C."""

    systems: Array
    lam: Array
    rates: Array | None
    B: Array
    C: Array
    T: Array
    Ti: Array
    stored: Array
    failed: Array

    def take(self, some: Array) -> _Part:
        """Return some of the systems."""
        parts: dict[str, Any] = {name: None if x is None else x[some] for name, x in vars(self).items()}
        return _Part(**parts)


def _criterion(bank: Bank, **criteria: Any) -> tuple[str, Any]:
    """Return name and value of the one criterion given, checked."""
    given = {name: value for name, value in criteria.items() if value is not None}
    if len(given) != 1:
        raise OrderError(f"Exactly one of {', '.join(criteria)} must be given; got {', '.join(given) or 'none'}.")
    name, value = given.popitem()
    if name in ("order", "states"):
        limit = bank.order if name == "order" else bank.B.shape[1]
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value <= limit:
            raise OrderError(f"{name} must be an integer from 0 to {limit}; got {value!r}.")
    else:
        orders.least_order(np.ones(1), 1, **{name: value})  # raises where the value is out of its range
    return name, value


def _orders(hsv: Array, name: str, value: Any, pairs: bool) -> Array:
    """Return the order that the criterion asks for in each system, by `states` with pairs the highest possible one."""
    rank = np.sum(hsv > 0, axis=1)
    if name in ("order", "states"):
        wanted = np.full(len(hsv), 2 * value if name == "states" and pairs else value)
    else:
        wanted = np.array([orders.least_order(row, len(row), **{name: value}) for row in hsv], dtype=int)
    return np.minimum(wanted, rank)


def _reduce_piece(bank: Bank, systems: Array, name: str, value: Any) -> tuple[Array, list[_Part]]:
    """Return the Hankel singular values of some systems of a bank and these systems reduced."""
    piece = bank.take(systems)
    S, R, w, distance = factors(piece)
    M = (R @ S).real if bank.pairs else R @ S
    hsv = np.zeros((len(M), bank.order))
    hsv[:, : M.shape[1]] = np.linalg.svd(M, compute_uv=False)
    wanted = _orders(hsv, name, value, bank.pairs)
    U, Vh = _vectors(M, hsv, wanted)
    hsv *= piece.unit
    # pairs lose digits near the real axis, and real data stored as half of a pair have none: one by one
    is_alone = distance < NEARLY_REAL if bank.pairs else np.full(len(M), bank.output == "real")
    parts = []
    for i in np.flatnonzero(is_alone):
        hsv[i], part = _reduce_alone(bank, int(systems[i]), name, value)
        parts.append(part)
    pending = np.flatnonzero(~is_alone)
    while len(pending):
        order = wanted[pending].max()
        group = pending[wanted[pending] == order]
        root = np.sqrt(hsv[group, None, :order] / piece.unit[group, :, None])
        T = S[group] @ (Vh[group, :order].conj().swapaxes(1, 2) / root)
        Ti = (U[group][:, :, :order] / root).conj().swapaxes(1, 2) @ R[group]
        part = _diagonalised(piece.take(group), T, Ti, w[group], systems[group])
        if name == "states":
            fits = part.stored <= value
            part = part.take(fits)
            wanted[group[~fits]] -= 1  # the next order down, until conjugate pairs and real poles fit
        parts += [part] if len(part.systems) else []
        pending = pending[wanted[pending] < order]
    return hsv, parts


def _reduce_alone(bank: Bank, i: int, name: str, value: Any) -> tuple[Array, _Part]:
    """Return the Hankel singular values of one system and what `_diagonalised` returns for many."""
    balancing = balance(bank.system(i))
    criterion = {name: min(value, balancing.rank) if name == "order" else value}
    found = balancing.reduce(**criterion)
    system = found.system
    rates = None if bank.poles.z is None else np.log(system.lam) if system.rates is None else system.rates
    arrays: list[Any] = [system.lam, rates, system.B, system.C, found.T, found.Ti, np.array(system.n), np.array(False)]
    parts: list[Any] = [x if x is None else x[None] for x in arrays]
    return found.hsv, _Part(np.array([i]), *parts)


def _vectors(M: Array, hsv: Array, wanted: Array) -> tuple[Array, Array]:
    """Return singular vectors, with the digits of small values where those are wanted."""
    U, _, Vh = np.linalg.svd(M)
    if M.shape[1] > UNDIVIDED:
        least = np.take_along_axis(hsv, np.maximum(wanted - 1, 0)[:, None], axis=1)[:, 0]
        for i in np.flatnonzero(least < GRADED_BELOW * hsv[:, 0]):
            U[i], _, Vh[i] = sla.svd(M[i], lapack_driver="gesvd")
    return U, Vh


def _diagonalised(bank: Bank, T: Array, Ti: Array, w: Array, systems: Array) -> _Part:
    """Project systems with bases of their scaled states, and bring them back to diagonal form."""
    shift = 0.0 if bank.poles.z is None else 1.0
    poles = bank.poles.lam if bank.poles.z is None else np.expm1(bank.poles.z)
    back = np.divide(1.0, w, out=np.zeros_like(w), where=w != 0)
    T, Ti = back[:, :, None] * T, Ti * w[:, None, :]
    A, B, C = Ti @ (poles[:, :, None] * T), Ti @ bank.B, bank.C @ T
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
    condition = np.linalg.cond(X) if X.shape[1] else np.ones(len(X))
    failed = ~(condition <= CONDITION_LIMIT)
    X = np.where(failed[:, None, None], np.eye(X.shape[1]), X)  # not used; an exactly singular one stops the others
    B, C = np.linalg.solve(X, bank.split[:, :, None] * B), (bank.unit / bank.split)[:, :, None] * C @ X
    scale = _balancing_scales(B, C)
    X, B, C = X * scale[:, None, :], B / scale[:, :, None], C * scale[:, None, :]
    T, Ti = T @ X, np.linalg.inv(X) @ Ti
    lam = poles + shift
    failed |= np.any(_instability(poles, shift, bank.dt) >= 0, axis=1)
    if bank.pairs:
        real = kind == 2
        B = np.where(real[:, :, None], B.real, B)
        C = np.where(real[:, None, :], C.real, np.where(stored[:, None, :], 2 * C, C))
        first = np.argsort(~stored, axis=1, kind="stable")
        lam, poles = np.take_along_axis(lam, first, 1), np.take_along_axis(poles, first, 1)
        B, C = np.take_along_axis(B, first[:, :, None], 1), np.take_along_axis(C, first[:, None, :], 2)
    rates = None if bank.poles.z is None else log1p(poles)
    return _Part(systems, lam, rates, B, C, T, Ti, stored.sum(axis=1), failed)


def _balancing_scales(B: Array, C: Array) -> Array:
    """Return the factors on the states that give each row of B the norm of its column of C."""
    rows, columns = np.linalg.norm(B, axis=2), np.linalg.norm(C, axis=1)
    linked = (rows > 0) & (columns > 0)
    return np.sqrt(np.divide(rows, columns, out=np.ones_like(rows), where=linked))


def _instability(poles: Array, shift: float, dt: Any) -> Array:
    """Return how far poles are beyond the stability boundary, negative inside; discrete ones given less `shift`."""
    if not is_discrete(dt):
        return poles.real
    if shift:
        return 2 * poles.real + np.abs(poles) ** 2  # |1 + x|^2 - 1
    return np.abs(poles) - 1


def _unchanged(bank: Bank) -> _Part:
    """Return the bank itself, which is its only model of full order where a system is not minimal."""
    batch, n = bank.B.shape[:2]
    B, C = bank.split[:, :, None] * bank.B, (bank.unit / bank.split)[:, :, None] * bank.C
    identity = np.broadcast_to(np.eye(bank.order), (batch, bank.order, bank.order))
    every = np.arange(batch)
    return _Part(
        every, bank.poles.lam, bank.poles.z, B, C, identity, identity, np.full(batch, n), np.zeros(batch, bool)
    )


def _refuse_failed(parts: list[_Part]) -> None:
    failed = np.sort(np.concatenate([part.systems[part.failed] for part in parts]))
    if len(failed) == 0:
        return
    error = DiagonalisationError(
        f"Every reduced system of a bank must be a stable diagonal one; got {len(failed)} that are not, the first of "
        f"them number {failed[0]}. Choose another order, or reduce these alone: balance names orders that work."
    )
    error.systems = failed.tolist()  # type: ignore[attr-defined]
    raise error


def _assembled(bank: Bank, parts: list[_Part], hsv: Array) -> BankReduction:
    """Put the parts together, filled up with zeros to one size."""
    batch, full = len(bank.B), bank.order
    most = max((int(part.stored.max(initial=0)) for part in parts), default=0)
    order = np.zeros(batch, dtype=int)
    for part in parts:
        order[part.systems] = part.T.shape[2]
    widest = int(order.max(initial=0))
    dtype = np.result_type(bank.B, *(part.lam for part in parts))
    basis = np.result_type(dtype, *(part.T for part in parts))
    lam, mask = np.zeros((batch, most), dtype), np.zeros((batch, most), dtype=bool)
    rates = None if bank.poles.z is None else np.zeros((batch, most), dtype)
    B, C = np.zeros((batch, most, bank.B.shape[2]), dtype), np.zeros((batch, bank.C.shape[1], most), dtype)
    T, Ti = np.zeros((batch, full, widest), basis), np.zeros((batch, widest, full), basis)
    for part in parts:
        k, i = min(most, part.lam.shape[1]), part.systems
        kept = np.arange(k) < part.stored[:, None]
        mask[i, :k] = kept
        lam[i, :k] = np.where(kept, part.lam[:, :k], 0.0)
        if rates is not None and part.rates is not None:
            rates[i, :k] = np.where(kept, part.rates[:, :k], 0.0)
        B[i, :k] = np.where(kept[:, :, None], part.B[:, :k], 0.0)
        C[i, :, :k] = np.where(kept[:, None, :], part.C[:, :, :k], 0.0)
        T[i, :, : part.T.shape[2]], Ti[i, : part.T.shape[2]] = part.T, part.Ti
    bound = np.array([orders.error_bound(values, k) for values, k in zip(hsv, order, strict=True)])
    arrays: list[Any] = [lam, rates, B, C, mask, order, hsv, bound, T, Ti]
    if bank.dtype in (np.float32, np.complex64):
        arrays = [single_array(x) if x is not None and x.dtype.kind in "fc" else x for x in arrays]
    return BankReduction(*[*arrays, bank])
