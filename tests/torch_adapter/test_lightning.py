"""Claims about runs in the Trainer of Lightning, found out with the real library."""

from __future__ import annotations

import csv

import pytest
import torch
from torch import nn

import hankelred as hr
import hankelred_torch as ht

from .adapter_models import Stack, assert_consistent
from .settings import what_and_when

pl = pytest.importorskip("lightning.pytorch")

from hankelred_torch.integrations.lightning import CheckpointMixin, CompressionCallback  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings(r"ignore:.*smaller than the logging interval.*"),
    pytest.mark.filterwarnings(r"ignore:.*your dataloader is not resumable.*"),
    pytest.mark.filterwarnings(r"ignore:.*pin_memory.*:UserWarning"),
    pytest.mark.filterwarnings(
        r"ignore:.*isinstance\(treespec, LeafSpec\).*"
    ),  # lightning's use of torch.utils._pytree
]

STEPS = 12
CUT = {"model.first": 7, "model.second": 5}


class Plain(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = Stack(dtype=torch.float32)
        self.dropout = nn.Dropout(0.2)

    def training_step(self, batch, _):
        loss = (self.model(self.dropout(batch)) - batch.cumsum(1)[..., :2]).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Module(CheckpointMixin, Plain):
    pass


class Adversaries(Module):
    """Two optimizers that take turns in every batch, as generators and discriminators do."""

    automatic_optimization = False

    def training_step(self, batch, _):
        for optimizer in self.optimizers():
            loss = (self.model(batch) - batch.cumsum(1)[..., :2]).square().mean()
            self.manual_backward(loss)
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self):
        first, second = self.model.first.parameters(), [*self.model.second.parameters(), *self.model.head.parameters()]
        return torch.optim.AdamW(first, lr=1e-3), torch.optim.SGD(second, lr=1e-3, momentum=0.9)


def config(**values):
    return what_and_when(**({"fraction": 0.7, "end_step": 6, "attempts": 2, "force": True} | values))


def loader():
    generator = torch.Generator().manual_seed(0)
    return torch.utils.data.DataLoader(torch.randn(48, 10, 3, generator=generator), batch_size=4)


def fit(folder, callback, module=None, *, ckpt_path=None, **arguments):
    module = module or Module()
    settings = {"max_steps": STEPS, "max_epochs": 40, "logger": False, "enable_checkpointing": False}
    settings |= {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "devices": 1}
    trainer = pl.Trainer(default_root_dir=folder, callbacks=callback or [], **(settings | arguments))
    torch.manual_seed(1)
    trainer.fit(module, loader(), ckpt_path=ckpt_path)
    return trainer, module


def test_model_shrinks_with_its_optimizer(tmp_path):
    callback = CompressionCallback(*config())
    trainer, module = fit(tmp_path, callback)
    assert sorted({record.step for record in callback.history}) == [3, 6]
    assert ht.state_sizes(module) == CUT
    assert_consistent(module, *trainer.optimizers)


def test_window_is_the_first_tenth_of_the_steps_of_the_trainer(tmp_path):
    callback = CompressionCallback(*what_and_when(tau=0.2, attempts=2))
    fit(tmp_path, callback, max_steps=40)
    assert sorted({record.step for record in callback.history}) == [2, 4]


def test_run_without_an_end_is_refused(tmp_path):
    with pytest.raises(hr.InputError, match="the trainer does not know"):
        fit(tmp_path, CompressionCallback(*what_and_when(tau=0.2)), max_steps=-1, max_epochs=-1)


def test_steps_are_counted_and_not_batches(tmp_path):
    callback = CompressionCallback(*config())
    trainer, module = fit(tmp_path, callback, accumulate_grad_batches=3)
    assert trainer.global_step == STEPS
    assert callback.compressor.state_dict()["steps"] == STEPS
    assert sorted({record.step for record in callback.history}) == [3, 6]
    assert_consistent(module, *trainer.optimizers)


@pytest.mark.parametrize("arguments", [{"precision": "bf16-mixed"}, {"gradient_clip_val": 0.5}], ids=["bf16", "clip"])
def test_runs_with_other_arguments_go_on_through_cuts(tmp_path, arguments):
    trainer, module = fit(tmp_path, CompressionCallback(*config()), **arguments)
    assert ht.state_sizes(module) == CUT
    assert all(torch.isfinite(p).all() for p in module.parameters())
    assert_consistent(module, *trainer.optimizers)


def test_optimizers_that_take_turns_count_once_per_batch(tmp_path):
    callback = CompressionCallback(*config())
    trainer, module = fit(tmp_path, callback, Adversaries(), max_steps=2 * STEPS)
    assert callback.compressor.state_dict()["steps"] == STEPS
    assert_consistent(module, *trainer.optimizers)


@pytest.mark.parametrize("stop", [2, 4, 8])
def test_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, stop):
    class Seeded(Module):
        """Draws data and dropout by the step: Lightning restores neither the loader nor the random state."""

        def training_step(self, batch, index):
            torch.manual_seed(self.global_step)
            return super().training_step(torch.randn_like(batch), index)

    straight = CompressionCallback(*config(), on_cut=ht.Rewarm(3))
    wanted = fit(tmp_path, straight, Seeded())[1].state_dict()
    trainer, _ = fit(tmp_path, CompressionCallback(*config(), on_cut=ht.Rewarm(3)), Seeded(), max_steps=stop)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    resumed = CompressionCallback(*config(), on_cut=ht.Rewarm(3))
    got = fit(tmp_path, resumed, Seeded(), ckpt_path=tmp_path / "run.ckpt")[1].state_dict()
    assert {name for name, x in got.items() if not torch.equal(x, wanted[name])} == set()
    steps = [[(x.step, x.layer, x.n, x.states) for x in each.history] for each in (resumed, straight)]
    assert steps[0] == steps[1]


def test_module_loads_from_a_checkpoint_at_its_sizes(tmp_path):
    trainer, module = fit(tmp_path, CompressionCallback(*config()))
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    loaded = Module.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True)
    assert ht.state_sizes(loaded) == CUT
    assert all(torch.equal(x, y) for x, y in zip(loaded.parameters(), module.parameters(), strict=True))


def test_checkpoint_without_the_callback_is_refused(tmp_path):
    fit(tmp_path, None, max_steps=4)[0].save_checkpoint(tmp_path / "run.ckpt")
    with pytest.raises(hr.InputError, match="the checkpoint at step 4 has none"):
        fit(tmp_path, CompressionCallback(*config()), ckpt_path=tmp_path / "run.ckpt")


def test_figures_reach_the_logger(tmp_path):
    logger = pl.loggers.CSVLogger(tmp_path)
    fit(tmp_path, CompressionCallback(*config(end_step=8)), logger=logger, log_every_n_steps=1)
    with open(f"{logger.log_dir}/metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["hankelred/model.first/states"]]
    found = {int(row["step"]): float(row["hankelred/model.first/states"]) for row in rows}
    # Lightning counts steps from 0, and repeats in every row what was logged last
    assert found == {3: 9.0, 4: 9.0, 5: 9.0, 6: 9.0, 7: 7.0, 8: 7.0, 9: 7.0, 10: 7.0, 11: 7.0}


def test_rollback_puts_the_schedule_of_the_trainer_back(tmp_path):
    values = iter([1.0, 1.0, 0.0])
    guard = ht.Guard(lambda: next(values), tolerance=0.5, on_fail="stop", settle_steps=2, mode="max")
    callback = CompressionCallback(*config(end_step=3, attempts=1), guard)
    trainer, module = fit(tmp_path, callback)
    assert [record.rolled_back for record in callback.history] == [True, True]
    assert ht.state_sizes(module) == {"model.first": 12, "model.second": 8}
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == STEPS - 2  # less the settling time


@pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch")
@pytest.mark.filterwarnings("ignore:Swapping scheduler")
@pytest.mark.parametrize("made", ["ema", "swa", "both", "plain", "derived"])
def test_averages_of_lightning_itself_are_cut_along(tmp_path, made):
    class Late(pl.callbacks.EMAWeightAveraging):
        def should_update(self, step_idx=None, epoch_idx=None):
            return step_idx is not None and step_idx > 3

    averages = {
        "plain": lambda: [pl.callbacks.WeightAveraging()],
        "derived": lambda: [Late(decay=0.9)],
        "ema": lambda: [pl.callbacks.EMAWeightAveraging(decay=0.9)],
        "swa": lambda: [pl.callbacks.StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=1)],
    }
    names = ["ema", "swa"] if made == "both" else [made]
    callbacks = [x for name in names for x in averages[name]()]
    compression = CompressionCallback(*config(end_step=4, attempts=2))
    _, module = fit(tmp_path, [compression, *callbacks], max_epochs=3, max_steps=-1)
    assert compression.history
    for each in callbacks:
        average = each._average_model
        if average is not None:
            assert ht.state_sizes(getattr(average, "module", average)) == CUT
    assert ht.state_sizes(module) == CUT


class OwnAverage(pl.Callback):
    """As users write it, where nobody looks for it."""

    def on_fit_start(self, trainer, pl_module):
        self.mean = torch.optim.swa_utils.AveragedModel(pl_module)


def test_average_in_a_callback_of_the_user_is_told_of_at_the_first_cut(tmp_path):
    with pytest.warns(hr.HankelredWarning, match="AveragedModel, which averages this one"):
        fit(tmp_path, [CompressionCallback(*config(end_step=4, attempts=2)), OwnAverage()])


def test_second_fit_of_a_trainer_goes_on(tmp_path):
    callback = CompressionCallback(*config(end_step=4, attempts=2))
    trainer, module = fit(tmp_path, callback, max_steps=-1, max_epochs=1)
    steps = trainer.global_step
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, loader())
    assert trainer.global_step == 2 * steps
    assert callback.compressor.steps == 2 * steps
    assert ht.state_sizes(module) == CUT
    assert len(callback.history) == 4
