"""Noise: models that mismatch training pairs, and published noise-index files."""

GRANULARITIES = ("caption", "image", "text")
"""What moves to another image: single captions, all captions of an image together, or all copies of a
caption's text together."""
FORMS = ("caption", "image", "text")
"""Forms of published noise-index files; see `harness.noise.files`."""
