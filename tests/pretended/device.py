"""Tensors that say they are on `cuda:0` and hold their values on the CPU.

They keep the rules of a device: tensors of both devices do not meet, except where PyTorch allows it. What
would wait for the device is counted by its place in the project: what reads a value or a size that the device
computes, and what copies without `non_blocking`. The rules are those of the CUDA kernels of PyTorch 2.15, and
a wait is what `torch.cuda.set_sync_debug_mode` reports there, as far as it was read.

Not covered: memory, streams, numbers of a GPU, cuDNN, fused attention and several processes.
"""

from __future__ import annotations

import contextlib
import functools
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.pretended import recurrent

aten = torch.ops.aten
DEVICE = torch.device("cuda:0")
PROJECT = Path(__file__).parents[2]
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
READS = {aten.equal.default, aten.multinomial.default, aten._linalg_check_errors.default}
"""Operations that read values of the device, beside those that PyTorch marks so."""
SCALARS_TOO = {
    aten.masked_fill.Tensor,
    aten.masked_fill_.Tensor,
    aten.index_fill.int_Tensor,
    aten.index_fill_.int_Tensor,
    aten.fill_.Tensor,
}
"""Operations that take a number from the CPU (a tensor without dimensions), beside the pointwise ones."""

_found: list[str] | None = None


class DeviceError(RuntimeError):
    """Tensors of two devices in one operation, which CUDA refuses."""


class Pretended(Tensor):
    """A tensor on the pretended device; `values` has its numbers."""

    values: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: Tensor) -> Pretended:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
        )
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Pretended({self.values})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def record_stream(self, stream: Any) -> None:
        pass


class Generator(torch.Generator):
    """A generator that can be on the pretended device. It draws what one on the CPU draws."""

    there: ClassVar[set[int]] = set()

    def __new__(cls, device: torch.device | str = "cpu") -> Generator:
        made = super().__new__(cls, "cpu")
        if _is_cuda(device):
            cls.there.add(made._cdata)  # operations get another Python object of the same generator
            weakref.finalize(made, cls.there.discard, made._cdata)
        return made


class Pretending(TorchDispatchMode):
    """A block in which the device is there: tensors can be made on it and sent to it."""

    def __enter__(self) -> Pretending:
        torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor(..., device="cuda")` is made, then sent
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextlib.contextmanager
def waits() -> Iterator[list[str]]:
    """A block whose waits for the device are listed, each with its kind and place."""
    global _found
    before, _found = _found, []
    try:
        yield _found
    finally:
        _found = before


def wait(kind: str) -> None:
    """Count a wait for the device, of the line of the project that is being run."""
    if _found is not None:
        _found.append(f"{kind}: {_place()}")


def _place() -> str:
    """The innermost line of the project that is being run."""
    for frame, line in traceback.walk_stack(None):
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(PROJECT) and file != Path(__file__):
            inside = file.relative_to(PROJECT)
            if inside.parts[0] in ("harness", "methods", "tests"):
                return f"{inside}:{line}"
    return "a backward pass in PyTorch"


def _run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """An operation of PyTorch, on the tensors of either device."""
    tensors = [*_tensors(args), *_tensors(kwargs)]
    here = [x for x in tensors if isinstance(x, Pretended)]
    asked = kwargs.get("device")
    there = _is_cuda(asked) if asked is not None else bool(here)
    generator = kwargs.get("generator")
    if generator is not None and there != (generator._cdata in Generator.there):
        raise DeviceError(f"{func}: the generator is on another device")
    if not here and not there:
        return func(*args, **kwargs)
    if func is aten._has_compatible_shallow_copy_type.default:
        return False  # a module that is sent to the device gets new parameters
    if func in COPIES:
        return COPIES[func](func, args, kwargs)
    if here:
        _check_devices(func, args, tensors)
        _count_waits(func, args, kwargs)
    if func in recurrent.KERNELS:
        return _mapped(Pretended, Tensor, recurrent.KERNELS[func](*_values(args), **_values(kwargs)))
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    out = func(*_values(args), **_values(kwargs))
    if torch.Tag.inplace_view in _tags(func):
        with torch._C._DisableTorchDispatch():
            return func(*args, **kwargs)  # the tensor that says where it is gets the new shape, too
    if func is aten._pack_padded_sequence.default:
        return Pretended(out[0]), out[1]  # the sizes stay on the CPU
    return _wrapped(out, here) if there else out


def _wrapped(out: Any, given: Sequence[Pretended]) -> Any:
    """The results on the device; what an operation changed in place is the tensor that it was given."""
    known = {id(x.values): x for x in given}

    def wrap(values: Tensor) -> Tensor:
        same = known.get(id(values))
        if same is not None and same.shape != values.shape:
            raise NotImplementedError("an operation that resizes the tensor that it writes to")
        return Pretended(values) if same is None else same

    return _mapped(wrap, Tensor, out)


def _values(given: Any) -> Any:
    return _mapped(lambda x: x.values, Pretended, given)


def _mapped(function: Callable[[Any], Any], kind: type, given: Any) -> Any:
    """Arguments or results with a function of what is of a kind (faster than PyTorch's trees)."""
    if isinstance(given, kind):
        return function(given)
    if isinstance(given, tuple | list):
        return type(given)([_mapped(function, kind, x) for x in given])
    if isinstance(given, dict):
        return {name: _mapped(function, kind, x) for name, x in given.items()}
    return given


def _tensors(given: Any) -> Iterator[Tensor]:
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, tuple | list | dict):
        for x in given.values() if isinstance(given, dict) else given:
            yield from _tensors(x)


@functools.cache
def _tags(func: Any) -> frozenset[Any]:
    return frozenset(func.tags)


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


# Rules ------------------------------------------------------------------------------------------


def _check_devices(func: Any, args: Sequence[Any], tensors: Sequence[Tensor]) -> None:
    strangers = [x for x in tensors if not isinstance(x, Pretended)]
    if not strangers or (func is aten._pack_padded_sequence.default and isinstance(args[0], Pretended)):
        return
    if func in INDEXING:
        if not isinstance(args[0], Pretended):
            raise DeviceError(f"{func}: a tensor on the CPU and indices or values on {DEVICE}")
        strangers = [x for x in _tensors(args[2:]) if not isinstance(x, Pretended)]
    scalars = func in INDEXING or func in SCALARS_TOO or torch.Tag.pointwise in _tags(func)
    refused = [tuple(x.shape) for x in strangers if x.ndim or not scalars]
    if refused:
        raise DeviceError(f"{func}: tensors on {DEVICE}, and on the CPU (shapes {refused})")


def _count_waits(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    if func in INDEXING:
        _count_waits_of_indexing(func, args)
    elif func is aten.repeat_interleave.Tensor:
        if kwargs.get("output_size") is None:
            wait("a size from the device (repeat_interleave)")
    elif torch.Tag.dynamic_output_shape in _tags(func):
        wait(f"a size from the device ({func.overloadpacket.__name__})")
    elif torch.Tag.data_dependent_output in _tags(func) or func in READS:
        wait("a value from the device")


def _count_waits_of_indexing(func: Any, args: Sequence[Any]) -> None:
    indices = [x for x in args[1] if isinstance(x, Tensor)]
    put = func is not aten.index.Tensor
    number = put and not isinstance(args[2], Pretended)  # from the CPU
    accumulates = put and len(args) > 3 and args[3]
    masks = [x for x in indices if x.dtype in (torch.bool, torch.uint8)]
    if number and not accumulates and len(masks) == len(indices) == 1 and isinstance(masks[0], Pretended):
        return  # a `masked_fill`
    for index in indices:
        if not isinstance(index, Pretended):
            wait("an index from the CPU")
        elif index.dtype in (torch.bool, torch.uint8):
            wait("a size from the device (a mask as index)")
    if number:
        wait("a number from the CPU, put at indices")


# Copies between devices -------------------------------------------------------------------------


def _to(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    (source,), asked = args, kwargs.get("device")
    arrives = isinstance(source, Pretended) if asked is None else _is_cuda(asked)
    _count_copy(isinstance(source, Pretended), arrives, free=bool(kwargs.get("non_blocking")))
    rest = {name: value for name, value in kwargs.items() if name != "device"}
    out = func(_values(source), **rest)
    return Pretended(out) if arrives else out


def _copy(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    target, source = args[:2]
    free = bool(args[2] if len(args) > 2 else kwargs.get("non_blocking"))
    _count_copy(isinstance(source, Pretended), isinstance(target, Pretended), free=free)
    func(_values(target), _values(source))
    return target


def _count_copy(leaves: bool, arrives: bool, *, free: bool) -> None:
    if leaves and not arrives:
        wait("a copy from the device")
    if arrives and not leaves and not free:
        wait("a copy to the device")


COPIES: dict[Any, Callable[..., Tensor]] = {aten._to_copy.default: _to, aten.copy_.default: _copy}
