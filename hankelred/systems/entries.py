"""What files of every kind share: the entries of a system, and how much of a file is believed."""

from __future__ import annotations

from ..errors import InputError

MATRICES = ("A", "B", "C", "D", "E")
# Keywords of the names of a system, and what they are called in files.
IN_FILES = {"name": "system_name", "inputs": "input_names", "outputs": "output_names", "states": "state_names"}
# Bytes that the matrices of one file may have altogether: a square matrix of 16,384 states.
LIMIT = 2**31


class Budget:
    """Bytes that may still be allocated for the matrices of one file."""

    def __init__(self) -> None:
        self.left = LIMIT

    def check(self, count: int) -> None:
        """Refuse a size that is beyond what is left."""
        if count > self.left:
            raise InputError(
                f"The matrices of a file may have {LIMIT} bytes altogether; it declares {LIMIT - self.left + count}. "
                f"Check the sizes in the file, or pass the matrices to StateSpace."
            )

    def spend(self, count: int) -> None:
        """Take so many bytes away."""
        self.check(count)
        self.left -= count


def expect(valid: object, defect: str) -> None:
    """Raise the error of a damaged file unless the claim holds."""
    if not valid:
        raise InputError(f"It is damaged: {defect}. Copy or save it again.")
