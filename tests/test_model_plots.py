"""Pictures of models show the numbers they are made of: magnitudes, steps, poles; colours differ for all eyes."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import scipy.signal
import scipy.sparse as sp
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

import hankelred as hr
from hankelred.plotting import CYCLE, DROPPED, ERROR, KEPT, new_axes, plot_bode, plot_poles, plot_step

RNG = np.random.default_rng(5)
A = np.array([[-1.0, 4.0, 0.0], [-4.0, -1.0, 0.0], [0.0, 0.0, -20.0]])
PLANT = hr.StateSpace(A, RNG.standard_normal((3, 2)), RNG.standard_normal((2, 3)), RNG.standard_normal((2, 2)))
LAG = hr.StateSpace([[-2.0]], [[1.0]], [[2.0]])


def curves(ax, colour):
    return [np.asarray(line.get_ydata()) for line in ax.get_lines() if line.get_color() == colour]


@pytest.mark.parametrize("plot", [plot_bode, plot_step, plot_poles])
@pytest.mark.parametrize("reduced", [None, hr.balanced_truncation(PLANT, order=2), PLANT])
def test_axes_go_in_and_come_out_with_one_system_or_two(plot, reduced):
    ax = Figure().subplots()
    assert plot(PLANT, reduced, ax=ax) is ax
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert sum(label.startswith("reduced") for label in labels) == (reduced is not None)


def test_every_channel_is_drawn_in_decibel():
    omega = np.array([0.5, 3.0])
    ax = plot_bode(PLANT, omega=omega)
    expected = 20 * np.log10(np.abs(PLANT.frequency_response(omega))).reshape(2, 4).T
    np.testing.assert_allclose(curves(ax, DROPPED), expected, rtol=1e-12)


def test_a_gain_that_vanishes_does_not_squeeze_the_picture():
    chain = hr.StateSpace(np.eye(20, k=-1) - np.eye(20), np.eye(20, 1), np.eye(20)[19:])
    low, high = plot_bode(chain, omega=np.geomspace(1e-2, 1e3, 50)).get_ylim()
    assert high - low == pytest.approx(240.0)  # it falls by 1200 dB


def test_channels_are_output_and_input():
    omega = np.array([0.5, 3.0])
    (curve,) = curves(plot_bode(PLANT, omega=omega, channels=[(1, 0)]), DROPPED)
    np.testing.assert_allclose(curve, 20 * np.log10(np.abs(PLANT.frequency_response(omega)[:, 1, 0])), rtol=1e-12)


def test_channels_that_are_left_out_are_counted():
    wide = hr.StateSpace([[-1.0]], np.ones((1, 4)), np.ones((3, 1)))
    ax = plot_step(wide)
    assert "9 of 12 channels" in ax.get_legend().get_texts()[0].get_text()
    assert len(ax.get_lines()) == 9


def test_a_gain_of_zero_leaves_a_gap():
    (curve,) = curves(plot_bode(hr.StateSpace([[-1.0]], [[1.0]], [[0.0]])), DROPPED)
    assert np.isnan(curve).all()


def test_the_step_response_is_that_of_the_exponential():
    ax = plot_step(LAG, horizon=3.0)
    time, response = ax.get_lines()[0].get_data()
    assert time[-1] == pytest.approx(3.0)
    np.testing.assert_allclose(response, 1 - np.exp(-2 * time), atol=1e-13)  # 400 steps, each to rounding


def test_the_step_response_of_stiff_mimo_systems_is_that_of_scipy():
    ax = plot_step(PLANT)
    time, found = ax.get_lines()[0].get_xdata(), curves(ax, DROPPED)
    for (i, j), response in zip([(0, 0), (0, 1), (1, 0), (1, 1)], found, strict=True):
        channel = scipy.signal.StateSpace(PLANT.A, PLANT.B[:, [j]], PLANT.C[[i]], PLANT.D[[i], [j]])
        np.testing.assert_allclose(response, scipy.signal.step(channel, T=time)[1], atol=1e-10)


@pytest.mark.parametrize(("dt", "last"), [(0.1, 1.0), (True, 10.0)])
def test_a_discrete_step_response_is_the_recursion(dt, last):
    ax = plot_step(hr.StateSpace([[0.5]], [[1.0]], [[1.0]], dt=dt), horizon=last)
    time, response = ax.get_lines()[0].get_data()
    np.testing.assert_allclose(time, np.arange(11) * (0.1 if dt == 0.1 else 1.0))
    np.testing.assert_allclose(response, 2 * (1 - 0.5 ** np.arange(11)))


@pytest.mark.parametrize(
    "system",
    [
        hr.StateSpace(np.diag([0.0, -1.0]), np.ones((2, 1)), np.ones((1, 2))),
        hr.StateSpace(np.diag([2.0, -1.0]), np.ones((2, 1)), np.ones((1, 2))),
        hr.StateSpace([[0.0, 1.0], [-1.0, 0.0]], [[0.0], [1.0]], [[1.0, 0.0]]),
        hr.StateSpace([[1.0]], [[1.0]], [[1.0]], dt=True),
        hr.DiagonalSystem([0.0, 0.5], np.ones((2, 1)), np.ones((1, 2)), dt=0.1),
        hr.DiagonalSystem([-1.0 + 5j, -2.0], np.ones((2, 1)), np.ones((1, 2)), dt=0),
        hr.DiagonalSystem([-1.0 + 5j, -2.0], np.ones((2, 1)), np.ones((1, 2)), dt=0, output="real"),
        hr.StateSpace(np.empty((0, 0)), np.empty((0, 1)), np.empty((1, 0)), [[3.0]]),
    ],
    ids=["integrator", "unstable", "undamped", "summator", "deadbeat", "complex", "real output", "gain"],
)
@pytest.mark.parametrize("plot", [plot_bode, plot_step, plot_poles])
def test_systems_of_every_kind_leave_a_finite_picture(plot, system):
    ax = plot(system)
    for line in ax.get_lines():
        assert np.isfinite(np.asarray(line.get_xdata(), dtype=float)).all()
        values = np.asarray(line.get_ydata(), dtype=float)
        assert np.isfinite(values).any() or system.order == 0 or plot is plot_bode
    ax.figure.canvas.draw()


def test_poles_before_and_after_are_where_they_are():
    reduction = hr.balanced_truncation(PLANT, order=2)
    before, after = plot_poles(PLANT, reduction).get_lines()[:2]
    np.testing.assert_array_equal(before.get_xdata() + 1j * before.get_ydata(), PLANT.poles())
    np.testing.assert_array_equal(after.get_xdata() + 1j * after.get_ydata(), reduction.system.poles())


@pytest.mark.parametrize(("fastest", "scale"), [(-5.0, "linear"), (-1e5, "symlog")])
def test_poles_over_many_decades_are_drawn_on_logarithmic_axes(fastest, scale):
    stiff = hr.StateSpace(np.diag([-1.0, fastest]), np.ones((2, 1)), np.ones((1, 2)))
    assert plot_poles(stiff).get_xscale() == scale


def test_sparse_systems_are_drawn_but_not_stepped():
    n = 50
    rod = hr.StateSpace(sp.diags_array([1.0, -2.0, 1.0], offsets=[-1, 0, 1], shape=(n, n)), np.eye(n, 1), np.eye(1, n))
    assert plot_bode(rod).lines
    assert "some poles" in plot_poles(rod).get_legend().get_texts()[0].get_text()
    with pytest.raises(hr.InputError, match="must be dense to step"):
        plot_step(rod)


@pytest.mark.parametrize("plot", [plot_bode, plot_step])
@pytest.mark.parametrize("channels", [[], [(0,)], [(5, 0)], [(0, 0.5)], 3, [3]])
def test_channels_that_do_not_exist_are_refused(plot, channels):
    with pytest.raises(hr.InputError, match="hannel"):
        plot(PLANT, channels=channels)


def test_systems_that_do_not_fit_are_refused():
    for plot in (plot_bode, plot_step, plot_poles):
        with pytest.raises(hr.InputError, match="same inputs and outputs"):
            plot(PLANT, LAG)


def test_axes_come_row_by_row():
    axes = new_axes(3, rows=2)
    assert len(axes) == 6
    assert axes[0].get_subplotspec().rowspan.start == axes[2].get_subplotspec().rowspan.start == 0
    assert axes[3].get_subplotspec().rowspan.start == 1


# Linear RGB as dichromats see it: G. M. Machado, M. M. Oliveira, L. A. F. Fernandes, "A Physiologically-based Model for
# Simulation of Color Vision Deficiency", IEEE Trans. Vis. Comput. Graph. 15, 2009, table of severity 1.
SIGHT = {
    "all cones": np.eye(3),
    "no red cones": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green cones": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "no blue cones": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def seen(colour, matrix):
    """Return a colour in CIELAB under D65 as eyes with this matrix see it."""
    rgb = np.array(to_rgb(colour))
    linear = np.clip(np.array(matrix) @ np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4), 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    f = np.cbrt(xyz / [0.9505, 1.0, 1.089])
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("colours", [(KEPT, DROPPED, ERROR), CYCLE], ids=["roles", "cycle"])
def test_every_kind_of_colour_vision_tells_the_colours_apart(sight, colours):
    # 2.3 is a just noticeable difference of two fields side by side, and thin lines need several of them
    least = min(np.linalg.norm(seen(a, SIGHT[sight]) - seen(b, SIGHT[sight])) for a, b in combinations(colours, 2))
    assert least > 4 * 2.3
