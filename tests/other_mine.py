"""A second class of the same name, for reports that must tell them apart."""

from __future__ import annotations

from methods.clip import Clip


class Mine(Clip):
    """A user's own method."""
