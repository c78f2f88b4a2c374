"""Triton's interpreter, made fit for tests: scans and sums over whole rows at once, and a count of bytes moved.

The interpreter calls the function that combines two elements for every element of a tile, about 100 microseconds each;
here it is called for every row of one. It also prepares Triton's language anew, for 9 milliseconds, whenever a kernel
calls a function; here once for a kernel. It runs kernels that were decorated while TRITON_INTERPRET=1 was set.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch

_SETTING = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}


class KernelModules(NamedTuple):
    """The modules of Triton kernels, by what they compute."""

    linear: ModuleType
    selective: ModuleType
    heads: ModuleType
    factors: ModuleType
    values: ModuleType


def kernels() -> KernelModules:
    """The modules of kernels, compiled where torch finds a GPU and interpreted elsewhere.

    The environment is as before on return: processes started later, and other kernels, are not interpreted.
    """
    with mock.patch.dict(os.environ, _SETTING):
        if _SETTING:
            _interpret_language()
        from hankelred_torch.ops import (
            _factors_triton,
            _heads_triton,
            _linear_triton,
            _selective_triton,
            _values_triton,
        )
    return KernelModules(_linear_triton, _selective_triton, _heads_triton, _factors_triton, _values_triton)


def _interpret_language() -> None:
    """Interpret Triton's own functions too, `cumsum` and others, in a process where Triton was imported before."""
    import triton
    from triton import language

    if isinstance(language.standard.cumsum, triton.JITFunction):
        before = vars(language.standard).copy()
        for name, function in vars(importlib.reload(language.standard)).items():
            if name in vars(language) and vars(language)[name] is before.get(name):
                setattr(language, name, function)


@contextmanager
def by_rows() -> Iterator[None]:
    """Let the interpreter, where kernels run in it, combine whole rows of tiles."""
    from triton.runtime import interpreter

    def rows(self: Any, inputs: Any) -> Iterator[list[Any]]:
        arrays = [np.moveaxis(x.handle.data, self.axis, 0) for x in inputs]
        now: list[Any] = []
        for i in range(len(arrays[0])):
            row = [self.to_tensor(a[i], x.dtype) for a, x in zip(arrays, inputs, strict=True)]
            found = self.combine_fn.fn(*now, *row) if now else row
            now = list(found) if isinstance(found, (tuple, list)) else [found]
            yield now

    def scan(self: Any, inputs: Any) -> list[Any]:
        found = zip(*([x.handle.data for x in row] for row in rows(self, inputs)), strict=True)
        return [self.to_tensor(np.stack(x, self.axis), y.dtype) for x, y in zip(found, inputs, strict=True)]

    def reduce(self: Any, inputs: Any) -> list[Any]:
        *_, last = rows(self, inputs)
        return [self.to_tensor(x.handle.data, y.dtype) for x, y in zip(last, inputs, strict=True)]

    prepare = interpreter._patch_lang
    prepared: dict[str, Any] = {}  # by the modules of Triton's language that a function sees

    class Prepared:
        """The language as the interpreter wants it, until the outermost kernel is done."""

        def __init__(self, function: Any) -> None:
            seen = str(sorted(name for name in ("tl", "core") if name in function.__globals__))
            if seen not in prepared:
                prepared[seen] = prepare(function)

        def restore(self) -> None:
            while prepared:
                prepared.popitem()[1].restore()

    with (
        np.errstate(all="ignore"),  # a GPU does not warn either
        mock.patch.dict(os.environ, _SETTING),
        mock.patch.object(interpreter, "_patch_lang", Prepared),
        mock.patch.object(interpreter.ScanOps, "generic_scan", scan),
        mock.patch.object(interpreter.ReduceOps, "generic_reduce", reduce),
    ):
        yield


@contextmanager
def traffic() -> Iterator[dict[str, int]]:
    """Count bytes loaded and stored: all of them, and those of distinct addresses."""
    from triton.runtime.interpreter import InterpreterBuilder

    count = {"loaded": 0, "stored": 0, "distinct loaded": 0, "distinct stored": 0}
    seen: dict[str, set[int]] = {"loaded": set(), "stored": set()}

    def note(kind: str, pointers: Any, mask: Any) -> None:
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        addresses = np.broadcast_to(pointers.data, mask.data.shape)[mask.data]
        count[kind] += size * addresses.size
        new = set(addresses.tolist()) - seen[kind]
        count[f"distinct {kind}"] += size * len(new)
        seen[kind] |= new

    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def counted_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        note("loaded", pointers, mask)
        return load(self, pointers, mask, *rest)

    def counted_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        note("stored", pointers, mask)
        return store(self, pointers, value, mask, *rest)

    with (
        mock.patch.object(InterpreterBuilder, "create_masked_load", counted_load),
        mock.patch.object(InterpreterBuilder, "create_masked_store", counted_store),
    ):
        yield count


@contextmanager
def arithmetic() -> Iterator[dict[str, int]]:
    """Count operations on floating point numbers, of whole tiles: the interpreter merges none and leaves none out.

    Multiply-adds are those in products of matrices; `arithmetic` is every sum, difference, product, quotient and root
    besides, scans and sums element after element. Signs, comparisons, choices and whole numbers count nothing.
    """
    from triton.runtime.interpreter import InterpreterBuilder, ReduceOps, ScanOps

    count = {"arithmetic": 0, "exponentials": 0, "multiply-adds": 0}
    kinds = dict.fromkeys(("fadd", "fsub", "fmul", "fdiv", "precise_divf", "sqrt", "precise_sqrt"), "arithmetic")
    kinds |= dict.fromkeys(("exp", "exp2"), "exponentials")

    def counted(function: Any, kind: str) -> Any:
        def run(self: Any, *arguments: Any) -> Any:
            found = function(self, *arguments)
            count[kind] += found.data.size
            return found

        return run

    def counted_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        count["multiply-adds"] += a.data.size * b.data.shape[-1]
        return dot(self, a, b, *rest)

    def counted_sum(function: Any) -> Any:
        def run(self: Any, x: Any) -> Any:
            lines = x.handle.data.size // x.handle.data.shape[self.axis]
            count["arithmetic"] += (x.handle.data.size - lines) * x.dtype.is_floating()
            return function(self, x)

        return run

    dot = InterpreterBuilder.create_dot
    with ExitStack() as stack:
        for name, kind in kinds.items():
            function = getattr(InterpreterBuilder, f"create_{name}")
            stack.enter_context(mock.patch.object(InterpreterBuilder, f"create_{name}", counted(function, kind)))
        stack.enter_context(mock.patch.object(InterpreterBuilder, "create_dot", counted_dot))
        stack.enter_context(mock.patch.object(ReduceOps, "sum", counted_sum(ReduceOps.sum)))
        stack.enter_context(mock.patch.object(ScanOps, "cumsum", counted_sum(ScanOps.cumsum)))
        yield count
