from __future__ import annotations

import pytest

from tests import build
from tests.sweep.paced import Server


@pytest.fixture(scope="module")
def alone(feature_cache):
    """What the trials give that are left alone: `clip` in disguise."""
    return {seed: build.trainer("clip", seed=seed).fit() for seed in range(3)}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """An MLflow server."""
    made = Server(tmp_path_factory.mktemp("server"))
    made.start()
    yield made
    made.stop()
