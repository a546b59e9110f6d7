"""What a benchmark found, for people: a table with ratios, a recall–latency curve, and JSON."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lsr.errors import FormatError, InputError, optional_import
from lsr.eval.bench import OURS, shown
from lsr.files import replacing

#: Recall that a setting has to reach in a row of the table; the last means exact.
TARGETS = (0.90, 0.95, 0.99, 1.0)


COLUMNS = (
    *("system", "recall", "median µs", "p99 µs", "batch µs", "build s", "peak MB", "disk MB"),
    *("ours: latency", "build", "disk"),
)


class Point(NamedTuple):
    """One index with one setting."""

    system: str
    entry: Mapping[str, Any]
    setting: Mapping[str, Any]

    @property
    def micros(self) -> float:
        """Median of one query."""
        return float(self.setting["median_us"])


def points(results: Mapping[str, Any], systems: Iterable[str] | None = None) -> list[Point]:
    """All that was measured, of some systems or of all."""
    wanted = None if systems is None else set(systems)
    return [
        Point(entry["system"], entry, setting)
        for entry in results["entries"]
        for setting in entry["settings"]
        if wanted is None or entry["system"] in wanted
    ]


def reaches(point: Point, target: float) -> bool:
    """Whether a setting reaches a recall.

    Exact is asked of us more strictly than of a peer: our setting must guarantee it (``exact=True``), a peer's only
    has to have missed nothing on these queries.
    """
    if target < 1:
        return bool(point.setting["recall"] >= target)
    return bool(point.setting["recall"] == 1 and (point.system not in OURS or point.setting["knobs"].get("exact")))


def best(results: Mapping[str, Any], target: float, systems: Iterable[str] | None = None) -> Point | None:
    """The setting with the least median latency among those that reach a recall."""
    return min(
        (p for p in points(results, systems) if reaches(p, target)), key=lambda point: point.micros, default=None
    )


def names(results: Mapping[str, Any]) -> list[str]:
    """The systems measured, ours first."""
    found = dict.fromkeys(entry["system"] for entry in results["entries"])
    return sorted(found, key=lambda name: (name not in OURS, list(found).index(name)))


def markdown(results: Mapping[str, Any]) -> str:
    """The report: the fastest setting of every system at each recall, and our ratios to the peers.

    Of a run of one system: all of its settings.
    """
    collection = results["collection"]
    machine = results["machine"]
    lines = [
        f"### {collection['name']}: {collection['documents']:,} documents",
        "",
        f"{collection['document_terms']:.0f} terms a document, {collection['queries']:,} queries of "
        f"{collection['query_terms']:.0f} terms, recall@{results['k']} against exact search; one thread for searches, "
        f"{results['build_threads']} for builds; {machine['cpu']}, Python {machine['python']}. Latency is that of the "
        "call from Python, one query at a time, warm.",
        "",
    ]
    if len(names(results)) == 1:
        lines += _all_settings(results)
    else:
        lines += [line for target in TARGETS for line in _at(results, target)]
    lines += [f"Failed: {fail['system']} {shown(fail['build'])}: {fail['error']}" for fail in results["failed"]]
    if results.get("missing"):
        lines.append(f"Not measured, because not installed: {', '.join(results['missing'])}.")
    return "\n".join(lines).rstrip() + "\n"


def _all_settings(results: Mapping[str, Any]) -> list[str]:
    """A table of every index and setting of one system."""
    lines = ["| index | search | recall | median µs | p99 µs | build s | disk MB |", "|---" * 7 + "|"]
    for _, entry, setting in points(results):
        cells = [shown(entry["build"]), shown(setting["knobs"]), f"{setting['recall']:.4f}"]
        cells += [f"{setting['median_us']:.0f}", f"{setting['p99_us']:.0f}", f"{entry['build_s']:.2f}"]
        lines.append(f"| {' | '.join([*cells, format(entry['disk_bytes'] / 1e6, '.1f')])} |")
    return [*lines, ""]


def _at(results: Mapping[str, Any], target: float) -> list[str]:
    """The table of one recall."""
    found = {name: best(results, target, [name]) for name in names(results)}
    rivals = [point for name, point in found.items() if point and name not in OURS]
    rival = min(rivals, key=lambda point: point.micros, default=None)
    ours = next((point for name, point in found.items() if point and name in OURS), None)
    lines = [
        f"#### {'Exact' if target == 1 else f'Recall ≥ {target:.2f}'}",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"{'|---' * len(COLUMNS)}|",
    ]
    for name, point in found.items():
        if point is None:
            lines.append(f"| {name} | not reached | | | | | | | | | |")
            continue
        bold = "**" if point in (rival, ours) else ""
        entry, setting = point.entry, point.setting
        batch = "" if setting["batch_us"] is None else f"{setting['batch_us']:.0f}"
        ratios = "| | | |"
        if ours and name not in OURS:
            pairs = [(ours.micros, point.micros), *((ours.entry[f], entry[f]) for f in ("build_s", "disk_bytes"))]
            ratios = "".join(f"| {mine / max(theirs, 1e-9):.2f} × " for mine, theirs in pairs) + "|"
        cells = [
            *(f"{bold}{name}{bold}", f"{setting['recall']:.4f}", f"{bold}{point.micros:.0f}{bold}"),
            *(f"{setting['p99_us']:.0f}", batch, f"{entry['build_s']:.2f}"),
            *(f"{entry['peak_bytes'] / 1e6:.0f}", f"{entry['disk_bytes'] / 1e6:.1f}"),
        ]
        lines.append(f"| {' | '.join(cells)} {ratios}")
    chosen = [point for point in found.values() if point]
    lines += ["", *(f"- {p.system}: {shown(p.entry['build'])}; {shown(p.setting['knobs'])}" for p in chosen)]
    for point in chosen:
        if rates := point.setting.get("queries_per_s"):
            one, several = rates.values()
            lines.append(
                f"- {point.system}: {one:,.0f} queries a second in one call on one thread, {several:,.0f} on "
                f"{list(rates)[1]}: {several / one:.2f} ×"
            )
    if ours and rival:
        ratio = ours.micros / rival.micros
        lines += ["", f"Ours against the best peer, {rival.system}: {ratio:.2f} × its latency."]
    return [*lines, ""]


def plot(results: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draw recall against median latency as a PNG: of each system the settings that no other one of it beats.

    Of a run of one system: its knobs, see `curves`.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    optional_import("matplotlib", "bench", "drawing a curve")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    systems = names(results)
    if len(systems) == 1:
        drawn = curves(points(results))
    else:
        drawn = {name: frontier((p.setting["recall"], p.micros) for p in points(results, [name])) for name in systems}
    for number, (name, line) in enumerate(drawn.items()):
        recalls, micros = zip(*line, strict=True)
        ours = len(systems) > 1 and name in OURS
        style: dict[str, Any] = {"marker": "o", "markersize": 5 if ours else 4, "linewidth": 2.5 if ours else 1.2}
        axes.plot(recalls, micros, color=f"C{number}", label=name, zorder=3 if ours else 2, **style)
    axes.set_yscale("log")
    axes.set_xlim(0.79, 1.005)
    axes.set_xlabel(f"recall@{results['k']} against exact search")
    axes.set_ylabel("µs a query (median, one thread)")
    collection = results["collection"]
    axes.set_title(f"{collection['name']}: {collection['documents']:,} documents, {collection['queries']:,} queries")
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path, format="png", dpi=150)


def curves(measured: Iterable[Point]) -> dict[str, list[tuple[float, float]]]:
    """One system's knobs: a line of (recall, latency) for each index and value of the first knob, along the second.

    Settings of another number of knobs are lines of one point.
    """
    lines: dict[str, list[Point]] = {}
    for point in measured:
        knobs = dict(point.setting["knobs"])
        second = list(knobs)[-1] if len(knobs) == 2 else None
        fixed = {name: value for name, value in {**point.entry["build"], **knobs}.items() if name != second}
        label = " ".join(f"{name}={value}" for name, value in fixed.items())
        lines.setdefault(f"{label}, by {second}" if second else label or "planned", []).append(point)
    return {label: [(p.setting["recall"], p.micros) for p in line] for label, line in lines.items()}


def frontier(measured: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (recall, latency) pairs those that no other beats in both, by rising recall."""
    kept: list[tuple[float, float]] = []
    for recall, micros in sorted(measured, key=lambda pair: (-pair[0], pair[1])):
        if not kept or micros < kept[-1][1]:
            kept.append((recall, micros))
    return kept[::-1]


def write_results(path: str | os.PathLike[str], results: Mapping[str, Any]) -> None:
    """Write the results as JSON."""
    with replacing(path) as file:
        file.write(json.dumps(results, indent=1) + "\n")


def read_results(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what `write_results` wrote.

    Raises:
        InputError: there is no such file.
        FormatError: it holds something else.
    """
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: lsr bench --json writes it") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FormatError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(results, dict) or not {"entries", "collection", "k", "machine", "failed"} <= results.keys():
        raise FormatError(f"{path} holds no results of lsr bench")
    return results
