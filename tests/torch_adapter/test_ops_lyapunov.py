"""Lyapunov equations of batches: residuals, and gradients of any order."""

from __future__ import annotations

import pytest
import torch

from hankelred.errors import NumericalError
from hankelred_torch import ops
from hankelred_torch.ops._doubling import doubled


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


def families(n, discrete):
    """Return stable matrices of several kinds, (kinds, n, n)."""
    generator = torch.Generator().manual_seed(n)
    noise = torch.randn(n, n, generator=generator, dtype=torch.float64)
    rotation, eye = torch.linalg.qr(noise)[0], torch.eye(n, dtype=torch.float64)
    shifted = noise - (torch.linalg.eigvals(noise).real.max() + 0.1) * eye
    stiff = rotation @ torch.diag(-torch.logspace(-4, 4, n, dtype=torch.float64)) @ rotation.mT
    skew = noise - noise.mT
    light = rotation @ (skew - 1e-4 * (skew.norm() + 1) * eye) @ rotation.mT
    found = torch.stack([shifted, stiff, light])
    return torch.linalg.matrix_exp(found * 0.3) if discrete else found


@pytest.mark.parametrize("complex_data", [False, True])
@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("n", [1, 2, 7, 24])
def test_doubling_solves_what_the_schur_form_solves(n, discrete, complex_data):
    A = families(n, discrete).to(torch.complex128 if complex_data else torch.float64)
    A = A * torch.exp(0.1j * torch.randn(1, dtype=torch.float64)) if complex_data and discrete else A
    Q = torch.randn(3, n, n, dtype=torch.float64).to(A.dtype)
    X, good = doubled(A, Q, discrete)
    assert good.all()
    residual = A @ X @ A.mH - X + Q if discrete else A @ X + X @ A.mH + Q
    terms = X.norm(dim=(1, 2)) * (A.norm(dim=(1, 2)) + 1) ** 2 + Q.norm(dim=(1, 2))
    assert (residual.norm(dim=(1, 2)) < 1e-14 * n * terms).all()
    with ops.use_backend("torch"):
        assert torch.equal(ops.solve_lyapunov(A, Q, dt=discrete or 0), X)


def test_what_doubling_does_not_solve_goes_through_the_core():
    A, Q = matrices((3,), 5)
    A[1] = -A[1] + torch.diag(torch.tensor([0.0, 9, 0, 0, 0]))  # unstable, and its equation has one solution
    assert doubled(A, Q, False)[1].tolist() == [True, False, True]
    expected = ops.solve_lyapunov(A, Q)
    with ops.use_backend("torch"):
        found = ops.solve_lyapunov(A, Q)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
        assert torch.equal(found[1], expected[1])
        assert torch.autograd.gradcheck(ops.solve_lyapunov, [x.requires_grad_() for x in matrices((2,), 3)])
        assert ops.backends()[-1].backend == "torch"
    with ops.use_backend("torch"), pytest.raises(NumericalError):
        ops.solve_lyapunov(torch.zeros(1, 2, 2), torch.eye(2)[None])
