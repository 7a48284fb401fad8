"""A look at the pickle of a PyTorch file before torch reads it: nothing in it is called, and nothing allocated.

``torch.load(weights_only=True)`` runs no foreign code, but allocates what a few bytes ask for: a ``bytearray`` of
any size, a tensor larger than its storage, strings that double with every call. So the pickle is first read with
stand-ins, which make nothing and check what they are given. What is not on the list here is refused by its name.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any, ClassVar

_LARGEST_COPIES = 1 << 24
"""Entries and bytes that a pickle may copy out of its own lists and strings."""

_KEYS = (str, int, float, bool, bytes, type(None))
_NUMBERS = re.compile(r"[<>=|]?[?bifu]\d{0,2}")
_OPCODES = frozenset(
    b"".join(
        (
            *(
                pickle.GLOBAL,
                pickle.NEWOBJ,
                pickle.REDUCE,
                pickle.BINPERSID,
                pickle.PROTO,
                pickle.STOP,
                pickle.MARK,
            ),
            *(pickle.APPEND, pickle.APPENDS, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
            *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.EMPTY_TUPLE, pickle.EMPTY_LIST),
            *(pickle.EMPTY_DICT, pickle.EMPTY_SET, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1),
            *(pickle.BINFLOAT, pickle.BINUNICODE, pickle.SHORT_BINSTRING),
            *(pickle.BINGET, pickle.LONG_BINGET, pickle.BINPUT, pickle.LONG_BINPUT),
        )
    )
)
_INERT = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.serialization._get_layout")


_InPython: Any = pickle._Unpickler  # C's takes memory for as many entries as a pickle claims to have


class RefusedObjectError(Exception):
    """The pickle asks for something that is no plain data; the text is the name of that."""


@dataclass
class Budget:
    """What the pickles of one file may ask for together.

    Attributes:
        bytes: of all storages; a file holds all that it asks for, so this is its size.
        storages: the size of each so far.
        copies: made so far.
    """

    bytes: int
    storages: dict[str, int] = field(default_factory=dict)
    copies: int = 0

    def add_storage(self, key: str, size: int) -> None:
        """Count a storage, once."""
        self.bytes -= max(size - self.storages.get(key, 0), 0)
        self.storages[key] = max(size, self.storages.get(key, 0))
        if self.bytes < 0:
            raise pickle.UnpicklingError("its tensors are larger than the file")

    def add_copy(self, size: int) -> None:
        """Count a copy."""
        self.copies += size
        if self.copies > _LARGEST_COPIES:
            raise pickle.UnpicklingError("it copies its own content over and over")


class _Made:
    """Stands for what the pickle makes."""

    def __setstate__(self, state: Any) -> None:
        """The state is data that has been looked at."""


class _Dict(_Made, dict[Any, Any]):
    """Stands for an ``OrderedDict``."""


class _Namespace(_Made):
    """Stands for an ``argparse.Namespace``."""


class _Dtype(_Made):
    """Stands for a numpy dtype."""

    def __setstate__(self, state: Any) -> None:
        """Of a plain number there is nothing to say but the byte order: no fields, no shape, no size."""
        if not isinstance(state, tuple) or any(part is not None for part in state[2:5]):
            raise RefusedObjectError("numpy.dtype")


@dataclass(frozen=True)
class _Type:
    """Stands for a dtype of torch's, or the storage class of one."""

    itemsize: int


@dataclass(frozen=True)
class _Storage:
    bytes: int
    itemsize: int


class PickleCheck(_InPython):  # type: ignore[misc]
    """Reads one pickle of a PyTorch file for what it would make.

    Args:
        file: at the first byte of the pickle.
        budget: of the file.

    Raises:
        RefusedObjectError: from :meth:`load`, for anything but tensors, numbers, strings and containers of these.
        pickle.UnpicklingError: from :meth:`load`, for what asks for more than the file has; other errors, for a
            damaged one.
    """

    def __init__(self, file: IO[bytes] | io.RawIOBase, budget: Budget) -> None:
        super().__init__(file, encoding="utf-8")
        self._budget = budget

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in for what the pickle names."""
        full = f"{module}.{name}"
        if full in _INERT:
            return full
        if full == "torch.storage.UntypedStorage":  # of types newer than storage classes, in bytes
            return _Type(1)
        if module == "torch" and (itemsize := _itemsize(name)):
            return _Type(itemsize)
        if full == "argparse.Namespace":
            return _Namespace
        makers = {
            "_codecs.encode": self._encode,
            "numpy.dtype": _dtype,
            **dict.fromkeys(("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"), _scalar),
            **dict.fromkeys(("pathlib.PosixPath", "pathlib.PurePosixPath", "pathlib._local.PosixPath"), _path),
            "collections.OrderedDict": self._ordered_dict,
            **dict.fromkeys(("collections.Counter", "builtins.set", "__builtin__.set"), self._container),
            "torch.Size": self._container,
            "torch.device": _device,
            **dict.fromkeys(("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"), _tensor),
            "torch._utils._rebuild_tensor_v3": _typed_tensor,
            "torch._utils._rebuild_parameter": _parameter,
            "torch._utils._rebuild_parameter_with_state": _parameter,
            "torch._tensor._rebuild_from_type_v2": _from_type,
        }
        if full not in makers:
            raise RefusedObjectError(full)
        return makers[full]

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage."""
        word, kind, key, _, numel, *view = pid
        if word not in ("storage", b"storage") or not isinstance(kind, _Type) or type(key) not in (str, int):
            raise pickle.UnpicklingError("it names a storage that is none")
        if type(numel) is not int or numel < 0 or any(part is not None for part in view):
            raise pickle.UnpicklingError("it names a storage that is none")
        storage = _Storage(numel * kind.itemsize, kind.itemsize)
        self._budget.add_storage(str(key), storage.bytes)
        return storage

    # -- opcodes that would call or hash what is given them ---------------------------------------

    def load_build(self) -> None:
        """Only what stands for an object takes a state."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _Made):
            raise pickle.UnpicklingError("it gives a state to what has none")
        self.stack[-1].__setstate__(state)

    def load_setitem(self) -> None:
        """``dictionary[key] = value``."""
        _check_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self) -> None:
        """``dictionary.update(...)``."""
        _check_keys(self.stack[::2])
        super().load_setitems()

    def load_other(self) -> None:
        """What torch reads of no pickle either."""
        raise pickle.UnpicklingError("it is no pickle of PyTorch's")

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **dict.fromkeys(range(256), load_other),
        **{code: method for code, method in _InPython.dispatch.items() if code in _OPCODES},
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
    }

    # -- stand-ins that copy ----------------------------------------------------------------------

    def _encode(self, text: str, codec: str) -> bytes:
        if codec != "latin1":  # others lengthen what they are given
            raise RefusedObjectError("_codecs.encode")
        self._budget.add_copy(len(text))
        return text.encode("latin1")

    def _ordered_dict(self, pairs: Any = ()) -> _Dict:
        self._budget.add_copy(len(pairs))
        _check_keys([key for key, _ in pairs])
        return _Dict(pairs)

    def _container(self, items: Any = ()) -> _Made:
        self._budget.add_copy(len(items))
        _check_keys(items)
        return _Made()


def _check_keys(keys: Any) -> None:
    """Only these are hashed: the hash of a tuple in tuples, a million deep, ends the process."""
    if not all(type(key) in _KEYS for key in keys):
        raise pickle.UnpicklingError("a key is no plain value")


def _itemsize(name: str) -> int:
    """Bytes of an element, by the name of a dtype or a storage class of torch's; 0 where it is none."""
    import torch

    found = getattr(torch, name, None)
    if name.endswith("Storage"):
        found = getattr(found, "dtype", None)
    return found.itemsize if isinstance(found, torch.dtype) else 0


def _dtype(kind: str, *_: bool) -> _Dtype:
    if _NUMBERS.fullmatch(kind) is None:
        raise RefusedObjectError("numpy.dtype")
    return _Dtype()


def _scalar(dtype: _Dtype, value: bytes) -> _Made:
    if not (isinstance(dtype, _Dtype) and isinstance(value, bytes)):
        raise RefusedObjectError("numpy scalar")
    return _Made()


def _path(*parts: str) -> _Made:
    if sum(len(part) if isinstance(part, str) else 1 << 20 for part in parts) > 1 << 16:
        raise RefusedObjectError("pathlib.PosixPath")
    return _Made()


def _device(*_: Any) -> _Made:
    return _Made()


def _tensor(storage: _Storage, offset: int, size: Any, stride: Any, *_: Any) -> _Made:
    return _checked(storage, offset, size, stride, storage.itemsize)


def _typed_tensor(storage: _Storage, offset: int, size: Any, stride: Any, *rest: Any) -> _Made:
    return _checked(storage, offset, size, stride, rest[2].itemsize)


def _checked(storage: _Storage, offset: int, size: Any, stride: Any, itemsize: int) -> _Made:
    """A tensor, once it is known to lie inside its storage: torch would make that larger."""
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or any(type(number) is not int or number < 0 for number in numbers):
        raise pickle.UnpicklingError("a tensor has no shape")
    last = offset + sum((count - 1) * step for count, step in zip(size, stride, strict=True))
    if 0 not in size and (last + 1) * itemsize > storage.bytes:
        raise pickle.UnpicklingError("a tensor is larger than what is stored of it")
    return _Made()


def _parameter(*_: Any) -> _Made:
    return _Made()


def _from_type(make: Any, _kind: Any, arguments: Any, _state: Any) -> Any:
    if make not in (_tensor, _typed_tensor, _parameter):
        raise RefusedObjectError("torch._tensor._rebuild_from_type_v2")
    return make(*arguments)
