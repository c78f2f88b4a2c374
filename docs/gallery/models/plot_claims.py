"""
Claims about Hankel singular values, in a test
==============================================

A paper, a program or a colleague says what the Hankel singular values of a system are, or how they move. Three ways
to put that into a test file, from a single value to systems that nobody thought of; :doc:`/guides/testing` has a
whole one.
"""

import matplotlib.pyplot as plt
import numpy as np
from hypothesis import given, settings
from scipy import linalg

import hankelred as hr
from hankelred.plotting import DROPPED, ERROR, KEPT
from hankelred.testing import assert_hsv_close, assert_weyl, non_minimal_systems, system_with_hsv

# %%
# A value. The message of a failure is a table, and the system as code.

plant = hr.StateSpace([[-1.0, 2.0], [0.0, -3.0]], [[1.0], [1.0]], [[2.0, 1.0]])
assert_hsv_close(plant, [1.877714, 0.04438022], rtol=1e-6)
try:
    assert_hsv_close(plant, [1.877714, 0.04], rtol=1e-6)
except AssertionError as error:
    print(error)

# %%
# A program. The textbook way is the square root of the eigenvalues of a product, which costs half of the digits: a
# system that has the values it is asked for shows which.


def by_definition(system):
    """Return Hankel singular values from the product of both Gramians."""
    P = linalg.solve_continuous_lyapunov(system.A, -system.B @ system.B.T)
    Q = linalg.solve_continuous_lyapunov(system.A.T, -system.C.T @ system.C)
    return np.sort(np.sqrt(np.abs(linalg.eigvals(P @ Q))))[::-1]


claimed = 10.0 ** -np.arange(0.0, 12.0)
balanced = system_with_hsv(claimed, gains=np.sqrt(claimed))
turn = np.linalg.qr(np.random.default_rng(0).standard_normal(balanced.A.shape))[0]  # no system comes balanced
system = balanced.with_(A=turn @ balanced.A @ turn.T, B=turn @ balanced.B, C=balanced.C @ turn.T)
textbook, ours = by_definition(system), hr.hankel_singular_values(system)
wrong = int(np.argmax(np.abs(textbook / claimed - 1) > 0.1))
print(f"by definition, value {wrong + 1} is the first that is wrong by a tenth or more")

assert np.abs(ours - claimed).max() < 1e-12
assert wrong > 0

# %%
# A theorem. Two systems cannot differ by less than their values do, whatever the program: nothing has to be known
# in order to find it wrong.

noise = np.random.default_rng(0).standard_normal(system.A.shape)
moved = system.with_(A=system.A + 1e-6 * noise)
assert_weyl(system, moved, hr.hankel_singular_values)

# %%
# A property, of every system with hidden states: hypothesis looks for one that breaks it, and then for the
# simplest.


@settings(deadline=None, max_examples=20, derandomize=True, database=None)
@given(non_minimal_systems(dt=0))
def test_hidden_states_change_no_value(pair):
    """A system with states that no input reaches or no output sees has the values of the one without, and zeros."""
    padded, minimal = pair
    hsv, without = hr.hankel_singular_values(padded), hr.hankel_singular_values(minimal)
    assert np.allclose(hsv[: len(without)], without, atol=1e-9 * max(without.max(initial=0.0), 1.0))


test_hidden_states_change_no_value()

# %%

figure, axes = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
place = np.arange(1, len(claimed) + 1)
axes.semilogy(place, claimed, "o", color=DROPPED, markersize=10, label="claimed")
axes.semilogy(place, ours, ".", color=KEPT, label="hankelred")
axes.semilogy(place, np.maximum(textbook, 1e-17), "x", color=ERROR, label="by definition")
axes.set(xlabel="place in the order", ylabel="Hankel singular value (y per u)")
_ = axes.legend()
