"""Triton kernels of heads with scalar decay against the definition: on a GPU as compiled, elsewhere interpreted."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from sizes import is_long

from hankelred_torch import ops
from hankelred_torch.ops import _heads_torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs triton: pip install triton", allow_module_level=True)

from benchmarks.speed import interpreter, traffic

from .kernel_cases import (
    DEVICE,
    NAMES,
    assert_equal,
    gradients,
    head_steps,
    heads,
    heads_and_state,
    largest,
    resets,
    stand_in,
)

HEADS = interpreter.kernels().heads


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Small tiles, where they are interpreted: short sequences of few states then meet all edges."""
    if DEVICE == "cpu":
        monkeypatch.setattr(_heads_torch, "PIECE", 4)
        monkeypatch.setitem(HEADS.LAUNCH, "STATES", 2)
        monkeypatch.setattr(HEADS, "WIDEST", 2)
    with interpreter.by_rows(), ops.use_backend("triton"):
        yield


# batch, length, heads, size, groups, n: more than a piece, a block of channels and one of states, and heads that share
SIZES = [(1, 1, 1, 1, 1, 1), (2, 5, 1, 1, 1, 1), (1, 4, 1, 3, 1, 2), (1, 6, 4, 2, 2, 3), (1, 9, 2, 1, 2, 1)]
SIZES += [(1, 700, 1, 2, 1, 2), (1, 40, 1, 3, 1, 130), (3, 33, 6, 5, 2, 7)] * is_long()


@pytest.mark.parametrize("size", SIZES)
def test_triton_heads_and_their_gradients_are_those_of_the_definition(size):
    assert_equal(heads_and_state, head_steps, heads(*size))


@pytest.mark.parametrize("where", resets(1, 1, 4))
def test_triton_heads_of_documents_inside_a_sequence_are_those_of_the_definition(where):
    reset = resets(2, 9, _heads_torch.PIECE)[where]
    assert_equal(
        lambda *x: heads_and_state(*x, reset=reset),
        lambda *x: head_steps(*x, reset),
        heads(2, 9, 2, 3, 1, 3),
    )


@pytest.mark.parametrize(("name", "last"), [("u", 5), ("delta", 2), ("B", 7), ("C", 7), ("initial", 0)])
def test_a_reset_of_triton_heads_forgets_what_is_not_finite(name, last):
    a, reset = heads(1, 9, 1, 2, 1, 3), torch.zeros(1, 9, dtype=torch.bool, device=DEVICE)
    reset[0, [3, 6]] = True
    with torch.no_grad():
        a[NAMES.index(name)].view(-1)[last] = torch.nan
    found = gradients(lambda *x: heads_and_state(*x, reset=reset), a)
    expected = gradients(lambda *x: head_steps(*x, reset), a)
    assert found[0][:, 3:].isfinite().all()
    places = [(f.isnan() != e.isnan()).sum().item() for f, e in zip(found, expected, strict=True)]
    assert not any(places), places


@pytest.mark.parametrize(("at", "bad"), [(5, 7), (2, 5)], ids=["in a piece", "in the piece before"])
def test_gradients_of_triton_heads_that_are_not_finite_do_not_pass_a_reset(at, bad):
    a, reset = heads(1, 9, 1, 2, 1, 3), torch.zeros(1, 9, dtype=torch.bool, device=DEVICE)
    reset[0, at] = True
    gradient = torch.zeros_like(a[0])
    gradient[:, bad] = torch.nan
    y = ops.selective_heads(*a[:6], initial=a[6], reset=reset)
    *found, g_initial = torch.autograd.grad(y, [a[k] for k in (0, 1, 3, 4, 6)], gradient)
    assert torch.equal(g_initial, torch.zeros_like(g_initial))
    for f in found:
        assert torch.equal(f[:, :at], torch.zeros_like(f[:, :at]))
        assert f[:, bad].isnan().any()


@pytest.mark.parametrize(("share", "size", "n", "together"), [(1, 4, 9, 1), (6, 8, 4, 1), (6, 8, 8, 2), (6, 8, 99, 6)])
def test_a_triton_program_takes_so_many_heads_that_gradients_of_B_and_C_are_no_more_than_inputs(
    share, size, n, together
):
    assert HEADS.heads_at_once(share, size, n) == together
    assert 2 * n * share // together <= share * size or together == share


@pytest.mark.parametrize(("name", "last"), [("u", 3), ("delta", 1), ("B", 5)])
def test_triton_heads_spread_not_a_number_where_they_must(name, last):
    a = heads(1, 6, 1, 2, 1, 2)
    with torch.no_grad():
        a[NAMES.index(name)].view(-1)[last] = torch.nan
    found, expected = gradients(heads_and_state, a), gradients(head_steps, a)
    places = [(f.isnan() != e.isnan()).sum().item() for f, e in zip(found, expected, strict=True)]
    assert not any(places), places


@pytest.mark.parametrize("shape", [(0, 5, 2, 3, 1, 2), (2, 0, 2, 3, 1, 2), (2, 5, 2, 0, 1, 2), (1, 5, 1, 1, 1, 0)])
def test_triton_heads_take_arrays_without_entries(shape):
    a = heads(*shape)
    found = gradients(heads_and_state, a)
    for f, e in zip(found[:2], head_steps(*a), strict=True):
        assert torch.equal(f, e)
    assert [f.shape for f in found[2:]] == [x.shape for x in a]
    assert all(f.isfinite().all() for f in found)


def test_triton_heads_read_arrays_in_any_strides():
    a = [x.detach() for x in heads(1, 5, 2, 2, 1, 2)]
    strided = [x.mT.contiguous().mT if x.ndim > 1 else x for x in a]
    for found, expected in zip(heads_and_state(*strided), heads_and_state(*a), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_triton_heads_accumulate_narrow_numbers_in_float32(dtype):
    a = [x.detach().to(dtype) for x in heads(1, 17, 1, 2, 1, 3)]
    starts = torch.empty(1, -(-17 // _heads_torch.PIECE) + 1, 1, 2, 3, device=DEVICE)
    y = HEADS.outputs(*a, None, starts)
    assert y.dtype == torch.float32
    assert largest(y.double(), head_steps(*(x.double() for x in a))[0]) < 17 * 3 * 2**-24


def test_triton_heads_give_the_same_bits_again_and_leave_arguments_alone():
    a = heads(1, 6, 2, 2, 1, 2, torch.float32)
    before = [x.detach().clone() for x in a]
    first, second = gradients(heads_and_state, a), gradients(heads_and_state, a)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(a, before, strict=True))


def test_backward_pass_of_triton_heads_may_run_under_another_backend():
    a = heads(1, 6, 2, 2, 1, 2)
    y = ops.selective_heads(*a[:6])
    expected = torch.autograd.grad(y.sum(), a[:6], retain_graph=True)
    with ops.use_backend("auto"):
        for found, e in zip(torch.autograd.grad(y.sum(), a[:6]), expected, strict=True):
            assert largest(found, e) < 1e-12


@pytest.mark.skipif(DEVICE != "cpu", reason="counts what Triton's interpreter loads and stores")
@pytest.mark.parametrize("has_resets", [False, True])
@pytest.mark.parametrize("size", [(1, 5, 4, 3, 2, 3), (1, 8, 2, 2, 1, 2)])
def test_triton_heads_move_the_bytes_of_the_model(size, has_resets):
    names = ("batch", "length", "heads", "size", "groups", "n")
    model = dict(zip(names, size, strict=True)) | {"width": 8, "piece": 4}
    a = [x.detach() for x in heads(*size)]
    batch, length, count, width, groups, n = size
    reset = resets(batch, length, 4)["at random"] if has_resets else None
    flags = batch * length * has_resets
    starts = torch.empty(batch, -(-length // 4) + 1, count, width, n, dtype=torch.float64)
    with interpreter.traffic() as count_of:
        HEADS.outputs(*a, reset, starts)
    assert (count_of["distinct loaded"] - flags, count_of["distinct stored"]) == traffic.heads(**model)
    together = HEADS.heads_at_once(count // groups, width, n)
    with interpreter.traffic() as count_of:
        HEADS.gradients(a[0].clone(), a[6].clone(), *a[:6], reset, starts)
    expected = traffic.heads_adjoint(**model, block=2, together=together)
    assert (count_of["distinct loaded"] - flags, count_of["distinct stored"]) == expected


def test_heads_of_mamba_ssm_are_used_where_they_fit(monkeypatch):
    calls = []

    def mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size, D=None):
        """As in mamba_ssm: x (batch, length, heads, size), dt (batch, length, heads), B and C by groups."""
        calls.append((x.dtype, dt.dtype, A.dtype, D.dtype))
        rest = torch.zeros(len(x), *x.shape[2:], B.shape[3], device=x.device)
        return head_steps(x.float(), dt, A, B.float(), C.float(), D, rest)[0].to(x.dtype)

    stand_in(monkeypatch, "mamba_ssm.ops.triton.ssd_combined", mamba_chunk_scan_combined)
    u, delta, A, B, C, D, initial = (x.detach() for x in heads(1, 9, 2, 2, 1, 2, torch.bfloat16))
    expected = head_steps(*(x.double() for x in (u, delta, A, B, C, D)), torch.zeros_like(initial).double())[0]
    with ops.use_backend("mamba_ssm"):
        y = ops.selective_heads(u, delta, A, B, C, D)
        assert calls == [(torch.bfloat16, *(torch.float32,) * 3)]
        assert y.dtype == torch.float32
        assert largest(y.double(), expected) < 2**-7
        ops.selective_heads(*(x.float() for x in (u, delta, A, B, C, D)))  # none of these fits
        ops.selective_heads(u, delta, A, B, C, D, initial=initial)
        ops.selective_heads(u, delta, A, B, C, D, return_state=True)
        ops.selective_heads(u, delta, A, B, C, D, reset=torch.zeros(1, 9, dtype=torch.bool, device=DEVICE))
        assert len(calls) == 1
