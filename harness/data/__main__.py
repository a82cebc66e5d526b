"""`python -m harness.data`: see `harness.data_tools.cli`."""

import sys

from harness.data_tools.cli import main

if __name__ == "__main__":
    sys.exit(main())
