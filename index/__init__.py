"""The index: exact search, pruned lists, and Seismic's blocks for approximate search."""

if __name__ != "lsr.index":
    raise ImportError(
        "this folder is the package lsr.index: install the project (pip install -e .) and import lsr.index"
    )

from lsr.index.hits import Hits
from lsr.index.index import Index
from lsr.index.options import BuildOptions

__all__ = ["BuildOptions", "Hits", "Index"]
