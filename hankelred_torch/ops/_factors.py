"""Gramian factors of batches of diagonal systems as operators: numba on the CPU, Triton on CUDA, else torch.

`diagonal_factor` and `singular_values` are all that the differentiable functions of `gramians` are made of. Both are
operators that `torch.compile` does not look into and `torch.func.vmap` knows. All arguments are trusted, real ones
float64, complex ones complex128, with one batch axis in front; everything an operator returns is contiguous and
without lazy conjugation.

==============  =================  =========================================================================
``poles``       (batch, n)         poles, or their logarithms where these are the data (`by_rates`)
``B``           (batch, n, m)      input matrices
``linked``      (batch, n) bool    states to be eliminated before all others
``columns``     (batch, n, n)      transposed factors: column k of the factor is ``columns[:, k]``
``pivots``      (batch, n) int64   the state each column came from, -1 where nothing was left
``w, beta``     (batch, n[, m])    the reflections ``I - beta w w^H`` of the columns of the generator
==============  =================  =========================================================================

The derivative of the factor holds for functions that depend on it through ``P = S S^H`` alone, as those of a Gramian
do: see the pages on derivatives in the documentation, and `hankelred.linalg.cauchy_adjoint`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg as sla
import torch
from torch import Tensor

from hankelred.checks import Array
from hankelred.errors import InputError, OrderError
from hankelred.linalg import cauchy_bank
from hankelred.linalg.cauchy import FactorSteps, PoleData, pole_data
from hankelred.linalg.compiled import Kernels
from hankelred.linalg.threads import serial

from ._backends import compiled_loops, triton_kernels
from ._factors_torch import factor_adjoint_torch, factor_torch, pole_tensors
from ._operator import differentiable, once, operator

kernels = Kernels("hankelred.linalg.cauchy_adjoint")

# LAPACK's divide and conquer, torch's only algorithm on the CPU, does not divide matrices up to this size; of larger
# ones it loses the singular vectors of values below eps of the largest. The implicit QR algorithm keeps them, in three
# times the time. It is used for bases where values fall below BASES_BELOW of the largest, so that every vector keeps
# twelve digits, and for gradients below GRADIENTS_BELOW: there a vector counts by the root of its value, so that a sum
# over all values keeps twelve digits all the same.
UNDIVIDED = 25
BASES_BELOW = 1e-4
GRADIENTS_BELOW = 1e-8

Factor = tuple[Tensor, Tensor, Tensor, Tensor]
Triples = tuple[Tensor, Tensor, Tensor]


def diagonal_factor(poles: Tensor, B: Tensor, linked: Tensor, discrete: bool, by_rates: bool) -> Tensor:
    """Return the factors S (batch, n, n) with ``P = S S^H``, columns of falling size."""
    columns: Tensor = _factors(poles, B, linked, discrete, by_rates)[0]
    return columns.mT


def pair_factor(poles: Tensor, B: Tensor, linked: Tensor, discrete: bool, by_rates: bool) -> tuple[Tensor, Tensor]:
    """Return upper halves (batch, n, 2n) of factors ``[S; conj S]`` for complex poles and their conjugates.

    Their real parts over their imaginary parts are real factors. The second result is the least distance of a pole
    from its conjugate, as `hankelred.linalg.cauchy.NEARLY_REAL` counts it. On the CPU only.
    """
    found = _PairFactor.apply(poles, B, linked, discrete, by_rates)
    return found[0].mT, found[-1]


def singular_values(M: Tensor) -> Tensor:
    """Return the singular values (batch, min(k, l)) of graded matrices, decreasing; differentiable also at zero."""
    values: Tensor = _values(M)
    return values


def singular_triples(M: Tensor, order: int) -> Triples:
    """Return ``U, values, V^H`` of graded matrices with no less than `order` values that are not zero.

    Differentiable where the values whose vectors are used differ from all others.
    """
    triples: Triples = _triples(M, order)
    return triples


def _empty_factor(poles: Tensor, B: Tensor, *_: Any) -> Factor:
    (batch, n), m = poles.shape, B.shape[2]
    return (
        B.new_empty(batch, n, n),
        B.new_empty(batch, n, dtype=torch.int64),
        B.new_empty(batch, n, m),
        B.new_empty(batch, n, dtype=torch.float64),
    )


@operator(
    "diagonal_factor(Tensor poles, Tensor B, Tensor linked, bool discrete, bool by_rates) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _empty_factor,
    constants=2,
)
def _factor(poles: Tensor, B: Tensor, linked: Tensor, discrete: bool, by_rates: bool) -> Factor:
    _check_finite(poles, B)
    if not compiled_loops(B):
        on_gpu = _triton(B)
        run = on_gpu.factor_triton if on_gpu else factor_torch
        found: Factor = run(pole_tensors(poles, discrete, by_rates), B.resolve_conj(), linked)
        return found
    steps, _ = cauchy_bank.factor_steps(_pole_data(poles, discrete, by_rates), _array(B), *_order(linked), pairs=False)
    columns, pivots, w, beta = map(torch.from_numpy, steps)
    return columns, pivots, w, beta


@operator(
    "diagonal_factor_backward(Tensor F, Tensor poles, Tensor columns, Tensor pivots, Tensor w, Tensor beta, "
    "bool discrete, bool by_rates) -> (Tensor, Tensor)",
    lambda F, poles, columns, pivots, w, *_: (poles.new_empty(poles.shape), w.new_empty(w.shape)),
    constants=2,
)
def _factor_backward(
    F: Tensor,
    poles: Tensor,
    columns: Tensor,
    pivots: Tensor,
    w: Tensor,
    beta: Tensor,
    discrete: bool,
    by_rates: bool,
) -> tuple[Tensor, Tensor]:
    if compiled_loops(F):
        g_poles, g_B = torch.empty_like(poles, memory_format=torch.contiguous_format), torch.empty_like(w)
        data, steps = _pole_data(poles, discrete, by_rates), FactorSteps(*map(_array, (columns, pivots, w, beta)))
        kernels.adjoint_bank(data, steps, _array(F), discrete, _array(g_poles), _array(g_B))
    else:
        on_gpu = _triton(w)
        run = on_gpu.factor_adjoint_triton if on_gpu else factor_adjoint_torch
        data_torch = pole_tensors(poles, discrete, by_rates)
        g_poles, g_B = run(data_torch, columns, pivots, w, beta, F.resolve_conj(), discrete)
    return _by_data(g_poles, poles, by_rates), g_B


def _save_factor(ctx: Any, inputs: tuple[Any, ...], output: Factor) -> None:
    poles, _, _, ctx.discrete, ctx.by_rates = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(poles, *output)


def _differentiate_factor(ctx: Any, F: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if F is None:
        return (None,) * 5
    return *once(_factor_backward, F, *ctx.saved_tensors, ctx.discrete, ctx.by_rates), None, None, None


_factors = differentiable(_factor, _save_factor, _differentiate_factor)


class _PairFactor(torch.autograd.Function):
    """Pairs choose their route by data, which neither Dynamo nor vmap can follow: a function without an operator."""

    @staticmethod
    def forward(
        ctx: Any, poles: Tensor, B: Tensor, linked: Tensor, discrete: bool, by_rates: bool
    ) -> tuple[Tensor, Tensor]:
        _check_finite(poles, B)
        data = _pole_data(poles, discrete, by_rates)
        steps, record = cauchy_bank.factor_steps(data, _array(B), *_order(linked), pairs=True)
        assert record is not None  # of pairs
        columns, *saved, distance = map(torch.from_numpy, (*steps, record.mix, record.distance))
        ctx.save_for_backward(poles, columns, *saved)
        ctx.discrete, ctx.by_rates = discrete, by_rates
        ctx.mark_non_differentiable(distance)
        return columns, distance

    @staticmethod
    def backward(ctx: Any, F: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return *once(_pair_backward, F, *ctx.saved_tensors, ctx.discrete, ctx.by_rates), None, None, None


def _pair_backward(
    F: Tensor,
    poles: Tensor,
    columns: Tensor,
    pivots: Tensor,
    w: Tensor,
    beta: Tensor,
    mix: Tensor,
    discrete: bool,
    by_rates: bool,
) -> tuple[Tensor, Tensor]:
    F, columns = F.resolve_conj().clone(memory_format=torch.contiguous_format), columns.clone()
    for b in range(len(poles)):
        kernels.unmix(_array(F[b]), _array(mix[b]))
        kernels.unmix(_array(columns[b]), _array(mix[b]))
    doubled = torch.cat([poles, poles.conj()], dim=1)
    g_poles, g_B = torch.empty_like(poles), w.new_empty(*poles.shape, w.shape[2])
    data, steps = _pole_data(doubled, discrete, by_rates), FactorSteps(*map(_array, (columns, pivots, w, beta)))
    kernels.adjoint_bank(data, steps, _array(F), discrete, _array(g_poles), _array(g_B))
    return _by_data(g_poles, poles, by_rates), g_B


@operator(
    "graded_singular_values(Tensor M) -> Tensor",
    lambda M: M.new_empty(*M.shape[:-2], min(M.shape[-2:]), dtype=torch.float64),
    constants=0,
)
def _singular_values(M: Tensor) -> Tensor:
    if _rotates(M):
        from ._values_triton import singular_values_triton

        return singular_values_triton(M)
    with serial(True, torch):
        return torch.linalg.svdvals(M, driver="gesvd" if M.is_cuda else None)  # no vectors: LAPACK keeps the digits


@operator(
    "graded_singular_values_backward(Tensor g, Tensor M) -> Tensor", lambda g, M: M.new_empty(M.shape), constants=0
)
def _singular_values_backward(g: Tensor, M: Tensor) -> Tensor:
    """Return ``U diag(g) V^H``: bounded wherever values vanish or repeat."""
    if _rotates(M):
        from ._values_triton import singular_values_adjoint_triton

        return singular_values_adjoint_triton(g, M)
    U, _, Vh = _decomposed(M, GRADIENTS_BELOW)
    return (U * g[:, None, :]) @ Vh


_values = differentiable(
    _singular_values,
    lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    lambda ctx, g: once(_singular_values_backward, g, *ctx.saved_tensors),
)


def _empty_triples(M: Tensor, order: int) -> Triples:
    batch, k, l = M.shape
    r = min(k, l)
    return M.new_empty(batch, k, r), M.new_empty(batch, r, dtype=torch.float64), M.new_empty(batch, r, l)


@operator("graded_singular_triples(Tensor M, int order) -> (Tensor, Tensor, Tensor)", _empty_triples, constants=1)
def _singular_triples(M: Tensor, order: int) -> Triples:
    U, values, Vh = _decomposed(M, BASES_BELOW)
    limit = int((values > 0).sum(1).amin()) if len(values) else order
    if order > limit:
        raise OrderError(
            f"order must be at most {limit}, the least number of nonzero Hankel singular values of the systems; got "
            f"{order}. Choose a smaller order: other states link no input to any output."
        )
    return U.contiguous(), values, Vh.contiguous()


def _differentiate_triples(ctx: Any, gU: Tensor, g: Tensor, gVh: Tensor) -> tuple[Tensor, None]:
    """Return the gradient for functions that signs and phases do not change, as those of balanced bases are.

    Vectors without a gradient of their own may belong to equal values: their pairs do not count.
    """
    U, values, Vh = ctx.saved_tensors
    left, right = U.mH @ gU, Vh @ gVh.mH
    left, right = left - left.mH, right - right.mH
    gap = values[:, None, :].square() - values[:, :, None].square()
    apart = gap.abs() > torch.finfo(gap.dtype).tiny
    inverse = torch.where(apart, 1 / torch.where(apart, gap, 1), 0)
    inner = (left * inverse) * values[:, None, :] + values[:, :, None] * (right * inverse)
    phase = left.diagonal(dim1=1, dim2=2) * torch.where(values == 0, 0, 0.5 / torch.where(values == 0, 1, values))
    return U @ (inner + torch.diag_embed(g + phase)) @ Vh, None


_triples = differentiable(
    _singular_triples, lambda ctx, inputs, output: ctx.save_for_backward(*output), _differentiate_triples
)


def _decomposed(M: Tensor, graded_below: float) -> Triples:
    """Return ``U, values, V^H``, by the implicit QR algorithm where values below a share of the largest ask for it."""
    with serial(True, torch):
        U, values, Vh = torch.linalg.svd(M, full_matrices=False, driver="gesvd" if M.is_cuda else None)
        if M.is_cpu and min(M.shape[-2:]) > UNDIVIDED:
            for k in (values[:, -1] < graded_below * values[:, 0]).nonzero()[:, 0].tolist():
                found = sla.svd(_array(M[k]), full_matrices=False, lapack_driver="gesvd", check_finite=False)
                U[k], values[k], Vh[k] = (torch.from_numpy(x) for x in found)
    return U, values, Vh


def _triton(B: Tensor) -> Any:
    """Return the module of Triton kernels where they run and systems (batch, n, m) fit, None elsewhere."""
    if not triton_kernels(B):
        return None
    from . import _factors_triton

    return _factors_triton if _factors_triton.fits(B) else None


def _rotates(M: Tensor) -> bool:
    """Tell whether Triton kernels find singular values: an SVD on a GPU takes the matrices one after the other."""
    if compiled_loops(M) or not triton_kernels(M):
        return False
    from ._values_triton import fits

    return fits(M)


def _check_finite(poles: Tensor, B: Tensor) -> None:
    if not (torch.isfinite(poles).all() and torch.isfinite(B).all()):
        raise InputError("Poles, B and C must be finite; got NaN or infinity. Look for the step that produced them.")


def _order(linked: Tensor) -> tuple[Array, Array]:
    """Return the states (batch, n) in the order of elimination, and how many of them come first."""
    order = torch.argsort(linked.to(torch.uint8), dim=1, descending=True, stable=True)
    return _array(order), _array(linked.sum(1))


def _by_data(gradient: Tensor, poles: Tensor, by_rates: bool) -> Tensor:
    """Return the gradient with respect to the data, given that with respect to lam: ``d lam = lam dz``."""
    return gradient * torch.exp(poles).conj().resolve_conj() if by_rates else gradient


def _array(x: Tensor) -> Array:
    """Return a tensor on the CPU as an array that shares its memory if that is contiguous."""
    return np.asarray(x.detach().resolve_conj().contiguous().numpy())


def _pole_data(poles: Tensor, discrete: bool, by_rates: bool) -> PoleData:
    """Return what the kernels read about poles, all of which must be stable."""
    values = _array(poles)
    return pole_data(np.exp(values), values, discrete) if by_rates else pole_data(values, None, discrete)
