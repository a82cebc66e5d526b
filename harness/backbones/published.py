"""Checkpoints of SGRAF's, NCR's and MSCN's released code, read without running code from them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.data.base import DataError

# Keys of the networks in a checkpoint of MSCN, of NCR, and of SGRAF, which trains one network.
_NAMES = (("net_A", "net_B"), ("model_A", "model_B"), ("model",))
_HEADS = ("meta_net_A", "meta_net_B")  # keys of MSCN's similarity heads
_PARTS = ("img_enc", "txt_enc", "sim_enc")


def read_published(path: Path, network: int) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """Read the weights of one network from a released checkpoint.

    MSCN saves one state dict for each network, NCR and SGRAF a list of three (image, text and similarity
    encoder). The files also contain the run's options, an `argparse.Namespace` of plain values. Only tensors,
    plain values and that class are unpickled.

    Args:
        path: the checkpoint, usually `model_best.pth.tar`.
        network: number of the network, from 0.

    Returns:
        The weights by name (such as `sim_enc.sim_tranloc_w.weight`), and the weights of MSCN's similarity
        head of that network, or None if the checkpoint has none.

    Raises:
        DataError: the file cannot be read as weights alone, has another form, or has no such network.
    """
    content = _load(path)
    for names in _NAMES:
        if names[0] in content:
            if network >= len(names) or names[network] not in content:
                raise DataError(
                    f"checkpoint {path} holds {len(names)} network(s): expected one with number {network}"
                )
            return _flat(content[names[network]], path), content.get(_HEADS[network])
    expected = " or ".join("/".join(n) for n in _NAMES)
    raise DataError(
        f"checkpoint {path}: expected the keys {expected}, found {', '.join(map(str, content)) or 'none'}"
    )


def _load(path: Path) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpicklers and parsers raise many types
        raise DataError(
            f"checkpoint {path} cannot be read as weights alone: "
            f"{(str(error) or type(error).__name__).splitlines()[0]}"
        ) from None
    if not isinstance(content, dict):
        raise DataError(f"checkpoint {path}: expected a dict, found {type(content).__name__}")
    return content


def _flat(weights: Any, path: Path) -> dict[str, Tensor]:
    """One state dict from either form, without the prefix `module.` of data-parallel training."""
    if isinstance(weights, (list, tuple)):
        if len(weights) != len(_PARTS) or not all(isinstance(state, dict) for state in weights):
            raise DataError(
                f"checkpoint {path}: expected a list of {len(_PARTS)} state dicts, found "
                f"{[type(w).__name__ for w in weights]}"
            )
        weights = {
            f"{part}.{key}": value
            for part, state in zip(_PARTS, weights, strict=True)
            for key, value in state.items()
        }
    if not isinstance(weights, dict):
        raise DataError(
            f"checkpoint {path}: expected a state dict or a list of {len(_PARTS)}, found "
            f"{type(weights).__name__}"
        )
    if not all(isinstance(value, Tensor) for value in weights.values()):
        raise DataError(f"checkpoint {path}: expected tensors alone in a state dict")
    return {key.removeprefix("module."): value for key, value in weights.items()}
