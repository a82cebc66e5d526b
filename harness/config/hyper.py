"""The hyper-parameters of a method, as its constructors declare them."""

from __future__ import annotations

import inspect
import types
import typing
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, create_model

if TYPE_CHECKING:  # a method is a torch module
    from methods.base import Method

_HARNESS_SUPPLIES = {"make_backbone", "pairs", "batch_size", "seed", "clean", "ground_truth"}


@lru_cache
def hyper_model(cls: type[Method]) -> type[BaseModel]:
    """A model of the keyword-only arguments of a method's constructors, with their types and defaults."""
    from methods.base import Method

    fields: dict[str, Any] = {}
    for owner in reversed(cls.__mro__[: cls.__mro__.index(Method)]):
        constructor = vars(owner).get("__init__")
        if constructor is None:
            continue
        hints = typing.get_type_hints(constructor, include_extras=True)
        for name, parameter in inspect.signature(constructor).parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY and name not in _HARNESS_SUPPLIES:
                default = ... if parameter.default is parameter.empty else parameter.default
                fields[name] = (hints.get(name, Any), default)
    config = ConfigDict(extra="forbid", allow_inf_nan=False)
    return create_model(f"{cls.__name__}Hyper", __config__=config, **fields)


def admits_bool(annotation: Any) -> bool:
    """Whether true and false are values of a type. (pydantic takes them for 1 and 0 where a number is
    expected.)
    """
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return admits_bool(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return any(map(admits_bool, typing.get_args(annotation)))
    if origin is typing.Literal:
        return any(isinstance(value, bool) for value in typing.get_args(annotation))
    return annotation is bool
