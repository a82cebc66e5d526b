"""`python -m tests.pretended [SETTING [METHOD ...]]`: where the steps of methods wait for the device.

A method is a registered one, or `package.module:Name`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

from methods import METHODS
from tests.pretended.process import drive, missing


def main(arguments: list[str]) -> None:
    if reason := missing():
        sys.exit(reason)
    from tests.pretended.drive import SETTINGS

    settings = [s for s in SETTINGS if not arguments or s == arguments[0]]
    if not settings:
        sys.exit(f"unknown setting {arguments[0]!r} (allowed: {', '.join(map(repr, SETTINGS))})")
    methods = arguments[1:] or list(METHODS)
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("HARNESS_CACHE", folder)
        for driven in drive([(s, m) for s in settings for m in methods], Path(folder)):
            print(f"{driven.setting} / {driven.method}: waits in each step: {[*map(len, driven.waits)]}")
            for wait, count in Counter(w for step in driven.waits for w in step).items():
                print(f"    {count / len(driven.waits):5.1f} a step  {wait}")
            if driven.error:
                print(driven.error)


if __name__ == "__main__":
    main(sys.argv[1:])
