"""lsr: learned sparse retrieval, from text to metrics.

Names are loaded when they are first used: ``import lsr`` loads neither torch nor a JVM.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lsr.analyzer import Analyzer as Analyzer
    from lsr.bm25 import Bm25 as Bm25
    from lsr.corpus import Corpus as Corpus
    from lsr.corpus import read_corpus as read_corpus
    from lsr.encoder import Encoder as Encoder
    from lsr.errors import LsrError as LsrError
    from lsr.errors import LsrWarning as LsrWarning
    from lsr.export import export_encoder as export_encoder
    from lsr.index.hits import Hits as Hits
    from lsr.index.index import Index as Index
    from lsr.index.options import BuildOptions as BuildOptions
    from lsr.joined import join as join
    from lsr.lookup import compute_idf as compute_idf
    from lsr.lookup import inference_free as inference_free
    from lsr.lookup import read_idf as read_idf
    from lsr.lookup import write_idf as write_idf
    from lsr.methods import build_encoder as build_encoder
    from lsr.pretrained import load_encoder as load_encoder
    from lsr.records import Document as Document
    from lsr.records import Query as Query
    from lsr.retriever import Retriever as Retriever
    from lsr.run import Run as Run
    from lsr.run import read_qrels as read_qrels
    from lsr.run import read_run as read_run
    from lsr.vectors import SparseVectors as SparseVectors

# name → module; PEP 562
_HOMES = {
    "Analyzer": "lsr.analyzer",
    "Bm25": "lsr.bm25",
    "BuildOptions": "lsr.index.options",
    "Corpus": "lsr.corpus",
    "Document": "lsr.records",
    "Encoder": "lsr.encoder",
    "Hits": "lsr.index.hits",
    "Index": "lsr.index.index",
    "LsrError": "lsr.errors",
    "LsrWarning": "lsr.errors",
    "Query": "lsr.records",
    "Retriever": "lsr.retriever",
    "Run": "lsr.run",
    "SparseVectors": "lsr.vectors",
    "build_encoder": "lsr.methods",
    "compute_idf": "lsr.lookup",
    "export_encoder": "lsr.export",
    "inference_free": "lsr.lookup",
    "join": "lsr.joined",
    "load_encoder": "lsr.pretrained",
    "read_corpus": "lsr.corpus",
    "read_idf": "lsr.lookup",
    "read_qrels": "lsr.run",
    "read_run": "lsr.run",
    "write_idf": "lsr.lookup",
}

__all__ = ["__version__", *sorted(_HOMES)]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lsr' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
