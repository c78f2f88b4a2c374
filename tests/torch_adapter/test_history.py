"""Claims about what a history tells."""

from __future__ import annotations

import html
import json

import numpy as np
import pytest
import torch

import hankelred as hr
import hankelred_torch as ht

from .adapter_models import Stack, train
from .settings import what_and_when


@pytest.fixture(scope="module")
def history():
    model = Stack()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    answers = [1.0, 1.0, 1.0, 0.0]
    guard = ht.Guard(lambda: answers.pop(0), tolerance=0.1, on_fail="stop", mode="max")
    config = what_and_when(order={"first": 6, "second": 7}, weighting="white", end_step=4, attempts=2, force=True)
    compressor = ht.InTrainingCompressor(model, optimizer, *config, guard)
    for k in range(6):
        train(model, optimizer, 1, seed=k)
        compressor.step()
    return compressor.history


def test_table_has_a_line_for_every_measurement(history):
    lines = history.table().splitlines()
    assert lines[0].split() == "step layer states kept bound metric seconds note".split()
    assert len(lines) == 1 + len(history)
    assert lines[1].split()[:4] == ["2", "first", "12", "->"]
    assert "rolled back: the metric went from 1 to 0" in lines[3]


def test_table_leaves_out_columns_that_are_empty():
    records = [ht.LayerCut("", 8, 8, 16, 1.0, 0.0, np.ones(1), "too few", step=3, seconds=0.5)]
    lines = ht.History(records).table().splitlines()
    assert lines == [
        "step  layer    states  kept     seconds  note",
        "3     (model)  8       100.00%  0.5      too few",
    ]


def test_history_survives_json(history, tmp_path):
    text = history.to_json(tmp_path / "history.json")
    assert (tmp_path / "history.json").read_text() == text
    assert ht.History.from_list(json.loads(text)) == history


def test_scalars_are_the_latest_of_every_layer(history):
    scalars = history.scalars("a")
    assert all(isinstance(x, float) for x in scalars.values())
    # the second attempt was rolled back
    assert scalars["a/first/states"] == history[0].states == 8
    assert scalars["a/cuts"] == sum(record.cut for record in history)
    assert scalars["a/first/hsv_max"] == history[-2].hsv[0]
    assert scalars["a/first/error_bound"] > 0
    assert scalars["a/seconds"] == pytest.approx(history[0].seconds + history[-1].seconds)


def test_empty_history_has_scalars_but_no_picture():
    assert ht.History().scalars() == {"hankelred/cuts": 0.0, "hankelred/seconds": 0.0}
    assert ht.History().table() == "step  layer  states  kept  bound  error  drift  metric  seconds  note"
    with pytest.raises(hr.InputError, match="history must hold a measurement to be drawn"):
        ht.History().plot()
    with pytest.raises(hr.InputError, match="history must hold a measurement to be drawn"):
        ht.History().plot_hsv("first")


def test_states_are_drawn_over_the_steps(history):
    ax = history.plot()
    first = ax.get_lines()[0]
    assert first.get_label() == "first"
    assert first.get_xydata().tolist() == [[2, 12], [2, 8], [4, 8], [4, 8]]
    assert ax.get_lines()[1].get_label() == "first, rolled back"
    assert history.plot(ax) is ax


def test_hsv_are_drawn_over_the_steps(history):
    ax = history.plot_hsv("second")
    assert len(ax.get_lines()) == 16
    assert ax.get_yscale() == "log"
    with pytest.raises(hr.InputError, match=r"layer must be one that was measured \('first', 'second'\); got 'third'"):
        history.plot_hsv("third")


def test_a_waterfall_has_a_column_for_every_measurement_and_no_colour_where_places_were_cut(history):
    records = [record for record in history if record.layer == "first"]
    ax = history.plot_waterfall("first")
    image = ax.collections[0].get_array()
    assert image.shape == (len(records[0].hsv), len(records))
    for k, record in enumerate(records):
        column = np.ma.filled(image[:, k], np.nan)
        expected = np.log10(np.maximum(record.hsv / np.max(record.hsv), np.finfo(float).eps))
        np.testing.assert_allclose(column[: len(record.hsv)], expected, atol=1e-12)
        assert np.isnan(column[len(record.hsv) :]).all()
    assert history.plot_waterfall("first", ax) is ax


def test_notebooks_show_records_and_escape_names():
    records = [ht.LayerCut("<b>", 8, 8, 16, 1.0, 0.0, np.ones(1), "too few", step=3, seconds=0.5)]
    text = ht.History(records)._repr_html_()
    assert "&lt;b&gt;" in text
    assert "<b>" not in text
    assert text.count("<tr>") == 2


def test_notebooks_show_plans():
    plan = ht.plan(torch.nn.Sequential(ht.layers.LRU(2, 8), ht.layers.LRU(2, 4)), ht.CompressionConfig(order=3))
    text = plan._repr_html_()
    assert text.count("<tr>") == 3
    assert all(html.escape(word) in text for word in str(plan).split() if word.endswith("%"))


def test_times_of_analysis_are_part_of_the_whole(history):
    assert all(0 < record.analysis_seconds <= record.seconds for record in history)
