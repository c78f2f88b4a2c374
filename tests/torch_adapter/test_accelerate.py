"""Claims about runs with accelerate: its states go through cuts, whatever wraps optimizers and schedulers."""

from __future__ import annotations

import gc
import re

import pytest
import torch

import hankelred as hr
import hankelred_torch as ht

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")

from hankelred_torch.integrations.accelerate import register  # noqa: E402 (needs accelerate)


class Run:
    def __init__(self, *, states=(8, 6), on_cut=(), **options):
        torch.manual_seed(0)
        self.accelerator = accelerate.Accelerator(cpu=True, **options)
        model = torch.nn.Sequential(*(ht.layers.LRU(3, n) for n in states))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        self.model, self.optimizer, self.scheduler = self.accelerator.prepare(model, optimizer, scheduler)
        config, schedule = ht.CompressionConfig(order=4), ht.Schedule(end_step=4, attempts=2, force=True)
        self.compressor = ht.InTrainingCompressor(self.model, self.optimizer, config, schedule, on_cut=on_cut)
        self.handle = register(self.accelerator, self.compressor)
        self.generator = torch.Generator().manual_seed(1)

    def steps(self, count):
        for _ in range(count):
            with self.accelerator.accumulate(self.model):
                inputs = torch.randn(2, 6, 3, generator=self.generator)
                self.accelerator.backward(self.model(inputs).square().mean())
                self.optimizer.step()
                self.scheduler.step()
                self.optimizer.zero_grad()
            self.compressor.step()
        return self

    def weights(self):
        return [p.detach().clone() for p in self.model.parameters()]


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("stop", [1, 3, 6])
def test_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, stop, safe):
    run = Run().steps(stop)
    run.accelerator.save_state(tmp_path, safe_serialization=safe)
    whole = run.steps(8 - stop)
    resumed = Run()
    resumed.accelerator.load_state(tmp_path)
    resumed.generator = torch.Generator().manual_seed(1)
    for _ in range(stop):
        torch.randn(2, 6, 3, generator=resumed.generator)
    resumed.steps(8 - stop)
    assert ht.state_sizes(resumed.model) == ht.state_sizes(whole.model) == {"0": 4, "1": 4}
    assert all(torch.equal(x, y) for x, y in zip(whole.weights(), resumed.weights(), strict=True))
    found = [[(x.step, x.n, x.states, x.order) for x in y.compressor.history] for y in (resumed, whole)]
    assert found[0] == found[1]


def test_calls_for_batches_that_are_accumulated_are_not_counted():
    run = Run(gradient_accumulation_steps=2).steps(8)
    assert run.compressor.steps == 4


def test_rates_of_an_accelerated_optimizer_rise_and_are_those_of_the_schedule_between_steps():
    run = Run(on_cut=[ht.Rewarm(3)]).steps(2)  # the first cut
    seen = []
    handle = run.optimizer.optimizer.register_step_pre_hook(lambda x, *_: seen.append(x.param_groups[0]["lr"]))
    rates = []
    for _ in range(2):
        rates.append(run.optimizer.param_groups[0]["lr"])
        run.steps(1)
    handle.remove()
    assert rates == pytest.approx([1e-2 * 0.9**k for k in (2, 3)])
    assert seen == pytest.approx([rates[0] / 4, rates[1] / 2])


def test_folder_without_weights_is_refused(tmp_path):
    run = Run()
    run.accelerator.save_state(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(hr.InputError, match=re.escape("under model.safetensors or pytorch_model.bin")):
        run.accelerator.load_state(tmp_path)


def test_state_of_another_model_is_refused_and_nothing_changes(tmp_path):
    Run(states=(8,)).accelerator.save_state(tmp_path)
    run = Run()
    before = run.weights()
    with pytest.raises(hr.InputError, match=r"none called '1\.nu_log'"):
        run.accelerator.load_state(tmp_path)
    assert all(torch.equal(x, y) for x, y in zip(before, run.weights(), strict=True))


def test_compressor_of_another_model_is_refused():
    run, layer = Run(), ht.layers.LRU(3, 8)
    config, schedule = ht.CompressionConfig(order=4), ht.Schedule(end_step=1)
    compressor = ht.InTrainingCompressor(layer, torch.optim.SGD(layer.parameters(), lr=0.1), config, schedule)
    with pytest.raises(hr.InputError, match="accelerator must have prepared the model of the compressor"):
        register(run.accelerator, compressor)
    for wrong in ((None, compressor), (run.accelerator, None)):
        with pytest.raises(hr.InputError, match="must be a"):
            register(*wrong)
    gc.collect()
