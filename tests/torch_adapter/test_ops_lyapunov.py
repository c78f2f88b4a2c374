"""Lyapunov equations of batches: residuals, gradients of any order, and what every operation refuses."""

from __future__ import annotations

import pytest
import torch

from hankelred.errors import InputError, NumericalError
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


ONE, WIDE = torch.ones(1, 3, 4), torch.ones(4)
CALLS = {
    "linear_recurrence": (lambda *x: ops.linear_recurrence(*x), [WIDE, ONE]),
    "diagonal_ssm": (
        lambda *x: ops.diagonal_ssm(*x),
        [WIDE.to(torch.complex64), torch.ones(4, 2) + 0j, torch.ones(2, 4) + 0j, torch.ones(1, 3, 2), torch.ones(2)],
    ),
    "selective_scan": (lambda *x: ops.selective_scan(*x), [ONE, ONE, -torch.ones(4, 2), ONE[..., :2], ONE[..., :2]]),
    "gramian_factors": (lambda *x: ops.gramian_factors(*x, dt=True), [WIDE / 2, WIDE[:, None], WIDE[None]]),
    "hankel_singular_values": (
        lambda *x: ops.hankel_singular_values(*x, dt=True),
        [WIDE / 2, WIDE[:, None], WIDE[None]],
    ),
    "balanced_truncation": (
        lambda *x: ops.balanced_truncation(*x, dt=True, order=1),
        [WIDE / 2, WIDE[:, None], WIDE[None]],
    ),
    "solve_lyapunov": (lambda *x: ops.solve_lyapunov(*x), [-torch.eye(2), torch.eye(2)]),
}


@pytest.mark.parametrize("name", CALLS)
def test_tensors_on_another_device_integers_and_what_is_no_tensor_are_refused(name):
    call, arguments = CALLS[name]
    call(*arguments)
    for k, x in enumerate(arguments):
        for bad, message in (
            (x.to("meta"), "on one device"),
            (x.real.round().to(torch.int64), "floating point or complex tensor; got torch.int64"),
            (x.numpy(), "floating point or complex tensor; got ndarray"),
            ("text", "got str"),
        ):
            with pytest.raises(InputError, match=message):
                call(*arguments[:k], bad, *arguments[k + 1 :])


def test_complex_feedthrough_is_refused():
    call, arguments = CALLS["diagonal_ssm"]
    with pytest.raises(InputError, match="D must be real"):
        call(*arguments[:4], arguments[4] + 1j)


def test_backends_are_chosen_for_a_block_or_for_good():
    assert {row.backend for row in ops.backends()} == {"cpu"}
    with ops.use_backend("torch"):
        assert ops.backends()[0].backend == "torch"
        assert ops.backends()[0].backend == "torch"
    assert ops.backends()[0].backend == "cpu"
    with pytest.raises(InputError, match="must be one of 'auto', 'cpu', 'triton', 'mamba_ssm', 'torch'; got 'cuda'"):
        ops.use_backend("cuda")
    ops.use_backend("torch")
    try:
        assert ops.backends()[0].backend == "torch"
    finally:
        ops.use_backend("auto")


@pytest.mark.parametrize("name", CALLS)
def test_backends_agree(name):
    call, arguments = CALLS[name]
    with ops.use_backend("torch"):
        wanted = call(*arguments)
    found = call(*arguments)
    for x, y in zip(*((z if isinstance(z, tuple) else (z,)) for z in (found, wanted)), strict=True):
        assert torch.allclose(x.abs(), y.abs(), atol=1e-6)
