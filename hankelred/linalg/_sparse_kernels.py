"""Loops of `engines`: LU factors with few entries in a row, of matrices with a symmetric pattern.

Row k of the lower triangle, and column k of the upper one, have entries where the tree of elimination is met on the way
up from the entries of row k [1]_. Both triangles share their places: column j of the lower one, and row j of the upper
one, are those from ``starts[j]`` to ``starts[j + 1]``, the indices increasing; ``rows`` holds for every k the j of its
row, increasing.

References
----------
.. [1] J. W. H. Liu, "The role of elimination trees in sparse factorization", SIAM J. Matrix Anal. Appl. 11, 1990,
   pp. 134-172.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..checks import Array
from .compiled import kernel


@kernel
def count_entries(indptr: Array, indices: Array, ahead: Array, counts: Array) -> None:
    """Count the entries of each row and column of a triangle without its diagonal, both (n,) and zero before."""
    n = len(ahead)
    parent, seen = np.full(n, -1, np.int64), np.empty(n, np.int64)
    for k in range(n):
        seen[k] = k
        for place in range(indptr[k], indptr[k + 1]):
            i = indices[place]
            while i < k and seen[i] != k:
                if parent[i] < 0:
                    parent[i] = k
                seen[i] = k
                ahead[k] += 1
                counts[i] += 1
                i = parent[i]


@kernel
def find_places(indptr: Array, indices: Array, starts: Array, places: Array, row_starts: Array, rows: Array) -> None:
    """Write the indices of columns into `places` and those of rows into `rows`, for the counts of `count_entries`."""
    n = len(starts) - 1
    parent, seen, filled = np.full(n, -1, np.int64), np.empty(n, np.int64), starts[:-1].copy()
    for k in range(n):
        seen[k] = k
        end = row_starts[k]
        for place in range(indptr[k], indptr[k + 1]):
            i = indices[place]
            while i < k and seen[i] != k:
                if parent[i] < 0:
                    parent[i] = k
                seen[i] = k
                rows[end] = i
                end += 1
                places[filled[i]] = k
                filled[i] += 1
                i = parent[i]
        rows[row_starts[k] : end].sort()


@kernel
def factor_thin(
    indptr: Array,
    indices: Array,
    columns: Array,
    transposed: Array,
    starts: Array,
    places: Array,
    row_starts: Array,
    rows: Array,
    lower: Array,
    upper: Array,
    pivots: Array,
    most: float,
) -> bool:
    """Factor a matrix with pivots on its diagonal, row by row; its columns and those of its transpose come in.

    False where a pivot is zero, or a multiplier larger than `most`.
    """
    n = len(pivots)
    u, l, filled = np.zeros(n, columns.dtype), np.zeros(n, columns.dtype), starts[:-1].copy()
    for k in range(n):
        pivot = columns[0] * 0
        for place in range(indptr[k], indptr[k + 1]):
            i = indices[place]
            if i < k:
                u[i], l[i] = columns[place], transposed[place]
            elif i == k:
                pivot = columns[place]
        for place in range(row_starts[k], row_starts[k + 1]):
            j = rows[place]
            up, down = u[j], l[j] / pivots[j]
            u[j] = l[j] = 0
            if abs(down) > most:
                return False
            for t in range(starts[j], filled[j]):
                u[places[t]] -= lower[t] * up
                l[places[t]] -= upper[t] * down
            pivot -= down * up
            lower[filled[j]], upper[filled[j]] = down, up
            filled[j] += 1
        if not abs(pivot) > 0:
            return False
        pivots[k] = pivot
    return True


@kernel
def solve_thin(starts: Array, places: Array, lower: Array, upper: Array, pivots: Array, X: Array) -> None:
    """Overwrite the rows of X, (k, n), by solutions with the matrix that `factor_thin` has taken."""
    n = len(pivots)
    for x in X:
        for j in range(n):
            for t in range(starts[j], starts[j + 1]):
                x[places[t]] -= lower[t] * x[j]
        for j in range(n - 1, -1, -1):
            left = x[j]
            for t in range(starts[j], starts[j + 1]):
                left -= upper[t] * x[places[t]]
            x[j] = left / pivots[j]


@kernel
def solve_thin_adjoint(starts: Array, places: Array, lower: Array, upper: Array, pivots: Array, X: Array) -> None:
    """Overwrite the rows of X, (k, n), by solutions with the adjoint of that matrix."""
    n = len(pivots)
    for x in X:
        for j in range(n):
            x[j] /= np.conj(pivots[j])
            for t in range(starts[j], starts[j + 1]):
                x[places[t]] -= np.conj(upper[t]) * x[j]
        for j in range(n - 1, -1, -1):
            left: Any = x[j]
            for t in range(starts[j], starts[j + 1]):
                left -= np.conj(lower[t]) * x[places[t]]
            x[j] = left
