"""Tables of the lines."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def main_table(lines: Sequence[dict[str, Any]]) -> str:
    return ""


def write(results: Path, docs: Path) -> None: ...
