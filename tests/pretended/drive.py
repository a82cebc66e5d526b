"""Drives methods on the pretended device: a line of JSON (`process.Driven`) for each.

Started by `process.drive`, which says to the dynamic linker what stands in for the CUDA runtime.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import json
import sys
import traceback
from typing import Any

import torch
from torch import Tensor

from harness.data.base import DataSet
from harness.training.accelerator import make_deterministic
from harness.training.run_trial import build_trainer
from harness.training.trainer import Trainer
from methods.base import Batch, Optimizers, Report
from tests import small
from tests.pretended import device
from tests.pretended.device import wait
from tests.pretended.process import DRIVER, Driven

SGRAF = {**small.SGRAF, "dropout": 0.3}
SETTINGS: dict[str, dict[str, Any]] = {
    "clip": small.backbone(head={"dropout": 0.3}),
    "clip, towers": small.backbone(cache=False, head={"dropout": 0.3}),
    "clip, trained whole": small.backbone(locked=False, head={"dropout": 0.3}),
    "SGR": {**SGRAF, "module": "SGR"},
    "SAF": {**SGRAF, "module": "SAF"},
}
"""Backbones by name: locked with cached features, locked with towers that run in each step, and trained as a
whole; `sgraf` is always trained as a whole.
"""
STEPS = 2
EPOCHS = 50
"""So long a trial that in its last epochs, the only ones that are driven, every warm-up is over."""


class Accelerator:
    """What a trainer takes of Accelerate's, on one pretended GPU with bf16."""

    device = device.DEVICE
    mixed_precision = "bf16"
    num_processes, process_index, is_main_process = 1, 0, True

    def autocast(self) -> Any:
        return torch.autocast("cuda", dtype=torch.bfloat16, cache_enabled=False)

    def reduce(self, values: Tensor, reduction: str) -> Tensor:
        return values.clone()

    def main_process_first(self) -> Any:
        return contextlib.nullcontext()


def start() -> None:
    """Make PyTorch believe that there is a device. Holds until the process ends."""
    torch.set_num_threads(1)
    torch.cuda._lazy_init = lambda: None
    torch._C._ensureCUDADeviceGuardSet()
    # Autograd asks for more devices than one.
    ctypes.c_byte.in_dll(ctypes.CDLL(DRIVER), "pretended_devices").value = 127
    torch.cuda.is_bf16_supported = lambda including_emulation=True: True
    torch.amp.autocast_mode.amp_definitely_not_available = lambda: False  # type: ignore[attr-defined]
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.Generator = device.Generator  # type: ignore[misc]
    torch.Tensor.pin_memory = lambda self, device=None: self  # type: ignore[method-assign,assignment]
    torch.cuda.Stream = _Stream  # type: ignore[misc,assignment]
    torch.cuda.current_stream = _Stream  # type: ignore[assignment]
    torch.cuda.stream = lambda stream: contextlib.nullcontext()  # type: ignore[assignment,misc]
    torch.cuda.synchronize = lambda device=None: wait("torch.cuda.synchronize")
    torch.cuda.current_device = lambda: 0
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    make_deterministic()
    # Kernels for the memory of a GPU alone.
    torch.backends.cudnn.enabled = False
    for enable in ("enable_flash_sdp", "enable_mem_efficient_sdp", "enable_cudnn_sdp"):
        getattr(torch.backends.cuda, enable)(False)


class _Stream:
    """Work on a stream is done at once."""

    def __init__(self, device: Any = None) -> None: ...

    def record_event(self) -> None: ...

    def wait_event(self, event: None) -> None: ...

    def synchronize(self) -> None:
        wait("Stream.synchronize")


def make_trainer(setting: str, method: str) -> Trainer:
    """A trainer on the pretended device, where the features of locked towers are computed, too."""
    trial = small.trial(method, backbone=SETTINGS[setting], epochs=EPOCHS, batch_size=8)
    data = _data(trial.backbone["kind"])
    return build_trainer(trial, data, trial.noise_index(data), Accelerator())  # type: ignore[arg-type]


@functools.cache
def _data(backbone: str) -> DataSet:
    """Few concepts, and every third caption of theirs, for short scans."""
    data = small.regions(8) if backbone == "sgraf" else small.few()
    splits = {
        name: dataclasses.replace(split, captions=split.captions[::3], owner=split.owner[::3])
        for name, split in data.splits.items()
    }
    return dataclasses.replace(data, splits=splits, fingerprint=f"{data.fingerprint}-short")


def drive(setting: str, method: str) -> list[list[str]]:
    """A scan, two steps of a late epoch and an evaluation. Returns the waits of each step."""
    found: list[list[str]] = []
    with device.Pretending():
        trainer = make_trainer(setting, method)
        net, few = trainer.method.networks[0], trainer.method.pairs[torch.arange(12)]
        trainer.method.eval()
        trainer.scan(lambda images, texts: {"score": net.pair_similarity(images, texts)}, pairs=few)
        if trainer.method.trains:
            _take_two_steps(trainer, found)
        trainer._beliefs({})
        trainer.evaluate("dev")
    return found


def _take_two_steps(trainer: Trainer, found: list[list[str]]) -> None:
    plan, step = trainer.plan_pass, trainer.method.step

    def first_steps(epoch: int, network: int = 0) -> Any:
        whole = plan(epoch, network)
        pools = {name: batches[:STEPS] for name, batches in whole.pools.items()}
        return dataclasses.replace(whole, batches=whole.batches[:STEPS], pools=pools)

    def counted(batch: Batch, optimizers: Optimizers, network: int) -> Report:
        with device.waits() as waits:
            report = step(batch, optimizers, network)
        found.append(waits)
        return report

    trainer.plan_pass = first_steps  # type: ignore[method-assign]
    trainer.method.step = counted  # type: ignore[method-assign]
    trainer._train_pass(EPOCHS - 2, trainer.method.passes()[0])  # in the last one, FLOPs are counted too


def main() -> None:
    start()
    for setting, method in json.loads(sys.argv[1]):
        waits: list[list[str]] = []
        error = ""
        try:
            waits = drive(setting, method)
        except Exception:
            error = traceback.format_exc()
        print(json.dumps(dataclasses.asdict(Driven(setting, method, waits, error))), flush=True)


if __name__ == "__main__":
    main()
