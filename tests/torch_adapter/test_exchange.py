"""Claims about the exchange of tensors: whatever interrupts it, at any line, nothing is half done."""

from __future__ import annotations

import sys

import pytest
import torch
from sizes import sample

import hankelred as hr
import hankelred_torch as ht
from hankelred_torch import exchange
from hankelred_torch.adapters import adapter_of
from hankelred_torch.surgery import cut, snapshot

from .adapter_models import STATE_TENSORS, Stack, assert_consistent, assert_unchanged, lru, train
from .adapter_models import snapshot as remembered

FILES = {x.__file__ for x in (cut, exchange, snapshot)}


def lines_run(action):
    """Return how many lines of the files that write are run by an action."""
    return interrupted_at(None, action)


def interrupted_at(line, action, files=FILES):
    """Run an action and raise KeyboardInterrupt at one of its lines in files; return how many were run."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            count += 1
            if count == line:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(None)
    return count


def built():
    model = Stack((6, 5))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ema = torch.optim.swa_utils.AveragedModel(model)
    train(model, optimizer, 2)
    return model, optimizer, ema


def compress(model, optimizer, ema):
    return lambda: ht.compress_(model, ht.CompressionConfig(order=3), optimizer, ema)


def assert_cut(model, optimizer, ema):
    assert ht.state_sizes(model) == ht.state_sizes(ema.module) == {"first": 3, "second": 3}
    assert_consistent(model, optimizer)


# the first and last lines always; of those between a seeded tenth in a short run
def some_lines(total):
    return sorted({1, total, *sample(range(2, total), 0.05)})


def test_cut_interrupted_at_any_line_is_undone_or_done():
    total = lines_run(compress(*built()))
    assert total > 200
    for line in some_lines(total):
        model, optimizer, ema = built()
        before = remembered(model, optimizer), remembered(ema)
        with pytest.raises(KeyboardInterrupt):
            interrupted_at(line, compress(model, optimizer, ema))
        if model.first.states == 3:  # the last lines, after all of it was done
            assert line > total - 8
            assert_cut(model, optimizer, ema)
        else:
            assert_unchanged(before[0], model, optimizer)
            assert_unchanged(before[1], ema)


def test_way_back_interrupted_at_any_line_is_not_begun_or_done():
    # history: a rollback cleared the optimizer's state first, and an interrupt left three of eight moments
    def cut_once():
        model, optimizer, ema = built()
        then = snapshot.Snapshot([model, ema.module], [optimizer])
        compress(model, optimizer, ema)()
        return model, optimizer, ema, then

    then = cut_once()[-1]
    total = lines_run(then.restore)
    for line in some_lines(total):
        model, optimizer, _, then = cut_once()
        before = remembered(model, optimizer)
        with pytest.raises(KeyboardInterrupt):
            interrupted_at(line, then.restore)
        if model.first.states == 6:
            assert line > total - 3
            assert_consistent(model, optimizer)
            assert all(optimizer.state[p] for p in model.parameters())
        else:
            assert_unchanged(before, model, optimizer)


def test_trial_interrupted_at_any_line_leaves_no_trace():
    def tried(adapter):
        with exchange.holding(adapter.layer, adapter.resize(3), {"states_wanted": 3}):
            assert adapter.states == 3

    def made():
        layer = lru(6)
        layer.states_wanted = 6
        return adapter_of(layer)

    for line in range(1, lines_run(lambda: tried(made())) + 1):
        adapter = made()
        before = remembered(adapter.layer)
        with pytest.raises(KeyboardInterrupt):
            interrupted_at(line, lambda adapter=adapter: tried(adapter))
        assert_unchanged(before, adapter.layer)
        assert adapter.layer.states_wanted == 6


def test_object_that_cannot_be_put_back_leaves_the_cut_in_place():
    class Broken:
        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            raise RuntimeError("no")

    model, optimizer, ema = built()
    then = snapshot.Snapshot([model, ema.module], [optimizer], [Broken()])
    compress(model, optimizer, ema)()
    before = remembered(model, optimizer)
    with pytest.raises(RuntimeError, match="no"):
        then.restore()
    assert_unchanged(before, model, optimizer)


def test_system_that_cannot_be_written_leaves_the_layer(monkeypatch):
    layer = lru()
    before = remembered(layer)
    monkeypatch.setattr(exchange.Exchange, "_verify", lambda self: 1 / 0)
    for states in (8, 5):
        with pytest.raises(ZeroDivisionError):
            ht.write_system(layer, ht.read_system(lru(states, seed=1)))
        assert_unchanged(before, layer)


def test_cut_in_inference_mode_leaves_parameters_that_train():
    layer = lru(dtype=torch.float32)
    optimizer = torch.optim.AdamW(layer.parameters())
    train(layer, optimizer, 1)
    with torch.inference_mode():
        ht.compress_(layer, ht.CompressionConfig(order=4), optimizer)
        ht.write_system(layer, ht.read_system(lru(3)))
    assert not any(p.is_inference() for p in layer.parameters())
    layer(torch.randn(2, 8, 3)).sum().backward()


def _resized(layer, optimizer, tmp_path):
    small = lru(4, dtype=torch.float32)
    with torch.inference_mode():
        ht.resize_(layer, small, optimizer)
    layer.load_state_dict(small.state_dict())


def _loaded(layer, optimizer, tmp_path):
    small = lru(4, dtype=torch.float32)
    its_optimizer = torch.optim.AdamW(small.parameters())
    train(small, its_optimizer, 1)
    ht.save_checkpoint(tmp_path / "run.pt", small, its_optimizer)
    with torch.inference_mode():
        ht.load_checkpoint(tmp_path / "run.pt", layer, optimizer)


def _cut_and_rolled_back(layer, optimizer, tmp_path):
    schedule = ht.Schedule(end_step=1, attempts=1, force=True)
    compressor = ht.InTrainingCompressor(layer, optimizer, ht.CompressionConfig(order=4), schedule)
    with torch.inference_mode():
        compressor.step()
        compressor.rollback()


@pytest.mark.parametrize(("job", "states"), [(_resized, 4), (_loaded, 4), (_cut_and_rolled_back, 8)])
def test_jobs_in_inference_mode_leave_a_run_that_trains(job, states, tmp_path):
    # history: moments that were loaded there, and parameters that were resized there, could never be trained
    layer = lru(dtype=torch.float32)
    optimizer = torch.optim.AdamW(layer.parameters())
    train(layer, optimizer, 1)
    job(layer, optimizer, tmp_path)
    assert layer.states == states
    tensors = [*layer.parameters(), *(x for state in optimizer.state.values() for x in state.values())]
    assert not any(x.is_inference() for x in tensors if isinstance(x, torch.Tensor))
    train(layer, optimizer, 2)
    assert_consistent(layer, optimizer)


def test_restored_moment_of_another_mode_trains():
    layer = lru(dtype=torch.float32)
    optimizer = torch.optim.AdamW(layer.parameters())
    train(layer, optimizer, 1)
    then = snapshot.Snapshot([layer], [optimizer])
    ht.compress_(layer, ht.CompressionConfig(order=4), optimizer)
    with torch.inference_mode():
        then.restore()
    train(layer, optimizer, 1)
    assert_consistent(layer, optimizer)


def test_undo_puts_everything_back():
    layer, other = lru(8), lru(4)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2)
    train(layer, optimizer, 2)
    before = remembered(layer, optimizer)
    swap = exchange.Exchange([layer], (optimizer,))
    swap.replace(*({name: getattr(x, name) for name in STATE_TENSORS} for x in (layer, other)))
    swap.commit()
    assert layer.states == 4
    swap.undo()
    assert_unchanged(before, layer, optimizer)


def test_tensor_that_no_module_holds_is_refused():
    swap = exchange.Exchange([lru()])
    with pytest.raises(ht.SurgeryError, match="must be held by a module"):
        swap.replace({"weight": torch.zeros(2)}, {"weight": torch.zeros(1)})


def test_new_tensor_of_another_dtype_is_refused_and_undone():
    layer = lru()
    before = remembered(layer)
    swap = exchange.Exchange([layer])
    swap.replace({"nu_log": layer.nu_log}, {"nu_log": torch.nn.Parameter(torch.zeros(4))})
    with pytest.raises(ht.SurgeryError, match="The new nu_log of the model must have dtype"):
        swap.commit()
    assert_unchanged(before, layer)
    assert issubclass(ht.SurgeryError, hr.HankelredError)
