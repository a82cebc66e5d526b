"""Files that ship with the harness and are no code: sweep files, and what searches have found."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

_PACKAGE = Path(__file__).parents[1]


def shipped(kind: Literal["sweeps", "results"]) -> Path:
    """The directory of such files: inside the package where it is installed, beside it in a checkout. It may
    not exist.
    """
    inside = _PACKAGE / "shipped" / kind
    return inside if inside.is_dir() else _PACKAGE.parent / kind
