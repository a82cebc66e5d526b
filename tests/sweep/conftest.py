from __future__ import annotations

import pytest

from tests import build


@pytest.fixture(scope="module")
def alone(feature_cache):
    """What the trials give that are left alone: `clip` in disguise."""
    return {seed: build.trainer("clip", seed=seed).fit() for seed in range(3)}
