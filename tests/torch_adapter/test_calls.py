"""Claims about the flow of the adapter: how many calls from one module into another a job takes."""

from __future__ import annotations

import os
import sys

import pytest
import torch

import hankelred_torch as ht
from hankelred_torch.layers import lru

ROOT = os.path.dirname(ht.__file__) + os.sep


def calls_across_modules(job):
    """Count calls of functions of the package whose nearest caller inside it stands in another file.

    Comprehensions and lambdas are parts of the functions they stand in; those count that they call.
    """
    count = 0

    def profile(frame, event, _):
        nonlocal count
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(ROOT) or code.co_name.startswith("<"):
            return
        caller = frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(ROOT):
            caller = caller.f_back
        count += caller is not None and caller.f_code.co_filename != code.co_filename

    sys.setprofile(profile)
    try:
        job()
    finally:
        sys.setprofile(None)
    return count


def run(weighting="auto"):
    torch.manual_seed(0)
    layer = ht.layers.LRU(4, 16)
    optimizer = torch.optim.AdamW(layer.parameters())
    schedule = ht.Schedule(end_step=1, attempts=1, force=True)
    compressor = ht.InTrainingCompressor(layer, optimizer, ht.CompressionConfig(order=8, weighting=weighting), schedule)
    return layer, optimizer, compressor


def trained(weighting="auto"):
    layer, optimizer, compressor = run(weighting)
    layer(torch.randn(2, 8, 4)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    return layer, optimizer, compressor


@pytest.mark.parametrize(("weighting", "most"), [("white", 224), ("auto", 276)])
def test_step_that_cuts_one_lru_is_a_short_flow(weighting, most):
    # three fewer in a process where no other test has named an adapter to LRU
    # a fifth of them are forward passes, three that are timed and two for the error; most others evaluate the map
    layer, _, compressor = trained(weighting)
    assert calls_across_modules(compressor.step) <= most
    assert ht.state_sizes(layer) == {"": 8}


@pytest.mark.parametrize(("weighting", "passes"), [("white", 3), ("auto", 5)])
def test_step_that_cuts_runs_the_model_no_more_than_it_has_to(weighting, passes, monkeypatch):
    # one before and two after to be timed; for the error, one on the way to the layer and one of the layer as cut
    # history: the layer as it was ran once more, for the outputs that the model had just had of it
    _, _, compressor = trained(weighting)
    calls, compute = [], lru.planar_ssm
    monkeypatch.setattr(lru, "planar_ssm", lambda *tensors: calls.append(1) or compute(*tensors))
    plan = compressor.step()
    assert len(calls) == passes
    assert min(plan.forward_seconds) > 0


def test_cut_of_a_mamba2_of_two_layers_is_a_short_flow():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {"hidden_size": 16, "state_size": 16, "num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 8}
    config = transformers.Mamba2Config(vocab_size=32, num_hidden_layers=2, **sizes)
    model, batches = transformers.Mamba2ForCausalLM(config), [{"input_ids": torch.randint(0, 32, (2, 16))}]
    assert calls_across_modules(lambda: ht.compress_(model, ht.CompressionConfig(order=8), batches=batches)) <= 314
    assert set(ht.state_sizes(model).values()) == {8}


def test_resuming_after_a_cut_is_a_short_flow(tmp_path):
    layer, optimizer, compressor = trained()
    compressor.step()
    ht.save_checkpoint(tmp_path / "run.pt", layer, optimizer, compressor)
    resumed = run()
    assert calls_across_modules(lambda: ht.load_checkpoint(tmp_path / "run.pt", *resumed)) <= 91
    assert ht.state_sizes(resumed[0]) == {"": 8}
