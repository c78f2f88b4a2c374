"""Right arguments for callables of the adapter, and the ways in which they are made wrong, or the same in a guise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from fuzz.values import Draw, anything
from torch import nn
from torch.optim import Optimizer

import hankelred as hr
import hankelred_torch as ht

FORMS = ("lru", "s4d", "s5")


def layer(draw: Draw, form: str = "", states: int = 6, channels: int = 2, dtype: Any = torch.float32) -> nn.Module:
    """Return a small layer, its parameters drawn with the seed."""
    torch.manual_seed(draw.random.getrandbits(30))
    kinds = {"lru": ht.layers.LRU, "s4d": ht.layers.S4D, "s5": ht.layers.S5, "mamba": ht.layers.Mamba}
    return kinds[form or draw.one_of(*FORMS)](channels, states).to(dtype)


def model(draw: Draw, form: str = "", **sizes: Any) -> nn.Module:
    """Return a layer, or a model of one or two."""
    kind = draw.one_of(*"lms")
    if kind == "l":
        return layer(draw, form, **sizes)
    layers = [layer(draw, form, **sizes) for _ in range(1 + (kind == "s"))]
    return nn.Sequential(*layers, nn.Linear(2, 2, dtype=next(layers[0].parameters()).dtype))


def trained(draw: Draw, x: nn.Module) -> Optimizer:
    """Return an optimizer of a model that has made a step, or none yet."""
    kind = draw.one_of(torch.optim.Adam, torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop)
    optimizer = kind(x.parameters(), lr=1e-4)
    if draw.chance(0.6):
        for p in x.parameters():
            p.grad = torch.full_like(p, 1e-3)
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def averaged(x: nn.Module) -> nn.Module:
    """Return an average of a model."""
    return torch.optim.swa_utils.AveragedModel(x)


def tensor(draw: Draw, *shape: int, is_complex: bool = False, dtype: Any = torch.float64) -> torch.Tensor:
    """Return numbers of size one, in eighths."""
    x = torch.from_numpy(draw.array(*shape, complex_data=is_complex))
    return x.to(torch.complex64 if is_complex and dtype == torch.float32 else x.dtype if is_complex else dtype)


class Broken:
    """An object whose attributes, length and items raise."""

    def __len__(self) -> int:
        """Refuse."""
        raise RuntimeError("no length")

    def __iter__(self) -> Any:
        """Refuse."""
        raise RuntimeError("no items")


def thing(draw: Draw) -> tuple[str, Any]:
    """Return a thing that is hardly ever right."""
    if draw.chance(0.5):
        return anything(draw)
    table: dict[str, Any] = {
        "1e-2 as text": lambda: "1e-2",
        "tensor": lambda: torch.ones(2, 2),
        "tensor without axes": lambda: torch.tensor(2),
        "parameter": lambda: nn.Parameter(torch.ones(2)),
        "module": lambda: nn.Linear(2, 2),
        "module class": lambda: nn.Linear,
        "layer class": lambda: ht.layers.LRU,
        "layer": lambda: ht.layers.LRU(2, 3),
        "layers": lambda: [ht.layers.LRU(2, 3)],
        "config": lambda: ht.CompressionConfig(order=2),
        "schedule": lambda: ht.Schedule(end_step=3),
        "guard": lambda: ht.Guard(lambda: 0.0, 0.1, "min"),
        "optimizer": lambda: torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1),
        "optimizer class": lambda: torch.optim.SGD,
        "plan": lambda: ht.plan(ht.layers.LRU(2, 3), ht.CompressionConfig(order=2)),
        "dtype": lambda: torch.float32,
        "device": lambda: torch.device("cpu"),
        "lambda": lambda: lambda *_: None,
        "broken": Broken,
        "names": lambda: {"": 3},
        "nested dict": lambda: {"layers": {"a": None}},
        "np.float64": lambda: np.float64(0.25),
        "np.int32": lambda: np.int32(3),
        "list of None": lambda: [None, None],
        "long": lambda: 2**62,
    }
    label = draw.random.choice(sorted(table))
    return label, table[label]()


def other_tensor(draw: Draw, x: torch.Tensor) -> tuple[str, Any, Any]:
    """Return a label, another tensor, and the same values plain where nothing but the guise differs."""
    spread = torch.zeros([2 * s for s in x.shape], dtype=x.dtype)
    every = tuple(slice(None, None, 2) for _ in x.shape)
    spread[every] = x
    same = {
        "every second": lambda: spread[every],
        "strides of another order": lambda: x.mT.contiguous().mT if x.ndim > 1 else x.clone(),
        "wants gradient": lambda: x.clone().requires_grad_() if x.is_floating_point() or x.is_complex() else x,
        "parameter": lambda: nn.Parameter(x.clone(), requires_grad=False),
        "lazy conjugate": lambda: x.conj().resolve_conj().conj() if x.is_complex() else x,
    }
    other = {
        "transposed": lambda: x.mT if x.ndim > 1 else x[None],
        "one axis more": lambda: x[None],
        "one axis less": lambda: x[0] if x.ndim and len(x) else x.reshape(-1),
        "a row more": lambda: torch.cat([x, x[:1]]) if x.ndim else x[None],
        "no rows": lambda: x[:0] if x.ndim else x,
        "no columns": lambda: x[..., :0] if x.ndim else x,
        "no steps": lambda: x[:, :0] if x.ndim > 1 else x,
        "a column more": lambda: torch.cat([x, x], -1) if x.ndim else x,
        "on meta": lambda: x.to("meta"),
        "integers": lambda: x.real.long(),
        "truth values": lambda: x.real > 0,
        "bfloat16": lambda: x.real.to(torch.bfloat16),
        "half": lambda: x.real.to(torch.float16),
        "single": lambda: x.to(torch.complex64 if x.is_complex() else torch.float32),
        "complex": lambda: x.to(torch.complex128),
        "complex32": lambda: x.to(torch.complex32),
        "float8": lambda: x.real.to(torch.float8_e4m3fn),
        "quantized": lambda: torch.quantize_per_tensor(x.real.float(), 0.1, 0, torch.qint8),
        "sparse": lambda: x.to_sparse(),
        "array": lambda: x.detach().numpy(),
        "lists": lambda: x.tolist(),
        "NaN": lambda: _with_entry(draw, x, math.nan),
        "inf": lambda: _with_entry(draw, x, math.inf),
        "1e30": lambda: _with_entry(draw, x, 1e30),
        "1e-30": lambda: _with_entry(draw, x, 1e-30),
        "1e300": lambda: _with_entry(draw, x, 1e300),
        "1e-300": lambda: _with_entry(draw, x, 1e-300),
        "all tiny": lambda: x * 1e-30 if x.dtype.itemsize >= 8 or x.is_complex() else x,
        "zeros": lambda: torch.zeros_like(x),
    }
    label = draw.random.choice(sorted(same) if draw.chance(0.25) else sorted(other))
    return (label, same[label](), x) if label in same else (label, other[label](), None)


def _with_entry(draw: Draw, x: torch.Tensor, value: float) -> torch.Tensor:
    x = x.clone() if x.is_floating_point() or x.is_complex() else x.double()
    if x.numel():
        largest = torch.finfo(x.dtype).max
        x.view(-1)[draw.random.randrange(x.numel())] = min(value, largest) if math.isfinite(value) else value
    return x


def other_model(draw: Draw, x: nn.Module) -> tuple[str, Any]:
    """Return a label and a model that is none, has no layers, or has layers of another kind, size or value."""

    def filled(value: float) -> nn.Module:
        with torch.no_grad():
            draw.random.choice(list(x.parameters())).view(-1)[0] = value
        return x

    def reshaped() -> nn.Module:
        inner = next(m for m in x.modules() if hasattr(m, "channels"))
        name = draw.random.choice([key for key, _ in inner.named_parameters(recurse=False)])
        setattr(inner, name, nn.Parameter(getattr(inner, name).detach()[:-1]))
        return x

    table: dict[str, Any] = {
        "Linear": lambda: nn.Linear(2, 2),
        "nothing": nn.Sequential,
        "Identity": nn.Identity,
        "its class": lambda: type(x),
        "its state dict": x.state_dict,
        "in a list": lambda: [x],
        "on meta": lambda: x.to("meta"),
        "LazyLinear": lambda: nn.LazyLinear(2),
        "frozen": lambda: x.requires_grad_(False),
        "half": x.half,
        "bfloat16": lambda: x.to(torch.bfloat16),
        "double": x.double,
        "NaN": lambda: filled(math.nan),
        "inf": lambda: filled(math.inf),
        "huge": lambda: filled(1e30),
        "selective": lambda: layer(draw, "mamba"),
        "other": lambda: layer(draw, states=4),
        "one state": lambda: layer(draw, states=1),
        "tied": lambda: nn.Sequential(x, x),
        "averaged": lambda: averaged(x),
        "reshaped": reshaped,
        "None for a parameter": lambda: _without_parameter(draw, x),
        "trains": lambda: x.train(not x.training),
    }
    label = draw.random.choice(sorted(table))
    return label, table[label]()


def _without_parameter(draw: Draw, x: nn.Module) -> nn.Module:
    inner = next(m for m in x.modules() if hasattr(m, "channels"))
    inner.register_parameter(draw.random.choice([key for key, _ in inner.named_parameters(recurse=False)]), None)
    return x


def other_optimizer(draw: Draw, x: Optimizer) -> tuple[str, Any]:
    """Return a label and what is no optimizer, one of other parameters, or one with a state that does not fit."""
    held = [p for group in x.param_groups for p in group["params"]]

    def odd_state(value: Any) -> Optimizer:
        x.state[held[0]] = {"exp_avg": value, "exp_avg_sq": value, "step": value}
        return x

    table: dict[str, Any] = {
        "in a list": lambda: [x],
        "twice": lambda: [x, x],
        "none": list,
        "a generator": lambda: (each for each in [x]),
        "its class": lambda: type(x),
        "its state dict": x.state_dict,
        "scheduler": lambda: torch.optim.lr_scheduler.ConstantLR(x),
        "of another model": lambda: torch.optim.Adam(nn.Linear(2, 2).parameters()),
        "with another": lambda: [x, torch.optim.Adam(nn.Linear(2, 2).parameters())],
        "of some": lambda: torch.optim.Adam(held[:1]),
        "two of the same": lambda: [x, torch.optim.Adam(held)],
        "LBFGS": lambda: torch.optim.LBFGS(held),
        "parameters": lambda: held,
        "with None": lambda: [x, None],
        "nested": lambda: [[x]],
        "named": lambda: {"first": x},
        "state of a wrong shape": lambda: odd_state(torch.ones(3, 5, 7)),
        "state of text": lambda: odd_state("text"),
        "state NaN": lambda: odd_state(torch.full_like(held[0], math.nan)),
        "state of None": lambda: odd_state(None),
        "state of integers": lambda: odd_state(torch.ones_like(held[0], dtype=torch.int64)),
    }
    label = draw.random.choice(sorted(table))
    return label, table[label]()


def plan_of(x: nn.Module, **criterion: Any) -> ht.Plan:
    """Return a plan for a model without selective layers."""
    return ht.plan(x, ht.CompressionConfig(**criterion))


def other_plan(draw: Draw, x: ht.Plan) -> tuple[str, Any]:
    """Return a label and a plan of another model, an old one, a damaged one or none."""
    table: dict[str, Any] = {
        "of another model": lambda: plan_of(ht.layers.LRU(3, 5), order=2),
        "of another size": lambda: plan_of(nn.Sequential(ht.layers.LRU(2, 9)), order=2),
        "without layers": lambda: ht.Plan({}, x.config),
        "as a dict": x.to_dict,
        "as text": x.to_json,
        "its layers": lambda: x.layers,
        "with others": lambda: ht.Plan({**x.layers, "x.y": next(iter(x.layers.values()))}, x.config),
        "with None": lambda: ht.Plan(dict.fromkeys(x.layers), x.config),  # type: ignore[arg-type]
        "read again": lambda: ht.Plan({k: type(v).from_dict(v.to_dict()) for k, v in x.layers.items()}, x.config),
        "its class": lambda: ht.Plan,
    }
    label = draw.random.choice(sorted(table))
    return label, table[label]()


def changed(draw: Draw, value: Any) -> tuple[str, Any, Any]:
    """Return a label, something else in the place of a right argument, and a plain twin where it is but a guise."""
    if isinstance(value, torch.Tensor) and draw.chance(0.8):
        return other_tensor(draw, value)
    if isinstance(value, nn.Module) and draw.chance(0.8):
        return *other_model(draw, value), None
    if isinstance(value, Optimizer) and draw.chance(0.8):
        return *other_optimizer(draw, value), None
    if isinstance(value, ht.Plan) and draw.chance(0.7):
        return *other_plan(draw, value), None
    if isinstance(value, dict) and value and draw.chance(0.5):
        key = draw.random.choice(sorted(value, key=str))
        if draw.chance(0.3):
            return f"without {key}", {k: v for k, v in value.items() if k != key}, None
        label, other = thing(draw)
        return f"{key} {label}", {**value, key: other}, None
    if isinstance(value, hr.StateSpace | hr.DiagonalSystem) and draw.chance(0.5):
        other = draw.system(dt=draw.one_of(0, True)).make
        try:
            return "other system", other(), None
        except hr.HankelredError:
            return "as it is", value, None
    return *thing(draw), None
