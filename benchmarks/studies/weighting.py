"""What do cuts gain that go by the layer's real inputs, and outputs that are fitted again?

    python -m benchmarks.studies.weighting                     # digits, after and in training: two hours
    python -m benchmarks.studies.weighting --part after --seeds 5
    python -m benchmarks.studies.weighting --seeds 1 --steps 200 --out quick.json

The classifier of the demo learns the digits with 64 complex states. *After* training copies of it are cut
to few states and not trained again. *In* training it is cut once, at a tenth, a quarter or half of the steps, to four
states, and learns on. Arms are white noise (the published method) and the inputs the layer gets, each with and without
outputs that are fitted again on sample batches, and four states from the start. Runs of one seed start from the same
weights and see the same batches; sample batches are those of the training part; the test part is looked at once.

Every run is written to the file of results when it ends and is not made again; Ctrl-C loses the run in progress only.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.experiment.settings import Settings
from benchmarks.experiment.tasks import Task, load_task
from benchmarks.experiment.trainer import Trainer
from benchmarks.runs import Run, parser_of, study, table
from hankelred_torch import CompressionConfig, compress_

RESULTS = Path(__file__).parents[1] / "results" / "weighting.json"
WAYS: dict[str, dict[str, Any]] = {
    "white": {"weighting": "white", "refit": False},
    "white, fitted": {"weighting": "white", "refit": True},
    "sampled": {"weighting": "sampled", "refit": False},
    "sampled, fitted": {"weighting": "sampled", "refit": True},
}
SIZES = (32, 16, 8, 6, 4)  # stored complex states after training
KEPT = 4  # in training
SHARES = (0.1, 0.25, 0.5)
COLUMNS = {str(n): (f"{n} states, %", 1) for n in SIZES}
IN_TRAINING = {"before": ("before the cut, %", 1), "after": ("just after, %", 1), "end": ("at the end, %", 1)}


def cut(trainer: Trainer, way: str, states: int) -> None:
    """Cut the model of a trainer, its optimizer along, by samples of the training part."""
    config = CompressionConfig(order=states, **WAYS[way])
    compress_(trainer.model, config, [trainer.optimizer], batches=trainer.batches)


def after_training(
    task: Task, settings: Settings, seed: int, progress: Callable[[], Any]
) -> dict[str, dict[str, float]]:
    """Train once; return the accuracy of every way and size, and that of the whole model under "full"."""
    trainer = Trainer(task, settings, seed)
    trainer.train_to(settings.steps, progress)
    found = {"full": {str(n): trainer.accuracy(task.test) for n in SIZES}}
    whole = copy.deepcopy(trainer.model)
    for way in WAYS:
        found[way] = {}
        for states in SIZES:
            trainer.model = copy.deepcopy(whole)
            compress_(trainer.model, CompressionConfig(order=states, **WAYS[way]), batches=trainer.batches)
            found[way][str(states)] = trainer.accuracy(task.test)
    return found


def in_training(
    task: Task, settings: Settings, way: str, share: float, seed: int, progress: Callable[[], Any]
) -> dict[str, float]:
    """Train, cut once, train on; or train the small model from the start, or the large one to the end."""
    trainer = Trainer(task, settings, seed, [KEPT] if way == "scratch" else None)
    found = {}
    if way in WAYS:
        trainer.train_to(int(share * settings.steps), progress)
        found["before"] = trainer.accuracy(task.validation)
        cut(trainer, way, KEPT)
        found["after"] = trainer.accuracy(task.validation)
    trainer.train_to(settings.steps, progress)
    return found | {"end": trainer.accuracy(task.test)}


def keys(part: str, seeds: int, shares: Sequence[float]) -> list[Run]:
    """The runs of a part, those of one seed after those of the one before."""
    if part == "after":
        return [{"part": "after", "seed": seed} for seed in range(seeds)]
    cuts = [{"part": "in", "arm": way, "share": share} for share in shares for way in WAYS]
    arms = [*cuts, {"part": "in", "arm": "scratch", "share": 0.0}, {"part": "in", "arm": "full", "share": 0.0}]
    return [arm | {"seed": seed} for seed in range(seeds) for arm in arms]


def main() -> None:
    parser = parser_of(__doc__, 8, 2000, RESULTS)
    parser.add_argument("--part", choices=("after", "in", "both"), default="both")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="when to cut in training, of its steps")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = replace(Settings(), steps=options.steps)
    task = load_task(settings.task)
    parts = ("after", "in") if options.part == "both" else (options.part,)

    def run(key: Run, progress: Callable[[], None]) -> Run:
        if key["part"] == "after":
            found = after_training(task, settings, key["seed"], progress)
            return {f"{way}: {n}": x for way, sizes in found.items() for n, x in sizes.items()}
        return in_training(task, settings, key["arm"], key["share"], key["seed"], progress)

    runs = study(
        options.out,
        "accuracy in percent, on the test part but for those around a cut in training, which are on validation",
        asdict(settings) | {"kept": KEPT, "sizes": list(SIZES)},
        [key for part in parts for key in keys(part, options.seeds, options.shares)],
        lambda key: settings.steps,
        run,
    )
    after = [x for x in runs if x["part"] == "after"]
    if after:
        rows = [{"arm": way} | {str(n): x[f"{way}: {n}"] for n in SIZES} for x in after for way in ("full", *WAYS)]
        print(table(rows, "arm", COLUMNS))
    named = [
        x | {"arm": f"{x['arm']} at {x['share']:.0%}" if x["share"] else x["arm"]} for x in runs if x["part"] == "in"
    ]
    if named:
        print(table(named, "arm", IN_TRAINING))


if __name__ == "__main__":
    main()
