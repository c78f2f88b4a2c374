"""ListOps: the value of nested lists of digits with an operator before each list.

Expressions as in the Long Range Arena (arXiv 2011.04006), drawn anew with a seed: a node is an operator with
probability 1/4, otherwise a digit, a digit at depth 10 in any case; operators have 2 to 10 arguments.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from random import Random

import numpy as np
import torch

from hankelred.checks import Array
from hankelred.systems.files import write_atomically

from .. import data
from .base import SPLIT_SEED, Part, Task

OPERATORS = ("MIN", "MAX", "MED", "SM")
DIGIT, OPERATOR, CLOSE = 1, 11, 15  # the first token of each kind; 0 fills up
SYMBOLS = 16
DEEPEST, MOST = 10, 10
LENGTHS = {"listops": (500, 2000), "listops-short": (50, 200)}  # strictly between
COUNTS = {"listops": (96_000, 2000, 2000), "listops-short": (20_000, 2000, 2000)}
CHUNK = 500  # expressions that one generator draws


def listops(name: str) -> Task:
    """Values of expressions; the expressions are drawn once, by all processors, and kept in the cache."""
    inputs, labels = expressions(name, sum(COUNTS[name]))
    ends = np.cumsum(COUNTS[name])[:-1]
    parts = [
        Part(torch.from_numpy(x.astype(np.int64)), torch.from_numpy(y.astype(np.int64)))
        for x, y in zip(np.split(inputs, ends), np.split(labels, ends), strict=True)
    ]
    low, high = LENGTHS[name]
    return Task(
        name=name,
        title=f"nested lists of digits with operators, {low} to {high} tokens: what is their value?",
        source="Drawn at random, as in arXiv 2011.04006",
        classes=10,
        symbols=SYMBOLS,
        train=parts[0],
        validation=parts[1],
        test=parts[2],
        padded=True,
    )


def expressions(name: str, count: int, processes: int | None = None) -> tuple[Array, Array]:
    """Different expressions behind zeros, (count, longest) uint8, and their values, the same for any processes."""
    path = data.cache() / f"{name}-{count}-{SPLIT_SEED}.npz"
    if not path.exists():
        low, high = LENGTHS[name]
        found: dict[bytes, int] = {}
        processes = processes or len(os.sched_getaffinity(0))
        draw, first = partial(_chunk, low=low, high=high), 0
        with ProcessPoolExecutor(processes) as pool:
            while len(found) < count:
                chunks = range(first, first + max(1, -(-(count - len(found)) // CHUNK)))
                for chunk in pool.map(draw, chunks):
                    found.update(chunk)
                first = chunks.stop
        kept = list(found.items())[:count]
        inputs = np.zeros((count, high - 1), np.uint8)
        for row, (tokens, _) in zip(inputs, kept, strict=True):
            row[-len(tokens) :] = np.frombuffer(tokens, np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.array([value for _, value in kept], np.uint8)
        write_atomically(path, lambda file: np.savez_compressed(file, inputs=inputs, values=values))
    with np.load(path) as kept_file:
        return kept_file["inputs"], kept_file["values"]


def _chunk(number: int, low: int, high: int) -> list[tuple[bytes, int]]:
    """Draw expressions of admitted lengths; the root is an operator, as one digit would be too short."""
    random, found = Random(f"{SPLIT_SEED}, {low}, {high}, {number}"), []
    while len(found) < CHUNK:
        tokens: list[int] = []
        value = _node(random, tokens, 1, high)
        # an operator counts twice, opening and closing
        if value is not None and low < len(tokens) < high:
            found.append((bytes(tokens), value))
    return found


def _node(random: Random, tokens: list[int], depth: int, longest: int) -> int | None:
    """Draw a node and what is below it; return its value, None where the expression has become too long."""
    if len(tokens) >= longest:
        return None
    if depth == DEEPEST or (depth > 1 and random.random() >= 0.25):
        digit = random.randrange(10)
        tokens.append(DIGIT + digit)
        return digit
    operator = random.randrange(len(OPERATORS))
    tokens.append(OPERATOR + operator)
    values = []
    for _ in range(random.randint(2, MOST)):
        value = _node(random, tokens, depth + 1, longest)
        if value is None:
            return None
        values.append(value)
    tokens.append(CLOSE)
    return value_of(OPERATORS[operator], values)


def value_of(operator: str, values: list[int]) -> int:
    """The value of an operator: of an even number the median is the mean of the middle two, rounded down."""
    if operator == "MIN":
        return min(values)
    if operator == "MAX":
        return max(values)
    if operator == "SM":
        return sum(values) % 10
    middle, ordered = len(values) // 2, sorted(values)
    return ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) // 2
