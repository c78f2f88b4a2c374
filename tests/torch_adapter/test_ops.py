"""Claims that every operation on tensors keeps: what it refuses, in whatever layout, and which derivatives it has."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hankelred.errors import InputError
from hankelred_torch import layers, ops

GENERATOR = torch.Generator().manual_seed(0)


def real(*shape):
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def stable(*shape):
    return torch.complex(-real(*shape).abs() - 0.1, real(*shape))


def matrices(*shape):
    return torch.complex(real(*shape), real(*shape))


def positive(*shape):
    return real(*shape).abs()


def negative(*shape):
    return -real(*shape).abs()


def hurwitz(*shape):
    return real(*shape) - 4 * torch.eye(shape[-1], dtype=torch.float64)


def model(method):
    return lambda rates, B, C, u, D: ops.diagonal_ssm(rates, B, C, u, D, method=method)


def invariant(S, R):
    """Factors are determined up to a unitary matrix."""
    return S @ S.mH, R.mH @ R


SYSTEMS = {"B": (matrices, (2, 4, 2)), "C": (matrices, (2, 2, 4))}
SEQUENCES = {"B": (matrices, (4, 3)), "C": (matrices, (3, 4)), "u": (real, (2, 5, 3)), "D": (real, (3,))}

# What is called, with what, and which arguments hold several examples along their first axis.
CASES = {
    "linear_recurrence": (
        lambda a, b, initial: ops.linear_recurrence(a, b, initial=initial),
        {"a": (real, (3,)), "b": (real, (2, 5, 3)), "initial": (real, (2, 3))},
        ("b", "initial"),
    ),
    "diagonal_ssm by recurrence": (model("recurrence"), {"rates": (stable, (4,)), **SEQUENCES}, ("u",)),
    "diagonal_ssm by convolution": (model("convolution"), {"rates": (stable, (4,)), **SEQUENCES}, ("u",)),
    "selective_scan": (
        lambda u, delta, A, B, C, D, initial: ops.selective_scan(u, delta, A, B, C, D, initial=initial),
        {"u": (real, (2, 5, 3)), "delta": (positive, (2, 5, 3)), "A": (negative, (3, 4)), "B": (real, (2, 5, 4))}
        | {"C": (real, (2, 5, 4)), "D": (real, (3,)), "initial": (real, (2, 3, 4))},
        ("u", "delta", "B", "C", "initial"),
    ),
    "selective_heads": (
        lambda u, delta, A, B, C, D, initial: ops.selective_heads(u, delta, A, B, C, D, initial=initial),
        {"u": (real, (2, 5, 4, 3)), "delta": (positive, (2, 5, 4)), "A": (negative, (4,)), "B": (real, (2, 5, 2, 6))}
        | {"C": (real, (2, 5, 2, 6)), "D": (real, (4,)), "initial": (real, (2, 4, 3, 6))},
        ("u", "delta", "B", "C", "initial"),
    ),
    "gramian_factors": (
        lambda lam, B, C: invariant(*ops.gramian_factors(lam, B, C, dt=0)),
        {"lam": (stable, (2, 4)), **SYSTEMS},
        ("lam", "B", "C"),
    ),
    "hankel_singular_values": (
        lambda rates, B, C: ops.hankel_singular_values(None, B, C, dt=True, rates=rates),
        {"rates": (stable, (2, 4)), **SYSTEMS},
        ("rates", "B", "C"),
    ),
    "hankel_singular_values of real outputs": (
        lambda lam, B, C: ops.hankel_singular_values(lam, B, C, dt=0, output="real"),
        {"lam": (stable, (2, 4)), **SYSTEMS},
        ("lam", "B", "C"),
    ),
    "balanced_truncation": (
        lambda lam, B, C: ops.balanced_truncation(lam, B, C, dt=0, order=2).error_bound,
        {"lam": (stable, (2, 4)), **SYSTEMS},
        ("lam", "B", "C"),
    ),
    "solve_lyapunov": (
        lambda A, Q: ops.solve_lyapunov(A, Q),
        {"A": (hurwitz, (2, 3, 3)), "Q": (real, (2, 3, 3))},
        ("A", "Q"),
    ),
}
OPTIONAL = ("D", "initial")

every_operation = pytest.mark.parametrize("name", CASES)


def case(name):
    """Return a function, its arguments by name, and the names of those with an axis of examples."""
    GENERATOR.manual_seed(0)
    call, made, batched = CASES[name]
    return call, {x: make(*shape) for x, (make, shape) in made.items()}, batched


def found(call, arguments):
    y = call(**arguments)
    return y if isinstance(y, tuple) else (y,)


def assert_same(call, arguments, others, atol=1e-12):
    for x, y in zip(found(call, arguments), found(call, others), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=atol)


def squares(call, arguments):
    return sum(y.abs().square().sum() for y in found(call, arguments))


@every_operation
def test_tensors_elsewhere_integers_and_what_is_no_tensor_are_refused(name):
    # history: None in the place of a tensor passed for an argument left out, and was an AttributeError
    call, arguments, _ = case(name)
    for key, x in arguments.items():
        for bad, message in (
            (x.to("meta"), "on one device"),
            (x.real.round().to(torch.int64), "floating point or complex tensor; got torch.int64"),
            (x.real > 0, "floating point or complex tensor; got torch.bool"),
            (x.to_sparse(), "dense floating point or complex tensor; got .*sparse_coo"),
            (x.numpy(), "floating point or complex tensor; got ndarray"),
            (None, "floating point or complex tensor; got NoneType|must hold the poles"),
        ):
            if bad is not None or key not in OPTIONAL:
                with pytest.raises(InputError, match=message):
                    call(**arguments | {key: bad})


@every_operation
def test_tensors_without_data_give_shapes(name):
    # history: autocast knows no meta device, and asking it was an error
    call, arguments, _ = case(name)
    made = found(call, {key: x.to("meta") for key, x in arguments.items()})
    assert [(y.shape, y.dtype, y.is_meta) for y in made] == [(y.shape, y.dtype, True) for y in found(call, arguments)]


@every_operation
def test_layout_in_memory_does_not_matter(name):
    call, arguments, batched = case(name)
    for key, x in arguments.items():
        assert_same(call, arguments, arguments | {key: torch.stack([x, x], -1)[..., 0]})
        assert_same(call, arguments, arguments | {key: x.conj().resolve_conj().conj()})
    one = {key: x[:1].expand(x.shape) if key in batched else x for key, x in arguments.items()}
    assert_same(call, {key: x.contiguous() for key, x in one.items()}, one)


@every_operation
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1), (torch.float16, 0.03)])
def test_narrow_arguments_give_what_they_hold(name, dtype, rtol):
    # relative to the output; arguments are rounded to 2^-8 and 2^-11, and some outputs to their dtype
    call, arguments, _ = case(name)
    for key, x in arguments.items():
        narrow = x.to(dtype if not x.is_complex() else torch.complex64)
        for y, wanted in zip(found(call, arguments | {key: narrow}), found(call, arguments), strict=True):
            assert (y - wanted).norm() <= rtol * wanted.norm()


@every_operation
def test_no_examples_give_nothing_and_no_gradient(name):
    # history: an FFT of no sequences is an error of MKL
    call, arguments, batched = case(name)
    none = {key: (x[:0] if key in batched else x).clone().requires_grad_() for key, x in arguments.items()}
    loss = squares(call, none)
    assert loss.item() == 0
    assert all(not g.abs().sum() for g in torch.autograd.grad(loss, [*none.values()]))


@pytest.mark.parametrize("family", [layers.LRU, layers.S5, layers.S4D, layers.Mamba])
@pytest.mark.parametrize("shape", [(0, 5, 4), (2, 0, 4), (0, 0, 4)])
def test_layers_take_empty_sequences(family, shape):
    layer, u = family(4, 8), torch.zeros(shape, requires_grad=True)
    layer(u).sum().backward()
    assert u.grad.shape == shape
    assert all(p.grad is None or not p.grad.any() for p in layer.parameters())


@every_operation
def test_gradients_do_not_depend_on_who_else_has_one(name):
    call, arguments, _ = case(name)
    with_all = {key: x.clone().requires_grad_() for key, x in arguments.items()}
    whole = dict(zip(with_all, torch.autograd.grad(squares(call, with_all), [*with_all.values()]), strict=True))
    for size in range(1, len(arguments)):
        for chosen in itertools.combinations(arguments, size):
            some = {key: x.clone().requires_grad_(key in chosen) for key, x in arguments.items()}
            gradients = torch.autograd.grad(squares(call, some), [some[key] for key in chosen])
            for key, g in zip(chosen, gradients, strict=True):
                assert (g - whole[key]).norm() <= 1e-9 * whole[key].norm()


ONCE = [name for name in CASES if name != "solve_lyapunov"]


@pytest.mark.parametrize("name", ONCE)
@pytest.mark.parametrize("linear", [False, True])
def test_second_derivatives_are_refused(name, linear):
    # history: torch's once_differentiable cuts the graph; torch.autograd.grad then gave other paths, 147 % off
    call, arguments, _ = case(name)
    leaves = {key: x.requires_grad_() for key, x in arguments.items()}
    loss = sum(y.real.sum() for y in found(call, leaves)) if linear else squares(call, leaves)
    gradients = torch.autograd.grad(loss, [*leaves.values()], create_graph=True)
    for key, g in zip(leaves, gradients, strict=True):
        if g.requires_grad and key != "D":  # some are constant; what is fed through is torch's own
            with pytest.raises(InputError, match="first derivatives only"):
                torch.autograd.grad(g.abs().square().sum(), [*leaves.values()], retain_graph=True, allow_unused=True)


@pytest.mark.parametrize("family", [layers.LRU, layers.S5, layers.S4D, layers.Mamba])
def test_second_derivatives_of_layers_are_refused(family):
    torch.manual_seed(0)
    layer = family(4, 8)
    parameters = list(layer.parameters())
    loss = layer(torch.randn(2, 5, 4)).square().sum()
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    with pytest.raises(InputError, match="first derivatives only"):
        torch.autograd.grad(sum(g.square().sum() for g in gradients), parameters, allow_unused=True)


@every_operation
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_vmap_gives_outputs_and_gradients_one_by_one(name):
    # history: a convolution was an error of torch there, a recurrence was not, and the sizes chose between them
    call, arguments, _ = case(name)
    keys = [*arguments]

    def value(*x):
        return squares(call, dict(zip(keys, x, strict=True)))

    several = [torch.stack([x, 0.5 * x]) for x in arguments.values()]
    for k, x in enumerate(several):  # one by one, the others as they are
        where = [0 if j == k else None for j in range(len(keys))]
        given = [x if j == k else arguments[key] for j, key in enumerate(keys)]
        y = torch.func.vmap(value, in_dims=tuple(where))(*given)
        assert abs(y[0] - value(*arguments.values())) <= 1e-9 * y[0]
    gradients = torch.func.vmap(torch.func.grad(value, argnums=tuple(range(len(keys)))))(*several)
    leaves = [x[1].clone().requires_grad_() for x in several]
    for g, wanted in zip(gradients, torch.autograd.grad(value(*leaves), leaves), strict=True):
        assert (g[1] - wanted).norm() <= 1e-9 * wanted.norm()


@every_operation
def test_backends_agree(name):
    call, arguments, _ = case(name)
    with ops.use_backend("torch"):
        wanted = found(call, arguments)
    for x, y in zip(found(call, arguments), wanted, strict=True):
        assert (x - y).norm() <= 1e-9 * y.norm()


def test_backends_are_chosen_for_a_block_or_for_good():
    assert {row.backend for row in ops.backends()} == {"cpu"}
    with ops.use_backend("torch"):
        assert ops.backends()[0].backend == "torch"
    assert ops.backends()[0].backend == "cpu"
    with pytest.raises(
        InputError, match="must be one of 'auto', 'cpu', 'triton', 'mamba_ssm', 'causal_conv1d', 'torch'; got 'cuda'"
    ):
        ops.use_backend("cuda")
    ops.use_backend("torch")
    try:
        assert ops.backends()[0].backend == "torch"
    finally:
        ops.use_backend("auto")


def test_complex_feedthrough_is_refused():
    call, arguments, _ = case("diagonal_ssm by recurrence")
    with pytest.raises(InputError, match="D must be real"):
        call(**arguments | {"D": arguments["D"] + 1j})


class Zeros(TorchDispatchMode):
    """Notes how many zeros tensors are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if "zeros" in func.__name__:
            self.sizes.append(found.numel())
        return found


def test_no_zeros_are_formed_for_states_that_have_no_gradient():
    # states kept for the way back are more numbers than anything else here
    u = torch.rand(1, 64, 40, requires_grad=True)
    rates = torch.complex(-torch.ones(90), torch.arange(90.0)).requires_grad_()
    into, out = torch.ones(90, 40) + 0j, torch.ones(40, 90) + 0j
    B = torch.rand(1, 64, 40)
    heads = u.reshape(1, 64, 4, 10), torch.ones(1, 64, 4), -torch.ones(4), *(torch.rand(1, 64, 1, 40) for _ in "BC")
    for run, kept in (
        (lambda: ops.diagonal_ssm(rates, into, out, u, method="recurrence"), 64 * 180),
        (lambda: ops.selective_scan(u, torch.ones_like(u), -torch.ones(40, 40), B, B), 5 * 40 * 40),
        (lambda: ops.selective_heads(*heads), 3 * 40 * 40),
    ):
        y = run()
        with Zeros() as zeros:
            torch.autograd.grad(y, u, torch.ones_like(y))
        assert all(size < kept for size in zeros.sizes), zeros.sizes
