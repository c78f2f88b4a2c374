"""The command line: ``hankelred hsv | norms | reduce | compare | convert | completion``."""

from .program import main

__all__ = ["main"]
