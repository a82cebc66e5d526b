"""What the builds of embedded data sets share: packages, pictures on white, splits by family, the file."""

from __future__ import annotations

import hashlib
import io
import json
import random
import subprocess
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

PIXELS = 128
CAPTIONS = 5
"""Captions of a concept in train and meta: the field's layouts assume five per image."""


@dataclass
class Concept:
    """What a caption describes and pictures of several vendors show.

    Attributes:
        key: identifies it in the file.
        name: its English name.
        captions: its captions.
        images: its encoded picture of each vendor.
    """

    key: str
    name: str
    captions: list[str] = field(default_factory=list)
    images: dict[str, bytes] = field(default_factory=dict)


def fetch(package: str, version: str, work: Path) -> Path:
    """The folder with the content of an npm package, which is downloaded into `work` if it is not there."""
    folder = work / f"{package.strip('@').replace('/', '-')}-{version}"
    if not folder.exists():
        packed = subprocess.run(
            ["npm", "pack", "--silent", f"{package}@{version}"],
            cwd=work,
            check=True,
            text=True,
            capture_output=True,
        )
        with tarfile.open(work / packed.stdout.split()[-1]) as archive:
            archive.extractall(folder, filter="data")
    return folder / "package" if (folder / "package").is_dir() else folder


def draw(svg: str) -> Image.Image:
    """The picture that an SVG text describes, in the size that it states."""
    import resvg_py  # build-time dependency

    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg))))


def webp(picture: Image.Image, **options: Any) -> bytes:
    """The picture as WebP, centred on a white square, so that its frame does not reveal the vendor.

    Args:
        picture: at most `PIXELS` pixels of it on a side are kept.
        options: of Pillow's WebP encoder.
    """
    picture = picture.convert("RGBA")
    picture.thumbnail((PIXELS, PIXELS), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (PIXELS, PIXELS), "white")
    canvas.alpha_composite(picture, ((PIXELS - picture.width) // 2, (PIXELS - picture.height) // 2))
    out = io.BytesIO()
    canvas.convert("RGB").save(out, "WEBP", method=6, **options)
    return out.getvalue()


def families(concepts: Sequence[Concept], links: Callable[[Concept], Iterable[str]]) -> list[str]:
    """A family name for each concept: what shares a link, directly or through others, is one family."""
    parent: dict[str, str] = {}

    def find(x: str) -> str:
        while parent.setdefault(x, x) != x:
            parent[x] = parent[parent[x]]
            x = parent[x]
        return x

    for concept in concepts:
        for link in links(concept):
            parent[find(link)] = find(concept.key)
    return [find(c.key) for c in concepts]


def split_by_family(
    concepts: Sequence[Concept],
    family_of: Sequence[str],
    sizes: Mapping[str, int],
    *,
    seed: int,
    to_train: Callable[[list[Concept]], bool] = lambda members: False,
) -> dict[str, str]:
    """The split of each concept, by key. Families are not divided.

    Args:
        concepts: all of them.
        family_of: the family of each.
        sizes: number of concepts of each split but train, met exactly if families are small enough.
        seed: of the order in which families are dealt out.
        to_train: whether a family may be in train only.
    """
    members_of: dict[str, list[Concept]] = defaultdict(list)
    for concept, family in zip(concepts, family_of, strict=True):
        members_of[family].append(concept)
    names = sorted(members_of)
    random.Random(seed).shuffle(names)
    free, split_of = dict(sizes), {}
    for name in names:
        members = members_of[name]
        split = next((s for s, count in free.items() if len(members) <= count), "train")
        if to_train(members):
            split = "train"
        if split != "train":
            free[split] -= len(members)
        split_of.update({c.key: split for c in members})
    return split_of


def leave_out_ambiguous(concepts: Sequence[Concept], split_of: Mapping[str, str]) -> None:
    """Remove the captions of dev and test whose string belongs to several concepts: a retrieved picture of
    another one of these would be right, and count as wrong.
    """
    shared = ambiguous(concepts)
    for concept in concepts:
        if split_of[concept.key] in ("dev", "test"):
            concept.captions = [c for c in concept.captions if c not in shared]


def ambiguous(concepts: Iterable[Concept]) -> set[str]:
    """The captions whose string belongs to several concepts."""
    counts = Counter(caption for concept in concepts for caption in concept.captions)
    return {caption for caption, count in counts.items() if count > 1}


def write(
    target: Path,
    concepts: Sequence[Concept],
    split_of: Mapping[str, str],
    vendors: Sequence[str],
    packages: Mapping[str, tuple[str, str]],
) -> dict[str, int]:
    """Write the Parquet file, and print its size.

    Args:
        target: the file.
        concepts: in the order in which they are written.
        split_of: the split of each key.
        vendors: in the order of a concept's pictures.
        packages: name and version of each source.

    Returns:
        The number of concepts in each split.
    """
    rows = [
        {
            "split": split_of[c.key],
            "concept": c.key,
            "name": c.name,
            "vendor": v,
            "captions": c.captions,
            "image": c.images[v],
        }
        for c in concepts
        for v in vendors
        if v in c.images
    ]
    schema = pa.schema(
        [
            ("split", pa.string()),
            ("concept", pa.string()),
            ("name", pa.string()),
            ("vendor", pa.string()),
            ("captions", pa.list_(pa.string())),
            ("image", pa.binary()),
        ],
        metadata={
            "sources": json.dumps({k: "@".join(v) for k, v in packages.items()}),
            "attribution": "see NOTICE.md",
        },
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), target, compression="zstd", row_group_size=1024)
    print(
        f"{target}: {len(rows)} images, {target.stat().st_size / 1e6:.1f} MB, sha256 "
        f"{hashlib.sha256(target.read_bytes()).hexdigest()[:16]}"
    )
    return dict(Counter(split_of.values()))


def read_json(file: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(file.read_text(encoding="utf-8"))


def unique(items: Iterable[str]) -> list[str]:
    """The items without repetitions, in order."""
    return list(dict.fromkeys(items))
