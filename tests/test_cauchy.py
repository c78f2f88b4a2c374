"""Structured factors of diagonal systems: Gramians, every Hankel singular value, borders."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.linalg as sla
from hypothesis import given

import hankelred as hr
from hankelred import DiagonalSystem
from hankelred.hankel import factored
from hankelred.linalg import cauchy
from hankelred.linalg.cauchy import dense_is_faster, factor, pole_data
from tests.reference_diagonal import cauchy_gramians, exact_hsv, published_hsv
from tests.strategies import diagonal_systems

# The requirement on every hsv, however small. Measured: 5e-15 for one input, 7e-14 for several.
EVERY_HSV = 1e-12


def structured_hsv(system):
    return factored(system).hsv  # in double precision


def factor_pair(system):
    parts = factored(system).parts
    return parts.factors


def factor_of(lam, B, dt, rates=None, rtol=0.0):
    """Factor the Gramian of poles and input matrix."""
    driven = np.flatnonzero(B.any(axis=1))
    poles = pole_data(np.asarray(lam) + 0.0, rates, dt is True or dt > 0)
    return factor(poles, B, driven, driven[:0], rtol)[0]


def ones(n):
    return np.ones((n, 1)), np.ones((1, n))


def normal(rng, *shape):
    return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)


def lru_like(n, m, seed=0, radii=(0.5, 0.999), output="complex"):
    rng = np.random.default_rng(seed)
    radius = np.sqrt(rng.uniform(radii[0] ** 2, radii[1] ** 2, n))
    lam = radius * np.exp(1j * rng.uniform(0, 2 * np.pi, n))
    B = normal(rng, n, m) * np.sqrt(1 - radius**2)[:, None]
    return DiagonalSystem(lam, B, normal(rng, m, n), dt=True, output=output)


def s4d_like(n, m, seed=0, output="complex"):
    rng = np.random.default_rng(seed)
    return DiagonalSystem(-0.5 + 1j * np.pi * np.arange(n), normal(rng, n, m), normal(rng, m, n), dt=0, output=output)


@given(diagonal_systems(max_states=8))
def test_factors_solve_both_lyapunov_equations(system):
    S, R = factor_pair(system)
    G = system.dense()
    P, Q = S @ S.conj().T, R.conj().T @ R
    if system.is_discrete:
        left = G.A @ P @ G.A.conj().T - P + G.B @ G.B.conj().T
        right = G.A.conj().T @ Q @ G.A - Q + G.C.conj().T @ G.C
    else:
        left = G.A @ P + P @ G.A.conj().T + G.B @ G.B.conj().T
        right = G.A.conj().T @ Q + Q @ G.A + G.C.conj().T @ G.C
    scale = max(np.abs(G.A).max(), 1.0)
    assert np.abs(left).max() <= 1e-13 * scale * np.abs(P).max()  # a few n eps of the largest term
    assert np.abs(right).max() <= 1e-13 * scale * np.abs(Q).max()


@pytest.mark.parametrize("dt", [0, 0.1, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.complex128])
def test_factor_times_its_adjoint_is_the_cauchy_form(dt, dtype):
    rng = np.random.default_rng(3)
    lam = rng.uniform(-0.9, -0.1, 9) * np.exp(1j * rng.uniform(-1, 1, 9) * (np.dtype(dtype).kind == "c"))
    lam, B = (lam if dtype().dtype.kind == "c" else lam.real).astype(dtype), normal(rng, 9, 2).real.astype(dtype)
    S, _ = hr.gramian_factors(DiagonalSystem(lam, B, B.T, dt=dt))
    P, _ = cauchy_gramians(lam.astype(complex), B, B.T, discrete=dt != 0)
    assert S.dtype == dtype
    assert np.abs(S @ S.conj().T - P).max() <= 20 * np.finfo(dtype).eps * np.abs(P).max()


EXACT_CASES = {
    "hilbert_6": DiagonalSystem(-(np.arange(6) + 0.5), *ones(6), dt=0),
    "hilbert_12": DiagonalSystem(-(np.arange(12) + 0.5), *ones(12), dt=0),
    "hilbert_20": DiagonalSystem(-(np.arange(20) + 0.5), *ones(20), dt=0),
    "real_rates": DiagonalSystem(-0.05 * np.arange(1, 17), *ones(16), dt=0),
    "sampled_real_rates": DiagonalSystem.from_rates(-0.05 * np.arange(1, 17), *ones(16), dt=True),
    "diag_dt": DiagonalSystem([0.95, 0.5, -0.3, 0.8], np.ones((4, 1)), [[1.0, 2.0, 3.0, 0.5]], dt=1.0),
    "near_unit_circle_dt": DiagonalSystem([1 - 1e-9, 1 - 1e-6, 0.9, -1 + 1e-6], *ones(4), dt=True),
    "complex_diag_ct": DiagonalSystem([-1 + 1j, -2 - 1j, -0.1 + 5j], *ones(3), dt=0),
    "rates_over_16_decades": DiagonalSystem(-np.logspace(-8, 8, 24), *ones(24), dt=0),
    "one_state": DiagonalSystem([0.5 + 0.5j], [[3.0, 1.0j]], [[2.0]], dt=True),
    "pole_at_zero": DiagonalSystem([0.0, 0.5, -0.5], *ones(3), dt=True),
    "poles_1e-13_from_the_circle": DiagonalSystem(
        np.array([1 - 1e-13, 1 - 3e-13, -1 + 1e-13, (1 - 1e-13) * np.exp(0.3j)]), *ones(4), dt=True
    ),
    "rates_1e-13_apart_next_to_the_circle": DiagonalSystem.from_rates(
        np.array([-1e-13 + 0.3j, -2e-13 + (0.3 + 1e-13) * 1j, -1e-13 + 6.2831853071795j, -1e-16, -800.0]),
        *ones(5),
        dt=True,
    ),
    "rates_one_turn_apart_next_to_the_circle": DiagonalSystem.from_rates(
        np.array([-1e-13 - 0.001j, -1e-13 + 6.2821853071797j, -0.1]), *ones(3), dt=True
    ),
    "repeated_poles_one_input": DiagonalSystem([0.5, 0.5, 0.25], *ones(3), dt=True),
    "repeated_poles_three_times_two_inputs": DiagonalSystem(
        [0.5, 0.5, 0.5, 0.25], normal(np.random.default_rng(1), 4, 2), normal(np.random.default_rng(2), 2, 4), dt=True
    ),
    "nearly_repeated_poles": DiagonalSystem([0.5, 0.5 + 1e-13, 0.25, 0.25 - 1e-9], *ones(4), dt=True),
    "single_precision_data": DiagonalSystem(*(x.astype(np.float32) for x in (-np.logspace(-2, 1, 9), *ones(9))), dt=0),
    "more_inputs_than_states": DiagonalSystem(
        [0.5, -0.9, 0.1j], normal(np.random.default_rng(3), 3, 7), normal(np.random.default_rng(4), 2, 3), dt=True
    ),
    "proportional_inputs": DiagonalSystem(  # exactly: by powers of two
        -(np.arange(22) + 0.5),
        normal(np.random.default_rng(5), 22, 1).real * [1.0, 2.0, 4.0],
        normal(np.random.default_rng(6), 1, 22).real * [[1.0], [2.0], [0.0]],
        dt=0,
    ),
    "40_sampled_real_rates": DiagonalSystem.from_rates(-0.05 * np.logspace(-2, 2, 40), *ones(40), dt=True),
    **{f"lru_like_24_{m}": lru_like(24, m) for m in (1, 2, 4)},
    **{f"s4d_like_24_{m}": s4d_like(24, m) for m in (1, 2, 4)},
}


@pytest.mark.parametrize("name", EXACT_CASES)
def test_every_hsv_has_full_relative_accuracy(name):
    np.testing.assert_allclose(structured_hsv(EXACT_CASES[name]), exact_hsv(EXACT_CASES[name]), rtol=EVERY_HSV)


@pytest.mark.parametrize("name", ["hilbert_12", "lru_like_24_1", "lru_like_24_4", "s4d_like_24_2"])
def test_single_precision_systems_have_every_hsv_to_single_precision(name):
    system = EXACT_CASES[name]
    lam, B, C = (
        x.astype(np.complex64 if x.dtype.kind == "c" else np.float32) for x in (system.lam, system.B, system.C)
    )
    single = DiagonalSystem(lam, B, C, dt=system.dt)
    hsv = hr.hankel_singular_values(single)
    assert hsv.dtype == np.float32
    np.testing.assert_allclose(hsv, exact_hsv(single), rtol=np.finfo(np.float32).eps)  # computed in double precision


def test_the_published_approach_loses_the_small_hsv_of_the_hilbert_system():
    system = EXACT_CASES["hilbert_12"]
    exact = exact_hsv(system)
    published = published_hsv(system.lam, system.B, system.C, discrete=False)
    assert np.sum(np.abs(published / exact - 1) < 1e-4) <= 7


@given(diagonal_systems(max_states=6, outputs=("complex",)))
def test_dual_system_has_the_same_hsv(system):
    dual = DiagonalSystem(system.lam.conj(), system.C.conj().T, system.B.conj().T, dt=system.dt)
    direct = DiagonalSystem(system.lam, system.B, system.C, dt=system.dt)
    np.testing.assert_allclose(structured_hsv(dual), structured_hsv(direct), rtol=EVERY_HSV)


@given(diagonal_systems(max_states=8))
def test_order_of_the_states_does_not_change_the_hsv(system):
    reverse = system.take(np.arange(system.n)[::-1])
    np.testing.assert_allclose(structured_hsv(reverse), structured_hsv(system), rtol=EVERY_HSV)


@given(diagonal_systems(max_states=8))
def test_scale_of_the_states_does_not_change_the_hsv(system):
    scale = 10.0 ** np.linspace(-80, 80, system.n)
    scaled = DiagonalSystem(system.lam, scale[:, None] * system.B, system.C / scale, dt=system.dt, output=system.output)
    plain = DiagonalSystem(system.lam, system.B, system.C, dt=system.dt, output=system.output)
    np.testing.assert_allclose(structured_hsv(scaled), structured_hsv(plain), rtol=EVERY_HSV)


@pytest.mark.parametrize("m", [1, 2])
def test_states_that_link_no_input_to_an_output_leave_the_other_hsv_alone(m):
    # the case is graded down to 1e-16 of the largest: a row of size 1 in the wrong place would cover it
    rng = np.random.default_rng(5)
    lam, B, C = -(np.arange(12) + 0.5), normal(rng, 12, m).real, normal(rng, m, 12).real
    more = -np.array([0.7, 1.3, 5.0, 0.2])
    B_more, C_more = normal(rng, 4, m).real, normal(rng, m, 4).real
    B_more[2:], C_more[:, 1:3] = 0, 0  # seen and driven; driven; neither; seen
    B_more[0] = 0
    alone = DiagonalSystem(lam, B, C, dt=0)
    joined = DiagonalSystem(np.append(lam, more), np.vstack([B, B_more]), np.hstack([C, C_more]), dt=0)
    S, R = factor_pair(joined)
    P, Q = cauchy_gramians(joined.lam, joined.B, joined.C, discrete=False)
    np.testing.assert_allclose(structured_hsv(joined)[:12], structured_hsv(alone), rtol=EVERY_HSV)
    np.testing.assert_allclose(S @ S.T, P, atol=1e-14 * np.abs(P).max())
    np.testing.assert_allclose(R.T @ R, Q, atol=1e-14 * np.abs(Q).max())


def test_hsv_that_nothing_excites_are_exactly_zero():
    system = DiagonalSystem([0.5, 0.4, 0.3], [[1.0], [0.0], [1.0]], [[1.0, 1.0, 0.0]], dt=True)
    assert list(structured_hsv(system)[1:]) == [0, 0]


@pytest.mark.parametrize(("n", "m", "p"), [(0, 1, 1), (0, 0, 0), (3, 0, 1), (3, 1, 0)])
def test_systems_without_states_inputs_or_outputs_have_empty_factors(n, m, p):
    S, R = factor_pair(DiagonalSystem(-np.ones(n), np.ones((n, m)), np.ones((p, n)), dt=0))
    assert S.shape[0] == R.shape[1] == n
    assert min(S.shape[1], R.shape[0]) == 0


@pytest.mark.parametrize("scale", [1e-170, 1e160])
def test_factor_is_proportional_to_its_input_matrix(scale):
    lam, B = np.array([0.5, 0.9j, -0.3]), np.array([[1.0, 2.0], [2.0, 1.0], [3.0, 1.0]], complex)
    np.testing.assert_allclose(
        factor_of(lam, scale * B, dt=True) / scale, factor_of(lam, B, dt=True), rtol=1e-14, atol=1e-15
    )


@pytest.mark.parametrize("rtol", [1e-2, 1e-8, 1e-14])
def test_elimination_stops_with_the_first_column_that_leaves_at_most_rtol_of_the_trace(rtol):
    lam, B = -np.logspace(-2, 2, 60), np.ones((60, 1))
    k, full = factor_of(lam, B, dt=0, rtol=rtol).shape[1], factor_of(lam, B, dt=0)
    left = np.cumsum(np.linalg.norm(full, axis=0)[::-1] ** 2)[::-1] / np.linalg.norm(full) ** 2  # same pivots
    assert left[k] <= rtol < left[k - 1]


def test_columns_fall_in_size():
    S = factor_of(-np.logspace(-2, 2, 40), np.ones((40, 1)), dt=0)
    assert np.all(np.diff(np.abs(S).max(axis=0)) <= 0)


def test_many_states_need_few_columns_and_keep_hsv_to_the_bound_of_the_remainder():
    n = 700  # past the number of states whose columns are all computed
    rng = np.random.default_rng(6)
    lam, B, C = -np.logspace(-3, 3, n), normal(rng, n, 2).real, normal(rng, 2, n).real
    S, R = factor_pair(DiagonalSystem(lam, B, C, dt=0))
    full_S = factor_of(lam, B, dt=0, rtol=0)
    full_R = factor_of(lam, C.T, dt=0, rtol=0).T
    hsv = sla.svdvals(R @ S)
    full = sla.svdvals(full_R @ full_S)[: len(hsv)]
    assert len(hsv) < 300
    assert np.abs(hsv - full).max() <= 1e-14 * hsv[0]  # |R| sqrt(t_P) + ... with relative traces eps^2, and rounding


def test_many_inputs_take_the_dense_route_and_give_the_same_factor_up_to_rotation(monkeypatch):
    system = lru_like(40, 60, radii=(0.9, 0.99))
    monkeypatch.delattr(cauchy, "_structured")
    S = factor_of(system.lam, system.B, dt=True)
    P, _ = cauchy_gramians(system.lam, system.B, system.C, discrete=True)
    assert dense_is_faster(40, 60, complex_data=True)
    assert np.abs(S @ S.conj().T - P).max() <= 1e-13 * np.abs(P).max()  # the naive 1 - |lam|^2


def test_dense_route_keeps_every_hsv():
    system = lru_like(24, 40, seed=2)
    np.testing.assert_allclose(structured_hsv(system), exact_hsv(system, digits=60), rtol=EVERY_HSV)


def test_dense_route_keeps_the_zeros_of_states_that_link_no_input_to_an_output(monkeypatch):
    system = lru_like(40, 60, radii=(0.9, 0.99))
    B, C = system.B.copy(), system.C.copy()
    B[:3], C[:, 20:23] = 0, 0
    B[20:23], C[:, :3] = 1e3 * B[20:23], 1e3 * C[:, :3]  # larger than all others, and last all the same
    monkeypatch.delattr(cauchy, "_structured")
    assert not structured_hsv(DiagonalSystem(system.lam, B, C, dt=True))[-6:].any()


def test_many_inputs_with_an_ill_conditioned_gramian_take_the_structured_route():
    rng = np.random.default_rng(8)
    lam = -(np.arange(40) + 0.5)
    B = np.ones((40, 60)) + 1e-6 * rng.standard_normal((40, 60))
    assert dense_is_faster(40, 60, complex_data=False)
    assert cauchy._dense_factor(pole_data(lam, None, False), B, 40, False) is None
    assert factor_of(lam, B, dt=0).shape == (40, 40)


def test_arguments_are_left_as_they_were():
    lam, B = np.array([0.5, 0.9, -0.3]), np.array([[1.0], [2.0], [3.0]])
    copies = lam.copy(), B.copy()
    factor_of(lam, B, dt=True)
    np.testing.assert_array_equal(lam, copies[0])
    np.testing.assert_array_equal(B, copies[1])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lam": [0.5, 1.0]}, hr.StabilityError, "pole 1"),
        ({"lam": [0.5, 1.0j]}, hr.StabilityError, "lam"),
        ({"lam": [0.5, -1.0], "dt": 0}, hr.StabilityError, "Re lam = 0.5 for pole 0"),
        ({"rates": np.array([-1.0, 1e-20])}, hr.StabilityError, "1e-20 for pole 1"),
    ],
)
def test_unstable_poles_are_named(arguments, error, message):
    arguments = {"lam": [0.5, 0.4], "B": np.ones((2, 1)), "dt": True, **arguments}
    with pytest.raises(error, match=message):
        factor_of(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lam": [0.5, np.nan]}, "lam must be finite; got 1 NaN"),
        ({"lam": [0.5, 0.5, 0.5]}, "one row per pole"),
        ({"lam": [[0.5, 0.5]]}, "lam must have 1 axes"),
        ({"C": np.ones((1, 3))}, "one column per pole"),
        ({"dt": None}, "dt must be given"),
        ({"B": np.ones(2)}, "B must have 2 axes"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    arguments = {"lam": [0.5, 0.4], "B": np.ones((2, 1)), "C": np.ones((1, 2)), "dt": True, **arguments}
    with pytest.raises(hr.InputError, match=message):
        DiagonalSystem(**arguments)


def test_overflow_of_the_gramian_is_an_error():
    with pytest.raises(hr.NumericalError, match="overflows"):
        hr.gramian_factors(DiagonalSystem([-1.0, -1e-323], np.ones((2, 1)), np.ones((1, 2)), dt=0))


def test_kernels_run_without_compilation():
    program = (
        "import numpy as np; from hankelred import DiagonalSystem, gramian_factors\n"
        "lam, B, C = np.array([0.5j, 0.3, -0.2 + 0.1j]), np.ones((3, 2)), np.ones((2, 3)) * [[1], [2j]]\n"
        "for output in ('complex', 'real'):\n"
        "    S, R = gramian_factors(DiagonalSystem.from_rates(np.log(lam), B, C, dt=1, output=output))\n"
        "    print(np.linalg.norm(R @ S))\n"
        "    S, R = gramian_factors(DiagonalSystem(lam.real - 1, B, C.real, dt=0, output=output))\n"
        "    print(np.linalg.norm(R @ S))\n"
    )
    plain, compiled = (
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "NUMBA_DISABLE_JIT": disabled},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for disabled in "10"
    )
    np.testing.assert_allclose(np.array(plain, float), np.array(compiled, float), rtol=1e-13)
