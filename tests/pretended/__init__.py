"""A CUDA device that is not there. By hand, `python -m tests.pretended` shows where steps wait for it."""
