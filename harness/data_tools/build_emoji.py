"""Build of the embedded data set `emoji` from five npm packages and two PyPI packages.

Run by `python -m harness.data build emoji` (needs `npm`, and `pip install '.[build]'`). The result, one
Parquet file with WebP images, is part of the package, so users need not run this. The same package versions
give the same file content.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from harness.data_tools.building import (
    CAPTIONS,
    PIXELS,
    Concept,
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
    "noto": ("@iconify-json/noto", "1.2.9"),
    "twemoji": ("@iconify-json/twemoji", "1.2.5"),
    "fluent": ("@lobehub/fluent-emoji-3d", "1.1.0"),
    "emojilib": ("emojilib", "4.0.3"),
    "cldr": ("cldr-annotations-full", "48.2.0"),
}
VENDORS = ("noto", "twemoji", "fluent")
SPLIT_SIZES = {"test": 300, "dev": 300, "meta": 24}
"""Concepts per split; the remaining ones are train."""
SPLIT_SEED = 0

_VARIATION, _JOINER = 0xFE0F, 0x200D
_SKIN = frozenset(range(0x1F3FB, 0x1F400))
_REGIONS = frozenset(range(0x1F1E6, 0x1F200))  # letters of flags
_GENDER_SIGNS = {0x2640, 0x2642}
_DIRECTIONS = {0x27A1, 0x2194, 0x2195}
_PEOPLE = {0x1F466, 0x1F467, 0x1F468, 0x1F469, 0x1F474, 0x1F475, 0x1F476, 0x1F9D1, 0x1F9D2, 0x1F9D3}
_GENDERED_WORDS = frozenset(
    {"man", "men", "woman", "women", "person", "people", "boy", "boys", "girl", "girls", "child", "children"}
    | {"adult", "older", "old", "baby", "facing", "right", "with", "in"}
)
# Concepts with similar drawings that share neither code points nor words.
_SAME_FAMILY = {
    "santa claus": "claus",
    "mrs. claus": "claus",
    "mx claus": "claus",
    "prince": "crown",
    "princess": "crown",
    "person with crown": "crown",
    "merman": "merperson",
    "mermaid": "merperson",
    "breast-feeding": "feeding baby",
    "pregnant woman": "pregnant",
    "pregnant man": "pregnant",
    "pregnant person": "pregnant",
}
_COLOURS = "red|orange|yellow|green|blue|light blue|purple|brown|black|white|grey|pink"
_TEMPLATES = (
    ("clock", re.compile(r"(o’clock|o'clock|-thirty)$")),
    ("keycap", re.compile(r"^keycap")),
    ("family", re.compile(r"^family")),
    ("couple", re.compile(r"^(kiss|couple with heart|.*holding hands)")),
    ("heart", re.compile(rf"^({_COLOURS}) heart$")),
    ("circle", re.compile(rf"^({_COLOURS}) circle$")),
    ("square", re.compile(rf"^({_COLOURS}) (large |medium |small |medium-small )?square$")),
    ("small square", re.compile(r"^(black|white) (large|medium|small|medium-small) square$")),
    ("book", re.compile(rf"^({_COLOURS}) book$")),
    ("moon", re.compile(r"(crescent|gibbous|quarter|new|full) moon( face)?$|^(first|last) quarter moon")),
    ("japanese button", re.compile(r"^japanese .* button$")),
    ("arrow", re.compile(r"arrow")),
    (
        "zodiac",
        re.compile(
            r"^(aries|taurus|gemini|cancer|leo|virgo|libra|scorpio|sagittarius|capricorn|aquarius|pisces|ophiuchus)$"
        ),
    ),
)


def build(target: Path, work: Path) -> dict[str, int]:
    """Write the Parquet file.

    Args:
        target: the file to write.
        work: an existing directory; packages that it lacks are downloaded into it.

    Returns:
        The number of concepts in each split.
    """
    folders = {name: fetch(package, version, work) for name, (package, version) in PACKAGES.items()}
    concepts = _concepts(folders)
    for vendor in VENDORS:
        for concept, picture in _pictures(vendor, folders[vendor], concepts):
            concept.images[vendor] = webp(picture, quality=80)
    concepts = [c for c in concepts if len(c.images) >= 2 and len(c.captions) == CAPTIONS]
    split_of = split_by_family(concepts, families(concepts, _links), SPLIT_SIZES, seed=SPLIT_SEED)
    leave_out_ambiguous(concepts, split_of)
    return write(target, concepts, split_of, VENDORS, PACKAGES)


def _concepts(folders: dict[str, Path]) -> list[Concept]:
    import emoji  # build-time dependency

    library = {_strip(k): v for k, v in read_json(folders["emojilib"] / "dist/emoji-en-US.json").items()}
    cldr_file = folders["cldr"] / "annotations/en/annotations.json"
    cldr = {_strip(k): v for k, v in read_json(cldr_file)["annotations"]["annotations"].items()}

    concepts: dict[tuple[int, ...], Concept] = {}
    for text, data in emoji.EMOJI_DATA.items():
        code = _strip(text)
        excluded = _REGIONS.intersection(code) or _SKIN.intersection(code) or code[1:2] == (0xE0067,)
        if data["status"] != emoji.STATUS["fully_qualified"] or excluded:
            continue
        name = _words(data["en"].strip(":")).lower()
        aliases = [_words(a.strip(":")) for a in data.get("alias", [])]
        aliases += cldr.get(code, {}).get("tts", [])
        emojilib = [_words(k) for k in library.get(code, [])]
        cldr_keywords = [_words(k) for k in cldr.get(code, {}).get("default", [])]
        concepts[code] = Concept(_key(code), name, _captions(name, aliases, emojilib, cldr_keywords))
    return [concepts[code] for code in sorted(concepts)]


def _captions(name: str, aliases: list[str], emojilib: list[str], cldr: list[str]) -> list[str]:
    """Five distinct captions: the name, a second name, and keywords in natural groups.

    Emojilib's keywords are in order of frequency, those of CLDR in alphabetical order.
    """
    words = set(name.split())
    emojilib = [k for k in unique(emojilib) if _is_word(k) and k != name and k not in words]
    cldr = [k for k in unique(cldr) if _is_word(k) and k != name and k not in words]
    rest = [k for k in cldr if k not in emojilib]
    half = max(1, len(emojilib) // 2)
    second_names = [a for a in unique(a.lower() for a in aliases) if _is_word(a) and a != name]
    candidates = [
        name,
        *second_names[:1],
        " ".join(emojilib[:half][:5]),
        " ".join(emojilib[half:][:5]),
        " ".join((rest or cldr)[:6]),
        f"{name} {' '.join(emojilib[:2])}".strip(),
        f"{name} {' '.join(rest[:2])}".strip(),
        " ".join(cldr[-4:]),
        f"{name} {' '.join(emojilib[-1:])}".strip(),
        f"{name} {' '.join((rest or cldr)[-1:])}".strip(),
    ]
    # A single keyword ("weather") describes many concepts, so such captions come last.
    vague = {
        " ".join(group[:1])
        for group in (emojilib[:half], emojilib[half:], rest or cldr, cldr[-4:])
        if len(group) == 1
    }
    ranked = sorted(unique(c for c in candidates if c), key=lambda c: c in vague - {name, *second_names})
    return ranked[:CAPTIONS]


def _pictures(vendor: str, folder: Path, concepts: list[Concept]) -> Iterator[tuple[Concept, Image.Image]]:
    """The vendor's picture of each concept that it has one for."""
    by_code = {_parse(c.key): c for c in concepts}
    if vendor == "fluent":
        for file in sorted((folder / "assets").glob("*.webp")):
            concept = by_code.get(_parse(file.stem))
            if concept is not None:
                yield concept, Image.open(file)
        return
    icons = read_json(folder / "icons.json")
    drawings, aliases = icons["icons"], icons.get("aliases", {})
    for key, icon in sorted(read_json(folder / "chars.json").items()):
        concept = by_code.get(_parse(key))
        if concept is None:
            continue
        drawing = drawings.get(icon) or drawings[aliases[icon]["parent"]]
        width, height = (
            drawing.get("width", icons.get("width", 16)),
            drawing.get("height", icons.get("height", 16)),
        )
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {width} {height}" width="{PIXELS}" height="{PIXELS}">{drawing["body"]}</svg>'
        )
        yield concept, draw(svg)


def _links(concept: Concept) -> list[str]:
    """What joins a concept with others: base code point, name without gender, template."""
    code = _parse(concept.key)
    base = [c for c in code if c not in _GENDER_SIGNS | _DIRECTIONS and c != _JOINER]
    if base and base[0] in _PEOPLE:
        base = [c for c in base if c not in _PEOPLE] or [0x1F9D1]
    words = [w for w in concept.name.replace(":", "").split() if w not in _GENDERED_WORDS]
    links = ["code " + "-".join(map(str, base or code)), "name " + (" ".join(words) or "person")]
    if concept.name in _SAME_FAMILY:
        links.append("same " + _SAME_FAMILY[concept.name])
    return links + ["template " + label for label, pattern in _TEMPLATES if pattern.search(concept.name)]


def _strip(text: str) -> tuple[int, ...]:
    return tuple(ord(c) for c in text if ord(c) != _VARIATION)


def _parse(key: str) -> tuple[int, ...]:
    return tuple(c for c in (int(p, 16) for p in key.split("-")) if c != _VARIATION)


def _key(code: tuple[int, ...]) -> str:
    return "-".join(f"{c:x}" for c in code)


def _words(text: str) -> str:
    return " ".join(text.replace("_", " ").split())


def _is_word(text: str) -> bool:
    return bool(re.search(r"[^\W\d_]", text)) and len(text) > 1
