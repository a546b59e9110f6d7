"""What an index is built with. Search options are arguments of `Index.search`; see docs/parameters.md."""

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from lsr.errors import FormatError, InputError

#: Defaults of search by blocks, and of search by lists where their knobs are named (docs/parameters.md).
QUERY_CUT = 10
HEAP_FACTOR = 0.9
CANDIDATES_PER_HIT = 5
QUERY_MASS = 0.8

#: Recall that a search without any knob asks the planner for.
RECALL = 0.99

WEIGHTS = ("auto", "float16", "float32")

INTEGERS = (int, np.integer)


def is_count(value: object) -> bool:
    """Whether a value is an integer of at least 1 (and no bool)."""
    return isinstance(value, INTEGERS) and not isinstance(value, bool) and int(value) >= 1


def check_threads(threads: int | None) -> None:
    """Refuse a number of threads that is neither None (one per core) nor at least 1."""
    if threads is not None and not (type(threads) is int and threads > 0) and not is_count(threads):
        raise InputError(f"threads must be an integer of at least 1, or None for one per core: got {threads!r}")


def _between(value: object, most: float) -> bool:
    """Whether a value is a number above 0 and at most ``most``."""
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and bool(0 < value <= most)


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Options of the build, saved with the index.

    All but the first four and ``seed`` are of Seismic's blocks (Bruch et al., SIGIR 2024, arXiv
    2404.18812).

    Attributes:
        weights: how the documents' weights are kept: "float32" as they are; "float16" rounded, in half
            the bytes, and scored as rounded; "auto" in 16 bits where that changes none of them.
        dense_share: a list that holds at least this share of the documents is kept with a code for every
            document: fast to add up, and larger the smaller the share.
        plan_queries: queries made from documents on which the planner tries its settings, where none
            are given; 0 for no plan: searches that name no knob are then exact.
        seismic: whether blocks are built, which search by ``query_cut`` and ``heap_factor`` walks.
        n_postings: postings kept, as a mean per used term; the largest of the whole index stay.
            None keeps all.
        posting_share: share of the index's postings kept, where that is fewer (but 100 as a mean always stay).
        max_fraction: no list keeps more than ``n_postings * max_fraction`` postings.
        centroid_fraction: blocks aimed at per list, as a share of its postings.
        max_blocks: blocks of a list, at most: with up to 256, a byte names each.
        min_list_size: a shorter list is one block without a summary, whose documents are all scored.
        min_block_size: smaller clusters are dissolved into their neighbours.
        centroid_terms: heaviest terms of a document that choose its block.
        summary_energy: share of a summary's L1 mass that is kept, 0 to 1; 1 keeps all.
        neighbours: of each document, the nearest that are kept, so that search can score those of its hits
            (SeismicWave, Bruch et al., CIKM 2024, arXiv 2408.04443); 0 keeps none.
        seed: of the random choice of centroids, and of the planner's documents.
    """

    weights: str = "auto"
    dense_share: float = 0.125
    plan_queries: int = 100
    seismic: bool = False
    n_postings: int | None = 3000
    posting_share: float = 0.3
    max_fraction: float = 6.0
    centroid_fraction: float = 0.01
    max_blocks: int = 256
    min_list_size: int = 300
    min_block_size: int = 10
    centroid_terms: int = 15
    summary_energy: float = 0.55
    neighbours: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        rules = {
            "n_postings": (self.n_postings is None or is_count(self.n_postings), "an integer of at least 1, or None"),
            "posting_share": (_between(self.posting_share, 1), "above 0 and at most 1"),
            "max_fraction": (_between(self.max_fraction, 2.0**30), "above 0 and at most 2^30"),
            "centroid_fraction": (_between(self.centroid_fraction, 1), "above 0 and at most 1"),
            "max_blocks": (is_count(self.max_blocks), "an integer of at least 1"),
            "min_list_size": (is_count(self.min_list_size), "an integer of at least 1"),
            "min_block_size": (is_count(self.min_block_size), "an integer of at least 1"),
            "centroid_terms": (is_count(self.centroid_terms), "an integer of at least 1"),
            "summary_energy": (_between(self.summary_energy, 1), "above 0 and at most 1"),
            "neighbours": (self.neighbours == 0 or is_count(self.neighbours), "an integer of at least 0"),
            "weights": (self.weights in WEIGHTS, f"one of {', '.join(WEIGHTS)}"),
            "dense_share": (_between(self.dense_share, 2), "above 0 and at most 2 (above 1: never)"),
            "plan_queries": (self.plan_queries == 0 or is_count(self.plan_queries), "an integer of at least 0"),
            "seismic": (isinstance(self.seismic, bool), "True or False"),
            "seed": (self.seed == 0 or (is_count(self.seed) and self.seed < 2**63), "an integer from 0 to 2^63 - 1"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise InputError(f"the build option {name} must be {rule}: got {getattr(self, name)!r}")
        if self.neighbours and not self.seismic:
            raise InputError("the build option neighbours refines search by blocks: add seismic=True, or leave it at 0")

    @classmethod
    def lossless(cls, **changes: Any) -> "BuildOptions":
        """Blocks with nothing pruned and whole summaries: search by blocks can then be made exact."""
        return cls(**{"seismic": True, "n_postings": None, "summary_energy": 1.0, **changes})

    def to_dict(self) -> dict[str, Any]:
        """As the manifest keeps it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "BuildOptions":
        """Read from a manifest.

        Raises:
            FormatError: an option is unknown to this version.
        """
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise FormatError(f"the index was built with unknown options {sorted(unknown)}: upgrade lsr")
        return cls(**values)
