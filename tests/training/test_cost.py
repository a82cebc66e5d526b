"""The cost meter on machines of all kinds."""

from __future__ import annotations

import builtins
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from harness.training import cost


@pytest.fixture
def gpu(monkeypatch):
    """A machine that says it has a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="x"))
    cost._nvml_handle.cache_clear()
    yield
    cost._nvml_handle.cache_clear()


def test_a_gpu_without_pynvml_has_no_energy(gpu, monkeypatch):
    imported = builtins.__import__

    def without(name, *arguments, **options):
        if name == "pynvml":
            raise ImportError(name)
        return imported(name, *arguments, **options)

    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    assert cost._joules() == 0.0


def test_a_gpu_whose_driver_does_not_answer_has_no_energy(gpu, monkeypatch):
    class NVMLError(Exception):
        pass

    def fails():
        raise NVMLError("Driver Not Loaded")

    module = ModuleType("pynvml")
    module.NVMLError, module.nvmlInit = NVMLError, fails
    monkeypatch.setitem(sys.modules, "pynvml", module)
    assert cost._joules() == 0.0
