"""CPU time of dense balanced truncation, hankelred and its peers in turn, as ratios to SLICOT's.

    python -m benchmarks.speed.dense                         # prints, and writes benchmarks/results/dense_speed.json
    python -m benchmarks.speed.dense --sizes 100 --inputs 2 20 --output /tmp/quick.json

Every program reduces the same system to the same order, one after the other in one process with one BLAS thread; the
time is the least CPU time of several rounds. Ratios are to slycot.ab09ad with job B in the same run; job N is never
called, its workspace in Slycot 0.7.1 is too small. Systems:

- `circ`: normally distributed A, shifted to the spectral abscissa -0.1 or scaled to the spectral radius 0.95;
- `spec`: decay rates spread over three decades, log-uniformly, behind a well-conditioned change of basis;
- `damp`: the same rates in orthogonal coordinates with weak couplings, so that the energy falls along every motion.

`python -m benchmarks.speed.one_schur` compares totals with one Schur form, up to more states.

The order is n/10, or the numerical rank where that is less. "one Schur form" is what all methods of this kind begin
with, a floor to their time; "factors" are hankelred's two Gramian factors without the reduction.
"""

from __future__ import annotations

import importlib
import math
import warnings
from itertools import product
from typing import Any

import numpy as np
import scipy.linalg as sla
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

import hankelred as hr
from benchmarks._common import Run, least_times, optional, parser, surroundings, write

REFERENCE = "slycot.ab09ad B"
ROUNDS = {100: 15, 200: 7, 400: 5, 800: 3}

Array = NDArray[np.float64]


def system(kind: str, n: int, m: int, discrete: bool, seed: int = 0) -> tuple[Array, Array, Array]:
    """A random stable (A, B, C) with m inputs and outputs."""
    rng = np.random.default_rng(seed)
    B, C = rng.standard_normal((n, m)), rng.standard_normal((m, n))
    A = rng.standard_normal((n, n))
    if kind == "circ":
        poles = sla.eigvals(A)
        return (0.95 / abs(poles).max() * A if discrete else A - (poles.real.max() + 0.1) * np.eye(n)), B, C
    rates = 10 ** rng.uniform(-2, 1, n)
    if kind == "damp":
        Q, _ = sla.qr(A)
        coupling = 1e-3 * (A - A.T) / np.sqrt(n)
        return Q @ (np.diag(np.exp(-rates) if discrete else -rates) + coupling) @ Q.T, B, C
    T = np.diag(np.exp(-rates) if discrete else -rates) + np.triu(A, 1) / (10 * np.sqrt(n))
    Q, _ = sla.qr(rng.standard_normal((n, n)))
    return Q @ T @ Q.T, B, C


def by_scipy(A: Array, B: Array, C: Array, discrete: bool, order: int) -> Any:
    """Reduce with SciPy's Lyapunov solvers, eigenvalue factors of the Gramians and one svd."""
    if discrete:
        P = sla.solve_discrete_lyapunov(A, B @ B.T)
        Q = sla.solve_discrete_lyapunov(A.T, C.T @ C)
    else:
        P = sla.solve_continuous_lyapunov(A, -B @ B.T)
        Q = sla.solve_continuous_lyapunov(A.T, -C.T @ C)
    S, R = (V * np.sqrt(np.maximum(w, 0)) for w, V in (sla.eigh(P), sla.eigh(Q)))
    U, hsv, Vh = sla.svd(R.T @ S)
    root = np.sqrt(hsv[:order])
    T, Ti = S @ Vh[:order].T / root, U[:, :order].T @ R.T / root[:, None]
    return Ti @ A @ T, Ti @ B, C @ T


def programs(A: Array, B: Array, C: Array, discrete: bool, order: int) -> dict[str, Run]:
    """What to time, peers only where they are installed and can do it."""
    n, m, p = len(A), B.shape[1], len(C)
    dt = 1 if discrete else 0
    runs: dict[str, Run] = {
        "hankelred": lambda: hr.balanced_truncation(hr.StateSpace(A, B, C, dt=dt), order=order),
        "hankelred, factors": lambda: hr.gramian_factors(hr.StateSpace(A, B, C, dt=dt)),
        "one Schur form": lambda: sla.schur(A),
        "SciPy reference": lambda: by_scipy(A, B, C, discrete, order),
    }
    if slycot := optional("slycot"):
        dico = "D" if discrete else "C"
        runs[REFERENCE] = lambda: slycot.ab09ad(dico, "B", "N", n, m, p, A.copy(), B.copy(), C.copy(), nr=order)
    if not discrete and (control := optional("control")):  # python-control treats every system as continuous
        runs["control.balred"] = lambda: control.balred(control.ss(A, B, C, np.zeros((p, m))), order)
    if optional("pymor"):
        iosys, bt = importlib.import_module("pymor.models.iosys"), importlib.import_module("pymor.reductors.bt")
        importlib.import_module("pymor.core.logger").set_log_levels({"pymor": "ERROR"})
        runs["pyMOR"] = lambda: bt.BTReductor(
            iosys.LTIModel.from_matrices(A, B, C, sampling_time=dt)  # a new model each time: it caches its factors
        ).reduce(order, projection="sr")
    return runs


def case(kind: str, n: int, m: int, discrete: bool) -> dict[str, Any]:
    """Time all programs on one system."""
    A, B, C = system(kind, n, m, discrete)
    order = min(n // 10, hr.balance(hr.StateSpace(A, B, C, dt=1 if discrete else 0)).rank)
    runs = programs(A, B, C, discrete, order)
    with threadpool_limits(1):  # here, because it reaches only the libraries that are loaded
        seconds = least_times(runs, ROUNDS.get(n, 3))
    domain = "discrete" if discrete else "continuous"
    return {"kind": kind, "domain": domain, "n": n, "m": m, "order": order, "seconds": seconds}


def table(results: list[dict[str, Any]]) -> str:
    """The ratios as text, a row a case."""
    names = list(dict.fromkeys(name for row in results for name in row["seconds"] if name != REFERENCE))
    lines = [f"{'kind':>4} {'time':>10} {'n':>4} {'m':>3} {'order':>5} {REFERENCE:>18}"]
    lines[0] += "".join(f" {name:>18}" for name in names)
    for row in results:
        seconds = row["seconds"]
        unit = seconds.get(REFERENCE, math.nan)
        line = f"{row['kind']:>4} {row['domain']:>10} {row['n']:>4} {row['m']:>3} {row['order']:>5}"
        line += f" {1e3 * unit:>15.1f} ms"
        lines.append(line + "".join(f" {seconds.get(name, math.nan) / unit:>18.2f}" for name in names))
    return "\n".join(lines)


def main() -> None:
    options = parser(__doc__, "dense_speed.json")
    options.add_argument("--sizes", type=int, nargs="+", default=[100, 200, 400, 800])
    options.add_argument("--inputs", type=int, nargs="+", default=[2])
    options.add_argument("--kinds", nargs="+", choices=["circ", "spec", "damp"], default=["circ", "spec"])
    arguments = options.parse_args()
    warnings.simplefilter("ignore")  # peers warn about what they do to the order
    results = []
    for kind, discrete, m, n in product(arguments.kinds, (False, True), arguments.inputs, arguments.sizes):
        results.append(case(kind, n, m, discrete))
        print(".", end="", flush=True)
    found = surroundings()
    print("\n" + table(results))
    print("versions: " + ", ".join(f"{name} {number}" for name, number in found["versions"].items()))
    write(arguments.output, {**found, "results": results})


if __name__ == "__main__":
    main()
