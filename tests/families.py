"""Families of systems that engineers have, by seed: the stored doubles are the truth, whatever made them.

Units are SI unless a line says otherwise. Nothing here knows the library: a `Case` is a name and plain arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg as sla
import scipy.signal as sg


class Case(NamedTuple):
    """One system: ``E x' = A x + B u`` (``x+`` if dt is not 0), ``y = C x + D u``; `marginal` counts poles."""

    name: str
    A: np.ndarray
    B: np.ndarray
    C: np.ndarray
    D: np.ndarray
    dt: Any = 0
    E: np.ndarray | None = None
    marginal: int = 0

    @property
    def matrices(self) -> tuple[Any, ...]:
        """The arguments of a state space: A, B, C, D, dt, E."""
        return self[1:7]


def _case(name: str, A: Any, B: Any, C: Any, D: Any = None, **rest: Any) -> Case:
    A, B, C = np.atleast_2d(A), np.atleast_2d(B), np.atleast_2d(C)
    return Case(name, A, B, C, np.zeros((len(C), B.shape[1])) if D is None else np.atleast_2d(D), **rest)


def _power(rng: np.random.Generator, low: float, high: float, size: Any = None) -> Any:
    """Draw log-uniformly between two powers of ten."""
    return 10.0 ** rng.uniform(low, high, size)


def _orthogonal(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((n, n)))[0]


def rc_ladder(seed: int, capacitors: int | None = None) -> Case:
    """2 to 5 capacitors of 1 pF to 10 mF to ground, 1 to 1e6 ohm between them and to both ends; V in, V out."""
    rng = np.random.default_rng([1, seed])
    n = int(rng.integers(2, 6)) if capacitors is None else capacitors
    c, g = _power(rng, -12, -2, n), 1 / _power(rng, 0, 6, n + 1)
    A = -np.diag((g[:-1] + g[1:]) / c) + np.diag(g[1:-1] / c[:-1], 1) + np.diag(g[1:-1] / c[1:], -1)
    return _case(f"rc ladder {seed}", A, np.eye(n)[:, :1] * g[0] / c[0], np.eye(n)[-1:])


def mass_chain(seed: int, masses: int | None = None, stiffness: float | None = None, ends: str | None = None) -> Case:
    """2 to 20 masses of 0.3 to 3 kg, springs of 1 to 1e7 N/m, damping a share of 1e-6 s or more of these; N in, m out.

    `ends` is "free" (two marginal poles: the chain drifts), or "clamped" at the first mass. The slowest vibration
    decays by at least 1e-5 per second: it is not marginal by any default.
    """
    rng = np.random.default_rng([2, seed])
    n = int(rng.integers(2, 21)) if masses is None else masses
    k = (_power(rng, 0, 7) if stiffness is None else stiffness) * rng.uniform(0.5, 2, n)
    ends = ["free", "clamped"][int(rng.integers(2))] if ends is None else ends
    mass, share = rng.uniform(0.3, 3, n), _power(rng, -6, -3)
    k[0] *= ends == "clamped"
    K = np.diag(k + np.append(k[1:], 0)) - np.diag(k[1:], 1) - np.diag(k[1:], -1)
    K = K / mass[:, None]
    share = max(share, 2e-5 / np.sort(np.linalg.eigvals(K).real)[int(ends == "free")])
    A = np.block([[np.zeros((n, n)), np.eye(n)], [-K, -share * K]])
    B, C = np.zeros((2 * n, 1)), np.zeros((1, 2 * n))
    B[n, 0], C[0, n - 1] = 1 / mass[0], 1.0
    return _case(f"{ends} chain of {n} masses {seed}", A, B, C, marginal=2 * (ends == "free"))


def _companion(num: np.ndarray, den: np.ndarray, form: str) -> tuple[np.ndarray, ...]:
    """Write a transfer function in "controller" or "observer" form (last state first), or as "tf2ss" of SciPy does."""
    if form == "tf2ss":
        return sg.tf2ss(num, den)
    num, den = np.append(np.zeros(len(den) - len(num)), num) / den[0], den / den[0]
    n = len(den) - 1
    A = np.eye(n, k=1)
    A[-1] = -den[:0:-1]
    B, C, D = np.eye(n)[:, -1:], (num[1:] - num[0] * den[1:])[None, ::-1], np.array([[num[0]]])
    return (A, B, C, D) if form == "controller" else (A.T.copy(), C.T.copy(), B.T.copy(), D)


FORMS = ("controller", "observer", "tf2ss")


def analog_filter(seed: int) -> Case:
    """Butterworth, Chebyshev, Bessel or elliptic filter of 2 to 8 states, corner at 1 Hz to 1 MHz, companion."""
    rng = np.random.default_rng([3, seed])
    n, corner, form = int(rng.integers(2, 9)), 2 * np.pi * _power(rng, 0, 6), FORMS[seed % 3]
    kind = ["butter", "cheby1", "bessel", "ellip"][int(rng.integers(4))]
    ripple = {"cheby1": (1.0,), "ellip": (1.0, 40.0)}.get(kind, ())
    num, den = getattr(sg, kind)(n, *ripple, corner, analog=True)
    return _case(f"{kind} {n} {form} {seed}", *_companion(num, den, form))


def pade_delay(seed: int) -> Case:
    """Padé approximation of 2 to 7 states of a delay of 1 us to 10 s, companion: an all-pass, all hsv 1."""
    rng = np.random.default_rng([4, seed])
    n, delay = int(rng.integers(2, 8)), _power(rng, -6, 1)
    c = [1.0]
    for k in range(1, n + 1):
        c.append(delay * c[-1] * (n - k + 1) / (2 * n - k + 1) / k)
    num = np.array([x * (-1) ** k for k, x in enumerate(c)])[::-1]
    return _case(f"pade {n} {seed}", *_companion(num, np.array(c[::-1]), FORMS[seed % 3]))


def lag_chain(n: int) -> Case:
    """n lags of 1 s in a row, ``1 / (s + 1)^n``: one Jordan block."""
    return _case(f"1/(s+1)^{n}", np.eye(n, k=1) - np.eye(n), np.eye(n)[:, -1:], np.eye(n)[:1])


def random_stable(seed: int, n: int = 6) -> Case:
    """Normal random matrices, two inputs and outputs, A shifted to a decay of at least 0.3 per second."""
    rng = np.random.default_rng([5, seed])
    A = rng.standard_normal((n, n))
    A -= (np.linalg.eigvals(A).real.max() + 0.3) * np.eye(n)
    return _case(f"random {n} {seed}", A, rng.standard_normal((n, 2)), rng.standard_normal((2, n)))


def random_in_units(seed: int, n: int = 6, signals: bool = False) -> Case:
    """`random_stable` with states in units 10^U(-10, 10); `signals`: of signals 10^U(-4, 4), time 10^U(-6, 6)."""
    rng, case = np.random.default_rng([6, seed]), random_stable(seed, n)
    w = _power(rng, -10, 10, n)
    A, B, C = case.A * w[:, None] / w, case.B * w[:, None], case.C / w
    if signals:
        t = _power(rng, -6, 6)
        A, B, C = A * t, B * t * _power(rng, -4, 4, 2), C * _power(rng, -4, 4, (2, 1))
    return _case(f"random {n} in units{' of all' * signals} {seed}", A, B, C)


def fir_filter(seed: int) -> Case:
    """Filter of 2 to 9 past samples: taps normal, or halves and wholes, or a bare delay; A is nilpotent."""
    rng = np.random.default_rng([7, seed])
    n = int(rng.integers(2, 10))
    h = [rng.standard_normal(n + 1), rng.choice([-1.0, -0.5, 0.5, 1.0], n + 1), np.eye(n + 1)[-1]][seed % 3]
    return _case(f"fir {n} {seed}", np.eye(n, k=-1), np.eye(n)[:, :1], h[1:], [[h[0]]], dt=[True, 0.01][seed % 2])


def stiff_rotated(seed: int) -> Case:
    """3 to 6 real rates of 1e-6 to 1e6 per second, each mode with a gain of 1e-3 to 1e3, in rotated coordinates."""
    rng = np.random.default_rng([8, seed])
    n = int(rng.integers(3, 7))
    rates, gains, Q = _power(rng, -6, 6, n), _power(rng, -3, 3, n), _orthogonal(rng, n)
    return _case(f"stiff {n} {seed}", Q @ np.diag(-rates) @ Q.T, (Q @ (rates * gains))[:, None], Q.sum(1)[None])


def modal(seed: int) -> Case:
    """2 to 5 modes of 1 to 1e4 rad/s with damping ratios of 1e-7 to 1e-2; two forces in, two velocities out."""
    rng = np.random.default_rng([9, seed])
    n = int(rng.integers(2, 6))
    w, zeta, shapes = _power(rng, 0, 4, n), _power(rng, -7, -2, n), rng.standard_normal((n, 2))
    A = sla.block_diag(*(np.array([[0.0, x], [-x, -2 * z * x]]) for x, z in zip(w, zeta, strict=True)))
    B = np.zeros((2 * n, 2))
    B[1::2] = shapes
    return _case(f"modal {n} {seed}", A, B, B.T.copy())


def wide_rates(seed: int) -> Case:
    """3 to 6 diagonal poles, real or complex, 1e-6 to 1e6 per second, gains of 1e-3 to 1e3; complex data if odd."""
    rng = np.random.default_rng([10, seed])
    n = int(rng.integers(3, 7))
    lam = -_power(rng, -6, 6, n)
    B, C = np.abs(lam)[:, None] * _power(rng, -3, 3, (n, 1)), rng.standard_normal((1, n))
    if seed % 2:
        lam, C = lam * (1 + 1j * rng.standard_normal(n)), C + 1j * rng.standard_normal((1, n))
    return _case(f"wide rates {n} {seed}", np.diag(lam), B, C)


def wide_discrete_rates(seed: int) -> Case:
    """3 to 6 diagonal poles ``exp(-r)``, r from 1e-9 to 10 per sample, at any angle if the seed is odd."""
    rng = np.random.default_rng([11, seed])
    n = int(rng.integers(3, 7))
    r = _power(rng, -9, 1, n)
    lam = np.exp(-r + (1j * rng.uniform(-np.pi, np.pi, n) if seed % 2 else 0))
    return _case(
        f"wide discrete rates {n} {seed}", np.diag(lam), np.sqrt(r)[:, None], rng.standard_normal((1, n)), dt=True
    )


def descriptor(seed: int) -> Case:
    """`random_stable` of 4 states, equations and states in units 10^U(-8, 8); E is diagonal for odd seeds."""
    rng, case = np.random.default_rng([12, seed]), random_stable(seed, 4)
    rows, w = _power(rng, -8, 8, 4), _power(rng, -8, 8, 4)
    E = np.eye(4) if seed % 2 else np.eye(4) + 0.3 * np.tril(rng.standard_normal((4, 4)), -1)
    A, B = E @ case.A, E @ case.B
    return _case(f"descriptor {seed}", A * rows[:, None] * w, B * rows[:, None], case.C * w, E=E * rows[:, None] * w)


def all_pass(seed: int) -> Case:
    """Product of 2 to 4 lags ``(a - s) / (a + s)``, a from 1 to 1e4 per second, as a cascade: gains and hsv are 1."""
    rng = np.random.default_rng([13, seed])
    n = int(rng.integers(2, 5))
    a = _power(rng, 0, 4, n)
    A, B, C, D = np.zeros((0, 0)), np.zeros((0, 1)), np.zeros((1, 0)), np.ones((1, 1))
    for x in a:  # (a - s) / (a + s) = -1 + 2 a / (s + a)
        A = np.block([[A, np.zeros((len(A), 1))], [C, -x * np.ones((1, 1))]])
        B, C, D = np.vstack([B, D]), np.hstack([-C, 2 * x * np.ones((1, 1))]), -D
    return _case(f"all-pass {n} {seed}", A, B, C, D)


def bilinear(case: Case) -> Case:
    """The bilinear image of a system, with two samples per mean time constant; it keeps hsv and gains to rounding."""
    return _discrete(case, "bilinear")


def zero_order_hold(case: Case) -> Case:
    """The system between a hold and a sampler, two samples per mean time constant."""
    return _discrete(case, "zoh")


def _discrete(case: Case, method: str) -> Case:
    rates = np.abs(np.linalg.eigvals(case.A))
    dt = float(0.5 / np.exp(np.log(rates).mean()))
    A, B, C, D, _ = sg.cont2discrete((case.A, case.B, case.C, case.D), dt, method)
    return _case(f"{method} of {case.name}", A, B, C, D, dt=dt)


# Name: what makes the system of a seed. Discrete images are taken of families that survive them in doubles.
FAMILIES: dict[str, Callable[[int], Case]] = {
    "rc_ladder": rc_ladder,
    "clamped_chain": lambda seed: mass_chain(seed, masses=2 + seed % 3, ends="clamped"),
    "free_chain": lambda seed: mass_chain(seed, masses=2 + seed % 3, ends="free"),
    "analog_filter": analog_filter,
    "pade_delay": pade_delay,
    "lag_chain": lambda seed: lag_chain(2 + seed % 9),
    "random_in_units": random_in_units,
    "random_in_all_units": lambda seed: random_in_units(seed, 5, signals=True),
    "fir_filter": fir_filter,
    "stiff_rotated": stiff_rotated,
    "modal": modal,
    "wide_rates": wide_rates,
    "wide_discrete_rates": wide_discrete_rates,
    "descriptor": descriptor,
    "all_pass": all_pass,
    "bilinear_random": lambda seed: bilinear(random_stable(seed, 5)),
    "held_random": lambda seed: zero_order_hold(random_stable(seed, 5)),
    "bilinear_modal": lambda seed: bilinear(modal(seed)),
    "held_chain": lambda seed: zero_order_hold(mass_chain(seed, masses=2 + seed % 3, ends="clamped")),
    "held_ladder": lambda seed: zero_order_hold(rc_ladder(seed, 2)),
}
