"""Draw the figures of the documentation from committed results.

python -m benchmarks.plots      # reads benchmarks/results, writes docs/images
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from benchmarks._common import RESULTS
from hankelred.systems.files import write_atomically
from hankelred_torch import History, LayerCut

IMAGES = Path(__file__).parents[1] / "docs" / "images"


def diagonal_growth() -> None:
    """Draw the time of both factors of a diagonal system over the entries and inputs they are made of."""
    rows = json.loads((RESULTS / "diagonal_speed.json").read_text(encoding="utf-8"))["results"]
    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    work, times = [], []
    for m, marker in ((1, "o"), (4, "s")):
        case = [row for row in rows if row["part"] == "growth" and row["m"] == m]
        x = [2 * row["n"] * row["columns"] * m for row in case]
        y = [row["seconds"]["hankelred, factors"] for row in case]
        axes.loglog(x, y, marker, label=f"{m} input{'s' * (m > 1)} and output{'s' * (m > 1)}")
        for row, a, b in zip(case, x, y, strict=True):
            offset = (4, -10) if m == 1 else (-16, 8)
            axes.annotate(f"{row['n']:,}", (a, b), textcoords="offset points", xytext=offset, fontsize=7)
        work, times = work + x, times + y
    rate = sorted(b / a for a, b in zip(work, times, strict=True))[len(work) // 2]
    ends = min(work), max(work)
    axes.loglog(ends, [rate * end for end in ends], "k--", linewidth=0.8, label="proportional")
    axes.set_xlabel("entries of both factors × inputs, 2 n k m (states at the points)")
    axes.set_ylabel("CPU time of both factors, s")
    axes.legend()
    axes.grid(True, alpha=0.3)
    save(figure, "diagonal_growth.png")


def settling() -> None:
    """Draw the leading values of two layers over training, how far they can have come, and what is certified."""
    runs = json.loads((RESULTS / "settling.json").read_text(encoding="utf-8"))["runs"]
    figure, row = plt.subplots(1, 2, figsize=(10.0, 4.4), layout="constrained")
    for axes, layer in zip(row, ("lru", "s5"), strict=True):
        run = next(x for x in runs if (x["layer"], x["arm"], x["seed"]) == (layer, "full", 0))
        columns = zip(run["steps"], run["hsv"], run["drift bound"], run["certified orders"], strict=True)
        history = History(
            LayerCut(layer, 64, 64, len(hsv), 1.0, 0.0, np.array(hsv), step=step, drift=d, certified_orders=r)
            for step, hsv, d, r in columns
        )
        orders = Counter(x for found in run["certified orders"] if found for x in found if x < len(run["hsv"][0]))
        history.plot_hsv(order=orders.most_common(1)[0][0], ax=axes)
        axes.set_title(layer.upper())
        axes.set_ylim(bottom=min(run["hsv"][0]) / 2)  # some bars are longer
    save(figure, "settling.png")


def save(figure: Figure, name: str) -> None:
    """Write a picture of the documentation; until it is complete the old one stays."""
    write_atomically(IMAGES / name, lambda file: figure.savefig(file, format="png", dpi=120))


if __name__ == "__main__":
    plt.switch_backend("Agg")
    diagonal_growth()
    settling()
