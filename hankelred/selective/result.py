"""The result of reducing a selective layer: bases, rates, predicted error, and a way to measure the true one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..checks import Array, check_flag, check_integer, check_real_array, check_result
from ..errors import InputError, OrderError
from .data import SCALE, Decay, Sequences, head_sequences, mamba_decay, mamba_sequences
from .delta import delta_sequences, written
from .states import outputs
from .statistics import SelectiveStatistics


@dataclass(frozen=True, eq=False, repr=False)
class SelectiveReduction:
    """A smaller state for a selective layer: ``B_t`` becomes ``Ti B_t``, ``C_t`` becomes ``T^T C_t``.

    Both are folded into the weights that make B and C where these are linear; a bare selection only takes entries.

    Attributes
    ----------
    method : str
        "selection", "folded selection", "rotation" or "projection".
    order : int
        States kept.
    T, Ti : (groups, n, order) and (groups, order, n) ndarray
        Bases with ``Ti T = I``, one pair for each group of channels.
    kept : (groups, order) int ndarray or None
        Indices of the states that were selected.
    rates : (channels, order) ndarray or None
        Rates of the rotated states of a Mamba layer. Selected states keep theirs, heads their decays.
    hsv : (groups, n) ndarray
        Square roots of the eigenvalues of P Q, which stand in for Hankel singular values.
    predicted_error : float
        Root mean square error of the (gated) outputs relative to the outputs, from the statistics. For a bare
        selection it is the error on the data of the statistics itself, of a delta rule to first order; else it takes c
        and h as independent, for a rotation the rotated rates as exact, and for a delta rule keys left out as white.
    spread : float or None
        Root mean square of ``A - mean A``, the mean over channels, relative to that of mean A, for a rotation.
    neglected : float or None
        Share of the rotated rates that stands off their diagonals and is left out, in norm, over all channels.
    fold_ranks : (groups,) int ndarray or None
        Directions that the least-squares fold resolved; fewer than `order` where kept states are nearly dependent.

    Examples
    --------
    >>> import numpy as np
    >>> from hankelred.selective import SelectiveStatistics, select
    >>> rng, statistics = np.random.default_rng(0), SelectiveStatistics(4)
    >>> statistics.update(*rng.standard_normal((3, 2, 99, 4)) * [0.3, 0.2, 0.2, 0.01])  # a, b, c; a weak last state
    >>> reduction = select(statistics, 3)
    >>> reduction.T.shape, reduction.kept.shape
    ((1, 4, 3), (1, 3))
    """

    method: str
    order: int
    T: Array
    Ti: Array
    kept: Array | None
    rates: Array | None
    hsv: Array
    predicted_error: float
    spread: float | None = None
    neglected: float | None = None
    fold_ranks: Array | None = None

    def __repr__(self) -> str:
        """Return sizes and predicted error, not the matrices."""
        return (
            f"SelectiveReduction({self.method}, {self.T.shape[1]} -> {self.order} states, "
            f"predicted_error={self.predicted_error:.3g})"
        )

    def mamba_error(
        self, delta: ArrayLike, A: ArrayLike, B: ArrayLike, C: ArrayLike, u: ArrayLike, gate: ArrayLike | None = None
    ) -> float:
        """Measure the output error on sequences of a Mamba layer, by running both recurrences.

        Parameters
        ----------
        delta, A, B, C, u, gate
            As for `SelectiveStatistics.update_mamba`, which also says what is refused; and states that were projected,
            which only heads with one decay admit.

        Returns
        -------
        float
            Root mean square of the change of the (gated) outputs, relative to that of the outputs.
        """
        A = check_real_array(A, "A", 2, copy=False)
        if A.shape[1] != self.T.shape[1]:
            raise InputError(f"A must be (channels, {self.T.shape[1]}); got {A.shape}.")
        rotated: Any = self.rates
        if self.method == "rotation" and len(rotated) != len(A):
            raise InputError(f"A must have the {len(rotated)} channels that were rotated; got {len(A)}.")
        if len(self.T) > 1 or self.method == "projection":
            raise InputError(
                f"A Mamba layer has one group of channels and rates of its own in each; got a {self.method} of "
                f"{len(self.T)} groups. Use heads_error."
            )
        full, step = mamba_sequences(delta, A, B, C, u, gate)
        decay = mamba_decay(step, rotated if self.kept is None else A[:, self.kept[0]])
        return _relative_change(full, self._reduced(full, decay))

    def heads_error(
        self, decay: ArrayLike, B: ArrayLike, C: ArrayLike, x: ArrayLike, gate: ArrayLike | None = None
    ) -> float:
        """Measure the output error on sequences of a layer of heads, by running both recurrences.

        Parameters
        ----------
        decay, B, C, x, gate
            As for `SelectiveStatistics.update_heads`; decays that differ from state to state admit selections only.

        Returns
        -------
        float
            Root mean square of the change of the (gated) outputs, relative to that of the outputs.
        """
        full = head_sequences(decay, B, C, x, gate)
        return _relative_change(full, self._reduced_heads(full, np.ndim(decay)))

    def delta_error(
        self,
        decay: ArrayLike,
        beta: ArrayLike,
        B: ArrayLike,
        C: ArrayLike,
        x: ArrayLike,
        gate: ArrayLike | None = None,
        renormalise: bool = False,
    ) -> float:
        """Measure the output error on sequences of a gated delta rule, by running both recurrences.

        The smaller rule takes the keys ``Ti k`` and the queries ``T^T q``; what it writes follows from its own states.

        Parameters
        ----------
        decay, beta, B, C, x, gate
            As for `SelectiveStatistics.update_delta`; decays that differ from channel to channel admit selections only.
        renormalise : bool, default False
            Whether every smaller key and query is scaled to the norm of the full one, as in a layer that takes entries
            before its norm and leaves the scale of its queries as it is. One that is zero stays zero.

        Returns
        -------
        float
            Root mean square of the change of the (gated) outputs, relative to that of the outputs.

        Raises
        ------
        InputError, StabilityError
            If data do not fit the statistics that were reduced, or smaller keys let states grow, as bases that are not
            orthonormal may.
        """
        full, rates = delta_sequences(decay, beta, B, C, x, gate)
        values = head_sequences(decay, B, C, x, gate)
        reduced = self._reduced_heads(values, np.ndim(decay))
        if check_flag(renormalise, "renormalise"):
            B, C = (_rescaled(x, y) for x, y in ((reduced.B, full.B), (reduced.C, full.C)))
            reduced = reduced._replace(B=B, C=C)
        return _relative_change(full, written(reduced, rates))

    def _reduced_heads(self, full: Sequences, axes: int) -> Sequences:
        """Return the smaller heads, whose decays were given with so many axes."""
        kept = self.kept
        if full.B.shape[2:] != self.T.shape[:2]:
            raise InputError(f"B must have groups and states {self.T.shape[:2]}; got {full.B.shape[2:]}.")
        if axes == 3:  # the same of all states
            return self._reduced(full, full.decay)
        if kept is None:
            raise InputError(f"Decays that differ from state to state admit selection only; got a {self.method}.")

        def of_kept(row: int, steps: slice, channels: slice) -> Array:
            return full.decay(row, steps, channels)[:, kept[channels.start // full.group_width]]

        return self._reduced(full, of_kept)

    def _reduced(self, full: Sequences, decay: Decay) -> Sequences:
        """Return the layer with other decays and the reduced B and C."""
        T, Ti = check_real_array(self.T, "T", 3, copy=False), self.Ti
        with np.errstate(over="ignore", invalid="ignore"):
            B, C = (
                (x.swapaxes(1, 2) @ basis).swapaxes(1, 2).astype(x.dtype, copy=False)
                for x, basis in ((full.B, Ti.swapaxes(1, 2)), (full.C, T))
            )
        check_result("B and C of the reduced layer", B, C, hint=SCALE)
        return full._replace(decay=decay, B=B, C=C)


def _rescaled(x: Array, y: Array) -> Array:
    """Return vectors x (..., r) with the norms of y (..., n)."""
    with np.errstate(over="ignore", invalid="ignore"):
        norms, wanted = (np.linalg.norm(v, axis=-1, keepdims=True) for v in (x, y))
        found = np.asarray(x * (wanted / np.where(norms > 0, norms, 1.0)))
    check_result("Norms of keys and queries", norms, wanted, hint=SCALE)
    return found


def _relative_change(full: Sequences, reduced: Sequences) -> float:
    """Return how much the (gated) outputs of one layer differ from those of another, relative to these."""
    gate = 1.0 if full.gate is None else full.gate
    with np.errstate(over="ignore", invalid="ignore"):
        y = outputs(full)
        change = y - outputs(reduced)
        size, error = (float(np.linalg.norm((gate * x).ravel())) for x in (y, change))
    check_result("Outputs and their norms", size, error, hint=SCALE)
    return error / size if size > 0 else 0.0


def check_kept_states(order: int, n: int) -> int:
    """Return the number of states to keep, from 1 to n."""
    return check_integer(order, "order", 1, n, f"A channel has {n} states.", OrderError)


def predicted_error(statistics: SelectiveStatistics, T: Array, Ti: Array) -> float:
    """Return the relative output error of ``h -> T Ti h`` if c and h were independent.

    ``E|c^T (I - T Ti) h|^2 = tr(Q E P E^H)`` with ``E = I - T Ti``, over ``1^T M 1``. A smaller delta rule also reads
    less with its keys, by ``w = k^T F S``, ``F = I - Ti^T Ti``. Were w white, its states would differ by the noise N of
    the rule times the mean square of w: ``tr(K F R F) tr(T^T Q T Ti N Ti^T)`` more.
    """
    P, Q = statistics.gramians()
    I = np.eye(statistics.n)
    with np.errstate(over="ignore", invalid="ignore"):
        error = _traces(Q, I - T @ Ti, P)
        if statistics.delta:
            K, R, N = statistics.feedback()
            error = error + _traces(K, I - Ti.swapaxes(1, 2) @ Ti, R) * _traces(Q, T @ Ti, N)
        power = statistics.output_form().sum().real * statistics.steps / statistics.samples  # of one channel
    return root_share(error.sum(), power)


def _traces(Q: Array, E: Array, P: Array) -> Array:
    """Return ``tr(Q E P E^H)`` of every group."""
    return np.asarray(np.trace(Q @ E @ P @ E.conj().swapaxes(1, 2), axis1=1, axis2=2).real)


def root_share(part: float, whole: float) -> float:
    """Return the root of the share that a mean square has in another, 0 where there is nothing to have a share in."""
    check_result("Mean squares of outputs", part, whole, hint=SCALE)
    return float(np.sqrt(max(part, 0.0) / whole)) if whole > 0 else 0.0
