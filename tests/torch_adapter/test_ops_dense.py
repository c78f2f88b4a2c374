"""Small dense systems in tensors: values and gradients are those of the same systems in diagonal form."""

from __future__ import annotations

import pytest
import torch

from hankelred.errors import InputError, StabilityError
from hankelred_torch import ops

from .test_ops_gramians import batch


@pytest.mark.parametrize("dt", [0, 0.5, True])
@pytest.mark.parametrize("complex_data", [False, True])
def test_dense_hsv_and_their_gradients_are_those_of_the_diagonal_system(dt, complex_data):
    lam, B, C, _ = batch((2,), 4, dt=dt, complex_data=complex_data, slowest=0.1)
    T = torch.eye(4, dtype=B.dtype) + 0.3 * torch.randn(4, 4, dtype=B.dtype, generator=torch.Generator().manual_seed(3))
    A, B, C = T @ torch.diag_embed(lam) @ torch.linalg.inv(T), T @ B, C @ torch.linalg.inv(T)
    hsv = ops.dense_hankel_singular_values(A, B, C, dt=dt)
    diagonal = ops.hankel_singular_values(lam, torch.linalg.solve(T, B), C @ T, dt=dt)
    torch.testing.assert_close(hsv, diagonal, rtol=1e-10, atol=0)  # eps times the spread of the values
    arguments = [x.requires_grad_() for x in (A, B, C)]
    assert torch.autograd.gradcheck(
        lambda *x: ops.dense_hankel_singular_values(*x, dt=dt), arguments, fast_mode=True, atol=1e-4
    )


def test_dense_gradients_are_finite_at_repeated_and_zero_hsv():
    # one state links input and output twice over, one is only driven, one is only seen
    A = torch.diag(torch.tensor([-1.0, -1.0, -2.0, -3.0], dtype=torch.float64))
    B = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    C = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 1.0]], dtype=torch.float64)
    arguments = [x.requires_grad_() for x in (A, B, C)]
    hsv = ops.dense_hankel_singular_values(*arguments, dt=0)
    torch.testing.assert_close(hsv, torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=torch.float64), rtol=1e-14, atol=1e-16)
    g_A, g_B, _ = torch.autograd.grad(hsv.sum(), arguments)
    half = torch.full((2,), 0.5, dtype=torch.float64)  # the derivatives of c b / (-2 a)
    torch.testing.assert_close(g_B[:2].diagonal(), half)
    torch.testing.assert_close(g_A[:2, :2].diagonal(), half)


@pytest.mark.parametrize("shapes", [((2, 3), (2, 1), (1, 2)), ((2, 2), (3, 1), (1, 2)), ((2, 2), (2, 1), (1, 3))])
def test_matrices_that_do_not_fit_are_refused(shapes):
    with pytest.raises(InputError, match="A, B, C must be"):
        ops.dense_hankel_singular_values(*(torch.ones(shape) for shape in shapes), dt=0)


def test_unstable_dense_systems_are_refused():
    with pytest.raises(StabilityError, match="must be stable"):
        ops.dense_hankel_singular_values(torch.ones(1, 1), torch.ones(1, 1), torch.ones(1, 1), dt=0)


def test_dense_systems_meet_vmap_and_have_leading_axes():
    lam, B, C, _ = batch((3, 2), 3)
    whole = ops.dense_hankel_singular_values(torch.diag_embed(lam), B, C, dt=0)
    assert whole.shape == (3, 2, 3)

    def one(lam: torch.Tensor, B: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
        return ops.dense_hankel_singular_values(torch.diag(lam), B, C, dt=0)

    assert torch.equal(torch.func.vmap(torch.func.vmap(one))(lam, B, C), whole)
