"""A short rise of learning rates after a cut, invisible to whoever sets them.

Many schedulers compute the next learning rate from the last one (`CosineAnnealingLR`, `ExponentialLR` and others), so
a factor left in ``group["lr"]`` would stay in the schedule for good. Here rates are scaled when an optimizer's step
begins and put back, the very objects, when it ends: between steps every scheduler, logger and checkpoint sees the
rates of the schedule.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hankelred.errors import InputError


class Rewarmer:
    """Scale the learning rates of optimizers in the steps after a cut: 1/(k+1), 2/(k+1), ..., k/(k+1), then 1.

    Parameters
    ----------
    optimizers : tuple of torch.optim.Optimizer
        Those whose steps begin and end with hooks from now on.
    steps : int
        Steps k of the rise.

    Attributes
    ----------
    left : int
        Steps whose rates are still to be scaled.

    Raises
    ------
    InputError
        If an optimizer has no hooks around its steps.
    """

    def __init__(self, optimizers: tuple[Any, ...], steps: int) -> None:
        self._steps, self.left = steps, 0
        self._rates: dict[int, list[Any]] = {}
        for optimizer in optimizers if steps else ():
            if not hasattr(optimizer, "register_step_pre_hook"):
                raise InputError(
                    f"lr_rewarm_steps needs optimizers with hooks around their steps; got "
                    f"{type(optimizer).__qualname__}. Pass the torch optimizer inside, or set lr_rewarm_steps=0."
                )
            optimizer.register_step_pre_hook(self._scale)
            optimizer.register_step_post_hook(self._put_back)

    def start(self) -> None:
        """Begin the rise anew: a cut has just been made."""
        self.left = self._steps

    def count(self) -> None:
        """Note that all optimizers have made a step."""
        self.left = max(self.left - 1, 0)

    def state_dict(self) -> dict[str, int]:
        """Return how far the rise is."""
        return {"left": self.left}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where `state_dict` was taken."""
        self.left = int(state["left"])

    def _scale(self, optimizer: Any, *_: Any) -> None:
        self._put_back(optimizer)  # a step that raised has not put them back
        if not self.left:
            return
        factor = 1.0 - self.left / (self._steps + 1)
        self._rates[id(optimizer)] = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * factor

    def _put_back(self, optimizer: Any, *_: Any) -> None:
        for group, rate in zip(optimizer.param_groups, self._rates.pop(id(optimizer), ()), strict=False):
            group["lr"] = rate
