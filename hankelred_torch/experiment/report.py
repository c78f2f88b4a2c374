"""The report of a study: one self-contained page, its pictures, and all figures as JSON."""

from __future__ import annotations

import base64
import json
from importlib import resources
from pathlib import Path

import jinja2

from . import figures, summary
from .study import Study, write_atomically

TEMPLATE = "report.html.j2"


def write_report(study: Study, folder: Path) -> Path:
    """Write ``report.html``, its pictures as PNG files, and ``results.json``.

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
                (folder / f"{name}.png").write_bytes(pictures[name])
    write_atomically(folder / "results.json", json.dumps(study.to_json(), indent=1))
    source = resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(source).render(
        study=study,
        settings=study.settings,
        task=study.task,
        metric=study.task.metric,
        rows=summary.table(study),
        sentences=summary.sentences(study),
        pictures={name: base64.b64encode(data).decode() for name, data in pictures.items()},
        shown=next((r for r in study.records if r.arm == "compressed"), None),
        texts=summary.texts(study),
        environment=study.to_json()["environment"],
    )
    path = folder / "report.html"
    write_atomically(path, page)
    return path
