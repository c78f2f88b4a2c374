"""The selective scan: compiled loops against the definition, at every size that is cut into blocks differently."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hankelred.errors import InputError
from hankelred_torch.ops import _selective_kernels as kernels
from hankelred_torch.ops import selective_scan
from hankelred_torch.ops._selective_kernels import SEGMENT
from hankelred_torch.ops.selective import _outputs, selective_scan_loop

from .kernel_cases import resets

NAMES = ("u", "delta", "A", "B", "C", "D", "initial")


def arguments(batch: int = 2, length: int = 20, channels: int = 3, n: int = 4, seed: int = 0, dtype=torch.float64):
    """Return tensors as a trained layer has them: steps over two decades, decays from slow to none left."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    delta = 10 ** (-3 + 2 * torch.rand(batch, length, channels, generator=draw, dtype=torch.float64))
    A = -torch.arange(1, n + 1) * (1 + 0.1 * torch.rand(channels, 1, generator=draw, dtype=torch.float64))
    u, B, C = normal(batch, length, channels), normal(batch, length, n), normal(batch, length, n)
    tensors = (u, delta, A, B, C, normal(channels), normal(batch, channels, n))
    return [x.to(dtype).requires_grad_() for x in tensors]


def both(a: list[Tensor]) -> tuple[Tensor, Tensor]:
    return selective_scan(*a[:6], initial=a[6], return_state=True)


def with_resets(reset: Tensor):
    return lambda a: selective_scan(*a[:6], initial=a[6], reset=reset, return_state=True)


def definition(u, delta, A, B, C, D, initial, reset=None) -> tuple[Tensor, Tensor]:
    """The formulas, entry by entry where that is plainest."""
    h, y = initial.clone(), torch.zeros_like(u)
    for t in range(u.shape[1]):
        if reset is not None:
            h[reset[:, t]] = 0
        for k in range(u.shape[2]):
            decays = torch.exp(delta[:, t, k, None] * A[k])
            h[:, k] = decays * h[:, k] + (delta[:, t, k] * u[:, t, k])[:, None] * B[:, t]
            y[:, t, k] = (C[:, t] * h[:, k]).sum(-1) + D[k] * u[:, t, k]
    return y, h


def largest(difference: Tensor, scale: Tensor) -> float:
    return float(difference.detach().abs().max() / scale.detach().abs().max())


def gradients(run, a: list[Tensor], seed: int = 1) -> tuple[Tensor, ...]:
    outputs = run(a)
    draw = torch.Generator().manual_seed(seed)
    weights = [torch.randn(x.shape, generator=draw, dtype=torch.float64).to(x.dtype) for x in outputs]
    return torch.autograd.grad(outputs, a, weights)


@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 40),
    channels=st.sampled_from([1, 2, 5, 127, 128, 129]),
    n=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_output_and_state_are_those_of_the_definition(batch, length, channels, n, seed):
    a = arguments(batch, length, channels, n, seed)
    with torch.no_grad():
        for found, expected in zip(both(a), definition(*a), strict=True):
            assert largest(found - expected, expected) < 1e-13


def test_loop_is_the_definition():
    a = arguments()
    with torch.no_grad():
        for found, expected in zip(selective_scan_loop(*a), definition(*a), strict=True):
            assert largest(found - expected, expected) < 1e-14


@pytest.mark.parametrize("length", [1, 15, 16, 17, 40])
@pytest.mark.parametrize("channels", [3, 128, 150])
def test_gradients_are_those_of_the_loop(length, channels):
    a = arguments(2, length, channels, 5)
    expected = gradients(lambda a: selective_scan_loop(*a), a)
    for g, e in zip(gradients(both, a), expected, strict=True):
        assert largest(g - e, e) < 1e-13


@pytest.mark.parametrize("where", resets(1, 1, SEGMENT))
@pytest.mark.parametrize("length", [1, SEGMENT, 2 * SEGMENT + 3])
def test_documents_inside_a_sequence_do_not_know_of_each_other(where, length):
    a, reset = arguments(length=length), resets(2, length, SEGMENT)[where]
    with torch.no_grad():
        for found, expected in zip(with_resets(reset)(a), definition(*a, reset), strict=True):
            assert largest(found - expected, expected) < 1e-13
    expected = gradients(lambda a: selective_scan_loop(*a, reset=reset), a)
    for g, e in zip(gradients(with_resets(reset), a), expected, strict=True):
        assert float((g - e).abs().max()) <= 1e-12 * float(e.abs().max())


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("A", "D")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_reset_forgets_what_is_not_finite(name, dtype):
    reset = torch.zeros(1, 20, dtype=torch.bool)
    reset[0, [7, SEGMENT]] = True
    for bad in (torch.nan, torch.inf):
        a = arguments(1, dtype=dtype)
        with torch.no_grad():
            a[NAMES.index(name)].view(-1)[-1 if name == "initial" else 6] = bad
        found, expected = gradients(with_resets(reset), a), gradients(lambda a: selective_scan_loop(*a, reset=reset), a)
        places = [(f.isnan() != e.isnan()).sum().item() for f, e in zip(found, expected, strict=True)]
        assert bad == bad or not any(places), places
        y, state = with_resets(reset)(a)
        assert not y[:, :7].isfinite().all()
        assert y[:, 7:].isfinite().all()
        assert state.isfinite().all()


@pytest.mark.parametrize(("at", "bad"), [(5, 7), (5, SEGMENT + 1)], ids=["in a piece", "in the piece before"])
def test_gradients_that_are_not_finite_do_not_pass_a_reset(at, bad):
    a, reset = arguments(1), torch.zeros(1, 20, dtype=torch.bool)
    reset[0, at] = True
    gradient = torch.zeros_like(a[0])
    gradient[:, bad] = torch.nan
    y, _ = with_resets(reset)(a)
    *found, g_initial = torch.autograd.grad(y, [a[k] for k in (0, 1, 3, 4, 6)], gradient)
    assert torch.equal(g_initial, torch.zeros_like(g_initial))
    for f in found:
        assert torch.equal(f[:, :at], torch.zeros_like(f[:, :at]))
        assert f[:, bad].isnan().any()


def test_gradients_agree_with_differences():
    a, reset = arguments(2, 5, 2, 3), torch.tensor([[False, False, True, False, False], [True] + [False] * 4])
    for run in (both, with_resets(reset)):
        assert torch.autograd.gradcheck(lambda *x, run=run: run(list(x)), a)


def test_without_feedthrough_and_initial_state_both_are_zero():
    a = arguments()
    expected = selective_scan(*a[:5], torch.zeros(3), initial=torch.zeros(2, 3, 4))
    assert torch.equal(selective_scan(*a[:5]), expected)


def test_float32_is_as_accurate_as_float32_is():
    exact = arguments(2, 300, 20, 12)
    single = [x.detach().float().requires_grad_() for x in exact]
    exact = [x.detach().double().requires_grad_() for x in single]  # of the same rounded numbers
    for found, expected in zip(both(single), both(exact), strict=True):
        assert largest(found.double() - expected, expected) < 1e-6  # some roundings of 6e-8
    for name, g, e in zip(NAMES, gradients(both, single), gradients(both, exact), strict=True):
        assert largest(g.double() - e, e) < 2e-6, name  # sums of up to 600 terms


@pytest.mark.parametrize("exponent", [-150.0, -126.0, -30.5, -1.0, -1e-3, -1e-7, 0.0, 0.5, 17.3, 127.4])
def test_exponential_is_right_to_a_rounding_or_two(exponent):
    # one channel, one state: the first state is exp(delta A) times the initial one
    A = torch.tensor([[exponent * math.log(2)]])
    one, zero = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
    found = float(selective_scan(zero, one, A, one, one, initial=one))
    # the exponent itself is rounded twice, to 2^-24 relative; below 2^-126 float32 has no normal numbers
    assert found == pytest.approx(math.exp(float(A)), rel=(2 + 2 * abs(exponent)) * 2**-24, abs=2**-126)


def test_time_steps_that_overflow_give_infinity():
    one, zero = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
    assert selective_scan(zero, one, torch.tensor([[100.0]]), one, one, initial=one).item() == math.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["u", "delta", "B", "C"])
def test_nan_in_one_sequence_stays_in_it(name, dtype):
    a = [x.detach() for x in arguments(dtype=dtype)]
    a[NAMES.index(name)][0, 5] = torch.nan
    y = selective_scan(*a[:6], initial=a[6])
    assert y.isnan().flatten(1).any(1).tolist() == [True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nan_in_the_rates_of_one_channel_is_not_lost_in_the_exponential(dtype):
    a = [x.detach() for x in arguments(dtype=dtype)]
    a[2][1, 0] = torch.nan
    y = selective_scan(*a[:6], initial=a[6])
    assert y.isnan().any(1).any(0).tolist() == [False, True, False]


def test_continuing_from_the_last_state_is_as_if_uninterrupted():
    a = [x.detach() for x in arguments(length=37)]
    whole, last = both(a)
    parts, state = [], a[6]
    for part in (slice(0, 1), slice(1, 20), slice(20, 37)):
        cut = [x[:, part] if x.ndim == 3 else x for x in (a[0], a[1])]
        y, state = selective_scan(*cut, a[2], a[3][:, part], a[4][:, part], a[5], initial=state, return_state=True)
        parts.append(y)
    assert largest(torch.cat(parts, 1) - whole, whole) < 1e-14
    assert largest(state - last, last) < 1e-14


def test_the_formula_for_one_step_is_a_sequence_of_length_one():
    u, delta, A, B, C, D, h = (x.detach() for x in arguments(length=1))
    y, state = selective_scan(u, delta, A, B, C, D, initial=h, return_state=True)
    u, delta, B, C = u[:, 0], delta[:, 0], B[:, 0], C[:, 0]
    h = torch.exp(delta[..., None] * A) * h + (delta * u)[..., None] * B[:, None]
    assert largest(state - h, h) < 1e-15
    assert largest(y[:, 0] - (h * C[:, None]).sum(-1) - D * u, y) < 1e-15


def test_compiled_without_breaks_it_gives_the_same():
    torch._dynamo.reset()
    a = arguments()
    for run in (both, with_resets(resets(2, 20, SEGMENT)["at random"])):
        compiled = torch.compile(lambda *x, run=run: run(list(x)), backend="aot_eager", fullgraph=True)
        for g, e in zip(gradients(lambda a, compiled=compiled: compiled(*a), a), gradients(run, a), strict=True):
            assert float((g - e).abs().max()) <= 1e-14 * float(e.abs().max())


def test_operator_is_declared_as_it_is():
    for reset in (None, resets(2, 20, SEGMENT)["at random"]):
        torch.library.opcheck(_outputs, (*arguments(2, 20, 3, 4), reset))


def test_strided_tensors_give_the_same():
    a = [x.detach() for x in arguments()]
    strided = [x.mT.contiguous().mT if x.ndim > 1 else x for x in a]
    assert not strided[0].is_contiguous()
    for found, expected in zip(both(strided), both(a), strict=True):
        assert torch.equal(found, expected)


def test_arguments_are_unchanged():
    a = arguments()
    before = [x.detach().clone() for x in a]
    gradients(both, a)
    assert all(torch.equal(x, y) for x, y in zip(a, before, strict=True))


def test_the_same_twice_is_the_same_to_the_last_bit():
    a = arguments(4, 50, 140, 7, dtype=torch.float32)
    first, second = gradients(both, a), gradients(both, a)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize(("batch", "length"), [(0, 5), (2, 0)])
def test_without_steps_the_state_stays(batch, length):
    a = arguments(batch, length)
    y, state = both(a)
    assert y.shape == (batch, length, 3)
    assert torch.equal(state, a[6])
    assert torch.equal(torch.autograd.grad(state.sum(), a[6])[0], torch.ones_like(a[6]))


def test_without_states_only_the_feedthrough_is_left():
    a = arguments(n=0)
    assert torch.equal(selective_scan(*a[:6]), a[5] * a[0])


def test_low_precision_and_autocast_compute_in_float32():
    a = [x.detach().bfloat16() for x in arguments()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = selective_scan(*a[:6], initial=a[6])
        loop, _ = selective_scan_loop(*(x.float() for x in a))
    assert y.dtype == torch.float32
    assert largest(y - loop, loop) < 1e-6


def test_kernels_agree_with_their_source_in_python():
    a = [x.detach().numpy().copy() for x in arguments(1, 18, 2, 3)]
    reset = np.arange(18)[None] == 7
    found, expected = (np.zeros((1, 3, 3, 2)) for _ in range(2))
    for starts, run in ((found, kernels.scan), (expected, getattr(kernels.scan, "py_func", kernels.scan))):
        starts[:, 0] = a[6].swapaxes(1, 2)
        run(*a[:6], reset, starts, np.empty_like(a[0]))
    np.testing.assert_allclose(found, expected, rtol=1e-14)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("u", lambda x: x[0], "u must be \\(batch, length, channels\\) and A"),
        ("A", lambda x: x[0], "u must be \\(batch, length, channels\\) and A"),
        ("delta", lambda x: x.mT, "delta must be real with shape \\(batch, length, channels\\)"),
        ("A", lambda x: x.mT, "A must be real with shape \\(channels, n\\)"),
        ("B", lambda x: x[:, :-1], "B must be real"),
        ("C", lambda x: x + 0j, "C must be real"),
        ("D", lambda x: x[:-1], "D must be real"),
        ("initial", lambda x: x.mT, "initial must be real"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(name, change, message):
    a = dict(zip(NAMES, arguments(), strict=True))
    a[name] = change(a[name])
    with pytest.raises(InputError, match=message):
        selective_scan(**a)


@pytest.mark.gpu
def test_a_gpu_gives_what_the_kernels_give():
    a = arguments(dtype=torch.float32)
    there = [x.detach().cuda().requires_grad_() for x in a]
    for g, e in zip(gradients(lambda a: [x.cpu() for x in both(a)], there), gradients(both, a), strict=True):
        assert largest(g.cpu() - e, e) < 1e-5  # both in float32


# The committed measurements of `benchmarks/speed/selective.py`. Nothing is timed here.


@pytest.fixture(scope="module")
def measured() -> dict[str, list[dict[str, float]]]:
    return json.loads((Path(__file__).parents[2] / "benchmarks/results/selective_cpu.json").read_text("utf-8"))


@pytest.mark.parametrize(("states", "share_of_loop"), [(12, 1 / 4), (128, 1 / 3)])
def test_scan_was_measured_much_faster_than_a_loop_in_torch_and_than_mambapy(measured, states, share_of_loop):
    (row,) = (row for row in measured["selective scan, float32"] if row["states"] == states)
    assert row["hankelred"] <= share_of_loop * row["torch loop"]
    assert row["hankelred"] <= row["mambapy"] / 8


def test_measured_time_grows_with_states_as_a_line_does(measured):
    rows = measured["selective scan by states"]
    n, seconds = (np.array([row[key] for row in rows]) for key in ("states", "hankelred"))
    slope, start = np.polyfit(n, seconds, 1, w=1 / seconds)
    assert start >= 0
    # the cache holds 16 steps of up to 64 states: above, a state costs a quarter more
    assert np.abs((start + slope * n) / seconds - 1).max() < 0.25


def test_resets_that_do_not_fit_are_refused():
    a = arguments()
    with pytest.raises(InputError, match=r"reset must be a boolean tensor of shape \(2, 20\), \(batch, length\) of u"):
        selective_scan(*a[:6], reset=torch.zeros(2, 19, dtype=torch.bool))
