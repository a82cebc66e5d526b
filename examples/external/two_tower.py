"""A two-tower model on region features: a program that knows nothing of this project but its files.

It reads an export in the SCAN layout and a noise index, trains by InfoNCE, and writes the similarities of
dev and test after the last epoch, [images, captions] each, to OUT_dev.npy and OUT_test.npy.
"""

import argparse
import re
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

CAPTIONS = 5  # of each image, on consecutive lines
DIM, BATCH = 256, 128


class TwoTower(nn.Module):
    """The mean over an image's regions and the mean over a caption's words, each through a small network."""

    def __init__(self, width: int, words: int, dim: int) -> None:
        super().__init__()
        self.regions = nn.Sequential(nn.Linear(width, dim), nn.GELU())
        self.words = nn.EmbeddingBag(words, dim, mode="mean", padding_idx=0)
        self.image, self.text = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.log_scale = nn.Parameter(torch.tensor(2.5))

    def images(self, features: torch.Tensor) -> torch.Tensor:
        return functional.normalize(self.image(self.regions(features).mean(1)), dim=-1)

    def texts(self, ids: torch.Tensor) -> torch.Tensor:
        return functional.normalize(self.text(self.words(ids)), dim=-1)


def words_of(caption: str) -> list[str]:
    return re.findall(r"\w+", caption.lower())


def captions_of(folder: Path, split: str) -> list[str]:
    return (folder / f"{split}_caps.txt").read_text(encoding="utf-8").splitlines()


def as_ids(captions: list[str], vocabulary: dict[str, int]) -> torch.Tensor:
    """Word ids, padded with 0; words that are not in the vocabulary are left out."""
    rows = [torch.tensor([vocabulary[w] for w in words_of(c) if w in vocabulary] or [0]) for c in captions]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)


def first_groups(folder: Path, count: int | None, images: int) -> np.ndarray:
    """Training images of the first groups: what `train_groups` of a sweep leaves."""
    file = folder / "train_groups.npy"
    group = np.unique(np.load(file), return_inverse=True)[1] if file.exists() else np.arange(images)
    return np.flatnonzero(group < (images if count is None else count))


def train(options: argparse.Namespace) -> tuple[TwoTower, dict[str, int]]:
    features = np.load(options.data / "train_ims.npy", mmap_mode="r")
    images = first_groups(options.data, options.train_groups, len(features))
    lines = captions_of(options.data, "train")
    captions = [lines[CAPTIONS * i + k] for i in images for k in range(CAPTIONS)]
    partner = np.load(options.noise_index)  # for each caption, the image that it is trained with
    assert len(partner) == len(captions), f"{len(partner)} entries for {len(captions)} captions"
    vocabulary = {w: i for i, w in enumerate(sorted({w for c in captions for w in words_of(c)}), start=1)}
    ids, regions = as_ids(captions, vocabulary), torch.from_numpy(np.ascontiguousarray(features[images]))
    model = TwoTower(regions.shape[2], len(vocabulary) + 1, DIM)
    optimizer = torch.optim.AdamW(model.parameters(), options.lr)
    for epoch in range(options.epochs):
        losses = []
        for batch in torch.randperm(len(captions)).split(BATCH):
            left, right = model.images(regions[partner[batch.numpy()]]), model.texts(ids[batch])
            logits, target = model.log_scale.exp() * left @ right.T, torch.arange(len(batch))
            loss = functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item() / 2)
        print(f"epoch {epoch}: loss {np.mean(losses):.3f}", flush=True)
    return model, vocabulary


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="directory in the SCAN layout")
    parser.add_argument("--noise-index", type=Path, required=True)
    parser.add_argument("--out", required=True, help="where to write, without _SPLIT.npy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train-groups", type=int)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float, default=1e-3)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    model, vocabulary = train(options)
    for split in ("dev", "test"):
        regions = torch.from_numpy(np.load(options.data / f"{split}_ims.npy"))
        with torch.inference_mode():
            ids = as_ids(captions_of(options.data, split), vocabulary)
            np.save(f"{options.out}_{split}.npy", (model.images(regions) @ model.texts(ids).T).numpy())
