"""Files that can be read because they were tried when they were written, and loads that are all or nothing."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import hankelred as hr
import hankelred_torch as ht
from hankelred_torch.saving.files import digest_of, plain_value, read_content, write_content

from .adapter_models import Stack, assert_unchanged, inputs, snapshot


def built(head=2, states=8, optimizer=torch.optim.Adam):
    torch.manual_seed(0)
    model = nn.Sequential(ht.layers.LRU(4, states), nn.Linear(4, head))
    return model, optimizer(model.parameters(), lr=1e-3)


@pytest.mark.parametrize(
    "extra",
    [
        np.float64(0.5),
        np.mean([0.9, 0.8]),
        {"best": np.float32(0.5), "step": np.int64(3), "ok": np.bool_(True)},
        np.arange(4.0),
        [{"a": (1, None, b"x", 2j)}],
        {3, 4},
    ],
    ids=str,
)
def test_numbers_of_numpy_are_saved_and_come_back_plain(tmp_path, extra):
    model, optimizer = built()
    ht.save_checkpoint(tmp_path / "a.pt", model, optimizer, extra=extra)
    found = ht.load_checkpoint(tmp_path / "a.pt", *built())
    wanted = plain_value(extra, "")
    assert torch.equal(found, wanted) if isinstance(found, torch.Tensor) else found == wanted


def test_schedule_that_puts_numbers_of_numpy_into_the_optimizer_is_resumed(tmp_path):
    def run():
        model, optimizer = built()
        cosine = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 0.5 * (1 + np.cos(np.pi * k / 100)))
        return model, optimizer, cosine

    model, optimizer, schedule = run()
    model(torch.randn(2, 5, 4)).sum().backward()
    optimizer.step()
    schedule.step()
    ht.save_checkpoint(tmp_path / "a.pt", model, optimizer, restore=[schedule])
    other, its_optimizer, its_schedule = run()
    ht.load_checkpoint(tmp_path / "a.pt", other, its_optimizer, restore=[its_schedule])
    assert its_optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("extra", [Path("a"), {"f": [object()]}, lambda: 0, np.array([object()])])
def test_what_cannot_be_read_is_refused_when_it_is_saved_and_the_old_file_stays(tmp_path, extra):
    model, optimizer = built()
    ht.save_checkpoint(tmp_path / "a.pt", model, optimizer, extra=1)
    with pytest.raises(hr.InputError, match=r"^extra"):
        ht.save_checkpoint(tmp_path / "a.pt", model, optimizer, extra=extra)
    assert ht.load_checkpoint(tmp_path / "a.pt", *built()) == 1
    assert os.listdir(tmp_path) == ["a.pt"]


def test_a_flipped_bit_anywhere_is_found(tmp_path):
    model, optimizer = built()
    train_once(model, optimizer)
    ht.save_checkpoint(tmp_path / "a.pt", model, optimizer)
    whole = (tmp_path / "a.pt").read_bytes()
    wanted = digest_of(read_content(tmp_path / "a.pt", "hankelred checkpoint 2", ""))
    generator = np.random.default_rng(0)
    refused = 0
    for place in generator.integers(0, len(whole), 60):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(generator.integers(8))
        (tmp_path / "b.pt").write_bytes(damaged)
        try:
            content = read_content(tmp_path / "b.pt", "hankelred checkpoint 2", "")
        except hr.InputError:
            refused += 1
        else:
            assert digest_of(content) == wanted  # a byte that nothing is read from
    assert refused > 0
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "b.pt").write_bytes(whole[:length])
        with pytest.raises(hr.InputError, match="cannot be read"):
            ht.load_checkpoint(tmp_path / "b.pt", model, optimizer)


def train_once(model, optimizer):
    model(torch.randn(2, 5, 4)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize(
    ("head", "optimizer"), [(3, torch.optim.Adam), (2, torch.optim.SGD), (2, torch.optim.AdamW)], ids=str
)
def test_a_load_that_fails_changes_nothing(tmp_path, head, optimizer):
    small, its_optimizer = built(states=4)
    train_once(small, its_optimizer)
    ht.save_checkpoint(tmp_path / "a.pt", small, its_optimizer)
    model, given = built(head=head, optimizer=optimizer)
    train_once(model, given)
    before = snapshot(model, given)
    random = torch.get_rng_state()
    with pytest.raises(hr.InputError, match=r"must be"):
        ht.load_checkpoint(tmp_path / "a.pt", model, given)
    assert_unchanged(before, model, given)
    assert torch.equal(torch.get_rng_state(), random)
    assert ht.state_sizes(model) == {"0": 8}


def test_an_interrupt_in_a_load_changes_nothing(tmp_path, monkeypatch):
    small, its_optimizer = built(states=4)
    ht.save_checkpoint(tmp_path / "a.pt", small, its_optimizer)
    model, optimizer = built()
    train_once(model, optimizer)
    before = snapshot(model, optimizer)

    def interrupted(state):
        raise KeyboardInterrupt

    monkeypatch.setattr(optimizer, "load_state_dict", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ht.load_checkpoint(tmp_path / "a.pt", model, optimizer)
    assert_unchanged(before, model, optimizer)


@pytest.mark.parametrize("content", [{"format": "hankelred checkpoint 1"}, [1], {}, {"format": "hankelred model 2"}])
def test_files_of_another_kind_are_refused_by_name(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(hr.InputError, match=r"must hold a 'hankelred checkpoint 2'; got"):
        ht.load_checkpoint(tmp_path / "a.pt", *built())


def test_files_keep_their_modes_and_links(tmp_path):
    model, optimizer = built()
    (tmp_path / "real.pt").write_bytes(b"")
    os.chmod(tmp_path / "real.pt", 0o600)
    os.symlink("real.pt", tmp_path / "latest.pt")
    ht.save_checkpoint(tmp_path / "latest.pt", model, optimizer)
    assert (tmp_path / "latest.pt").is_symlink()
    assert (tmp_path / "real.pt").stat().st_mode & 0o777 == 0o600
    ht.load_checkpoint(tmp_path / "real.pt", *built())


def test_writers_side_by_side_leave_a_whole_file(tmp_path):
    failures = []

    def save(seed):
        torch.manual_seed(seed)
        layer = ht.layers.LRU(4, 8)
        try:
            for _ in range(20):
                ht.save_checkpoint(tmp_path / "a.pt", layer)
        except Exception as error:  # told below
            failures.append(error)

    threads = [threading.Thread(target=save, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(40):
        if (tmp_path / "a.pt").exists():
            ht.load_checkpoint(tmp_path / "a.pt", ht.layers.LRU(4, 8))
    for thread in threads:
        thread.join()
    assert not failures
    assert os.listdir(tmp_path) == ["a.pt"]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_understood(prefix):
    small = Stack((5, 3))
    state = {prefix + key: value for key, value in small.state_dict().items()}
    assert ht.resize_(Stack(), state) == {"first": 5, "second": 3}


def test_other_prefixes_are_named():
    state = {f"backbone.{key}": value for key, value in Stack((5, 3)).state_dict().items()}
    with pytest.raises(hr.InputError, match=r"got none called 'first\.\w+', but 'backbone\..*Strip 'backbone\.'"):
        ht.resize_(Stack(), state)


def test_models_and_sizes_tell_sizes():
    assert ht.resize_(Stack(), Stack((5, 3))) == {"first": 5, "second": 3}
    assert ht.resize_(Stack(), {"second": 3}) == {"first": 12, "second": 3}
    assert ht.resize_(torch.compile(Stack(), backend="eager"), {"second": 3})["second"] == 3


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"third": 3}, "must name state space layers of the model"),
        ({"first": 0}, "must be at least 1"),
        ({"first": 2.5}, "must be an integer"),
        (5, "must be a state dict, a model, or states by layer name"),
        ({"first": 3, "second.nu_log": torch.zeros(3)}, "must be a state dict, a model, or states by layer name"),
    ],
)
def test_other_likes_are_refused_and_nothing_changes(like, message):
    model = Stack()
    before = snapshot(model)
    with pytest.raises(hr.InputError, match=message):
        ht.resize_(model, like)
    assert_unchanged(before, model)


def test_resized_tensors_are_nan_until_they_are_loaded():
    model = Stack()
    ht.resize_(model, {"first": 5})
    assert bool(torch.isnan(model.first.B_re).all())
    assert not torch.isnan(model.second.B_re).any()


def test_stopped_save_leaves_the_old_model_or_the_new_one(tmp_path, monkeypatch):
    old, new = Stack((5, 3)), Stack((4, 2), seed=1)
    ht.save_pretrained(old, tmp_path)
    real, calls = os.replace, []

    def stopped(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        ht.save_pretrained(new, tmp_path)
    assert torch.equal(ht.from_pretrained(tmp_path, Stack())(inputs()), new(inputs()))


@pytest.mark.parametrize("wrap", [lambda m: torch.compile(m, backend="eager"), nn.DataParallel], ids=["compile", "dp"])
def test_wrapped_models_are_saved_and_padded_as_what_is_inside(tmp_path, wrap):
    model = Stack((5, 9))
    ht.save_pretrained(wrap(model), tmp_path)
    assert ht.state_sizes(ht.from_pretrained(tmp_path, Stack)) == {"first": 5, "second": 9}
    assert ht.state_sizes(ht.export_padded(wrap(model))) == {"first": 9, "second": 9}


def test_banks_are_padded():
    model = nn.Sequential(ht.layers.S4D(3, 4), ht.layers.S4D(3, 6)).double()
    padded, u = ht.export_padded(model), inputs(channels=3)
    assert ht.state_sizes(padded) == {"0": 6, "1": 6}
    assert (padded(u) - model(u)).abs().max() < 1e-12 * model(u).abs().max()


def test_an_object_with_a_config_and_a_save_pretrained_is_not_taken_for_transformers(tmp_path):
    class LM(Stack):
        config = property(lambda self: {"d_model": 8})

        def save_pretrained(self, folder):
            raise AssertionError

    ht.save_pretrained(LM((5, 3)), tmp_path)
    assert ht.state_sizes(ht.from_pretrained(tmp_path, LM)) == {"first": 5, "second": 3}
    assert json.loads((tmp_path / "hankelred.json").read_text())["state_sizes"] == {"first": 5, "second": 3}


class Transformers:
    """Models of transformers in the smallest size."""

    @staticmethod
    def config():
        transformers = pytest.importorskip("transformers")
        return transformers.MambaConfig(vocab_size=16, hidden_size=8, state_size=8, num_hidden_layers=2)

    @staticmethod
    def model(config=None):
        from transformers import MambaForCausalLM

        torch.manual_seed(0)
        return MambaForCausalLM(config or Transformers.config()).eval()


def cut(model, order=4):
    ids = {"input_ids": torch.randint(0, 16, (2, 12), generator=torch.Generator().manual_seed(0))}
    ht.compress_(model, ht.CompressionConfig(order=order), batches=[ids])
    return model


def test_the_configuration_a_model_was_made_from_is_not_changed(tmp_path):
    config = Transformers.config()
    model = cut(Transformers.model(config))
    ht.save_pretrained(model, tmp_path)
    assert config.state_size == 8
    assert not hasattr(config, "hankelred")
    assert model.config.state_size == 4
    assert next(iter(ht.state_sizes(Transformers.model(config)).values())) == 8


def test_plain_loaders_read_layers_of_one_size_and_threads_leave_the_class_alone(tmp_path):
    from transformers import AutoModelForCausalLM, MambaForCausalLM

    ht.save_pretrained(cut(Transformers.model()), tmp_path / "same")
    for loader in (MambaForCausalLM, AutoModelForCausalLM):
        assert set(ht.state_sizes(loader.from_pretrained(tmp_path / "same")).values()) == {4}
    model = cut(Transformers.model(), {"backbone.layers.0.mixer": 4})
    ht.save_pretrained(model, tmp_path / "mixed")
    make, found, ids = MambaForCausalLM.__init__, [], torch.arange(6)[None]
    threads = [
        threading.Thread(target=lambda: found.append(ht.from_pretrained(tmp_path / "mixed", MambaForCausalLM)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert MambaForCausalLM.__init__ is make
    assert len(found) == 3
    for loaded in found:
        assert type(loaded) is MambaForCausalLM
        assert torch.equal(loaded.eval()(ids).logits, model(ids).logits)
    assert set(ht.state_sizes(Transformers.model()).values()) == {8}
    with pytest.raises(hr.InputError, match="must be a concrete class of transformers"):
        ht.from_pretrained(tmp_path / "mixed", AutoModelForCausalLM)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_models_in_adapters_of_peft_are_refused_where_the_cut_would_be_lost(tmp_path):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(Transformers.model(), peft.LoraConfig(r=2, target_modules=["in_proj"]))
    cut(model)
    with pytest.raises(hr.InputError, match="merge_and_unload"):
        ht.save_pretrained(model, tmp_path)
    assert os.listdir(tmp_path) == []
    ht.save_pretrained(model.merge_and_unload(), tmp_path)
    assert set(ht.state_sizes(ht.from_pretrained(tmp_path)).values()) == {4}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear, "must make a model when it is called with nothing"),
        (lambda: 3, "model must be"),
        (3, "must be a module, or what makes one"),
        (nn.Linear(2, 2), "must be of the structure that was saved in"),
        (Stack(channels=4), "must be of the structure that was saved in"),
    ],
)
def test_other_models_are_refused_with_the_folder(tmp_path, model, message):
    ht.save_pretrained(Stack((5, 3)), tmp_path)
    with pytest.raises(hr.InputError, match=message):
        ht.from_pretrained(tmp_path, model)


def test_contents_are_written_and_read(tmp_path):
    content = {
        "a": torch.zeros(0),
        "b": {"c": (1, torch.tensor(3 - 2j), torch.tensor([True]))},
        "d": torch.ones(2).bfloat16(),
    }
    write_content(tmp_path / "x", "kind", content)
    found = read_content(tmp_path / "x", "kind", "")
    assert digest_of(found) == digest_of(content)
    assert digest_of({**content, "a": torch.zeros(1)}) != digest_of(content)
