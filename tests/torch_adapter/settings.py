"""Settings of a compressor from one dict, shared by tests."""

from __future__ import annotations

from dataclasses import fields

import hankelred_torch as ht

WHEN = {field.name for field in fields(ht.Schedule)}


def what_and_when(**values):
    """Return what may be lost and when."""
    when = {name: value for name, value in values.items() if name in WHEN}
    return ht.CompressionConfig(**{k: x for k, x in values.items() if k not in WHEN}), ht.Schedule(**when)
