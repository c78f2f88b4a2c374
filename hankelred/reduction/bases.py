"""From a balanced realisation to the small matrices of a reduced model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..checks import Array
from ..errors import NumericalError
from ..hankel import Factored
from ..linalg.descriptor import equilibrated
from ..rounding import Matrices


def residualised(found: Factored, order: int, point: float) -> tuple[Array, Array, Matrices]:
    """Return bases of `order` balanced states and the singular perturbation, exact at s = 0, z = 1 or z = -1.

    The states after the first `order` follow the others without delay [1]_.

    References
    ----------
    .. [1] Y. Liu, B. D. O. Anderson, "Singular perturbation approximation of balanced systems", Int. J. Control
       50, 1989, pp. 1379-1405.
    """
    rank = found.rank - found.kept
    T, Ti, small = found.reduced(rank)
    discrete = found.system.is_discrete
    if order < rank:
        A, B, C, D, shift, terms = small
        slow = without_delay(A, B, C, D, range(order), range(order, rank), point - shift)
        small = Matrices(*slow, shift, None if terms is None else terms[:order, :order])
        T, Ti = T[:, :order], Ti[:order]
    unseen = found.weighting is not None and found.rank < found.system.order  # by the weighting: it has a gain too
    if unseen or order == 0:  # without states D is that gain, to more digits than A22 keeps of poles near z = 1
        omega = np.array([np.pi if point < 0 else 0.0])
        D = matching_feedthrough(small.D, found.parts.stable_response(omega), small.response(omega, discrete))
        small = small._replace(D=D)
    return T, Ti, small


def matching_feedthrough(D: Array, given: Array, found: Array) -> Array:
    """Return D of a model so that its response at one frequency becomes the one given."""
    missing = (given - found)[0]
    return D + (missing if D.dtype.kind == "c" else missing.real)


def without_delay(
    A: Array, B: Array, C: Array, D: Array, kept: Sequence[int], fast: Sequence[int], point: float
) -> tuple[Array, Array, Array, Array]:
    """Return the model whose `fast` states follow those `kept` at once; it has the response of the whole at `point`.

    ``A11 - A12 (A22 - point)^-1 A21``, and B, C and D likewise.
    """
    A12, C2 = A[np.ix_(kept, fast)], C[:, fast]
    right = np.hstack([A[np.ix_(fast, kept)], B[fast]])
    pencil = A[np.ix_(fast, fast)] - point * np.eye(len(fast))
    rows, columns = (scale[:, None] for scale in equilibrated(pencil))
    try:
        follow = columns * np.linalg.solve(rows * pencil * columns.T, rows * right)
    except np.linalg.LinAlgError as error:
        raise NumericalError(
            f"The states left out must have no pole at {point:g}; got one, with which they follow no other state. "
            f"Choose another order, or truncate."
        ) from error
    states, inputs = np.split(follow, [len(kept)], axis=1)
    return A[np.ix_(kept, kept)] - A12 @ states, B[kept] - A12 @ inputs, C[:, kept] - C2 @ states, D - C2 @ inputs
