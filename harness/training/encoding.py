"""Embeddings of images and captions outside of optimizer steps: for rankings, and for a method's passes over
pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from harness.backbones.base import with_lengths
from harness.backbones.features import Inputs
from harness.training.accelerator import Accelerator
from harness.training.loading import Pool, Request, on_device
from methods.base import Pairs

CHUNK = 512
"""Images or captions encoded at a time."""
KEPT_BYTES = 2**33
"""Largest size of the embeddings that a pass over pairs keeps, of images and captions together."""

Side = Literal["images", "texts"]
SIDES: tuple[Side, Side] = ("images", "texts")


class Embeddings:
    """Embeddings of n images or captions on the device. Those with words are kept without their padding.

    Args:
        sample: some of the embeddings, [b, ...], for shape and type.
        count: n.
        lengths: for captions of word ids their numbers of words, int64 [n] on the CPU; else None.
        extra: rows of a caption's embedding besides those of its words.
    """

    def __init__(self, sample: Tensor, count: int, lengths: Tensor | None = None, extra: int = 0) -> None:
        self.lengths, self.extra, self.total = lengths, extra, count
        if lengths is not None:
            rows = lengths + extra
            self.starts, self.total = rows.cumsum(0) - rows, int(rows.sum()) + 1  # the last row: padding
        self.shape = (self.total, *sample.shape[1 if lengths is None else 2 :])
        self.sample = sample[:0]

    @property
    def bytes(self) -> int:
        """Memory that they take."""
        return torch.Size(self.shape).numel() * self.sample.element_size()

    @cached_property
    def rows(self) -> Tensor:
        """All of them, [n, ...] or [rows of all captions and one of padding, ...]; zeros at first."""
        return self.sample.new_zeros(self.shape)

    def put(self, index: Tensor, embeddings: Tensor) -> None:
        """Store the embeddings [b, ...] of some: their numbers, int64 [b] on the CPU."""
        places = self._places(index)
        self.rows[places] = embeddings if self.lengths is None else embeddings[:, : places.shape[1]]

    def take(self, index: Tensor) -> Tensor:
        """Embeddings [b, ...] of some, padded with zeros: their numbers, int64 [b] on the CPU."""
        embeddings = self.rows[self._places(index)]
        return embeddings if self.lengths is None else with_lengths(embeddings, self.lengths[index])

    def _places(self, index: Tensor) -> Tensor:
        """Places among the rows, [b] or [b, longest]."""
        if self.lengths is not None:
            rows = self.lengths[index] + self.extra
            column = torch.arange(int(rows.max()))
            index = self.starts[index][:, None] + column
            index[column >= rows[:, None]] = self.total - 1
        return index.to(self.rows.device, non_blocking=True)


class Encoder:
    """Encodes the images and captions of splits, in evaluation mode and without gradient.

    Args:
        inputs: what the networks take, for each split.
        pool: loads them.
        dtype: type of the weights and of the embeddings.
        heartbeat: called with the position of the trial at each chunk.
    """

    def __init__(
        self,
        inputs: Mapping[str, Inputs],
        pool: Pool,
        accelerator: Accelerator,
        dtype: torch.dtype,
        heartbeat: Callable[[str], None],
    ) -> None:
        self.inputs, self.pool, self.accelerator = inputs, pool, accelerator
        self.dtype, self.heartbeat = dtype, heartbeat

    def load(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Tensor]]:
        """Each request with its inputs, on the device."""
        device = self.accelerator.device
        loaded = on_device(self.pool.load(requests), lambda x: x.to(device, non_blocking=True), device)
        return zip(requests, loaded, strict=True)

    def encode(self, net: Any, request: Request, given: Tensor) -> Tensor:
        """Embeddings [b, ...] by a network of the inputs that a request gave."""
        given = given.to(self.dtype) if given.is_floating_point() else given
        with self.accelerator.autocast():
            if request.side == "images":
                embeddings: Tensor = net.encode_image(given)
            else:
                embeddings = net.encode_text(given, self.inputs[request.split].lengths(request.index))
        return embeddings.to(self.dtype)

    def all(
        self, nets: Sequence[Any], split: str, side: Side, index: Tensor, *, room: float = float("inf")
    ) -> list[Embeddings] | None:
        """Embeddings by each network, on every process: of n images or captions, int64 [n].

        Inputs are loaded once for all networks. Chunks, whose size does not depend on the number of
        processes, are shared out over these.

        Args:
            room: largest size for each network, in bytes; None is returned if they take more.
        """
        lengths = self.inputs[split].lengths(index) if side == "texts" else None
        order = torch.arange(len(index)) if lengths is None else lengths.argsort(stable=True)
        chunks = order.split(CHUNK)
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        # More processes than chunks: an idle one encodes a chunk for the shape, which does not count.
        mine = chunks[rank::processes] or chunks[:1]
        found: list[Embeddings] = []
        loaded = self.load([Request(split, side, index[chunk]) for chunk in mine])
        for chunk, (request, given) in zip(mine, loaded, strict=True):
            self.heartbeat(f"encoding {side} of {split}")
            parts = [self.encode(net, request, given) for net in nets]
            if not found:
                extra = 0 if lengths is None else parts[0].shape[1] - given.shape[1]
                found = [Embeddings(part, len(index), lengths, extra) for part in parts]
                if found[0].bytes > room:
                    return None
            if rank < len(chunks):
                for embeddings, part in zip(found, parts, strict=True):
                    embeddings.put(chunk, part)
        if processes > 1:
            for embeddings in found:
                embeddings.rows.copy_(self.accelerator.reduce(embeddings.rows, "sum"))
        return found

    def pairs(self, net: Any, pairs: Pairs, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Embeddings by a network of the images and of the captions of batches of pairs, [b, ...] each.

        What occurs in several pairs is encoded once and kept, if there is room (`KEPT_BYTES`); all processes
        take part. The rest is encoded with its batch.

        Args:
            pairs: the pairs.
            batches: numbers of the pairs in each batch of this process, int64 [b].
        """
        kept: dict[Side, tuple[Embeddings, Tensor]] = {}
        room = KEPT_BYTES
        index: dict[Side, Tensor] = {"images": pairs.images, "texts": pairs.captions}
        for side in SIDES:
            distinct, row = index[side].unique(return_inverse=True)
            if len(distinct) < len(pairs):
                embeddings = self.all([net], pairs.split, side, distinct, room=room)
                if embeddings:
                    kept[side] = embeddings[0], row
                    room -= embeddings[0].bytes
        rest = [side for side in SIDES if side not in kept]
        loaded = self.load([Request(pairs.split, side, index[side][b]) for b in batches for side in rest])
        for batch in batches:
            images, texts = (
                kept[side][0].take(kept[side][1][batch]) if side in kept else self.encode(net, *next(loaded))
                for side in SIDES
            )
            yield images, texts
