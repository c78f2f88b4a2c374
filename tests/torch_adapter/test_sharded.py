"""Claims about models that `fully_shard` has spread over ranks, found out by two of them with the gloo backend."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sizes import is_long

pytest.importorskip("torch.distributed.fsdp", reason="needs FSDP2: torch 2.6")

ROOT = Path(__file__).parents[2]
LIMIT = 1500 if is_long() else 500  # seconds; on a free core it takes a tenth of it

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available() and hasattr(os, "fork")),
    reason="needs the gloo backend and forks: torch.distributed.is_gloo_available()",
)

LRU = {"blocks.0.layer": 6, "blocks.1.layer": 5}
HF = {"backbone.layers.0.mixer": 8, "backbone.layers.1.mixer": 8}
TWINS = {"lru_in_blocks": LRU, "lru_as_units": LRU, "mamba": HF, "mamba2": HF}
LONG = {"lru_in_the_root": LRU, "lru_kept_after_forward": LRU, "lru_on_two_dimensions": LRU}
TWINS |= LONG if is_long() else {}
OTHERS = [
    "rolled_back",
    "averages",
    "other_rank_lacks_a_parameter",
    "other_rank_has_other_settings",
    "other_rank_cuts_fewer_layers",
    "writing_fails_on_one_rank",
    "samples_of_uneven_ranks",
    "sample_of_one_rank_is_not_finite",
    "sample_of_one_rank_is_of_another_kind",
    "another_version_of_torch",
    "axis_that_cannot_be_divided",
    "tensor_parallel",
    "wrapped_and_sharded",
    "bytes_on_the_wire",
]
OTHERS += ["mamba_in_bfloat16"] if is_long() else []


def run_worker(folder, *arguments, limit=LIMIT):
    """Run the worker in a process of its own, and return what each rank found."""
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    process = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("fsdp_worker.py")), str(folder), *map(str, arguments)],
        env=os.environ | threads | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=limit + 100,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    return [json.loads(x.read_text()) for x in sorted(folder.glob("rank_*.json"))]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Return what every rank found, one dict per rank, scenario by scenario."""
    pytest.importorskip("transformers")
    return run_worker(tmp_path_factory.mktemp("ranks"), 2, LIMIT, *TWINS, *OTHERS)


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
    ranks = run_worker(tmp_path, 4, LIMIT, name)
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


def test_model_that_is_wrapped_and_sharded_is_refused(found):
    kind, text = found[0]["wrapped_and_sharded"]
    assert kind == "InputError"
    assert "Use fully_shard on a mesh of two dimensions" in text


def test_cut_gathers_tensors_of_its_layers_only_and_never_more_than_one(found):
    for name in ("Mamba", "Mamba2"):
        counts = found[0]["bytes_on_the_wire"][name]
        assert counts["tensors"] == 4 * counts["layers"]  # for the plan, for the cut, and two averages of AdamW
        assert counts["largest"] < counts["layers"] / 2
