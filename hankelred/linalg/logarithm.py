"""The logarithm of an upper triangular matrix, without SciPy's warnings and draws from the global random numbers.

Inverse scaling and squaring: square roots until the matrix is near the identity, then a Padé approximant [1]_. What
square roots lose next to the identity are digits of the diagonal and of the entries above it, which are known in
closed form and put back in.

References
----------
.. [1] A. H. Al-Mohy, N. J. Higham, "Improved inverse scaling and squaring algorithms for the matrix logarithm", SIAM J.
   Sci. Comput. 34, 2012, pp. C153-C169.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import scipy.linalg as sla

from ..checks import Array

# Padé approximants of this degree are exact to rounding up to this norm, table 2.1 of [1].
DEGREE, RADIUS = 10, 0.503

# Square roots after which any matrix in double precision is near the identity.
MOST_ROOTS = 100


def triangular_logarithm(T: Array) -> Array:
    """Return the principal logarithm of a complex upper triangular matrix with poles off the negative real axis."""
    if len(T) == 0:
        return T
    d = np.log(T.diagonal())
    X, root, halvings = _less_identity(T, d, 1.0), T, 0
    while _size(X) > RADIUS and halvings < MOST_ROOTS:
        root, halvings = np.triu(sla.sqrtm(root)), halvings + 1
        X = _less_identity(root, d, 0.5**halvings)
    nodes, weights = np.polynomial.legendre.leggauss(DEGREE)
    identity, L = np.eye(len(T)), np.zeros_like(X)
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        L += sla.solve_triangular(identity + node * X, weight * X, check_finite=False)
    L *= 2.0**halvings
    n = np.arange(len(T))
    L[n, n] = d
    L[n[:-1], n[1:]] = T.diagonal(1) * _slopes(d)
    return L


def _less_identity(root: Array, d: Array, power: float) -> Array:
    """Return a root of T less the identity, with the entries of ``exp(power d) - 1`` on the diagonal."""
    X, n = root.astype(complex), np.arange(len(root))
    X[n, n] = np.expm1(power * d)
    return X


def _size(X: Array) -> float:
    """Return a norm of X as far as its powers show it: that of matrices far from normal says too much."""
    powers = [X]
    for _ in range(4):
        powers.append(powers[-1] @ X)
    norms = [np.linalg.norm(power, 1) ** (1 / k) for k, power in enumerate(powers, 1)]
    return float(min(max(pair) for pair in pairwise(norms[1:])))


def _slopes(d: Array) -> Array:
    """Return ``(d_j - d_i) / (exp(d_j) - exp(d_i))`` of neighbours."""
    half = (d[1:] - d[:-1]) / 2
    middle = np.exp((d[1:] + d[:-1]) / 2)
    return np.where(half == 0, 1.0, half / np.where(half == 0, 1.0, np.sinh(half))) / middle
