"""The training loop. It names no method: who trains what, and how, is `methods/`' part.

An epoch: for each network in turn, the method looks at all pairs (`start_epoch`), then takes the same
number of steps as every other method; dev is evaluated; the state is saved. The last epoch and the best one
on dev are both tested. Nothing is ever selected on test.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.backbones.features import Inputs
from harness.config.trial import TrainingConfig
from harness.data.base import DataSet, Split
from harness.evaluation.coco import coco_metrics
from harness.evaluation.device_ranking import rank_on_device
from harness.evaluation.metrics import Ranking, detection, rank_queries, recalls, separation
from harness.noise.index import NoiseIndex
from harness.record.types import DataChanged, Diverged, EpochRecord, Outcome
from harness.training.accelerator import Accelerator, broadcast_object_list
from harness.training.checkpoint import Checkpoints, read
from harness.training.cost import CostMeter, reset_peak_memory
from harness.training.encoding import CHUNK, Encoder
from harness.training.flops import utilization
from harness.training.loading import Fetch, Plan, Pool, Request, load, on_device
from harness.training.optimizers import Optimizers
from harness.training.sampling import PoolTooNarrow, epoch_batches, scan_batches
from methods.base import Batch, Method, Pairs, Report
from methods.seeding import seed_of


@dataclass
class State:
    """The state of a running trial besides the method and its optimizers."""

    epoch: int = 0
    best_epoch: int = -1
    best_rsum: float = -1.0
    best_weights: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class PassPlan:
    """What a network is trained on within an epoch.

    Attributes:
        batches: indices of training pairs [batch size], for each step.
        selected: the pairs that the method selects; None: all.
        widened: whether the method's selection was too small for a batch, so that all pairs were drawn from.
        pools: by name, for each step the indices and pairs of an auxiliary batch.
    """

    epoch: int
    network: int
    batches: list[np.ndarray]
    selected: np.ndarray | None
    widened: bool
    pools: Mapping[str, list[tuple[Tensor, Pairs]]]

    @property
    def pairs(self) -> int:
        """Pairs in all batches."""
        return sum(map(len, self.batches))

    @property
    def auxiliary_pairs(self) -> int:
        """Pairs in all auxiliary batches that are drawn from pools."""
        return sum(len(pairs) for batches in self.pools.values() for _, pairs in batches)


class Trainer:
    """Trains one method on one data set under one noise index.

    Args:
        method: the method, on the CPU.
        data: the data set.
        inputs: what the networks take, for each split.
        noise: the noise index of `train`.
        config: the settings of the loop; a trial is one.
        backbone: identifies the files that the networks were made from.
        code: identifies the code that makes the numbers; a checkpoint is resumed by the same code only.
        checkpoints: kept while the trial runs; None: none is.
        workers: loader processes.
        heartbeat: called with the position of the trial at each step, scanned batch and ranked tile; may
            raise to end the trial.
    """

    def __init__(
        self,
        method: Method,
        data: DataSet,
        inputs: Mapping[str, Inputs],
        noise: NoiseIndex,
        config: TrainingConfig,
        accelerator: Accelerator,
        *,
        backbone: str = "",
        code: str = "",
        checkpoints: Checkpoints | None = None,
        workers: int = 0,
        heartbeat: Callable[[str], None] = lambda where: None,
    ) -> None:
        self.backbone, self.code = backbone, code
        self.data, self.inputs, self.noise, self.config = data, inputs, noise, config
        self.accelerator, self.heartbeat = accelerator, heartbeat
        self.pool = Pool(inputs, workers)
        self.checkpoints = checkpoints
        self.dtype = torch.float64 if config.precision == "fp64" else torch.float32
        self.encoder = Encoder(inputs, self.pool, accelerator, self.dtype, heartbeat)
        self.method = method.to(accelerator.device, self.dtype)
        self.groups = data["train"].image_group[noise.image] if data.distinct_groups else None
        self.shards = None if data.shard is None else data.shard[noise.image]
        self.steps = len(noise.image) // config.batch_size
        self.optimizers = Optimizers(
            method.groups(), config, steps_per_epoch=self.steps, processes=accelerator.num_processes
        )
        self.state = State()
        self.cost = CostMeter()
        for net in method.networks:
            self.cost.count_forwards(net)

    # The loop ---------------------------------------------------------------------------------

    def fit(self, on_epoch: Callable[[EpochRecord], None] = lambda record: None) -> Outcome:
        """Train from where `resume` put it, else from the start; test the last epoch and the best on dev.

        Raises:
            Diverged: the loss or a similarity is not finite; and whatever `heartbeat` raises.
        """
        with contextlib.closing(self.pool):
            return self._fit(on_epoch)

    def _fit(self, on_epoch: Callable[[EpochRecord], None]) -> Outcome:
        reset_peak_memory()
        epochs = self.config.epochs if self.method.trains else 0
        if not epochs:
            self._evaluate_dev(0)
        for epoch in range(self.state.epoch, epochs):
            metrics: dict[str, float] = {}
            before = dict(self.cost.seconds)
            for network in self.method.passes():
                metrics |= self._train_pass(epoch, network)
            if (epoch + 1) % self.config.evaluate_every == 0 or epoch + 1 == epochs:
                metrics |= self._evaluate_dev(epoch)
            confidence, diagnostics = self._beliefs(metrics)
            metrics |= {f"seconds/{k}": v - before[k] for k, v in self.cost.seconds.items()}
            # Recorded before it is saved: a repeated epoch is recognised by its number.
            on_epoch(EpochRecord(epoch, metrics, confidence, diagnostics))
            self.state.epoch = epoch + 1
            self._save()
        return self._test()

    def _train_pass(self, epoch: int, network: int) -> dict[str, float]:
        self.method.eval()
        if (new := self.method.replacement(epoch, network)) is not None:
            self.method.networks[network].load_state_dict(new.state_dict())  # type: ignore[operator]
            self.optimizers.reset(f"network{network}")
            self.state.best_epoch, self.state.best_rsum = -1, -1.0  # those of the former network
        with self.cost.clock("method"):
            report = dict(self.method.start_epoch(epoch, network, self.scan))
        with self.cost.clock("train"):
            plan = self.plan_pass(epoch, network)
            scale = self.method.batch_scale(epoch)
            self.method.train()
            last = epoch + 1 == self.config.epochs  # after any warm-up that ends
            total: Report = {}
            steps: Counter[str] = Counter()
            for step, batch in enumerate(self._load(plan)):
                self.heartbeat(f"epoch {epoch}, step {step + 1} of {len(plan.batches)}")
                self.optimizers.at_step(epoch * self.steps + step * scale)
                with self.accelerator.autocast(), self.cost.step(count=last and step == 0):
                    step_report = self.method.step(batch, self.optimizers, network)
                for net in self.method.networks:
                    net.constrain()  # type: ignore[operator]
                total = {**total, **{k: total.get(k, 0.0) + v for k, v in step_report.items()}}
                steps.update(step_report.keys())
            report |= {k: v / steps[k] for k, v in total.items()}  # over the steps that report it
            report["learning_rate"] = self.optimizers.learning_rate(f"network{network}")
            scalars = {k: float(v) for k, v in report.items()}
        self.cost.batch_pairs += plan.pairs
        self.cost.pairs["train"] += plan.pairs + plan.auxiliary_pairs
        if not np.isfinite(scalars["loss"]):
            raise Diverged(f"the loss is {scalars['loss']} in epoch {epoch}")
        scalars["widened"] = float(plan.widened)
        suffix = f"_{network}" if network else ""
        trained_on = self._trained_on(network, plan)
        return {f"train/{k}{suffix}": v for k, v in scalars.items()} | {
            f"trained_on/{k}{suffix}": v for k, v in trained_on.items()
        }

    def _trained_on(self, network: int, plan: PassPlan) -> dict[str, float]:
        """What a network's pass was trained on, auxiliary batches aside: `share`, the mean weight of a
        training pair (0 where it is not selected), and `purity`, the matched part of that weight.
        """
        weight = np.ones(len(self.noise.image))
        given = self.method.training_weight(network)
        if given is not None:
            weight = given.detach().double().cpu().numpy()
        if plan.selected is not None and not plan.widened:
            chosen = np.zeros(len(weight))
            chosen[plan.selected] = 1
            weight = weight * chosen
        found = {"share": float(weight.mean())}
        if self.noise.matched is not None and weight.any():
            found["purity"] = float(weight[self.noise.matched].sum() / weight.sum())
        return found

    # Batches ----------------------------------------------------------------------------------

    def batches(self, epoch: int, network: int = 0) -> Iterator[Batch]:
        """The batches of a network's pass, on the device, as the loop gets them."""
        return self._load(self.plan_pass(epoch, network))

    def plan_pass(self, epoch: int, network: int = 0) -> PassPlan:
        """Which pairs a network's pass of an epoch takes, step by step."""
        chosen = self.method.selected(network)
        selected = None if chosen is None else chosen.cpu().numpy()
        batches, widened = self._batches(epoch, network, selected)
        pools = self._pool_batches(epoch, network, len(batches))
        return PassPlan(epoch, network, batches, selected, widened, pools)

    def _load(self, plan: PassPlan) -> Iterator[Batch]:
        return self._on_device(load(self._plans(plan), self._fetch(), self.pool))

    def _on_device(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        device = self.accelerator.device
        return on_device(batches, lambda batch: batch.to(device, self.dtype), device)

    def _batches(
        self, epoch: int, network: int, selected: np.ndarray | None
    ) -> tuple[list[np.ndarray], bool]:
        """The pass's batches, and whether the method's selection had to be widened to all pairs to
        fill one.
        """
        everything = np.arange(len(self.noise.image))
        pool = everything if selected is None else selected
        scale = self.method.batch_scale(epoch)
        arguments: dict[str, Any] = {
            "size": self.config.batch_size * scale,
            "steps": max(1, self.steps // scale),
        }
        arguments |= {"seed": (self.config.seed, "order", epoch, network), "shards": self.shards}
        try:
            return epoch_batches(pool, self.groups, **arguments), False
        except PoolTooNarrow:
            if selected is None:
                raise
            return epoch_batches(everything, self.groups, **arguments), True

    def _pool_batches(self, epoch: int, network: int, steps: int) -> dict[str, list[tuple[Tensor, Pairs]]]:
        """For each auxiliary pool of the method a batch for each step; a pool of fewer than two (groups of)
        pairs gives none.
        """
        batches = {}
        for name, pool in self.method.auxiliary_pools(network).items():
            if isinstance(pool, Pairs):  # the clean set
                pairs, members = pool, np.arange(len(pool))
                group_of_image = self.data[pool.split].image_group
                groups = None if self.groups is None else group_of_image[pool.images.numpy()]
            else:
                pairs, members, groups = self.method.pairs, pool.cpu().numpy(), self.groups
            distinct = len(members) if groups is None else len(np.unique(groups[members]))
            size = min(self.config.batch_size, distinct)
            if size >= 2:
                drawn = epoch_batches(
                    members, groups, size=size, steps=steps, seed=(self.config.seed, name, epoch, network)
                )
                batches[name] = [(index, pairs[index]) for index in map(torch.from_numpy, drawn)]
        return batches

    def _plans(self, plan: PassPlan) -> Iterator[Plan]:
        for step, index in enumerate(map(torch.from_numpy, plan.batches)):
            seed = seed_of(self.config.seed, "step", plan.epoch, plan.network, step)
            auxiliary = {
                name: (pairs.index, pairs) for name, pairs in self.method.auxiliary_pairs(index, seed).items()
            }
            auxiliary |= {name: drawn[step] for name, drawn in plan.pools.items()}
            progress = (plan.epoch + step / len(plan.batches)) / max(self.config.epochs, 1)
            yield Plan(index, self.method.pairs[index], seed, auxiliary, progress)

    def _fetch(self) -> Fetch:
        inputs = {name: source for name, source in self.inputs.items() if name in self._allowed}
        return Fetch(inputs, process=self.accelerator.process_index, processes=self.accelerator.num_processes)

    @property
    def _allowed(self) -> set[str]:
        """Methods reach the training pairs and, if they declare it, the clean set: no other split."""
        return {"train", "meta"} if self.method.uses_clean_data else {"train"}

    # Passes over the training pairs -----------------------------------------------------------

    @torch.no_grad()
    def scan(
        self,
        function: Callable[[Tensor, Tensor], dict[str, Tensor]],
        *,
        network: int = 0,
        pairs: Pairs | None = None,
    ) -> dict[str, Tensor]:
        """See `methods.base.Scan`. A batch is computed by one process, so in-batch losses do not depend on
        their number.

        Raises:
            KeyError: the pairs are of a split that the method may not see.
        """
        size, seed = self.config.batch_size, self.config.seed
        groups, shards = (self.groups, self.shards) if pairs is None else (None, None)
        pairs = self.method.pairs if pairs is None else pairs
        if pairs.split not in self._allowed:
            raise KeyError(pairs.split)
        self.cost.pairs["method"] += len(pairs)
        indices = [
            torch.from_numpy(b) for b in scan_batches(len(pairs), groups, size=size, seed=seed, shards=shards)
        ]
        mine = indices[self.accelerator.process_index :: self.accelerator.num_processes]
        # More processes than batches: an idle one computes a batch for the shapes, which does not count.
        idle, mine = not mine, mine or indices[:1]
        out: dict[str, Tensor] = {}
        embeddings = self.encoder.pairs(self.method.networks[network], pairs, mine)
        for index, (images, texts) in zip(mine, embeddings, strict=True):
            self.heartbeat("pass over the training pairs")
            # What compares pairs (losses, scores, vectors for neighbours) is in full precision.
            for name, values in function(images, texts).items():
                if name not in out:
                    out[name] = values.new_zeros(len(pairs), *values.shape[1:], dtype=self.dtype)
                if not idle:
                    out[name][index.to(values.device, non_blocking=True)] = values.to(self.dtype)
        return {name: self._sum(values).cpu() for name, values in out.items()}

    def _sum(self, x: Tensor) -> Tensor:
        total: Tensor = self.accelerator.reduce(x, "sum")
        return total

    # Evaluation -------------------------------------------------------------------------------

    def _evaluate_dev(self, epoch: int) -> dict[str, float]:
        with self.cost.clock("evaluation"):
            metrics = recalls(*self.evaluate("dev"))
        if metrics["rsum"] > self.state.best_rsum:  # the earlier epoch on a tie
            self.state.best_rsum, self.state.best_epoch = metrics["rsum"], epoch
            self.state.best_weights = {
                k: v.detach().cpu().clone() for k, v in self.method.state_dict().items()
            }
        return {f"dev/{k}": v for k, v in metrics.items()}

    @torch.no_grad()
    def similarities(self, split: str) -> Tensor:
        """Similarities that the method ranks a split by, on the device: [images, captions]."""
        self.method.eval()
        pairs, device = self.data[split], self.accelerator.device
        scores = torch.zeros(len(pairs.images), len(pairs.captions), dtype=self.dtype, device=device)
        self.cost.pairs["evaluation"] += len(pairs.captions) * self.method.n_networks
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        numbers = torch.arange(len(pairs.images))
        images = self.encoder.all(self.method.networks, split, "images", numbers) or []
        # Captions are encoded when they are needed: a caption of `sgraf` has an embedding for each word.
        chunks = torch.arange(len(pairs.captions)).split(CHUNK)[rank::processes]
        for request, inputs in self.encoder.load([Request(split, "texts", chunk) for chunk in chunks]):
            self.heartbeat(f"ranking {split}")
            columns = scores[:, int(request.index[0]) : int(request.index[-1]) + 1]
            for number, net in enumerate(self.method.networks):
                texts = self.encoder.encode(net, request, inputs)
                for some, tile in zip(images[number].rows.split(CHUNK), columns.split(CHUNK), strict=True):
                    tile += self.method.score(number, some, texts) / self.method.n_networks
        return self._sum(scores) if processes > 1 else scores

    def evaluate(self, split: str) -> tuple[Ranking, Ranking]:
        """Image-to-text and text-to-image rankings of a split."""
        return rank_both(self.similarities(split), self.data[split])

    def _beliefs(self, metrics: dict[str, float]) -> tuple[np.ndarray | None, dict[str, np.ndarray]]:
        """The method's confidence and its diagnostics, whose scores are added to the metrics."""
        confidence, matched = self.method.confidence(), self.noise.matched
        if confidence is None:
            return None, {}
        # Steps compute on the global batch, so every process holds the confidence of all pairs.
        values = confidence.detach().float().cpu().numpy().copy()
        diagnostics = {
            name: value.detach().float().cpu().numpy().copy()
            for name, value in self.method.diagnostics().items()
        }
        if matched is not None:
            metrics |= {f"detection/{k}": v for k, v in detection(values, matched).items()}
            parts = {"mean_matched": values[matched], "mean_mismatched": values[~matched]}
            metrics |= {f"detection/{k}": float(v.mean()) for k, v in parts.items() if len(v)}
            for name, value in diagnostics.items():
                metrics |= {f"detection/{name}_{k}": v for k, v in separation(value, matched).items()}
        return values, diagnostics

    def _test(self) -> Outcome:
        weights = weights_digest(self.method)
        with self.cost.clock("evaluation"):
            last, of_last = self._test_scores()
            best, of_best = last, of_last
            if self.state.best_epoch < self.state.epoch - 1:
                self.method.load_state_dict(self.state.best_weights)
                best, of_best = self._test_scores()
        metrics = {f"test/{k}": v for k, v in best.items()} | {f"last/{k}": v for k, v in last.items()}
        metrics |= {"dev/best_epoch": self.state.best_epoch, "dev/best_rsum": self.state.best_rsum}
        cost = {**self.cost.metrics(), "cost/networks_at_test": float(self.method.n_networks)}
        if self.cost.tflop_per_second:
            cost |= utilization(self.cost.tflop_per_second, self.accelerator.mixed_precision, self.dtype)
        return Outcome(metrics | cost, {"test": of_best, "last": of_last}, weights)

    def _test_scores(self) -> tuple[dict[str, float], tuple[Ranking, Ranking]]:
        scores = self.similarities("test")
        rankings = rank_both(scores, self.data["test"])
        return recalls(*rankings) | coco_metrics(scores.cpu().numpy(), self.data), rankings

    # Checkpoints ------------------------------------------------------------------------------

    def _save(self) -> None:
        """All processes hold the same state, so one writes it."""
        if self.checkpoints is None or not self.accelerator.is_main_process or not self.checkpoints.due:
            return
        content = {
            "identity": self._identity(),
            "method": self.method.state_dict(),
            "optimizers": self.optimizers.state_dict(),
            "state": vars(self.state),
            "cost": self.cost.state_dict(),
        }
        self.checkpoints.save(self.state.epoch, content)

    def _identity(self) -> dict[str, str]:
        """What a checkpoint must share with the trial that resumes from it."""
        cls = type(self.method)
        method = seed_of(self.code, f"{cls.__module__}.{cls.__qualname__}", _shapes(self.method))
        return {
            "data": self.data.fingerprint,
            "noise": self.noise.digest,
            "method": str(method),
            "backbone": self.backbone,
        }

    def resume(self, *, at_most: float = float("inf")) -> list[str]:
        """Resume from the newest valid checkpoint of at most `at_most` epochs, if there is one. Returns notes
        for the history of the trial.

        The main process chooses, so that all resume from the same one. Damaged checkpoints, and those made by
        other code, are skipped.

        Raises:
            DataChanged: the checkpoint is of other data or another noise index.
            OSError: a process does not see the file that the main process chose: the directory is not on
                shared storage.
        """
        if self.checkpoints is None:
            return []
        chosen: list[Any] = [None, []]
        if self.accelerator.is_main_process:
            chosen = list(self.checkpoints.newest(at_most=at_most))
        file, notes = broadcast_object_list(chosen) if self.accelerator.num_processes > 1 else chosen
        if file is None:
            return list(notes)
        content = read(file)
        theirs, ours = content["identity"], self._identity()
        other = [k for k in ours if theirs.get(k) != ours[k]]
        if {"data", "noise"} & set(other):
            raise DataChanged(
                f"{file} was made on other data (fingerprint {theirs['data']}, noise index "
                f"{theirs['noise']}; now {ours['data']}, {ours['noise']})"
            )
        if other:
            return [
                *notes,
                f"the checkpoint of {content['state']['epoch']} epochs is not used: it was made by another "
                f"{' and '.join(other)}",
            ]
        self.method.load_state_dict(content["method"])
        self.optimizers.load_state_dict(content["optimizers"])
        self.state = State(**content["state"])
        self.cost.load_state_dict(content["cost"])
        return [*notes, f"resumed from epoch {self.state.epoch}"]


def _shapes(module: torch.nn.Module) -> str:
    return repr({k: tuple(v.shape) for k, v in module.state_dict().items()})


def weights_digest(module: torch.nn.Module) -> str:
    """16 hex digits: the SHA-256 of names, types, shapes and bits of a module's state."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def rank_both(scores: Tensor, split: Split) -> tuple[Ranking, Ranking]:
    """Both directions from similarities [images, captions], computed where these are.

    Raises:
        Diverged: a similarity is not finite.
    """
    if not scores.isfinite().all():
        raise Diverged("similarities are not finite")
    images, captions = split.image_group, split.caption_group
    if scores.device.type == "cpu":
        matrix = scores.numpy()
        return rank_queries(matrix, images, captions), rank_queries(matrix.T, captions, images)
    return rank_on_device(scores, images, captions), rank_on_device(scores.T, captions, images)
