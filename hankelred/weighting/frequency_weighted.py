"""Frequency-weighted balancing: errors count as the weights before and behind the system say."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..checks import Array, is_discrete
from ..errors import InputError, StabilityError
from ..linalg.schur import apply_units, balanced_units, ordered_schur
from ..linalg.triangular import gramian_factor, schur_form
from ..parts import DenseParts, DiagonalParts
from ..systems import StateSpace, one_system
from .base import Pair, Weighting, pair_of_factors
from .coordinates import Triangular, coordinates_of


class FrequencyWeighted(Weighting):
    """Balance for a small weighted error ``Wo (G - Gr) Wi`` [1]_.

    P is the block of the states of G in the controllability Gramian of ``G Wi``, Q that in the observability Gramian
    of ``Wo G``.

    Parameters
    ----------
    input : system, optional
        Wi, stable, anything `as_system` accepts, with as many outputs as the system has inputs, or with one input and
        one output, which then serves every input.
    output : system, optional
        Wo, stable, with as many inputs as the system has outputs, or one for every output. At least one weight.
    guaranteed : bool, optional
        See `Weighting`. With one weight every plain model is stable already [1]_.

    References
    ----------
    .. [1] D. Enns, "Model reduction with balanced realizations: an error bound and a frequency weighted
       generalization", Proc. 23rd IEEE CDC, 1984, pp. 127-132.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> from hankelred.weighting import FrequencyWeighted
    >>> plant = hr.StateSpace(np.diag([-1.0, -2.0, -30.0]), np.ones((3, 1)), np.ones((1, 3)))
    >>> lowpass = hr.StateSpace([[-0.1]], [[0.1]], [[1.0]])
    >>> model = hr.balanced_truncation(plant, order=1, weighting=FrequencyWeighted(input=lowpass)).system
    >>> error, white = plant - model, plant - hr.balanced_truncation(plant, order=1).system
    >>> bool(abs(error.frequency_response([0.05])) < abs(white.frequency_response([0.05])))
    True
    """

    name = "frequency-weighted"
    input: StateSpace | None
    output: StateSpace | None

    def __init__(self, input: Any = None, output: Any = None, guaranteed: bool | None = None) -> None:
        if input is None and output is None:
            raise InputError("At least one of input and output must be a weight; got None for both.")
        before, behind = (
            None if weight is None else one_system(weight, name).dense()
            for name, weight in (("input", input), ("output", output))
        )
        self._set(guaranteed, input=before, output=behind)

    def pair(self, parts: DenseParts | DiagonalParts) -> Pair:
        """Return factors of the blocks of both Gramians that belong to the states of the system."""
        coordinates, G = coordinates_of(parts), parts.system
        inner = coordinates.inner.triangular()
        S = _driven(inner, _fitted(self.input, G, G.m, "input", "outputs"))
        dual, weight = inner.dual(), _fitted(self.output, G, G.p, "output", "inputs")
        R = dual.native(_driven(dual, None if weight is None else _adjoint(weight))).conj().T
        return pair_of_factors(*coordinates.factors(S, R))


def _fitted(weight: StateSpace | None, G: Any, count: int, name: str, side: str) -> StateSpace | None:
    """Return a weight that fits the system: one for all signals is repeated."""
    if weight is None:
        return None
    if is_discrete(weight.dt) != G.is_discrete or (True not in (weight.dt is True, G.dt is True) and weight.dt != G.dt):
        raise InputError(f"{name} must have the dt of the system, {G.dt}; got {weight.dt}. Resample it first.")
    if (weight.m, weight.p) == (1, 1) and count != 1:
        one = np.eye(count)
        A, B, C, D = (np.kron(one, x) for x in (weight.A, weight.B, weight.C, weight.D))
        return StateSpace.trusted(A, B, C, D, weight.dt)
    have = weight.p if side == "outputs" else weight.m
    if have != count:
        raise InputError(
            f"{name} must have {count} {side}, or one input and one output for all; got {weight.m} inputs and "
            f"{weight.p} outputs."
        )
    return weight


def _adjoint(W: StateSpace) -> StateSpace:
    return StateSpace.trusted(W.A.conj().T, W.C.conj().T, W.B.conj().T, W.D.conj().T, W.dt)


def _driven(part: Triangular, weight: StateSpace | None) -> Array:
    """Return a factor of the covariance of the states of a part that a weight drives with white noise."""
    if weight is None:
        return gramian_factor(part.T, np.ascontiguousarray(part.B), part.discrete)
    units = balanced_units(weight.A, weight.B, weight.C)
    A, B, C = apply_units(units._replace(gain=1.0), weight.A, weight.B, weight.C)
    form = ordered_schur(A, part.discrete)
    if form.kept:
        raise StabilityError(
            f"Weights must be stable by more than their rounding error; got a pole at {form.poles[0]:.6g}. Move the "
            f"poles of integrators and notches into the stable region by a little."
        )
    kind = np.result_type(part.T, form.T)
    (T, X), (U, Y) = (schur_form(M, kind) for M in (part.T, form.T))
    k, Y = len(T), form.Z @ Y
    both = np.block([[T, X.conj().T @ part.B @ C @ Y], [np.zeros((len(U), k)), U]])
    inputs = np.vstack([X.conj().T @ part.B @ weight.D, Y.conj().T @ B])
    factor: Array = X @ gramian_factor(both.astype(kind), inputs.astype(kind), part.discrete)[:k]
    return factor
