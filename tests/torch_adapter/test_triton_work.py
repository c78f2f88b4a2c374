"""What Triton kernels calculate, counted in the interpreter, against formulas, and shares of bandwidth from both."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import pytest
import torch

from hankelred_torch.ops import _factors_torch, _heads_torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs triton: pip install triton", allow_module_level=True)

from benchmarks.speed import interpreter, traffic, work

from .kernel_cases import DEVICE, draw, heads

if DEVICE != "cpu":
    pytest.skip("counts what Triton's interpreter calculates", allow_module_level=True)
if not hasattr(importlib.import_module("triton.runtime.interpreter").InterpreterBuilder, "create_fneg"):
    pytest.skip("in the interpreter of this Triton a sign is a subtraction from zero", allow_module_level=True)

LINEAR, SELECTIVE, HEADS, FACTORS, VALUES = interpreter.kernels()
WARPS = SELECTIVE.LAUNCH["STATES"]  # before tests make them fewer
PAGE = Path(__file__).parents[2] / "docs" / "theory" / "recurrences.md"


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(LINEAR, "STEPS", 2)
    monkeypatch.setattr(LINEAR, "WIDTH", 32)
    monkeypatch.setattr(LINEAR, "LANES", 8)
    monkeypatch.setitem(LINEAR.LAUNCH, "num_warps", 1)
    monkeypatch.setitem(SELECTIVE.LAUNCH, "STATES", 2)
    monkeypatch.setattr(_heads_torch, "PIECE", 4)
    monkeypatch.setitem(HEADS.LAUNCH, "STATES", 2)
    monkeypatch.setattr(HEADS, "WIDEST", 2)
    with interpreter.by_rows():
        yield


def counted(run, *arguments) -> tuple[int, ...]:
    with interpreter.arithmetic() as count:
        run(*arguments)
    return tuple(count.values())


@pytest.mark.parametrize(("rows", "steps", "n"), [(2, 11, 3), (1, 4, 9)])
@pytest.mark.parametrize("varies", [False, True])
@pytest.mark.parametrize("parts", [1, 2])
def test_linear_triton_kernels_calculate_what_the_model_says(rows, steps, n, varies, parts):
    dtype = torch.float64 if parts == 1 else torch.complex128
    shape = (rows, steps, n) if varies else (1, 1, n)
    a, b, before = (draw(*s, dtype=dtype).detach() for s in (shape, (rows, steps, n), (rows, n)))
    states, chunks = LINEAR._shape(8 * parts)
    size = {"rows": rows, "length": steps, "n": n, "varies": varies, "parts": parts, "steps": 2}
    size |= {"chunks": chunks, "states": states}
    assert counted(LINEAR.states, a, b, before, None, False) == work.linear(**size)
    found = counted(LINEAR.states_adjoint, a, b, before, b, None, False)
    assert found == work.linear(**size, adjoint=True)


@pytest.mark.parametrize(("batch", "length", "channels", "n"), [(2, 17, 5, 3), (1, 16, 4, 1)])
def test_selective_triton_kernels_calculate_what_the_model_says(batch, length, channels, n):
    shapes = [(batch, length, channels)] * 2 + [(channels, n)] + [(batch, length, n)] * 2 + [(channels,)]
    tensors, initial = [draw(*s).detach() for s in shapes], draw(batch, channels, n).detach()
    starts = torch.zeros(batch, -(-length // 16) + 1, n, channels, dtype=torch.float64)
    size = {"batch": batch, "length": length, "channels": channels, "n": n, "segment": 16, "block": 32}
    size["states"] = min(2, n)
    assert counted(SELECTIVE.outputs, *tensors, initial, None, starts) == work.selective(**size)
    carry = initial.mT.contiguous()
    found = counted(SELECTIVE.gradients, tensors[0].clone(), carry, *tensors, None, starts)
    assert found == work.selective(**size, adjoint=True)


@pytest.mark.parametrize("size", [(1, 5, 4, 3, 2, 3), (1, 8, 2, 2, 1, 2), (2, 4, 1, 1, 1, 1)])
def test_triton_heads_calculate_what_the_model_says(size):
    a = [x.detach() for x in heads(*size)]
    batch, length, count, width, groups, n = size
    starts = torch.zeros(batch, -(-length // 4) + 1, count, width, n, dtype=torch.float64)
    tiles = {"piece": 4, "block": HEADS._width(width), "states": 2}
    assert counted(HEADS.outputs, *a, None, starts) == work.heads(*size[:4], n, **tiles)
    together = HEADS.heads_at_once(count // groups, width, n)
    found = counted(HEADS.gradients, a[0].clone(), a[6].clone(), *a[:6], None, starts)
    assert found == work.heads(*size[:4], n, **tiles, together=together)


@pytest.mark.parametrize(("batch", "n", "m"), [(2, 3, 2), (1, 5, 1)])
@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["real", "complex"])
def test_triton_factors_calculate_what_the_model_says(batch, n, m, discrete, dtype):
    rates = -draw(batch, n, seed=1).detach().exp() + (1j if dtype.is_complex else 0)
    B, F = (draw(batch, n, k, dtype=dtype).detach() for k in (m, n))
    poles = _factors_torch.pole_tensors(rates.exp() if discrete else rates, discrete, False)
    steps = FACTORS.factor_triton(poles, B, torch.ones(batch, n, dtype=torch.bool))
    tiles = {"states": 16, "inputs": FACTORS.filled(m, 1)}
    linked = torch.ones(batch, n, dtype=torch.bool)
    assert counted(FACTORS.factor_triton, poles, B, linked) == work.factor(batch, n, **tiles)
    found = counted(FACTORS.factor_adjoint_triton, poles, *steps, F, discrete)
    assert found == work.factor_adjoint(batch, n, m, **tiles, discrete=discrete)


@pytest.mark.parametrize(("batch", "n"), [(2, 3), (1, 6)])
@pytest.mark.parametrize("vectors", [False, True])
def test_triton_rotations_calculate_what_the_model_says_in_whole_sweeps(batch, n, vectors):
    M = draw(batch, n, n, dtype=torch.complex128).detach()
    before, after = (work.rotations(batch, n, k, states=16, vectors=vectors).arithmetic for k in (0, n - 1 + n % 2))
    sweeps, rest = divmod(counted(VALUES._rotated, M, vectors)[0] - before, after - before)
    assert rest == 0
    assert batch < sweeps <= 8 * batch


def test_the_model_of_compiled_code_has_the_exponentials_of_the_kernels():
    for name, adjoint in (("selective scan", False), ("selective scan, adjoint", True)):
        found = work.selective(1, 16, 32, 4, segment=16, block=32, states=4, adjoint=adjoint)
        assert traffic.INSTRUCTIONS[name][1] == found.exponentials / (16 * 32 * 4)


def test_scans_over_lanes_take_no_fewer_instructions_than_half_the_operations_step_by_step():
    # a product and a sum are at best one instruction
    size = {"rows": 1, "length": 128, "n": 256, "steps": 16, "chunks": 8, "states": 16}
    for name, found, states in (
        ("planar recurrence", work.linear(**size, varies=False, parts=2), 128 * 256),
        ("its adjoint", work.linear(**size, varies=False, parts=2, adjoint=True), 128 * 256),
        ("varying, real", work.linear(**size, varies=True, parts=1), 128 * 256),
        ("varying, real, adjoint", work.linear(**size, varies=True, parts=1, adjoint=True), 128 * 256),
    ):
        assert found.arithmetic / states / 2 <= traffic.INSTRUCTIONS[name][0], name


def test_scans_within_a_lane_form_no_products_of_factors():
    # which nothing reads: the interpreter forms them, and multiplies by the one of a single step
    scan = {"batch": 1, "length": 16, "channels": 32, "n": 16, "segment": 16, "block": 32, "states": 4}
    assert traffic.WARPS == WARPS
    for name, adjoint, idle in (("selective scan", False, 1), ("selective scan, adjoint", True, 3 + 3)):
        found = work.selective(**scan, adjoint=adjoint).arithmetic / (16 * 32 * 16) - idle * 15 / 16
        made = traffic.INSTRUCTIONS[name][0] + traffic.AROUND[name][0] * traffic.WARPS / 16
        assert found / 2 <= made <= found, name


def test_shares_of_bandwidth_on_the_page_are_those_of_the_model():
    lines = PAGE.read_text().splitlines()
    for table in traffic.tables():
        first = lines.index(table[0])
        assert lines[first + 2 : first + 1 + len(table)] == table[1:]


def test_share_is_one_where_memory_takes_longest_and_falls_with_what_takes_longer():
    card, moved = traffic.CARDS[1], traffic.Traffic(10**9, 10**9)
    memory = 2e9 / card.bandwidth
    assert traffic.share(card, moved, 0.5 * memory) == 1
    assert traffic.share(card, moved, 4 * memory) == 0.25
