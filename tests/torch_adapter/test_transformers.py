"""Claims about models of Hugging Face and their Trainer, found out with the real libraries."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

import hankelred as hr
import hankelred_torch as ht
from hankelred_torch.adapters.add_maps import mapped_layers

from .adapter_models import assert_consistent
from .selective_models import language_model
from .settings import what_and_when

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from hankelred_torch.integrations.transformers import CompressionCallback  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),  # the Trainer pins memory also without a GPU
]

STEPS, BATCH = 12, 4
CUT = {"first": 7, "second": 5}


class TinyConfig(transformers.PreTrainedConfig):
    model_type = "tiny_lru"

    def __init__(self, states=12, channels=3, dropout=0.2, **options):
        self.states, self.channels, self.dropout = states, channels, dropout
        super().__init__(**options)


class Tiny(transformers.PreTrainedModel):
    """Two LRU layers with dropout between them, which returns a loss as the Trainer wants it."""

    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.first = ht.layers.LRU(config.channels, config.states, r_min=0.5, r_max=0.95)
        self.dropout = nn.Dropout(config.dropout)
        self.second = ht.layers.LRU(config.channels, 8, r_min=0.5, r_max=0.95)
        self.post_init()

    def _init_weights(self, module):
        """Leave the layers as they were made."""

    def forward(self, u, labels=None):
        y = self.second(u + self.dropout(torch.tanh(self.first(u))))
        return {"loss": (y - labels).square().mean(), "logits": y}


class Sums(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        u = torch.randn(10, 3, generator=torch.Generator().manual_seed(index))
        return {"u": u, "labels": u.cumsum(0) / 4}


def trainer_of(folder, callback=None, *, model=None, attach=True, **arguments):
    settings = {"max_steps": STEPS, "per_device_train_batch_size": BATCH, "learning_rate": 1e-2, "report_to": []}
    settings |= {"save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "logging_steps": 4, "seed": 3}
    args = transformers.TrainingArguments(output_dir=str(folder), **(settings | arguments))
    torch.manual_seed(0)
    callbacks = [] if callback is None else [callback]
    trainer = transformers.Trainer(
        model or Tiny(TinyConfig()), args, train_dataset=Sums(), eval_dataset=Sums(), callbacks=callbacks
    )
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    if callback is not None and attach:
        callback.attach(trainer)
    return trainer


def config(**values):
    return what_and_when(**({"fraction": 0.7, "end_step": 6, "attempts": 2, "force": True} | values))


def optimizer_of(trainer):
    return trainer.optimizer.optimizer


def test_model_shrinks_with_its_optimizer(tmp_path):
    callback = CompressionCallback(*config())
    trainer = trainer_of(tmp_path, callback, attach=False)
    trainer.train()
    assert [record.step for record in callback.history if record.layer == "first"] == [3, 6]
    assert ht.state_sizes(trainer.model) == CUT
    assert_consistent(trainer.model, optimizer_of(trainer))


def test_window_is_the_first_tenth_of_the_steps_of_the_trainer(tmp_path):
    callback = CompressionCallback(*what_and_when(tau=0.2, attempts=2))
    trainer_of(tmp_path, callback, max_steps=40).train()
    assert sorted({record.step for record in callback.history}) == [2, 4]


def test_steps_are_counted_and_not_batches(tmp_path):
    callback = CompressionCallback(*config())
    trainer = trainer_of(tmp_path, callback, gradient_accumulation_steps=3)
    trainer.train()
    assert callback.compressor.state_dict()["steps"] == STEPS
    assert trainer.state.global_step == STEPS
    assert sorted({record.step for record in callback.history}) == [3, 6]
    assert_consistent(trainer.model, optimizer_of(trainer))


@pytest.mark.parametrize(
    "arguments",
    [{"bf16": True}, {"max_grad_norm": 0.5, "optim": "adamw_torch_fused"}, {"torch_compile": True}],
    ids=["bf16", "fused", "compiled"],
)
def test_runs_with_other_arguments_go_on_through_cuts(tmp_path, arguments):
    if "torch_compile" in arguments:
        arguments = arguments | {"torch_compile_backend": "eager"}
    callback = CompressionCallback(*config())
    trainer = trainer_of(tmp_path, callback, **arguments)
    result = trainer.train()
    assert ht.state_sizes(trainer.model) == CUT
    assert math.isfinite(result.training_loss)
    assert callback.compressor.state_dict()["steps"] == STEPS
    assert_consistent(trainer.model, optimizer_of(trainer))


def test_factored_averages_of_an_optimizer_that_is_not_torchs_are_carried(tmp_path):
    trainer = trainer_of(tmp_path, CompressionCallback(*config()), optim="adafactor")
    trainer.train()  # a dropped state would be a warning
    assert ht.state_sizes(trainer.model) == CUT
    states = optimizer_of(trainer).state
    assert set(states) == set(trainer.model.parameters())
    for p, state in states.items():
        if "exp_avg_sq_row" in state:
            assert state["exp_avg_sq_row"].shape == p.shape[:-1]
            assert state["exp_avg_sq_col"].shape == (*p.shape[:-2], p.shape[-1])


@pytest.mark.parametrize("stop", [2, 4, 8])
def test_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, stop):
    straight = trainer_of(tmp_path / "a", CompressionCallback(*config(), on_cut=ht.Rewarm(3)))
    straight.train()
    callback = CompressionCallback(*config(), on_cut=ht.Rewarm(3))
    trainer_of(tmp_path / "b", callback, save_strategy="steps", save_steps=stop).train()
    callback = CompressionCallback(*config(), on_cut=ht.Rewarm(3))
    resumed = trainer_of(tmp_path / "c", callback)
    path = callback.resume_from(tmp_path / "b" / f"checkpoint-{stop}", resumed.model)
    resumed.train(resume_from_checkpoint=path)
    wanted = straight.model.state_dict()
    assert {name for name, x in resumed.model.state_dict().items() if not torch.equal(x, wanted[name])} == set()
    assert [(x.step, x.layer, x.n, x.states) for x in callback.history] == [
        (x.step, x.layer, x.n, x.states) for x in straight.callback_handler.callbacks[-1].history
    ]


def test_resume_without_its_sizes_is_refused(tmp_path):
    trainer_of(tmp_path, CompressionCallback(*config()), save_strategy="steps", save_steps=2).train()
    resumed = trainer_of(tmp_path, CompressionCallback(*config()))
    with pytest.raises(hr.InputError, match=r"callback\.resume_from"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_checkpoint_of_another_run_is_refused(tmp_path):
    trainer_of(tmp_path, save_strategy="steps", save_steps=12).train()
    with pytest.raises(hr.InputError, match=r"which has none"):
        CompressionCallback(*config()).resume_from(tmp_path / "checkpoint-12", Tiny(TinyConfig()))


def test_checkpoint_of_the_trainer_loads_at_its_sizes(tmp_path):
    trainer = trainer_of(tmp_path, CompressionCallback(*config()), save_strategy="steps", save_steps=STEPS)
    trainer.train()
    loaded = ht.from_pretrained(tmp_path / f"checkpoint-{STEPS}", Tiny)
    assert ht.state_sizes(loaded) == CUT
    assert all(torch.equal(x, y) for x, y in zip(loaded.parameters(), trainer.model.parameters(), strict=True))


def test_best_model_is_looked_for_after_the_last_cut(tmp_path):
    callback = CompressionCallback(*config())
    saved = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    best = {
        "load_best_model_at_end": True,
        "metric_for_best_model": "states",
    }  # more are better: the first would be best
    trainer = trainer_of(tmp_path, callback, **saved, **best, greater_is_better=True, label_names=["labels"])
    trainer.compute_metrics = lambda _: {"states": sum(ht.state_sizes(trainer.model).values())}
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-6")
    assert ht.state_sizes(trainer.model) == CUT


def test_figures_reach_the_log_of_the_trainer_beside_its_own(tmp_path):
    trainer = trainer_of(tmp_path, CompressionCallback(*config(end_step=8)))
    trainer.train()
    logged = {
        entry["step"]: entry["hankelred/first/states"]
        for entry in trainer.state.log_history
        if "hankelred/first/states" in entry
    }
    assert logged == {4: 9.0, 8: 7.0}
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [4, 8, 12]


def test_rollback_puts_the_schedule_of_the_trainer_back(tmp_path):
    values = iter([1.0, 1.0, 0.0])
    guard = ht.Guard(lambda: next(values), tolerance=0.5, on_fail="stop", settle_steps=2, mode="max")
    callback = CompressionCallback(*config(end_step=3, attempts=1), guard)
    trainer = trainer_of(tmp_path, callback, lr_scheduler_type="linear")
    trainer.train()
    assert [record.rolled_back for record in callback.history] == [True, True]
    assert ht.state_sizes(trainer.model) == {"first": 12, "second": 8}
    assert trainer.lr_scheduler.last_epoch == STEPS - 2  # the two steps of the settling time are taken back


def test_trainer_without_the_callback_is_refused(tmp_path):
    with pytest.raises(hr.InputError, match=r"Pass callbacks=\[callback\]"):
        CompressionCallback(*config()).attach(trainer_of(tmp_path))


def test_saved_model_loads_with_options_of_hugging_face(tmp_path):
    model = Tiny(TinyConfig())
    ht.compress_(model, ht.CompressionConfig(order={"first": 5}))
    ht.save_pretrained(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["hankelred"]["state_sizes"] == {"first": 5, "second": 8}
    loaded = ht.from_pretrained(tmp_path, Tiny, dtype=torch.float64)
    assert loaded.first.nu_log.dtype == torch.float64
    u = torch.randn(2, 9, 3)
    with torch.no_grad():
        gap = loaded.eval()(u.double(), u.double())["logits"] - model.eval()(u, u)["logits"]
    assert gap.abs().max() < 1e-4  # float32 rounding over 9 steps


def small_mamba(**options):
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "hidden_size": 8, "state_size": 8, "num_hidden_layers": 2, "time_step_rank": 2}
    return transformers.MambaForCausalLM(transformers.MambaConfig(**(sizes | options)))


class Counting(torch.utils.data.Dataset):
    """Tokens that count up, as a task for language models."""

    def __len__(self):
        return 32

    def __getitem__(self, index):
        ids = (torch.arange(12) + index) % 20
        return {"input_ids": ids, "labels": ids}


@pytest.mark.filterwarnings("ignore:.*sequential implementation of Mamba.*")
def test_mamba_is_cut_by_what_it_does_with_sample_batches(tmp_path):
    batches = [Counting()[index]["input_ids"][None] for index in range(4)]
    callback = CompressionCallback(*what_and_when(order=4, end_step=6, attempts=1, force=True), batches=batches)
    trainer = trainer_of(tmp_path, callback, model=small_mamba(), save_strategy="steps", save_steps=STEPS)
    trainer.train_dataset = Counting()
    trainer.train()
    assert set(ht.state_sizes(trainer.model).values()) == {4}
    assert_consistent(trainer.model, optimizer_of(trainer))
    ids = batches[0]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / f"checkpoint-{STEPS}").eval()
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, trainer.model.eval()(ids).logits)


@pytest.mark.parametrize("maps", [False, True])
def test_delta_net_is_cut_by_what_it_was_seen_to_do(tmp_path, maps):
    model = language_model("Qwen3_5Text")
    names = ht.add_state_maps_(model) if maps else ()
    callback = CompressionCallback(*what_and_when(order=8, end_step=6, attempts=1, force=True))
    trainer = trainer_of(tmp_path, callback, model=model, save_strategy="steps", save_steps=STEPS)
    trainer.train_dataset = Counting()
    trainer.train()
    assert set(ht.state_sizes(trainer.model).values()) == {8}
    assert_consistent(trainer.model, optimizer_of(trainer))
    ids = Counting()[0]["input_ids"][None]
    loaded = ht.from_pretrained(tmp_path / f"checkpoint-{STEPS}").eval()
    assert mapped_layers(loaded) == list(names)
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, trainer.model.eval()(ids).logits)


def test_model_of_one_size_is_loaded_by_its_own_class(tmp_path):
    model, ids = small_mamba(), Counting()[0]["input_ids"][None]
    ht.compress_(model, ht.CompressionConfig(order=5), batches=[ids])
    ht.save_pretrained(model, tmp_path)
    loaded = transformers.MambaForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model.eval()(ids).logits)
