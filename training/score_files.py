"""Score files: one teacher's scores of all candidates of a training file, kept beside it.

``FILE.scores/NAME.npy`` holds float32 (total,), NaN where nothing was scored yet, in the order of
`RowTable.candidates`; ``NAME.json`` says by whom and of what.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lsr.errors import FormatError, InputError
from lsr.files import replacing

if TYPE_CHECKING:
    from lsr.training.data import Tables


def scores_folder(out: str | os.PathLike[str]) -> Path:
    """Where the teachers' own scores of a training file ``out`` are kept."""
    return Path(f"{os.fspath(out)}.scores")


def rows_hash(tables: "Tables") -> str:
    """SHA-256 of a training file's rows and of the collection they are rows of: what score files are aligned with."""
    rows, digest = tables.rows, hashlib.sha256()
    for array in (rows.queries, rows.starts, rows.candidates):
        digest.update(np.ascontiguousarray(array).data)  # in place: no copy of what is mapped
    digest.update(f"{tables.queries.content_hash} {tables.documents.content_hash}".encode())
    return digest.hexdigest()


def open_scores(path: Path, identity: dict[str, str], total: int) -> "np.memmap[Any, np.dtype[np.float32]]":
    """The mapped score file, made if it is not there.

    Raises:
        InputError: it is another teacher's, or of another training file.
        FormatError: it is damaged.
    """
    note = path.with_suffix(".json")
    if not (path.is_file() and note.is_file()):
        scores: np.memmap[Any, np.dtype[np.float32]]
        scores = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(total,))
        scores[:] = np.nan
        scores.flush()
        with replacing(note) as file:
            json.dump(identity, file, indent=1)
        return scores
    there, scores = _read(path, mmap_mode="r+")
    for part, what in (("rows", "another training file or collection"), ("teacher", "another teacher of this name")):
        if there.get(part) != identity[part] or scores.shape != (total,):
            raise InputError(f"{path} holds scores of {what}: delete it, or write elsewhere")
    return scores


def read_scores(tables: "Tables", name: str) -> NDArray[np.float32]:
    """The finished score file of a teacher, memory-mapped: float32 (total,), aligned with `RowTable.candidates`.

    Raises:
        InputError: there is none, it is of other rows, or it is unfinished.
        FormatError: it is damaged.
    """
    folder = scores_folder(tables.rows.path)
    path = folder / f"{name}.npy"
    if not (path.is_file() and path.with_suffix(".json").is_file()):
        there = ", ".join(sorted(file.stem for file in folder.glob("*.npy"))) or "none"
        raise InputError(f"{path} is missing: give lsr distill a teacher of this name (scores there: {there})")
    scores: NDArray[np.float32]
    note, scores = _read(path, mmap_mode="r")
    if note.get("rows") != rows_hash(tables) or scores.shape != tables.rows.candidates.shape:
        raise InputError(f"{path} holds scores of other rows than {tables.rows.path}: run lsr distill again")
    if np.isnan(scores).any():
        raise InputError(f"{path} is unfinished: run the lsr distill that began it again")
    return scores


def _read(path: Path, *, mmap_mode: Any) -> tuple[dict[str, str], Any]:
    """A score file's note, and its mapped scores."""
    note = path.with_suffix(".json")
    try:
        said: dict[str, str] = json.loads(note.read_text(encoding="utf-8"))
        return said, np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except ValueError as error:
        raise FormatError(f"{path} or {note.name} is damaged ({error}): delete both") from error
