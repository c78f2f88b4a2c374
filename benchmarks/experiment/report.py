"""The report of a study: its pictures, and one self-contained page."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import jinja2

from benchmarks._common import surroundings
from hankelred.systems.files import write_atomically

from . import figures, summary
from .study import Study

TEMPLATE = Path(__file__).with_name("report.html.j2")


def write_report(study: Study, folder: Path) -> Path:
    """Write pictures as PNG files, and ``report.html``, which contains them.

    Parameters
    ----------
    study : Study
        Complete or not; what is missing is left out and said to be missing.
    folder : Path
        Where to write; files of an earlier report are replaced.

    Returns
    -------
    Path
        The page.
    """
    pictures = {}
    if any(record.measurements for record in study.records):
        drawings = {
            study.task.metric.key: figures.score,
            "states": figures.states,
            "waterfall": figures.waterfall,
            "speed": figures.speed,
        }
        for name, draw in drawings.items():
            figure = draw(study)
            if figure is not None:
                pictures[name] = figures.png(figure)
                _write(folder / f"{name}.png", pictures[name])
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        study=study,
        settings=study.settings,
        task=study.task,
        metric=study.task.metric,
        rows=summary.table(study),
        sentences=summary.sentences(study),
        pictures={name: base64.b64encode(data).decode() for name, data in pictures.items()},
        shown=next((r for r in study.records if r.arm == "compressed"), None),
        texts=summary.texts(study),
        environment=surroundings(("torch",)),
        cores=os.cpu_count(),
    )
    path = folder / "report.html"
    _write(path, page.encode())
    return path


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, lambda file: file.write(content))
