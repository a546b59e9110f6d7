"""The two records that flow in: Document and Query (docs/data-model.md)."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Document:
    """A document. ``id`` is unique in its corpus; ``title`` may be empty, and so may ``expansion``: what encoders see
    behind the text and people do not (`lsr.expansion`).
    """

    id: str
    text: str
    title: str = ""
    expansion: str = ""

    @property
    def content(self) -> str:
        """Title, text and expansion as one string: what encoders see. The only place that joins them."""
        own = f"{self.title} {self.text}".strip() if self.title else self.text
        return f"{own} {self.expansion}".lstrip() if self.expansion else own


@dataclass(frozen=True, slots=True)
class Query:
    """A query with the id that qrels and runs use."""

    id: str
    text: str
