"""Balanced stochastic truncation: errors count relative to the gain of the system at each frequency."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import order as orders
from ..checks import Array, check_number
from ..errors import InputError, NumericalError
from ..linalg.bilinear import continuous_image, image_point
from ..linalg.gain import largest_gain, peak_gain
from ..linalg.riccati import check_squares, covariance_factor, in_last_digits, passive_factor
from ..parts import DenseParts, DiagonalParts
from ..rounding import sample_frequencies
from .base import Pair, Weighting, riccati_pair, riccati_part

Inverse = tuple[Array, Array, Array, Array]


class Stochastic(Weighting):
    """Balance for a small relative error: valleys of the gain count as much as peaks [1]_ [2]_.

    P is the controllability Gramian, Q the least solution of the Riccati equation of the spectral factor W,
    ``W^~ W = G G^~``. The hsv are those of the phase ``W^-~ G``, at most 1; those that equal 1 belong to zeros in the
    right half plane, and are kept. The relative error ``|(G G^H)^-1/2 (G - Gr)|`` is at most
    ``prod (1 + hsv) / (1 - hsv) - 1`` over the tail, at every frequency [3]_. Of a system with more outputs than inputs
    it is taken from the other side, ``|(G - Gr) (G^H G)^-1/2|``. In discrete time the models are the images of
    continuous ones, for which that is a theorem: they match the system at z = -1 instead of infinity, and at z = 1 with
    ``match_dc``.

    Parameters
    ----------
    beta : float, default 0
        Gain that counts as none: the system is taken for ``[G, beta I]``, errors count relative to
        ``sqrt(|G|^2 + beta^2)``. Needed in continuous time where D has no full rank, and for zeros on the boundary.

    References
    ----------
    .. [1] U. B. Desai, D. Pal, "A transformation approach to stochastic model reduction", IEEE Trans. Automatic
       Control 29, 1984, pp. 1097-1100.
    .. [2] A. Varga, K. H. Fasol, "A new square-root balancing-free stochastic truncation model reduction algorithm",
       Proc. 12th IFAC World Congress, 1993, vol. 7, pp. 153-156.
    .. [3] M. Green, "A relative error bound for balanced stochastic truncation", IEEE Trans. Automatic Control 33,
       1988, pp. 961-965.

    Examples
    --------
    >>> import hankelred as hr
    >>> from hankelred.weighting import Stochastic
    >>> lead = hr.StateSpace([[-1.0]], [[1.0]], [[1.0]], [[1.0]])  # (s + 2) / (s + 1)
    >>> print(f"{hr.hankel_singular_values(lead, Stochastic())[0]:.6f}")
    0.333333
    """

    name = "stochastic"
    quantity = "Hankel singular values of the phase of the system"
    bounded = "relative error"
    at_nyquist = True
    beta: float

    def __init__(self, beta: float = 0.0) -> None:
        self._set(False, beta=check_number(beta, "beta", least=0.0))

    def pair(self, parts: DenseParts | DiagonalParts) -> Pair:
        """Return factors of the Gramian of one side and the Riccati solution of the other."""
        coordinates, inner, D = riccati_part(parts, self.beta)
        check_squares(np.abs(inner.B).max(initial=0.0) * np.abs(inner.C))  # of G G^H
        wide = self.beta > 0 or len(D) <= D.shape[1]
        part, D = (inner, D) if wide else (inner.dual(), D.conj().T)
        try:
            point = image_point(part.T) if part.discrete else None
            (found, inverse), (nearby, _) = (
                _factors(A, B, C, d, self.beta, point)
                for A, B, C, d in ((part.T, part.B, part.C, D), in_last_digits(part.T, part.B, part.C, D))
            )
        except NumericalError as error:
            raise self._error(parts, D) from error
        if not wide:
            found, nearby = ((part.native(R.conj().T), part.native(S).conj().T) for S, R in (found, nearby))

        def change(norm: float, *_: Any) -> float:  # of a model, relative to the least gain of the system
            return norm * peak_gain(*inverse, False)[0]

        def seen(given: Array, model: Array, hsv: Array) -> float:
            if not wide:
                given, model = given.conj().swapaxes(1, 2), model.conj().swapaxes(1, 2)
            return _seen(given, model, self.beta)

        zeros = np.linalg.eigvals(inverse[0])
        zeros = zeros if point is None else point * (1 + zeros) / (1 - zeros)
        poles = np.concatenate([parts.poles[parts.kept :], zeros if wide else zeros.conj()])
        of: dict[str, Any] = {"change": change, "seen": seen, "poles": poles}
        return riccati_pair(coordinates, found, nearby, gain=1.0, bound=_relative, **of)

    def _error(self, parts: DenseParts | DiagonalParts, D: Array) -> InputError:
        """Say what has no full rank: D, or the response somewhere."""
        discrete = parts.system.is_discrete
        omega = sample_frequencies(parts.poles[parts.kept :], discrete, True)
        response = parts.stable_response(omega)
        every = np.linalg.svd(response, compute_uv=False)
        gains = np.hypot(every[:, -1], self.beta)
        at_end = float(np.linalg.svd(D, compute_uv=False)[-1]) if D.size else 0.0
        return InputError(
            f"D must have full rank in continuous time, and the response at all frequencies; got a least singular "
            f"value of {at_end:.3g} in D, and of {gains.min():.3g} at {omega[gains.argmin()]:.6g}, where the largest "
            f"gain is {every.max():.3g}. Pass a beta > 0, the gain that counts as none."
        )


def _factors(
    A: Array, B: Array, C: Array, D: Array, beta: float, point: float | None
) -> tuple[tuple[Array, Array], Inverse]:
    """Return factors of the controllability Gramian and of the storage function of ``G G^~``, and ``W^-1``.

    ``G G^~`` is split into Z + Z^~, and ``W^~ W`` with the stable W whose inverse is stable. That is done in continuous
    time, where R is made of D alone: in discrete time it holds the gain of all of G and may bury valleys.
    """
    if point is not None:
        A, B, C, D = continuous_image(A, B, C, D, point)
    S = covariance_factor(A, B, False)
    cross, R = S @ (S.conj().T @ C.conj().T) + B @ D.conj().T, D @ D.conj().T + beta**2 * np.eye(len(D))
    R = (R + R.conj().T) / 2  # Z = (A, cross, C, R / 2)
    found = passive_factor(A.conj().T, np.zeros((len(A), 0)), cross.conj().T, -C.conj().T, R, False)
    root = np.linalg.cholesky(found.middle).conj().T  # W = (A, cross, -root K^H, root)
    gain = np.linalg.solve(root, np.eye(len(root)))
    K = found.K.conj().T
    return (S, found.S.conj().T), (A + cross @ K, cross @ gain, K, gain)


def _seen(given: Array, model: Array, beta: float) -> float:
    """Return the largest ``|(G G^H + beta^2)^-1/2 (G - H)|`` of responses, taken as in `Stochastic.pair`."""
    U, gains, _ = np.linalg.svd(given)
    gains = np.pad(gains, ((0, 0), (0, U.shape[1] - gains.shape[1])))  # beta is what more outputs than inputs have
    return largest_gain(U.conj().swapaxes(1, 2) @ (given - model) / np.hypot(beta, gains)[:, :, None])


def _relative(hsv: Array, order: int, floor: float) -> float:
    """Return ``prod (1 + hsv) / (1 - hsv) - 1`` over the tail, and over the floor."""
    tail = [*orders.distinct_tail(hsv, order), floor]
    return math.expm1(math.fsum(2 * math.atanh(value) for value in tail)) if max(tail) < 1 else math.inf
