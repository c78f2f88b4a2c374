"""The tasks that demo and studies train on.

A new task is one function in a file of its own that returns a `Task`, and one line in `TASKS`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from hankelred.errors import InputError

from .base import ACCURACY, BITS, ERROR, UNLABELLED, Metric, Part, Task
from .cifar import cifar
from .delay import delay
from .digits import digits
from .listops import listops
from .mnist import mnist
from .mqar import mqar
from .recall import recall
from .series import vowels, watch
from .source_text import text
from .spam import spam
from .teacher import teacher

TASKS: dict[str, Callable[[], Task]] = {
    "digits": digits,
    "text": text,
    "recall": recall,
    "recall-16": partial(recall, 16),
    "recall-32": partial(recall, 32),
    "mqar-8": partial(mqar, 8),
    "mqar-16": partial(mqar, 16),
    "mqar-32": partial(mqar, 32),
    "smnist": partial(mnist, pooled=False),
    "pooled-smnist": partial(mnist, pooled=True),
    "last-smnist": partial(mnist, pooled=True, readout="last"),
    "scifar": cifar,
    "listops": partial(listops, "listops"),
    "listops-short": partial(listops, "listops-short"),
    "spam": spam,
    "watch": watch,
    "vowels": vowels,
    "delay-16": partial(delay, 16),
    "teacher-4": partial(teacher, 4),
    "teacher-8": partial(teacher, 8),
    "teacher-16": partial(teacher, 16),
}


def load_task(name: str) -> Task:
    """The task called `name`; raise `InputError` if there is none."""
    if name not in TASKS:
        raise InputError(f"task must be one of the known tasks; got {name!r}. Choose from: {', '.join(TASKS)}.")
    return TASKS[name]()


__all__ = ["ACCURACY", "BITS", "ERROR", "TASKS", "UNLABELLED", "Metric", "Part", "Task", "load_task"]
