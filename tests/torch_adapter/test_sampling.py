"""Statistics of selective layers: right, gathered by hooks that leave no trace, in constant memory, mergeable."""

from __future__ import annotations

import functools
import itertools
import pickle
import random
import threading

import numpy as np
import pytest
import torch
from torch import nn

import hankelred as hr
import hankelred_torch as ht
from hankelred_torch.adapters import collect_statistics
from hankelred_torch.layer_sums import SampleStatistics

from .selective_models import inputs, language_model, make_inert, mamba, tokens


class TwoInputs(nn.Module):
    """A model called with two tensors, with dropout and batch normalisation, whose modes matter."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.dropout = nn.BatchNorm1d(6, dtype=torch.float64), nn.Dropout(0.5)
        self.layer = mamba()
        self.norm.eval()

    def forward(self, u, scale=1.0):
        return self.layer(self.dropout(self.norm((scale * u).flatten(0, 1)).view_as(u)))


def hh(model, batches):
    """Return the sum that has the covariance of the states, of the only layer."""
    (layer,) = collect_statistics(model, batches).layers.values()
    return layer.sums.to_dict()["hh"]


def states_of(layer, u):
    """Return the states (batch, length, channels, n), outputs rows and gates of a layer, step by step."""
    u, z = layer.in_proj(u).chunk(2, dim=-1)
    u = nn.functional.silu(layer.conv1d(u.transpose(1, 2))[..., : u.shape[1]]).transpose(1, 2)
    dt, B, C = layer.x_proj(u).split([layer.dt_proj.weight.shape[1], layer.states, layer.states], dim=-1)
    delta = nn.functional.softplus(layer.dt_proj(dt))
    h, states = torch.zeros(len(u), *layer.A_log.shape, dtype=u.dtype), []
    for t in range(u.shape[1]):
        decay = torch.exp(-delta[:, t, :, None] * layer.A_log.exp())
        h = decay * h + (delta * u)[:, t, :, None] * B[:, t, None]
        states.append(h)
    return torch.stack(states, 1), C, nn.functional.silu(z)


@torch.no_grad()
def test_covariances_are_those_of_the_states_the_layer_runs_through():
    layer, batches = mamba(), inputs()
    sums = collect_statistics(layer, batches).layers[""].sums
    states, C, gate = (torch.cat(x).numpy() for x in zip(*(states_of(layer, u) for u in batches), strict=True))
    gated = gate[..., None] * states
    expected = np.einsum("btci,btcj->ij", gated, gated) / gated[..., 0].size
    # steps are computed in single precision, as the layers of all libraries do
    np.testing.assert_allclose(sums.state_covariance()[0], expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())
    expected = np.einsum("bti,btj->ij", C, C) / C[..., 0].size
    np.testing.assert_allclose(sums.output_covariance()[0], expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())


def test_hsv_are_the_roots_of_the_eigenvalues_of_both_covariances():
    layer, batches = mamba(), inputs()
    sums = collect_statistics(layer, batches).layers[""].sums
    P, Q = sums.gramians()
    expected = np.sort(np.sqrt(np.maximum(np.linalg.eigvals(P[0] @ Q[0]).real, 0)))[::-1]
    hsv = ht.hankel_singular_values(layer, batches)[""]
    np.testing.assert_allclose(hsv, expected, rtol=1e-6, atol=1e-7 * expected[0])


def test_groups_of_heads_have_hsv_of_their_own():
    pytest.importorskip("transformers")
    hsv = ht.hankel_singular_values(language_model("Mamba2"), [tokens()])
    assert {x.shape for x in hsv.values()} == {(2, 16)}


def test_parts_merge_into_the_whole():
    layer, batches = mamba(), inputs(batches=4)
    whole, first, second = (collect_statistics(layer, x) for x in (batches, batches[:1], batches[1:]))
    first.merge(second)
    for name, value in whole.layers[""].sums.to_dict().items():
        np.testing.assert_allclose(first.layers[""].sums.to_dict()[name], value, rtol=1e-12)


def test_parts_of_layers_with_norms_merge_into_the_whole():
    pytest.importorskip("transformers")
    model, batches = language_model("Jamba"), [tokens(seed=seed) for seed in (1, 2)]
    whole, first, second = (collect_statistics(model, x) for x in (batches, batches[:1], batches[1:]))
    first.merge(second)
    kept = np.array([0, 3, 5])
    for name, layer in whole.layers.items():
        assert first.layers[name].gains(kept) == pytest.approx(layer.gains(kept), rel=1e-12)


def test_merged_statistics_stand_for_batches():
    layer, batches = mamba(), inputs(batches=3)
    statistics = collect_statistics(layer, batches[:2])
    statistics.merge(collect_statistics(layer, batches[2:]))
    config = ht.CompressionConfig(order=6)
    assert ht.plan(layer, config, statistics).layers[""].hsv == pytest.approx(
        ht.plan(layer, config, batches).layers[""].hsv
    )


def test_statistics_survive_a_file_and_then_measure_on_their_probe_or_not_at_all():
    layer, batches = mamba(), inputs()
    stored = pickle.loads(pickle.dumps(collect_statistics(layer, batches)))
    config = ht.CompressionConfig(order=6, method="rotation")
    expected = ht.plan(layer, config, batches).layers[""].output_error
    assert ht.plan(layer, config, stored).layers[""].output_error == expected
    blind = ht.plan(layer, config, SampleStatistics(stored.layers)).layers[""]
    assert blind.output_error is None
    assert blind.states == 6


def test_statistics_of_another_size_are_refused():
    layer, batches = mamba(), inputs()
    statistics = collect_statistics(layer, batches)
    ht.compress_(layer, ht.CompressionConfig(order=6), batches=statistics)
    with pytest.raises(hr.InputError, match="anew"):
        ht.plan(layer, ht.CompressionConfig(order=4), statistics)


def test_memory_grows_with_neither_length_nor_batches():
    layer = mamba()
    sizes = {
        len(pickle.dumps(collect_statistics(layer, inputs(batches=batches, length=length)).layers))
        for batches, length in ((1, 20), (1, 300), (5, 20))
    }
    assert max(sizes) - min(sizes) < 50  # digits of counts


def test_batches_are_passed_as_the_model_is_called():
    model, u = TwoInputs(), inputs()[0]
    expected = hh(model, [2.0 * u])
    found = hh(model, [{"u": u, "scale": 2.0}])
    plain = [hh(model, [x]) for x in (u, (u, "target"), [{"u": u}, None])]
    np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(plain[0], expected)
    assert all(np.array_equal(x, plain[0]) for x in plain)


def everything_about(model):
    hooks = [(len(x._forward_hooks), len(x._forward_pre_hooks)) for x in model.modules()]
    return hooks, [x.training for x in model.modules()], {k: v.clone() for k, v in model.state_dict().items()}


def draws():
    return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002 (the global state is the claim)


@pytest.mark.parametrize("fails", [False, True])
def test_a_run_for_statistics_leaves_no_trace(fails):
    model, u = TwoInputs(), inputs()[0]
    model.train()
    model.norm.eval()
    hooks, modes, tensors = everything_about(model)

    def batches():
        draws()
        yield u
        if fails:
            raise RuntimeError("no more data")

    seeds = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    expected = draws()
    random.setstate(seeds[0])
    np.random.set_state(seeds[1])  # noqa: NPY002
    torch.set_rng_state(seeds[2])
    if fails:
        with pytest.raises(RuntimeError, match="no more data"):
            collect_statistics(model, batches())
    else:
        ht.plan(model, ht.CompressionConfig(order=6), [u])
    assert draws() == expected
    assert everything_about(model)[:2] == (hooks, modes)
    assert all(torch.equal(x, tensors[name]) for name, x in model.state_dict().items())


def test_dropout_takes_no_part():
    model, u = TwoInputs().train(), inputs()[0]
    first, second = (hh(model, [u]) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_padding_takes_no_part():
    pytest.importorskip("transformers")
    model, ids = language_model("Mamba", use_bias=True), tokens(length=12)
    mask = torch.ones_like(ids)
    mask[:, 8:] = 0
    padded = collect_statistics(model, [{"input_ids": ids, "attention_mask": mask}])
    short = collect_statistics(model, [ids[:, :8]])
    for name, layer in short.layers.items():
        found = padded.layers[name].sums
        np.testing.assert_allclose(
            found.state_covariance() * found.samples,
            layer.sums.state_covariance() * layer.sums.samples,
            rtol=1e-5,
            atol=1e-9,
        )


def test_models_that_were_compiled_are_seen_at_work():
    layer, batches = mamba(), inputs()
    expected = hh(layer, batches)
    compiled = torch.compile(layer, backend="eager")
    compiled(batches[0])
    np.testing.assert_array_equal(hh(compiled, batches), expected)


def test_without_batches_the_error_says_what_to_pass():
    layer = mamba()
    optimizer = torch.optim.SGD(layer.parameters())
    config = ht.CompressionConfig(order=6)
    for ask in (
        lambda: ht.plan(layer, config),
        lambda: ht.hankel_singular_values(layer),
        lambda: ht.compress_(layer, config, optimizer),
    ):
        with pytest.raises(hr.InputError, match="sample inputs of the model"):
            ask()


def test_models_without_selective_layers_need_no_batches():
    model = nn.Sequential(ht.layers.LRU(4, 16), mamba(channels=4))
    with pytest.raises(hr.InputError, match="target_modules"):
        ht.plan(model, ht.CompressionConfig(order=8))
    assert ht.plan(model, ht.CompressionConfig(order=8, target_modules=["0"])).sizes == {"0": 8}


def test_a_single_tensor_is_no_iterable_of_batches():
    with pytest.raises(hr.InputError, match="list"):
        ht.plan(mamba(), ht.CompressionConfig(order=6), inputs()[0])


def test_layers_that_are_not_called_are_named():
    model = TwoInputs()
    model.spare = mamba()
    with pytest.raises(hr.InputError, match="spare"):
        ht.plan(model, ht.CompressionConfig(order=6), inputs())
    with pytest.raises(hr.InputError, match=r"called|call"):
        collect_statistics(mamba(), [])


def test_diverged_activations_are_refused():
    layer = mamba()
    with torch.no_grad():
        layer.x_proj.weight[3, 0] = np.nan
    with pytest.raises(hr.NumericalError, match=r"Layer \(model\): .* finite"):
        collect_statistics(layer, inputs())


class Packed(ht.layers.Mamba):
    """A Mamba that begins anew with every document of a packed sequence."""

    def forward(self, u, seq_idx=None, cu_seqlens=None, position_ids=None):
        if seq_idx is not None:
            starts = torch.where(seq_idx[0, 1:] != seq_idx[0, :-1])[0] + 1 if seq_idx.shape[0] == 1 else []
        elif cu_seqlens is not None:
            starts = cu_seqlens[1:-1]
        else:
            starts = [] if position_ids is None else torch.where(position_ids[0, 1:] == 0)[0] + 1
        cut = [0, *map(int, starts), u.shape[1]]
        return torch.cat([super(Packed, self).forward(u[:, a:b]) for a, b in itertools.pairwise(cut)], 1)


def packed_documents(how="seq_idx"):
    """Return eight documents in one sequence with one way to tell them apart, and one by one."""
    documents = torch.randn(8, 12, 8, generator=torch.Generator().manual_seed(0))
    told = {
        "seq_idx": torch.arange(8).repeat_interleave(12)[None],
        "cu_seqlens": torch.arange(0, 97, 12, dtype=torch.int32),
        "position_ids": torch.arange(12).repeat(8)[None],
    }
    return {"u": documents.reshape(1, 96, 8), how: told[how]}, documents


@pytest.mark.parametrize("how", ["seq_idx", "cu_seqlens", "position_ids"])
def test_packed_documents_count_as_if_they_came_one_by_one(how):
    torch.manual_seed(0)
    layer, (packed, documents) = Packed(8, 16), packed_documents(how)
    nn.init.constant_(layer.dt_proj.bias, -6.0)  # a long memory
    found, expected = (collect_statistics(layer, [x]).layers[""].sums for x in (packed, documents))
    np.testing.assert_allclose(found.state_covariance(), expected.state_covariance(), rtol=1e-4, atol=1e-12)
    through = collect_statistics(layer, [packed["u"]]).layers[""].sums
    assert not np.allclose(found.state_covariance(), through.state_covariance(), rtol=0.1)


def test_documents_that_cannot_be_told_apart_are_refused():
    layer, u = Packed(8, 16), torch.randn(2, 12, 8)
    for told in ({"seq_idx": torch.zeros(3, 12)}, {"cu_seqlens": torch.tensor([0, 6, 12])}):
        with pytest.raises(hr.InputError, match=next(iter(told))):
            collect_statistics(layer, [{"u": u, **told}])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["FalconMamba", "Jamba"])
@pytest.mark.parametrize("padding", [12, 36])
def test_inert_states_go_without_a_trace_whatever_the_padding(name, padding, side):
    pytest.importorskip("transformers")
    model, ids = make_inert(language_model(name)), tokens()
    with torch.no_grad():
        before = model(ids).logits
        parts = [ids, torch.zeros(len(ids), padding, dtype=torch.long)]
        masks = [torch.ones_like(x) if x is ids else x for x in parts]
        batch = [torch.cat(x[::-1] if side == "left" else x, 1) for x in (parts, masks)]
        batches = [dict(zip(("input_ids", "attention_mask"), batch, strict=True))]
        ht.compress_(model, ht.CompressionConfig(order=8, method="selection"), batches=batches)
        assert torch.max(torch.abs(model(ids).logits - before)) < 1e-5  # of logits up to 6


@pytest.mark.parametrize(
    "change",
    [
        lambda x: setattr(x, "forward", torch.compile(x.forward, backend="eager")),
        lambda x: setattr(x, "forward", functools.partial(type(x).forward, x)),
        lambda x: x.compile(backend="eager"),
        lambda x: x.register_forward_hook(lambda m, i, o: o + i[0]),
        lambda x: setattr(x, "lock", threading.Lock()),
    ],
    ids=["compiled forward", "patched forward", "compiled", "output hook", "lock"],
)
def test_errors_are_measured_on_the_layer_as_it_runs(change):
    def measured(change):
        model = nn.Sequential(mamba())
        change(model[0])
        return ht.plan(model, ht.CompressionConfig(order=4), inputs()).layers["0"].output_error

    assert measured(change) == pytest.approx(measured(lambda x: None), rel=1e-9)


@pytest.mark.parametrize(
    "settings", [{"order": 6}, {"tau": 0.05}, {"tau": 0.05, "budget": "global"}, {"fraction": 0.5}]
)
def test_a_layer_that_sees_nothing_is_left_alone(settings):
    plan = ht.plan(mamba(), ht.CompressionConfig(**settings), [torch.zeros(4, 10, 6, dtype=torch.float64)])
    assert not plan.is_cut
    assert "no signal" in plan.layers[""].reason


class Noise(torch.utils.data.Dataset):
    """Sequences with targets, numbered."""

    def __len__(self):
        return 40

    def __getitem__(self, i):
        return torch.full((12, 6), 0.1 + i, dtype=torch.float64), i


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("own_generator", [False, True])
def test_the_loader_that_trains_is_not_disturbed(workers, own_generator):
    def epoch(look):
        generator = torch.Generator().manual_seed(5) if own_generator else None
        torch.manual_seed(7)
        loader = torch.utils.data.DataLoader(
            Noise(), 4, shuffle=True, num_workers=workers, persistent_workers=bool(workers), generator=generator
        )
        seen = []
        for _ in range(2):
            for k, (_, numbers) in enumerate(loader):
                seen += numbers.tolist()
                if look and k in (2, 5):
                    assert collect_statistics(layer, loader).layers[""].sums.steps == 8 * 4 * 12
        return seen

    layer = mamba()
    assert epoch(False) == epoch(True)


class Epochs(torch.utils.data.Sampler):
    """Another order in every epoch, which it counts, from a generator of NumPy."""

    def __init__(self):
        self.epoch, self.random = 0, np.random.default_rng(0)

    def __iter__(self):
        self.epoch += 1
        return iter((self.random.permutation(40) + self.epoch) % 40)

    def __len__(self):
        return 40


def test_samplers_that_count_epochs_are_not_disturbed():
    # history: accelerate's, too, goes on to the next epoch when it has been read to its end
    def epochs(look):
        loader, seen = torch.utils.data.DataLoader(Noise(), 20, sampler=Epochs()), []
        for _ in range(3):
            for _, numbers in loader:
                seen += numbers.tolist()
                if look:
                    collect_statistics(layer, loader)
        return seen

    layer = mamba()
    assert epochs(False) == epochs(True)


def test_the_loader_of_accelerate_is_not_disturbed():
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    layer, loader = accelerator.prepare(mamba(), torch.utils.data.DataLoader(Noise(), 4))
    ends = []
    for _ in loader:
        collect_statistics(layer, loader)
        ends.append(accelerator.gradient_state.end_of_dataloader)
    assert ends == [False] * 9 + [True]


def test_at_most_eight_batches_are_drawn():
    drawn = iter(range(100))
    collect_statistics(mamba(), (u for u, _ in zip(itertools.cycle(inputs()), drawn, strict=False)))
    assert next(drawn) == 8


@pytest.mark.parametrize("batch", [{"wrong": 1}, ["text"], torch.zeros(3, 4, 5), (), None], ids=str)
def test_batches_that_the_model_cannot_be_called_with_are_refused(batch):
    with pytest.raises(hr.InputError, match="batches must hold inputs of the model"):
        ht.plan(TwoInputs(), ht.CompressionConfig(order=6), [batch])


@pytest.mark.parametrize("batches", [5, "text", {"u": 1}, torch.zeros(2)], ids=str)
def test_what_is_no_iterable_of_batches_is_refused(batches):
    with pytest.raises(hr.InputError, match="must be an iterable"):
        ht.plan(mamba(), ht.CompressionConfig(order=6), batches)


def test_buffers_attributes_and_gradients_are_afterwards_as_before():
    class Counting(TwoInputs):
        def forward(self, u):
            self.count, self.last = self.count + 1, u
            self.total += 1
            return super().forward(u)

    model = Counting()
    model.count = 0
    model.register_buffer("total", torch.zeros(()))
    model(inputs()[0]).sum().backward()
    model.train()
    gradients = [x.grad.clone() for x in model.parameters() if x.grad is not None]
    before = {name: x.clone() for name, x in model.state_dict().items()}
    last = model.last
    ht.plan(model, ht.CompressionConfig(order=6), inputs())
    assert (model.count, model.last is last) == (1, True)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert all(
        torch.equal(x.grad, y)
        for x, y in zip((p for p in model.parameters() if p.grad is not None), gradients, strict=True)
    )
