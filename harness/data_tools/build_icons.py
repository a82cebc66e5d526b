"""Build of the embedded data set `icons` from four npm packages of black-and-white glyphs.

Run by `python -m harness.data build icons` (needs `npm`, and `pip install '.[build]'`). The result, one
Parquet file with WebP images, is part of the package, so users need not run this. The same package versions
give the same file content.

A concept is a name: glyphs of several sets with one name are its pictures, one a set. `outline` is no part of
a name, and a frame may be named first or last (`circle-alert`, `alert-circle`). Captions come from the names,
aliases and tags of all glyphs of the concept. Only concepts with five distinct captions are kept, because the
field's layouts assume five captions per image: about half of the Material Design Icons have but a name.
"""

from __future__ import annotations

import io
import re
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from harness.data_tools.building import (
    CAPTIONS,
    PIXELS,
    Concept,
    ambiguous,
    draw,
    families,
    fetch,
    leave_out_ambiguous,
    read_json,
    split_by_family,
    unique,
    webp,
    write,
)

PACKAGES = {
    "lucide": ("lucide-static", "1.62.0"),
    "phosphor": ("@phosphor-icons/core", "2.1.1"),
    "tabler": ("@tabler/icons", "3.52.0"),
    "mdi": ("@mdi/svg", "7.4.47"),
}
VENDORS = tuple(PACKAGES)
SPLIT_SIZES = {"test": 500, "dev": 400, "meta": 60}
"""Concepts per split; the remaining ones are train."""
SPLIT_SEED = 0
LARGEST = 12
"""Concepts of the largest family outside train: dev and test have many families, none of which dominates."""
UNAMBIGUOUS = 2
"""Captions that are a concept's own, at the least, outside train."""
MOST_CONCEPTS = 5
"""A caption, other than a name, that more concepts would have ("disabled inactive") says nothing."""
ALIKE = 0.9
"""Correlation of two pictures, at 32 x 32 pixels, above which their concepts are of one family."""
MARGIN = 6
"""White pixels on each side: glyphs of some sets touch their frame, which would tell the vendor."""

_STYLES = frozenset({"outline", "outlined"})
_FRAMES = frozenset({"circle", "square", "box", "hexagon", "octagon", "rounded"})
_VARIANT = re.compile(r"-(\d+|alt|variant)$")
# Words that do not tell what a glyph shows, where they come first; and words that are no captions.
_STATES = frozenset(
    {"off", "on", "alt", "plus", "minus", "add", "remove", "check", "x", "no", "not", "multiple"}
    | {"hexagonal", "pentagonal", "triangular", "double", "half", "small", "large", "big", "rotated"}
)
_GENERIC = frozenset(
    {"ui", "ux", "text", "icon", "icons", "symbol", "symbols", "interface", "shape", "shapes", "sign"}
    | {"graphic", "glyph", "object", "element", "design", "design system", "web", "app", "general"}
    | {"misc", "other"}
)


@dataclass(frozen=True)
class Glyph:
    """A drawing of one set.

    Attributes:
        vendor: of `VENDORS`, without the style.
        name: words joined by `-`.
        aliases: other names, as words.
        tags: keywords, as words.
        categories: as words; they describe many glyphs, so they stand with a name only.
        file: its SVG.
    """

    vendor: str
    name: str
    aliases: list[str]
    tags: list[str]
    categories: list[str]
    file: Path


def build(target: Path, work: Path) -> dict[str, int]:
    """Write the Parquet file.

    Args:
        target: the file to write.
        work: an existing directory; packages that it lacks are downloaded into it.

    Returns:
        The number of concepts in each split.
    """
    folders = {name: fetch(package, version, work) for name, (package, version) in PACKAGES.items()}
    glyphs = [glyph for read in _READERS for glyph in read(folders)]
    concepts, drawings = _concepts(glyphs)
    for concept in concepts:
        concept.images = {vendor: _picture(file) for vendor, file in drawings[concept.key].items()}
    split_of = _split(concepts, glyphs)
    leave_out_ambiguous(concepts, split_of)
    return write(target, concepts, split_of, VENDORS, PACKAGES)


def _lucide(folders: dict[str, Path]) -> Iterator[Glyph]:
    """Glyphs that Lucide keeps under a former name too have that as an alias."""
    folder = folders["lucide"]
    tags = read_json(folder / "tags.json")
    names_of: dict[str, list[str]] = defaultdict(list)
    for file in sorted((folder / "icons").glob("*.svg")):
        names_of[re.sub(r'class="[^"]*"', "", file.read_text(encoding="utf-8"))].append(file.stem)
    former = {name: names for names in names_of.values() for name in names}
    for name in sorted(tags):
        aliases = [_words(other) for other in former[name] if other not in tags]
        yield Glyph("lucide", name, aliases, _tags(tags[name]), [], folder / f"icons/{name}.svg")


def _phosphor(folders: dict[str, Path]) -> Iterator[Glyph]:
    text = (folders["phosphor"] / "dist/index.mjs").read_text(encoding="utf-8")
    entry = re.compile(r'name: "([^"]+)",.*?categories: \[(.*?)\],.*?tags: \[(.*?)\]', re.DOTALL)
    for name, categories, tags in sorted(entry.findall(text)):
        if ".BRAND" not in categories and not name.endswith("-logo"):
            file = folders["phosphor"] / f"assets/regular/{name}.svg"
            yield Glyph("phosphor", name, [], _tags(re.findall(r'"([^"]+)"', tags)), [], file)


def _tabler(folders: dict[str, Path]) -> Iterator[Glyph]:
    for name, data in sorted(read_json(folders["tabler"] / "icons.json").items()):
        if data["category"] != "Brand" and not {"brand", "logo"} & set(data["tags"]):
            file = folders["tabler"] / f"icons/outline/{name}.svg"
            yield Glyph("tabler", name, [], _tags(map(str, data["tags"])), [], file)


def _mdi(folders: dict[str, Path]) -> Iterator[Glyph]:
    for data in sorted(read_json(folders["mdi"] / "meta.json"), key=lambda d: str(d["name"])):
        if not data["deprecated"] and "Brand / Logo" not in data["tags"]:
            file = folders["mdi"] / f"svg/{data['name']}.svg"
            categories = [t.removesuffix(" + Other").replace(" + ", " ") for t in data["tags"]]
            yield Glyph("mdi", data["name"], _tags(data["aliases"]), [], _tags(categories), file)


_READERS = (_lucide, _phosphor, _tabler, _mdi)


def _concepts(glyphs: list[Glyph]) -> tuple[list[Concept], dict[str, dict[str, Path]]]:
    """The concepts with their captions, and by their keys the SVG of each vendor."""
    glyphs_of: dict[str, list[Glyph]] = defaultdict(list)
    for glyph in glyphs:
        glyphs_of[_key(glyph.name)].append(glyph)
    captions_of = {
        key: _captions(found) for key, found in glyphs_of.items() if _is_told_by_words(key, glyphs_of)
    }
    counts = Counter(caption for captions in captions_of.values() for caption in captions)
    concepts = []
    for key, (name, *others) in sorted(captions_of.items()):
        captions = [name, *(c for c in others if counts[c] <= MOST_CONCEPTS)][:CAPTIONS]
        if len(captions) == CAPTIONS:
            concepts.append(Concept(key, name, captions))
    return concepts, {c.key: _drawings(glyphs_of[c.key]) for c in concepts}


def _is_told_by_words(key: str, known: Container[str]) -> bool:
    """Not `arrow-left-2`: it differs from `arrow-left` in its drawing, and its words do not say how."""
    plain = _VARIANT.sub("", key)
    return (plain == key or plain not in known) and bool(re.search("[a-z]", key))


def _key(name: str) -> str:
    """The name without style words, and with a frame last."""
    words = _unstyled(_words(name)).split()
    if words[0] in _FRAMES and len(words) > 1:
        words = words[1:] + words[:1]
    return "-".join(words)


def _drawings(glyphs: list[Glyph]) -> dict[str, Path]:
    """One drawing a vendor, that of the plainest name: an outlined form only where there is no other."""
    found: dict[str, Path] = {}
    for glyph in sorted(glyphs, key=lambda g: (len(g.name), g.name)):
        found.setdefault(glyph.vendor, glyph.file)
    return found


def _captions(glyphs: list[Glyph]) -> list[str]:
    """Distinct captions, the best first: the name, other names, keywords in groups, names with keywords.

    A lone keyword ("text", "direction") describes many glyphs, so keywords stand in groups of two and more.
    """
    name, *others = unique(_unstyled(n) for n in [*(_words(g.name) for g in glyphs), *_aliases(glyphs)])
    others = [other for other in others if _says_something(other)]
    known = set(name.split())
    tags = [t for t in unique(_dealt([g.tags for g in glyphs])) if set(t.split()) - known and t not in others]
    half = (len(tags) + 1) // 2
    context = [t for t in unique(c for g in glyphs for c in g.categories) if set(t.split()) - known]
    candidates = [
        name,
        *others[:1],
        *(" ".join(g) for g in (tags[:half][:4], tags[half:][:4]) if len(g) > 1),
        *others[1:2],
        *(f"{name} {' '.join(t)}" for t in (tags[:2], tags[half:][:2]) if t),
        *others[2:4],
        *(f"{name} {t}" for t in context[:1]),
        *(f"{other} {t}" for other in others[:1] for t in [*tags[:1], *context[:1]][:1]),
        *(f"{name} {t}" for t in tags[half + 2 : half + 3]),
        *(f"{name} {other}" for other in others[:2]),
        *(f"{name} {t}" for t in context[1:2]),
    ]
    return unique(" ".join(unique(c.split())) for c in candidates)


def _aliases(glyphs: list[Glyph]) -> list[str]:
    return [alias for glyph in glyphs for alias in glyph.aliases]


def _dealt(lists: list[list[str]]) -> list[str]:
    """The items of all lists, in turn: the first of each, the second of each."""
    longest = max(map(len, lists), default=0)
    return [items[i] for i in range(longest) for items in lists if i < len(items)]


def _split(concepts: list[Concept], glyphs: list[Glyph]) -> dict[str, str]:
    """Families that are large, or that have a concept without captions of its own, are in train."""
    shared = ambiguous(concepts)

    def to_train(members: list[Concept]) -> bool:
        own = min(sum(c not in shared for c in m.captions) for m in members)
        return len(members) > LARGEST or own < UNAMBIGUOUS

    links = _links(concepts, glyphs)
    family_of = families(concepts, lambda concept: links[concept.key])
    return split_by_family(concepts, family_of, SPLIT_SIZES, seed=SPLIT_SEED, to_train=to_train)


def _links(concepts: list[Concept], glyphs: list[Glyph]) -> dict[str, list[str]]:
    """What joins each concept, by key, with others: its name's first word, the first words of its aliases
    that name a concept, and its likeness to others. A word links to the concept that has it as key, too.
    """
    aliases: dict[str, set[str]] = defaultdict(set)
    for glyph in glyphs:
        aliases[_key(glyph.name)].update(_key(a.replace(" ", "-")) for a in glyph.aliases)
    known = {c.key for c in concepts}
    links = {
        c.key: sorted({word for name in {c.key} | aliases[c.key] & known for word in _first_words(name)})
        for c in concepts
    }
    for a, b in _alike(concepts):
        links[a].append(f"{a} looks like {b}")
        links[b].append(f"{a} looks like {b}")
    return links


def _alike(concepts: list[Concept]) -> Iterator[tuple[str, str]]:
    """Keys of concepts of which two pictures are more similar than `ALIKE`."""
    keys = np.array([c.key for c in concepts for _ in c.images])
    pixels = np.stack([_small(image) for c in concepts for image in c.images.values()])
    for start in range(0, len(pixels), 512):
        rows, columns = np.nonzero(pixels[start : start + 512] @ pixels.T > ALIKE)
        yield from zip(keys[start + rows].tolist(), keys[columns].tolist(), strict=True)


def _small(image: bytes) -> NDArray[np.float32]:
    """[1024] pixels of mean 0 and norm 1, so that a product of two pictures is their correlation."""
    picture = Image.open(io.BytesIO(image)).convert("L").resize((32, 32), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture, np.float32).ravel()
    pixels = pixels - pixels.mean()
    normed: NDArray[np.float32] = pixels / np.linalg.norm(pixels)
    return normed


def _first_words(key: str) -> set[str]:
    """The first word that is no frame, and the first that is no state either, in the singular."""
    words = [w for w in key.split("-") if w not in _FRAMES] or key.split("-")
    first = {words[0], next((w for w in words if w not in _STATES), words[0])}
    return {w[:-1] if len(w) > 3 and w.endswith("s") and not w.endswith("ss") else w for w in first}


def _picture(file: Path) -> bytes:
    """The glyph in black, with a white margin; line art is smaller without loss than with it."""
    attributes, body = file.read_text(encoding="utf-8").partition("<svg")[2].split(">", 1)
    attributes = re.sub(r'\s(width|height)="\d+"', "", attributes)
    side = PIXELS - 2 * MARGIN
    return webp(draw(f'<svg width="{side}" height="{side}"{attributes}>{body}'), lossless=True)


def _tags(items: Iterable[str]) -> list[str]:
    """Keywords as words, without those that say nothing."""
    return [t for t in unique(_words(t) for t in items if "*" not in t) if _says_something(t)]


def _says_something(text: str) -> bool:
    return text not in _GENERIC and bool(re.search(r"[^\W\d_]{2}", text))


def _unstyled(words: str) -> str:
    return " ".join([w for w in words.split() if w not in _STYLES] or [words])


def _words(text: str) -> str:
    return " ".join(re.sub(r"[-_/]", " ", text.lower()).split())
