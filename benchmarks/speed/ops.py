"""CPU time and digits of Hankel singular values of batches in torch: structured, dense, and as published.

    python -m benchmarks.speed.ops            # prints
    python -m benchmarks.speed.ops --write    # and keeps the figures in benchmarks/results/ops_speed.json

One thread, the least CPU time of several rounds. Three routes, with and without the gradient of the sum of all values:

- `structured`: `hankelred_torch.ops.hankel_singular_values`;
- `dense`: the Gramians entry by entry, their Cholesky factors (with a floor on the diagonal, or they fail), `svdvals`;
- `published`: the square roots of the eigenvalues of P Q; it has no stable gradient.

`right` is the share of values within 1e-3 of the core's, in double precision and from the data in single precision.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks._common import least_times, write
from hankelred import DiagonalBank, hankel_singular_values
from hankelred_torch import ops

RESULTS = Path(__file__).parents[1] / "results" / "ops_speed.json"
# batch, states, inputs and outputs, output
CASES = [
    (1536, 16, 1, "real rates"),
    (64, 16, 4, "complex"),
    (1, 64, 16, "complex"),
    (1, 64, 16, "real"),
    (6, 256, 16, "complex"),
]
FLOOR = 1e-12


def systems(batch: int, n: int, m: int, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Poles as an LRU starts with, or real ones log-spaced over four decades, with B and C."""
    generator = torch.Generator().manual_seed(0)
    if kind == "real rates":
        lam = torch.exp(-(10 ** (4 * torch.rand(batch, n, generator=generator, dtype=torch.float64) - 4)))
        B, C = torch.randn(2, batch, n, m, generator=generator, dtype=torch.float64)
        return lam, B, C.mT.contiguous()
    radius = torch.sqrt(0.81 + 0.188 * torch.rand(batch, n, generator=generator, dtype=torch.float64))
    lam = torch.polar(radius, 6.28 * torch.rand(batch, n, generator=generator, dtype=torch.float64))
    B, C = torch.randn(2, batch, n, m, generator=generator, dtype=torch.complex128)
    return lam, B * torch.sqrt(1 - radius**2)[..., None], C.mT.contiguous()


def gramians(lam: Tensor, B: Tensor, C: Tensor, output: str) -> tuple[Tensor, Tensor]:
    if output == "real":
        lam, B, C = torch.cat([lam, lam.conj()], -1), torch.cat([B, B.conj()], -2), torch.cat([C, C.conj()], -1) / 2
    gap = 1 - lam[..., :, None] * lam[..., None, :].conj()
    return B @ B.mH / gap, C.mH @ C / gap.conj()


def dense(lam: Tensor, B: Tensor, C: Tensor, output: str) -> Tensor:
    factors = []
    for P in gramians(lam, B, C, output):
        floor = FLOOR * P.diagonal(dim1=-2, dim2=-1).real.amax(-1)
        eye = torch.eye(P.shape[-1], dtype=P.dtype)
        factors.append(torch.linalg.cholesky(P + floor[:, None, None] * eye))
    return torch.linalg.svdvals(factors[1].mH @ factors[0])


def published(lam: Tensor, B: Tensor, C: Tensor, output: str) -> Tensor:
    P, Q = gramians(lam, B, C, output)
    return torch.linalg.eigvals(P @ Q).abs().sqrt().sort(descending=True).values


def structured(lam: Tensor, B: Tensor, C: Tensor, output: str) -> Tensor:
    return ops.hankel_singular_values(lam, B, C, dt=True, output=output)  # type: ignore[arg-type]


def right(hsv: Tensor, expected: Any) -> float:
    return float(np.mean(np.abs(hsv.detach().double().numpy() - expected) <= 1e-3 * expected))


def case(batch: int, n: int, m: int, kind: str) -> dict[str, Any]:
    data, output = systems(batch, n, m, kind), "real" if kind == "real" else "complex"
    single = tuple(x.to(torch.complex64 if x.is_complex() else torch.float32) for x in data)
    learned = tuple(x.clone().requires_grad_() for x in data)
    row: dict[str, Any] = {"batch": batch, "states": n, "inputs": m, "kind": kind}
    arrays = [x.numpy() for x in data]
    rounded = [x.numpy().astype(y.dtype) for x, y in zip(single, arrays, strict=True)]
    expected, expected_single = (
        hankel_singular_values(DiagonalBank(*x, dt=True, output=output))
        for x in (arrays, rounded)  # type: ignore[arg-type]
    )
    routes = {"structured": structured, "dense": dense, "published": published}

    def values(route: Any) -> Any:
        return lambda: route(*data, output)

    def gradient(route: Any) -> Any:
        return lambda: torch.autograd.grad(route(*learned, output).sum(), learned)

    runs = {name: values(route) for name, route in routes.items()}
    runs |= {f"{name} + gradient": gradient(routes[name]) for name in ("structured", "dense")}
    runs["core"] = lambda: hankel_singular_values(DiagonalBank(*arrays, dt=True, output=output))  # type: ignore[arg-type]
    times = {name: float(f"{1e3 * t:.3g}") for name, t in least_times(runs, budget=0.4).items()}
    for name, route in routes.items():
        row[f"{name} right"] = round(right(route(*data, output), expected), 4)
        try:
            row[f"{name} right, single"] = round(right(route(*single, output), expected_single), 4)
        except torch.linalg.LinAlgError:
            row[f"{name} right, single"] = None  # a Gramian that is not positive definite in single precision
    return row | {"milliseconds": times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for sizes in CASES:
        rows.append(case(*sizes))
        print(json.dumps(rows[-1], indent=1), flush=True)
    if options.write:
        document = {
            "what": "Hankel singular values of batches in torch, one thread; milliseconds of CPU time",
            "machine": f"{platform.machine()} server processor, {torch.backends.cpu.get_cpu_capability()}",
            "versions": {"torch": torch.__version__, "numpy": np.__version__},
            "cases": rows,
        }
        write(RESULTS, document)


if __name__ == "__main__":
    main()
