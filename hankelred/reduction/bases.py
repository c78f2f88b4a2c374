"""From a balanced realisation to the small matrices of a reduced model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.linalg as sla

from ..checks import Array
from ..hankel import Factored
from ..parts import Matrices


def residualised(found: Factored, order: int) -> tuple[Array, Array, Matrices]:
    """Return bases of `order` balanced states and the singular perturbation, exact at s = 0 or z = 1.

    The states after the first `order` follow the others without delay [1]_.

    References
    ----------
    .. [1] Y. Liu, B. D. O. Anderson, "Singular perturbation approximation of balanced systems", Int. J. Control
       50, 1989, pp. 1379-1405.
    """
    rank = found.rank - found.kept
    T, Ti, minimal = found.reduced(rank)
    if order == rank:
        return T, Ti, minimal
    A, B, C, D, shift, terms = minimal
    one = 1.0 - shift if found.system.is_discrete else 0.0
    small = without_delay(A, B, C, D, range(order), range(order, rank), one)
    return T[:, :order], Ti[:order], Matrices(*small, shift, None if terms is None else terms[:order, :order])


def without_delay(
    A: Array, B: Array, C: Array, D: Array, kept: Sequence[int], fast: Sequence[int], point: float
) -> tuple[Array, Array, Array, Array]:
    """Return the model whose `fast` states follow those `kept` at once; it has the response of the whole at `point`.

    ``A11 - A12 (A22 - point)^-1 A21``, and B, C and D likewise.
    """
    A12, C2 = A[np.ix_(kept, fast)], C[:, fast]
    right = np.hstack([A[np.ix_(fast, kept)], B[fast]])
    follow = sla.solve(A[np.ix_(fast, fast)] - point * np.eye(len(fast)), right)
    states, inputs = np.split(follow, [len(kept)], axis=1)
    return A[np.ix_(kept, kept)] - A12 @ states, B[kept] - A12 @ inputs, C[:, kept] - C2 @ states, D - C2 @ inputs
