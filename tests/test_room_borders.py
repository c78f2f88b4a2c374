"""Every argument of the selective, training, drift, plotting and testing rooms is right, or an error names it."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

import hankelred as hr
from hankelred import plotting, selective, testing, training
from tests.reference_selective import HeadsLayer, MambaLayer

MAMBA, HEADS = MambaLayer(4, 6).data(2, 20), HeadsLayer(4, 2, 3).data(2, 20)
HEADED = {**HEADS._asdict(), "gate": HEADS.x}
SYSTEM = hr.DiagonalSystem.from_rates([-0.1, -0.2 + 1j, -0.5 + 2j], np.ones((3, 1)), np.ones((1, 3)), dt=True)
REDUCTION = hr.balance(SYSTEM).reduce(order=2)
MOMENTS = training.Moments(np.ones(3), np.ones((3, 1)), np.ones((1, 3)))
PLANT = hr.StateSpace([[-1.0, 2.0], [0.0, -3.0]], [[1.0], [1.0]], [[2.0, 1.0]])


def mamba_statistics() -> selective.SelectiveStatistics:
    found = selective.SelectiveStatistics(4, moments=True, exact=True)
    found.update_mamba(*MAMBA)
    return found


def heads_statistics() -> selective.SelectiveStatistics:
    found = selective.SelectiveStatistics(4)
    found.update_heads(*HEADS)
    return found


def delta_statistics() -> selective.SelectiveStatistics:
    found = selective.SelectiveStatistics(4, delta=True)
    found.update_delta(**RULE)
    return found


STATISTICS = mamba_statistics()
RULE = {**HEADED, "beta": np.full((2, 20, 2), 0.5), "B": HEADS.B / np.linalg.norm(HEADS.B, axis=3, keepdims=True)}
STEPS = dict(zip("abc", np.random.default_rng(0).uniform(-0.9, 0.9, (3, 1, 9, 4)), strict=True))
GATED = {**MAMBA._asdict(), "gate": MAMBA.u}
SELECTED = selective.select(STATISTICS, 2)
FORM = STATISTICS.output_form()[0]

# Every public callable with arguments that are right.
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "averaged_gramians": (selective.averaged_gramians, {**STEPS, "method": "exact"}),
    "statistics": (
        selective.SelectiveStatistics,
        {"n": 4, "groups": 1, "moments": True, "exact": False, "delta": False, "every": 2},
    ),
    "update": (lambda **x: mamba_statistics().update(**x), STEPS),
    "update_mamba": (lambda **x: mamba_statistics().update_mamba(**x), GATED),
    "update_heads": (lambda **x: heads_statistics().update_heads(**x), HEADED),
    "update_delta": (lambda **x: delta_statistics().update_delta(**x), RULE),
    "delta_inputs": (selective.delta_inputs, {name: RULE[name] for name in ("decay", "beta", "B", "x")}),
    "delta_outputs": (selective.delta_outputs, {name: RULE[name] for name in ("decay", "beta", "B", "C", "x")}),
    "merge": (lambda **x: mamba_statistics().merge(**x), {"other": STATISTICS}),
    "from_dict": (selective.SelectiveStatistics.from_dict, {"state": STATISTICS.to_dict()}),
    "stored": (lambda **x: selective.SelectiveStatistics.from_dict(x), STATISTICS.to_dict()),
    "gramians": (STATISTICS.gramians, {"method": "mean"}),
    "hsv": (STATISTICS.hankel_singular_values, {"method": "mean"}),
    "select_states": (selective.select_states, {"M": FORM, "order": 2}),
    "selection_report": (selective.selection_report, {"M": FORM, "order": 2}),
    "select": (selective.select, {"statistics": STATISTICS, "order": 2, "fold": True, "kept": [0, 1], "rcond": 1e-3}),
    "rotate": (
        selective.rotate,
        {"statistics": STATISTICS, "A": MAMBA.A, "order": 2, "method": "mean", "max_spread": 9.0},
    ),
    "project": (selective.project, {"statistics": heads_statistics(), "order": 2, "orthogonal": True}),
    "mamba_error": (SELECTED.mamba_error, GATED),
    "heads_error": (selective.project(heads_statistics(), 2).heads_error, HEADED),
    "delta_error": (
        selective.project(delta_statistics(), 2, orthogonal=True).delta_error,
        {**RULE, "renormalise": True},
    ),
    "align_states": (training.align_states, {"system": SYSTEM, "reduction": REDUCTION}),
    "carry_first_moments": (
        training.carry_first_moments,
        {"system": SYSTEM, "reduction": REDUCTION, "moments": MOMENTS, "staleness": 1e-3},
    ),
    "carry_second_moments": (
        training.carry_second_moments,
        {"system": SYSTEM, "reduction": REDUCTION, "moments": MOMENTS},
    ),
    "follow": (training.follow, {"copy": SYSTEM, "system": SYSTEM, "reduction": REDUCTION}),
    "plot_hsv": (plotting.plot_hsv, {"hsv": [2.0, 1.0], "order": 1, "ax": Figure().subplots()}),
    "plot_error_bound": (plotting.plot_error_bound, {"hsv": [2.0, 1.0], "reductions": [], "ax": Figure().subplots()}),
    "plot_frequency_error": (
        plotting.plot_frequency_error,
        {"sys": PLANT, "reduced": PLANT, "omega": [1.0, 2.0], "ax": Figure().subplots()},
    ),
    "plot_bode": (
        plotting.plot_bode,
        {"sys": PLANT, "reduced": PLANT, "omega": [1.0, 2.0], "channels": [(0, 0)], "ax": Figure().subplots()},
    ),
    "plot_step": (
        plotting.plot_step,
        {"sys": PLANT, "reduced": PLANT, "horizon": 2.0, "channels": [(0, 0)], "ax": Figure().subplots()},
    ),
    "plot_poles": (plotting.plot_poles, {"sys": PLANT, "reduced": PLANT, "ax": Figure().subplots()}),
    "new_axes": (plotting.new_axes, {"columns": 1, "rows": 1}),
    "assert_hsv_close": (
        testing.assert_hsv_close,
        {"sys": PLANT, "hsv": hr.hankel_singular_values(PLANT), "rtol": 1e-8, "atol": 1e-9},
    ),
    "assert_error_bound": (
        testing.assert_error_bound,
        {"full": PLANT, "reduced": hr.balanced_truncation(PLANT, order=1), "bound": 9.0, "rtol": 1e-6},
    ),
    "assert_weyl": (testing.assert_weyl, {"G": PLANT, "H": PLANT}),
    "assert_factors": (
        testing.assert_factors,
        {"sys": PLANT, **dict(zip("SR", hr.gramian_factors(PLANT), strict=True)), "rtol": 1e-9},
    ),
    "system_with_hsv": (testing.system_with_hsv, {"hsv": [2.0, 1.0], "signs": [1, 1], "gains": [1, 2], "dt": 0}),
    "stable_systems": (
        testing.stable_systems,
        {"max_states": 2, "min_states": 1, "max_inputs": 1, "max_outputs": 1, "dt": 0, "complex_data": True},
    ),
    "diagonal_systems": (testing.diagonal_systems, {"max_states": 2, "dt": 0, "outputs": ["real"]}),
    "near_boundary_systems": (testing.near_boundary_systems, {"max_digits": 3, "max_states": 2}),
    "prescribed_systems": (testing.prescribed_systems, {"hsv": [2.0, 1.0], "max_states": 2}),
    "repeated_hsv_systems": (testing.repeated_hsv_systems, {"max_states": 2, "copies": 2}),
    "non_minimal_systems": (testing.non_minimal_systems, {"max_states": 2, "max_hidden": 2}),
    "ill_scaled_systems": (testing.ill_scaled_systems, {"max_exponent": 2, "max_states": 2}),
    "diagonal_banks": (testing.diagonal_banks, {"max_systems": 2, "max_states": 2, "outputs": ["real"]}),
    "delta_layer": (
        testing.delta_layer,
        {
            **{"n": 4, "rank": 2, "noise": 0.1, "inert": 1, "groups": 1, "heads": 2, "head_dim": 2, "batch": 1},
            **{"length": 3, "by_channel": False, "follow": 0.5, "seed": 0},
        },
    ),
    "delta_layers": (testing.delta_layers, {"max_states": 2}),
    "system_pairs": (testing.system_pairs, {"max_states": 2}),
}
WRONG = {
    "none": None,
    "string": "no",
    "object": object(),
    "a class": selective.SelectiveStatistics,
    "nan": float("nan"),
    "fraction": 2.9,
    "negative": -1,
    "dict": {"a": 1},
    "ragged": [[1.0], [1.0, 2.0]],
    "masked": np.ma.masked_array([2.0, 1.0], [True, False]),
    "bank": hr.DiagonalBank([[0.5]], [[[1.0]]], [[[1.0]]], dt=True),
    "empty": np.zeros((0, 0)),
}
# What is right after all: numbers where numbers are wanted, and callables where a function is.
FINE = {("a class", "hsv")} | {
    ("fraction", name) for name in ("noise", "max_spread", "staleness", "rtol", "atol", "bound", "dt")
}
FINE |= {("none", name) for name in "gate kept max_spread ax omega atol bound signs gains complex_data".split()}
FINE |= {("none", "horizon"), ("fraction", "horizon"), ("none", "channels")}
OPTIONAL = {("plot_hsv", "order"), ("prescribed_systems", "hsv")}
OPTIONAL |= {(name, "reduced") for name in ("plot_bode", "plot_step", "plot_poles")}
PAIRS = [(name, argument) for name, (_, right) in CALLS.items() for argument in right]


def test_the_right_arguments_are_right():
    for call, right in CALLS.values():
        call(**right)


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize(("name", "argument"), PAIRS)
def test_wrong_arguments_are_named(name, argument, kind):
    if (kind, argument) in FINE or (kind == "none" and (name, argument) in OPTIONAL):
        return
    call, right = CALLS[name]
    with pytest.raises((hr.HankelredError, AssertionError)) as caught:
        call(**{**right, argument: WRONG[kind]})
    assert argument in str(caught.value) or isinstance(caught.value, (AssertionError, hr.StabilityError))


@pytest.mark.parametrize("size", [1e-200, 1e160, 1e200, 1e300])
@pytest.mark.parametrize(
    "name",
    [
        *"averaged_gramians update update_mamba update_heads update_delta".split(),
        *"mamba_error delta_outputs delta_error".split(),
    ],
)
def test_numbers_out_of_range_are_errors_or_finite_results(name, size):
    """Squares overflow from 1e154 on; what comes back silently is finite, and no warning of NumPy is printed."""
    call, right = CALLS[name]
    fixed = {"a", "A", "delta", "decay", "beta", "renormalise"} | ({"B"} if "delta" in name else set())
    scaled = {
        key: value if key in fixed else value * size
        for key, value in right.items()
        if value is not None and not isinstance(value, str)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            found = call(**scaled)
        except hr.NumericalError:
            assert size > 1
        else:
            assert found is None or np.all(np.isfinite(found))


@pytest.mark.parametrize("size", [1e-80, 1e70, 1e75, 1e140])
@pytest.mark.parametrize("reduce", [selective.select, selective.project, selective.rotate])
def test_reductions_of_large_sums_are_errors_or_finite(reduce, size):
    statistics = selective.SelectiveStatistics(4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            statistics.update_mamba(*MAMBA._replace(B=MAMBA.B * size, C=MAMBA.C * size))
            found = reduce(statistics, *([MAMBA.A] if reduce is selective.rotate else []), 2)
        except hr.NumericalError:
            assert size > 1
        else:
            assert all(np.all(np.isfinite(x)) for x in (found.T, found.Ti, found.hsv, found.predicted_error))


@pytest.mark.parametrize("size", [1e-80, 1e70, 1e75, 1e140])
def test_orthonormal_reductions_of_large_sums_are_errors_or_finite(size):
    statistics = selective.SelectiveStatistics(4, delta=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            statistics.update_delta(**{**RULE, "C": RULE["C"] * size, "x": RULE["x"] * size})
            found = selective.project(statistics, 2, orthogonal=True)
        except hr.NumericalError:
            assert size > 1
        else:
            assert all(np.all(np.isfinite(x)) for x in (found.T, found.Ti, found.hsv, found.predicted_error))


def test_a_refused_overflow_adds_nothing():
    state = {key: np.full_like(x, 1e308) if np.ndim(x) else x for key, x in STATISTICS.to_dict().items()}
    statistics, other = (selective.SelectiveStatistics.from_dict(state) for _ in range(2))
    for update in (
        lambda: statistics.update_mamba(*MAMBA._replace(B=MAMBA.B * 1e200)),
        lambda: statistics.merge(other),
    ):
        with pytest.raises(hr.NumericalError, match="Sums over steps must be finite"):
            update()
        after = statistics.to_dict()
        assert all(np.array_equal(value, after[key]) for key, value in state.items())


def test_signatures_of_this_table_are_those_of_the_functions():
    for name, (call, right) in CALLS.items():
        if inspect.isfunction(call) and call.__name__ != "<lambda>":
            assert set(right) <= set(inspect.signature(call).parameters), name
