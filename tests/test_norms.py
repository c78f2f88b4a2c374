"""H2, H-infinity and Hankel norms."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from hypothesis import given
from strategies import systems

import hankelred as hr


@given(systems(6))
def test_hinf_norm_is_attained_at_its_peak(system):
    norm, peak = hr.hinf_norm(system, return_peak=True)
    gain = np.linalg.norm(system.frequency_response([peak])[0], ord=2)
    np.testing.assert_allclose(gain, norm, rtol=1e-10)


@given(systems(6))
def test_no_frequency_of_a_grid_exceeds_the_hinf_norm(system):
    norm = hr.hinf_norm(system)
    response = system.frequency_response(reference.grid(system, 300))
    assert np.linalg.norm(response, ord=2, axis=(1, 2)).max() <= norm * (1 + 2e-8)


@given(systems(5))
def test_h2_norm_equals_the_trace_form(system):
    G = reference.dense(system)
    P = reference.gramian_by_kronecker(G.A, G.B @ G.B.conj().T, G.dt)
    energy = np.trace(G.C @ P @ G.C.conj().T).real + np.linalg.norm(G.D) ** 2
    expected = np.sqrt(energy) if G.is_discrete else np.inf
    if not G.is_discrete and np.any(G.D != 0):
        assert hr.h2_norm(system) == np.inf
        return
    np.testing.assert_allclose(hr.h2_norm(system), expected, rtol=1e-8)


def test_h2_norm_of_a_strictly_proper_continuous_system_is_finite():
    system = hr.StateSpace([[-1.0, 0.3], [0.0, -2.0]], [[1.0], [1.0]], [[1.0, 2.0]])
    P = reference.gramian_by_kronecker(system.A, system.B @ system.B.T, 0)
    np.testing.assert_allclose(hr.h2_norm(system), np.sqrt((system.C @ P @ system.C.T)[0, 0]), rtol=1e-13)


@given(systems(6))
def test_hankel_norm_lies_between_h2_free_bounds(system):
    norm = hr.hankel_norm(system)
    hsv = hr.hankel_singular_values(system)
    assert norm == hsv[0]
    feedthrough = np.linalg.norm(system.D, ord=2)
    assert hr.hinf_norm(system) <= 2 * hsv.sum() + feedthrough + 1e-9 * norm


def test_small_errors_keep_their_digits_in_h2():
    """The trace form of this error system is rounding noise: its square is below eps of the square of G's norm."""
    G = hr.DiagonalSystem([0.9, 0.5], [[1.0], [1.0]], [[1.0, 1.0]], dt=True)
    H = hr.DiagonalSystem([0.9, 0.5], [[1.0], [1.0]], [[1.0, 1.0 + 1e-10]], dt=True)
    expected = (H.C - G.C)[0, 1] / np.sqrt(1 - 0.25)
    np.testing.assert_allclose(hr.h2_norm(G - H), abs(expected), rtol=1e-4)


@pytest.mark.parametrize("dt", [0, True])
def test_allpass_gain_is_one_everywhere(dt):
    poles = np.array([-1.0, -2.0 + 1j, -2.0 - 1j])
    num, den = np.poly(-poles.conj()), np.poly(poles)
    from scipy.signal import tf2ss

    system = hr.StateSpace(*tf2ss(num, den))
    system = system if dt == 0 else reference.tustin(system)
    np.testing.assert_allclose(hr.hinf_norm(system), 1.0, rtol=1e-8)
    np.testing.assert_allclose(hr.hankel_singular_values(system), np.ones(3), rtol=1e-12)


@pytest.mark.parametrize("damping", [1e-1, 1e-3, 1e-6])
def test_sharp_resonances_are_found(damping):
    system = hr.StateSpace([[0.0, 1.0], [-1.0, -2 * damping]], [[0.0], [1.0]], [[1.0, 0.0]])
    norm, peak = hr.hinf_norm(system, return_peak=True)
    np.testing.assert_allclose(norm, 1 / (2 * damping * np.sqrt(1 - damping**2)), rtol=1e-8)
    np.testing.assert_allclose(peak, np.sqrt(1 - 2 * damping**2), rtol=1e-4)


@pytest.mark.parametrize("angle", [0.0, 0.5, np.pi])
def test_sharp_discrete_resonances_are_found_next_to_either_end(angle):
    pole = (1 - 1e-6) * np.exp(1j * angle)
    system = hr.DiagonalSystem([pole], [[1.0]], [[1.0]], dt=0.1)
    norm, peak = hr.hinf_norm(system, return_peak=True)
    np.testing.assert_allclose(norm, 1e6, rtol=1e-7)
    np.testing.assert_allclose(abs(peak) * 0.1, angle, atol=1e-6)


def test_known_three_state_system_of_python_control():
    """G4 of python-control's sysnorm_test.py: H-infinity 4.276759162964244, H2 2.237461821810309."""
    A = [
        [-1.017041847539126, -0.224182952826418, 0.042538079149249],
        [-0.310374015319095, -0.516461581407780, -0.119195790221750],
        [-1.452723568727942, 1.7995860837102088, -1.491935830615152],
    ]
    B = [
        [0.312858596637428, -0.164879019209038],
        [-0.864879917324456, 0.627707287528727],
        [-0.030051296196269, 1.093265669039484],
    ]
    C = [
        [1.109273297614398, 0.077359091130425, -1.113500741486764],
        [-0.863652821988714, -1.214117043615409, -0.006849328103348],
    ]
    system = hr.StateSpace(A, B, C)
    np.testing.assert_allclose(hr.hinf_norm(system), 4.276759162964244, rtol=1e-8)
    np.testing.assert_allclose(hr.h2_norm(system), 2.237461821810309, rtol=1e-12)


@pytest.mark.parametrize("norm", [hr.h2_norm, hr.hinf_norm, hr.hankel_norm])
def test_norms_of_unstable_systems_are_infinite(norm):
    assert norm(hr.StateSpace([[0.1]], [[1.0]], [[1.0]])) == np.inf


def test_norms_of_a_static_gain():
    gain = hr.StateSpace(np.zeros((0, 0)), np.zeros((0, 2)), np.zeros((1, 0)), [[3.0, 4.0]], dt=True)
    assert (hr.hinf_norm(gain), hr.h2_norm(gain), hr.hankel_norm(gain)) == (5.0, 5.0, 0.0)
