"""Statistics of selective layers, gathered from batch to batch in memory that grows with neither length nor batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from ..checks import Array, check_array, check_choice, check_flag, check_integer, check_result, check_type, double
from ..errors import InputError
from ..linalg.hankel_svd import HankelSVD, padded
from ..linalg.semidefinite import covariance_factors
from ..linalg.threads import one_blas_thread
from .averages import METHODS, StepMoments, mean_gramians, second_moment_gramians
from .data import SCALE, Sequences, Steps, check_steps, head_sequences, mamba_sequences
from .delta import delta_sequences
from .feedback import add_feedback
from .sums import MOMENTS, OPTIONAL, Sums, add_sequences, add_steps, asked_for, empty_sums, shapes_of_sums

COUNTS = ("n", "groups", "every", "steps", "samples")

Method = Literal["covariance", "exact", "second_moment", "mean"]


class SelectiveStatistics:
    """Running sums of a selective layer's data, from which it can be reduced.

    The layer computes ``h_t = a_t h_{t-1} + b_t`` and ``y_t = c_t . h_t`` in each of its channels, all sequences from
    rest. Channels that share their states' coordinates form a group: all channels of a Mamba layer, the heads of
    Mamba-2 that share B and C. Sums run over the channels of a group; one group per channel keeps them apart. An update
    adds everything or, where it raises an error, nothing. Data in single precision are multiplied in single precision
    and summed in double. The reductions are `rotate`, `select` and `project`.

    Parameters
    ----------
    n : int
        States of each channel.
    groups : int, default 1
        Groups of channels, of equal size; each takes n^2 numbers per sum.
    moments : bool, default False
        Whether to sum second moments of the steps, too, for ``gramians("second_moment")``. About doubles the time.
    exact : bool, default False
        Whether to run the Gramian recursions of every channel, for ``gramians("exact")``: n^2 operations per channel
        and step outside of any matrix product, some tens of times the rest at n = 128.
    delta : bool, default False
        Whether the layer is a gated delta rule, for `update_delta` alone, which also sums what reads and writes states.
    every : int, default 1
        Use only every `every`-th step. Neighbours differ little: with 8 the statistics of n = 128 cost a third.

    Attributes
    ----------
    n, groups, every : int
        As given.
    delta : bool
        As given.
    steps : int
        Steps summed over, of all sequences.
    samples : int
        Steps times channels of a group.

    Raises
    ------
    InputError
        If a size is not a positive integer, a flag not a truth value, `exact` goes with steps left out, or `delta` with
        `moments` or `exact`, which know decays only.

    Examples
    --------
    >>> import numpy as np
    >>> from hankelred.selective import SelectiveStatistics
    >>> rng = np.random.default_rng(0)
    >>> A, statistics = -np.tile(np.arange(1.0, 5.0), (8, 1)), SelectiveStatistics(4)  # 8 channels
    >>> for _ in range(3):  # batches of 2 sequences of 50 steps
    ...     delta, u = rng.uniform(0.01, 0.1, (2, 50, 8)), rng.standard_normal((2, 50, 8))
    ...     statistics.update_mamba(delta, A, *rng.standard_normal((2, 2, 50, 4)), u)  # B, C
    >>> statistics.steps, statistics.samples, statistics.output_form().shape
    (300, 2400, (1, 4, 4))
    """

    def __init__(
        self,
        n: int,
        groups: int = 1,
        *,
        moments: bool = False,
        exact: bool = False,
        delta: bool = False,
        every: int = 1,
    ) -> None:
        self.n, self.groups = check_integer(n, "n", 1), check_integer(groups, "groups", 1)
        self.every = check_integer(every, "every", 1)
        given = {"moments": moments, "exact": exact, "delta": delta}
        self._flags = {name: check_flag(flag, name) for name, flag in given.items()}
        if exact and every > 1:
            raise InputError(f"Gramian recursions run over every step; got exact=True with every={every}. Drop one.")
        if delta and (moments or exact):
            raise InputError(
                f"Moments and Gramians know decays, not delta rules; got delta=True with moments={moments} and "
                f"exact={exact}. Drop them."
            )
        self.steps = self.samples = 0
        self._sums = empty_sums(self.n, self.groups, self._flags)

    @property
    def delta(self) -> bool:
        """Tell whether these are statistics of a gated delta rule."""
        return self._flags["delta"]

    def __repr__(self) -> str:
        """Return sizes and counts, not the sums."""
        return f"SelectiveStatistics(n={self.n}, groups={self.groups}, steps={self.steps}, samples={self.samples})"

    def update(self, a: ArrayLike, b: ArrayLike, c: ArrayLike) -> None:
        """Add sequences given step by step.

        Parameters
        ----------
        a, b, c : (..., batch, length, n) array_like
            Decays, whole increments and output rows as for `averaged_gramians`. With one group, leading axes count as
            further sequences; with more, there is one leading axis, the groups.
        """
        self._check_rule(delta=False)
        steps = check_steps(a, b, c)
        shape = steps.a.shape
        if shape[-1] != self.n or (self.groups > 1 and (len(shape) != 4 or shape[0] != self.groups)):
            raise InputError(
                f"a, b and c must be (..., batch, length, {self.n}), led by one axis of {self.groups} groups if there "
                f"are several; got {shape}."
            )
        grouped = [x.reshape(self.groups, -1, *shape[-2:]) for x in steps]

        def add(sums: Sums) -> None:
            for group, channel in enumerate(zip(*grouped, strict=True)):
                add_steps(sums, group, Steps(*channel), self.every)

        self._add(add, grouped[0].shape[1], shape[-2], 1)

    def update_mamba(
        self, delta: ArrayLike, A: ArrayLike, B: ArrayLike, C: ArrayLike, u: ArrayLike, gate: ArrayLike | None = None
    ) -> None:
        """Add sequences of a Mamba layer, ``h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t`` in every channel.

        Parameters
        ----------
        delta : (batch, length, channels) array_like
            Steps, after the softplus.
        A : (channels, n) array_like
            Rates, ``-exp(A_log)``; a `StabilityError` if one is positive.
        B, C : (batch, length, n) array_like
            Into and out of the states, shared by the channels.
        u : (batch, length, channels) array_like
            Inputs of the state space model.
        gate : (batch, length, channels) array_like, optional
            What multiplies the outputs afterwards, such as ``silu(z)``. It weights the covariance of the states and
            the output form, ``E[gate² h h^T]``, not the decays, nor the moments and Gramians. Zeros leave padding out.
        """
        self._check_rule(delta=False)
        data, step = mamba_sequences(delta, A, B, C, u, gate)
        (batch, length, _, n), channels = data.B.shape, data.v.shape[2]
        if channels % self.groups or n != self.n:
            raise InputError(
                f"The layer must have {self.n} states and channels in {self.groups} groups; got {n} states and "
                f"{channels} channels."
            )
        shape = (batch, length, self.groups, n)
        data = data._replace(B=np.broadcast_to(data.B, shape), C=np.broadcast_to(data.C, shape))
        self._add_sequences(data, step)

    def update_heads(
        self, decay: ArrayLike, B: ArrayLike, C: ArrayLike, x: ArrayLike, gate: ArrayLike | None = None
    ) -> None:
        """Add sequences of a layer of heads, ``h_t = decay_t h_{t-1} + x_t B_t`` in every channel of a head.

        Parameters
        ----------
        decay : (batch, length, heads) or (batch, length, heads, n) array_like
            One decay per head, as ``exp(delta A)`` in Mamba-2, or one per head and state, as in gated linear attention;
            a `StabilityError` if one exceeds 1.
        B, C : (batch, length, groups, n) array_like
            Into and out of the states (keys and queries), shared by ``heads / groups`` heads side by side.
        x : (batch, length, heads, head_dim) array_like
            Inputs (values), multiplied by delta where the layer does so.
        gate : (batch, length, heads, head_dim) array_like, optional
            What multiplies the outputs afterwards, as for `update_mamba`.
        """
        self._check_rule(delta=False)
        self._add_heads(head_sequences(decay, B, C, x, gate))

    def update_delta(
        self,
        decay: ArrayLike,
        beta: ArrayLike,
        B: ArrayLike,
        C: ArrayLike,
        x: ArrayLike,
        gate: ArrayLike | None = None,
    ) -> None:
        """Add sequences of a gated delta rule, ``S_t = (I - beta_t k_t k_t^T) a_t S_{t-1} + beta_t k_t x_t^T``.

        The rule reads ``y_t = S_t^T q_t``. Its states are those of heads with inputs as `delta_inputs` computes them,
        the n rows of S the states of each channel, so that everything said of heads holds for them.

        Parameters
        ----------
        decay : (batch, length, heads) or (batch, length, heads, n) array_like
            One decay per head, as in gated delta nets, or one per head and key channel, as in Kimi's, where rows decay
            before they are read; a `StabilityError` if one exceeds 1.
        beta : (batch, length, heads) array_like
            Rates of writing; a `StabilityError` unless ``0 <= beta |k|² <= 2``. Padded steps have a beta of 0, and
            gates of 0.
        B, C : (batch, length, groups, n) array_like
            Keys k after their norm, queries q after norm and scale, shared by ``heads / groups`` heads side by side.
        x : (batch, length, heads, head_dim) array_like
            Values.
        gate : (batch, length, heads, head_dim) array_like, optional
            What multiplies the outputs afterwards, as for `update_mamba`.
        """
        self._check_rule(delta=True)
        data, rates = delta_sequences(decay, beta, B, C, x, gate)
        self._add_heads(data, rates)

    def merge(self, other: SelectiveStatistics) -> None:
        """Add what another has seen, such as another rank of a distributed run.

        Parameters
        ----------
        other : SelectiveStatistics
            Of the same sizes and sums; read only.

        Raises
        ------
        InputError
            If sizes or sums differ.
        """
        check_type(other, "other", SelectiveStatistics)
        if (self.n, self.groups, self.every, set(self._sums)) != (other.n, other.groups, other.every, set(other._sums)):
            raise InputError(f"Statistics must have the same sizes and sums to be merged; got {self!r} and {other!r}.")
        self._take(other._sums, other.steps, other.samples)

    def pooled(self) -> SelectiveStatistics:
        """Return the statistics of all groups as those of one group that has all their channels."""
        found = SelectiveStatistics(self.n, every=self.every, **self._flags)
        found._sums = {name: value.sum(axis=0, keepdims=True) for name, value in self._sums.items()}
        found.steps, found.samples = self.steps, self.samples * self.groups
        for name in ("c", "cc"):  # per step, not per channel; equal for groups that share C
            found._sums[name] = found._sums[name] / self.groups
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return everything as integers and copies of arrays; ranks are summed entry by entry."""
        return {name: getattr(self, name) for name in COUNTS} | {name: x.copy() for name, x in self._sums.items()}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> SelectiveStatistics:
        """Make statistics from what `to_dict` returned.

        Parameters
        ----------
        state : dict
            Read, and left as it is.

        Returns
        -------
        SelectiveStatistics
            With sums of their own.

        Raises
        ------
        InputError
            If an entry is missing, unknown or unfit.
        """
        entries = dict(check_type(state, "state", dict, "Pass what to_dict returned."))
        try:
            n, groups, every = (check_integer(entries.pop(name), name, 1) for name in COUNTS[:3])
            steps, samples = (check_integer(entries.pop(name), name, 0) for name in COUNTS[3:])
            flags, sums = asked_for(entries), {}
            for name, shape in shapes_of_sums(n, groups, flags).items():
                sums[name] = double(check_array(entries.pop(name), name, None))
                if sums[name].shape != shape:
                    raise InputError(
                        f"{name} must have shape {shape} for n={n} and groups={groups}, as stored by to_dict; got "
                        f"{sums[name].shape}."
                    )
            found = cls(n, groups, every=every, **flags)
        except KeyError as missing:
            raise InputError(f"state must be what to_dict returned; got none with {missing}.") from missing
        if entries or samples < steps:
            raise InputError(
                f"state must be what to_dict returned; got {steps} steps, {samples} samples, and unknown entries: "
                f"{', '.join(map(repr, entries)) or 'none'}."
            )
        found._sums, found.steps, found.samples = sums, steps, samples
        return found

    def state_covariance(self) -> Array:
        """Return ``E[h h^H]`` over steps and channels, weighted by the squares of gates, (groups, n, n)."""
        return self._mean("hh", self.samples)

    def output_covariance(self) -> Array:
        """Return ``E[conj(c) c^T]`` over steps, (groups, n, n)."""
        return self._mean("cc", self.steps)

    def output_form(self) -> Array:
        """Return M, ``M_ij = E[conj(c_i h_i) c_j h_j]``, summed over the channels of a group, (groups, n, n).

        The sum of its entries is the mean square of the (gated) outputs. Leaving out a set of states D changes them by
        ``1_D^T M 1_D`` in mean square, exactly, unless a delta rule feeds its states back: see `error_form`.
        """
        return self._mean("M", self.steps)

    def error_form(self) -> Array:
        """Return the form M whose ``1_D^T M 1_D`` is the mean square error of leaving out the set D, (groups, n, n).

        It is that of `output_form`, exactly, but for a delta rule. With keys and queries scaled channel by channel, its
        outputs depend on the squares t of the scales only. M is the mean of products of derivatives by t at 1: the
        error of leaving out D to first order, with what the states feed back. At large ``n^2 head_dim`` it is taken
        from evenly spaced columns of each head, other ones in every head and sequence.
        """
        return self._mean("first", self.steps) if self.delta else self.output_form()

    def feedback(self) -> tuple[Array, Array, Array]:
        """Return what the keys of a delta rule are and read, and what its states make of noise, each (groups, n, n).

        Returns
        -------
        K, R, N : (groups, n, n) ndarray
            ``E[k k^T]`` and ``E[a S (a S)^T]``, averaged with weights beta squared, of the states before a step reads
            them; ``E[S S^T]``, weighted by the squares of gates, of the same rule with white values of unit size. R and
            N are per channel of a head.
        """
        (kk, reads), noise = (self._mean(name, 1) for name in ("kk", "reads")), self._mean("noise", self.samples)
        rates = np.where(self._sums["rates"] > 0, self._sums["rates"], 1.0)[:, None, None]
        return kk / rates, reads / rates, noise

    def gramians(self, method: Method = "covariance") -> tuple[Array, Array]:
        """Return a pair of matrices that take the place of the Gramians.

        Parameters
        ----------
        method : {"covariance", "exact", "second_moment", "mean"}
            ``E[h h^H]`` and ``E[conj(c) c^T]``, or averages over steps and channels as for `averaged_gramians`. The
            moments of a group are taken over its channels, too, as if one of them were drawn at each step. ``"mean"``
            takes increments per unit of input.

        Returns
        -------
        P, Q : (groups, n, n) ndarray
            Hermitian.

        Raises
        ------
        InputError
            If nothing was seen yet, or the sums were not asked for when this object was made.
        StabilityError, NumericalError
            As for `averaged_gramians`.
        """
        check_choice(method, "method", ("covariance", *METHODS))
        if method == "covariance":
            return self.state_covariance(), self.output_covariance()
        if method == "exact":
            return self._mean("P", self.samples), self._mean("Q", self.samples)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            if method == "mean":
                a, B = (self._mean(name, self.samples) for name in "aB")
                P, Q = mean_gramians(a, B, self._mean("c", self.steps))
            else:
                a, b, aa, bb, ab, acac = (self._mean(name, self.samples) for name in ("a", "b", *MOMENTS))
                P, Q = second_moment_gramians(StepMoments(a, b, aa, bb, ab, self.output_covariance(), acac))
        check_result("Gramians", P, Q, hint=SCALE)
        return P, Q

    def hankel_singular_values(self, method: Method = "covariance") -> Array:
        """Return the square roots of the eigenvalues of P Q, which stand in for Hankel singular values, (groups, n).

        With covariances, the sum of squares from the r-th on is the mean squared output error of the best projection to
        r states, for one decay per head and independent c and h.

        Parameters
        ----------
        method : {"covariance", "exact", "second_moment", "mean"}
            Which pair, as for `gramians`.
        """
        P, Q = self.gramians(method)
        with one_blas_thread(self.n):
            factors = [covariance_factors(p, q) for p, q in zip(P, Q, strict=True)]
            return np.stack([padded(HankelSVD(S, R).values, self.n) for S, R in factors])

    def _check_rule(self, delta: bool) -> None:
        """Refuse data of a delta rule in statistics of other layers, and the other way round."""
        if delta != self.delta:
            raise InputError(
                f"Statistics are of a delta rule or of another layer; got an update of {'the' if delta else 'another'} "
                f"kind for delta={self.delta}. Make them with delta={delta}."
            )

    def _add_heads(self, data: Sequences, beta: Array | None = None) -> None:
        if data.B.shape[2:] != (self.groups, self.n):
            groups, n = data.B.shape[2:]
            raise InputError(f"B and C must have {self.groups} groups of {self.n} states; got {groups} of {n}.")
        self._add_sequences(data, None, beta)

    def _add_sequences(self, data: Sequences, step: Array | None, beta: Array | None = None) -> None:
        def add(sums: Sums) -> None:
            add_sequences(sums, data, step, self.every)
            if beta is not None:
                add_feedback(sums, data, beta, self.every)

        batch, length = data.v.shape[:2]
        self._add(add, batch, length, data.group_width)

    def _add(self, add: Callable[[Sums], None], batch: int, length: int, width: int) -> None:
        """Take what is added to empty sums, all of it or nothing."""
        sums = empty_sums(self.n, self.groups, self._flags)
        with one_blas_thread(self.n), np.errstate(over="ignore", invalid="ignore"):
            add(sums)
        steps = batch * (length // self.every)
        self._take(sums, steps, steps * width)

    def _take(self, sums: Sums, steps: int, samples: int) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            total = {name: value + sums[name] for name, value in self._sums.items()}
        check_result("Sums over steps", *total.values(), hint=SCALE)
        self._sums, self.steps, self.samples = total, self.steps + steps, self.samples + samples

    def _mean(self, name: str, count: int) -> Array:
        if count == 0:
            raise InputError("Statistics must have seen data; got none. Call one of the update methods first.")
        if name not in self._sums:
            flag = next(flag for flag, names in OPTIONAL.items() if name in names)
            raise InputError(f"These statistics have no such sums. Make them with {flag}=True before the first batch.")
        return self._sums[name] / count
