"""Systems with known Hankel singular values, and systems written down as code."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..checks import Array, check_dt, check_real_array, check_result, is_discrete
from ..errors import InputError
from ..systems import StateSpace, as_system

# Systems of more states than this are summed up in words: nobody reads their matrices.
SHOWN_STATES = 8


def system_with_hsv(
    hsv: ArrayLike, *, signs: ArrayLike | None = None, gains: ArrayLike | None = None, dt: Any = 0
) -> StateSpace:
    """Build a system with prescribed Hankel singular values, in balanced coordinates in continuous time.

    ``A_ij = -g_i g_j / (s_i s_j hsv_i + hsv_j)``, ``B = g`` and ``C = s g`` have both Gramians ``diag(hsv)``, as
    insertion into the Lyapunov equations shows; the bilinear map to discrete time keeps both.

    Parameters
    ----------
    hsv : (n,) array_like
        Distinct, positive and decreasing.
    signs : (n,) array_like of 1 and -1, optional
        All 1 by default; then the error of truncation at frequency 0 attains its bound.
    gains : (n,) array_like, optional
        Nonzero; all 1 by default. The first pole of a single value is ``-gain**2 / (2 hsv)``.
    dt : float or bool, default 0
        Sampling time in seconds; 0 is continuous, True is discrete without a stated time.

    Returns
    -------
    StateSpace
        With one input and one output.

    Raises
    ------
    InputError
        If the values are not distinct, positive and decreasing, or the lengths differ.

    Examples
    --------
    >>> import hankelred as hr
    >>> from hankelred.testing import system_with_hsv
    >>> hr.hankel_singular_values(system_with_hsv([4.0, 2.0, 1.0], dt=True)).round(12)
    array([4., 2., 1.])
    """
    values = check_prescribed(hsv)
    s = np.ones(len(values)) if signs is None else check_real_array(signs, "signs", 1)
    g = np.ones(len(values)) if gains is None else check_real_array(gains, "gains", 1)
    if not len(s) == len(g) == len(values) or np.any(np.abs(s) != 1) or np.any(g == 0):
        raise InputError(
            f"signs and gains must have one entry for each of the {len(values)} hsv, signs 1 or -1 and gains not 0; "
            f"got {s.tolist()} and {g.tolist()}."
        )
    discrete, D = is_discrete(check_dt(dt)), np.zeros((1, 1))
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        A = -np.outer(g, g) / (np.outer(s, s) * values[:, None] + values)
        B, C = g[:, None], (s * g)[None, :]
        check_result("The system with these hsv and gains", A, hint="Scale them.")
        if discrete:  # (z - 1) / (z + 1) for s
            I, root = np.eye(len(A)), np.sqrt(2.0)
            inverse = np.linalg.inv(I - A)
            A, B, C, D = inverse @ (I + A), root * inverse @ B, root * C @ inverse, C @ inverse @ B
            check_result("The system with these hsv and gains", A, B, C, D, hint="Scale them.")
    return StateSpace(A, B, C, D, dt)


def check_prescribed(hsv: ArrayLike) -> Array:
    """Return Hankel singular values that a system can be built to have."""
    values = check_real_array(hsv, "hsv", 1).astype(float)
    if len(values) == 0 or np.any(values <= 0) or np.any(np.diff(values) >= 0):
        raise InputError(
            f"hsv must be distinct, positive and decreasing; got {values.tolist()}. Sort them, or repeat "
            f"a system side by side for repeated values."
        )
    return values


def system_code(sys: Any) -> str:
    """Return the Python expression that makes a system: what a failing test prints, to be pasted into a new one.

    Parameters
    ----------
    sys : StateSpace, DiagonalSystem, DiagonalBank or anything `as_system` accepts
        Any system.

    Returns
    -------
    str
        With ``import hankelred as hr`` in mind. Systems of more than eight states are summed up in words.

    Examples
    --------
    >>> import hankelred as hr
    >>> from hankelred.testing import system_code
    >>> print(system_code(hr.DiagonalSystem([0.5], [[1.0]], [[2.0]], dt=True)))
    hr.DiagonalSystem([0.5], B=[[1.0]], C=[[2.0]], dt=True)
    """
    system = as_system(sys)
    if system.n > SHOWN_STATES:
        poles = system.poles().ravel()
        outermost = poles[np.argmax(np.abs(poles) if system.is_discrete else poles.real)]
        return f"{system!r}, outermost pole {outermost:.6g}"
    matrices = [f"{name}={getattr(system, name).tolist()}" for name in "BCD" if name != "D" or system.D.any()]
    if system.is_diagonal:
        (name, poles), *_ = system.spectrum.data.items()
        start = f"hr.{type(system).__name__}" + (".from_rates(" if name == "rates" else "(")
        rest = [f"dt={system.dt!r}"] + ['output="real"'] * system.has_real_output
        return f"{start}{poles.tolist()}, {', '.join(matrices + rest)})"
    descriptor = [] if system.E is None else [f"E={system.E.tolist()}"]
    return f"hr.StateSpace({', '.join([f'A={system.A.tolist()}', *matrices, f'dt={system.dt!r}', *descriptor])})"
