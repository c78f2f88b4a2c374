"""Claims about layers made of systems with dense state matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import hankelred as hr
import hankelred_torch as ht

OMEGA = np.linspace(0, np.pi, 65)


def dense(n, seed, m=1):
    """Return a stable real system with a full state matrix, spectral radius .9."""
    generator = np.random.default_rng(seed)
    A = generator.standard_normal((n, n))
    A *= 0.9 / np.abs(np.linalg.eigvals(A)).max()
    B, C = generator.standard_normal((n, m)), generator.standard_normal((m, n))
    return hr.StateSpace(A, B, C, np.diag(generator.standard_normal(m)), dt=True)


def same_transfer(system, G):
    difference = system.frequency_response(OMEGA) - G.frequency_response(OMEGA)
    return np.abs(difference).max() / np.abs(G.frequency_response(OMEGA)).max()


@pytest.fixture
def double_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double_by_default")
def test_dense_systems_become_a_layer_that_computes_the_same():
    bank = [dense(n, seed=n) for n in (7, 4, 6)]
    layer = ht.adapters.diagonal_layer(bank)
    for system, G in zip(ht.read_system(layer), bank, strict=True):
        assert same_transfer(system, G) < 1e-10
    one = dense(9, seed=0, m=3)
    assert same_transfer(ht.read_system(ht.adapters.diagonal_layer(one)), one) < 1e-10


@pytest.mark.usefixtures("double_by_default")
def test_dense_systems_are_reduced_within_their_bound():
    G = dense(12, seed=3)
    layer = ht.adapters.diagonal_layer([G], states=3)
    (system,) = ht.read_system(layer)
    hsv, kept = hr.hankel_singular_values(G), hr.hankel_singular_values(system)
    error = np.abs(system.frequency_response(OMEGA) - G.frequency_response(OMEGA)).max()
    order = int(np.sum(kept > 1e-9 * kept[0]))
    assert layer.states == 3
    assert order >= 3
    assert error <= 2 * hsv[order:].sum()


def test_making_a_layer_draws_no_random_numbers():
    state = torch.get_rng_state()
    ht.adapters.diagonal_layer([dense(4, seed=0)])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "system",
    [
        hr.StateSpace([[-1.0]], [[1.0]], [[1.0]], dt=0),
        hr.StateSpace([[1.5]], [[1.0]], [[1.0]], dt=True),
        hr.StateSpace([[0.5j]], [[1.0]], [[1.0]], dt=True),
    ],
)
def test_dense_systems_that_make_no_layer_are_refused(system):
    with pytest.raises(hr.InputError, match="must be real, discrete and stable to become a layer"):
        ht.adapters.diagonal_layer([system])


def test_defective_systems_are_refused():
    with pytest.raises(hr.DiagonalisationError, match="defective"):
        ht.adapters.diagonal_layer([hr.StateSpace([[0.5, 1.0], [0.0, 0.5]], [[0.0], [1.0]], [[1.0, 0.0]], dt=True)])
