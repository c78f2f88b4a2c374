"""Layers and inputs far from white, for tests of cuts that go by data."""

from __future__ import annotations

import numpy as np
import torch

import hankelred_torch as ht

LAYERS = {"LRU": lambda: ht.layers.LRU(4, 16), "S5": lambda: ht.layers.S5(4, 16), "S4D": lambda: ht.layers.S4D(4, 8)}


def slow_inputs(batch=6, length=80, channels=4, seed=0):
    return torch.randn(batch, length, channels, generator=torch.Generator().manual_seed(seed)).cumsum(1) / 8


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)
