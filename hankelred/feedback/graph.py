"""Graph symbols of systems, stable or not, and the distance of two systems as loops see it."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg as sla

from .. import norms
from ..checks import is_discrete
from ..errors import NumericalError, StabilityError
from ..linalg.bilinear import continuous_image, image_point
from ..linalg.riccati import check_squares, coprime_factors, filter_factor
from ..linalg.schur import apply_units, balanced_units
from ..linalg.threads import one_blas_thread
from ..systems import StateSpace, one_system
from ..systems.base import common_dt

# A zero of the determinant this near to the boundary, relative to its size, makes no count.
NEAR = 1e-9


def nu_gap(G: Any, H: Any) -> float:
    """Compute the nu-gap of two systems: how far apart they are for a controller in the loop [1]_.

    ``|(1 + H H^~)^-1/2 (G - H) (1 + G^~ G)^-1/2|`` in the H-infinity norm, or 1 where a winding number says that no
    controller is robust enough to stabilise both on its account.

    Parameters
    ----------
    G, H : system
        Anything `as_system` accepts, stable or not, with the same inputs, outputs and dt.

    Returns
    -------
    float
        From 0 to 1. A controller whose stability margin with G exceeds it stabilises H too. Units of inputs and
        outputs matter.

    Raises
    ------
    InputError
        If sizes or sampling times differ.
    StabilityError
        If an unstable or marginal pole is uncontrollable or unobservable.

    References
    ----------
    .. [1] G. Vinnicombe, "Frequency domain uncertainty and the graph topology", IEEE Trans. Automatic Control 38,
       1993, pp. 1371-1383.

    Examples
    --------
    >>> import hankelred as hr
    >>> from hankelred.feedback import nu_gap
    >>> integrator, slow = (hr.StateSpace([[-a]], [[1.0]], [[1.0]]) for a in (0.0, 0.1))
    >>> print(f"{nu_gap(integrator, slow):.4f}")  # a / sqrt(1 + a^2), at s = 0
    0.0995
    """
    first, second = (one_system(x, name).dense() for x, name in ((G, "G"), (H, "H")))
    dt = common_dt(first, second)
    with one_blas_thread(first.n + second.n):
        if is_discrete(dt):
            a = image_point(sla.block_diag(first.A, second.A).reshape((first.n + second.n,) * 2))
            first, second = (StateSpace.trusted(*continuous_image(x.A, x.B, x.C, x.D, a), 0) for x in (first, second))
        right, (_, left) = right_graph_symbol(first), (left_graph_symbol(x) for x in (first, second))
        if not _winds_to_zero(right, right_graph_symbol(second)):
            return 1.0
    C, D = (np.vstack([x[first.p :], -x[: first.p]]) for x in (right.C, right.D))  # [M; -N]
    turned = StateSpace.trusted(right.A, right.B, C, D, 0)
    return min(1.0, float(norms.hinf_norm(cascade(left, turned), rtol=1e-10)))


def left_graph_symbol(G: StateSpace) -> StateSpace:
    """Return ``[N, M]`` with ``G = M^-1 N``, stable and ``N N^~ + M M^~ = I``, in continuous time."""
    A, B, C = apply_units(balanced_units(G.A, G.B, G.C), G.A, G.B, G.C)
    check_squares(A, B, C, G.D)
    try:
        found = filter_factor(A, B, C, G.D, False)
    except NumericalError as error:
        raise StabilityError(
            f"Unstable and marginal poles must be controllable and observable; got {G!r}, which no loop stabilises. "
            f"Take such poles out first."
        ) from error
    return StateSpace.trusted(*coprime_factors(A, B, C, G.D, found.K, found.middle), 0)


def right_graph_symbol(G: StateSpace) -> StateSpace:
    """Return ``[N; M]`` with ``G = N M^-1``, stable and ``N^~ N + M^~ M = I``, in continuous time."""
    return _transposed(left_graph_symbol(_transposed(G)))


def cascade(G: StateSpace, H: StateSpace) -> StateSpace:
    """Return ``G H``."""
    A = np.block([[G.A, G.B @ H.C], [np.zeros((H.n, G.n)), H.A]])
    B, C = np.vstack([G.B @ H.D, H.B]), np.hstack([G.C, G.D @ H.C])
    return StateSpace.trusted(A, B, C, G.D @ H.D, G.dt)


def _transposed(G: StateSpace) -> StateSpace:
    """Return the system with the conjugate transposes of all matrices."""
    A, B, C, D = (np.ascontiguousarray(x.conj().T) for x in (G.A, G.C, G.B, G.D))
    return StateSpace.trusted(A, B, C, D, G.dt)


def _winds_to_zero(G: StateSpace, H: StateSpace) -> bool:
    """Tell whether ``det(H^~ G)`` of two right graph symbols has no zero on the boundary and winds round 0 no time.

    H^~ has as many antistable poles as H has states, and G has none: as many zeros must be antistable.
    """
    gain = H.D.conj().T @ G.D
    if np.linalg.svd(gain, compute_uv=False).min(initial=1.0) < NEAR:  # both symbols have norm 1
        return False
    A = np.block([[-H.A.conj().T, -H.C.conj().T @ G.C], [np.zeros((G.n, H.n)), G.A]])
    B, C = np.vstack([-H.C.conj().T @ G.D, G.B]), np.hstack([H.B.conj().T, H.D.conj().T @ G.C])
    zeros = np.linalg.eigvals(A - B @ np.linalg.solve(gain, C))
    on_boundary = np.any(np.abs(zeros.real) <= NEAR * np.abs(zeros))
    return bool(np.count_nonzero(zeros.real > 0) == H.n and not on_boundary)
