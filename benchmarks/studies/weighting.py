"""What do cuts gain that go by the layer's real inputs, and outputs that are fitted again?

    python -m benchmarks.studies.weighting                              # digits, after and in training: an hour
    python -m benchmarks.studies.weighting --task pooled-smnist --budget 40
    python -m benchmarks.studies.weighting --task teacher-4 --part in --shares 0.1
    python -m benchmarks.studies.weighting --seeds 1 --steps 200 --out quick.json

A model with one LRU layer learns with 64 complex states: the digits, MNIST, or the output of a linear system. *After*
training copies of it are cut to few states and not trained again. *In* training it is cut once, at a tenth, a quarter
or half of the steps, to few states, and learns on; or once the share that the cut would drop has settled. Arms are
white noise (the published method) and the inputs the layer gets, each with and without outputs that are fitted again on
sample batches; after training also inputs together with random projections of the model's outputs, traced back to the
states; in training small from the start. Runs of one seed start from the same weights and see the same batches; sample
batches are those of the training part; the test part is looked at once.

Every run is written to the file of results when it ends and is not made again; Ctrl-C loses the run in progress only.
Runs are made seed by seed, so that a budget of minutes leaves whole tables.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.experiment.settings import Settings
from benchmarks.experiment.trainer import Trainer
from benchmarks.runs import Run, Spread, parser_of, study, table
from benchmarks.tasks import Task, load_task
from hankelred import balanced_truncation
from hankelred.weighting import Sampled, StateCovariance
from hankelred_torch import CompressionConfig, compress_, find_ssm_layers, plan, read_system, write_system
from hankelred_torch.adapters import collect_statistics
from hankelred_torch.ops import linear_recurrence

RESULTS = Path(__file__).parents[1] / "results"
WAYS: dict[str, dict[str, Any]] = {
    "white": {"weighting": "white", "refit": False},
    "white, fitted": {"weighting": "white", "refit": True},
    "sampled": {"weighting": "sampled", "refit": False},
    "sampled, fitted": {"weighting": "sampled", "refit": True},
}
TRACED = "sampled, traced"
SETTLED = "sampled, when settled"
SIZES = (32, 16, 8, 6, 4)  # stored complex states after training
KEPT = {"digits": 4, "pooled-smnist": 8, "smnist": 16, "teacher-4": 4, "teacher-8": 8, "teacher-16": 16}  # in training
SHARES = (0.1, 0.25, 0.5)
SAMPLES = 8  # batches
LOOKS = 0.05  # of the steps between two looks at the spectrum, for a cut when it has settled
CHANGE = 0.1  # of the share of the values that a cut would drop, between two looks: less is settled
LATEST = 0.5  # of the steps


def after_training(
    task: Task, settings: Settings, seed: int, progress: Callable[[], Any]
) -> dict[str, dict[str, float]]:
    """Train once; return the score of every way and size, and that of the whole model under "full"."""
    trainer = Trainer(task, settings, seed, samples=SAMPLES)
    trainer.train_to(settings.steps, progress)
    found = {"full": dict.fromkeys(map(str, SIZES), trainer.score(task.test))}
    whole = copy.deepcopy(trainer.model)
    traced = traced_sums(whole, trainer.batches)
    for way in (*WAYS, TRACED):
        found[way] = {}
        for states in SIZES:
            trainer.model = copy.deepcopy(whole)
            if way == TRACED:
                cut_traced(trainer.model, traced, states)
            else:
                compress_(trainer.model, CompressionConfig(order=states, **WAYS[way]), batches=trainer.batches)
            found[way][str(states)] = trainer.score(task.test)
    return found


def traced_sums(model: nn.Module, batches: Sequence[Tensor]) -> Sampled:
    """The states of the one LRU layer on samples, and what random projections of the model's outputs are there."""
    (name,) = find_ssm_layers(model)
    layer = model.get_submodule(name)
    system = read_system(layer)
    lam, C = (torch.from_numpy(np.array(x, complex)) for x in (system.lam, system.C))
    driven, reading = collect_statistics(model, batches).layers[name].sums, StateCovariance(system.n)
    noise, kept = torch.Generator().manual_seed(0), list[Tensor]()

    def keep(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        kept[:] = [output.detach().requires_grad_()]
        return kept[0]

    model.eval()
    handle = layer.register_forward_hook(keep)
    for batch in batches:
        out = model(batch)
        (slope,) = torch.autograd.grad((out * torch.randn(out.shape, generator=noise)).sum(), kept[0])
        reading.update(linear_recurrence(lam.conj(), slope.to(C.dtype) @ C.conj(), reverse=True).numpy())
    handle.remove()
    model.train()
    return Sampled(states=driven, adjoints=reading)


def cut_traced(model: nn.Module, weighting: Sampled, states: int) -> None:
    """Cut the one LRU layer of a model by sums of states and of what is read from them."""
    (name,) = find_ssm_layers(model)
    layer = model.get_submodule(name)
    write_system(layer, balanced_truncation(read_system(layer), states=states, weighting=weighting).system)


def settle(trainer: Trainer, config: CompressionConfig, progress: Callable[[], Any]) -> None:
    """Train until the share that a cut would drop stays what it was at the look before."""
    before = math.inf
    for look in range(1, round(LATEST / LOOKS) + 1):
        trainer.train_to(round(look * LOOKS * trainer.settings.steps), progress)
        (layer,) = plan(trainer.model, config, trainer.batches).layers.values()
        tail = 1.0 - layer.kept_energy
        if abs(tail - before) < CHANGE * before:
            return
        before = tail


def in_training(
    task: Task, settings: Settings, way: str, share: float, seed: int, progress: Callable[[], Any]
) -> dict[str, float]:
    """Train, cut once, train on; or train the small model from the start, or the large one to the end."""
    kept = KEPT[task.name]
    trainer = Trainer(task, settings, seed, [kept] if way == "scratch" else None)
    found = {}
    if way in WAYS or way == SETTLED:
        config = CompressionConfig(order=kept, **WAYS.get(way, WAYS["sampled"]))
        if way == SETTLED:
            settle(trainer, config, progress)
        else:
            trainer.train_to(int(share * settings.steps), progress)
        found |= {"step": trainer.steps, "before": trainer.score(task.validation)}
        compress_(trainer.model, config, [trainer.optimizer], batches=trainer.batches)
        found["after"] = trainer.score(task.validation)
    trainer.train_to(settings.steps, progress)
    return found | {"end": trainer.score(task.test)}


def keys(part: str, seed: int, shares: Sequence[float], arms: Sequence[str] | None) -> list[Run]:
    """The runs of a part for one seed, in training of some arms only."""
    if part == "after":
        return [{"part": "after", "seed": seed}]
    runs = [(way, share) for share in shares for way in WAYS] + [(x, 0.0) for x in (SETTLED, "scratch", "full")]
    chosen = [(arm, share) for arm, share in runs if arms is None or arm in arms]
    return [{"part": "in", "arm": arm, "share": share, "seed": seed} for arm, share in chosen]


def differences(runs: Sequence[Run], by: str, value: str) -> str:
    """The mean difference of every two arms over seeds that both have, and its standard errors."""
    lines = []
    arms = dict.fromkeys(x[by] for x in runs)
    scores = {arm: {x["seed"]: x[value] for x in runs if x[by] == arm} for arm in arms}
    for one, other in itertools.combinations(arms, 2):
        found = Spread.of(scores[one][k] - scores[other][k] for k in scores[one].keys() & scores[other].keys())
        if found and found.deviation:
            error = found.deviation / math.sqrt(found.count)
            lines.append(f"{one} over {other}: {found.mean:+.3g} ± {error:.2g} (standard error, {found.count} pairs)")
    return "\n".join(lines)


def main() -> None:
    parser = parser_of(__doc__, 8, 0, RESULTS / "weighting_TASK.json")
    parser.add_argument("--task", choices=tuple(KEPT), default="digits")
    parser.add_argument("--part", choices=("after", "in", "both"), default="both")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="when to cut in training, of its steps")
    parser.add_argument("--arms", nargs="+", choices=(*WAYS, SETTLED, "scratch", "full"), help="in training; all")
    parser.add_argument("--budget", type=float, default=math.inf, help="minutes, after which no run is begun")
    options = parser.parse_args()
    torch.set_num_threads(1)
    steps = {"steps": options.steps} if options.steps else {}
    settings = replace(Settings.of(options.task), **steps, order=None)
    task = load_task(options.task)
    out = options.out.with_name(options.out.name.replace("TASK", options.task))
    parts = ("after", "in") if options.part == "both" else (options.part,)
    stop = time.monotonic() + 60 * options.budget

    def run(key: Run, progress: Callable[[], None]) -> Run | None:
        if time.monotonic() > stop:
            return None
        if key["part"] == "after":
            found = after_training(task, settings, key["seed"], progress)
            return {f"{way}: {n}": x for way, sizes in found.items() for n, x in sizes.items()}
        return in_training(task, settings, key["arm"], key["share"], key["seed"], progress)

    runs = study(
        out,
        f"{task.metric.heading}, on the test part but for those around a cut in training, which are on validation",
        asdict(settings) | {"kept": KEPT[task.name], "sizes": list(SIZES), "samples": SAMPLES},
        [
            key
            for seed in range(options.seeds)
            for part in parts
            for key in keys(part, seed, options.shares, options.arms)
        ],
        lambda key: settings.steps,
        run,
    )
    report(runs, task)


def report(runs: Sequence[Run], task: Task) -> None:
    """Print the tables of both parts, and in training the differences of arms at the end."""
    unit, digits = task.metric.unit.split()[0], task.metric.digits
    after = [x for x in runs if x["part"] == "after"]
    if after:
        rows = [
            {"arm": way} | {str(n): x[f"{way}: {n}"] for n in SIZES} for x in after for way in ("full", *WAYS, TRACED)
        ]
        print(table(rows, "arm", {str(n): (f"{n} states, {unit}", digits) for n in SIZES}))
    named = [
        x | {"arm": f"{x['arm']} at {x['share']:.0%}" if x["share"] else x["arm"]} for x in runs if x["part"] == "in"
    ]
    if named:
        columns = {"step": ("cut at step", 0)} | {
            x: (f"{heading}, {unit}", digits)
            for x, heading in (("before", "before the cut"), ("after", "just after"), ("end", "at the end"))
        }
        print(table(named, "arm", columns))
        print(differences(named, "arm", "end"))


if __name__ == "__main__":
    main()
