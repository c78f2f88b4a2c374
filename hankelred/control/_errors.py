"""Errors that are caught as those of python-control or built-in ones, and as those of this library."""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def caught_as_both(ours: Any, theirs: Any) -> Any:
    """Return a class of errors that is caught as either of two."""
    if issubclass(ours, theirs):
        return ours
    restore = {"__reduce__": lambda error: (_restored, (ours, theirs, *error.args)), "__module__": ours.__module__}
    return type(ours.__name__, (ours, theirs), restore)


def _restored(ours: Any, theirs: Any, *arguments: Any) -> Any:
    """Return an unpickled error."""
    return caught_as_both(ours, theirs)(*arguments)
