"""Claims about the flow of the adapter: how many calls from one module into another a job takes.

They are counted in a process of their own: adapters that other tests have registered, and packages that they have
imported, are asked about each layer.
"""

from __future__ import annotations

import json
import os
import subprocess
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


def calls_of_a_cut(weighting):
    layer, _, compressor = trained(weighting)
    calls = calls_across_modules(compressor.step)
    assert ht.state_sizes(layer) == {"": 8}
    return calls


def calls_of_a_cut_of_mamba2():
    import transformers

    sizes = {"hidden_size": 16, "state_size": 16, "num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 8}
    config = transformers.Mamba2Config(vocab_size=32, num_hidden_layers=2, **sizes)
    model, batches = transformers.Mamba2ForCausalLM(config), [{"input_ids": torch.randint(0, 32, (2, 16))}]
    calls = calls_across_modules(lambda: ht.compress_(model, ht.CompressionConfig(order=8), batches=batches))
    assert set(ht.state_sizes(model).values()) == {8}
    return calls


def calls_of_resuming(path):
    layer, optimizer, compressor = trained()
    compressor.step()
    ht.save_checkpoint(path, layer, optimizer, compressor)
    resumed = run()
    calls = calls_across_modules(lambda: ht.load_checkpoint(path, *resumed))
    assert ht.state_sizes(resumed[0]) == {"": 8}
    return calls


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    jobs = "'white': calls_of_a_cut('white'), 'auto': calls_of_a_cut('auto'), 'resuming': calls_of_resuming('run.pt')"
    code = f"import json; from {__name__} import *; print(json.dumps({{{jobs}}}))"
    return _in_a_process_of_its_own(code, tmp_path_factory.mktemp("calls"))


def _in_a_process_of_its_own(code, folder):
    paths = os.pathsep.join([os.path.dirname(__file__), os.path.dirname(os.path.dirname(ROOT)), *sys.path])
    environment = os.environ | {"PYTHONPATH": paths}
    ran = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


# a fifth are forward passes, three that are timed and two for the error; most others evaluate the map
@pytest.mark.parametrize(("job", "most"), [("white", 221), ("auto", 273), ("resuming", 88)])
def test_job_is_a_short_flow(counted, job, most):
    assert counted[job] <= most


def test_cut_of_a_mamba2_of_two_layers_is_a_short_flow(tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    code = f"import json; from {__name__} import *; print(json.dumps(calls_of_a_cut_of_mamba2()))"
    assert _in_a_process_of_its_own(code, tmp_path) <= 308


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
