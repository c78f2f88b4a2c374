"""Which states link inputs to outputs where no Gramian exists: of unstable and marginal poles.

``A - s I`` has the uncontrollable and unobservable states of A, whatever s. Poles that are equal or not to be separated
make a group, which is decoupled from the others, moved into the left half plane and balanced there. How far it is
moved decides what is seen: less than the distance of its poles drowns the others in the slowest one, much more makes
all poles look alike. Several distances are tried, and the largest rank counts.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg as sla

from ..checks import EPS, Array, check_result
from ..errors import NumericalError
from .hankel_svd import HankelSVD, norm_estimate, padded
from .schur import separated
from .triangular import schur_factors, schur_form

# Poles nearer than this, relative to the norm of the matrix, are in one group; so are those that can only be separated
# by bases with a larger norm than this.
NEAR, LARGEST_BASIS = 1e-8, 1e5
# What data that differ in their last digits change counts as so much rounding; a pole is certain to as much.
ROUNDINGS = 100.0
# Roundings of a state's inputs and outputs, in n eps: up to 1 was seen over random systems.
STEPS = 10.0

System = tuple[Array, Array, Array]
Sizes = tuple[float, float, float]


def pole_groups(poles: Array, reach: Array | float, conjugates: bool = False) -> Array:
    """Return the number of the group of each pole: one that reaches another is in the same group.

    Parameters
    ----------
    poles : (n,) complex ndarray
        Poles.
    reach : (n,) ndarray or float
        Distance up to which each pole is joined with others.
    conjugates : bool, default False
        Whether poles are also joined with those that have their conjugates within reach.

    Returns
    -------
    (n,) int ndarray
        Numbers from 0 on.

    Examples
    --------
    >>> import numpy as np
    >>> print(pole_groups(np.array([1j, 2.0, 2.1, -1j]), 0.2), pole_groups(np.array([1j, -1j]), 0.2, conjugates=True))
    [0 1 1 2] [0 0]
    """
    from scipy.sparse.csgraph import connected_components  # most programs never need it

    reach = np.broadcast_to(reach, poles.shape)
    reach = np.maximum(reach, reach[:, None])
    near = np.abs(poles[:, None] - poles) <= reach
    if conjugates:
        near |= np.abs(poles[:, None] - poles.conj()) <= reach
    return np.asarray(connected_components(near, directed=False)[1])


def linked_bases(given: System, nearby: System, sizes: Sizes, rtol: float = 0.0) -> tuple[Array, Array]:
    """Return bases X and Y, ``Y X = I``, of the states of ``(A, B, C)`` that link inputs to outputs.

    Parameters
    ----------
    given : tuple of ndarray
        ``(A, B, C)``, A a Schur form with poles anywhere.
    nearby : tuple of ndarray
        The same of data that differ in their last digits, on the same number of states.
    sizes : tuple of float
        What A, B and C are certain to, in rounding units: the norms of what they were computed from.
    rtol : float, default 0
        Share of the largest value of a group up to which a value is dropped.

    Returns
    -------
    X, Y : (n, k) and (k, n) ndarray
        Real where A is.

    Examples
    --------
    >>> import numpy as np
    >>> twice = np.zeros((2, 2)), np.ones((2, 1)), np.array([[1.0, 2.0]])  # two integrators in parallel
    >>> X, Y = linked_bases(twice, twice, (1.0, 1.0, 1.0))
    >>> print(f"{(twice[2] @ X @ Y @ twice[1])[0, 0]:.1f} / s")
    3.0 / s
    """
    real = given[0].dtype.kind != "c"
    (T, B, C, Z), other = _complex(*given), _complex(*nearby)[:3]
    poles, near = np.diagonal(T), np.diagonal(other[0])
    groups = _groups(T, sizes[0], real)
    owner = groups[np.abs(near[:, None] - poles).argmin(axis=1)]
    X, Y = [np.zeros((len(T), 0), given[0].dtype)], [np.zeros((0, len(T)), given[0].dtype)]
    for group in np.unique(groups):
        chosen = groups == group
        upper = real and bool(np.all(poles[chosen].imag > 0))
        if real and np.all(poles[chosen].imag < 0):
            continue
        x, y = _linked((T, B, C), chosen, other, owner == group, sizes, rtol)
        if real:
            x, y = _real_bases(Z @ x, y @ Z.conj().T, x.shape[1] * (1 + upper))
        X.append(x)
        Y.append(y)
    return np.hstack(X), np.vstack(Y)


def _linked(
    given: System, chosen: Array, nearby: System, near: Array, sizes: Sizes, rtol: float
) -> tuple[Array, Array]:
    """Return the bases of the linked states of a group, as the distance shows them that shows most."""
    N, X, Y = _isolated(given[0], chosen)
    forms, inner = [N], [(Y @ given[1], given[2] @ X)]
    certain = near.sum() == chosen.sum()
    if certain:
        n, x, y = _isolated(nearby[0], near)
        forms, inner = [N, n], [*inner, (y @ nearby[1], nearby[2] @ x)]
    size, reached, seen = sizes[0], sizes[1] * np.linalg.norm(Y, 2), sizes[2]  # X is orthonormal
    forms = [form - form.trace() / len(form) * np.eye(len(form)) for form in forms]
    best, most, clearest = (X[:, :0], Y[:0]), 0, np.inf
    for distance in _distances(forms, size):
        moved = (form - distance * np.eye(len(form)) for form in forms)
        svd, *again = (HankelSVD(*schur_factors(form, B, C, False)) for form, (B, C) in zip(moved, inner, strict=True))
        floor = reached * norm_estimate(svd.R) + seen * norm_estimate(svd.S)
        floor *= STEPS * len(given[0]) * EPS / np.sqrt(2 * distance)
        for other in again:
            values = padded(other.values, len(svd.values))
            floor += ROUNDINGS * float(np.abs(values - svd.values).max(initial=0.0))
        rank = int(np.count_nonzero(svd.values > max(floor, rtol * svd.values.max(initial=0.0))))
        if rank == len(forms[0]):
            return X, Y
        if rank and (-rank, floor / svd.values[rank - 1]) < (-most, clearest):
            most, clearest = rank, floor / svd.values[rank - 1]
            T, Ti = svd.bases(slice(0, rank), rank)
            best = X @ T, Ti @ Y
    return best


def _distances(forms: list[Array], size: float) -> list[float]:
    """Return how far to move a group: by its poles' distances, by the norm of what links them, between, and far."""
    if size == 0:
        return [1.0]
    spread = max(float(np.abs(np.diagonal(form)).max()) for form in forms)
    least = max(spread, ROUNDINGS * EPS * size)
    most = max(float(np.linalg.norm(forms[0])), least)
    check_result("Unstable poles, moved to be stable,", 2 * size, hint="Scale time.")
    return [2 * x for x in (least, np.sqrt(least) * np.sqrt(most), most, size)]


def _groups(T: Array, size: float, real: bool) -> Array:
    """Return the number of the group of each pole, so that bases of a moderate norm separate the groups."""
    poles = np.diagonal(T)
    apart, groups = np.abs(poles[:, None] - poles), pole_groups(poles, NEAR * size)
    while len(numbers := np.unique(groups)) > 1:
        found = [_apart(T, apart, groups == number) for number in numbers]
        worst = int(np.argmax([size for size, _ in found]))
        if not found[worst][0] > LARGEST_BASIS:
            break
        groups[groups == numbers[worst]] = groups[found[worst][1]]
    if real:  # a group that touches the real axis holds the conjugates of its poles
        partner = np.abs(poles[:, None] - poles.conj()).argmin(axis=1)
        for number in numbers:
            inside = groups == number
            if np.any(poles[inside].imag > 0) and np.any(poles[inside].imag <= 0):
                groups[partner[inside]] = number
    return groups


def _apart(T: Array, apart: Array, chosen: Array) -> tuple[float, int]:
    """Return the norm of the basis that separates a group, infinite inside its own spread, and the nearest pole."""
    distance = np.where(chosen, np.inf, apart[chosen].min(axis=0))
    nearest = int(distance.argmin())
    spread = float(apart[np.ix_(chosen, chosen)].max())
    try:
        size = float(np.linalg.norm(_isolated(T, chosen)[2], 2))
    except NumericalError:
        size = np.inf
    return (np.inf if distance[nearest] <= spread else size), nearest


def _isolated(T: Array, chosen: Array) -> tuple[Array, Array, Array]:
    """Return the Schur form of some poles and both bases that decouple their states from the others."""
    T, Q, Y = separated(T, chosen)
    k = len(Y)
    X = Q[:, :k]
    return T[:k, :k], X, X.conj().T - Y @ Q[:, k:].conj().T


def _complex(A: Array, B: Array, C: Array) -> tuple[Array, Array, Array, Array]:
    """Return a system on a complex Schur form, and the unitary matrix that leads to it."""
    T, Z = schur_form(A, np.complex128)
    return T, Z.conj().T @ B, C @ Z, Z


def _real_bases(X: Array, Y: Array, width: int) -> tuple[Array, Array]:
    """Return real bases of the space of complex ones and their conjugates."""
    X = sla.svd(np.hstack([X.real, X.imag]))[0][:, :width]
    Y = sla.svd(np.vstack([Y.real, Y.imag]))[2][:width]
    return X, np.linalg.solve(Y @ X, Y)
