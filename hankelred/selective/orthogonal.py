"""Orthonormal bases of a state space that lose least of what is written into it and read from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import scipy.linalg as sla

from ..checks import EPS, Array
from ..linalg.compiled import Kernels
from ..linalg.hankel_svd import HankelSVD
from ..linalg.semidefinite import covariance_factors
from ..order import rounding_floor

kernels = Kernels("hankelred.linalg._dense_kernels")

# Bases that are refined, the best of the candidates; where those differ in quality, so do local minima.
REFINED = 2

# Charts of a refinement, iterations in each, and the relative gain below which another is not worth it. On random
# covariances over six decades that ends within 1e-6 of a minimum up to n = 16, within a tenth at n = 128 and three
# quarters of the states, in a second; the best candidate is up to twice to three times as large.
CHARTS, ITERATIONS, GAIN = 3, 60, 1e-4

# Directions of kept states below this share of the largest tell nothing of others: single precision is right to 1e-7.
RESOLVED = 1e-6

# Covariances written and read, P and Q: what a projector E leaves out of them is tr(Q E P E).
Pair = tuple[Array, Array]


def orthonormal_basis(pairs: Sequence[Pair], order: int) -> Array:
    """Return V (n, order) with ``V^T V = I`` and small ``f = sum of tr(Q E P E)``, ``E = I - V V^T``, over pairs P, Q.

    The least f found by descents from the best of several bases, none of which has less. The columns are those of
    decreasing share in the first P, the largest entry of each positive.
    """
    pairs = _scaled(pairs)
    candidates = sorted((V for pair in pairs for V in _candidates(*pair, order)), key=lambda V: loss(pairs, V))
    V = min((_lessened(pairs, V) for V in candidates[:REFINED]), key=lambda V: loss(pairs, V))
    V = V @ sla.eigh(V.T @ pairs[0][0] @ V)[1][:, ::-1]
    return np.asarray(V * kernels.phases(V, np.ones(order)))


def bases_read_apart(pairs: Sequence[Pair], order: int) -> tuple[Array, Array]:
    """Return T and V, (n, order), with ``V^T V = V^T T = I``: what is written is kept in V, and read as T tells.

    T leaves least of the first P unread for its V, ``tr(Q E P E^T)``, ``E = I - T V^T``; of further pairs V leaves out
    ``tr(Q F P F)``, ``F = I - V V^T``. V is the best of that of `orthonormal_basis`, of what is written most, and of
    the rows of balanced truncation, which are the best there are without further pairs.
    """
    scaled = _scaled(pairs)
    P, Q = scaled[0]
    *_, written = _candidates(P, Q, order)
    choices = [orthonormal_basis(pairs, order), sla.eigh(P)[1][:, ::-1][:, :order], written]

    def left(V: Array) -> float:
        E = np.eye(len(V)) - _reading_basis(P, V) @ V.T
        return float(np.vdot(E, Q @ E @ P)) + loss(scaled[1:], V)

    V = min(choices, key=left)
    return _reading_basis(P, V), V


def _reading_basis(P: Array, V: Array) -> Array:
    """Return T with ``V^T T = I`` that makes of the states kept in V the best guess of all."""
    return V + _left_out(V) @ P @ V @ sla.pinvh(V.T @ P @ V, rtol=RESOLVED)


def loss(pairs: Sequence[Pair], V: Array) -> float:
    """Return ``sum of tr(Q E P E)``, ``E = I - V V^T``."""
    E = _left_out(V)
    return sum(float(np.vdot(E, Q @ E @ P)) for P, Q in pairs)


def _left_out(V: Array) -> Array:
    return np.eye(len(V)) - V @ V.T


def _scaled(pairs: Sequence[Pair]) -> list[Pair]:
    """Return symmetric matrices with entries up to 1, pairs with the weights they had to each other."""
    sizes = [(np.abs(P).max(initial=0.0) or 1.0, np.abs(Q).max(initial=0.0) or 1.0) for P, Q in pairs]
    logs = np.array([np.log(p) + np.log(q) for p, q in sizes])  # products may overflow
    weights = np.exp(logs - logs.max())
    halves = [((P + P.T) / (2 * p), (Q + Q.T) / (2 * q)) for (P, Q), (p, q) in zip(pairs, sizes, strict=True)]
    return [(P * weight, Q) for (P, Q), weight in zip(halves, weights, strict=True)]


def _candidates(P: Array, Q: Array, order: int) -> Iterator[Array]:
    """Yield what P, Q and both are largest on, and what balanced truncation would read and write."""
    product = P @ Q
    for X in (P, Q, product + product.T):
        yield sla.eigh(X)[1][:, ::-1][:, :order]
    hankel = HankelSVD(*covariance_factors(P, Q))
    rank = min(order, int(np.sum(hankel.values > rounding_floor(hankel.values))))
    if rank:
        T, Ti = hankel.bases(slice(0, rank), rank)
        for basis in (T, Ti.T):
            yield _completed(sla.qr(basis, mode="economic")[0], P + Q, order)


def _completed(V: Array, G: Array, order: int) -> Array:
    """Return V and orthonormal columns beside it that G is largest on."""
    E = _left_out(V)
    rest = E @ (G / (np.trace(G) or 1.0)) @ E + E  # at least 1 beside V, 0 on it
    return np.hstack([V, sla.eigh(rest)[1][:, ::-1][:, : order - V.shape[1]]])


def _lessened(pairs: Sequence[Pair], V: Array) -> Array:
    """Return the end of a descent from V, chart after chart."""
    floor = (len(V) * EPS) ** 2 * sum(np.linalg.norm(P) * np.linalg.norm(Q) for P, Q in pairs)
    before = loss(pairs, V)
    for _ in range(CHARTS):
        if before <= floor or V.shape[1] == len(V):
            break
        W = _descended(pairs, V, before)
        after = loss(pairs, W)
        if not after < before:
            break
        V, gain, before = W, before - after, after
        if gain <= GAIN * before:
            break
    return V


def _descended(pairs: Sequence[Pair], V: Array, unit: float) -> Array:
    """Return an orthonormal basis of ``V + U (D ∘ Z)``, U beside V, where quasi-Newton steps in Z lessen f / unit.

    With ``G = sum of Q E P + P E Q``, the derivative of f by E, that by W is ``-2 E G W (W^T W)^-1``. U and V
    diagonalise G in their spaces, and D are the roots of the inverse second derivatives there, without what the entries
    of Z share.
    """
    import scipy.optimize  # takes long to import, and is needed here only

    G = _slope(pairs, _left_out(V))
    U = sla.qr(V)[0][:, V.shape[1] :]
    kept, left = sla.eigh(V.T @ G @ V), sla.eigh(U.T @ G @ U)
    V, U = V @ kept[1], U @ left[1]
    curvature = np.abs(kept[0] - left[0][:, None])
    for P, Q in pairs:
        (p, q), (pu, qu) = ([np.sum(W * (X @ W), axis=0) for X in (P, Q)] for W in (V, U))
        curvature = curvature + np.outer(pu, q) + np.outer(qu, p)
    D = 1 / np.sqrt(curvature + EPS * curvature.max())

    def f(z: Array) -> tuple[float, Array]:
        W, R = sla.qr(V + U @ (D * z.reshape(D.shape)), mode="economic")
        E = _left_out(W)
        G = _slope(pairs, E)
        slope = sla.solve_triangular(R, (E @ (G @ W)).T).T  # W (W^T W)^-1 = its Q times R^-T
        return float(np.vdot(E, G)) / (2 * unit), (D * (U.T @ slope)).ravel() * (-2 / unit)

    options: Any = {"maxiter": ITERATIONS, "maxfun": 2 * ITERATIONS, "ftol": 1e-8, "gtol": 1e-9, "maxcor": 20}
    found = scipy.optimize.minimize(f, np.zeros(D.size), jac=True, method="L-BFGS-B", options=options)
    return np.asarray(sla.qr(V + U @ (D * found.x.reshape(D.shape)), mode="economic")[0])


def _slope(pairs: Sequence[Pair], E: Array) -> Array:
    X = np.zeros_like(E)
    for P, Q in pairs:
        X += Q @ E @ P
    return X + X.T
