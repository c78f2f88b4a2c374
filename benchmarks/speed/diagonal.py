"""CPU time of diagonal systems: hankelred, the approach published for in-training compression, plain NumPy, SLICOT.

    python -m benchmarks.speed.diagonal                     # prints, and writes benchmarks/results/diagonal_speed.json
    python -m benchmarks.speed.diagonal --parts banks       # one part: factors, reduction, banks or growth

One thread; all programs of a case in turn in one process, the least CPU time of several rounds. Parts:

- `factors`: both Gramian factors, structured, against forming the Gramians entry by entry and factoring them by their
  eigenvalues (Cholesky fails: they are semidefinite to rounding);
- `reduction`: hsv and a reduced model of a tenth of the states, against the published path: Gramians entry by entry,
  the square roots of the eigenvalues of P Q, a matrix square root of P, and the eigenvectors of the reduced A; and
  against slycot.ab09ad on the real form of twice the size, where it is installed;
- `banks`: the hsv of 1,536 systems of 16 states, against a Python loop over the published ones, in complex arithmetic
  as published and, where the data are real, in real arithmetic;
- `growth`: hsv and a reduced model of 20 states for up to 100,000 real rates, with the time over n k, k the columns.

Systems are LRU-like: |lam| in [0.9, 0.999], rows of B scaled by the root of 1 - |lam|^2; or real rates, log-spaced
over six decades.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg as sla
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

import hankelred as hr
from benchmarks._common import Run, least_times, optional, parser, surroundings, write
from hankelred import DiagonalBank, DiagonalSystem, gramian_factors
from tests.reference_diagonal import cauchy_gramians, published_hsv

REFERENCE = "published"

Array = NDArray[Any]


def lru_like(n: int, m: int, seed: int = 0, output: Any = "complex") -> DiagonalSystem:
    """A system as an LRU layer starts with."""
    rng = np.random.default_rng(seed)
    radius = np.sqrt(rng.uniform(0.9**2, 0.999**2, n))
    lam = radius * np.exp(2j * np.pi * rng.random(n))
    B = (rng.standard_normal((n, m)) + 1j * rng.standard_normal((n, m))) * np.sqrt(1 - radius**2)[:, None]
    C = rng.standard_normal((m, n)) + 1j * rng.standard_normal((m, n))
    return DiagonalSystem(lam, B, C, dt=True, output=output)


def formed_factors(lam: Array, B: Array, C: Array) -> tuple[Array, Array]:
    """Factors of the Gramians from their eigenvalues."""
    S, R = (V * np.sqrt(np.maximum(w, 0)) for w, V in map(sla.eigh, cauchy_gramians(lam, B, C, discrete=True)))
    return S, R.conj().T


def published_reduction(lam: Array, B: Array, C: Array, order: int) -> Any:
    """Reduce by the matrix square root of P, and bring the result back to diagonal form."""
    published_hsv(lam, B, C, discrete=True)
    P, Q = cauchy_gramians(lam, B, C, discrete=True)
    root = sla.sqrtm(P)
    squares, U = sla.eigh(root @ Q @ root)
    sigma, U = np.sqrt(np.maximum(squares, 0))[::-1][:order], U[:, ::-1][:, :order]
    T = root @ U / np.sqrt(sigma)
    Ti = (U / sigma**1.5).conj().T @ root @ Q
    poles, X = sla.eig(Ti @ (lam[:, None] * T))
    return poles, np.linalg.solve(X, Ti @ B), C @ T @ X


def factors() -> list[dict[str, Any]]:
    rows = []
    for n, m in ((256, 1), (512, 1), (1024, 1), (256, 8), (1024, 8)):
        system = lru_like(n, m)
        data = system.lam, system.B, system.C
        runs: dict[str, Run] = {
            "hankelred": lambda system=system: gramian_factors(system),
            "formed Gramians": lambda data=data: formed_factors(*data),
        }
        rows.append({"part": "factors", "n": n, "m": m, "seconds": least_times(runs, 5 if n < 1024 else 2)})
    return rows


def reduction() -> list[dict[str, Any]]:
    rows = []
    for n, m in ((64, 1), (64, 8), (256, 8), (1024, 8)):
        system, order = lru_like(n, m), n // 10
        data = system.lam, system.B, system.C
        runs: dict[str, Run] = {
            "hankelred": lambda system=system, order=order: hr.balanced_truncation(system, order=order),
            REFERENCE: lambda data=data, order=order: published_reduction(*data, order),
        }
        if (slycot := optional("slycot")) and n <= 256:
            real = lru_like(n, m, output="real").dense()
            runs["slycot.ab09ad, real form of 2n states"] = lambda G=real, order=order, slycot=slycot: slycot.ab09ad(
                "D", "B", "N", G.n, G.m, G.p, G.A.copy(), G.B.copy(), G.C.copy(), nr=2 * order
            )
            runs["hankelred, real output"] = lambda n=n, m=m, order=order: hr.balanced_truncation(
                lru_like(n, m, output="real"), order=2 * order
            )
        rows.append({"part": "reduction", "n": n, "m": m, "seconds": least_times(runs, 5 if n < 1024 else 1)})
    return rows


def banks() -> list[dict[str, Any]]:
    rows = []
    rng = np.random.default_rng(0)
    batch, n = 1536, 16
    for kind in ("real", "complex", "complex, real output"):
        lam = np.exp(-0.05 * rng.uniform(0.5, 1.5, (batch, 1)) * np.arange(1, n + 1))
        B, C = rng.standard_normal((batch, n, 1)), rng.standard_normal((batch, 1, n))
        if kind != "real":
            lam = lam * np.exp(2j * np.pi * rng.random((batch, n)))
            B, C = B + 1j * rng.standard_normal(B.shape), C + 1j * rng.standard_normal(C.shape)
        output = "real" if "output" in kind else "complex"
        runs: dict[str, Run] = {
            "hankelred": lambda data=(lam, B, C), output=output: hr.hankel_singular_values(
                DiagonalBank(*data, dt=True, output=output)
            ),
            REFERENCE: lambda data=(lam + 0j, B, C): [
                published_hsv(*one, discrete=True) for one in zip(*data, strict=True)
            ],
        }
        if kind == "real":
            runs["published, in real arithmetic"] = lambda data=(lam, B, C): [
                published_hsv(*one, discrete=True) for one in zip(*data, strict=True)
            ]
        rows.append({"part": "banks", "n": n, "m": 1, "kind": kind, "seconds": least_times(runs, 5)})
    return rows


def growth() -> list[dict[str, Any]]:
    rows = []
    for m in (1, 4):
        for n in (1000, 3000, 10_000, 30_000, 100_000):
            rng = np.random.default_rng(0)
            B, C = rng.standard_normal((n, m)), rng.standard_normal((m, n))
            system = DiagonalSystem(-np.geomspace(1e-3, 1e3, n), B, C, dt=0)
            runs: dict[str, Run] = {
                "hankelred, factors": lambda system=system: gramian_factors(system),
                "hankelred": lambda system=system: hr.balanced_truncation(system, order=20),
            }
            columns = gramian_factors(system)[0].shape[1]
            seconds = least_times(runs, 3 if n <= 10_000 else 1)
            per_entry = 1e9 * seconds["hankelred, factors"] / (2 * n * columns * m)
            row = {"part": "growth", "n": n, "m": m, "columns": columns, "ns_per_entry_and_input": per_entry}
            rows.append({**row, "seconds": seconds})
    return rows


def line(row: dict[str, Any]) -> str:
    """A case as text: milliseconds, and ratios to hankelred."""
    label = ", ".join(f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
                      for key, value in row.items() if key != "seconds")  # fmt: skip
    own = row["seconds"]["hankelred"]
    times = "; ".join(f"{name} {1e3 * t:.4g} ms ({t / own:.3g} x)" for name, t in row["seconds"].items())
    return f"{label}: {times}"


def main() -> None:
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "factors": factors,
        "reduction": reduction,
        "banks": banks,
        "growth": growth,
    }
    options = parser(__doc__, "diagonal_speed.json")
    options.add_argument("--parts", nargs="+", choices=list(parts), default=list(parts))
    arguments = options.parse_args()
    warnings.simplefilter("ignore")
    results = []
    gramian_factors(lru_like(2, 1))  # loads the libraries whose threads are limited
    with threadpool_limits(1):
        for part in arguments.parts:
            for row in parts[part]():
                results.append(row)
                print(line(row), flush=True)
    write(arguments.output, {**surroundings(), "results": results})


if __name__ == "__main__":
    main()
