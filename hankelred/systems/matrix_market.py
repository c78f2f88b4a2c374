"""Matrix Market files, ``A.mtx`` and so on: sparse matrices in folders, beside or in place of ``.csv``."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import InputError
from .entries import Budget, expect

# Bytes that an entry takes in the file at least: two indices of one digit, blanks and the end of the line.
LEAST = 4


def read_matrix_market(path: Path, budget: Budget) -> Any:
    """Return the matrix in a file, sparse where it is stored by coordinates, after a look at the sizes it declares."""
    if not path.is_file():
        raise InputError(f"{path.name} must be a regular file. Check the path.")
    with open(path, "rb") as file:
        banner = file.readline(1000).lower().split()
        line = file.readline(10**6)
        while line.startswith(b"%") or line and not line.strip():
            line = file.readline(10**6)
    known = banner[:2] == [b"%%matrixmarket", b"matrix"] and len(banner) == 5
    sizes = [int(part) for part in line.split() if part.isdigit()]
    sparse = known and banner[2] == b"coordinate"
    expect(known and len(sizes) == 2 + sparse, f"{path.name} has no header of a Matrix Market file")
    count = sizes[2] if sparse else sizes[0] * sizes[1]
    least = LEAST if sparse else 2
    expect(least * count <= path.stat().st_size, f"{path.name} declares {count} entries and holds fewer")
    budget.spend(32 * count + 8 * (sizes[0] + sizes[1]))
    import scipy.io  # takes a tenth of a second, and most programs never come here

    try:
        return scipy.io.mmread(path, spmatrix=False)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{path.name} cannot be read: {' '.join(str(error).split())}") from error


def matrix_market_lines(x: Any) -> Iterable[bytes]:
    """Return the contents of a file that holds a sparse matrix with all its digits."""
    import scipy.io

    text = io.BytesIO()
    scipy.io.mmwrite(text, x, precision=17)
    return [text.getvalue()]
