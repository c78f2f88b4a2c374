"""CPU time of small reductions: hankelred.control.balred beside control.balred, which calls Slycot.

    python -m benchmarks.speed.small            # prints, and writes benchmarks/results/small_speed.json

Both reduce the same python-control model to a third of its states, in turn, with one BLAS thread.
"""

from __future__ import annotations

from functools import partial

import control
import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks._common import least_times, parser, surroundings, write
from hankelred.control import balred

SIZES = (4, 10, 30, 60, 100)


def model(n: int, m: int = 2) -> control.StateSpace:
    """A random stable model with m inputs and outputs."""
    rng = np.random.default_rng(n)
    A = rng.standard_normal((n, n))
    A -= (np.linalg.eigvals(A).real.max() + 0.5) * np.eye(n)
    return control.ss(A, rng.standard_normal((n, m)), rng.standard_normal((m, n)), 0)


def main() -> None:
    arguments = parser(__doc__, "small_speed.json").parse_args()
    rows = []
    balred(model(4), 1)  # loads the libraries whose threads are limited
    with threadpool_limits(1):
        for n in SIZES:
            sys, order = model(n), max(1, n // 3)
            runs = {"hankelred": partial(balred, sys, order), "control": partial(control.balred, sys, order)}
            seconds = least_times(runs, budget=1.0, fewest=20)
            ratio = seconds["hankelred"] / seconds["control"]
            rows.append({"n": n, "order": order, "ratio": ratio, "seconds": seconds})
            print(f"n {n:3d}: control {1e3 * seconds['control']:.3f} ms, hankelred {ratio:.2f} times that", flush=True)
    write(arguments.output, {**surroundings(), "results": rows})


if __name__ == "__main__":
    main()
