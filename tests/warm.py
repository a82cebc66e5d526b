"""Imported before processes are forked: what is imported late, and the small data set."""

import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
import open_clip  # noqa: F401
import sklearn.metrics  # noqa: F401
import torch
from sklearn.mixture import GaussianMixture  # noqa: F401

from tests import small

torch.set_num_threads(1)
small.load()
