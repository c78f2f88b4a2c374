"""Claims about compiled models: after every cut they compute what the eager model does, compiled and not eagerly."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import pytest
import torch

import hankelred_torch as ht
from hankelred_torch.sampling import watch

from .adapter_models import Stack, assert_consistent, inputs, lru, train
from .settings import what_and_when

# History of this page: beyond `recompile_limit`, 8 sizes of one function, torch.compile runs eagerly from then on and
# writes a line to its log; layers of one class that are compiled one by one use that limit up together.

pytestmark = [  # torch's own, while it traces
    pytest.mark.filterwarnings("ignore:.*Tensor that is not a leaf Tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@contextmanager
def graphs(limit):
    """Count the graphs that are compiled; raise where torch would fall back to eager."""
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=limit):
        yield backend, compiled


class Regional(Stack):
    """Compiles its layers one by one, as large models do."""

    def __init__(self, sizes, backend):
        super().__init__(sizes)
        for layer in (self.first, self.second):
            layer.compile(backend=backend)


def test_without_a_reset_torch_stops_compiling():
    with graphs(limit=2) as (backend, _):
        layer = lru(16)
        model = torch.compile(layer, backend=backend)

        def shrink_by_hand():
            for states in (7, 6, 5):
                ht.write_system(layer, ht.read_system(lru(states)))
                model(inputs())

        with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
            shrink_by_hand()


def test_compiled_model_is_compiled_at_every_size_and_equal_to_the_eager_one():
    with graphs(limit=8) as (backend, compiled):
        layer, u = lru(16), inputs()
        model = torch.compile(layer, backend=backend)
        model(u)
        for states in range(15, 5, -1):  # 11 sizes, more than the limit
            count = len(compiled)
            ht.compress_(model, ht.CompressionConfig(order=states, min_cut=0.0))
            assert layer.states == states
            assert torch.equal(model(u), layer(u))
            assert len(compiled) > count


def test_listeners_that_begin_and_end_in_turn_leave_the_compiler_as_it_was():
    with graphs(limit=8) as (backend, compiled):
        layer, u = lru(16), inputs()
        model = torch.compile(layer, backend=backend)
        first, second = (watch(x, ht.find_ssm_layers(x)) for x in (lru(16), lru(16)))
        first.remove()
        model(u)
        assert not compiled  # the second still listens
        second.remove()
        model(u)
        assert len(compiled) == 1


def test_layers_compiled_one_by_one_are_compiled_at_every_size():
    with graphs(limit=3) as (backend, compiled):
        model, u = Regional((16, 15), backend), inputs()
        model(u)
        for states in (10, 6):  # of either layer 3, of the class 6
            count = len(compiled)
            ht.compress_(model, ht.CompressionConfig(order={"first": states, "second": states - 1}, min_cut=0.0))
            with torch.compiler.set_stance("force_eager"):
                wanted = model(u)
            assert torch.equal(model(u), wanted)
            assert len(compiled) == count + 2


@pytest.mark.parametrize("whole", [True, False], ids=["whole model", "inner model"])
def test_run_of_a_compiled_model_is_that_of_the_eager_one(whole):
    config = what_and_when(fraction=0.7, end_step=6, attempts=3, force=True)

    def run(compiled):
        model = Stack()
        stepped = torch.compile(model, backend="aot_eager") if compiled else model
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        compressor = ht.InTrainingCompressor(stepped if whole else model, optimizer, *config)
        for k in range(8):
            train(stepped, optimizer, 1, seed=k)
            compressor.step()
        assert_consistent(model, optimizer)
        return model, compressor

    (eager, history), (compiled, compiled_history) = (run(compiled) for compiled in (False, True))
    assert ht.state_sizes(compiled) == ht.state_sizes(eager)
    assert [record.layer for record in compiled_history.history] == [record.layer for record in history.history]
    for wanted, got in zip(eager.parameters(), compiled.parameters(), strict=True):
        # the backward of aot_eager sums in another order; AdamW makes at most the step of its rate out of that
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-8)


def test_compiled_step_of_the_optimizer_goes_on_with_the_new_parameters():
    model = lru()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    step = torch.compile(optimizer.step, backend="eager")

    def advance():
        model(inputs()).square().mean().backward()
        step()
        optimizer.zero_grad()

    advance()
    ht.compress_(model, ht.CompressionConfig(order=4), optimizer)
    before = copy.deepcopy(model)
    advance()
    assert_consistent(model, optimizer)
    assert not any(torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters(), strict=True))


def test_cut_of_a_model_that_nobody_compiled_loads_no_compiler():
    import subprocess
    import sys

    code = (
        "import sys, hankelred_torch as ht; "
        "ht.compress_(ht.layers.LRU(2, 8), ht.CompressionConfig(order=4)); "
        "print('torch._dynamo' in sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "False"
