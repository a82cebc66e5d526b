"""From plans (which pairs) to batches (their inputs), in this process or in loader workers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from harness.backbones.features import Inputs
from harness.data.base import DataError
from methods.base import Batch, Pairs


@dataclass(frozen=True)
class Plan:
    """A batch that is to be loaded: its pairs, their indices, its seed, and auxiliary pairs by name."""

    index: Tensor
    pairs: Pairs
    seed: int = 0
    auxiliary: Mapping[str, tuple[Tensor, Pairs]] = field(default_factory=dict)


class Fetch(Dataset[Batch]):
    """Loads the inputs of a plan; with `processes` > 1 those of this process's rows only."""

    def __init__(self, inputs: Mapping[str, Inputs], *, process: int = 0, processes: int = 1) -> None:
        self.inputs, self.process, self.processes = inputs, process, processes

    def __getitem__(self, plan: Plan) -> Batch:  # type: ignore[override]
        batch = self._batch(plan.index, plan.pairs, plan.seed)
        for name, (index, pairs) in plan.auxiliary.items():
            batch.auxiliary[name] = self._batch(index, pairs, plan.seed)
        return batch

    def _batch(self, index: Tensor, pairs: Pairs, seed: int) -> Batch:
        total = len(pairs)
        start, stop = total * self.process // self.processes, total * (self.process + 1) // self.processes
        source = self.inputs[pairs.split]
        images, texts = source.images(pairs.images[start:stop]), source.texts(pairs.captions[start:stop])
        return Batch(index, images, texts, start, total, seed, sharded=self.processes > 1)


def load(plans: Iterable[Plan], fetch: Fetch, *, workers: int) -> Iterator[Batch]:
    """The plans' batches, in order; plans are made lazily, a few ahead where there are workers.

    Raises:
        DataError: a picture cannot be decoded; the text names it.
    """
    if workers == 0:
        for plan in plans:
            yield fetch[plan]
        return
    try:
        yield from DataLoader(fetch, batch_size=None, sampler=plans, num_workers=workers)
    except DataError as error:
        # from a worker it comes with the traceback as its text, of which the last line is ours
        raise type(error)(str(error).strip().splitlines()[-1].partition(": ")[2]) from None
