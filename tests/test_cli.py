"""The command line prints what the library computes, keeps `dt`, and fails with one sentence."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.io
from sizes import sample

import hankelred as hr
from hankelred.cli import main

RNG = np.random.default_rng(7)
PLANT = hr.StateSpace(
    np.diag([-1.0, -2.0, -5.0, -30.0]) + 0.1 * RNG.standard_normal((4, 4)),
    RNG.standard_normal((4, 2)),
    RNG.standard_normal((3, 4)),
    name="plant",
    inputs=("a", "b"),
    outputs=("x", "y", "z"),
)
LAYER = hr.DiagonalSystem(
    0.9 * np.exp(1j * np.array([0.3, 1.0, 2.0, 2.9])),
    RNG.standard_normal((4, 2)),
    RNG.standard_normal((2, 4)) + 1j,
    dt=True,
    output="real",
)
GAIN = hr.StateSpace(np.empty((0, 0)), np.empty((0, 1)), np.empty((1, 0)), [[2.0]])  # quick in a fresh process
UNSTABLE = hr.StateSpace(np.diag([0.0, 0.5, -1.0, -2.0]), np.ones((4, 1)), np.ones((1, 4)))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to work in, with a plant, a layer and an unstable system in files."""
    monkeypatch.chdir(tmp_path)
    hr.save_system(PLANT, "plant.npz")
    hr.save_system(LAYER, "layer.npz")
    hr.save_system(UNSTABLE, "unstable.npz")
    hr.save_system(GAIN, "gain.npz")
    scipy.io.savemat("silent.mat", {"A": PLANT.A, "B": PLANT.B, "C": PLANT.C})
    return tmp_path


def table(text, first):
    """Return the rows of the printed table whose header begins with this word, split at wide gaps."""
    lines = [line.strip() for line in text.splitlines()]
    start = next(k for k, line in enumerate(lines) if line.startswith(first))
    end = next((k for k in range(start, len(lines)) if not lines[k]), len(lines))
    return [[entry.strip() for entry in line.split("  ") if entry.strip()] for line in lines[start + 1 : end]]


# hsv


@pytest.mark.parametrize(("name", "system"), [("plant.npz", PLANT), ("layer.npz", LAYER)])
def test_hsv_prints_every_value(folder, capsys, name, system):
    assert main(["hsv", name]) == 0
    printed = [float(row[1]) for row in table(capsys.readouterr().out, "order")]
    np.testing.assert_allclose(printed, hr.hankel_singular_values(system), rtol=1e-6)  # seven digits are printed


def test_hsv_prints_the_bound_of_each_order(folder, capsys):
    main(["hsv", "plant.npz"])
    printed = [float(row[4]) for row in table(capsys.readouterr().out, "order")]
    bal = hr.balance(PLANT)
    np.testing.assert_allclose(printed, [bal.error_bound(order) for order in range(1, 5)], rtol=1e-3)  # four digits


def test_hsv_prints_the_energy_kept(folder, capsys):
    main(["hsv", "plant.npz"])
    printed = [float(row[3].rstrip(" %")) for row in table(capsys.readouterr().out, "order")]
    hsv = hr.hankel_singular_values(PLANT)
    np.testing.assert_allclose(printed, 100 * np.cumsum(hsv) / hsv.sum(), atol=1e-4)  # so many decimals


def test_hsv_marks_unstable_poles(folder, capsys):
    main(["hsv", "unstable.npz"])
    assert [row[2] for row in table(capsys.readouterr().out, "order")][:2] == ["unstable", "unstable"]


def test_hsv_says_where_reduced_models_end(folder, capsys):
    hr.save_system(hr.StateSpace(-np.eye(5), np.ones((5, 1)), np.ones((1, 5))), "same.npz")
    main(["hsv", "same.npz"])
    assert "4 more values below the numerical rank 1" in capsys.readouterr().out


def test_a_system_without_states_has_no_rows(folder, capsys):
    assert main(["hsv", "gain.npz"]) == 0
    assert table(capsys.readouterr().out, "order") == []


@pytest.mark.parametrize(
    ("name", "description"),
    [
        ("plant.npz", "4 states, 2 inputs, 3 outputs, continuous"),
        ("layer.npz", "4 states, 2 inputs, 2 outputs, diagonal, real output, discrete, dt unspecified"),
        ("sampled.npz", "1 state, 1 input, 1 output, discrete, dt = 0.25 s"),
    ],
)
def test_the_first_line_describes_the_model(folder, capsys, name, description):
    hr.save_system(hr.StateSpace([[0.5]], [[1.0]], [[1.0]], dt=0.25), "sampled.npz")
    main(["hsv", name])
    assert capsys.readouterr().out.startswith(f"{name}: {description}\n")


# reduce


@pytest.mark.parametrize(
    ("options", "criterion"),
    [
        (["--order", "2"], {"order": 2}),
        (["--states", "3"], {"states": 3}),
        (["--rtol", "0.05"], {"rtol": 0.05}),
        (["--energy", "0.9"], {"energy": 0.9}),
        (["--max-error", "0.5"], {"max_error": 0.5}),
        (["--order", "2", "--match-dc"], {"order": 2, "match_dc": True}),
    ],
)
def test_reduce_saves_what_the_library_returns(folder, options, criterion):
    assert main(["reduce", "plant.npz", *options, "-o", "small.npz"]) == 0
    expected, found = hr.balanced_truncation(PLANT, **criterion).system, hr.load_system("small.npz")
    for name in "ABCD":
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert (found.name, found.inputs, found.outputs) == (expected.name, expected.inputs, expected.outputs)


def test_reduce_keeps_an_unspecified_dt_and_the_diagonal_form(folder):
    main(["reduce", "layer.npz", "--states", "2", "-o", "small.npz"])
    small = hr.load_system("small.npz")
    assert (type(small), small.dt, small.output, small.n) == (hr.DiagonalSystem, True, "real", 2)


def test_reduce_writes_a_diagonal_model_as_a_matrix_where_the_file_has_one(folder, capsys):
    main(["reduce", "layer.npz", "--states", "2", "-o", "small.mat"])
    small = hr.load_system("small.mat")
    expected = hr.balanced_truncation(LAYER, states=2).system
    omega = np.array([0.2, 1.5])
    assert f"small.mat: {small.n} states, 2 inputs, 2 outputs, discrete" in capsys.readouterr().out
    # eps times the nearness of the poles to the circle, 0.1 here
    np.testing.assert_allclose(small.frequency_response(omega), expected.frequency_response(omega), rtol=1e-12)


def test_reduce_prints_the_measured_errors(folder, capsys):
    main(["reduce", "plant.npz", "--order", "2"])
    printed = {row[0]: float(row[1]) for row in table(capsys.readouterr().out, "norm of the error")}
    reduction = hr.balanced_truncation(PLANT, order=2)
    expected = {"H-infinity": reduction.hinf_error(), "H2": reduction.h2_error(), "Hankel": reduction.hankel_error()}
    assert printed == pytest.approx(expected, rel=1e-4)  # five digits are printed


def test_reduce_prints_the_bound(folder, capsys):
    main(["reduce", "plant.npz", "--order", "2"])
    assert f"{hr.balance(PLANT).error_bound(2):.4g}" in capsys.readouterr().out


def test_reduce_without_a_criterion_is_refused(folder, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["reduce", "plant.npz"])
    assert "--energy" in capsys.readouterr().err


def test_two_criteria_are_refused(folder):
    with pytest.raises(SystemExit, match="2"):
        main(["reduce", "plant.npz", "--order", "2", "--rtol", "0.1"])


# compare


def test_compare_measures_the_difference(folder, capsys):
    main(["reduce", "plant.npz", "--order", "2", "-o", "small.npz"])
    capsys.readouterr()
    assert main(["compare", "plant.npz", "small.npz"]) == 0
    printed = {row[0]: float(row[1]) for row in table(capsys.readouterr().out, "norm")}
    reduction = hr.balanced_truncation(PLANT, order=2)
    expected = {"H-infinity": reduction.hinf_error(), "H2": reduction.h2_error(), "Hankel": reduction.hankel_error()}
    assert printed == pytest.approx(expected, rel=1e-4)  # five digits are printed


@pytest.mark.parametrize(("name", "system", "order"), [("plant.npz", PLANT, 2), ("layer.npz", LAYER, 4)])
def test_compare_says_what_can_be_had_at_this_order(folder, capsys, name, system, order):
    main(["reduce", name, "--order", str(order), "-o", "small.npz"])
    capsys.readouterr()
    main(["compare", name, "small.npz"])
    out, bal = capsys.readouterr().out, hr.balance(system)
    assert f"any stable model of order {order} must have: at least {bal.hsv[order]:.4e}" in out
    assert f"to order {order}: at most {bal.error_bound(order):.4e}" in out


def test_compare_explains_infinite_norms(folder, capsys):
    main(["reduce", "unstable.npz", "--order", "3", "-o", "small.npz"])
    capsys.readouterr()
    assert main(["compare", "unstable.npz", "small.npz"]) == 0
    assert "do not cancel" in capsys.readouterr().out


# dt, errors, warnings, pictures


def test_a_file_that_does_not_say_its_time_needs_an_option(folder, capsys):
    assert main(["hsv", "silent.mat"]) == 1
    assert "--dt" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "dt"), [("0", 0), ("0.5", 0.5), ("true", True)])
def test_the_option_gives_the_time(folder, text, dt):
    assert main(["reduce", "silent.mat", "--dt", text, "--order", "4", "-o", "out.npz"]) == 0
    assert hr.load_system("out.npz").dt == dt
    assert (hr.load_system("out.npz").dt is True) == (dt is True)


@pytest.mark.parametrize("text", ["soon", "nan", "-1", "inf", "", "1+1j"])
def test_a_time_that_is_none_is_wrong_usage(folder, capsys, text):
    with pytest.raises(SystemExit, match="2"):
        main(["hsv", "silent.mat", f"--dt={text}"])
    assert f"seconds, 0 or true; got {text!r}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hsv", "none.npz"], "none.npz: No such file"),
        (["hsv", "none"], "none/A.csv: No such file"),
        (["hsv", ""], "path must be the name of a file"),
        (["hsv", "plant.txt"], "must end in .npz or .mat"),
        (["hsv", "damaged.npz"], "damaged.npz cannot be loaded"),
        (["hsv", "damaged.mat"], "damaged.mat cannot be loaded"),
        (["reduce", "plant.npz", "--order", "9"], "order must be from 0 to 4"),
        (["reduce", "plant.npz", "--order", "99999999999999999999"], "order must be"),
        (["reduce", "plant.npz", "--rtol", "nan"], "rtol"),
        (["reduce", "plant.npz", "--energy", "2"], "energy"),
        (["reduce", "plant.npz", "--max-error=-1"], "max_error"),
        (["compare", "plant.npz", "layer.npz"], "same inputs and outputs"),
    ],
)
def test_an_error_is_one_line_and_exit_code_1(folder, capsys, arguments, message):
    (folder / "damaged.npz").write_bytes((folder / "plant.npz").read_bytes()[:-40])
    (folder / "damaged.mat").write_bytes((folder / "silent.mat").read_bytes()[:-40])
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith("hankelred: ")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("-o=small.txt", "must end in .npz or .mat"),
        ("-o=no/such/small.npz", "The folder of a file must exist"),
        ("-o=folder.npz", "a new or a regular one"),
        ("-o=file", "Give it a suffix"),
        ("--plot=picture.xyz", "must end in one of"),
        ("--plot=picture", "must end in one of"),
        ("--plot=no/such/picture.png", "The folder of a file must exist"),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_work(folder, capsys, option, message):
    (folder / "folder.npz").mkdir()
    (folder / "file").touch()
    assert main(["reduce", "plant.npz", "--order", "2", option.replace("-o=", "-o")]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_a_folder_of_csv_files_is_read_and_written(folder):
    assert main(["reduce", "plant.npz", "--order", "2", "-o", "small"]) == 0
    assert main(["compare", "plant.npz", "small"]) == 0
    np.testing.assert_array_equal(hr.load_system("small").A, hr.balanced_truncation(PLANT, order=2).system.A)


def test_ctrl_c_is_one_line_and_exit_code_130(folder, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("hankelred.cli.commands.balance", interrupted)
    assert main(["hsv", "plant.npz"]) == 130
    assert capsys.readouterr().err == "hankelred: interrupted\n"


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("two\nlines"), OSError(28, "No space left on device")])
def test_whatever_fails_is_one_line(folder, capsys, monkeypatch, error):
    def failing(*_):
        raise error

    monkeypatch.setattr("hankelred.cli.commands.balance", failing)
    assert main(["hsv", "plant.npz"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("hankelred: ")
    assert err.count("\n") == 1


def test_a_warning_is_one_line(folder, capsys):
    hr.save_system(hr.StateSpace(-np.eye(2), np.eye(2), np.eye(2)), "twice.npz")
    hr.save_system(hr.StateSpace(-np.eye(3), np.eye(3), np.eye(3)), "twice.npz")
    assert main(["reduce", "twice.npz", "--order", "1"]) == 0
    err = capsys.readouterr().err
    assert err.startswith("hankelred: warning: The cut at order 1 splits")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    sample(
        [
            ["hsv", "plant.npz"],
            ["hsv", "unstable.npz"],
            ["reduce", "layer.npz", "--states", "2"],
            ["compare", "plant.npz", "plant.npz"],
        ],
        share=0.5,
    ),
)
def test_a_picture_is_written(folder, arguments):
    assert main([*arguments, "--plot", "picture.png"]) == 0
    assert (folder / "picture.png").read_bytes().startswith(b"\x89PNG")


def command(*arguments, before=""):
    """Return how to run the command line in a process of its own: the arguments of Popen."""
    code = f"import sys\n{before}\nfrom hankelred.cli import main\nsys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return {"args": [sys.executable, "-c", code, *arguments], "env": environment, **pipes}


def test_a_reader_that_leaves_early_is_no_error(folder):
    with subprocess.Popen(**command("hsv", "gain.npz")) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 1)


def test_help_for_a_reader_that_leaves_early_says_nothing_more(folder):
    with subprocess.Popen(**command("--help")) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() in (0, 1)  # where Python does not buffer, argparse itself passes over the broken pipe


def test_closed_streams_are_no_error(folder):
    close = "import os, sys; sys.stdout = sys.stderr = None"  # as Python has them after >&- 2>&-
    done = subprocess.run(**command("reduce", "gain.npz", "--order", "0", "-o", "small.npz", before=close), check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert hr.load_system("small.npz").n == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_behind_the_output_is_one_line(folder):
    with open("/dev/full", "w") as full:
        done = subprocess.run(**{**command("hsv", "gain.npz"), "stdout": full}, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


def test_names_that_the_terminal_cannot_show_are_escaped(folder):
    os.rename("gain.npz", "größe-ψ.npz")
    run = command("hsv", "größe-ψ.npz")
    run["env"] = {**run["env"], "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(**run, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("gr\\xf6\\xdfe-\\u03c8.npz: 0 states")


TOLD = "import atexit; atexit.register(lambda: print(*sys.modules, file=sys.stderr))"


@pytest.mark.parametrize(
    ("arguments", "code"),
    sample(
        [(["compare", "plant.npz", "plant.npz"], 0), (["--help"], 0), (["redcue"], 2), (["hsv", "--wrong"], 2)], 0.5
    ),
)
def test_neither_commands_nor_help_nor_typos_load_torch_or_matplotlib(folder, arguments, code):
    done = subprocess.run(**command(*arguments, before=TOLD), check=False)
    assert done.returncode == code
    assert {"torch", "hankelred_torch", "matplotlib", "control"}.isdisjoint(done.stderr.split())


def test_an_unknown_subcommand_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["shrink"])
    assert "invalid choice: 'shrink'" in capsys.readouterr().err
