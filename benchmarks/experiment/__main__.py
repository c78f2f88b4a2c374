"""The command line of the experiment, ``python -m benchmarks.experiment``: arguments in, report out."""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import FrameType

from hankelred.errors import HankelredError, InputError

from .settings import ARMS, LAYERS, METHODS, PRESETS, Settings, check_arms

DESCRIPTION = """\
Train a small state space model on a task, cut its states while it learns, and compare it with a model that keeps
them all and with one that was small from the start. The report goes to a folder: report.html, pictures, results.json.
"""
EPILOG = """\
Ctrl-C, or SIGTERM, stops after the step in progress and writes a report of what there is; the same command goes on
from there.
The same seed gives the same result on the same machine with the same number of threads.

  python -m benchmarks.experiment --task digits                        64 states, cut by energy; some minutes
  python -m benchmarks.experiment --task digits --order 8 --out eight  to 8 states, whatever the cut costs
  python -m benchmarks.experiment --task digits --seeds 1 --arms full  one plain training run
  python -m benchmarks.experiment --task text --order 12 --out text    a Mamba language model, from 128 states to 12
"""


def parser() -> argparse.ArgumentParser:
    """The parser of all options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experiment",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = Settings()
    study = parser.add_argument_group("study")
    study.add_argument(
        "--task", default=default.task, help=f"what to learn: digits, {', '.join(PRESETS)} (default: %(default)s)"
    )
    study.add_argument(
        "--arms", default=",".join(ARMS), metavar="ARM,...", help="of full, compressed, scratch (default: all)"
    )
    study.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each arm (default: %(default)s)")
    study.add_argument(
        "--out",
        type=Path,
        default=Path("report"),
        metavar="FOLDER",
        help="where to write, and what to go on with (default: %(default)s)",
    )
    groups = {name: parser.add_argument_group(name) for name in ("model", "cuts", "training")}
    for group, name, metavar, text in OPTIONS:
        field = {f.name: f for f in dataclasses.fields(Settings)}[name]
        kind = next(kind for kind in (float, int, str) if kind.__name__ in str(field.type))
        groups[group].add_argument(
            f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=text + _defaults(name, field.default)
        )
    return parser


def _defaults(name: str, usual: object) -> str:
    """What the help says of a default, and of those that tasks have for themselves."""
    own: dict[object, list[str]] = {}
    for task, preset in PRESETS.items():
        if preset.get(name, usual) != usual:
            own.setdefault(preset[name], []).append(task)
    values = [] if usual is None else [str(usual)]
    values += [f"{value} for {', '.join(tasks)}" for value, tasks in own.items()]
    return f" (default: {', '.join(values)})" if values else ""


OPTIONS = (
    ("model", "layer", "LAYER", f"state space layer of each block, one of {', '.join(LAYERS)}"),
    ("model", "states", "N", "stored states of each layer at the start"),
    ("model", "channels", "N", "channels of the model"),
    ("model", "blocks", "N", "blocks, each with one state space layer"),
    ("model", "memory", "M", "longest time constant of a state of an LRU at the start, in lengths of a sequence"),
    ("model", "dropout", "P", "share of channels switched off at random"),
    ("cuts", "method", "M", f"one of {', '.join(METHODS)}"),
    ("cuts", "tau", "T", "a cut keeps the states whose Hankel singular values carry the share 1 - T of their sum"),
    ("cuts", "order", "N", "cut to N stored states instead, whatever it costs"),
    ("cuts", "window", "W", "share of the steps, from the first, in which cuts are attempted"),
    ("cuts", "attempts", "N", "attempts in the window, equally spaced"),
    ("training", "steps", "N", "optimizer steps of each run"),
    ("training", "batch", "N", "sequences in a step"),
    ("training", "lr", "LR", "learning rate of AdamW, after a warm-up of a tenth of the steps"),
    ("training", "alpha", "A", "factor on the learning rate for state space layers"),
    ("training", "weight_decay", "WD", "weight decay of all other parameters"),
    ("training", "threads", "N", "threads that torch computes with"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, 1 after an error, or what a shell expects after Ctrl-C (130) or SIGTERM (143)."""
    arguments = parser().parse_args(argv)
    with (
        open(os.devnull, "w") as nowhere,
        redirect_stdout(sys.stdout or nowhere),
        redirect_stderr(sys.stderr or nowhere),
    ):
        try:
            return run(arguments)
        except (HankelredError, ImportError, OSError) as error:
            print(f"experiment: {error}", file=sys.stderr)
            return 1


def run(arguments: argparse.Namespace) -> int:
    """Run the study that the arguments describe, and write its report."""
    given = {name: getattr(arguments, name) for _, name, _, _ in OPTIONS}
    settings = Settings.of(arguments.task, **{name: value for name, value in given.items() if value is not None})
    arms = check_arms([arm for arm in arguments.arms.split(",") if arm])
    if arguments.seeds < 1:
        raise InputError(f"seeds must be at least 1; got {arguments.seeds}. One run of each arm is the least.")
    try:
        from .report import write_report
        from .study import run_study
    except ModuleNotFoundError as error:
        raise ImportError(
            f"The experiment needs the packages of the extra demo; got no {error.name}. Run: pip install -e '.[demo]'"
        ) from error
    with interruptible() as stopped:
        study = run_study(settings, arms, arguments.seeds, arguments.out, stopped)
        page = write_report(study, arguments.out)
    print(f"report: {page}")
    return 128 + stopped() if stopped() else 0


@contextmanager
def interruptible() -> Iterator[Callable[[], int]]:
    """Give a function that tells which signal asked to stop, 0 for none; the second one ends the program at once."""
    came = 0

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal came
        came = signum
        restore()
        print("\nstopping after this step, then writing the report; once more to leave at once", file=sys.stderr)

    def restore() -> None:
        for signum, handler in before.items():
            signal.signal(signum, handler)

    before = {signum: signal.signal(signum, note) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: came
    finally:
        restore()


if __name__ == "__main__":
    sys.exit(main())
