"""A dictionary of NumPy arrays that ``torch.save`` wrote, read without running anything in it.

Such a file is a pickle, which names functions to be called. None of those is: the names that make
an array stand for functions of this file, which only take apart what they are given, and any other
name is refused.
"""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from mcr2.files import Array, check_size, naming

#: No file of labels is larger.
MOST = 256 << 20

#: What stands for a type of numbers, as pickles write it.
_NUMBERS = ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8")


class _Dtype:
    """Stands for ``numpy.dtype``."""

    def __init__(self, name: object, *_: object) -> None:
        if name not in _NUMBERS:
            raise ValueError(f"an array of {name!r}; arrays of labels hold numbers")
        self.name, self.order = str(name), "<"

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if state[1] == ">" else "<"


class _Array:
    """Stands for an array that is being made."""

    def __init__(self, *_: object) -> None:
        self.made: Array | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, by_columns, data = state
        if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
            raise ValueError("an array that does not hold numbers")
        flat = np.frombuffer(data, dtype.order + dtype.name)
        self.made = flat.reshape(shape, order="F" if by_columns else "C")


def _encode(text: str, encoding: str) -> bytes:
    """Stands for ``_codecs.encode``, by which old pickles write bytes."""
    return str(text).encode("latin1")


_STANDS_FOR = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


# Python's own and not C's, which allots memory by numbers in the file.
class _Reader(pickle._Unpickler):
    dispatch = {  # noqa: RUF012
        code: read
        for code, read in pickle._Unpickler.dispatch.items()
        if code != pickle.BYTEARRAY8[0]  # likewise
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STANDS_FOR:
            raise ValueError(f"it names {module}.{name}; only arrays of NumPy are read")
        return _STANDS_FOR[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise ValueError("it holds tensors; only arrays of NumPy are read")


def read_pt(path: Path) -> dict[str, Array]:
    """Read the arrays of a dictionary; what else stands in it is passed over.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a dictionary, or it would run something.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} not found: name an existing .pt file")
    with naming(path):
        if not path.is_file():
            raise ValueError("not a file")
        if path.stat().st_size > MOST:
            raise ValueError(f"{path.stat().st_size:,} bytes; the limit is {MOST:,}")
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                inner = [
                    n for n in archive.namelist() if n.count("/") == 1 and n.endswith("/data.pkl")
                ]
                if len(inner) != 1:
                    raise ValueError("not what torch.save writes")
                check_size(archive.getinfo(inner[0]).file_size, path.stat().st_size)
                found = _Reader(io.BytesIO(archive.read(inner[0]))).load()
        else:  # the format before PyTorch 1.6: a number, a version, the system, then the object
            stream = io.BytesIO(path.read_bytes())
            found = [_Reader(stream).load() for _ in range(4)][-1]
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}; it must be a dictionary of arrays")
        return {
            name: array.made
            for name, array in found.items()
            if isinstance(name, str) and isinstance(array, _Array) and array.made is not None
        }
