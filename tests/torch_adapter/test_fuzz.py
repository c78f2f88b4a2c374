"""Right and wrong arguments for every public callable of the adapter: a right result, or an error of ours.

One of them again: ``PYTHONPATH=.:tests python -m torch_adapter.test_fuzz ROOM SEED``, or ``ROOM FIRST LAST``.
"""

from __future__ import annotations

import math
import re
import sys
import traceback
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuzz.engine import Outcome
from fuzz.values import Call, Draw
from sizes import is_long
from torch import nn
from torch.optim import Optimizer

import hankelred as hr
import hankelred_torch as ht
from hankelred_torch.errors import SurgeryError

from .fuzz_calls import CHANGES, ROOMS, TARGETS, TRUSTED, public_callables
from .fuzz_values import changed

# Inputs for each callable: hundreds in all, or more than five thousand.
INPUTS = 60 if is_long() else 6

# An argument may be named by what it is.
LAYER = "model|layer|module|LRU|S4D|S5|Mamba|Linear|parameter|tensor|poles|rates|matrices"
ALSO = {
    "model": LAYER,
    "layer": LAYER,
    "model_or_layer": LAYER,
    "pl_module": LAYER,
    "ddp": "DistributedDataParallel|model",
    "optimizers": "optimizer|parameter",
    "plan_or_config": "config|plan|layers|Parameter",
    "lam": "poles|system",
    "rates": "poles|system",
    "systems": "system",
    "value": "metric",
    "tolerance": "metric|guard",
    "metric": "tolerance|mode",
    "ema": "averaged|copy|model",
    "values": r"\w+ (must|may)",  # of a field
    "records": r"record|\w+ must",
    "record": r"record|\w+ must",
    "state": r"state|\w+ must",
    "path": "checkpoint|file",
    "checkpoint": "like|layer|state dict",
    "state_dict": "state",
    "like": "layer|tensors|size",
    "batches": "statistics|batch",
    "adapters": "adapter",
    "total_steps": "end_step|window|start_step",
    "end_step": "window|start_step",
    "start_step": "window|end_step",
}
OVERFLOWS = {"ht.hankel_penalty"}  # as powers do
OF_THE_CALLER = ("no items", "no length", "no float")  # what hostile objects raise
OURS = (hr.HankelredError, SurgeryError)


def run(room: str, seed: int, show: bool = False) -> Outcome:
    """Run the input of a room with this number."""
    draw, names = Draw(f"{room} {seed}"), ROOMS[room]
    name = names[seed % len(names)]
    build, check = TARGETS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call = build(draw)
        mutation, mutated, twin = mutate(draw, call)
        outcome = Outcome(room, seed, name, ", ".join(mutation.values()) or "as it is")
        if show:
            print(name, outcome.mutation, mutated.arguments, sep="\n")
        before, finite = frozen(mutated.arguments), is_finite(list(mutated.arguments.values()))
        try:
            result = mutated.function(**mutated.arguments)
        except OURS as error:
            outcome = refusal(outcome, error, mutation)
            changes = frozen(mutated.arguments) != before
        except OSError as error:  # of the file system, as from open()
            wanted = {"path", "directory", "folder", "checkpoint"} & mutation.keys()
            outcome = replace(outcome, kind="refused" if wanted else f"raw {type(error).__name__}", detail=str(error))
            changes = frozen(mutated.arguments) != before
        except Exception as error:
            if show:
                traceback.print_exc()
            kind = "refused" if str(error) in OF_THE_CALLER else f"raw {type(error).__name__}"
            outcome = replace(outcome, kind=kind, detail=str(error).replace("\n", " "))
            changes = frozen(mutated.arguments) != before
        else:
            wrong = judged(name, check, result, mutated.arguments, twin, finite)
            outcome = replace(outcome, kind="wrong", detail=wrong) if wrong else outcome
            changes = name not in CHANGES and frozen(mutated.arguments) != before
        if changes and not any("enerator" in x for x in mutation.values()):
            outcome = replace(outcome, kind=f"changed, {outcome.kind}")
    return outcome


def mutate(draw: Draw, call: Call) -> tuple[dict[str, str], Call, Call | None]:
    """Return labels of one or two arguments replaced, the call with them, and one with a plain twin of one."""
    arguments, labels, twin = dict(call.arguments), {}, None
    count = draw.one_of(0, 1, 1, 1, 1, 1, 1, 2) if arguments else 0
    for name in draw.random.sample(sorted(arguments), min(count, len(arguments))):
        label, arguments[name], plain = changed(draw, arguments[name])
        labels[name] = f"{name} {label}"
        twin = Call(call.function, {**call.arguments, name: plain}) if plain is not None and count == 1 else None
    return labels, Call(call.function, arguments), twin


def refusal(outcome: Outcome, error: Exception, mutation: dict[str, str]) -> Outcome:
    """Judge an error of ours: it has a reason that was given, and names the argument."""
    text = " ".join(str(error).split())
    detail = f"{type(error).__name__}: {text}"
    if not mutation:
        return replace(outcome, kind="refused right", detail=detail)
    wanted = "|".join(f"{name}|{ALSO.get(name, name)}" for name in mutation)
    named = re.search(rf"(?<![A-Za-z])({wanted})", text, re.IGNORECASE)
    if isinstance(error, hr.NumericalError) or named:
        return replace(outcome, kind="refused", detail=detail)
    return replace(outcome, kind="unnamed", detail=detail)


def judged(name: str, check: Any, result: Any, arguments: dict[str, Any], twin: Call | None, finite: bool) -> str:
    """Say what is wrong with a result, by itself and beside that of the same values in a plain guise."""
    if finite and name not in OVERFLOWS and not is_finite(result, math.inf):
        return "not finite from finite input"
    try:
        wrong = check(result, **arguments) if check and finite else None
    except Exception as error:
        wrong = f"cannot be checked: {type(error).__name__}: {error}"
    if wrong:
        return str(wrong).replace("\n", " ")
    if twin is not None:
        for x, y in zip(tensors(result), tensors(twin.function(**twin.arguments)), strict=True):
            if x.shape != y.shape or not torch.allclose(x, y.to(x.dtype), rtol=1e-5, atol=1e-6):
                return f"other result: {x.flatten()[:4].tolist()} and {y.flatten()[:4].tolist()}"
    return ""


def tensors(x: Any) -> list[torch.Tensor]:
    """Return the tensors of a result."""
    if isinstance(x, torch.Tensor):
        return [x.detach()]
    return [y for item in x for y in tensors(item)] if isinstance(x, (tuple, list)) else []


def is_finite(x: Any, below: float = 1e8) -> bool:
    """Tell whether tensors and parameters are finite, and of a size at which single precision does not overflow."""
    if isinstance(x, nn.Module):
        return all(is_finite(p, below) for p in x.parameters() if not nn.parameter.is_lazy(p))
    if isinstance(x, torch.Tensor) and (x.is_floating_point() or x.is_complex()) and not x.is_meta:
        x = x.detach()
        x = x.to_dense() if x.layout != torch.strided else x
        x = x.to(torch.complex128 if x.is_complex() else torch.float64)
        return bool(torch.isfinite(x).all() and (x.abs() < below).all())
    if isinstance(x, dict):
        return all(is_finite(y, below) for y in x.values())
    return all(is_finite(y, below) for y in x) if isinstance(x, (tuple, list)) else True


def frozen(x: Any) -> Any:
    """Return what can be compared of arguments before and after: objects and values."""
    if isinstance(x, nn.Module):
        modes = [(n, id(m), m.training) for n, m in x.named_modules()]
        hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in x.modules()]
        held = [(n, id(p), p.requires_grad, frozen(p)) for n, p in (*x.named_parameters(), *x.named_buffers())]
        return modes, hooks, held
    if isinstance(x, Optimizer):
        groups = [[(id(p), frozen(p)) for p in g["params"]] for g in x.param_groups]
        options = [sorted((k, repr(v)) for k, v in g.items() if k != "params") for g in x.param_groups]
        return groups, options, [(id(p), frozen(s)) for p, s in x.state.items()]
    if isinstance(x, torch.Tensor):
        if x.is_meta or nn.parameter.is_lazy(x) or x.layout != torch.strided or x.is_quantized:
            return str(x.dtype)
        flat = torch.empty(x.numel(), dtype=x.dtype).copy_(x.detach().reshape(-1))
        return str(x.dtype), tuple(x.shape), flat.view(torch.uint8).numpy().tobytes() if x.numel() else b""
    if isinstance(x, dict):
        return [(repr(key)[:40] if not isinstance(key, torch.Tensor) else id(key), frozen(y)) for key, y in x.items()]
    if type(x) in (list, tuple):
        return [frozen(y) for y in x]
    if type(x) is np.ndarray and x.dtype.kind != "O":
        return x.shape, x.tobytes()
    return repr(x) if isinstance(x, (ht.CompressionConfig, ht.Schedule, ht.Plan, str, int, float)) else id(x)


def table(outcomes: list[Outcome]) -> str:
    """Return the bad outcomes, one a line."""
    bad = [outcome for outcome in outcomes if outcome.is_bad]
    return "\n".join([f"{len(bad)} of {len(outcomes)} inputs ended badly", *map(str, bad)])


def test_every_public_callable_is_fuzzed() -> None:
    assert public_callables() - TRUSTED == {name for name in TARGETS if " " not in name}


@pytest.mark.parametrize("room", ROOMS)
def test_no_input_ends_badly(room: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # some texts are names of files
    outcomes = [run(room, seed) for seed in range(INPUTS * len(ROOMS[room]))]
    assert not any(outcome.is_bad for outcome in outcomes), table(outcomes)


if __name__ == "__main__":
    room, *seeds = sys.argv[1:]
    if len(seeds) == 1:
        print(run(room, int(seeds[0]), show=True))
    else:
        results = [run(room, seed) for seed in range(int(seeds[0]), int(seeds[1]))]
        print(table(results))
        print(dict(Counter(outcome.kind for outcome in results)))
