"""Tensors that are spread over the ranks of a run: gathered one by one, spread again, and what ranks do in step.

A shard tells nothing of a layer, so every rank gathers a layer, computes the same, and keeps its own part of what comes
out. Gathering waits for all ranks. So what they do in step is a section: before each gathering, and at its end, they
tell each other whether one has failed, and if so, all of them raise.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hankelred.checks import check_type
from hankelred.errors import InputError

from .errors import SurgeryError

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Ranks:
    """The processes that train one model together.

    Attributes
    ----------
    group : ProcessGroup
        Theirs.
    device : torch.device
        Where objects go through on their way to others.
    ddp : DistributedDataParallel or None
        The wrapper of a model that is whole on every rank; None where its tensors are spread.
    """

    group: Any
    device: Any
    ddp: Any = None

    @property
    def leads(self) -> bool:
        """Whether this process is the one that decides and writes files."""
        return dist.get_rank(self.group) == 0

    @property
    def rank(self) -> int:
        """Number of this process among them."""
        return dist.get_rank(self.group)

    def gathered(self, value: T) -> list[T]:
        """Return what every rank has; all of them call this."""
        found: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(found, value, group=self.group)
        return found


def ranks_over(model: nn.Module) -> Ranks | None:
    """Find the ranks over which tensors of a model are spread; None where none is."""
    spread: list[Any] = [x for x in model.parameters() if is_spread(x)]
    meshes: dict[int, Any] = {id(x.device_mesh): x.device_mesh for x in spread}
    if not meshes:
        return None
    mesh = max(meshes.values(), key=lambda x: x.size())
    if mesh.size() == dist.get_world_size():
        return Ranks(dist.group.WORLD, torch.device(mesh.device_type))
    if mesh.ndim != 1:
        raise InputError(
            f"A mesh of several dimensions must have all ranks to be cut on; got {mesh} and {dist.get_world_size()} "
            f"ranks. Make one process group per model."
        )
    return Ranks(mesh.get_group(), torch.device(mesh.device_type))


class _Elsewhere(Exception):
    """Another rank has failed, which all know."""


_SECTION: ContextVar[Ranks | None] = ContextVar("ranks that work in step", default=None)


def together(ranks: Ranks | None, work: Callable[[], T], mark: Callable[[T], str] | None = None) -> T:
    """Return what work does that all ranks do in step; raise on all of them if one fails or has another result.

    Parameters
    ----------
    ranks : Ranks or None
        Of one process None: the work is done.
    work : callable
        Inside it tensors are gathered, and forward passes of spread models run, in the same order on every rank.
    mark : callable, optional
        A digest of the result, which has to be that of rank 0.
    """
    if ranks is None or _SECTION.get() is not None and mark is None:
        return work()
    try:
        with _in_step(ranks):
            result = work()
            own = "" if mark is None else mark(result)
    except _Elsewhere as error:
        raise SurgeryError(str(error)) from None
    except Exception as error:
        _meet(ranks, "failed", str(error))
        raise
    try:
        marks = _meet(ranks, "the end", None, own)
    except _Elsewhere as error:
        raise SurgeryError(str(error)) from None
    for rank, other in enumerate(marks):
        if other != marks[0]:
            raise SurgeryError(
                f"All ranks must have the same tensors in their state space layers and optimizers; those of rank "
                f"{rank} differ from those of rank 0. Nothing was changed. Look for parameters that one rank changed "
                f"by itself, or load the same checkpoint on every rank."
            )
    return result


@contextmanager
def _in_step(ranks: Ranks) -> Iterator[None]:
    token = _SECTION.set(ranks)
    try:
        yield
    finally:
        _SECTION.reset(token)


def _meet(ranks: Ranks, place: str, problem: str | None, mark: str = "") -> list[str]:
    """Tell others how it goes, and return their marks; raise if another has failed or is elsewhere."""
    found = ranks.gathered((place, problem, mark))
    for rank, (_, other, _) in enumerate(found):
        if problem is None and other is not None:
            raise _Elsewhere(f"All ranks must be able to cut; rank {rank} was not: {other}")
    for rank, (other, _, _) in enumerate(found):
        if problem is None and other != place:
            raise _Elsewhere(
                f"All ranks must do the same in the same order; got {place} here and {other} on rank {rank}. Give the "
                f"same model, settings and number of calls on every rank."
            )
    return [mark for *_, mark in found]


def everyone(value: T) -> list[T]:
    """Return what every rank of the section has, this one's alone outside of one."""
    ranks = _SECTION.get()
    if ranks is None:
        return [value]
    _meet(ranks, "an exchange of values", None)
    return ranks.gathered(value)


def works_in_step() -> bool:
    """Tell whether ranks over which tensors are spread do this together."""
    return _SECTION.get() is not None


def own_place() -> int:
    """Return the number of this rank in what `everyone` returns."""
    ranks = _SECTION.get()
    return 0 if ranks is None else ranks.rank


def is_spread(tensor: Any) -> bool:
    """Tell whether ranks hold parts of a tensor, or copies that torch knows to be copies."""
    return hasattr(tensor, "device_mesh") and hasattr(tensor, "full_tensor")


def whole(tensor: Tensor, name: str = "a tensor") -> Tensor:
    """Return a tensor that is spread as a plain one, which all ranks call for in step; any other as it is."""
    if not is_spread(tensor):
        return tensor
    if (ranks := _SECTION.get()) is not None:
        _meet(ranks, f"the gathering of {name} {tuple(tensor.shape)}", None)
    spread: Any = tensor
    with torch.no_grad():
        return spread.full_tensor().detach()


def spread_like(tensor: Tensor, like: Any) -> Tensor:
    """Return the part of a plain tensor that this rank keeps, in the form of another; nothing is sent."""
    if not is_spread(like) or is_spread(tensor):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    with torch.no_grad():
        plain = tensor.detach().contiguous()
        return distribute_tensor(plain, like.device_mesh, like.placements, src_data_rank=None).to(like.device)


def whole_state(model: nn.Module, ranks: Ranks) -> dict[str, Tensor]:
    """Return the state dict of a model with whole tensors, in host memory of the rank that leads; others have none.

    Tensors are gathered one by one; what is tied stays tied.
    """
    found: dict[str, Tensor] = {}
    gathered: dict[int, Tensor] = {}
    for name, x in model.state_dict(keep_vars=True).items():
        if not isinstance(x, Tensor):
            found[name] = x
            continue
        if id(x) not in gathered:
            full = whole(x, name)
            gathered[id(x)] = full.detach().cpu() if ranks.leads else full.new_empty(0)
        found[name] = gathered[id(x)]
    return found if ranks.leads else {}


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that is here."""
    spread: Any = tensor
    return spread.to_local() if is_spread(tensor) else tensor


def units(model: nn.Module) -> list[Any]:
    """Return the modules of a model that `fully_shard` was called with."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    kind = getattr(fsdp, "FSDPModule", None)  # of FSDP2, which older versions of torch have not
    return [] if kind is None else [x for x in model.modules() if isinstance(x, kind)]


def reshard(*models: nn.Module) -> None:
    """Let modules hold their spread parameters: a pass without a backward pass can leave gathered ones in them."""
    for model in models:
        for unit in units(check_type(model, "model", nn.Module)):
            unit.reshard()


def own_class(module: Any) -> type:
    """Return the class of a module as it was written: `fully_shard` derives another one from it."""
    kind = type(module)
    bases = [x for x in kind.__mro__ if x.__name__ == "FSDPModule"]
    return kind.__mro__[kind.__mro__.index(bases[0]) + 1] if bases else kind
