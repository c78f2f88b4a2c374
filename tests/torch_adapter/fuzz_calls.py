"""Every public callable of the adapter with right arguments for it, and what must be true of its result."""

from __future__ import annotations

import inspect
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from fuzz.values import Call, Draw
from torch import nn

import hankelred as hr
import hankelred_torch as ht
from hankelred_torch import sampling
from hankelred_torch.adapters import registry

from .fuzz_values import FORMS, averaged, layer, model, plan_of, tensor, trained

Build = Callable[[Draw], Call]
ROOMS: dict[str, list[str]] = {}
TARGETS: dict[str, tuple[Build, Callable[..., Any] | None]] = {}
CHANGES = {f"ht.{name}" for name in ("compress_", "resize_", "write_system", "load_checkpoint", "from_pretrained")}
CHANGES |= {"ht.InTrainingCompressor.step", "ht.InTrainingCompressor.rollback", "lightning.resize_from_checkpoint"}
CHANGES |= {"transformers.CompressionCallback.resume_from", "layers.reset_parameters"}

# Called by the library, or by a framework, with what it has checked or made itself; or made by other callables only.
TRUSTED = {f"ht.{name}" for name in ("LayerCut", "Plan", "Checkpoint.before", "Checkpoint.after", "Rewarm.attach")}
TRUSTED |= {"ht.Rewarm.after", "ht.Rewarm.state_dict", "ops.BalancedTruncation", "adapters.SystemTensors"}
TRUSTED |= {"ht.LayerCut.left_alone", "ht.Rewarm.load_state_dict", "adapters.SampleStatistics", "ht.History"}
TRUSTED |= {f"lightning.CompressionCallback.{x}" for x in ("on_train_start", "on_train_batch_end")}
TRUSTED |= {"lightning.CheckpointMixin", "lightning.CheckpointMixin.on_load_checkpoint"}
TRUSTED |= {f"transformers.CompressionCallback.{x}" for x in ("on_train_begin", "on_step_end", "on_save")}


def target(name: str, room: str, check: Callable[..., Any] | None = None) -> Callable[[Build], Build]:
    """Register how a callable is called; `check` gets the result and the arguments and returns what is wrong."""

    def register(build: Build) -> Build:
        ROOMS.setdefault(room, []).append(name)
        TARGETS[name] = (build, check)
        return build

    return register


def public_callables() -> set[str]:
    """Return the names of everything a user can call, errors and warnings apart."""
    found = {"sampling.watch"}
    for room, module in _rooms():
        for name in module.__all__:
            value = getattr(module, name)
            if not callable(value) or (inspect.isclass(value) and issubclass(value, (Exception, Warning))):
                continue
            if not inspect.isabstract(value):
                found.add(f"{room}.{name}")
            if inspect.isclass(value) and not issubclass(value, ht.adapters.Adapter):
                found |= {f"{room}.{name}.{method}" for method in _methods(value)}
    return found


def _rooms() -> Iterator[tuple[str, Any]]:
    yield from (("ht", ht), ("layers", ht.layers), ("ops", ht.ops), ("adapters", ht.adapters))
    for name in ("lightning", "transformers"):
        try:
            yield name, getattr(ht.integrations, name)
        except ImportError:
            continue


def _methods(kind: type) -> set[str]:
    own = {name for name in dir(kind) if not name.startswith("_") and callable(getattr(kind, name))}
    return {name for name in own if getattr(getattr(kind, name), "__module__", "").startswith("hankelred")}


# --- what must be true -------------------------------------------------------------------------------------------


def of_sizes(result: Any, model: Any, *_: Any, **others: Any) -> str | None:
    """Tell whether a model is not as it must be after a cut."""
    sizes = ht.state_sizes(model)
    finite = all(bool(torch.isfinite(p).all()) for p in model.parameters())
    return None if finite and all(n >= 1 for n in sizes.values()) else f"{sizes}, finite: {finite}"


def planned(result: ht.Plan, **_: Any) -> str | None:
    """Tell what is wrong with a plan."""
    json.loads(result.to_json())
    str(result)
    wrong = [x for x in result.layers.values() if not (1 <= x.states <= x.n and 0 <= x.kept_energy <= 1 + 1e-9)]
    return f"{wrong[0].states} of {wrong[0].n}, kept {wrong[0].kept_energy}" if wrong else None


def values_of(result: dict[str, Any], **_: Any) -> str | None:
    """Tell what is wrong with Hankel singular values by layer."""
    for x in result.values():
        if not np.isfinite(x).all() or np.any(x < 0) or np.any(x[..., 1:] > x[..., :-1] * (1 + 1e-12)):
            return f"{x}"
    return None


def round_trip(result: Any, **_: Any) -> str | None:
    """Tell whether settings are lost on their way through JSON."""
    plain = json.loads(json.dumps(result.to_dict()))
    return None if type(result).from_dict(plain) == result else f"{result} and {plain}"


def like(result: torch.Tensor, u: torch.Tensor, **_: Any) -> str | None:
    """Tell whether outputs have not the shape of the inputs."""
    return None if result.shape == u.shape and not result.is_complex() else f"{result.dtype} {result.shape}"


def _number(result: Any, **_: Any) -> str | None:
    return None if isinstance(result, float) and math.isfinite(result) else f"{result!r}"


# --- ops ---------------------------------------------------------------------------------------------------------


def _poles(draw: Draw, discrete: bool, *shape: int) -> torch.Tensor:
    return torch.from_numpy(draw.poles(*shape, discrete=discrete, complex_data=True))


def _diagonal(draw: Draw, **others: Any) -> dict[str, Any]:
    n, m, p, dt = draw.random.randint(1, 4), draw.one_of(1, 2), draw.one_of(1, 2), draw.one_of(0, True, 0.5)
    lead = draw.one_of((), (2,))
    found = {"lam": _poles(draw, bool(dt), *lead, n), "B": tensor(draw, n, m, is_complex=True)}
    found |= {"C": tensor(draw, *lead, p, n, is_complex=True), "dt": dt, "output": draw.one_of("complex", "real")}
    if dt and draw.chance(0.3):
        found |= {"lam": None, "rates": 0.5 * _poles(draw, False, *lead, n)}
    return found | others


def _decreasing(result: torch.Tensor, **_: Any) -> str | None:
    x = result.double()
    fine = bool(torch.isfinite(x).all() and (x >= 0).all() and (x[..., 1:] <= x[..., :-1] * (1 + 1e-6)).all())
    return None if fine else f"{result}"


@target("ops.hankel_singular_values", "ops", _decreasing)
def _(draw: Draw) -> Call:
    return Call(ht.ops.hankel_singular_values, _diagonal(draw))


@target("ops.gramian_factors", "ops")
def _(draw: Draw) -> Call:
    return Call(ht.ops.gramian_factors, _diagonal(draw))


@target("ops.balanced_truncation", "ops", lambda result, **_: _decreasing(result.hsv))
def _(draw: Draw) -> Call:
    return Call(ht.ops.balanced_truncation, _diagonal(draw, order=1))


@target("ops.solve_lyapunov", "ops", lambda result, A, **_: None if result.shape[-2:] == A.shape[-2:] else "shape")
def _(draw: Draw) -> Call:
    n, dt = draw.random.randint(1, 3), draw.one_of(0, True)
    A = tensor(draw, n, n) / 16 - (0 if dt else 1) * torch.eye(n)
    return Call(ht.ops.solve_lyapunov, {"A": A, "Q": torch.eye(n, dtype=A.dtype), "dt": dt})


@target("ops.linear_recurrence", "ops", lambda result, b, **_: None if result.shape == b.shape else "shape")
def _(draw: Draw) -> Call:
    n, is_complex, dtype = draw.one_of(1, 3), draw.chance(0.4), draw.one_of(torch.float32, torch.float64)
    kind = {"is_complex": is_complex, "dtype": dtype}
    a = tensor(draw, *draw.one_of((n,), (2, 5, n)), **kind) / 8
    found = {"a": a, "b": tensor(draw, 2, 5, n, **kind), "reverse": draw.chance(0.3)}
    found |= {"initial": tensor(draw, 2, n, **kind)} if draw.chance(0.5) else {}
    found |= {"reset": tensor(draw, 2, 5) > 1} if draw.chance(0.5) else {}
    return Call(ht.ops.linear_recurrence, found)


def _first(result: Any, u: torch.Tensor, **_: Any) -> str | None:
    y = result[0] if isinstance(result, tuple) else result
    return None if y.shape == u.shape else f"{y.shape}"


@target("ops.selective_scan", "ops", _first)
def _(draw: Draw) -> Call:
    n, c, dtype = draw.one_of(1, 3), draw.one_of(1, 2), draw.one_of(torch.float32, torch.float64)
    found = {"u": tensor(draw, 2, 5, c, dtype=dtype), "delta": tensor(draw, 2, 5, c, dtype=dtype).abs()}
    found |= {"A": -tensor(draw, c, n, dtype=dtype).abs(), "B": tensor(draw, 2, 5, n), "C": tensor(draw, 2, 5, n)}
    found |= {"D": tensor(draw, c)} if draw.chance(0.5) else {}
    found |= {"initial": tensor(draw, 2, c, n)} if draw.chance(0.5) else {}
    found |= {"reset": tensor(draw, 2, 5) > 1} if draw.chance(0.5) else {}
    return Call(ht.ops.selective_scan, found | {"return_state": draw.chance(0.5)})


@target("ops.selective_heads", "ops", _first)
def _(draw: Draw) -> Call:
    n, groups, dtype = draw.one_of(1, 3), draw.one_of(1, 2), draw.one_of(torch.float32, torch.float64)
    heads = groups * draw.one_of(1, 2)
    found = {"u": tensor(draw, 2, 5, heads, 3, dtype=dtype), "delta": tensor(draw, 2, 5, heads, dtype=dtype).abs()}
    found |= {"A": -tensor(draw, heads, dtype=dtype).abs(), "B": tensor(draw, 2, 5, groups, n)}
    found |= {"C": tensor(draw, 2, 5, groups, n)} | ({"D": tensor(draw, heads)} if draw.chance(0.5) else {})
    found |= {"initial": tensor(draw, 2, heads, 3, n)} if draw.chance(0.5) else {}
    found |= {"reset": tensor(draw, 2, 5) > 1} if draw.chance(0.5) else {}
    return Call(ht.ops.selective_heads, found | {"return_state": draw.chance(0.5)})


@target("ops.diagonal_ssm", "ops", lambda result, u, **_: None if result.shape[:2] == u.shape[:2] else "shape")
def _(draw: Draw) -> Call:
    n, m, p, dtype = draw.one_of(1, 3), draw.one_of(1, 2), draw.one_of(1, 2), draw.one_of(torch.float32, torch.float64)
    found = {"rates": _poles(draw, False, n) / 32, "B": tensor(draw, n, m, is_complex=True)}
    found |= {"C": tensor(draw, p, n, is_complex=True), "u": tensor(draw, 2, 6, m, dtype=dtype)}
    found |= {"D": tensor(draw, m)} if m == p and draw.chance(0.5) else {}
    return Call(ht.ops.diagonal_ssm, found | {"method": draw.one_of("auto", "recurrence", "convolution")})


@target("ops.backends", "ops")
def _(draw: Draw) -> Call:
    return Call(ht.ops.backends, {})


def _use_backend(name: Any) -> None:
    from hankelred_torch.ops import _backends

    kept = {key: x for key, x in vars(_backends).items() if key.startswith("_") and isinstance(x, (str, bool))}
    try:
        ht.ops.use_backend(name)
    finally:
        vars(_backends).update(kept)


@target("ops.use_backend", "ops")
def _(draw: Draw) -> Call:
    return Call(_use_backend, {"name": draw.one_of("auto", "torch")})


# --- layers ------------------------------------------------------------------------------------------------------


@target("layers.LRU", "layers")
def _(draw: Draw) -> Call:
    found = {"channels": 2, "states": draw.random.randint(1, 5)}
    found |= draw.one_of({}, {"r_min": 0.5, "r_max": 0.9}, {"r_min": 0.0, "r_max": 1, "max_phase": 0.5})
    return Call(ht.layers.LRU, found)


@target("layers.S4D", "layers")
def _(draw: Draw) -> Call:
    return Call(ht.layers.S4D, {"channels": 2, "states": draw.random.randint(1, 5), "init": draw.one_of("lin", "inv")})


@target("layers.S5", "layers")
def _(draw: Draw) -> Call:
    return Call(ht.layers.S5, {"channels": 2, "states": 4, "blocks": draw.one_of(1, 2)})


@target("layers.Mamba", "layers")
def _(draw: Draw) -> Call:
    found = {"channels": 2, "states": 4, "expand": draw.one_of(1, 2), "conv": draw.one_of(1, 4)}
    return Call(ht.layers.Mamba, found | {"dt_rank": draw.one_of("auto", 1)})


def _layer_targets(name: str, form: str) -> None:
    def made(draw: Draw) -> Any:
        return layer(draw, form, dtype=draw.one_of(torch.float32, torch.float64))

    @target(f"layers.{name}.forward", "layers", like)
    def _(draw: Draw) -> Call:
        u = tensor(draw, 2, 5, 2, dtype=draw.one_of(torch.float32, torch.float64))
        x = made(draw)
        return Call(x.forward, {"u": u.to(next(x.parameters()).dtype) if form == "mamba" else u})

    @target(f"layers.{name}.step", "layers", lambda result, u, state: like(result[0], u))
    def _(draw: Draw) -> Call:
        x = made(draw)
        return Call(x.step, {"u": tensor(draw, 3, 2, dtype=next(x.parameters()).dtype), "state": x.initial_state(3)})

    @target(f"layers.{name}.initial_state", "layers")
    def _(draw: Draw) -> Call:
        return Call(made(draw).initial_state, {"batch": draw.random.randint(0, 4)})

    methods = {"reset_parameters", "rates", "system_matrices", "output_matrix", "extra_repr"}
    for method in sorted(methods & set(dir(getattr(ht.layers, name)))):

        @target(f"layers.{name}.{method}", "layers")
        def _(draw: Draw, method: str = method) -> Call:
            return Call(getattr(made(draw), method), {})


for _name, _form in (("LRU", "lru"), ("S4D", "s4d"), ("S5", "s5"), ("Mamba", "mamba")):
    _layer_targets(_name, _form)


# --- settings ----------------------------------------------------------------------------------------------------


def _config(draw: Draw) -> dict[str, Any]:
    found = draw.one_of({"tau": 0.1}, {"order": 3}, {"fraction": 0.5}, {"max_error": 0.1})
    found |= draw.one_of({}, {"min_order": 2}, {"min_cut": 0.2}, {"round_to": 2}, {"optimizer_state": "reset"})
    found |= draw.one_of({}, {"method": "auto"}, {"weighting": "auto"}, {"weighting": "sampled"})
    found |= draw.one_of({}, {"budget": "per_layer"})
    found |= draw.one_of({}, {"refit": "auto"}, {"refit": True})
    return found | draw.one_of({}, {"target_modules": ".*"}, {"exclude_modules": ["head"]})


@target("ht.CompressionConfig", "settings", round_trip)
def _(draw: Draw) -> Call:
    return Call(ht.CompressionConfig, _config(draw))


def _schedule(draw: Draw) -> dict[str, Any]:
    found = draw.one_of({"total_steps": 100}, {"end_step": 9}, {"total_steps": 100, "start_step": 2, "end_step": 50})
    return found | draw.one_of({}, {"attempts": 2}, {"max_tail": 0.5}, {"force": True})


@target("ht.Schedule", "settings", round_trip)
def _(draw: Draw) -> Call:
    return Call(ht.Schedule, _schedule(draw))


for _kind, _values in ((ht.CompressionConfig, _config), (ht.Schedule, _schedule)):

    @target(f"ht.{_kind.__name__}.from_dict", "settings", round_trip)
    def _(draw: Draw, kind: Any = _kind, values: Any = _values) -> Call:
        return Call(kind.from_dict, {"values": kind(**values(draw)).to_dict()})

    @target(f"ht.{_kind.__name__}.to_dict", "settings")
    def _(draw: Draw, kind: Any = _kind, values: Any = _values) -> Call:
        return Call(kind(**values(draw)).to_dict, {})


@target("ht.Schedule.attempt_steps", "settings")
def _(draw: Draw) -> Call:
    return Call(ht.Schedule(**_schedule(draw)).attempt_steps, {})


@target("ht.Guard", "settings")
def _(draw: Draw) -> Call:
    found = {"metric": draw.one_of(lambda: 0.5, lambda model: 0.5), "tolerance": draw.one_of(0, 0.1), "mode": "max"}
    return Call(ht.Guard, found | draw.one_of({}, {"settle_steps": 2}, {"on_fail": "stop"}))


@target("ht.Guard.measure", "settings", _number)
def _(draw: Draw) -> Call:
    return Call(ht.Guard(draw.one_of(lambda: 0.5, lambda model: 1), 0.1, "max").measure, {"model": model(draw)})


def _of_metric(value: Any) -> float:
    return ht.Guard(lambda: value, 0.1, "max").measure(nn.Linear(1, 1))


@target("ht.Guard.measure of a metric", "settings")
def _(draw: Draw) -> Call:
    return Call(_of_metric, {"value": draw.one_of(0.5, 1, torch.tensor(0.5), np.float32(1))})


@target("ht.Guard.holds", "settings", lambda result, **_: None if isinstance(result, bool) else f"{result!r}")
def _(draw: Draw) -> Call:
    return Call(ht.Guard(lambda: 0.5, 0.1, "max").holds, {"before": 0.5, "after": draw.one_of(0.1, 0.45)})


def _loss(**arguments: Any) -> float:
    return ht.validation_loss(**arguments)(ht.layers.LRU(2, 3))


@target("ht.validation_loss", "settings")
def _(draw: Draw) -> Call:
    batches = [(torch.ones(2, 5, 2), torch.zeros(2, 5, 2))]
    found = {"batches": batches, "loss": nn.functional.mse_loss}
    return Call(_loss, found)


@target("ht.Rewarm", "settings")
def _(draw: Draw) -> Call:
    return Call(ht.Rewarm, {"steps": 3})


@target("ht.Checkpoint", "settings")
def _(draw: Draw) -> Call:
    return Call(ht.Checkpoint, {"folder": tempfile.gettempdir()})


def _register(**arguments: Any) -> None:
    before = dict(registry._REGISTERED)
    try:
        ht.register_adapter(**arguments)
    finally:
        registry._REGISTERED.clear()
        registry._REGISTERED.update(before)


for _room in ("ht", "adapters"):

    @target(f"{_room}.register_adapter", "settings")
    def _(draw: Draw) -> Call:
        found = {"class_or_qualified_name": draw.one_of("a.b.C", type("Mine", (ht.layers.LRU,), {}))}
        return Call(_register, found | {"adapter": ht.adapters.LRUAdapter})


def _register_state(**arguments: Any) -> None:
    from hankelred_torch.surgery import roles

    before = {key: dict(x) if isinstance(x, dict) else x for key, x in roles.TABLE.items()}
    try:
        ht.register_optimizer_state(**arguments)
    finally:
        roles.TABLE.clear()
        roles.TABLE.update(before)


@target("ht.register_optimizer_state", "settings")
def _(draw: Draw) -> Call:
    name = draw.one_of("its.Mine", type("Other", (torch.optim.SGD,), {}))
    role = draw.one_of("gradient", "square")
    return Call(_register_state, {"optimizer_class_or_name": name, "key": "mean", "role": role})


# --- models that are looked at -----------------------------------------------------------------------------------


def _model_target(name: str, function: Any, argument: str, check: Any, room: str = "looking") -> None:
    @target(name, room, check)
    def _(draw: Draw) -> Call:
        single = argument == "layer"
        return Call(function, {argument: layer(draw) if single else model(draw)})


for _room in ("ht", "adapters"):
    _model_target(f"{_room}.find_ssm_layers", ht.find_ssm_layers, "model", None)
    _model_target(f"{_room}.state_sizes", ht.state_sizes, "model", None)
    _model_target(f"{_room}.read_system", ht.read_system, "layer", None)
_model_target("adapters.adapter_of", ht.adapters.adapter_of, "layer", None)
_model_target("adapters.refusals", ht.adapters.refusals, "model", None)
_model_target("adapters.check", ht.adapters.check, "layer", _number)

_OWN = {"lru": "LRUAdapter", "s4d": "S4DAdapter", "s5": "S5Adapter", "mamba": "MambaAdapter"}
for _name in ht.adapters.__all__:
    _value = getattr(ht.adapters, _name)
    if inspect.isclass(_value) and issubclass(_value, ht.adapters.Adapter) and not inspect.isabstract(_value):

        @target(f"adapters.{_name}", "adapters")
        def _(draw: Draw, kind: Any = _value, name: str = _name) -> Call:
            form = next((key for key, x in _OWN.items() if x == name), None)
            if form is None:  # there is no right layer here: None stands for it
                return Call(lambda layer: None if layer is None else kind(layer), {"layer": None})
            return Call(kind, {"layer": layer(draw, form)})


@target("adapters.diagonal_layer", "adapters")
def _(draw: Draw) -> Call:
    rng = draw.array(2, 2) / 16 + np.diag([0.5, -0.25])
    system = hr.StateSpace(rng, np.ones((2, 1)), np.ones((1, 2)), dt=True)
    found: dict[str, Any] = {"systems": draw.one_of(system, [system], (system, system))}
    return Call(ht.adapters.diagonal_layer, found | draw.one_of({}, {"states": 1}))


@target("adapters.collect_statistics", "looking")
def _(draw: Draw) -> Call:
    x = layer(draw, draw.one_of("mamba", "mamba", "lru"))
    return Call(ht.adapters.collect_statistics, {"model": x, "batches": [torch.randn(1, 4, 2)]})


@target("adapters.SampleStatistics.merge", "looking")
def _(draw: Draw) -> Call:
    one, two = (ht.adapters.collect_statistics(layer(draw, "mamba"), [torch.ones(1, 4, 2)]) for _ in range(2))
    return Call(one.merge, {"other": two})


@target("ht.hankel_penalty", "looking", lambda result, **_: None if result.is_meta or result >= 0 else f"{result}")
def _(draw: Draw) -> Call:
    return Call(ht.hankel_penalty, {"model": model(draw), "p": draw.one_of(1, 2, 1.5)})


@target("ht.hankel_singular_values", "looking", values_of)
def _(draw: Draw) -> Call:
    x = layer(draw, draw.one_of("mamba", *FORMS))
    return Call(ht.hankel_singular_values, {"model_or_layer": x, "batches": [torch.randn(1, 4, 2)]})


@target("ht.plan", "looking", planned)
def _(draw: Draw) -> Call:
    x = layer(draw, draw.one_of("mamba", *FORMS))
    config = ht.CompressionConfig(
        **draw.one_of(
            {"tau": 0.1},
            {"order": 2},
            {"fraction": 0.5},
            {"order": 2, "refit": True},
            {"max_error": 0.2, "weighting": "sampled"},
        )
    )
    return Call(ht.plan, {"model": x, "config": config, "batches": [torch.randn(1, 4, 2)]})


def _watched(model: Any, adapters: Any) -> Any:
    watch = sampling.watch(model, adapters)
    watch.remove()
    return watch.statistics()


@target("sampling.watch", "looking")
def _(draw: Draw) -> Call:
    x = layer(draw, draw.one_of("mamba", "lru"))
    return Call(_watched, {"model": x, "adapters": ht.find_ssm_layers(x)})


@target("ht.Tracker", "looking")
def _(draw: Draw) -> Call:
    return Call(ht.Tracker, {"model": model(draw), "every": 2} | draw.one_of({}, {"target_modules": ".*"}))


@target("ht.Tracker.step", "looking")
def _(draw: Draw) -> Call:
    return Call(ht.Tracker(model(draw), 1).step, {})


@target("ht.Tracker.state_dict", "looking")
def _(draw: Draw) -> Call:
    return Call(ht.Tracker(model(draw), 1).state_dict, {})


@target("ht.Tracker.load_state_dict", "looking")
def _(draw: Draw) -> Call:
    x = model(draw)
    return Call(ht.Tracker(x, 1).load_state_dict, {"state": ht.Tracker(x, 1).state_dict()})


@target("ht.export_form", "looking")
def _(draw: Draw) -> Call:
    return Call(ht.export_form, {"layer": layer(draw, draw.one_of("mamba", *FORMS)), "max_length": 16})


@target("ht.export_padded", "looking")
def _(draw: Draw) -> Call:
    return Call(ht.export_padded, {"model": model(draw)} | draw.one_of({}, {"states": 8}))


for _name, _function in {"ht": ht.add_state_maps_, "adapters": ht.adapters.add_state_maps_}.items():

    @target(f"{_name}.add_state_maps_", "looking")
    def _(draw: Draw, function: Any = _function) -> Call:
        return Call(function, {"model": model(draw)} | draw.one_of({}, {"target_modules": "0"}))


# --- records -----------------------------------------------------------------------------------------------------


def _history(draw: Draw) -> Any:
    x = layer(draw, "lru")
    tracker = ht.Tracker(x, 1)
    tracker.step()
    return tracker.history


def _path() -> str:
    return os.path.join(tempfile.gettempdir(), f"hankelred_fuzz_{os.getpid()}")


_HISTORY: dict[str, dict[str, Any]] = {"to_list": {}, "to_json": {"path": None}, "table": {}, "settled": {"order": 2}}
_HISTORY |= {"scalars": {"prefix": "h"}, "plot": {"ax": None}, "plot_hsv": {"layer": "", "ax": None, "order": 2}}
_HISTORY["plot_waterfall"] = {"layer": "", "ax": None}
for _name, _arguments in _HISTORY.items():

    @target(f"ht.History.{_name}", "records")
    def _(draw: Draw, name: str = _name, arguments: Any = _arguments) -> Call:
        extra = {"layer": "", "proven": draw.chance(0.5)} if name == "settled" else {}
        return Call(getattr(_history(draw), name), {**arguments, **extra})


@target("ht.History.from_list", "records")
def _(draw: Draw) -> Call:
    records = _history(draw).to_list()
    key = draw.random.choice(sorted(records[0]))
    return Call(lambda records: ht.History.from_list(records).table(), {"records": records} if key else {})


@target("ht.LayerCut.from_dict", "records")
def _(draw: Draw) -> Call:
    return Call(lambda record: ht.LayerCut.from_dict(record).to_dict(), {"record": _history(draw)[0].to_dict()})


@target("ht.LayerCut.to_dict", "records")
def _(draw: Draw) -> Call:
    return Call(_history(draw)[0].to_dict, {})


@target("ht.LayerCut.keeps", "records")
def _(draw: Draw) -> Call:
    return Call(_history(draw)[-1].keeps, {"order": 2})


for _name, _arguments in {"to_dict": {}, "to_json": {"path": None}, "scalars": {"prefix": "h"}}.items():

    @target(f"ht.Plan.{_name}", "records")
    def _(draw: Draw, name: str = _name, arguments: Any = _arguments) -> Call:
        return Call(getattr(plan_of(model(draw), order=3), name), dict(arguments))


# --- cuts --------------------------------------------------------------------------------------------------------


@target("ht.compress_", "cuts", of_sizes)
def _(draw: Draw) -> Call:
    x = model(draw)
    wanted: Any = draw.one_of(ht.CompressionConfig(order=3), ht.CompressionConfig(tau=0.2), plan_of(x, order=3))
    found = {"model": x, "plan_or_config": wanted, "optimizers": trained(draw, x)}
    found |= draw.one_of({}, {}, {"ema": averaged(x)}, {"batches": [torch.ones(1, 4, 2)]})
    if not isinstance(wanted, ht.Plan) and wanted.order is None and draw.chance(0.3):
        found |= {"metric": lambda: 0.5, "tolerance": 0.1, "mode": "max"}
    return Call(ht.compress_, found)


@target("ht.write_system", "cuts")
def _(draw: Draw) -> Call:
    x = layer(draw, draw.one_of("lru", "s5"))
    system = ht.read_system(x)
    return Call(ht.write_system, {"layer": x, "system": system})


@target("ht.resize_", "cuts")
def _(draw: Draw) -> Call:
    x = model(draw)
    sizes = dict.fromkeys(ht.state_sizes(x), 3)
    found: Any = {"model": x, "like": sizes if draw.chance(0.6) else x.state_dict(), "optimizers": trained(draw, x)}
    return Call(ht.resize_, found)


def _refresh(ddp: Any) -> None:
    """There is no right one in one process: None stands for it."""
    if ddp is not None:
        ht.refresh_ddp_(ddp)


@target("ht.refresh_ddp_", "cuts")
def _(draw: Draw) -> Call:
    return Call(_refresh, {"ddp": None})


def _compressor(draw: Draw, x: nn.Module) -> dict[str, Any]:
    found = {"model": x, "optimizers": trained(draw, x), "config": ht.CompressionConfig(order=3)}
    return found | {"schedule": ht.Schedule(end_step=4, attempts=2, force=True)}


@target("ht.InTrainingCompressor", "cuts")
def _(draw: Draw) -> Call:
    x = model(draw)
    found = _compressor(draw, x)
    found |= draw.one_of({}, {"guard": ht.Guard(lambda: 0.5, 0.1, "max")}, {"on_cut": [ht.Rewarm(2)]})
    found |= draw.one_of({}, {"batches": [torch.ones(1, 4, 2)]}, {"restore": []}, {"ema": averaged(x)})
    return Call(ht.InTrainingCompressor, found)


for _name in ("step", "rollback", "state_dict"):

    @target(f"ht.InTrainingCompressor.{_name}", "cuts")
    def _(draw: Draw, name: str = _name) -> Call:
        compressor = ht.InTrainingCompressor(**_compressor(draw, model(draw)))
        return Call(getattr(compressor, name) if name != "rollback" else compressor.state_dict, {})


@target("ht.InTrainingCompressor.load_state_dict", "cuts")
def _(draw: Draw) -> Call:
    compressor = ht.InTrainingCompressor(**_compressor(draw, model(draw)))
    return Call(compressor.load_state_dict, {"state": compressor.state_dict()})


# --- files -------------------------------------------------------------------------------------------------------


@target("ht.save_checkpoint", "files")
def _(draw: Draw) -> Call:
    x = model(draw)
    found = {"path": _path(), "model": x, "optimizers": trained(draw, x)}
    found |= draw.one_of({}, {"extra": {"step": 1}}, {"restore": []}, {"ema": averaged(x)})
    return Call(ht.save_checkpoint, found | draw.one_of({}, {"compressor": None}))


@target("ht.load_checkpoint", "files", of_sizes)
def _(draw: Draw) -> Call:
    x = model(draw)
    optimizer = trained(draw, x)
    ht.save_checkpoint(_path(), x, optimizer)
    found = {"path": _path(), "model": x, "optimizers": optimizer, "compressor": None, "ema": (), "restore": ()}
    return Call(ht.load_checkpoint, found)


@target("ht.save_pretrained", "files")
def _(draw: Draw) -> Call:
    return Call(ht.save_pretrained, {"model": model(draw), "directory": f"{_path()}_model"})


@target("ht.from_pretrained", "files")
def _(draw: Draw) -> Call:
    x = model(draw)
    ht.save_pretrained(x, f"{_path()}_model")
    return Call(ht.from_pretrained, {"directory": f"{_path()}_model", "model": x})


# --- callbacks ---------------------------------------------------------------------------------------------------


def _callback(draw: Draw) -> dict[str, Any]:
    found = {"config": ht.CompressionConfig(tau=0.1), "schedule": draw.one_of(None, ht.Schedule(end_step=3))}
    found |= draw.one_of({}, {"guard": ht.Guard(lambda: 0.5, 0.1, "max")}, {"ema": nn.Linear(2, 2)}, {"restore": []})
    return found | draw.one_of({}, {"batches": [torch.ones(1, 4, 2)]}, {"on_cut": [ht.Rewarm(2)]})


_PRESENT = {name: module for name, module in _rooms() if name in ("lightning", "transformers")}
for _name, _module in _PRESENT.items():

    @target(f"{_name}.CompressionCallback", "callbacks")
    def _(draw: Draw, module: Any = _module) -> Call:
        return Call(module.CompressionCallback, _callback(draw))


if "lightning" in _PRESENT:

    @target("lightning.CompressionCallback.state_dict", "callbacks")
    def _(draw: Draw) -> Call:
        return Call(_PRESENT["lightning"].CompressionCallback(**_callback(draw)).state_dict, {})

    @target("lightning.CompressionCallback.load_state_dict", "callbacks")
    def _(draw: Draw) -> Call:
        callback = _PRESENT["lightning"].CompressionCallback(**_callback(draw))
        return Call(callback.load_state_dict, {"state_dict": {}})

    @target("lightning.resize_from_checkpoint", "callbacks")
    def _(draw: Draw) -> Call:
        x = model(draw)
        found = {"pl_module": x, "checkpoint": {"state_dict": x.state_dict()}}
        return Call(_PRESENT["lightning"].resize_from_checkpoint, found)


if "transformers" in _PRESENT:

    @target("transformers.CompressionCallback.attach", "callbacks")
    def _(draw: Draw) -> Call:
        callback = _PRESENT["transformers"].CompressionCallback(**_callback(draw))
        handler = type("Handler", (), {"callbacks": [callback]})
        return Call(callback.attach, {"trainer": type("Trainer", (), {"callback_handler": handler})()})

    @target("transformers.CompressionCallback.resume_from", "callbacks")
    def _(draw: Draw) -> Call:
        callback, x = _PRESENT["transformers"].CompressionCallback(**_callback(draw)), model(draw)
        folder = _path()

        def resume(checkpoint: Any, model: Any) -> Any:
            return callback.resume_from(checkpoint, model) if checkpoint is not folder else None

        return Call(resume, {"checkpoint": folder, "model": x})
