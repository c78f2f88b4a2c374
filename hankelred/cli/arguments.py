"""The arguments of every command, and the small grammars in them: times, lists of sizes, weightings."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, NoReturn

from ..checks import check_dt
from ..errors import InputError
from ..reduction.balanced import OFFSET
from ..systems.files import load_system
from ..weighting import (
    LQG,
    BoundedReal,
    Coprime,
    FrequencyLimited,
    FrequencyWeighted,
    PositiveReal,
    Stochastic,
    TimeLimited,
    Weighting,
)
from . import commands
from .completion import SHELLS, script

SIZES: dict[str, tuple[Any, str]] = {
    "order": (int, "Hankel singular values to keep"),
    "states": (int, "largest number of stored states"),
    "rtol": (float, "drop values up to this share of the largest"),
    "energy": (float, "keep this share of the sum of all values, such as 0.99"),
    "max-error": (float, "keep the bound on the H-infinity error below this"),
}


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and one line."""
        self.exit(2, f"{self.prog}: {' '.join(message.split())}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; `run` of what it returns does the work."""
    whole = Parser(prog="hankelred", description="Balanced truncation with stated errors.")
    add = whole.add_subparsers(dest="command", metavar="COMMAND", required=True).add_parser

    hsv = add("hsv", help="print Hankel singular values and error bounds")
    _add_models(hsv, commands.hsv_command, "MODEL", plot="draw them into a file (.png, .pdf, .svg)")
    _add_balancing(hsv)

    norms = add("norms", help="print the norms of a model")
    _add_models(norms, commands.norms_command, "MODEL")

    reduce = add("reduce", help="reduce a model and measure the error")
    _add_models(reduce, commands.reduce_command, "MODEL", plot="draw singular values, bound and error into a file")
    _add_balancing(reduce)
    several = "; several between commas"
    size = reduce.add_mutually_exclusive_group(required=True)
    for name, (kind, what) in SIZES.items():
        size.add_argument(f"--{name}", type=partial(_several, kind), metavar=name.upper(), help=what + several)
    reduce.add_argument("--match-dc", action="store_true", help="match the model exactly at frequency zero")
    reduce.add_argument("--no-measure", action="store_true", help="state the bound and do not measure the error")
    what = "save the reduced model (.npz, .mat, or a folder); {order} in it stands for the order"
    reduce.add_argument("-o", "--output", metavar="OUT", help=what)

    compare = add("compare", help="measure the difference of two models")
    plot = "draw errors, magnitudes, step responses and poles of both into a file"
    _add_models(compare, commands.compare_command, "MODEL", "REDUCED", plot=plot)

    convert = add("convert", help="write a model into a file of another kind")
    _add_models(convert, commands.convert_command, "MODEL")
    convert.add_argument("output", metavar="OUT", help="file to write: .npz, .mat, or a folder of .csv or .mtx files")

    completion = add("completion", help="print a script that completes this program's words in a shell")
    completion.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))
    completion.set_defaults(run=lambda arguments: print(script(arguments.shell, whole), end=""))
    return whole


def _add_models(
    to: argparse.ArgumentParser, run: Callable[[argparse.Namespace], None], *names: str, plot: str = ""
) -> None:
    what = "file with the system matrices (.npz, .mat), or a folder of .csv or .mtx files"
    time = "sampling time if the file does not say it: seconds, 0 for continuous, or true"
    for name in names:
        to.add_argument(name.lower(), metavar=name, help=what)
    to.add_argument("--dt", type=_seconds, help=time)
    to.add_argument("--json", action="store_true", help="print the figures as JSON, with null for what is not finite")
    if plot:
        to.add_argument("--plot", metavar="FIG", help=plot)
    to.set_defaults(run=run)


def _add_balancing(to: argparse.ArgumentParser) -> None:
    near = f"put aside and keep poles closer than this to the stability boundary ({OFFSET:g})"
    to.add_argument("--offset", type=float, default=OFFSET, help=near)
    to.add_argument("--weighting", type=read_weighting, metavar="WHAT", help=f"what counts: {KNOWN}")


def _seconds(text: str) -> float | bool:
    try:
        return True if text.lower() == "true" else check_dt(float(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, 0 or true; got {text!r}") from None


def _several(kind: Callable[[str], Any], text: str) -> list[Any]:
    try:
        return [kind(word) for word in text.split(",")]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise argparse.ArgumentTypeError(f"must be {what}, several with commas between; got {text!r}") from None


class Form(NamedTuple):
    """How a weighting is written: what follows its name, how many numbers that may be, and what makes it."""

    usage: str
    counts: range
    make: Callable[..., Weighting]


PAIRS = range(2, 1000, 2)
PLAIN = {  # weightings that may be guaranteed
    "time": Form("time:HORIZON", range(1, 2), TimeLimited),
    "band": Form(
        "band:LOW:HIGH", PAIRS, lambda *x, **also: FrequencyLimited(*zip(x[::2], x[1::2], strict=True), **also)
    ),
}
FILES = {"input": "input:FILE", "output": "output:FILE"}  # a model before the inputs or behind the outputs
RICCATI = {
    "lqg": Form("lqg", range(1), LQG),
    "coprime": Form("coprime", range(1), Coprime),
    "positive-real": Form("positive-real", range(1), PositiveReal),
    "bounded-real": Form("bounded-real:GAMMA", range(1, 2), BoundedReal),
    "stochastic": Form("stochastic[:BETA]", range(2), Stochastic),
}
SURE = "guaranteed"
KNOWN = (
    f"{', '.join([form.usage for form in PLAIN.values()] + list(FILES.values()))} (these also with :{SURE} behind), "
    f"{', '.join(form.usage for form in RICCATI.values())}"
)


def read_weighting(text: str) -> Weighting:
    """Return the weighting that a word of the command line describes."""
    kind, _, rest = text.partition(":")
    try:
        if kind in FILES:
            path = rest.removesuffix(f":{SURE}")
            return FrequencyWeighted(**{kind: load_system(path)}, **_guaranteed(path != rest))
        form, words = (PLAIN | RICCATI)[kind], rest.split(":") if rest else []
        sure = kind in PLAIN and words[-1:] == [SURE]
        numbers = [float(word) for word in words[: -1 if sure else None]]
        if len(numbers) in form.counts:
            return form.make(*numbers, **_guaranteed(sure))
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    except (KeyError, ValueError):
        pass  # no such kind, or words where numbers stand
    raise argparse.ArgumentTypeError(f"must be one of {KNOWN}; got {text!r}")


def _guaranteed(sure: bool) -> dict[str, bool]:
    return {"guaranteed": True} if sure else {}
