"""The two records that flow in: Document and Query (docs/data-model.md)."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Document:
    """A document. ``id`` is unique in its corpus; ``title`` may be empty."""

    id: str
    text: str
    title: str = ""

    @property
    def content(self) -> str:
        """Title and text as one string: what encoders see. The only place that joins them."""
        return f"{self.title} {self.text}".strip() if self.title else self.text


@dataclass(frozen=True, slots=True)
class Query:
    """A query with the id that qrels and runs use."""

    id: str
    text: str
