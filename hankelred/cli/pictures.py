"""Pictures in files, asked for by ``--plot``."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

from ..errors import InputError
from ..plotting import new_axes
from ..systems.files import check_place, write_atomically


def check_picture(path: str | None) -> None:
    """Refuse a picture that could not be written, before the work is done."""
    if path is None:
        return
    check_place(path)
    kinds = new_axes(1)[0].figure.canvas.get_supported_filetypes()
    if _suffix(path) not in kinds:
        raise InputError(f"A picture must end in one of {', '.join(sorted(kinds))}; got {path}. Rename it.")


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1][1:].lower()


def draw(arguments: Namespace, *plots: Callable[..., Any]) -> None:
    """Save a picture with these plots, up to three side by side and four as a square, if one is asked for."""
    path = arguments.plot
    if path is None:
        return
    rows = 1 if len(plots) <= 3 else 2
    axes = new_axes(-(-len(plots) // rows), rows)
    for plot, ax in zip(plots, axes, strict=True):
        plot(ax=ax)
    figure: Any = axes[0].figure
    write_atomically(path, partial(figure.savefig, format=_suffix(path), dpi=150))
    if not arguments.json:
        print(f"\n{path}: written")
