"""Claims about runs on several processes, found out by two of them with the gloo backend."""

from __future__ import annotations

import gc
import os

import pytest
import torch

import hankelred as hr
import hankelred_torch as ht

from .adapter_models import lru
from .forked import found_by_ranks
from .settings import what_and_when

# History of this page: after a cut without a new wrapper the second backward pass raises "Expected to have finished
# reduction in the prior iteration"; ranks that cut to equal sizes by unequal choices train different models silently.

RANKS = 2
CUT, UNCUT = {"first": 8, "second": 5}, {"first": 12, "second": 8}
WRAPPERS = ["plain", "static_graph", "bucket_view", "find_unused", "buckets", "group", "rank_local_buffers"]

needs_gloo = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available() and hasattr(os, "fork")),
    reason="needs the gloo backend and forks: torch.distributed.is_gloo_available()",
)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Return what every rank found, one dict per rank, scenario by scenario."""
    return found_by_ranks("ddp_worker", tmp_path_factory.mktemp("ranks"), RANKS, limit=400)


@needs_gloo
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_run_on_two_ranks_is_the_run_on_one_with_both_batches(found, wrapper):
    for rank in found:
        _, sizes, _, difference = rank["every_kind_of_wrapper"][wrapper]
        assert sizes == CUT
        assert difference < 1e-10  # sums over ranks round otherwise; 5 steps of AdamW at a rate of 0.01


@needs_gloo
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_ranks_have_the_same_parameters_after_cuts(found, wrapper):
    assert [rank["every_kind_of_wrapper"][wrapper][0] for rank in found] == [True, True]


@needs_gloo
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapper_made_anew_has_the_arguments_it_had(found, wrapper):
    assert [rank["every_kind_of_wrapper"][wrapper][2] for rank in found] == [True, True]


@needs_gloo
def test_rank_0_decides_for_all(found):
    assert [rank["rank_0_decides"] for rank in found] == [[{"first": 5, "second": 4}, True]] * 2


@needs_gloo
@pytest.mark.parametrize("rank", range(RANKS))
def test_ranks_whose_parameters_differ_are_refused_and_unchanged(found, rank):
    (kind, text), unchanged = found[rank]["ranks_that_differ"]
    assert kind == "SurgeryError"
    assert "those of rank 1 differ from those of rank 0" in text
    assert unchanged


@needs_gloo
def test_ranks_whose_optimizers_differ_are_refused(found):
    assert [rank["optimizers_that_differ"][0] for rank in found] == ["SurgeryError"] * 2


@needs_gloo
def test_failure_to_decide_is_raised_on_every_rank(found):
    (kind, text), (other_kind, other_text) = (rank["rank_0_fails"] for rank in found)
    assert (kind, other_kind) == ("InputError", "SurgeryError")
    assert text in other_text


@needs_gloo
def test_failure_of_another_rank_is_raised_on_every_rank_and_nothing_changes(found):
    (error, unchanged), (other_error, other_unchanged) = (rank["other_rank_fails"] for rank in found)
    assert error[0] == "SurgeryError"
    assert f"rank 1 was not: {other_error[1]}" in error[1]
    assert unchanged
    assert other_unchanged


@needs_gloo
def test_hooks_and_mode_of_the_wrapper_stay(found):
    assert [rank["hooks_and_mode"] for rank in found] == [["fp16_compress_hook", 4, False, True, CUT]] * 2


@needs_gloo
def test_communication_hook_with_a_state_is_refused_and_nothing_changes(found):
    errors, sizes = found[0]["hook_with_a_state"]
    assert sizes == UNCUT
    for kind, text in errors:  # when a compressor is made, and at a cut
        assert kind == "InputError"
        assert "powerSGD_hook with a PowerSGDState" in text


@needs_gloo
def test_communication_hook_that_torch_does_not_tell_is_refused(found):
    kind, text = found[0]["hook_of_torch_itself"]
    assert kind == "InputError"
    assert "a built-in communication hook, which torch does not tell" in text


@needs_gloo
def test_what_uneven_ranks_hear_counts_once_for_each_sample(found):
    pytest.importorskip("transformers")
    for rank in found:
        sizes, differences = rank["samples_of_uneven_ranks"]
        assert all(x == y for x, y in sizes)
        assert max(differences) < 1e-5  # float32, sums in another order


@needs_gloo
def test_guard_decides_by_the_mean_of_the_ranks(found):
    # rank 1 alone would have kept the cut
    assert [rank["metric_of_the_ranks"] for rank in found] == [[{"before": 1.0, "after": 0.5}, True, UNCUT, True]] * 2


@needs_gloo
def test_wrapper_goes_on_after_a_cut_by_hand(found):
    assert [rank["cut_by_hand"][0] for rank in found] == [True, True]


@needs_gloo
def test_ranks_cut_by_hand_to_other_sizes_are_refused(found):
    assert [rank["cut_by_hand"][1][0] for rank in found] == ["SurgeryError"] * 2


@needs_gloo
def test_run_resumed_in_its_wrapper_is_the_uninterrupted_one(found):
    assert [rank["resumed_in_the_wrapper"] for rank in found] == [True, True]


@needs_gloo
def test_compiled_wrapper_is_cut(found):
    assert [rank["compiled_wrapper"] for rank in found] == [[CUT, True]] * 2


@needs_gloo
def test_sharded_run_cut_by_the_recipe_of_the_guide_is_the_run_on_one_rank(found):
    # float32, 5 steps of AdamW at a rate of 0.01; the gradients of two ranks are averaged
    assert [rank["sharded_model_cut_by_its_full_state"] < 1e-4 for rank in found] == [True, True]


@needs_gloo
def test_trainer_of_hugging_face_cuts_on_every_rank_once_it_is_attached(found):
    pytest.importorskip("transformers")
    for rank in found:
        (kind, text), wrapper, sizes, same = rank["trainer_of_hugging_face"]
        assert kind == "InputError"
        assert "Call callback.attach(trainer)" in text
        assert (wrapper, sizes, same) == (
            "DistributedDataParallel",
            {f"stack.{name}": size for name, size in CUT.items()},
            True,
        )


def test_something_else_than_a_wrapper_is_refused():
    with pytest.raises(hr.InputError, match="ddp must be a DistributedDataParallel; got LRU"):
        ht.refresh_ddp_(lru())


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    gc.collect()  # a wrapper that outlives its process group can wait for its threads for ever
    torch.distributed.destroy_process_group()


@needs_gloo
def test_wrapper_inside_another_module_is_refused(one_process):
    model = torch.nn.Sequential(torch.nn.parallel.DistributedDataParallel(lru()))
    with pytest.raises(hr.InputError, match="Pass the wrapper itself"):
        ht.compress_(model, ht.CompressionConfig(order=4))


@needs_gloo
@pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")  # at the import of it
def test_optimizer_that_shares_its_state_out_is_refused(one_process):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    layer = lru()
    optimizer = ZeroRedundancyOptimizer(layer.parameters(), optimizer_class=torch.optim.AdamW)
    with pytest.raises(hr.InputError, match="Use the optimizer inside it"):
        ht.InTrainingCompressor(layer, optimizer, *what_and_when(fraction=0.6, end_step=2))


@needs_gloo
@pytest.mark.filterwarnings("ignore")  # of a class that torch has replaced
def test_sharding_of_the_first_kind_is_refused_by_name_when_the_compressor_is_made(one_process):
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = FullyShardedDataParallel(lru(dtype=torch.float32), device_id=torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.parameters())
    config, schedule = what_and_when(fraction=0.6, end_step=2)
    with pytest.raises(hr.InputError, match="got a FullyShardedDataParallel, which shards them"):
        ht.InTrainingCompressor(model, optimizer, config, schedule)


def test_module_that_is_captured_in_a_graph_is_refused_when_the_compressor_is_made():
    """There is no GPU to capture on: a stand-in has the name of what torch puts in the place of `forward`."""
    model = torch.nn.Sequential(lru())

    def new_fwd(u):
        return u

    new_fwd.__qualname__ = "make_graphed_callables.<locals>.make_graphed_forward.<locals>.new_fwd"
    model[0].forward = new_fwd
    optimizer = torch.optim.AdamW(model.parameters(), capturable=True)
    with pytest.raises(hr.InputError, match=r"got a LRU of torch\.cuda\.make_graphed_callables"):
        ht.InTrainingCompressor(model, optimizer, *what_and_when(fraction=0.6, end_step=2))


def test_engine_and_optimizer_of_deepspeed_are_refused_by_their_names():
    """The package is not at hand: stand-ins bear its names."""
    engine = type("DeepSpeedEngine", (torch.nn.Sequential,), {})(lru())
    kind = type("DeepSpeedZeroOptimizer", (torch.optim.SGD,), {"__module__": "deepspeed.runtime.zero.stage_1_and_2"})
    config, schedule = what_and_when(fraction=0.6, end_step=2)
    with pytest.raises(hr.InputError, match="got a DeepSpeedEngine, which keeps copies of its own"):
        ht.InTrainingCompressor(engine, torch.optim.SGD(engine.parameters(), lr=1.0), config, schedule)
    with pytest.raises(hr.InputError, match="got a DeepSpeedZeroOptimizer, which shares them out"):
        ht.InTrainingCompressor(engine[0], kind(engine.parameters(), lr=1.0), config, schedule)
