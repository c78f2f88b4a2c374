"""Claims about the device memory of shards in a cut: whatever interrupts them where they take it, nothing is lost."""

from __future__ import annotations

import pytest
import torch
from sizes import sample

import hankelred_torch as ht
from hankelred_torch import device_memory, exchange, sharding
from hankelred_torch.surgery import cut as cutting
from hankelred_torch.surgery import fsdp, snapshot

from .adapter_models import lru, train
from .test_exchange import interrupted_at
from .test_sharded import pytestmark  # noqa: F401 (needs the same)

pytest.importorskip("torch.distributed.fsdp", reason="needs FSDP2: torch 2.6")
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.multiprocessing.reductions import StorageWeakRef

FILES = {x.__file__ for x in (cutting, device_memory, exchange, fsdp, snapshot)}


@pytest.fixture(autouse=True, scope="module")
def alone(tmp_path_factory):
    """Be the one rank of a run."""
    store = torch.distributed.FileStore(str(tmp_path_factory.mktemp("store") / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


class Run:
    """A sharded model in training, whose shards a stranger has views of."""

    def __init__(self):
        model = torch.nn.Sequential(*(lru(n, seed=n, dtype=torch.float32) for n in (6, 5)))
        ht.find_ssm_layers(model)  # where another test has registered the adapter, it is compared with the layer again
        self.model = fully_shard(model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        train(self.model, self.optimizer, 2)
        self.before = self.now()
        self.views = [(sharding.local(x).detach(), y) for x, y in self.before if sharding.is_spread(x)]

    def now(self):
        """Return all tensors with their values."""
        sharding.reshard(self.model)
        held = [*self.model.parameters(), *(x for y in self.optimizer.state.values() for x in y.values())]
        return [(x, sharding.local(x).detach().clone()) for x in held]

    def cut(self):
        cut(self.model, self.optimizer)

    def assert_unchanged(self):
        now = self.now()
        assert [id(x) for x, _ in now] == [id(x) for x, _ in self.before]
        assert all(torch.equal(x, y) for (_, x), (_, y) in zip(now, self.before, strict=True))

    def assert_cut(self):
        assert ht.state_sizes(self.model) == {"0": 3, "1": 3}
        assert all(x.isfinite().all() for _, x in self.now())
        train(self.model, self.optimizer, 1)

    def assert_views_are_as_they_were(self):
        assert all(torch.equal(x, y) for x, y in self.views)


def cut(model, optimizer):
    ht.compress_(model, ht.CompressionConfig(order=3), optimizer)


def made(model, optimizer):
    config, schedule = ht.CompressionConfig(order=3), ht.Schedule(end_step=1, attempts=1, force=True)
    return ht.InTrainingCompressor(model, optimizer, config, schedule)


def cut_in_training(model, optimizer):
    compressor = made(model, optimizer)
    compressor.step()
    return compressor  # which could roll back


def resize(model, optimizer):
    ht.resize_(model, {"0": 3, "1": 3}, optimizer)


def test_views_that_a_stranger_has_of_old_shards_keep_their_values():
    run = Run()
    run.cut()
    run.assert_views_are_as_they_were()
    run.assert_cut()


@pytest.mark.parametrize("job", [cut, cut_in_training, resize])
def test_old_shards_are_gone_from_the_device(job):
    # history: the moment that a compressor could go back to kept them there until the next cut
    run = Run()
    refs = [StorageWeakRef(x.untyped_storage()) for x, _ in run.views if not {*x.shape}.isdisjoint((5, 6))]
    model, optimizer = run.model, run.optimizer
    del run
    kept = job(model, optimizer)
    assert ht.state_sizes(model) == {"0": 3, "1": 3}
    assert refs
    assert all(x.expired() for x in refs)
    del kept


def test_rollback_gives_the_same_shards_their_numbers_again():
    run = Run()
    compressor = cut_in_training(run.model, run.optimizer)
    train(run.model, run.optimizer, 1)
    compressor.rollback()
    run.assert_unchanged()
    train(run.model, run.optimizer, 1)


def test_rollback_that_fails_leaves_the_cut():
    run = Run()
    compressor = cut_in_training(run.model, run.optimizer)
    broken = snapshot.Snapshot([run.model], [run.optimizer])  # only to be the last that is called
    compressor._snapshot._random = broken  # cannot be put back
    run.before = run.now()
    with pytest.raises((TypeError, AttributeError, KeyError)):
        compressor.rollback()
    run.assert_unchanged()
    run.assert_cut()


def test_cut_of_shards_interrupted_at_any_line_is_undone_or_done():
    total = interrupted_at(None, Run().cut, FILES)
    for line in (*sample(range(1, total - 30), 0.005), *sample(range(total - 30, total + 1), 0.2)):
        run = Run()
        with pytest.raises(KeyboardInterrupt):
            interrupted_at(line, run.cut, FILES)
        run.assert_views_are_as_they_were()
        if ht.state_sizes(run.model) == {"0": 3, "1": 3}:
            assert line > total - 30
            run.assert_cut()
        else:
            run.assert_unchanged()


def test_way_back_of_shards_interrupted_at_any_line_is_not_begun_or_done():
    def cut_once():
        run = Run()
        then = snapshot.Snapshot([run.model], [run.optimizer])
        run.cut()
        return run, then

    total = interrupted_at(None, cut_once()[1].restore, FILES)
    for line in sample(range(1, total + 1), 0.01):
        run, then = cut_once()
        before, run.before = run.before, run.now()
        with pytest.raises(KeyboardInterrupt):
            interrupted_at(line, then.restore, FILES)
        run.before = before if ht.state_sizes(run.model) == {"0": 6, "1": 5} else run.before
        run.assert_unchanged()


@pytest.mark.parametrize("call", [1, 20, 42])
def test_cut_that_finds_no_memory_for_a_shard_is_undone(monkeypatch, call):
    run, calls, fill = Run(), [], device_memory.fill

    def failing(*arguments):
        calls.append(1)
        if len(calls) == call:
            raise torch.OutOfMemoryError("no memory")
        return fill(*arguments)

    monkeypatch.setattr(device_memory, "fill", failing)
    with pytest.raises(torch.OutOfMemoryError):
        run.cut()
    run.assert_unchanged()
    run.assert_views_are_as_they_were()


def test_memory_that_others_have_a_part_in_stays_where_it_is():
    mesh = torch.distributed.init_device_mesh("cpu", (1,))
    flat = torch.zeros(6)
    parts = [DTensor.from_local(x, mesh, [Shard(0)]) for x in (flat[:3], flat[3:], flat)]
    assert [device_memory.memory_of(x) is None for x in (*parts, flat, None)] == [True, True, False, True, True]


def test_layer_of_a_registered_class_is_the_same_once_it_is_sharded_and_has_hooks():
    class Own(ht.layers.LRU):
        """A class that nobody has compared with an adapter yet."""

    ht.register_adapter(Own, ht.adapters.LRUAdapter)
    model = torch.nn.Sequential(Own(2, 4))
    assert list(ht.find_ssm_layers(model)) == ["0"]
    fully_shard(model)
    model[0].register_full_backward_hook(lambda *_: None)
    assert list(ht.find_ssm_layers(model)) == ["0"]
