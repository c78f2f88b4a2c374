"""Where models are drawn: frequencies and times that show what they do."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..checks import Array

# Slowest decay that is waited for: exp(-5) is under a percent. Steps of a picture, and per period of the fastest wave.
DECAYS, STEPS, PER_PERIOD, MOST_STEPS = 5.0, 400, 20, 4000


def frequencies(G: Any, H: Any, dt: Any) -> Array:
    """Return frequencies that show everything: a decade past the poles, and close together at resonances."""
    step = float(dt)  # that of dt=True is 1
    poles = np.concatenate([x.some_poles() if x.is_sparse else x.poles() for x in (G, H)])
    if G.is_discrete:  # as if continuous, log(z) / dt
        poles = np.log(poles[poles != 0]) / step
    poles = poles[poles != 0]
    # of a complex system the response at -omega is not the conjugate of that at omega
    both_signs = any(x.dtype.kind == "c" and not getattr(x, "has_real_output", False) for x in (G, H))
    damping, place = np.abs(poles.real), poles.imag if both_signs else np.abs(poles.imag)
    sharp = np.flatnonzero((damping > 0) & (damping < 0.3 * np.abs(place)))
    few = G.is_sparse or H.is_sparse  # where every frequency is a factorisation
    sharp = sharp[np.argsort(damping[sharp] / np.abs(place[sharp]))][: 3 if few else 50]  # the sharpest peaks
    resonances = (place[sharp, None] + damping[sharp, None] * np.linspace(-3, 3, 13)).ravel()
    size = np.abs(poles) if len(poles) else np.ones(1)
    top = 0.999 * np.pi / step if G.is_discrete else 10 * size.max()  # a pole may lie on z = -1
    low = -top if both_signs else min(size.min() / 10, top / 100)
    grid = np.linspace(low, top, 80 if few else 400) if both_signs else np.geomspace(low, top, 60 if few else 300)
    return np.unique(np.concatenate([grid, resonances[(resonances >= low) & (resonances <= top)]]))


def times(system: Any, horizon: float | None) -> tuple[float, int]:
    """Return a step, in the unit of dt, and how many show the slowest decay and the fastest wave of a dense system."""
    step = float(system.dt) if system.is_discrete else 0.0
    poles = system.poles()
    if system.is_discrete:
        poles = np.log(poles[poles != 0]) / step
    speeds = np.abs(poles.real)
    speeds = speeds[speeds > 1e-8 * np.abs(poles).max(initial=0.0)]  # a marginal pole never decays
    waves = np.abs(poles.imag).max(initial=0.0)
    if horizon is None:
        slowest = speeds.min(initial=np.inf)
        growth = poles.real.max(initial=0.0)
        horizon = 1.0 if np.isinf(slowest) else DECAYS / max(slowest, growth)
        if np.isinf(slowest) and waves > 0:
            horizon = DECAYS * 2 * np.pi / waves
        horizon = max(horizon, 10 * step)
    if step:
        return step, int(min(np.ceil(horizon / step), MOST_STEPS))
    count = int(np.clip(PER_PERIOD * horizon * waves / (2 * np.pi), STEPS, MOST_STEPS))
    return horizon / count, count
