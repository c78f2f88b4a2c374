"""Assertions about Hankel singular values, Gramians and reduced models, whose failures show what is wrong and where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..checks import EPS, Array, check_array, check_number, check_result, double
from ..drift import drift_bound
from ..errors import InputError
from ..following import SAFETY
from ..hankel import gramian_factors, stable
from ..linalg.hankel_svd import padded
from ..norms import hinf_norm
from ..order import tail_sum
from ..reduction import Reduction
from ..systems import LinearSystem, one_system
from ..weighting.base import HINF
from .systems import system_code

# Rows of a table of values in a message.
SHOWN_ROWS = 12


def assert_hsv_close(
    sys: Any, hsv: ArrayLike | Callable[[Any], ArrayLike], *, rtol: float = 1e-8, atol: float | None = None
) -> None:
    """Assert that these are the Hankel singular values of a system.

    Parameters
    ----------
    sys : StateSpace, DiagonalSystem or anything `as_system` accepts
        Stable system, of this library, python-control or scipy.signal.
    hsv : (k,) array_like or callable
        The values claimed, decreasing; those missing at the end count as 0. A function is called with `sys`.
    rtol : float, default 1e-8
        Relative to each value.
    atol : float, optional
        Absolute, in units of y per unit of u, and added; by default what rounding does to values of Gramian factors,
        some ``n eps hsv[0]``. Programs that take roots of the eigenvalues of P Q need ``atol=1e-7 * hsv[0]``.

    Raises
    ------
    AssertionError
        With a table of the values that differ, and the system.

    Examples
    --------
    >>> import hankelred as hr
    >>> from hankelred.testing import assert_hsv_close
    >>> lag = hr.StateSpace([[-2.0]], [[1.0]], [[2.0]])
    >>> assert_hsv_close(lag, [0.5])
    >>> assert_hsv_close(lag, [0.25])
    Traceback (most recent call last):
        ...
    AssertionError: 1 of 1 Hankel singular values differ from those claimed, hsv 1 the most, by 50 % of the largest.
        i         claimed            true    difference       allowed
        1            0.25             0.5          0.25       5.0e-09   <--
    system: hr.StateSpace(A=[[-2.0]], B=[[1.0]], C=[[2.0]], dt=0)
    """
    system = one_system(sys, "sys")
    (true, floor), rtol = _values_and_floor(system), check_number(rtol, "rtol", least=0.0)
    claimed = _claimed(hsv, sys, system)
    found, expected = (padded(x, max(len(true), len(claimed))) for x in (claimed, true))
    atol = floor if atol is None else check_number(atol, "atol", least=0.0)
    with np.errstate(over="ignore"):  # whatever is claimed then is near enough
        allowed = rtol * expected + atol
    table, wrong = _table({"claimed": found, "true": expected}, allowed)
    if not wrong.any():
        return
    difference = np.where(wrong, np.abs(found - expected), -1.0)
    worst = int(np.argmax(difference))
    with np.errstate(over="ignore"):
        share = f", by {100 * (difference[worst] / expected[0]):.3g} % of the largest" if expected[0] > 0 else ""
    if len(claimed) != len(true):
        table += f"\n{len(claimed)} values were claimed, the system has {len(true)}; missing ones count as 0."
    raise AssertionError(
        f"{wrong.sum()} of {len(wrong)} Hankel singular values differ from those claimed, hsv {worst + 1} the most"
        f"{share}.\n{table}\nsystem: {system_code(system)}"
    )


def assert_error_bound(full: Any, reduced: Any, *, bound: float | None = None, rtol: float = 1e-6) -> None:
    """Assert that a reduced model is as close to the full one as balanced truncation promises.

    Parameters
    ----------
    full : StateSpace, DiagonalSystem or anything `as_system` accepts
        The model that was reduced, stable.
    reduced : StateSpace, DiagonalSystem, Reduction or anything `as_system` accepts
        The reduced model, of whatever origin.
    bound : float, optional
        Claimed bound on the H-infinity error, in units of y per unit of u; by default that of a `Reduction`, or else
        twice the sum of the dropped Hankel singular values.
    rtol : float, default 1e-6
        Relative to the bound.

    Raises
    ------
    AssertionError
        With the error and the frequency where it occurs, the bound, the values kept and dropped, and both models.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> from hankelred.testing import assert_error_bound
    >>> plant = hr.StateSpace(np.diag([-1.0, -2.0, -30.0]), np.ones((3, 1)), np.ones((1, 3)))
    >>> assert_error_bound(plant, hr.balanced_truncation(plant, order=1))
    """
    rtol = check_number(rtol, "rtol", least=0.0)
    bound = None if bound is None else check_number(bound, "bound", least=0.0)
    claimed = "claimed" if bound is not None else "twice the sum of the dropped hsv"
    if isinstance(reduced, Reduction):
        if bound is None and reduced.bounded != HINF:
            raise InputError(
                f"reduced must have a bound on the {HINF}; got one on the {reduced.bounded}. Pass bound=, or measure."
            )
        bound = reduced.error_bound if bound is None else bound
        reduced = reduced.system
    G, Gr = one_system(full, "full"), one_system(reduced, "reduced")
    true, floor = _values_and_floor(G)
    order = len(Gr.poles())  # of a real output, real poles once
    if order > len(true):
        raise AssertionError(f"The reduced model must not be larger than the full one; got order {order} for {G!r}.")
    limit = 2 * (tail_sum(true, order) + floor) if bound is None else bound
    error, peak = hinf_norm(G - Gr, return_peak=True)
    if error <= limit * (1 + rtol) + 2 * floor:
        return
    unit = "rad/sample" if G.dt is True else "rad/s"
    where = f" (at {peak:.6g} {unit})" if np.isfinite(error) else " because it is unstable"
    raise AssertionError(
        f"The H-infinity error of the reduced model, {error:.6g}{where}, exceeds its bound {limit:.6g} ({claimed}).\n"
        f"hsv kept:    {_listed(true[:order])}\n"
        f"hsv dropped: {_listed(true[order:])}\n"
        f"full:    {system_code(G)}\n"
        f"reduced: {system_code(Gr)}"
    )


def assert_weyl(G: Any, H: Any, hsv: Callable[[Any], ArrayLike] | None = None) -> None:
    """Assert Weyl's inequality: the Hankel singular values of two systems differ by no more than the systems do.

    That is a theorem, ``|hsv_i(G) - hsv_i(H)| <= ||G - H||_H``: no true values have to be known.

    Parameters
    ----------
    G, H : StateSpace, DiagonalSystem or anything `as_system` accepts
        Stable systems with the same inputs, outputs and dt; their orders may differ.
    hsv : callable, optional
        The program to be tested, which gets G and H as they were passed; by default that of this library.

    Raises
    ------
    AssertionError
        With a table of the values, the bound, and both systems.

    Examples
    --------
    >>> import hankelred as hr
    >>> from hankelred.testing import assert_weyl
    >>> slow, fast = (hr.StateSpace([[-rate]], [[1.0]], [[1.0]]) for rate in (1.0, 2.0))
    >>> assert_weyl(slow, fast)
    """
    first, second = one_system(G, "G"), one_system(H, "H")
    drift = drift_bound(first, second)
    before, after = drift.hsv, drift.hsv_after
    if hsv is not None:
        claimed = _claimed(hsv, G, first), _claimed(hsv, H, second)
        before, after = (padded(x, max(map(len, claimed))) for x in claimed)
    table, wrong = _table({"of G": before, "of H": after}, np.full(len(before), drift.hankel_norm + drift.floor))
    if wrong.any():
        raise AssertionError(
            f"Weyl's inequality fails for {wrong.sum()} of {len(wrong)} Hankel singular values: they differ by more "
            f"than the Hankel norm of the difference of the systems, {drift.hankel_norm:.6g}.\n{table}\n"
            f"G: {system_code(first)}\nH: {system_code(second)}"
        )


def assert_factors(sys: Any, S: ArrayLike, R: ArrayLike, *, rtol: float = 1e-10) -> None:
    """Assert that ``S S^H`` and ``R^H R`` solve the two Lyapunov equations of a system.

    Parameters
    ----------
    sys : StateSpace, DiagonalSystem or anything `as_system` accepts
        Stable system. Coordinates of a `DiagonalSystem` with real output are those of ``sys.dense()``.
    S : (n, k) array_like
        Controllability factor; a Gramian P that is not factored is tested by its Cholesky factor.
    R : (l, n) array_like
        Observability factor.
    rtol : float, default 1e-10
        Relative to the sizes of the terms of the equation, as for a backward stable solver.

    Raises
    ------
    AssertionError
        With the equation that fails, its relative residual, its largest entry, and the system.

    Examples
    --------
    >>> import hankelred as hr
    >>> from hankelred.testing import assert_factors
    >>> lag = hr.StateSpace([[-2.0]], [[1.0]], [[2.0]])
    >>> assert_factors(lag, *hr.gramian_factors(lag))
    """
    system = one_system(sys, "sys")
    G, rtol = system.dense(), check_number(rtol, "rtol", least=0.0)
    S, R = double(check_array(S, "S", 2, "It is (n, k).")), double(check_array(R, "R", 2, "It is (l, n)."))
    form = "A P A^H - P + B B^H" if G.is_discrete else "A P + P A^H + B B^H"
    dual = "A^H Q A - Q + C^H C" if G.is_discrete else "A^H Q + Q A + C^H C"
    equations = [
        ("controllability", "P = S S^H", form, G.A, G.B, S),
        ("observability", "Q = R^H R", dual, G.A.conj().T, G.C.conj().T, R.conj().T),
    ]
    for name, meaning, equation, M, F, factor in equations:
        if len(factor) != len(M):
            shape = len(factor), len(factor)
            raise AssertionError(f"The {name} Gramian {meaning} must be {M.shape}, as A is; got {shape}.")
        with np.errstate(over="ignore", invalid="ignore"):
            X = _gramian(factor)
            image = M @ X @ M.conj().T - X if G.is_discrete else M @ X + X @ M.conj().T
            residual = np.abs(image + F @ F.conj().T)
            norm, left = np.linalg.norm(M, 2) if G.n else np.float64(0.0), np.linalg.norm(residual)
            size = (norm**2 + 1 if G.is_discrete else 2 * norm) * np.linalg.norm(X) + np.linalg.norm(F) ** 2
            allowed = rtol * size
        check_result(f"The residual of {meaning}", left, size, hint="Scale the system.")
        if not left <= allowed:
            row, column = np.unravel_index(int(np.argmax(residual)), residual.shape)
            raise AssertionError(
                f"{meaning} does not solve {equation} = 0: relative residual {left / size:.2g}, allowed {rtol:.2g}; "
                f"largest entry {residual.max():.6g} at ({row}, {column}).\nsystem: {system_code(system)}"
            )


def assert_balanced(sys: Any, hsv: ArrayLike | None = None, *, rtol: float = 1e-8) -> None:
    """Assert that both Gramians of a system are one diagonal matrix of decreasing Hankel singular values.

    Parameters
    ----------
    sys : StateSpace, DiagonalSystem or anything `as_system` accepts
        Stable system.
    hsv : (n,) array_like, optional
        The diagonal; by default the Hankel singular values of `sys`.
    rtol : float, default 1e-8
        Relative to the largest value.

    Raises
    ------
    AssertionError
        With the entry that differs most, and the system.

    Examples
    --------
    >>> import hankelred as hr
    >>> from hankelred.testing import assert_balanced, system_with_hsv
    >>> assert_balanced(system_with_hsv([3.0, 1.0]), [3.0, 1.0])
    """
    system, rtol = one_system(sys, "sys"), check_number(rtol, "rtol", least=0.0)
    S, R = gramian_factors(system)
    true, floor = _values_and_floor(system)
    expected = true if hsv is None else _claimed(hsv, sys, system)
    if len(expected) != len(S):
        raise AssertionError(f"A balanced system has one hsv a state; got {len(expected)} hsv and {len(S)} states.")
    scale = float(np.max(expected, initial=0.0))
    for name, gramian in (("controllability", _gramian(S)), ("observability", _gramian(R.conj().T))):
        difference = np.abs(gramian - np.diag(expected))
        if not np.all(difference <= rtol * scale + floor):
            row, column = np.unravel_index(int(np.argmax(difference)), difference.shape)
            wanted = expected[row] if row == column else 0.0
            raise AssertionError(
                f"The system is not balanced: its {name} Gramian has {gramian[row, column]:.6g} at ({row}, {column}) "
                f"where {wanted:.6g} belongs.\nhsv: {_listed(expected)}\nsystem: {system_code(system)}"
            )


def _gramian(factor: Array) -> Array:
    """Return ``F F^H``, if double precision can hold it."""
    with np.errstate(over="ignore", invalid="ignore"):
        gramian = factor @ factor.conj().T
    check_result("The Gramians of S and R", gramian, hint="Scale the system.")
    return gramian


def _values_and_floor(system: LinearSystem) -> tuple[Array, float]:
    """Return the Hankel singular values and what rounding in two programs can do to one of them."""
    found = stable(system)
    return found.hsv, SAFETY * found.floor


def _claimed(hsv: ArrayLike | Callable[[Any], ArrayLike], sys: Any, system: LinearSystem) -> Array:
    """Return claimed values as floats, or say why they cannot be Hankel singular values."""
    values = check_array(hsv(sys) if callable(hsv) else hsv, "hsv", 1, finite=False)
    real = double(values.real)
    rises = np.append(False, real[1:] > (1 + 4 * EPS) * real[:-1])
    problems = {
        "is not a number": np.isnan(values),
        "is not real": values.imag != 0,
        "is negative": real < 0,
        "is larger than the one before": rises,
    }
    for problem, where in problems.items():
        if where.any():
            raise AssertionError(
                f"Hankel singular values are real, not negative and decreasing, but hsv {int(np.argmax(where)) + 1} "
                f"{problem}.\nclaimed: {_listed(values)}\nsystem: {system_code(system)}"
            )
    return real


def _table(columns: dict[str, Array], allowed: Array) -> tuple[str, Array]:
    """Return a table of two columns of values, and which rows are wrong; of a long table it has only these."""
    difference = np.abs(np.subtract(*columns.values()))
    wrong = ~(difference <= allowed)
    rows = np.arange(len(wrong)) if len(wrong) <= SHOWN_ROWS else np.flatnonzero(wrong)[:SHOWN_ROWS]
    lines = ["    i" + "".join(f"{head:>16}" for head in columns) + f"{'difference':>14}{'allowed':>14}"]
    for i in rows:
        cells = "".join(f"{column[i]:16.8g}" for column in columns.values())
        mark = "   <--" if wrong[i] else ""
        lines.append(f"{i + 1:5d}{cells}{difference[i]:14.3g}{allowed[i]:14.1e}{mark}")
    if hidden := len(wrong) - len(rows):
        lines.append(f"      ({hidden} more rows)")
    return "\n".join(lines), wrong


def _listed(values: Array) -> str:
    """Return the first values, for people."""
    shown = ", ".join(f"{value:.6g}" for value in values[:SHOWN_ROWS]) or "none"
    return shown + (f", ... ({len(values)} in all)" if len(values) > SHOWN_ROWS else "")
