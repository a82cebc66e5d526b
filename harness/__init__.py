"""Benchmark harness for image-text matching under noisy correspondence."""

PROTOCOL_VERSION = 2
"""Raised whenever equal trials would give other numbers: records of different versions are never merged."""
