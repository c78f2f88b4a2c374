"""Shards that give up their device memory while their numbers wait on the host; tensors stay the same objects.

In a cut of a sharded model new shards wait until they are to take the places of old ones, and old shards until nobody
asks for the way back: so no rank holds both on its device. A tensor without its shard has one without data in its
place, on the device that torch calls meta, which says so to whoever reads it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .sharding import is_spread, local


class DeviceMemory:
    """The memory of the shard of a tensor, or its bytes on the host.

    The numbers are those of the shard where it is there, so that an interrupt at any line loses nothing.
    """

    __slots__ = ("_tensor", "_waiting")  # a dict that holds a parameter is taken for one in use

    def __init__(self, tensor: Any) -> None:
        self._tensor = tensor
        self._waiting: Tensor | None = None

    def hold(self, held: bool) -> None:
        """Take the memory for the numbers that wait, or give it up and let them wait; twice does no harm."""
        if held and lacks_data(self._tensor):
            fill(self._tensor, self._waiting)
        elif not held and not lacks_data(self._tensor):
            self._waiting = whole_storage(local(self._tensor)).view(torch.uint8).to("cpu", copy=True)
            empty(self._tensor)


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
    alone = here.untyped_storage().nbytes() == here.numel() * here.element_size()
    return DeviceMemory(tensor) if alone and here.device.type == tensor.device_mesh.device_type else None


def lacks_data(tensor: Any) -> bool:
    """Tell whether a tensor has given up its shard."""
    return is_spread(tensor) and local(tensor).is_meta


def empty(tensor: Any) -> None:
    """Let a tensor give up its shard; what is put in its place has the same layout."""
    if not lacks_data(tensor):
        here = tensor._local_tensor
        layout = (here.size(), here.stride(), here.storage_offset())
        tensor._local_tensor = torch.empty_like(whole_storage(here), device="meta").as_strided(*layout)


def fill(tensor: Any, waiting: Tensor | None = None) -> None:
    """Give a tensor its shard again: of the bytes in all of its storage, or of zeros."""
    here, device = tensor._local_tensor, tensor.device
    if waiting is None:
        storage = torch.zeros(here.untyped_storage().nbytes(), dtype=torch.uint8, device=device)
    else:
        storage = waiting.to(device, copy=True)
    tensor._local_tensor = storage.view(here.dtype).as_strided(here.size(), here.stride(), here.storage_offset())


def whole_storage(tensor: Tensor) -> Tensor:
    """Return all that lies in the storage of a tensor, in a row."""
    return torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(tensor.untyped_storage())
