"""Claims about models that `fully_shard` has spread over ranks, found out by two of them with the gloo backend."""

from __future__ import annotations

import os

import pytest
import torch
from sizes import is_long

from .forked import found_by_ranks

pytest.importorskip("torch.distributed.fsdp", reason="needs FSDP2: torch 2.6")

LIMIT = 1500 if is_long() else 500  # seconds; on a free core it takes a tenth of it

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available() and hasattr(os, "fork")),
    reason="needs the gloo backend and forks: torch.distributed.is_gloo_available()",
)

LRU = {"blocks.0.layer": 6, "blocks.1.layer": 5}
HF = {"backbone.layers.0.mixer": 8, "backbone.layers.1.mixer": 8}
TWINS = {"lru_in_blocks": LRU, "lru_as_units": LRU, "lru_checkpointed_and_compiled": LRU, "mamba": HF, "mamba2": HF}
LONG = {"lru_in_the_root": LRU, "lru_kept_after_forward": LRU, "lru_offloaded": LRU, "lru_on_two_dimensions": LRU}
TWINS |= LONG if is_long() else {}
OTHERS = [
    "rolled_back",
    "averages",
    "other_rank_lacks_a_parameter",
    "other_rank_has_other_settings",
    "other_rank_cuts_fewer_layers",
    "writing_fails_on_one_rank",
    "samples_of_uneven_ranks",
    "short_last_batches",
    "linear_layers_by_samples",
    "plans_of_every_budget",
    "smallest_by_a_metric",
    "metric_fails_on_one_rank",
    "sample_of_one_rank_is_not_finite",
    "sample_of_one_rank_is_of_another_kind",
    "another_version_of_torch",
    "axis_that_cannot_be_divided",
    "tensor_parallel",
    "wrapped_and_sharded",
    "measured_and_penalised",
    "bytes_on_the_wire",
    "memory_of_a_cut",
]
OTHERS += ["script_of_the_guide"] if not torch.cuda.is_available() else []  # it would shard over GPUs
OTHERS += ["mamba_in_bfloat16"] if is_long() else []


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Return what every rank found, one dict per rank, scenario by scenario."""
    pytest.importorskip("transformers")
    return found_by_ranks("fsdp_worker", tmp_path_factory.mktemp("ranks"), 2, *TWINS, *OTHERS, limit=LIMIT)


@pytest.mark.parametrize("name", TWINS)
def test_sharded_run_has_the_sizes_of_the_whole_one(found, name):
    assert [rank[name]["sizes"] for rank in found] == [TWINS[name]] * 2
    assert found[0][name]["twin"] == TWINS[name]


@pytest.mark.parametrize("name", TWINS)
def test_parameters_and_averages_are_shards_of_their_new_sizes(found, name):
    assert [(rank[name]["spread"], rank[name]["fits"]) for rank in found] == [(True, True)] * 2


@pytest.mark.parametrize("name", TWINS)
def test_losses_are_those_of_the_whole_run_before_and_after_the_cut(found, name):
    # float32 and sums over ranks in another order, which AdamW at a rate of 0.01 carries on
    assert found[0][name]["before"] < 1e-5
    assert found[0][name]["after"] < 1e-4


@pytest.mark.parametrize("name", [x for x in TWINS if x.startswith("lru")])
def test_transfer_functions_after_the_cut_are_those_of_the_whole_run(found, name):
    assert found[0][name]["responses"] < 1e-4


@pytest.mark.skipif(not is_long(), reason="four ranks: HANKELRED_LONG=1")
@pytest.mark.parametrize("name", ["lru_as_units", "lru_on_two_dimensions"])
def test_four_ranks_cut_as_one(tmp_path, name):
    ranks = found_by_ranks("fsdp_worker", tmp_path, 4, name, limit=LIMIT)
    assert [rank[name]["sizes"] for rank in ranks] == [LRU] * 4
    assert ranks[0][name]["after"] < 1e-4
    assert ranks[0][name]["responses"] < 1e-4


@pytest.mark.skipif(not is_long(), reason="a layout of the full matrix: HANKELRED_LONG=1")
def test_mixed_precision_stays_near_the_whole_run_in_single_precision(found):
    of = found[0]["mamba_in_bfloat16"]
    assert of["sizes"] == of["twin"]
    assert of["spread"]
    assert of["next"] < 0.05  # a few roundings of bfloat16, 2 ** -8 each


def test_cut_that_a_guard_rolls_back_leaves_the_very_shards(found):
    whole = {"blocks.0.layer": 12, "blocks.1.layer": 9}
    assert [rank["rolled_back"] for rank in found] == [[True, True, True, whole]] * 2


def test_averaged_copy_that_is_sharded_is_cut_along(found):
    assert [rank["averages"] for rank in found] == [[LRU, True]] * 2


def test_failure_to_prepare_on_one_rank_is_raised_on_all_with_its_message(found):
    (error, unchanged), (other, other_unchanged) = (rank["other_rank_lacks_a_parameter"] for rank in found)
    assert (error[0], other[0]) == ("SurgeryError", "InputError")
    assert f"rank 1 was not: {other[1]}" in error[1]
    assert unchanged
    assert other_unchanged


def test_failure_to_write_on_one_rank_undoes_the_cut_on_all(found):
    whole = {"blocks.0.layer": 12, "blocks.1.layer": 9}
    (error, *after), (other, *other_after) = (rank["writing_fails_on_one_rank"] for rank in found)
    assert error == ["SurgeryError", "All ranks must be able to cut; rank 1 was not: the memory is gone"]
    assert other == ["OSError", "the memory is gone"]
    assert after == other_after == [True, whole]


@pytest.mark.parametrize("name", ["other_rank_has_other_settings", "other_rank_cuts_fewer_layers"])
def test_ranks_that_ask_for_other_cuts_are_refused(found, name):
    for rank in found:
        kind, text = rank[name][0] if isinstance(rank[name][0], list) else rank[name]
        assert kind == "InputError"
        assert "All ranks must ask for the same cut" in text


def test_samples_count_once_each_however_they_lie_on_the_ranks(found):
    for rank in found:
        for number, (same_sizes, spectra, errors) in enumerate(rank["samples_of_uneven_ranks"]):
            assert same_sizes
            assert spectra < 1e-6  # single precision, sums in another order
            if number == 0:  # rank 1 has no sample, and the first batch is the probe of both
                assert all(abs(x - y) < 1e-5 * y for x, y in errors)


def test_short_last_batches_count_by_their_sequences(found):
    for rank in found:
        same_sizes, spectra = rank["short_last_batches"]
        assert same_sizes
        assert spectra < 1e-6  # single precision, sums in another order


def test_linear_layers_are_cut_and_measured_by_samples_as_those_of_a_whole_model(found):
    for rank in found:
        sizes, whole, errors = rank["linear_layers_by_samples"]
        assert sizes == whole
        assert all(x == pytest.approx(y, rel=1e-5) for x, y in errors)  # single precision


def test_plans_by_every_budget_are_those_of_a_whole_model(found):
    for rank in found:
        for (sizes, whole), is_cut in rank["plans_of_every_budget"]:
            assert sizes == whole
            assert is_cut


def test_smallest_model_by_a_metric_of_all_ranks_is_that_of_a_whole_model(found):
    for rank in found:
        sizes, whole, apart, now = rank["smallest_by_a_metric"]
        assert sizes == whole == {"blocks.1.layer": now}
        assert apart < 1e-5  # the mean of two losses in single precision


def test_metric_that_fails_on_one_rank_is_an_error_on_all_with_its_message(found):
    (error, sizes), (other, other_sizes) = (rank["metric_fails_on_one_rank"] for rank in found)
    assert error == [
        "SurgeryError",
        "The metric must be a number on every rank; it failed on another: no validation data",
    ]
    assert other == ["ValueError", "no validation data"]
    assert sizes == other_sizes == {"blocks.0.layer": 12, "blocks.1.layer": 9}


def test_output_errors_are_those_on_the_first_batches_of_all_ranks(found):
    assert found[0]["samples_of_uneven_ranks"][1][2] == found[1]["samples_of_uneven_ranks"][1][2]


def test_sample_that_is_not_finite_on_one_rank_is_an_error_on_all(found):
    for rank in found:
        kind, text = rank["sample_of_one_rank_is_not_finite"]
        assert kind == "NumericalError"
        assert "its inputs must be finite" in text


def test_samples_of_other_kinds_are_refused_on_all_ranks(found):
    for rank in found:
        kind, text = rank["sample_of_one_rank_is_of_another_kind"]
        assert kind == "InputError"
        assert "batches must be of one kind on all ranks; got torch.float32 of 3 axes, torch.float64" in text


def test_what_is_missing_of_another_version_of_torch_is_named_when_the_compressor_is_made(found):
    for rank in found:
        kind, text = rank["another_version_of_torch"]
        assert kind == "InputError"
        assert "got FSDPParam without _init_extensions in torch" in text


def test_size_that_cannot_be_sharded_is_refused_and_nothing_changes(found):
    for rank in found:
        (kind, text), unchanged, sizes = rank["axis_that_cannot_be_divided"]
        assert kind == "InputError"
        assert "must be of a size that FSDP2 can shard along its axis 1; got (4, 7)" in text
        assert unchanged
        assert sizes == {"blocks.0.layer": 4, "blocks.1.layer": 4}


def test_channels_may_be_split_by_a_tensor_parallel_plan_and_states_may_not(found):
    for rank in found:
        equal, placed, sizes, (kind, text) = rank["tensor_parallel"]
        assert (equal, placed, sizes) == (True, True, {"": 6})
        assert kind == "InputError"
        assert "nu_log of LRU must have all of its states on every rank" in text


def test_values_of_a_sharded_model_are_those_of_the_whole_one(found):
    assert [rank["measured_and_penalised"][0] for rank in found] == [[[True, True]] * 2] * 2


def test_penalty_on_a_sharded_layer_is_refused_by_its_name(found):
    for rank in found:
        kind, text = rank["measured_and_penalised"][1]
        assert kind == "InputError"
        assert "got shards in blocks.0.layer" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="would shard over GPUs: torch.cuda.is_available()")
def test_script_of_the_guide_trains_cuts_and_saves(found):
    for rank in found:
        steps, sizes = rank["script_of_the_guide"]
        assert steps == 20
        assert max(sizes.values()) < 32


def test_model_that_is_wrapped_and_sharded_is_refused(found):
    kind, text = found[0]["wrapped_and_sharded"]
    assert kind == "InputError"
    assert "Use fully_shard on a mesh of two dimensions" in text


@pytest.mark.parametrize("name", ["LRU", "Mamba", "Mamba2"])
def test_cut_gathers_tensors_of_its_layers_only_and_never_more_than_one(found, name):
    counts = found[0]["bytes_on_the_wire"][name]
    # for the plan and for the cut, what else the layer computes with beside it, and two averages of AdamW
    assert counts["tensors"] == 4 * counts["layers"] + 2 * counts["others"]
    assert counts["largest"] < counts["layers"] / 2


@pytest.mark.parametrize("layers", ["1", "3"])
def test_cut_needs_no_more_device_memory_than_a_step(found, layers):
    # history: states of the optimizer were whole together, and new shards stood beside the old ones
    for rank in found:
        memory = rank["memory_of_a_cut"][layers]
        assert memory["cut"] < memory["step"]
        assert memory["analyses"] == 1


@pytest.mark.parametrize("layers", ["1", "3"])
def test_cut_leaves_new_shards_on_the_device_and_nothing_else(found, layers):
    for rank in found:
        memory = rank["memory_of_a_cut"][layers]
        assert memory["left"] == pytest.approx(memory["new shards"])


def test_host_holds_one_layer_at_a_time_however_many_are_cut(found):
    for rank in found:
        one, three = (rank["memory_of_a_cut"][layers] for layers in ("1", "3"))
        more = three["and its shards"] - one["and its shards"]
        assert three["cut with the host"] - one["cut with the host"] < more + 7  # two layers more in double take 30
