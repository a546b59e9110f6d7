"""Files of arrays and strings that are written piece by piece: in the end those that are written at once."""

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from lsr.index.ids import StringTable
from lsr.index.segment import Array
from lsr.index.storage import open_array

Arrays = TypeVar("Arrays", bound=NamedTuple)


class ArrayWriter:
    """Appends to a one-dimensional ``.npy`` file, which in the end is what `numpy.save` writes."""

    def __init__(self, path: Path, dtype: str) -> None:
        self.path = path
        self.dtype = np.dtype(dtype)
        self.length = 0
        self._file = path.open("wb")
        self._write_header()

    def append(self, array: Array) -> None:
        """Write the elements, as the file's dtype."""
        self._file.write(np.ascontiguousarray(array, dtype=self.dtype).data)
        self.length += len(array)

    def close(self) -> None:
        """Write the header again, now that the length is known: NumPy leaves it room to grow."""
        if not self._file.closed:
            self._file.seek(0)
            self._write_header()
            self._file.close()

    def _write_header(self) -> None:
        descr = np.lib.format.dtype_to_descr(self.dtype)
        fields = {"descr": descr, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self._file, fields)

    def __enter__(self) -> "ArrayWriter":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


class StringsWriter:
    """Appends to the two files of a table of strings (`storage.save_strings`)."""

    def __init__(self, folder: Path, name: str) -> None:
        self.data = ArrayWriter(folder / f"{name}.data.npy", "|u1")
        self.offsets = ArrayWriter(folder / f"{name}.offsets.npy", "<i8")
        self.offsets.append(np.zeros(1, dtype=np.int64))

    def append(self, strings: Iterable[str]) -> None:
        """Write some more."""
        table = StringTable.of(strings)
        self.offsets.append(table.offsets[1:] + self.data.length)
        self.data.append(table.data)

    def __enter__(self) -> "StringsWriter":
        return self

    def __exit__(self, *raised: object) -> None:
        self.data.close()
        self.offsets.close()


def written(place: Path, family: str, parts: Iterable[Arrays]) -> Arrays:
    """Write the arrays of a family part by part, of which there is at least one, and map them."""
    writers: list[ArrayWriter] = []
    with ExitStack() as files:
        for part in parts:
            if not writers:
                paths = [place / f"{family}.{name}.npy" for name in part._fields]
                each = zip(paths, part, strict=True)
                writers = [files.enter_context(ArrayWriter(path, array.dtype.str)) for path, array in each]
            for writer, array in zip(writers, part, strict=True):
                writer.append(array)
    return part._make(map(open_array, paths))
