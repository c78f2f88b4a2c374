"""Systems whose Hankel singular values are known: by formula, by many digits, by programs where they are right."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import reference

import hankelred as hr

control = pytest.importorskip("control", reason="python-control is an optional second opinion")


def hilbert_eigenvalues(n: int) -> np.ndarray:
    """Return the eigenvalues of the n x n Hilbert matrix in 80-digit arithmetic."""
    with mpmath.workdps(80):
        return np.array([float(x) for x in mpmath.eigsy(mpmath.hilbert(n), eigvals_only=True)])[::-1]


@pytest.mark.parametrize("n", [6, 12, 20])
def test_hilbert_system_has_the_eigenvalues_of_the_hilbert_matrix(n):
    """Both Gramians of the rates k - 1/2 with unit B and C are the Hilbert matrix; n = 20 spans 29 decades."""
    system = hr.DiagonalSystem(-(np.arange(n) + 0.5), np.ones((n, 1)), np.ones((1, n)), dt=0)
    np.testing.assert_allclose(hr.hankel_singular_values(system), hilbert_eigenvalues(n), rtol=1e-12)


@pytest.mark.parametrize("n", [6, 12])
def test_hilbert_system_as_a_dense_one_keeps_values_above_the_rounding_unit(n):
    system = hr.StateSpace(-np.diag(np.arange(n) + 0.5), np.ones((n, 1)), np.ones((1, n)))
    expected = hilbert_eigenvalues(n)
    np.testing.assert_allclose(hr.hankel_singular_values(system), expected, atol=4e-16 * n * expected[0])


def test_four_real_discrete_poles():
    """Reference: closed-form Gramians in 80-digit arithmetic."""
    system = hr.DiagonalSystem([0.95, 0.5, -0.3, 0.8], np.ones((4, 1)), [[1.0, 2.0, 3.0, 0.5]], dt=True)
    expected = [12.656823348225291403, 4.0349585195615627198, 0.84154912692178094773, 0.075338113960473598411]
    np.testing.assert_allclose(hr.hankel_singular_values(system), expected, rtol=1e-13)
    np.testing.assert_allclose(hr.hankel_singular_values(system.dense()), expected, rtol=1e-12)


def test_poles_a_billionth_from_the_circle_keep_their_digits_as_rates():
    """Reference: poles 1 - 1e-9, 1 - 1e-6, 0.9, -1 + 1e-6 taken exactly, in 80-digit arithmetic."""
    z = [np.log1p(-1e-9), np.log1p(-1e-6), np.log(0.9), np.log1p(-1e-6) + 1j * np.pi]
    system = hr.DiagonalSystem.from_rates(z, np.ones((4, 1)), np.ones((1, 4)), dt=True)
    expected = [500001998.24600823137, 500000.25012530889491, 498002.25406746226099, 5.2629571423291644093]
    np.testing.assert_allclose(hr.hankel_singular_values(system), expected, rtol=1e-12)


def test_complex_continuous_poles():
    """Casting the second one to real, as python-control and pyMOR with Slycot do, gives 0.7310 and 0.0190."""
    three = hr.DiagonalSystem([-1 + 1j, -2 - 1j, -0.1 + 5j], np.ones((3, 1)), np.ones((1, 3)), dt=0)
    two = hr.DiagonalSystem([-1 + 1j, -2 - 1j], np.ones((2, 1)), np.ones((1, 2)), dt=0)
    expected = [4.9880619378133831217, 0.58838742323867128348, 0.078417733496582054976]
    for system in (three, three.dense()):
        np.testing.assert_allclose(hr.hankel_singular_values(system), expected, rtol=1e-13)
    for system in (two, two.dense()):
        np.testing.assert_allclose(
            hr.hankel_singular_values(system), [0.60443775591797923589, 0.079539907304279980976], rtol=1e-13
        )


def test_first_order_lag():
    """The value is b c / (2 a) in continuous and b c / (1 - a^2) in discrete time."""
    np.testing.assert_allclose(
        hr.hankel_singular_values(hr.StateSpace([[-3.0]], [[2.0]], [[5.0]])), [10 / 6], rtol=1e-15
    )
    np.testing.assert_allclose(
        hr.hankel_singular_values(hr.StateSpace([[0.5]], [[2.0]], [[5.0]], dt=True)), [10 / 0.75], rtol=1e-15
    )


@pytest.mark.parametrize("signs", [[1, 1, 1, 1, 1], [1, -1, 1, -1, 1], [1, 1, -1, -1, -1]])
def test_balanced_canonical_form_has_the_prescribed_values(signs):
    hsv = np.array([10.0, 3.0, 1.0, 1e-2, 1e-5])
    system = reference.balanced_canonical_form(hsv, np.array(signs), np.array([1.0, 0.5, 2.0, 1.0, 0.3]))
    np.testing.assert_allclose(hr.hankel_singular_values(system), hsv, atol=1e-14 * hsv[0])


def test_error_bound_is_attained_where_the_tail_signs_are_equal():
    """At s = 0 the error of truncating this system equals twice the tail, so the bound cannot be improved."""
    hsv = np.array([4.0, 2.0, 0.5, 0.3, 0.1])
    system = reference.balanced_canonical_form(hsv, np.array([1, -1, 1, 1, 1]), np.ones(5))
    reduction = hr.balanced_truncation(system, 2)
    np.testing.assert_allclose(reduction.hinf_error(), 2 * hsv[2:].sum(), rtol=1e-10)
    np.testing.assert_allclose(reduction.error_bound, 2 * hsv[2:].sum(), rtol=1e-12)


def test_finite_impulse_response_has_the_values_of_its_hankel_matrix():
    """A nilpotent A: methods that take logarithms or inverses of A fail here."""
    impulse = np.array([3.0, 1.0, 4.0, 1.0, 5.0])
    system = hr.StateSpace(np.eye(5, k=-1), np.eye(5)[:, :1], impulse[None, :], dt=True)
    hankel = np.array([[impulse[i + j] if i + j < 5 else 0.0 for j in range(5)] for i in range(5)])
    np.testing.assert_allclose(hr.hankel_singular_values(system), np.linalg.svd(hankel, compute_uv=False), rtol=1e-13)


def test_pure_delay_has_unit_values():
    system = hr.StateSpace(np.eye(6, k=-1), np.eye(6)[:, :1], np.eye(6)[-1:], dt=True)
    np.testing.assert_allclose(hr.hankel_singular_values(system), np.ones(6), rtol=1e-14)


def test_tustin_image_has_the_same_values_and_norm():
    plant = power_plant()
    image = reference.tustin(plant, dt=0.05)
    np.testing.assert_allclose(hr.hankel_singular_values(image), hr.hankel_singular_values(plant), rtol=1e-11)
    np.testing.assert_allclose(hr.hinf_norm(image), hr.hinf_norm(plant), rtol=1e-7)


def power_plant() -> hr.StateSpace:
    """Return the two-area power system of the SLICOT example AB09AD (7 states, 2 inputs, 3 outputs)."""
    A = np.array(
        [
            [-0.04165, 0, 4.92, -4.92, 0, 0, 0],
            [-5.21, -12.5, 0, 0, 0, 0, 0],
            [0, 3.33, -3.33, 0, 0, 0, 0],
            [0.545, 0, 0, 0, -0.545, 0, 0],
            [0, 0, 0, 4.92, -0.04165, 0, 4.92],
            [0, 0, 0, 0, -5.21, -12.5, 0],
            [0, 0, 0, 0, 0, 3.33, -3.33],
        ]
    )
    B, C = np.zeros((7, 2)), np.zeros((3, 7))
    B[1, 0] = B[5, 1] = 12.5
    C[0, 0] = C[1, 3] = C[2, 4] = 1.0
    return hr.StateSpace(A, B, C)


def test_power_plant_reproduces_the_printed_values_of_slicot():
    printed = [2.5139, 2.0846, 1.9178, 0.7666, 0.5473, 0.0253, 0.0246]
    np.testing.assert_allclose(hr.hankel_singular_values(power_plant()), printed, atol=6e-5)  # four printed decimals


def test_power_plant_reproduces_values_of_60_digit_arithmetic():
    exact = [2.513879367432504, 2.084562523847374, 1.917795348350768, 0.7666414980682813, 0.5472854223708882]
    exact += [0.02526614103758792, 0.0245823947982997]
    np.testing.assert_allclose(hr.hankel_singular_values(power_plant()), exact, rtol=1e-13)
    np.testing.assert_allclose(hr.h2_norm(power_plant()), 3.847354527435788, rtol=1e-13)


def test_power_plant_of_order_five_has_the_error_and_bound_of_slicot():
    reduction = hr.balanced_truncation(power_plant(), rtol=0.1 / 2.5138)
    assert reduction.order == 5
    np.testing.assert_allclose(reduction.hinf_error(), 0.05053228207517, rtol=1e-4)  # Slycot's model on a grid
    np.testing.assert_allclose(reduction.error_bound, 0.09969707167, rtol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_python_control_agrees_on_real_stable_continuous_systems(seed):
    pytest.importorskip("slycot", reason="python-control needs Slycot for these functions")
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((6, 6)) - 4 * np.eye(6)
    plant = control.ss(A, rng.standard_normal((6, 2)), rng.standard_normal((2, 6)), 0)
    hsv = hr.hankel_singular_values(plant)
    np.testing.assert_allclose(hsv, control.hsvd(plant), atol=1e-7 * hsv[0])  # hsvd keeps half of the digits
    ours, theirs = hr.balanced_truncation(plant, 3).system, control.balred(plant, 3)
    omega = np.geomspace(0.01, 100, 30)
    np.testing.assert_allclose(ours(1j * omega), theirs(1j * omega), atol=1e-10 * hsv[0])


def test_discrete_example_on_which_python_control_is_silently_wrong_obeys_its_bound():
    """control.balred 0.10.2 returns a continuous model with an error of 14.26 where twice the tail is 0.466."""
    plant = control.ss(np.diag([-0.95, -0.5, -0.3, -0.8]), np.ones((4, 1)), [[1.0, 2.0, 3.0, 0.5]], 0, 1)
    reduction = hr.balanced_truncation(plant, 2)
    np.testing.assert_allclose(reduction.hsv, [13.43, 3.94, 0.217, 0.0155], rtol=4e-3)  # printed with three figures
    assert reduction.system.dt == 1
    omega = np.linspace(0, np.pi, 400)
    error = np.abs(plant(np.exp(1j * omega)) - reduction.system(np.exp(1j * omega))).max()
    assert error <= reduction.hinf_error() * (1 + 1e-8) <= reduction.error_bound * (1 + 1e-8)
    np.testing.assert_allclose(reduction.error_bound, 0.466, rtol=3e-3)


def penzl(n: int) -> hr.StateSpace:
    """Return Penzl's model: three weakly damped resonances and a ladder of real poles."""
    import scipy.linalg as sla

    A = sla.block_diag(*([[-1.0, w], [-w, -1.0]] for w in (100.0, 200.0, 400.0)), -np.diag(np.arange(1.0, n - 5)))
    B = np.concatenate([np.full(6, 10.0), np.ones(n - 6)])[:, None]
    return hr.StateSpace(A, B, B.T)


def test_penzl_model_has_its_known_values():
    """Reference: closed-form Gramians in 80-digit arithmetic, n = 40."""
    expected = [50.011848149430533552, 49.993780169487314503, 49.993383385670019684, 49.980720299274479555]
    expected += [49.969032702137671023, 49.967377672978123207, 1.6245712218602311529, 0.35243446965662291244]
    expected += [0.056498088372548711779, 0.0077909609272626267143, 0.0009499161874721857113]
    hsv = hr.hankel_singular_values(penzl(40))
    np.testing.assert_allclose(hsv[: len(expected)], expected, rtol=1e-11)


def test_heat_rod_has_its_known_values():
    """Reference: n = 24 finite differences, input at node 8, output at node 16, 80-digit arithmetic."""
    n = 24
    A = (n + 1.0) ** 2 * (np.eye(n, k=1) - 2 * np.eye(n) + np.eye(n, k=-1))
    system = hr.StateSpace(A, np.eye(n)[:, 7:8], np.eye(n)[15:16])
    expected = [0.0026629031074404544143, 0.00036215040129803190693, 1.4586974850665859205e-5, 1.0375802423909686579e-5]
    expected += [1.0552742287543390394e-6, 1.0439891077195682088e-7, 9.2774411805095423705e-9, 5.2514289867778306088e-9]
    expected += [1.3306802273110110663e-9, 2.0455770791785845861e-10]
    hsv = hr.hankel_singular_values(system)
    np.testing.assert_allclose(hsv[: len(expected)], expected, atol=1e-15 * expected[0])
