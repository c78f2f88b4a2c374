"""What all layers of the package promise: their formula, steps, precisions, and that they shrink with their tensors."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from hankelred.errors import InputError
from hankelred_torch.adapters import adapter_of
from hankelred_torch.layers import LRU, S4D, S5, Mamba

CHANNELS, STATES = 3, 6


def lru_formula(p: dict[str, Tensor], u: Tensor) -> Tensor:
    lam = torch.exp(torch.complex(-p["nu_log"].exp(), p["theta_log"].exp()))
    B = p["gamma_log"].exp()[:, None] * torch.complex(p["B_re"], p["B_im"])
    C = torch.complex(p["C_re"], p["C_im"])
    x, outputs = torch.zeros(len(u), len(lam), dtype=lam.dtype), []
    for step in u.unbind(1):
        x = lam * x + step.to(B.dtype) @ B.T
        outputs.append((x @ C.T).real + p["D"] * step)
    return torch.stack(outputs, dim=1)


def s5_formula(p: dict[str, Tensor], u: Tensor) -> Tensor:
    """Exact integration over a step of constant u."""
    poles, step = torch.complex(p["Lambda_re"], p["Lambda_im"]), p["log_step"].exp()
    lam = torch.exp(poles * step)
    B = ((lam - 1) / poles)[:, None] * torch.view_as_complex(p["B"])
    C = torch.view_as_complex(p["C"])
    x, outputs = torch.zeros(len(u), len(lam), dtype=lam.dtype), []
    for step in u.unbind(1):
        x = lam * x + step.to(B.dtype) @ B.T
        outputs.append(2 * (x @ C.T).real + p["D"] * step)
    return torch.stack(outputs, dim=1)


def s4d_formula(p: dict[str, Tensor], u: Tensor) -> Tensor:
    """Exact integration over a step of constant u."""
    A = torch.complex(-p["log_A_real"].exp(), p["A_imag"])
    lam = torch.exp(A * p["log_dt"].exp()[:, None])
    B, C = (lam - 1) / A, torch.view_as_complex(p["C"])
    x, outputs = torch.zeros(len(u), *lam.shape, dtype=lam.dtype), []
    for step in u.unbind(1):
        x = lam * x + B * step[:, :, None]
        outputs.append(2 * (x * C).sum(-1).real + p["D"] * step)
    return torch.stack(outputs, dim=1)


LINEAR = [LRU, S5, S4D]
LAYERS = [*LINEAR, Mamba]
FORMULAS = {LRU: lru_formula, S5: s5_formula, S4D: s4d_formula}


def made(family, channels=CHANNELS, states=STATES, seed=0):
    torch.manual_seed(seed)
    return family(channels, states)


def sequences(batch=2, length=30, channels=CHANNELS, dtype=torch.float32):
    return torch.randn(batch, length, channels, generator=torch.Generator().manual_seed(5)).to(dtype)


def formula(layer: nn.Module, u: Tensor) -> Tensor:
    """Return the definition, from the parameters in double precision, one step after the other."""
    return FORMULAS[type(layer)]({name: p.double() for name, p in layer.named_parameters()}, u.double())


def shrink(layer, states):
    """Replace the parameters by their part on the first states, as a reduction does."""
    adapter = adapter_of(layer)
    sizes = adapter.sizes(states)
    for name, x in adapter.resize(states).items():
        setattr(*adapter.owner(name), nn.Parameter(x))
    for name, size in sizes.items():
        setattr(*adapter.owner(name), size)
    return layer


def relative(y: Tensor, expected: Tensor) -> float:
    return float((y - expected).detach().abs().max() / expected.detach().abs().max())


def gradients(layer, y):
    return torch.autograd.grad(y.square().sum(), list(layer.parameters()))


def step_by_step(layer, u):
    state, outputs = layer.initial_state(len(u)), []
    for step in u.unbind(1):
        y, state = layer.step(step, state)
        outputs.append(y)
    return torch.stack(outputs, dim=1)


@pytest.mark.parametrize("length", [1, 2, 65, 300])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("family", LINEAR)
def test_output_is_the_formula(family, batch, length):
    layer, u = made(family).double(), sequences(batch, length, dtype=torch.float64)
    assert relative(layer(u), formula(layer, u)) < 1e-12


@pytest.mark.parametrize("family", LINEAR)
def test_gradients_are_those_of_the_formula(family):
    layer, u = made(family).double(), sequences(3, 40, dtype=torch.float64).requires_grad_()
    arguments = [*layer.parameters(), u]
    expected = torch.autograd.grad(formula(layer, u).square().sum(), arguments)
    for g, e in zip(torch.autograd.grad(layer(u).square().sum(), arguments), expected, strict=True):
        assert relative(g, e) < 1e-11


@pytest.mark.parametrize(("channels", "states", "length"), [(3, 7, 200), (16, 64, 64), (1, 1, 50)])
@pytest.mark.parametrize("family", LAYERS)
def test_steps_give_the_output_of_the_whole_sequence(family, channels, states, length):
    layer, u = made(family, channels, states), sequences(2, length, channels)
    with torch.no_grad():
        assert relative(step_by_step(layer, u), layer(u)) < 1e-5  # a few hundred terms of float32


@pytest.mark.parametrize("family", LAYERS)
def test_same_seed_gives_the_same_layer_and_output(family):
    u = sequences()
    assert torch.equal(made(family, seed=3)(u), made(family, seed=3)(u))
    assert not torch.equal(made(family, seed=3)(u), made(family, seed=4)(u))


@pytest.mark.parametrize("family", LINEAR)
def test_shrunk_layer_computes_what_its_states_compute(family):
    layer, u = made(family).double(), sequences(2, 50, dtype=torch.float64)
    shrink(layer, 4)
    assert relative(layer(u), formula(layer, u)) < 1e-12
    assert relative(step_by_step(layer, u), formula(layer, u)) < 1e-12
    assert (layer.states, repr(layer)) == (4, f"{family.__name__}(channels=3, states=4)")


@pytest.mark.parametrize("family", LINEAR)
def test_dropping_states_without_output_changes_nothing(family):
    layer, u = made(family), sequences()
    adapter = adapter_of(layer)
    with torch.no_grad():
        for name in adapter.parts["C"]:
            adapter.tensor(name)[:, 4:] = 0
    y = layer(u)
    assert relative(shrink(layer, 4)(u), y) < 1e-6


@pytest.mark.parametrize("family", LAYERS)
def test_shrunk_layer_can_be_copied_and_saved(family):
    layer, u = shrink(made(family), 2), sequences()
    twin = made(family, states=2, seed=1)
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(copy.deepcopy(layer)(u), layer(u))
    assert torch.equal(twin(u), layer(u))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("family", LINEAR)
def test_layer_of_another_dtype_answers_in_it(family, dtype):
    layer, u = made(family).to(dtype), sequences(dtype=dtype).requires_grad_()
    y = layer(u)
    y.sum().backward()
    assert {y.dtype, u.grad.dtype, *(p.grad.dtype for p in layer.parameters())} == {dtype}
    assert relative(y.double(), formula(layer, u)) < 4 * torch.finfo(dtype).eps + 1e-12


@pytest.mark.parametrize("family", LINEAR)
def test_autocast_keeps_the_precision_of_the_parameters(family):
    layer, u = made(family), sequences(2, 50)
    expected = layer(u)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(u)
        found = gradients(layer, y)
    assert y.dtype == torch.float32
    assert relative(y, expected) < 1e-5  # bfloat16 products would leave 1e-2
    assert all(relative(g, e) < 1e-5 for g, e in zip(found, gradients(layer, expected), strict=True))


# torch 2.13 warns about what its own tracer does with autograd functions
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("family", LAYERS)
def test_compiled_layer_follows_when_it_is_shrunk(family):
    torch._dynamo.reset()
    layer, u = made(family), sequences()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for states in (STATES, 2):
        shrink(layer, states)
        expected = gradients(layer, layer(u))
        assert all(relative(g, e) < 1e-5 for g, e in zip(gradients(layer, compiled(u)), expected, strict=True))


@pytest.mark.parametrize("family", LAYERS)
def test_layer_on_the_meta_device_gets_its_values_later(family):
    with torch.device("meta"):
        layer = family(CHANNELS, STATES)
    layer.to_empty(device="cpu")
    torch.manual_seed(0)
    layer.reset_parameters()
    assert layer(sequences()).isfinite().all()
    if family is not Mamba:  # its linear maps draw their own values when they are made
        assert torch.equal(layer(sequences()), made(family)(sequences()))


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [2, 64])
@pytest.mark.parametrize("family", LAYERS)
def test_gpu_gives_the_output_and_gradients_of_the_cpu(family, channels):
    layer, u = made(family, channels, 32), sequences(3, 130, channels)
    y = layer(u)
    expected = gradients(layer, y)
    layer = layer.cuda()
    assert relative(layer(u.cuda()).cpu(), y) < 1e-4
    assert all(relative(g.cpu(), e) < 1e-3 for g, e in zip(gradients(layer, layer(u.cuda())), expected, strict=True))


@pytest.mark.parametrize("sizes", [(0, 4), (4, 0)])
@pytest.mark.parametrize("family", LAYERS)
def test_empty_sizes_are_refused(family, sizes):
    with pytest.raises(InputError, match="must be at least 1; got"):
        family(*sizes)


@pytest.mark.parametrize("shape", [(5, 3), (2, 5, 4), (2, 5, 3, 1)])
@pytest.mark.parametrize("family", LAYERS)
def test_input_of_another_shape_is_refused(family, shape):
    with pytest.raises(InputError, match="u must be real with shape"):
        made(family)(torch.zeros(shape))


@pytest.mark.parametrize("family", LAYERS)
def test_state_from_before_a_reduction_is_refused(family):
    layer = made(family)
    state = layer.initial_state(2)
    shrink(layer, 3)
    with pytest.raises(InputError, match="initial_state again"):
        layer.step(torch.zeros(2, CHANNELS), state)
