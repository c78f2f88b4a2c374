"""Largest gain of a stable system over all frequencies, the H-infinity norm.

Sampling and climbing find a first peak, and level sets of the gain [1]_ [2]_ any higher one: the frequencies at which
a singular value of the response equals the level g are the eigenvalues on the stability boundary of a pencil,

    | A    0   B    0  |       | I 0 0 0 |
    | 0  -A^H  0  -C^H | - lam | 0 I 0 0 |      (continuous time),
    | C    0   D   -gI |       | 0 0 0 0 |
    | 0   B^H -gI  D^H |       | 0 0 0 0 |

in which neither D nor g is inverted: levels close to a singular value of D, near which error systems have their
peaks when they match the gain at zero, cost no digits. What the pencil says is used to search only; each value
returned is a gain of the system itself.

References
----------
.. [1] S. Boyd, V. Balakrishnan, P. Kabamba, "A bisection method for computing the H-infinity norm of a transfer
   matrix and related problems", Math. Control Signals Systems 2, 1989.
.. [2] N. A. Bruinsma, M. Steinbuch, "A fast algorithm to compute the H-infinity norm of a transfer function matrix",
   Systems & Control Letters 14, 1990.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.linalg as sla

from ..checks import EPS, Array
from .response import balancing, boundary_points, exponents, response_function, scaled

Gain = Callable[[Array], Array]

# Local maxima that are climbed from one sample, the highest. Those left out are found by the level sets.
MAXIMA = 6

# Points of the first sample in each decade.
PER_DECADE = 4

# An eigenvalue of the pencil may be a crossing if its distance from the boundary is below NEAR times its size or NOISE
# times the pencil: two crossings about to meet leave the boundary by the square root of rounding.
NEAR, NOISE = 1e-4, 1e-7

# Rates that span more than this are searched from both ends: the pencil of ``G(s)`` sees frequencies down to the
# rounding of the fastest rate, that of ``G(1 / s)`` up to the slowest rate over the rounding unit.
STIFF = 1e5

# The leading part of a deflated pencil is inverted up to this condition number; beyond it, and where that is cheap
# anyway, QZ takes the pencil as it is.
WELL_CONDITIONED = 1e4
QZ_UP_TO = 10


def peak_gain(
    A: Array, B: Array, C: Array, D: Array, discrete: bool, rtol: float = 1e-8, gain: Gain | None = None
) -> tuple[float, float]:
    """Compute the largest gain of a stable system over all frequencies, and a frequency where it is attained.

    Parameters
    ----------
    A, B, C, D : (n, n), (n, m), (p, n) and (p, m) ndarray
        Stable system in double precision, real or complex.
    discrete : bool
        Whether the frequency response is that on the unit circle, ``z = exp(1j omega)``, instead of that on the
        imaginary axis.
    rtol : float, default 1e-8
        Relative accuracy of the norm: levels above ``1 + rtol`` times the norm have no crossing.
    gain : callable, optional
        Function from (k,) frequencies, some of them infinite in continuous time, to the (k,) largest singular values
        of the response. By default that of the matrices. Given, it alone decides: the matrices only tell where to
        look, and may stand for a larger system which they approximate closely.

    Returns
    -------
    norm : float
        Largest gain; a value of `gain`, and 0 without inputs or outputs.
    omega : float
        Where it is attained, in radians per unit of time or per sample; not negative for real matrices.

    Examples
    --------
    >>> import numpy as np
    >>> A, B, C = np.array([[0.0, 1.0], [-1.0, -0.02]]), np.array([[0.0], [1.0]]), np.array([[1.0, 0.0]])
    >>> norm, omega = peak_gain(A, B, C, np.zeros((1, 1)), discrete=False)
    >>> print(f"{norm:.4f} at {omega:.4f}")  # 1 / (2 zeta sqrt(1 - zeta^2)) with zeta = 0.01
    50.0025 at 0.9999
    """
    if min(D.shape) == 0:
        return 0.0, 0.0
    if gain is None:
        gain = gain_function(A, B, C, D, discrete)
    real = not any(np.iscomplexobj(x) for x in (A, B, C, D))
    reciprocal = None if discrete else _reciprocal(A, B, C, D)
    norm, omega = _climb(gain, _first_frequencies(A, reciprocal, discrete, real), rtol)
    if not 0 < norm < np.inf or len(A) == 0:
        return norm, omega
    pencils = [_Pencil(A, B, C, D, norm, discrete)]
    if reciprocal is not None:
        pencils.append(_Pencil(*reciprocal, norm, discrete, reciprocal=True))
    while True:
        level = norm * (1 + rtol)
        crossings = np.concatenate([pencil.crossings(level) for pencil in pencils])
        crossings = np.unique(np.abs(crossings) if real else crossings)
        if len(crossings) == 0:
            return norm, omega
        sample = np.unique(np.concatenate([crossings, (crossings[1:] + crossings[:-1]) / 2]))
        norm, omega = max((norm, omega), _climb(gain, sample, rtol, above=level))
        if norm <= level:  # all crossings were rounding
            return norm, omega


def gain_function(A: Array, B: Array, C: Array, D: Array, discrete: bool) -> Gain:
    """Return the function from frequencies to the largest singular values of the response of dense matrices."""
    response = response_function(A, B, C, D)
    return lambda omega: largest_singular_values(response(boundary_points(omega, discrete)))


def largest_singular_values(response: Array) -> Array:
    """Return the largest singular values of stacked (p, m) matrices; infinite where an entry is not finite."""
    largest = np.abs(response).max(axis=(1, 2), initial=0.0)
    largest[~np.isfinite(largest)] = np.inf
    regular = (largest > 0) & (largest < np.inf)
    exponent = np.frexp(largest[regular])[1]
    units = scaled(response[regular], -exponent[:, None, None])
    largest[regular] = np.ldexp(np.linalg.norm(units, ord=2, axis=(1, 2)), exponent)
    return largest


def largest_gain(response: Array) -> float:
    """Return the largest singular value of all stacked matrices."""
    return float(largest_singular_values(response).max(initial=0.0))


def _reciprocal(A: Array, B: Array, C: Array, D: Array) -> tuple[Array, Array, Array, Array] | None:
    """Return the matrices of ``G(1 / s)``, in which the slow rates of A are the fast ones, if A is stiff.

    ``G(1 / s) = G(0) - C A^-1 (s I - A^-1)^-1 A^-1 B``.
    """
    t = balancing(A)
    A, B, C = scaled(A, t - t[:, None]), scaled(B, -t[:, None]), scaled(C, t)
    try:
        inverse = np.linalg.inv(A)
    except np.linalg.LinAlgError:
        return None
    if len(A) == 0 or not STIFF < np.linalg.norm(A, 1) * np.linalg.norm(inverse, 1) < np.inf:
        return None
    at_zero = response_function(A, B, C, D)([0.0])[0]
    return inverse, inverse @ B, -C @ inverse, at_zero if at_zero.imag.any() else at_zero.real


class _Pencil:
    """Level sets of the gain of one system, in units in which the state matrix and the level are near 1."""

    def __init__(
        self, A: Array, B: Array, C: Array, D: Array, level: float, discrete: bool, reciprocal: bool = False
    ) -> None:
        self.discrete, self.reciprocal, self.D = discrete, reciprocal, D
        t = balancing(A)
        self._scale(A, B, C, t)
        _, b, c, _ = self._at(level)
        b, c = np.abs(b).max(axis=1, keepdims=True), np.abs(c).max(axis=0, keepdims=True)
        u = balancing(np.block([[np.abs(self.A), b], [c, np.zeros((1, 1))]]))
        self._scale(A, B, C, t + u[:-1] - u[-1])  # the ports as one more state: they set units that A leaves free

    def _scale(self, A: Array, B: Array, C: Array, t: Array) -> None:
        """Take units ``2^t`` of the states, and powers of two out of A (the unit of time), B and C."""
        shift = t - t[:, None]
        self.A, self.time = (scaled(A, shift), 0) if self.discrete else _unit(A, shift)
        self.B, b = _unit(B, -t[:, None])
        self.C, c = _unit(C, t)
        self.ports = b + c - self.time

    def _at(self, level: float) -> tuple[Array, Array, Array, Array]:
        """Return A, B, C, D of the system divided by a level, the factor of the first part shared by B and C."""
        mantissa, exponent = np.frexp(level)
        root = np.sqrt(np.ldexp(1.0, np.clip(self.ports - exponent, -1000, 1000)) / mantissa)
        return self.A, root * self.B, root * self.C, scaled(self.D, -exponent) / mantissa

    def crossings(self, level: float) -> Array:
        """Return the frequencies at which a singular value of the response may equal the level, and others."""
        K, L, cosine = self._deflated(level)
        n = len(self.A)
        if self.discrete:
            z = self._by_rotation(K, L) if n > QZ_UP_TO else _quotients(K, L)
            return np.asarray(np.angle(z[np.abs(np.abs(z) - 1) <= NEAR]))
        direct = n > QZ_UP_TO and cosine >= 1 / WELL_CONDITIONED
        s = np.linalg.eigvals(np.linalg.solve(L, K)) if direct else _quotients(K, L)
        s = s[np.abs(s.real) <= NEAR * np.abs(s) + NOISE]
        if self.reciprocal:
            s = 1 / s[s != 0]
        return np.asarray(np.ldexp(s.imag, -self.time if self.reciprocal else self.time))

    def _deflated(self, level: float) -> tuple[Array, Array, float]:
        """Return the pencil K - lam L of order 2 n whose rows are orthogonal to the columns of u and v.

        Also the least singular value of L in continuous time, that of one block of an orthogonal matrix. In
        discrete time, with ``w = z (I - z A^H)^-1 C^H v``, the pencil in x, w, u, v is

            | A  0  B   0   |     | I  0   0 0 |
            | 0  I  0  -C^H | - z | 0  A^H 0 0 |
            | C  0  D  -gI  |     | 0  0   0 0 |
            | 0  0 -gI  D^H |     | 0 -B^H 0 0 |
        """
        A, B, C, D = self._at(level)
        (n, m), p = B.shape, len(C)
        Ah, Bh, Ch, Dh = (x.conj().T for x in (A, B, C, D))
        In, zeros = np.eye(n), np.zeros
        ports = np.block([[B, zeros((n, p))], [zeros((n, m)), -Ch], [D, -np.eye(p)], [-np.eye(m), Dh]])
        if self.discrete:
            M = [[A, zeros((n, n))], [zeros((n, n)), In], [C, zeros((p, n))], [zeros((m, 2 * n))]]
            N = [[In, zeros((n, n))], [zeros((n, n)), Ah], [zeros((p, 2 * n))], [zeros((m, n)), -Bh]]
        else:
            M = [[A, zeros((n, n))], [zeros((n, n)), -Ah], [C, zeros((p, n))], [zeros((m, n)), Bh]]
            N = [[np.eye(2 * n)], [zeros((p + m, 2 * n))]]
        Q = sla.qr(ports)[0]
        rest = Q[:, m + p :].conj().T
        cosine = np.linalg.svd(Q[2 * n :, : m + p], compute_uv=False)[-1]
        return rest @ np.block(M), rest @ np.block(N), float(cosine)

    def _by_rotation(self, K: Array, L: Array) -> Array:
        """Return the eigenvalues z of K - z L from those of (K + z0 L)^-1 (K - z0 L), which is (z - z0) / (z + z0)."""
        for z0 in (1.0, -1.0):
            if np.linalg.cond(K + z0 * L, 1) <= WELL_CONDITIONED:
                s = np.linalg.eigvals(np.linalg.solve(K + z0 * L, K - z0 * L))
                return np.asarray(z0 * (1 + s[s != 1]) / (1 - s[s != 1]))
        return _quotients(K, L)


def _unit(X: Array, shift: Array) -> tuple[Array, int]:
    """Return ``2^shift X`` over a power of two that leaves its largest entry near 1, and the exponent of that power."""
    exponent = int(exponents(X, shift, axis=None))
    return scaled(X, shift - exponent), exponent


def _quotients(K: Array, L: Array) -> Array:
    """Return the finite eigenvalues of a pencil K - lam L by the QZ algorithm."""
    numerators, denominators = sla.eigvals(K, L, homogeneous_eigvals=True)
    finite = np.abs(denominators) > np.finfo(float).tiny * np.maximum(1, np.abs(numerators))
    return np.asarray(numerators[finite] / denominators[finite])


def _first_frequencies(
    A: Array, reciprocal: tuple[Array, Array, Array, Array] | None, discrete: bool, real: bool
) -> Array:
    """Return where peaks are likely: at the ends of the axis, at and next to the poles, and over all their decades."""
    t = balancing(A)
    poles = np.linalg.eigvals(scaled(A, t - t[:, None])).astype(np.complex128)
    if reciprocal is not None:
        poles = np.concatenate([poles, 1 / np.linalg.eigvals(reciprocal[0])])
    ends = [0.0, np.inf]
    if discrete:
        poles = np.log(poles[np.abs(poles) > EPS])
        ends = list(np.linspace(-np.pi, np.pi, 2 * len(A) + 17))
    centre, width, size = poles.imag, np.abs(poles.real), np.abs(poles)
    damped = size[width > size / 4]  # the others have their peak at the centre
    size = size[(size > 0) & np.isfinite(size)]
    grid = np.empty(0)
    if len(size):
        low, high = np.log10(size.min()) - 3, np.log10(size.max()) + 3
        grid = 10 ** np.linspace(low, high, int(PER_DECADE * (high - low)) + 1)
    omega = np.concatenate([centre, centre - width, centre + width, damped, -damped, grid, -grid, ends])
    omega = np.unique(np.abs(omega) if real else omega)
    return omega[np.abs(omega) <= np.pi] if discrete else omega


def _climb(gain: Gain, omega: Array, rtol: float, above: float = 0.0) -> tuple[float, float]:
    """Return the largest gain at increasing frequencies and on the maxima between them that exceed `above`.

    All maxima are climbed at once. Next to a resonance ``1 / gain^2`` is a parabola in the frequency: its vertex, two
    points beside it and the middles of both halves shrink each bracket until the gain is level within it.
    """
    values = gain(omega)
    best = int(np.argmax(values))
    norm, peak = float(values[best]), float(omega[best])
    inner = (values[1:-1] >= values[:-2]) & (values[1:-1] >= values[2:]) & (values[1:-1] > above)
    tops = 1 + np.flatnonzero(inner & np.isfinite(omega[2:]) & np.isfinite(omega[:-2]) & np.isfinite(values[1:-1]))
    tops = tops[np.argsort(values[tops])[::-1][:MAXIMA]]
    x, y = (v[tops[:, None] + np.arange(-1, 2)] for v in (omega, values))  # one bracket a row
    for _ in range(60):
        steep = y[:, 1] - y.min(axis=1) > rtol / 100 * y[:, 1]
        x, y = x[steep], y[steep]
        if len(x) == 0:
            break
        vertex = _vertex(x, y)
        aside = (x[:, 2] - x[:, 0]) / 50
        new = np.stack(
            [vertex, vertex - aside, vertex + aside, (x[:, 0] + x[:, 1]) / 2, (x[:, 1] + x[:, 2]) / 2], axis=1
        )
        new = np.clip(new, x[:, :1], x[:, 2:])
        x, y = np.hstack([x, new]), np.hstack([y, gain(new.ravel()).reshape(new.shape)])
        order = np.argsort(x, axis=1, kind="stable")
        x, y = np.take_along_axis(x, order, axis=1), np.take_along_axis(y, order, axis=1)
        top = np.clip(np.argmax(y, axis=1), 1, x.shape[1] - 2)
        around = top[:, None] + np.arange(-1, 2)
        x, y = np.take_along_axis(x, around, axis=1), np.take_along_axis(y, around, axis=1)
        best = int(np.argmax(y[:, 1]))
        norm, peak = max((norm, peak), (float(y[best, 1]), float(x[best, 1])))
    return norm, peak


def _vertex(x: Array, y: Array) -> Array:
    """Return where the parabola through the points (x, 1 / y^2) of each row has its vertex, or the middle point."""
    with np.errstate(all="ignore"):
        f = (y[:, 1:2] / y) ** 2
        left, right = x[:, 0] - x[:, 1], x[:, 2] - x[:, 1]
        slope = (f[:, 0] - 1) / left, (f[:, 2] - 1) / right
        step = (slope[0] * right - slope[1] * left) / (2 * (slope[0] - slope[1]))
    return np.where(np.isfinite(step), x[:, 1] + step, x[:, 1])
