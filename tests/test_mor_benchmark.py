"""The SLICOT model reduction benchmark: read from a folder beside the repository, skipped where it is missing.

The files state no licence and are not part of this repository; they are the public SLICOT benchmark examples for model
reduction (Chahlaoui, Van Dooren 2002). Set HANKELRED_DATA to the folder that holds ``mor/*.mat``.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import scipy.io

import hankelred as hr

FOLDER = Path(os.environ.get("HANKELRED_DATA", Path(__file__).parents[2] / "shared" / "data")) / "mor"

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"the benchmark models are not in {FOLDER}")


def model(name: str) -> tuple[hr.StateSpace, np.ndarray]:
    """Return a model and its published Hankel singular values."""
    entries = scipy.io.loadmat(FOLDER / f"{name}.mat")
    system = hr.load_system(FOLDER / f"{name}.mat", dt=True if name == "heat-disc" else 0)
    return system, entries["hsv"].ravel() if "hsv" in entries else np.empty(0)


@pytest.mark.parametrize(
    ("name", "trusted"),
    [("build", 1e-8), ("CDplayer", 1e-8), ("heat-cont", 1e-8), ("pde", 1e-8), ("heat-disc", 1e-7)],
)
def test_published_values_are_reproduced_to_six_digits(name, trusted):
    system, published = model(name)
    hsv = hr.hankel_singular_values(system)
    significant = published > trusted * published[0]
    np.testing.assert_allclose(hsv[: len(published)][significant], published[significant], rtol=1e-6)


@pytest.mark.parametrize("name", ["build", "CDplayer", "heat-cont", "pde", "heat-disc"])
def test_errors_stay_within_the_bound(name):
    system, _ = model(name)
    bal = hr.balance(system)
    for order in (2, 5, 10, 20):
        if order <= bal.rank:
            reduction = bal.reduce(order)
            assert reduction.hinf_error() <= reduction.error_bound


def test_transmission_line_agrees_with_slycot():
    """The values stored with this model are wrong; its E is well conditioned enough for ``E^-1 A``."""
    slycot = pytest.importorskip("slycot", reason="the second opinion for this model")
    system, _ = model("tline")
    G = system.dense()
    hsv = hr.hankel_singular_values(system)
    theirs = slycot.ab09ad("C", "B", "N", G.n, G.m, G.p, np.array(G.A), np.array(G.B), np.array(G.C), nr=10)[-1]
    np.testing.assert_allclose(hsv[0], 3.2568e4, rtol=1e-4)
    significant = theirs > 1e-6 * theirs[0]  # both have errors of about n eps of the largest, and more by E
    np.testing.assert_allclose(hsv[significant], theirs[significant], rtol=1e-6)


def test_a_circuit_of_index_two_is_refused_with_the_reason():
    entries = scipy.io.loadmat(FOLDER / "MNA_1.mat")
    A, B, E = (entries[key].toarray() for key in "ABE")
    with pytest.raises(hr.InputError, match="its index is 2 or more"):
        hr.StateSpace(A, B, np.eye(1, len(A)), E=E)
