"""Claims about copies of a system that are reduced along with it."""

from __future__ import annotations

import numpy as np
import pytest

import hankelred as hr
from hankelred.training import align_states, follow


def system(seed=0, n=8, *, output="real", rates=True, dt=True, m=2, p=3):
    generator = np.random.default_rng(seed)

    def complex_normal(*shape):
        return generator.standard_normal(shape) + 1j * generator.standard_normal(shape)

    z = -generator.uniform(0.01, 0.5, n) + 1j * generator.uniform(0.1, 3, n)
    z[0] = z[0].real  # one real pole
    B, C, D = complex_normal(n, m), complex_normal(p, n), generator.standard_normal((p, m))
    B[0], C[:, 0] = B[0].real, C[:, 0].real
    if dt == 0:
        return hr.DiagonalSystem(z, B, C, D, dt=0, output=output)
    if rates:
        return hr.DiagonalSystem.from_rates(z, B, C, D, dt=dt, output=output)
    return hr.DiagonalSystem(np.exp(z), B, C, D, dt=dt, output=output)


def moved(base, seed, size):
    """Return the system with all parameters moved by a relative amount."""
    generator = np.random.default_rng(seed)
    rates = base.spectrum.rates * (1 + size * generator.standard_normal(base.n))
    B, C = (x * (1 + size * generator.standard_normal(x.shape)) for x in (base.B, base.C))
    return hr.DiagonalSystem.from_rates(rates, B, C, base.D, dt=base.dt, output=base.output)


def aligned(base, **criterion):
    return align_states(base, hr.balance(base).reduce(**criterion))


@pytest.mark.parametrize("options", [{}, {"rates": False}, {"output": "complex"}, {"dt": 0}, {"n": 1}, {"dt": 0.1}])
@pytest.mark.parametrize("order", [1, 3])
def test_copy_that_has_not_drifted_becomes_the_reduced_system(options, order):
    base = system(**options)
    reduction = aligned(base, states=min(order, base.n))
    followed = follow(base, base, reduction)
    for name in ("lam", "B", "C", "D"):
        got, wanted = getattr(followed, name), getattr(reduction.system, name)
        # the bases carry the rounding of balancing and of the eigenvectors behind the diagonal form
        assert np.abs(got - wanted).max() < 1e-10 * max(np.abs(wanted).max(), 1), name


@pytest.mark.parametrize("output", ["real", "complex"])
def test_copy_keeps_its_response_to_first_order_where_inert_states_are_dropped(output):
    # the copy has the same inert states: its reduction is exact but for the diagonal, an error of second order
    base = system(output=output)
    B, C = base.B.copy(), base.C.copy()
    B[5:], C[:, 5:] = 0, 0
    base = hr.DiagonalSystem.from_rates(base.spectrum.rates, B, C, base.D, dt=True, output=output)
    reduction = aligned(base, states=5)
    errors = []
    for size in (1e-3, 1e-4):
        copy = moved(base, 1, size)
        errors.append(hr.h2_norm(follow(copy, base, reduction) - copy) / hr.h2_norm(copy - base))
    assert errors[0] < 0.05
    assert errors[1] < 0.2 * errors[0] + 1e-9


def test_slow_pole_of_the_copy_keeps_its_digits():
    # |lam| = 1 - 1e-14 in both: differences of poles would be rounding
    rates = np.array([-1e-14 + 0.5j, -0.2 + 1j])
    base = hr.DiagonalSystem.from_rates(rates, [[1.0], [1e-9]], [[1.0, 1e-9]], dt=True, output="real")
    copy = hr.DiagonalSystem.from_rates(rates * [1.5, 1], base.B, base.C, dt=True, output="real")
    reduction = aligned(base, states=1)
    followed = follow(copy, base, reduction)
    assert followed.spectrum.rates[0].real == pytest.approx(
        -1.5e-14, rel=1e-3
    )  # T and Ti mix in 1e-9 of the other state


def test_copy_of_another_size_is_refused():
    base = system(n=8)
    with pytest.raises(hr.InputError, match="must be of the kind and size of the system; got 6 and 8 states"):
        follow(system(n=6), base, aligned(base, states=3))
