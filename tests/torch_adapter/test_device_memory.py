"""Claims about the device memory of shards in a cut: whatever interrupts them where they take it, nothing is lost."""

from __future__ import annotations

import pytest
import torch
from sizes import sample

import hankelred_torch as ht
from hankelred_torch import device_memory, exchange, sharding
from hankelred_torch.device_memory import DeviceMemory
from hankelred_torch.surgery import cut as cutting
from hankelred_torch.surgery import fsdp, snapshot

from .adapter_models import lru, train
from .test_exchange import interrupted_at
from .test_sharded import pytestmark  # noqa: F401 (needs the same)

pytest.importorskip("torch.distributed.fsdp", reason="needs FSDP2: torch 2.6")
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard

FORGETTING = 500  # lines at the end that forget old shards, when the cut is done
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
        self.model = fully_shard(torch.nn.Sequential(*(lru(n, seed=n, dtype=torch.float32) for n in (6, 5))))
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
        assert all(x.untyped_storage().nbytes() >= y.untyped_storage().nbytes() for x, y in self.views)
        assert all(torch.equal(x, y) for x, y in self.views)


def test_views_that_a_stranger_has_of_old_shards_keep_their_values():
    run = Run()
    run.cut()
    run.assert_views_are_as_they_were()
    run.assert_cut()


def cut(model, optimizer):
    ht.compress_(model, ht.CompressionConfig(order=3), optimizer)


def resize(model, optimizer):
    ht.resize_(model, {"0": 3, "1": 3}, optimizer)


@pytest.mark.parametrize("job", [cut, resize])
def test_old_shards_that_nobody_keeps_are_gone_and_not_back(monkeypatch, job):
    run, found, let_go = Run(), [], DeviceMemory.let_go

    def watched(memory):
        let_go(memory)
        found.append(memory._ref.expired())

    monkeypatch.setattr(DeviceMemory, "let_go", watched)
    model, optimizer = run.model, run.optimizer
    del run
    job(model, optimizer)
    assert ht.state_sizes(model) == {"0": 3, "1": 3}
    assert found
    assert all(found)


def test_numbers_that_wait_do_so_until_they_are_back(monkeypatch):
    tensor = torch.arange(3.0)
    memory, copy = DeviceMemory(tensor), device_memory._bytes
    memory.hold(False)
    monkeypatch.setattr(device_memory, "_bytes", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        memory.hold(True)
    monkeypatch.setattr(device_memory, "_bytes", copy)
    memory.hold(True)
    memory.hold(True)
    assert tensor.tolist() == [0.0, 1.0, 2.0]


def test_cut_of_shards_interrupted_at_any_line_is_undone_or_done():
    total = interrupted_at(None, Run().cut, FILES)
    for line in (*sample(range(1, total - FORGETTING), 0.003), *sample(range(total - FORGETTING, total + 1), 0.02)):
        run = Run()
        with pytest.raises(KeyboardInterrupt):
            interrupted_at(line, run.cut, FILES)
        run.assert_views_are_as_they_were()
        if ht.state_sizes(run.model) == {"0": 3, "1": 3}:
            assert line > total - FORGETTING
            run.assert_cut()
        else:
            run.assert_unchanged()


def test_moment_kept_before_a_cut_of_shards_that_is_interrupted_can_be_gone_back_to():
    total = interrupted_at(None, Run().cut, FILES)
    for line in sample(range(total - FORGETTING, total + 1), 0.02):
        run = Run()
        then = snapshot.Snapshot([run.model], [run.optimizer])
        with pytest.raises(KeyboardInterrupt):
            interrupted_at(line, run.cut, FILES)
        then.restore()
        run.assert_unchanged()


@pytest.mark.parametrize("call", [1, 5, 20, 43, 80])
def test_cut_that_finds_no_memory_for_a_shard_is_undone(monkeypatch, call):
    run, calls, copy = Run(), [], device_memory._bytes

    def failing(*arguments):
        calls.append(1)
        if len(calls) == call:
            raise torch.OutOfMemoryError("no memory")
        return copy(*arguments)

    monkeypatch.setattr(device_memory, "_bytes", failing)
    with pytest.raises(torch.OutOfMemoryError):
        run.cut()
    run.assert_unchanged()
    run.assert_views_are_as_they_were()


def test_memory_that_others_have_a_part_in_stays_where_it_is():
    mesh = torch.distributed.init_device_mesh("cpu", (1,))
    flat = torch.zeros(6)
    parts = [DTensor.from_local(x, mesh, [Shard(0)]) for x in (flat[:3], flat[3:], flat)]
    assert [device_memory.memory_of(x) is None for x in (*parts, flat, None)] == [True, True, False, True, True]
