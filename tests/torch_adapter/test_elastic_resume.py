"""Claims about sharded runs that are killed, and resumed on as many ranks, on fewer and on more."""

from __future__ import annotations

import json
from itertools import product

import pytest
import torch
from sizes import is_long, sample

import hankelred as hr
import hankelred_torch as ht

from .adapter_models import lru
from .forked import run_worker
from .test_sharded import pytestmark  # noqa: F401 (needs the same)

pytest.importorskip("torch.distributed.fsdp", reason="needs FSDP2: torch 2.6")

MOMENTS = ("before", "in the cut", "after", "shards are written", "the file is written")
WHO = ("first", "other", "all")  # rank 0, rank 1, or both
EVERY = [{"moment": x, "who": who, "step": step} for step, who, x in product((2, 3, 4, 5, 6), WHO, MOMENTS)]
# a cut is at steps 2 and 4, and rank 1 does not write the file
EVERY = [x for x in EVERY if x["step"] in (2, 4) or x["moment"] != "in the cut"]
EVERY = [x for x in EVERY if not (x["who"] == "other" and "written" in x["moment"])]
KILLS = EVERY if is_long() else sample(EVERY, share=0.06, seed=100)
SIZES = {"blocks.0.layer": 7, "blocks.1.layer": 5}
ELASTIC = {"2 to 1 whole": 1, "2 to 1 sharded": 1, "1 whole to 2": 2, "1 sharded to 2": 2}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Return how all runs ended, and what their ranks found."""
    folder = tmp_path_factory.mktemp("runs")
    limit = 3000 if is_long() else 600  # seconds; on a free core it takes a tenth of it
    run_worker("resume_worker", folder, json.dumps(KILLS), limit=limit)
    return json.loads((folder / "results.json").read_text())


def test_runs_that_are_not_killed_end(found):
    assert {name: code for name, code in found["ends"].items() if any(code)} == {}
    assert [rank["6"]["sizes"] for rank in found["straight"]] == [SIZES] * 2


@pytest.mark.parametrize("k", range(len(KILLS)), ids=[f"{x['moment']}-{x['who']}-{x['step']}" for x in KILLS])
def test_killed_run_is_resumed_bit_for_bit_on_as_many_ranks(found, k):
    ended, ranks = found["killed"][k]
    assert all(ended)  # the others do not wait for the one that is gone
    # after the last save nobody comes to clear the folder away that was to go
    left = KILLS[k]["step"] == 6 and KILLS[k]["moment"] == "the file is written"
    assert len(ranks) == 2
    for rank, straight in zip(ranks, found["straight"], strict=True):
        # parameters, averages, losses, history, and what each rank draws next; to the next cut, or the end
        assert max(rank) == ("4" if KILLS[k]["step"] < 4 else "6")
        for step, stand in rank.items():
            assert stand == straight[step] | {"folders": stand["folders"]}
        assert rank[max(rank)]["folders"] == (2 if left else 1)


@pytest.mark.parametrize("name", ELASTIC)
def test_run_resumed_on_another_number_of_ranks_is_the_same_but_for_rounding(found, name):
    ranks = found["elastic"][name]
    assert len(ranks) == ELASTIC[name]
    straight = found["straight"][0]["6"]
    for rank in (x["6"] for x in ranks):
        assert (rank["sizes"], rank["history"]) == (SIZES, straight["history"])
        assert rank["losses"] == pytest.approx(straight["losses"], rel=1e-5)  # sums over ranks round otherwise


def test_run_saved_while_a_guard_decides_is_rolled_back_bit_for_bit(found):
    for straight, resumed in found["trial"]:
        assert straight == resumed
        assert straight[:2] == [{"blocks.0.layer": 12, "blocks.1.layer": 9}, [True, True]]


def test_one_folder_of_shards_is_left(found):
    assert [rank["6"]["folders"] for rank in found["straight"]] == [1, 1]


@pytest.fixture
def saved_shards(tmp_path):
    """Return where one rank has saved a sharded model."""
    from torch.distributed.fsdp import fully_shard

    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    model = fully_shard(torch.nn.Sequential(lru(dtype=torch.float32)))
    ht.save_checkpoint(tmp_path / "run.pt", model)
    torch.distributed.destroy_process_group()
    return tmp_path / "run.pt"


def test_shards_are_read_by_a_process_of_its_own(saved_shards):
    model = torch.nn.Sequential(lru(seed=1, dtype=torch.float32))
    ht.load_checkpoint(saved_shards, model)
    assert torch.equal(model[0].B_re, lru(dtype=torch.float32).B_re)


def test_damaged_shards_are_refused_by_their_folder_and_nothing_changes(saved_shards):
    (folder,) = [x for x in saved_shards.parent.iterdir() if x.is_dir()]
    shard = next(folder.glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:-1])
    model = torch.nn.Sequential(lru(5, seed=1, dtype=torch.float32))
    with pytest.raises(hr.InputError, match="got files that are missing or of another size"):
        ht.load_checkpoint(saved_shards, model)
    assert ht.state_sizes(model) == {"0": 5}
