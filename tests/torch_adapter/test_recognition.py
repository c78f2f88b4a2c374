"""A layer is known by its class, by all of its tensors and by what it computes: none of these alone is believed."""

from __future__ import annotations

import copy
import functools
import math
import random
import threading
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

import hankelred as hr
import hankelred_torch as ht
from hankelred_torch.adapters import check, refusals
from hankelred_torch.ops import selective_scan
from hankelred_torch.ops.taps import short_convolution

from . import s4_repository
from .selective_models import (
    MAMBA,
    MAMBA2,
    GatedLinearAttention,
    GatedOutput,
    enlarged,
    inputs,
    language_model,
    mamba,
)

TO_EIGHT = ht.CompressionConfig(order=8)


def kernel_class(disc, **extra):
    """Return a new class that bears the name and the tensors of the kernel of state-spaces/s4, with some formula."""

    class S4DKernel(nn.Module):
        def __init__(self, channels=3, states=16):
            super().__init__()
            torch.manual_seed(0)
            self.C = nn.Parameter(torch.randn(channels, states, 2))
            self.log_dt = nn.Parameter(torch.rand(channels) * 4 - 7)
            self.log_A_real = nn.Parameter(torch.full((channels, states), math.log(0.5)))
            self.A_imag = nn.Parameter(math.pi * torch.arange(states).float().repeat(channels, 1))
            for name, x in extra.items():
                setattr(self, name, nn.Parameter(x.clone()))

        def forward(self, L):
            C = torch.view_as_complex(self.C) * getattr(self, "scale", 1.0)
            step = softplus(self.log_dt) if disc == "softplus" else self.log_dt.exp()
            A = torch.complex(-self.log_A_real.exp(), self.A_imag)
            rates = A * step[:, None]
            if disc in ("zoh", "softplus"):
                C = C * (rates.exp() - 1) / A
            elif disc == "bilinear":
                C = C * step[:, None] / (1 - rates / 2)
                rates = torch.log((1 + rates / 2) / (1 - rates / 2))
            return 2 * torch.einsum("hn,hnl->hl", C, torch.exp(rates[..., None] * torch.arange(L))).real

    return S4DKernel


def test_a_kernel_of_the_known_formula_is_known_by_its_name():
    kernel = kernel_class("zoh")()
    assert ht.state_sizes(kernel) == {"": 16}
    assert check(kernel) < 1e-10


@pytest.mark.parametrize("disc", ["bilinear", "dirac", "softplus"])
def test_a_kernel_of_another_formula_is_refused_with_the_difference(disc):
    kernel = kernel_class(disc)()
    before = copy.deepcopy(kernel.state_dict())
    assert not ht.find_ssm_layers(kernel)
    with pytest.raises(hr.InputError, match=r"differ by \d"):
        ht.compress_(kernel, TO_EIGHT)
    with pytest.raises(hr.InputError, match=r"differ by \d"):
        check(kernel)
    assert all(torch.equal(x, before[name]) for name, x in kernel.state_dict().items())


def test_a_factor_that_starts_as_one_is_seen():
    with pytest.raises(hr.InputError, match="differ by"):
        check(kernel_class("zoh", scale=torch.ones(()))())


@pytest.mark.parametrize("shape", [(16,), (3, 16), (16, 2)])
def test_further_tensors_of_the_states_are_refused_by_name(shape):
    kernel = kernel_class("zoh", own_B=torch.ones(shape))()
    with pytest.raises(hr.InputError, match=r"S4DKernelAdapter does not know; got own_B"):
        ht.plan(kernel, TO_EIGHT)


def test_a_kernel_with_complex_matrices_is_refused_before_it_is_read():
    kernel = kernel_class("zoh")()
    kernel.C = nn.Parameter(torch.randn(3, 16, dtype=torch.cfloat))
    with pytest.raises(hr.InputError, match="S4DKernelAdapter must fit"):
        ht.plan(kernel, TO_EIGHT)


def test_one_run_serves_all_layers_of_a_class(monkeypatch):
    runs, kernel = [], kernel_class("zoh")
    monkeypatch.setattr(kernel, "forward", lambda self, L, f=kernel.forward: runs.append(L) or f(self, L))
    model = nn.Sequential(kernel(), kernel(), kernel())
    ht.find_ssm_layers(model)
    first = len(runs)
    ht.plan(model, TO_EIGHT)
    assert 0 < len(runs) == first <= 8


def test_known_layers_of_the_library_are_not_run(monkeypatch):
    for layer in (ht.layers.LRU(3, 8), ht.layers.S5(3, 8), ht.layers.S4D(3, 8), ht.layers.Mamba(3, 8)):
        layer.register_forward_pre_hook(lambda *_: pytest.fail("the layer was run"))
        assert ht.state_sizes(layer) == {"": 8}


class Gated(ht.layers.LRU):
    """An LRU with a gate on what goes into every state."""

    def __init__(self, channels=4, states=16, *, buffer=False):
        super().__init__(channels, states)
        if buffer:
            self.register_buffer("gate", torch.zeros(states))
        else:
            self.gate = nn.Parameter(torch.zeros(states))

    def forward(self, u):
        B, C, D = self.system_matrices()
        B = B * torch.sigmoid(self.gate)[:, None]
        x, y = torch.zeros(len(u), B.shape[0], dtype=B.dtype), []
        for u_t in u.unbind(1):
            x = self.rates().exp().to(B.dtype) * x + u_t.to(B.dtype) @ B.T
            y.append((x @ C.T).real + D * u_t)
        return torch.stack(y, 1)


@pytest.mark.parametrize("buffer", [False, True])
def test_a_subclass_with_a_tensor_of_its_states_is_refused_before_any_cut(buffer):
    layer, u = Gated(buffer=buffer), torch.randn(1, 5, 4)
    before = layer(u)
    with pytest.raises(hr.InputError, match=r"got gate \(16,\)"):
        ht.compress_(layer, TO_EIGHT)
    assert torch.equal(layer(u), before)


def test_others_stay_when_one_layer_is_refused():
    model = nn.Sequential(Gated(), ht.layers.LRU(4, 16))
    assert ht.state_sizes(model) == {"1": 16}
    assert set(refusals(model)) == {"0"}
    assert "gate" in refusals(model)["0"]


def test_a_subclass_with_the_formula_of_its_base_is_known_by_it():
    class Named(ht.layers.LRU):
        def forward(self, u):
            self.calls = getattr(self, "calls", 0) + 1
            return super().forward(u)

    layer = Named(4, 16)
    ht.compress_(layer, TO_EIGHT)
    assert ht.state_sizes(layer) == {"": 8}
    assert not hasattr(layer, "calls")  # a check leaves no trace


def test_a_subclass_with_another_formula_is_refused():
    class Delayed(ht.layers.LRU):
        def forward(self, u):
            return super().forward(u).roll(2, dims=1)

    with pytest.raises(hr.InputError, match="differ by"):
        ht.plan(Delayed(4, 16), TO_EIGHT)


def test_a_forward_that_is_patched_in_one_layer_is_compared_there():
    layer, twice = ht.layers.LRU(4, 16), ht.layers.LRU(4, 16)
    twice.forward = types.MethodType(lambda self, u: 2 * type(self).forward(self, u), twice)
    layer.forward = functools.partial(type(layer).forward, layer)
    assert ht.state_sizes(nn.ModuleList([layer, twice])) == {"0": 16}
    compiled = ht.layers.LRU(4, 16)
    compiled.forward = torch.compile(compiled.forward, backend="eager")
    assert check(compiled) < 1e-10
    assert ht.state_sizes(compiled) == {"": 16}


class PlainGamma(nn.Module):
    """The tensors of an LRU, but gamma itself where it stores the logarithm, and a dense D or none."""

    def __init__(self, channels=4, states=8, *, dense=False):
        super().__init__()
        torch.manual_seed(0)
        for name, tensor in ht.layers.LRU(channels, states).named_parameters():
            self.register_parameter(name, nn.Parameter(tensor.detach().clone()))
        if dense:
            self.D = nn.Parameter(torch.randn(channels, channels))

    def forward(self, u):
        lam = torch.exp(torch.complex(-self.nu_log.exp(), self.theta_log.exp()))
        B = self.gamma_log[:, None] * torch.complex(self.B_re, self.B_im)
        C, x, y = torch.complex(self.C_re, self.C_im), 0.0, []
        for u_t in u.unbind(1):
            x = lam * x + u_t.to(B.dtype) @ B.T
            y.append((x @ C.T).real + (u_t @ self.D.T if self.D.ndim == 2 else u_t * self.D))
        return torch.stack(y, 1)


ht.register_adapter(PlainGamma, ht.adapters.LRUAdapter)


def test_a_registered_class_is_compared_with_its_adapter():
    with pytest.raises(hr.InputError, match="PlainGamma must compute what LRUAdapter reads"):
        ht.plan(PlainGamma(), TO_EIGHT)


class Counted(PlainGamma):
    """A plain LRU that keeps its number of states."""

    def __init__(self, channels=4, states=16):
        super().__init__(channels, states)
        self.d_hidden = states

    def forward(self, u):
        lam = torch.exp(torch.complex(-self.nu_log.exp(), self.theta_log.exp()))
        B = self.gamma_log.exp()[:, None] * torch.complex(self.B_re, self.B_im)
        x, y = torch.zeros(len(u), self.d_hidden, dtype=B.dtype), []
        for u_t in u.unbind(1):
            x = lam * x + u_t.to(B.dtype) @ B.T
            y.append((x @ torch.complex(self.C_re, self.C_im).T).real + u_t * self.D)
        return torch.stack(y, 1)


class CountedAdapter(ht.adapters.LRUAdapter):
    def sizes(self, states):
        return {"d_hidden": states}


def test_a_size_that_an_adapter_forgets_is_found_before_a_cut():
    with pytest.raises(hr.InputError, match="with fewer"):
        check(Counted())
    ht.register_adapter(Counted, CountedAdapter)
    layer = Counted()
    assert check(layer) < 1e-6
    ht.compress_(layer, TO_EIGHT)
    assert layer(torch.randn(1, 5, 4)).shape == (1, 5, 4)


class Tallied(ht.layers.LRU):
    """The formula of its base, with a size, or a tensor that is no parameter, that only it knows."""

    def __init__(self, kind):
        super().__init__(4, 16)
        self.tally = torch.zeros(16) if kind == "tensor" else 16

    def forward(self, u):
        tally = self.tally if isinstance(self.tally, torch.Tensor) else torch.zeros(self.tally)
        return super().forward(u) + 0 * (tally * self.nu_log).sum()


@pytest.mark.parametrize("kind", ["size", "tensor"])
def test_a_subclass_with_a_size_of_its_own_is_refused_before_a_cut(kind):
    # history: cut with success, and a size mismatch at the next forward pass
    with pytest.raises(hr.InputError, match="Tallied must run with fewer states to be reduced; got RuntimeError"):
        ht.compress_(Tallied(kind), TO_EIGHT)


def draws():
    return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002 (the global state is the claim)


def test_a_check_leaves_no_trace():
    class Seen(ht.layers.LRU):
        def __init__(self):
            super().__init__(4, 8)
            self.drop, self.lock = nn.Dropout(0.5), threading.Lock()  # a layer that cannot be copied
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, u):
            self.calls += 1
            self.last = u
            draws()
            return self.drop(super().forward(u))

    layer = Seen().train()
    before = {name: (id(x), x.clone()) for name, x in layer.state_dict(keep_vars=True).items()}
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    expected = draws()
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    assert check(layer) < 1e-10
    assert draws() == expected
    assert layer.training
    assert layer.drop.training
    assert not hasattr(layer, "last")
    for name, x in layer.state_dict(keep_vars=True).items():
        assert id(x) == before[name][0]
        assert torch.equal(x, before[name][1])
        assert x.grad is None


@pytest.mark.parametrize("name", [*MAMBA, *MAMBA2])
def test_layers_of_hugging_face_compute_what_their_adapters_believe(name):
    pytest.importorskip("transformers")
    for adapter in ht.find_ssm_layers(language_model(name)).values():
        assert check(adapter.layer) < 1e-6


@pytest.mark.parametrize("bidir", [False, True])
def test_layers_of_s5_pytorch_compute_what_is_read(bidir):
    s5 = pytest.importorskip("s5")
    assert check(s5.S5(4, 8, bidir=bidir).seq) < 1e-6


@pytest.mark.parametrize(
    "options",
    [{}, {"channels": 2}, {"real_transform": "none"}, {"dt_transform": "softplus"}, {"channels": 2, "n_ssm": 2}],
    ids=str,
)
def test_kernels_of_the_repository_compute_what_is_read(options):
    assert check(s4_repository.SSMKernelDiag(4, 8, **options)) < 1e-10


@pytest.mark.parametrize("n_ssm", [1, 2, 4])
def test_kernels_derived_from_that_of_the_repository_are_compared_with_what_is_read(n_ssm):
    # history: of channels that share poles nothing but another order of the states was tried
    class Late(s4_repository.SSMKernelDiag):
        def forward(self, L):
            return super().forward(L).roll(1, dims=-1)

    assert "differ by" in refusals(Late(4, 8, n_ssm=n_ssm))[""]


def test_a_mamba_of_another_formula_is_refused():
    class Softplus(ht.layers.Mamba):  # rates by another function than the exponential
        def forward(self, u):
            kept = self.A_log
            self.A_log = nn.Parameter(torch.log(softplus(kept)))
            y = super().forward(u)
            self.A_log = kept
            return y

    assert "differ by" in refusals(Softplus(6, 8))[""]


def other_formula(layer, name, change):
    """Make a layer of a class derived from that of another, which runs with one tensor or setting as changed."""

    class Other(type(layer)):
        def forward(self, u):
            kept = getattr(self, name)
            setattr(self, name, change(kept))
            y = super().forward(u)
            setattr(self, name, kept)
            return y

    layer.__class__ = Other
    return layer


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("A_log", lambda x: nn.Parameter(softplus(x).log())),  # rates by another function than the exponential
        ("dt_bias", lambda x: nn.Parameter(0 * x)),
        ("time_step_limit", lambda _: (0.0, 0.1)),
        ("D", lambda x: nn.Parameter(2 * x)),
    ],
    ids=["A_log", "dt_bias", "time_step_limit", "D"],
)
def test_a_mamba2_of_another_formula_is_refused(name, change):
    # history: states could change places in these, too, and that was all that was compared
    pytest.importorskip("transformers")
    layer = language_model("Mamba2").backbone.layers[0].mixer
    assert "differ by" in refusals(other_formula(layer, name, change))[""]


@pytest.mark.parametrize("kind", [GatedLinearAttention, GatedOutput])
def test_attention_computes_what_its_adapter_believes(kind):
    assert check(enlarged(kind())) < 1e-10
    other = other_formula(enlarged(kind()), "gate_logit_normalizer", lambda _: 1)
    assert "differ by" in refusals(other)[""]


class BothWays(ht.layers.Mamba):
    """Mamba over a sequence and back, the way back with rates of its own, as in vision models."""

    def __init__(self, channels=8, states=16):
        super().__init__(channels, states)
        self.A_b_log = nn.Parameter(self.A_log.detach().clone())

    def forward(self, u):
        x = short_convolution(self.in_proj(u).chunk(2, -1)[0], *self._taps())
        delta, _, B, C = self._selected(x)
        back = (y.flip(1) for y in (x, delta, B, C))
        x, delta, B, C = back
        return super().forward(u) + self.out_proj(selective_scan(x, delta, -self.A_b_log.exp(), B, C, self.D).flip(1))


class Inner(ht.layers.Mamba):
    """Mamba with a submodule that holds a row for every state."""

    def __init__(self, channels=8, states=16):
        super().__init__(channels, states)
        self.mixer = nn.Linear(states, states)


@pytest.mark.parametrize(("layer_class", "tensor"), [(BothWays, "A_b_log"), (Inner, "mixer.weight")])
def test_rows_of_states_in_forks_are_named(layer_class, tensor):
    with pytest.raises(hr.InputError, match=f"MambaAdapter does not know; got {tensor}"):
        ht.plan(layer_class(), TO_EIGHT, inputs(channels=8, dtype=torch.float32))


@pytest.mark.filterwarnings("ignore")
def test_observers_of_quantisation_that_hold_rows_are_named():
    from torch.ao.quantization import get_default_qat_qconfig, prepare_qat

    model = nn.Sequential(ht.layers.Mamba(8, 16)).train()
    model.qconfig = get_default_qat_qconfig("x86")
    u = inputs(channels=8, dtype=torch.float32)
    prepare_qat(model, inplace=True)(u[0])
    with pytest.raises(hr.InputError, match=r"x_proj\.weight_fake_quant"):
        ht.plan(model, TO_EIGHT, u)


def test_layers_that_cannot_be_copied_are_planned_for():
    layer = mamba()
    layer.lock = threading.Lock()
    assert ht.plan(layer, TO_EIGHT, inputs()).layers[""].output_error > 0


def test_a_tensor_once_seen_apart_from_the_states_stays_so():
    class Normed(ht.layers.Mamba):
        def __init__(self):
            super().__init__(8, 16)
            self.last = nn.Linear(8, 8)

    layer, batches = Normed(), inputs(channels=8, dtype=torch.float32)
    ht.compress_(layer, TO_EIGHT, batches=batches)  # 8 states and 8 channels from now on
    assert ht.state_sizes(layer) == {"": 8}


def test_tensors_named_as_others_are_left_alone():
    class Adapter(ht.adapters.MambaAdapter):
        others = (*ht.adapters.MambaAdapter.others, "last")

    class Sixteen(ht.layers.Mamba):
        def __init__(self):
            super().__init__(8, 16)
            self.last = nn.Linear(16, 16)

    assert "last" in refusals(Sixteen())[""]
    ht.register_adapter(Sixteen, Adapter)
    assert ht.state_sizes(Sixteen()) == {"": 16}


class MambaBlock(nn.Module):
    """A block of an unknown class with the published tensors of Mamba."""

    def __init__(self):
        super().__init__()
        self.inner = [mamba(dtype=torch.float32)]
        for name, module in self.inner[0].named_children():
            self.add_module(name, module)
        self.A_log, self.D = self.inner[0].A_log, self.inner[0].D

    def forward(self, u):
        return self.out_proj(u)


def test_an_unknown_class_with_known_tensors_is_told_what_to_write():
    line = r"try register_adapter\(MambaBlock, hankelred_torch\.adapters\.MambaAdapter\)"
    for ask in (lambda: ht.read_system(MambaBlock()), lambda: ht.plan(nn.Sequential(MambaBlock()), TO_EIGHT)):
        with pytest.raises(hr.InputError, match=line):
            ask()
    with pytest.raises(hr.InputError) as error:
        ht.read_system(nn.Linear(3, 3))
    assert "transformers" not in str(error.value)  # no list of what else is known


@pytest.mark.parametrize(
    "name",
    "ZambaMambaMixer Qwen3NextGatedDeltaNet KimiLinearDeltaAttention GatedDeltaNet xLSTMLayer mLSTMCell "
    "MiniMaxLightningAttention RwkvSelfAttention".split(),
)
def test_layers_without_an_adapter_are_refused_by_name(name):
    layer = type(name, (nn.Linear,), {})(3, 3)
    with pytest.raises(hr.InputError, match=f"{name} must"):
        ht.plan(nn.Sequential(layer), TO_EIGHT)
    with pytest.raises(hr.InputError, match=f"{name} must"):
        ht.read_system(layer)


@pytest.mark.parametrize(
    "wrap", [lambda m: torch.compile(m, backend="eager"), nn.DataParallel], ids=["compile", "parallel"]
)
def test_layers_inside_wrappers_have_the_names_of_the_model(wrap):
    model = wrap(nn.Sequential(nn.Linear(4, 4), ht.layers.LRU(4, 16)))
    assert ht.state_sizes(model) == {"1": 16}
    ht.compress_(model, ht.plan(model, ht.CompressionConfig(order={"1": 5})))
    assert ht.state_sizes(model) == {"1": 5}
    assert ht.read_system(wrap(ht.layers.LRU(4, 16))).n == 16


def test_layers_without_data_are_named_with_the_call_that_helps():
    accelerate = pytest.importorskip("accelerate")
    model = nn.Sequential(ht.layers.LRU(4, 16))
    accelerate.cpu_offload(model, execution_device="cpu")
    with pytest.raises(hr.InputError, match="LRU must hold its data"):
        ht.plan(model, TO_EIGHT)
    accelerate.hooks.remove_hook_from_submodules(model)
    assert ht.plan(model, TO_EIGHT).sizes == {"0": 8}
    with torch.device("meta"):
        layer = Gated()
    assert "gate" in refusals(layer)[""]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"target_modules": ["x_proj"]}, r"x_proj\.weight.*merge_and_unload"),
        ({"target_modules": ["lm_head"], "modules_to_save": ["mixer"]}, "PEFT keeps"),
    ],
    ids=["x_proj", "modules_to_save"],
)
@pytest.mark.filterwarnings("ignore")
def test_layers_wrapped_by_peft_are_named_with_the_call_that_helps(options, match):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, **options)
    model = peft.get_peft_model(language_model("Mamba"), config)
    with pytest.raises(hr.InputError, match=match):
        ht.plan(model, TO_EIGHT, [{"input_ids": torch.zeros(1, 4, dtype=torch.long)}])


@pytest.mark.filterwarnings("ignore")
def test_adapters_of_peft_beside_the_states_do_not_matter():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(language_model("Mamba"), peft.LoraConfig(r=16, target_modules=["in_proj"]))
    assert set(ht.state_sizes(model).values()) == {16}


def test_quantised_rows_are_named():
    torchao = pytest.importorskip("torchao.quantization")
    model = language_model("Mamba2", hidden_size=32, num_heads=8)
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig(), filter_fn=lambda m, name: name.endswith("in_proj"))
    assert all("quantised" in why for why in refusals(model).values())
    assert len(refusals(model)) == 2


@pytest.mark.parametrize("drift", [0.0, 0.2])
def test_a_student_and_its_averaged_teacher_in_one_model_are_refused(drift):
    model = nn.ModuleDict({"student": ht.layers.LRU(4, 16)})
    model["teacher"] = copy.deepcopy(model["student"]).requires_grad_(False)
    with torch.no_grad():
        for x in model["student"].parameters():
            x.mul_(1 + drift * torch.randn_like(x))
    with pytest.raises(hr.InputError, match=r"'teacher'.*ema="):
        ht.compress_(model, TO_EIGHT)
    ht.compress_(model, ht.CompressionConfig(order=8, target_modules=["student"]))
    assert ht.state_sizes(model) == {"student": 8, "teacher": 16}


def test_frozen_layers_that_are_no_copies_are_cut():
    model = nn.Sequential(ht.layers.LRU(4, 16).requires_grad_(False), ht.layers.LRU(4, 16))
    assert ht.plan(model, TO_EIGHT).sizes == {"0": 8, "1": 8}


def test_a_layer_that_has_diverged_tells_nothing_of_its_class():
    kernel = kernel_class("zoh")
    broken, whole = kernel(), kernel()
    with torch.no_grad():
        broken.C[0, 0, 0] = np.nan
    assert not refusals(broken)
    with pytest.raises(hr.InputError, match="C must be finite"):
        ht.plan(broken, TO_EIGHT)
    assert ht.plan(whole, TO_EIGHT).sizes == {"": 8}


def test_models_that_are_none_are_refused():
    for ask in (ht.find_ssm_layers, ht.state_sizes, refusals, check, ht.read_system):
        with pytest.raises(hr.InputError, match="must be a"):
            ask("model")
