from __future__ import annotations

import os

import pytest
from ray.cluster_utils import Cluster

from tests import build
from tests.sweep.paced import ROOT, Server


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


@pytest.fixture(scope="module")
def cluster(feature_cache):
    """Three nodes on this machine: a head that runs no trial, and two that run one each."""
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)
    build.trainer("clip")  # features are there before several processes ask
    quick = {
        "health_check_initial_delay_ms": 1000,
        "health_check_period_ms": 500,
        "health_check_timeout_ms": 5000,
        "health_check_failure_threshold": 3,
    }
    made = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "resources": {"trial_slot": 2},
            "include_dashboard": False,
            "_system_config": quick,
        },
    )
    made.add_node(num_cpus=1)
    made.add_node(num_cpus=1)
    made.wait_for_nodes()
    yield made
    made.shutdown()
    os.environ.pop("PYTHONPATH") if path is None else os.environ.update(PYTHONPATH=path)
