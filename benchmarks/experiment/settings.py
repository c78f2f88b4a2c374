"""What one training run depends on, besides its arm and its seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hankelred.errors import InputError

ARMS = ("full", "compressed", "scratch")
LAYERS = ("lru", "mamba", "s4d", "s5", "delta")
METHODS = ("auto", "balanced_truncation", "rotation", "selection", "selection_without_fold")

# What `Settings.of` changes for a task. Text and recall: a language model small enough that a thousand steps with all
# states take a minute or two on one core, cut once at a tenth of training, when the learning rate has risen.
_TOKENS: dict[str, Any] = {"layer": "mamba", "states": 128, "channels": 64, "blocks": 2, "dropout": 0.0, "tau": 0.1}
_TOKENS |= {"window": 0.1, "attempts": 1, "steps": 1000, "batch": 8, "lr": 1e-2}
PRESETS: dict[str, dict[str, Any]] = {"text": _TOKENS}
PRESETS |= dict.fromkeys(("recall", "recall-16", "recall-32"), _TOKENS | {"batch": 32})

# Recall with keys that are vectors: one gated delta net, whose states are the channels of its keys.
_VECTORS: dict[str, Any] = {"layer": "delta", "states": 64, "channels": 32, "dropout": 0.0, "steps": 1000, "batch": 32}
PRESETS |= dict.fromkeys(("mqar-8", "mqar-16", "mqar-32"), _VECTORS | {"lr": 5e-3})
PRESETS["mqar-32"] = PRESETS["mqar-32"] | {"steps": 2000}  # 32 pairs are learned late

# MNIST: minutes on one core for the pooled images, an hour for all pixels at the width of arXiv 2510.02823.
PRESETS["pooled-smnist"] = {"steps": 1200, "lr": 1.6e-2}
PRESETS["smnist"] = {"steps": 10_000, "states": 256, "channels": 8, "lr": 1.6e-2}

PRESETS["last-smnist"] = PRESETS["pooled-smnist"]

# Other sequences of the paper's kind, at a width that one core trains in minutes (the long ones in hours).
PRESETS["scifar"] = {"steps": 10_000, "states": 256, "channels": 32, "blocks": 2}
PRESETS["listops"] = {"steps": 5000, "channels": 32, "blocks": 2, "dropout": 0.0, "batch": 32}
PRESETS["listops-short"] = PRESETS["listops"] | {"steps": 3000}
PRESETS["spam"] = {"steps": 600, "channels": 32}
PRESETS["watch"] = {"steps": 800}
PRESETS["vowels"] = {"steps": 800}
PRESETS["delay-16"] = {"steps": 1000, "order": 8, "dropout": 0.0, "lr": 3e-2}

# A teacher: nothing but the layer, so that its states are all that can be learned with.
PRESETS |= {f"teacher-{order}": {"steps": 1000, "order": order, "dropout": 0.0, "lr": 3e-2} for order in (4, 8, 16)}


@dataclass(frozen=True)
class Settings:
    """Task, model, optimizer and cuts of a study; the same for all its arms and seeds.

    Attributes
    ----------
    task : str
        Name of the task.
    layer : str
        State space layer of every block.
    states, channels, blocks : int
        Stored states of each layer at the start, channels of the model, number of blocks.
    memory : float
        Longest time constant of a state of an LRU at the start, in lengths of a sequence. Hankel singular values count
        a response that outlasts the sequences in full, though no training example shows it.
    dropout : float
        Share of channels switched off at random in training, from 0 to below 1.
    method : str
        How states are cut, as in `CompressionConfig`.
    tau : float
        A cut keeps the states whose Hankel singular values carry the share 1 - tau of their sum.
    order : int or None
        Stored states to keep instead: the attempts lead there in equal ratios, whatever it costs.
    window : float
        Share of the steps, from the first, in which cuts are attempted.
    attempts : int
        Attempts in the window, equally spaced; the last is at its end.
    steps, batch : int
        Optimizer steps and sequences in each.
    lr, alpha, weight_decay : float
        Learning rate of AdamW, the factor on it for state space layers, and the decay of all other parameters.
    threads : int
        Threads that torch computes with; the last bits of a result depend on it.
    """

    task: str = "digits"
    layer: str = "lru"
    states: int = 64
    channels: int = 16
    blocks: int = 1
    memory: float = 1.0
    dropout: float = 0.1
    method: str = "auto"
    tau: float = 0.25
    order: int | None = None
    window: float = 0.2
    attempts: int = 4
    steps: int = 2000
    batch: int = 50
    lr: float = 8e-3
    alpha: float = 1.0
    weight_decay: float = 0.05
    threads: int = 1

    @classmethod
    def of(cls, task: str, **given: Any) -> Settings:
        """The settings that suit a task, with those that are given in their place."""
        return cls(task, **(PRESETS.get(task, {}) | given))

    def __post_init__(self) -> None:
        """Refuse what no run can be made of."""
        for name, known in (("layer", LAYERS), ("method", METHODS)):
            value = getattr(self, name)
            _require(value in known, name, f"one of {', '.join(known)}", repr(value), "The help says what they are.")
        for name in ("states", "channels", "blocks", "attempts", "steps", "batch", "threads"):
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name), "Choose a positive number.")
        for name in ("lr", "alpha", "memory"):
            _require(getattr(self, name) > 0, name, "positive", getattr(self, name), "The usual size is in the help.")
        _require(self.weight_decay >= 0, "weight_decay", "0 or more", self.weight_decay, "0 switches the decay off.")
        _require(0 <= self.dropout < 1, "dropout", "from 0 to below 1", self.dropout, "0 switches it off.")
        _require(0 < self.tau < 1, "tau", "between 0 and 1", self.tau, "It is the share that a cut may drop.")
        _require(0 < self.window <= 1, "window", "above 0, at most 1", self.window, "0.1 is the first tenth of steps.")
        if self.order is not None:
            hint = "It is the number of stored states to keep."
            _require(1 <= self.order <= self.states, "order", f"from 1 to {self.states} states", self.order, hint)
        hint = "Train for longer, or widen the window."
        _require(
            self.window_steps >= self.attempts,
            "window",
            f"a step or more for each of {self.attempts} attempts",
            f"{self.window_steps} of {self.steps} steps",
            hint,
        )

    @property
    def window_steps(self) -> int:
        """Optimizer steps in the reduction window."""
        return round(self.window * self.steps)


def _require(holds: bool, name: str, must_be: str, got: object, hint: str) -> None:
    """Raise the three-part error of the argument `name` unless its condition holds."""
    if not holds:
        raise InputError(f"{name} must be {must_be}; got {got}. {hint}")


def check_arms(arms: list[str]) -> list[str]:
    """Return `arms` in the order they must run in: `scratch` takes its sizes from `compressed`."""
    unknown = [arm for arm in arms if arm not in ARMS]
    if unknown or not arms:
        raise InputError(f"arms must be of {', '.join(ARMS)}; got {', '.join(unknown) or 'none'}. Separate by commas.")
    if "scratch" in arms and "compressed" not in arms:
        raise InputError(
            f"arms must name compressed where they name scratch, which starts at the sizes that compressed ends with; "
            f"got {', '.join(arms)}. Add compressed: an arm that has finished before is not run again."
        )
    return [arm for arm in ARMS if arm in arms]
