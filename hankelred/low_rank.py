"""The stable part of a large system: factors of low rank by shifted solves, and the system projected with them.

What `DenseParts` gets from a Schur form comes here from sparse factorisations alone. Nothing splits off unstable poles:
a system that is too large for a Schur form must be stable.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .checks import EPS, Array, check_result
from .errors import NumericalError, StabilityError
from .linalg.adi import LowRankGramians, Outcome
from .linalg.hankel_svd import HankelSVD
from .linalg.pencils import Cayley, Pencil
from .linalg.rows import current
from .rounding import Matrices
from .systems.sparse import DENSE_UP_TO

# What the columns left out may change, relative to the largest Hankel singular value.
RTOL = 1e-14

# A recursion that stands still is still of use where the columns left out change no more than this.
USABLE = 1e-3

# How far the columns left out move them, in what the last ones did: up to 20 was seen.
LEFT_OUT = 100

# Relative error of the Hankel singular values, in that of one solve with A: rods of 1e4 and 1e5 states had 0.3 to 4.
SOLVES = 10

# How often a shift is taken before its factorisation goes: rods, plates, nets and chains took a third of the
# factorisations with four, and up to half as many columns more. Where factors are thin, solves are as much work.
REPEATS, REPEATS_OF_THIN = 4, 2

# Share of the memory of the machine that both factors may take.
SHARE = 0.25

# Columns for each input or output, to foretell what a model takes: 56 to 112 were seen.
COLUMNS = 80

# Bytes of the place of an entry of a factor: columns that are alike share them.
INDEX = 2

# From this order on the memory is foretold, and a bar shows how far the recursion has come, where somebody is watching.
WATCHED_FROM = 10_000


class LowRankParts:
    """A stable system by its shifted solves; its coordinates are those of the system.

    Attributes
    ----------
    recursion : LowRankGramians
        How the factors came about.
    """

    is_low_rank = True
    kept, is_split = 0, False

    def __init__(self, system: Any, recursion: LowRankGramians) -> None:
        self.system, self.recursion = system, recursion
        self.poles = np.empty(0)

    @property
    def factors(self) -> tuple[Array, Array]:
        """Factors S and R E, whose product has the Hankel singular values."""
        rows, (S, R) = self.recursion.rows, self._own_factors
        return rows.whole(S), rows.whole(R.T).T

    @cached_property
    def _own_factors(self) -> tuple[Array, Array]:
        """Own rows of S and own columns of R E."""
        pencil = self.recursion.rows.pencil(self.system.pencil)
        return self.recursion.S, pencil.E(self.recursion.R.conj().T, adjoint=True).conj().T

    @property
    def svd(self) -> HankelSVD:
        """The product of the factors."""
        return HankelSVD(*self._own_factors, self.recursion.rows)

    @property
    def engine(self) -> str:
        """What factored the matrices."""
        return " and ".join(self.system.pencil.whole.engines)

    @property
    def discrete(self) -> bool:
        """Whether time is discrete."""
        return bool(self.system.is_discrete)

    def lift(self, T: Array, Ti: Array) -> tuple[Array, Array]:
        """Return bases of own rows and own columns as whole ones."""
        return self.recursion.rows.whole(T), self.recursion.rows.whole(Ti.T).T

    def stable_response(self, omega: Array) -> Array:
        """Return the response at frequencies in rad per unit of time."""
        return np.asarray(self.system._response(omega))

    def projected(self, X: Array, Y: Array) -> tuple[Array, Array, Matrices]:
        """Return the bases, and the system in them: ``L = E^-H Y^H`` on the left, divided by ``L^H E X`` once more."""
        pencil, (B, C, D) = self.system.pencil, self.system.ports
        mass = self.system.mass_solver() if Y.size else None
        left = Y if mass is None else mass.solve_adjoint(np.asfortranarray(Y.conj().T)).conj().T
        small = np.hstack([left @ pencil.A(X), left @ B])
        if mass is not None:
            small = np.linalg.solve(left @ pencil.E(X), small)
        return X, Y, Matrices(small[:, : X.shape[1]], small[:, X.shape[1] :], C @ X, D)

    projected_schur_form = projected

    def whole(self, stable: Matrices) -> Matrices:
        """Return a model of the stable part as that of the whole."""
        return stable

    def accuracy(self, svd: HankelSVD) -> tuple[float, int, bool]:
        """Return how far the hsv are certain, how many are more than that, and False.

        Three errors add up: of the columns that are missing, of the solves, and of the product of the factors.
        """
        largest = float(svd.values.max(initial=0.0))
        rounding = EPS * np.sqrt(self.system.n) * svd.size
        floor = LEFT_OUT * self.recursion.change + SOLVES * self.recursion.solving * largest + rounding
        return float(floor), int(np.count_nonzero(svd.values > floor)), False


# Where Linux says how much memory a container may use, by both versions of its groups.
CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def low_rank_parts(system: Any, offset: float) -> LowRankParts | None:
    """Return the parts of a sparse system; None where it is unstable or of full rank, and small enough to be dense."""
    rows = current()
    rows.check_same("Inputs and outputs", *system.ports)
    needed = memory_needed(system) if system.order >= WATCHED_FROM and rows.engine is None else 0
    if needed > (there := _memory()):
        raise NumericalError(
            f"The factorisations and factors of {system!r} must fit into memory; got about {needed / 2**30:.1f} GiB "
            f"where there are {there / 2**30:.1f}. Use a larger machine, a coarser model, or fewer inputs and outputs."
        )
    outermost = system.outermost(offset)
    if len(outermost) == 0:
        recursion = recursion_of(system)
        for _ in _watched(recursion, needed):
            pass
        stalled = recursion.outcome is Outcome.STALLED and recursion.change <= USABLE * recursion.size
        if stalled or recursion.outcome is Outcome.CONVERGED:
            return LowRankParts(system, recursion)
    if system.n <= DENSE_UP_TO:
        return None
    if len(outermost):
        names = ", ".join(f"{pole:.6g}" for pole in outermost[:3])
        raise StabilityError(
            f"A system of more than {DENSE_UP_TO} states must be stable; got {system!r} with poles {names} on or "
            f"beyond the stability boundary. Take its unstable and marginal modes, such as rigid-body modes, out first."
        )
    raise NumericalError(
        f"The Gramians of a system of more than {DENSE_UP_TO} states must have factors of low rank; got {system!r}, of "
        f"which after {recursion.steps} shifts {recursion.outcome.value}. Fewer inputs and outputs, or more damping, "
        f"make the rank smaller."
    )


def recursion_of(system: Any) -> LowRankGramians:
    """Return the recursion for the Gramians of a stable system, before its first step."""
    pencil, (B, C, _) = system.pencil, system.ports
    symmetric = bool(getattr(pencil, "hermitian", False) and B.shape == C.T.shape and np.array_equal(B, C.conj().T))
    if system.is_discrete:
        with np.errstate(over="ignore"):
            pencil, B, C = Cayley(pencil), Cayley.GAIN * B, Cayley.GAIN * C
        check_result("Inputs and outputs", B, C)
    rows = current()
    repeats = REPEATS_OF_THIN if rows.engine is None and system.pencil.whole.is_thin else REPEATS
    most = min(rows.every(_most_columns(pencil, B.dtype.itemsize * rows.share)))
    return LowRankGramians(pencil, B, C, RTOL, most, symmetric, repeats, rows)


def _most_columns(pencil: Pencil, bytes_here: float) -> int:
    """Return how many columns of both factors the memory has room for, with so many bytes of an entry here."""
    return int(min(pencil.n, max(1, SHARE * _memory() // (2 * bytes_here * max(1, pencil.n)))))


def _memory() -> int:
    """Return the bytes of memory of the machine, or of the container that this runs in, where they tell."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 2**33]
    for path in CONTAINER_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            limits.append(int(Path(path).read_text()))
    return min(limits)


def memory_needed(system: Any) -> int:
    """Return about how many bytes one factorisation and the factors of both Gramians take, before any work is done.

    The fill of a factorisation is that of the order of elimination, complex where shifts may be; the columns are those
    that models of this kind had.
    """
    pencil, (B, C, _) = system.pencil, system.ports
    entry = 8 if getattr(pencil, "hermitian", False) and pencil.real else 16
    columns = COLUMNS * (B.shape[1] + len(C)) * pencil.n * B.dtype.itemsize
    return int(pencil.whole.fill * (entry + INDEX) + columns)


def _watched(recursion: LowRankGramians, needed: int) -> Iterable[Any]:
    """Return the steps, with a bar on a terminal where they take long and tqdm is installed."""
    if recursion.pencil.n < WATCHED_FROM:
        return recursion
    try:
        from tqdm import tqdm
    except ImportError:
        return recursion
    name = f"factors of {recursion.pencil.n} states, about {needed / 2**30:.1f} GiB"
    return tqdm(recursion, desc=name, unit="shift", disable=None, delay=2.0, leave=False)
