"""Gramian factors, Hankel singular values and balanced truncation of batches of diagonal systems, differentiable.

The twins of the functions of the same names in `hankelred`: the same structured factors, which never form a Gramian,
for any number of systems at a time and on any device. Everything inside is in double precision. Derivatives use the
bounded formulas of `_factors`: they stay finite where Hankel singular values vanish or repeat, and differentiate no
eigenvalue and no Cholesky factor.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import pad

from ._factors import singular_values
from ._systems import Batch, Output, as_given, check, doubled, factors, pair_factors, pairs_serve, real_factors


def gramian_factors(
    lam: Tensor | None,
    B: Tensor,
    C: Tensor,
    *,
    dt: Any,
    output: Output = "complex",
    rates: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute factors of both Gramians of every system.

    In continuous time ``A P + P A^H + B B^H = 0`` and ``A^H Q + Q A + C^H C = 0``; in discrete time
    ``A P A^H - P + B B^H = 0`` and ``A^H Q A - Q + C^H C = 0``; A is the diagonal matrix of `lam`.

    Parameters
    ----------
    lam : (..., n) Tensor
        Poles of each system, strictly stable.
    B : (..., n, m) Tensor
        Input matrices.
    C : (..., p, n) Tensor
        Output matrices. The leading axes, which count the systems, are broadcast.
    dt : float or bool
        Sampling time in seconds; 0 is continuous, True is discrete without a stated time.
    output : {"complex", "real"}, default "complex"
        Whether the outputs are ``C x`` or their real parts.
    rates : (..., n) Tensor, optional
        Logarithms of discrete poles, ``lam = exp(rates)``. Where they are given they are the data, so that poles
        within 1e-13 of the unit circle keep their digits, and `lam` is not read; pass None for it.

    Returns
    -------
    S : (..., n, k) Tensor
        ``P = S S^H``. With real output, real and in the 2n real coordinates of
        ``hankelred.DiagonalSystem.to_state_space``.
    R : (..., k, n) Tensor
        ``Q = R^H R``.

    Raises
    ------
    InputError
        If shapes disagree, an argument is no floating point tensor, or an entry is not finite.
    StabilityError
        If a pole is not strictly stable.

    See Also
    --------
    hankelred.gramian_factors : One system, in NumPy.

    Notes
    -----
    A factor is determined up to a unitary matrix, and its derivative holds for functions that do not depend on that
    one: functions of P and of Q, or of ``R S`` through its singular values.

    Examples
    --------
    >>> import torch
    >>> from hankelred_torch import ops
    >>> lam = -torch.arange(1.0, 5.0, dtype=torch.float64)
    >>> B = torch.ones(4, 1, dtype=torch.float64)
    >>> S, R = ops.gramian_factors(lam, B, B.T, dt=0)
    >>> bool(torch.dist(S @ S.T, -1 / (lam[:, None] + lam)) < 1e-15)
    True
    """
    systems = check(lam, B, C, dt, output, rates)
    S, R = real_factors(systems) if output == "real" else factors(systems)
    return as_given(S, systems), as_given(R, systems)


def hankel_singular_values(
    lam: Tensor | None,
    B: Tensor,
    C: Tensor,
    *,
    dt: Any,
    output: Output = "complex",
    rates: Tensor | None = None,
) -> Tensor:
    """Compute all Hankel singular values of every system.

    Parameters
    ----------
    lam, B, C, dt, output, rates
        As for `gramian_factors`.

    Returns
    -------
    (..., n) Tensor
        Decreasing along the last axis, in units of y per unit of u; 2n values for real output.

    Raises
    ------
    InputError, StabilityError
        As `gramian_factors` does.

    See Also
    --------
    hankelred.batched_hankel_singular_values : The same in NumPy, faster where no gradient is needed.

    Notes
    -----
    Every value is right to full relative accuracy, provided that the inputs of each system, and its outputs, are
    linearly independent over its states. Functions that treat equal values alike, such as sums of powers, have the
    gradient given also where values repeat; at zero it is one of the subgradients. It is right to 1e-12 relative to its
    norm. Singular vectors do not keep the digits that the values keep: the gradient of a single small value ``hsv[i]``
    has a relative error of about ``eps hsv[0] / hsv[i]`` down to 1e-8 of the largest, and below, or where there are no
    more than 25 values, of ``eps sqrt(hsv[0] / hsv[i])``.

    Examples
    --------
    >>> import torch
    >>> from hankelred_torch import ops
    >>> lam = torch.tensor([[0.9], [0.5]], requires_grad=True)  # two systems with one state each
    >>> one = torch.ones(1, 1)
    >>> hsv = ops.hankel_singular_values(lam, one, one, dt=True)  # 1 / (1 - lam^2)
    >>> hsv.sum().backward()
    >>> [round(x, 3) for x in hsv.flatten().tolist()], [round(x, 2) for x in lam.grad.flatten().tolist()]
    ([5.263, 1.333], [49.86, 1.78])
    """
    systems = check(lam, B, C, dt, output, rates)
    values = _real_values(systems) if output == "real" else _values(*factors(systems))
    return as_given(values, systems)


def _real_values(systems: Batch) -> Tensor:
    """Return the Hankel singular values (batch, 2n) of systems with real output."""
    if not systems.B.is_complex():  # the imaginary parts of all states are zero
        return pad(_values(*factors(systems)), (0, systems.poles.shape[1]))
    if not pairs_serve(systems):
        return _values(*factors(doubled(systems)))
    S, R, close = pair_factors(systems)
    values = _values(S, R)
    if not close.any():
        return values
    where = close.nonzero()[:, 0]
    few = systems._replace(poles=systems.poles[where], B=systems.B[where], C=systems.C[where])
    return values.index_copy(0, where, _values(*factors(doubled(few))))


def _values(S: Tensor, R: Tensor) -> Tensor:
    return singular_values(R @ S)
