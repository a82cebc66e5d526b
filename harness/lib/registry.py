"""Names to objects: built-in names, and `package.module:Name` for a user's own."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any


class UnknownName(ValueError):
    """A name that is in no registry and no module; the text says what is allowed."""


def resolve(kind: str, name: Any, known: Mapping[str, str]) -> Any:
    """The object that `name` stands for.

    Raises:
        UnknownName: with the nearest matches, or with the reason why `module:Name` cannot be imported.
    """
    if not isinstance(name, str):
        raise UnknownName(f"{kind} = {name!r}: expected a name{suggest('', known)}")
    target = known.get(name, name)
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute or module_name.startswith("."):
        raise UnknownName(
            f"unknown {kind} {name!r}{suggest(name, known)}; or give your own as package.module:Name"
        )
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's own module can raise anything
        raise UnknownName(
            f"{kind} {name!r}: cannot import {module_name!r} ({type(error).__name__}: {error})"
        ) from None
    if not hasattr(module, attribute):
        raise UnknownName(f"{kind} {name!r}: module {module_name!r} has no {attribute!r}")
    return getattr(module, attribute)


def suggest(name: str, allowed: Iterable[str]) -> str:
    """What to say after an unknown name: `; did you mean 'x'? (allowed: ...)`; nothing where no name is
    allowed.
    """
    names = list(allowed)
    if not names:
        return ""
    near = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"{hint} (allowed: {', '.join(sorted(names))})"
