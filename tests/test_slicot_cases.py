"""Example programs of SLICOT, their printed results reproduced: read from a folder beside the repository.

Skipped where ``slicot_cases.json`` is missing (SLICOT-Reference, BSD-3-Clause, inputs and printed outputs of its
examples). Printed with four decimals, so values are compared to 6e-5, and models entry by entry in the coordinates in
which they are printed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hankelred as hr
from hankelred.control import lyap, modred
from hankelred.feedback import reduce_controller
from hankelred.linalg.hankel_svd import HankelSVD
from hankelred.linalg.schur import apply_units, balanced_units
from hankelred.optimal import hankel_norm_approximation
from hankelred.parts import DenseParts
from hankelred.weighting import FrequencyWeighted, Stochastic

FILE = Path(os.environ.get("HANKELRED_DATA", Path(__file__).parents[2] / "shared" / "data")) / "slicot_cases.json"
PRINTED = 6e-5
# Entries in coordinates that are fitted to the rounded ones: the largest difference of all models is 1.1e-4.
FITTED = 1.2e-4

pytestmark = pytest.mark.skipif(not FILE.is_file(), reason=f"the SLICOT examples are not in {FILE}")


def case(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arrays of an example and what it prints."""
    found = json.loads(FILE.read_text())["cases"][name]
    return {key: np.array(x, dtype=float) for key, x in found["input"].items()}, found["output"]


def as_model(printed: dict[str, Any]) -> dict[str, Any]:
    """Return what is printed of a controller under the names of a model."""
    return {f"{name}r": printed[f"{name}c"] for name in "ABCD" if f"{name}c" in printed}


def plant(data: dict[str, Any]) -> hr.StateSpace:
    return hr.StateSpace(data["A"], data["B"], data["C"], data.get("D"))


def assert_same_model(ours: hr.StateSpace, printed: dict[str, Any], names: str = "ABCD") -> None:
    """Compare the matrices of a model with those printed, in the coordinates that fit best.

    Responses say less: next to a slow pole, as those of AB09FD at 0.16, they are 70 times as uncertain as the entries.
    """
    A, B, C = (np.array(printed[key]) for key in ("Ar", "Br", "Cr"))
    one = np.eye(len(A))  # T A_ours = A T, T B_ours = B, C_ours = C T
    equations = np.kron(ours.A.T, one) - np.kron(one, A), np.kron(ours.B.T, one), np.kron(one, C)
    right = np.zeros(A.size), B.ravel("F"), ours.C.ravel("F")
    T = np.linalg.lstsq(np.vstack(equations), np.concatenate(right), rcond=None)[0].reshape(A.shape, order="F")
    inverse = np.linalg.inv(T)
    found = {"A": T @ ours.A @ inverse, "B": T @ ours.B, "C": ours.C @ inverse, "D": ours.D}
    for name in names:
        theirs = np.array(printed.get(f"{name}r", np.zeros(ours.D.shape)))
        np.testing.assert_allclose(found[name], theirs, atol=FITTED, err_msg=name)


@pytest.mark.parametrize(
    ("name", "alpha"), [("AB09AD", 0), ("AB09BD", 0), ("AB09CD", 0), ("AB09MD", -0.6), ("AB09ND", -0.6)]
)
def test_hankel_singular_values_are_those_printed(name, alpha):
    data, printed = case(name)
    bal = hr.balance(plant(data), offset=-alpha)
    np.testing.assert_allclose(bal.hsv[np.isfinite(bal.hsv)], printed["hsv"], atol=PRINTED)


@pytest.mark.parametrize(
    ("name", "match_dc", "alpha"),
    [("AB09AD", False, 0), ("AB09BD", True, 0), ("AB09MD", False, -0.6), ("AB09ND", True, -0.6)],
)
def test_reduced_models_are_those_printed(name, match_dc, alpha):
    data, printed = case(name)
    bal = hr.balance(plant(data), offset=-alpha)
    reduction = bal.reduce(printed["nr"], match_dc=match_dc)
    assert_same_model(reduction.system, printed)


def test_given_states_are_kept_and_the_others_follow_without_delay_as_printed():
    data, printed = case("AB09DD")
    assert_same_model(modred(plant(data), keep_states=slice(len(printed["Ar"])), warn_unstable=False), printed)


def test_weighted_values_and_models_are_those_printed():
    """The plant has an unstable pole, which both keep; the weight stands behind it."""
    data, printed = case("AB09ID")
    weight = hr.StateSpace(data["AV"], data["BV"], data["CV"], data["DV"])
    bal = hr.balance(plant(data), weighting=FrequencyWeighted(output=weight))
    np.testing.assert_allclose(bal.hsv[1:], printed["hsv"], atol=PRINTED)
    assert_same_model(bal.reduce(printed["nr"]).system, printed)


def test_orders_by_tolerance_are_those_printed():
    data, printed = case("AB09AD")
    assert hr.balance(plant(data)).order(rtol=0.1 / printed["hsv"][0]) == printed["nr"]


def test_hankel_norm_is_the_one_printed():
    data, printed = case("AB13AD")
    np.testing.assert_allclose(hr.hankel_norm(plant(data)), printed["hankel_norm"], atol=1e-5)


@pytest.mark.parametrize(("name", "key"), [("AB13CD", "hinf_norm"), ("AB13DD", "linf_norm")])
def test_hinf_norm_and_peak_of_a_lightly_damped_system_are_those_printed(name, key):
    data, printed = case(name)
    norm, peak = hr.hinf_norm(plant(data), return_peak=True)
    np.testing.assert_allclose(norm, printed[key], rtol=2e-9)  # both routines ran with a tolerance of 1e-9
    np.testing.assert_allclose(peak, printed["peak_frequency"], rtol=1e-8)


def test_stein_equation_has_the_solution_printed():
    data, printed = case("SB03MD")
    X = hr.solve_lyapunov(data["A"].T, -data["C"], dt=True)
    np.testing.assert_allclose(X, printed["X"], atol=1e-13)


def test_factor_of_a_lyapunov_equation_gives_the_solution_printed():
    data, printed = case("SB03OD")
    S = hr.lyapunov_factor(data["A"].T, data["B"].T)
    np.testing.assert_allclose(S @ S.T, printed["X"], atol=1e-12)


def test_generalised_lyapunov_equation_has_the_solution_printed():
    data, printed = case("SG03AD")
    upper = data["Y_upper"]
    Y = np.triu(upper) + np.triu(upper, 1).T
    np.testing.assert_allclose(lyap(data["A"].T, -Y, None, data["E"].T), printed["X"], atol=1e-12)


def test_generalised_factor_gives_the_solution_printed():
    data, printed = case("SG03BD")
    U = np.array(printed["U"])
    X = lyap(data["A"].T, data["B"].T @ data["B"], None, data["E"].T)
    np.testing.assert_allclose(X, U.T @ U, atol=4 * PRINTED)


@pytest.mark.parametrize("name", ["BB03AD", "BB04AD"])
def test_ill_conditioned_benchmark_equations_have_the_solution_printed(name):
    """The inputs are printed with four decimals only and the equation amplifies that."""
    data, printed = case(name)
    dt = 0 if name == "BB03AD" else True
    X = hr.solve_lyapunov(data["A"].T, data["B"].T @ data["B"], dt=dt)
    np.testing.assert_allclose(X, printed["X"], atol=2e-3)


def test_badly_scaled_model_is_balanced_like_the_printed_one():
    data, printed = case("TB01ID")
    matrices = data["A"], data["B"], data["C"]

    def spread(*matrices):
        entries = np.abs(np.concatenate([np.ravel(x) for x in matrices]))
        return np.log10(entries[entries > 0].max() / entries[entries > 0].min())

    theirs = spread(*(np.array(printed[key]) for key in ("A_bal", "B_bal", "C_bal")))
    assert spread(*apply_units(balanced_units(*matrices), *matrices)) <= theirs + 1 < spread(*matrices)


def test_stochastic_values_and_model_are_those_printed():
    data, printed = case("AB09HD")
    bal = hr.balance(plant(data), weighting=Stochastic(beta=1.0))
    np.testing.assert_allclose(bal.hsv, printed["hsv"], atol=PRINTED)
    assert_same_model(bal.reduce(printed["nr"]).system, printed)


@pytest.mark.parametrize(("name", "alpha"), [("AB09CD", 0), ("AB09ED", -0.6)])
def test_optimal_hankel_norm_models_are_those_printed(name, alpha):
    data, printed = case(name)
    best = hankel_norm_approximation(plant(data), printed["nr"], offset=-alpha)
    np.testing.assert_allclose(best.hsv[np.isfinite(best.hsv)], printed["hsv"], atol=PRINTED)
    assert_same_model(best.system, printed, "ABC")  # the Hankel norm leaves D free


def cascade(G: hr.StateSpace, H: hr.StateSpace) -> hr.StateSpace:
    """Return ``G H``."""
    A = np.block([[G.A, G.B @ H.C], [np.zeros((H.n, G.n)), H.A]])
    return hr.StateSpace(A, np.vstack([G.B @ H.D, H.B]), np.hstack([G.C, G.D @ H.C]), G.D @ H.D)


def stable_part(G: hr.StateSpace) -> hr.StateSpace:
    parts = DenseParts(G, 0.0)
    return hr.StateSpace(parts.T, parts.B, parts.C, G.D)


@pytest.mark.parametrize("name", ["AB09JD", "AB09KD"])
def test_weighted_hankel_norm_models_are_those_printed(name):
    """The antistable weight V: approximate the stable part of V G, and take that of V^-1 times the result."""
    data, printed = case(name)
    G, V = plant(data), hr.StateSpace(data["AV"], data["BV"], data["CV"], data["DV"])
    best = hankel_norm_approximation(stable_part(cascade(V, G)), printed["nr"])
    np.testing.assert_allclose(best.hsv, printed["hsv"], atol=PRINTED)
    inverse = hr.StateSpace(V.A - V.B @ V.C, V.B, -V.C, V.D)  # D = 1
    assert_same_model(stable_part(cascade(inverse, best.system)), printed, "ABC")


def test_reduced_controller_is_the_one_printed():
    """SLICOT closes the loop with positive feedback."""
    data, printed = case("SB16AD")
    K = hr.StateSpace(data["AC"], data["BC"], data["CC"], data["DC"])
    found = reduce_controller(plant(data), K.with_(C=-K.C), printed["nr"], "stability")
    np.testing.assert_allclose(found.hsv[np.isfinite(found.hsv)], printed["hsv"], atol=PRINTED)
    model = found.system
    assert_same_model(model.with_(C=-model.C), as_model(printed))


def recombined(factors: hr.StateSpace, m: int) -> hr.StateSpace:
    """Return ``M^-1 N`` for ``[N, M]``, N with m inputs."""
    N, M = factors.D[:, :m], factors.D[:, m:]
    C, D = np.linalg.solve(M, factors.C), np.linalg.solve(M, N)
    B = factors.B[:, m:]
    return hr.StateSpace(factors.A - B @ C, factors.B[:, :m] - B @ D, C, D)


@pytest.mark.parametrize(("name", "match_dc"), [("AB09FD", False), ("AB09GD", True)])
def test_models_by_coprime_factors_with_inner_denominator_are_those_printed(name, match_dc):
    """The filter without noise in the states: ``A Y + Y A^T - Y C^T C Y = 0`` for the unstable poles, 0 else."""
    data, printed = case(name)
    G = plant(data)
    parts = DenseParts(G, 0.0)
    X, W = parts.fixed_bases()
    A, C = W @ G.A @ X, G.C @ X
    inverse = hr.solve_lyapunov(-A.T, C.T @ C)  # Y^-1
    L = -X @ np.linalg.solve(inverse, C.T)
    factors = hr.StateSpace(G.A + L @ G.C, np.hstack([G.B, L]), G.C, np.hstack([G.D, np.eye(G.p)]))
    bal = hr.balance(factors)
    np.testing.assert_allclose(bal.hsv, printed["hsv"], atol=PRINTED)
    assert_same_model(recombined(bal.reduce(printed["nr"], match_dc=match_dc).system, G.m), printed)


def test_observer_based_controller_by_coprime_factors_is_the_one_printed():
    """Left factors ``K = V^-1 U`` of the controller ``(A + B F + L C, L, F)``, truncated."""
    data, printed = case("SB16BD")
    A, B, C, F, L = (data[key] for key in "ABCFG")
    factors = hr.StateSpace(A + L @ C, np.hstack([L, B]), F, np.hstack([np.zeros((1, 1)), np.eye(1)]))
    bal = hr.balance(factors)
    np.testing.assert_allclose(bal.hsv, printed["hsv"], atol=PRINTED)
    assert_same_model(recombined(bal.reduce(printed["nr"]).system, 1), as_model(printed))


def test_observer_based_controller_by_weighted_coprime_factors_is_the_one_printed():
    """Right factors: P is the Gramian of ``(A + B F, L)``, and Q, weighted by the loop, that of ``(A + L C, C)``."""
    data, printed = case("SB16CD")
    A, B, C, F, L = (data[key] for key in "ABCFG")
    svd = HankelSVD(
        hr.gramian_factors(hr.StateSpace(A + B @ F, L, F))[0], hr.gramian_factors(hr.StateSpace(A + L @ C, L, C))[1]
    )
    np.testing.assert_allclose(svd.values, printed["hsv"], atol=PRINTED)
    T, Ti = svd.bases(slice(0, printed["nr"]), printed["nr"])
    controller = hr.StateSpace(Ti @ (A + B @ F + L @ C) @ T, Ti @ L, F @ T)
    assert_same_model(controller, as_model(printed))
