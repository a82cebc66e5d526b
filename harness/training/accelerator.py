"""The device of a trial, through Accelerate: precision, determinism, memory, timeouts between processes.

No other module imports Accelerate.
"""

from __future__ import annotations

import os
import platform
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator as Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import AutocastKwargs, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list as broadcast_object_list

from harness.config.resources import Resources


def make_accelerator(precision: str, resources: Resources | None = None, *, cpu: bool = False) -> Accelerator:
    """Accelerate on whatever there is; `auto` is bf16 on a GPU that has it, else fp32.

    A worker process runs many trials, so the state of an earlier one is reset. Autocast caches no copies of
    weights: a step may change some (a meta-network) and use them again.

    Args:
        precision: `fp32`, `bf16`, `fp64` or `auto`.
        resources: what the trial gets of the machine. A process may wait for another (which computes
            features, say) for `Resources.collective_timeout`, where this call starts the process group.
        cpu: take the CPU also where there is a GPU.
    """
    resources = resources or Resources()
    cuda = torch.cuda.is_available() and not cpu
    if cuda:
        make_deterministic()
        share_memory(resources.gpus)
    # V100 and T4 emulate bf16, slowly.
    has_bf16 = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    bf16 = precision == "bf16" or (precision == "auto" and has_bf16)
    if not torch.distributed.is_initialized():
        AcceleratorState._reset_state(reset_partial_state=True)
    handlers = [
        AutocastKwargs(cache_enabled=False),
        InitProcessGroupKwargs(timeout=timedelta(seconds=resources.collective_timeout)),
    ]
    return Accelerator(mixed_precision="bf16" if bf16 else "no", cpu=not cuda, kwargs_handlers=handlers)


def make_deterministic() -> None:
    """Make equal trials give equal numbers on a GPU, and full precision mean full precision.

    Operations that have no deterministic implementation warn. Without this, cuDNN computes fp32 convolutions
    and GRUs in TF32 (10 bits of mantissa). Call it before the process uses the device: cuBLAS reads its
    workspace setting when it starts.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # A debugging aid that costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def share_memory(gpus: float) -> None:
    """Keep a trial that has a share of a GPU (`resources.gpus` below 1) to that share of its memory."""
    if 0 < gpus < 1:
        torch.cuda.set_per_process_memory_fraction(gpus)


def device_name(device: torch.device) -> str:
    """What a record calls a device. Of a CPU what decides how sums are rounded on it: the model, and the
    instructions that PyTorch uses there.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {_cpu_model()})"


def _cpu_model(listing: Path = Path("/proc/cpuinfo")) -> str:
    """Name, family, model and stepping, as Linux lists them; elsewhere what Python knows."""
    try:
        first = listing.read_text().partition("\n\n")[0]
    except OSError:
        return platform.processor() or "unknown"
    known = {key.strip(): value.strip() for key, _, value in (s.partition(":") for s in first.splitlines())}
    name = known.get("model name", known.get("CPU part", "unknown"))
    numbers = [known[k] for k in ("cpu family", "model", "stepping") if k in known]
    return " ".join([name.replace("(R)", "").replace("(TM)", ""), "/".join(numbers)]).strip()


def release_memory() -> None:
    """Give memory that PyTorch keeps for later use back to the GPU, for other processes that share it."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
