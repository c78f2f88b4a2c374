"""The one training loop: order of the data, optimizer, cuts, branches, and what it is measured by."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.experiment.record import cuts_of, write_text
from benchmarks.experiment.settings import LAYERS, Settings
from benchmarks.experiment.trainer import LONGEST, Trainer
from benchmarks.tasks import UNLABELLED, Part, Task, base, load_task
from benchmarks.tasks.recall import PAIRS
from benchmarks.tasks.source_text import VOCABULARY
from hankelred_torch import state_sizes
from hankelred_torch.layers import S5

TINY = {"states": 12, "channels": 8, "steps": 20, "batch": 4}
DIGITS = Settings(states=8, channels=4, steps=24, batch=16)


@pytest.fixture(scope="module")
def text() -> Task:
    """The text task with little to measure on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "TRAINING", 200)
        patch.setattr(base, "MEASURED", 8)
        return load_task("text")


def test_arms_of_one_seed_see_the_same_data():
    settings, task = Settings(states=8, channels=4), load_task("digits")
    full, small = (Trainer(task, settings, 3, [n]) for n in (8, 2))
    for _ in range(30):  # beyond the end of an epoch
        assert torch.equal(full.next_batch()[0], small.next_batch()[0])


def test_diverged_training_says_what_to_do():
    trainer = Trainer(load_task("digits"), DIGITS, 0)
    trainer.train_to(7, lambda: None)
    torch.nn.init.constant_(trainer.model.head.weight, float("nan"))
    with pytest.raises(np.linalg.LinAlgError, match=r"finite; got nan at step 7\. Choose a smaller learning"):
        trainer.validation_loss()


def test_poles_of_s5_that_training_makes_unstable_are_put_back():
    trainer = Trainer(load_task("digits"), replace(DIGITS, layer="s5"), 0)
    (layer,) = (module for module in trainer.model.modules() if isinstance(module, S5))
    with torch.no_grad():
        layer.Lambda_re[0] = 0.05
    trainer.step()
    slowest = 1 / (LONGEST * 64)  # decay in one of the 64 steps of a sequence, to rounding of single precision
    assert (layer.Lambda_re * layer.log_step.exp()).max() <= -slowest * (1 - 1e-6)


def test_a_model_that_knows_nothing_needs_the_logarithm_of_the_vocabulary(text):
    trainer = Trainer(text, Settings.of("text", **TINY), 0, [4, 4])
    torch.nn.init.zeros_(trainer.model.head.weight)
    torch.nn.init.zeros_(trainer.model.head.bias)
    assert trainer.score(text.test) == pytest.approx(math.log2(len(VOCABULARY)), rel=1e-6)  # sums in single precision


def test_positions_without_label_count_in_neither_measure():
    task = load_task("recall")
    trainer = Trainer(task, Settings.of("recall", **TINY), 0, [4, 4])
    part = Part(task.test.inputs[:8], task.test.labels[:8])
    late = Part(part.inputs, part.labels.clone())
    late.labels[:, -4:] = UNLABELLED
    scores = trainer.model(part.inputs).log_softmax(dim=-1)[:, 2 * PAIRS : -4]
    labels = part.labels[:, 2 * PAIRS : -4]
    bits = -scores.gather(2, labels[..., None]).mean().item() / math.log(2)
    assert trainer.loss(late) / math.log(2) == pytest.approx(bits, rel=1e-5)
    assert trainer.accuracy(late) == pytest.approx(100 * (scores.argmax(-1) == labels).double().mean().item())


@pytest.mark.parametrize("layer", LAYERS)
def test_a_token_model_sees_nothing_of_what_comes_after(layer, text):
    torch.manual_seed(0)
    settings = Settings.of("text", **TINY | {"layer": layer})
    model = Trainer(text, settings, 0, [4, 4]).model
    tokens = text.test.inputs[:2].clone()
    before = model(tokens)
    tokens[:, 70:] = (tokens[:, 70:] + 1) % len(VOCABULARY)
    after = model(tokens)
    # to rounding: convolutions by fast Fourier transforms mix all positions by 1e-7 or so
    torch.testing.assert_close(before[:, :70], after[:, :70], rtol=0, atol=1e-5)
    assert (before[:, 70:] - after[:, 70:]).abs().max() > 1e-3


@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_can_be_cut_while_it_learns_the_digits(layer):
    few = 8 if layer == "delta" else 3  # a multiple of 8, as its kernels want it
    settings = Settings(layer=layer, states=16, channels=4, steps=4, window=0.5, attempts=1, batch=8, order=few)
    trainer = Trainer(load_task("digits"), settings, 0, cuts=cuts_of(settings))
    trainer.train_to(4, lambda: None)
    assert state_sizes(trainer.model) == {"blocks.0.ssm": few}


def test_of_mamba_only_the_marked_parameters_are_spared_the_decay(text):
    trainer = Trainer(text, Settings.of("text", **TINY), 0, [4, 4])
    spared = {id(p) for p in trainer.optimizer.param_groups[1]["params"]}
    names = {name for name, p in trainer.model.named_parameters() if id(p) in spared}
    assert names == {f"blocks.{k}.ssm.{name}" for k in (0, 1) for name in ("A_log", "D")}


def test_a_branch_goes_on_as_its_trunk_to_the_last_bit(text):
    trunk = Trainer(text, Settings.of("text", **TINY | {"steps": 200}), 1, [6, 6])
    trunk.train_to(48, lambda: None)  # the first epoch has 50 batches
    branch, untouched = trunk.branch(), copy.deepcopy(trunk.model.state_dict())
    losses = [branch.step().loss for _ in range(5)]
    for name, value in trunk.model.state_dict().items():
        assert torch.equal(value, untouched[name]), name
    assert losses == [trunk.step().loss for _ in range(5)]
    for x, y in zip(trunk.model.parameters(), branch.model.parameters(), strict=True):
        assert torch.equal(x, y)


def test_a_branch_cuts_where_its_trunk_does(text):
    settings = Settings.of("text", **TINY | {"window": 0.2, "order": 3})
    trunk = Trainer(text, settings, 1, [6, 6], cuts_of(settings))
    trunk.step()
    branch = trunk.branch()
    cuts = [[cut.step for cut in x.step().cuts] for x in (trunk, branch) for _ in range(3)]
    assert cuts == [[], [], [4, 4]] * 2


@pytest.mark.parametrize(
    ("asked", "used"),
    [("rotation", "rotation"), ("selection", "folded selection"), ("selection_without_fold", "selection")],
)
def test_the_method_that_is_asked_for_cuts(asked, used, text):
    settings = Settings.of("text", **TINY | {"window": 0.1, "order": 3, "method": asked})
    trainer = Trainer(text, settings, 0, [6, 6], cuts_of(settings))
    trainer.step()
    cuts = trainer.step().cuts
    assert [cut.method for cut in cuts] == [used, used]
    assert all(0 < cut.output_error < 1 for cut in cuts)


def test_writing_is_repeatable_and_leaves_the_model_and_random_numbers_alone(text):
    model = Trainer(text, Settings.of("text", **TINY), 0, [4, 4]).model
    state = torch.random.get_rng_state()
    assert write_text(model, text) == write_text(model, text)
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), state)


def test_looks_are_taken_around_an_attempt_to_cut_only(text):
    settings = Settings.of("text", **TINY | {"window": 0.1, "order": 3})
    trainer = Trainer(text, settings, 0, [6, 6], cuts_of(settings))
    made = [trainer.step(lambda: sum(state_sizes(trainer.model).values())) for _ in range(3)]
    assert [(x.before, x.after) for x in made] == [(None, None), (12, 6), (None, None)]


def test_a_loss_that_is_waited_for_is_looked_at_every_tenth_step():
    trainer, seen = Trainer(load_task("digits"), DIGITS, 0), []
    losses = iter([3.0, 1.0])
    trainer.validation_loss = lambda: seen.append(trainer.steps) or next(losses)
    trainer.train_to(2, lambda: None)
    assert trainer.train_to(24, lambda: None, watch=2.0) == 20
    assert seen == [12, 22]


def test_a_penalty_is_added_to_the_loss():
    gradients = []
    for strength in (0.0, 1.0):
        trainer = Trainer(load_task("digits"), DIGITS, 0)
        trainer.penalty = lambda trainer=trainer, strength=strength: strength * trainer.model.head.bias.sum()
        bias = trainer.model.head.bias
        trainer.optimizer.register_step_pre_hook(lambda *_, bias=bias: gradients.append(bias.grad.clone()))
        trainer.step()
    torch.testing.assert_close(gradients[1] - gradients[0], torch.ones(10))
