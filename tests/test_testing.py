"""What users import into their own tests: strategies keep their promises, assertions catch programs that are wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg as sla
import scipy.signal
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

import hankelred as hr
from hankelred import testing

control = pytest.importorskip("control", reason="python-control is one of the libraries whose models are asserted on")

ANY = [testing.stable_systems(), testing.diagonal_systems(), testing.near_boundary_systems()]
PLANT = hr.StateSpace([[-1.0, 2.0], [0.0, -3.0]], [[1.0], [1.0]], [[2.0, 1.0]])


def textbook(A: np.ndarray, B: np.ndarray, C: np.ndarray, discrete: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return both Gramians as SciPy solves for them."""
    if discrete:
        P = sla.solve_discrete_lyapunov(A, B @ B.conj().T)
        return P, sla.solve_discrete_lyapunov(A.conj().T, C.conj().T @ C)
    P = sla.solve_continuous_lyapunov(A, -B @ B.conj().T)
    return P, sla.solve_continuous_lyapunov(A.conj().T, -C.conj().T @ C)


def values(P: np.ndarray, Q: np.ndarray) -> np.ndarray:
    """Return the roots of the eigenvalues of P Q."""
    return np.sort(np.sqrt(np.maximum(sla.eigvals(P @ Q).real, 0)))[::-1]


def right(G: hr.StateSpace) -> np.ndarray:
    return values(*textbook(G.A, G.B, G.C, G.is_discrete))


def wrong_conjugate_in_q(G: hr.StateSpace) -> np.ndarray:
    """Solve for Q with the transpose of A where its conjugate transpose belongs."""
    P, _ = textbook(G.A, G.B, G.C, G.is_discrete)
    _, Q = textbook(G.A.conj(), G.B, G.C, G.is_discrete)
    return values(P, Q)


def wrong_conjugate_of_c(G: hr.StateSpace) -> np.ndarray:
    P, _ = textbook(G.A, G.B, G.C, G.is_discrete)
    _, Q = textbook(G.A, G.B, G.C.conj(), G.is_discrete)
    return values(P, Q)


def eigenvalues_in_single_precision(G: hr.StateSpace) -> np.ndarray:
    """Take eigenvalues of P Q, with NaN set to 0, in the precision that layers are trained in."""
    P, Q = (X.astype(np.complex64) for X in textbook(G.A, G.B, G.C, G.is_discrete))
    return np.sort(np.nan_to_num(np.sqrt(np.linalg.eigvals(P @ Q)).real))[::-1].astype(float)


def added_to_the_diagonal(G: hr.StateSpace) -> np.ndarray:
    """Add 1e-4 to both Gramians so that a Cholesky factorisation gets through."""
    return values(*(X + 1e-4 * np.eye(G.n) for X in textbook(G.A, G.B, G.C, G.is_discrete)))


def squares(G: hr.StateSpace) -> np.ndarray:
    """Forget the root."""
    return right(G) ** 2


def controllability_only(G: hr.StateSpace) -> np.ndarray:
    """Rank states by how well they are reached."""
    return sla.svdvals(textbook(G.A, G.B, G.C, G.is_discrete)[0])


def continuous_equation(G: hr.StateSpace) -> np.ndarray:
    """Solve the equation of the other time domain."""
    return values(*textbook(G.A - np.eye(G.n), G.B, G.C, False))


WRONG_VALUES = [
    wrong_conjugate_in_q,
    wrong_conjugate_of_c,
    eigenvalues_in_single_precision,
    added_to_the_diagonal,
    squares,
    controllability_only,
    continuous_equation,
]
SEARCH = settings(max_examples=300, derandomize=True, database=None, deadline=None, phases=[Phase.generate])


def is_caught(strategy: st.SearchStrategy, check: Callable[[object], None]) -> bool:
    """Tell whether an assertion fails for one of the systems drawn."""

    @SEARCH
    @given(strategy)
    def run(drawn: object) -> None:
        check(drawn)

    try:
        run()
    except AssertionError:
        return True
    return False


def truncated_textbook(G: hr.StateSpace, order: int) -> hr.StateSpace:
    """Truncate in balanced coordinates, right for minimal systems."""
    return project(G, *bases(G, order))


def bases(G: hr.StateSpace, order: int) -> tuple[np.ndarray, np.ndarray]:
    S, R = hr.gramian_factors(G)
    U, hsv, Vh = np.linalg.svd(R @ S)
    root = np.sqrt(hsv[:order])
    return S @ Vh[:order].conj().T / root, U[:, :order].conj().T @ R / root[:, None]


def project(G: hr.StateSpace, T: np.ndarray, Ti: np.ndarray) -> hr.StateSpace:
    return hr.StateSpace(Ti @ G.A @ T, Ti @ G.B, G.C @ T, G.D, G.dt)


def sliced_basis(G: hr.StateSpace, order: int) -> hr.StateSpace:
    """Keep the first states instead of the first balanced ones."""
    return project(G, np.eye(G.n)[:, :order], np.eye(G.n)[:order])


def basis_sliced_by_rows(G: hr.StateSpace, order: int) -> hr.StateSpace:
    """Invert the leading block of T where the rows of Ti belong."""
    T, _ = bases(G, order)
    return project(G, T, np.vstack([np.linalg.inv(T[:order]).T, np.zeros((G.n - order, order))]).T)


def wrong_end(G: hr.StateSpace, order: int) -> hr.StateSpace:
    """Keep the least values, as if they were sorted the other way."""
    T, Ti = bases(G, G.n)
    return project(G, T[:, -order:], Ti[-order:])


def lost_feedthrough(G: hr.StateSpace, order: int) -> hr.StateSpace:
    reduced = truncated_textbook(G, order)
    return hr.StateSpace(reduced.A, reduced.B, reduced.C, dt=G.dt)


def unchecked_conjugate(G: hr.StateSpace, order: int) -> hr.StateSpace:
    """Transpose the singular vectors without conjugating them."""
    S, R = hr.gramian_factors(G)
    U, hsv, Vh = np.linalg.svd(R @ S)
    root = np.sqrt(hsv[:order])
    return project(G, S @ Vh[:order].T / root, U[:, :order].T @ R / root[:, None])


# Known systems with a gain at frequency 0 that truncation cannot hide, in states that are not balanced.
MINIMAL = testing.prescribed_systems(max_states=4, dt=(0, True)).map(lambda known: known[0]).filter(lambda G: G.n > 1)
MIXED = st.tuples(MINIMAL, st.integers(1, 3)).map(
    lambda drawn: project(drawn[0], *(sla.expm(s * drawn[1] * np.triu(np.ones((drawn[0].n,) * 2), 1)) for s in (1, -1)))
)


@given(testing.stable_systems())
def test_right_values_are_accepted(system):
    hsv = hr.hankel_singular_values(system)
    testing.assert_hsv_close(system, hsv)
    testing.assert_hsv_close(system, hr.hankel_singular_values)


@given(testing.stable_systems(max_states=4))
def test_the_textbook_formula_is_accepted_at_half_of_the_digits(system):
    sizes = np.prod([np.linalg.norm(X) for X in hr.gramian_factors(system)])
    testing.assert_hsv_close(system, right, atol=1e-6 * sizes)  # root of the rounding error of P Q


@pytest.mark.parametrize("wrong", WRONG_VALUES, ids=lambda f: f.__name__)
def test_wrong_values_are_caught(wrong):
    def check(system: hr.StateSpace) -> None:
        sizes = np.prod([np.linalg.norm(X) for X in hr.gramian_factors(system)])
        testing.assert_hsv_close(system, wrong, atol=1e-6 * sizes)  # which the right formula passes

    assert is_caught(testing.stable_systems(max_states=4), check)


@pytest.mark.parametrize("wrong", [squares, controllability_only], ids=lambda f: f.__name__)
def test_weyls_inequality_catches_wrong_values_without_true_ones(wrong):
    def check(pair: tuple[hr.StateSpace, hr.StateSpace]) -> None:
        testing.assert_weyl(*(G.dense() if hasattr(G, "lam") else G for G in pair), hsv=wrong)

    assert is_caught(testing.system_pairs(max_states=3), check)


@given(testing.system_pairs())
def test_weyls_inequality_holds(pair):
    testing.assert_weyl(*pair)


@given(MIXED)
@settings(suppress_health_check=[HealthCheck.filter_too_much])
def test_right_reductions_are_accepted(system):
    for order in range(1, system.n):
        testing.assert_error_bound(system, truncated_textbook(system, order), rtol=1e-5)


@given(MIXED)
@settings(suppress_health_check=[HealthCheck.filter_too_much])
def test_reductions_of_this_library_are_accepted(system):
    testing.assert_error_bound(system, hr.balanced_truncation(system, order=1))
    testing.assert_error_bound(system, hr.balanced_truncation(system, order=1, match_dc=True))


@pytest.mark.parametrize("wrong", [sliced_basis, basis_sliced_by_rows, wrong_end], ids=lambda f: f.__name__)
def test_wrong_reductions_are_caught(wrong):
    assert is_caught(MIXED, lambda system: testing.assert_error_bound(system, wrong(system, 1), rtol=1e-5))


@pytest.mark.parametrize("wrong", [lost_feedthrough, unchecked_conjugate], ids=lambda f: f.__name__)
def test_wrong_reductions_of_complex_systems_are_caught(wrong):
    def check(system: hr.StateSpace) -> None:
        hsv = hr.hankel_singular_values(system)
        if len(hsv) > 1 and hsv[1] > 1e-6 * hsv[0] and hsv[0] > 0:
            testing.assert_error_bound(system, wrong(system, 1), rtol=1e-5)

    assert is_caught(testing.stable_systems(max_states=3, complex_data=True), check)


@given(st.one_of(*ANY[:2]))
def test_factors_of_this_library_are_accepted(system):
    testing.assert_factors(system, *hr.gramian_factors(system))


@pytest.mark.parametrize("name", ["conjugate of A", "conjugate of C", "transposed", "other Gramian"])
def test_wrong_factors_are_caught(name):
    def check(system: hr.StateSpace) -> None:
        S, R = hr.gramian_factors(system)
        if name == "conjugate of A":
            R = hr.gramian_factors(hr.StateSpace(system.A.conj(), system.B, system.C, dt=system.dt))[1]
        elif name == "conjugate of C":
            R = R.conj()
        elif name == "transposed" and S.shape[0] == S.shape[1]:
            S = S.T
        elif name == "other Gramian":
            S = R.conj().T
        testing.assert_factors(system, S, R)

    assert is_caught(testing.stable_systems(max_states=3), check)


@given(testing.prescribed_systems())
def test_known_systems_are_balanced(known):
    testing.assert_balanced(*known)


def test_coordinates_that_are_not_balanced_are_caught():
    with pytest.raises(AssertionError, match=r"controllability Gramian has 1.16667 at \(0, 0\) where 1.87771 belongs"):
        testing.assert_balanced(PLANT)


def test_balanced_systems_with_other_values_are_caught():
    with pytest.raises(AssertionError, match=r"has 3 at \(0, 0\) where 2 belongs"):
        testing.assert_balanced(testing.system_with_hsv([3.0, 1.0]), [2.0, 1.0])


def test_failure_shows_the_value_the_tolerance_and_the_system():
    with pytest.raises(AssertionError) as caught:
        testing.assert_hsv_close(PLANT, [1.5, 0.1])
    text = str(caught.value)
    true = hr.hankel_singular_values(PLANT)
    assert text.startswith("2 of 2 Hankel singular values differ from those claimed, hsv 1 the most")
    assert "1.5" in text
    assert f"{true[0]:.8g}" in text
    assert "hr.StateSpace(A=[[-1.0, 2.0], [0.0, -3.0]], B=[[1.0], [1.0]], C=[[2.0, 1.0]], dt=0)" in text


def test_failure_says_that_values_are_missing():
    with pytest.raises(AssertionError, match="1 values were claimed, the system has 2; missing ones count as 0"):
        testing.assert_hsv_close(PLANT, hr.hankel_singular_values(PLANT)[:1])


def test_failure_of_a_reduction_shows_bound_values_and_both_models():
    with pytest.raises(AssertionError) as caught:
        testing.assert_error_bound(PLANT, sliced_basis(PLANT, 1))
    text = str(caught.value)
    for part in ("H-infinity error", "rad/s", "exceeds its bound", "hsv kept:", "hsv dropped:", "full:", "reduced:"):
        assert part in text


def test_real_poles_of_a_real_output_count_once():
    # they once counted twice, and the bound was that of the double order
    plant = hr.DiagonalSystem([-1.0, -2.0, -7.0], [[1.0], [3.0], [2.0]], np.ones((1, 3)), dt=0, output="real")
    testing.assert_error_bound(plant, hr.balanced_truncation(plant, order=1).system)


def test_unstable_reductions_are_caught():
    with pytest.raises(AssertionError, match="inf because it is unstable, exceeds its bound"):
        testing.assert_error_bound(PLANT, hr.StateSpace([[1.0]], [[1.0]], [[1.0]]))


@pytest.mark.parametrize(
    ("hsv", "problem"),
    [
        ([0.1, 1.0], "larger than the one before"),
        ([1.0, -0.1], "negative"),
        ([1.0, np.nan], "not a number"),
        ([1j], "not real"),
    ],
)
def test_what_cannot_be_hankel_singular_values_is_named(hsv, problem):
    with pytest.raises(AssertionError, match=problem):
        testing.assert_hsv_close(PLANT, hsv)


def test_unstable_systems_are_refused_by_assertions():
    with pytest.raises(hr.StabilityError, match="must be stable"):
        testing.assert_hsv_close(hr.StateSpace([[1.0]], [[1.0]], [[1.0]]), [1.0])


def test_models_of_other_libraries_are_accepted():
    """The values of python-control's own test, computed there in MATLAB."""
    plant = control.ss([[1.0, -2.0], [3.0, -4.0]], [[5.0], [7.0]], [[6.0, 8.0]], [[9.0]])
    testing.assert_hsv_close(plant, [24.42686, 0.5731395], rtol=1e-6)
    testing.assert_hsv_close(plant, control.hankel_singular_values, atol=1e-6)
    testing.assert_hsv_close(scipy.signal.lti([1.0], [1.0, 2.0]), [0.25])


@given(st.one_of(*ANY))
def test_systems_are_stable_with_a_margin(system):
    assert system.is_stable()


@given(testing.stable_systems(dt=(0, True), max_states=5))
def test_dense_systems_keep_their_margin(system):
    poles = system.poles()  # of integer matrices: a Jordan block of 5 moves its pole by eps^(1/5) = 7e-4
    assert np.abs(poles).max() <= 7 / 8 + 0.01 if system.is_discrete else poles.real.max() <= -0.5 + 0.05


@given(st.data(), st.sampled_from([0, 0.1, True]), st.booleans())
def test_options_are_respected(data, dt, complex_data):
    options = {"dt": dt, "complex_data": complex_data, "max_states": 3}
    for strategy in (testing.stable_systems, testing.diagonal_systems):
        system = data.draw(strategy(min_states=2, max_inputs=1, max_outputs=2, **options))
        assert (system.dt is dt, system.dtype.kind == "c", system.n >= 2, system.m) == (True, complex_data, True, 1)
        assert system.n <= 3
        assert system.p <= 2


@given(st.one_of(testing.prescribed_systems(), testing.repeated_hsv_systems(copies=3)))
def test_known_values_are_the_values(known):
    testing.assert_hsv_close(*known)


@given(testing.prescribed_systems(hsv=[5.0, 0.5]))
def test_values_can_be_prescribed_by_the_user(known):
    testing.assert_hsv_close(known[0], [5.0, 0.5])


@given(testing.repeated_hsv_systems(copies=2))
def test_repeated_values_occur_twice(known):
    np.testing.assert_array_equal(known[1][::2], known[1][1::2])


@given(testing.non_minimal_systems())
def test_hidden_states_add_zeros_only(pair):
    padded, core = pair
    assert padded.n > core.n
    testing.assert_hsv_close(padded, hr.hankel_singular_values(core))


@given(testing.ill_scaled_systems())
def test_units_change_no_value(pair):
    scaled, core = pair
    testing.assert_hsv_close(scaled, hr.hankel_singular_values(core))


def test_ill_scaled_systems_are_ill_scaled():
    def well_scaled(pair: tuple[hr.StateSpace, hr.StateSpace]) -> None:
        sizes = np.abs(pair[0].B[pair[0].B != 0])
        assert len(sizes) == 0 or sizes.max() <= 1000 * sizes.min()

    assert is_caught(testing.ill_scaled_systems(), well_scaled)


@given(testing.near_boundary_systems(max_digits=12))
def test_poles_next_to_the_boundary_are_at_stated_distances(system):
    decay = -(system.spectrum.rates if system.is_discrete else system.lam).real
    np.testing.assert_allclose(np.log10(decay), np.round(np.log10(decay)), atol=1e-12)
    assert np.all((decay >= 0.9e-12) & (decay <= 1))


@given(testing.diagonal_banks())
def test_banks_are_stacked(bank):
    for hsv, system in zip(hr.hankel_singular_values(bank), bank, strict=True):
        testing.assert_hsv_close(system, hsv)


@given(testing.system_pairs())
def test_pairs_have_a_difference(pair):
    assert (pair[0] - pair[1]).is_stable()


@pytest.mark.parametrize("diagonal", [False, True])
def test_counterexamples_shrink_to_simple_numbers(diagonal):
    make = testing.diagonal_systems if diagonal else testing.stable_systems
    strategy = make(max_states=3, max_inputs=2, max_outputs=2)
    fixed = settings(derandomize=True, database=None)
    found = find(strategy, lambda system: np.sum(hr.hankel_singular_values(system) > 1e-8) >= 2, settings=fixed)
    assert found.n + found.m + found.p <= 5  # one more than there must be: a search, which may stop early
    numbers = np.concatenate([found.B.ravel(), found.C.ravel()])
    assert found.dtype.kind == "f"
    assert np.all(np.isin(np.abs(numbers), [0, 1]))


def test_failing_examples_are_printed_as_code(capsys):
    @SEARCH
    @given(testing.stable_systems(dt=0, max_states=2))
    def claim(system: hr.StateSpace) -> None:
        assert hr.hankel_norm(system) < 1

    with pytest.raises(AssertionError) as caught:
        claim()
    shown = capsys.readouterr().out + "\n".join(getattr(caught.value, "__notes__", []))
    code = next(line for line in shown.splitlines() if line.startswith("hr.StateSpace("))
    assert hr.hankel_norm(eval(code)) >= 1


@given(st.one_of(*ANY))
def test_code_makes_the_same_system(system):
    again = eval(testing.system_code(system))
    assert type(again) is type(system)
    assert again.dt == system.dt
    for name in ("lam", "A", "B", "C", "D", "output"):
        np.testing.assert_array_equal(getattr(again, name, None), getattr(system, name, None))


def test_code_of_large_systems_is_a_summary():
    large = hr.DiagonalSystem(-np.arange(1.0, 21), np.ones((20, 1)), np.ones((1, 20)), dt=0)
    assert testing.system_code(large) == "DiagonalSystem(real, n=20, m=1, p=1, dt=0), outermost pole -1+0j"


@pytest.mark.parametrize("hsv", [[], [1.0, 1.0], [1.0, 2.0], [1.0, 0.0]])
def test_values_that_no_such_system_has_are_refused(hsv):
    with pytest.raises(hr.InputError, match="distinct, positive and decreasing"):
        testing.system_with_hsv(hsv)


@pytest.mark.parametrize("options", [{"signs": [1]}, {"signs": [1, 2]}, {"gains": [1, 0]}, {"gains": [1, 1, 1]}])
def test_signs_and_gains_that_do_not_fit_are_refused(options):
    with pytest.raises(hr.InputError, match="one entry for each of the 2 hsv"):
        testing.system_with_hsv([2.0, 1.0], **options)


def test_assertions_work_without_hypothesis():
    code = """
import sys
sys.modules["hypothesis"] = None  # as if it were not installed
import hankelred as hr
from hankelred import testing
testing.assert_hsv_close(testing.system_with_hsv([2.0, 1.0]), [2.0, 1.0])
try:
    testing.stable_systems()
except ImportError as error:
    print(error)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install hankelred[testing]" in process.stdout


@pytest.mark.parametrize("whole", [np.int64, np.uint8])
def test_sizes_may_be_numbers_of_numpy(whole):
    for strategy in (testing.stable_systems, testing.near_boundary_systems, testing.non_minimal_systems):
        find(strategy(max_states=whole(3)), lambda _: True)


def test_sizes_beyond_the_reach_of_hypothesis_are_refused():
    with pytest.raises(hr.InputError, match="max_inputs must be from 1 to 1000"):
        testing.stable_systems(max_inputs=2**70)
    with pytest.raises(hr.InputError, match=r"max_states.* at most 4000 numbers"):
        find(testing.stable_systems(max_states=255), lambda _: True)


def test_factors_in_single_precision_are_judged_in_double():
    S, R = hr.gramian_factors(hr.StateSpace(-np.eye(2), np.eye(2), np.eye(2)))
    S, R = S.astype(np.float32), R.astype(np.float32)
    G = hr.StateSpace(-np.eye(2) / 2, np.eye(2) * S[0, 0].astype(float), np.eye(2) * R[0, 0].astype(float))
    testing.assert_factors(G, S, R, rtol=1e-14)


def test_gramians_that_overflow_are_no_assertion():
    huge = np.full((1, 1), 1e200)
    lag = hr.StateSpace([[-1.0]], [[1.0]], [[1.0]])
    with pytest.raises(hr.NumericalError, match="Gramians"):
        testing.assert_factors(lag, huge, huge)
    with pytest.raises(hr.NumericalError, match="hsv and gains"):
        testing.system_with_hsv([1.0, 1e-310])
    testing.assert_hsv_close(lag, [0.5], rtol=1e308)
    with pytest.raises(AssertionError, match="differ"):
        testing.assert_hsv_close(lag, [1e308])
