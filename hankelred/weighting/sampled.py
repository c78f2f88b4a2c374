"""Sampled balancing: the states that real inputs drive, in place of those that white noise would."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..checks import Array, check_array, check_dt, double
from ..errors import InputError
from ..parts import DenseParts, DiagonalParts
from .base import Pair, Weighting, pair_of_matrices
from .coordinates import Coordinates, coordinates_of
from .covariance import StateCovariance

# Steps whose states are held at a time.
PIECE = 256


class Sampled(Weighting):
    """Balance against data: the covariance of the states that real inputs drive [1]_.

    P is the mean of ``x x^H`` over all steps after the first input. Q is the observability Gramian, or with adjoints
    the mean of ``g g^H``: how much the loss of a training, or any other function of the outputs, looks at each
    direction of the states.

    Parameters
    ----------
    inputs : (batch, length, m) array_like, optional
        What the system receives, each sequence from rest. Of a continuous system they are held over steps of `dt`.
        For a bank the same for all systems, or (systems, batch, length, m).
    states : (batch, length, n) array_like or StateCovariance, optional
        The states themselves in the coordinates of the system, as stored: exactly one of `inputs` and `states`. For a
        bank with an axis of the systems in front. A `StateCovariance` holds sums over data of any length.
    adjoints : (batch, length, n) array_like or StateCovariance, optional
        ``g_t = A^H g_{t+1} + C^H dL/dy_t``, in the same coordinates.
    dt : float, optional
        Sampling time of `inputs`, for continuous systems only.
    guaranteed : bool, optional
        See `Weighting`.

    References
    ----------
    .. [1] S. E. Otto, A. Padovan, C. W. Rowley, "Model reduction for nonlinear systems by balanced truncation of state
       and gradient covariance", SIAM J. Sci. Comput. 45, 2023, pp. A2325-A2355.

    Examples
    --------
    >>> import numpy as np, hankelred as hr
    >>> from hankelred.weighting import Sampled
    >>> plant = hr.DiagonalSystem([0.99, 0.5, -0.9], np.ones((3, 1)), np.ones((1, 3)), dt=True)
    >>> u = np.cumsum(np.random.default_rng(0).standard_normal((8, 200, 1)), axis=1)  # slow inputs
    >>> white, seen = hr.hankel_singular_values(plant), hr.hankel_singular_values(plant, Sampled(inputs=u))
    >>> bool(seen[1] / seen[0] < 0.2 * white[1] / white[0])  # of the three poles the inputs show one
    True
    """

    name = "sampled"
    inputs: Array | None
    states: Array | StateCovariance | None
    adjoints: Array | StateCovariance | None
    dt: Any

    def __init__(
        self,
        inputs: ArrayLike | None = None,
        states: ArrayLike | StateCovariance | None = None,
        adjoints: ArrayLike | StateCovariance | None = None,
        dt: float | None = None,
        guaranteed: bool | None = None,
    ) -> None:
        if (inputs is None) == (states is None):
            raise InputError(
                f"Exactly one of inputs and states must be given; got {'none' if inputs is None else 'both'}. The "
                f"states are what the inputs drive."
            )
        if dt is not None:
            dt = check_dt(dt)
            if inputs is None or dt is True or dt == 0:
                raise InputError(f"dt must be the sampling time of the inputs of a continuous system; got dt={dt}.")
        data = {"inputs": inputs, "states": states, "adjoints": adjoints}
        self._set(guaranteed, dt=dt, **{name: _sequences(x, name) for name, x in data.items()})

    def of(self, i: int, count: int) -> Sampled:
        """Return the weighting of system i of a bank of so many; inputs with three axes are for all."""
        copy = object.__new__(Sampled)
        vars(copy).update(vars(self))
        for name in ("inputs", "states", "adjoints"):
            data = getattr(self, name)
            if data is None or (name == "inputs" and data.ndim == 3):
                continue
            sums = isinstance(data, StateCovariance)
            if (data.systems if sums else len(data) if data.ndim == 4 else None) != count:
                raise InputError(
                    f"{name} must have an axis of the {count} systems of the bank in front; got "
                    f"{repr(data) if sums else data.shape}."
                )
            vars(copy)[name] = data[i]
        return copy

    def pair(self, parts: DenseParts | DiagonalParts) -> Pair:
        """Return factors of the covariances."""
        coordinates = coordinates_of(parts)
        if self.states is None:
            P = coordinates.matrix(self._driven(coordinates, parts.system))
        else:
            P = _in_part(parts, coordinates, _covariance(parts.system, self.states, "states"))
        if self.adjoints is None:
            return pair_of_matrices(coordinates, P, R=coordinates.half(parts.factors[1]))
        g = _covariance(parts.system, self.adjoints, "adjoints")
        return pair_of_matrices(coordinates, P, _in_part(parts, coordinates, g, dual=True))

    def _driven(self, coordinates: Coordinates, system: Any) -> Array:
        """Return the covariance of the states that the inputs drive, in the inner coordinates."""
        u = self.inputs
        assert u is not None
        if u.ndim != 3 or u.shape[2] != system.m:
            raise InputError(f"inputs must be (batch, length, {system.m}); got {u.shape}.")
        if system.is_discrete != (self.dt is None):
            raise InputError(
                f"dt must be given for continuous systems, whose inputs are held, and only there; got dt={self.dt} "
                f"for a system with dt={system.dt}."
            )
        inner = coordinates.inner
        A, B = inner.stepping(self.dt)
        n, u = len(inner.B), double(u)
        kind = np.result_type(A, B, u)
        P, x = np.zeros((n, n), kind), np.zeros((len(u), n), kind)
        for start in range(0, u.shape[1], PIECE):
            driven = u[:, start : start + PIECE].swapaxes(0, 1) @ B
            held = np.empty(driven.shape, kind)
            for t, entering in enumerate(driven):
                held[t] = x = inner.step(x, A) + entering
            rows = held.reshape(driven.shape[0] * driven.shape[1], n)
            P += rows.T @ rows.conj()
        return P / max(1, u.shape[0] * u.shape[1])


def _sequences(data: Any, name: str) -> Any:
    """Return checked sequences."""
    if data is None or isinstance(data, StateCovariance):
        if name == "inputs" and data is not None:
            raise InputError("inputs must be sequences; got a StateCovariance. Pass it as states.")
        return data
    array = check_array(data, name, None)
    if array.ndim not in (3, 4) or 0 in array.shape[-3:-1]:
        raise InputError(
            f"{name} must be (batch, length, signals), a bank's with the systems in front, and not empty; got "
            f"{array.shape}."
        )
    return array


def _covariance(system: Any, data: Array | StateCovariance, name: str) -> StateCovariance:
    """Return data of one system as a covariance that fits it."""
    if not isinstance(data, StateCovariance):
        if data.ndim != 3 or data.shape[2] != system.n:
            raise InputError(f"{name} must be (batch, length, {system.n}); got {data.shape}.")
        found = StateCovariance(system.n)
        found.update(data)
        data = found
    if data.systems == 1:  # a bank of one, as an adapter of a layer sums it up
        data = data[0]
    if data.systems is not None or data.n != system.n:
        raise InputError(f"{name} must be those of one system of {system.n} states; got {data!r}.")
    if data.is_complex and system.dtype.kind != "c":
        raise InputError(f"{name} of a real system must be real; got complex ones. Pass their real parts.")
    return data


def _in_part(parts: Any, coordinates: Coordinates, found: StateCovariance, dual: bool = False) -> Array:
    """Return a covariance of states of the system, or of adjoints, in the coordinates of its stable part."""
    system = parts.system
    if not system.is_diagonal:
        P = found.mean()
        out, into = parts.lift(*[np.eye(system.n - parts.kept)] * 2)
        return out.conj().T @ P @ out if dual else into @ P @ into.conj().T
    rest = parts.rest
    if not coordinates.pairs:
        return found.mean()[np.ix_(rest, rest)]
    M = found.real_mean()
    if not found.is_complex:
        M = np.pad(M, (0, system.n))
    rest = np.concatenate([rest, rest + system.n])
    return M[np.ix_(rest, rest)] * (0.5 if dual else 2.0)  # states are sqrt(2) [Re x, Im x]
