"""`python -m qlab ...` is `qlab ...`."""

import sys

from qlab.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
