"""CPU time of H-infinity norms of lightly damped systems: hinf_norm beside Slycot's ab13dd.

    python -m benchmarks.speed.norms            # prints, and writes benchmarks/results/norms_speed.json

Modes of 0.1 % damping between 1 and 1000 rad/s in rotated coordinates, two inputs and outputs.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import slycot
from threadpoolctl import threadpool_limits

import hankelred as hr
from benchmarks._common import least_times, parser, surroundings, write

SIZES = (20, 50, 100, 150)


def structure(n: int, m: int = 2, damping: float = 1e-3) -> hr.StateSpace:
    """N / 2 modes behind a rotation."""
    rng = np.random.default_rng(n)
    omega = np.geomspace(1.0, 1e3, n // 2)
    A = np.zeros((n, n))
    even = np.arange(0, n, 2)
    A[even, even] = A[even + 1, even + 1] = -damping * omega
    A[even, even + 1], A[even + 1, even] = omega, -omega
    Q, _ = np.linalg.qr(rng.standard_normal((n, n)))
    return hr.StateSpace(Q @ A @ Q.T, rng.standard_normal((n, m)), rng.standard_normal((m, n)))


def by_slycot(G: hr.StateSpace) -> float:
    A, B, C, D = (np.array(x) for x in (G.A, G.B, G.C, G.D))
    return float(slycot.ab13dd("C", "I", "S", "D", G.n, G.m, G.p, A, np.eye(G.n), B, C, D, 1e-8)[0])


def main() -> None:
    arguments = parser(__doc__, "norms_speed.json").parse_args()
    rows = []
    hr.hinf_norm(structure(4))  # loads the libraries whose threads are limited
    with threadpool_limits(1):
        for n in SIZES:
            G = structure(n)
            runs = {"hankelred": partial(hr.hinf_norm, G), "slycot.ab13dd": partial(by_slycot, G)}
            seconds = least_times(runs, budget=1.0, fewest=3)
            ratio, difference = seconds["hankelred"] / seconds["slycot.ab13dd"], hr.hinf_norm(G) / by_slycot(G) - 1
            rows.append({"n": n, "ratio": ratio, "relative_difference": difference, "seconds": seconds})
            unit = 1e3 * seconds["slycot.ab13dd"]
            print(
                f"n {n:3d}: ab13dd {unit:.1f} ms, hinf_norm {ratio:.2f} times that; apart {difference:.1e}",
                flush=True,
            )
    write(arguments.output, {**surroundings(), "results": rows})


if __name__ == "__main__":
    main()
