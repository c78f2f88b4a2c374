"""CPU time of Hankel singular values of large sparse models: balance beside pyMOR's low-rank ADI, one thread, in turn.

    python -m benchmarks.speed.sparse            # prints, and writes benchmarks/results/sparse_speed.json
    python -m benchmarks.speed.sparse --largest 1000000

Rods and plates by finite differences, nets of resistors and capacitors, chains of masses. pyMOR stops at its default, a
residual of 1e-10; hankelred goes on to its own tolerance, and is timed to that residual as well. Errors of rods and
plates are against the closed form; where they are missing, the difference from pyMOR is that of two approximations.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

import hankelred as hr
from benchmarks._common import optional, parser, surroundings, write
from hankelred.low_rank import recursion_of

PEER_UP_TO, PEER_RESIDUAL = 100_000, 1e-10


def at(n: int, places: list[int]) -> np.ndarray:
    """A column for each place."""
    columns = np.zeros((n, len(places)))
    columns[places, range(len(places))] = 1.0
    return columns


def second_difference(n: int) -> sp.csc_array:
    return sp.csc_array(sp.diags_array([1.0, -2.0, 1.0], offsets=[-1, 0, 1], shape=(n, n)) * (n + 1.0) ** 2)


def ports(n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    """Heated and measured places, in different spots."""
    return at(n, [n * (k + 1) // (m + 2) for k in range(m)]), at(
        n, [n - 1 - n * (k + 1) // (m + 3) for k in range(m)]
    ).T


def rod(n: int, m: int) -> Any:
    return hr.StateSpace(second_difference(n), *ports(n, m))


def plate(n: int, m: int) -> Any:
    k = round(np.sqrt(n))
    T, one = second_difference(k), sp.eye_array(k)
    return hr.StateSpace((sp.kron(T, one) + sp.kron(one, T)).tocsc(), *ports(k * k, m))


def net(n: int, m: int) -> Any:
    """A square grid of resistors with capacitors of many sizes to earth."""
    k = round(np.sqrt(n))
    T, one = sp.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(k, k)), sp.eye_array(k)
    G = sp.kron(T, one) + sp.kron(one, T) + 1e-3 * sp.eye_array(k * k)
    E = sp.diags_array(np.exp(np.random.default_rng(0).normal(size=k * k)), format="csc")
    return hr.StateSpace(-G.tocsc(), *ports(k * k, m), E=E)


def chain(n: int, m: int) -> Any:
    """Masses between walls with damping by stiffness and by mass."""
    k = n // 2
    K = sp.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(k, k), format="csc")
    M = sp.diags_array(1.0 + np.arange(k) % 3, format="csc")
    B, C = ports(k, m)
    return hr.SecondOrderSystem(M, 0.6 * K + 0.5 * M, K, B, C)


def rod_error(system: Any, hsv: np.ndarray) -> float:
    """Largest difference from the closed form, relative to the first value."""
    n = system.n
    k = np.arange(1, n + 1)
    poles = -4 * (n + 1.0) ** 2 * np.sin(k * np.pi / 2 / (n + 1)) ** 2

    def modes(X: np.ndarray) -> np.ndarray:
        places = np.argmax(X, axis=0) + 1
        return np.sqrt(2 / (n + 1)) * np.sin(np.pi / (n + 1) * (np.outer(k, places) % (2 * (n + 1))))

    exact = hr.hankel_singular_values(hr.DiagonalSystem(poles, modes(system.B), modes(system.C.T).T, dt=0))
    return float(np.abs(hsv - exact[: len(hsv)]).max() / exact[0])


def plate_error(system: Any, hsv: np.ndarray) -> float:
    """Largest difference from the closed form of a plate with one port, relative to the first value."""
    k = round(np.sqrt(system.n))
    angle = np.pi / (k + 1) * np.arange(1, k + 1)
    poles = -4 * (k + 1.0) ** 2 * np.sin(angle / 2) ** 2
    modes = np.sqrt(2 / (k + 1)) * np.sin(angle[:, None] * np.arange(1, k + 1))
    residues = np.multiply(*(modes @ x.reshape(k, k) @ modes.T for x in (system.B, system.C)))
    i, j = np.triu_indices(k)  # modes (i, j) and (j, i) share a pole, and are one state
    merged = np.where(i < j, residues[i, j] + residues[j, i], residues[i, j])
    states = hr.DiagonalSystem(poles[i] + poles[j], np.ones((len(i), 1)), merged[None, :], dt=0)
    exact = hr.hankel_singular_values(states)
    return float(np.abs(hsv - exact[: len(hsv)]).max() / exact[0])


def memory(name: str, n: int, m: int) -> dict[str, float]:
    """Peak memory of balance in a process of its own, beside that of one LU factor and the factors of the Gramians."""
    command = [sys.executable, "-m", "benchmarks.speed.sparse", "--peak", name, str(n), str(m)]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def largest_so_far() -> int:
    """Bytes in memory at most since this process began; what getrusage tells begins with the parent's."""
    with open("/proc/self/status") as file:
        return 1024 * int(next(line for line in file if line.startswith("VmHWM")).split()[1])


def peak(name: str, n: int, m: int) -> dict[str, float]:
    """What `memory` runs."""
    hr.balance(MAKERS[name](400, m))  # loads what there is
    system = MAKERS[name](n, m)
    before = largest_so_far()
    recursion = hr.balance(system)._found.parts.recursion
    after = largest_so_far()
    entry = 8 if all(np.isreal(recursion.shifts)) else 16
    parts = system.pencil.whole.fill * entry + sum({id(x.base): x.nbytes for x in (recursion.S, recursion.R)}.values())
    return {"peak_above_start": after - before, "factor_and_basis": parts, "times": (after - before) / parts}


def by_pymor(system: Any) -> np.ndarray:
    """Hankel singular values by pyMOR's defaults."""
    from pymor.models.iosys import LTIModel

    E = None if system.E is None else sp.csc_matrix(system.E)
    model = LTIModel.from_matrices(sp.csc_matrix(system.A), system.B, system.C, E=E)
    return np.asarray(model.hsv())


def to_the_residual(system: Any) -> np.ndarray:
    """Hankel singular values by the iteration of hankelred, stopped at pyMOR's residual of 1e-10."""
    recursion = recursion_of(system)
    for step in recursion:
        if max(step.residuals) <= PEER_RESIDUAL:
            break
    return np.linalg.svd(recursion.R @ system.pencil.E(recursion.S), compute_uv=False)


MAKERS: dict[str, Callable[[int, int], Any]] = {"rod": rod, "plate": plate, "net": net, "chain": chain}

CASES: list[tuple[str, Callable[[int, int], Any], int, int]] = [
    ("rod", rod, 10_000, 1),
    ("rod", rod, 10_000, 4),
    ("rod", rod, 100_000, 1),
    ("rod", rod, 100_000, 4),
    ("plate", plate, 10_000, 1),
    ("plate", plate, 10_000, 4),
    ("plate", plate, 100_000, 1),
    ("net", net, 10_000, 1),
    ("net", net, 100_000, 1),
    ("chain", chain, 10_000, 1),
    ("chain", chain, 100_000, 1),
    ("rod", rod, 1_000_000, 1),
]


def measure(name: str, system: Any, rounds: int) -> dict[str, Any]:
    """Time one case, all programs in turn, and say how good the values are."""
    runs: dict[str, Callable[[Any], Any]] = {"hankelred": hr.balance}
    if optional("pymor") and system.n <= PEER_UP_TO and isinstance(system, hr.StateSpace):
        runs |= {"to the same residual": to_the_residual, "pymor": by_pymor}
    seconds, found = dict.fromkeys(runs, np.inf), {}
    for _ in range(rounds):
        for program, run in runs.items():
            begin = time.process_time()
            found[program] = run(system)
            seconds[program] = min(seconds[program], time.process_time() - begin)
    bal = found["hankelred"]
    row: dict[str, Any] = {"case": name, "n": system.n, "m": system.m, "values": len(bal.hsv), "seconds": seconds}
    if bal._found.parts.is_low_rank:
        recursion = bal._found.parts.recursion
        row["engine"] = bal._found.parts.engine
        row |= {"shifts": recursion.steps, "columns": recursion.S.shape[1], "residuals": recursion.residuals}
    row["floor"] = bal.floor / bal.hsv[0]
    if name == "rod":
        row["error"] = rod_error(system, bal.hsv)
    if name == "plate" and system.m == 1:
        row["error"] = plate_error(system, bal.hsv)
    if name:
        row["memory"] = memory(name, system.n, system.m)
    if "pymor" in runs:
        k = min(len(found["pymor"]), len(bal.hsv))
        row["pymor_difference"] = float(np.abs(found["pymor"][:k] - bal.hsv[:k]).max() / bal.hsv[0])
        row["ratio"] = seconds["hankelred"] / seconds["pymor"]
        row["ratio_at_the_residual"] = seconds["to the same residual"] / seconds["pymor"]
    row["peak_GiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return row


def main() -> None:
    command = parser(__doc__, "sparse_speed.json")
    command.add_argument("--largest", type=int, default=100_000, help="leave out models of more states")
    command.add_argument("--rounds", type=int, default=2, help="how often every program is timed")
    command.add_argument("--peak", nargs=3, metavar=("CASE", "N", "M"), help="measure the memory of one case alone")
    command.add_argument("--case", help="one kind alone: rod, plate, net or chain")
    arguments = command.parse_args()
    rows: list[dict[str, Any]] = []
    if arguments.peak:
        with threadpool_limits(1):
            print(json.dumps(peak(arguments.peak[0], *map(int, arguments.peak[1:]))))
        return
    if optional("pymor"):
        import pymor.basic

        pymor.basic.set_log_levels({"pymor": "ERROR"})
    for make in (rod, net):  # compiles and loads what there is
        measure("", make(2_500, 1), 1)
    with threadpool_limits(1):
        for name, make, n, m in CASES:
            if n <= arguments.largest and arguments.case in (None, name):
                rows.append(measure(name, make(n, m), arguments.rounds))
                print({key: f"{x:.2g}" if isinstance(x, float) else x for key, x in rows[-1].items()}, flush=True)
                write(arguments.output, {**surroundings(), "results": rows})


if __name__ == "__main__":
    main()
