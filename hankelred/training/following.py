"""What a reduction does to a second system in the same state coordinates, such as a running average of the first."""

from __future__ import annotations

import numpy as np

from ..checks import check_result, check_type
from ..errors import InputError
from ..reduction import Reduction
from ..systems import DiagonalSystem, real_output
from ..systems.base import NAMES
from .moments import check_reduction


def follow(copy: DiagonalSystem, system: DiagonalSystem, reduction: Reduction) -> DiagonalSystem:
    """Reduce a copy that has drifted from a system by the bases that reduce the system.

    With bases ``T`` and ``Ti`` the copy becomes ``(Ti Lam T, Ti B, C T, D)``, whose state matrix is diagonal only for
    the system itself: the poles are its diagonal, right to first order in the distance of the two. An average of
    reduced systems is thereby close to the reduction of the average. Where the reduced system has been changed since,
    say by a fit of its outputs, the copy changes alike: only the difference of the two goes through the bases.

    Parameters
    ----------
    copy : DiagonalSystem
        Of the sizes of `system`.
    system : DiagonalSystem
        The system that was reduced.
    reduction : Reduction
        Its reduction, possibly aligned by `align_states`.

    Returns
    -------
    DiagonalSystem
        In the coordinates of ``reduction.system``; equal to it if `copy` equals `system`. Possibly unstable: ask
        ``is_stable()``.

    Raises
    ------
    InputError, NumericalError
        If the systems differ in size, time or output, the reduction is none of this one, or the result overflows.

    Examples
    --------
    >>> import hankelred as hr
    >>> from hankelred.training import follow
    >>> system = hr.DiagonalSystem([0.9, 0.5, 0.1], [[1.0], [2.0], [0.0]], [[1.0, 1.0, 1.0]], dt=True)
    >>> reduction = hr.balance(system).reduce(order=2)  # the last state is inert
    >>> average = system.with_(C=2 * system.C)
    >>> print((follow(average, system, reduction).C / reduction.system.C).round(6))
    [[2. 2.]]
    """
    check_type(copy, "copy", DiagonalSystem)
    check_reduction(system, reduction)
    if (copy.n, copy.m, copy.p, copy.dt, copy.output) != (system.n, system.m, system.p, system.dt, system.output):
        raise InputError(
            f"The copy must be of the kind and size of the system; got {copy.n} and {system.n} states, "
            f"{copy.m} and {system.m} inputs, {copy.p} and {system.p} outputs. Is it a copy of another layer?"
        )
    new = reduction.system
    drift, before, after = copy.spectrum.drift(system.spectrum), system.double_matrices(), copy.double_matrices()
    B, C, D = (x - y for x, y in zip(after, before, strict=True))
    stored, real, weight = np.arange(new.n), np.zeros(new.n, dtype=bool), np.ones(new.n)
    if copy.has_real_output:
        pairs = reduction.order - new.n
        stored = real_output.stored_states(new.n, pairs)
        real = np.arange(new.n) >= pairs
        weight = np.where(real, 1.0, 2.0)  # a stored state stands for its conjugate too
        drift, (B, C) = real_output.with_conjugates(drift), real_output.doubled(B, C)
    T, Ti = reduction.T[:, stored], reduction.Ti[stored]
    with np.errstate(over="ignore", invalid="ignore"):
        moved = np.einsum("ij,j,ji->i", Ti, drift, T)
        moved, B, C = (
            np.where(mask, x.real, x) for mask, x in ((real, moved), (real[:, None], Ti @ B), (real, C @ T * weight))
        )
    B, C, D = new.B + B, new.C + C, np.where(before[2] == new.D, after[2], new.D + D)
    check_result("The reduced copy", moved, B, C, D)
    names = {key: getattr(new, key) for key in NAMES}
    return DiagonalSystem.trusted(new.spectrum.moved(moved), B, C, D, new.dt, new.output, names)
