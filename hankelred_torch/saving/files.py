"""Files of plain values and tensors: what is written can be read, and what is read is what was written.

A file holds its content and a digest of it. Before anything is written the content is made plain, NumPy's numbers
become Python's, and its skeleton is read back by the rules of the reader, so that a run that can be saved can be
resumed.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hankelred.errors import InputError
from hankelred.systems.files import as_path, write_atomically

StrPath = str | os.PathLike[str]


def write_content(path: StrPath, kind: str, content: Mapping[str, Any]) -> None:
    """Write a file of a kind, such as "hankelred checkpoint 2", or nothing at all.

    Raises
    ------
    InputError
        If a value is none that a file may hold, with its place in the content.
    """
    plain = {name: plain_value(value, name) for name, value in content.items()}
    saved = {"format": kind, "digest": digest_of(plain), "content": plain}
    write_atomically(path, lambda file: torch.save(saved, file))


def read_content(path: StrPath, kind: str, advice: str) -> dict[str, Any]:
    """Read a file of a kind, all of it on the CPU.

    Raises
    ------
    InputError
        If the file is of another kind, with advice, or damaged.
    OSError
        If it is not there or may not be read.
    """
    path = as_path(path)
    data = path.read_bytes()
    try:
        saved = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"{path} must be a whole file of this library; got one that cannot be read: {error}"
        ) from error
    found = saved.get("format") if isinstance(saved, Mapping) else None
    if found != kind:
        other = f"a {found!r}" if isinstance(found, str) else "another file"
        raise InputError(f"{path} must hold a {kind!r}; got {other}. {advice}")
    content = saved.get("content")
    if not isinstance(content, dict) or digest_of(content) != saved.get("digest"):
        raise InputError(f"{path} must be as it was written; got other values: it is damaged. Take an earlier one.")
    return content


def plain_value(value: Any, place: str) -> Any:
    """The value with NumPy's numbers and arrays as Python's and torch's, in new containers; tensors stay.

    Raises
    ------
    InputError
        If it holds something that a reader who runs no code from files does not take.
    """
    if nn.parameter.is_lazy(value):
        raise _refused(value, place)
    if value is None or type(value) in (bool, int, float, complex, str, bytes):
        return value
    if isinstance(value, np.generic):
        return plain_value(value.item(), place)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return torch.from_numpy(np.array(value))
    if isinstance(value, nn.Parameter) and type(value.data) is Tensor and not value.is_meta:
        return value.detach()
    if isinstance(value, Tensor):
        if type(value) is not Tensor or value.is_meta:
            raise _refused(value, place)
        return value
    if isinstance(value, dict):
        return {plain_value(k, place): plain_value(x, f"{place}[{k!r}]") for k, x in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(plain_value(x, f"{place}[{k}]") for k, x in enumerate(value))
    try:
        buffer = io.BytesIO()
        torch.save(value, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    except Exception as error:
        raise _refused(value, place) from error
    return value


def _refused(value: Any, place: str) -> InputError:
    return InputError(
        f"{place} must be made of numbers, texts, tensors and lists or dicts of them to be saved; got a "
        f"{type(value).__module__}.{type(value).__qualname__}. Save what it is made of."
    )


def digest_of(content: Any) -> str:
    """A hash of plain content: of kinds and values, in their order."""
    result = hashlib.sha256()
    _update(result, content)
    return result.hexdigest()


def _update(result: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        result.update(f"tensor {value.dtype} {tuple(value.shape)}".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        if value.is_quantized:
            flat = flat.int_repr()
        flat = torch.view_as_real(flat.resolve_conj()).reshape(-1) if flat.is_complex() else flat.resolve_neg()
        result.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    elif isinstance(value, dict):
        result.update(f"dict {len(value)}".encode())
        for key, x in value.items():
            _update(result, key)
            _update(result, x)
    elif isinstance(value, (list, tuple)):
        result.update(f"list {len(value)}".encode())
        for x in value:
            _update(result, x)
    elif isinstance(value, set):
        _update(result, sorted(map(repr, value)))
    else:
        result.update(f"{type(value).__name__} {value!r}".encode())
