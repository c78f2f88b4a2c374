"""Batched, differentiable Gramian operations: the numbers of the core, gradients as theorems and differences say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import hankelred as hr
from hankelred.errors import InputError, OrderError, StabilityError
from hankelred_torch import ops
from hankelred_torch.ops import _factors, _factors_torch
from tests.strategies import diagonal_systems

EVERY_HSV = 1e-12  # what the core promises of its own, relative, for every value

DOMAINS = [0, True]
KINDS = [(False, "complex"), (False, "real"), (True, "complex"), (True, "real")]


def batch(shape=(), n=5, m=2, p=3, *, dt=0, complex_data=True, seed=0, slowest=1e-2):
    """Return lam, B, C of random stable systems, and the rates of the poles."""
    rng = np.random.default_rng(seed)

    def normal(*size):
        x = rng.standard_normal(size)
        return torch.from_numpy(np.asarray(x + 1j * rng.standard_normal(size) if complex_data else x))

    rates = -(slowest * 100 ** rng.uniform(0, 1, (*shape, n)))
    if complex_data:
        rates = rates + 1j * rng.uniform(0.3, 2.8, (*shape, n))
    rates = torch.from_numpy(np.asarray(rates))
    return rates if dt == 0 else rates.exp(), normal(*shape, n, m), normal(*shape, p, n), rates


def tensors(system: hr.DiagonalSystem) -> dict[str, Tensor | None]:
    """Return the arguments of the operations for a system of the core."""
    names = ("lam", "B", "C") if system.rates is None else ("rates", "B", "C")
    arguments = {name: torch.from_numpy(np.array(getattr(system, name))) for name in names}
    return {"lam": None} | arguments | {"dt": system.dt, "output": system.output}


def relative(x: Tensor, y: Tensor) -> float:
    return float((x - y).detach().abs().max() / y.detach().abs().max())


@given(diagonal_systems(max_states=7))
def test_hsv_are_those_of_the_core(system):
    hsv = ops.hankel_singular_values(**tensors(system)).numpy()
    expected = hr.hankel_singular_values(system)
    np.testing.assert_allclose(hsv, expected, rtol=EVERY_HSV, atol=1e-15 * expected[0])  # zeros: real data


@given(diagonal_systems(max_states=7))
def test_factors_make_the_gramians_of_the_core(system):
    S, R = (x.numpy() for x in ops.gramian_factors(**tensors(system)))
    P, Q = hr.gramians(system)
    np.testing.assert_allclose(S @ S.conj().T, P, atol=1e-13 * np.abs(P).max())  # the rounding of a sum of products
    np.testing.assert_allclose(R.conj().T @ R, Q, atol=1e-13 * np.abs(Q).max())


@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3, 1)])
@pytest.mark.parametrize(("complex_data", "output"), KINDS)
def test_leading_axes_are_kept_and_systems_do_not_mix(shape, complex_data, output):
    lam, B, C, _ = batch(shape, complex_data=complex_data)
    hsv = ops.hankel_singular_values(lam, B, C, dt=0, output=output)
    assert hsv.shape == (*shape, 10 if output == "real" else 5)
    arrays = (x.reshape(math.prod(shape), *x.shape[len(shape) :]).numpy() for x in (lam, B, C))
    expected = hr.hankel_singular_values(hr.DiagonalBank(*arrays, dt=0, output=output))
    np.testing.assert_allclose(hsv.reshape(expected.shape).numpy(), expected, rtol=EVERY_HSV)


def test_leading_axes_broadcast():
    lam, B, C, _ = batch((4, 1), m=1, p=1)
    B, C = B[0, 0], C[:1].expand(1, 3, 1, 5)
    hsv = ops.hankel_singular_values(lam, B, C, dt=0)
    assert hsv.shape == (4, 3, 5)
    torch.testing.assert_close(hsv[2, 1], ops.hankel_singular_values(lam[2, 0], B, C[0, 1], dt=0), rtol=1e-13, atol=0)


@pytest.mark.parametrize("sizes", [(0, 2, 3), (4, 0, 3), (4, 2, 0)])
@pytest.mark.parametrize("output", ["complex", "real"])
def test_systems_without_states_inputs_or_outputs_have_no_hsv_but_zeros(sizes, output):
    n, m, p = sizes
    arguments = [x.requires_grad_() for x in batch((2,), n, m, p)[:3]]
    hsv = ops.hankel_singular_values(*arguments, dt=0, output=output)
    assert hsv.shape == (2, 2 * n if output == "real" else n)
    assert not hsv.any()
    hsv.sum().backward()


def test_float32_systems_have_the_hsv_of_the_float64_core():
    generator = torch.Generator().manual_seed(0)
    decay = 10 ** (4 * torch.rand(1536, 16, generator=generator) - 4)
    lam, B, C = torch.exp(-decay), *torch.randn(2, 1536, 16, 1, generator=generator)
    C = C.mT
    hsv = ops.hankel_singular_values(lam, B, C, dt=True)
    assert hsv.dtype == torch.float32
    expected = hr.hankel_singular_values(hr.DiagonalBank(*(x.double().numpy() for x in (lam, B, C)), dt=True))
    assert (expected == 0).sum() < 10  # some poles coincide in float32
    assert expected[expected > 0].min() > 1e-37  # in the range of float32
    np.testing.assert_allclose(hsv.numpy(), expected, rtol=1.2e-7)  # one rounding of the result


@pytest.mark.parametrize(("given", "got"), [(torch.float32, torch.float32), (torch.complex64, torch.float32)])
def test_precision_of_the_arguments_is_that_of_the_results(given, got):
    lam, B, C, _ = batch(complex_data=given.is_complex)
    hsv = ops.hankel_singular_values(lam.to(given), B.to(given), C.to(given), dt=0)
    S, R = ops.gramian_factors(lam.to(given), B.to(given), C.to(given), dt=0)
    assert (hsv.dtype, S.dtype, R.dtype) == (got, given, given)


def test_poles_next_to_the_circle_keep_their_digits_by_rates():
    rates = torch.tensor([-1e-15, -3e-15 + 0.5j, -1e-3 + 1j], dtype=torch.complex128)
    one = torch.ones(3, 1, dtype=torch.complex128)
    hsv = ops.hankel_singular_values(None, one, one.mT, dt=True, rates=rates).numpy()
    system = hr.DiagonalSystem.from_rates(rates.numpy(), one.numpy(), one.numpy().T, dt=True)
    np.testing.assert_allclose(hsv, hr.hankel_singular_values(system), rtol=EVERY_HSV)


def test_nearly_real_poles_of_some_systems_cost_no_digits():
    phase = torch.tensor([[1e-9], [0.5], [2e-3]]) * torch.linspace(0.5, 1, 6)
    lam = torch.polar(torch.linspace(0.2, 0.9, 6).double(), phase.double())
    B = torch.ones(6, 1, dtype=torch.complex128)
    hsv = ops.hankel_singular_values(lam, B, B.mT, dt=True, output="real").numpy()
    for found, poles in zip(hsv, lam.numpy(), strict=True):
        system = hr.DiagonalSystem(poles, B.numpy(), B.numpy().T, dt=True, output="real")
        np.testing.assert_allclose(found, hr.hankel_singular_values(system), rtol=EVERY_HSV)


@pytest.mark.parametrize("output", ["complex", "real"])
def test_arguments_may_be_pending_conjugates(output):
    lam, B, C, _ = batch((2,))
    lazy = ops.hankel_singular_values(lam.conj(), B.conj(), C.conj(), dt=0, output=output)
    plain = ops.hankel_singular_values(*(x.conj().resolve_conj() for x in (lam, B, C)), dt=0, output=output)
    assert torch.equal(lazy, plain)


# The tensor operations that other devices run


@pytest.mark.parametrize("dt", DOMAINS)
@pytest.mark.parametrize("complex_data", [False, True])
@pytest.mark.parametrize("m", [1, 3])
@pytest.mark.parametrize("by_rates", [False, True])
def test_tensor_operations_factor_as_the_kernels_do(dt, complex_data, m, by_rates):
    lam, B, _, rates = batch((4,), 7, m, dt=dt, complex_data=complex_data)
    poles = rates if by_rates and dt else lam
    poles[0, :5], poles[1, 3] = poles[0, 0], poles[1, 2]  # repeated, more often than there are inputs, and once
    B[2, 0], B[3] = 0, 0
    linked = torch.rand(4, 7, generator=torch.Generator().manual_seed(0)) > 0.3
    kind = (bool(dt), by_rates and bool(dt))
    table = _factors_torch.pole_tensors(poles, *kind)
    compiled = _factors._factor(poles, B, linked, *kind)
    found = _factors_torch.factor_torch(table, B, linked)
    assert torch.equal(found[1], compiled[1])
    for x, y in zip(found, compiled, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)
    F = torch.randn(*compiled[0].shape, dtype=B.dtype, generator=torch.Generator().manual_seed(1))
    expected_poles, expected_B = _factors._factor_backward(F, poles, *compiled, *kind)
    g_poles, g_B = _factors_torch.factor_adjoint_torch(table, *compiled, F, kind[0])
    g_poles = g_poles * poles.exp().conj() if kind[1] else g_poles
    assert relative(g_poles, expected_poles) < 1e-12
    assert relative(g_B, expected_B) < 1e-12


# Gradients


@pytest.mark.parametrize("dt", DOMAINS)
@pytest.mark.parametrize(("complex_data", "output"), KINDS)
@pytest.mark.parametrize(("m", "p"), [(1, 1), (2, 3), (9, 1)])
def test_gradients_agree_with_differences(dt, complex_data, output, m, p):
    arguments = [x.requires_grad_() for x in batch((), 4, m, p, dt=dt, complex_data=complex_data, slowest=0.1)[:3]]
    # the last values of real data with real output are zeros, where differences see a kink
    assert torch.autograd.gradcheck(
        lambda *x: ops.hankel_singular_values(*x, dt=dt, output=output)[:4], arguments, fast_mode=True
    )


@pytest.mark.parametrize("output", ["complex", "real"])
def test_gradients_of_rates_agree_with_differences(output):
    _, B, C, rates = batch((2,), 4, dt=True, slowest=0.1)
    arguments = [x.requires_grad_() for x in (rates, B, C)]
    assert torch.autograd.gradcheck(
        lambda z, B, C: ops.hankel_singular_values(None, B, C, dt=True, output=output, rates=z),
        arguments,
        fast_mode=True,
    )


def test_gradients_agree_with_differences_where_some_poles_are_nearly_real():
    lam, B, C, _ = batch((3,), 3, 2, 1, dt=True, slowest=0.1)
    lam[1] = torch.polar(lam[1].abs(), torch.tensor([1e-3, 0.4, 1.0]).double())
    arguments = [x.requires_grad_() for x in (lam, B, C)]
    assert torch.autograd.gradcheck(
        lambda *x: ops.hankel_singular_values(*x, dt=True, output="real"), arguments, fast_mode=True
    )


def gradient_of_each(hsv: Tensor, arguments: list[Tensor]) -> list[tuple[Tensor, ...]]:
    return [torch.autograd.grad(value, arguments, retain_graph=True) for value in hsv]


def inner(g: Tensor, x: Tensor) -> float:
    return float((g.conj() * x).sum().real)


@pytest.mark.parametrize("n", [12, 40])
def test_gradients_of_small_hsv_keep_half_of_their_digits_or_more(n):
    # every value is homogeneous: of degree 1 in B and in C, of degree -1 in the poles of a continuous system
    lam = -(torch.arange(n, dtype=torch.float64) + 0.5)
    one = torch.ones(n, 1, dtype=torch.float64)
    arguments = [x.requires_grad_() for x in (lam, one, one.detach().clone().mT)]
    hsv = ops.hankel_singular_values(*arguments, dt=0)
    assert hsv[-1] < (1e-15 if n == 12 else 1e-50) * hsv[0]
    for value, gradient in zip(hsv, gradient_of_each(hsv, arguments), strict=True):
        for g, x, degree in zip(gradient, arguments, (-1, 1, 1), strict=True):
            error = abs(inner(g, x.detach()) - degree * value.item())
            assert error < 1e-15 * n * math.sqrt(value.item() * hsv[0].item())  # as documented


def test_gradient_of_a_sum_keeps_twelve_digits_by_the_faster_decomposition(monkeypatch):
    lam = -torch.linspace(1, 2, 30, dtype=torch.float64)
    B = torch.diag(torch.linspace(1, 2, 30, dtype=torch.float64)) + 0.3
    C = torch.diag(10 ** torch.linspace(0, -6, 30, dtype=torch.float64))
    arguments = [x.requires_grad_() for x in (lam, B, C)]
    hsv = ops.hankel_singular_values(*arguments, dt=0)
    assert _factors.UNDIVIDED < 30
    assert _factors.GRADIENTS_BELOW < hsv[-1] / hsv[0] < 1e-6
    fast = torch.autograd.grad(hsv.sum(), arguments, retain_graph=True)
    monkeypatch.setattr(_factors, "GRADIENTS_BELOW", 1.0)
    for g, e in zip(fast, torch.autograd.grad(hsv.sum(), arguments), strict=True):
        assert relative(g, e) < 1e-12


@pytest.mark.parametrize("output", ["complex", "real"])
def test_gradient_is_right_at_repeated_and_at_zero_hsv(output):
    # two decoupled copies repeat every value, an unseen state adds a zero; sums of powers do not notice
    lam, B, C, _ = batch((), 3, 1, 1, slowest=0.1)
    lam = torch.cat([lam, lam, lam[:1] / 2])
    B = torch.block_diag(B, B, torch.zeros(1, 0, dtype=B.dtype))
    B[6] = 1.0
    C = torch.block_diag(C, C, torch.zeros(0, 1, dtype=C.dtype))
    arguments = [x.requires_grad_() for x in (lam, B, C)]
    hsv = ops.hankel_singular_values(*arguments, dt=0, output=output)
    assert abs(hsv[0] - hsv[1]) < 1e-14 * hsv[0]
    assert hsv[-1] == 0
    assert torch.autograd.gradcheck(
        lambda *x: (ops.hankel_singular_values(*x, dt=0, output=output) ** 2).sum(), arguments, fast_mode=True
    )
    for g in torch.autograd.grad(hsv.sum(), arguments):
        assert torch.isfinite(torch.view_as_real(g)).all()


def test_second_derivatives_are_refused():
    lam, B, C, _ = batch()
    B.requires_grad_()
    (g,) = torch.autograd.grad(ops.hankel_singular_values(lam, B, C, dt=0).sum(), B, create_graph=True)
    with pytest.raises(InputError, match="first derivatives only"):
        g.abs().sum().backward()


@pytest.mark.parametrize("output", ["complex", "real"])
def test_vmap_gives_what_a_batch_gives(output):
    lam, B, C, _ = batch((3, 2))

    def hsv(lam: Tensor, B: Tensor, C: Tensor) -> Tensor:
        return ops.hankel_singular_values(lam, B, C, dt=0, output=output)

    whole = hsv(lam, B, C)
    torch.testing.assert_close(torch.func.vmap(torch.func.vmap(hsv))(lam, B, C), whole, rtol=EVERY_HSV, atol=0)
    shared = torch.func.vmap(hsv, in_dims=(0, None, None))(lam, B[0], C[0])
    torch.testing.assert_close(shared, hsv(lam, B[0], C[0]), rtol=EVERY_HSV, atol=0)


def test_functional_gradients_of_single_systems_are_those_of_the_batch():
    arguments = batch((3,), complex_data=False)[:3]

    def penalty(lam: Tensor, B: Tensor, C: Tensor) -> Tensor:
        return ops.hankel_singular_values(lam, B, C, dt=0).sum()

    single = torch.func.vmap(torch.func.grad(penalty, argnums=(0, 1, 2)))(*arguments)
    arguments = [x.requires_grad_() for x in arguments]
    for g, e in zip(single, torch.autograd.grad(penalty(*arguments), arguments), strict=True):
        assert relative(g, e) < 1e-13


@pytest.mark.parametrize("output", ["complex", "real"])
def test_compiled_whole_it_gives_the_same(output):
    arguments = [x.requires_grad_() for x in batch((2,))[:3]]

    def hsv(*arguments: Tensor) -> Tensor:
        return ops.hankel_singular_values(*arguments, dt=0, output=output)

    compiled = torch.compile(hsv, fullgraph=True, backend="aot_eager")(*arguments)
    expected = hsv(*arguments)
    torch.testing.assert_close(compiled, expected, rtol=EVERY_HSV, atol=0)
    for g, e in zip(*(torch.autograd.grad(x.sum(), arguments) for x in (compiled, expected)), strict=True):
        assert relative(g, e) < 1e-11


def test_autocast_changes_nothing():
    lam, B, C, _ = batch((2,))
    expected = ops.hankel_singular_values(lam, B, C, dt=0, output="real")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ops.hankel_singular_values(lam, B, C, dt=0, output="real"), expected)


# Balanced truncation


def response(A: Tensor, B: Tensor, C: Tensor, z: complex) -> Tensor:
    A, B, C = (x.to(torch.complex128) for x in (A, B, C))
    return C @ torch.linalg.solve(z * torch.eye(A.shape[-1], dtype=A.dtype) - A, B)


@settings(max_examples=15)
@given(diagonal_systems(max_states=5), st.integers(1, 2))
def test_truncated_systems_are_those_of_the_core(system, order):
    full = system.dense()
    expected = hr.hankel_singular_values(system)
    order = min(order, int((expected > 1e-9 * expected[0]).sum()))
    if order < len(expected) and expected[order - 1] < 1.001 * expected[order]:
        return  # a cut through equal values is not unique
    reduced = ops.balanced_truncation(**tensors(system), order=order)
    twin = hr.balanced_truncation(full, order=order)
    z = np.exp(0.7j) if system.is_discrete else 0.7j
    model = response(reduced.A, reduced.B, reduced.C, z).numpy()
    truth = twin.system.frequency_response([0.7 if system.dt in (0, True) else 0.7 / system.dt])[0] - full.D
    np.testing.assert_allclose(model, truth, atol=1e-9 * expected[0])  # hsv down to 1e-9 of the first divide
    np.testing.assert_allclose((reduced.Ti @ reduced.T).numpy(), np.eye(order), atol=1e-10)
    np.testing.assert_allclose(reduced.error_bound, 2 * expected[order:].sum(), rtol=1e-10, atol=1e-14 * expected[0])


@pytest.mark.parametrize("dt", DOMAINS)
@pytest.mark.parametrize(("complex_data", "output"), KINDS)
def test_derivatives_of_truncated_systems_agree_with_differences(dt, complex_data, output):
    arguments = [x.requires_grad_() for x in batch((2,), 4, dt=dt, complex_data=complex_data, slowest=0.1)[:3]]

    def gain(*arguments: Tensor) -> Tensor:
        reduced = ops.balanced_truncation(*arguments, dt=dt, output=output, order=2)
        return response(reduced.A, reduced.B, reduced.C, 2.0).real  # no pole of a stable system

    assert torch.autograd.gradcheck(gain, arguments, fast_mode=True)


def test_truncation_to_no_states_and_to_all_works():
    lam, B, C, _ = batch((3,))
    assert ops.balanced_truncation(lam, B, C, dt=0, order=0).A.shape == (3, 0, 0)
    whole = ops.balanced_truncation(lam, B, C, dt=0, order=5)
    expected = response(torch.diag_embed(lam), B, C, 1j)
    assert relative(response(whole.A, whole.B, whole.C, 1j), expected) < 1e-10
    assert not whole.error_bound.any()


# What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"B": torch.ones(4, 2)}, r"B, C must be"),
        ({"C": torch.ones(3, 4)}, r"B, C must be"),
        ({"lam": [-1.0]}, "lam must be a dense floating point or complex tensor"),
        ({"B": torch.ones(5, 2, dtype=torch.int64)}, "B must be a dense floating point or complex tensor"),
        ({"C": torch.full((3, 5), math.nan)}, "must be finite"),
        ({"output": "imaginary"}, "output must be"),
        ({"rates": -torch.ones(5)}, "rates are for discrete systems"),
        ({"dt": None}, "dt must be given"),
    ],
)
@pytest.mark.parametrize("operation", [ops.hankel_singular_values, ops.gramian_factors])
def test_wrong_arguments_are_named(operation, change, message):
    lam, B, C, _ = batch(complex_data=False)
    with pytest.raises(InputError, match=message):
        operation(**({"lam": lam.float(), "B": B.float(), "C": C.float(), "dt": 0} | change))


@pytest.mark.parametrize("output", ["complex", "real"])
def test_unstable_poles_are_refused(output):
    lam, B, C, _ = batch((2,), dt=True)
    lam[1, 2] = 1.01
    with pytest.raises(StabilityError, match="must be stable"):
        ops.hankel_singular_values(lam, B, C, dt=True, output=output)
    with pytest.raises(StabilityError, match="must be stable"):
        _factors_torch.pole_tensors(lam, True, False)


@pytest.mark.parametrize("order", [-1, 6, 2.0, True])
def test_orders_out_of_range_are_refused(order):
    lam, B, C, _ = batch()
    with pytest.raises(OrderError, match="order must be an integer from 0 to 5"):
        ops.balanced_truncation(lam, B, C, dt=0, order=order)


def test_real_data_with_real_output_have_as_many_zeros_as_states():
    lam, B, C, _ = batch((2,), complex_data=False)
    reduced = ops.balanced_truncation(lam, B, C, dt=0, order=3, output="real")
    assert reduced.hsv.shape == (2, 10)
    assert not reduced.hsv[:, 5:].any()
    with pytest.raises(OrderError, match="order must be at most 5"):
        ops.balanced_truncation(lam, B, C, dt=0, order=6, output="real")


def test_orders_past_the_rank_are_refused():
    lam, B, C, _ = batch((2,))
    B[1, 2:] = 0
    with pytest.raises(OrderError, match="order must be at most 2"):
        ops.balanced_truncation(lam, B, C, dt=0, order=3)


def test_arguments_are_not_changed():
    arguments = batch((2,))[:3]
    before = [x.clone() for x in arguments]
    for output in ("complex", "real"):
        ops.balanced_truncation(*arguments, dt=0, output=output, order=1)
        ops.hankel_singular_values(*arguments, dt=0, output=output)
    assert all(torch.equal(x, y) for x, y in zip(arguments, before, strict=True))
