"""Claims about stopping, going on and handing a shrunken model over."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import hankelred as hr
import hankelred_torch as ht

from .adapter_models import Stack, assert_consistent, assert_unchanged, inputs, lru, snapshot, train
from .continuous_layers import FAMILIES, made
from .training_runs import OPTIMIZERS, Run, assert_same

CONFIG = {"fraction": 0.7, "end_step": 8, "attempts": 4, "force": True, "rewarm": 3}
STEPS = 14


def scripted_guard(settle_steps=1):
    """Return a guard whose metric depends on nothing but the model, and fails for some cuts."""
    return ht.Guard(lambda model: float(model.first.states), tolerance=2.0, mode="max", settle_steps=settle_steps)


def uninterrupted(**options):
    run = Run(CONFIG, **options)
    run.steps(STEPS)
    return run


def without_times(history):
    return [record | {"seconds": 0, "analysis_seconds": 0} for record in history.to_list()]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("stop", [3, 8])
def test_resumed_run_is_the_uninterrupted_one_bit_for_bit(optimizer, stop, tmp_path):
    straight = uninterrupted(optimizer=optimizer)
    first = Run(CONFIG, optimizer=optimizer)
    first.steps(stop)
    first.save(tmp_path / "run.pt", extra={"step": stop})
    resumed = Run(CONFIG, optimizer=optimizer, seed=99)
    assert resumed.load(tmp_path / "run.pt") == {"step": stop}
    assert_consistent(resumed.model, resumed.optimizer)
    resumed.steps(STEPS - stop)
    assert_same(resumed.weights(), straight.weights())
    assert without_times(resumed.compressor.history) == without_times(straight.compressor.history)
    assert any(record.cut for record in straight.compressor.history)


@pytest.mark.parametrize("stop", [2, 3, 7, 8, 10])
def test_run_resumed_while_a_guard_decides_is_the_uninterrupted_one(stop, tmp_path):
    straight = uninterrupted(guard=scripted_guard())
    assert {record.rolled_back for record in straight.compressor.history} == {False, True}
    first = Run(CONFIG, guard=scripted_guard())
    first.steps(stop)
    first.save(tmp_path / "run.pt")
    resumed = Run(CONFIG, guard=scripted_guard(), seed=99)
    resumed.load(tmp_path / "run.pt")
    undecided = resumed.compressor.state_dict()["trial"] is not None
    assert undecided == (stop in (2, 3, 8))  # the first cut, then half of it, and a later one
    resumed.steps(STEPS - stop)
    assert_same(resumed.weights(), straight.weights())
    assert without_times(resumed.compressor.history) == without_times(straight.compressor.history)


def train_to_the_end(folder):
    """Go on from the last checkpoint, save after every step, and leave the result; run in a process that is killed."""
    torch.set_num_threads(1)
    run = Run(CONFIG, guard=scripted_guard())
    path = Path(folder) / "run.pt"
    done = run.load(path) if path.exists() else 0
    for step in range(done, STEPS):
        run.step()
        run.save(path, extra=step + 1)
    torch.save(run.weights(), Path(folder) / "result.tmp")
    os.replace(Path(folder) / "result.tmp", Path(folder) / "result.pt")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes to be killed are forked")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_killed_runs_come_to_the_same_weights(tmp_path):
    kills = int(os.environ.get("HANKELRED_KILLS", "6"))  # 50 make a long test
    wanted = uninterrupted(guard=scripted_guard()).weights()
    context, generator = multiprocessing.get_context("fork"), random.Random(0)
    killed, folder = 0, tmp_path
    while killed < kills:
        process = context.Process(target=train_to_the_end, args=(folder,))
        process.start()
        time.sleep(generator.uniform(0.0, 0.4))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.join()
        if (folder / "result.pt").exists():  # finished: start another run
            assert_same(torch.load(folder / "result.pt"), wanted)
            folder = tmp_path / f"after_{killed}"
            folder.mkdir(exist_ok=True)
    process = context.Process(target=train_to_the_end, args=(folder,))
    process.start()
    process.join()
    assert_same(torch.load(folder / "result.pt"), wanted)


def test_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    run = Run(CONFIG)
    run.save(tmp_path / "run.pt", extra=1)

    def half_a_file(state, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half_a_file)
    with pytest.raises(OSError, match="disk full"):
        run.save(tmp_path / "run.pt", extra=2)
    assert os.listdir(tmp_path) == ["run.pt"]
    assert Run(CONFIG, seed=5).load(tmp_path / "run.pt") == 1


def test_checkpoints_before_and_after_cuts_can_be_resumed_from(tmp_path):
    config = {"order": 4, "end_step": 4, "attempts": 1, "force": True}
    run = Run(config, on_cut=ht.Checkpoint(tmp_path / "cuts"))
    run.steps(10)
    assert sorted(os.listdir(tmp_path / "cuts")) == ["step_00000004_after.pt", "step_00000004_before.pt"]
    before, after = Run(config, seed=3), Run(config, seed=3)
    before.load(tmp_path / "cuts" / "step_00000004_before.pt")
    assert before.model.first.states == 10
    before.steps(6)
    assert before.model.first.states == 10  # the attempt is behind it
    after.load(tmp_path / "cuts" / "step_00000004_after.pt")
    after.steps(6)
    assert_same(after.weights(), run.weights())


def test_other_files_and_other_counts_are_refused(tmp_path):
    run = Run(CONFIG)
    torch.save(run.model.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(hr.InputError, match=r"must hold a .hankelred checkpoint 2.; got another file.* call resize_"):
        run.load(tmp_path / "weights.pt")
    run.save(tmp_path / "run.pt")
    with pytest.raises(hr.InputError, match=r"ema must be what was saved; got 0 and 1 in the checkpoint"):
        ht.load_checkpoint(tmp_path / "run.pt", run.model, run.optimizer, run.compressor, restore=run.restore)
    with pytest.raises(hr.InputError, match="the checkpoint holds a compressor"):
        ht.load_checkpoint(tmp_path / "run.pt", run.model, run.optimizer, None, run.ema, run.restore)


def cut_stack():
    model = Stack()
    ht.compress_(model, ht.CompressionConfig(order={"first": 5, "second": 3}))
    return model


def test_resized_model_loads_and_gives_the_same_output():
    small, model = cut_stack(), Stack(seed=3)
    assert ht.resize_(model, small.state_dict()) == {"first": 5, "second": 3}
    model.load_state_dict(small.state_dict())
    assert torch.equal(model(inputs()), small(inputs()))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda x: x.__name__)
def test_layers_of_every_family_are_resized(family):
    small, model = made(family), made(family, seed=1)
    states = ht.find_ssm_layers(small)[""].states // 2
    ht.compress_(small, ht.CompressionConfig(order=states, min_cut=0.0))
    assert ht.resize_(model, small.state_dict()) == ht.state_sizes(small)
    model.load_state_dict(small.state_dict())
    assert all(torch.equal(x, y) for x, y in zip(model.parameters(), small.parameters(), strict=True))
    assert ht.hankel_singular_values(model)[""].tolist() == ht.hankel_singular_values(small)[""].tolist()


def test_resizing_works_in_both_directions():
    model = cut_stack()
    assert ht.resize_(model, Stack().state_dict()) == {"first": 12, "second": 8}


def test_optimizer_made_before_the_resize_gets_the_new_parameters():
    small, model = cut_stack(), Stack(seed=3)
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, 1)
    ht.resize_(model, small.state_dict(), optimizer)
    assert_consistent(model, optimizer)
    assert model.first.B_re not in optimizer.state
    train(model, optimizer, 1)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "must hold the tensors of every state space layer; got none called 'first.nu_log'"),
        (Stack(channels=4).state_dict(), r"first.B_re must differ .* no more than the number of states; got \(12, 4\)"),
        (Stack().state_dict() | {"second.C_im": torch.zeros(3, 5)}, "must agree on the number of states"),
    ],
)
def test_state_dict_of_another_model_is_refused_and_nothing_changes(state, message):
    model = cut_stack()
    before = snapshot(model)
    with pytest.raises(hr.InputError, match=message):
        ht.resize_(model, state)
    assert_unchanged(before, model)


def test_pretrained_model_comes_back_with_its_sizes(tmp_path):
    small = cut_stack()
    ht.save_pretrained(small, tmp_path / "model")
    for fresh in (Stack(seed=3), lambda: Stack(seed=4)):
        loaded = ht.from_pretrained(tmp_path / "model", fresh)
        assert torch.equal(loaded(inputs()), small(inputs()))
    manifest = json.loads((tmp_path / "model" / "hankelred.json").read_text())
    assert manifest["state_sizes"] == {"first": 5, "second": 3}
    assert manifest["hankelred"] == hr.__version__


def hugging_face_model():
    """Return a class of model as users of transformers write them."""
    transformers = pytest.importorskip("transformers")

    class TinyConfig(transformers.PretrainedConfig):
        model_type = "tiny"

    class TinyModel(transformers.PreTrainedModel):
        config_class = TinyConfig

        def __init__(self, config):
            super().__init__(config)
            self.inner = Stack(dtype=torch.float32)
            self.post_init()

        def _init_weights(self, module):
            pass

        def forward(self, u):
            return self.inner(u)

    return TinyModel, TinyConfig


def test_hugging_face_model_comes_back_with_its_sizes(tmp_path):
    model_class, config_class = hugging_face_model()
    model = model_class(config_class())
    ht.compress_(model, ht.CompressionConfig(order={"inner.first": 5}))
    ht.save_pretrained(model, tmp_path / "model")
    make = model_class.__init__
    loaded = ht.from_pretrained(tmp_path / "model", model_class)
    u = inputs(dtype=torch.float32)
    assert ht.state_sizes(loaded) == {"inner.first": 5, "inner.second": 8}
    assert torch.equal(loaded(u), model(u))
    assert type(loaded) is model_class
    assert model_class.__init__ is make
    with pytest.raises(hr.InputError, match="transformers has none called 'TinyModel'"):
        ht.from_pretrained(tmp_path / "model")


def test_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(hr.InputError, match=r"must hold a model\.pt"):
        ht.from_pretrained(tmp_path, Stack())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_padded_copy_has_one_size_and_the_same_output(dtype, tolerance):
    model = Stack((5, 9), dtype=dtype)
    padded, wider = ht.export_padded(model), ht.export_padded(model, states=16)
    u = inputs(dtype=dtype)
    assert (ht.state_sizes(padded), ht.state_sizes(wider)) == ({"first": 9, "second": 9}, {"first": 16, "second": 16})
    for copied in (padded, wider):
        # the tensors are written anew: logarithms of exponentials, a few roundings each
        assert (copied(u) - model(u)).abs().max() < tolerance * model(u).abs().max()
    assert ht.state_sizes(model) == {"first": 5, "second": 9}


def test_padding_to_fewer_states_is_refused():
    with pytest.raises(hr.InputError, match=r"must be at least those of every layer; got 4 and 12 in 'first'"):
        ht.export_padded(Stack(), states=4)


def test_reduced_model_can_be_exported():
    model = nn.Sequential(lru(8, dtype=torch.float32), nn.Tanh(), lru(6, seed=1, dtype=torch.float32))
    ht.compress_(model, ht.CompressionConfig(order=4))
    u = inputs(dtype=torch.float32)
    exported = torch.export.export(copy.deepcopy(model).eval(), (u,))
    assert torch.allclose(exported.module()(u), model(u), rtol=1e-5, atol=1e-6)
