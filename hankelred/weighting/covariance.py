"""Running sums over states, for sampled balancing of data that come in batches."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..checks import Array, check_array, check_integer, check_result, check_type, double
from ..errors import InputError
from ..linalg.threads import one_blas_thread

# Numbers held in double precision at a time, 8 MiB.
PIECE = 2**20

# Sizes beyond are mistakes: sums over so many states take terabytes.
MOST = 2**20


class StateCovariance:
    """Mean of ``x x^H`` over states that come in batches, in double precision and in memory that does not grow.

    Sums are those of ``[Re x, Im x]`` where states are complex, so that conjugate pairs, and the output that is the
    real part of them, stay together.

    Parameters
    ----------
    n : int
        States, as the system stores them.
    systems : int, optional
        Systems of a bank, whose axis comes first; without it, one system.

    Attributes
    ----------
    count : int
        States seen of each system.

    Raises
    ------
    InputError
        If a size is not a positive integer.

    Examples
    --------
    >>> import numpy as np
    >>> from hankelred.weighting import StateCovariance
    >>> covariance, rng = StateCovariance(2), np.random.default_rng(0)
    >>> for _ in range(3):
    ...     covariance.update(rng.standard_normal((8, 50, 2)))  # (batch, length, n)
    >>> covariance.count, covariance.mean().shape
    (1200, (2, 2))
    """

    def __init__(self, n: int, systems: int | None = None) -> None:
        self.n = check_integer(n, "n", 1, MOST)
        self.systems = None if systems is None else check_integer(systems, "systems", 1, MOST)
        self.count = 0
        self._sums = np.zeros((*self._lead, self.n, self.n))

    @property
    def _lead(self) -> tuple[int, ...]:
        return () if self.systems is None else (self.systems,)

    @property
    def is_complex(self) -> bool:
        """Whether a complex state was seen."""
        return self._sums.shape[-1] > self.n

    def __repr__(self) -> str:
        """Return sizes and counts, not the sums."""
        systems = "" if self.systems is None else f", systems={self.systems}"
        return f"StateCovariance(n={self.n}{systems}, count={self.count})"

    def __len__(self) -> int:
        """Return the number of systems."""
        if self.systems is None:
            raise TypeError("a StateCovariance of one system has no length")
        return self.systems

    def __getitem__(self, i: int) -> StateCovariance:
        """Return that of one system of a bank."""
        if self.systems is None:
            raise InputError("Only the covariance of a bank is indexed; this one is of one system.")
        return self._copy(self._sums[check_integer(i, "The index", 0, self.systems - 1)], None)

    def _copy(self, sums: Array, systems: int | None) -> StateCovariance:
        one = StateCovariance(self.n, systems)
        one._sums, one.count = sums.copy(), self.count
        return one

    def update(self, states: ArrayLike) -> None:
        """Add states; all of them or, where they are refused, none.

        Parameters
        ----------
        states : (..., n) or (systems, ..., n) array_like
            Real or complex.

        Raises
        ------
        InputError
            If the shape does not fit, or an entry is not finite.
        NumericalError
            If a sum overflows.
        """
        x = check_array(states, "states", None, copy=False)
        lead = self._lead
        if x.ndim < 1 + len(lead) or x.shape[-1] != self.n or x.shape[: len(lead)] != lead:
            raise InputError(f"states must be {(*lead, '...', self.n)!s}; got {x.shape}.".replace("'", ""))
        x = x.reshape(*lead, -1, self.n)
        width, step = self.n, max(1, PIECE // (self.n * (self.systems or 1)))
        if x.dtype.kind == "c":
            width = 2 * self.n
        sums = np.zeros((*lead, width, width))
        with one_blas_thread(width), np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, x.shape[-2], step):
                piece = double(x[..., start : start + step, :])
                rows = np.concatenate([piece.real, piece.imag], axis=-1) if width > self.n else piece
                sums += rows.swapaxes(-1, -2) @ rows
        self._add(sums, x.shape[-2])

    def merge(self, other: StateCovariance) -> None:
        """Add what another of the same sizes has seen, such as another rank of a distributed run.

        Parameters
        ----------
        other : StateCovariance
            Left as it is.

        Raises
        ------
        InputError
            If sizes differ.
        """
        check_type(other, "other", StateCovariance)
        if (self.n, self.systems) != (other.n, other.systems):
            raise InputError(f"Covariances must have the same sizes to be merged; got {self!r} and {other!r}.")
        self._add(other._sums, other.count)

    def _add(self, sums: Array, count: int) -> None:
        width = max(sums.shape[-1], self._sums.shape[-1])
        total = _wide(self._sums, width) + _wide(sums, width)
        check_result("Sums over states", total, hint="Scale the data.")
        self._sums, self.count = total, self.count + count

    def to_dict(self) -> dict[str, Any]:
        """Return everything as integers and a copy of the sums; ranks are summed entry by entry.

        Returns
        -------
        dict
            For `from_dict`.
        """
        return {"n": self.n, "systems": self.systems, "count": self.count, "sums": self._sums.copy()}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> StateCovariance:
        """Make a covariance from what `to_dict` returned.

        Parameters
        ----------
        state : dict
            Entries of `to_dict`.

        Returns
        -------
        StateCovariance
            With the same sums.

        Raises
        ------
        InputError
            If an entry is missing, unknown or unfit.
        """
        entries = dict(check_type(state, "state", dict, "Pass what to_dict returned."))
        if set(entries) != {"n", "systems", "count", "sums"}:
            raise InputError(f"state must be what to_dict returned; got the entries {', '.join(map(repr, entries))}.")
        found = cls(entries["n"], entries["systems"])
        sums = double(check_array(entries["sums"], "sums", None))
        if sums.dtype.kind == "c" or sums.shape not in {(*found._lead, w, w) for w in (found.n, 2 * found.n)}:
            raise InputError(f"sums must be those of {found!r}; got {sums.dtype}, shape {sums.shape}.")
        found._sums, found.count = sums, check_integer(entries["count"], "count", 0)
        return found

    def mean(self) -> Array:
        """Return the mean of ``x x^H``.

        Returns
        -------
        (n, n) or (systems, n, n) ndarray
            Hermitian.

        Raises
        ------
        InputError
            If nothing was seen yet.
        """
        M, n = self.real_mean(), self.n
        if not self.is_complex:
            return M
        re, im = slice(None, n), slice(n, None)
        return M[..., re, re] + M[..., im, im] + 1j * (M[..., im, re] - M[..., re, im])

    def real_mean(self) -> Array:
        """Return the mean of ``r r^T`` with ``r = [Re x, Im x]``, or of ``x x^T`` where all states were real.

        Returns
        -------
        (2n, 2n) or (n, n) ndarray
            Symmetric; a bank's with its axis in front.

        Raises
        ------
        InputError
            If nothing was seen yet.
        """
        if self.count == 0:
            raise InputError("A covariance must have seen states; got none. Call update first.")
        return self._sums / self.count


def _wide(sums: Array, width: int) -> Array:
    """Return sums over real states as those of states with imaginary parts of zero."""
    more = width - sums.shape[-1]
    return np.pad(sums, [*[(0, 0)] * (sums.ndim - 2), (0, more), (0, more)]) if more else sums
