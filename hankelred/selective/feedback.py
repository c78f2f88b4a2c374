"""What a delta rule makes of states left out: it reads with its keys, too, and writes what it read amiss.

A smaller rule reads ``k^T E S`` less than the full one, with ``E`` what its basis leaves out, and its states come to
differ. How much is told by sums of two kinds: to first order for every selection, and for every basis as if what is
read less were white.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..checks import Array, double
from ..linalg.compiled import Kernels
from .data import Sequences
from .states import pieces

kernels = Kernels("hankelred.selective._kernels")

# Numbers in the answers of the states of one head to leaving out each channel: n^2 for each column of values taken.
# All columns at n = 16 and a head_dim up to 64, four at n = 64, one from n = 128 on: with them statistics take two to
# three times what those of heads do at n = 64 and 128.
ANSWERS = 2**14


def add_feedback(sums: dict[str, Array], data: Sequences, beta: Array, every: int) -> None:
    """Add every `every`-th step of a delta rule in the form of heads, one sequence and head after the other."""
    heads, per_group = beta.shape[2], beta.shape[2] // data.B.shape[2]
    for row, head in np.ndindex(beta.shape[0], heads):
        _add_head(sums, head // per_group, data, beta, (row, head), every)


def _add_head(
    sums: dict[str, Array], group: int, data: Sequences, beta: Array, place: tuple[int, int], every: int
) -> None:
    (row, head), (length, n) = place, (data.B.shape[1], data.B.shape[3])
    size = data.v.shape[2] // beta.shape[2]
    columns = _taken_columns(size, n, row * beta.shape[2] + head)
    share, channels = size / len(columns), slice(head * size, (head + 1) * size)
    dtype = data.v.dtype
    S, D, N = np.zeros((n, len(columns)), dtype), np.zeros((n, n * len(columns)), dtype), np.zeros((n, n))
    for steps in pieces(length):
        taken = (np.arange(steps.start, steps.stop) + 1) % every == 0
        decay, b = data.decay(row, steps, channels)[:, :, 0], beta[row, steps, head]
        k, q, u = data.B[row, steps, group], data.C[row, steps, group], data.v[row, steps, channels]
        gate = np.ones_like(u) if data.gate is None else data.gate[row, steps, channels]
        given = tuple(np.ascontiguousarray(x) for x in (decay, b, k, q, u[:, columns]))
        before, error = np.empty((2, *u.shape[:1], n, len(columns)), dtype)
        kernels.answers_of_delta_rule(given, S, D, before, error)
        weight = np.where(taken, np.sum(double(gate) ** 2, axis=1), 0.0)
        kernels.add_noise_of_delta_rule(*(double(x) for x in given[:3]), weight, N, sums["noise"][group])
        b, k = double(b[taken]), double(k[taken])
        sums["rates"][group] += np.sum(b * b)
        sums["kk"][group] += (k.T * b**2) @ k
        sums["reads"][group] += share / size * _gram(before[taken] * b[:, None, None])
        sums["first"][group] += share * _gram(error[taken] * gate[taken][:, None, columns])


def _taken_columns(size: int, n: int, turn: int) -> Array:
    """Return evenly spaced columns of a head, as many as `ANSWERS` allows, others at every turn."""
    count = min(size, max(1, ANSWERS // n**2))
    return (np.arange(count) * size // count + turn) % size


def _gram(x: Array) -> Array:
    """Return the sum of ``x x^T`` over all but the middle of three axes."""
    flat: Any = double(x).swapaxes(0, 1).reshape(x.shape[1], -1)
    return np.asarray(flat @ flat.T)
