"""What a method is: the contract between `methods/` and the harness.

A method owns its networks and sees pair indices, images and texts. It never sees which pairs are
noisy, the test split, or the trial. The harness owns the clock, the data order, the optimizers,
precision and evaluation, so that all methods pay the same budget.

The smallest method overrides `loss`; `methods/clip.py` is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Protocol

import annotated_types as at
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

# Types of hyper-parameters. The harness checks a sweep file against a constructor's annotations.
Positive = Annotated[float, at.Gt(0)]
Share = Annotated[float, at.Ge(0), at.Le(1)]
Count = Annotated[int, at.Ge(0)]
Size = Annotated[int, at.Ge(1)]

Report = dict[str, float | Tensor]
"""Named scalars for the record; tensors are read at the end of the epoch, so that no step waits for the
device.
"""


@dataclass(frozen=True)
class Pairs:
    """Pairs to fetch: image `images[k]` with caption `captions[k]` of a split (`train`, or `meta` for the
    clean set).
    """

    images: Tensor
    captions: Tensor
    split: str = "train"

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, rows: Tensor) -> Pairs:
        return Pairs(self.images[rows], self.captions[rows], self.split)

    def some(self, count: int | None, generator: torch.Generator) -> Pairs:
        """`count` random pairs, which include the smaller samples of an equal generator; None: all pairs.

        Raises:
            ValueError: there are fewer.
        """
        if count is None:
            return self
        if count > len(self):
            raise ValueError(f"clean_pairs = {count}: the data set has {len(self)} clean pairs")
        return self[torch.randperm(len(self), generator=generator)[:count]]


@dataclass
class Batch:
    """A global batch of `total` pairs, of which this process holds the inputs of rows `start, start + 1,
    ...`.

    Where it is not `sharded`, those are all rows. `index` [total] are training-pair indices (for other pairs:
    positions in the request). `images` and `texts` are what the backbone takes. `seed` is this batch's own:
    dropout and draws come from it. `auxiliary` holds the batches that the method asked for with
    `auxiliary_pools`, and the pairs that it asked for with `auxiliary_pairs`.
    """

    index: Tensor
    images: Tensor
    texts: Tensor
    start: int
    total: int
    seed: int
    sharded: bool = False
    auxiliary: dict[str, Batch] = field(default_factory=dict)

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        def move(x: Tensor) -> Tensor:
            return x.to(device, dtype if x.is_floating_point() else None, non_blocking=True)

        auxiliary = {name: batch.to(device, dtype) for name, batch in self.auxiliary.items()}
        images, texts = move(self.images), move(self.texts)
        return Batch(
            move(self.index), images, texts, self.start, self.total, self.seed, self.sharded, auxiliary
        )


class Backbone(Protocol):
    """A network that embeds images and texts. It is a `torch.nn.Module` too.

    `forward(batch)` gives the embeddings of the *global* batch, with gradient, over all processes: a method
    never gathers anything itself. An embedding is a row of a tensor, [B, D] or wider ([B, 1 + regions, D] for
    `sgraf`). `forward(batch, then=f)` gives f(images, texts) instead, so that under
    `torch.func.functional_call` all of f sees the replaced parameters.
    """

    vector_size: int
    """Width V of the similarity vector."""
    couples_pairs: bool
    """Whether a pair's similarity depends on the other pairs that it is scored with while training (SAF's
    batch normalisation).
    """
    published_head: Mapping[str, Tensor] | None
    """Weights of MSCN's similarity head, where the network was loaded from a checkpoint that has one."""

    def __call__(self, batch: Batch, then: Callable[[Tensor, Tensor], Any] | None = None) -> Any: ...
    def encode_image(self, images: Tensor) -> Tensor: ...
    def encode_text(self, texts: Tensor) -> Tensor: ...
    def similarity(self, images: Tensor, texts: Tensor) -> Tensor:
        """[M, ...], [N, ...] -> [M, N]: all pairs, in [-1, 1]."""

    def pair_similarity(self, images: Tensor, texts: Tensor) -> Tensor:
        """[B, ...], [B, ...] -> [B]: the diagonal only."""

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """`similarity` times the learned inverse temperature."""

    def pooled(self, embeddings: Tensor) -> Tensor:
        """[B, ...] -> [B, D']: one unit vector for each image or text, for nearest neighbours."""

    def vectors(self, images: Tensor, texts: Tensor) -> Vectors:
        """Similarity vectors of all pairs: [M, ...], [N, ...] -> [M, N, V]."""

    def pair_vectors(self, images: Tensor, texts: Tensor) -> Vectors:
        """Those of the diagonal only: [B, ...], [B, ...] -> [B, V]."""


class Vectors(Protocol):
    """Similarity vectors [..., V], which need not stand in memory."""

    def project(self, weight: Tensor, bias: Tensor) -> Tensor:
        """A linear layer over each of them: [H, V], [H] -> [..., H]."""


class Optimizers(Protocol):
    """The harness's side of a step: one optimizer and schedule for each group of parameters.

    Gradients are averaged over processes in here; a method writes what one process would compute.
    """

    def update(self, loss: Tensor, *groups: str) -> None:
        """Backward, clip, step and schedule for the named groups (all of them take gradients of `loss`)."""

    def look_ahead(self, loss: Tensor, group: str) -> dict[str, Tensor]:
        """The group's parameters after one optimizer step on `loss`, from the optimizer's present state.

        Neither parameters nor state change, and the graph of `loss` stays usable.
        """

    def gradients(self, loss: Tensor, group: str, *, create_graph: bool = False) -> dict[str, Tensor]:
        """The gradient of `loss` for each parameter of the group, differentiable if asked for."""

    def learning_rate(self, group: str) -> float:
        """The learning rate of the group's next step."""


@dataclass(frozen=True)
class Group:
    """Parameters with an optimizer of their own. `lr` None: the sweep's learning rate."""

    parameters: Mapping[str, nn.Parameter]
    lr: float | None = None


class Scan(Protocol):
    """Runs a function over pairs in evaluation mode without gradient, and gathers it over processes.

    `function(images, texts)` gets the embeddings of a batch under `network`, and returns tensors [b, ...] by
    name; the result holds them for all pairs in data-set order, on the CPU. Pairs come in a fixed seeded
    order, in equal batches under the data set's batch rule.
    """

    def __call__(
        self,
        function: Callable[[Tensor, Tensor], dict[str, Tensor]],
        *,
        network: int = 0,
        pairs: Pairs | None = None,
    ) -> dict[str, Tensor]: ...


class Method(nn.Module):
    """Base class of all methods.

    Args (all keyword-only; whatever a subclass adds is a hyper-parameter, set from a sweep file):
        make_backbone: makes network number i, initialised from the trial's seed.
        pairs: the training pairs as they are trained with: caption k with image `pairs.images[k]`.
        batch_size: pairs in a global batch.
        seed: the trial's model seed, for draws of the method's own.
    A class with `uses_ground_truth` also gets `ground_truth` (bool [N], pair k matches); one with
    `uses_clean_data` also gets `clean` (the clean meta-set, `Pairs` of the split `meta`).
    """

    paper: ClassVar[str] = ""
    published: ClassVar[tuple[str, ...]] = ()
    """What the method is called in tables of published results, which reports show next to ours."""
    uses_clean_data: ClassVar[bool] = False
    uses_ground_truth: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    id_neutral_defaults: ClassVar[Mapping[str, Any]] = {}
    """Hyper-parameters that came after a method's first records, at the value that means what was before:
    there they stay out of a trial's id, so that an id outlives them."""

    networks: Sequence[Any]  # a ModuleList of backbones (`Backbone`, and modules all the same)

    def __init__(
        self,
        *,
        make_backbone: Callable[[int], Any],
        pairs: Pairs,
        batch_size: int,
        seed: int,
        n_networks: int = 1,
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleList(make_backbone(i) for i in range(n_networks))  # type: ignore[assignment]
        self.pairs = pairs
        self.batch_size = batch_size
        self.seed = seed

    @property
    def n_networks(self) -> int:
        """Networks whose similarities are averaged at test; stands in every record."""
        return len(self.networks)

    def groups(self) -> dict[str, Group]:
        """One optimizer for each entry. Default: one for each network, named `network0`, `network1`, ..."""
        return {f"network{i}": Group(trainable(net)) for i, net in enumerate(self.networks)}

    def start_epoch(self, epoch: int, network: int, scan: Scan) -> Report:
        """Called before each network's pass of an epoch (from 0): look at all pairs, build banks
        or mixtures.
        """
        return {}

    def passes(self) -> Sequence[int]:
        """The order in which networks are trained within an epoch; each gets the full number of steps."""
        return range(self.n_networks)

    def selected(self, network: int) -> Tensor | None:
        """Training pairs (indices) that this pass draws its batches from; None: all. Steps stay the same."""
        return None

    def auxiliary_pools(self, network: int) -> dict[str, Tensor | Pairs]:
        """Further pools: training pairs (indices), or the clean set or a part of it. Each step also gets a
        batch from each, drawn by the same rules, as `batch.auxiliary[name]`: of the same size or, from a pool
        that does not fill one, of what there is (at least 2 pairs).
        """
        return {}

    def batch_scale(self, epoch: int) -> int:
        """The factor by which batches of this epoch exceed the sweep's batch size; there are as many times
        fewer steps.
        """
        return 1

    @classmethod
    def largest_batch(cls, batch_size: int, hyper: Mapping[str, Any]) -> int:
        """Pairs in the largest batch of any epoch, known before the method is made."""
        return batch_size

    def auxiliary_pairs(self, index: Tensor, seed: int) -> dict[str, Pairs]:
        """Further pairs that a step on the pairs `index` needs; they arrive as `batch.auxiliary`.

        May be called ahead of the step, within the pass."""
        return {}

    def loss(self, batch: Batch) -> tuple[Tensor, Report]:
        """The training loss of a global batch, and scalars to record."""
        raise NotImplementedError(f"{type(self).__name__} overrides neither loss nor step")

    def step(self, batch: Batch, optimizers: Optimizers, network: int) -> Report:
        """One optimizer step of `network`. Overridden where an update is not one loss and one step."""
        loss, report = self.loss(batch)
        optimizers.update(loss, f"network{network}")
        return {"loss": loss.detach(), **report}

    def score(self, network: int, images: Tensor, texts: Tensor) -> Tensor:
        """Embeddings of one network, [M, ...] and [N, ...] -> [M, N]: what that network ranks by."""
        scores: Tensor = self.networks[network].similarity(images, texts)
        return scores

    def confidence(self) -> Tensor | None:
        """For each training pair (data-set order) the belief in [0, 1] that it matches; None if there is
        none.
        """
        return None


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that take gradients, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Forward passes in this block can be differentiated twice: cuDNN's recurrent layers and fused attention
    cannot be.
    """
    with torch.backends.cudnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH):
        yield


class evaluation_mode(AbstractContextManager[None]):
    """The module in evaluation mode inside the block, and as it was after it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __enter__(self) -> None:
        self.before = self.module.training
        self.module.eval()

    def __exit__(self, *error: object) -> None:
        self.module.train(self.before)
