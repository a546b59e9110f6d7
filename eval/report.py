"""Tables for people: Markdown that is aligned, so that it reads well on a terminal too."""

from collections.abc import Sequence


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in [headers, *rows]) for i in range(len(headers))]
    right = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(headers))]

    def line(cells: Sequence[str]) -> str:
        padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (w + 1) + (":" if r else "-") for w, r in zip(widths, right, strict=True)) + "|"
    return "\n".join([line(headers), rule, *map(line, rows)])


def number(value: float | None) -> str:
    """A value in a table: four digits that say something, "–" where there is none."""
    if value is None:
        return "–"
    if abs(value) < 1:
        return f"{value:.4f}"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"


def _is_number(cell: str) -> bool:
    return cell in ("–", "") or cell.lstrip("+-").replace(",", "").replace(".", "", 1).isdigit()
