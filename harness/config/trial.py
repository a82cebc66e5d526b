"""A trial: one point of the grid, fully resolved, and the hash id that stands for it.

Importing this module loads no method and no torch, so that records can be read quickly. The id of a trial
needs its method's class, unless the trial comes from a record, which holds the id.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from harness import PROTOCOL_VERSION
from harness.backbones import NO_NUMBER
from harness.config.base import StrictModel
from harness.data.base import DataSet
from harness.lib.files import file_digest
from harness.lib.registry import UnknownName, resolve
from harness.noise.index import NoiseIndex
from harness.noise.models import NoiseModel, Shuffle, make_noise
from methods import METHODS

if TYPE_CHECKING:  # a method is a torch module
    from methods.base import Method

_ID_NEUTRAL_FIELDS = ("decay_epochs", "evaluate_every", "noise", "perturbed")
"""Fields that came after the first records: at their default they stay out of a trial's id."""


class TrainingConfig(StrictModel):
    """What the training loop is configured with.

    Defaults are those of CLIP fine-tuning as the field does it (NPC, released code), except the learning
    rate, which does not carry over from fp16 weights: 1e-5, as OSA and CLIP_ITM use it.

    Attributes:
        epochs: passes over the training pairs.
        batch_size: pairs in a global batch, over all processes.
        lr: learning rate after the warm-up.
        seed: seed of the model, the data order and the method's own draws.
        weight_decay: of AdamW; biases, norms and scalars are spared.
        betas, eps: of AdamW.
        warmup_steps: linear warm-up, in optimizer steps.
        clip_norm: gradient norm to clip at, or null.
        precision: auto (bf16 where a GPU has it), fp32, bf16 or fp64.
        decay_epochs: null for a cosine to zero; or the epochs at which the rate falls to a tenth.
        evaluate_every: epochs between evaluations on dev; the last epoch is always evaluated.
        perturbed: 0, or the number of a draw by which each trained initial weight is multiplied by 1 + 1e-6
            z, z standard normal: what such trials of one seed differ in is how far a result moves by
            rounding.
    """

    seed: Annotated[int, Field(ge=0, strict=True)]
    epochs: Annotated[int, Field(ge=1)] = 5
    batch_size: Annotated[int, Field(ge=2)] = 256
    lr: Annotated[float, Field(gt=0)] = 1e-5
    weight_decay: Annotated[float, Field(ge=0)] = 0.2
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.98)
    eps: Annotated[float, Field(gt=0)] = 1e-6
    warmup_steps: Annotated[int, Field(ge=0)] = 500
    clip_norm: Annotated[float, Field(gt=0)] | None = 10.0
    precision: Literal["auto", "fp32", "bf16", "fp64"] = "auto"
    decay_epochs: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    evaluate_every: Annotated[int, Field(ge=1)] = 1
    perturbed: Annotated[int, Field(ge=0, strict=True)] = 0


class Trial(TrainingConfig):
    """One point of the grid, fully resolved: equal trials have equal ids and give equal numbers.

    Attributes:
        method, dataset: registered names, or `package.module:Name`.
        dataset_options: arguments of the data set.
        noise_ratio: the share of pairs that is asked to mismatch, in [0, 1).
        noise_granularity: what moves to another image: single captions, all captions of an image together,
            or all copies of a caption's text together.
        noise_seed: seed of the noise index; the trial's seed unless the sweep varies it.
        noise: the noise model: a name of `harness.noise.models.MODELS`, or a mapping with `model` and its
            settings.
        backbone: the configuration of the backbone, defaults filled in.
        hyper: the method's hyper-parameters, defaults filled in.
    """

    method: str
    dataset: str
    dataset_options: dict[str, Any] = Field(default_factory=dict)
    noise_ratio: Annotated[float, Field(ge=0, lt=1)]
    noise_granularity: Literal["caption", "image", "text"] = "caption"
    noise_seed: Annotated[int, Field(ge=0, strict=True)]
    backbone: dict[str, Any] = Field(default_factory=lambda: {"kind": "clip"})
    noise: NoiseModel = Shuffle()
    hyper: dict[str, Any] = Field(default_factory=dict)

    @field_validator("noise", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value

    @field_validator("dataset_options", "backbone", "hyper")
    @classmethod
    def _finite(cls, value: dict[str, Any]) -> dict[str, Any]:
        """JSON, in which a trial travels and is hashed, has no other numbers."""
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            raise ValueError("a number in it is not finite") from None
        return value

    @classmethod
    def recorded(cls, content: Mapping[str, Any], trial_id: str | None) -> Trial:
        """A trial out of a record, with the id that it was planned under (None: records of older
        versions).
        """
        trial = cls.model_validate(content)
        if trial_id is not None:
            trial.__dict__["id"] = trial_id
        return trial

    @cached_property
    def id(self) -> str:
        """12 hex digits: the hash of the canonical form and the protocol version."""
        return _digest({"protocol": PROTOCOL_VERSION, **self._canonical()})

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Trial:
        """A copy with some fields replaced, whose id is its own."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("id", None)
        return copied

    @property
    def cell_id(self) -> str:
        """The id without the seeds: trials of one cell differ in nothing else."""
        return _digest({k: v for k, v in self._canonical().items() if k not in ("seed", "noise_seed")})

    def _canonical(self) -> dict[str, Any]:
        """All fields, without later ones at their id-neutral default (an id outlives a new field) and without
        those that change no number.
        """
        fields = self.model_dump(mode="json")
        neutral = method_class(self.method).id_neutral_defaults
        fields["hyper"] = {k: v for k, v in fields["hyper"].items() if k not in neutral or v != neutral[k]}
        fields["backbone"] = {k: v for k, v in fields["backbone"].items() if k not in NO_NUMBER}
        return {
            k: v
            for k, v in fields.items()
            if k not in _ID_NEUTRAL_FIELDS or getattr(self, k) != Trial.model_fields[k].default
        }

    def noise_index(self, data: DataSet) -> NoiseIndex:
        """The noise index of the trial on its data set. Raises what `make_noise` raises."""
        return make_noise(
            data["train"],
            ratio=self.noise_ratio,
            granularity=self.noise_granularity,
            seed=self.noise_seed,
            model=self.noise,
        )

    def fingerprint(self, data: DataSet) -> str:
        """Identifies what the numbers follow from besides the settings: the data set, and the files that its
        noise is made from.
        """
        files = self.noise.files(self.noise_ratio, self.noise_seed)
        return "+".join([data.fingerprint, *(file_digest(f)[:16] for f in files)])

    @property
    def dataset_label(self) -> str:
        """A short name of the data set: its name, and the directory that it is read from."""
        folder = self.dataset_options.get("folder")
        return f"{self.dataset} {Path(str(folder)).name}" if folder else self.dataset

    @property
    def noise_label(self) -> str:
        """A short name of the noise: what its ratio is a ratio of."""
        return self.noise.label(self.noise_granularity)

    @property
    def backbone_label(self) -> str:
        """A short name of the backbone, for tables and MLflow."""
        config = self.backbone
        name = config.get("model") or " ".join(str(config[k]) for k in ("kind", "module") if k in config)
        return f"{name}{' locked' if config.get('locked') else ''}"

    def parameters(self) -> dict[str, Any]:
        """The trial as flat parameters of a run; hyper-parameters as `METHOD.KEY`, the words of a
        sweep file.
        """
        fields = self.model_dump(mode="json")
        hyper, backbone, options, noise = (
            fields.pop(k) for k in ("hyper", "backbone", "dataset_options", "noise")
        )
        training = {k: fields.pop(k) for k in TrainingConfig.model_fields}
        backbone = {k: v for k, v in backbone.items() if k not in NO_NUMBER}
        flat = {**fields, **training, "backbone": self.backbone_label}
        if self.noise != Trial.model_fields["noise"].default:
            flat |= {f"noise.{k}": v for k, v in noise.items()}
        method = self.method.rpartition(":")[2]
        for prefix, nested in ((f"{method}.", hyper), ("backbone.", backbone), ("dataset.", options)):
            flat |= {f"{prefix}{k}": v for k, v in nested.items()}
        return flat


def method_class(name: Any) -> type[Method]:
    """The class behind a method's name.

    Raises:
        UnknownName: no such method, or the name leads to something that is no `methods.base.Method`.
    """
    from methods.base import Method

    cls = resolve("method", name, METHODS)
    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise UnknownName(f"method {name!r} is not a subclass of methods.base.Method")
    return cls


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
