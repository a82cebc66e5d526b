"""Backbones by name. A new one is a file here with a `BackboneSetup` (`base.py`) and a line in `BACKBONES`.

Importing this package imports neither torch nor a backbone: command lines read the names alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.lib.registry import resolve

if TYPE_CHECKING:
    from harness.backbones.base import BackboneSetup

BACKBONES = {"clip": "harness.backbones.clip:ClipSetup", "sgraf": "harness.backbones.sgraf:SgrafSetup"}
"""Names of the built-in backbones, with `module:Name` of their setup."""
DEFAULT = "clip"
"""The backbone of a configuration without `kind`."""
NO_NUMBER = frozenset({"pixel_cache"})
"""Fields of configurations that change no number, whatever the backbone. They are neither part of a trial's
id nor among its parameters.
"""


def backbone_setup(config: Mapping[str, Any]) -> BackboneSetup[Any]:
    """Turn the mapping `backbone:` of a sweep file or a trial into a setup.

    Only the types of the fields are validated; see `BackboneSetup.check` for the rest.

    Args:
        config: the fields of the backbone's `Config`; `kind` is `DEFAULT` where it is missing.

    Raises:
        UnknownName: `kind` is neither a built-in name nor `package.module:Name` of an object.
        pydantic.ValidationError: a field is unknown, missing or invalid.
        ValueError: the object under that name is not a backbone. The two above are subclasses of it.
    """
    kind = config.get("kind", DEFAULT)
    setup = resolve("backbone", kind, BACKBONES)
    error = _incompatibility(setup)
    if error:
        raise ValueError(f"backbone.kind = {kind!r}: {error}")
    configured: BackboneSetup[Any] = setup(setup.Config.model_validate(dict(config)))
    return configured


def _incompatibility(setup: Any) -> str | None:
    """Why an object is not a complete `BackboneSetup`, or None if it is one."""
    from harness.backbones.base import BackboneConfig, BackboneSetup

    if not (isinstance(setup, type) and issubclass(setup, BackboneSetup)):
        return "not a backbone (expected a subclass of harness.backbones.base.BackboneSetup)"
    missing = [name for name in ("Config", "takes") if not hasattr(setup, name)]
    missing += sorted(setup.__abstractmethods__)
    if missing:
        return f"the class does not define {', '.join(missing)}"
    if not (isinstance(setup.Config, type) and issubclass(setup.Config, BackboneConfig)):
        return "its Config is not a subclass of harness.backbones.base.BackboneConfig"
    return None
