"""What notebooks show of systems and results: sizes and names, and nothing of a name as markup."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
import pytest

import hankelred as hr
from hankelred.markup import html_table

EVIL = "<script>alert('x')</script> & \"y\""
TAGS = {"table", "caption", "strong", "thead", "tbody", "tr", "td", "th", "br"}


class Reader(HTMLParser):
    """Collects tags and the texts of cells."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.texts = set(), [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def plant(dt=0, **names):
    return hr.StateSpace(np.diag([0.5, 0.2]) - (dt == 0) * np.eye(2), np.ones((2, 1)), np.ones((1, 2)), dt=dt, **names)


def bank(count):
    return hr.DiagonalBank(-np.ones((count, 3)) * [1, 2, 3], np.ones((count, 3, 1)), np.ones((count, 1, 3)), dt=0)


@pytest.mark.parametrize(
    "shown",
    [
        plant(name=EVIL, inputs=[EVIL]),
        bank(3),
        hr.balanced_truncation(plant(name=EVIL), order=1),
        hr.balanced_truncation(bank(40), order=1),
        hr.balance(plant(name=EVIL)),
    ],
    ids=lambda x: type(x).__name__,
)
def test_html_has_the_tags_of_tables_only(shown):
    assert Reader(shown._repr_html_()).tags <= TAGS


def test_a_cell_shows_its_text_as_it_is():
    assert Reader(html_table([[EVIL, 3]], [EVIL])).texts == [EVIL, EVIL, "3"]


@pytest.mark.parametrize(("dt", "told"), [(0, "continuous"), (0.5, "discrete, 0.5 s"), (True, "discrete, unspecified")])
def test_a_system_shows_sizes_names_and_time(dt, told):
    texts = Reader(plant(dt, name="tank", inputs=["valve"])._repr_html_()).texts
    assert texts == [
        f"StateSpace('tank', real, n=2, m=1, p=1, dt={dt})",
        *("states", "2", "inputs", "1: valve", "outputs", "1", "time", told),
    ]


def test_a_long_bank_shows_its_first_systems():
    text = hr.balanced_truncation(bank(40), order=1)._repr_html_()
    assert text.count("<tr>") == 22  # header, twenty systems, dots


def test_a_balancing_shows_values_and_bounds_of_its_orders():
    bal = hr.balance(plant(name="tank"))
    texts = Reader(bal._repr_html_()).texts
    assert texts[:4] == [repr(bal), "order", "hsv", "error bound"]
    rows = [(str(k), f"{bal.hsv[k - 1]:.4g}", f"{bal.error_bound(k):.4g}") for k in (1, 2)]
    assert texts[4:] == [text for row in rows for text in row]
    assert "array" not in repr(bal)
