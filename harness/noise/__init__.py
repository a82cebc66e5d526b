"""Noise: models that mismatch training pairs, and published noise-index files."""

GRANULARITIES = ("caption", "image")
"""What moves to another image: single captions, or all captions of an image together."""
FORMS = ("caption", "image", "text")
"""Forms of published noise-index files; see `harness.noise.files`."""
