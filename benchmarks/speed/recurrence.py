"""Time of diagonal state space models on one core, and the cost model fitted to it.

    python -m benchmarks.speed.recurrence            # both methods on the grid, the peers, the fit; prints
    python -m benchmarks.speed.recurrence --write    # and keeps it in benchmarks/results/recurrence_cpu.json, with
                                                     # the least of each time if the file has the same versions
    python -m benchmarks.speed.recurrence --peers    # only the comparison with the peers; with --write, too

All times are forward and backward together, in seconds of the thread: the least of several runs, methods in turn, so
that what else the machine does falls on all of them alike. After --write, SECONDS of hankelred_torch/ops/state_space.py
must be the `seconds` of the file; a test compares the two.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import math
import platform
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numba
import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from benchmarks._common import least_times, write
from hankelred_torch.layers import LRU
from hankelred_torch.ops.state_space import Method, diagonal_ssm, work

RESULTS = Path(__file__).parents[1] / "results" / "recurrence_cpu.json"
METHODS: tuple[Method, ...] = ("recurrence", "convolution")

BATCHES = (1, 8, 50)
LENGTHS = (16, 64, 256, 784, 2048)
CHANNELS = (1, 2, 4, 8, 16, 32, 64)
STATES = (4, 16, 64, 256)
PASSES = 3

# What a layer of the paper's sequential MNIST needs, with its 8 channels and with 64; and the digits of the demo.
PEER_SIZES = ((50, 784, 8, 256), (50, 784, 64, 256))
LAYER_SIZES = ((50, 64, 16, 64), (50, 64, 16, 16), (50, 64, 16, 4), (50, 64, 8, 64), (50, 64, 8, 4))


def system(batch: int, length: int, channels: int, states: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """The arguments of `diagonal_ssm`, all with gradients, and a gradient of its output."""
    torch.manual_seed(0)
    layer = LRU(channels, states)
    B, C, D = layer.system_matrices()
    u, gy = torch.randn(2, batch, length, channels)
    return tuple(x.detach().requires_grad_() for x in (layer.rates(), B, C, u, D)), gy


def both_methods(*sizes: int) -> dict[str, float]:
    arguments, gy = system(*sizes)

    def run(method: Method) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(diagonal_ssm(*arguments, method=method), arguments, gy)

    return least_times({method: run(method) for method in METHODS})


def grid() -> list[tuple[int, ...]]:
    """The sizes to measure: both methods finish in a second or so."""
    sizes = product(BATCHES, LENGTHS, CHANNELS, STATES)
    return [s for s in sizes if math.prod(s) <= 2**28 and s[1] * s[2] ** 2 <= 2**20 and s[0] * s[1] * s[2] <= 2**20]


def fit(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    """Nonnegative seconds per unit of work, for the least squares of relative errors.

    Rows count the more the closer the methods are: far apart, it does not matter by how much.
    """
    seconds = {}
    close = np.array([min(row[m] for m in METHODS) / max(row[m] for m in METHODS) for row in rows])
    for method in METHODS:
        amounts = np.array([work(method, *(int(row[k]) for k in SIZES), int(row["states"])) for row in rows])
        times = np.array([row[method] for row in rows])
        solution, _ = scipy.optimize.nnls(amounts * (close / times)[:, None], close)
        seconds[method] = [float(f"{s:.3g}") for s in solution]
    return seconds


SIZES = ("batch", "length", "channels", "channels")  # batch, length, inputs, outputs


def quality(rows: list[dict[str, float]], seconds: dict[str, list[float]]) -> dict[str, float]:
    """How much longer the method takes that the model chooses, at most and on average."""
    ratios = []
    for row in rows:
        sizes = (*(int(row[k]) for k in SIZES), int(row["states"]))
        chosen = min(METHODS, key=lambda method: np.dot(seconds[method], work(method, *sizes)))
        ratios.append(row[chosen] / min(row[method] for method in METHODS))
    return {"worst": round(max(ratios), 3), "mean": round(float(np.mean(ratios)), 4)}


def loop(lam: Tensor, B: Tensor, C: Tensor, D: Tensor, u: Tensor) -> Tensor:
    """The recurrence as one writes it in torch."""
    x, states = torch.zeros(len(u), len(lam), dtype=lam.dtype), []
    for v in (u.to(lam.dtype) @ B.T).unbind(1):
        x = torch.addcmul(v, x, lam)
        states.append(x)
    return (torch.stack(states, 1) @ C.T).real + D * u


def peers(*sizes: int) -> dict[str, float]:
    """The times of the layer, of a loop in torch and, where it is installed, of s5-pytorch's scan."""
    arguments, gy = system(*sizes)
    rates, B, C, u, D = arguments
    lam = rates.detach().exp().to(torch.complex64).requires_grad_()
    plain = (lam, B, C, D, u)
    runs = {
        "hankelred": lambda: torch.autograd.grad(diagonal_ssm(*arguments), arguments, gy),
        "torch loop": lambda: torch.autograd.grad(loop(*plain), plain, gy),
    }
    try:
        from s5.s5_model import apply_ssm
    except ImportError:
        print("s5-pytorch is not installed: left out")
    else:

        def scan() -> Any:
            y = torch.vmap(lambda sequence: apply_ssm(lam, B, C, D, sequence)[0])(u)
            return torch.autograd.grad(y, plain, gy)

        runs["s5-pytorch scan"] = scan
    return least_times(runs, budget=3.0)


def layer_times(*sizes: int) -> float:
    batch, length, channels, states = sizes
    layer = LRU(channels, states)
    u, gy = torch.randn(2, batch, length, channels)
    u.requires_grad_()
    return least_times({"": lambda: torch.autograd.grad(layer(u), (*layer.parameters(), u), gy)}, budget=1.0)[""]


def describe(sizes: tuple[int, ...]) -> dict[str, int]:
    return dict(zip(("batch", "length", "channels", "states"), sizes, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--peers", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)

    compared = []
    for sizes in PEER_SIZES:
        times = peers(*sizes)
        compared.append(describe(sizes) | {name: float(f"{t:.3g}") for name, t in times.items()})
        shares = {name: round(times["hankelred"] / t, 3) for name, t in times.items()}
        print(describe(sizes), {k: f"{t:.4f} s" for k, t in times.items()}, "share", shares, flush=True)
    layers = [describe(sizes) | {"LRU": float(f"{layer_times(*sizes):.3g}")} for sizes in LAYER_SIZES]
    for row in layers:
        print(row)
    measured: dict[str, Any] = {"peers": compared, "layer": layers, "peers measured": when()}
    if options.peers:
        if options.write:
            write(RESULTS, json.loads(RESULTS.read_text()) | measured)
        return

    # passes some minutes apart: what disturbs one of them is gone in another
    rows = [describe(sizes) | dict.fromkeys(METHODS, math.inf) for sizes in grid()]
    for number in range(PASSES):
        for sizes, row in zip(grid(), rows, strict=True):
            for method, t in both_methods(*sizes).items():
                row[method] = min(row[method], float(f"{t:.3g}"))
            print(number, row, flush=True)
    columns = [*describe(grid()[0]), *METHODS]
    document = {
        "what": "seconds of one forward and backward pass, float32, one thread",
        "machine": f"{platform.machine()} server processor, {torch.backends.cpu.get_cpu_capability()}",
        "versions": {"torch": torch.__version__, "numba": numba.__version__, "numpy": np.__version__},
    }
    if RESULTS.exists():
        rows = least_of(rows, document, json.loads(RESULTS.read_text()))
    seconds = fit(rows)
    document |= {"seconds": seconds, "chosen over faster": quality(rows, seconds)}
    print(
        "SECONDS =", seconds, "\ntime of the chosen method over that of the faster one:", document["chosen over faster"]
    )
    if options.write:
        document |= measured
        document |= {"columns": columns, "grid": [[row[c] for c in columns] for row in rows]}
        write(RESULTS, document)


def when() -> dict[str, str]:
    """The date, and the version of the peer if it is installed."""
    date = {"date": datetime.date.today().isoformat()}
    try:
        return date | {"s5-pytorch": importlib.metadata.version("s5-pytorch")}
    except importlib.metadata.PackageNotFoundError:
        return date


def least_of(rows: list[dict[str, float]], document: dict[str, Any], earlier: dict[str, Any]) -> list[dict[str, float]]:
    """The rows with the times of an earlier run where it was faster, if it is one of the same program."""
    before = [dict(zip(earlier["columns"], row, strict=True)) for row in earlier["grid"]]
    sizes = describe(grid()[0])
    same = all(earlier[key] == document[key] for key in ("machine", "versions"))
    if not same or [[row[k] for k in sizes] for row in rows] != [[row[k] for k in sizes] for row in before]:
        return rows
    return [row | {m: min(row[m], old[m]) for m in METHODS} for row, old in zip(rows, before, strict=True)]


if __name__ == "__main__":
    main()
