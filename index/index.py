"""`Index`: sparse vectors in, the documents with the largest dot product out."""

import os
import warnings
from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, issparse

from lsr.errors import InputError, LsrWarning, MismatchError
from lsr.files import check_target, new_folder
from lsr.index.build import build_segment
from lsr.index.external import write_parts
from lsr.index.hits import Hits
from lsr.index.ids import Ids
from lsr.index.options import (
    CANDIDATES_PER_HIT,
    HEAP_FACTOR,
    QUERY_CUT,
    QUERY_MASS,
    RECALL,
    BuildOptions,
    check_threads,
    is_count,
)
from lsr.index.planner import EXACT, Plan, Setting, fit_plan
from lsr.index.queries import as_rows, as_sample, plain_row
from lsr.index.search import Searcher
from lsr.index.segment import Segment
from lsr.index.storage import Manifest, finish, open_index, write_index
from lsr.vectors import QueryVectors, SparseRows, SparseVectors, as_query_vectors, check_vectors

if TYPE_CHECKING:
    from lsr.encoder import Encoder

NUMBERS = (int, float, np.number)

#: Combinations of search options of which an index remembers what they ask for.
WAYS = 256


class TermMatch(NamedTuple):
    """One term's part of a score: query weight times document weight."""

    term_id: int
    query_weight: float
    document_weight: float

    @property
    def contribution(self) -> float:
        """The product."""
        return self.query_weight * self.document_weight


class Index:
    """An immutable index over sparse vectors, in memory or memory-mapped from a directory.

    Make one with `Index.build` or `Index.open`. Searching is safe from several threads.
    """

    def __init__(self, manifest: Manifest, segment: Segment, ids: Ids) -> None:
        self.manifest = manifest
        self._segment = segment
        self._ids = ids
        self._searcher = Searcher(segment)
        self._plan = Plan.from_dict(manifest.plan)
        kept = segment.n_neighbours if segment.blocks is not None else None
        # who searches asks for the same few ways again and again; 2 and 2.0 and True are not the same
        self._way = lru_cache(WAYS, typed=True)(partial(_way, self._plan, segment.n_documents, kept))

    @classmethod
    def build(
        cls,
        vectors: "csr_array | Iterable[csr_array]",
        ids: Iterable[str] | None = None,
        path: str | os.PathLike[str] | None = None,
        *,
        options: BuildOptions | None = None,
        encoder: "Encoder | None" = None,
        sample: "QueryVectors | None" = None,
        threads: int | None = None,
        max_memory: int | str | None = None,
        progress: bool = False,
        overwrite: bool = False,
    ) -> "Index":
        """Build an index over document vectors.

        Args:
            vectors: float32 CSR of shape (n, vocabulary), or an iterable of such, each some documents
                more, so that they never are in memory together; this takes a ``path``.
            ids: n unique document ids; by default "0", "1", ….
            path: directory to save to; by default the index stays in memory.
            options: what to build; the arrays depend on these and the vectors alone.
            encoder: who made the vectors; by default what ``encode_documents`` noted on them.
            sample: queries like those to come, on which the planner tries its settings; by default
                they are made from documents.
            threads: threads of the build; by default one per core.
            max_memory: bytes, or text like "4GB", that the build may take beside the vectors and ids it is
                given: the arrays are then written to ``path`` part by part. The index is the same.
            progress: show a progress bar on stderr.
            overwrite: replace an index at ``path``.

        Raises:
            InputError: the vectors, ids or path are not acceptable; nothing is written.
        """
        if path is not None:
            check_target(path, overwrite=overwrite)
        if max_memory is not None or not (issparse(vectors) or isinstance(vectors, np.ndarray)):
            if path is None:
                raise InputError(
                    "max_memory, and vectors that come in parts, need a path, where the index is written part by part: "
                    "name one, or give the vectors as one scipy.sparse.csr_array without max_memory"
                )
            with new_folder(path, overwrite=overwrite) as folder:
                manifest = write_parts(
                    folder, [vectors] if issparse(vectors) else vectors, ids, options=options, encoder=encoder,
                    sample=sample, threads=threads, max_memory=max_memory, progress=progress,
                )  # fmt: skip
                finish(folder, manifest)
            return cls.open(path)
        index = cls._in_memory(vectors, ids, options or BuildOptions(), encoder, sample, threads, progress)
        if path is None:
            return index
        index.save(path, overwrite=overwrite)
        return cls.open(path)

    @classmethod
    def _in_memory(
        cls,
        vectors: csr_array,
        ids: Iterable[str] | None,
        options: BuildOptions,
        encoder: "Encoder | None",
        sample: "QueryVectors | None",
        threads: int | None,
        progress: bool,
    ) -> "Index":
        fingerprint = vectors.encoder if isinstance(vectors, SparseVectors) else None
        identity = encoder.identity() if encoder else {"fingerprint": fingerprint} if fingerprint else None
        check_threads(threads)
        checked = check_vectors(vectors)
        if checked.shape[0] == 0:
            raise InputError("there are no documents to index: the vectors have no row")
        packed = Ids.check(ids, checked.shape[0])
        queries = as_sample(sample, int(checked.shape[1]))
        segment = build_segment(checked, options, threads=threads, progress=progress)
        plan = fit_plan(Searcher(segment), queries, options.plan_queries, seed=options.seed, progress=progress)
        manifest = Manifest(checked.shape[0], checked.shape[1], options, plan.to_dict(), identity)
        return cls(manifest, segment, packed)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the index to a directory, which appears only once it is complete.

        Raises:
            InputError: ``path`` exists and ``overwrite`` is False.
        """
        with new_folder(path, overwrite=overwrite) as folder:
            self.write_into(folder)
            finish(folder, self.manifest)

    def write_into(self, folder: Path) -> None:
        """Write the arrays into an existing folder; `storage.finish` makes it an index."""
        write_index(folder, self.manifest, self._segment, self._ids)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = False) -> "Index":
        """Open a saved index by memory-mapping: milliseconds, whatever its size.

        Args:
            path: the directory.
            verify: read every file in full and check it, even one that looks untouched.

        Raises:
            InputError: there is no index.
            FormatError: it is damaged, altered or of a newer format.
        """
        return cls(*open_index(Path(path), verify=verify))

    def search(
        self,
        queries: QueryVectors,
        k: int = 10,
        *,
        exact: bool = False,
        recall: float | None = None,
        candidates: int | None = None,
        query_mass: float | None = None,
        query_cut: float | None = None,
        heap_factor: float | None = None,
        neighbours: int | None = None,
        threads: int | None = None,
    ) -> Hits:
        """Find the k documents with the largest dot product for every query.

        Say what recall is wanted and the planner chooses how to search, or name a way by its knobs; with
        neither, a recall of 0.99 is wanted. All ways give exact scores; what differs is which documents
        are looked at.

        Args:
            queries: CSR of shape (n, vocabulary); or one {term id: weight} dict or a list of them;
                or one (term ids, weights) pair.
            k: hits wanted per query.
            exact: miss no document.
            recall: share of the exact hits to be found, as a mean over queries like those that the
                planner tried; see `explain_plan`.
            candidates: score this many documents, at least k, that look best by the lists that are walked.
                A query whose lists hold fewer is answered exactly. Default: five a hit.
            query_mass: walk the lists that add most to scores for their length, until they hold this share
                of what all the query's lists can add; default 0.8.
            query_cut: walk the blocks (``BuildOptions.seismic``) in the lists of this many of the query's
                heaviest terms, default 10; or, a number below 1, of those that hold this share of its weight.
            heap_factor: skip a block whose summary scores below heap_factor times the k-th best score so
                far, default 0.9: 0 skips nothing, 1 loses nothing if summaries are whole, above 1 is for speed.
            neighbours: at last score this many neighbours of each hit (``BuildOptions.neighbours``), too; by
                default all that a search by blocks has.
            threads: threads over the queries, by default one per core; the result is the same.

        Returns:
            Hits with arrays of shape (n, k). Documents that share no term with the query are no hits.

        Raises:
            InputError: k, a knob or the queries are not acceptable, or the index has no blocks.
            MismatchError: the queries come from another encoder than the index's vectors.
        """
        options = k, exact, recall, candidates, query_mass, query_cut, heap_factor, neighbours
        try:
            reach, walk, setting = self._way(*options)
        except TypeError:  # an option that cannot be looked up is none that there is
            check_search_options(*options)
            raise InputError(f"exact must be True or False: got {exact!r}") from None
        if threads is not None:
            check_threads(threads)
        if type(queries) is not csr_array and isinstance(queries, SparseVectors):  # the first is the faster question
            self._check_encoder(queries.encoder)
        found, width = None, self._segment.vocabulary_size
        if walk and (row := plain_row(queries, width)):
            found = self._searcher.one(row, reach, *walk)
        if found is None:
            vectors = as_rows(queries, width)
            found = (
                self._searcher.lists(vectors, reach, *walk, threads)
                if walk
                else setting.run(self._searcher, vectors, reach, threads)
            )
        scores, rows, counts = found
        if reach < k:
            n = self.manifest.n_documents
            message = f"k = {k:,} is more than the {n:,} documents: every query gets at most {n:,} hits"
            warnings.warn(message, LsrWarning, stacklevel=2)
            padding = ((0, 0), (0, k - reach))
            scores = np.pad(scores, padding, constant_values=-np.inf)
            rows = np.pad(rows, padding, constant_values=-1)
        return Hits(rows, scores, counts, self._ids)

    def search_batches(self, batches: Iterable[QueryVectors], k: int = 10, **options: Any) -> Iterator[Hits]:
        """Search batch after batch, for more queries than fit into memory; as `search`."""
        for batch in batches:
            yield self.search(batch, k, **options)

    def explain_plan(self, recall: float = RECALL) -> str:
        """Which way `search` takes for a recall, and what the planner found for all that it tried to the end."""
        check_search_options(1, recall=recall)
        return self.plan.explain(recall)

    def warmup(self) -> None:
        """Compile all search kernels now: the first search of a process else takes seconds longer."""
        nothing = csr_array((1, self.vocabulary_size), dtype=np.float32)
        for query in (nothing, SparseRows.of(nothing), {0: 1.0}):
            as_rows(query, self.vocabulary_size)
            self.search(query, 1, exact=True)
        if self._segment.blocks is not None:
            self._searcher.seismic(nothing, 1, QUERY_CUT, HEAP_FACTOR, 1)

    def explain(self, query: QueryVectors, doc_id: str) -> list[TermMatch]:
        """The terms that a query and a document share, the largest contribution first."""
        vector = as_query_vectors(query, self.vocabulary_size)
        if vector.shape[0] != 1:
            raise InputError(f"explain takes one query: got {vector.shape[0]}")
        terms, weights = self._segment.document(self._ids.row_of(doc_id))
        _, in_query, in_document = np.intersect1d(vector.indices, terms, assume_unique=True, return_indices=True)
        matches = [
            TermMatch(int(terms[d]), float(vector.data[q]), float(weights[d]))
            for q, d in zip(in_query, in_document, strict=True)
        ]
        return sorted(matches, key=lambda match: (-match.contribution, match.term_id))

    def row_of(self, doc_id: str) -> int:
        """The row of a document."""
        return self._ids.row_of(doc_id)

    def has_document(self, doc_id: str) -> bool:
        """Whether a document of that id is in the index."""
        return self._ids.has(doc_id)

    def document_frequencies(self) -> NDArray[np.int64]:
        """How many documents have each term: shape (vocabulary_size,)."""
        frequencies = np.zeros(self.vocabulary_size, dtype=np.int64)
        frequencies[self._segment.lists.terms] = self._segment.lists.length
        return frequencies

    def __len__(self) -> int:
        return self.manifest.n_documents

    def __reduce__(self) -> tuple[type["Index"], tuple[Manifest, Segment, Ids]]:
        """Copies make scratch, and the addresses in it, anew."""
        return Index, (self.manifest, self._segment, self._ids)

    def __repr__(self) -> str:
        return f"Index({len(self):,} documents, {self.vocabulary_size:,} terms, {self.n_postings:,} postings)"

    @property
    def plan(self) -> Plan:
        """What the planner found at build time."""
        return self._plan

    @property
    def vocabulary_size(self) -> int:
        """Columns that queries must have."""
        return self.manifest.vocabulary_size

    @property
    def n_postings(self) -> int:
        """Non-zero weights of all documents."""
        return len(self._segment.forward.terms)

    @property
    def encoder_fingerprint(self) -> str | None:
        """Fingerprint of the encoder that made the vectors, None when unknown."""
        return (self.manifest.encoder or {}).get("fingerprint")

    def sizes(self) -> dict[str, int]:
        """Bytes by part: forward, lists, blocks, summaries, ids."""
        return {**self._segment.sizes(), "ids": self._ids.data.nbytes + self._ids.offsets.nbytes}

    def _check_encoder(self, theirs: str | None) -> None:
        if theirs and self.encoder_fingerprint and theirs != self.encoder_fingerprint:
            raise MismatchError(
                f"the queries were made by the encoder {theirs[:12]}, the index's documents by "
                f"{self.encoder_fingerprint[:12]} ({(self.manifest.encoder or {}).get('source') or 'source unknown'}): "
                "encode the queries with the index's encoder"
            )


class _Way(NamedTuple):
    """How to search: for so many hits, by walking lists (candidates, mass) or else by a setting's blocks."""

    reach: int
    walk: tuple[int, float] | None
    setting: Setting


def _way(
    plan: Plan, n_documents: int, kept: int | None, k: int, exact: bool, recall: float | None,
    candidates: int | None, query_mass: float | None, query_cut: float | None, heap_factor: float | None,
    neighbours: int | None,
) -> _Way:  # fmt: skip
    """What options of `Index.search` ask for; ``kept`` neighbours a document, None without blocks."""
    check_search_options(k, exact, recall, candidates, query_mass, query_cut, heap_factor, neighbours)
    reach = min(int(k), n_documents)
    if candidates is not None or query_mass is not None:
        wanted = CANDIDATES_PER_HIT * reach if candidates is None else int(candidates)  # kernels are compiled for int
        return _Way(reach, (max(wanted, reach), QUERY_MASS if query_mass is None else float(query_mass)), EXACT)
    if exact:
        setting = EXACT
    elif query_cut is None and heap_factor is None and neighbours is None:
        setting = plan.choose(RECALL if recall is None else float(recall))
    else:
        setting = _by_blocks(kept, query_cut, heap_factor, neighbours)
    return _Way(reach, setting.walk(reach), setting)


def _by_blocks(kept: int | None, query_cut: float | None, heap_factor: float | None, neighbours: int | None) -> Setting:
    if kept is None:
        raise InputError(
            "the index has no blocks for query_cut, heap_factor and neighbours: build it with "
            "BuildOptions(seismic=True) (--seismic), or search by recall or candidates"
        )
    if neighbours is not None and neighbours > kept:
        raise InputError(
            f"neighbours={neighbours} is more than the {kept} that the index keeps of a document: "
            f"build it with BuildOptions(seismic=True, neighbours={neighbours}), or ask for fewer"
        )
    return Setting(
        "blocks",
        {
            "query_cut": query_cut or QUERY_CUT,
            "heap_factor": HEAP_FACTOR if heap_factor is None else heap_factor,
            "neighbours": kept if neighbours is None else neighbours,
        },
    )


def check_search_options(
    k: int,
    exact: bool = False,
    recall: float | None = None,
    candidates: int | None = None,
    query_mass: float | None = None,
    query_cut: float | None = None,
    heap_factor: float | None = None,
    neighbours: int | None = None,
) -> None:
    """Refuse options of `Index.search` that are out of range, or of two ways to search."""
    if not is_count(k):
        raise InputError(f"k must be an integer of at least 1: got {k!r}")
    by_lists = {"candidates": candidates, "query_mass": query_mass}
    by_blocks = {"query_cut": query_cut, "heap_factor": heap_factor, "neighbours": neighbours}
    in_lists, in_blocks = ([n for n, value in knobs.items() if value is not None] for knobs in (by_lists, by_blocks))
    if exact and (in_lists or in_blocks or recall is not None):
        raise InputError(
            "recall, candidates, query_mass, query_cut, heap_factor and neighbours are knobs of approximate search: "
            "leave them out of exact search"
        )
    if recall is not None and (in_lists or in_blocks):
        raise InputError(f"recall chooses the knobs itself: leave {' and '.join(in_lists + in_blocks)} out")
    if in_lists and in_blocks:
        raise InputError(
            f"{' and '.join(in_lists)} goes without {' and '.join(in_blocks)}: they are knobs of another search"
        )
    if candidates is not None and not is_count(candidates):
        raise InputError(f"candidates must be an integer of at least 1: got {candidates!r}")
    if query_cut is not None and not (is_count(query_cut) or (_is_number(query_cut) and 0 < query_cut < 1)):
        raise InputError(f"query_cut must be an integer of at least 1, or a share between 0 and 1: got {query_cut!r}")
    if neighbours is not None and not (is_count(neighbours) or (neighbours == 0 and _is_number(neighbours))):
        raise InputError(f"neighbours must be an integer of at least 0: got {neighbours!r}")
    for name, share in (("recall", recall), ("query_mass", query_mass)):
        if share is not None and not (_is_number(share) and 0 < share <= 1):
            raise InputError(f"{name} must be a number above 0 and at most 1: got {share!r}")
    if heap_factor is not None and not (_is_number(heap_factor) and 0 <= heap_factor <= 2):
        raise InputError(f"heap_factor must be a number from 0 (skip nothing) to 2: got {heap_factor!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, NUMBERS) and not isinstance(value, bool)
