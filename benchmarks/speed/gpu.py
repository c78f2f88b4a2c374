"""All operations and layers on a GPU: built, checked against the CPU in double precision, and timed, in one go.

    python -m benchmarks.speed.gpu                  # on the GPU; without one a smoke run on the CPU, which it says
    python -m benchmarks.speed.gpu --write          # and keeps it in benchmarks/results/gpu.json and a plot (GPU only)
    python -m benchmarks.speed.gpu --device cpu     # the smoke run, at small sizes
    python -m benchmarks.speed.gpu --dry            # the same through Triton's interpreter: all lines, tiny sizes
    python -m benchmarks.speed.gpu --tune           # times of the kernels for other tiles and warps (GPU only)

Times are wall-clock seconds of one forward and backward pass in float32 or complex64, the least of several, with the
device synchronised before and after. `error` is the largest deviation of outputs and gradients from the CPU's, relative
to the largest entry of each; a line with an error over TOLERANCE says so, and the exit status is then 1. Lines of
kernels also have the GB/s reached, by the bytes of `benchmarks.speed.traffic`, and their share of the card's bandwidth.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._common import optional, write
from benchmarks.speed import interpreter, traffic
from hankelred_torch import hankel_penalty, ops
from hankelred_torch.layers import LRU, S4D, S5, Mamba

RESULTS = Path(__file__).parents[1] / "results" / "gpu.json"

# Sizes of a training: batch, length, channels, states, and number of systems. The small ones only show that it runs.
LARGE = {"batch": 16, "length": 1024, "channels": 256, "states": 64, "systems": 1536}
TINY = {"batch": 1, "length": 18, "channels": 3, "states": 2, "systems": 2}
SMALL = {"batch": 2, "length": 128, "channels": 16, "states": 8, "systems": 8}

# Sums of some thousand float32 terms; Hankel singular values are computed in double precision from float32 data.
TOLERANCE = 1e-3

# Sums of products in TF32, as kernels of others form them.
TF32_TOLERANCE = 1e-2

# What runs an operation instead of what does so by itself, for comparison.
OTHERS = {
    "selective_scan": ["mamba_ssm", "torch"],
    "selective_heads": ["torch"],
    "linear_recurrence, varying, real": ["torch"],
    "hankel_singular_values": ["torch"],
}

Case = tuple[str, Callable[..., Any], list[Tensor]]


def operations(batch: int, length: int, channels: int, states: int, systems: int) -> Iterator[Case]:
    """Yield name, function and arguments of each operation, the arguments in double precision on the CPU."""

    def real(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64)

    def complex_(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.complex128)

    phase = 6.28 * torch.rand(states, dtype=torch.float64)
    lam = torch.polar(0.9 + 0.09 * torch.rand(states, dtype=torch.float64), phase)
    u, delta = real(batch, length, channels), 10 ** (-3 + 2 * torch.rand(batch, length, channels, dtype=torch.float64))
    reset = torch.rand(batch, length) < 0.01
    A = -torch.arange(1, states + 1, dtype=torch.float64).repeat(channels, 1)
    selected = [u, delta, A, real(batch, length, states), real(batch, length, states), real(channels)]
    yield "linear_recurrence, time-invariant, complex", ops.linear_recurrence, [lam, complex_(batch, length, states)]
    gate, v = torch.rand(batch, length, channels, dtype=torch.float64), real(batch, length, channels)
    yield "linear_recurrence, varying, real", ops.linear_recurrence, [gate, v]
    yield (
        "linear_recurrence, varying, reset, reverse",
        lambda a, b: ops.linear_recurrence(a, b, reset=reset.to(b.device), reverse=True),
        [gate, v],
    )
    yield "torch's associative_scan, varying, real", associative_scan, [gate, v]
    yield "selective_scan", ops.selective_scan, selected
    yield "selective_scan, reset", lambda *x: ops.selective_scan(*x, reset=reset.to(x[0].device)), selected
    head = heads_of(channels)
    scalar = [real(batch, length, *head), 10 ** (-3 + 2 * torch.rand(batch, length, head[0], dtype=torch.float64))]
    scalar += [-torch.arange(1, head[0] + 1, dtype=torch.float64), *(real(batch, length, 1, states) for _ in "BC")]
    yield "selective_heads", ops.selective_heads, scalar
    yield "selective_heads, reset", lambda *x: ops.selective_heads(*x, reset=reset.to(x[0].device)), scalar
    few = min(channels, 16)
    model = [lam.log(), complex_(states, few), complex_(few, states), real(batch, length, few)]
    yield "diagonal_ssm, recurrence", lambda *a: ops.diagonal_ssm(*a, method="recurrence"), model
    yield "diagonal_ssm, convolution", lambda *a: ops.diagonal_ssm(*a, method="convolution"), model
    order = min(16, 2 * states)
    lams = 0.95 * torch.rand(systems, order, dtype=torch.float64)
    bank = [lams, real(systems, order, 1), real(systems, 1, order)]
    yield "hankel_singular_values", lambda *a: ops.hankel_singular_values(*a, dt=True), bank
    yield "gramian_factors", squared_factors, bank
    dense = [0.2 * real(4, 16, 16), real(4, 16, 16)]
    yield "solve_lyapunov", lambda *a: ops.solve_lyapunov(*a, dt=True), dense
    yield "balanced_truncation", lambda *a: ops.balanced_truncation(*a, dt=True, order=2).hsv, bank


def heads_of(channels: int) -> tuple[int, int]:
    """Heads, and channels of each: 24 of 64 at the sizes of a training."""
    size = min(64, channels)
    return max(1, 6 * channels // 64), size


def layers(batch: int, length: int, channels: int, states: int, systems: int) -> Iterator[tuple[str, nn.Module]]:
    for kind in (LRU, S5, S4D, Mamba):
        yield kind.__name__, kind(channels, states)


def squared_factors(*system: Tensor) -> tuple[Tensor, Tensor]:
    """The Gramians: factors are unique only up to a rotation."""
    S, R = ops.gramian_factors(*system, dt=True)
    return S @ S.mH, R.mH @ R


def associative_scan(a: Tensor, b: Tensor) -> Tensor:
    """The recurrence by torch's own scan, whose fast mode exists for GPUs only."""
    from torch._higher_order_ops.associative_scan import associative_scan as scan

    def combine(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return left[0] * right[0], right[0] * left[1] + right[1]

    return scan(combine, (a, b), dim=1, combine_mode="pointwise" if b.is_cuda else "generic")[1]


def s5_scan(a: Tensor, b: Tensor) -> Tensor:
    """The recurrence by the scan of s5-pytorch, which takes one sequence."""
    from s5.jax_compat import associative_scan as scan

    def combine(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return left[0] * right[0], right[0] * left[1] + right[1]

    return torch.stack([scan(combine, pair)[1] for pair in zip(a, b, strict=True)])


def mamba_heads(*tensors: Tensor) -> Tensor:
    """Heads by the kernels of mamba_ssm, which take products of float32 in TF32."""
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    found: Tensor = mamba_chunk_scan_combined(*tensors, 256)
    return found


def moved(batch: int, length: int, channels: int, states: int, systems: int) -> dict[str, int]:
    """Bytes that one forward and backward pass moves in float32 or complex64, of the lines that kernels run."""
    from hankelred_torch.ops import _heads_torch, _heads_triton, _linear_triton, _selective_triton

    tile = _linear_triton.TIME
    constant = {"rows": batch, "steps": length, "n": states, "varies": False, "width": 8, "tile": tile}
    varying = {"rows": batch, "steps": length, "n": channels, "varies": True, "width": 4, "tile": tile}
    scan = {"batch": batch, "length": length, "channels": channels, "n": states, "width": 4, "segment": 16}
    block = _selective_triton.LAUNCH["CHANNELS"]
    count, size = heads_of(channels)
    head = {"batch": batch, "length": length, "heads": count, "size": size, "groups": 1, "n": states, "width": 4}
    head["piece"] = _heads_torch.PIECE
    shared = {"block": min(size, _heads_triton.WIDEST), "together": _heads_triton.heads_at_once(count, size, states)}
    found = {
        "linear_recurrence, time-invariant, complex": (
            traffic.linear(**constant),
            traffic.linear_adjoint(**constant, parts=2),
        ),
        "linear_recurrence, varying, real": (traffic.linear(**varying), traffic.linear_adjoint(**varying)),
        "selective_scan": (traffic.selective(**scan), traffic.selective_adjoint(**scan, block=block)),
        "selective_heads": (traffic.heads(**head), traffic.heads_adjoint(**head, **shared)),
    }
    return {name: there.total + back.total for name, (there, back) in found.items()}


def plot(rows: list[dict[str, Any]], path: Path, peak: float | None) -> None:
    """Bandwidth reached by each line over its bytes, under that of the card."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots()
    for row in (row for row in rows if "GB/s" in row):
        axes.loglog(row["bytes"], row["GB/s"], "o", label=row["what"])
    if peak:
        axes.axhline(peak / 1e9, color="black", label="memory bandwidth")
    axes.set_xlabel("bytes moved")
    axes.set_ylabel("GB/s")
    axes.legend()
    figure.savefig(path)
    plt.close(figure)


def peak_bandwidth(device: str) -> float | None:
    """Bytes a second of the card by the maker's figures, None for one that is not in the table."""
    name = torch.cuda.get_device_name() if device != "cpu" else ""
    return next((card.bandwidth for card in traffic.CARDS if card.name in name), None)


def tune() -> None:
    """Print times of kernels for other tiles and warps than those in their tables."""
    linear, selective, heads, factors, _ = interpreter.kernels()
    cases = {name: (run, arguments) for name, run, arguments in operations(**LARGE)}
    searches = [
        (linear.__dict__, "WIDTH", (64, 128, 256)),
        (linear.LAUNCH, "num_warps", (1, 2, 4, 8)),
        (linear.LAUNCH, "STAGES", (1, 2, 3, 4)),
        (selective.LAUNCH, "CHANNELS", (16, 32, 64, 128)),
        (selective.LAUNCH, "num_warps", (1, 2, 4)),
        (heads.LAUNCH, "num_warps", (4, 8)),
        (heads.LAUNCH, "num_stages", (1, 2)),
        (factors.WARPS, 16, (1, 2, 4)),
    ]
    lines = {id(selective.LAUNCH): "selective_scan", id(heads.LAUNCH): "selective_heads"}
    lines |= {id(factors.WARPS): "hankel_singular_values"}
    for table, setting, choices in searches:
        names = [name for name in cases if name.startswith(lines.get(id(table), "linear_recurrence"))]
        before = table[setting]
        for table[setting] in choices:
            for name in names:
                run, arguments = cases[name]
                there = [placed(x.detach(), "cuda") for x in arguments]
                seconds = least_seconds(partial(gradients, run, there, there), "cuda", 0.2)
                print(f"{setting} {table[setting]}: {name} {seconds:.3g} s", flush=True)
        table[setting] = before


def gradients(run: Callable[..., Any], tensors: Sequence[Tensor], arguments: Sequence[Any]) -> list[Tensor]:
    """Outputs and the gradients of a sum of them that weighs every entry differently."""
    outputs = run(*arguments)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    total = torch.zeros((), dtype=torch.float64, device=outputs[0].device)
    for y in outputs:
        weights = torch.linspace(0.5, 1.5, y.numel(), dtype=torch.float64, device=y.device).view(y.shape)
        total = total + (torch.view_as_real(y).sum(-1) if y.is_complex() else y).mul(weights).sum()
    return [*outputs, *torch.autograd.grad(total, tensors)]


def placed(x: Tensor, device: str) -> Tensor:
    """X in single precision on the device, with a gradient."""
    return x.to(device, torch.complex64 if x.is_complex() else torch.float32).requires_grad_()


def deviation(found: list[Tensor], expected: list[Tensor]) -> float:
    pairs = [(f.detach().cpu().to(e.dtype), e.detach()) for f, e in zip(found, expected, strict=True)]
    errors = [float((f - e).abs().max() / e.abs().max().clamp(min=1e-30)) for f, e in pairs]
    return max(math.inf if math.isnan(e) else e for e in errors)


def least_seconds(run: Callable[[], Any], device: str, budget: float = 0.5) -> float:
    def wait() -> None:
        if device != "cpu":
            torch.cuda.synchronize()

    for _ in range(2 if budget else 0):  # compiles and fills caches
        run()
    least, start = math.inf, time.perf_counter()
    while least == math.inf or time.perf_counter() - start < budget:
        wait()
        begin = time.perf_counter()
        run()
        wait()
        least = min(least, time.perf_counter() - begin)
    return least


def measure(
    name: str,
    run: Callable[[], list[Tensor]],
    expected: list[Tensor],
    device: str,
    budget: float = 0.5,
    tolerance: float = TOLERANCE,
) -> dict[str, Any]:
    """A line of the table; what does not run is a line, too, with its reason."""
    try:
        row: dict[str, Any] = {"what": name, "error": float(f"{deviation(run(), expected):.1e}")}
        row["seconds"] = float(f"{least_seconds(run, device, budget):.3g}")
        row["ok"] = row["error"] <= tolerance
    except Exception as reason:
        row = {"what": name, "ok": False, "failed": f"{type(reason).__name__}: {str(reason).splitlines()[0]}"}
    print(row, flush=True)
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--tune", action="store_true")
    options = parser.parse_args()
    if options.tune:
        tune()
        return 0
    if options.dry:
        interpreter.kernels()
        with interpreter.by_rows(), ops.use_backend("triton"), tempfile.TemporaryDirectory() as folder:
            print("A dry run through Triton's interpreter: it shows that everything runs and agrees.")
            return run_all("cpu", TINY, Path(folder) / "gpu.json")
    device: str = options.device
    if device == "cpu":
        print("A smoke run on the CPU: it shows that everything builds and agrees; its times say nothing about a GPU.")
    if device == "cpu" and options.write:
        parser.error("nothing is kept of a smoke run on the CPU; run with --write where torch finds a GPU.")
    return run_all(device, SMALL if device == "cpu" else LARGE, RESULTS if options.write else None)


def run_all(device: str, sizes: dict[str, int], path: Path | None) -> int:
    """Check and time everything; keep it where a path is given."""
    rows = []
    budget, peak = 0.0 if sizes is TINY else 0.5, peak_bandwidth(device)
    size_of = moved(**sizes) if optional("triton") else {}
    torch.manual_seed(0)
    for name, run, arguments in operations(**sizes):
        exact = [x.requires_grad_() for x in arguments]
        there = [placed(x.detach(), device) for x in arguments]
        with ops.use_backend("auto"):
            expected = gradients(run, exact, exact)
        row = measure(name, partial(gradients, run, there, there), expected, device, budget)
        if name in size_of and "seconds" in row:
            row |= {"bytes": size_of[name], "GB/s": float(f"{size_of[name] / row['seconds'] / 1e9:.4g}")}
            row |= {"share of peak": round(1e9 * row["GB/s"] / peak, 3)} if peak else {}
            print(f"  {row['GB/s']} GB/s, share of peak {row.get('share of peak')}")
        rows.append(row)
        for other in OTHERS.get(name, []):
            if other == "torch" or optional(other):
                with ops.use_backend(other):
                    what = f"{name}, by {other}"
                    rows.append(measure(what, partial(gradients, run, there, there), expected, device, budget))
        if name == "linear_recurrence, varying, real" and optional("s5"):
            rows.append(measure("s5-pytorch", partial(gradients, s5_scan, there, there), expected, device, budget))
        if name == "selective_heads" and device != "cpu" and optional("mamba_ssm"):
            run_other = partial(gradients, mamba_heads, there, there)
            rows.append(measure("mamba_ssm's heads", run_other, expected, device, budget, TF32_TOLERANCE))
    u = torch.randn(sizes["batch"], sizes["length"], sizes["channels"])
    for name, layer in layers(**sizes):
        exact, there = copy.deepcopy(layer).double(), layer.to(device)
        runs = {f"{name} layer": (sequences, list(there.parameters()), list(exact.parameters()))}
        if name != "Mamba":  # whose values depend on the input
            runs[f"hankel_penalty of {name}"] = (penalty, used(there), used(exact))
        for what, (run, parameters, exact_parameters) in runs.items():
            with ops.use_backend("auto"):
                expected = gradients(run, exact_parameters, [exact, u.double()])
            arguments = [there, u.to(device)]
            rows.append(measure(what, partial(gradients, run, parameters, arguments), expected, device, budget))
    wrong = [row["what"] for row in rows if not row["ok"]]
    print("all agree with the CPU" if not wrong else f"failed, or deviate by more than {TOLERANCE}: {wrong}")
    if path:
        document = {
            "what": "wall-clock seconds of one forward and backward pass, float32",
            "date": datetime.date.today().isoformat(),
            "device": torch.cuda.get_device_name() if device != "cpu" else "Triton's interpreter",
            "versions": {"torch": torch.__version__, "triton": getattr(optional("triton"), "__version__", None)},
            "sizes": sizes,
            "rows": rows,
        }
        write(path, document)
        plot(rows, path.with_suffix(".png"), peak)
    return 1 if wrong else 0


def sequences(layer: nn.Module, u: Tensor) -> Tensor:
    return layer(u)


def penalty(layer: nn.Module, u: Tensor) -> Tensor:
    return hankel_penalty(layer)


def used(layer: nn.Module) -> list[nn.Parameter]:
    """The parameters that Hankel singular values depend on: all but the feedthrough."""
    return [p for name, p in layer.named_parameters() if name != "D"]


if __name__ == "__main__":
    raise SystemExit(main())
