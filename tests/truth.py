"""What the library says of the systems of a family, next to what is true of them: shared by tests and a benchmark."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import many_digits
import numpy as np
from families import FAMILIES, Case

import hankelred as hr

EPS = float(np.finfo(float).eps)


def dense(case: Case) -> Any:
    """Make a state space of a case."""
    return hr.StateSpace(*case.matrices)


def diagonal(case: Case) -> Any:
    """Make a diagonal system of a case with diagonal A."""
    return hr.DiagonalSystem(np.diag(case.A), case.B, case.C, case.D, dt=case.dt)


def real_output(case: Case) -> Any:
    """Make a diagonal system whose output is the real part of that of the case."""
    return hr.DiagonalSystem(np.diag(case.A), case.B, case.C, case.D, dt=case.dt, output="real")


def rates(case: Case) -> Any:
    """Make a discrete diagonal system of rates, which keep the digits of poles near the circle."""
    return hr.DiagonalSystem.from_rates(np.log(np.diag(case.A)), case.B, case.C, case.D, dt=case.dt)


# Every family as the class of system that its users have: name, family, maker.
KINDS: dict[str, tuple[str, Callable[[Case], Any]]] = {name: (name, dense) for name in FAMILIES}
KINDS |= {f"{name} diagonal": (name, diagonal) for name in ("wide_rates", "wide_discrete_rates")}
KINDS |= {f"{name} real output": (name, real_output) for name in ("wide_rates", "wide_discrete_rates")}
KINDS["wide_discrete_rates of rates"] = ("wide_discrete_rates", rates)


class Verdict(NamedTuple):
    """One reduction judged: bound and measured error as said, true error, peak gain, and what rounding may add."""

    name: str
    order: int
    states: int
    bound: float
    measured: float
    true: float
    peak: float
    rounding: float

    @property
    def exceeded(self) -> bool:
        """Whether the true error is over the bound: it may attain it, so the last digits are let pass."""
        return not self.true <= self.bound * (1 + 1e-12)

    @property
    def mismeasured(self) -> bool:
        """Whether the measured error is off by more than 1 % of the true one and the rounding."""
        return self.measured != self.true and not abs(self.measured - self.true) <= 0.01 * self.true + self.rounding

    @property
    def useless(self) -> bool:
        """Whether the bound says nothing: over 100 true errors plus a thousandth of the peak gain."""
        return not self.bound <= 100 * self.true + 1e-3 * self.peak


def rounding(M: many_digits.Matrices, omega: list[float]) -> float:
    """Return what rounding may add to gains computed from stored matrices: ``4 n eps |C R| (|A| + |s E|) |R B|``.

    ``R = (s E - A)^-1``, absolute values entry by entry, the largest over `omega`: a solve changes every entry of A by
    about eps. The same in all units of states; a few eps of the gain unless poles are graded in dense coordinates, or
    lightly damped. Infinite where ``4 n eps |R| (|A| + |s E|)`` has a spectral radius of 1 or more: such changes can
    move a pole onto the point, and no computation in double precision knows the gain there.
    """
    A, B, C = (np.asarray(x).astype(complex) for x in M[:3])
    E, largest = np.eye(len(A)) if M.E is None else np.asarray(M.E), float(np.abs(np.asarray(M.D)).max(initial=0.0))
    for w in omega:
        s = np.exp(1j * w * float(M.dt)) if M.is_discrete else 1j * w
        if not np.isfinite(w) or len(A) == 0:
            continue
        try:
            R = np.linalg.inv(s * E - A)
        except np.linalg.LinAlgError:
            continue  # a pole
        weight = np.abs(A) + np.abs(s * E)
        if 4 * len(A) * EPS * np.abs(np.linalg.eigvals(np.abs(R) @ weight)).max() >= 1:
            return np.inf
        change = np.abs(C @ R) @ weight @ np.abs(R @ B)
        largest = max(largest, float(np.linalg.norm(change, ord=2)))
    return 4 * max(len(A), 1) * EPS * largest


def verdicts(case: Case, make: Callable[[Case], Any] = dense, match_dc: bool = False) -> Iterator[Verdict]:
    """Judge the reductions of a case to all orders up to its numerical rank.

    A system with marginal poles is judged from a tenth of its slowest vibration upwards, where its own gain is finite.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hr.HankelredWarning)
        system = make(case)
        G = many_digits.Transfer(many_digits.matrices(system))
        above = 0.1 * float(np.sort(np.abs(many_digits.poles(G)))[case.marginal]) if case.marginal else 0.0
        rates = many_digits.rates(G)
        resonances = [w for w in {above, *np.abs(rates), *np.abs(rates.imag)} if w >= above]
        peak = many_digits.peak_gain(G, points=16, refine=1, steps=14, above=above)[0]
        balancing = hr.balance(system)
        for order in range(max(balancing.unstable, 1), balancing.rank + 1):
            reduction = balancing.reduce(order, match_dc=match_dc)
            measured = reduction.hinf_error()
            H = many_digits.Transfer(many_digits.matrices(reduction.system))
            near = [] if case.marginal else [hr.hinf_norm(system - reduction.system, return_peak=True)[1]]
            true, where = many_digits.peak_gain(G, H, near, points=16, refine=1, steps=14, above=above)
            if not case.marginal and not many_digits.is_stable(H):
                true = np.inf
            own = many_digits.rates(H)
            seen = [*resonances, *near, where, *(w for w in {*np.abs(own), *np.abs(own.imag)} if w >= above)]
            noise = rounding(G.matrices, seen) + rounding(H.matrices, seen)
            yield Verdict(case.name, order, system.n, reduction.error_bound, measured, true, peak, noise)


@cache
def judged(kind: str, seed: int, match_dc: bool = False) -> tuple[Verdict, ...]:
    """Judge one system of a kind, once for all the claims about it."""
    family, make = KINDS[kind]
    return tuple(verdicts(FAMILIES[family](seed), make, match_dc))
