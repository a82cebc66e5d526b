"""A module of a user's own that cannot be imported."""

raise OSError("a fault of the user's own")
