"""Tables for notebooks, with everything escaped that is not ours."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

# Colours are those of the page, so that a table is readable on light and on dark ones.
CELL = "text-align: left; padding: 0.1em 0.7em"


def html_table(rows: Iterable[Sequence[object]], header: Sequence[object] = (), caption: str = "") -> str:
    """Return rows of values as a table, with a header and a caption where they are given.

    Parameters
    ----------
    rows : iterable of sequences
        What each cell shows, by its text.
    header : sequence, optional
        Names of the columns.
    caption : str, optional
        What stands above.

    Returns
    -------
    str
        HTML without scripts or outside resources; every text is escaped.
    """
    parts = ["<table>"]
    if caption:
        parts.append(f'<caption style="text-align: left"><strong>{_escaped(caption)}</strong></caption>')
    if header:
        parts.append(f"<thead>{_row(header, 'th')}</thead>")
    parts += ["<tbody>", *(_row(row, "td") for row in rows), "</tbody></table>"]
    return "".join(parts)


def _row(values: Sequence[object], tag: str) -> str:
    cells = [f'<{tag} style="{CELL}">{_escaped(value)}</{tag}>' for value in values]
    return f"<tr>{''.join(cells)}</tr>"


def _escaped(value: object) -> str:
    return html.escape(str(value)).replace("\n", "<br>")
