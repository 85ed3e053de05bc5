"""Arrays out of pickles whose author nobody knows: nothing is unpickled, a few operations are walked.

Python's unpickler calls what a file names. The walk below knows four names of numpy and a few of torch, and what it
makes for them is built from plain bytes. The true `numpy.ndarray` and `numpy.dtype` are never reached: an array of
objects over a buffer of bytes is a pointer that the file chose, and a dtype's state may claim fields that lie outside
its buffer.

Every size that a file declares is compared with what the file has before memory is reserved, so what a pickle takes is
a small multiple of its length.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

MAX_PICKLE_BYTES = 2**30  # not tuned
MAX_TORCH_BYTES = 2**26  # not tuned: a table of (20, 1000) takes 160 kB
MAX_CONTAINERS = 10**5  # an empty dictionary takes a byte of the file and 64 of memory
MAX_NUMBER = 2**63
MAX_LABELS = 10**8  # the paper has 20 folds of up to two million
MAX_FOLDS = 10**4

SCALARS = {"NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"}
SCALARS |= {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"}

NUMPY = {  # module -> names; numpy has moved its private modules once
    "numpy": ("ndarray", "dtype"),
    "numpy.core.multiarray": ("_reconstruct",),
    "numpy._core.multiarray": ("_reconstruct",),
    "numpy.core.numeric": ("_frombuffer",),
    "numpy._core.numeric": ("_frombuffer",),
}
PLAIN = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|[SU][0-9]{1,4}|O8?)")

# The storages that torch.save names, as numpy's types; None for numbers that numpy lacks.
STORAGES = {"ByteStorage": "u1", "CharStorage": "i1", "ShortStorage": "i2", "IntStorage": "i4", "LongStorage": "i8"}
STORAGES |= {"HalfStorage": "f2", "FloatStorage": "f4", "DoubleStorage": "f8", "BoolStorage": "b1"}
STORAGES |= {"ComplexFloatStorage": "c8", "ComplexDoubleStorage": "c16"}


class PickleRefused(ValueError):
    """A pickle does or asks for something that arrays and containers do not need."""


def load_arrays(path: str | Path) -> Any:
    """What a pickle holds: dictionaries, lists, tuples, numbers, texts, bytes and numpy arrays of plain types.

    Arrays are stand-ins that `labels_of` opens; an array of objects may hold texts and integers.

    Raises:
        ValueError: it holds or asks for anything else, is damaged, or is larger than `MAX_PICKLE_BYTES`.
    """
    return _guarded(path, MAX_PICKLE_BYTES, _Walk(_numpy_name).result)


def load_tensor(path: str | Path) -> Any:
    """What a file of torch.save holds, a dense tensor as a numpy array.

    Raises:
        ValueError: it asks for anything else than dense tensors, is damaged, or is larger than `MAX_TORCH_BYTES`.
    """
    return _guarded(path, MAX_TORCH_BYTES, lambda data: _Archive(data).load())


def _guarded(path: str | Path, limit: int, load: Callable[[bytes], Any]) -> Any:
    try:
        if Path(path).stat().st_size > limit:
            raise PickleRefused(f"it is larger than {limit >> 20} MiB.")
        return load(Path(path).read_bytes())
    except OSError:
        raise
    except PickleRefused as error:
        raise ValueError(f"{path} is not loaded: {error}") from error
    except Exception as error:  # a damaged pickle raises nearly anything, a MemoryError included
        raise ValueError(f"{path} is damaged and not loaded: {type(error).__name__} {error}") from error


class _Walk:
    """Carries out the operations of a pickle that make containers and arrays; any other one ends it.

    Args:
        make: (module, name) -> what a pickle gets for a name: a text, or a `partial`, which alone a REDUCE may call, as
            no pickle can make one. Raises for a name that it does not know.
        storage: what a persistent id stands for, in files of torch.
    """

    def __init__(self, make: Callable[[str, str], Any], storage: Callable[[Any], Any] | None = None) -> None:
        self._make, self._storage = make, storage
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._containers = 0

    def result(self, data: bytes) -> Any:
        """The object that a pickle describes."""
        # genops reads no further than the file goes, whatever length an operation declares.
        for count, (operation, argument, _) in enumerate(pickletools.genops(data)):
            name = operation.name
            if name in SCALARS:
                if type(argument) is int and abs(argument) >= MAX_NUMBER:  # one of megabytes takes for ever to compute
                    raise PickleRefused("the pickle has an integer of more than 64 bits.")
                self._stack.append({"NEWTRUE": True, "NEWFALSE": False}.get(name, argument))
            elif name in ("BINGET", "LONG_BINGET"):
                self._stack.append(self._memo[argument])
            elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
                if 2 * len(self._memo) > count:  # a byte of the file, and 70 of memory
                    raise PickleRefused("the pickle remembers more than it makes.")
                self._memo[len(self._memo) if name == "MEMOIZE" else argument] = self._stack[-1]
            elif name == "MARK":
                self._marks.append(len(self._stack))
            elif name == "STOP":
                return self._stack.pop()  # what follows is not looked at
            elif name not in ("PROTO", "FRAME"):
                self._build(name, argument)

    def _build(self, name: str, argument: Any) -> None:
        """The operations that make or change something else than a scalar."""
        stack = self._stack
        self._containers += name not in ("APPEND", "SETITEM")
        if self._containers > MAX_CONTAINERS:
            raise PickleRefused("the pickle has far more parts than some folds of names.")
        if name in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE"):
            stack.append({"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}[name]())
        elif name in ("TUPLE", "LIST", "DICT"):
            items = self._since_mark()
            stack.append(_as_dict(items) if name == "DICT" else tuple(items) if name == "TUPLE" else items)
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(self._pop(int(name[-1]))))
        elif name in ("APPEND", "APPENDS"):
            items = self._pop(1) if name == "APPEND" else self._since_mark()
            _is_a(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._pop(2) if name == "SETITEM" else self._since_mark()
            _is_a(stack[-1], dict).update(_as_dict(items))
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            stack.append(self._make(*(argument.split(" ", 1) if name == "GLOBAL" else self._pop(2))))
        elif name == "REDUCE":
            function, arguments = self._pop(2)
            stack.append(_is_a(function, partial)(*_is_a(arguments, tuple)))
        elif name == "BUILD":
            (state,) = self._pop(1)
            _is_a(stack[-1], _DType | _Array).set_state(*_is_a(state, tuple))
        elif name == "BINPERSID" and self._storage:  # torch's way to name a storage
            stack.append(self._storage(*self._pop(1)))
        else:
            raise PickleRefused(f"the pickle has the operation {name}, which arrays do not need.")

    def _since_mark(self) -> list[Any]:
        return self._pop(len(self._stack) - self._marks.pop())

    def _pop(self, count: int) -> list[Any]:
        if count > len(self._stack) or count < 0:
            raise PickleRefused("the pickle takes more than there is.")
        items = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        return items


def _is_a(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise PickleRefused(f"the pickle treats a {type(value).__name__} as something else.")
    return value


def _as_dict(items: list[Any]) -> dict[str | int, Any]:
    keys = items[::2]
    # A tuple of tuples as a key can take for ever to hash, or more stack than there is.
    if len(items) % 2 or not all(type(key) in (str, int) for key in keys):
        raise PickleRefused("the pickle has a dictionary whose keys are neither texts nor integers.")
    return dict(zip(keys, items[1::2], strict=True))


def _numpy_name(module: str, name: str) -> Any:
    """What a pickle of arrays gets for a name."""
    if not isinstance(module, str) or not isinstance(name, str) or name not in NUMPY.get(module, ()):
        raise PickleRefused(f"the pickle asks for {module!s:.80}.{name!s:.80}, which is no array.")
    # `ndarray` is handed out as a mere text: it is only ever an argument of `_reconstruct`.
    known = {"dtype": _DType, "_reconstruct": _Array, "_frombuffer": _from_buffer}
    return partial(known[name]) if name in known else name


class _DType:
    """What a pickle calls a dtype: a plain type by its name, and then a byte order."""

    def __init__(self, name: str, align: Any = False, copy: Any = False) -> None:
        if not isinstance(name, str) or not PLAIN.fullmatch(name):
            raise PickleRefused(f"the pickle has an array of {name!s:.80}: only numbers and texts are loaded.")
        self.plain = np.dtype(name)

    def set_state(self, version: Any, order: Any, subarray: Any, names: Any, fields: Any, size: Any, *_: Any) -> None:
        if order not in ("<", ">", "|", "=") or (subarray, names, fields) != (None, None, None):
            raise PickleRefused("the pickle has an array of fields: only numbers and texts are loaded.")
        if size not in (-1, self.plain.itemsize):
            raise PickleRefused(f"the pickle has {self.plain} of another size.")
        self.plain = self.plain.newbyteorder(order)


class _Array:
    """What a pickle calls an array: it has contents when its state is set, and only if every byte is there."""

    def __init__(self, *_: Any) -> None:
        self._contents: np.ndarray | None = None

    @property
    def contents(self) -> np.ndarray:
        if self._contents is None:
            raise PickleRefused("the pickle has an array without contents.")
        return self._contents

    def set_state(self, version: Any, shape: Any, dtype: Any, fortran: Any, data: Any) -> None:
        """Raises PickleRefused: the bytes are not exactly those of the shape, or objects are not texts or integers."""
        if not isinstance(shape, tuple) or len(shape) > 2 or not all(type(n) is int and n >= 0 for n in shape):
            raise PickleRefused("the pickle has an array whose shape is not one of a list or table.")
        plain, items = _is_a(dtype, _DType).plain, math.prod(shape)
        if plain.kind == "O":
            if not _are_labels(_is_a(data, list)):
                raise PickleRefused("the pickle has an array of objects other than texts and integers.")
            found = np.empty(len(data), dtype=object)
            found[:] = data
        elif not plain.itemsize or len(_is_a(data, bytes | bytearray)) % plain.itemsize:
            raise PickleRefused(f"the pickle has an array of {plain} with {len(data)} bytes.")
        else:
            found = np.frombuffer(data, plain)
        if len(found) != items:
            raise PickleRefused(f"the pickle has an array of {items} items with contents for {len(found)}.")
        self._contents = found.reshape(shape, order="F" if fortran else "C")


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    """Protocol 5's way to write an array."""
    made = _Array()
    made.set_state(1, shape, dtype, order == "F", data)
    return made


def _are_labels(values: Sequence[Any]) -> bool:
    return all(type(value) is str or (type(value) is int and abs(value) < MAX_NUMBER) for value in values)


class _Archive:
    """An archive that torch.save wrote: a pickle of names and shapes, and a file of plain numbers for each storage."""

    def __init__(self, data: bytes) -> None:
        self._archive = zipfile.ZipFile(io.BytesIO(data))
        self._files = {info.filename.partition("/")[2]: info for info in self._archive.infolist()}
        # torch compresses nothing, and its files do not overlap: what is in an archive is no larger than the archive.
        sizes = sum(info.file_size for info in self._files.values())
        if any(info.compress_type for info in self._files.values()) or sizes > len(data):
            raise PickleRefused("it is an archive that torch.save did not write.")
        self._order = ">" if "byteorder" in self._files and self._read("byteorder") == b"big" else "<"
        self._storages: dict[str, np.ndarray] = {}

    def load(self) -> Any:
        found = _Walk(self._name, self._storage).result(self._read("data.pkl"))
        return found.contents if isinstance(found, _Tensor) else found

    def _read(self, name: str) -> bytes:
        if name not in self._files:
            raise PickleRefused(f"it lacks {name}; save it with torch.save.")
        return self._archive.read(self._files[name])

    def _name(self, module: Any, name: Any) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return partial(_Tensor)
        if (module, name) == ("collections", "OrderedDict"):  # the hooks of a tensor, of which there are none
            return partial(dict)
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise PickleRefused(f"it asks for {module!s:.80}.{name!s:.80}; only a dense tensor of numbers is loaded.")

    def _storage(self, described: Any) -> np.ndarray:
        _, kind, key, _, items = _is_a(described, tuple)
        if _is_a(key, str) not in self._storages:  # each tensor over a storage names it
            if kind not in STORAGES.values():
                raise PickleRefused("it has a storage of unknown numbers.")
            self._storages[key] = np.frombuffer(self._read(f"data/{key}"), np.dtype(kind).newbyteorder(self._order))
        if len(self._storages[key]) != items:
            raise PickleRefused(f"it has {len(self._storages[key])} of the numbers that it announces.")
        return self._storages[key]


class _Tensor:
    """What a pickle of torch calls a tensor: a whole table within a storage."""

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> None:
        if not all(
            type(n) is int and 0 <= n < MAX_NUMBER for n in (offset, *_is_a(size, tuple), *_is_a(stride, tuple))
        ):
            raise PickleRefused("it has a tensor without a shape.")
        items, dense = math.prod(size), tuple(math.prod(size[axis + 1 :]) for axis in range(len(size)))
        # A stride of 0 makes any number of items of one, and torch enlarges a storage for a size beyond it.
        if len(size) > 8 or stride != dense or offset + items > len(_is_a(storage, np.ndarray)):
            raise PickleRefused("it has a tensor that is not a whole table; save a contiguous one.")
        self.contents = storage[offset : offset + items].reshape(size)


def labels_of(folds: Any) -> list[Sequence[Any] | np.ndarray]:
    """The folds of one gallery size, each a list or an array of one dimension of integers or texts.

    Raises:
        ValueError: something else, or folds of unequal lengths, or more labels than `MAX_LABELS`.
    """
    folds = folds.contents if isinstance(folds, _Array) else folds
    if not isinstance(folds, list | tuple | np.ndarray):
        raise ValueError(f"folds are a {type(folds).__name__}; a list of them is needed.")
    found = [fold.contents if isinstance(fold, _Array) else fold for fold in folds]
    for fold in found:
        if not isinstance(fold, list | tuple | np.ndarray) or (isinstance(fold, np.ndarray) and fold.ndim != 1):
            raise ValueError(f"a fold is a {type(fold).__name__}; a list of labels is needed.")
        if len(fold) != len(found[0]):
            raise ValueError(f"folds have unequal lengths: {len(found[0])} and {len(fold)}.")
    if len(found) * max(map(len, found), default=0) > MAX_LABELS or len(found) > MAX_FOLDS:
        raise ValueError(f"there are {len(found)} folds of {len(found[0])} labels, far more than were published.")
    for fold in found:  # numpy's empty list is one of floats
        plain = fold.dtype.kind in "iuSUO" if isinstance(fold, np.ndarray) else _are_labels(fold)
        if len(fold) and not plain:
            raise ValueError("a label is neither an integer nor a text.")
    return found
