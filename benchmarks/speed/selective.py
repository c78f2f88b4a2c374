"""Time of the selective scan and of the linear recurrence on one core, beside their peers.

    python -m benchmarks.speed.selective            # prints
    python -m benchmarks.speed.selective --write    # and keeps it in benchmarks/results/selective_cpu.json

All times are forward and backward together, in seconds of the thread: the least of several runs, ours and the peers'
in turn, so that what else the machine does falls on all of them alike.

The torch loop of the selective scan is the fastest of four ways to write it that were tried: exponentials and inputs
step by step, the output as a sum. Computing all exponentials first takes 1.2 times as long at 12 states and 4 times at
128, a matrix product for the output 1.5 and 2 times.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import math
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hankelred_torch.layers import Mamba
from hankelred_torch.ops import linear_recurrence, selective_scan
from hankelred_torch.ops._segmented_scan import segmented_scan, segmented_scan_adjoint
from hankelred_torch.ops.selective import selective_scan_loop

from .._common import least_times, write

RESULTS = Path(__file__).parents[1] / "results" / "selective_cpu.json"

BATCH, LENGTH, INNER = 16, 128, 128
STATES = (1, 4, 8, 12, 13, 16, 17, 24, 32, 48, 64, 65, 96, 128)
PEER_STATES = (12, 128)
RECURRENCE_SIZES = ((50, 784, 256), (50, 784, 16), (16, 128, 1))  # batch, length, states, all complex64


def scan_arguments(n: int, batch: int = BATCH, length: int = LENGTH, inner: int = INNER) -> tuple[Tensor, ...]:
    """The arguments of `selective_scan` as at the start of a training, all with gradients."""
    torch.manual_seed(0)
    u, B, C = torch.randn(batch, length, inner), torch.randn(batch, length, n), torch.randn(batch, length, n)
    delta = 10 ** (-3 + 2 * torch.rand(batch, length, inner))
    A = -torch.arange(1, n + 1, dtype=torch.float32).repeat(inner, 1)
    return tuple(x.requires_grad_() for x in (u, delta, A, B, C, torch.ones(inner)))


def mambapy_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The scan as mambapy's block does it."""
    from mambapy.pscan import pscan

    h = pscan(torch.exp(delta[..., None] * A), (delta[..., None] * B[:, :, None]) * u[..., None])
    return (h @ C[..., None])[..., 0] + D * u


def torch_loop(*arguments: Tensor) -> Tensor:
    u, _, A = arguments[:3]
    return selective_scan_loop(*arguments, u.new_zeros(len(u), *A.shape))[0]


def scan_times(n: int, peers: bool) -> dict[str, float]:
    arguments = scan_arguments(n)
    gy = torch.randn(BATCH, LENGTH, INNER)

    def run(scan: Callable[..., Tensor]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(scan(*arguments), arguments, gy)

    runs = {"hankelred": run(selective_scan)}
    if peers:
        runs["torch loop"] = run(torch_loop)
        if installed("mambapy"):
            runs["mambapy"] = run(mambapy_scan)
    return least_times(runs, budget=3.0 if peers else 0.5)


def block_times() -> dict[str, float]:
    """The times of a whole block, and of mambapy's with the same weights."""
    torch.manual_seed(0)
    block = Mamba(INNER // 2, 12)
    u, gy = torch.randn(2, BATCH, LENGTH, INNER // 2)
    runs = {"hankelred": lambda: torch.autograd.grad(block(u), list(block.parameters()), gy)}
    if installed("mambapy"):
        from mambapy.mamba import MambaBlock, MambaConfig

        peer = MambaBlock(MambaConfig(d_model=INNER // 2, n_layers=1, d_state=12))
        peer.load_state_dict(block.state_dict())
        runs["mambapy"] = lambda: torch.autograd.grad(peer(u), list(peer.parameters()), gy)
    return least_times(runs, budget=2.0)


def recurrence_times(batch: int, length: int, n: int, varies: bool) -> dict[str, float]:
    """The times of the recurrence by kernels, by large torch operations, by a loop and by s5-pytorch."""
    torch.manual_seed(0)
    lam = torch.polar(0.9 + 0.099 * torch.rand(n), 6.28 * torch.rand(n))
    a = (lam.expand(batch, length, n).clone() if varies else lam).requires_grad_()
    b = torch.randn(batch, length, n, dtype=torch.complex64).requires_grad_()
    gx = torch.randn_like(b)

    def segments() -> None:
        factors = a.detach().expand(batch, length, n) if varies else a.detach()[None, None]
        x = segmented_scan(factors, b.detach())
        segmented_scan_adjoint(factors, x, b.new_zeros(batch, n), gx, None)

    def loop() -> Any:
        x, states = torch.zeros(batch, n, dtype=b.dtype), []
        for a_t, b_t in zip(a.expand(b.shape).unbind(1), b.unbind(1), strict=True):
            x = torch.addcmul(b_t, a_t, x)
            states.append(x)
        return torch.autograd.grad(torch.stack(states, 1), (a, b), gx)

    runs = {
        "hankelred": lambda: torch.autograd.grad(linear_recurrence(a, b), (a, b), gx),
        "torch segments": segments,
        "torch loop": loop,
    }
    if installed("s5-pytorch"):
        from s5.s5_model import associative_scan, binary_operator

        def scan() -> Any:
            factors = a.expand(b.shape)
            x = torch.vmap(lambda a, b: associative_scan(binary_operator, (a, b))[1])(factors, b)
            return torch.autograd.grad(x, (a, b), gx)

        runs["s5-pytorch scan"] = scan
    return least_times(runs, budget=1.0, fewest=3)


def installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        print(f"{distribution} is not installed: left out")
        return False
    return True


def row(sizes: dict[str, Any], times: dict[str, float]) -> dict[str, Any]:
    """Print sizes and times with the shares of the peers' times; return them as a line of a table."""
    shares = {name: round(times["hankelred"] / t, 3) for name, t in times.items() if name != "hankelred"}
    line = sizes | {name: float(f"{t:.3g}") for name, t in times.items()}
    print(line, "share", shares, flush=True)
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)

    sizes = {"batch": BATCH, "length": LENGTH, "inner channels": INNER}
    document = {
        "what": "seconds of one forward and backward pass, one thread",
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()} server processor, {torch.backends.cpu.get_cpu_capability()}",
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("torch", "numba", "numpy", "mambapy", "s5-pytorch")
            if installed(name)
        },
        "selective scan, float32": [row(sizes | {"states": n}, scan_times(n, peers=True)) for n in PEER_STATES],
        "selective scan by states": [row(sizes | {"states": n}, scan_times(n, peers=False)) for n in STATES],
        "Mamba block": [row({"channels": INNER // 2, "states": 12}, block_times())],
        "linear recurrence, complex64": [
            row(dict(zip(("batch", "length", "states"), s, strict=True)) | {"varies": v}, recurrence_times(*s, v))
            for s in RECURRENCE_SIZES
            for v in (False, True)
            if not (v and math.prod(s) > 5e6)  # s5-pytorch's scan alone would hold 5 GB
        ],
    }
    if options.write:
        write(RESULTS, document)


if __name__ == "__main__":
    main()
