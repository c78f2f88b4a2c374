"""Lyapunov equations of batches: residuals, and gradients of any order."""

from __future__ import annotations

import pytest
import torch

from hankelred.errors import NumericalError
from hankelred_torch import ops


def matrices(shape=(3,), n=4, *, discrete=False, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(*shape, n, n, generator=generator, dtype=dtype)
    A = 0.3 * A if discrete else A - 4 * torch.eye(n, dtype=dtype)
    return A, torch.randn(*shape, n, n, generator=generator, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("discrete", [False, True])
def test_solutions_satisfy_their_equations(dtype, discrete):
    A, Q = matrices((2, 3), discrete=discrete, dtype=dtype)
    X = ops.solve_lyapunov(A, Q, dt=discrete or 0)
    residual = A @ X @ A.mH - X + Q if discrete else A @ X + X @ A.mH + Q
    assert X.shape == Q.shape
    assert residual.abs().max() < 1e-13 * X.abs().max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("discrete", [False, True])
def test_gradients_are_those_of_differences_twice(dtype, discrete):
    arguments = [x.requires_grad_() for x in matrices((2,), 3, discrete=discrete, dtype=dtype)]
    assert torch.autograd.gradcheck(lambda A, Q: ops.solve_lyapunov(A, Q, dt=discrete or 0), arguments)
    assert torch.autograd.gradgradcheck(lambda A, Q: ops.solve_lyapunov(A, Q, dt=discrete or 0), arguments)


def test_leading_axes_broadcast_and_vmap_joins_them():
    A, Q = matrices((3,))
    X = ops.solve_lyapunov(A, Q[0])
    assert torch.equal(X, torch.stack([ops.solve_lyapunov(a, Q[0]) for a in A]))
    assert torch.equal(torch.func.vmap(lambda a: ops.solve_lyapunov(a[None], Q[:1]))(A)[:, 0], X)
    assert ops.solve_lyapunov(A[:0], Q[:0]).shape == (0, 4, 4)


def test_singular_equations_are_errors():
    with pytest.raises(NumericalError):
        ops.solve_lyapunov(torch.zeros(1, 2, 2), torch.eye(2)[None])
