"""Weighted, limited and sampled pairs against quadrature, long sums and Gramians of whole cascades."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pytest
import scipy.linalg as sla
from scipy.integrate import quad_vec
from sizes import sample

import hankelred as hr
from hankelred.weighting import FrequencyLimited, FrequencyWeighted, Sampled, StateCovariance, TimeLimited

BANDS = ((0.2, 1.0), (1.5, 2.5))
KINDS = [
    *(("dense", dt, kind) for dt in (0, True, 0.1) for kind in ("real", "complex")),
    *(("diagonal", dt, kind) for dt in (0, True, 0.1) for kind in ("real", "complex", "pairs", "real output")),
]


def dense(rng, n, m, p, dt, kind="real"):
    """Return a random stable system."""
    draw = lambda *shape: rng.standard_normal(shape) + (1j * rng.standard_normal(shape) if kind == "complex" else 0.0)  # noqa: E731
    A = draw(n, n)
    poles = np.linalg.eigvals(A)
    A = 0.9 * A / np.abs(poles).max() if dt else A - (poles.real.max() + 0.3) * np.eye(n)
    return hr.StateSpace(A, draw(n, m), draw(p, n), dt=dt)


def diagonal(rng, n, m, p, dt, kind):
    """Return a random stable diagonal system; with pairs the output is real and poles are complex."""
    real = kind in ("real", "real output")
    draw = lambda *shape: rng.standard_normal(shape) + (0.0 if real else 1j * rng.standard_normal(shape))  # noqa: E731
    turn = np.zeros(n) if real else rng.uniform(0, 3, n)
    lam = rng.uniform(0.3, 0.97, n) * np.exp(1j * turn) if dt else -rng.uniform(0.1, 2, n) + 1j * turn
    output = "real" if kind in ("pairs", "real output") else "complex"
    return hr.DiagonalSystem(lam.real if real else lam, draw(n, m), draw(p, n), dt=dt, output=output)


def system(form, dt, kind, seed=0, n=4):
    rng = np.random.default_rng(seed)
    return (dense if form == "dense" else diagonal)(rng, n, 2, 3, dt, kind)


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def assert_pair(G, weighting, P, Q, atol=1e-10):
    """Compare Gramians, their factors and the Hankel singular values with matrices from elsewhere."""
    for found, expected in zip(hr.gramians(G, weighting), (P, Q), strict=True):
        assert relative(found, expected) < atol
    S, R = hr.gramian_factors(G, weighting)
    assert relative(S @ S.conj().T, P) < atol
    assert relative(R.conj().T @ R, Q) < atol
    hsv = np.sqrt(np.sort(np.linalg.eigvals(P @ Q).real)[::-1].clip(0))
    np.testing.assert_allclose(hr.hankel_singular_values(G, weighting), hsv, atol=1e-6 * hsv[0])


@pytest.mark.parametrize(("form", "dt", "kind"), KINDS)
def test_time_limited_gramians_are_sums_and_integrals_over_the_horizon(form, dt, kind):
    G = system(form, dt, kind)
    A, B, C = G.dense().A, G.dense().B, G.dense().C
    if G.is_discrete:
        horizon = 7 if dt is True else 7 * dt
        powers = [np.linalg.matrix_power(A, k) for k in range(7)]
        P = sum(X @ B @ B.conj().T @ X.conj().T for X in powers)
        Q = sum(X.conj().T @ C.conj().T @ C @ X for X in powers)
    else:
        horizon = 7.0

        def integrand(t):
            X = sla.expm(A * t)
            return np.stack([X @ B @ B.conj().T @ X.conj().T, X.conj().T @ C.conj().T @ C @ X])

        P, Q = quad_vec(integrand, 0, horizon, epsabs=1e-14, epsrel=1e-13)[0]
    assert_pair(G, TimeLimited(horizon), P, Q)


@pytest.mark.parametrize(("form", "dt", "kind"), KINDS)
def test_frequency_limited_gramians_are_integrals_over_the_bands(form, dt, kind):
    G = system(form, dt, kind)
    A, B, C = G.dense().A, G.dense().B, G.dense().C
    step = dt if dt and dt is not True else 1.0

    def integrand(w):
        total = 0
        for omega in (w, -w):
            point = np.exp(1j * omega) if G.is_discrete else 1j * omega
            X = np.linalg.inv(point * np.eye(len(A)) - A)
            total = total + np.stack([X @ B @ (X @ B).conj().T, (C @ X).conj().T @ C @ X])
        return total / (2 * np.pi)

    P, Q = sum(quad_vec(integrand, low, high, epsabs=1e-14, epsrel=1e-13)[0] for low, high in BANDS)
    if G.dense().dtype.kind != "c":
        P, Q = P.real, Q.real
    assert_pair(G, FrequencyLimited(*((low / step, high / step) for low, high in BANDS)), P, Q)


@pytest.mark.parametrize(("form", "dt", "kind"), KINDS)
def test_all_frequencies_and_all_times_are_no_limit(form, dt, kind):
    G = system(form, dt, kind)
    white = hr.hankel_singular_values(G)
    step = dt if dt and dt is not True else 1.0
    everything = FrequencyLimited((0.0, np.pi / step if G.is_discrete else np.inf))
    np.testing.assert_allclose(hr.hankel_singular_values(G, everything), white, atol=1e-7 * white[0])
    np.testing.assert_allclose(hr.hankel_singular_values(G, TimeLimited(4000 * step)), white, atol=1e-12 * white[0])
    halves = FrequencyLimited((0.0, 1.0 / step), (1.0 / step, np.pi / step if G.is_discrete else np.inf))
    np.testing.assert_allclose(hr.hankel_singular_values(G, halves), white, atol=1e-7 * white[0])


@pytest.mark.parametrize("complex_weights", [False, True])
@pytest.mark.parametrize(("form", "dt", "kind"), KINDS)
def test_weighted_gramians_are_blocks_of_those_of_the_cascades(form, dt, kind, complex_weights):
    G, rng = system(form, dt, kind), np.random.default_rng(1)
    if complex_weights and getattr(G, "output", "") == "real":
        pytest.skip("the inputs of a system with real output are real")
    weights = "complex" if complex_weights else "real"
    before = dense(rng, 3, 2, G.m, dt, weights).with_(D=rng.standard_normal((G.m, 2)))
    behind = dense(rng, 3, G.p, 2, dt, weights).with_(D=rng.standard_normal((2, G.p)))
    before = before.with_(B=1e5 * before.B, C=1e-5 * before.C)
    A, B, C, n = G.dense().A, G.dense().B, G.dense().C, G.dense().n
    zero = np.zeros((n, 3))
    drive = np.block([[A, B @ before.C], [zero.T, before.A]]), np.vstack([B @ before.D, before.B])
    read = np.block([[A, zero], [behind.B @ C, behind.A]]).conj().T, np.hstack([behind.D @ C, behind.C]).conj().T
    P, Q = (hr.solve_lyapunov(M, F @ F.conj().T, dt)[:n, :n] for M, F in (drive, read))
    assert_pair(G, FrequencyWeighted(before, behind), P, Q)
    white = hr.gramians(G)
    assert relative(hr.gramians(G, FrequencyWeighted(before))[1], white[1]) < 1e-12
    assert relative(hr.gramians(G, FrequencyWeighted(output=behind))[0], white[0]) < 1e-12


def test_a_weight_with_one_input_and_output_serves_all_signals_and_containers_are_read():
    G, rng = system("dense", 0, "real"), np.random.default_rng(0)
    lag = hr.StateSpace([[-2.0]], [[1.0]], [[3.0]], [[0.5]])
    both = hr.StateSpace(-2 * np.eye(2), np.eye(2), 3 * np.eye(2), 0.5 * np.eye(2))
    expected = hr.gramians(G, FrequencyWeighted(both))[0]
    for weight in (lag, (lag.A, lag.B, lag.C, lag.D), lag.to_scipy(), lag.to_control()):
        assert relative(hr.gramians(G, FrequencyWeighted(weight))[0], expected) < 1e-14
    with pytest.raises(hr.InputError, match="outputs"):
        hr.balance(G, weighting=FrequencyWeighted(dense(rng, 2, 2, 3, 0)))
    with pytest.raises(hr.InputError, match="dt"):
        hr.balance(G, weighting=FrequencyWeighted(lag.with_(dt=0.1, A=[[0.5]])))
    with pytest.raises(hr.StabilityError, match="stable"):
        hr.balance(G, weighting=FrequencyWeighted(lag.with_(A=[[0.0]])))


def simulated(A, B, inputs):
    x, states = np.zeros((len(inputs), len(A)), complex), []
    for u in inputs.swapaxes(0, 1):
        x = x @ A.T + u @ B.T
        states.append(x)
    return np.stack(states, axis=1)


@pytest.mark.parametrize(("form", "dt", "kind"), KINDS)
def test_sampled_gramians_are_covariances_of_simulated_states_and_adjoints(form, dt, kind):
    G, rng = system(form, dt, kind), np.random.default_rng(2)
    whole, step = G.dense(), 0.05
    u, l = np.cumsum(rng.standard_normal((3, 400, G.m)), axis=1), rng.standard_normal((3, 50, G.p))
    if G.is_discrete:
        A, B = whole.A, whole.B
    else:
        both = sla.expm(step * np.block([[whole.A, whole.B], [np.zeros((G.m, whole.n + G.m))]]))
        A, B = both[: whole.n, : whole.n], both[: whole.n, whole.n :]
    x = simulated(A, B, u)
    g = simulated(A.conj().T, whole.C.conj().T, l)  # in reversed time: the same covariance
    P, Q = (np.einsum("bti,btj->ij", s, s.conj()) / (s.shape[0] * s.shape[1]) for s in (x, g))
    inputs = Sampled(u, dt=None if G.is_discrete else step)
    assert_pair(G, inputs, P, hr.gramians(G)[1])
    stored, adjoints = x, g
    if form == "diagonal" and G.output == "real":  # [Re x, Im x] sqrt(2), and [Re g, Im g] / sqrt(2)
        stored = (x[..., : G.n] + 1j * x[..., G.n :]) / np.sqrt(2)
        adjoints = (g[..., : G.n] + 1j * g[..., G.n :]) * np.sqrt(2)
    if G.dtype.kind != "c":
        stored, adjoints = stored.real, adjoints.real
    assert_pair(G, Sampled(states=stored, adjoints=adjoints), P, Q)


@pytest.mark.parametrize("output", ["complex", "real"])
def test_sampled_states_beside_unstable_ones_count_as_those_of_the_stable_part(output):
    rng = np.random.default_rng(3)
    G = hr.DiagonalSystem([0.5, 1.2, -0.3 + 0.4j], np.ones((3, 1)), np.ones((1, 3)), dt=True, output=output)
    x = rng.standard_normal((2, 30, 3)) + 1j * rng.standard_normal((2, 30, 3))
    found = hr.balance(G, weighting=Sampled(states=x)).hsv
    rest = hr.balance(G.take([0, 2]), weighting=Sampled(states=x[..., [0, 2]])).hsv
    assert np.isinf(found).sum() == (2 if output == "real" else 1)
    np.testing.assert_allclose(found[np.isfinite(found)], rest, rtol=1e-12)
    whole = hr.StateSpace([[0.5, 1.0], [0.0, 1.5]], [[1.0], [1.0]], [[1.0, 0.0]], dt=True)
    x = rng.standard_normal((2, 30, 2))
    v = x @ np.array([1.0, -1.0])  # the left eigenvector of 0.5
    S = np.sqrt(np.mean(v**2))
    np.testing.assert_allclose(hr.balance(whole, weighting=Sampled(states=x)).hsv, [np.inf, S / np.sqrt(1 - 0.25)])


def test_covariances_stream_merge_and_travel():
    rng = np.random.default_rng(4)
    x = rng.standard_normal((4, 6, 5, 3)) + 1j * rng.standard_normal((4, 6, 5, 3))
    bank = StateCovariance(3, systems=4)
    one, other = StateCovariance(3), StateCovariance(3)
    bank.update(x.real)
    bank.update(x)
    one.update(x[1].real)
    other.update(x[1, :2])
    other.update(x[1, 2:].reshape(-1, 3))
    one.merge(StateCovariance.from_dict(pickle.loads(pickle.dumps(other.to_dict()))))
    rows = np.concatenate([x[1].real.reshape(-1, 3), x[1].reshape(-1, 3)])
    expected = rows.T @ rows.conj() / 60
    assert one.count == bank.count == 60
    np.testing.assert_allclose(one.mean(), expected, atol=1e-15)
    np.testing.assert_allclose(bank[1].mean(), expected, atol=1e-15)
    G = hr.DiagonalSystem([0.9, 0.5j, -0.2], np.ones((3, 1)), np.ones((1, 3)), dt=True)
    both = np.concatenate([x[1].real.reshape(1, -1, 3), x[1].reshape(1, -1, 3)], axis=1)
    a, b = (hr.hankel_singular_values(G, Sampled(states=states)) for states in (one, both))
    np.testing.assert_allclose(a, b, rtol=1e-12)


def test_a_refused_update_leaves_a_covariance_as_it_was():
    covariance = StateCovariance(2)
    covariance.update(np.ones((3, 2)))
    before = covariance.to_dict()
    for bad in (np.ones((3, 3)), [[np.nan, 1.0]], "states", np.full((1, 2), 1e200), None):
        with pytest.raises(hr.HankelredError):
            covariance.update(bad)
    for other in (StateCovariance(3), StateCovariance(2, systems=1), 3):
        with pytest.raises(hr.InputError):
            covariance.merge(other)
    for key in before:
        np.testing.assert_array_equal(covariance.to_dict()[key], before[key])
    with pytest.raises(hr.InputError, match="seen"):
        StateCovariance(2).mean()


@pytest.mark.parametrize("output", ["complex", "real"])
def test_banks_are_weighted_as_their_systems_are(output):
    rng = np.random.default_rng(5)
    lam = rng.uniform(0.3, 0.99, (3, 4)) * np.exp(1j * rng.uniform(0, 3, (3, 4)))
    B, C = rng.standard_normal((3, 4, 2)) + 0j, rng.standard_normal((3, 2, 4)) + 1j
    bank = hr.DiagonalBank(lam, B, C, dt=True, output=output)
    x = rng.standard_normal((3, 2, 40, 4)) + 1j * rng.standard_normal((3, 2, 40, 4))
    sums = StateCovariance(4, systems=3)
    sums.update(x)
    weightings = [
        TimeLimited(20),
        FrequencyLimited((0, 0.5)),
        FrequencyWeighted(input=hr.DiagonalSystem([0.9], [[1.0]], [[1.0]], dt=True)),
        Sampled(inputs=np.cumsum(rng.standard_normal((2, 60, 2)), axis=1)),
        Sampled(inputs=rng.standard_normal((3, 2, 60, 2))),
        Sampled(states=x),
        Sampled(states=sums, adjoints=x[..., ::-1]),
    ]
    for weighting in weightings:
        hsv = hr.hankel_singular_values(bank, weighting)
        S, R = hr.gramian_factors(bank, weighting)
        reduction = hr.balanced_truncation(bank, states=2, weighting=weighting)
        for i in range(3):
            own = weighting.of(i, 3)
            np.testing.assert_array_equal(hsv[i], hr.hankel_singular_values(bank[i], own))
            s, r = hr.gramian_factors(bank[i], own)
            np.testing.assert_array_equal(S[i, :, : s.shape[1]], s)
            np.testing.assert_array_equal(R[i, : len(r)], r)
            alone = hr.balanced_truncation(bank[i], states=2, weighting=own)
            np.testing.assert_allclose(reduction[i].system.lam, alone.system.lam, rtol=1e-12)
            assert reduction.error_bound[i] == alone.error_bound
    one = StateCovariance(4)
    one.update(x[0])
    for weighting in (Sampled(states=x[:2]), Sampled(states=x[0]), Sampled(states=one), Sampled(x[:2, ..., :2].real)):
        with pytest.raises(hr.InputError, match="3 systems"):
            hr.hankel_singular_values(bank, weighting)


def random_weighting(rng, G, kind, guaranteed):
    """Return one of the four kinds with random limits, weights or inputs."""
    step = 1.0 if G.dt in (0, True) else G.dt
    rate = np.abs(G.poles()).max() if G.dt == 0 else 1 / step
    if kind == "time":
        horizon = step * int(rng.integers(2, 12)) if G.is_discrete else rng.uniform(0.3, 3)
        return TimeLimited(horizon, guaranteed=guaranteed)
    if kind == "frequency":
        low = rng.uniform(0, 1)
        return FrequencyLimited((low * rate, (low + rng.uniform(0.1, 1.5)) * rate), guaranteed=guaranteed)
    if kind == "weights":
        before = dense(rng, 2, 1, 2, G.dt).with_(D=rng.standard_normal((2, 1)))
        return FrequencyWeighted(before if rng.random() < 0.7 else None, dense(rng, 2, G.p, 2, G.dt), guaranteed)
    inputs = np.cumsum(rng.standard_normal((4, 60, 2)), axis=1)
    return Sampled(inputs, dt=None if G.is_discrete else 0.1 / rate, guaranteed=guaranteed)


def random_case(seed):
    rng = np.random.default_rng(seed)
    form, dt, kind = KINDS[seed % len(KINDS)]
    G = (dense if form == "dense" else diagonal)(rng, int(rng.integers(2, 9)), 2, 2, dt, kind)
    return rng, G, ("time", "frequency", "weights", "inputs")[seed // len(KINDS) % 4]


@pytest.mark.parametrize("seed", sample(range(300)))
def test_guaranteed_models_are_stable_and_keep_their_bounds(seed):
    rng, G, kind = random_case(seed)
    bal = hr.balance(G, weighting=random_weighting(rng, G, kind, guaranteed=True))
    assert np.isfinite(bal.error_bound(bal.rank)) or kind == "inputs"
    for order in range(bal.rank + 1):
        try:
            reduction = bal.reduce(order)
        except hr.DiagonalisationError:
            continue
        assert reduction.system.is_stable()
        assert reduction.hinf_error() <= reduction.error_bound * (1 + 1e-9)
        assert "guaranteed" in reduction.method or order == len(bal.hsv)


@pytest.mark.parametrize("seed", sample(range(300)))
def test_without_saying_so_every_model_is_stable_and_no_bound_is_claimed_that_does_not_hold(seed):
    rng, G, kind = random_case(seed)
    bal = hr.balance(G, weighting=random_weighting(rng, G, kind, guaranteed=None))
    for order in range(bal.rank):
        try:
            reduction = bal.reduce(order)
        except (hr.DiagonalisationError, hr.OrderError):
            continue
        assert reduction.system.is_stable()
        assert reduction.hinf_error() <= reduction.error_bound * (1 + 1e-9)
        assert np.isinf(reduction.error_bound) != ("guaranteed" in reduction.method) or kind == "inputs"


def unstable_case():
    """Return a system, a weighting and an order whose plain model is unstable."""
    for seed in range(400):
        rng = np.random.default_rng(seed)
        G = dense(rng, 6, 2, 2, 0)
        weighting = random_weighting(rng, G, "frequency", guaranteed=False)
        for order in range(1, 6):
            if not hr.balanced_truncation(G, order, weighting=weighting).system.is_stable():
                return G, weighting, order
    raise AssertionError("no plain model was unstable")


def test_the_guaranteed_form_takes_the_place_of_an_unstable_model_and_is_named():
    G, plain, order = unstable_case()
    bands = tuple(map(tuple, plain.bands))
    found = hr.balanced_truncation(G, order, weighting=FrequencyLimited(*bands))
    assert found.method == "frequency-limited balanced truncation, guaranteed form"
    assert found.system.is_stable()
    assert found.hinf_error() <= found.error_bound < np.inf
    always = hr.balanced_truncation(G, order, weighting=FrequencyLimited(*bands, guaranteed=True))
    np.testing.assert_allclose(found.system.A, always.system.A, atol=1e-10)
    assert hr.balanced_truncation(G, order, weighting=plain).error_bound == np.inf


@pytest.mark.parametrize("guaranteed", [None, True])
@pytest.mark.parametrize("kind", ["time", "frequency", "weights"])
def test_units_of_states_change_nothing(kind, guaranteed):
    rng = np.random.default_rng(7)
    G = dense(rng, 5, 2, 2, 0)
    weighting = random_weighting(rng, G, kind, guaranteed)
    d = 10.0 ** np.random.default_rng(8).uniform(-6, 6, 5)
    other = hr.StateSpace(G.A * d[:, None] / d, G.B * d[:, None], G.C / d)
    one, two = hr.balance(G, weighting=weighting), hr.balance(other, weighting=weighting)
    np.testing.assert_allclose(one.hsv, two.hsv, atol=1e-7 * one.hsv[0])
    order, omega = 3, np.geomspace(0.01, 100, 20)
    a, b = (x.reduce(order).system.frequency_response(omega) for x in (one, two))
    assert np.abs(a - b).max() < 1e-6 * np.abs(a).max()


@pytest.mark.parametrize("A", [[[0.0]], [[0.5]], [[0.0, 1.0], [0.0, 0.0]], [[1.0, 5.0], [0.0, -2.0]]])
@pytest.mark.parametrize("dt", [0, True])
def test_a_horizon_makes_unstable_and_marginal_systems_finite(A, dt):
    A = np.array(A) + (np.eye(len(A)) if dt else 0.0)
    G = hr.StateSpace(A, np.ones((len(A), 1)), np.ones((1, len(A))), dt=dt)
    horizon = 3
    if dt:
        P = sum(M @ G.B @ G.B.T @ M.T for M in (np.linalg.matrix_power(A, k) for k in range(horizon)))
    else:
        P = quad_vec(lambda t: sla.expm(A * t) @ G.B @ G.B.T @ sla.expm(A * t).T, 0, horizon, epsrel=1e-13)[0]
    assert relative(hr.gramians(G, TimeLimited(horizon))[0], P) < 1e-12
    bal = hr.balance(G, weighting=TimeLimited(horizon))
    assert bal.unstable == 0
    assert np.isfinite(bal.hsv).all()
    assert bal.reduce(len(A)).error_bound == np.inf
    with pytest.raises(hr.StabilityError, match="guaranteed"):
        hr.balance(G, weighting=TimeLimited(horizon, guaranteed=True))
    with pytest.raises(hr.InputError, match="match_dc"):
        bal.reduce(1, match_dc=True)


def test_a_model_for_a_horizon_follows_an_unstable_system_within_it():
    rng = np.random.default_rng(9)
    lam = np.concatenate([[0.3, 0.2], -rng.uniform(1, 60, 8)])
    G = hr.StateSpace(np.diag(lam), rng.standard_normal((10, 1)), rng.standard_normal((1, 10)))
    model = hr.balanced_truncation(G, 5, weighting=TimeLimited(2.0)).system
    t = np.linspace(0, 2, 50)
    step = [[(X.C @ sla.expm(X.A * s) @ X.B).item() for s in t] for X in (G, model)]
    assert np.abs(np.subtract(*step)).max() < 1e-3 * np.abs(step[0]).max()


def test_small_values_of_a_horizon_keep_their_digits():
    G = hr.DiagonalSystem(-(np.arange(12) + 0.5), np.ones((12, 1)), np.ones((1, 12)), dt=0)
    white = hr.hankel_singular_values(G)  # of the Hilbert matrix, down to 1e-16
    dense_hsv = hr.hankel_singular_values(G.dense(), TimeLimited(200.0))
    hsv = hr.hankel_singular_values(G, TimeLimited(200.0))
    np.testing.assert_allclose(hsv[white > 1e-13], white[white > 1e-13], rtol=1e-2)
    np.testing.assert_allclose(dense_hsv, white, atol=1e-15 * white[0] * 100)


def test_slow_and_fast_poles_in_one_horizon():
    lam = np.array([-1e-9, -1.0, -1e6])
    T = np.array([[1.0, 2.0, -1.0], [0.0, 1.0, 3.0], [0.0, 0.0, 1.0]])
    G = hr.StateSpace(T @ np.diag(lam) @ np.linalg.inv(T), np.ones((3, 1)), np.ones((1, 3)))
    b, c = np.linalg.solve(T, G.B)[:, 0], (G.C @ T)[0]
    horizon = 10.0
    total = lam[:, None] + lam
    scale = np.expm1(total * horizon) / total
    hsv = np.sqrt(np.sort(np.linalg.eigvals((np.outer(b, b) * scale) @ (np.outer(c, c) * scale)).real)[::-1])
    np.testing.assert_allclose(hr.hankel_singular_values(G, TimeLimited(horizon)), hsv, rtol=1e-5)


@pytest.mark.parametrize("distance", [1e-10, 1e-14])
def test_rates_next_to_the_circle_keep_their_digits(distance):
    z = np.array([-distance + 0.1j, -0.3 + 0.2j])
    G = hr.DiagonalSystem.from_rates(z, np.ones((2, 1)), np.ones((1, 2)), dt=True)
    total = z[:, None] + z.conj()
    P, _ = hr.gramians(G, TimeLimited(10**6))
    assert relative(P, np.expm1(total * 10**6) / np.expm1(total)) < 1e-10
    P, _ = hr.gramians(G, FrequencyLimited((0.05, 0.2)))
    assert abs(P[0, 0] * 2 * distance - 1) < 1e-4  # nearly all its energy lies at 0.1


def test_match_dc_is_exact_where_the_weighting_sees_a_part_of_the_states_only():
    rng = np.random.default_rng(10)
    G = dense(rng, 5, 2, 2, 0)
    seen = rng.standard_normal((1, 40, 1)) @ rng.standard_normal((1, 5))
    bal = hr.balance(G, weighting=Sampled(states=seen))
    assert bal.rank == 1
    model = bal.reduce(1, match_dc=True).system
    np.testing.assert_allclose(model.frequency_response([0.0]), G.frequency_response([0.0]), rtol=1e-12)


def test_models_for_a_band_beat_white_ones_in_it():
    omega, ratios = np.linspace(0.0, 5.0, 300), []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        lam = -rng.uniform(0.05, 0.2, 20) + 1j * rng.uniform(0.5, 20, 20)
        G = hr.DiagonalSystem(lam, rng.standard_normal((20, 1)), rng.standard_normal((1, 20)), dt=0, output="real")
        errors = []
        for weighting in (None, FrequencyLimited((0.0, 5.0))):
            model = hr.balanced_truncation(G, order=10, weighting=weighting).system
            errors.append(np.linalg.norm((G - model).frequency_response(omega)))
        ratios.append(errors[1] / errors[0])
    assert np.median(ratios) < 0.5, ratios


def test_precision_containers_and_names_stay_as_without_a_weighting():
    single = hr.StateSpace(
        np.diag([-1.0, -2.0]).astype(np.float32), np.ones((2, 1), np.float32), np.ones((1, 2), np.float32), inputs=["u"]
    )
    found = hr.balanced_truncation(single, 1, weighting=TimeLimited(2.0))
    assert found.system.dtype == np.float32
    assert found.system.inputs == ("u",)
    assert hr.hankel_singular_values(single, TimeLimited(2.0)).dtype == np.float32
    model = hr.balanced_truncation(single.to_control(), 1, weighting=FrequencyLimited((0, 1.0))).system
    assert type(model).__module__.startswith("control")


@pytest.mark.parametrize(
    "make",
    [
        lambda: TimeLimited(-1.0),
        lambda: TimeLimited(np.inf),
        lambda: TimeLimited("3"),
        lambda: TimeLimited(0),
        lambda: TimeLimited(1.0, guaranteed="no"),
        lambda: FrequencyLimited(),
        lambda: FrequencyLimited((1.0, 0.5)),
        lambda: FrequencyLimited((0.0, 1.0), (0.5, 2.0)),
        lambda: FrequencyLimited((0.0, np.nan)),
        lambda: FrequencyLimited(3.0),
        lambda: FrequencyLimited("ab"),
        lambda: FrequencyLimited((-1.0, 1.0)),
        lambda: FrequencyWeighted(),
        lambda: FrequencyWeighted(3),
        lambda: FrequencyWeighted(output=TimeLimited(1.0)),
        lambda: Sampled(),
        lambda: Sampled(np.ones((1, 2, 1)), np.ones((1, 2, 1))),
        lambda: Sampled(np.ones((2, 1))),
        lambda: Sampled(np.ones((0, 2, 1))),
        lambda: Sampled(np.full((1, 2, 1), np.nan)),
        lambda: Sampled(np.ones((1, 2, 1)), dt=True),
        lambda: Sampled(states=np.ones((1, 2, 1)), dt=0.1),
        lambda: Sampled(StateCovariance(2)),
        lambda: StateCovariance(0),
        lambda: StateCovariance(2, systems=0),
        lambda: StateCovariance.from_dict({"n": 2}),
    ],
)
def test_weightings_that_make_no_sense_are_refused_when_made(make):
    with pytest.raises(hr.InputError):
        make()


@pytest.mark.parametrize(
    ("weighting", "dt"),
    [
        (TimeLimited(2.5), True),
        (TimeLimited(0.25), 0.1),
        (FrequencyLimited((0.0, 4.0)), True),
        (FrequencyLimited((0.0, np.inf)), 0.1),
        (Sampled(np.ones((1, 9, 1))), True),
        (Sampled(np.ones((1, 9, 2))), 0),
        (Sampled(np.ones((1, 9, 2)), dt=0.1), True),
        (Sampled(states=np.ones((1, 9, 3))), True),
        (Sampled(states=1j * np.ones((1, 9, 4))), True),
        (Sampled(states=StateCovariance(4)), True),
        (Sampled(states=StateCovariance(4, systems=2)), True),
        (3, 0),
        (TimeLimited, 0),
        ("sampled", 0),
    ],
)
def test_weightings_that_do_not_fit_are_refused(weighting, dt):
    with pytest.raises(hr.InputError):
        hr.balance(system("dense", dt, "real"), weighting=weighting)


def test_a_tolerance_without_a_bound_is_refused_and_says_what_to_do():
    bal = hr.balance(system("dense", 0, "real"), weighting=TimeLimited(1.0))
    with pytest.raises(hr.OrderError, match="guaranteed=True"):
        bal.order(max_error=1.0)
    sure = hr.balance(system("dense", 0, "real"), weighting=TimeLimited(1.0, guaranteed=True))
    limit = 1.01 * sure.error_bound(2)
    assert sure.order(max_error=limit) <= 2
    assert sure.reduce(max_error=limit).error_bound <= limit


def test_systems_without_states_inputs_or_reach():
    u = np.ones((2, 5, 1))
    lag = hr.StateSpace([[-1.0]], [[1.0]], [[1.0]])
    static = hr.StateSpace(np.zeros((0, 0)), np.zeros((0, 1)), np.zeros((1, 0)), [[2.0]])
    unreached = hr.StateSpace(np.diag([-1.0, -2.0]), np.zeros((2, 1)), np.ones((1, 2)))
    weightings = [TimeLimited(2.0), FrequencyLimited((0.0, 1.0)), FrequencyWeighted(lag), FrequencyWeighted(static)]
    for weighting in [*weightings, Sampled(u, dt=0.1)]:
        for own in (weighting, weighting.with_guarantee()):
            for G in (static, hr.DiagonalSystem(np.zeros(0), np.zeros((0, 1)), np.zeros((1, 0)), dt=0), unreached):
                bal = hr.balance(G, weighting=own)
                assert bal.rank == 0
                reduction = bal.reduce(0)
                assert reduction.hinf_error() <= reduction.error_bound


def test_weightings_are_values():
    weighting = FrequencyLimited((0.0, 1.0), guaranteed=True)
    for copied in (copy.copy(weighting), copy.deepcopy(weighting), pickle.loads(pickle.dumps(weighting))):
        G = system("dense", 0, "real")
        np.testing.assert_array_equal(hr.balance(G, weighting=copied).hsv, hr.balance(G, weighting=weighting).hsv)
    assert "frequency-limited" in repr(weighting)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hr.balance(system("diagonal", True, "pairs"), weighting=TimeLimited(3)).reduce(2)


def test_the_guaranteed_form_of_a_real_system_takes_complex_weights():
    G = system("dense", 0, "real")
    weight = hr.StateSpace([[-1.0 + 1j]], [[1.0]], [[1.0]])
    reduction = hr.balanced_truncation(G, 2, weighting=FrequencyWeighted(weight, weight, guaranteed=True))
    assert reduction.system.is_stable()
    assert reduction.hinf_error() <= reduction.error_bound


@pytest.mark.parametrize("guaranteed", [None, True])
@pytest.mark.parametrize(("before", "after"), [(1.0, 1e308), (1e308, 1.0), (1e200, 1e-200), (1e-200, 1e200)])
def test_weights_whose_gramians_overflow_are_refused(before, after, guaranteed):
    rng = np.random.default_rng(0)
    G = dense(rng, 3, 1, 1, 0, "real")
    input, output = (hr.StateSpace([[-1.0]], [[size]], [[1.0]]) for size in (before, after))
    weighting = FrequencyWeighted(input=input, output=output, guaranteed=guaranteed)
    if guaranteed or 1e308 in (before, after):
        with pytest.raises(hr.NumericalError, match="Weighted Gramians"):
            hr.balance(G, weighting=weighting)
    else:
        assert np.isfinite(hr.balance(G, weighting=weighting).floor)
