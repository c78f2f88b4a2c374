"""Links inside the project lead somewhere: files, headings, pages and names of the documentation."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GENERATED = {"docs/examples/index", "docs/api/generated"}  # made by `make docs`
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(path for path in DOCS.rglob("*.md") if not {"_build", "generated"} & set(path.parts)),
]
MARKDOWN = re.compile(r"\[[^\]^\[]*\]\(([^)\s]+)\)")
ROLE = re.compile(r"\{(\w+)\}`(?:[^`<]*<)?[~!]?([^`<>]+)>?`")
CODE = {"class", "func", "meth", "mod", "attr", "data", "exc", "obj"}


def prose(page: Path) -> str:
    """Return a page without its code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"(\{\w+\})?`[^`]*`", lambda found: found[0] if found[1] else "", text)  # roles stay


def headings(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub and MyST make them."""
    found = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in found}


def broken(page: Path) -> Iterator[str]:
    """Yield what leads nowhere."""
    text = prose(page)
    for target in MARKDOWN.findall(text):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, anchor = target.partition("#")
        place = (page.parent / name) if name else page
        if not place.exists() or (anchor and place.suffix == ".md" and anchor not in headings(place)):
            yield target
    for role, target in ROLE.findall(text):
        if role == "doc":
            place = (DOCS / target[1:]) if target.startswith("/") else page.parent / target
            known = place.resolve().relative_to(ROOT).as_posix() in GENERATED
            if not known and not place.with_name(place.name + ".md").exists():
                yield target
        elif role in CODE and not exists(target):
            yield target
    for block in re.findall(
        r"^```\{toctree\}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    ):
        for line in (line for line in block.splitlines() if line and not line.startswith(":")):
            place = page.parent / line
            known = place.resolve().relative_to(ROOT).as_posix() in GENERATED
            if not known and not place.with_name(place.name + ".md").exists():
                yield line


def exists(name: str) -> bool:
    """Tell whether a dotted name is something that can be imported."""
    parts = name.removesuffix("()").split(".")
    for k in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:k]))
        except ImportError:
            continue
        try:
            for part in parts[k:]:
                found = getattr(found, part)
        except AttributeError:
            # what an instance has, such as a field without a default, stands in the annotations of its class
            return parts[-1] in getattr(found, "__annotations__", {})
        return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_of_a_page_lead_somewhere(page: Path):
    assert list(broken(page)) == []


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("[a](nowhere.md)", "nowhere.md"),
        ("[a](#no-such-heading)", "#no-such-heading"),
        ("{doc}`nowhere`", "nowhere"),
        ("{func}`~hankelred.nothing`", "hankelred.nothing"),
        ("```{toctree}\nnowhere\n```", "nowhere"),
    ],
)
def test_a_broken_link_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, target: str):
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n[fine](#title) {{func}}`~hankelred.balance` `[code](nowhere)`\n\n{text}\n")
    monkeypatch.setitem(globals(), "ROOT", tmp_path.resolve())
    assert list(broken(page)) == [target]


def test_the_citation_says_what_the_package_says(pyproject):
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    fields = dict(re.findall(r'^([a-z-]+): "?([^"\n]*)"?$', text, flags=re.MULTILINE))
    assert {"cff-version", "message", "title"} <= fields.keys()
    assert fields["license"] == pyproject["project"]["license"]
    assert pyproject["project"]["description"] in fields["title"].replace("balanced", "Balanced")
    assert "version" not in fields  # it stands in hankelred/__init__.py alone
