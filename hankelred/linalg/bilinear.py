"""Discrete systems as continuous ones: ``z = a (1 + s) / (1 - s)`` with a = 1 or -1.

The unit disc becomes the left half plane, gains stay at their places on the boundary, and Gramians stay what they are,
so that a balanced realisation remains one.
"""

from __future__ import annotations

import numpy as np

from ..checks import Array
from ..errors import NumericalError

# A pole this near to the point that goes to infinity leaves no digits.
NEAR = 1e-12


def image_point(A: Array) -> float:
    """Return the a, 1 or -1, for which no eigenvalue of A lies near -a, which becomes infinity.

    Parameters
    ----------
    A : (n, n) ndarray
        State matrix in discrete time.

    Returns
    -------
    float
        1.0 or -1.0.

    Raises
    ------
    NumericalError
        If there are eigenvalues at both.

    Examples
    --------
    >>> import numpy as np
    >>> image_point(np.diag([-0.999, 0.5]))
    -1.0
    """
    poles = np.linalg.eigvals(A)
    below, above = (float(np.abs(poles - end).min(initial=1.0)) for end in (-1.0, 1.0))
    if max(below, above) < NEAR:
        raise NumericalError("One of the points 1 and -1 must be no pole; got poles at both. Remove one of them.")
    return 1.0 if below >= above or below > 0.1 else -1.0


def continuous_image(A: Array, B: Array, C: Array, D: Array, a: float) -> tuple[Array, Array, Array, Array]:
    """Return the continuous system with the response of a discrete one on the boundary.

    Parameters
    ----------
    A, B, C, D : (n, n), (n, m), (p, n) and (p, m) ndarray
        Discrete system.
    a : float
        From `image_point`.

    Returns
    -------
    A, B, C, D : ndarray
        Continuous system.

    Examples
    --------
    >>> import numpy as np
    >>> one = np.ones((1, 1))
    >>> [float(x[0, 0]) for x in continuous_image(0 * one, one, one, 0 * one, 1.0)[::3]]  # 1 / z
    [-1.0, -1.0]
    """
    identity = np.eye(len(A))
    both = np.linalg.solve(identity + a * A, np.hstack([a * A - identity, np.sqrt(2) * B]))
    left = np.linalg.solve((identity + a * A).T, a * C.T).T
    return both[:, : len(A)], both[:, len(A) :], np.sqrt(2) * left, D - left @ B


def discrete_image(A: Array, B: Array, C: Array, D: Array, a: float) -> tuple[Array, Array, Array, Array]:
    """Return the discrete system of a continuous one: the inverse of `continuous_image`.

    Parameters
    ----------
    A, B, C, D : (n, n), (n, m), (p, n) and (p, m) ndarray
        Continuous system.
    a : float
        From `image_point`.

    Returns
    -------
    A, B, C, D : ndarray
        Discrete system.

    Examples
    --------
    >>> import numpy as np
    >>> lag = [np.array([[x]]) for x in (-1.0, 2.0, 3.0, 4.0)]
    >>> back = continuous_image(*discrete_image(*lag, 1.0), 1.0)
    >>> bool(np.allclose(lag, back, rtol=1e-15))
    True
    """
    identity = np.eye(len(A))
    both = np.linalg.solve(identity - A, np.hstack([identity + A, B]))
    left = np.linalg.solve((identity - A).T, C.T).T
    input = both[:, len(A) :]
    return a * both[:, : len(A)], np.sqrt(2) * input, a * np.sqrt(2) * left, D + C @ input
