"""Systems go through files without losing digits, `dt` or names; no file, however damaged, does more than an error."""

from __future__ import annotations

import io
import os
import stat
import struct
import threading
import zipfile
import zlib
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import scipy.signal
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from sizes import is_long, sample

import hankelred as hr
from hankelred.errors import InputError
from hankelred.systems import entries, mat_file
from hankelred.systems.files import write_atomically

EVERY_DT = pytest.mark.parametrize("dt", [0, 0.1, True])
EVERY_KIND = pytest.mark.parametrize("kind", [".npz", ".mat", ""])
BENCHMARKS = Path(os.environ.get("HANKELRED_DATA", Path(__file__).parents[2] / "shared" / "data")) / "mor"
NAMES = {"name": "plant", "inputs": ("force", "heat"), "outputs": ("speed",), "states": ("x1", "x2", "x3")}
# What spreadsheets, terminals and encodings stumble over.
HARD_NAMES = {"name": 'a "b", c', "inputs": ("größe,ψ", "\n"), "outputs": ("😀",), "states": ("", " x ", "names")}


def random_system(seed, n=3, m=2, p=1, dt=0, dtype=float, names=None, E=False):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        x = rng.standard_normal(shape)
        return (x + 1j * rng.standard_normal(shape) if np.dtype(dtype).kind == "c" else x).astype(dtype)

    descriptor = np.eye(n, dtype=dtype) + 0.1 * draw(n, n) if E else None
    return hr.StateSpace(draw(n, n), draw(n, m), draw(p, n), draw(p, m), dt, descriptor, **(names or {}))


def random_diagonal(seed, output="real", rates=False, names=None):
    rng = np.random.default_rng(seed)
    z, B, C = (rng.standard_normal(s) + 1j * rng.standard_normal(s) for s in ((3,), (3, 2), (1, 3)))
    build = hr.DiagonalSystem.from_rates if rates else hr.DiagonalSystem
    poles = -np.abs(z.real) + 1j * z.imag
    return build(poles, B, C, rng.standard_normal((1, 2)), dt=True, output=output, **(names or {}))


def names_of(system):
    return {key: getattr(system, key) for key in NAMES}


def assert_same(G, H):
    """Two systems agree in every bit, in dtype, dt and names."""
    assert type(G) is type(H)
    for name in ("A", "E") if isinstance(G, hr.StateSpace) else ("lam", "rates", "output"):
        assert (getattr(G, name) is None) == (getattr(H, name) is None)
    for name in ("A", "B", "C", "D", "E", "lam", "rates"):
        a, b = getattr(G, name, None), getattr(H, name, None)
        if a is not None:
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(np.signbit(a.real), np.signbit(b.real))
    assert (G.dt, type(G.dt)) == (H.dt, type(H.dt))
    assert names_of(G) == names_of(H)
    assert getattr(G, "output", None) == getattr(H, "output", None)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


# There and back


@EVERY_KIND
@EVERY_DT
@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_a_state_space_survives_a_file(tmp_path, kind, dt, dtype):
    G = random_system(12, dt=dt if dt is True else float(dt), dtype=dtype, names=NAMES, E=True)
    hr.save_system(G, tmp_path / f"plant{kind}")
    assert_same(hr.load_system(tmp_path / f"plant{kind}"), G)


@pytest.mark.parametrize("kind", [".npz", ".mat"])
def test_single_precision_survives_a_file(tmp_path, kind):
    G = random_system(12, dt=0.0, dtype=np.float32)
    hr.save_system(G, tmp_path / f"plant{kind}")
    assert_same(hr.load_system(tmp_path / f"plant{kind}"), G)


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
def test_single_precision_keeps_its_values_in_a_folder(tmp_path, dtype):
    G = random_system(12, dtype=dtype)
    hr.save_system(G, tmp_path / "plant")
    np.testing.assert_array_equal(hr.load_system(tmp_path / "plant").A, G.A)


@EVERY_KIND
@pytest.mark.parametrize("value", [5e-324, 1.7976931348623157e308, 0.1, -0.0, 1 / 3, 2**53 + 2.0])
def test_every_bit_of_an_entry_survives_a_file(tmp_path, kind, value):
    G = hr.StateSpace([[value, value * 1j]] * 2, [[1.0]] * 2, [[1.0, value]], dt=0.5)
    hr.save_system(G, tmp_path / f"plant{kind}")
    assert_same(hr.load_system(tmp_path / f"plant{kind}"), G)


@pytest.mark.parametrize("rates", [False, True])
@pytest.mark.parametrize("output", ["real", "complex"])
def test_a_diagonal_system_survives_a_file(tmp_path, output, rates):
    G = random_diagonal(13, output=output, rates=rates, names=NAMES)
    hr.save_system(G, tmp_path / "layer.npz")
    assert_same(hr.load_system(tmp_path / "layer.npz"), G)


@EVERY_KIND
@pytest.mark.parametrize("dt", [True, 1.0])
def test_a_file_tells_an_unspecified_time_from_one_second(tmp_path, kind, dt):
    hr.save_system(random_system(14, dt=dt), tmp_path / f"plant{kind}")
    assert isinstance(hr.load_system(tmp_path / f"plant{kind}").dt, bool) == (dt is True)


@EVERY_KIND
@pytest.mark.parametrize(("n", "m", "p"), [(0, 2, 1), (1, 1, 1), (3, 1, 4), (3, 0, 2), (3, 2, 0), (0, 0, 0)])
def test_every_shape_survives_a_file(tmp_path, kind, n, m, p):
    G = random_system(15, n, m, p, dt=0.5)
    hr.save_system(G, tmp_path / f"plant{kind}")
    assert_same(hr.load_system(tmp_path / f"plant{kind}"), G)


@EVERY_KIND
def test_hard_names_survive_a_file(tmp_path, kind):
    G = random_system(16, dt=0.5, names=HARD_NAMES)
    hr.save_system(G, tmp_path / f"plant{kind}")
    assert_same(hr.load_system(tmp_path / f"plant{kind}"), G)


@settings(max_examples=25 if is_long() else 5)
@given(st.text(max_size=8), st.lists(st.text(max_size=8), min_size=2, max_size=2))
def test_every_name_that_can_be_saved_is_read_again(tmp_path_factory, name, inputs):
    folder = tmp_path_factory.mktemp("names")
    G = random_system(17, dt=0.5, names={"name": name, "inputs": tuple(inputs)})
    for kind in (".npz", ".mat", ""):
        try:
            hr.save_system(G, folder / f"plant{kind}")
        except InputError as error:
            assert "null characters" in str(error)  # noqa: PT017
            assert "\0" in f"{name}{inputs}" or any("\ud800" <= x < "\ue000" for x in f"{name}{''.join(inputs)}")
        else:
            assert_same(hr.load_system(folder / f"plant{kind}"), G)


@EVERY_KIND
@pytest.mark.parametrize("dt", [Fraction(1, 2), np.float32(0.1), np.int64(2), 2**100])
def test_every_kind_of_number_of_seconds_survives_a_file(tmp_path, kind, dt):
    hr.save_system(random_system(18, dt=dt), tmp_path / f"plant{kind}")
    assert hr.load_system(tmp_path / f"plant{kind}").dt == dt


def test_models_of_other_libraries_are_saved_too(tmp_path):
    hr.save_system(scipy.signal.dlti([1.0], [1.0, 0.5], dt=0.1), tmp_path / "lag.npz")
    assert hr.load_system(tmp_path / "lag.npz").dt == 0.1


# What is not written


@EVERY_KIND
@pytest.mark.parametrize(
    "names", [{"inputs": ("a",)}, {"inputs": (1, 2)}, {"name": 3}, {"states": ("a\0", "b", "c")}, {"name": "\ud800"}]
)
def test_names_that_could_not_be_read_are_not_written(tmp_path, kind, names):
    with pytest.raises(InputError, match="name"):
        hr.save_system(random_system(19, names=names), tmp_path / f"plant{kind}")
    assert os.listdir(tmp_path) == []


def test_a_time_too_small_for_a_double_is_not_written(tmp_path):
    with pytest.raises(InputError, match="another unit of time"):
        hr.save_system(random_system(19, dt=Fraction(1, 10**400)), tmp_path / "plant.npz")


@pytest.mark.parametrize("name", ["layer.mat", "layer"])
def test_a_diagonal_system_fits_into_npz_only(tmp_path, name):
    with pytest.raises(InputError, match=r"Save it as \.npz, or save system\.dense"):
        hr.save_system(random_diagonal(16), tmp_path / name)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("m", "p"), [(2, 0), (0, 2)])
def test_sizes_that_a_folder_could_not_tell_are_not_written(tmp_path, m, p):
    with pytest.raises(InputError, match=r"Save it as \.npz"):
        hr.save_system(random_system(15, 0, m, p), tmp_path / "plant")


@pytest.mark.parametrize("name", ["plant.txt", "plant.h5", "plant.csv"])
def test_another_suffix_is_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"\.npz or \.mat, or be a folder"):
        hr.save_system(random_system(17), tmp_path / name)


@pytest.mark.parametrize("path", ["", 3, None, b"plant.npz", "a\0.npz"])
def test_what_is_no_path_is_refused(path):
    for use in (hr.load_system, lambda path: hr.save_system(random_system(17), path)):
        with pytest.raises(InputError, match="path must be"):
            use(path)


# Time, and what MATLAB writes


def benchmark_file(path, **more):
    """Write a file as the collections of benchmark models have them: sparse, no D, no dt."""
    A = scipy.sparse.csc_matrix(np.diag([-1.0, -2.0]))
    scipy.io.savemat(path, {"A": A, "B": scipy.sparse.csc_matrix([[1.0], [0.0]]), "C": np.array([[1.0, 1.0]]), **more})


def test_a_file_that_does_not_say_its_time_is_refused(tmp_path):
    benchmark_file(tmp_path / "iss.mat")
    with pytest.raises(InputError, match="--dt on the command line"):
        hr.load_system(tmp_path / "iss.mat")


@EVERY_DT
def test_the_time_of_a_silent_file_can_be_given(tmp_path, dt):
    benchmark_file(tmp_path / "iss.mat")
    system = hr.load_system(tmp_path / "iss.mat", dt=dt)
    assert (system.dt, system.A.tolist(), system.D.tolist()) == (dt, [[-1.0, 0.0], [0.0, -2.0]], [[0.0]])


@pytest.mark.parametrize("dt", [False, 1j, -1.0, np.nan, "0.1", [0.1]])
def test_a_time_that_is_none_is_refused(tmp_path, dt):
    benchmark_file(tmp_path / "iss.mat", dt=0)  # which equals False
    with pytest.raises(InputError, match="dt must"):
        hr.load_system(tmp_path / "iss.mat", dt=dt)


@pytest.mark.parametrize("dt", [False, 1j, 0.1 + 0j, -2.0, np.nan, "0.1", [0.1, 0.1], np.empty((0, 0))])
@pytest.mark.parametrize("kind", [".npz", ".mat"])
def test_a_time_in_a_file_that_is_none_is_refused(tmp_path, kind, dt):
    write = np.savez if kind == ".npz" else lambda path, **entries: scipy.io.savemat(path, entries)
    write(tmp_path / f"p{kind}", A=[[-1.0]], B=[[1.0]], C=[[1.0]], dt=dt)
    with pytest.raises(InputError, match=rf"p{kind} cannot be loaded: dt must"):
        hr.load_system(tmp_path / f"p{kind}")


@pytest.mark.parametrize("given", [1.0, 0, True])
def test_the_time_given_must_be_that_of_the_file(tmp_path, given):
    benchmark_file(tmp_path / "plant.mat", dt=0.1)
    with pytest.raises(InputError, match=rf"dt={given} and a file with dt=0\.1"):
        hr.load_system(tmp_path / "plant.mat", dt=given)


def test_the_time_of_the_file_may_be_repeated(tmp_path):
    benchmark_file(tmp_path / "plant.mat", dt=0.1)
    assert hr.load_system(tmp_path / "plant.mat", dt=0.1).dt == 0.1


@pytest.mark.parametrize("key", ["dt", "Ts"])
@pytest.mark.parametrize(("stored", "dt"), [(-1.0, True), (True, True), (0, 0), (0.25, 0.25), (np.uint8(1), 1)])
def test_the_time_is_read_as_matlab_writes_it(tmp_path, key, stored, dt):
    benchmark_file(tmp_path / "plant.mat", **{key: stored})
    loaded = hr.load_system(tmp_path / "plant.mat").dt
    assert (loaded, loaded is True) == (dt, dt is True)


def test_two_times_must_agree(tmp_path):
    benchmark_file(tmp_path / "plant.mat", dt=1.0, Ts=-1.0)
    with pytest.raises(InputError, match=r"Ts=True and dt=1\.0"):
        hr.load_system(tmp_path / "plant.mat")


@pytest.mark.parametrize("D", [0.0, np.empty((0, 0)), scipy.sparse.csc_matrix((1, 1))])
def test_a_mat_file_may_write_a_zero_D_short(tmp_path, D):
    scipy.io.savemat(tmp_path / "p.mat", {"A": [[-1.0]], "B": [[1.0, 2.0]], "C": [[1.0]], "D": D, "dt": 0})
    assert hr.load_system(tmp_path / "p.mat").D.tolist() == [[0.0, 0.0]]


def test_a_zero_D_of_a_wrong_shape_is_refused(tmp_path):
    benchmark_file(tmp_path / "p.mat", D=np.zeros((3, 3)), dt=0)
    with pytest.raises(InputError, match="D must be"):
        hr.load_system(tmp_path / "p.mat")


def test_an_empty_E_in_a_mat_file_is_none(tmp_path):
    benchmark_file(tmp_path / "plant.mat", dt=0.1, E=np.empty((0, 0)))
    assert hr.load_system(tmp_path / "plant.mat").E is None


def structure(**more):
    """Return what MATLAB's ``get(sys)`` has, in part."""
    G = random_system(20, names=NAMES)
    fields = {"A": G.A, "B": G.B, "C": G.C, "D": G.D, "E": np.empty((0, 0)), "Scaled": False, "Ts": 0.5}
    cells = {"InputName": NAMES["inputs"], "OutputName": [""], "StateName": ["", "", ""], "InputUnit": ["N", "W"]}
    fields |= {key: np.array(names, dtype=object)[:, None] for key, names in cells.items()}
    delays = {"InputDelay": np.zeros((2, 1)), "OutputDelay": 0.0, "InternalDelay": np.empty((0, 1))}
    return G, {**fields, **delays, "TimeUnit": "seconds", "Name": "plant", "Notes": {}, "UserData": [], **more}


@pytest.mark.parametrize("compressed", [False, True])
def test_a_structure_of_matlab_is_read(tmp_path, compressed):
    G, fields = structure()
    variables = {"s": fields, "other": {"A": 1.0}, "t": np.arange(5.0)}
    scipy.io.savemat(tmp_path / "p.mat", variables, do_compression=compressed)
    loaded = hr.load_system(tmp_path / "p.mat")
    for key in "ABCD":
        np.testing.assert_array_equal(getattr(loaded, key), getattr(G, key))
    assert (loaded.dt, loaded.E) == (0.5, None)
    expected = {"name": "plant", "inputs": NAMES["inputs"], "outputs": None, "states": None}
    assert names_of(loaded) == expected


def test_a_structure_with_small_letters_is_read(tmp_path):
    scipy.io.savemat(tmp_path / "p.mat", {"s": {"a": -1.0, "b": 2.0, "c": 3.0, "d": 4.0, "e": 5.0, "Ts": -1.0}})
    loaded = hr.load_system(tmp_path / "p.mat")
    assert [getattr(loaded, key).item() for key in "ABCDE"] == [-1, 2, 3, 4, 5]
    assert loaded.dt is True


@pytest.mark.parametrize("small", [False, True])
def test_variables_are_named_by_capitals_or_by_small_letters(tmp_path, small):
    letters = "abcde" if small else "ABCDE"
    scipy.io.savemat(tmp_path / "p.mat", dict(zip(letters, [-1.0, 2.0, 3.0, 4.0, 5.0], strict=True)))
    loaded = hr.load_system(tmp_path / "p.mat", dt=0)
    assert [getattr(loaded, key).item() for key in "ABCDE"] == [-1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"A": -1.0, "B": 1.0, "C": 1.0, "a": -2.0}, "capitals or by small letters; got A, B, C and a"),
        ({"A": -1.0, "b": 1.0, "C": 1.0}, "got A, C and b"),
        ({"s": structure()[1], "t": structure()[1]}, "one system; got s, t"),
        ({"s": structure()[1], "A": -1.0}, "one system; got s, A"),
        ({"A": -1.0, "C": 1.0, "x": 1.0}, "got A, C, x, without B"),
        ({"x": 1.0}, "got x, without A and B and C"),
        ({"A": "one", "B": 1.0, "C": 1.0}, "A must be a matrix of numbers"),
        ({"A": {"x": 1}, "B": 1.0, "C": 1.0}, "A must hold numbers or texts"),
        ({"A": np.zeros((2, 2, 2)), "B": 1.0, "C": 1.0}, "A must have 2 axes"),
        ({"A": np.nan, "B": 1.0, "C": 1.0}, "A must be finite"),
        ({"A": -1.0, "B": 1.0, "C": 1.0, "input_names": 3.0}, "input_names must hold text"),
        ({"A": -1.0, "B": 1.0, "C": 1.0, "input_names": ["a", "b"]}, "inputs must be a sequence of 1 names; got 2"),
        ({"s": structure(InputDelay=np.array([0.0, 0.3]))[1]}, "no delays; got InputDelay"),
        ({"s": structure(TimeUnit="hours")[1]}, "TimeUnit=.'hours'"),
    ],
)
def test_what_is_no_single_system_is_refused_with_the_reason(tmp_path, variables, message):
    scipy.io.savemat(tmp_path / "p.mat", variables)
    with pytest.raises(InputError, match=rf"p\.mat cannot be loaded: .*{message}"):
        hr.load_system(tmp_path / "p.mat", dt=0.5 if "s" in variables else 0)


def element(kind, data):
    return struct.pack("<2I", kind, len(data)) + data + bytes(-len(data) % 8)


def header(text=b"MATLAB 5.0 MAT-file"):
    return text.ljust(116) + bytes(8) + b"\x00\x01IM"


def test_an_object_of_matlab_is_refused_with_what_to_do(tmp_path):
    parts = [struct.pack("<2I", 6, 8), struct.pack("<2I", 17, 0)]
    body = b"".join(parts) + element(1, b"plant") + element(1, b"MCOS") + element(1, b"ss") + element(14, b"")
    (tmp_path / "p.mat").write_bytes(header() + element(14, body))
    with pytest.raises(InputError, match=r"got plant of class ss\. There, run \[A,B,C,D,Ts\] = ssdata\(plant\)"):
        hr.load_system(tmp_path / "p.mat")


def assert_read_as_scipy_reads(path):
    wanted = {key for key, *_ in scipy.io.whosmat(path)}
    with open(path, "rb") as file:
        ours = mat_file.read_mat(file, wanted, set()).values
    theirs = {key: x for key, x in scipy.io.loadmat(path, mat_dtype=False).items() if not key.startswith("__")}
    for key, x in theirs.items():
        if isinstance(x, np.ndarray) and x.dtype.kind == "U":
            assert ours[key] == [str(row).rstrip(" ") for row in x]  # blanks make rows equally long
        elif isinstance(x, np.ndarray) and x.dtype.kind == "O":
            assert ours[key] == ["".join(cell) for cell in x.ravel(order="F")]
        else:
            a, b = (y.toarray() if hasattr(y, "toarray") else y for y in (ours[key], x))
            np.testing.assert_array_equal(a, b)


VARIABLES = {
    "small": np.arange(2.0),
    "f": np.random.default_rng(0).standard_normal((3, 4)),
    "z": np.arange(6).reshape(2, 3) * (1 + 2j),
    "single": np.float32([[0.1, 0.2]]),
    "zsingle": np.complex64([[0.1 + 1j]]),
    "none": np.empty((0, 3)),
    "sparse": scipy.sparse.random(5, 7, 0.3, "csc", random_state=0),
    "zsparse": scipy.sparse.random(5, 7, 0.3, "csc", random_state=1) * (1 + 1j),
    "nosparse": scipy.sparse.csc_matrix((4, 3)),
    "text": "größe",
    "rows": np.array(["ab ", "cde"]),
}
INTEGERS = {f"{kind}{8 * size}": np.arange(-3, 4).astype(f"{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8)}
MORE = {"cell": np.array([["a", ""], ["ccc", "d"]], dtype=object), "true": np.array([[True, False]])}


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", [*VARIABLES, *INTEGERS, *MORE])
def test_variables_of_version_5_are_read_as_scipy_reads_them(tmp_path, name, compressed):
    value = {**VARIABLES, **INTEGERS, **MORE}[name]
    scipy.io.savemat(tmp_path / "p.mat", {name: value, "after": 1.0}, do_compression=compressed)
    assert_read_as_scipy_reads(tmp_path / "p.mat")


@pytest.mark.parametrize("name", [name for name in VARIABLES if name != "text"])
def test_variables_of_version_4_are_read_as_scipy_reads_them(tmp_path, name):
    scipy.io.savemat(tmp_path / "p.mat", {name: VARIABLES[name], "after": 1.0}, format="4")
    assert_read_as_scipy_reads(tmp_path / "p.mat")


@pytest.mark.parametrize("stored", sorted(mat_file.NUMBERS))
def test_a_double_may_be_stored_in_fewer_bytes(tmp_path, stored):
    numbers = np.arange(6).astype("<" + mat_file.NUMBERS[stored])
    flags, dims = struct.pack("<2I", 6, 0), struct.pack("<2i", 2, 3)
    body = element(6, flags) + element(5, dims) + element(1, b"A") + element(stored, numbers.tobytes())
    (tmp_path / "p.mat").write_bytes(header() + element(14, body))
    with open(tmp_path / "p.mat", "rb") as file:
        A = mat_file.read_mat(file, {"A"}, set()).values["A"]
    assert (A.dtype, A.tolist()) == (np.float64, [[0, 2, 4], [1, 3, 5]])


@pytest.mark.skipif(not BENCHMARKS.is_dir(), reason=f"the benchmark models are not in {BENCHMARKS}")
@pytest.mark.parametrize("name", ["build", "CDplayer", "heat-cont", "heat-disc", "pde", "tline"])
def test_benchmark_models_have_the_arrays_that_scipy_reads(name):
    system, theirs = hr.load_system(BENCHMARKS / f"{name}.mat", dt=0), scipy.io.loadmat(BENCHMARKS / f"{name}.mat")
    for key in {"A", "B", "C", "D", "E"} & theirs.keys():
        expected = theirs[key].toarray() if scipy.sparse.issparse(theirs[key]) else theirs[key]
        np.testing.assert_array_equal(getattr(system, key), expected)


# Folders


def write_folder(folder, **texts):
    folder.mkdir(exist_ok=True)
    for key, text in {"A": "-1,0\n0,-2", "B": "1\n1", "C": "1,1", **texts}.items():
        (folder / f"{key}.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def test_a_folder_needs_three_files_and_dt(tmp_path):
    system = hr.load_system(write_folder(tmp_path / "p"), dt=0.5)
    assert (system.A.tolist(), system.D.tolist(), system.dt) == ([[-1.0, 0.0], [0.0, -2.0]], [[0.0]], 0.5)


@pytest.mark.parametrize(
    ("text", "dt"), [("True\n", True), ("0", 0), (" 0.25\r\n", 0.25), ("\ufeff1", 1), ("true", True)]
)
def test_dt_csv_holds_a_number_or_true(tmp_path, text, dt):
    loaded = hr.load_system(write_folder(tmp_path / "p", dt=text)).dt
    assert (loaded, loaded is True) == (dt, dt is True)


@pytest.mark.parametrize("A", ["(-1+2j), 0\n 0, -2j", "-1+2j,0j\r\n\r\n0,-2j\r\n", "\ufeff-1+2j,0\n0,-0-2j"])
def test_complex_numbers_are_read_as_python_and_numpy_print_them(tmp_path, A):
    assert hr.load_system(write_folder(tmp_path / "p", A=A), dt=0).A.tolist() == [[-1 + 2j, 0], [0, -2j]]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"A": "1,2\n3"}, "A.csv cannot be read"),
        ({"A": "1;2\n3;4"}, "A.csv cannot be read"),
        ({"A": "a,b\n1,2"}, "A.csv cannot be read: .*'a'"),
        ({"A": b"\xff\xfe1"}, "A.csv cannot be read"),
        ({"A": "1e999,0\n0,1"}, "A must be finite"),
        ({"A": ""}, "B must have as many rows as A"),
        ({"dt": ""}, "dt.csv cannot be read"),
        ({"dt": "False"}, "dt.csv cannot be read"),
        ({"dt": "-1"}, "dt must not be negative"),
        ({"dt": "1+0j"}, "dt.csv cannot be read"),
        ({"signal_names": "inputs,a,b\n"}, "inputs must be a sequence of 1 names; got 2"),
        ({"signal_names": "signals,a\n"}, "one row for each of name, inputs"),
        ({"signal_names": "inputs,a\ninputs,a\n"}, "one row for each of name, inputs"),
        ({"signal_names": '"inputs'}, "signal_names.csv cannot be read"),
    ],
)
def test_a_folder_that_holds_no_system_is_refused_by_its_file(tmp_path, texts, message):
    with pytest.raises(InputError, match=f"p cannot be loaded: .*{message}"):
        hr.load_system(write_folder(tmp_path / "p", **{"dt": "0", **texts}))


def test_saving_into_a_folder_replaces_its_system_and_nothing_else(tmp_path):
    folder = tmp_path / "plant.v2"
    folder.mkdir()
    (folder / "notes.csv").write_text("mine")
    hr.save_system(random_system(21, names=NAMES, E=True), folder)
    G = random_system(22, 2, 1, 1, dt=0.5)
    hr.save_system(G, folder)
    assert_same(hr.load_system(folder), G)
    assert sorted(os.listdir(folder)) == ["A.csv", "B.csv", "C.csv", "D.csv", "dt.csv", "notes.csv"]


@pytest.mark.parametrize("stop", range(1, 6))
def test_a_folder_between_two_systems_is_refused(tmp_path, monkeypatch, stop):
    hr.save_system(random_system(23, E=True, dt=0.5), tmp_path / "p")
    count = 0

    def killed(descriptor):
        nonlocal count
        count += stat.S_ISREG(os.fstat(descriptor).st_mode)
        if count == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        hr.save_system(random_system(24, dt=0.5), tmp_path / "p")
    with pytest.raises(InputError, match="does not say its sampling time"):
        hr.load_system(tmp_path / "p")


def test_a_folder_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    hr.save_system(random_system(23, dt=0.5), tmp_path / "p")
    loadtxt = np.loadtxt

    def slow(*args, **kwargs):
        monkeypatch.setattr(np, "loadtxt", loadtxt)
        hr.save_system(random_system(24, dt=0.5), tmp_path / "p")
        return loadtxt(*args, **kwargs)

    monkeypatch.setattr(np, "loadtxt", slow)
    with pytest.raises(InputError, match="written while it was read"):
        hr.load_system(tmp_path / "p")


# Writing at once


def test_the_old_file_stays_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("old")

    def write(file):
        file.write(b"new")
        assert path.read_text() == "old"

    write_atomically(path, write)
    assert path.read_text() == "new"


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    events, replace = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append(stat.S_ISREG(os.fstat(descriptor).st_mode)))
    monkeypatch.setattr(os, "replace", lambda *paths: (events.append("replace"), replace(*paths)))
    write_atomically(tmp_path / "p.txt", lambda file: file.write(b"new"))
    assert events[:2] == [True, "replace"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "p.txt"
    path.write_text("old")

    def write(file):
        file.write(b"new")
        raise error

    with pytest.raises(error):
        write_atomically(path, write)
    assert (os.listdir(tmp_path), path.read_text()) == (["p.txt"], "old")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_the_permissions_of_a_file_are_kept(tmp_path, mode):
    path = tmp_path / "p.txt"
    path.touch()
    path.chmod(mode)
    during = []
    write_atomically(path, lambda file: during.append(stat.S_IMODE(os.fstat(file.fileno()).st_mode) & ~mode))
    assert (stat.S_IMODE(path.stat().st_mode), during) == (mode, [0])


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "any").touch()
    write_atomically(tmp_path / "p.txt", lambda file: file.write(b""))
    assert (tmp_path / "p.txt").stat().st_mode == (tmp_path / "any").stat().st_mode


@pytest.mark.parametrize("exists", [True, False])
def test_of_a_link_the_file_it_names_is_written(tmp_path, exists):
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "p.txt", tmp_path / "latest.txt"
    if exists:
        target.touch()
    link.symlink_to(Path("there") / "p.txt")
    write_atomically(link, lambda file: file.write(b"new"))
    assert (link.is_symlink(), target.read_bytes(), os.listdir(target.parent)) == (True, b"new", ["p.txt"])


def test_a_planted_link_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "urandom", bytes)  # the name of the temporary file is known
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / f".hankelred-{bytes(8).hex()}.tmp").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "p.txt", lambda file: file.write(b"new"))
    assert victim.read_text() == "mine"


def test_a_name_of_250_characters_is_written(tmp_path):
    path = tmp_path / ("p" * 246 + ".npz")
    hr.save_system(random_system(25, dt=0.5), path)
    assert hr.load_system(path).n == 3


def test_many_writers_at_once_leave_one_whole_file(tmp_path):
    path, errors = tmp_path / "p.npz", []
    systems = [random_system(0, n, dt=0.5) for n in (2, 30)]
    hr.save_system(systems[0], path)

    def write(system):
        try:
            for _ in range(10):
                hr.save_system(system, path)
                assert hr.load_system(path).n in (2, 30)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(system,)) for system in systems * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (errors, os.listdir(tmp_path)) == ([], ["p.npz"])


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_neither_written_nor_read(tmp_path, make):
    make(tmp_path / "p.npz")
    with pytest.raises(InputError, match="a new or a regular one"):
        hr.save_system(random_system(26), tmp_path / "p.npz")
    with pytest.raises(InputError, match="must be a regular file"):
        hr.load_system(tmp_path / "p.npz")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="The folder of a file must exist"):
        hr.save_system(random_system(26), tmp_path / "none" / "p.npz")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everything")
def test_a_protected_file_stays(tmp_path):
    (tmp_path / "p.npz").touch(0o444)
    with pytest.raises(PermissionError):
        hr.save_system(random_system(26), tmp_path / "p.npz")


# Files that are damaged, or meant to harm


@pytest.mark.parametrize("name", ["none.npz", "none.mat", "none"])
def test_a_file_that_is_not_there_is_an_oserror(tmp_path, name):
    with pytest.raises(FileNotFoundError):
        hr.load_system(tmp_path / name)


def npz(path, **members):
    """Write a ``.npz`` from the raw bytes of its members."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, data in members.items():
            archive.writestr(f"{key}.npy", data)


def npy(array, **changes):
    """Return the bytes of an array whose header says something else."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {**np.lib.format.header_data_from_array_1_0(array), **changes})
    return file.getvalue() + array.tobytes()


ONE = np.ones((1, 1))


@pytest.mark.parametrize(
    ("A", "message"),
    [
        (npy(ONE, shape=(10**6, 10**6)), "declares 8000000000000 bytes"),
        (npy(ONE, shape=(-1, -1)), "damaged"),
        (npy(ONE, shape=(2, 1)), "another size than it declares"),
        (npy(ONE) + b"more", "another size than it declares"),
        (npy(ONE, descr="|O"), "numbers or text; got dtype object"),
        (npy(ONE, descr="<m8[s]"), "numbers or text"),
        (npy(np.empty((0, 0)), shape=(0, 10**12), descr="|U0"), "damaged|must hold|cannot|square"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 70000, "header cannot be read"),
        (b"\x93NUMPY\x09\x00", "header cannot be read"),
        (b"", "header cannot be read"),
        (np.ones(3).tobytes(), "header cannot be read"),
    ],
)
def test_an_array_that_lies_about_itself_is_refused(tmp_path, A, message):
    npz(tmp_path / "p.npz", A=A, B=npy(ONE), C=npy(ONE))
    with pytest.raises(InputError, match=message) as caught:
        hr.load_system(tmp_path / "p.npz", dt=0)
    assert "pickle" not in str(caught.value)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"A": np.array([{"a": 1}], dtype=object)}, "got dtype object"),
        ({"input_names": np.array([1.0])}, "inputs must hold text"),
        ({"output": ONE}, "output must hold text"),
        ({"lam": np.ones(1)}, "one system; got A and lam"),
        ({"E": ONE, "lam": np.ones(1)}, "one system; got A and E and lam"),
        ({"A": np.array([["x"]])}, "A must hold real or complex numbers"),
    ],
)
def test_an_entry_of_another_kind_is_refused(tmp_path, entries, message):
    np.savez(tmp_path / "p.npz", **{"A": ONE, "B": ONE, "C": ONE, "dt": 0, **entries}, allow_pickle=True)
    with pytest.raises(InputError, match=message) as caught:
        hr.load_system(tmp_path / "p.npz")
    assert "pickle" not in str(caught.value)


def test_a_diagonal_system_with_a_descriptor_matrix_is_refused(tmp_path):
    # E was once passed over, which made it another system
    np.savez(tmp_path / "p.npz", lam=[-1.0], B=ONE, C=ONE, E=2 * ONE, dt=0)
    with pytest.raises(InputError, match="one system; got E and lam"):
        hr.load_system(tmp_path / "p.npz")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.npz", b"", "no .npz file"),
        ("p.npz", b"1,2\n3,4\n", "no .npz file"),
        ("p.npz", b"PK\x03\x04 cut short", "no .npz file"),
        ("p.npz", npy(ONE), "one array without a name"),
        ("p.mat", b"", "no MATLAB file"),
        ("p.mat", b"MATLAB", "no MATLAB file"),
        ("p.mat", b"not a mat file" * 20, "no MATLAB file"),
        ("p.mat", bytes(200), "no MATLAB file"),
        ("p.mat", header()[:124] + b"\x00\x02IM" + bytes(400), "-v7"),
        ("p.mat", b"\x89HDF\r\n\x1a\n" + bytes(400), "-v7"),
        ("p.mat", header() + element(99, bytes(8)), "damaged"),
    ],
)
def test_a_file_of_another_kind_is_refused_by_name(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name} cannot be loaded: .*{message}") as caught:
        hr.load_system(tmp_path / name, dt=0)
    assert "pickle" not in str(caught.value)


def mat_variable(name, shape, data, kind=6, declared=None):
    """Return a variable of doubles; `declared` bytes are claimed in place of those of `data`."""
    flags, dims = struct.pack("<2I", kind, 0), struct.pack(f"<{len(shape)}i", *shape)
    body = element(6, flags) + element(5, dims) + element(1, name)
    size = len(data) if declared is None else declared
    return struct.pack("<2I", 14, len(body) + 8 + size) + body + struct.pack("<2I", 9, size) + data


def deflated(data):
    packed = zlib.compress(data)
    return struct.pack("<2I", 15, len(packed)) + packed


HUGE = 2**31 + 2**20


@contextmanager
def limited_memory(count):
    """Let allocations of so many bytes more than now fail, on Linux."""
    if not Path("/proc/self/statm").exists():
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize(
    "begins", [[0, 2**63 - 1, -(2**63), -1, 1], [0, 2, 1, 1], [0, -1, 0, 1], [1, 1, 1, 1], [0, 0, 0, 9]]
)
def test_columns_of_a_sparse_matrix_that_do_not_follow_each_other_are_refused(tmp_path, begins):
    # the first: differences of 64-bit integers wrap around to positive ones, which was once a way out of the array
    flags, dims = struct.pack("<2I", 5, 1), struct.pack("<2i", 3, len(begins) - 1)
    body = element(6, flags) + element(5, dims) + element(1, b"A") + element(5, struct.pack("<i", 0))
    body += element(12, struct.pack(f"<{len(begins)}q", *begins)) + element(9, struct.pack("<d", 1.0))
    (tmp_path / "p.mat").write_bytes(header() + element(14, body))
    with pytest.raises(InputError, match="entries outside of its shape"):
        hr.load_system(tmp_path / "p.mat", dt=0)


@pytest.mark.parametrize(
    "variable",
    [
        mat_variable(b"A", (10**6, 10**6), bytes(8)),
        mat_variable(b"A", (16, 2**24), bytes(8), declared=2**31),
        mat_variable(b"A", (-1, -1), bytes(8)),
        mat_variable(b"A", (2**30, 2**30, 16), bytes(8)),
        mat_variable(b"A", (2**31 - 1, 10**6), bytes(8), kind=5),
        mat_variable(b"A", (2**30, 1), bytes(8), kind=1),
        deflated(mat_variable(b"A", (1, HUGE // 8), bytes(2**24), declared=HUGE)),
        deflated(mat_variable(b"A", (1, 2**24), bytes(2**24))),
    ],
)
def test_a_variable_that_declares_too_much_costs_no_memory(tmp_path, variable):
    (tmp_path / "p.mat").write_bytes(header() + variable)
    with pytest.raises(InputError, match=r"p\.mat cannot be loaded"), limited_memory(2**28):
        hr.load_system(tmp_path / "p.mat", dt=0)


@pytest.mark.parametrize("kind", [".npz", ".mat"])
def test_what_is_not_needed_is_not_expanded(tmp_path, kind):
    path, zeros = tmp_path / f"p{kind}", bytes(2**26)
    if kind == ".npz":
        npz(path, A=npy(-ONE), B=npy(ONE), C=npy(ONE), unused=npy(ONE) + zeros)
    else:
        small = b"".join(mat_variable(key, (1, 1), np.float64(-1).tobytes()) for key in (b"A", b"B", b"C"))
        path.write_bytes(header() + deflated(mat_variable(b"unused", (1, 2**23), zeros)) + small)
    with limited_memory(2**25):
        assert hr.load_system(path, dt=0).n == 1


def test_a_large_sparse_matrix_stays_sparse(tmp_path):
    n = 20_000
    A = -scipy.sparse.eye(n, format="csc")
    scipy.io.savemat(tmp_path / "p.mat", {"A": A, "B": np.ones((n, 1)), "C": np.ones((1, n))}, do_compression=True)
    with limited_memory(2**28):
        system = hr.load_system(tmp_path / "p.mat", dt=0)
    assert system.is_sparse
    assert system.n == n


@pytest.mark.parametrize("kind", [".mat", "4.mat", ".npz", ""])
def test_matrices_beyond_the_limit_are_refused(tmp_path, monkeypatch, kind):
    G = random_system(29, 20, dt=0.5)
    hr.save_system(G, tmp_path / f"p{kind}")
    if kind == "4.mat":
        scipy.io.savemat(tmp_path / "p4.mat", {"A": G.A, "B": G.B, "C": G.C, "dt": 0.5}, format="4")
    monkeypatch.setattr(entries, "LIMIT", 3000)  # A has 3200 bytes
    with pytest.raises(InputError, match="may have 3000 bytes"):
        hr.load_system(tmp_path / f"p{kind}")


@pytest.mark.parametrize("n", [1, 120])  # within and beyond the front of a variable, which is decompressed first
@pytest.mark.parametrize("change", ["sum", "no sum", "longer"])
def test_a_compressed_variable_ends_with_its_sum(tmp_path, n, change):
    A = mat_variable(b"A", (n, n), (-np.eye(n)).tobytes())
    packed = zlib.compress(A + bytes(8) if change == "longer" else A)
    packed = {"sum": packed[:-1] + bytes([packed[-1] ^ 1]), "no sum": packed[:-4], "longer": packed}[change]
    (tmp_path / "p.mat").write_bytes(header() + struct.pack("<2I", 15, len(packed)) + packed)
    with pytest.raises(InputError, match="damaged"):
        hr.load_system(tmp_path / "p.mat", dt=0)


def damaged(content, rng):
    """Return a file with some bits flipped, bytes inserted, or its end cut off."""
    data = bytearray(content)
    way = rng.integers(4)
    if way == 0:
        return bytes(data[: rng.integers(len(data))])
    for _ in range(rng.integers(1, 9)):
        place = int(rng.integers(min(len(data), 400) if way == 3 else len(data)))  # 3: where the headers are
        if way == 1:
            data[place:place] = rng.bytes(int(rng.integers(1, 9)))
        elif rng.integers(2):
            data[place] ^= 1 << int(rng.integers(8))
        else:
            data[place] = int(rng.choice([0, 1, 4, 6, 14, 15, 127, 128, 255]))
    return bytes(data)


def originals(folder):
    """Return a file of each kind, by name: content and suffix."""
    G = random_system(30, dt=0.5, names=HARD_NAMES, E=True)
    entries = {"A": scipy.sparse.csc_matrix(np.triu(G.A)), "B": G.B, "C": G.C, "D": G.D, "Ts": 0.5}
    hr.save_system(G, folder / "plain.npz")
    hr.save_system(random_diagonal(31, rates=True, names=NAMES), folder / "diagonal.npz")
    np.savez_compressed(folder / "compressed.npz", A=G.A, B=G.B, C=G.C, dt=True)
    hr.save_system(G, folder / "plain.mat")
    scipy.io.savemat(folder / "sparse.mat", entries)
    scipy.io.savemat(folder / "compressed.mat", entries, do_compression=True)
    scipy.io.savemat(folder / "structure.mat", {"s": structure()[1]})
    scipy.io.savemat(folder / "version4.mat", entries, format="4")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "name",
    [
        "plain.npz",
        "diagonal.npz",
        "compressed.npz",
        "plain.mat",
        "sparse.mat",
        "compressed.mat",
        "structure.mat",
        "version4.mat",
    ],
)
def test_a_damaged_file_is_a_system_or_an_error_of_ours(tmp_path, name):
    content = originals(tmp_path)[name]
    path = tmp_path / f"damaged{Path(name).suffix}"
    for number in sample(range(350)):
        path.write_bytes(damaged(content, np.random.default_rng([1234, number])))
        with limited_memory(2**29):
            try:
                system = hr.load_system(path, dt=None if number % 2 else 0.5)
            except (InputError, OSError) as error:
                assert str(path) in str(error)  # noqa: PT017
            else:
                assert np.isfinite(system.B).all()


def test_a_damaged_folder_is_a_system_or_an_error_of_ours(tmp_path):
    folder = tmp_path / "p"
    hr.save_system(random_system(32, dt=0.5, dtype=complex, names=HARD_NAMES, E=True), folder)
    contents = {path: path.read_bytes() for path in folder.iterdir()}
    for number in sample(range(350)):
        path = sorted(contents)[number % len(contents)]
        path.write_bytes(damaged(contents[path], np.random.default_rng([1234, number])))
        try:
            hr.load_system(folder, dt=None if number % 2 else 0.5)
        except (InputError, OSError) as error:
            assert str(folder) in str(error)  # noqa: PT017
        path.write_bytes(contents[path])
