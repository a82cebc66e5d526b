"""From plans (which pairs) to batches (their inputs), in this process or in loader workers, and on to the
device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from harness.backbones.features import Inputs
from harness.data.base import DataError
from methods.base import Batch, Pairs

UNITS = 4
"""Units of work that a loader worker has at hand, and that an image batch is divided into for each worker."""

Item = TypeVar("Item", Batch, Tensor)
Given = TypeVar("Given")
Sent = TypeVar("Sent")
Received = TypeVar("Received")


@dataclass(frozen=True)
class Plan:
    """A batch that is to be loaded: its pairs, their indices, its seed, auxiliary pairs by name, and how far
    the trial is.
    """

    index: Tensor
    pairs: Pairs
    seed: int = 0
    auxiliary: Mapping[str, tuple[Tensor, Pairs]] = field(default_factory=dict)
    progress: float = 0.0


@dataclass(frozen=True)
class Request:
    """Inputs that are to be loaded: images or texts of a split, by index (int64 [b])."""

    split: str
    side: Literal["images", "texts"]
    index: Tensor

    def __reduce__(self) -> Any:
        # On its way to a worker a tensor would take shared memory and a file descriptor, whatever its size.
        return _request, (self.split, self.side, self.index.numpy())


def _request(split: str, side: Literal["images", "texts"], index: np.ndarray) -> Request:
    return Request(split, side, torch.from_numpy(index))


class Fetch:
    """From a plan to requests, and from what they give to a batch.

    Args:
        inputs: the splits that plans may name.
        process: with `processes` > 1, the rows of this process only.
    """

    def __init__(self, inputs: Mapping[str, Inputs], *, process: int = 0, processes: int = 1) -> None:
        self.inputs, self.process, self.processes = inputs, process, processes

    def __getitem__(self, plan: Plan) -> Batch:
        return next(load([plan], self))

    def requests(self, plan: Plan) -> Iterator[Request]:
        """Images and texts of the plan's pairs, then those of each auxiliary batch."""
        for pairs in (plan.pairs, *(pairs for _, pairs in plan.auxiliary.values())):
            if pairs.split not in self.inputs:
                raise KeyError(pairs.split)
            rows = slice(*self._range(len(pairs)))
            yield Request(pairs.split, "images", pairs.images[rows])
            yield Request(pairs.split, "texts", pairs.captions[rows])

    def batch(self, plan: Plan, loaded: Iterator[Tensor]) -> Batch:
        """The batch of a plan, from the inputs that its requests gave."""
        batch = self._batch(plan, plan.index, plan.pairs, loaded)
        for name, (index, pairs) in plan.auxiliary.items():
            batch.auxiliary[name] = self._batch(plan, index, pairs, loaded)
        return batch

    def _batch(self, plan: Plan, index: Tensor, pairs: Pairs, loaded: Iterator[Tensor]) -> Batch:
        start, _ = self._range(len(pairs))
        return Batch(
            index,
            next(loaded),
            next(loaded),
            start,
            len(pairs),
            plan.seed,
            sharded=self.processes > 1,
            lengths=self.inputs[pairs.split].lengths(pairs.captions),
            progress=plan.progress,
        )

    def _range(self, total: int) -> tuple[int, int]:
        return total * self.process // self.processes, total * (self.process + 1) // self.processes


class Pool:
    """Loads inputs, in this process or in workers that persist until `close`.

    Workers are forked when they are first needed. Images of inputs with an attribute `chunk` are loaded in
    units of that many or more, by several workers; other inputs one request at a time. This process reads
    what is `at_hand` (see `Inputs`).

    Args:
        inputs: inputs by split.
        workers: number of worker processes; 0: none.
    """

    def __init__(self, inputs: Mapping[str, Inputs], workers: int = 0) -> None:
        idle = all(_at_hand(source) >= {"images", "texts"} for source in inputs.values())
        self.inputs, self.workers = inputs, 0 if idle else workers
        self._reader = _Reader(inputs)
        self._units = _Units()
        self._loader: DataLoader[Tensor] | None = None
        self._running: object = None

    def load(self, requests: Iterable[Request]) -> Iterator[Tensor]:
        """The inputs of each request, in order. Requests are drawn lazily, a few ahead where there are
        workers.

        Raises:
            DataError: a picture cannot be decoded; the text names it.
        """
        if not self.workers or self._running:  # workers serve one sequence at a time
            yield from (self._reader[request] for request in requests)
            return
        this = self._running = object()
        try:
            yield from self._with_workers(requests)
        finally:
            if self._running is this:
                self._running = None

    def close(self) -> None:
        """End the workers. A later `load` starts new ones."""
        if self._loader is not None and self._loader._iterator is not None:
            # Dropping the last reference would do the same, but a traceback may hold one.
            self._loader._iterator._shutdown_workers()  # type: ignore[attr-defined]
        self._loader = self._running = None

    def _with_workers(self, requests: Iterable[Request]) -> Iterator[Tensor]:
        drawn: deque[tuple[Request, int, Tensor | None]] = deque()

        def units() -> Iterator[Request]:
            for request in requests:
                parts, order = self._divide(request)
                drawn.append((request, len(parts), order))
                yield from parts

        self._units.source = units()
        if self._loader is None:
            self._loader = DataLoader(
                self._reader,
                batch_size=None,
                sampler=self._units,
                num_workers=self.workers,
                prefetch_factor=UNITS,
                persistent_workers=True,
                generator=torch.Generator(),  # or each start would draw from the trial's
            )
        loaded = iter(self._loader)  # draws the first units; each unit received draws the next
        while drawn:
            request, count, order = drawn.popleft()
            if not count:
                yield self._reader[request]
                continue
            parts = list(_received(loaded, count))
            yield parts[0] if order is None else torch.cat(parts)[order]

    def _divide(self, request: Request) -> tuple[list[Request], Tensor | None]:
        """Units of work of a request: none, one, or parts of its distinct images, with the row of each image
        among them.
        """
        source = self.inputs[request.split]
        if request.side in _at_hand(source):
            return [], None
        least: int | None = getattr(source, "chunk", None)
        if least is None or request.side == "texts":
            return [request], None
        distinct, order = request.index.unique(return_inverse=True)
        size = max(least, -(-len(distinct) // (UNITS * self.workers)))
        return [Request(request.split, "images", part) for part in distinct.split(size)], order


def _at_hand(source: Inputs) -> frozenset[str]:
    return getattr(source, "at_hand", frozenset())


def _received(loaded: Iterator[Tensor], count: int) -> Iterator[Tensor]:
    """The next `count` units of the workers."""
    try:
        yield from islice(loaded, count)
    except DataError as error:
        # It comes with the worker's traceback as its text, of which the last line is ours.
        raise type(error)(str(error).strip().splitlines()[-1].partition(": ")[2]) from None


class _Reader(Dataset[Tensor]):
    def __init__(self, inputs: Mapping[str, Inputs]) -> None:
        self.inputs = inputs

    def __getitem__(self, request: Request) -> Tensor:  # type: ignore[override]
        source = self.inputs[request.split]
        return source.images(request.index) if request.side == "images" else source.texts(request.index)


class _Units:
    """What the workers are to load, which changes from pass to pass."""

    def __init__(self) -> None:
        self.source: Iterator[Request] = iter(())

    def __iter__(self) -> Iterator[Request]:
        return self.source


def load(plans: Iterable[Plan], fetch: Fetch, pool: Pool | None = None) -> Iterator[Batch]:
    """The plans' batches, in order; plans are made lazily, a few ahead where there are workers.

    Args:
        pool: loads the inputs, at least those of `fetch`; None: this process does.

    Raises:
        DataError: a picture cannot be decoded; the text names it.
    """
    drawn: deque[Plan] = deque()

    def requests() -> Iterator[Request]:
        for plan in plans:
            drawn.append(plan)
            yield from fetch.requests(plan)

    loaded = (pool or Pool(fetch.inputs)).load(requests())
    for first in loaded:
        yield fetch.batch(drawn.popleft(), chain([first], loaded))


def on_device(items: Iterable[Item], move: Callable[[Item], Item], device: torch.device) -> Iterator[Item]:
    """The items on the device. For a GPU the next one is pinned and copied, on a stream of its own, before
    one is handed out, so that it travels while the step computes.

    Args:
        items: batches or tensors, on the CPU.
        move: copies an item to the device, without waiting.
        device: the device.
    """
    if device.type != "cuda":
        yield from map(move, items)
        return
    stream = torch.cuda.Stream(device)

    def send(item: Item) -> tuple[Item, Any]:
        with torch.cuda.stream(stream):
            return move(item.pin_memory()), stream.record_event()

    def receive(sent: tuple[Item, Any]) -> Item:
        item, copied = sent
        computing = torch.cuda.current_stream(device)
        computing.wait_event(copied)  # this copy alone: the next one is on its way already
        item.record_stream(computing)  # the memory belongs to the other stream, which must not reuse it early
        return item

    yield from one_ahead(items, send, receive)


def one_ahead(
    items: Iterable[Given], send: Callable[[Given], Sent], receive: Callable[[Sent], Received]
) -> Iterator[Received]:
    """`receive(send(item))` of each item, in order; the next item is sent before one is received."""
    sent: deque[Sent] = deque()
    for item in items:
        sent.append(send(item))
        if len(sent) > 1:
            yield receive(sent.popleft())
    if sent:
        yield receive(sent.popleft())
