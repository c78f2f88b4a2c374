"""Compile the Triton kernels for GPUs without one: instructions and registers of each.

    python -m benchmarks.speed.compiled            # for H100
    python -m benchmarks.speed.compiled --all      # for A100, RTX 4090 and H100, also in double precision and bfloat16

Instructions are those of the whole kernel in PTX, loops counted once, and those of the longest loop without another
one in it; `spilled` are bytes a thread.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hankelred_torch.ops import _factors_triton as factors
from hankelred_torch.ops import _heads_triton as heads
from hankelred_torch.ops import _linear_triton as linear
from hankelred_torch.ops import _selective_triton as selective
from hankelred_torch.ops import _values_triton as singular
from hankelred_torch.ops._heads_torch import PIECE
from hankelred_torch.ops._selective_kernels import SEGMENT

KINDS = {
    "arithmetic": r"(?:(?:fma\.rn|mul|add)\.f(?:32|64)|selp\.)",
    "special": r"ex2\.",
    "exchange": r"(?:shfl|ld\.shared|st\.shared)",
    "global": r"(?:ld\.global|st\.global|cp\.async\.c)",
}


def kernels(every: bool) -> Iterator[tuple[str, Any, dict[str, Any], str, dict[str, int]]]:
    """Yield name, kernel, its constants, the type of its arrays, and the options of its launch."""
    for dtype in ("fp32", "fp64") if every else ("fp32",):
        work, size = (tl.float32, 4) if dtype == "fp32" else (tl.float64, 8)
        for is_complex, constant, reset in ((c, k, r) for c in (1, 0) for k in (1, 0) for r in (0, 1)[: 1 + every]):
            constants = {"REVERSE": False, "RESET": bool(reset), "COMPLEX": bool(is_complex), "SPACING": 1 + is_complex}
            constants |= {"CONSTANT": bool(constant), "WORK": work, "STEPS": linear.STEPS}
            constants |= dict(zip(("STATES", "CHUNKS"), linear._shape(size * (1 + is_complex)), strict=True))
            name = f"{('real', 'complex')[is_complex]}, {('varying', 'constant')[constant]}{', reset' * reset}"
            options = {"num_warps": linear.LAUNCH["num_warps"]}
            yield f"scan, {name}", linear.scan, constants, dtype, options
            yield f"scan_adjoint, {name}", linear.scan_adjoint, constants, dtype, options
    for dtype in ("fp32", "fp64", "bf16") if every else ("fp32",):
        work = {"WORK": tl.float64 if dtype == "fp64" else tl.float32}
        states = selective.LAUNCH["STATES"]
        constants = work | {"TIME": SEGMENT, "CHANNELS": selective.CHANNELS, "STATES": states}
        for kernel, reset, uneven in product((selective.scan, selective.scan_adjoint), *[(0, 1)[: 1 + every]] * 2):
            name = f"selective {kernel.fn.__name__}{', reset' * reset}{', some idle' * uneven}"
            kinds = constants | {"RESET": bool(reset), "EVEN": not uneven}
            yield name, kernel, kinds, dtype, {"num_warps": states}
        constants = work | {"TIME": PIECE, "SIZE": heads.WIDEST, "STATES": heads.LAUNCH["STATES"]}
        options = {name: heads.LAUNCH[name] for name in ("num_warps", "num_stages")}
        for kernel, reset in ((k, r) for k in (heads.scan, heads.scan_adjoint) for r in (0, 1)[: 1 + every]):
            name = f"heads {kernel.fn.__name__}{', reset' * reset}"
            yield name, kernel, constants | {"RESET": bool(reset)}, dtype, options
    for states, is_complex in ((16, 0), (16, 1), (32, 1), (64, 0), (64, 1)) if every else ((16, 0),):
        kind, sizes = f"{('real', 'complex')[is_complex]}, {states} states", {"COMPLEX": is_complex, "STATES": states}
        options = {"num_warps": factors.WARPS[states]}
        for inputs in (1, 16) if every else (1,):
            inner, name = sizes | {"INPUTS": inputs}, f"{kind}, {inputs} inputs"
            yield f"factor, {name}", factors.factor, inner | {"NOISE": 1e-30}, "fp64", options
            yield f"factor_adjoint, {name}", factors.factor_adjoint, inner | {"DISCRETE": 1}, "fp64", options
        for vectors in (0, 1):
            name = f"{kind}{', vectors' * vectors}"
            yield f"rotate, {name}", singular.rotate, sizes | {"VECTORS": vectors}, "fp64", options


def counted(text: str) -> dict[str, int]:
    return {kind: len(re.findall(rf"\b{pattern}", text)) for kind, pattern in KINDS.items()}


def innermost(ptx: str) -> list[str]:
    """The loops that no other loop is in: from a label to a branch back to it."""
    lines, begins, found = ptx.splitlines(), {}, []
    for at, line in enumerate(lines):
        if label := re.match(r"(\$L\w+):", line):
            begins[label[1]] = at
        elif (branch := re.search(r"\bbra(?:\.uni)?\s+(\$L\w+);", line)) and branch[1] in begins:
            found.append((begins[branch[1]], at))
    inner = [(a, b) for a, b in found if not any(a <= c and d <= b and (c, d) != (a, b) for c, d in found)]
    return ["\n".join(lines[a:b]) for a, b in inner]


def build(
    kernel: Any, constants: dict[str, Any], dtype: str, options: dict[str, int], capability: int
) -> dict[str, Any]:
    wide = "fp32" if dtype == "bf16" else dtype
    types = dict.fromkeys(("steps", "n", "m", "a_row", "a_step", "im", "length", "channels"), "i32")
    types |= dict.fromkeys(("heads", "size", "share", "together"), "i32")
    types |= {"reset": "*u8", "linked": "*u8", "pivots": "*i64"}
    types |= dict.fromkeys(("starts", "carry", "y", "gu", "g_delta", "gB", "gC"), f"*{wide}")
    types |= {"gA": "*fp64", "gD": "*fp64", "ga": "*fp64" if constants.get("CONSTANT") else f"*{wide}"}
    names = kernel.arg_names
    given = {name: "constexpr" if name in constants else types.get(name, f"*{dtype}") for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if given[name].startswith("*")}
    for name in ("steps", "n", "size", "length"):
        if name in names and name not in (kernel.do_not_specialize or ()):
            aligned[(names.index(name),)] = [["tt.divisibility", 16]]
    values = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=given, constexprs=values, attrs=aligned)
    made = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options=options | {"enable_fp_fusion": True}
    )
    found: dict[str, Any] = counted(made.asm["ptx"])
    found["loop"] = max((counted(loop) for loop in innermost(made.asm["ptx"])), key=lambda c: c["arithmetic"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+)", text)
    registers, spilled = (int(x) for x in usage.groups()) if usage else (0, 0)
    return found | {"registers": registers, "spilled": spilled, "shared": made.metadata.shared}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print("Triton", triton.__version__)
    for name, kernel, constants, dtype, launch in kernels(options.all):
        for capability in (80, 89, 90) if options.all else (90,):
            print(name, dtype, f"sm_{capability}", build(kernel, constants, dtype, launch, capability), flush=True)


if __name__ == "__main__":
    main()
