"""All operations and layers on a GPU: built, checked against torch in double precision, and timed, in one go.

    python -m benchmarks.speed.gpu                  # on the GPU; without one a smoke run on the CPU, which it says
    python -m benchmarks.speed.gpu --write          # and keeps it in benchmarks/results/gpu.json and a plot (GPU only)
    python -m benchmarks.speed.gpu --device cpu     # the smoke run, at small sizes
    python -m benchmarks.speed.gpu --dry            # the same through Triton's interpreter: all lines, tiny sizes
    python -m benchmarks.speed.gpu --tune           # times of the kernels for other tiles and warps (GPU only)

Times are medians, of one forward pass and of one forward and backward pass in float32 or complex64, given the gradient
of the output; on a GPU by its own clock, runs back to back, so that the start of operations counts where they are
shorter than it. `error` is the largest deviation of outputs and gradients from those of torch's operations in double
precision on the same device, relative to the largest entry of each; a line with an error over TOLERANCE says so, and
the exit status is then 1. `memory` is the most that a forward and backward pass holds, over what it must hold: inputs,
outputs, and the gradients of both. Lines of kernels also have the GB/s reached, by the bytes of
`benchmarks.speed.traffic`, and their share of what a copy reaches on the card in the same run.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks._common import optional, write
from benchmarks.speed import interpreter
from benchmarks.speed.gpu_cases import LARGE, SMALL, TINY, Sizes, layers, moved, operations, penalty, sequences, used
from hankelred_torch import ops

RESULTS = Path(__file__).parents[1] / "results" / "gpu.json"


# Sums of some thousand float32 terms; Hankel singular values are computed in double precision from float32 data.
TOLERANCE = 1e-3

# Sums of products in TF32, as kernels of others form them.
TF32_TOLERANCE = 1e-2

# Lines, by how they begin, that torch's operations run as well, for comparison.
BY_TORCH = ("linear_recurrence, varying, real", "selective_scan, 1", "selective_heads, 6", "hankel_singular_values")


def plot(rows: list[dict[str, Any]], path: Path, peak: float) -> None:
    """Bandwidth reached by each line over its bytes, under that of a copy."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots()
    for row in (row for row in rows if "GB/s" in row):
        axes.loglog(row["bytes"], row["GB/s"], "o", label=row["what"])
    axes.axhline(peak / 1e9, color="black", label="a copy")
    axes.set_xlabel("bytes moved, forward and back")
    axes.set_ylabel("GB/s")
    axes.legend(fontsize="x-small")
    figure.savefig(path)
    plt.close(figure)


def copied(size: int = 1 << 30) -> float:
    """Bytes a second, read and written, that a copy reaches on the card."""
    x = torch.randn(size // 4, device="cuda")
    y = torch.empty_like(x)
    return 2 * size / seconds(lambda: y.copy_(x), "cuda")


def tune(size: Sizes = LARGE) -> None:
    """Print times of kernels for other tiles and warps than those in their tables."""
    linear, selective, heads, factors, _ = interpreter.kernels()
    lines = {
        "linear_recurrence, constant, complex": [
            (linear.__dict__, "WIDTH", (64, 128, 256)),
            (linear.__dict__, "STEPS", (8, 16, 32)),
            (linear.LAUNCH, "num_warps", (1, 2, 4, 8)),
        ],
        "linear_recurrence, varying, real": [
            (linear.__dict__, "STEPS", (8, 16, 32)),
            (linear.LAUNCH, "num_warps", (1, 2, 4, 8)),
        ],
        f"selective_scan, {size.selective[-2]} states": [
            (selective.LAUNCH, "STATES", (1, 2, 4, 8)),
            (selective.LAUNCH, "maxnreg", (168, 128)),
        ],
        f"selective_heads, {size.head[0]} states": [
            (heads.LAUNCH, "num_warps", (4, 8)),
            (heads.LAUNCH, "STATES", (16, 32)),
        ],
        "hankel_singular_values": [(factors.WARPS, 16, (1, 2, 4))],
    }
    for name, run, arguments in operations(size, "cuda"):
        there = [placed(x.detach()) for x in arguments]
        for table, setting, choices in lines.get(name, ()):
            before = table[setting]
            for table[setting] in choices:
                try:
                    row = timed(run, there, "cuda", 0.1)
                except Exception as reason:  # more of something than the card has
                    row = {"failed": type(reason).__name__}
                print(f"{setting} {table[setting]}: {name} {row}", flush=True)
            table[setting] = before


def weights_of(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of the outputs, different for every entry and the same in each precision."""
    found = []
    for y in outputs:
        real = torch.view_as_real(y) if y.is_complex() else y
        weight = torch.linspace(0.5, 1.5, real.numel(), dtype=torch.float64, device=y.device).reshape(real.shape)
        found.append((torch.view_as_complex(weight) if y.is_complex() else weight).to(y.dtype))
    return found


def listed(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def gradients(run: Callable[..., Any], tensors: Sequence[Tensor], arguments: Sequence[Any]) -> list[Tensor]:
    """Outputs and the gradients of a sum of them that weighs every entry differently."""
    outputs = listed(run(*arguments))
    return [*outputs, *torch.autograd.grad(outputs, tensors, weights_of(outputs))]


def placed(x: Tensor) -> Tensor:
    """X in single precision, with a gradient."""
    return x.to(torch.complex64 if x.is_complex() else torch.float32).requires_grad_()


def deviation(found: list[Tensor], expected: list[Tensor]) -> float:
    pairs = [(f.detach().to(e.dtype), e.detach()) for f, e in zip(found, expected, strict=True)]
    errors = [float((f - e).abs().max() / e.abs().max().clamp(min=1e-30)) for f, e in pairs]
    return max(math.inf if math.isnan(e) else e for e in errors)


def seconds(run: Callable[[], Any], device: str, budget: float = 0.3) -> float:
    """The median time of a run; of several in a row on a GPU, which need not wait for the host between them."""
    for _ in range(3 if budget else 1):  # compiles and fills caches
        run()
    once = on_host if device == "cpu" else on_device
    found: list[float] = []
    begin = time.perf_counter()
    while not found or time.perf_counter() - begin < budget:
        found.append(once(run))
    return statistics.median(found)


def on_host(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def on_device(run: Callable[[], Any], times: int = 5) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / times


def timed(
    run: Callable[..., Any], arguments: Sequence[Any], device: str, budget: float = 0.3, tensors: Any = None
) -> dict[str, Any]:
    """Seconds of a forward pass and of both, and on a GPU the most memory held in them over what must be held."""
    tensors = arguments if tensors is None else tensors
    weights = weights_of(listed(run(*arguments)))

    def both() -> list[Tensor]:
        outputs = listed(run(*arguments))
        return [*outputs, *torch.autograd.grad(outputs, tensors, weights)]

    row = {"forward": float(f"{seconds(partial(run, *arguments), device, budget):.3g}")}
    row["both"] = float(f"{seconds(both, device, budget):.3g}")
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = sum(x.nbytes for x in (*tensors, *weights))
        before = torch.cuda.memory_allocated()
        both()
        row["memory"] = round((torch.cuda.max_memory_allocated() - before + held) / (2 * held), 2)
    return row


def measure(
    name: str,
    run: Callable[..., Any],
    tensors: Sequence[Tensor],
    arguments: Sequence[Any],
    expected: list[Tensor],
    device: str,
    budget: float,
) -> dict[str, Any]:
    """A line of the table; what does not run is a line, too, with its reason."""
    try:
        error = deviation(gradients(run, tensors, arguments), expected)
        row: dict[str, Any] = {"what": name, "error": float(f"{error:.1e}")}
        row |= timed(run, arguments, device, budget, tensors)
        row["ok"] = error <= (TF32_TOLERANCE if name.startswith("mamba_ssm's heads") else TOLERANCE)
    except Exception as reason:
        row = {"what": name, "ok": False, "failed": f"{type(reason).__name__}: {str(reason).splitlines()[0]}"}
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


def run_all(device: str, size: Sizes, path: Path | None) -> int:
    """Check and time everything; keep it where a path is given."""
    rows = []
    budget, peak = 0.0 if size is TINY else 0.3, 1e12 if device == "cpu" else copied()
    bytes_of = moved(size) if optional("triton") else {}
    torch.manual_seed(0)
    for name, run, arguments in operations(size, device):
        exact = [x.detach().requires_grad_() for x in arguments]
        if "'s" not in name:  # others' lines follow ours, with the same arguments
            with ops.use_backend("torch"):
                expected = gradients(run, exact, exact)
        elif name.startswith("mamba_ssm's scan"):
            expected = [x.mT if x.ndim == 3 else x for x in expected]
        there = [placed(x.detach()) for x in arguments]
        row = measure(name, run, there, there, expected, device, budget)
        if name in bytes_of and "both" in row:
            forward, back = bytes_of[name]
            row |= {"bytes": forward + back, "GB/s": float(f"{(forward + back) / row['both'] / 1e9:.4g}")}
            row |= {"share of a copy": round(1e9 * row["GB/s"] / peak, 3)}
            row["forward's share"] = round(forward / row["forward"] / peak, 3)
        rows.append(row)
        print(row, flush=True)
        if name.startswith(BY_TORCH) and device != "cpu":
            with ops.use_backend("torch"):
                rows.append(measure(f"{name}, by torch", run, there, there, expected, device, budget))
            print(rows[-1], flush=True)
        del there
    u = torch.randn(size.batch, size.length, size.layer, device=device)
    for name, layer in layers(size):
        layer = layer.to(device)
        exact_layer = copy.deepcopy(layer).double()
        runs: dict[str, tuple[Callable[..., Tensor], Any, Any]] = {
            f"{name} layer": (sequences, list(layer.parameters()), list(exact_layer.parameters()))
        }
        if name != "Mamba":  # whose values depend on the input
            runs[f"hankel_penalty of {name}"] = (penalty, used(layer), used(exact_layer))
        for what, (function, parameters, exact_parameters) in runs.items():
            with ops.use_backend("torch"):
                expected = gradients(function, exact_parameters, [exact_layer, u.double()])
            rows.append(measure(what, function, parameters, [layer, u], expected, device, budget))
            print(rows[-1], flush=True)
    wrong = [row["what"] for row in rows if not row["ok"]]
    print("all agree with torch" if not wrong else f"failed, or deviate by more than {TOLERANCE}: {wrong}")
    if path:
        document = {
            "what": "median seconds of a forward pass, and of a forward and backward pass, float32",
            "date": datetime.date.today().isoformat(),
            "device": torch.cuda.get_device_name() if device != "cpu" else "Triton's interpreter",
            "versions": {"torch": torch.__version__, "triton": getattr(optional("triton"), "__version__", None)},
            "a copy, GB/s": round(peak / 1e9),
            "sizes": size._asdict(),
            "rows": rows,
        }
        write(path, document)
        plot(rows, path.with_suffix(".png"), peak)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
