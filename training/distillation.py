"""Ensemble distillation: scores of several teachers, precomputed to disk and joined to one target.

For each query and teacher m, over the query's candidates (Geng et al., arXiv 2411.04403, section 3.2):

    z_m = (s_m − min s_m) / (max s_m − min s_m + 1e-6)        target = scale · Σ w_m z_m / Σ w_m

The scores of each teacher are kept beside the training file that carries the target, one float32 a
candidate in the order of its rows, so that other weights need no teacher again.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from lsr.errors import InputError
from lsr.files import replacing
from lsr.training.data import Example, Tables, TrainingSet
from lsr.training.rows import Row, RowTable, check_training_target, new_training_file
from lsr.training.score_files import open_scores, rows_hash, scores_folder
from lsr.training.teachers import Teacher

EPSILON = 1e-6
SCALE = 30.0
ROWS_AT_A_TIME = 256


def min_max(scores: ArrayLike, starts: NDArray[np.int64]) -> NDArray[np.float64]:
    """(s − min) / (max − min + 1e-6) within each list of scores.

    Args:
        scores: (total,), the lists one after the other.
        starts: (lists,), where each list begins; none may be empty.

    Returns:
        float64 (total,), 0 to (just below) 1; 0 everywhere in a list of equal scores.
    """
    values = np.asarray(scores, dtype=np.float64)
    lengths = np.diff(starts, append=len(values))
    low, high = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    scaled: NDArray[np.float64] = (values - np.repeat(low, lengths)) / np.repeat(high - low + EPSILON, lengths)
    return scaled


def ensemble(
    scores: Sequence[ArrayLike],
    weights: Sequence[float] | None = None,
    scale: float = SCALE,
    *,
    normalize: bool = True,
    starts: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """The target of distillation: scale · the weighted mean over teachers of z_m (see above).

    Args:
        scores: one array (b, n) a teacher, candidates of a query in a row; or flat ones with ``starts``.
        weights: one a teacher, by default equal; only their ratios matter.
        scale: times the mean. The paper's is 30.
        normalize: False leaves the min-max normalization out (for comparison): the mean is of raw scores.
        starts: for candidate lists of several lengths: where each begins in flat arrays (total,).

    Returns:
        float32, in the shape of one of the arrays.

    Raises:
        InputError: no teacher, shapes that differ, weights that are not as many, negative or all zero, or a
            score that is not finite.
    """
    arrays = [np.asarray(values, dtype=np.float64) for values in scores]
    if not arrays or any(values.shape != arrays[0].shape for values in arrays):
        raise InputError(f"an ensemble needs scores of equal shape from each teacher: got {[a.shape for a in arrays]}")
    shares = np.ones(len(arrays)) if weights is None else np.asarray(weights, dtype=np.float64)
    if shares.shape != (len(arrays),) or not np.isfinite(shares).all() or (shares < 0).any() or shares.sum() == 0:
        raise InputError(f"{len(arrays)} teachers need as many weights, none negative and not all zero: got {weights}")
    if not all(np.isfinite(values).all() for values in arrays):
        raise InputError("a teacher's score is NaN or infinite: score the candidates again")
    shape = arrays[0].shape
    if starts is None:
        if len(shape) != 2:
            raise InputError(f"scores have shape {shape}: give (queries, candidates), or flat arrays with starts")
        starts = np.arange(shape[0], dtype=np.int64) * shape[1]
    if arrays[0].size == 0:
        return np.zeros(shape, dtype=np.float32)
    parts = [min_max(values.ravel(), starts) if normalize else values.ravel() for values in arrays]
    total = sum((share * part for share, part in zip(shares, parts, strict=True)), start=np.zeros(arrays[0].size))
    target: NDArray[np.float32] = (scale * total / shares.sum()).astype(np.float32).reshape(shape)
    return target


def score_rows(tables: Tables, teacher: Teacher, folder: Path, *, progress: bool = False) -> NDArray[np.float32]:
    """A teacher's scores of all candidates of a training file, through a score file (`lsr.training.score_files`).

    What an interrupted call left undone is done by the next.

    Raises:
        InputError: the score file is another teacher's, or of another training file; or the teacher gives
            scores that are not finite.
    """
    rows = tables.rows
    identity = {"teacher": teacher.identity, "rows": rows_hash(tables)}
    path = folder / f"{teacher.name}.npy"
    folder.mkdir(parents=True, exist_ok=True)
    scores = open_scores(path, identity, len(rows.candidates))
    pending = np.add.reduceat(np.isnan(scores), rows.starts[:-1]) > 0
    if pending.any():
        teacher.prepare(*_needed(tables, pending), progress=progress)
    for part in _parts(np.flatnonzero(pending), f"{teacher.name}: scores" if progress else None):
        found = teacher.score(rows.queries[part].astype(np.int64), [rows.candidates_of(i) for i in part])
        for i, values in zip(part, found, strict=True):
            if not np.isfinite(values).all():
                raise InputError(
                    f"the teacher {teacher.name} gave row {i + 1} of {rows.path} a score that is not finite"
                )
            scores[rows.starts[i] : rows.starts[i + 1]] = values
        scores.flush()
    return scores


def write_distilled(
    tables: Tables,
    scores: Mapping[str, NDArray[np.float32]],
    out: str | os.PathLike[str],
    *,
    weights: Mapping[str, float] | None = None,
    scale: float = SCALE,
    normalize: bool = True,
) -> None:
    """Write the training file of ``tables`` again, its scores those of an ensemble.

    Args:
        tables: the opened source.
        scores: each teacher's, by name, as `score_rows` gives them.
        out: the .jsonl or .jsonl.gz to write.
        weights: by teacher's name, 1 for those not named.
        scale: as in `ensemble`.
        normalize: as in `ensemble`.

    Raises:
        InputError: a weight for a teacher that is not there; a bad name for the file.
    """
    check_training_target(out)
    target = ensemble_of(tables, scores, weights=weights, scale=scale, normalize=normalize)
    with new_training_file(out) as file:
        for i in range(len(tables.rows)):
            file.write(_row(tables, i, target).to_json() + "\n")


def ensemble_of(
    tables: Tables,
    scores: Mapping[str, NDArray[np.float32]],
    *,
    weights: Mapping[str, float] | None = None,
    scale: float = SCALE,
    normalize: bool = True,
) -> NDArray[np.float32]:
    """The target of every candidate: float32 (total,), aligned with `RowTable.candidates`. As `write_distilled`."""
    shares = _shares(list(scores), weights or {})
    starts = tables.rows.starts
    target = np.empty(len(tables.rows.candidates), dtype=np.float32)
    for first in range(0, len(tables.rows), ROWS_AT_A_TIME):  # `ensemble` works in float64
        last = min(first + ROWS_AT_A_TIME, len(tables.rows))
        part = slice(int(starts[first]), int(starts[last]))
        own = [values[part] for values in scores.values()]
        target[part] = ensemble(own, shares, scale, normalize=normalize, starts=starts[first:last] - starts[first])
    return target


def positives_first(tables: Tables, scores: NDArray[np.float32]) -> float:
    """Share of rows in which a positive has the largest score (the first of equal ones counts)."""
    rows = tables.rows
    best = [int(np.argmax(scores[a:b])) for a, b in zip(rows.starts[:-1], rows.starts[1:], strict=True)]
    return float((np.array(best) < rows.n_positives).mean())


def write_manifest(out: str | os.PathLike[str], fields: Mapping[str, Any]) -> None:
    """Note beside the score files how the training file was made."""
    scores_folder(out).mkdir(exist_ok=True)
    with replacing(scores_folder(out) / "distillation.json") as file:
        json.dump(fields, file, indent=1)


class EnsembleScorer:
    """Teacher scores on the fly: the ``scorer`` of `lsr.training.train.train` and `lsr.training.data.Collator`.

    Teachers that encode each text once should be prepared for the rows of the set (`prepare`): then a batch
    is a gather and a dot product, also in a worker process. Cross-encoders run a transformer for each batch.

    Args:
        training_set: where the examples come from.
        teachers: for each source of the set, its teachers, in the same order everywhere.
        weights: one a teacher.
        scale: as in `ensemble`.
    """

    def __init__(
        self,
        training_set: TrainingSet,
        teachers: Sequence[Sequence[Teacher]],
        weights: Sequence[float] | None = None,
        scale: float = SCALE,
    ) -> None:
        names = [[teacher.name for teacher in of_source] for of_source in teachers]
        if len(teachers) != len(training_set.tables) or any(own != names[0] for own in names):
            raise InputError(
                f"{len(training_set.tables)} sources need the same teachers each, in the same order: got {names}"
            )
        self.teachers = teachers
        self.weights = weights
        self.scale = scale
        self._tables = training_set.tables

    @property
    def identity(self) -> str:
        """SHA-256 of teachers, weights and scale: equal for two scorers that give equal targets."""
        who = [[[teacher.name, teacher.identity] for teacher in of_source] for of_source in self.teachers]
        weights = None if self.weights is None else list(map(float, self.weights))
        return hashlib.sha256(json.dumps([who, weights, self.scale]).encode()).hexdigest()

    def prepare(self, *, progress: bool = False) -> None:
        """Encode what the rows of the set need; random documents of the corpus, if any, follow when drawn."""
        for tables, teachers in zip(self._tables, self.teachers, strict=True):
            for teacher in teachers:
                teacher.prepare(*_needed(tables, np.ones(len(tables.rows), dtype=bool)), progress=progress)

    def __call__(self, examples: Sequence[Example]) -> NDArray[np.float32]:
        """The target of b examples of n documents: float32 (b, n)."""
        raw = np.empty((len(self.teachers[0]), len(examples), len(examples[0].doc_rows)), dtype=np.float32)
        sources = np.array([example.source for example in examples])
        for source in set(sources.tolist()):
            places = np.flatnonzero(sources == source).tolist()
            queries = np.array([examples[i].query_row for i in places])
            for m, teacher in enumerate(self.teachers[source]):
                raw[m, places] = teacher.score(queries, [examples[i].doc_rows for i in places])
        return ensemble(list(raw), self.weights, self.scale)


def _row(tables: Tables, i: int, scores: NDArray[np.float32]) -> Row:
    """A row of the opened source by ids, with its part of the scores of all candidates."""
    rows: RowTable = tables.rows
    ids = [tables.documents.id(int(row)) for row in rows.candidates_of(i)]
    n_positives = int(rows.n_positives[i])
    named = dict(zip(ids, scores[rows.starts[i] : rows.starts[i + 1]].tolist(), strict=True))
    return Row(tables.queries.id(int(rows.queries[i])), ids[:n_positives], ids[n_positives:], named)


def _shares(names: list[str], weights: Mapping[str, float]) -> list[float]:
    unknown = [name for name in weights if name not in names]
    if unknown:
        raise InputError(f"a weight is given for {unknown[0]!r}, but the teachers are {', '.join(names)}")
    return [weights.get(name, 1.0) for name in names]


def _needed(tables: Tables, pending: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sorted query rows and document rows of the pending rows, by one flag a document."""
    rows = tables.rows
    wanted = np.zeros(len(tables.documents), dtype=bool)
    for i in np.flatnonzero(pending).tolist():
        wanted[rows.candidates_of(i)] = True
    return np.unique(rows.queries[pending]).astype(np.int64), np.flatnonzero(wanted)


def _parts(rows: NDArray[Any], label: str | None) -> Iterator[NDArray[Any]]:
    with tqdm(total=len(rows), desc=label, unit=" queries", disable=None if label else True) as bar:
        for start in range(0, len(rows), ROWS_AT_A_TIME):
            part = rows[start : start + ROWS_AT_A_TIME]
            yield part
            bar.update(len(part))
