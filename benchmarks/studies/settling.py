"""When does the ranking of Hankel singular values settle, how tight are the bounds on it, do certificates pay?

    python -m benchmarks.studies.settling                  # both layers, four seeds: some seven minutes on one core
    python -m benchmarks.studies.settling --task pooled-smnist --seeds 2
    python -m benchmarks.studies.settling --seeds 1 --steps 200 --out /tmp/settling.json

The demo's classifier learns the digits, or MNIST, or a student learns a teacher, with one LRU or S5 layer of 64
states. Runs of one seed start from the same weights and see the same batches.

- `full` is never cut. Its layer is measured 40 times, and each time once more a step later.
- `fixed` cuts at four attempts in the first fifth of training: with `order` to 16 states in the end, with `tau` a share
  of .25 at each.

The orders followed in `full` are those that tau = .25, .1 and .05 would keep in the end. `settled` is the share of
training after which the matched values never crossed the cut, `proven` the share after which that is certified; both
are 1 if it never is. `agree` is the share of the values kept at a tenth, a fifth or half of training that continue as
kept ones in the end. `ratio` is the largest movement of a value over its bound, by the Hankel norm of the difference or
in fixed coordinates, the median over all comparisons; `sure` the share of comparisons in which the order is certified,
by either bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hankelred as hr
import hankelred_torch as ht
from benchmarks.experiment.settings import Settings
from benchmarks.experiment.trainer import Trainer
from benchmarks.runs import Run, parser_of, rounded, study, table
from benchmarks.tasks import Task, load_task
from hankelred.drift import match_hsv

RESULTS = Path(__file__).parents[1] / "results" / "settling.json"
TASKS = ("digits", "teacher-4", "teacher-8", "teacher-16", "pooled-smnist", "smnist")
LAYERS = ("lru", "s5")
TAUS = (0.25, 0.1, 0.05)
MEASUREMENTS = 40
WINDOW = 0.2  # share of training in which cuts are made
DRAWN = 16  # values in the figure
ALPHA = 0.25  # of the learning rate is for the layer, as usual for S5
KEPT = 16
ARMS: dict[str, dict[str, Any] | None] = {
    "full": None,
    "order, fixed": {"order": KEPT},
    "tau, fixed": {"tau": TAUS[0]},
}
CUTTING = {  # heading, and digits behind the point
    "jump": ("jump of the loss", 3),
    "cuts": ("cuts", 1),
    "first_cut": ("first cut, share", 3),
    "states": ("states", 1),
    "final": ("final accuracy or error, %", 2),
}


def track(trainer: Trainer, settings: Settings, progress: Callable[[], Any]) -> dict[str, Any]:
    """Train without cuts and return how the values of the layer moved."""
    every = settings.steps // MEASUREMENTS
    (name,) = ht.find_ssm_layers(trainer.model)
    tracker, layer = ht.Tracker(trainer.model, every), trainer.model.get_submodule(name)
    systems, single, once = [ht.read_system(layer)], [], None
    for _ in range(settings.steps):
        trainer.step()
        if once is not None:
            single += once.step()
            once = None
        if tracker.step():
            systems.append(ht.read_system(layer))
            once = ht.Tracker(trainer.model, 1)  # for the one step that follows
        progress()
    history = tracker.history
    final = hr.balance(systems[-1])
    orders = {tau: final.order(energy=1 - tau) for tau in TAUS}
    figures: dict[str, Any] = {}
    for tau, order in orders.items():
        step, proven = history.settled(order), history.settled(order, proven=True)
        figures[f"order {tau}"] = order
        figures[f"settled {tau}"] = 1.0 if step is None else step / settings.steps
        figures[f"proven {tau}"] = 1.0 if proven is None else proven / settings.steps
        for share in (0.1, 0.2, 0.5):
            match, _ = match_hsv(systems[round(share * MEASUREMENTS)], systems[-1])
            kept = match[:order]
            figures[f"agree {share} {tau}"] = float(np.mean((kept >= 0) & (kept < order)))
        for name, records in (("", history[1:]), (" of one step", single)):
            figures[f"sure{name} {tau}"] = float(np.mean([order in x.certified_orders for x in records]))
            gaps = [x.hsv[order - 1] - x.hsv[order] for x in records]
            pairs = zip(gaps, records, strict=True)
            figures[f"sure, fixed{name} {tau}"] = float(np.mean([gap > 2 * x.fixed_drift for gap, x in pairs]))
    for name, records in (("", history[1:]), (" of one step", single)):
        figures |= ratios(name, records)
    return figures | {
        "steps": [x.step for x in history],
        "hsv": [[rounded(value) for value in x.hsv[:DRAWN]] for x in history],
        "drift bound": [rounded(x.drift_bound) for x in history],
        "certified orders": [x.certified_orders for x in history],
    }


def ratios(name: str, records: Sequence[ht.LayerCut]) -> dict[str, float]:
    """How tight both bounds are, and how far the values move."""
    moved, drift, fixed = (np.array([getattr(x, k) for x in records]) for k in ("moved", "drift", "fixed_drift"))
    return {
        f"ratio{name}": float(np.median(moved / drift)),
        f"ratio, fixed{name}": float(np.median(moved / fixed)),
        f"largest ratio{name}": float(max(np.max(moved / drift), np.max(moved / fixed))),
        f"moved{name}": float(np.median(moved / [x.hsv[0] for x in records])),
    }


def cut(trainer: Trainer, progress: Callable[[], Any]) -> dict[str, Any]:
    """Train with cuts and return what they did."""
    jump, steps = 0.0, []
    for _ in range(trainer.settings.steps):
        made = trainer.step(trainer.validation_loss)
        jump += made.after - made.before if made.cuts else 0.0
        steps += [x.step for x in made.cuts]
        progress()
    return {
        "jump": jump,
        "cuts": float(len(steps)),
        "first_cut": min(steps) / trainer.steps if steps else None,
        "cut steps": steps,
    }


def run(task: Task, settings: Settings, arm: str, seed: int, progress: Callable[[], Any]) -> dict[str, Any]:
    """Train one arm and return its figures."""
    config = ARMS[arm]
    schedule = ht.Schedule(end_step=settings.window_steps, force=bool(config and "order" in config))
    trainer = Trainer(task, settings, seed, cuts=None if config is None else (ht.CompressionConfig(**config), schedule))
    figures = track(trainer, settings, progress) if config is None else cut(trainer, progress)
    states = float(sum(ht.state_sizes(trainer.model).values()))
    return figures | {"final": trainer.score(task.test), "states": states}


def summary(runs: list[Run]) -> str:
    """All tables in Markdown."""
    full = [x for x in runs if x["arm"] == "full"]
    columns = [k for k, value in full[0].items() if isinstance(value, float) and k not in ("final", "states")]
    parts = []
    for name in columns:
        values = {layer: [x[name] for x in full if x["layer"] == layer] for layer in LAYERS}
        cells = [f"{np.mean(x):.3g} ({min(x):.3g}–{max(x):.3g})" for x in values.values() if x]
        parts.append(f"| {name} | " + " | ".join(cells) + " |")
    tables = [f"{layer}\n\n" + table([x for x in runs if x["layer"] == layer], "arm", CUTTING) for layer in LAYERS]
    return "\n\n".join(["\n".join(parts), *tables])


def main() -> None:
    parser = parser_of(__doc__, 4, 0, RESULTS)
    parser.add_argument("--task", choices=TASKS, default="digits")
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=LAYERS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    steps = {"steps": options.steps or 800} if options.task == "digits" or options.steps else {}
    given = {"window": WINDOW, "alpha": ALPHA, "attempts": 4, "order": None} | steps
    settings, task = Settings.of(options.task, **given), load_task(options.task)
    own = options.out != RESULTS or options.task == "digits"
    out = options.out if own else RESULTS.with_name(f"settling_{options.task}.json")
    runs = study(
        out,
        "settled, proven, first_cut: shares of training; ratio: movement over bound; jump: sum over the cuts",
        asdict(settings) | {"layer": ", ".join(LAYERS)},
        [{"layer": x, "arm": arm, "seed": k} for k in range(options.seeds) for x in options.layers for arm in ARMS],
        lambda key: settings.steps,
        lambda key, progress: run(task, replace(settings, layer=key["layer"]), key["arm"], key["seed"], progress),
    )
    print(summary(runs))


if __name__ == "__main__":
    main()
