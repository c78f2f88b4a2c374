"""The linear recurrence: compiled loops and the scan of torch operations against the definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hankelred.errors import InputError
from hankelred_torch.ops import _linear_kernels as kernels
from hankelred_torch.ops import diagonal_ssm, linear_recurrence, use_backend
from hankelred_torch.ops.linear import _states

# shapes of a for b (3, 11, 2, 4): the same at all times, for each sequence, for each step, and wholly its own
SHAPES = [(), (4,), (2, 1), (3, 1, 2, 4), (3, 1, 1, 1), (11, 2, 4), (1, 11, 1, 4), (3, 11, 2, 4)]
DTYPES = [torch.float64, torch.complex128]


@pytest.fixture(params=["kernels", "torch"])
def way(request) -> str:
    """Run a test by the compiled loops, and by what devices without them run."""
    with use_backend("torch" if request.param == "torch" else "auto"):
        yield request.param


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def problem(shape: tuple[int, ...] = (3, 11, 2, 4), dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], Tensor]:
    """Return a, b, initial with gradients, and a mask that resets about a third of the steps."""
    tensors = [draw(*shape, dtype=dtype, seed=1), draw(3, 11, 2, 4, dtype=dtype, seed=2)]
    tensors.append(draw(3, 2, 4, dtype=dtype, seed=3))
    return [x.requires_grad_() for x in tensors], draw(3, 11, seed=4) < -0.4


def definition(a: Tensor, b: Tensor, initial: Tensor, reset: Tensor | None = None, reverse: bool = False) -> Tensor:
    """One step after the other, as the formula says."""
    a, x, states = a.expand(b.shape), initial, {}
    for t in range(b.shape[1])[:: -1 if reverse else 1]:
        kept = a[:, t] * x
        if reset is not None:
            kept = torch.stack([torch.zeros_like(k) if r else k for k, r in zip(kept, reset[:, t], strict=True)])
        x = states[t] = kept + b[:, t]
    return torch.stack([states[t] for t in range(b.shape[1])], 1)


def largest(difference: Tensor, scale: Tensor) -> float:
    return float(difference.detach().abs().max() / scale.detach().abs().max())


@given(
    length=st.integers(1, 40),
    batch=st.integers(1, 3),
    n=st.integers(1, 9),
    varies=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    reverse=st.booleans(),
    kernels=st.booleans(),
)
def test_states_are_those_of_the_definition(length, batch, n, varies, dtype, reverse, kernels):
    a = draw(*((batch, length) if varies else ()), n, dtype=dtype)
    b, initial = draw(batch, length, n, dtype=dtype, seed=1), draw(batch, n, dtype=dtype, seed=2)
    expected = definition(a, b, initial, reverse=reverse)
    with use_backend("auto" if kernels else "torch"):
        found = linear_recurrence(a, b, initial=initial, reverse=reverse)
    assert largest(found - expected, expected) < 1e-13


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reverse", [False, True])
def test_factors_of_every_shape_and_resets_give_states_and_gradients_of_the_definition(shape, reverse):
    for dtype in DTYPES:
        tensors, reset = problem(shape, dtype)
        x = linear_recurrence(*tensors[:2], initial=tensors[2], reset=reset, reverse=reverse)
        expected = definition(*tensors, reset, reverse)
        assert largest(x - expected, expected) < 1e-14
        gx = draw(*x.shape, dtype=dtype, seed=5)
        gradients = (torch.autograd.grad(y, tensors, gx) for y in (x, expected))
        for g, e in zip(*gradients, strict=True):
            assert largest(g - e, e) < 1e-13


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_agree_with_differences(dtype, reverse):
    a, b, initial = draw(3, dtype=dtype), draw(2, 5, 3, dtype=dtype, seed=1), draw(2, 3, dtype=dtype, seed=2)
    reset = torch.tensor([[False, False, True, False, False]]).expand(2, 5)

    def states(a, b, initial):
        return linear_recurrence(a, b, initial=initial, reset=reset, reverse=reverse)

    assert torch.autograd.gradcheck(states, [x.requires_grad_() for x in (a, b, initial)])


@pytest.mark.usefixtures("way")
def test_real_factors_of_complex_states_have_real_gradients():
    a, b = draw(4).requires_grad_(), draw(2, 9, 4, dtype=torch.complex128, seed=1)
    gx = draw(2, 9, 4, dtype=torch.complex128, seed=2)
    zero = torch.zeros(2, 4, dtype=torch.complex128)
    (g,), (e,) = (torch.autograd.grad(x, a, gx) for x in (linear_recurrence(a, b), definition(a, b, zero)))
    assert g.dtype == torch.float64
    assert largest(g - e, e) < 1e-13


@pytest.mark.usefixtures("way")
def test_complex_factors_make_real_inputs_complex():
    a, b = draw(4, dtype=torch.complex128), draw(2, 9, 4, seed=1).float()
    x = linear_recurrence(a, b)
    expected = definition(a, b, torch.zeros(2, 4, dtype=torch.complex128))
    assert x.dtype == torch.complex64
    assert largest(x - expected, expected) < 1e-6  # of float32


@pytest.mark.usefixtures("way")
def test_sequences_without_axes_behind_time_are_scalar_recurrences():
    b = draw(2, 7)
    assert largest(linear_recurrence(torch.tensor(1.0).double(), b) - b.cumsum(1), b) < 1e-14


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("reverse", [False, True])
def test_a_reset_forgets_even_nan_and_infinity(reverse):
    b = torch.ones(3, 20, 1)
    b[0, 4], b[1, 4] = torch.nan, torch.inf
    reset = torch.zeros(3, 20, dtype=torch.bool)
    reset[:, 2 if reverse else 11] = True
    after = slice(None, 3) if reverse else slice(11, None)
    x = linear_recurrence(torch.tensor([0.5]), b, reset=reset, reverse=reverse)
    assert torch.equal(x[0, after], x[2, after])
    assert torch.equal(x[1, after], x[2, after])


@pytest.mark.usefixtures("way")
def test_a_reset_starts_a_sequence_of_its_own():
    a, b = draw(1, 20, 3), draw(1, 20, 3, seed=1)
    reset = torch.zeros(1, 20, dtype=torch.bool)
    reset[0, 8] = True
    first, second = linear_recurrence(a[:, :8], b[:, :8]), linear_recurrence(a[:, 8:], b[:, 8:])
    expected = torch.cat([first, second], 1)
    assert largest(linear_recurrence(a, b, reset=reset) - expected, expected) < 1e-14


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("reverse", [False, True])
def test_nothing_flows_back_through_a_reset_at_the_first_step(reverse):
    initial = draw(2, 3).requires_grad_()
    reset = torch.zeros(2, 6, dtype=torch.bool)
    reset[:, -1 if reverse else 0] = True
    x = linear_recurrence(draw(3), draw(2, 6, 3), initial=initial, reset=reset, reverse=reverse)
    assert torch.equal(torch.autograd.grad(x.sum(), initial)[0], torch.zeros(2, 3).double())


@pytest.mark.usefixtures("way")
def test_steps_one_at_a_time_give_the_same():
    a, b = draw(3, dtype=torch.complex128) / 2, draw(2, 30, 3, dtype=torch.complex128, seed=1)
    x, state = linear_recurrence(a, b), torch.zeros(2, 3, dtype=torch.complex128)
    for t in range(30):
        state = a * state + b[:, t]
        assert largest(x[:, t] - state, state) < 1e-14


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("reverse", [False, True])
def test_continuing_from_the_last_state_is_as_if_uninterrupted(reverse):
    a, b = draw(2, 30, 3) / 2, draw(2, 30, 3, seed=1)
    whole, half = linear_recurrence(a, b, reverse=reverse), [slice(0, 13), slice(13, 30)]
    first, second = half[::-1] if reverse else half
    state = linear_recurrence(a[:, first], b[:, first], reverse=reverse)[:, 0 if reverse else -1]
    x = linear_recurrence(a[:, second], b[:, second], initial=state, reverse=reverse)
    assert largest(x - whole[:, second], whole) < 1e-14


@pytest.mark.usefixtures("way")
def test_states_are_those_of_a_state_space_model():
    rates, u = torch.complex(-draw(5).abs(), draw(5, seed=1)), draw(2, 50, 3, seed=2)
    B, C = draw(5, 3, dtype=torch.complex128, seed=3), draw(4, 5, dtype=torch.complex128, seed=4)
    x = linear_recurrence(rates.exp(), u.to(B.dtype) @ B.T)
    expected = diagonal_ssm(rates, B, C, u)
    assert largest((x @ C.T).real - expected, expected) < 1e-13


@pytest.mark.usefixtures("way")
def test_float32_keeps_the_factors_it_was_given():
    # 1 - 1e-6 rounded to float32 is off by 5 % of its distance from 1, and a float32 carry loses 1e-3 in 4000 steps
    a = torch.tensor([math.exp(-1e-6)], dtype=torch.float64)
    b = torch.zeros(1, 4000, 1)
    b[0, 0] = 1
    x = linear_recurrence(a, b)
    expected = torch.exp(-1e-6 * torch.arange(4000, dtype=torch.float64))
    assert x.dtype == torch.float32
    # in the kernels one rounding, in the other way up to 2 sqrt(4000) of them
    assert largest(x[0, :, 0] - expected, expected) < 2e-6


def test_the_carry_of_the_kernels_is_in_double_precision():
    b = torch.full((1, 100_000, 1), 0.1)
    # a float32 carry is off by 1e-3 here
    assert float(linear_recurrence(torch.ones(1), b)[0, -1]) == pytest.approx(float(b[0, 0]) * 1e5, rel=1e-7)


@pytest.mark.usefixtures("way")
def test_lazily_conjugated_and_negated_tensors_are_meant_as_they_read():
    a, b, initial = (draw(*s, dtype=torch.complex128) for s in ((3,), (2, 9, 3), (2, 3)))
    expected = linear_recurrence(*(z.conj().resolve_conj() for z in (a, b)), initial=initial.conj().resolve_conj())
    found = linear_recurrence(a.conj(), b.conj(), initial=initial.conj())
    assert torch.equal(found, expected)
    negative = a.conj().imag  # pending: minus the imaginary part
    assert negative.is_neg()
    assert torch.equal(linear_recurrence(negative, b), linear_recurrence(negative.resolve_neg(), b))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_without_breaks_it_gives_the_same(dtype):
    torch._dynamo.reset()
    tensors, reset = problem(dtype=dtype)

    def states(a, b, initial):
        # conjugated outside, so that the operator meets a pending conjugation
        return linear_recurrence(a.conj(), b, initial=initial, reset=reset, reverse=True)

    compiled = torch.compile(states, backend="aot_eager", fullgraph=True)
    gx = draw(3, 11, 2, 4, dtype=dtype, seed=5)
    x, expected = compiled(*tensors), states(*tensors)
    assert largest(x - expected, expected) < 1e-14
    for g, e in zip(*(torch.autograd.grad(y, tensors, gx) for y in (x, expected)), strict=True):
        assert largest(g - e, e) < 1e-14


@pytest.mark.usefixtures("way")
def test_operator_is_declared_as_it_is():
    a, b, initial = draw(1, 1, 4), draw(2, 9, 4), draw(2, 4)
    for reset in (None, draw(2, 9) < 0):
        for reverse in (False, True):
            tensors = [x.clone().requires_grad_() for x in (a, b, initial)]
            torch.library.opcheck(_states, (*tensors, reset, reverse))


@pytest.mark.usefixtures("way")
def test_arguments_are_unchanged():
    tensors, reset = problem()
    before = [x.detach().clone() for x in (*tensors, reset)]
    x = linear_recurrence(*tensors[:2], initial=tensors[2], reset=reset)
    torch.autograd.grad(x.sum(), tensors)
    assert all(torch.equal(x, y) for x, y in zip((*tensors, reset), before, strict=True))


@pytest.mark.usefixtures("way")
def test_strided_tensors_give_the_same():
    (a, b, initial), reset = problem()
    strided = [x.detach().mT.contiguous().mT for x in (a, b, initial)]
    expected = linear_recurrence(a, b, initial=initial, reset=reset)
    found = linear_recurrence(*strided[:2], initial=strided[2], reset=reset.T.contiguous().T)
    assert torch.equal(found, expected)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("shape", [(0, 5, 2), (2, 0, 2), (2, 5, 0)])
def test_empty_sequences_have_empty_states_and_no_gradient(shape):
    tensors = [draw(shape[-1]), draw(*shape), draw(shape[0], shape[-1])]
    tensors = [x.requires_grad_() for x in tensors]
    x = linear_recurrence(*tensors[:2], initial=tensors[2])
    assert x.shape == shape
    assert [float(g.abs().sum()) for g in torch.autograd.grad(x.sum(), tensors)] == [0, 0, 0]


def test_kernels_agree_with_their_source_in_python():
    a, b, carry = (draw(*s, dtype=torch.complex128).numpy() for s in ((2, 6, 3), (2, 6, 3), (2, 3)))
    reset = (draw(2, 6) < 0).numpy()
    found, expected = np.empty_like(b), np.empty_like(b)
    kernels.scan(a, carry.copy(), b, reset, True, found)
    getattr(kernels.scan, "py_func", kernels.scan)(a, carry.copy(), b, reset, True, expected)
    np.testing.assert_allclose(found, expected, rtol=1e-14)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b": torch.ones(3)}, "b must have at least the axes"),
        ({"a": torch.ones(3)}, "a must broadcast to the shape of b: \\(4,\\) if it is time-invariant"),
        ({"a": torch.ones(1, 2, 5, 4)}, "a must broadcast"),
        ({"initial": torch.ones(2, 5)}, "initial must be \\(2, 4\\)"),
        ({"reset": torch.ones(2, 5)}, "reset must be a boolean tensor"),
        ({"reset": torch.ones(2, 4, dtype=torch.bool)}, "reset must be a boolean tensor of shape \\(2, 5\\)"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message):
    given_ = {"a": torch.ones(4), "b": torch.ones(2, 5, 4)} | change
    with pytest.raises(InputError, match=message):
        linear_recurrence(**given_)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("shape", [(4,), (3, 11, 2, 4)], ids=str)
def test_a_gpu_gives_what_the_kernels_give(shape, dtype):
    tensors, reset = problem(shape, dtype)
    there = [x.detach().cuda().requires_grad_() for x in tensors]
    x = linear_recurrence(*tensors[:2], initial=tensors[2], reset=reset)
    y = linear_recurrence(*there[:2], initial=there[2], reset=reset.cuda())
    gx = draw(*x.shape, dtype=dtype, seed=5)
    assert largest(y.cpu() - x, x) < 1e-5  # both in float32, a few growing factors
    found = torch.autograd.grad(y, there, gx.cuda())
    for g, e in zip(found, torch.autograd.grad(x, tensors, gx), strict=True):
        assert largest(g.cpu() - e, e) < 1e-5
