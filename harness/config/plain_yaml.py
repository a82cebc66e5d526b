"""YAML of unknown origin, read as plain data or refused."""

from __future__ import annotations

import re
from typing import Any

import yaml

MOST_BYTES = 1_000_000
_MOST_VALUES, _MOST_DEPTH = 100_000, 40


def read_yaml(text: str) -> Any:
    """Plain data from YAML.

    Raises:
        yaml.YAMLError, ValueError: it is no YAML, has a duplicate key (of which one would be lost silently),
            asks for objects, refers to itself, is nested too deeply, or stands for much more than it looks
            (aliases of aliases).
    """
    if len(text) > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES:,} bytes")
    depth = 0
    for event in yaml.parse(text, _Plain):  # one after another: what follows goes down by recursion
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MOST_DEPTH:
            raise ValueError("it is nested too deeply")
    _size(yaml.compose(text, _Plain), {})
    try:
        content = yaml.load(text, _Plain)
    except (KeyError, IndexError, AttributeError, TypeError):  # PyYAML's own
        raise ValueError("a value is not what its tag (!!...) says") from None
    _check_plain(content)
    return content


class _Plain(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe loading that refuses duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [
            key.value
            for key, _ in node.value
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge"
        ]
        duplicates = sorted({key for key in keys if keys.count(key) > 1})
        if duplicates:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {duplicates[0]!r} is a duplicate", node.start_mark
            )
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def _check_plain(content: Any) -> None:
    """Raises ValueError where there is anything but mappings, lists, text, numbers, true, false and null."""
    if isinstance(content, dict):
        for key, value in content.items():
            _check_plain(key)
            _check_plain(value)
    elif isinstance(content, list):
        for value in content:
            _check_plain(value)
    elif content is not None and not isinstance(content, (str, bool, int, float)):
        raise ValueError(
            f"{content!r} is a {type(content).__name__}: put it in quotes if it is meant as text"
        )


def _size(node: yaml.Node | None, known: dict[int, int]) -> int:
    """How many values a node stands for, with what its aliases point at. Raises ValueError where that is too
    many or without end.
    """
    if (
        isinstance(node, yaml.ScalarNode)
        and node.tag.endswith((":int", ":float"))
        and re.match(r"[-+]?0[0-9_]+$|.*:", node.value)
    ):
        raise ValueError(
            f"{node.value} is a number to the base 8 or 60 in YAML: write it in the usual way, or in "
            f"quotes if it is text"
        )
    if node is None or isinstance(node, yaml.ScalarNode):
        return 1
    if known.get(id(node)) == 0:
        raise ValueError("it refers to itself")
    if id(node) not in known:
        known[id(node)] = 0
        parts = (part for entry in node.value for part in (entry if isinstance(entry, tuple) else (entry,)))
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
        if known[id(node)] > _MOST_VALUES:
            raise ValueError(f"it stands for more than {_MOST_VALUES:,} values")
    return known[id(node)]
