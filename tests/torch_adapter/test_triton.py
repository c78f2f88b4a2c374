"""Triton kernels against definitions in double precision: on a GPU as compiled, elsewhere in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sizes import is_long
from torch import Tensor

from hankelred.errors import AccuracyWarning, InputError
from hankelred_torch import ops
from hankelred_torch.ops.selective import selective_scan_loop

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs triton: pip install triton", allow_module_level=True)

from benchmarks.speed import interpreter, traffic

from .kernel_cases import DEVICE, NAMES, assert_equal, draw, gradients, largest, resets, stand_in

LINEAR, SELECTIVE, HEADS, *_ = interpreter.kernels()
PARTS = sys.modules["hankelred_torch.ops._scans_triton"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Small tiles: short sequences of few states then meet all edges."""
    monkeypatch.setattr(LINEAR, "STEPS", 2)
    monkeypatch.setattr(LINEAR, "WIDTH", 32)
    monkeypatch.setattr(LINEAR, "LANES", 8)
    monkeypatch.setitem(LINEAR.LAUNCH, "num_warps", 1)
    monkeypatch.setitem(SELECTIVE.LAUNCH, "STATES", 2)
    with interpreter.by_rows(), ops.use_backend("triton"):
        yield


def recurrence(a: Tensor, b: Tensor, initial: Tensor, reset: Tensor | None, reverse: bool) -> Tensor:
    """One step after the other, as the formula says."""
    a, x, states = a.expand(b.shape), initial, {}
    for t in range(b.shape[1])[:: -1 if reverse else 1]:
        kept = a[:, t] * x
        if reset is not None:
            kept = torch.where(reset[:, t, None], 0, kept)
        x = states[t] = kept + b[:, t]
    return torch.stack([states[t] for t in range(b.shape[1])], 1)


# three tiles of complex numbers, and more of real ones
KINDS = {"constant": (1, 1), "per row": (2, 1), "varying": (2, 19), "varying, shared by rows": (1, 19)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["real", "complex"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("resets", "reverse"), [(False, False), (True, False), (True, True)])
def test_linear_recurrence_and_its_gradients_are_those_of_the_definition(dtype, kind, resets, reverse):
    a, b, initial = (
        draw(*KINDS[kind], 3, dtype=dtype, seed=1),
        draw(2, 19, 3, dtype=dtype, seed=2),
        draw(2, 3, dtype=dtype, seed=3),
    )
    reset = draw(2, 19, seed=4) < -0.4 if resets else None
    if resets:
        reset[0, 0] = reset[1, -1] = True
    assert_equal(
        lambda a, b, initial: ops.linear_recurrence(a, b, initial=initial, reset=reset, reverse=reverse),
        lambda a, b, initial: recurrence(a, b, initial, reset, reverse),
        [a, b, initial],
    )


@pytest.mark.parametrize(
    ("dtype", "initial"),
    [(torch.complex128, 0.0), *((torch.float64, x) for x in (0.0, 1e-30, torch.inf))],
)
@pytest.mark.parametrize("factor", [1e100, 1e-100])
def test_states_pass_tiles_whose_products_of_constant_factors_leave_the_range_of_numbers(dtype, initial, factor):
    a, b = torch.full((1,), factor, dtype=dtype, device=DEVICE), torch.zeros(1, 19, 1, dtype=dtype, device=DEVICE)
    b[0, 17:] = 1
    before = torch.full((1, 1), initial, dtype=dtype, device=DEVICE)
    x = ops.linear_recurrence(a, b, initial=before)
    torch.testing.assert_close(x, recurrence(a, b, before, None, False), rtol=1e-12, atol=0)


LENGTHS = [(1, 1, 1), (1, 3, 2), (2, 4, 4), (1, 5, 9)] + [(1, 700, 2), (3, 65, 130)] * is_long()


@pytest.mark.parametrize(("rows", "steps", "n"), LENGTHS)
def test_linear_recurrence_is_right_at_every_size(rows, steps, n):
    a, b, initial = draw(rows, steps, n, seed=1), draw(rows, steps, n, seed=2), draw(rows, n, seed=3)
    a = (0.7 * a).detach().requires_grad_()
    assert_equal(
        lambda a, b, initial: ops.linear_recurrence(a, b, initial=initial),
        lambda a, b, initial: recurrence(a, b, initial, None, False),
        [a, b, initial],
    )


def test_linear_recurrence_reads_arrays_in_any_strides():
    a, b = draw(5, 11, 2, seed=1), draw(5, 11, 2, dtype=torch.complex128, seed=2)
    initial = draw(5, 2, seed=3)
    assert_equal(
        lambda a, b, initial: ops.linear_recurrence(a.mT.movedim(0, 2), b.mT.movedim(0, 2).conj(), initial=initial.mT),
        lambda a, b, initial: recurrence(a.mT.movedim(0, 2), b.mT.movedim(0, 2).conj(), initial.mT, None, False),
        [a, b, initial],
    )


def test_a_pole_next_to_the_circle_keeps_its_decay_in_a_float32_recurrence():
    a = torch.polar(torch.tensor([1 - 1e-6], dtype=torch.float64), torch.tensor([0.3], dtype=torch.float64)).to(DEVICE)
    b = torch.zeros(1, 400, 1, dtype=torch.complex64, device=DEVICE)
    b[0, 0] = 1
    found = ops.linear_recurrence(a, b)[0, :, 0].abs().double()
    expected = (1 - 1e-6) ** torch.arange(400, dtype=torch.float64, device=DEVICE)
    # products of 100 tiles, each rounded once to float32, and the roundings of their sums
    assert float((found - expected).abs().max()) < 100 * 2 * 2**-24


@pytest.mark.parametrize("complex_", [False, True])
def test_reset_forgets_what_is_not_finite_and_nothing_else_does(complex_):
    dtype = torch.complex128 if complex_ else torch.float64
    a, b = draw(2, 11, 3, dtype=dtype, seed=1), draw(2, 11, 3, dtype=dtype, seed=2).detach()
    b[0, 2, 1] = float("nan")
    b[1, 3, 0] = float("inf")
    reset = torch.zeros(2, 11, dtype=torch.bool, device=DEVICE)
    reset[0, 6] = True
    for factors in (a, a[:1, :1]):
        x = ops.linear_recurrence(factors, b.requires_grad_(), reset=reset)
        bad = torch.zeros(2, 11, 3, dtype=torch.bool, device=DEVICE)
        bad[0, 2:6, 1] = bad[1, 3:, 0] = True
        assert torch.equal(~torch.isfinite(x.detach()), bad)
    gx = torch.zeros_like(x)
    gx[0, 8, 2] = float("nan")
    (gb,) = torch.autograd.grad(x, [b], gx)
    bad = torch.zeros(2, 11, 3, dtype=torch.bool, device=DEVICE)
    bad[0, 6:9, 2] = True  # back to the reset, which nothing passes
    assert torch.equal(torch.isnan(gb), bad)


SYSTEMS = [(1, 1, 1, 1), (2, 11, 5, 3)] + [(1, 130, 3, 2), (1, 9, 130, 2)] * is_long()


@pytest.mark.parametrize(("batch", "length", "n", "m"), SYSTEMS)
def test_planar_recurrence_and_its_gradients_are_those_of_the_definition(batch, length, n, m):
    rates = torch.complex(-draw(n, seed=1).detach().abs(), draw(n, seed=2).detach()).requires_grad_()
    B, C = draw(n, m, dtype=torch.complex128, seed=3), draw(m, n, dtype=torch.complex128, seed=4)
    u, D = draw(batch, length, m, seed=5), draw(m, seed=6)

    def definition(rates, B, C, u, D):
        inputs = (u.to(B.dtype) @ B.mT).requires_grad_()
        rest = torch.zeros(batch, n, dtype=B.dtype, device=DEVICE)
        return (recurrence(rates.exp(), inputs, rest, None, False) @ C.mT).real + D * u

    assert_equal(lambda *x: ops.diagonal_ssm(*x, method="recurrence"), definition, [rates, B, C, u, D])


def mamba(batch: int, length: int, channels: int, n: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Return tensors as a trained layer has them."""
    delta = 10 ** (-1 + 0.5 * draw(batch, length, channels, seed=1).detach())
    A = -torch.arange(1, n + 1, device=DEVICE) * (1 + 0.1 * draw(channels, 1, seed=2).detach())
    u, B, C = draw(batch, length, channels, seed=3), draw(batch, length, n, seed=4), draw(batch, length, n, seed=5)
    tensors = (u, delta, A, B, C, draw(channels, seed=6), draw(batch, channels, n, seed=7))
    return [x.detach().to(dtype).requires_grad_() for x in tensors]


def selective(*x: Tensor, reset: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return ops.selective_scan(*x[:6], initial=x[6], reset=reset, return_state=True)


SCANS = [(1, 1, 1, 1), (2, 17, 5, 3), (1, 16, 4, 2), (1, 33, 3, 1)] + [(1, 700, 2, 2), (1, 40, 33, 130)] * is_long()


@pytest.mark.parametrize(("batch", "length", "channels", "n"), SCANS)
def test_selective_scan_and_its_gradients_are_those_of_the_loop(batch, length, channels, n):
    assert_equal(selective, selective_scan_loop, mamba(batch, length, channels, n))


@pytest.mark.parametrize("where", resets(1, 1, 16))
def test_selective_scan_of_documents_inside_a_sequence_is_that_of_the_loop(where):
    reset = resets(2, 33, 16)[where]
    assert_equal(
        lambda *x: selective(*x, reset=reset),
        lambda *x: selective_scan_loop(*x, reset=reset),
        mamba(2, 33, 5, 2),
    )


@pytest.mark.parametrize(("name", "last"), [("u", 5), ("delta", 5), ("B", 5), ("C", 5), ("initial", 0)])
def test_a_reset_of_the_selective_scan_forgets_what_is_not_finite(name, last):
    a, reset = mamba(1, 20, 2, 2), torch.zeros(1, 20, dtype=torch.bool, device=DEVICE)
    reset[0, [4, 18]] = True
    with torch.no_grad():
        a[NAMES.index(name)].view(-1)[last] = torch.nan
    found = gradients(lambda *x: selective(*x, reset=reset), a)
    expected = gradients(lambda *x: selective_scan_loop(*x, reset=reset), a)
    assert found[0][:, 4:].isfinite().all()
    places = [(f.isnan() != e.isnan()).sum().item() for f, e in zip(found, expected, strict=True)]
    assert not any(places), places


@pytest.mark.parametrize(("at", "bad"), [(5, 7), (5, 17), (16, 17)], ids=["in a piece", "before it", "at its start"])
def test_gradients_of_the_selective_scan_that_are_not_finite_do_not_pass_a_reset(at, bad):
    a, reset = mamba(1, 20, 2, 2), torch.zeros(1, 20, dtype=torch.bool, device=DEVICE)
    reset[0, at] = True
    gradient = torch.zeros_like(a[0])
    gradient[:, bad] = torch.nan
    y = ops.selective_scan(*a[:6], initial=a[6], reset=reset)
    *found, g_initial = torch.autograd.grad(y, [a[k] for k in (0, 1, 3, 4, 6)], gradient)
    assert torch.equal(g_initial, torch.zeros_like(g_initial))
    for f in found:
        assert torch.equal(f[:, :at], torch.zeros_like(f[:, :at]))
        assert f[:, bad].isnan().any()


def test_selective_scan_reads_arrays_in_any_strides():
    u, delta, *rest = mamba(2, 5, 3, 2)
    outer = [u.mT.contiguous(), delta.mT.contiguous(), *rest]
    with torch.no_grad():
        assert torch.equal(selective(u, delta, *rest)[0], selective(outer[0].mT, outer[1].mT, *rest)[0])


def test_selective_scan_spreads_not_a_number_where_it_must():
    tensors = mamba(2, 20, 5, 2)
    with torch.no_grad():
        tensors[0][0, 3, 1] = float("nan")
    y, state = selective(*tensors)
    bad = torch.zeros(2, 20, 5, dtype=torch.bool, device=DEVICE)
    bad[0, 3:, 1] = True
    assert torch.equal(torch.isnan(y), bad)
    assert torch.equal(torch.isnan(state).any(-1), bad[:, -1])
    gu, g_delta, gA, gB, gC, gD, g_initial = torch.autograd.grad(y, tensors, torch.ones_like(y))
    assert not gu.isnan().any()
    assert not g_initial.isnan().any()
    assert torch.equal(gA.isnan().any(1), torch.arange(5, device=DEVICE) == 1)
    assert torch.equal(gD.isnan(), torch.arange(5, device=DEVICE) == 1)
    assert torch.equal(gB.isnan().any(-1), (torch.arange(20, device=DEVICE) == 3) & (bad[:, :1, 1] | bad[:, 3:4, 1]))
    assert torch.equal(gC.isnan().any(-1), bad[..., 1])
    assert torch.equal(g_delta.isnan(), bad)


JOINS = ["follow", "ahead", "back", "follow_complex", "ahead_complex"]


@pytest.mark.parametrize("name", [*JOINS, "follow_reset", "ahead_reset", "back_reset", "ahead_complex_reset"])
def test_parts_of_a_scan_may_be_joined_in_any_order(name, monkeypatch):
    # as compilers choose to; a step by itself is a part with no product and nothing forgotten inside of it
    monkeypatch.setattr(PARTS.tl, "where", torch.where)
    for each in JOINS:
        monkeypatch.setattr(PARTS, each, getattr(PARTS, each).fn)
    join = getattr(PARTS, name) if name in JOINS else getattr(PARTS, name).fn
    flags = name.endswith("_reset") * (1 if name.startswith("follow") else 2)
    values = join.__code__.co_argcount // 2 - flags
    parts = [
        [*draw(values, 50, seed=k).detach(), *(draw(flags, 50, seed=9 + k).detach() > 0.5 if flags else ())]
        for k in range(3)
    ]
    first = join(*join(*parts[0], *parts[1]), *parts[2])
    last = join(*parts[0], *join(*parts[1], *parts[2]))
    products = range(flags > 0 and 1 + ("complex" in name))  # which nothing reads where a reset lies inside
    for k, (x, y) in enumerate(zip(first, last, strict=True)):
        assert k in products or largest(x.double(), y.double()) < 1e-13, k


@pytest.mark.parametrize(("channels", "n"), [(3, 3), (32, 3), (3, 2)])
@pytest.mark.parametrize("name", ["u", "delta", "B", "gradient"])
def test_what_is_infinite_stays_so_beside_states_and_channels_that_only_fill_up(name, channels, n):
    # zero times what is infinite is NaN, in a warp without a state or a lane without a channel as elsewhere
    u, delta, A, B, C, D, initial = (x.detach().abs() for x in mamba(1, 20, channels, n))
    tensors = [x.requires_grad_() for x in (u, delta, -A, B, C, D, initial)]
    gradient = torch.zeros_like(u)
    infinite = gradient if name == "gradient" else tensors[NAMES.index(name)]
    with torch.no_grad():
        infinite[0, 7, 1] = torch.inf
    gradient = gradient if name == "gradient" else torch.ones_like(gradient)
    found, expected = (
        [y, *torch.autograd.grad(y, [tensors[0], tensors[4]], gradient)]
        for y in (selective(*tensors)[0], selective_scan_loop(*tensors)[0])
    )
    assert any(x.isposinf().any() for x in expected)
    for f, e in zip(found, expected, strict=True):
        assert torch.equal(f.isposinf(), e.isposinf())
        assert torch.equal(f.isnan(), e.isnan())


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0)])
def test_triton_kernels_take_arrays_without_entries(shape):
    rows, steps, n = shape
    b = draw(*shape)
    x = ops.linear_recurrence(draw(n), b, initial=draw(rows, n))
    assert x.shape == b.shape
    assert torch.autograd.grad(x.sum(), [b])[0].shape == b.shape
    for tensors in (mamba(rows, steps, n, 2), mamba(rows, steps, 2, n)):
        found = gradients(selective, tensors)
        for f, e in zip(found[:2], selective_scan_loop(*tensors), strict=True):
            assert torch.equal(f, e)
        assert [f.shape for f in found[2:]] == [x.shape for x in tensors]
        assert all(f.isfinite().all() for f in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_triton_kernels_accumulate_narrow_numbers_in_float32(dtype):
    u, delta, A, B, C, D, initial = (x.detach().to(dtype) for x in mamba(1, 40, 3, 2))
    exact = [x.double() for x in (u, delta, A, B, C, D, initial)]
    starts = torch.empty(1, 4, 2, 3, device=DEVICE)
    y = SELECTIVE.outputs(u, delta, A, B, C, D, initial, None, starts)
    assert y.dtype == torch.float32
    assert largest(y.double(), selective_scan_loop(*exact)[0]) < 40 * 2**-24
    a, b, before = (0.9 * draw(1, 40, 3, seed=1).detach().tanh()).to(dtype), u, initial[..., 0]
    x = LINEAR.states(a, b, before, None, False)
    expected = recurrence(a.double(), b.double(), before.double(), None, False)
    assert x.dtype == dtype
    assert largest(x.double(), expected) < max(torch.finfo(dtype).eps, 40 * 2**-24)


def test_triton_kernels_give_the_same_bits_again():
    tensors = mamba(2, 17, 5, 2, torch.float32)
    a, b = draw(3, dtype=torch.float32), draw(2, 11, 3, dtype=torch.float32, seed=1)
    runs = [[*gradients(selective, tensors), *gradients(ops.linear_recurrence, [a, b])] for _ in range(2)]
    assert all(torch.equal(x, y) for x, y in zip(*runs, strict=True))


def test_backward_pass_may_run_under_another_backend():
    a = mamba(1, 17, 3, 2)
    y = ops.selective_scan(*a[:6])
    expected = torch.autograd.grad(y.sum(), a[:6], retain_graph=True)
    with ops.use_backend("auto"):
        for found, e in zip(torch.autograd.grad(y.sum(), a[:6]), expected, strict=True):
            assert largest(found, e) < 1e-12


def test_triton_kernels_run_in_a_compiled_function():
    a, b = (x.detach() for x in (draw(3, dtype=torch.float32), draw(2, 6, 3, dtype=torch.float32, seed=1)))
    compiled = torch.compile(ops.linear_recurrence, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(a, b), ops.linear_recurrence(a, b))


def test_triton_is_in_the_table_of_backends():
    table = {row.operation: row.backend for row in ops.backends()}
    assert {name for name, backend in table.items() if backend != "triton"} == {"solve_lyapunov", "short_convolution"}
    with ops.use_backend("auto"):
        assert "on CUDA Triton kernels" in ops.backends()[0].why


def test_triton_refuses_tensors_on_the_cpu_without_its_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(InputError, match='must be on CUDA for the backend "triton"; got one on cpu'):
        ops.linear_recurrence(torch.ones(2), torch.ones(1, 3, 2))


def test_a_scan_of_mamba_ssm_is_used_where_it_fits(monkeypatch):
    calls = []

    def selective_scan_fn(u, delta, A, B, C, D):
        """As in mamba_ssm: u and delta (batch, channels, length), B and C (batch, n, length)."""
        calls.append(u.shape)
        h, outputs = torch.zeros(len(u), *A.shape, dtype=u.dtype, device=u.device), []
        for t in range(u.shape[-1]):
            h = torch.exp(delta[..., t, None] * A) * h + (delta * u)[..., t, None] * B[:, None, :, t]
            outputs.append(torch.einsum("bdn,bn->bd", h, C[..., t]) + D * u[..., t])
        return torch.stack(outputs, -1)

    stand_in(monkeypatch, "mamba_ssm.ops.selective_scan_interface", selective_scan_fn)
    tensors = mamba(2, 9, 3, 2, torch.float32)
    expected = gradients(ops.selective_scan, tensors[:6])
    with ops.use_backend("mamba_ssm"):
        found = gradients(ops.selective_scan, tensors[:6])
        assert len(calls) == 1
        assert {row.operation for row in ops.backends() if row.backend == "mamba_ssm"} == {
            "selective_scan",
            "selective_heads",
        }
        ops.selective_scan(*(x.double() for x in tensors[:6]))  # none of these fits
        ops.selective_scan(*tensors[:6], initial=tensors[6])
        ops.selective_scan(*tensors[:6], return_state=True)
        ops.selective_scan(*tensors[:6], reset=torch.zeros(2, 9, dtype=torch.bool, device=DEVICE))
        assert len(calls) == 1
    for f, e in zip(found, expected, strict=True):
        assert largest(f, e) < 1e-5


interpreted = pytest.mark.skipif(DEVICE != "cpu", reason="counts what Triton's interpreter loads and stores")


@interpreted
@pytest.mark.parametrize("varies", [False, True])
@pytest.mark.parametrize("parts", [1, 2])
def test_linear_kernels_move_the_bytes_of_the_model(varies, parts):
    size = {"rows": 2, "steps": 11, "n": 3, "varies": varies, "width": 8 * parts, "chunks": LINEAR._shape(8 * parts)[1]}
    dtype = torch.float64 if parts == 1 else torch.complex128
    a = draw(2, 11, 3, dtype=dtype) if varies else draw(3, dtype=dtype)[None, None]
    b, before = draw(2, 11, 3, dtype=dtype, seed=1), draw(2, 3, dtype=dtype, seed=2)
    a, b, before = (x.detach() for x in (a, b, before))
    with interpreter.traffic() as count:
        x = LINEAR.states(a, b, before, None, False)
    assert (count["distinct loaded"], count["distinct stored"]) == traffic.linear(**size)
    with interpreter.traffic() as count:
        LINEAR.states_adjoint(a, x, before, b, None, False)
    assert (count["distinct loaded"], count["distinct stored"]) == traffic.linear_adjoint(**size, parts=parts)
    assert count["stored"] == count["distinct stored"]


@interpreted
@pytest.mark.parametrize("has_resets", [False, True])
def test_selective_kernels_move_the_bytes_of_the_model(has_resets):
    reset, flags = (resets(2, 17, 16)["at random"], 2 * 17) if has_resets else (None, 0)
    size = {"batch": 2, "length": 17, "channels": 5, "n": 3, "width": 8, "segment": 16}
    u, delta, A, B, C, D, initial = (x.detach() for x in mamba(2, 17, 5, 3))
    starts = torch.empty(2, 3, 3, 5, dtype=u.dtype)
    with interpreter.traffic() as count:
        SELECTIVE.outputs(u, delta, A, B, C, D, initial, reset, starts)
    assert (count["distinct loaded"] - flags, count["distinct stored"]) == traffic.selective(**size)
    with interpreter.traffic() as count:
        SELECTIVE.gradients(u.clone(), initial.mT.contiguous(), u, delta, A, B, C, D, reset, starts)
    assert (count["distinct loaded"] - flags, count["distinct stored"]) == traffic.selective_adjoint(**size, block=32)


@pytest.mark.skipif(not is_long(), reason="compiles for a minute: HANKELRED_LONG=1")
def test_triton_kernels_compile_to_machine_code_without_a_gpu():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.speed.compiled"]
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.count("registers") == 16


@pytest.fixture
def proof(monkeypatch):
    from hankelred_torch.ops import _triton_proof

    monkeypatch.undo()  # tiles as they are
    _triton_proof.kernels_agree.cache_clear()
    yield _triton_proof.kernels_agree
    _triton_proof.kernels_agree.cache_clear()


def test_kernels_are_compared_with_torch_once_on_each_device(proof, monkeypatch):
    assert proof(torch.device(DEVICE))
    monkeypatch.setattr(LINEAR, "states", None)  # would fail, and is not called again
    assert proof(torch.device(DEVICE))


@pytest.mark.parametrize("wrong", ["conjugate", "carry", "gradient", "not a number", "raises"])
def test_kernels_that_are_wrong_on_a_device_do_not_run_there(wrong, proof, monkeypatch):
    if wrong in ("conjugate", "carry"):
        right = LINEAR.states

        def states(a, b, initial, reset, reverse):
            return right(a.conj() if wrong == "conjugate" else a, b, initial, reset, False)

        monkeypatch.setattr(LINEAR, "states", states)
    elif wrong == "gradient":
        adjoint = SELECTIVE.gradients
        monkeypatch.setattr(SELECTIVE, "gradients", lambda *x: tuple(1.001 * y for y in adjoint(*x)))
    elif wrong == "not a number":
        after = HEADS.gradients
        monkeypatch.setattr(HEADS, "gradients", lambda *x: (torch.nan * (found := after(*x))[0], *found[1:]))
    else:
        monkeypatch.setattr(SELECTIVE, "outputs", lambda *x: 1 / 0)
    with pytest.warns(AccuracyWarning, match="Triton kernels on .* (differ|fail).* in their place"):
        assert not proof(torch.device(DEVICE))
