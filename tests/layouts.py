"""Small data sets in each published layout, byte for byte in the published form; pictures and captions are of
`emoji`.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from tests import small

SIZES = {"train": 24, "dev": 6, "test": 8}


@dataclass(frozen=True)
class Entry:
    """One picture with its five captions."""

    split: str
    number: int
    picture: bytes
    captions: tuple[str, ...]


@lru_cache
def entries() -> tuple[Entry, ...]:
    """A picture for each of a few concepts: 24 / 6 / 8 with five captions each."""
    found = []
    for split, count in SIZES.items():
        source = small.load()[split]
        groups = source.image_group.tolist()
        for group in range(count if split == "train" else min(count, len(set(groups)))):
            image = groups.index(group)
            captions = tuple(
                source.captions[c] for c in range(len(source.captions)) if source.owner[c] == image
            )[:5]
            found.append(Entry(split, len(found), jpeg(source.images[image]), captions))
    return tuple(found)


def jpeg(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=90)
    return stream.getvalue()


def of_split(split: str) -> list[Entry]:
    return [e for e in entries() if e.split == split]


def karpathy_flickr30k(root: Path) -> Path:
    """`dataset_flickr30k.json` and `flickr30k-images/`."""
    (root / "flickr30k-images").mkdir(parents=True)
    images, sentence = [], 0
    for e in entries():
        name = f"{1000 + e.number}.jpg"
        (root / "flickr30k-images" / name).write_bytes(e.picture)
        sentences = []
        for text in e.captions:
            sentences.append(
                {"tokens": text.lower().split(), "raw": text, "imgid": e.number, "sentid": sentence}
            )
            sentence += 1
        split = {"dev": "val"}.get(e.split, e.split)
        images.append(
            {
                "sentids": [s["sentid"] for s in sentences],
                "imgid": e.number,
                "sentences": sentences,
                "split": split,
                "filename": name,
            }
        )
    (root / "dataset_flickr30k.json").write_text(json.dumps({"images": images, "dataset": "flickr30k"}))
    return root


def karpathy_coco(root: Path) -> Path:
    """`dataset_coco.json`, `train2014/` and `val2014/`; half of train is restval, and one image has a sixth
    caption.
    """
    images, sentence = [], 0
    for e in entries():
        split = {"dev": "val"}.get(e.split, e.split)
        split = "restval" if e.split == "train" and e.number % 2 else split
        folder = "train2014" if split == "train" else "val2014"
        name = f"COCO_{folder}_{391895 + e.number:012}.jpg"
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / name).write_bytes(e.picture)
        texts = [*e.captions, "a caption too many"] if e.number == 3 else e.captions
        sentences = []
        for text in texts:
            sentences.append(
                {"tokens": text.lower().split(), "raw": text, "imgid": e.number, "sentid": 770337 + sentence}
            )
            sentence += 1
        images.append(
            {
                "filepath": folder,
                "sentids": [s["sentid"] for s in sentences],
                "filename": name,
                "imgid": e.number,
                "split": split,
                "sentences": sentences,
                "cocoid": 391895 + e.number,
            }
        )
    (root / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    return root


def npc(root: Path, kind: str = "f30k") -> Path:
    """NPC's `annotations/scan_split/`, as its loader reads it for `f30k`, `coco` or `cc` (one caption an
    image).
    """
    folder = root / "annotations" / "scan_split"
    folder.mkdir(parents=True)
    (root / "images").mkdir()
    each = 1 if kind == "cc" else 5
    for split in SIZES:
        ids, captions = [], []
        for e in of_split(split):
            number = {"f30k": str(e.number), "coco": str(391895 + e.number), "cc": f"{e.number:05}_web"}[kind]
            name = {
                "f30k": f"{1000 + e.number}.jpg",
                "coco": f"COCO_2014_{391895 + e.number:012}.jpg",
                "cc": f"{number}.jpg",
            }[kind]
            (root / "images" / name).write_bytes(e.picture)
            ids += [number] if split == "train" else [number] * each
            captions += e.captions[:each]
        (folder / f"{split}_ids.txt").write_text("".join(f"{i}\n" for i in ids))
        (folder / f"{split}_caps.txt").write_text("".join(f"{c}\n" for c in captions), encoding="utf-8")
    if kind == "f30k":
        (folder / "image_name.txt").write_text("".join(f"{1000 + e.number}.jpg\n" for e in entries()))
    return root


def own_table(root: Path) -> Path:
    """A user's folder: pictures, and `captions.csv` with columns image and caption."""
    root.mkdir(parents=True)
    with open(root / "captions.csv", "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "caption"])
        for e in entries():
            (root / f"{e.number}.jpg").write_bytes(e.picture)
            writer.writerows([f"{e.number}.jpg", caption] for caption in e.captions)
    return root


def conceptual(root: Path) -> Path:
    """`train.tsv` and so on without a head: path, tab, caption."""
    (root / "images").mkdir(parents=True)
    for split in SIZES:
        lines = []
        for e in of_split(split):
            (root / "images" / f"{e.number:09}.jpg").write_bytes(e.picture)
            lines.append(f'{e.number:09}.jpg\t{e.captions[0]} "quoted\n')
        (root / f"{split}.tsv").write_text("".join(lines), encoding="utf-8")
    return root


def shards(root: Path, *, each: int = 5) -> Path:
    """WebDataset shards as img2dataset writes them: `000000000.jpg`, `.txt` and `.json`."""
    root.mkdir(parents=True)
    for split in SIZES:
        rows = of_split(split)
        for number, start in enumerate(range(0, len(rows), each)):
            with tarfile.open(root / f"{split}-{number:06}.tar", "w") as tar:
                for e in rows[start : start + each]:
                    for name, content in sample(e):
                        add(tar, name, content)
    return root


def sample(e: Entry) -> Iterator[tuple[str, bytes]]:
    yield f"{e.number:09}.jpg", e.picture
    yield f"{e.number:09}.txt", e.captions[0].encode()
    yield (
        f"{e.number:09}.json",
        json.dumps({"caption": "of the json", "url": "somewhere", "key": f"{e.number:09}"}).encode(),
    )


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
