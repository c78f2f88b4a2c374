"""Pictures show the numbers they are made of, in the axes they are given."""

from __future__ import annotations

import io
import subprocess
import sys

import matplotlib.pyplot
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

import hankelred as hr
from hankelred.plotting import new_axes, plot_error_bound, plot_frequency_error, plot_hsv, plot_tradeoff
from hankelred.weighting import FrequencyLimited


def flexible(seed=0, modes=5, damping=0.01, dt=0, m=2, p=3):
    """A structure of lightly damped modes between 1 and 100 rad per second, sampled if dt is not 0."""
    rng = np.random.default_rng(seed)
    s = np.geomspace(1.0, 100.0, modes) * (-damping + 1j)
    poles = s if dt == 0 and dt is not True else np.exp(s * (0.01 if dt is True else dt))
    A = np.kron(np.diag(poles.real), np.eye(2)) + np.kron(np.diag(poles.imag), [[0.0, 1.0], [-1.0, 0.0]])
    return hr.StateSpace(A, rng.standard_normal((2 * modes, m)), rng.standard_normal((p, 2 * modes)), dt=dt)


PLANT = flexible()
BALANCED = hr.balance(PLANT)
REDUCTION = BALANCED.reduce(order=4)


def integrating():
    """An integrator and two unstable poles beside stable ones that link input and output, and one that does not."""
    B, C = np.ones((6, 1)), np.ones((1, 6))
    B[5] = 0.0
    return hr.StateSpace(np.diag([0.0, 0.3, 1.0, -1.0, -2.0, -3.0]), B, C)


def line(ax, label):
    """Return the x and y data of the line with this label."""
    (found,) = [x for x in ax.get_lines() if x.get_label() == label]
    return np.asarray(found.get_xdata(), dtype=float), np.asarray(found.get_ydata(), dtype=float)


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


EVERY_PLOT = pytest.mark.parametrize(
    "draw",
    [
        lambda **ax: plot_hsv(REDUCTION, **ax),
        lambda **ax: plot_error_bound(BALANCED, [REDUCTION], **ax),
        lambda **ax: plot_frequency_error(PLANT, REDUCTION, **ax),
        lambda **ax: plot_tradeoff([(4, 0.3), (8, 0.1)], **ax),
    ],
    ids=["hsv", "error_bound", "frequency_error", "tradeoff"],
)


@EVERY_PLOT
def test_axes_go_in_and_come_out(draw):
    ax = Figure().subplots()
    assert draw(ax=ax) is ax


@EVERY_PLOT
def test_a_picture_of_its_own_is_unknown_to_pyplot(draw):
    draw()
    assert matplotlib.pyplot.get_fignums() == []


@EVERY_PLOT
def test_a_picture_can_be_saved(draw):
    file = io.BytesIO()
    draw().figure.savefig(file, format="png")
    assert file.getvalue().startswith(b"\x89PNG")


def test_importing_the_module_does_not_import_matplotlib():
    code = "import sys, hankelred.plotting; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_matplotlib_the_error_says_what_to_install():
    code = "import sys; sys.modules['matplotlib.figure'] = None\nimport hankelred.plotting as p; p.plot_hsv([1.0])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError: Plots need matplotlib" in run.stderr
    assert "pip install 'hankelred[plot]'" in run.stderr


# Hankel singular values


def test_every_hsv_is_drawn_over_its_number():
    x, y = line(plot_hsv(BALANCED), "kept")
    np.testing.assert_array_equal(x, np.arange(1, 11))
    np.testing.assert_array_equal(y, BALANCED.hsv)


def test_a_reduction_brings_its_cut():
    ax = plot_hsv(REDUCTION)
    assert line(ax, "cut at order 4")[0][0] == 4.5
    assert [len(line(ax, label)[0]) for label in ("kept", "dropped")] == [4, 6]


@given(st.lists(st.floats(1e-300, 1e300), min_size=1, max_size=20))
def test_no_finite_hsv_is_drawn_outside_the_axes(values):
    hsv = np.sort(values)[::-1]
    ax = plot_hsv(hsv)
    low, high = ax.get_ylim()
    shown = line(ax, "kept")[1]
    assert low < shown.min() <= shown.max() < high
    hidden = hsv[hsv < low]
    if len(hidden):
        assert len(line(ax, "zero or below the axis, kept")[0]) == len(hidden)


def test_unstable_poles_stand_at_the_upper_edge_and_zeros_at_the_lower_one():
    ax = plot_hsv([np.inf, np.inf, 2.0, 1.0, 0.0], order=4)
    assert [line(ax, "unstable, kept")[k].tolist() for k in (0, 1)] == [[1, 2], [0.97, 0.97]]
    assert [line(ax, "zero or below the axis, dropped")[k].tolist() for k in (0, 1)] == [[5], [0.03]]


@pytest.mark.parametrize("hsv", [[0.0, 0.0], [np.inf], [3.0]])
def test_hsv_without_a_range_are_drawn_too(hsv):
    low, high = plot_hsv(hsv).get_ylim()
    assert 0 < low < high


@pytest.mark.parametrize("hsv", [[1.0, np.nan], [1.0, -1.0], [], [[1.0]], [1j], PLANT])
@pytest.mark.parametrize("plot", [plot_hsv, plot_error_bound])
def test_what_is_no_list_of_hsv_is_refused(plot, hsv):
    with pytest.raises(hr.InputError, match="hsv must"):
        plot(hsv)


# Error bounds


def test_the_bound_is_drawn_for_every_order():
    orders, bounds = line(plot_error_bound(BALANCED), "bound")
    np.testing.assert_array_equal(orders, np.arange(11))
    np.testing.assert_array_equal(bounds[:-1], [BALANCED.error_bound(order) for order in range(10)])


def test_measured_errors_are_drawn_at_their_orders():
    reductions = [BALANCED.reduce(order=order) for order in (2, 6)]
    orders, errors = line(plot_error_bound(BALANCED, reductions), "measured")
    assert orders.tolist() == [2, 6]
    assert errors.tolist() == [reduction.hinf_error() for reduction in reductions]


def test_the_exact_full_order_does_not_squeeze_the_picture():
    low, high = plot_error_bound(BALANCED).get_ylim()
    assert low > 0.1 * BALANCED.error_bound(9)
    assert high > BALANCED.error_bound(0)


def test_the_bound_of_an_unstable_system_begins_at_its_unstable_poles():
    bal = hr.balance(integrating())
    assert line(plot_error_bound(bal), "bound")[0][0] == bal.unstable == 3


# Errors over frequency


def test_the_curves_are_largest_singular_values():
    omega = np.array([0.1, 1.0, 7.0])
    ax = plot_frequency_error(PLANT, REDUCTION, omega=omega)
    G, H = PLANT.frequency_response(omega), REDUCTION.system.frequency_response(omega)
    for label, response in (("full, 10 states", G), ("reduced, 4 states", H), ("error", G - H)):
        x, y = line(ax, label)
        np.testing.assert_array_equal(x, omega)
        np.testing.assert_allclose(y, np.linalg.norm(response, 2, axis=(1, 2)), rtol=1e-12)


@pytest.mark.parametrize("dt", [0, 0.01, True])
@pytest.mark.parametrize("damping", [1e-4, 0.05, 0.9])
def test_the_grid_finds_every_peak(dt, damping):
    plant = flexible(damping=damping, dt=dt)
    _, gains = line(plot_frequency_error(plant, hr.balanced_truncation(plant, order=4)), "full, 10 states")
    # the nearest point of the grid is within 1/4 of the half width of a peak: 1 - 1 / sqrt(1 + 1/16) = 3 %
    assert gains.max() == pytest.approx(hr.hinf_norm(plant), rel=0.03)


@pytest.mark.parametrize("dt", [0, 0.01, True])
def test_the_error_stays_under_the_line_of_its_bound(dt):
    plant = flexible(dt=dt)
    ax = plot_frequency_error(plant, hr.balanced_truncation(plant, order=4))
    assert line(ax, "error")[1].max() <= line(ax, "error bound")[1][0]


def test_a_system_that_is_no_reduction_comes_without_a_bound():
    assert "error bound" not in labels(plot_frequency_error(PLANT, REDUCTION.system))


@pytest.mark.parametrize(("dt", "unit"), [(0, "second"), (0.01, "second"), (True, "sample")])
def test_the_axis_names_its_unit(dt, unit):
    plant = flexible(dt=dt)
    assert f"rad per {unit}" in plot_frequency_error(plant, plant).get_xlabel()


@pytest.mark.parametrize(("dt", "nyquist"), [(0.01, 100 * np.pi), (True, np.pi)])
def test_a_discrete_system_is_drawn_to_half_its_sampling_rate(dt, nyquist):
    plant = flexible(dt=dt)
    assert 0.99 * nyquist < line(plot_frequency_error(plant, plant), "error")[0][-1] <= nyquist


def test_an_unspecified_sampling_time_is_taken_from_the_other_system():
    timed = flexible(dt=0.01)
    ax = plot_frequency_error(timed, hr.StateSpace(timed.A, timed.B, timed.C, timed.D, dt=True))
    assert line(ax, "error")[1].max() < 1e-9 * hr.hinf_norm(timed)  # the same matrices: nothing but rounding


def test_a_complex_system_is_drawn_over_both_signs_of_frequency():
    system = hr.DiagonalSystem([-1.0 + 5j, -2.0], [[1.0], [1.0]], [[1.0, 1.0]], dt=0)
    omega, _ = line(plot_frequency_error(system, hr.balanced_truncation(system, order=1)), "error")
    assert omega[0] == -omega[-1] < 0


@pytest.mark.parametrize(
    "system",
    [
        integrating(),
        hr.StateSpace(np.diag([-1.0, 1.0, 0.5, 0.2]), np.ones((4, 1)), np.ones((1, 4)), dt=True),
        hr.DiagonalSystem.from_rates([0.0, 1j * np.pi, -0.5, -0.2], np.ones((4, 1)), np.ones((1, 4)), dt=True),
        hr.DiagonalSystem([0.0, -1.0, -5.0], np.ones((3, 1)), np.ones((1, 3)), dt=0),
    ],
)
def test_poles_on_the_boundary_leave_a_finite_picture(system):
    ax = plot_frequency_error(system, hr.balanced_truncation(system, states=system.n - 1))
    for drawn in ax.get_lines():
        assert np.all(np.isfinite(drawn.get_ydata()))


def test_a_static_gain_is_drawn():
    gain = hr.StateSpace(np.empty((0, 0)), np.empty((0, 1)), np.empty((1, 0)), [[3.0]])
    assert line(plot_frequency_error(gain, gain), "full, 0 states")[1].max() == 3.0


def test_the_smaller_singular_values_are_a_band():
    assert "full, other directions" in labels(plot_frequency_error(PLANT, REDUCTION))


def test_systems_that_cannot_be_compared_are_refused():
    with pytest.raises(hr.InputError, match="same inputs and outputs"):
        plot_frequency_error(PLANT, flexible(m=1))


def test_a_system_without_outputs_is_refused():
    mute = hr.StateSpace(-np.eye(2), np.ones((2, 1)), np.empty((0, 2)))
    with pytest.raises(hr.InputError, match="0 outputs"):
        plot_frequency_error(mute, mute)


def test_values_beyond_logarithmic_axes_are_refused():
    for plot in (plot_hsv, plot_error_bound):
        with pytest.raises(hr.NumericalError, match="hsv must be at most 1e"):
            plot([1e308, 1.0])
    with pytest.raises(hr.InputError, match="columns"):
        new_axes(10**400)


def test_one_frequency_given_twice_is_drawn():
    plant = hr.StateSpace([[-1.0]], [[1.0]], [[1.0]])
    assert plot_frequency_error(plant, plant, omega=[1.0, 1.0]).lines


def test_a_weighting_is_drawn_with_the_bounds_that_hold_and_without_one_it_is_refused():
    rng = np.random.default_rng(0)
    plant = hr.StateSpace(np.diag([-1.0, -2.0, -30.0, -3.0]), rng.standard_normal((4, 1)), rng.standard_normal((1, 4)))
    sure = hr.balance(plant, weighting=FrequencyLimited((0.0, 1.0), guaranteed=True))
    bound = plot_error_bound(sure).get_lines()[0].get_ydata()
    np.testing.assert_allclose(bound, [sure.error_bound(order) for order in range(5)])
    plain = hr.balance(plant, weighting=FrequencyLimited((0.0, 1.0)))
    for found in (plain, plain.reduce(1), sure.reduce(1)):
        with pytest.raises(hr.InputError, match="guaranteed=True"):
            plot_error_bound(found)
    ax = plot_frequency_error(plant, plain.reduce(1))
    assert "error bound" not in [line.get_label() for line in ax.get_lines()]


def test_tradeoff_shows_every_trial_in_the_order_of_states_and_what_was_kept():
    ax = plot_tradeoff([(16, 0.09), (8, 0.12), (8, 0.1), (4, 0.31)], kept=8)
    x, y = line(ax, "tried")
    assert sorted(zip(x, y, strict=True)) == [(4, 0.31), (8, 0.1), (8, 0.12), (16, 0.09)]
    assert labels(ax) == ["tried", "8 states kept"]
    assert ax.get_lines()[0].get_xdata().tolist() == [4, 8, 16]


@pytest.mark.parametrize(
    ("trials", "kept"),
    [([], None), ([1, 2], None), ([(1, 2, 3)], None), ([(4, np.nan)], None), ([(4, 0.1)], 5), ([(4, 0.1)], "4")],
)
def test_trials_that_are_none_are_refused(trials, kept):
    with pytest.raises(hr.InputError):
        plot_tradeoff(trials, kept)
