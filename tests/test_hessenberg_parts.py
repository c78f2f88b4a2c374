"""Balancing by low-rank factors on a Hessenberg form: the answers of a Schur form, or a Schur form after all."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import scipy.linalg as sla
from hypothesis import given
from hypothesis import strategies as st

import hankelred as hr
from hankelred.checks import EPS
from hankelred.hankel import factored
from hankelred.hessenberg_parts import FROM, HessenbergParts
from hankelred.linalg.adi import LowRankGramians
from hankelred.linalg.gain import largest_gain
from hankelred.linalg.hessenberg import HessenbergForm, HessenbergPencil
from hankelred.linalg.marginality import none_in_doubt
from hankelred.linalg.pencils import Cayley
from hankelred.linalg.schur import margins, ordered_schur
from hankelred.linalg.stability import decay, has_pole_beyond, is_contraction
from hankelred.parts import DenseParts

KINDS = ["dissipative", "oblique", "complex", "discrete"]


def matrix(kind: str, n: int, seed: int = 0) -> Any:
    """Decay rates over three decades; dissipative in its coordinates, or in oblique ones."""
    rng = np.random.default_rng(seed)
    rates, K = 10 ** rng.uniform(-2, 1, n), rng.standard_normal((n, n)) / np.sqrt(n)
    if kind == "dissipative":
        return sla.qr(K)[0] @ (-np.diag(rates) + 0.01 * (K - K.T)) @ sla.qr(K)[0].T
    V = np.eye(n) + 0.3 * (K + 1j * K.T if kind == "complex" else K)
    return V @ np.diag(np.exp(-rates) if kind == "discrete" else -rates) @ np.linalg.inv(V)


@cache
def system(kind: str, n: int = FROM, m: int = 2, p: int = 1) -> hr.StateSpace:
    rng = np.random.default_rng(1)
    B, C = rng.standard_normal((n, m)), rng.standard_normal((p, n))
    if kind == "complex":
        B = B + 1j * rng.standard_normal((n, m))
    return hr.StateSpace(matrix(kind, n), B, C, np.ones((p, m)), dt=0.5 if kind == "discrete" else 0)


@cache
def found(kind: str) -> tuple[Any, Any]:
    """Return a system factored the short way and by a Schur form."""
    return factored(system(kind), 1e-8, hsv_only=True), factored(system(kind), 1e-8)


def with_hidden_pole(pole: float, discrete: bool = False) -> hr.StateSpace:
    """Return a system with one more pole, which no input reaches and no output sees, in rotated coordinates."""
    kind = "discrete" if discrete else "dissipative"
    A = sla.block_diag(matrix(kind, FROM - 1), pole)
    rng = np.random.default_rng(2)
    Z = sla.qr(rng.standard_normal(A.shape))[0]
    B, C = rng.standard_normal((FROM, 1)), rng.standard_normal((1, FROM))
    B[-1] = C[:, -1] = 0.0
    return hr.StateSpace(Z @ A @ Z.T, Z @ B, C @ Z.T, dt=1 if discrete else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_few_inputs_and_outputs_need_no_schur_form(kind: str):
    short, long = found(kind)
    assert (type(short.parts), type(long.parts)) == (HessenbergParts, DenseParts)


@pytest.mark.parametrize("kind", KINDS)
def test_hsv_agree_with_those_of_the_schur_form_within_the_floor(kind: str):
    short, long = found(kind)
    assert np.abs(short.hsv - long.hsv).max() <= max(short.floor, long.floor)
    assert np.abs(short.hsv - long.hsv).max() <= 20 * FROM * EPS * long.hsv[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_floor_is_no_higher_than_that_of_the_schur_form_by_much(kind: str):
    short, long = found(kind)
    assert short.floor <= 10 * long.floor
    assert abs(short.rank - long.rank) <= 3


@pytest.mark.parametrize("kind", KINDS)
def test_reduced_models_are_within_their_bounds(kind: str):
    G = system(kind)
    bal = hr.balance(G)
    omega = np.concatenate([[0.0], np.geomspace(1e-3, 6.0 if G.is_discrete else 30.0, 40)])
    for order in (1, 8, bal.rank):
        reduction = bal.reduce(order)
        error = largest_gain(G.frequency_response(omega) - reduction.system.frequency_response(omega))
        assert error <= reduction.error_bound
        assert np.linalg.norm(reduction.Ti @ reduction.T - np.eye(order)) <= 1e-3


def test_exact_gain_at_zero_is_kept_with_match_dc():
    G = system("oblique")
    reduced = hr.balance(G).reduce(6, match_dc=True).system
    assert np.allclose(reduced.frequency_response(0.0), G.frequency_response(0.0), rtol=1e-9)


def test_units_of_states_change_no_hsv():
    G, w = system("oblique"), 2.0 ** np.random.default_rng(3).integers(-20, 20, FROM)
    scaled = hr.StateSpace(G.A * w / w[:, None], G.B / w[:, None], G.C * w, G.D, dt=0)
    short = factored(scaled, hsv_only=True)
    assert isinstance(short.parts, HessenbergParts)
    assert np.abs(short.hsv - found("oblique")[0].hsv).max() <= short.floor


@pytest.mark.parametrize(("pole", "discrete"), [(0.5, False), (0.0, False), (-1e-9, False), (1.25, True), (1.0, True)])
def test_a_hidden_pole_that_is_not_stable_is_found_and_kept(pole: float, discrete: bool):
    assert hr.balance(with_hidden_pole(pole, discrete)).unstable == 1


@pytest.mark.parametrize(("pole", "discrete"), [(-0.5, False), (0.5, True)])
def test_a_hidden_stable_pole_costs_no_schur_form(pole: float, discrete: bool):
    assert isinstance(factored(with_hidden_pole(pole, discrete), 1e-8, hsv_only=True).parts, HessenbergParts)


def test_an_integrator_in_sight_is_kept():
    A = matrix("dissipative", FROM)
    A[0] = 0.0
    bal = hr.balance(hr.StateSpace(A, np.ones((FROM, 1)), np.ones((1, FROM)), dt=0))
    assert bal.unstable == 1


def test_where_no_low_rank_will_do_the_schur_form_goes_on_with_the_hessenberg_form():
    rng = np.random.default_rng(4)
    frequencies = rng.uniform(1, 1000, FROM // 2)
    A = sla.block_diag(*(np.array([[-0.01 * w, w], [-w, -0.01 * w]]) for w in frequencies))
    G = hr.StateSpace(A, rng.standard_normal((FROM, 1)), rng.standard_normal((1, FROM)), dt=0)
    short, long = factored(G, hsv_only=True), factored(G)
    assert isinstance(short.parts, DenseParts)
    assert short.parts._form.Z is not None
    assert np.abs(short.hsv - long.hsv).max() <= long.floor + short.floor


def test_a_system_without_inputs_has_no_hsv():
    G = system("dissipative")
    assert not hr.hankel_singular_values(hr.StateSpace(G.A, 0 * G.B, G.C, dt=0)).any()


def test_the_system_given_stays_as_it_is():
    G = system("oblique")
    A, B, C = G.A.copy(), G.B.copy(), G.C.copy()
    hr.balance(hr.StateSpace(G.A, G.B, G.C, dt=0)).reduce(3)
    assert all(np.array_equal(*pair) for pair in ((A, G.A), (B, G.B), (C, G.C)))


def test_hankel_norm_and_hsv_take_the_short_way_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hankelred.hessenberg_parts.DenseParts", None)
    G = system("oblique")
    assert np.isclose(hr.hankel_norm(G), hr.hankel_singular_values(G)[0], rtol=1e-12)


@given(st.integers(1, 12), st.integers(0, 10**6), st.booleans(), st.floats(0.0, 1e-6))
def test_poles_beyond_doubt_are_none_that_a_schur_form_keeps(n: int, seed: int, discrete: bool, offset: float):
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((n, n)) * 10 ** rng.uniform(-3, 3, n)
    poles = np.linalg.eigvals(A)
    A = A * (0.9 / np.abs(poles).max()) if discrete else A - (poles.real.max() + 10 ** rng.uniform(-14, 1)) * np.eye(n)
    form = ordered_schur(A, discrete, offset)
    poles = np.linalg.eigvals(A)
    if none_in_doubt(poles, margins(poles, discrete), float(np.linalg.norm(A)), discrete, offset):
        assert form.kept == 0


@pytest.mark.parametrize("discrete", [False, True])
def test_a_contraction_is_stable_by_the_margin(discrete: bool):
    rng = np.random.default_rng(5)
    for seed in range(40):
        A = rng.standard_normal((6, 6)) - 1.5 * np.eye(6) if not discrete else rng.standard_normal((6, 6)) / 4
        margin = 0.1 * (seed % 3)
        largest = np.linalg.norm(A, 2) if discrete else np.linalg.eigvalsh(A + A.T).max() / 2
        assert is_contraction(A, discrete, margin) == (largest < (1 - margin if discrete else -margin))


def vanished(A: Any, discrete: bool = False) -> float:
    """Let a random vector decay with the shifts of a run for B and C that see all poles but the last one."""
    n = len(A)
    form = HessenbergForm(A)
    pencil = Cayley(HessenbergPencil(form)) if discrete else HessenbergPencil(form)
    B = form.rotated(np.vstack([np.ones((n - 1, 1)), np.zeros((1, 1))]).astype(A.dtype), adjoint=True)
    run = LowRankGramians(pencil, B, B.conj().T, rtol=1e-14, most=n)
    for _ in run:
        pass
    return decay(pencil, run.shifts)


@pytest.mark.parametrize("last", [1e-12, 1e-3, 1.0, 30.0])
def test_a_random_vector_does_not_vanish_where_a_pole_is_not_stable(last: float):
    assert vanished(np.diag([*-np.geomspace(0.1, 10, 30), last])) == np.inf


@pytest.mark.parametrize("last", [1.0 + 1e-12, 1.01, 3.0, -1.0])
def test_a_random_vector_does_not_vanish_where_a_pole_is_not_within_the_circle(last: float):
    assert vanished(np.diag([*np.linspace(-0.5, 0.9, 30), last]), discrete=True) == np.inf


def test_what_is_left_of_a_random_vector_tells_the_trace_of_the_inverse():
    rates = np.geomspace(0.1, 10, 31)
    w = np.random.default_rng(0).standard_normal(31)
    assert np.isclose(vanished(-np.diag(rates)), (w**2 / (2 * rates)).sum(), rtol=0.5)


def with_marginal_poles(discrete: bool) -> hr.StateSpace:
    """Return a system whose inputs and outputs see a pair of poles on the boundary, or next to it."""
    turn = np.array([[0.0, 5.0], [-5.0, 0.0]])
    A = sla.block_diag(
        matrix("discrete" if discrete else "oblique", FROM - 2), sla.expm(0.1 * turn) if discrete else turn
    )
    rng = np.random.default_rng(2)
    Z = sla.qr(rng.standard_normal(A.shape))[0]
    B, C = rng.standard_normal((FROM, 2)), rng.standard_normal((1, FROM))
    return hr.StateSpace(Z @ A @ Z.T, B, C, dt=0.5 if discrete else 0)


@pytest.mark.parametrize("discrete", [False, True])
def test_poles_on_the_boundary_are_found_without_all_eigenvalues(discrete, monkeypatch):
    """They cost a third of what such a model gained when eigenvalues were asked for first."""
    monkeypatch.setattr(HessenbergForm, "eigenvalues", None)
    assert hr.balance(with_marginal_poles(discrete)).unstable == 2


@pytest.mark.parametrize("discrete", [False, True])
def test_a_pole_is_found_beyond_a_margin_that_it_does_not_keep_and_not_else(discrete):
    poles = np.concatenate([[-0.01], -np.geomspace(1, 30, 39)])
    A = np.diag(np.exp(poles) if discrete else poles) + 0.01 * np.triu(np.ones((40, 40)), 1)
    form, draw = HessenbergForm(A), np.random.default_rng(0)
    mode = np.eye(40, 1)  # A is triangular, and its first pole the slow one
    columns = np.hstack([draw.standard_normal((40, 5)), 100 * mode + draw.standard_normal((40, 2))])
    columns = form.rotated(columns, adjoint=True)
    distance = 1 - np.exp(-0.01) if discrete else 0.01
    assert has_pole_beyond(form, columns, discrete, 1.001 * distance)
    assert not has_pole_beyond(form, columns, discrete, 0.999 * distance)
