"""What the report says in words: the paper's claims and figures, the protocol, and how to read the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GENERATED = (
    "This page is written by `python -m benchmarks.studies.paper --report` from the lines in "
    "`benchmarks/results/paper`; the runs are made by the same command with `--task`."
)
TITLES = {
    "teacher-4": "A teacher with 4 states",
    "teacher-8": "A teacher with 8 states",
    "teacher-16": "A teacher with 16 states",
    "pooled-smnist": "MNIST, 196 means of 2 × 2 pixels read one by one",
    "smnist": "MNIST, 784 pixels read one by one",
    "digits": "Digits of 8 × 8 pixels read one by one",
    "last-smnist": "MNIST, 196 means of 2 × 2 pixels, classes from the last state",
    "listops-short": "ListOps, 50 to 200 tokens",
    "spam": "Mail, 2,048 bytes",
    "watch": "Exercises seen by a watch, six channels",
    "vowels": "Japanese vowels, twelve channels",
    "delay-16": "A delay by 16 steps",
    "scifar": "CIFAR-10 in grey, 1,024 pixels read one by one",
    "listops": "ListOps, 500 to 2,000 tokens",
}
BESIDE = {"delta": "Keys of gated delta nets, whose states are matrices"}  # pages of other studies
READING = (
    "Means and standard deviations over seeds. *Seconds* are processor time of one thread, with what came before a cut "
    "after training, and of all members of a family of which the best on the validation part counts. *Peak MB* is that "
    "of the process, Python and torch included."
)
ROBUST = (
    "On the first test sequences, 2,000 at most: a tenth of the samples set to 0, white noise of .1 and .3 of the "
    "inputs' deviation, all weights in bf16 and in 8 bits with one scale for each tensor."
)
PROTOCOL = (
    "The paper trains for 200,000 steps with a constant learning rate and no weight decay; here it is 10,000 steps, or "
    "fewer, after a warm-up of a tenth with a cosine decay, weight decay .05 outside of the layer.",
    "The paper's sizes follow from a share τ of the energy at four attempts; here sizes are given, in one cut or two. "
    "`make demo` cuts by τ at four attempts.",
    "The paper cuts the complex system and slices the optimizer's averages; here that is the arm *published*.",
    "The learning rate of a task is the one with the best validation of the large and of the small model on one seed; "
    "small models have half and twice of it as well.",
)
PAPER = {  # states, accuracy compressed and from scratch: Table of arXiv 2510.02823
    "smnist": {
        "compressed": ((12.7, 95.9), (27.6, 96.9), (46.8, 96.9), (76.3, 96.9), (191, 97.2)),
        "scratch": ((12.7, 92.6), (27.6, 96.0), (76.3, 96.4), (191, 97.3)),
        "full": ((256, 97.3),),
    }
}


@dataclass(frozen=True)
class Claim:
    """A claim of the paper and the comparisons that test it: task, states, arm, over which arm.

    One that says how little a cut costs is not `judged` by whether the cut is better: its figures are told.
    """

    claim: str
    tests: tuple[tuple[str, int, str, str], ...]
    other: str = "no run"
    judged: bool = True

    def conclude(self, said: Sequence[tuple[str, str]]) -> tuple[str, str]:
        """The verdict of all comparisons there are, and their figures."""
        if not said:
            return "not tested", self.other
        if not self.judged:
            return "by so much", "; ".join(x for _, x in said)
        verdicts = [x for x, _ in said]
        if all(x == "better" for x in verdicts):
            verdict = "confirmed"
        elif any(x == "worse" for x in verdicts):
            verdict = "contradicted" if "better" not in verdicts else "both ways"
        else:
            verdict = "confirmed in part" if "better" in verdicts else "not told apart"
        return verdict, "; ".join(x for _, x in said)


_SIZES = (*(("pooled-smnist", n) for n in (4, 8, 16)), *((f"teacher-{n}", n) for n in (4, 8, 16)))


def _each(way: str, over: str) -> tuple[tuple[str, int, str, str], ...]:
    """A way to cut against another arm on all tasks; in the name of that arm, {} is how the task is cut."""
    found = [("smnist", 13, f"{way}, two cuts", over.format("two cuts"))]
    return *found, *((task, kept, f"{way} 25%", over.format("25%")) for task, kept in _SIZES)


CLAIMS = (
    Claim(
        "A model cut early ends better than one that is small from the start: sMNIST, 12.7 states, 95.9 against 92.6 %",
        _each("white", "scratch, best learning rate"),
    ),
    Claim(
        "… and it still does where the small model gets the time of the large one",
        _each("sampled", "scratch, as long as sampled {}"),
    ),
    Claim("… and where it may choose the start of its poles", _each("sampled", "scratch, best start")),
    Claim(
        "Cutting early costs little against the large model: 95.9 against 97.3 %",
        _each("sampled", "full"),
        judged=False,
    ),
    Claim("Ahead of distillation at small sizes", _each("sampled", "distilled, best temperature")),
    Claim("Ahead of Hankel-norm regularisation", _each("sampled", "penalty, best weight")),
    Claim("Ahead of pruning after training", _each("sampled", "after: white")),
    Claim(
        "Beside the paper: a cut whose outputs are fitted again (`refit=True`) ends better than a small model that may "
        "choose the start of its poles",
        tuple((task, kept, "sampled, fitted 25%", "scratch, best start") for task, kept in _SIZES),
    ),
    Claim(
        "sCIFAR-10, ListOps, AAN, IMDB, Pathfinder at the paper's widths",
        (),
        other="hours to days of one core a run; nothing of it was run here",
    ),
)


def setting(found: Sequence[Mapping[str, Any]]) -> str:
    """How the runs were made, from their lines."""
    task = found[0]["task"]
    commits = ", ".join(sorted({str(x["commit"]) for x in found}))
    versions = found[-1]["versions"]
    hours = sum(x["wall"] for x in found) / 3600
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"`python -m benchmarks.studies.paper --task {task}`: {len(found)} runs, {hours:.1f} core-hours, one thread "
        f"each ({named}; commits {commits})."
    )


def index(found: Mapping[str, Sequence[Any]], headlines: str) -> str:
    """The first page."""
    tasks = "\n".join(f"- [{TITLES[task]}]({task}.md)" for task in TITLES if task in found)
    toc = "\n".join(["```{toctree}", ":hidden:", "", *(task for task in TITLES if task in found), *BESIDE, "```"])
    protocol = "\n".join(f"- {sentence}" for sentence in PROTOCOL)
    parts = [
        "# The paper's claims, tested",
        GENERATED,
        "## Headlines",
        "*Confirmed* means that the 95 % interval of the mean difference, seed by seed, lies above 0 in every "
        "comparison; *not told apart* that it holds 0 in each. More is better, whatever a task is measured by. Errors "
        "are compared by their logarithms, and those below .001 % of the mean square count as that: the answer is "
        "found.",
        headlines,
        "## Tasks",
        tasks,
        toc,
        "## Where the protocol differs from the paper's",
        protocol,
        "## Beside the paper",
        "\n".join(f"- [{title}]({page}.md)" for page, title in BESIDE.items()),
    ]
    return "\n\n".join(parts) + "\n"
