"""Cutting the same on every rank of a distributed run, and wrappers that take up the new parameters.

`DistributedDataParallel` files every parameter in buckets when it is made. After a cut it fails at a later backward
pass; ranks that cut differently train different models without a word. So rank 0 decides, every rank prepares, what
they have prepared is compared before anything changes, and the wrapper is made anew in place, because frameworks hold
on to the object. Where tensors are spread over ranks no rank can decide alone: all of them do the same in step.
"""

from __future__ import annotations

import hashlib
import inspect
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hankelred.errors import InputError

from ..adapters import Adapter, SampleStatistics, find_ssm_layers
from ..adapters.registry import unwrapped as unwrapped
from ..convert import check_whole, to_array
from ..errors import RefusedCutWarning, SurgeryError
from ..sharding import Ranks, is_spread, ranks_over, reshard, together, units
from .fsdp import check_layout, managed

T = TypeVar("T")

_MIB = 1024 * 1024

# Constructor arguments that the wrapper keeps under their names; older versions of torch know fewer.
_KEPT = (
    "device_ids",
    "output_device",
    "dim",
    "process_group",
    "find_unused_parameters",
    "gradient_as_bucket_view",
    "static_graph",
    "skip_all_reduce_unused_params",
    "batched_grad_copy",
)

# What `nn.Module.__init__` makes anew and belongs to the users: hooks and the mode. The rest are the modules inside.
_OF_MODULES = frozenset({"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"})
_SYNCHRONIZATION = ("require_backward_grad_sync", "require_forward_param_sync", "_join_config")

_SHARDED = {
    "FullyShardedDataParallel": "shards them",
    "DeepSpeedEngine": "keeps copies of its own",
}


def refresh_ddp_(ddp: DistributedDataParallel) -> None:
    """Let a wrapper take up the parameters that its module has now, after they were replaced.

    `compress_` and `InTrainingCompressor` do so themselves when they are given the wrapper. Call it on every rank,
    between steps, when you have cut the inner module yourself. The wrapper stays the same object, so that those who
    hold on to it, a trainer, a compiled model, go on with it; its arguments, hooks and mode stay as they are.

    Parameters
    ----------
    ddp : torch.nn.parallel.DistributedDataParallel
        The wrapper; changed in place, or not at all.

    Raises
    ------
    InputError
        If it is no such wrapper, or has a mixed precision, delayed parameters or a communication hook with a state of
        its own, which cannot be carried over.
    SurgeryError
        If ranks have other parameters, or other values in their state space layers.

    Examples
    --------
    >>> import os, tempfile, torch, hankelred_torch as ht
    >>> store = torch.distributed.FileStore(os.path.join(tempfile.mkdtemp(), "store"), 1)
    >>> torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    >>> ddp = torch.nn.parallel.DistributedDataParallel(ht.layers.LRU(channels=2, states=8))
    >>> report = ht.compress_(ddp.module, ht.CompressionConfig(order=4))
    >>> ht.refresh_ddp_(ddp)
    >>> ddp(torch.randn(1, 5, 2)).sum().backward()
    >>> del ddp  # a wrapper that outlives its process group can wait for its threads for ever
    >>> torch.distributed.destroy_process_group()
    """
    arguments = check_refreshable(ddp)
    ranks = Ranks(ddp.process_group, ddp.device, ddp)
    agreed(ranks, lambda: None, lambda _: _fingerprint_of(ddp.module))
    before = dict(vars(ddp))
    kept = {name: before[name] for name in vars(nn.Module()) if name not in _OF_MODULES}
    kept |= {name: before[name] for name in _SYNCHRONIZATION if name in before}
    try:
        # nothing to broadcast: ranks agree, and buffers that users keep by rank stay theirs
        DistributedDataParallel.__init__(ddp, ddp.module, init_sync=False, **arguments)
        for hook, state in before.get("_comm_hooks", ()):
            ddp.register_comm_hook(state, hook)
        vars(ddp).update(kept)
    except BaseException:
        vars(ddp).clear()
        vars(ddp).update(before)
        raise


def check_refreshable(ddp: Any) -> dict[str, Any]:
    """Return the arguments a wrapper was made with, or raise if they cannot be carried over."""
    if not isinstance(ddp, DistributedDataParallel):
        raise InputError(
            f"ddp must be a DistributedDataParallel; got {type(ddp).__name__}. Pass the wrapper, not its module."
        )
    obstacles = []
    if ddp.mixed_precision is not None:
        obstacles.append("mixed_precision, which keeps copies of the parameters; use torch.autocast")
    if ddp._delay_all_reduce_params:
        obstacles.append("delay_all_reduce_named_params, which holds the old parameters")
    if getattr(ddp, "_use_python_reducer", False):
        obstacles.append("the python_reducer of torch.compile; set torch._dynamo.config.optimize_ddp to another mode")
    hooks = getattr(ddp, "_comm_hooks", [])
    for hook, state in hooks:
        if state is not None and not isinstance(state, dist.ProcessGroup):
            name = f"{getattr(hook, '__qualname__', hook)} with a {type(state).__name__}"
            obstacles.append(f"a communication hook with a state of its own, {name}; register it after the last cut")
    if not hooks and ddp._get_ddp_logging_data().get("comm_hook"):
        obstacles.append("a built-in communication hook, which torch does not tell; register it after the last cut")
    if obstacles:
        raise InputError(f"A wrapper to be made anew must not have {'; nor '.join(obstacles)}.")
    return _arguments_of(ddp)


def _arguments_of(ddp: DistributedDataParallel) -> dict[str, Any]:
    """Return the arguments of the wrapper's constructor, as far as this version of torch has them."""
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    arguments = {name: getattr(ddp, name) for name in _KEPT if name in known and hasattr(ddp, name)}
    if getattr(ddp, "bucket_bytes_cap_list", None):
        arguments["bucket_cap_mb_list"] = [size / _MIB for size in ddp.bucket_bytes_cap_list]
    elif not ddp.bucket_bytes_cap_default:
        arguments["bucket_cap_mb"] = ddp.bucket_bytes_cap / _MIB
    if "forward_sync_buffers" in known:  # since torch 2.13, where the older name warns
        return arguments | {"forward_sync_buffers": ddp.forward_sync_buffers}
    return arguments | {"broadcast_buffers": ddp.broadcast_buffers}


def opened(model: nn.Module) -> tuple[Ranks | None, nn.Module, dict[str, Adapter]]:
    """Return the ranks that train a model together if they do, the model inside all wrappers, and its layers.

    What cannot be cut inside is refused.
    """
    inner, outer = unwrapped(model), cast(Any, model)
    while not isinstance(outer, DistributedDataParallel) and isinstance(getattr(outer, "_orig_mod", None), nn.Module):
        outer = outer._orig_mod
    for module in inner.modules():
        name = type(module).__name__
        if isinstance(module, DistributedDataParallel):
            raise InputError(
                "A DistributedDataParallel must be the whole model to be cut; got one inside another module. "
                "Pass the wrapper itself."
            )
        if name in _SHARDED:
            raise InputError(
                f"model must be sharded by fully_shard, or hold whole parameters on every rank; got a {name}, which "
                f"{_SHARDED[name]}. Gather a full state dict, cut a plain model, and wrap it again."
            )
        if "make_graphed_callables" in getattr(vars(module).get("forward"), "__qualname__", ""):
            raise InputError(
                f"model must not be captured in a CUDA graph, which goes on with the parameters it was captured with; "
                f"got a {name} of torch.cuda.make_graphed_callables. Capture it after the last cut."
            )
    reshard(inner)
    layers = find_ssm_layers(inner)
    for adapter in layers.values():
        check_whole({name: x for name, (*_, x) in adapter.places().items()}, type(adapter.layer).__qualname__)
    ranks = _ranks_of(outer, inner)
    if ranks is not None and ranks.ddp is None:
        kept = managed(inner)
        for adapter in layers.values():
            tensors = {name: x for name, (*_, x) in adapter.places(adapter.replaced).items()}
            check_layout(tensors, adapter.state_axes, type(adapter.layer).__qualname__, kept)
    return ranks, inner, layers


def _ranks_of(outer: Any, inner: nn.Module) -> Ranks | None:
    """Find the ranks that train a model together: those of its wrapper, or those its tensors are spread over."""
    if not isinstance(outer, DistributedDataParallel):
        return ranks_over(inner)
    if units(inner) or any(map(is_spread, inner.parameters())):
        raise InputError(
            "model must be in a DistributedDataParallel or sharded by fully_shard; got both. Use fully_shard on a "
            "mesh of two dimensions, which replicates along the first."
        )
    return Ranks(outer.process_group, outer.device, outer)


def leads(ranks: Ranks | None) -> bool:
    """Tell whether this process is the one that decides and writes files."""
    return ranks is None or ranks.leads


def warn_if_alone(ranks: Ranks | None) -> None:
    """Warn where this process is one of several, and none of the others has to do with the model."""
    if ranks is None and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        warnings.warn(
            "This process is one of several, and the model is not in a DistributedDataParallel: each of them will "
            "cut by itself. Pass the wrapper if there is one.",
            RefusedCutWarning,
            stacklevel=3,
        )


def decided(ranks: Ranks | None, decide: Callable[[], T]) -> T:
    """Return on every rank what rank 0 decides, or all do in step; if that fails, every rank raises."""
    if ranks is None or ranks.ddp is None:
        return in_step(ranks, decide)
    message: list[Any] = [None, None]
    failure: Exception | None = None
    if leads(ranks):
        try:
            message[0] = decide()
        except Exception as error:
            failure, message[1] = error, str(error)
    first = dist.get_global_rank(ranks.group, 0)
    dist.broadcast_object_list(message, src=first, group=ranks.group, device=ranks.device)
    if failure is not None:
        raise failure
    if message[1] is not None:
        raise SurgeryError(f"Rank 0 must decide what is cut; it failed instead: {message[1]}")
    return message[0]


def in_step(ranks: Ranks | None, work: Callable[[], T]) -> T:
    """Return what is done for a model, by all ranks in step where its tensors are spread over them."""
    return work() if ranks is None or ranks.ddp is not None else together(ranks, work)


def agreed(ranks: Ranks | None, prepare: Callable[[], T], fingerprint: Callable[[T], str]) -> T:
    """Return what every rank prepares for itself; raise on all of them if one fails or has something else."""
    return together(ranks, prepare, fingerprint)


def averaged(ranks: Ranks | None, measure: Callable[[], float]) -> float:
    """Return the mean of what the ranks measure, the same number on each of them."""
    if ranks is None:
        return measure()
    value, failure = float("nan"), None
    try:
        value = measure()
    except Exception as error:
        failure = error
    found = ranks.gathered((value, None if failure is None else str(failure)))
    if failure is not None:
        raise failure
    errors = [error for _, error in found if error is not None]
    if errors:
        raise SurgeryError(f"The metric must be a number on every rank; it failed on another: {errors[0]}")
    return sum(each for each, _ in found) / len(found)


def merged(ranks: Ranks | None, batches: Any) -> Any:
    """Return, on every rank, what the layers did on all of them; sample batches that were given are as they are."""
    if ranks is None or not isinstance(batches, SampleStatistics):
        return batches
    total, *others = (SampleStatistics(layers) for layers in ranks.gathered(batches.layers))
    for other in others:
        total.merge(other)
    return SampleStatistics(total.layers, batches.probe)


def digest(parts: Any) -> str:
    """Return a hash of texts and tensors."""
    result = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.Tensor):
            result.update(f"{part.dtype} {tuple(part.shape)}".encode())
            numbers = part.is_floating_point() or part.is_complex()
            result.update(to_array(part).tobytes() if numbers else repr(part.tolist()).encode())
        else:
            result.update(repr(part).encode())
    return result.hexdigest()


def _fingerprint_of(model: nn.Module) -> str:
    """Return a hash of all shapes, and of the values of state space layers."""
    parts: list[Any] = [(name, tuple(p.shape), p.requires_grad) for name, p in model.named_parameters()]
    for adapter in find_ssm_layers(model).values():
        parts += [x for *_, x in adapter.places().values()]
    return digest(parts)
