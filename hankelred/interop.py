"""To and from python-control, scipy.signal, tuples of matrices and files; `dt` and names come along.

Foreign objects are recognised by the names of their classes, so that nothing is imported that the caller did not
import first.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ._checks import Array, check_dt, is_discrete
from ._realisation import realise_polynomials, realise_zeros_poles
from ._system_base import Labels
from .errors import InputError
from .systems import DiagonalSystem, StateSpace

# Names in Labels and in files.
_LABELS = {"name": "system_name", "inputs": "input_names", "outputs": "output_names", "states": "state_names"}


def as_system(obj: Any) -> StateSpace | DiagonalSystem:
    """Return a linear model of another library as a system of this one.

    Parameters
    ----------
    obj : StateSpace, DiagonalSystem, tuple, or model of python-control or scipy.signal
        A system of this library is returned as it is. Tuples are ``(A, B, C, D)``, continuous as everywhere in
        scipy.signal, or ``(A, B, C, D, dt)``. Of python-control, ``StateSpace`` and ``TransferFunction`` with
        any number of inputs and outputs; of scipy.signal, ``lti`` and ``dlti`` in each of their three forms.

    Returns
    -------
    StateSpace or DiagonalSystem
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
    if isinstance(obj, (StateSpace, DiagonalSystem)):
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
        f"A system must be a StateSpace, a DiagonalSystem, a tuple (A, B, C, D) or (A, B, C, D, dt), or a linear "
        f"model of python-control or scipy.signal; got {kind}. Pass its matrices: StateSpace(A, B, C, D, dt)."
    )


def to_control(sys: Any) -> Any:
    """Return a system as a ``control.StateSpace`` with its sampling time and names.

    Parameters
    ----------
    sys : StateSpace, DiagonalSystem or anything `as_system` accepts
        Real system; a `DiagonalSystem` with real output is one. E is absorbed, ``(E^-1 A, E^-1 B, C, D)``.

    Returns
    -------
    control.StateSpace
        In double precision.

    Raises
    ------
    InputError
        If the system is complex: python-control would drop the imaginary parts.
    ImportError
        If python-control is not installed.

    Examples
    --------
    >>> import hankelred as hr
    >>> hr.to_control(hr.StateSpace([[0.5]], [[1.0]], [[1.0]], dt=True)).dt
    True
    """
    return _control(_dense(as_system(sys)))


def to_scipy(sys: Any) -> Any:
    """Return a system as a ``scipy.signal.StateSpace`` with its sampling time.

    Parameters
    ----------
    sys : StateSpace, DiagonalSystem or anything `as_system` accepts
        Real or complex system. E is absorbed, ``(E^-1 A, E^-1 B, C, D)``.

    Returns
    -------
    scipy.signal.StateSpace
        ``lti`` for ``dt=0`` and ``dlti`` otherwise, in double precision. scipy.signal has no names for inputs,
        outputs and states.

    Examples
    --------
    >>> import hankelred as hr
    >>> hr.to_scipy(hr.StateSpace([[0.5]], [[1.0]], [[1.0]], dt=0.1)).dt
    0.1
    """
    return _scipy(_dense(as_system(sys)))


def as_container(system: StateSpace | DiagonalSystem, like: Any) -> Any:
    """Return a reduced system in the class of the model it came from.

    Parameters
    ----------
    system : StateSpace or DiagonalSystem
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
    if isinstance(like, (StateSpace, DiagonalSystem)):
        return system
    G = _dense(system, labels=replace(system.labels, states=None))
    if isinstance(like, tuple):
        return (*(np.array(x) for x in (G.A, G.B, G.C, G.D)), G.dt)[: len(like)]
    if _is_a(like, "control", "StateSpace", "TransferFunction"):
        converted = _control(G)
        if like.dt is None:  # it has no states and did not say whether it is continuous
            converted.dt = None
        return converted
    return _scipy(G)


def load_system(path: str | os.PathLike[str], dt: Any = None) -> StateSpace | DiagonalSystem:
    """Read a system from a file.

    Parameters
    ----------
    path : path
        ``.npz``, or ``.mat`` up to version 7, with the matrices A, B, C and, where they are there, D and E;
        matrices of a ``.mat`` file may be sparse. A ``.npz`` with lam (or rates) in place of A holds a
        `DiagonalSystem`.
    dt : float or bool, optional
        Sampling time in seconds, 0 for continuous, True for an unspecified one; for files that do not say it
        themselves, as most collections of ``.mat`` benchmarks do not. In a ``.mat`` file -1 stands for True, as
        in MATLAB.

    Returns
    -------
    StateSpace or DiagonalSystem
        With the names that `save_system` wrote.

    Raises
    ------
    InputError
        If the file cannot be read, lacks a matrix, or neither it nor the caller gives `dt`, or both do and
        disagree.
    OSError
        If there is no such file.

    Examples
    --------
    >>> import os, tempfile, hankelred as hr
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "lag.npz")
    ...     hr.save_system(hr.StateSpace([[0.5]], [[1.0]], [[1.0]], dt=True), path)
    ...     hr.load_system(path).dt
    True
    """
    path = Path(path)
    read = {".npz": _read_npz, ".mat": _read_mat}[check_suffix(path)]
    with open(path, "rb") as file:
        try:
            entries = read(file)
        except NotImplementedError as error:  # version 7.3, an HDF5 file
            raise InputError(f'{path} has MATLAB\'s version 7.3; save it with save(..., "-v7"). ({error})') from error
        except (ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{path} cannot be read as a {path.suffix} file. ({error})") from error
    stored = entries.pop("dt", None)
    if stored is None and dt is None:
        raise InputError(
            f"{path} does not say its sampling time; got no entry dt. Pass dt to load_system (--dt on the command "
            f"line): 0 for a continuous system, the seconds of a discrete one, or True if those are unknown."
        )
    if stored is not None and dt is not None and not _same_dt(stored, dt):
        raise InputError(f"dt must be that of the file; got dt={dt} and {path} with dt={stored}. Leave dt out.")
    return _from_entries(entries, dt if stored is None else stored, path)


def save_system(sys: Any, path: str | os.PathLike[str]) -> None:
    """Write a system to a file, which appears under its name only when it is complete.

    Parameters
    ----------
    sys : StateSpace, DiagonalSystem or anything `as_system` accepts
        System to save.
    path : path
        ``.npz`` keeps everything; ``.mat`` (version 5, keys A B C D, E where there is one, and dt) takes a
        `StateSpace`, with -1 for ``dt=True``, as in MATLAB.

    Raises
    ------
    InputError
        If the suffix is another one, or a `DiagonalSystem` is to go into a ``.mat`` file.

    Examples
    --------
    >>> import os, tempfile, hankelred as hr
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     hr.save_system(hr.StateSpace([[-2.0]], [[1.0]], [[1.0]]), os.path.join(folder, "lag.mat"))
    ...     os.listdir(folder)
    ['lag.mat']
    """
    path, system = Path(path), as_system(sys)
    suffix = check_suffix(path)
    entries: dict[str, Any] = {"dt": system.dt, **_named_matrices(system)}
    if suffix == ".mat":
        if isinstance(system, DiagonalSystem):
            raise InputError(
                f"A .mat file holds A, B, C and D; got a DiagonalSystem for {path}. "
                f"Save it as .npz, or save system.to_state_space()."
            )
        entries["dt"] = -1.0 if system.dt is True else float(system.dt)
    entries |= {_LABELS[key]: names for key, names in _given(system.labels).items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            if suffix == ".npz":
                np.savez(file, **entries)
            else:
                _write_mat(file, entries)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_suffix(path: str | os.PathLike[str]) -> str:
    """Return the suffix of a path if `save_system` can write such a file."""
    suffix = Path(path).suffix
    if suffix not in (".npz", ".mat"):
        raise InputError(f"A file of a system must end in .npz or .mat; got {path}. Rename it.")
    return suffix


def _is_a(obj: Any, package: str, *names: str) -> bool:
    """Tell whether obj is of a class of these names from that package, or of one derived from it."""
    return any(c.__name__ in names and f"{c.__module__}.".startswith(f"{package}.") for c in type(obj).__mro__)


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
        states = _named(model.state_labels)
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
    labels = Labels(model.name, _named(model.input_labels), _named(model.output_labels), states)
    return StateSpace(A, B, C, D, dt, labels=labels)


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


def _dense(system: StateSpace | DiagonalSystem, labels: Labels | None = None) -> StateSpace:
    """Return the system as A, B, C, D in double precision, E absorbed."""
    G = system.to_state_space() if isinstance(system, DiagonalSystem) else system.standard()
    return G if labels is None else StateSpace(G.A, G.B, G.C, G.D, G.dt, labels=labels)


def _control(G: StateSpace) -> Any:
    """Return a ``control.StateSpace`` of a system without E."""
    try:
        import control
    except ImportError as error:
        raise ImportError(
            "to_control needs python-control, which is not installed. Run: pip install 'hankelred[control]'"
        ) from error
    for name, x in (("A", G.A), ("B", G.B), ("C", G.C), ("D", G.D)):
        if np.any(x.imag != 0):
            raise InputError(
                f"A system must be real for python-control; got {name} with imaginary parts up to "
                f"{np.abs(x.imag).max():.3g}, which it would drop. Use to_scipy, which keeps them."
            )
    matrices = (x.real for x in (G.A, G.B, G.C, G.D))  # it copies them
    return control.StateSpace(*matrices, G.dt, remove_useless_states=False, **_given(G.labels))


def _scipy(G: StateSpace) -> Any:
    """Return a ``scipy.signal.StateSpace`` of a system without E."""
    import scipy.signal  # takes half a second, and most programs never come here

    time = {"dt": G.dt} if G.is_discrete else {}
    return scipy.signal.StateSpace(*(np.array(x) for x in (G.A, G.B, G.C, G.D)), **time)


def _given(labels: Labels) -> dict[str, str | list[str]]:
    """Return the names there are, by what they name."""
    names = {key: getattr(labels, key) for key in _LABELS}
    return {key: value if key == "name" else list(value) for key, value in names.items() if value}


def _named_matrices(system: StateSpace | DiagonalSystem) -> dict[str, Any]:
    """Return what a file holds besides dt and names; of rates and lam only the rates, which determine lam."""
    if isinstance(system, StateSpace):
        E = {} if system.E is None else {"E": system.E}
        return {"A": system.A, "B": system.B, "C": system.C, "D": system.D, **E}
    diagonal = {"lam": system.lam} if system.rates is None else {"rates": system.rates}
    return {**diagonal, "B": system.B, "C": system.C, "D": system.D, "output": system.output}


def _read_npz(file: Any) -> dict[str, Any]:
    archive = np.load(file, allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError("it holds one array without a name")
    with archive:
        entries = dict(archive)
    if "dt" in entries:
        entries["dt"] = entries["dt"].item()  # bool, int and float stay what they are
    return entries


def _read_mat(file: Any) -> dict[str, Any]:
    import scipy.io

    raw = scipy.io.loadmat(file)
    entries = {key: x.toarray() if hasattr(x, "toarray") else x for key, x in raw.items() if not key.startswith("__")}
    if "dt" in entries:
        file.seek(0)  # once more, as MATLAB has it: a logical true is not the number 1 (for matrices it would cost
        dt = scipy.io.loadmat(file, variable_names=("dt",), mat_dtype=True)["dt"].item()  # their imaginary parts)
        entries["dt"] = True if dt == -1 else dt
    if "D" in entries and not entries["D"].any():  # [], and a scalar 0 for a zero matrix
        del entries["D"]
    if "E" in entries and entries["E"].size == 0:
        del entries["E"]
    return entries


def _write_mat(file: Any, entries: dict[str, Any]) -> None:
    import scipy.io

    cells = {key: np.array(value, dtype=object) for key, value in entries.items() if isinstance(value, list)}
    scipy.io.savemat(file, {**entries, **cells})


def _from_entries(entries: Mapping[str, Any], dt: Any, path: Path) -> StateSpace | DiagonalSystem:
    """Build the system that the entries of a file describe."""
    state_matrix = next((key for key in ("rates", "lam", "A") if key in entries), "A")
    missing = [key for key in (state_matrix, "B", "C") if key not in entries]
    if missing:
        raise InputError(
            f"{path} must hold A, B and C; got {', '.join(entries) or 'nothing'}, without {' and '.join(missing)}. "
            f"Rename the matrices in the file."
        )
    names = {key: _strings(entries.get(label)) for key, label in _LABELS.items()}
    labels = Labels(
        names["name"][0] if names["name"] else None, *(_named(names[key]) for key in _LABELS if key != "name")
    )
    B, C, D = entries["B"], entries["C"], entries.get("D")
    if state_matrix == "A":
        return StateSpace(entries["A"], B, C, D, dt, entries.get("E"), labels=labels)
    output: Any = str(entries.get("output", "complex"))
    build = DiagonalSystem.from_rates if state_matrix == "rates" else DiagonalSystem
    return build(entries[state_matrix], B, C, D, dt=check_dt(dt), output=output, labels=labels)


def _strings(entry: Array | None) -> list[str]:
    """Return the strings of an array or of a cell array."""
    return [] if entry is None else ["".join(np.ravel(x)) for x in np.ravel(entry)]


def _same_dt(one: Any, other: Any) -> bool:
    return one is other or (one is not True and other is not True and one == other)


def _named(names: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return names as a tuple, None if there are none."""
    return tuple(names) if names else None
