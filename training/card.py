"""The model card of a trained encoder: data, configuration, metrics, versions, commit."""

import json
import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lsr
from lsr.files import replacing
from lsr.training.config import TrainConfig, name_of

CARD_FILE = "README.md"

#: What of the statistics a card shows, in words.
SHOWN = {
    "ndcg@10": "nDCG@10",
    "mrr@10": "MRR@10",
    "recall@100": "Recall@100",
    "products": "multiplications per query and document",
    "queries_nnz": "terms per query (mean)",
    "queries_nnz_p50": "terms per query (median)",
    "queries_nnz_p99": "terms per query (99th percentile)",
    "queries_empty": "share of queries without a term",
    "queries_flops": "FLOPS of the queries: Σ (mean weight)²",
    "queries_dead_terms": "terms that no query has",
    "queries_overused_terms": "terms that more than half of the queries have",
    "documents_nnz": "terms per document (mean)",
    "documents_nnz_p50": "terms per document (median)",
    "documents_nnz_p99": "terms per document (99th percentile)",
    "documents_empty": "share of documents without a term",
    "documents_flops": "FLOPS of the documents: Σ (mean weight)²",
    "documents_used_terms": "terms that some document has",
    "documents_dead_terms": "terms that no document has",
    "documents_overused_terms": "terms that more than half of the documents have",
}


def versions() -> dict[str, str]:
    """Versions of what decides a training's numbers."""
    import torch
    import transformers

    return {
        "lsr": lsr.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def commit() -> str | None:
    """The commit of the checkout that lsr runs from, with ``-dirty`` if it was changed; None outside of one."""
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "-C", str(Path(lsr.__file__).resolve().parent), "describe", "--always", "--dirty", "--abbrev=40"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None if found.returncode == 0 else None


def write_card(
    folder: Path, config: TrainConfig, facts: Mapping[str, Any], metrics: Mapping[str, float], weights: str
) -> None:
    """Write ``README.md`` into an encoder's folder.

    Args:
        folder: where.
        config: of the training.
        facts: "examples", "seconds", "processes", "device" of the run.
        metrics: of the saved weights, by name; empty without validation.
        weights: which weights these are, in words.
    """
    with replacing(folder / CARD_FILE) as file:
        file.write(card(folder.resolve().parent.name, config, facts, metrics, weights))


def card(name: str, config: TrainConfig, facts: Mapping[str, Any], metrics: Mapping[str, float], weights: str) -> str:
    """The text of a model card, with the front matter that the Hugging Face hub reads."""
    sides = {side: getattr(config.regularizer, side) for side in ("queries", "documents")}
    regularizers = ", ".join(f"{name_of(r)} on {side} (λ {r.weight:g})" for side, r in sides.items() if r) or "none"
    validation = config.validation
    lines = [
        "---",
        "library_name: lsr",
        f"base_model: {json.dumps(config.backbone)}",
        "pipeline_tag: feature-extraction",
        "tags: [sparse, learned-sparse-retrieval, information-retrieval]",
        "---",
        "",
        f"# {name}",
        "",
        "A sparse encoder trained with lsr. Use it with `lsr.load_encoder(folder)`.",
        "",
        "## Training",
        "",
        f"- data: {config.data}, {facts['examples']:,} queries",
        f"- loss: {name_of(config.loss)}; regularizers: {regularizers}",
        f"- {config.training.steps:,} steps of {config.training.queries_a_step} queries a "
        f"process, {facts['processes']} process(es), {facts['device']}, {facts['seconds']:,.0f} s",
        f"- weights: {weights}",
        f"- commit: {commit() or 'unknown'}; " + ", ".join(f"{k} {v}" for k, v in versions().items()),
        "",
    ]
    if metrics and validation is not None:
        where = validation.collection or config.data.collection
        documents = f"at most {validation.documents:,}" if validation.documents else "all"
        lines += [
            "## Validation",
            "",
            f"On the split {validation.split} of {where}: at most {validation.queries:,} queries, {documents} "
            "documents. Figures of a part of a collection are higher than those of the whole.",
            "",
        ]
    if metrics:
        lines += ["| | |", "|---|---|"]
        lines += [f"| {words} | {metrics[key]:.4g} |" for key, words in SHOWN.items() if key in metrics]
        lines += [f"| {key} | {value:.4g} |" for key, value in metrics.items() if "_" not in key and key not in SHOWN]
        lines.append("")
    lines += ["## Configuration", "", "```json", json.dumps(config.as_dict(), indent=2, ensure_ascii=False), "```", ""]
    return "\n".join(lines)
