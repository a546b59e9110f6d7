"""``lsr evaluate``: metrics on test collections."""

import argparse
from typing import Any

import lsr
from lsr.cli_options import (
    add_command,
    build_options,
    build_retriever,
    json_option,
    model_options,
    search_arguments,
    search_options,
    write_json,
)
from lsr.errors import InputError


def add_commands(commands: Any) -> None:
    """Add the commands of this module to the parser."""
    evaluate = add_command(commands, "evaluate", _evaluate, "Evaluate an encoder, or a run file, on test collections.",
        "lsr evaluate --model bm25 --dataset beir/scifact/test --exact")  # fmt: skip
    model_options(evaluate, required=False)
    evaluate.add_argument("--dataset", required=True, action="append", metavar="NAME_OR_DIR",
        help="ir-datasets id or BEIR folder; may be repeated")  # fmt: skip
    evaluate.add_argument("--split", help="which qrels (default: test, or what the ir-datasets id says)")
    evaluate.add_argument("-k", type=int, default=100, help="depth of the ranked lists (default 100)")
    evaluate.add_argument("--metric", action="append", metavar="NAME",
        help="such as ndcg@10; may be repeated (default ndcg@10 mrr@10 recall@100 map@100)")  # fmt: skip
    evaluate.add_argument("--run", metavar="FILE", help="evaluate this TREC run file instead of a model")
    evaluate.add_argument("--save-run", metavar="FILE", help="write the ranked lists as a TREC run file")
    evaluate.add_argument("--self-matches", choices=["auto", "drop", "keep"], default="auto",
        help="hits whose id is the query's (default auto: dropped where the queries are documents)")  # fmt: skip
    build_options(evaluate)
    search_options(evaluate)
    json_option(evaluate)


def _evaluate(options: argparse.Namespace) -> None:
    from lsr.eval.datasets import load_dataset
    from lsr.eval.evaluate import evaluate_retriever, evaluate_run_file
    from lsr.eval.metrics import DEFAULT_METRICS, measurable
    from lsr.index.index import check_search_options

    if (options.model is None) == (options.run is None):
        raise InputError("give either --model MODEL or --run FILE")
    if len(options.dataset) > 1 and (options.save_run or options.vectors or options.run):
        raise InputError("--run, --save-run and --vectors name one file or folder: evaluate one --dataset at a time")
    metrics = tuple(options.metric or DEFAULT_METRICS) if options.run else measurable(options.metric, options.k)
    arguments = search_arguments(options)
    check_search_options(options.k, **arguments)
    if {"query_cut", "heap_factor"} & arguments.keys() and not (options.seismic or options.lossless):
        raise InputError("--query-cut and --heap-factor search the blocks of an index built with --seismic: add that")
    drop = {"auto": None, "drop": True, "keep": False}[options.self_matches]
    reports: list[Any] = []
    for name in options.dataset:
        dataset = load_dataset(name, options.split, skip_repeats=options.skip_repeats)
        if options.run:
            reports.append(evaluate_run_file(options.run, dataset, metrics=metrics, drop_self_matches=drop))
            continue
        retriever = build_retriever(dataset.corpus, options)
        report, run, _ = evaluate_retriever(
            retriever,
            dataset,
            k=options.k,
            metrics=metrics,
            drop_self_matches=drop,
            **search_arguments(options),
        )
        reports.append(report)
        if options.save_run:
            run.write(options.save_run)
    print_reports(options.model or options.run, reports, options.json)


def print_reports(model: str, reports: list[Any], target: str | None) -> None:
    """Print reports for people, or write them as JSON to ``target``."""
    if target:
        write_json(
            target,
            {
                "model": model,
                "lsr": lsr.__version__,
                "results": [report.to_dict() for report in reports],
            },
        )
        if target == "-":
            return
    for report in reports:
        print(f"{report.dataset}  ({model}, {report.mode})")
        for metric, value in report.metrics.items():
            print(f"  {metric:12s} {value:.4f}")
        for line in report.notes():
            print(f"  {line}")
