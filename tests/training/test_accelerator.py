"""What is asked of a GPU, as far as it shows without one: the settings that are passed."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
from accelerate.utils import InitProcessGroupKwargs

from harness.config.resources import Resources
from harness.record.recorder import PrintRecorder
from harness.training import accelerator as module
from harness.training.run_trial import run_trial
from tests import small


@pytest.fixture
def settings(monkeypatch):
    """Settings of the process, restored after the test."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    saved = (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = saved


@pytest.fixture
def gpu(monkeypatch, settings):
    """A machine with a GPU that emulates bf16, and what Accelerate is asked for there."""
    asked = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share: asked.update(memory=share)
    )
    monkeypatch.setattr(module, "Accelerator", lambda **given: asked.update(given))
    return asked


def test_a_gpu_computes_deterministically_and_without_tf32(gpu, monkeypatch):
    module.make_accelerator("fp32")
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    assert module.os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.parametrize(("precision", "mixed"), [("auto", "no"), ("bf16", "bf16"), ("fp32", "no")])
def test_emulated_bf16_is_not_chosen(gpu, precision, mixed):
    module.make_accelerator(precision)
    assert gpu["mixed_precision"] == mixed


def test_processes_wait_longer_for_each_other_than_a_trial_may_hang(gpu):
    module.make_accelerator("fp32", Resources(stall_minutes=90))
    (group,) = (h for h in gpu["kwargs_handlers"] if isinstance(h, InitProcessGroupKwargs))
    assert group.timeout > timedelta(minutes=90)
    assert not gpu["cpu"]


@pytest.mark.parametrize("gpus", [0.25, 1, 0])
def test_a_trial_with_a_share_of_a_gpu_keeps_to_that_share_of_its_memory(gpu, gpus):
    module.make_accelerator("fp32", Resources(gpus=gpus))
    assert gpu.get("memory") == (gpus if 0 < gpus < 1 else None)


def test_a_cpu_is_named_by_its_model_and_instructions(tmp_path):
    """Machines of one architecture may round sums otherwise."""
    listing = tmp_path / "cpuinfo"
    first = "model name\t: Intel(R) Xeon(R) Gold\ncpu family\t: 6\nmodel\t: 143\nstepping\t: 8\n"
    listing.write_text(f"processor\t: 0\n{first}\nprocessor\t: 1\n{first.replace('143', '0')}\n")
    assert module._cpu_model(listing) == "Intel Xeon Gold 6/143/8"
    listing.write_text("processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n")
    assert module._cpu_model(listing) == "0xd40"
    assert module._cpu_model(tmp_path / "nowhere") == (module.platform.processor() or "unknown")
    name = module.device_name(torch.device("cpu"))
    assert torch.backends.cpu.get_cpu_capability() in name
    assert name.startswith(f"cpu ({module.platform.machine()} ")


def test_a_cpu_keeps_its_settings(settings):
    module.make_accelerator("fp32")
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_finished_trial_gives_memory_back(monkeypatch):
    calls = []
    monkeypatch.setattr("harness.training.run_trial.release_memory", lambda: calls.append(1))
    run_trial(small.trial("zero_shot"), PrintRecorder())
    assert calls == [1]
