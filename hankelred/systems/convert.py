"""To and from python-control, scipy.signal and tuples of matrices; `dt` and names come along.

Foreign objects are recognised by the names of their classes, so that nothing is imported that the caller did not
import first.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ..checks import check_dt, is_discrete
from ..errors import InputError
from .base import LinearSystem
from .state_space import StateSpace
from .transfer import realise_polynomials, realise_zeros_poles


def as_system(obj: Any) -> Any:
    """Return a linear model of another library as a system of this one.

    Parameters
    ----------
    obj : StateSpace, DiagonalSystem, DiagonalBank, tuple, or model of python-control or scipy.signal
        A system of this library is returned as it is. Tuples are ``(A, B, C, D)``, continuous as everywhere in
        scipy.signal, or ``(A, B, C, D, dt)``. Of python-control, ``StateSpace`` and ``TransferFunction`` with
        any number of inputs and outputs; of scipy.signal, ``lti`` and ``dlti`` in each of their three forms.

    Returns
    -------
    StateSpace, DiagonalSystem or DiagonalBank
        With the sampling time and, from python-control, the names of `obj`. scipy's ``dt=None`` means
        continuous and becomes 0; python-control's ``dt=None`` (unspecified) is accepted without states only,
        where it makes no difference.

    Raises
    ------
    InputError
        If `obj` is none of these, is improper, or does not say whether it is continuous or discrete.

    Notes
    -----
    Poles and zeros are realised as a cascade and never multiplied out. A table of transfer functions becomes one
    block for each column (or row) and denominator in it, which need not be minimal: reduction removes the surplus
    states, except unstable ones.

    Examples
    --------
    >>> import scipy.signal, hankelred as hr
    >>> hr.as_system(scipy.signal.dlti([1.0], [1.0, -0.5], dt=0.1)).dt
    0.1
    """
    if isinstance(obj, LinearSystem):
        return obj
    if isinstance(obj, tuple):
        return _from_tuple(obj)
    if _is_a(obj, "control", "StateSpace", "TransferFunction"):
        return _from_control(obj)
    if _is_a(obj, "scipy.signal", "StateSpace", "TransferFunction", "ZerosPolesGain"):
        return _from_scipy(obj)
    kind = f"{type(obj).__module__}.{type(obj).__qualname__}"
    if _is_a(obj, "control", "InputOutputSystem"):
        raise InputError(
            f"A system must be given by finitely many states; got {kind}, which has no matrices. "
            f"Linearise a nonlinear system (control.linearize), and fit a model to response data first."
        )
    raise InputError(
        f"A system must be a StateSpace, a DiagonalSystem, a DiagonalBank, a tuple (A, B, C, D) or (A, B, C, D, dt), "
        f"or a linear model of python-control or scipy.signal; got {kind}. Pass StateSpace(A, B, C, D, dt)."
    )


def one_system(obj: Any, name: str = "sys") -> Any:
    """Return a linear model as a single system of this library."""
    try:
        system = as_system(obj)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    if system.is_bank:
        raise InputError(f"{name} must be one system; got a bank of {len(system)}. Pass bank[i].")
    return system


def as_container(system: LinearSystem, like: Any) -> Any:
    """Return a reduced system in the class of the model it came from.

    Parameters
    ----------
    system : StateSpace, DiagonalSystem or DiagonalBank
        System to hand back.
    like : object
        Anything `as_system` accepts.

    Returns
    -------
    object
        `system` itself if `like` is a system of this library, a tuple of as many parts as `like`, a
        ``control.StateSpace`` for both classes of python-control, a ``scipy.signal.StateSpace`` for all forms of
        scipy.signal. Names of states are left out: the states are new ones.
    """
    if isinstance(like, LinearSystem):
        return system
    G = system.dense()
    if isinstance(like, tuple):
        return (*(np.array(x) for x in (G.A, G.B, G.C, G.D)), G.dt)[: len(like)]
    if _is_a(like, "control", "StateSpace", "TransferFunction"):
        model = control_model(G)
        if like.dt is None:  # it has no states and did not say whether it is continuous
            model.dt = None
        return model
    return scipy_model(G)


def control_model(G: StateSpace) -> Any:
    """Return a ``control.StateSpace`` of a system in double precision without E."""
    try:
        import control
    except ImportError as error:
        raise ImportError(
            "to_control needs python-control, which is not installed. Run: pip install 'hankelred[control]'"
        ) from error
    matrices = (G.A, G.B, G.C, G.D)
    if 0 in (G.m, G.p):
        raise InputError(
            f"A system for python-control must have inputs and outputs; got {G!r}. Use to_scipy, which can do without."
        )
    if G.dtype.kind == "c":
        for name, x in zip("ABCD", matrices, strict=True):
            if np.any(x.imag != 0):
                raise InputError(
                    f"A system must be real for python-control; got {name} with imaginary parts up to "
                    f"{np.abs(x.imag).max():.3g}, which it would drop. Use to_scipy, which keeps them."
                )
    names: dict[str, Any] = {key: list(value) for key in ("inputs", "outputs", "states") if (value := getattr(G, key))}
    names |= {"name": G.name} if G.name else {}
    real = (x.real for x in matrices)  # it copies them
    return control.StateSpace(*real, G.dt, remove_useless_states=False, **names)


def scipy_model(G: StateSpace) -> Any:
    """Return a ``scipy.signal.StateSpace`` of a system in double precision without E."""
    import scipy.signal  # takes half a second, and most programs never come here

    time = {"dt": G.dt} if G.is_discrete else {}
    return scipy.signal.StateSpace(*(np.array(x) for x in (G.A, G.B, G.C, G.D)), **time)


def _is_a(obj: Any, package: str, *names: str) -> bool:
    """Tell whether obj is of a class of these names from that package, or of one derived from it."""
    kind: Any = type(obj)
    return _is_one_of(kind, package, names)


@cache
def _is_one_of(kind: type, package: str, names: tuple[str, ...]) -> bool:
    return any(c.__name__ in names and f"{c.__module__}.".startswith(f"{package}.") for c in kind.__mro__)


def _from_tuple(parts: tuple[Any, ...]) -> StateSpace:
    if len(parts) in (4, 5):
        return StateSpace(*parts)
    hint = {2: " For (num, den) pass scipy.signal.lti(num, den).", 3: " For (z, p, k) pass scipy.signal.lti(z, p, k)."}
    raise InputError(
        f"A tuple must be (A, B, C, D) or (A, B, C, D, dt); got {len(parts)} parts.{hint.get(len(parts), '')}"
    )


def _from_control(model: Any) -> StateSpace:
    if _is_a(model, "control", "StateSpace"):
        A, B, C, D = model.A, model.B, model.C, model.D
        states = model.state_labels or None
    else:
        A, B, C, D = realise_polynomials(model.num, model.den)
        states = None
    dt = model.dt
    if dt is None:
        if len(A) > 0:
            raise InputError(
                f"A model with states must be continuous or discrete; got {model.name} with {len(A)} states and "
                f"dt=None. Set its dt to 0, to the sampling time in seconds, or to True if that is unknown."
            )
        dt = 0
    inputs, outputs = model.input_labels or None, model.output_labels or None
    return StateSpace(A, B, C, D, dt, name=model.name, inputs=inputs, outputs=outputs, states=states)


def _from_scipy(model: Any) -> StateSpace:
    if model.dt is None and _is_a(model, "scipy.signal", "dlti"):
        raise InputError("A dlti must have a dt; got None. Pass dt=True if the sampling time is unknown.")
    dt = 0 if model.dt is None else check_dt(model.dt)
    if _is_a(model, "scipy.signal", "StateSpace"):
        return StateSpace(model.A, model.B, model.C, model.D, dt)
    if _is_a(model, "scipy.signal", "ZerosPolesGain"):
        return StateSpace(*realise_zeros_poles(model.zeros, model.poles, model.gain, is_discrete(dt)), dt)
    num = np.atleast_2d(model.num)  # a row for each output, over one denominator
    return StateSpace(*realise_polynomials([[row] for row in num], [[model.den]] * len(num)), dt)
