"""The reduction window of a run whose length the framework knows."""

from __future__ import annotations

import math
from dataclasses import replace

from hankelred.errors import InputError

from ..config import CompressionConfig


def with_total_steps(config: CompressionConfig, steps: float) -> CompressionConfig:
    """Return the configuration with the optimizer steps of the run, unless it says itself where the window ends."""
    if config.end_step is not None or config.total_steps is not None:
        return config
    if not (math.isfinite(steps) and steps > 0):
        raise InputError(
            f"The reduction window needs the length of the run, which the trainer does not know; it says {steps}. "
            f"Pass total_steps or end_step in the configuration, or max_steps to the trainer."
        )
    return replace(config, total_steps=int(steps))
