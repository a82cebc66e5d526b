"""A method of a user's own, outside the package `methods`."""

from __future__ import annotations

from methods.clip import Clip


class Mine(Clip):
    """A user's own method, given by its path."""

    def __init__(self, *, strength: float = 2.0, **common):
        super().__init__(**common)
        self.strength = strength
