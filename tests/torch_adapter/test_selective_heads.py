"""Heads with scalar decay: pieces in matrix products against the definition, one step after the other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hankelred.errors import InputError
from hankelred_torch.ops import selective_heads
from hankelred_torch.ops._heads_torch import PIECE
from hankelred_torch.ops.heads import _outputs

from .kernel_cases import NAMES, assert_equal, gradients, head_steps, heads, heads_and_state, largest, resets


def with_resets(reset: Tensor):
    return lambda *x: heads_and_state(*x, reset=reset)


@settings(max_examples=30)
@given(
    batch=st.integers(1, 2),
    length=st.sampled_from([1, 2, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 5]),
    groups=st.integers(1, 2),
    share=st.integers(1, 3),
    size=st.integers(1, 4),
    n=st.integers(1, 9),
)
def test_outputs_state_and_gradients_are_those_of_the_definition(batch, length, groups, share, size, n):
    a = heads(batch, length, groups * share, size, groups, n)
    for found, expected in zip(gradients(heads_and_state, a), gradients(head_steps, a), strict=True):
        assert largest(found, expected) < 1e-12


@pytest.mark.parametrize("where", resets(1, 1, PIECE))
@pytest.mark.parametrize("length", [1, PIECE, PIECE + 1, 2 * PIECE + 5])
def test_documents_inside_a_sequence_do_not_know_of_each_other(where, length):
    reset = resets(2, length, PIECE)[where]
    assert_equal(with_resets(reset), lambda *x: head_steps(*x, reset), heads(2, length, 4, 3, 2, 5))


def test_a_sequence_of_documents_is_each_of_them_from_rest():
    a = [x.detach() for x in heads(1, 80, 4, 3, 2, 2)]
    reset = torch.zeros(1, 80, dtype=torch.bool)
    reset[0, [0, 17, 50]] = True
    found = selective_heads(*a[:6], initial=a[6], reset=reset)
    documents = [[x[:, s] if x.ndim > 1 else x for x in a[:6]] for s in (slice(17), slice(17, 50), slice(50, None))]
    assert largest(found, torch.cat([selective_heads(*x) for x in documents], 1)) < 1e-14


def test_gradients_agree_with_differences():
    reset = torch.tensor([[False, False, True, False, False]])
    for run in (heads_and_state, with_resets(reset)):
        assert torch.autograd.gradcheck(run, heads(1, 5, 2, 2, 1, 3))


def test_without_feedthrough_and_initial_state_both_are_zero():
    a = heads(2, 5, 4, 3, 2, 2)
    expected = selective_heads(*a[:5], torch.zeros(4), initial=torch.zeros(2, 4, 3, 2))
    assert torch.equal(selective_heads(*a[:5]), expected)


def test_float32_is_as_accurate_as_float32_is():
    single = [x.detach().float().requires_grad_() for x in heads(2, 300, 4, 8, 1, 16)]
    exact = [x.detach().double().requires_grad_() for x in single]  # of the same rounded numbers
    pairs = zip(gradients(heads_and_state, single), gradients(heads_and_state, exact), strict=True)
    errors = [largest(f.double(), e) for f, e in pairs]
    assert all(x < 1e-5 for x in errors), errors  # sums of up to 300 x 16 terms, each rounded to 6e-8


@pytest.mark.parametrize("exponent", [-1e-7, -3.0, -80.0, -1e4, -1e30])
def test_a_step_of_any_size_leaves_those_after_it_their_decay(exponent):
    # history: a difference of sums loses what is small beside them
    u, delta = torch.zeros(1, 6, 1, 1, dtype=torch.float64), torch.full((1, 6, 1), 0.1, dtype=torch.float64)
    one = torch.ones(1, 6, 1, 1, dtype=torch.float64)
    u[0, 3], delta[0, 2] = 1, -exponent
    y = selective_heads(u, delta, -torch.ones(1, dtype=torch.float64), one, one).flatten()
    torch.testing.assert_close(y[4:], y[3] * torch.exp(torch.tensor([-0.1, -0.2], dtype=torch.float64)))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_finite_shows_where_the_definition_says(name):
    for bad in (torch.nan, torch.inf):
        a = heads(2, 9, 4, 3, 2, 2)
        with torch.no_grad():
            a[NAMES.index(name)].view(-1)[-1 if name in ("A", "D") else a[NAMES.index(name)].numel() // 3] = bad
        found, expected = heads_and_state(*a), head_steps(*a)
        places = [(f.isfinite() != e.isfinite()).sum().item() for f, e in zip(found, expected, strict=True)]
        assert not any(places), places
        if bad != bad:
            found, expected = gradients(heads_and_state, a)[2:], gradients(head_steps, a)[2:]
            places = [(f.isnan() != e.isnan()).sum().item() for f, e in zip(found, expected, strict=True)]
            assert not any(places), places


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("A", "D")])
def test_a_reset_forgets_what_is_not_finite(name):
    length, at = PIECE + 8, 11
    reset = torch.zeros(1, length, dtype=torch.bool)
    reset[0, [at, PIECE + 3]] = True
    for bad in (torch.nan, torch.inf, 1e30):  # the last overflows as an exponent
        a = heads(1, length, 2, 2, 1, 3)
        with torch.no_grad():
            a[NAMES.index(name)].view(-1)[0 if name == "initial" else a[NAMES.index(name)].numel() // length * 4] = bad
            if bad == 1e30:
                a[2].neg_()
        found, expected = (gradients(run, a) for run in (with_resets(reset), lambda *x: head_steps(*x, reset)))
        assert found[0][:, at:].isfinite().all()
        assert found[1].isfinite().all()
        later = [f[:, at:] for f in found[2:] if f.ndim > 2 and f.shape[1] == length]  # of u, delta, B and C
        assert len(later) == 4
        for f, e in zip([found[0][:, at:], found[1], *later], [expected[0][:, at:], expected[1]], strict=False):
            assert largest(f, e) < 1e-12
        assert all(f.isfinite().all() for f in later)
        if bad != bad:
            places = [(f.isnan() != e.isnan()).sum().item() for f, e in zip(found, expected, strict=True)]
            assert not any(places), places


@pytest.mark.parametrize(
    ("at", "bad"), [(PIECE + 3, PIECE + 5), (PIECE - 2, PIECE + 5)], ids=["in a piece", "in the piece before"]
)
def test_gradients_that_are_not_finite_do_not_pass_a_reset(at, bad):
    reset = torch.zeros(1, 2 * PIECE, dtype=torch.bool)
    reset[0, at] = True
    a = heads(1, 2 * PIECE, 2, 2, 1, 3)
    gradient = torch.zeros_like(a[0])
    gradient[:, bad] = torch.nan
    y = selective_heads(*a[:6], initial=a[6], reset=reset)
    *found, g_initial = torch.autograd.grad(y, [a[k] for k in (0, 1, 3, 4, 6)], gradient)
    assert torch.equal(g_initial, torch.zeros_like(g_initial))
    for f in found:
        assert torch.equal(f[:, :at], torch.zeros_like(f[:, :at]))
        assert f[:, bad].isnan().any()


def test_continuing_from_the_last_state_is_as_if_uninterrupted():
    a = [x.detach() for x in heads(2, 80, 4, 3, 2, 2)]
    whole, last = heads_and_state(*a)
    y, state = heads_and_state(*(x[:, :37] if x.ndim > 1 else x for x in a[:6]), a[6])
    z, state = heads_and_state(*(x[:, 37:] if x.ndim > 1 else x for x in a[:6]), state)
    assert largest(torch.cat([y, z], 1), whole) < 1e-14
    assert largest(state, last) < 1e-14


@pytest.mark.parametrize("shape", [(0, 5, 2, 3, 1, 2), (2, 0, 2, 3, 1, 2), (2, 5, 2, 0, 1, 2), (2, 5, 2, 3, 1, 0)])
def test_arrays_without_entries_have_outputs_and_gradients(shape):
    a = heads(*shape)
    found = gradients(heads_and_state, a)
    for f, e in zip(found[:2], head_steps(*a), strict=True):
        assert torch.equal(f, e)
    assert [f.shape for f in found[2:]] == [x.shape for x in a]


def test_compiled_without_breaks_it_gives_the_same():
    torch._dynamo.reset()
    a, reset = heads(2, 40, 4, 3, 2, 2), resets(2, 40, PIECE)["at random"]
    for run in (heads_and_state, with_resets(reset)):
        compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
        for g, e in zip(gradients(compiled, a), gradients(run, a), strict=True):
            assert largest(g, e) < 1e-14


def test_operator_is_declared_as_it_is():
    for reset in (None, resets(2, 40, PIECE)["at random"]):
        torch.library.opcheck(_outputs, (*heads(2, 40, 4, 3, 2, 2), reset))


def test_strided_tensors_give_the_same():
    a = [x.detach() for x in heads(2, 40, 4, 3, 2, 2)]
    strided = [x.mT.contiguous().mT if x.ndim > 1 else x for x in a]
    for found, expected in zip(heads_and_state(*strided), heads_and_state(*a), strict=True):
        assert largest(found, expected) < 1e-14


def change(name: str, change_) -> list[Tensor]:
    a = [x.detach() for x in heads(2, 5, 4, 3, 2, 2)]
    a[NAMES.index(name)] = change_(a[NAMES.index(name)])
    return a


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (change("u", lambda x: x[0]), r"u must be \(batch, length, heads, size\)"),
        (change("B", lambda x: x[:, :, 0]), r"and B \(batch, length, groups, n\); got .* B \(2, 5, 2\)"),
        (change("B", lambda x: x[:, :, [0, 0, 0]]), r"split evenly among the groups of B; got 4 heads, .* 3 groups"),
        (
            change("C", lambda x: x.mT),
            r"C must be real with shape \(batch, length, groups, n\), here \(2, 5, 2, 2\)|C must",
        ),
        (change("delta", lambda x: x.mT), r"delta must be real with shape .* got torch.float64 of shape \(2, 4, 5\)"),
        (change("A", lambda x: x + 0j), "A must be real"),
        (change("initial", lambda x: x.mT), r"initial must be real with shape \(batch, heads, size, n\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(arguments, message):
    if arguments[4].shape != (2, 5, 2, 2) or message.startswith("C must"):
        arguments[4] = arguments[4][:, :4]
    with pytest.raises(InputError, match=message):
        heads_and_state(*arguments)


@pytest.mark.parametrize(
    "reset",
    [torch.zeros(2, 4, dtype=torch.bool), torch.zeros(2, 5), torch.zeros(5, dtype=torch.bool), [False] * 5],
    ids=["length", "dtype", "axes", "list"],
)
def test_resets_that_do_not_fit_are_refused(reset):
    with pytest.raises(InputError, match=r"reset must be a boolean tensor of shape \(2, 5\), \(batch, length\) of u"):
        heads_and_state(*heads(2, 5, 4, 3, 2, 2), reset=reset)
