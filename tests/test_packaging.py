"""What users install: wheel and sdist in environments that hold what the metadata ask for, and nothing else.

By default an environment is put together from what is installed here, without a network, and one extra is tried. With
``HANKELRED_LONG=1`` pip installs all of them from its index, the wheel and the sdist.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from sizes import is_long, sample

ROOT = Path(__file__).parents[1]

# What an extra is for, as little of it as shows that everything is there.
USES = {
    "torch": "import hankelred_torch as ht; ht.layers.LRU(channels=2, states=4)",
    "control": "import control, hankelred as hr; hr.balanced_truncation(control.ss(-1, 1, 1, 0), order=1)",
    "slycot": "import slycot",
    "cholmod": "import sksparse.cholmod",
    "pardiso": "import pypardiso",
    "umfpack": "import scikits.umfpack",
    "petsc": "import hankelred.linalg.petsc, petsc4py",
    "transformers": "from hankelred_torch.integrations import accelerate, transformers",
    "lightning": "from hankelred_torch.integrations import lightning",
    "plot": "import hankelred.plotting as plotting; plotting.plot_hsv([1.0, 0.1])",
    "demo": "import hankelred_torch, matplotlib, jinja2, sklearn, tqdm",
    "testing": "from hankelred.testing import stable_systems; stable_systems()",
    "all": "import control, hankelred_torch, matplotlib, slycot; from hankelred.testing import stable_systems",
}
OF_A_CHECKOUT = {"test", "docs", "bench"}  # what `make` installs; every run of this suite tries the first
ON_THE_SYSTEM = {"cholmod", "umfpack", "petsc"}  # built by pip on a library of the system

NO_NETWORK = """
import sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "urllib.Request"):
        raise AssertionError(f"{event} {arguments}")
sys.addaudithook(refuse)
"""
USER = """
import numpy as np

import hankelred as hr

plant = hr.StateSpace(np.diag([-1.0, -2.0]), np.ones((2, 1)), np.ones((1, 2)))
reduction = hr.balance(plant).reduce(order=1)
order: int = reduction.order
bound: float = reduction.error_bound
text: str = reduction.summary()
"""
WRONG = "wrong: str = reduction.order\n"


def build(source: Path, folder: Path) -> dict[str, Path]:
    """Build wheel and sdist of a source tree, without an environment of its own."""
    pytest.importorskip("hatchling")
    ordered = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(ordered, cwd=source, check=True, capture_output=True)
    return {"wheel": next(folder.glob("*.whl")), "sdist": next(folder.glob("*.tar.gz"))}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build(ROOT, tmp_path_factory.mktemp("dist"))


def installed(requirements: list[str], extra: str = "") -> set[str]:
    """Return the names of what requirements ask for, and what that asks for; skip where something is not here."""
    found: set[str] = set()
    asked = [(Requirement(text), extra) for text in requirements]
    seen = set()
    while asked:
        requirement, of = asked.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": of}):
            continue
        name = canonicalize_name(requirement.name)
        if name == "hankelred":
            asked += [(Requirement(text), part) for part in requirement.extras for text in requirements]
            continue
        for part in requirement.extras | {""}:
            if (name, part) in seen:
                continue
            seen.add((name, part))
            try:
                needs = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                pytest.skip(f"{name} is not installed")
            asked += [(Requirement(text), part) for text in needs]
            found.add(name)
    return found


def environment(folder: Path, archive: Path, extra: str = "") -> Path:
    """Make an environment with an archive of ours and what it asks for, and return its interpreter."""
    venv.create(folder, symlinks=True, with_pip=is_long())
    python = folder / "bin" / "python"
    name = f"{archive}[{extra}]" if extra else str(archive)
    if is_long():
        wanted = [str(python), "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), name]
        found = subprocess.run(wanted, capture_output=True, text=True, check=False)
        if found.returncode and extra in ON_THE_SYSTEM:
            pytest.skip(f"{extra} did not build here: {found.stderr[-300:]}")
        assert found.returncode == 0, found.stderr
        return python
    (site,) = (folder / "lib").glob("python*/site-packages")
    with zipfile.ZipFile(archive) as wheel:
        wheel.extractall(site)
        (metadata,) = (wheel.read(name).decode() for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    for name in installed(re.findall(r"^Requires-Dist: (.*)$", metadata, flags=re.MULTILINE), extra):
        package = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in package.files or []} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(package.locate_file(top))).resolve())
    return python


def run(python: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run an interpreter outside the repository, and without what points back to it."""
    known = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "NUMBA"))}
    settings = {**known, "MPLBACKEND": "Agg", "HOME": str(cwd)}
    if not is_long():
        settings["NUMBA_DISABLE_JIT"] = "1"  # all kernels of a reduction take longer to compile than the rest together
    return subprocess.run([python, *arguments], cwd=cwd, env=settings, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def core(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("core"), built["wheel"])


def test_a_second_build_elsewhere_gives_the_same_bytes(built, tmp_path):
    unwanted = shutil.ignore_patterns(".git", ".venv*", "__pycache__", "_build", ".*cache", ".hypothesis", "generated")
    copy = shutil.copytree(ROOT, tmp_path / "elsewhere", ignore=unwanted)
    for path in copy.rglob("*.py"):
        path.chmod(0o600)
        os.utime(path, (1e9, 1e9))
    again = build(copy, tmp_path / "dist")
    for kind, path in built.items():
        assert again[kind].name == path.name
        assert hashlib.sha256(again[kind].read_bytes()).digest() == hashlib.sha256(path.read_bytes()).digest(), kind


def test_the_wheel_holds_both_packages_and_nothing_else(built):
    with zipfile.ZipFile(built["wheel"]) as wheel:
        names = wheel.namelist()
    assert {"hankelred/py.typed", "hankelred_torch/py.typed"} <= set(names)
    folders = {name.split("/")[0] for name in names}
    assert {name for name in folders if not name.endswith(".dist-info")} == {"hankelred", "hankelred_torch"}
    modules = {name for name in names if name.endswith(".py")}
    assert modules == {
        path.relative_to(ROOT).as_posix()
        for part in ("hankelred", "hankelred_torch")
        for path in (ROOT / part).rglob("*.py")
    }


def test_the_sdist_holds_what_tests_and_documentation_need(built):
    with tarfile.open(built["sdist"]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"LICENSE", "Makefile", "constraints.txt", "tests/conftest.py", "docs/conf.py", "CITATION.cff"} <= names


def test_the_core_alone_reduces_a_model_without_torch_and_without_a_network(core, tmp_path):
    code = f"""{NO_NETWORK}{USER}
assert bound >= reduction.hinf_error()
assert hr.__file__.startswith({str(core.parents[1])!r}), hr.__file__
try:
    import hankelred_torch
except ModuleNotFoundError as error:
    assert "pip install 'hankelred[torch]'" in str(error), error
else:
    raise AssertionError("torch is here")
hr.save_system(plant, "plant.npz")
"""
    found = run(core, "-c", code, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    found = run(core, "-m", "hankelred", "hsv", "plant.npz", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "hsv" in found.stdout


@pytest.mark.skipif(not is_long(), reason="a script is installed by pip, in the long run")
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_pip_installs_the_program(built, kind, tmp_path):
    python = environment(tmp_path / "environment", built[kind])
    found = subprocess.run([python.parent / "hankelred", "--help"], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "reduce" in found.stdout


def test_every_extra_is_tried(pyproject):
    assert set(USES) == set(pyproject["project"]["optional-dependencies"]) - OF_A_CHECKOUT


@pytest.mark.parametrize("extra", [*sample(sorted(set(USES) - {"plot"})), "plot"] if not is_long() else sorted(USES))
def test_an_extra_alone_is_all_that_its_part_needs(built, extra, tmp_path):
    python = environment(tmp_path / "environment", built["wheel"], extra)
    found = run(python, "-c", NO_NETWORK + USES[extra], cwd=tmp_path)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_types_are_seen_from_outside(core, checker, tmp_path):
    pytest.importorskip(checker)
    if checker == "pyright" and not is_long():
        pytest.skip("fetches itself from npm, in the long run")
    ordered = [sys.executable, "-m", checker]
    ordered += ["--strict", "--python-executable"] if checker == "mypy" else ["--pythonpath"]
    (tmp_path / "user.py").write_text(USER + WRONG, encoding="utf-8")
    known = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    found = subprocess.run(
        [*ordered, str(core), "user.py"], cwd=tmp_path, env=known, capture_output=True, text=True, check=False
    )
    errors = [line for line in found.stdout.splitlines() if re.search(r"user\.py.*\berror\b", line)]
    assert len(errors) == 1, found.stdout + found.stderr  # none of the user's lines, and the wrong one
    assert f"user.py:{len((USER + WRONG).splitlines())}:" in errors[0]
