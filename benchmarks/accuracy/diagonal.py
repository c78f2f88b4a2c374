"""Correct digits of Hankel singular values of diagonal systems: hankelred and the published approach against mpmath.

    python -m benchmarks.accuracy.diagonal          # prints, and writes benchmarks/results/diagonal_accuracy.json

For every system: how small the last value is next to the first, the largest relative error of any value, and how many
values have four correct digits. "published" are the square roots of the eigenvalues of P Q, in double and, on the data
rounded to single precision and against their own reference, in single precision. hankelred computes in double precision
whatever the data are.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

import hankelred as hr
from benchmarks._common import parser, surroundings, write
from hankelred import DiagonalSystem
from tests.reference_diagonal import exact_hsv, published_hsv

FOUR_DIGITS = 1e-4

Array = NDArray[Any]


def cases(large: bool) -> dict[str, DiagonalSystem]:
    """The systems by name; the reference of the large ones takes minutes."""
    one = {n: (np.ones((n, 1)), np.ones((1, n))) for n in (3, 4, 6, 12, 16, 20)}
    found = {f"hilbert {n}": DiagonalSystem(-(np.arange(n) + 0.5), *one[n], dt=0) for n in (6, 12, 20)}
    found["rates 0.05 k, 16"] = DiagonalSystem(-0.05 * np.arange(1, 17), *one[16], dt=0)
    found["diag_dt"] = DiagonalSystem([0.95, 0.5, -0.3, 0.8], one[4][0], [[1.0, 2.0, 3.0, 0.5]], dt=True)
    found["near_unit_circle_dt"] = DiagonalSystem([1 - 1e-9, 1 - 1e-6, 0.9, -1 + 1e-6], *one[4], dt=True)
    found["complex_diag_ct"] = DiagonalSystem([-1 + 1j, -2 - 1j, -0.1 + 5j], *one[3], dt=0)
    for n in (16, 32, 64) if large else (16, 32):
        for m in (1, 2, 4):
            found[f"LRU {n}, m = {m}"] = lru_like(n, m, "complex")
            found[f"S4D {n}, m = {m}"] = s4d_like(n, m, "complex")
    for n in (16, 32) if large else (16,):
        for m in (1, 2):
            found[f"LRU {n}, m = {m}, real output"] = lru_like(n, m, "real")
            found[f"S4D {n}, m = {m}, real output"] = s4d_like(n, m, "real")
    return found


def lru_like(n: int, m: int, output: Any) -> DiagonalSystem:
    """A ring of poles, rows of B scaled by the root of ``1 - |lam|^2``."""
    rng = np.random.default_rng(n + m)
    radius = np.sqrt(rng.uniform(0.5**2, 0.999**2, n))
    B = normal(rng, n, m) * np.sqrt(1 - radius**2)[:, None]
    lam = radius * np.exp(2j * np.pi * rng.random(n))
    return DiagonalSystem(lam, B, normal(rng, m, n), dt=True, output=output)


def s4d_like(n: int, m: int, output: Any) -> DiagonalSystem:
    """The poles ``-1/2 + i pi k``, sampled with a step of 0.01."""
    rng = np.random.default_rng(n + m)
    rates = 0.01 * (-0.5 + 1j * np.pi * np.arange(n))
    return DiagonalSystem.from_rates(rates, 0.01 * np.ones((n, m)), normal(rng, m, n), dt=0.01, output=output)


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)


def single(system: DiagonalSystem) -> DiagonalSystem:
    """The system with its data rounded to single precision."""
    lam, B, C = (
        x.astype(np.complex64 if x.dtype.kind == "c" else np.float32) for x in (system.lam, system.B, system.C)
    )
    return DiagonalSystem(lam, B, C, dt=system.dt, output=system.output)


def published(system: DiagonalSystem) -> Array:
    """The published values; real outputs by the doubled system, which is more than was published."""
    lam, B, C = system.lam, system.B, system.C
    if system.output == "real":
        lam, B, C = np.append(lam, lam.conj()), np.vstack([B, B.conj()]), np.hstack([C, C.conj()]) / 2
    return published_hsv(lam, B, C, system.is_discrete)


def score(values: Array, exact: Array) -> dict[str, Any]:
    """The largest relative error and the number of values with four correct digits."""
    real = exact > 0
    error = np.abs(values - exact)[real] / exact[real]
    error[np.isnan(error)] = np.inf
    return {"largest": float(error.max()), "right": int(np.sum(error < FOUR_DIGITS))}


def case(name: str, system: DiagonalSystem) -> dict[str, Any]:
    exact = exact_hsv(system)
    programs: dict[str, Callable[[], dict[str, Any]]] = {
        "hankelred": lambda: score(hr.hankel_singular_values(system), exact),
        "published": lambda: score(published(system), exact),
    }
    rounded = single(system)
    if rounded.is_stable():
        exact_rounded = exact_hsv(rounded)
        programs["hankelred, single"] = lambda: score(hr.hankel_singular_values(rounded), exact_rounded)
        programs["published, single"] = lambda: score(published(rounded), exact_rounded)
    values = int(np.sum(exact > 0))
    spread = float(exact[exact > 0].min() / exact[0])
    return {"name": name, "values": values, "spread": spread, "programs": {k: run() for k, run in programs.items()}}


def main() -> None:
    options = parser(__doc__, "diagonal_accuracy.json")
    options.add_argument("--large", action="store_true", help="64 states, and 32 with real output: half an hour")
    arguments = options.parse_args()
    warnings.simplefilter("ignore")
    results = []
    for name, system in cases(arguments.large).items():
        row = case(name, system)
        results.append(row)
        text = "; ".join(
            f"{program} {found['largest']:.0e}, {found['right']} right" for program, found in row["programs"].items()
        )
        print(f"{name:>28}: {row['values']:>3} values down to {row['spread']:.0e}: {text}", flush=True)
    write(arguments.output, {**surroundings(), "results": results})


if __name__ == "__main__":
    main()
