"""FLOPs and memory of a step that is not computed: on fake tensors, which have a shape and no content.

Weights, embeddings and pixels are fake; indices and words are real, since shapes can follow from them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.backbones import backbone_setup
from harness.backbones.features import Inputs
from harness.config.trial import Trial, method_class
from harness.data.base import DataSet, Split
from harness.training.accelerator import make_accelerator
from harness.training.flops import FlopCounter
from harness.training.loading import Plan, Pool
from harness.training.optimizers import Optimizers
from harness.training.run_trial import build_trainer
from harness.training.trainer import Trainer
from methods.base import Batch, Method, Pairs
from methods.seeding import torch_generator


@dataclass(frozen=True)
class Estimate:
    """What a step takes.

    Attributes:
        tflop: as `cost/tflop_per_step`; None where an operation could not be counted.
        gib: the largest sum of all tensors at one time in GiB: weights, optimizer state, gradients,
            activations and inputs. An allocator takes more.
    """

    tflop: float | None
    gib: float


def estimate_step(trial: Trial, data: DataSet, *, gpu: bool) -> Estimate:
    """Count a step of the trial's last epoch with the whole batch in one process, without computing it.

    What the method learns from its passes over the training pairs is random. Kernels are those of a CPU,
    whose fused attention keeps as much as a GPU's, and autocast follows the rules of a CPU.

    Args:
        data: the trial's data set.
        gpu: whether the trial will run on a GPU, where the precision `auto` is bf16.

    Raises:
        Exception: whatever the step raises on fake tensors, e.g. where it reads a number from the device.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    precision = "bf16" if trial.precision == "auto" and gpu else trial.precision
    accelerator = make_accelerator(precision, cpu=True)
    inputs, one_pair = _sources(trial, data)
    trainer = build_trainer(trial, data, trial.noise_index(data), accelerator, inputs=inputs)
    trainer.inputs = {s: FakeInputs(source, mode, one_pair=one_pair) for s, source in inputs.items()}
    trainer.pool = Pool(trainer.inputs)
    method = trainer.method
    _fake(method, mode)
    trainer.optimizers = Optimizers(
        method.groups(), trial, steps_per_epoch=max(1, trainer.steps), processes=1
    )
    network, epoch = method.passes()[0], trial.epochs - 1
    method.eval()
    method.start_epoch(epoch, network, _random_scan(trainer))
    batch = next(trainer.batches(epoch, network))
    method.train()

    def step() -> None:
        trainer.optimizers.at_step(0)
        with accelerator.autocast():
            method.step(batch, trainer.optimizers, network)

    with LiveMemory() as memory:
        memory.add(*method.parameters(), *method.buffers(), *_tensors(batch))
        for _ in range(2):  # the first one makes the optimizers' state
            step()
    with FlopCounter() as counter:  # apart: the two would see each other's work
        step()
    return Estimate(None if counter.total is None else counter.total / 1e12, memory.peak / 2**30)


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of all storages that are alive at one time.

    Attributes:
        peak: the most bytes so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known: set[int] = set()

    def add(self, *tensors: Tensor) -> None:
        """Count storages as alive until they are freed."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self._known:
                self._known.add(key)
                self.live += size
                weakref.finalize(storage, self._drop, key, size)
        self.peak = max(self.peak, self.live)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        self.add(*(x for x in tree_leaves(out) if isinstance(x, Tensor)))
        return out


class FakeInputs:
    """Inputs with the shapes of a source: fake numbers, and real indices.

    Args:
        source: inputs of the same shapes, of at least one image and caption.
        one_pair: the source has one pair alone.
    """

    def __init__(self, source: Inputs, mode: FakeTensorMode, *, one_pair: bool) -> None:
        self.source, self.mode, self.one_pair = source, mode, one_pair
        first = torch.zeros(1, dtype=torch.long)
        self.image, self.text = source.images(first)[0], source.texts(first)[0]

    def images(self, index: Tensor) -> Tensor:
        """[b] -> [b, ...]."""
        return self._like(self.image, len(index))

    def texts(self, index: Tensor) -> Tensor:
        """[b] -> [b, ...]."""
        if self.text.is_floating_point():
            return self._like(self.text, len(index))
        return self.source.texts(torch.zeros_like(index) if self.one_pair else index)

    def lengths(self, index: Tensor) -> Tensor | None:
        """[b] -> [b], or None."""
        return self.source.lengths(torch.zeros_like(index) if self.one_pair else index)

    def _like(self, one: Tensor, count: int) -> Tensor:
        with self.mode:
            return torch.empty(count, *one.shape, dtype=one.dtype)


def _sources(trial: Trial, data: DataSet) -> tuple[Mapping[str, Inputs], bool]:
    """Inputs by split, and whether they are of one pair alone: where the backbone computes features."""
    setup = backbone_setup(trial.backbone)
    splits = ["train", "dev", "test"] + (["meta"] if method_class(trial.method).uses_clean_data else [])
    if not setup.uses_cache:
        return {s: setup.inputs(data, s) for s in splits}, False
    one = replace(
        data, splits={"train": _first(data["train"])}, fingerprint=f"{data.fingerprint}-one-pair", shard=None
    )
    return dict.fromkeys(splits, setup.inputs(one, "train")), True


def _first(split: Split) -> Split:
    """A split of the first caption and its image."""
    image = int(split.owner[0])
    return replace(
        split,
        images=[split.images[image]],
        captions=[split.captions[0]],
        owner=split.owner[:1] * 0,
        image_group=split.image_group[image : image + 1],
    )


def _fake(method: Method, mode: FakeTensorMode) -> None:
    """Make the parameters of a method fake, in place, and the floating-point buffers of its networks.

    Its own buffers are of the pairs, and decide which pairs are drawn.
    """
    made: dict[int, Any] = {}  # shared parameters stay shared
    for part in method.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                if id(parameter) not in made:
                    fake = mode.from_tensor(parameter.detach())
                    made[id(parameter)] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
                part._parameters[name] = made[id(parameter)]
        for name, buffer in part._buffers.items() if part is not method else ():
            if buffer is not None and buffer.is_floating_point():
                part._buffers[name] = mode.from_tensor(buffer)


def _random_scan(trainer: Trainer) -> Any:
    """A `methods.base.Scan` whose numbers are random, in the shapes of the function's."""

    @torch.no_grad()
    def scan(
        function: Callable[[Tensor, Tensor], dict[str, Tensor]],
        *,
        network: int = 0,
        pairs: Pairs | None = None,
    ) -> dict[str, Tensor]:
        pairs = trainer.method.pairs if pairs is None else pairs
        index = torch.arange(min(len(pairs), trainer.config.batch_size))
        batch = trainer._fetch()[Plan(index, pairs[index])]
        generator = torch_generator(0, "estimate")
        with trainer.accelerator.autocast():
            embeddings = trainer.method.networks[network](batch)
        return {
            name: torch.rand(len(pairs), *values.shape[1:], generator=generator)
            for name, values in function(*embeddings).items()
        }

    return scan


def _tensors(batch: Batch) -> list[Tensor]:
    """All tensors of a batch."""
    own = [batch.index, batch.images, batch.texts]
    return own + [x for other in batch.auxiliary.values() for x in _tensors(other)]
