"""What an experiment found: systems with intervals, claims with paired tests, as Markdown, JSON and PNG."""

import itertools
import json
import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lsr.errors import FormatError, InputError, optional_import
from lsr.eval.experiments import Claim, Experiment, Variant, seeds_of
from lsr.eval.report import markdown_table, number
from lsr.eval.significance import Comparison, Interval, PerQuery, bootstrap, compare, with_holm
from lsr.files import replacing, write_whole

ALPHA = 0.05


@dataclass(frozen=True)
class System:
    """A variant's results, means over its seeds.

    Attributes:
        name, group: the variant's.
        per_query: collection → query id → the metric.
        mean: of the metric, over collections, with its bootstrap interval over queries.
        by_seed: the same mean of each seed.
        by_collection: collection → the metric's mean.
        figures: means over collections of what a report has beside metrics.
    """

    name: str
    group: str
    per_query: PerQuery
    mean: Interval
    by_seed: tuple[float, ...]
    by_collection: dict[str, float]
    figures: dict[str, float]


@dataclass(frozen=True)
class Verdict:
    """A claim and its test; ``verdict`` is "holds", "the opposite", "does not hold" or "not shown"."""

    claim: Claim
    comparison: Comparison | None
    verdict: str


@dataclass(frozen=True)
class Findings:
    """Everything that the report says; ``missing`` names the variants that were not run to their end."""

    experiment: Experiment
    systems: list[System]
    verdicts: list[Verdict]
    about: dict[str, Any]
    attachments: list[str]
    pictures: list[str]
    missing: tuple[str, ...] = ()


FIGURES = ("flops", "document_nnz", "query_nnz", "latency_ms", "index_bytes")


def findings_of(experiment: Experiment, folder: Path, about: dict[str, Any], missing: Sequence[str] = ()) -> Findings:
    """Read the results of all steps and test the claims, their p-values corrected together (Holm).

    Args:
        experiment: whose results they are.
        folder: where they are.
        about: machine, commit and time.
        missing: names of steps that are not done: variants that depend on them are left out.

    Raises:
        FormatError: a result file is damaged.
        InputError: no variant is there.
    """
    there = [v for v in experiment.variant if not any(f"{v.name}.{s}.evaluate" in missing for s in experiment.seeds)]
    if experiment.variant and not there:
        raise InputError(f"nothing of the experiment {experiment.name} is done in {folder}: there is nothing to report")
    systems = [_system(experiment, variant, folder) for variant in there]
    known = {"folder": str(folder), **experiment.paths}
    prepared = [prepare for prepare in experiment.prepare if f"prepare.{prepare.name}" not in missing]
    attachments = [text.format_map(known) for prepare in prepared for text in prepare.report]
    pictures = [text.format_map(known) for prepare in prepared for text in prepare.figures]
    left_out = tuple(variant.name for variant in experiment.variant if variant not in there)
    return Findings(experiment, systems, _verdicts(experiment, systems), about, attachments, pictures, left_out)


def _system(experiment: Experiment, variant: Variant, folder: Path) -> System:
    paths = [folder / "results" / f"{variant.name}.{seed}.evaluate.json" for seed in seeds_of(experiment, variant)]
    runs = [_results(path, experiment.metric) for path in paths]
    per_query = {
        collection: {
            query: float(np.mean([run[collection]["per_query"][experiment.metric][query] for run in runs]))
            for query in first["per_query"][experiment.metric]
        }
        for collection, first in runs[0].items()
    }
    strata = [np.array(list(values.values())) for values in per_query.values()]
    return System(
        name=variant.name,
        group=variant.group,
        per_query=per_query,
        mean=bootstrap(strata),
        by_seed=tuple(float(np.mean([r["metrics"][experiment.metric] for r in run.values()])) for run in runs),
        by_collection={c: float(np.mean(list(values.values()))) for c, values in per_query.items()},
        figures={f: float(np.mean([r[f] for run in runs for r in run.values()])) for f in FIGURES},
    )


def _results(path: Path, metric: str) -> dict[str, dict[str, Any]]:
    """Collection → result, from what ``lsr evaluate --per-query --json`` wrote."""
    try:
        results = {r["collection"]: r for r in json.loads(path.read_text(encoding="utf-8"))["results"]}
        for result in results.values():
            _ = result["per_query"][metric], result["metrics"][metric], [result[figure] for figure in FIGURES]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(
            f"{path} holds no results with {metric} of each query ({error}): delete it and run again"
        ) from error
    return results


# --- claims ------------------------------------------------------------------------------------------------


def _verdicts(experiment: Experiment, systems: Sequence[System]) -> list[Verdict]:
    pairs = [_pair(claim, systems) for claim in experiment.claim]
    comparisons = iter(
        with_holm(
            [
                compare(*pair, experiment.metric, (claim.baseline, claim.system))
                for claim, pair in zip(experiment.claim, pairs, strict=True)
                if pair
            ]
        )
    )
    tested = [next(comparisons) if pair else None for pair in pairs]
    return [Verdict(claim, c, verdict_of(claim, c)) for claim, c in zip(experiment.claim, tested, strict=True)]


def verdict_of(claim: Claim, comparison: Comparison | None) -> str:
    """What a comparison says about a claim.

    "better" holds if the difference is positive and p after Holm's correction below .05; "equal" if the
    whole interval of the difference is within the claim's margin.
    """
    if comparison is None:
        return "not shown: the two fronts do not overlap" if claim.at else "not shown: not run to the end"
    difference = comparison.difference
    if claim.expect == "equal":
        if max(-difference.low, difference.high) <= claim.margin:
            return "holds"
        return (
            "does not hold"
            if min(abs(difference.low), abs(difference.high)) > claim.margin and (difference.low * difference.high > 0)
            else "not shown"
        )
    if comparison.p_holm >= ALPHA:
        return "not shown"
    return "holds" if difference.mean > 0 else "the opposite"


def _pair(claim: Claim, systems: Sequence[System]) -> tuple[PerQuery, PerQuery] | None:
    """The per-query values of baseline and system, at equal FLOPS where the claim asks for it."""
    if not claim.at:
        by_name = {system.name: system.per_query for system in systems}
        if not by_name.keys() >= {claim.baseline, claim.system}:
            return None
        return by_name[claim.baseline], by_name[claim.system]
    fronts = [sorted((s for s in systems if s.group == g), key=_flops) for g in (claim.baseline, claim.system)]
    points = [(at_flops(fronts[0], _flops(system)), system.per_query) for system in fronts[1]]
    inside = [(baseline, system) for baseline, system in points if baseline is not None]
    if not inside:
        return None
    return _mean_of([baseline for baseline, _ in inside]), _mean_of([system for _, system in inside])


def at_flops(front: Sequence[System], flops: float) -> PerQuery | None:
    """A front's values at a number of FLOPS: linear in log FLOPS between its neighbours, None outside of it."""
    for left, right in itertools.pairwise(front):
        low, high = _flops(left), _flops(right)
        if low <= flops <= high:
            share = 0.0 if low == high else (np.log(flops) - np.log(low)) / (np.log(high) - np.log(low))
            return {
                c: {q: (1 - share) * value + share * right.per_query[c][q] for q, value in values.items()}
                for c, values in left.per_query.items()
            }
    return None


def _flops(system: System) -> float:
    return max(system.figures["flops"], 1e-9)


def _mean_of(several: Sequence[PerQuery]) -> PerQuery:
    return {c: {q: float(np.mean([s[c][q] for s in several])) for q in values} for c, values in several[0].items()}


# --- the report --------------------------------------------------------------------------------------------


def write_report(findings: Findings, folder: Path) -> None:
    """Write report.json, report.md and, where there are systems, report.png."""
    with replacing(folder / "report.json") as file:
        json.dump(to_dict(findings), file, indent=1, ensure_ascii=False)
    if findings.systems:
        plot(findings, folder / "report.png")
    with replacing(folder / "report.md") as file:
        file.write(markdown(findings))


def publish(findings: Findings, folder: Path, target: Path) -> None:
    """Put the report into a Markdown file, in the place of the one that is there, and its figures beside it."""
    name = findings.experiment.name
    text = markdown(findings)
    for figure in ("report.png", *map(os.path.basename, findings.pictures)):
        if f"]({figure})" in text:
            text = text.replace(f"]({figure})", f"]({name}-{figure})")
            shutil.copyfile(folder / figure, target.parent / f"{name}-{figure}")
    begin, end = f"<!-- reproduce {name} -->", f"<!-- end of {name} -->"
    old = target.read_text(encoding="utf-8") if target.is_file() else "# Results\n"
    section = f"{begin}\n{text}{end}\n"
    before, found, rest = old.partition(begin)
    after = rest.partition(f"{end}\n")[2] if found else ""
    with replacing(target) as file:
        file.write(before + section + after if found else f"{old.rstrip()}\n\n{section}")


def to_dict(findings: Findings) -> dict[str, Any]:
    """For JSON."""
    experiment = findings.experiment
    return {
        "experiment": experiment.name,
        "title": experiment.title,
        "paper": experiment.paper,
        "metric": experiment.metric,
        "seeds": list(experiment.seeds),
        "settings": list(experiment.settings),
        "missing": list(findings.missing),
        "systems": [
            {
                "name": s.name,
                "group": s.group,
                "mean": s.mean._asdict(),
                "by_seed": list(s.by_seed),
                "by_collection": s.by_collection,
                **s.figures,
            }
            for s in findings.systems
        ],
        "claims": [
            {
                "claim": v.claim.text,
                "expected": v.claim.expect,
                "paper": v.claim.paper,
                "verdict": v.verdict,
                "comparison": v.comparison.to_dict() if v.comparison else None,
            }
            for v in findings.verdicts
        ],
        **findings.about,
    }


def markdown(findings: Findings) -> str:
    """The report for people."""
    experiment, about = findings.experiment, findings.about
    parts = [f"### {experiment.name}: {experiment.title}", experiment.paper]
    if findings.verdicts:
        parts.append(claims_table(findings))
    if findings.systems:
        parts += [systems_table(findings), "![](report.png)"]
    parts += [Path(path).read_text(encoding="utf-8").strip() for path in findings.attachments]
    parts += [f"![]({os.path.basename(path)})" for path in findings.pictures]
    if findings.missing:
        parts.append(f"Not run to the end, and left out: {', '.join(findings.missing)}.")
    parts.append(_how(experiment, about))
    return "\n\n".join(part for part in parts if part) + "\n"


def _how(experiment: Experiment, about: dict[str, Any]) -> str:
    """How the numbers came about, and where."""
    machines = "; ".join(f"{m['cpu']}, {m['cores']} cores, {m['gpu'] or 'no GPU'}" for m in about["machines"])
    minutes = sum(seconds or 0 for seconds in about["seconds"].values()) / 60
    beside = f"; up to {about['jobs']} steps ran at a time, also while latencies were measured" * (about["jobs"] > 1)
    measured = (
        f"{experiment.metric}, means over collections with 95 % bootstrap intervals over queries; p-values of Fisher's "
        f"randomization test on the same queries, corrected over the claims (Holm). Seeds "
        f"{', '.join(map(str, experiment.seeds))}; "
    )
    return (
        f"{measured * bool(experiment.variant)}commit {', '.join(about['commits'])}; {machines}; "
        f"{minutes:,.0f} minutes of steps{beside}; ended {about['ended']}. "
        f"`{shlex.join(['lsr', 'reproduce', experiment.name, *experiment.settings])}` runs it again."
    )


def claims_table(findings: Findings) -> str:
    """Each claim: what the paper reported beside what was found here."""
    headers = ["claim", "paper", "here", "difference", "p (Holm)", "verdict"]
    rows = []
    for v in findings.verdicts:
        c = v.comparison
        here = f"{c.means[0]:.4f} → {c.means[1]:.4f}" if c else "–"
        difference = f"{c.difference.mean:+.4f} ({c.difference.low:+.4f} … {c.difference.high:+.4f})" if c else "–"
        rows.append([v.claim.text, v.claim.paper or "–", here, difference, f"{c.p_holm:.4f}" if c else "–", v.verdict])
    return markdown_table(headers, rows)


def systems_table(findings: Findings) -> str:
    """Each system with its mean, its interval, its seeds, and what it costs."""
    collections = list(findings.systems[0].by_collection)
    shown = [*collections] if len(collections) > 1 else []
    headers = ["system", findings.experiment.metric, "95 % interval", "seeds ±", *shown]
    rows = [
        [
            s.name,
            f"{s.mean.mean:.4f}",
            f"{s.mean.low:.4f} … {s.mean.high:.4f}",
            f"{np.std(s.by_seed, ddof=1):.4f}" if len(s.by_seed) > 1 else "–",
            *(f"{s.by_collection[c]:.4f}" for c in shown),
            *(number(s.figures[f] / (1e6 if f == "index_bytes" else 1)) for f in FIGURES),
        ]
        for s in findings.systems
    ]
    return markdown_table([*headers, "FLOPS", "d nnz", "q nnz", "ms/query", "index MB"], rows)


def plot(findings: Findings, path: Path) -> None:
    """Metric against FLOPS where there are groups, each a curve; else a bar for each system.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    optional_import("matplotlib", "eval", "drawing a figure")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    groups = {
        g: [s for s in findings.systems if s.group == g] for g in dict.fromkeys(s.group for s in findings.systems)
    }
    if any(groups):
        for name, members in groups.items():
            ordered = sorted(members, key=_flops)
            means, errors = _bars(ordered)
            style = "o-" if name else "s"
            axes.errorbar([_flops(s) for s in ordered], means, yerr=errors, fmt=style, capsize=3, label=name or None)
            for s in ordered if not name else ():
                axes.annotate(s.name, (_flops(s), s.mean.mean), textcoords="offset points", xytext=(6, 4))
        axes.set_xscale("log")
        for formatted in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
            formatted("{x:g}")  # not as powers of ten
        axes.set_xlabel("FLOPS of a query and a document")
        axes.legend(frameon=False)
    else:
        means, errors = _bars(findings.systems)
        bars = axes.barh([s.name for s in findings.systems], means, xerr=errors, capsize=3, height=0.6)
        axes.bar_label(bars, fmt="%.3f", label_type="center", color="white")
        axes.invert_yaxis()
    axes.grid(visible=True, alpha=0.25)
    (axes.set_ylabel if any(groups) else axes.set_xlabel)(findings.experiment.metric)
    axes.set_title(findings.experiment.title)
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=150))


def _bars(systems: Sequence[System]) -> tuple[list[float], list[list[float]]]:
    """Means, and the distances to the ends of their intervals as matplotlib wants them."""
    means = [s.mean.mean for s in systems]
    return means, [[s.mean.mean - s.mean.low for s in systems], [s.mean.high - s.mean.mean for s in systems]]
