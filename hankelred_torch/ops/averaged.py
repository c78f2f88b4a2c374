"""Averaged Gramians of models whose matrices change at every step, differentiable and on any device.

The torch twin of `hankelred.selective.averaged_gramians`, by operations that autograd differentiates. For data that
come in batches use `hankelred.selective.SelectiveStatistics`, which keeps no steps.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from hankelred.errors import InputError, StabilityError
from hankelred.selective.averages import METHODS

from .convolution import without_autocast


def averaged_gramians(
    a: Tensor, b: Tensor, c: Tensor, method: Literal["exact", "second_moment", "mean"] = "exact"
) -> tuple[Tensor, Tensor]:
    """Compute averaged Gramians of channels of a selective model from their steps.

    The model is ``h_t = a_t h_{t-1} + b_t``, ``y_t = sum_i c_ti h_ti``, every sequence from rest.

    Parameters
    ----------
    a : (..., batch, length, n) Tensor
        Decays, real or complex.
    b : (..., batch, length, n) Tensor
        Whole increments of the states, the input included. For the published form of ``"mean"`` leave the input out.
    c : (..., batch, length, n) Tensor
        Output rows.
    method : {"exact", "second_moment", "mean"}
        As for `hankelred.selective.averaged_gramians`. ``"exact"`` takes a loop over the steps, of which autograd keeps
        matrices, so with gradients memory grows with the length.

    Returns
    -------
    P, Q : (..., n, n) Tensor
        Hermitian; computed in double precision, in the precision of the arguments.

    Raises
    ------
    InputError
        If shapes disagree or the method is unknown.
    StabilityError
        If the moments have no stationary Gramians; the exact averages exist always.

    Examples
    --------
    >>> import torch
    >>> from hankelred_torch import ops
    >>> a, b, c = torch.rand(3, 2, 50, 4)  # (batch, length, n) each
    >>> P, Q = ops.averaged_gramians(a, b, c)
    >>> P.shape, bool((torch.linalg.eigvalsh(P) > 0).all())
    (torch.Size([4, 4]), True)
    """
    if method not in METHODS:
        raise InputError(f"method must be one of {', '.join(METHODS)}; got {method!r}.")
    shapes = [tuple(x.shape) for x in (a, b, c)]
    if len(set(shapes)) != 1 or a.ndim < 3 or 0 in shapes[0]:
        raise InputError(
            f"a, b and c must have one shape (..., batch, length, n) without empty axes; got {shapes[0]}, {shapes[1]} "
            f"and {shapes[2]}. Use Tensor.expand for what does not change."
        )
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), c.dtype)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    with without_autocast(a):
        found = {"exact": _exact, "second_moment": _second_moment, "mean": _mean}[method](
            *(x.to(wide) for x in (a, b, c))
        )
    return found[0].to(dtype).resolve_conj(), found[1].to(dtype).resolve_conj()


def _exact(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Return the averages of ``P_t`` and ``Q_t``, both forward in time.

    A term of Q_s reaches back to every step before it: the weights ``W_t = 1 + (conj(a_t) a_t^T) * W_{t-1}`` collect
    how often the outputs of step t count.
    """
    n = a.shape[-1]
    P = W = a.new_zeros(*a.shape[:-2], n, n)
    total_P = total_Q = a.new_zeros(*a.shape[:-3], n, n)
    for t in range(a.shape[-2]):
        at, bt, ct = a[..., t, :], b[..., t, :], c[..., t, :]
        decay = _outer(at, at)
        P = decay * P + _outer(bt, bt)
        W = 1.0 + decay.conj() * W
        total_P = total_P + P.sum(-3)
        total_Q = total_Q + (_outer(ct, ct).conj() * W).sum(-3)
    count = a.shape[-2] * a.shape[-3]
    return total_P / count, total_Q / count


def _second_moment(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Return the stationary Gramians of steps that are independent in time, from their second moments."""
    steps = [x.flatten(-3, -2) for x in (a, b, c)]
    aa, bb, ab = _moment(steps[0], steps[0]), _moment(steps[1], steps[1]), _moment(steps[0], steps[1])
    cc, ac = _moment(steps[2], steps[2]).conj(), steps[0] * steps[2]
    largest = aa.detach().diagonal(dim1=-2, dim2=-1).real.max().item()
    if not largest < 1:
        raise StabilityError(
            f"Decays must have mean squares below 1; got {largest:.6g}. "
            f'Without decay there is no stationary Gramian: use method="exact".'
        )
    mean = steps[1].mean(-2) / (1.0 - steps[0].mean(-2))
    drift = ab * mean[..., :, None]
    gap = 1.0 - aa
    return (bb + drift + drift.mH) / gap, cc + _moment(ac, ac).conj() / gap.conj()


def _mean(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Gramians of the fixed system of the mean step."""
    am, bm, cm = (x.mean((-3, -2)) for x in (a, b, c))
    largest = am.detach().abs().max().item()
    if not largest < 1:
        raise StabilityError(
            f"Mean decays must be below 1 in modulus; got {largest:.6g}. "
            f'Without decay there is no stationary Gramian: use method="exact".'
        )
    gap = 1.0 - _outer(am, am)
    return _outer(bm, bm) / gap, (_outer(cm, cm) / gap).conj()


def _outer(x: Tensor, y: Tensor) -> Tensor:
    """Return ``x y^H`` over the last axis."""
    return x[..., :, None] * y[..., None, :].conj()


def _moment(x: Tensor, y: Tensor) -> Tensor:
    """Return ``E[x y^H]`` over the last axis but one."""
    return x.mT @ y.conj() / x.shape[-2]
