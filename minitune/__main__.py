"""``python -m minitune``."""

import sys

from minitune.cli import main

if __name__ == "__main__":
    sys.exit(main())
