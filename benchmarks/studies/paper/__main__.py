"""The claims of in-training compression on the tasks of its paper, every arm by one protocol.

    python -m benchmarks.studies.paper --task smnist --budget 40min        # whatever is missing, for so long
    python -m benchmarks.studies.paper --task teacher-8 --seeds 8 --arms full "sampled 10%" scratch
    python -m benchmarks.studies.paper --list                              # tasks, sizes, arms
    python -m benchmarks.studies.paper --report                            # docs/results from all lines

A model with one LRU layer learns a task: with many states to the end, cut to few on the way, after training, small from
the start, by other methods. Runs of one seed start from the same weights where sizes agree, and see the same batches.
Learning rates are one per task; small models get half and twice of it as well, and other starts of their poles, and of
such families the run that is best on the validation part counts. The test part is looked at once, at the end.

Every run is a line of benchmarks/results/paper/TASK.jsonl, written when it ends and never made again; a run that was
killed goes on where it stood a few minutes before. Runs are made seed by seed, one process to a core, and none is begun
when the budget is used up.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks import lines
from benchmarks.experiment.settings import Settings

from . import report
from .arms import ARMS
from .group import group, with_needed

RESULTS = Path(__file__).parents[2] / "results" / "paper"
KEPT = {  # stored states to end with
    "teacher-4": (4,),
    "teacher-8": (8,),
    "teacher-16": (16,),
    "pooled-smnist": (8, 4, 16),
    "smnist": (13, 28),
    "digits": (4,),
    "last-smnist": (8, 4, 16),
    "listops-short": (16,),
    "spam": (8,),
    "watch": (8,),
    "vowels": (8,),
    "delay-16": (8,),
    "scifar": (93,),
    "listops": (16,),
}
_SMALL = ("scratch", "scratch, lr / 2", "scratch, lr x 2")
_STARTS = ("scratch, slow", "scratch, low", "scratch, wide")
_TWO = ("white, two cuts", "sampled, two cuts")
_LOW = ("full, low", "white, low, two cuts", "sampled, low, two cuts")
_AT = ("white 10%", "sampled 10%", "white 25%", "sampled 25%")
MAIN = {
    "smnist": (
        *("full", *_TWO, "scratch", "scratch, low", *_LOW),  # a complete table early
        *(*_SMALL, "scratch, as long as sampled two cuts", *_STARTS),
    ),
    None: ("full", *_AT, *_SMALL, "scratch, as long as sampled 10%", "scratch, as long as sampled 25%", *_STARTS),
}


def main() -> None:
    options = parsed()
    if options.list:
        for task, sizes in KEPT.items():
            print(f"{task}: to {', '.join(map(str, sizes))} states")
        print(*(f"{name}: {arm.what}" for name, arm in ARMS.items()), sep="\n")
        return
    if options.task:
        path = options.out / f"{options.task}.jsonl"
        sizes = options.kept or KEPT[options.task]
        jobs = [(kept, seed) for seed in range(options.seeds) for kept in sizes]
        arms = with_needed(options.arms or MAIN.get(options.task, MAIN[None]))
        steps = {"steps": options.steps} if options.steps else {}
        settings = replace(Settings.of(options.task), **steps, order=None)
        lines.each_on_a_core(partial(group, path, settings, arms, options.budget), jobs, options.cores)
        found = lines.read(path)
        print(report.main_table(found), report.robustness_table(found), sep="\n\n")
    if options.report:
        report.write(RESULTS, options.docs)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=tuple(KEPT))
    parser.add_argument("--kept", type=int, nargs="+", help="stored states to end with; those of the table by default")
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), metavar="ARM", help="see --list")
    parser.add_argument("--steps", type=int, default=0, help="those of the task by default")
    lines.add_options(parser, RESULTS)
    parser.add_argument("--docs", type=Path, default=Path(__file__).parents[3] / "docs" / "results")
    parser.add_argument("--report", action="store_true", help="write tables and figures of all lines into docs/results")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    if not (options.task or options.report or options.list):
        parser.error("one of --task, --report and --list must be given")
    return options


if __name__ == "__main__":
    main()
