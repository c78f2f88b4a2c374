"""What is true of a system, from its stored numbers taken as exact: the judge of everything the library computes.

A double is an integer times a power of two. So the transfer function ``C (s E - A)^-1 B + D`` of stored matrices is a
quotient of polynomials with whole coefficients, which the Faddeev-LeVerrier recursion gives without any rounding; at a
stored point it is a quotient of whole numbers, and so is the difference of two of them. Gains are therefore right to
the last digits of the double they are returned in, whatever the units, the stiffness or the cancellation.

Gramians are infinite sums. They come from Smith's doubling, ``P <- P + A P A^H, A <- A A``, after a Cayley map in
continuous time, with whole numbers as fixed-point ones of `BITS` bits after the point. The map needs ``(p I - A)^-1``,
which the same recursion gives exactly. Hankel singular values are the roots of the eigenvalues of ``S^H Q S``, where
``P = S S^H``.

Functions take a `Matrices` or any tuple ``(A, B, C, D, dt)`` or ``(A, B, C, D, dt, E)``; entries are doubles, or mpmath
numbers where no double holds what is meant (the poles ``exp(z)`` of stored rates).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import mpmath
import numpy as np

# Bits after the point of the Gramians: 360 digits, of which units of 10^+-40 and 60 doublings leave more than 200.
BITS = 1200
# Bits of the points exp(i omega) and of poles exp(z): 75 more than a double has, for poles as near to the circle.
POINT_BITS = 128
# Doublings: 1 / (1 - spectral radius) may be 2^100; a system that needs more is not stable.
DOUBLINGS = 110


class Matrices(NamedTuple):
    """Plain arrays of a system: ``E x' = A x + B u`` or ``E x+ = A x + B u``, ``y = C x + D u``; dt as given."""

    A: Any
    B: Any
    C: Any
    D: Any
    dt: Any = 0
    E: Any = None

    @property
    def is_discrete(self) -> bool:
        """Say whether time is discrete."""
        return self.dt is True or self.dt != 0


class Gauss(NamedTuple):
    """Whole numbers, or Gaussian ones: object arrays of Python integers; `im` is None where all are real."""

    re: np.ndarray
    im: np.ndarray | None = None

    @property
    def H(self) -> Gauss:
        """The conjugate transpose."""
        return Gauss(self.re.T, None if self.im is None else -self.im.T)

    def apply(self, f: Callable[[np.ndarray], np.ndarray]) -> Gauss:
        """Apply a real linear map to both parts."""
        return Gauss(f(self.re), None if self.im is None else f(self.im))


def _times(x: Gauss, y: Gauss, op: Any = operator.matmul) -> Gauss:
    """Multiply: matrices by default, entries with ``operator.mul``."""
    if x.im is None and y.im is None:
        return Gauss(op(x.re, y.re))
    if x.im is None:
        return Gauss(op(x.re, y.re), op(x.re, y.im))
    if y.im is None:
        return Gauss(op(x.re, y.re), op(x.im, y.re))
    return Gauss(op(x.re, y.re) - op(x.im, y.im), op(x.re, y.im) + op(x.im, y.re))


def _plus(x: Gauss, y: Gauss) -> Gauss:
    if x.im is None and y.im is None:
        return Gauss(x.re + y.re)
    zero = x.re * 0
    return Gauss(x.re + y.re, (zero if x.im is None else x.im) + (zero if y.im is None else y.im))


def _shift(x: Gauss, bits: int) -> Gauss:
    """Multiply by ``2**bits``; to the right, towards minus infinity."""
    return x.apply(lambda a: a << bits) if bits >= 0 else x.apply(lambda a: a >> -bits)


def _dyadic(x: Any) -> tuple[int, int]:
    """Return (m, e) with ``x = m 2^e`` exactly."""
    if isinstance(x, mpmath.mpf):
        sign, mantissa, exponent, _ = x._mpf_  # man_exp has no sign
        return (-int(mantissa) if sign else int(mantissa)), int(exponent)
    mantissa, exponent = math.frexp(x)
    return int(mantissa * 2**53), exponent - 53


def _integers(x: Any) -> tuple[Gauss, int]:
    """Return whole numbers and k with ``x = numbers 2^-k`` exactly."""
    x = np.atleast_1d(x)
    re, im = ([getattr(e, part, 0) for e in x.ravel().tolist()] for part in ("real", "imag"))
    pairs = [_dyadic(e) for e in re + im]
    k = max([0, *(-e for m, e in pairs if m)])
    whole = np.empty(len(pairs), dtype=object)
    whole[:] = [m << (k + e) if m else 0 for m, e in pairs]
    real, imag = whole.reshape(2, *x.shape)
    return Gauss(real, imag if any(imag.ravel()) else None), k


def _whole(x: int) -> Gauss:
    """Return one whole number as an array, (1,): NumPy turns object arrays without axes into their entries."""
    return Gauss(np.array([x], dtype=object))


def _adjugate(N: Gauss) -> tuple[list[Gauss], list[Gauss]]:
    """Return the coefficients of ``adj(x I - N)`` and ``det(x I - N)``, leading ones first, by Faddeev-LeVerrier."""
    n = len(N.re)
    identity = Gauss(np.array([[int(i == j) for j in range(n)] for i in range(n)], dtype=object).reshape(n, n))
    M, adjugate, characteristic = identity, [], [_whole(1)]
    for k in range(1, n + 1):
        adjugate.append(M)
        product = _times(N, M)
        c = product.apply(lambda a, k=k: _whole(-np.trace(a) // k).re)
        characteristic.append(c)
        M = _plus(product, _times(identity, c, operator.mul))
    return adjugate, characteristic


class Transfer:
    """The transfer function of stored matrices, exactly: a power of two times a quotient of whole polynomials.

    Parameters
    ----------
    system : Matrices or tuple
        Any system with nonsingular E.
    """

    def __init__(self, system: Any) -> None:
        self.matrices = Matrices(*system)
        A, B, C, D, _, E = self.matrices
        (N, a), (b_numbers, b), (c_numbers, c), (d_numbers, d) = (_integers(x) for x in (A, B, C, D))
        self.shape, self.divisor = np.shape(D), 1
        if E is not None and len(N.re):
            e_numbers, e = _integers(E)
            adjugate, characteristic = _adjugate(e_numbers)  # adj and det of -E: their last coefficients
            determinant = characteristic[-1].apply(lambda x: -x)
            inverse = _times(adjugate[-1], _conjugate(determinant), operator.mul)
            self.divisor = _square(determinant)
            N, b_numbers, a, b = _times(inverse, N), _times(inverse, b_numbers), a - e, b - e
        self.N, self.shift, self.b, self.c = N, a, (b_numbers, b), (c_numbers, c)  # E^-1 A = N 2^-shift / divisor
        self.adjugate, self.characteristic = _adjugate(N)
        gained = [_times(_times(c_numbers, M), b_numbers).apply(lambda x: x.reshape(-1)) for M in self.adjugate]
        flat, nothing = d_numbers.apply(lambda x: x.reshape(-1)), d_numbers.re.reshape(-1) * 0
        direct = a - b - c + d  # G = 2^(a-b-c) (gained + 2^-direct D characteristic) / characteristic
        up, down = max(direct, 0), max(-direct, 0)
        self.exponent = a - b - c - up
        self.poles: list[Any] | None = None  # once they were asked for
        self.values: dict[float, tuple[Gauss, Gauss]] = {}  # of frequencies
        self.coefficients = []
        for k, chi in enumerate(self.characteristic):
            top = _times(flat, chi, operator.mul)
            top = _plus(_shift(top, down), _shift(gained[k - 1] if k else Gauss(nothing), up))
            self.coefficients.append(
                Gauss(
                    np.append(top.re, chi.re),
                    None if top.im is None and chi.im is None else np.append(_imaginary(top), _imaginary(chi)),
                )
            )

    def at(self, s: Any) -> tuple[Gauss, Gauss, int]:
        """Return numerator, denominator and exponent at a stored point, or at ``inf``, as whole numbers."""
        if not isinstance(s, mpmath.mpc) and not np.isfinite(s):
            value = self.coefficients[0]
        else:
            x, q = _integers(s)
            x = x.apply(lambda e: e * self.divisor)
            step = q - self.shift  # the argument is x 2^-step
            if step < 0:
                x, step = _shift(x, -step), 0
            value = self.coefficients[0]
            for k, coefficient in enumerate(self.coefficients[1:], 1):
                value = _plus(_times(value, x, operator.mul), _shift(coefficient, step * k))
        return value.apply(lambda e: e[:-1]), value.apply(lambda e: e[-1:]), self.exponent

    def point(self, omega: float) -> Any:
        """Return ``i omega``, or ``exp(i omega dt)`` to many digits; `omega` in radians per unit of dt."""
        if not self.matrices.is_discrete:
            return complex(0, omega) if np.isfinite(omega) else np.inf
        with mpmath.workprec(POINT_BITS):
            return mpmath.expj(mpmath.mpf(omega) * (1 if self.matrices.dt is True else mpmath.mpf(self.matrices.dt)))

    def _value(self, omega: float) -> tuple[Gauss, Gauss]:
        if omega not in self.values:
            self.values[omega] = self.at(self.point(omega))[:2]
        return self.values[omega]

    def response(self, omega: float) -> np.ndarray:
        """Return the (p, m) frequency response, every part rounded once."""
        return _quotient(*self.at(self.point(omega))).reshape(self.shape)

    def gain(self, omega: float, other: Transfer | None = None) -> float:
        """Return the largest singular value of the response at `omega`, or of its difference from another one."""
        (top, bottom), exponent = self._value(omega), self.exponent
        if other is not None:
            (top2, bottom2), exponent2 = other._value(omega), other.exponent
            low = min(exponent, exponent2)
            first = _shift(_times(top, bottom2, operator.mul), exponent - low)
            second = _shift(_times(top2, bottom, operator.mul), exponent2 - low)
            top = _plus(first, second.apply(lambda e: -e))
            bottom, exponent = _times(bottom, bottom2, operator.mul), low
        return _norm(_quotient(top, bottom, exponent).reshape(self.shape))


def _square(x: Gauss) -> int:
    """Return ``|x|^2`` of one number."""
    return int(x.re[0]) ** 2 + int(_imaginary(x)[0]) ** 2


def _conjugate(x: Gauss) -> Gauss:
    return Gauss(x.re, None if x.im is None else -x.im)


def _imaginary(x: Gauss) -> np.ndarray:
    return x.re * 0 if x.im is None else x.im


def _quotient(top: Gauss, bottom: Gauss, exponent: int) -> np.ndarray:
    """Divide whole numbers; inf where only the denominator is zero."""
    scale = _square(bottom)
    product = _times(top, _conjugate(bottom), operator.mul)
    up, down = max(exponent, 0), max(-exponent, 0)
    if scale == 0:
        return np.where([bool(re or im) for re, im in zip(top.re, _imaginary(top), strict=True)], np.inf, np.nan)
    pairs = zip(product.re, _imaginary(product), strict=True)
    return np.array([complex((re << up) / (scale << down), (im << up) / (scale << down)) for re, im in pairs])


def _norm(response: np.ndarray) -> float:
    """Return the largest singular value without overflow; inf at a pole."""
    size = np.abs(response).max(initial=0.0)
    return float(size * np.linalg.norm(response / size, ord=2)) if 0 < size < np.inf else float(size)


def gain(system: Any, s: Any, other: Any = None) -> float:
    """Return the largest singular value of ``G(s)``, or of ``G(s) - H(s)``, s a stored point or inf."""
    G = transfer(system)
    top, bottom, exponent = G.at(s)
    value = _quotient(top, bottom, exponent).reshape(G.shape)
    return _norm(value if other is None else value - _quotient(*transfer(other).at(s)).reshape(G.shape))


def transfer(system: Any) -> Transfer:
    """Return the exact transfer function of a tuple, or the one that was made of it before."""
    return system if isinstance(system, Transfer) else Transfer(system)


def poles(system: Any, digits: int = 40) -> np.ndarray:
    """Return the poles: double eigenvalues, moved by Aberth's iteration onto the exact characteristic polynomial."""
    return np.array([complex(z) for z in _roots(transfer(system), digits)], dtype=complex)


def is_stable(system: Any, digits: int = 40) -> bool:
    """Tell whether all poles lie inside the stability boundary, by their many digits."""
    G = transfer(system)
    with mpmath.workdps(4 * digits):
        return all((abs(z) - 1 if G.matrices.is_discrete else z.real) < 0 for z in _roots(G, digits))


def _roots(G: Transfer, digits: int) -> list[Any]:
    """Return the poles to many digits, once found."""
    if G.poles is None:
        G.poles = _aberth(G, digits)
    return G.poles


def _aberth(G: Transfer, digits: int) -> list[Any]:
    """Run Aberth's iteration; a pole repeated k times comes out k times, each to `digits` over k digits."""
    N, divisor = G.N, G.divisor
    if len(N.re) == 0:
        return []
    with mpmath.workdps(4 * digits):
        unit = mpmath.mpf(2) ** G.shift * divisor
        chi = [mpmath.mpc(int(c.re[0]), int(_imaginary(c)[0])) / unit**k for k, c in enumerate(G.characteristic)]
        A = np.array([[complex(x) for x in row] for row in _fractions(N, unit)])
        roots = [mpmath.mpc(complex(z)) for z in np.linalg.eigvals(A)]
        size = max(abs(z) for z in roots)
        for i, z in enumerate(roots):  # equal starts would stay equal
            roots[i] = z + (z if z else size) * mpmath.mpc(0, 1e-25) * (i + 1)
        for _ in range(60):
            largest = mpmath.mpf(0)
            for i, z in enumerate(roots):
                value, slope = mpmath.polyval(chi, z, derivative=True)
                if value == 0 or slope == 0:
                    continue
                newton = value / slope
                step = newton / (1 - newton * sum(1 / (z - w) for j, w in enumerate(roots) if j != i))
                roots[i] -= step
                largest = max(largest, abs(step) / (abs(roots[i]) or 1))
            if largest < mpmath.mpf(10) ** -digits:
                break
        return roots


def _fractions(N: Gauss, unit: Any) -> list[list[Any]]:
    return [
        [mpmath.mpc(int(re), int(im)) / unit for re, im in zip(*rows, strict=True)]
        for rows in zip(N.re, _imaginary(N), strict=True)
    ]


def peak_gain(
    system: Any,
    other: Any = None,
    near: Iterable[float] = (),
    points: int = 60,
    refine: int = 3,
    steps: int = 45,
    above: float = 0.0,
) -> tuple[float, float]:
    """Return the largest gain of G, or of ``G - H``, over all frequencies, and where: radians per unit of dt.

    Every gain is exact; the search is not: 0, infinity, `near`, the resonances of all poles and `points` frequencies
    around them are sampled, and `steps` of a golden section climb from the `refine` best ones. A lower
    bound in any case. Frequencies under `above` are left out: models of one integrator differ without bound near 0.
    """
    G, H = transfer(system), None if other is None else transfer(other)
    both = [G] if H is None else [G, H]
    z, own_z = np.concatenate([rates(K) for K in both]), rates(G)
    top = math.inf
    if G.matrices.is_discrete:
        top = math.pi / float(G.matrices.dt)
        slow = np.abs(own_z.real)
        own, grid = np.abs(z.imag), [*np.linspace(0, top, points), *_around(slow[slow < top], points)]
    else:
        own = [*np.abs(z), *np.abs(z.imag), *np.sqrt(np.maximum(z.imag**2 - z.real**2, 0))]
        grid = _around(np.abs(own_z), points)
    omega = sorted(
        {float(w) for w in [0.0, *own, *grid, *(abs(w) for w in near if np.isfinite(w))] if above <= w <= top}
    )
    if any(_imaginary(c).any() for K in both for c in K.coefficients):
        omega = sorted({*omega, *(-w for w in omega)})
    found = [(G.gain(w, H), w) for w in omega]
    best = max(found)
    if not G.matrices.is_discrete:
        best = max(best, (G.gain(math.inf, H), math.inf))
    for i in sorted(range(len(omega)), key=lambda i: -found[i][0])[:refine]:
        low, high = omega[max(i - 1, 0)], omega[min(i + 1, len(omega) - 1)]
        best = max(best, _golden(lambda w: G.gain(w, H), low, high, steps))
    return best


def rates(G: Transfer) -> np.ndarray:
    """Return the poles in continuous terms, per unit of dt: in discrete time their logarithms over dt."""
    z = poles(G)
    if not G.matrices.is_discrete:
        return z
    return np.log(np.where(z == 0, np.exp(-40.0), z).astype(complex)) / float(G.matrices.dt)


def _around(rates: np.ndarray, points: int) -> list[float]:
    rates = rates[rates > 0]
    return list(np.geomspace(rates.min() / 30, rates.max() * 30, points)) if len(rates) else []


def _golden(f: Callable[[float], float], low: float, high: float, steps: int) -> tuple[float, float]:
    """Climb to a largest value of f between two frequencies; 45 steps leave 1e-9 of the interval, 20 leave 1e-4."""
    ratio = (math.sqrt(5) - 1) / 2
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    fa, fb = f(a), f(b)
    for _ in range(steps):
        if fa < fb:
            low, a, fa = a, b, fb
            b = low + ratio * (high - low)
            fb = f(b)
        else:
            high, b, fb = b, a, fa
            a = high - ratio * (high - low)
            fa = f(a)
    return max((fa, a), (fb, b))


def gramians(system: Any, bits: int = BITS) -> tuple[Gauss, Gauss]:
    """Return P and ``E^H Q E`` as whole numbers over ``2**bits``; ValueError if the doubling does not converge."""
    G = transfer(system)
    n = len(G.N.re)
    (b_numbers, b), (c_numbers, c) = G.b, G.c
    if not G.matrices.is_discrete:
        z = np.abs(poles(G))
        p = math.floor(np.log2(np.sqrt(max(z.max(), 1e-300) * max(z.min(), 1e-300)))) if n else 0
        # X = (x I - N)^-1 at x = 2^(p + shift) divisor; then (2^p I - E^-1 A)^-1 = X 2^shift divisor
        power = p + G.shift
        x, q = (G.divisor << power, 0) if power >= 0 else (G.divisor, -power)
        bottom = _whole(0)
        for k, chi in enumerate(G.characteristic):
            bottom = _plus(_times(bottom, _whole(x), operator.mul), _shift(chi, q * k))
        top = Gauss(np.array([[0] * n for _ in range(n)], dtype=object).reshape(n, n))
        for k, M in enumerate(G.adjugate):
            top = _plus(_times(top, _whole(x), operator.mul), _shift(M, q * k))
        # (x 2^-q I - N)^-1 = top 2^q / bottom, homogeneous of degrees n - 1 and n
        X = _fixed(top, bottom, bits + G.shift + q, G.divisor)
        A = _plus(
            _shift(X, p + 1),
            Gauss(np.array([[-int(i == j) << bits for j in range(n)] for i in range(n)], object).reshape(n, n)),
        )
        B, C, both = _shift(_times(X, b_numbers), -b), _shift(_times(c_numbers, X), -c), p + 1
        if G.divisor != 1:
            B = B.apply(lambda e: e // G.divisor)
    else:
        one = _whole(G.divisor)
        A, B, C, both = (
            _fixed(G.N, one, bits - G.shift),
            _fixed(b_numbers, one, bits - b),
            _shift(c_numbers, bits - c),
            0,
        )
    P = _doubling(A, _shift(_times(B, B.H), both - bits), bits)
    Q = _doubling(A.H, _shift(_times(C.H, C), both - bits), bits)
    return P, Q


def _fixed(top: Gauss, bottom: Gauss, bits: int, factor: int = 1) -> Gauss:
    """Return ``factor top / bottom`` in fixed point."""
    scale = _square(bottom)
    product = _times(top, _conjugate(bottom), operator.mul)
    return product.apply(lambda e: ((e * factor) << bits) // scale if bits >= 0 else (e * factor) // (scale << -bits))


def _doubling(A: Gauss, W: Gauss, bits: int) -> Gauss:
    """Return the sum of ``A^k W A^kH``."""
    for _ in range(DOUBLINGS):
        size = max((abs(e) for part in A if part is not None for e in part.ravel()), default=0)
        if size.bit_length() < bits // 3:
            return W
        if size.bit_length() > 3 * bits:
            break
        W = _plus(W, _shift(_times(_shift(_times(A, W), -bits), A.H), -bits))
        A = _shift(_times(A, A), -bits)
    raise ValueError("the powers of A do not decay: the system is not stable")


def hsv(system: Any, bits: int = BITS, digits: int = 50) -> np.ndarray:
    """Return the n Hankel singular values, decreasing; `digits` is how far below the first one they are still right."""
    P, Q = gramians(system, bits)
    S = _cholesky(P, bits)
    if S.re.shape[1] == 0:
        return np.zeros(len(P.re))
    M = _shift(_times(_shift(_times(S.H, Q), -bits), S), -bits)
    with mpmath.workdps(2 * digits + 10):
        unit = mpmath.mpf(2) ** bits
        rows = _fractions(M, unit)
        solver = mpmath.eigsy if M.im is None else mpmath.eighe
        matrix = mpmath.matrix([[x.real for x in row] for row in rows] if M.im is None else rows)
        squares = sorted(solver((matrix + matrix.H) / 2, eigvals_only=True), reverse=True)
        values = [float(mpmath.sqrt(x)) if x > 0 else 0.0 for x in squares]
    return np.array(values + [0.0] * (len(P.re) - len(values)))


def _cholesky(P: Gauss, bits: int) -> Gauss:
    """Return (n, k) S with ``P = S S^H``, by pivots, until what is left falls below ``2**(-bits / 2)``."""
    n, columns = len(P.re), []
    while len(columns) < n:
        pivots = [int(P.re[i, i]) for i in range(n)]
        k = max(range(n), key=pivots.__getitem__)
        if pivots[k] <= 1 << (bits // 2):
            break
        root = math.isqrt(pivots[k] << bits)
        column = P.apply(lambda a, k=k, root=root: (a[:, k : k + 1] << bits) // root)
        columns.append(column)
        P = _plus(P, _shift(_times(column, column.H), -bits).apply(lambda e: -e))
    if not columns:
        return Gauss(np.zeros((n, 0), dtype=object))
    complex_data = any(c.im is not None for c in columns)
    return Gauss(
        np.hstack([c.re for c in columns]), np.hstack([_imaginary(c) for c in columns]) if complex_data else None
    )


def h2_norm(system: Any, bits: int = BITS) -> float:
    """Return the H2 norm: per step in discrete time, inf in continuous time with a feedthrough."""
    G = transfer(system)
    D = np.asarray(G.matrices.D)
    if not G.matrices.is_discrete and np.any(D != 0):
        return math.inf
    P, (c_numbers, c) = gramians(G, bits)[0], G.c
    energy = int(np.trace(_times(_times(c_numbers, P), c_numbers.H).re))
    with mpmath.workdps(60):
        square = mpmath.mpf(energy) / mpmath.mpf(2) ** (bits + 2 * c)
        return float(mpmath.sqrt(square + sum(mpmath.mpf(float(abs(d))) ** 2 for d in D.ravel())))


def matrices(system: Any) -> Matrices:
    """Return what a system of the library stores: dense, diagonal, of rates, with complex or real output."""
    if not hasattr(system, "lam"):
        return Matrices(system.A, system.B, system.C, system.D, system.dt, getattr(system, "E", None))
    lam, B, C = np.asarray(system.lam), np.asarray(system.B), np.asarray(system.C)
    rates = getattr(system, "rates", None)
    if rates is not None:
        with mpmath.workprec(POINT_BITS):
            lam = np.array([mpmath.exp(mpmath.mpc(complex(z))) for z in rates], dtype=object)
    if system.output == "real":
        lam = np.append(lam, np.array([e.conjugate() for e in lam], dtype=lam.dtype))
        B, C = np.vstack([B, B.conj()]), np.hstack([C, C.conj()]) / 2
    A = np.zeros((len(lam), len(lam)), dtype=object if lam.dtype == object else complex)
    A[np.diag_indices(len(lam))] = lam
    return Matrices(A, B, C, system.D, system.dt)
