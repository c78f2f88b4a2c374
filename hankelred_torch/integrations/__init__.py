"""Compressors in training frameworks: `transformers` and `accelerate` of Hugging Face, and `lightning`.

Each is imported when it is first asked for, and needs the framework of its name.
"""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["accelerate", "lightning", "transformers"]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        try:
            return importlib.import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            extra = "transformers" if name == "accelerate" else name
            text = f"{__name__}.{name} needs {name}, which is not installed. Run: pip install 'hankelred[{extra}]'"
            raise ModuleNotFoundError(text, name=name) from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
