"""Device memory that tensors give up while their numbers wait on the host; the tensors stay the same objects.

In a cut of a sharded model new shards wait until they are to take the places of old ones, and old shards until nobody
asks for the way back: so no rank holds both on its device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from .sharding import is_spread, local


class DeviceMemory:
    """The memory of one tensor, which it alone has.

    The bytes that wait in host memory count wherever there are any, so that an interrupt at any line loses nothing.
    """

    _waiting: Tensor | None = None

    def __init__(self, tensor: Tensor) -> None:
        self._device = tensor.device
        self._storage: Any = tensor.untyped_storage()
        self._ref = StorageWeakRef(self._storage)

    def hold(self, held: bool) -> None:
        """Take the memory for the numbers that wait, or give it up and let them wait; twice does no harm."""
        storage = self._storage or torch.UntypedStorage._new_with_weak_ptr(self._ref.cdata)
        if held and storage is not None and self._waiting is not None:
            storage.resize_(self._waiting.numel())
            _bytes(storage, self._device).copy_(self._waiting)
            self._waiting = None
        elif not held:
            if self._waiting is None:
                self._waiting = _bytes(storage, self._device).to("cpu", copy=True)
            storage.resize_(0)

    def let_go(self) -> None:
        """Forget the tensor; if someone else has kept it, or a view of it, that gets its numbers back."""
        self._storage = None
        self.hold(True)
        self._waiting = None

    def __del__(self) -> None:
        """Let go at the latest: an interrupt can come between the end of a cut and what is done then."""
        if self._waiting is not None:
            self.let_go()


def memory_of(tensor: Any, padded: Tensor | None = None) -> DeviceMemory | None:
    """Return the device memory of the shard of a tensor that is here; None where others have a part in it.

    Parameters
    ----------
    tensor : torch.Tensor
        One that ranks hold parts of. What each of them holds whole, or keeps on the host, stays where it is.
    padded : torch.Tensor, optional
        What the shard is the beginning of, where it is filled up to the size of those of other ranks.
    """
    if not (is_spread(tensor) and any(x.is_shard() for x in tensor.placements)):
        return None
    here = local(tensor) if padded is None else padded
    storage = here.untyped_storage()
    alone = storage.nbytes() == here.numel() * here.element_size() and storage.resizable()
    return DeviceMemory(here) if alone and here.device.type == tensor.device_mesh.device_type else None


def _bytes(storage: Any, device: torch.device) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=device).set_(storage)
