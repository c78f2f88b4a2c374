"""The command line of an environment whose scripts are not on the path: ``python -m hankelred``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
