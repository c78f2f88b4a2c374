"""Norms, conversion, several sizes, weightings, JSON, tables and completion of the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

import hankelred as hr
from hankelred.cli import main
from hankelred.cli.arguments import parser, read_weighting
from hankelred.weighting import FrequencyLimited, FrequencyWeighted, Stochastic, TimeLimited

RNG = np.random.default_rng(3)
PLANT = hr.StateSpace(
    np.diag([-1.0, -2.0, -5.0, -30.0]) + 0.1 * RNG.standard_normal((4, 4)),
    RNG.standard_normal((4, 2)),
    RNG.standard_normal((2, 4)),
    np.eye(2),
    name="plant",
    inputs=("a", "b"),
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to work in, with a plant and a diagonal model in files."""
    monkeypatch.chdir(tmp_path)
    hr.save_system(PLANT, "plant.npz")
    hr.save_system(hr.DiagonalSystem([0.9 + 0.1j, 0.5], np.ones((2, 1)), np.ones((1, 2)), dt=True), "modes.npz")
    hr.save_system(hr.StateSpace(np.diag([0.0, -1.0, -2.0]), np.ones((3, 1)), np.ones((1, 3))), "cart.npz")
    return tmp_path


def told(capsys, *arguments):
    """Run a command that must succeed and return what it prints, read as strict JSON where that was asked for."""
    assert main(list(arguments)) == 0
    out = capsys.readouterr().out
    if "--json" not in arguments:
        return out
    return json.loads(out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


# norms and convert


def test_norms_are_those_of_the_library(folder, capsys):
    found = told(capsys, "norms", "plant.npz", "--json")
    hinf, peak = hr.hinf_norm(PLANT, return_peak=True)
    assert found["norms"] == {"H-infinity": hinf, "H2": None, "Hankel": hr.hankel_norm(PLANT)}  # D is not zero
    assert found["peak"] == peak
    assert f"{hinf:.6e}" in told(capsys, "norms", "plant.npz")


def test_norms_of_an_unstable_model_are_explained(folder, capsys):
    assert "make norms infinite" in told(capsys, "norms", "cart.npz")
    assert told(capsys, "norms", "cart.npz", "--json")["norms"]["H-infinity"] is None


@pytest.mark.parametrize("target", ["out.mat", "out", "out.npz"])
def test_convert_writes_the_same_model(folder, capsys, target):
    assert target in told(capsys, "convert", "plant.npz", target)
    found = hr.load_system(target)
    for name in "ABCD":
        np.testing.assert_array_equal(getattr(found, name), getattr(PLANT, name))
    assert (found.dt, found.inputs) == (0, ("a", "b"))


def test_convert_says_that_a_diagonal_model_became_a_matrix(folder, capsys):
    record = told(capsys, "convert", "modes.npz", "modes.mat", "--json")
    assert (record["model"]["diagonal"], record["output"]["diagonal"]) == (True, False)
    assert hr.load_system("modes.mat").dt is True


# several sizes


def test_several_orders_are_one_row_and_one_file_each(folder, capsys):
    out = told(capsys, "reduce", "plant.npz", "--order", "1,3", "-o", "small-{order}.npz")
    for order in (1, 3):
        reduction = hr.balanced_truncation(PLANT, order=order)
        assert f"{reduction.hinf_error():.4e}" in out
        np.testing.assert_array_equal(hr.load_system(f"small-{order}.npz").A, reduction.system.A)


def test_sizes_that_lead_to_one_order_are_one_row(folder, capsys):
    record = told(capsys, "reduce", "plant.npz", "--states", "2,2,3", "--json")
    assert [entry["order"] for entry in record["reductions"]] == [2, 3]


def test_one_name_for_several_models_is_refused_before_the_work(folder, capsys):
    assert main(["reduce", "nowhere.npz", "--order", "1,2", "-o", "small.npz"]) == 1
    assert "OUT must contain {order}" in capsys.readouterr().err


def test_the_order_stands_in_the_name_of_one_model_too(folder, capsys):
    told(capsys, "reduce", "plant.npz", "--rtol", "0.5", "-o", "small-{order}.npz")
    order = hr.balance(PLANT).order(rtol=0.5)
    assert hr.load_system(f"small-{order}.npz").n == order


# what is balanced, what is measured


def test_the_offset_decides_which_poles_are_kept(folder, capsys):
    assert told(capsys, "hsv", "plant.npz", "--json", "--offset", "1.5")["unstable"] == 1
    assert told(capsys, "hsv", "plant.npz", "--json")["unstable"] == 0


def test_what_is_not_measured_is_not_told(folder, capsys):
    out = told(capsys, "reduce", "plant.npz", "--order", "2", "--no-measure")
    assert "bound" in out
    assert "measured" not in out
    assert (
        "errors" not in told(capsys, "reduce", "plant.npz", "--order", "2,3", "--no-measure", "--json")["reductions"][0]
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("time:2", TimeLimited(2.0)),
        ("band:0:1:5:9", FrequencyLimited((0.0, 1.0), (5.0, 9.0))),
        ("stochastic:0.5", Stochastic(0.5)),
        ("input:weight.npz", FrequencyWeighted(input=hr.StateSpace([[-1.0]], np.ones((1, 2)), np.ones((2, 1))))),
    ],
)
def test_a_weighting_in_words_is_the_one_of_the_library(folder, capsys, text, expected):
    hr.save_system(hr.StateSpace([[-1.0]], np.ones((1, 2)), np.ones((2, 1))), "weight.npz")
    found = told(capsys, "hsv", "plant.npz", "--json", "--weighting", text)
    np.testing.assert_array_equal(found["hsv"], hr.hankel_singular_values(PLANT, weighting=expected))
    assert found["hsv"] != told(capsys, "hsv", "plant.npz", "--json")["hsv"]


@pytest.mark.parametrize(
    ("text", "name", "guaranteed"),
    [
        ("time:1:guaranteed", "TimeLimited", True),
        ("band:0:1", "FrequencyLimited", None),
        ("lqg", "LQG", False),
        ("coprime", "Coprime", False),
        ("positive-real", "PositiveReal", False),
        ("bounded-real:9", "BoundedReal", False),
    ],
)
def test_words_for_weightings_and_their_guaranteed_form(text, name, guaranteed):
    found = read_weighting(text)
    assert (type(found).__name__, found.guaranteed) == (name, guaranteed)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tiem:1", "must be one of time:HORIZON, band:LOW:HIGH"),
        ("time", "must be one of"),
        ("time:1:2", "must be one of"),
        ("band:1", "must be one of"),
        ("lqg:guaranteed", "must be one of"),
        ("time:-1", "horizon must be"),
        ("band:3:1", "0 <= low < high"),
        ("bounded-real:x", "must be one of"),
    ],
)
def test_an_unknown_weighting_is_one_line_that_names_the_known(folder, capsys, text, message):
    with pytest.raises(SystemExit, match="2"):
        main(["hsv", "plant.npz", "--weighting", text])
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_bound_that_does_not_hold_is_none_and_not_drawn(folder, capsys):
    arguments = ["plant.npz", "--weighting", "time:1", "--plot", "figure.png"]
    assert "none" in told(capsys, "hsv", *arguments)
    assert set(told(capsys, "hsv", *arguments, "--json")["error_bound"][:-1]) == {None}  # the last is the model
    told(capsys, "reduce", *arguments, "--order", "1,2")


@pytest.mark.parametrize("arguments", [["hsv"], ["reduce", "plant.npz", "--order", "x"], ["hsv", "a", "--wrong"]])
def test_wrong_usage_is_one_line(capsys, arguments):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert capsys.readouterr().err.count("\n") == 1


# JSON and tables


def test_json_has_the_figures_of_the_text(folder, capsys):
    told(capsys, "reduce", "plant.npz", "--order", "2", "-o", "small.npz")
    record = told(capsys, "compare", "plant.npz", "small.npz", "--json")
    out = told(capsys, "compare", "plant.npz", "small.npz")
    figures = [record["norms"]["H-infinity"]["difference"], record["least_error"], record["error_bound"]]
    assert all(f"{figure:.4e}" in out for figure in figures)
    assert record["norms"]["H-infinity"]["difference"] == hr.hinf_norm(PLANT - hr.load_system("small.npz"))


def test_json_of_a_reduction_is_that_of_the_library_with_errors(folder, capsys):
    (entry,) = told(capsys, "reduce", "plant.npz", "--order", "2", "--json")["reductions"]
    reduction = hr.balanced_truncation(PLANT, order=2)
    assert entry.pop("errors")["H-infinity"] == reduction.hinf_error()
    assert entry == json.loads(reduction.to_json())


def test_a_picture_beside_json_leaves_one_document(folder, capsys):
    told(capsys, "hsv", "cart.npz", "--json", "--plot", "figure.png")
    assert (folder / "figure.png").exists()


@pytest.mark.parametrize("columns", [30, 45, 100])
def test_tables_fit_the_terminal_and_lose_nothing(folder, capsys, monkeypatch, columns):
    whole = told(capsys, "hsv", "plant.npz").split()
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    out = told(capsys, "hsv", "plant.npz")
    assert max(map(len, out.splitlines())) <= columns
    assert set(whole) == set(out.split())


def test_a_file_has_no_width(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    assert max(map(len, told(capsys, "hsv", "plant.npz").splitlines())) > 60


# pictures and completion


def test_compare_draws_error_magnitude_steps_and_poles(folder, capsys, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "hankelred.cli.commands.draw", lambda _, *plots: drawn.extend(plot.func.__name__ for plot in plots)
    )
    told(capsys, "compare", "plant.npz", "plant.npz")
    assert drawn == ["plot_frequency_error", "plot_bode", "plot_step", "plot_poles"]


def test_the_four_pictures_are_written(folder, capsys):
    told(capsys, "compare", "plant.npz", "plant.npz", "--plot", "figure.svg")
    assert b"<svg" in (folder / "figure.svg").read_bytes()


def test_bash_completes_commands_options_and_shells(tmp_path, capsys):
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    (tmp_path / "script").write_text(told(capsys, "completion", "bash"))

    def completed(*words):
        line = f"source {tmp_path / 'script'}; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; "
        done = subprocess.run(
            [
                bash,
                "-c",
                line + 'COMP_WORDS[COMP_CWORD]="${COMP_WORDS[COMP_CWORD]#_}"; _hankelred; echo "${COMPREPLY[@]}"',
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.split()

    assert completed("hankelred", "co") == ["compare", "convert", "completion"]
    assert completed("hankelred", "reduce", "--ma") == ["--max-error", "--match-dc"]
    assert completed("hankelred", "completion", "_") == ["bash", "zsh", "fish"]
    assert completed("hankelred", "hsv", "_") == []  # bash completes names of files


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_scripts_of_other_shells_name_every_option(capsys, shell):
    out = told(capsys, "completion", shell)
    commands = parser()._subparsers._group_actions[0].choices
    options = {word for command in commands.values() for action in command._actions for word in action.option_strings}
    words = set(out.replace('"', " ").split())
    for name in (*commands, *options):
        assert name in words or f"-l {name[2:]} " in out or f"-s {name[1:]} " in out
    interpreter = shutil.which(shell)
    if interpreter:
        subprocess.run([interpreter, "-n", "-c", out], check=True)
