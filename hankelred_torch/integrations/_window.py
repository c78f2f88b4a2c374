"""The reduction window of a run whose length the framework knows."""

from __future__ import annotations

import math
from dataclasses import replace

from hankelred.errors import InputError

from ..config import Schedule


def with_total_steps(schedule: Schedule, steps: float) -> Schedule:
    """Give the schedule the optimizer steps of the run, unless it says itself where the window ends."""
    if schedule.end_step is not None or schedule.total_steps is not None:
        return schedule
    if not (math.isfinite(steps) and steps > 0):
        raise InputError(
            f"The reduction window needs the length of the run, which the trainer does not know; it says {steps}. "
            f"Pass total_steps or end_step in the schedule, or max_steps to the trainer."
        )
    return replace(schedule, total_steps=int(steps))
