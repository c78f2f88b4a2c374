"""From a balanced realisation to the small matrices of a reduced model."""

from __future__ import annotations

import numpy as np
import scipy.linalg as sla

from ..hankel import Factored
from ..parts import Matrices


def residualised(found: Factored, order: int) -> tuple[np.ndarray, np.ndarray, Matrices]:
    """Return bases of `order` balanced states and the singular perturbation, exact at s = 0 or z = 1.

    The states after the first `order` follow the others without delay: ``A11 - A12 A22^-1 A21`` in continuous
    time [1]_, the same with ``A22 - I`` in discrete time.

    References
    ----------
    .. [1] Y. Liu, B. D. O. Anderson, "Singular perturbation approximation of balanced systems", Int. J. Control
       50, 1989, pp. 1379-1405.
    """
    rank = found.rank - found.kept
    T, Ti, minimal = found.reduced(rank)
    kept, fast = slice(None, order), slice(order, None)
    A22 = minimal.A[fast, fast]
    if len(A22) == 0:
        return T, Ti, minimal
    if found.system.is_discrete:
        A22 = A22 - (1.0 - minimal.shift) * np.eye(len(A22))
    follow = sla.solve(A22, np.hstack([minimal.A[fast, kept], minimal.B[fast]]))
    states, inputs = np.split(follow, [order], axis=1)
    reduced = Matrices(
        minimal.A[kept, kept] - minimal.A[kept, fast] @ states,
        minimal.B[kept] - minimal.A[kept, fast] @ inputs,
        minimal.C[:, kept] - minimal.C[:, fast] @ states,
        minimal.D - minimal.C[:, fast] @ inputs,
        minimal.shift,
        None if minimal.terms is None else minimal.terms[kept, kept],
    )
    return T[:, kept], Ti[kept], reduced
