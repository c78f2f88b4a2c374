"""Numba where it is needed, when it is needed.

Importing numba takes longer than NumPy and SciPy together, so modules of kernels are imported at the first call of
one of their functions. Compiled code is kept on disk where that is possible, and only in memory where it is not: in a
read-only installation of a user without a home, on a full disk, beside a damaged file.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

# error_model: division by zero gives inf as in NumPy, so that the loops carry no exception path.
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}


class Kernels:
    """A module of kernels that is imported when the first of them is asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        """Return a kernel, and remember it."""
        kernel = getattr(importlib.import_module(self._name), name)
        vars(self)[name] = kernel
        return kernel


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function at its first call, or take it from the disk."""
    import numba

    try:
        dispatcher = numba.njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # nowhere to write
        return numba.njit(**OPTIONS)(function)
    if hasattr(dispatcher, "_cache"):  # else NUMBA_DISABLE_JIT
        dispatcher._cache = _Forgiving(dispatcher._cache)
    return dispatcher


class _Forgiving:
    """A cache of compiled code whose failures cost time, not results."""

    def __init__(self, cache: Any) -> None:
        self._wrapped = cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    def load_overload(self, *arguments: Any) -> Any:
        """Return compiled code, or None if the file is not there or damaged."""
        try:
            return self._wrapped.load_overload(*arguments)
        except Exception:  # unpickling what is damaged can raise anything
            return None

    def save_overload(self, *arguments: Any) -> None:
        """Store compiled code if it can be stored."""
        try:
            self._wrapped.save_overload(*arguments)
        except Exception:  # a full disk, a damaged index
            return
