"""Correct digits of Hankel singular values: hankelred and its peers against mpmath.

    python -m benchmarks.accuracy.hsv        # prints, and writes benchmarks/results/hsv_accuracy.json

For every system and program: how many of the leading values have two correct digits or more, and how small the last
of them is next to the first. The reference solves both Lyapunov equations by doubling with 150 decimal digits. Systems
continuous (c) and discrete (d), most of them with values that fall below the rounding error of the first one:

- heat16: heat conduction along a rod of 16 cells, heated and measured at opposite ends;
- poles20: 20 real poles over four decades; real16: 16 real poles up to 0.99; lru16: 8 complex pairs on a ring, as a
  layer starts with; ring12: 12 complex poles that are no pairs, with complex data;
- circ24: normally distributed A; spec24: decay rates spread over three decades, two inputs; jordan12: one Jordan block.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import scipy.linalg as sla
from numpy.typing import NDArray

import hankelred as hr
from benchmarks._common import optional, parser, surroundings, write
from benchmarks.speed.dense import system

DIGITS = 150
WRONG = 1e-2  # two correct digits

Array = NDArray[Any]
Case = tuple[Array, Array, Array, bool]


def cases() -> dict[str, Case]:
    """The systems by name as ``(A, B, C, discrete)``."""
    rng = np.random.default_rng(1)
    ones = np.ones((40, 1))
    heat = 17.0**2 * (np.eye(16, k=1) - 2 * np.eye(16) + np.eye(16, k=-1))
    ends = np.eye(16)[:, :1], np.eye(16)[-1:]
    real = np.diag(np.linspace(0.2, 0.99, 16))
    rates = rng.uniform(0.9, 0.99, 8) * np.exp(1j * rng.uniform(0, np.pi, 8))
    pairs = sla.block_diag(*(np.array([[z.real, -z.imag], [z.imag, z.real]]) for z in rates))
    ring = np.diag(rng.uniform(0.5, 0.95, 12) * np.exp(2j * np.pi * rng.random(12)))
    jordan = np.eye(12, k=1) - np.eye(12)
    return {
        "heat16 c": (heat, *ends, False),
        "poles20 c": (-np.diag(np.geomspace(1e-2, 1e2, 20)), ones[:20], ones[:20].T, False),
        "circ24 c": (*system("circ", 24, 1, False), False),
        "spec24 c": (*system("spec", 24, 2, False), False),
        "jordan12 c": (jordan, np.eye(12)[:, -1:], np.eye(12)[:1], False),
        "real16 d": (real, ones[:16], ones[:16].T, True),
        "lru16 d": (pairs, rng.standard_normal((16, 1)), rng.standard_normal((1, 16)), True),
        "ring12 d": (ring, rng.standard_normal((12, 1)) + 1j, rng.standard_normal((1, 12)) - 1j, True),
        "circ24 d": (*system("circ", 24, 1, True), True),
    }


def exact(A: Array, B: Array, C: Array, discrete: bool) -> Array:
    """The Hankel singular values from both Gramians in mpmath."""
    with mpmath.workdps(DIGITS):
        a, b, c = (mpmath.matrix(x.tolist()) for x in (A, B, C))
        if not discrete:  # the Cayley map with a point amid the poles keeps both Gramians
            point = mpmath.mpf(float(np.sqrt(sla.norm(A) / sla.norm(sla.inv(A)))))
            shifted = a - point * mpmath.eye(len(A))
            inverse = mpmath.inverse(shifted)
            b, c = mpmath.sqrt(2 * point) * inverse * b, mpmath.sqrt(2 * point) * c * inverse
            a = inverse * (a + point * mpmath.eye(len(A)))
        P, Q = gramian(a, b * b.H), gramian(a.H, c.H * c)
        values, vectors = mpmath.eighe(P)
        root = vectors * mpmath.diag([mpmath.sqrt(max(value, 0)) for value in values])
        squares = mpmath.eighe(root.H * Q * root, eigvals_only=True)
        return np.array(sorted((float(mpmath.sqrt(max(square, 0))) for square in squares), reverse=True))


def gramian(a: mpmath.matrix, P: mpmath.matrix) -> mpmath.matrix:
    """Sum ``a^k P (a^H)^k`` by doubling the number of terms."""
    while mpmath.mnorm(a, "f") > mpmath.mpf(10) ** (-DIGITS):
        P, a = P + a * P * a.H, a * a
    return P


def by_eigenvalues(A: Array, B: Array, C: Array, discrete: bool) -> Array:
    """The roots of the eigenvalues of P Q, the textbook formula."""
    P, Q = scipy_gramians(A, B, C, discrete)
    return np.sort(np.sqrt(sla.eigvals(P @ Q)))[::-1]


def by_cholesky(A: Array, B: Array, C: Array, discrete: bool) -> Array:
    """The singular values of the product of two Cholesky factors."""
    P, Q = scipy_gramians(A, B, C, discrete)
    return sla.svdvals(sla.cholesky(Q) @ sla.cholesky(P, lower=True))


def scipy_gramians(A: Array, B: Array, C: Array, discrete: bool) -> tuple[Array, Array]:
    """Both Gramians, with the sign of the right side that SciPy expects."""
    solve: Callable[[Array, Array], Array] = sla.solve_discrete_lyapunov
    sign = 1
    if not discrete:
        solve, sign = sla.solve_continuous_lyapunov, -1
    return solve(A, sign * B @ B.conj().T), solve(A.conj().T, sign * C.conj().T @ C)


def programs() -> dict[str, Callable[[Array, Array, Array, bool], Array]]:
    """The programs that are installed, from a system to its Hankel singular values."""
    found: dict[str, Callable[[Array, Array, Array, bool], Array]] = {
        "hankelred": lambda A, B, C, d: hr.hankel_singular_values(hr.StateSpace(A, B, C, dt=int(d))),
        "hankelred, diagonal": by_diagonal,
        "sqrt(eig(P Q))": by_eigenvalues,
        "Cholesky + svd": by_cholesky,
    }
    if slycot := optional("slycot"):

        def by_slycot(A: Array, B: Array, C: Array, discrete: bool) -> Array:
            n = len(A)
            found = slycot.ab09ad("D" if discrete else "C", "B", "N", n, B.shape[1], len(C), A, B, C, nr=n)
            hsv: Array = found[-1]
            return hsv

        found["slycot.ab09ad B"] = by_slycot
    if control := optional("control"):
        found["control.hsvd"] = lambda A, B, C, d: control.hsvd(
            control.ss(A, B, C, np.zeros((len(C), B.shape[1])), int(d))
        )
    if optional("pymor"):
        iosys = optional("pymor.models.iosys")
        optional("pymor.core.logger").set_log_levels({"pymor": "ERROR"})
        found["pyMOR"] = lambda A, B, C, d: iosys.LTIModel.from_matrices(A, B, C, sampling_time=int(d)).hsv()
    return found


def by_diagonal(A: Array, B: Array, C: Array, discrete: bool) -> Array:
    """What hankelred finds if it is told that A is diagonal."""
    if np.any(A - np.diag(np.diag(A))):
        raise ValueError("not diagonal")
    return hr.hankel_singular_values(hr.DiagonalSystem(np.diag(A), B, C, dt=int(discrete)))


def compare(found: Array, true: Array) -> dict[str, Any]:
    """Count the leading values with two correct digits and name the last one of them."""
    if not np.isrealobj(found) and np.abs(found.imag).max() == 0:
        found = found.real
    if len(found) != len(true):
        found = np.append(found, np.zeros(max(0, len(true) - len(found))))[: len(true)]
    error = np.abs(found - true) / true
    wrong = np.flatnonzero(~(error < WRONG))  # NaN is wrong
    count = int(wrong[0]) if len(wrong) else len(true)
    return {"correct": count, "of": len(true), "last": float(true[count - 1] / true[0]) if count else None}


def outcome(program: Callable[..., Array], case: Case, true: Array) -> dict[str, Any]:
    """Run a program and say how well it did; an honest refusal is an outcome, too."""
    A, B, C, discrete = case
    try:
        return compare(np.asarray(program(A.copy(), B.copy(), C.copy(), discrete)), true)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:200]}


def text(found: dict[str, Any]) -> str:
    """An outcome in one cell."""
    if "error" in found:
        return str(found["error"]).split(":")[0]
    return f"{found['correct']}/{found['of']}" + (f" ({found['last']:.0e})" if found["last"] is not None else "")


def main() -> None:
    options = parser(__doc__, "hsv_accuracy.json")
    arguments = options.parse_args()
    warnings.simplefilter("ignore")  # peers cast complex data to real ones with a warning
    tools = programs()
    results: dict[str, Any] = {}
    for name, case in cases().items():
        true = exact(*case)
        rows = {tool: outcome(program, case, true) for tool, program in tools.items()}
        results[name] = {"least": float(true[-1] / true[0]), "programs": rows}
        print(f"{name}: least {true[-1] / true[0]:.0e}")
        for tool, row in rows.items():
            print(f"    {tool:<22}{text(row)}", flush=True)
    write(arguments.output, {**surroundings(), "results": results})


if __name__ == "__main__":
    main()
