"""Claims about sharded runs under Accelerate and the Trainer of Hugging Face, found out by two gloo ranks."""

from __future__ import annotations

import pytest

from .forked import found_by_ranks
from .test_sharded import LIMIT, pytestmark  # noqa: F401 (needs the same)

# History of this page: accelerate loads sharded models before it calls its hooks, where a state of other sizes failed;
# to load the state of a fresh optimizer torch takes a step with it, which was counted.

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

OF_ACCELERATE = ["accelerate_in_shards", "accelerate_in_one_file"]  # the second checkpoints activations
OF_TRAINER = ["trainer_in_shards", "trainer_in_one_file"]
LRU = {"blocks.0.layer": 4, "blocks.1.layer": 4}
HF = {"backbone.layers.0.mixer": 4, "backbone.layers.1.mixer": 4}
SIZES = {name: LRU for name in OF_ACCELERATE} | {name: HF for name in OF_TRAINER}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Return what every rank found, one dict per rank, scenario by scenario."""
    return found_by_ranks("fsdp_frameworks", tmp_path_factory.mktemp("ranks"), 2, limit=LIMIT)


@pytest.mark.parametrize("name", SIZES)
def test_sharded_model_is_cut_and_stays_sharded(found, name):
    assert [(rank[name]["sizes"], rank[name]["spread"]) for rank in found] == [(SIZES[name], True)] * 2


@pytest.mark.parametrize("name", SIZES)
def test_run_resumed_between_two_cuts_has_the_same_bits(found, name):
    assert [rank[name]["same"] for rank in found] == [True, True]


@pytest.mark.parametrize("name", OF_ACCELERATE)
def test_resumed_run_has_the_losses_and_the_steps_of_the_uninterrupted_one(found, name):
    for rank in found:
        assert rank[name]["same losses"]
        assert rank[name]["steps"] == [6, 6]


def test_trainer_cuts_at_the_steps_of_the_schedule(found):
    assert [found[0][name]["cuts"] for name in OF_TRAINER] == [[2, 4]] * 2


@pytest.mark.parametrize("name", SIZES)
def test_whole_result_is_saved_and_loaded_by_one_process(found, name):
    for rank in found:
        plain, sizes, difference = rank[name]["whole"]
        assert plain
        assert sizes == SIZES[name]
        assert difference < 1e-6  # the same weights, whole and gathered; float32


def test_checkpoint_of_the_trainer_in_one_file_loads_as_a_whole_model(found):
    name = "trainer_in_one_file"
    assert [rank[name]["checkpoint"] for rank in found] == [SIZES[name]] * 2


def test_folder_of_a_state_must_be_named(found):
    for rank in found:
        kind, text = rank["accelerate_in_shards"]["without input_dir"]
        assert (kind, text.startswith("input_dir must name the folder")) == ("InputError", True)


def test_state_that_one_rank_does_not_find_is_an_error_on_all_with_its_message(found):
    (error, text), (other, its_text) = (rank["accelerate_in_shards"]["seen by rank 0 alone"] for rank in found)
    assert (error, other) == ("SurgeryError", "InputError")
    assert "must hold the state of a compressor of this model" in its_text
    assert its_text in text


@pytest.mark.parametrize("of", ["accelerate", "trainer"])
def test_guard_that_takes_steps_is_refused_before_the_training(found, of):
    for rank in found:
        kind, text = rank[f"{of}_with_a_guard_that_takes_steps"]
        assert kind == "InputError"
        assert "got settle_steps=1, in which every rank keeps shards" in text


def test_adapters_of_peft_on_a_sharded_model_are_refused_before_the_training(found):
    for rank in found:
        if rank["trainer_of_adapters"] is not None:
            kind, text = rank["trainer_of_adapters"]
            assert kind == "InputError"
            assert "Adapters of PEFT must be on a model that is whole" in text
