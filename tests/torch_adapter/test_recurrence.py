"""The time-invariant recurrence: both methods against a loop, at every size that is cut into blocks differently."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hankelred.errors import InputError
from hankelred_torch.ops import diagonal_ssm, state_space, use_backend
from hankelred_torch.ops import recurrence as blocks
from hankelred_torch.ops._scan import scan, scan_adjoint
from hankelred_torch.ops._segmented_scan import planar_scan, planar_scan_adjoint
from hankelred_torch.ops.convolution import causal_convolution, fast_length

METHODS = ("recurrence", "convolution")
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "recurrence_cpu.json"


def system(n: int, m: int, p: int, seed: int = 0, dtype: torch.dtype = torch.float64, slowest: float = 1e-3):
    """Return rates, B, C with poles from 1 - slowest inwards, some of them real."""
    draw = torch.Generator().manual_seed(seed)
    decay = slowest * 10 ** (3 * torch.rand(n, generator=draw, dtype=torch.float64))
    phase = 6.28 * torch.rand(n, generator=draw, dtype=torch.float64)
    phase[::3] = 0
    B, C = (torch.randn(*s, generator=draw, dtype=torch.complex128) for s in ((n, m), (p, n)))
    return torch.complex(-decay, phase), B.to(dtype.to_complex()), C.to(dtype.to_complex()) / n


def inputs(batch: int, length: int, m: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, length, m, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def loop(rates: Tensor, B: Tensor, C: Tensor, u: Tensor, D: Tensor | None = None) -> Tensor:
    """One step after the other, in double precision: the definition."""
    B, C, u = B.to(torch.complex128), C.to(torch.complex128), u.double()
    x, outputs = torch.zeros(len(u), len(rates), dtype=torch.complex128), []
    for t in range(u.shape[1]):
        x = rates.to(torch.complex128).exp() * x + u[:, t].to(B.dtype) @ B.T
        outputs.append((x @ C.T).real)
    y = torch.stack(outputs, dim=1)
    return y if D is None else y + D.double() * u


def largest(difference: Tensor, scale: Tensor) -> float:
    return float(difference.abs().max() / scale.abs().max())


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut into blocks of few steps, so that small problems have every kind of block."""
    monkeypatch.setattr(blocks, "BLOCK", 7 * 16 * 8)  # 7 steps of 8 states in float64


@given(
    n=st.integers(1, 12),
    m=st.integers(1, 14),
    p=st.integers(1, 14),
    batch=st.integers(1, 5),
    length=st.integers(1, 40),
    seed=st.integers(0, 99),
    method=st.sampled_from(METHODS),
)
def test_output_is_that_of_the_loop(n, m, p, batch, length, seed, method):
    model, u = system(n, m, p, seed), inputs(batch, length, m)
    expected = loop(*model, u)
    # an FFT is accurate relative to the largest output only
    assert largest(diagonal_ssm(*model, u, method=method) - expected, expected) < 1e-12


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("length", [1, 3, 7, 8, 23])
def test_output_does_not_depend_on_how_it_is_cut_into_blocks(length):
    model, u = system(5, 3, 2), inputs(6, length, 3)
    expected = loop(*model, u)
    assert largest(diagonal_ssm(*model, u, method="recurrence") - expected, expected) < 1e-13


def gradients(method: str, arguments: list[Tensor], gy: Tensor) -> tuple[Tensor, ...]:
    y = diagonal_ssm(*arguments, method=method)
    return torch.autograd.grad(y, arguments, gy)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("length", [1, 7, 23])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_the_loop(method, length):
    arguments = [x.requires_grad_() for x in (*system(9, 3, 3), inputs(4, length, 3), torch.randn(3).double())]
    gy = torch.randn(4, length, 3, dtype=torch.float64)
    expected = torch.autograd.grad(loop(*arguments), arguments, gy)
    for g, e in zip(gradients(method, arguments, gy), expected, strict=True):
        assert (g - e).abs().max() <= 1e-11 * (e.abs().max() + 1e-3)  # rates have no gradient at length 1


@pytest.mark.parametrize("method", METHODS)
def test_gradients_agree_with_differences(method):
    arguments = [x.requires_grad_() for x in (*system(3, 2, 2), inputs(2, 5, 2), torch.ones(2).double())]
    assert torch.autograd.gradcheck(lambda *a: diagonal_ssm(*a, method=method), arguments)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("inputs_kept_from", "kept"), [(3, True), (4, False)])
def test_gradients_do_not_depend_on_whether_states_are_kept(monkeypatch, inputs_kept_from, kept):
    arguments = [x.requires_grad_() for x in (*system(9, 3, 3), inputs(4, 23, 3))]
    gy = torch.randn(4, 23, 3, dtype=torch.float64)
    monkeypatch.setattr(blocks, "WIDE", inputs_kept_from - 1)
    y = diagonal_ssm(*arguments, method="recurrence")
    assert (y.grad_fn.saved_tensors[-1].numel() > 0) == kept
    expected = torch.autograd.grad(loop(*arguments), arguments, gy)
    for g, e in zip(torch.autograd.grad(y, arguments, gy), expected, strict=True):
        assert largest(g - e, e) < 1e-11


@pytest.mark.parametrize("method", METHODS)
def test_float32_keeps_the_poles_it_was_given(method):
    # At decay 1e-6 lam rounded to float32 is off by up to 6 % of its distance from the circle, and 0.06 rad of
    # phase after 10^6 steps; length 4000 already shows 1e-4 of it in a float32 recurrence.
    rates = torch.tensor([-1e-6 + 1.0j, -1e-6 + 0j], dtype=torch.complex128)
    ones = torch.ones(2, 1, dtype=torch.complex64)
    impulse = torch.zeros(1, 4000, 1)
    impulse[0, 0] = 1
    expected = (torch.arange(4000)[:, None] * rates).exp().sum(1).real
    y = diagonal_ssm(rates, ones, ones.T, impulse, method=method)[0, :, 0].double()
    assert largest(y - expected, expected) < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_float32_is_as_accurate_as_float32_is(method):
    rates, B, C = system(40, 6, 6, dtype=torch.float32)
    u = inputs(3, 500, 6, torch.float32)
    expected = loop(rates, B, C, u)
    assert largest(diagonal_ssm(rates, B, C, u, method=method) - expected, expected) < 3e-6  # sums of 40 to 500 terms


@pytest.mark.parametrize("steps", [1, 2, 5, 16, 30])
def test_scan_in_torch_equals_the_kernel(steps):
    lam = torch.randn(2, 3, dtype=torch.float64) / 2
    v = torch.randn(4, steps, 6, dtype=torch.float64)
    expected = v.clone()
    scan(lam.numpy(), np.zeros((4, 6)), expected.numpy())
    assert largest(planar_scan(lam, v) - expected, expected) < 1e-14


@pytest.mark.parametrize("steps", [1, 2, 5, 16, 30])
def test_adjoint_scan_in_torch_equals_the_kernel(steps):
    lam = torch.randn(2, 3, dtype=torch.float64) / 2
    x, g = torch.randn(2, 4, steps, 6, dtype=torch.float64)
    expected, expected_total, total = g.clone(), torch.zeros(2, 3).double(), torch.zeros(2, 3).double()
    scan_adjoint(lam.numpy(), np.zeros((4, 6)), x.numpy(), np.zeros((4, 6)), expected.numpy(), expected_total.numpy())
    assert largest(planar_scan_adjoint(lam, x, g, total) - expected, expected) < 1e-14
    assert largest(total - expected_total, expected_total + 1e-9) < 1e-13


@given(st.integers(1, 100_000))
def test_fast_length_is_long_enough_and_not_much_longer(length):
    assert length <= fast_length(length) <= 1.25 * length + 1


def test_convolution_does_not_wrap_around():
    u = torch.zeros(1, 9, 1)
    u[0, -1] = 1
    K = torch.ones(9, 1, 1)
    assert causal_convolution(u, K)[0, :-1].abs().max() < 1e-6


# torch 2.13 warns about what its own tracer does with autograd functions
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("method", METHODS)
def test_compiled_without_breaks_it_gives_the_same(method):
    torch._dynamo.reset()
    arguments = [x.requires_grad_() for x in (*system(4, 2, 2), inputs(2, 30, 2), torch.ones(2).double())]
    gy = torch.randn(2, 30, 2, dtype=torch.float64)
    compiled = torch.compile(lambda *a: diagonal_ssm(*a, method=method), backend="aot_eager", fullgraph=True)
    found = torch.autograd.grad(compiled(*arguments), arguments, gy)
    for g, e in zip(found, gradients(method, arguments, gy), strict=True):
        assert largest(g - e, e) < 1e-13


def test_operator_for_compilation_is_declared_as_it_is():
    arguments = [x.requires_grad_() for x in (torch.randn(2, 3).double(), torch.randn(2, 3, 2), torch.randn(2, 2, 3))]
    arguments[0].data[0] = -0.1
    u = torch.randn(2, 5, 2, requires_grad=True)
    for D in (None, torch.randn(2, requires_grad=True)):
        for keep in (True, False):
            torch.library.opcheck(blocks._outputs, (*arguments, u, D, keep))


@pytest.mark.parametrize("method", METHODS)
def test_lazily_conjugated_matrices_are_conjugated(method):
    rates, B, C = system(4, 2, 2)
    u = inputs(2, 12, 2)
    expected = loop(rates.conj().resolve_conj(), B.conj().resolve_conj(), C.conj().resolve_conj(), u)
    assert largest(diagonal_ssm(rates.conj(), B.conj(), C.conj(), u, method=method) - expected, expected) < 1e-12


@pytest.mark.parametrize("method", METHODS)
def test_strided_input_gives_the_same(method):
    model, u = system(4, 3, 3), inputs(2, 12, 3)
    strided = u.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(diagonal_ssm(*model, strided, method=method), diagonal_ssm(*model, u, method=method))


@pytest.mark.parametrize("method", METHODS)
def test_arguments_are_unchanged(method):
    arguments = (*system(4, 3, 3), inputs(2, 12, 3), torch.randn(3).double())
    before = [x.clone() for x in arguments]
    diagonal_ssm(*arguments, method=method)
    assert all(torch.equal(x, y) for x, y in zip(arguments, before, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_the_same_twice_is_the_same_to_the_last_bit(method):
    arguments = [x.requires_grad_() for x in (*system(70, 16, 16, dtype=torch.float32), inputs(50, 64, 16).float())]
    gy = torch.randn(50, 64, 16)
    first, second = (gradients(method, arguments, gy) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_an_empty_batch_gives_an_empty_output_and_no_gradient():
    arguments = [x.requires_grad_() for x in (*system(4, 3, 3), inputs(0, 12, 3))]
    found = gradients("recurrence", arguments, torch.zeros(0, 12, 3).double())
    assert [float(g.abs().sum()) for g in found] == [0, 0, 0, 0]


@pytest.mark.parametrize("method", METHODS)
def test_nan_in_one_sequence_stays_in_it(method):
    model, u = system(4, 3, 3), inputs(2, 12, 3)
    u[0, 5] = torch.nan
    assert diagonal_ssm(*model, u, method=method).isnan().flatten(1).any(1).tolist() == [True, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r, B, C, u: (r.real, B, C, u), "rates must be complex"),
        (lambda r, B, C, u: (r, B.T, C, u), "one of them transposed"),
        (lambda r, B, C, u: (r, B, C[:, :-1], u), "one of them transposed"),
        (lambda r, B, C, u: (r, B, C, u[0]), "u must be real with 3 axes"),
        (lambda r, B, C, u: (r, B, C, u + 0j), "u must be real with 3 axes"),
        (lambda r, B, C, u: (r, B, C, u, torch.ones(2)), "D must be real with shape \\(3,\\)"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        diagonal_ssm(*change(*system(4, 3, 2), inputs(2, 12, 3)))


def test_unknown_method_is_refused():
    with pytest.raises(InputError, match="method must be"):
        diagonal_ssm(*system(4, 3, 2), inputs(2, 12, 3), method="fft")  # type: ignore[arg-type]


# The cost model. Nothing is timed here: the measurements are committed.


@pytest.fixture(scope="module")
def measured() -> dict[str, object]:
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def rows(measured) -> list[dict[str, float]]:
    return [dict(zip(measured["columns"], row, strict=True)) for row in measured["grid"]]


def test_constants_are_those_of_the_measurements(measured):
    assert {method: list(seconds) for method, seconds in state_space.SECONDS.items()} == measured["seconds"]


def test_chosen_method_takes_at_most_1_3_times_the_faster_one_wherever_it_was_measured(measured):
    late = []
    for row in rows(measured):
        sizes = [int(row[k]) for k in ("batch", "length", "channels", "channels", "states")]
        chosen = state_space.choose_method(*sizes, device="cpu")
        if row[chosen] > 1.3 * min(row[method] for method in METHODS):
            late.append((row, chosen))
    assert late == []


def test_both_methods_are_chosen_somewhere(measured):
    sizes = ([int(row[k]) for k in ("batch", "length", "channels", "channels", "states")] for row in rows(measured))
    assert {state_space.choose_method(*s, device="cpu") for s in sizes} == set(METHODS)


@pytest.mark.parametrize(("batch", "length", "channels"), list(product((1, 50), (64, 784), (8, 64))))
def test_predicted_time_grows_with_states(batch, length, channels):
    for method in METHODS:
        times = [state_space.predicted_seconds(method, batch, length, channels, channels, n) for n in (4, 64, 256)]
        assert times == sorted(times)


def test_sequences_longer_than_a_block_are_right_without_compiled_loops():
    """Only compiled loops carry states from one block to the next: others once began each block at rest."""
    draw = torch.Generator().manual_seed(0)
    rates = torch.complex(torch.full((256,), -1e-3, dtype=torch.float64), torch.rand(256, generator=draw).double())
    B, C = (torch.randn(s, dtype=torch.complex64, generator=draw) for s in ((256, 1), (1, 256)))
    u = torch.randn(1, 1500, 1, generator=draw)
    expected = diagonal_ssm(rates, B, C, u, method="recurrence")
    with use_backend("torch"):
        found = diagonal_ssm(rates, B, C, u, method="recurrence")
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5
