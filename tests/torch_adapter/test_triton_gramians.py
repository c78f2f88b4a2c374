"""Triton kernels of Gramian factors and singular values: on a GPU as compiled, elsewhere in Triton's interpreter."""

from __future__ import annotations

import importlib.util

import mpmath
import pytest
import torch
from sizes import is_long
from torch import Tensor

from hankelred_torch import ops
from hankelred_torch.ops import _factors_torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs triton: pip install triton", allow_module_level=True)

from benchmarks.speed import interpreter, traffic

from .kernel_cases import DEVICE, draw, gradients, largest

*_, FACTORS, VALUES = interpreter.kernels()

EVERY_HSV = 1e-12  # what the core promises of its own, relative, for every value


@pytest.fixture(autouse=True)
def triton():
    with interpreter.by_rows(), ops.use_backend("triton"):
        yield


def systems(batch: int, n: int, m: int, dtype: torch.dtype) -> list[Tensor]:
    """Rates, B and C with poles of all speeds."""
    decay = 10 ** (draw(batch, n, seed=1).detach().tanh() - 2)
    rates = torch.complex(-decay, 3 * draw(batch, n, seed=2).detach()) if dtype.is_complex else -decay
    found = rates, draw(batch, n, m, dtype=dtype, seed=3), draw(batch, m, n, dtype=dtype, seed=4)
    return [x.detach().requires_grad_() for x in found]


DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["real", "complex"])
REAL, COMPLEX = torch.float64, torch.complex128
CASES = [
    (2, 1, 1, "complex", REAL),
    (1, 4, 3, "complex", REAL),
    (2, 3, 1, "real", REAL),
    (1, 5, 1, "complex", COMPLEX),
    (1, 2, 2, "real", COMPLEX),  # as four states
]
SIZES = [(3, 16, 1), (1, 33, 2), (1, 32, 5)] * is_long()
CASES += [(*size, output, dtype) for size in SIZES for output in ("complex", "real") for dtype in (REAL, COMPLEX)]


@pytest.mark.parametrize(("batch", "n", "m", "output", "dtype"), CASES)
def test_triton_hsv_and_their_gradients_are_those_of_the_compiled_loops(batch, n, m, output, dtype):
    def hsv(rates: Tensor, B: Tensor, C: Tensor) -> Tensor:
        return ops.hankel_singular_values(None, B, C, rates=rates, dt=True, output=output)

    tensors = systems(batch, n, m, dtype)
    found = gradients(hsv, tensors)
    with ops.use_backend("auto"):
        expected = gradients(hsv, tensors)
    assert bool(((found[0] - expected[0]).abs() <= EVERY_HSV * expected[0]).all())
    errors = [largest(f, e) for f, e in zip(found[1:], expected[1:], strict=True)]
    assert all(x < 1e-12 for x in errors), errors


@DTYPES
@pytest.mark.parametrize("discrete", [False, True])
def test_triton_factors_and_their_adjoint_are_those_of_torch(discrete, dtype):
    # a pole twice, with inputs that repeat; states that come last, or are reached by nothing
    rates, B, _ = (x.detach().clone() for x in systems(2, 5, 2, dtype))
    rates[0, 1], B[0, 1], B[1, 2] = rates[0, 0], B[0, 0], 0
    linked = torch.tensor([[True] * 5, [False, True, False, True, True]], device=DEVICE)
    poles = _factors_torch.pole_tensors(rates.exp() if discrete else rates, discrete, False)
    found, expected = FACTORS.factor_triton(poles, B, linked), _factors_torch.factor_torch(poles, B, linked)
    assert torch.equal(found[1], expected[1])
    assert sum(int(k < 0) for k in expected[1].flatten()) == 2
    F = draw(2, 5, 5, dtype=dtype, seed=7).detach()
    pairs = [*zip(found, expected, strict=True)]
    pairs += zip(
        FACTORS.factor_adjoint_triton(poles, *expected, F, discrete),
        _factors_torch.factor_adjoint_torch(poles, *expected, F, discrete),
        strict=True,
    )
    errors = [float((f - e).abs().max() / e.abs().max()) for f, e in pairs]
    assert all(x < 1e-13 for x in errors), errors


def test_triton_factors_make_gramians_and_truncations():
    rates, B, C = (x.detach() for x in systems(2, 4, 2, torch.complex128))
    found = ops.balanced_truncation(None, B, C, rates=rates, dt=True, order=2)
    with ops.use_backend("auto"):
        expected = ops.balanced_truncation(None, B, C, rates=rates, dt=True, order=2)
    torch.testing.assert_close(found.hsv, expected.hsv, rtol=EVERY_HSV, atol=0)
    torch.testing.assert_close(found.error_bound, expected.error_bound)


@DTYPES
@pytest.mark.parametrize("n", [1, 2, 5])
def test_triton_rotations_keep_the_digits_of_every_value_of_a_graded_matrix(n, dtype):
    scale = 10.0 ** (-5.0 * torch.arange(n, dtype=torch.float64, device=DEVICE))
    M = draw(2, n, n, dtype=dtype, seed=5).detach() * scale[:, None] * scale
    found = VALUES.singular_values_triton(M)
    with mpmath.workdps(80):
        for matrix, values in zip(M.cpu(), found, strict=True):
            exact = mpmath.svd_c(mpmath.matrix(matrix.tolist()), compute_uv=False)
            for value, e in zip(values.tolist(), exact, strict=True):
                assert abs(value / e - 1) < EVERY_HSV


@DTYPES
def test_triton_gradients_of_values_are_the_bounded_formula_also_at_zero_and_at_equal_ones(dtype):
    M, g = draw(4, 3, 3, dtype=dtype, seed=5).detach().clone(), draw(4, 3, seed=6).detach()
    M[1, 2:], M[1, :, 2:] = 0, 0  # of rank 2
    M[2], g[2, 1:] = 2 * torch.linalg.qr(M[2])[0], g[2, 0]  # all alike, and weighed alike
    M[3] = 0
    found = VALUES.singular_values_adjoint_triton(g, M)
    U, values, Vh = torch.linalg.svd(M)
    expected = (U * torch.where(values > 1e-12, g, 0)[:, None]) @ Vh
    assert float((found - expected).abs().max()) < 1e-13


@DTYPES
def test_triton_kernels_of_gramians_take_no_systems(dtype):
    rates, B, C = systems(0, 3, 2, dtype)
    hsv = ops.hankel_singular_values(None, B, C, rates=rates, dt=True)
    assert hsv.shape == (0, 3)
    assert torch.autograd.grad(hsv.sum(), [B])[0].shape == B.shape


def test_systems_beyond_the_registers_of_a_triton_program_run_in_torch(monkeypatch):
    monkeypatch.setattr(FACTORS, "MOST_STATES", 3)
    monkeypatch.setattr(VALUES, "MOST_STATES", 3)
    monkeypatch.setattr(FACTORS, "factor_triton", None)  # would fail
    monkeypatch.setattr(VALUES, "_rotated", None)
    rates, B, C = (x.detach() for x in systems(1, 4, 1, torch.float64))
    found = ops.hankel_singular_values(None, B, C, rates=rates, dt=True)
    with ops.use_backend("auto"):
        torch.testing.assert_close(found, ops.hankel_singular_values(None, B, C, rates=rates, dt=True))


def test_triton_hsv_are_the_same_bits_again_and_mapped_over_by_vmap():
    rates, B, C = (x.detach() for x in systems(2, 3, 1, torch.float64))

    def hsv(rates: Tensor, B: Tensor, C: Tensor) -> Tensor:
        return ops.hankel_singular_values(None, B, C, rates=rates, dt=True)

    once = hsv(rates, B, C)
    assert torch.equal(once, hsv(rates, B, C))
    assert torch.equal(once, torch.vmap(hsv)(rates, B, C))


@pytest.mark.skipif(DEVICE != "cpu", reason="counts what Triton's interpreter loads and stores")
@DTYPES
def test_triton_kernels_of_gramians_move_the_bytes_of_the_model(dtype):
    size = batch, n, _ = 2, 3, 2
    width = 16 if dtype.is_complex else 8
    rates, B, _ = (x.detach() for x in systems(*size, dtype))
    poles = _factors_torch.pole_tensors(rates, False, False)
    with interpreter.traffic() as count:
        steps = FACTORS.factor_triton(poles, B, torch.ones(batch, n, dtype=torch.bool))
    assert (count["distinct loaded"], count["distinct stored"]) == traffic.factor(*size, width=width)
    with interpreter.traffic() as count:
        FACTORS.factor_adjoint_triton(poles, *steps, draw(batch, n, n, dtype=dtype).detach(), False)
    assert (count["distinct loaded"], count["distinct stored"]) == traffic.factor_adjoint(*size, width=width)
    M = draw(batch, n, n, dtype=dtype).detach()
    for vectors in (False, True):
        with interpreter.traffic() as count:
            VALUES._rotated(M, vectors)
        expected = traffic.rotations(batch, n, width=width, vectors=vectors)
        assert (count["distinct loaded"], count["distinct stored"]) == expected
        # through the cache: at most eight sweeps, in which every column meets all others
        assert count["loaded"] <= expected.loaded + 8 * (n - 1) * expected.stored
