"""Compressors in training frameworks: `transformers` and `accelerate` of Hugging Face, and `lightning`.

Each is imported when it is first asked for, and needs the framework of its name.
"""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["accelerate", "lightning", "transformers"]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
