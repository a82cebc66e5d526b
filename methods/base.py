"""The contract between the methods and the harness.

A method owns its networks and sees pair indices, images and texts. It never sees which pairs are noisy, the
test split, or the trial. The harness owns the clock, the data order, the optimizers, precision and
evaluation, so that all methods have the same budget.

The smallest method overrides `loss`; `methods/clip.py` is an example. `docs/adding.md` explains the contract.

Shapes: N training pairs, a batch of B pairs, M images and T texts, embedding dimension D.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Protocol

import annotated_types as at
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

# Types of hyper-parameters. The harness checks a sweep file against the annotations of a constructor.
Positive = Annotated[float, at.Gt(0)]
"""A number above 0."""
NonNegative = Annotated[float, at.Ge(0)]
"""A number of at least 0."""
Share = Annotated[float, at.Ge(0), at.Le(1)]
"""A number in [0, 1]."""
PositiveShare = Annotated[float, at.Gt(0), at.Le(1)]
"""A number in (0, 1]."""
Count = Annotated[int, at.Ge(0)]
"""An integer of at least 0."""
Size = Annotated[int, at.Ge(1)]
"""An integer of at least 1."""

Report = dict[str, float | Tensor]
"""Named scalars for the record. Tensors are read at the end of the epoch, so that no step waits for the
device.
"""


@dataclass(frozen=True)
class Pairs:
    """Pairs of a split: image `images[k]` with caption `captions[k]`.

    Attributes:
        images: int64 [N], indices of images in the split.
        captions: int64 [N], indices of captions in the split. Equal captions have one index, the first.
        split: `train`, or `meta` for the clean set.
        index: int64 [N], position of each pair in the pairs that these are a part of.
        groups: int64 [N], of the clean set where no two pairs of a group may meet in a batch; else None.
    """

    images: Tensor
    captions: Tensor
    split: str = "train"
    index: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    groups: Tensor | None = None

    def __post_init__(self) -> None:
        if len(self.index) != len(self.captions):
            object.__setattr__(self, "index", torch.arange(len(self.captions)))

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, rows: Tensor) -> Pairs:
        groups = None if self.groups is None else self.groups[rows]
        return Pairs(self.images[rows], self.captions[rows], self.split, self.index[rows], groups)

    def some(self, count: int | None, generator: torch.Generator) -> Pairs:
        """Random pairs without replacement.

        Args:
            count: number of pairs; None: all, in order.
            generator: with an equal generator, a larger sample includes the smaller ones.

        Raises:
            ValueError: `count` exceeds the number of pairs.
        """
        if count is None:
            return self
        if count > len(self):
            raise ValueError(f"clean_pairs = {count}: the data set has {len(self)} clean pairs")
        return self[torch.randperm(len(self), generator=generator)[:count]]


@dataclass
class Batch:
    """A global batch of B pairs; a process holds the inputs of all its rows or of a part of them.

    Attributes:
        index: int64 [B], indices of the pairs in those that they were taken from: the training pairs, or the
            clean set.
        images: images of this process [b, ...], as the backbone takes them.
        texts: texts of this process [b, ...], as the backbone takes them.
        start: row of the global batch at which `images` and `texts` begin.
        total: B.
        seed: seed of this batch, for dropout and for draws of the method.
        sharded: whether `images` and `texts` are a part of the rows; otherwise b = B.
        auxiliary: batches from `Method.auxiliary_pools` and `Method.auxiliary_pairs`, by name.
        lengths: int64 [B], numbers of words of the global batch's captions, for backbones on word ids; None
            for others. They stay on the CPU, where their values are read without waiting for the device.
        network: index of the network that is trained on the batch.
        progress: part of the trial's steps that lies before this one, in [0, 1).
    """

    index: Tensor
    images: Tensor
    texts: Tensor
    start: int
    total: int
    seed: int
    sharded: bool = False
    auxiliary: dict[str, Batch] = field(default_factory=dict)
    lengths: Tensor | None = None
    network: int = 0
    progress: float = 0.0

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        """The batch and its auxiliary batches on `device`, but for `lengths`; floating point in `dtype`."""

        def move(x: Tensor) -> Tensor:
            return x.to(device, dtype if x.is_floating_point() else None, non_blocking=True)

        auxiliary = {name: batch.to(device, dtype) for name, batch in self.auxiliary.items()}
        index, images, texts = map(move, (self.index, self.images, self.texts))
        return replace(self, index=index, images=images, texts=texts, auxiliary=auxiliary)

    def pin_memory(self) -> Batch:
        """The batch in memory that a GPU reads without the CPU."""
        auxiliary = {name: batch.pin_memory() for name, batch in self.auxiliary.items()}
        index, images, texts = (x.pin_memory() for x in (self.index, self.images, self.texts))
        return replace(self, index=index, images=images, texts=texts, auxiliary=auxiliary)

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Mark the tensors of the batch as used by a stream of the device. See `Tensor.record_stream`."""
        for tensor in (self.index, self.images, self.texts):
            tensor.record_stream(stream)
        for batch in self.auxiliary.values():
            batch.record_stream(stream)


class Backbone(Protocol):
    """A network that embeds images and texts and compares them. It is also a `torch.nn.Module`.

    `forward(batch)` returns the embeddings of the *global* batch over all processes, with gradient, so that a
    method never gathers anything itself. Embeddings are [B, D], or wider ([B, 1 + regions, D] for `sgraf`).
    `forward(batch, then=f)` returns f(images, texts) instead, so that under `torch.func.functional_call` all
    of f uses the replaced parameters.
    """

    vector_size: int
    """Dimension V of the similarity vector."""
    couples_pairs: bool
    """Whether, in training mode, the similarity of a pair depends on the other pairs that are scored with it
    (batch normalisation in SAF).
    """
    sigmoid: bool
    """Whether similarities are sigmoids, in (0, 1) (`sgraf`); otherwise they are cosines."""
    published_head: Mapping[str, Tensor] | None
    """Weights of MSCN's similarity head, if the network was loaded from a checkpoint that has one."""

    def __call__(self, batch: Batch, then: Callable[[Tensor, Tensor], Any] | None = None) -> Any:
        """Embeddings of the images and of the texts, [B, ...] each, or the result of `then`."""

    def encode_image(self, images: Tensor) -> Tensor:
        """Embeddings of images: [M, ...] -> [M, ...]."""

    def encode_text(self, texts: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Embeddings of texts: [T, ...] -> [T, ...].

        Args:
            texts: as the backbone takes them.
            lengths: numbers of words, int64 [T] on the CPU, where `texts` are word ids [T, L]. Embeddings are
                then [T, k + L, D] with zeros at padding.
        """

    def similarity(self, images: Tensor, texts: Tensor) -> Tensor:
        """Similarities of all pairs, in [-1, 1]: embeddings [M, ...], [T, ...] -> [M, T]."""

    def pair_similarity(self, images: Tensor, texts: Tensor) -> Tensor:
        """The diagonal of `similarity` only: [B, ...], [B, ...] -> [B]."""

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """`similarity` times the learned inverse temperature: [M, ...], [T, ...] -> [M, T]."""

    def scaled(self, similarity: Tensor) -> Tensor:
        """The logits of similarities that are there already, of any shape."""

    def pooled(self, embeddings: Tensor) -> Tensor:
        """A unit vector for each image or text, for nearest neighbours: [B, ...] -> [B, D']."""

    def vectors(self, images: Tensor, texts: Tensor) -> Vectors:
        """Similarity vectors of all pairs: [M, ...], [T, ...] -> [M, T, V]."""

    def pair_vectors(self, images: Tensor, texts: Tensor) -> Vectors:
        """The diagonal of `vectors` only: [B, ...], [B, ...] -> [B, V]."""


class Vectors(Protocol):
    """Similarity vectors [..., V]; an implementation need not store all of them."""

    def project(self, weight: Tensor, bias: Tensor) -> Tensor:
        """A linear layer applied to every vector: weight [H, V], bias [H] -> [..., H]."""


class Optimizers(Protocol):
    """What a method can do in a step: one optimizer and one schedule for each group of parameters.

    Gradients are averaged over processes inside, so a method is written for one process.
    """

    def update(self, loss: Tensor, *groups: str) -> None:
        """Compute the gradients of `loss`, clip them and step the optimizers of the named groups."""

    def step(self, gradients: Mapping[str, Tensor], group: str) -> None:
        """Clip given gradients and step the optimizer of a group; the tensors stay as they are."""

    def look_ahead(self, gradients: Mapping[str, Tensor], group: str) -> dict[str, Tensor]:
        """Parameters of a group after one `step` on the gradients, from the optimizer's current state.

        Parameters and state do not change.
        """

    def gradients(
        self, loss: Tensor, group: str, *, create_graph: bool = False, retain_graph: bool = False
    ) -> dict[str, Tensor]:
        """Gradients of `loss` by parameter name of the group; differentiable with `create_graph`.

        The graph of `loss` can be used again with `retain_graph`.
        """

    def learning_rate(self, group: str) -> float:
        """Learning rate of a group in the current step."""


@dataclass(frozen=True)
class Group:
    """Parameters with an optimizer of their own.

    Attributes:
        parameters: the parameters by name.
        lr: base learning rate; None: that of the sweep.
    """

    parameters: Mapping[str, nn.Parameter]
    lr: float | None = None


class Scan(Protocol):
    """A pass over pairs in evaluation mode without gradient, distributed over processes."""

    def __call__(
        self,
        function: Callable[[Tensor, Tensor], dict[str, Tensor]],
        *,
        network: int = 0,
        pairs: Pairs | None = None,
    ) -> dict[str, Tensor]:
        """Apply `function` to all pairs. They come in a fixed seeded order, in batches of equal size.

        Args:
            function: from the embeddings of a batch, [b, ...] and [b, ...], to tensors [b, ...] by name.
            network: index of the network that embeds the pairs.
            pairs: the pairs; None: the training pairs, in batches under the data set's batch rule.

        Returns:
            The tensors of all pairs, [N, ...] by name, in the order of `pairs`, on the CPU.
        """


class Method(nn.Module):
    """Base class of all methods.

    Arguments are keyword-only. Those below are given by the harness; arguments that a subclass adds are
    hyper-parameters, set in a sweep file. Two further ones are given to a class that declares them:
    `ground_truth` (bool [N], whether pair k matches) with `uses_ground_truth`, and `clean` (the clean
    meta-set, `Pairs` of the split `meta`) with `uses_clean_data`.

    State that a resumed trial needs is held in buffers.

    Args:
        make_backbone: makes network number i, initialised from the trial's seed and i.
        pairs: the N training pairs as they are trained on: caption k with image `pairs.images[k]`.
        batch_size: number of pairs in a global batch.
        seed: the trial's model seed, for draws of the method.
        n_networks: number of networks.
    """

    paper: ClassVar[str] = ""
    """What the method implements: a paper and its venue, or a baseline."""
    family: ClassVar[str] = "other"
    """How the method deals with mismatched pairs: one of `methods.FAMILIES`."""
    published: ClassVar[tuple[str, ...]] = ()
    """Names of the method in tables of published results, which reports show next to ours."""
    uses_clean_data: ClassVar[bool] = False
    """Whether the method is given the clean meta-set."""
    uses_ground_truth: ClassVar[bool] = False
    """Whether the method is given the ground truth of the pairs (the oracle)."""
    trains: ClassVar[bool] = True
    """Whether the method trains; otherwise its networks are evaluated as they are."""
    differentiates_twice: ClassVar[bool] = False
    """Whether a step differentiates a gradient, or a forward pass under replaced parameters
    (`torch.func.functional_call`). Such a method cannot have `backbone.checkpointing`
    or `backbone.compile`.
    """
    id_neutral_defaults: ClassVar[Mapping[str, Any]] = {}
    """Hyper-parameters that were added after the first records of the method, at the value that equals the
    earlier behaviour. At this value they are not part of a trial's id, so earlier ids stay valid.
    """

    networks: Sequence[Any]  # a ModuleList; its items implement `Backbone` and are modules

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
        self.make_backbone = make_backbone
        self.pairs = pairs
        self.batch_size = batch_size
        self.seed = seed

    @property
    def n_networks(self) -> int:
        """Number of networks. Their similarities are averaged at test, so every record contains it."""
        return len(self.networks)

    def groups(self) -> dict[str, Group]:
        """Groups of parameters, one optimizer each. Default: `network0`, `network1`, ..., one per network."""
        return {f"network{i}": Group(trainable(net)) for i, net in enumerate(self.networks)}

    def replacement(self, epoch: int, network: int) -> nn.Module | None:
        """A network whose weights one of the method's takes on before its pass of an epoch, with a new
        optimizer; None: it goes on. The schedule goes on in either case.
        """
        return None

    def start_epoch(self, epoch: int, network: int, scan: Scan) -> Report:
        """Prepare a network's pass of an epoch, e.g. fit mixtures or build memory banks.

        Args:
            epoch: the epoch, from 0.
            network: the network that is trained in this pass.
            scan: makes passes over the training pairs.

        Returns:
            Scalars to record.
        """
        return {}

    def passes(self) -> Sequence[int]:
        """The order in which networks are trained within an epoch; each gets the full number of steps."""
        return range(self.n_networks)

    def selected(self, network: int) -> Tensor | None:
        """Indices of the training pairs that a network's pass draws batches from; None: all.

        The number of steps does not change.
        """
        return None

    def auxiliary_pools(self, network: int) -> dict[str, Tensor | Pairs]:
        """Further pools by name; each step gets a batch from each, as `batch.auxiliary[name]`.

        A pool is a tensor of training-pair indices, or a part of the clean set. Its batches are drawn by the
        rules of the training batches. They have the same size, or fewer pairs (at least 2) if the pool does
        not fill a batch. A pool that allows fewer than 2 pairs gives no batch.
        """
        return {}

    def batch_scale(self, epoch: int) -> int:
        """Factor on the sweep's batch size in an epoch; the number of steps is divided by it."""
        return 1

    @classmethod
    def largest_batch(cls, batch_size: int, hyper: Mapping[str, Any]) -> int:
        """Number of pairs in the largest batch of any epoch, known before the method is constructed.

        Args:
            batch_size: the sweep's batch size.
            hyper: hyper-parameters by name.
        """
        return batch_size

    @classmethod
    def needs_alignment(cls, hyper: Mapping[str, Any]) -> bool:
        """Whether the method relies on similarities of networks as they come, before any training.

        Args:
            hyper: hyper-parameters by name.
        """
        return False

    def auxiliary_pairs(self, index: Tensor, seed: int) -> dict[str, Pairs]:
        """Further pairs by name that the step on a batch needs, as `batch.auxiliary[name]`.

        May be called before earlier steps of the same pass have run, since batches are loaded ahead.

        Args:
            index: int64 [B], indices of the batch's training pairs.
            seed: seed of the batch.
        """
        return {}

    def loss(self, batch: Batch) -> tuple[Tensor, Report]:
        """The training loss of `batch.network` on a global batch (a scalar), and scalars to record.

        Raises:
            NotImplementedError: the method overrides neither `loss` nor `step`.
        """
        raise NotImplementedError(f"{type(self).__name__} overrides neither loss nor step")

    def step(self, batch: Batch, optimizers: Optimizers, network: int) -> Report:
        """Train `network` on a global batch, and return scalars to record.

        Default: one optimizer step on `loss`. Override it if an update is not one loss and one step.
        """
        loss, report = self.loss(replace(batch, network=network))
        optimizers.update(loss, f"network{network}")
        return {"loss": loss.detach(), **report}

    def score(self, network: int, images: Tensor, texts: Tensor) -> Tensor:
        """Scores by which a network ranks: its embeddings [M, ...], [T, ...] -> [M, T]."""
        scores: Tensor = self.networks[network].similarity(images, texts)
        return scores

    def confidence(self) -> Tensor | None:
        """Confidence that each training pair matches, [N] in [0, 1]; None: the method has none."""
        return None

    def training_weight(self, network: int) -> Tensor | None:
        """How much each training pair counted in a network's last pass, [N] in [0, 1]; None: all alike.

        The harness records the size and the purity of what a network trains on from `selected` and this.
        """
        return None

    def diagnostics(self) -> Mapping[str, Tensor]:
        """Further values of each training pair by name, [N], larger for pairs that the method takes for
        matched. The record keeps them beside the confidence, with how well they separate the pairs.
        """
        return {}


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a module that require gradients, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def cudnn_switched(*, enabled: bool) -> AbstractContextManager[None]:
    """Context in which cuDNN is on or off. Its other settings stay, which `cudnn.flags` resets by itself."""
    cudnn = torch.backends.cudnn
    context: AbstractContextManager[None] = cudnn.flags(
        enabled=enabled,
        benchmark=cudnn.benchmark,
        deterministic=cudnn.deterministic,
        allow_tf32=cudnn.allow_tf32,
    )
    return context


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Context in which forward passes can be differentiated twice.

    It disables cuDNN's recurrent layers and fused attention, which have no second derivative.
    """
    with cudnn_switched(enabled=False), sdpa_kernel(SDPBackend.MATH):
        yield


class evaluation_mode(AbstractContextManager[None]):
    """Context in which a module is in evaluation mode; its former mode is restored on exit."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __enter__(self) -> None:
        self.was_training = self.module.training
        self.module.eval()

    def __exit__(self, *error: object) -> None:
        self.module.train(self.was_training)
