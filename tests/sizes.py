"""How much of a family a test runs: a seeded tenth, or all of it with ``HANKELRED_LONG=1`` in the environment."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from typing import TypeVar

Case = TypeVar("Case")


def is_long() -> bool:
    """Say whether the full sizes were asked for."""
    return os.environ.get("HANKELRED_LONG", "0") not in ("", "0")


def sample(cases: Iterable[Case], share: float = 0.1, seed: int = 0) -> list[Case]:
    """Return all cases in a long run, and otherwise the same share of them each time, at least one."""
    every = list(cases)
    if is_long():
        return every
    chosen = random.Random(seed).sample(range(len(every)), max(1, round(share * len(every))))
    return [every[i] for i in sorted(chosen)]
