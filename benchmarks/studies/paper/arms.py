"""The arms of the study: every way to end with a model of a few states, and the large model to the end."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import pi
from typing import Any

from hankelred_torch.adapters import LRUAdapter

from ..published import ComplexAdapter, chance, energy, keeping_by, peak_gain


@dataclass(frozen=True)
class Arm:
    """What one arm does.

    Attributes
    ----------
    what : str
        A sentence for the report, to be read behind its name.
    small : bool
        Whether the model has few states from its first step.
    share : float or None
        Of the training, at which the last cut is made; 1 cuts the trained model. None cuts nothing.
    cuts : int
        Attempts up to there at equal distances, sizes in equal ratios.
    changes : dict
        Fields of `CompressionConfig` besides the order.
    adapter : type
        Serves LRU layers meanwhile.
    sliced : bool
        Whether the optimizer gets the first rows of its averages after a cut.
    lr : float
        Factor on the learning rate.
    ring : tuple of float, optional
        Time constants of the fastest and slowest states at the start in lengths of a sequence, and largest phase.
    tuned : float
        Share of the steps that a model cut after training learns on for, with a new schedule.
    penalty : float
        Weight of the sum of Hankel singular values in the loss, every tenth step until the cut.
    temperature : float, optional
        At which the large model of the same seed is distilled into this one.
    as_long_as : str
        An arm, whose processor time this one gets.
    """

    what: str
    small: bool = False
    share: float | None = None
    cuts: int = 1
    changes: dict[str, Any] = field(default_factory=dict)
    adapter: type[LRUAdapter] = LRUAdapter
    sliced: bool = False
    lr: float = 1.0
    ring: tuple[float, float, float] | None = None
    tuned: float = 0.0
    penalty: float = 0.0
    temperature: float | None = None
    as_long_as: str = ""


WHITE = Arm("cut by white noise, as published", share=0.1, changes={"weighting": "white"})
SAMPLED = Arm("cut by the inputs that the layer gets", share=0.1, changes={"weighting": "sampled"})
FITTED = replace(SAMPLED, what="the same, outputs fitted again", changes={"weighting": "sampled", "refit": True})
SCRATCH = Arm("small from the start", small=True)

ARMS: dict[str, Arm] = {"full": Arm("the large model to the end")}
for _name, _arm in {"white": WHITE, "sampled": SAMPLED, "sampled, fitted": FITTED}.items():
    ARMS |= {f"{_name} {share:.0%}": replace(_arm, share=share) for share in (0.05, 0.1, 0.25, 0.5)}
    ARMS |= {f"{_name}, {word} cuts": replace(_arm, cuts=n) for word, n in (("two", 2), ("four", 4))}

LOW = (0.1, 1.0, pi / 10)  # slow poles of low phases
ARMS["full, low"] = Arm("the large model to the end, slow poles of low phases", ring=LOW)
for _name, _arm in {"white": WHITE, "sampled": SAMPLED}.items():
    _what = f"{_arm.what}, slow poles of low phases at the start"
    ARMS[f"{_name}, low, two cuts"] = replace(_arm, what=_what, cuts=2, ring=LOW)
    ARMS[f"{_name}, low 25%"] = replace(_arm, what=_what, share=0.25, ring=LOW)

ARMS |= {
    "scratch": SCRATCH,
    "scratch, lr / 2": replace(SCRATCH, what="small from the start, half the learning rate", lr=0.5),
    "scratch, lr x 2": replace(SCRATCH, what="small from the start, twice the learning rate", lr=2.0),
    "scratch, slow": replace(SCRATCH, what="small from the start, slow poles of all phases", ring=(0.1, 1.0, 2 * pi)),
    "scratch, low": replace(SCRATCH, what="small from the start, slow poles of low phases", ring=LOW),
    "scratch, wide": replace(SCRATCH, what="small from the start, poles of all moduli", ring=(0.0, 1.0, 2 * pi)),
}
for _name in ("two cuts", "10%", "25%"):
    ARMS[f"scratch, as long as sampled {_name}"] = replace(
        SCRATCH,
        what=f"small from the start, as many steps as the time of the sampled cut ({_name}) allows",
        as_long_as=f"sampled, {_name}" if "cuts" in _name else f"sampled {_name}",
    )

ARMS |= {
    "published": replace(
        WHITE,
        what="the complex system truncated, averages of the optimizer sliced, four cuts",
        cuts=4,
        adapter=ComplexAdapter,
        sliced=True,
        changes={"weighting": "white", "optimizer_state": "reset"},
    ),
    "random": replace(WHITE, what="states drawn at random are kept", adapter=keeping_by(chance)),
    "smallest": replace(WHITE, what="states with the least energy are kept", adapter=keeping_by(lambda x: -energy(x))),
    "LAST": replace(WHITE, what="states with the largest H-infinity norm are kept", adapter=keeping_by(peak_gain)),
    "AIRE": replace(WHITE, what="states with the largest H2 norm are kept", adapter=keeping_by(energy)),
}
AFTER = {
    "white": replace(WHITE, what="by white noise"),
    "white, fitted": replace(
        WHITE, what="by white noise, outputs fitted again", changes=WHITE.changes | {"refit": True}
    ),
    "sampled": replace(SAMPLED, what="by the inputs that the layer gets"),
    "sampled, fitted": replace(FITTED, what="by these, outputs fitted again"),
    "LAST": ARMS["LAST"],
    "AIRE": ARMS["AIRE"],
}
for _name, _arm in AFTER.items():
    ARMS[f"after: {_name}"] = replace(_arm, what=f"cut after training: {_arm.what}", share=1.0)
    ARMS[f"after: {_name}, tuned"] = replace(
        _arm, what=f"cut after training: {_arm.what}, a tenth of the steps more", share=1.0, tuned=0.1
    )
for _weight in (1e-4, 1e-3, 1e-2):
    ARMS[f"penalty {_weight:g}"] = replace(
        WHITE,
        what=f"the sum of Hankel singular values times {_weight:g} in the loss, cut after training",
        share=1.0,
        penalty=_weight,
    )
for _heat in (1, 2, 4):
    ARMS[f"distilled {_heat}"] = replace(
        SCRATCH,
        what=f"small from the start, and learns from the large model at temperature {_heat}",
        temperature=float(_heat),
    )

# Arms whose model is large to the end: the same for every size of the others.
LARGE = tuple(name for name, arm in ARMS.items() if not arm.small and arm.share is None)

# Arms of which the best on the validation part counts: no arm has an advantage that another cannot have.
BEST_OF: dict[str, tuple[str, ...]] = {
    "scratch, best learning rate": ("scratch", "scratch, lr / 2", "scratch, lr x 2"),
    "scratch, best start": ("scratch", "scratch, slow", "scratch, low", "scratch, wide"),
    "penalty, best weight": tuple(x for x in ARMS if x.startswith("penalty")),
    "distilled, best temperature": tuple(x for x in ARMS if x.startswith("distilled")),
}
