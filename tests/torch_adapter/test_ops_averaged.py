"""Averaged Gramians of tensors against those of the core."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hankelred.errors import InputError, StabilityError
from hankelred.selective import averaged_gramians
from hankelred_torch import ops

METHODS = ["exact", "second_moment", "mean"]


def steps(cplx, lead=(), seed=0, batch=3, length=9, n=4):
    rng = np.random.default_rng(seed)
    shape = (*lead, batch, length, n)
    a, b, c = rng.uniform(0.3, 0.95, shape), rng.standard_normal(shape) + 0.5, rng.standard_normal(shape)
    if cplx:
        a = a * np.exp(1j * rng.uniform(-1, 1, shape))
        b, c = b + 1j * rng.standard_normal(shape), c - 1j * rng.standard_normal(shape)
    return [torch.from_numpy(x) for x in (a, b, c)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cplx", [False, True])
@pytest.mark.parametrize("lead", [(), (2, 3)])
def test_they_are_those_of_the_core(method, cplx, lead):
    data = steps(cplx, lead)
    for found, core in zip(
        ops.averaged_gramians(*data, method), averaged_gramians(*(x.numpy() for x in data), method), strict=True
    ):
        np.testing.assert_allclose(found.numpy(), core, rtol=1e-12, atol=1e-12 * np.abs(core).max())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cplx", [False, True])
def test_derivatives_are_right(method, cplx):
    data = [x.requires_grad_() for x in steps(cplx, batch=2, length=4, n=2)]
    assert torch.autograd.gradcheck(lambda *x: ops.averaged_gramians(*x, method), data)


def test_single_precision_is_computed_in_double():
    data = [x.float() for x in steps(False)]
    P, _ = ops.averaged_gramians(*data)
    wide, _ = ops.averaged_gramians(*(x.double() for x in data))
    assert P.dtype == torch.float32
    assert torch.equal(P, wide.float())


def test_other_shapes_and_methods_are_refused():
    a, b, c = steps(False)
    with pytest.raises(InputError, match="one shape"):
        ops.averaged_gramians(a, b[:, :-1], c)
    with pytest.raises(InputError, match="method must be one of"):
        ops.averaged_gramians(a, b, c, "median")


@pytest.mark.parametrize("method", ["second_moment", "mean"])
def test_decays_without_decay_have_no_stationary_gramian(method):
    a, b, c = steps(False)
    with pytest.raises(StabilityError, match="exact"):
        ops.averaged_gramians(torch.ones_like(a), b, c, method)
