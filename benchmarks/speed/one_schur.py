"""CPU time of dense balanced truncation in units of one real Schur form of the same matrix.

    python -m benchmarks.speed.one_schur             # prints, and writes benchmarks/results/one_schur.json
    python -m benchmarks.speed.one_schur --sizes 400 --rounds 9 --output /tmp/quick.json

Methods on a Schur form take about twice its time in all. With few inputs and outputs hankelred does without one: by
low-rank factors on a Hessenberg form, and stability by other means. Rows of "way" "Schur" are systems where that is not
worth it, for few states or many inputs, or fails, as for "light": 2 % damping at every frequency, where no factor has
low rank. "before" is the same by a Schur form. Discrete time and "before" end at 800 states, so that all of it takes
some minutes.

All runs of a row take turns in one process with one BLAS thread; times are medians. The order is 20, or n/10 where
that is less; near the numerical rank either way takes longer, because there the error is measured. The other systems
are those of `dense`.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import scipy.linalg as sla
from threadpoolctl import threadpool_limits

import hankelred as hr
from benchmarks._common import Run, parser, surroundings, write
from benchmarks.speed.dense import Array, system
from hankelred import hessenberg_parts

KINDS = ["spec", "circ", "damp"]
OTHERS = [("light", False, 2, 400), ("spec", False, 20, 400), ("spec", False, 2, 100), ("circ", False, 2, 60)]


MOST = 800  # states in discrete time, and by a Schur form


def lightly_damped(n: int, m: int) -> tuple[Array, Array, Array]:
    """Oscillators with 2 % damping, frequencies over three decades, behind an orthogonal change of basis."""
    rng = np.random.default_rng(0)
    blocks = [np.array([[-0.02 * w, w], [-w, -0.02 * w]]) for w in 10 ** rng.uniform(0, 3, n // 2)]
    Q, _ = sla.qr(rng.standard_normal((n, n)))
    return Q @ sla.block_diag(*blocks) @ Q.T, rng.standard_normal((n, m)), rng.standard_normal((m, n))


def by_schur_form(G: hr.StateSpace, order: int) -> Any:
    """Reduce as `balanced_truncation` does where low-rank factors are not worth it."""
    few, hessenberg_parts.FROM = hessenberg_parts.FROM, G.n + 1
    try:
        return hr.balanced_truncation(G, order=order)
    finally:
        hessenberg_parts.FROM = few


def medians(runs: dict[str, Run], rounds: int) -> dict[str, float]:
    """The median CPU time of each program in seconds, all of them in turn; one round more fills caches."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            begin = time.process_time()
            run()
            times[name].append(time.process_time() - begin)
    return {name: float(np.median(found[1:])) for name, found in times.items()}


def case(kind: str, discrete: bool, m: int, n: int, rounds: int) -> dict[str, Any]:
    """Time one system."""
    A, B, C = lightly_damped(n, m) if kind == "light" else system(kind, n, m, discrete)
    G = hr.StateSpace(A, B, C, dt=1 if discrete else 0)
    bal = hr.balance(G)
    order = min(n // 10, 20)
    runs: dict[str, Run] = {
        "one Schur form": lambda: sla.schur(A),
        "hankelred": lambda: hr.balanced_truncation(G, order=order),
    }
    if n <= MOST:
        runs["on a Schur form"] = lambda: by_schur_form(G, order)
    with threadpool_limits(1):
        seconds = medians(runs, rounds)
    way = "Hessenberg" if type(bal._found.parts).__name__ == "HessenbergParts" else "Schur"
    row = {"kind": kind, "domain": "discrete" if discrete else "continuous", "n": n, "m": m, "order": order, "way": way}
    return {**row, "ratio": seconds["hankelred"] / seconds["one Schur form"], "seconds": seconds}


def text(row: dict[str, Any]) -> str:
    """A row of the table."""
    seconds = row["seconds"]
    before = seconds.get("on a Schur form", np.nan) / seconds["one Schur form"]
    line = f"{row['kind']:>5} {row['domain']:>10} {row['n']:>5} {row['m']:>3} {row['order']:>5} {row['way']:>10}"
    return line + f" {row['ratio']:>6.2f} {before:>6.2f}"


def main() -> None:
    options = parser(__doc__, "one_schur.json")
    options.add_argument("--sizes", type=int, nargs="*", default=[400, 800, 1600])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    arguments = options.parse_args()
    print(f"{'kind':>5} {'time':>10} {'n':>5} {'m':>3} {'order':>5} {'way':>10} {'total':>6} {'before':>6}")
    results = []
    domains = [(n, discrete) for n in arguments.sizes for discrete in (False, True) if not discrete or n <= MOST]
    rows = [(kind, discrete, 2, n) for n, discrete in domains for kind in arguments.kinds]
    for row in rows + OTHERS:
        results.append(case(*row, arguments.rounds))
        print(text(results[-1]), flush=True)
    write(arguments.output, {**surroundings(), "results": results})


if __name__ == "__main__":
    main()
