"""Sparse, descriptor and second-order systems against closed forms and their dense twins."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import scipy.io
import scipy.sparse as sp

import hankelred as hr
from hankelred import low_rank
from hankelred.checks import as_dense
from hankelred.cli import main
from hankelred.linalg.engines import SparseSum
from hankelred.systems.sparse import DENSE_UP_TO

from .large import chain, net, ones_at, plate, plate_hsv, rod, rod_hsv, stokes
from .sizes import is_long

OMEGA = np.concatenate([[0.0], np.geomspace(1e-2, 1e6, 199)])


def twins() -> dict[str, hr.StateSpace]:
    """Return small systems of every structure."""
    wind = plate(14, ports=2, wind=3.0)
    mass = sp.diags_array([1.0, 4.0, 1.0], offsets=[-1, 0, 1], shape=(196, 196), format="csc") / 6
    discrete = sp.csc_array(sp.eye_array(196) + 5e-4 * wind.A)
    turned = wind.with_(A=sp.csc_array(wind.A + 40j * sp.eye_array(196)))
    return {
        "symmetric": plate(14, ports=2),
        "wind": wind,
        "mass": wind.with_(E=mass),
        "complex": turned,
        "discrete": hr.StateSpace(discrete, wind.B, wind.C, dt=0.1),
        "discrete, mass": hr.StateSpace(sp.csc_array(mass @ discrete), wind.B, wind.C, dt=True, E=mass),
        "index 1": net(150),
        "index 2": stokes(7),
        "index 2, driven": stokes(7, driven=True),
        "second order": chain(40),
    }


TWINS = twins()


@pytest.mark.parametrize("name", TWINS)
def test_values_are_those_of_the_dense_twin(name):
    system = TWINS[name]
    bal, dense = hr.balance(system), hr.balance(system.dense())
    k = len(bal.hsv)
    assert k >= 6
    assert np.abs(bal.hsv - dense.hsv[:k]).max() <= bal.floor + dense.floor
    assert dense.hsv[k] <= 10 * (bal.floor + dense.floor)


@pytest.mark.parametrize("name", TWINS)
def test_responses_are_those_of_the_dense_twin(name):
    system = TWINS[name]
    omega = np.array([0.0, 0.3, 2.0, 25.0])
    expected = system.dense().frequency_response(omega)
    np.testing.assert_allclose(system.frequency_response(omega), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("match_dc", [False, True])
@pytest.mark.parametrize("name", TWINS)
def test_reduced_models_are_within_their_bound(name, match_dc):
    system = TWINS[name]
    reduction = hr.balanced_truncation(system, rtol=1e-4, match_dc=match_dc)
    omega = OMEGA if not system.is_discrete else np.linspace(0, np.pi / float(system.dt), 200)
    error = np.abs(system.frequency_response(omega) - reduction.system.frequency_response(omega)).max(axis=0)
    assert np.linalg.norm(error, 2) <= np.sqrt(2) * reduction.error_bound  # entrywise maxima of two inputs
    assert reduction.hinf_error() <= reduction.error_bound
    assert type(reduction.system) is hr.StateSpace
    assert (reduction.system.dt, reduction.system.dtype) == (system.dt, system.dtype)
    np.testing.assert_allclose(reduction.Ti @ reduction.T, np.eye(reduction.order), atol=1e-8)


@pytest.mark.parametrize("name", TWINS)
def test_norms_are_those_of_the_dense_twin(name):
    system = TWINS[name]
    for norm in (hr.h2_norm, hr.hankel_norm, hr.hinf_norm):
        if not (norm is hr.h2_norm and np.any(system.ports[2]) and not system.is_discrete):
            assert norm(system) == pytest.approx(norm(system.dense()), rel=1e-7)


@pytest.mark.parametrize("name", ["symmetric", "second order", "index 1"])
def test_errors_measured_are_those_of_the_dense_twin(name):
    system = TWINS[name]
    sparse, dense = (hr.balanced_truncation(x, order=4) for x in (system, system.dense()))
    assert sparse.hankel_error() == pytest.approx(dense.hankel_error(), rel=1e-5)
    assert sparse.h2_error() == pytest.approx(dense.h2_error(), rel=1e-5)
    assert 0.9 * dense.hinf_error() <= sparse.hinf_error() <= (1 + 1e-6) * dense.hinf_error()  # a lower figure


@pytest.mark.parametrize("ports", [1, 4])
def test_values_of_a_rod_of_ten_thousand_states_are_those_of_the_closed_form(ports):
    system = rod(10_000, ports)
    bal, expected = hr.balance(system), rod_hsv(system)
    error = np.abs(bal.hsv - expected[: len(bal.hsv)]).max() / expected[0]
    assert error < 5e-11  # shifts of 53 bits leave 1.9e-10
    assert error <= bal.floor / bal.hsv[0]


@pytest.mark.skipif(not is_long(), reason="HANKELRED_LONG=1 runs it; rods of 1e4 states run always")
@pytest.mark.filterwarnings("ignore:Hankel singular values are certain to:hankelred.AccuracyWarning")
@pytest.mark.parametrize(("n", "ports", "most"), [(100_000, 1, 3e-8), (100_000, 4, 3e-8), (1_000_000, 1, 1e-6)])
def test_values_of_long_rods_are_those_of_the_closed_form_within_their_floor(n, ports, most):
    system = rod(n, ports)
    bal, expected = hr.balance(system), rod_hsv(system)
    error = np.abs(bal.hsv - expected[: len(bal.hsv)]).max() / expected[0]
    assert error < most
    assert error <= bal.floor / bal.hsv[0]  # one solve at pole zero told of a sixteenth of it at a million states


@pytest.mark.parametrize("k", [30, 40])
def test_values_of_plates_are_those_of_a_dense_matrix_and_of_the_closed_form(k):
    system = plate(k)
    bal, (S, R) = hr.balance(system), hr.gramian_factors(system.dense())  # by a Schur form
    for expected in (plate_hsv(system), np.linalg.svd(R @ S, compute_uv=False)):
        assert np.abs(bal.hsv - expected[: len(bal.hsv)]).max() <= bal.floor + 1e-12 * expected[0]


@pytest.mark.parametrize("k", [100, pytest.param(316, marks=pytest.mark.skipif(not is_long(), reason="a minute"))])
def test_values_of_large_plates_are_those_of_the_closed_form(k):
    system = plate(k)
    bal, expected = hr.balance(system), plate_hsv(system)
    error = np.abs(bal.hsv - expected[: len(bal.hsv)]).max()
    assert len(bal.hsv) >= 12
    assert error <= bal.floor
    assert bal.floor <= 1e-8 * expected[0]


@pytest.mark.parametrize("driven", [False, True])
def test_flows_on_their_constraint_respond_as_the_whole_matrix_does(driven):
    system, omega = stokes(9, driven), np.array([0.0, 1.0, 40.0, 1e4])
    A, E = system.A.toarray(), system.E.toarray()
    expected = [system.C @ np.linalg.solve(1j * w * E - A, system.B.astype(complex)) for w in omega]
    assert system.order == 2 * 9 * 8 - 80
    np.testing.assert_allclose(system.frequency_response(omega), expected, rtol=1e-9, atol=1e-13)


def test_outputs_that_hold_derivatives_of_inputs_are_refused():
    system = stokes(5)
    B = system.B.copy()
    B[-3, 0] = 1.0
    with pytest.raises(hr.InputError, match="without derivatives of inputs"):
        hr.balance(system.with_(B=B))


def test_constraints_that_repeat_each_other_are_refused():
    """All pressures of a closed box, one of which must be fixed: an LU factor has a pivot near rounding, not zero."""
    system, k = stokes(5), 2 * 5 * 4
    twice = sp.csr_array(system.A[k:, :k])
    outflow = sp.vstack([twice, -sp.csr_array(twice.sum(axis=0)[None, :])])
    A = sp.block_array([[system.A[:k, :k], outflow.T], [outflow, None]], format="csc")
    E = sp.block_diag([sp.eye_array(k), sp.csc_array((25, 25))], format="csc")
    with pytest.raises(hr.InputError, match=r"depend on each other.*fix one value"):
        hr.StateSpace(A, np.ones((k + 25, 1)), np.ones((1, k + 25)), E=E)


@pytest.mark.parametrize("name", ["symmetric", "wind", "second order"])
def test_definite_matrices_show_stability(name):
    system = TWINS[name]
    assert system.certainly_stable(0.0)
    assert not system.certainly_stable(1e6)


def test_an_unstable_mode_hidden_from_the_ports_is_found():
    A = sp.block_diag([rod(6000).A, [[0.5]]], format="csc")
    system = hr.StateSpace(A, np.eye(6001, 1), np.eye(1, 6001))
    assert not system.is_stable()
    with pytest.raises(hr.StabilityError, match=r"poles 0\.5"):
        hr.balance(system)


def test_a_free_body_is_not_stable():
    K = sp.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(3000, 3000)).tolil()
    K[0, 0] = K[-1, -1] = 1.0
    free = hr.SecondOrderSystem(sp.eye_array(3000), 0.1 * K, K, ones_at(3000, [0]), ones_at(3000, [1]).T)
    assert not free.is_stable()
    with pytest.raises(hr.StabilityError, match="must be stable"):
        hr.hankel_singular_values(free)


def test_unstable_poles_of_small_systems_are_split_off():
    A = sp.block_diag([rod(50).A, [[0.5]]], format="csc")
    system = hr.StateSpace(A, np.ones((51, 1)), np.ones((1, 51)))
    bal = hr.balance(system)
    assert bal.unstable == 1
    reduction = bal.reduce(order=5)
    assert reduction.hinf_error() <= reduction.error_bound


@pytest.mark.parametrize(
    "what",
    [hr.gramians, hr.balanced_realization, hr.StateSpace.poles, hr.StateSpace.to_control],
    ids=lambda f: f.__name__,
)
def test_what_needs_dense_matrices_says_up_to_which_size(what):
    with pytest.raises(hr.InputError, match=f"up to {DENSE_UP_TO} states; got 6000"):
        what(rod(6000))


def test_minimal_keeps_the_values_above_their_floor():
    bal = hr.balance(rod(2000))
    assert hr.minimal(rod(2000)).order == len(bal.hsv) == bal.rank


def test_results_say_what_factored_the_matrices():
    assert hr.balanced_truncation(rod(2000), order=3).method.endswith("by factors of low rank (thin LU)")
    assert "(thin LU)" in hr.balanced_truncation(rod(2000), order=3).summary()


def test_what_does_not_fit_into_memory_is_refused_before_the_work(monkeypatch):
    monkeypatch.setattr(low_rank, "_memory", lambda: 2**20)
    monkeypatch.setattr(SparseSum, "factor", None)  # nothing is factored
    with pytest.raises(hr.NumericalError, match=r"must fit into memory; got about 0\.0 GiB where there are 0\.0"):
        hr.balance(rod(10_000))


def test_orders_beyond_the_rank_are_refused():
    with pytest.raises(hr.OrderError, match="above their rounding error"):
        hr.balance(rod(2000)).reduce(order=1000)


@pytest.mark.parametrize("name", TWINS)
def test_copies_are_systems_that_do_not_change(name):
    system = TWINS[name]
    hr.h2_norm(system)  # its factorisations stay behind
    again = pickle.loads(pickle.dumps(copy.deepcopy(system)))
    for key in "A B C D E M K".split():
        one, other = (getattr(x, key, None) for x in (again, system))
        if other is not None:
            np.testing.assert_array_equal(as_dense(one), as_dense(other))
    responses = (x.frequency_response([0.3]) for x in (again, system))
    np.testing.assert_allclose(*responses, rtol=1e-12)  # sums depend on where in memory their terms lie
    with pytest.raises(ValueError, match="read-only"):
        (again.A if again.E is None else again.E).data[:] = 0


def test_states_are_counted_as_those_of_the_dense_twin():
    for system in (TWINS["wind"], TWINS["second order"]):
        assert hr.balanced_truncation(system, states=4).order == 4
        assert hr.balance(system).order(states=4) == hr.balance(system.dense()).order(states=4) == 4


@pytest.mark.parametrize("size", [1e-200, 1e150])
def test_inputs_of_any_size_scale_the_values(size):
    system = plate(14, ports=2, wind=3.0)
    expected = hr.hankel_singular_values(system)
    hsv = hr.hankel_singular_values(system.with_(B=size * system.B))
    k = min(len(hsv), len(expected))
    assert k >= 6
    np.testing.assert_allclose(hsv[:k] / size, expected[:k], rtol=0, atol=1e-11 * expected[0])


def test_single_precision_stays():
    system = plate(12, dtype=np.float32)
    reduction = hr.balanced_truncation(system, rtol=1e-3)
    assert system.A.dtype == reduction.system.dtype == np.float32
    assert reduction.hinf_error() <= reduction.error_bound


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"A": sp.csc_array((3, 4))}, "A must be square"),
        ({"B": np.ones((4, 1))}, "as many rows as A"),
        ({"E": sp.eye_array(4, format="csc")}, "E must have the shape of A"),
        ({"A": sp.csc_array(np.diag([np.nan, 1, 1]))}, "must be finite"),
        ({"E": sp.csc_array(np.eye(3, k=1))}, "index 3 and more"),
        ({"E": sp.csc_array([[1.0, 1.0, 0.0], [0.0] * 3, [0.0] * 3])}, "index 1 at most"),
    ],
)
def test_wrong_matrices_are_refused(changes, message):
    arguments = {"A": -sp.eye_array(3, format="csc"), "B": np.ones((3, 1)), "C": np.ones((1, 3)), **changes}
    with pytest.raises(hr.InputError, match=message):
        hr.StateSpace(**arguments)


def test_a_system_does_not_change_with_what_it_was_made_of():
    A = rod(30).A.copy()
    system = hr.StateSpace(A, np.ones((30, 1)), np.ones((1, 30)))
    A.data[:] = 0
    assert system.A.diagonal()[0] == -2 * 31**2
    with pytest.raises(ValueError, match="read-only"):
        system.A.data[0] = 1


@pytest.mark.parametrize("suffix", [".mat", ""])
def test_sparse_systems_go_through_files(tmp_path, suffix):
    system = rod(1200).with_(E=sp.eye_array(1200, format="csc") * 2, name="rod", inputs=["heat"])
    hr.save_system(system, tmp_path / f"rod{suffix}")
    again = hr.load_system(tmp_path / f"rod{suffix}")
    assert (again.is_sparse, again.name, again.inputs, again.dt) == (True, "rod", ("heat",), 0)
    for key in "ABCDE":
        assert abs(getattr(again, key) - getattr(system, key)).max() == 0


def test_archives_of_arrays_take_no_sparse_matrices(tmp_path):
    with pytest.raises(hr.InputError, match=r"Save the system as \.mat"):
        hr.save_system(rod(1200), tmp_path / "rod.npz")


def test_a_folder_changes_from_sparse_to_dense(tmp_path):
    hr.save_system(rod(1200), tmp_path / "model")
    hr.save_system(hr.StateSpace([[-1.0]], [[1.0]], [[1.0]]), tmp_path / "model")
    assert hr.load_system(tmp_path / "model").n == 1


@pytest.mark.parametrize(
    "text",
    [
        "no header\n1 1 1\n1 1 1\n",
        "%%MatrixMarket matrix coordinate real general\n9 9 1000000\n1 1 1\n",
        "%%MatrixMarket matrix coordinate real general\n2 2 1\n3 3 1\n",
    ],
)
def test_damaged_matrix_market_files_are_refused(tmp_path, text):
    hr.save_system(rod(1200), tmp_path / "model")
    (tmp_path / "model" / "A.mtx").write_text(text)
    with pytest.raises(hr.InputError, match=r"A\.mtx"):
        hr.load_system(tmp_path / "model")


def test_the_command_line_reduces_a_sparse_file(tmp_path, capsys):
    system = rod(6000)
    matrices = {"A": system.A, "B": sp.csc_array(system.B), "C": sp.csc_array(system.C)}
    scipy.io.savemat(tmp_path / "rod.mat", matrices)
    paths = [str(tmp_path / name) for name in ("rod.mat", "small.mat", "rod.png")]
    assert main(["reduce", paths[0], "--dt", "0", "--rtol", "1e-4", "-o", paths[1], "--plot", paths[2]]) == 0
    printed = capsys.readouterr().out
    assert "6000 states" in printed
    assert "sparse" in printed
    assert hr.load_system(paths[1]).n < 12
    assert main(["compare", paths[0], paths[1], "--dt", "0"]) == 0


def test_second_order_systems_change_and_keep_names():
    system = chain(10).with_(name="chain", inputs=["force"])
    assert (system.name, system.inputs, system.n) == ("chain", ("force",), 20)
    assert hr.balanced_truncation(system, order=2).system.inputs == ("force",)
    with pytest.raises(hr.InputError, match="must be of one size"):
        system.with_(K=np.eye(3))
