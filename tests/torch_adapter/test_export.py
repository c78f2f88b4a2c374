"""Twins for export: the layer's outputs for every batch size and length, in torch.export and in ONNX Runtime."""

from __future__ import annotations

import pytest
import torch

import hankelred_torch as ht
from hankelred.errors import InputError

LAYERS = {
    "LRU": lambda: ht.layers.LRU(3, 8),
    "S5": lambda: ht.layers.S5(3, 8),
    "S4D": lambda: ht.layers.S4D(3, 4),
    "Mamba": lambda: ht.layers.Mamba(3, 4),
}
SIZES = [(1, 1), (2, 2), (8, 37), (3, 1000), (1, 4096)]

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's own and onnxscript's, while they trace
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def sequences(batch, length, seed=0):
    return torch.randn(batch, length, 3, generator=torch.Generator().manual_seed(seed))


def assert_same(found, layer, u):
    with torch.no_grad():
        wanted = layer(u)
    scale = float(wanted.abs().max()) + 1e-30
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) < 1e-5 * scale


@pytest.fixture(params=LAYERS)
def layer(request):
    torch.manual_seed(0)
    return LAYERS[request.param]().eval()


def test_twin_gives_the_outputs_of_the_layer(layer):
    twin = ht.export_form(layer)
    for size in SIZES:
        u = sequences(*size)
        assert_same(twin(u), layer, u)


def test_exported_program_keeps_batch_and_length_open_and_holds_no_operator_of_ours(layer):
    auto = torch.export.Dim.AUTO
    program = torch.export.export(
        ht.export_form(layer), (sequences(2, 20),), dynamic_shapes=({0: auto, 1: auto, 2: torch.export.Dim.STATIC},)
    )
    assert "hankelred" not in str(program.graph)
    for size in SIZES:
        u = sequences(*size)
        assert_same(program.module()(u), layer, u)


def test_onnx_runtime_gives_the_outputs_of_the_layer(layer, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    path = tmp_path / "layer.onnx"
    dynamic = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)
    torch.onnx.export(
        ht.export_form(layer), (sequences(2, 20),), path, dynamic_shapes=dynamic, dynamo=True, verbose=False
    )
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    for size in SIZES:
        u = sequences(*size)
        assert_same(torch.from_numpy(session.run(None, {name: u.numpy()})[0]), layer, u)


def test_later_steps_are_nan_in_a_program_and_an_error_in_python():
    twin = ht.export_form(ht.layers.LRU(3, 4), max_length=8)
    auto = torch.export.Dim.AUTO
    program = torch.export.export(
        twin, (sequences(2, 6),), dynamic_shapes=({0: auto, 1: auto, 2: torch.export.Dim.STATIC},)
    )
    y = program.module()(sequences(1, 10))
    assert torch.isfinite(y[:, :8]).all()
    assert torch.isnan(y[:, 8:]).all()
    with pytest.raises(InputError, match="at most 8 steps; got 10"):
        twin(sequences(1, 10))


def test_layers_with_a_forward_of_their_own_are_refused():
    class Doubled(ht.layers.LRU):
        def forward(self, u):
            return 2 * super().forward(u)

    for other in (Doubled(3, 4), torch.nn.Linear(3, 3)):
        with pytest.raises(InputError, match="must be one of LRU"):
            ht.export_form(other)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_itself_is_exported_with_open_sizes(kind):
    torch.manual_seed(0)
    layer, auto = LAYERS[kind]().eval(), torch.export.Dim.AUTO
    program = torch.export.export(
        layer, (sequences(2, 20),), dynamic_shapes=({0: auto, 1: auto, 2: torch.export.Dim.STATIC},)
    )
    for size in SIZES[1:4]:
        u = sequences(*size)
        assert_same(program.module()(u), layer, u)


@pytest.mark.parametrize("kind", LAYERS)
def test_torch_compile_makes_one_graph_for_open_sizes(kind):
    torch.manual_seed(0)
    torch._dynamo.reset()
    layer, graphs = LAYERS[kind](), []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    model = torch.compile(layer, backend=backend)
    for batch, length in ((2, 16), (3, 20), (4, 100), (7, 300), (9, 1000), (30, 2000)):
        u = sequences(batch, length)
        assert_same(model(u), layer, u)
    torch._dynamo.reset()
    assert len(graphs) <= 2  # one for the first sizes, one for all others, as of a linear layer
