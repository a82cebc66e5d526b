"""`python -m harness.data`: see `harness.data_tools.cli`."""

from harness.data_tools.cli import main
from harness.lib.command import run

if __name__ == "__main__":
    run(main)
