"""``lsr evaluate | compare | judge | reproduce``: metrics, tests, the outside judge, experiments."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

import lsr
from lsr.cli_options import (
    OF_A_MODEL,
    add_command,
    build_options,
    encoder_of,
    expansions_option,
    index_options,
    json_option,
    model_options,
    search_arguments,
    search_options,
    write_json,
)
from lsr.errors import InputError
from lsr.files import check_file_target, check_parent

SELF_MATCHES = {"auto": None, "drop": True, "keep": False}


def add_commands(commands: Any) -> None:
    """Add the commands of this module to the parser."""
    evaluate = add_command(commands, "evaluate", _evaluate, "Evaluate encoders, or a run file, on test collections.",
        "lsr evaluate --model bm25 --dataset beir/scifact/test --exact")  # fmt: skip
    model_options(evaluate, required=False)
    # Of all commands with a model, this one takes several: its --model takes the place of the common one.
    models = evaluate.add_argument_group("models", conflict_handler="resolve")
    models.add_argument("--model", action="append", metavar="MODEL",
        help='"bm25", a folder, or a hub id; dense:FOLDER; "bm25 + dense:FOLDER" (with "raw: " before it, not '
        "normalized); may be repeated: the others are compared with the first")  # fmt: skip
    _collection_options(evaluate)
    evaluate.add_argument("-k", type=int, help="depth of the ranked lists (default: what each collection is measured "
        "at: 100, MS MARCO 1000)")  # fmt: skip
    evaluate.add_argument("--run", metavar="FILE", help="evaluate this TREC run file instead of a model")
    evaluate.add_argument("--save-run", metavar="FILE", help="write the ranked lists as a TREC run file")
    evaluate.add_argument("--save-runs", metavar="DIR", help="write one run file for each model and collection here")
    evaluate.add_argument("--per-query", action="store_true", help="with --json: every query's metrics too")
    _cache_options(evaluate)
    expansions_option(evaluate)
    evaluate.set_defaults(resumes=lambda options: options.run is None and not options.no_cache)
    build_options(evaluate)
    search_options(evaluate)
    json_option(evaluate)

    compare = add_command(commands, "compare", _compare, "Compare run files: differences, intervals, paired tests.",
        "lsr compare bm25.run splade.run --dataset beir/scifact/test --metric ndcg@10")  # fmt: skip
    compare.add_argument(
        "runs", nargs="+", metavar="RUN", help="TREC run files: the others are compared with the first"
    )
    compare.add_argument("--skip-repeats", action="store_true",
        help="keep the first document or query of an id that is used twice")  # fmt: skip
    _collection_options(compare)
    json_option(compare)

    judge = add_command(commands, "judge", _judge,
        "Hold our ranked lists against Lucene's (pyserini, extra 'lucene'): BM25, or the same vectors.",
        "lsr judge --model bm25 --dataset beir/scifact/test")  # fmt: skip
    model_options(judge)
    _collection_options(judge)
    judge.add_argument("--scale", type=int, default=100, metavar="N",
        help="weights times this, rounded, are Lucene's impacts (default 100)")  # fmt: skip
    _cache_options(judge)
    json_option(judge)

    reproduce = add_command(commands, "reproduce", _reproduce,
        "Run an experiment from raw data to a report; goes on where it stopped.",
        "lsr reproduce idf-flops seeds=1,2")  # fmt: skip
    reproduce.add_argument("name", nargs="?", metavar="NAME",
        help="configs/reproduce-NAME.toml, or a file; without one, they are listed")  # fmt: skip
    reproduce.add_argument("settings", nargs="*", metavar="key=value",
        help="seeds=1,2, one of the file's [paths], or an override of all trainings: training.workers=1")  # fmt: skip
    reproduce.add_argument("--out", metavar="DIR", help="the experiment's folder (default runs/reproduce-NAME)")
    reproduce.add_argument("--publish", metavar="FILE",
        help="put the report into this Markdown file too, such as docs/results.md, its figures beside it")  # fmt: skip
    reproduce.add_argument("--jobs", type=int, default=1, metavar="N", help="steps at a time (default 1)")
    reproduce.add_argument("--report", action="store_true",
        help="run nothing: report what is done, and name what is missing")  # fmt: skip
    reproduce.add_argument("--dry-run", action="store_true", help="print the commands, and stop")
    reproduce.set_defaults(resumes=lambda options: True)


def _cache_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--cache", metavar="DIR", help="keep vectors and indexes here (default: $LSR_CACHE, or the "
        "platform's folder for caches)")  # fmt: skip
    command.add_argument("--no-cache", action="store_true", help="keep nothing, and use nothing that was kept")


def _collection_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--dataset", required=True, action="append", metavar="NAME_OR_DIR",
        help="ir-datasets id, BEIR folder, beir:all, beir:NAME, msmarco:all, msmarco:dev, msmarco:dl19, msmarco:dl20; "
        "may be repeated")  # fmt: skip
    command.add_argument("--split", help="which qrels (default: test, or what the ir-datasets id says)")
    command.add_argument("--metric", action="append", metavar="NAME",
        help="such as ndcg@10; may be repeated (default: what the field reports of the collection)")  # fmt: skip
    command.add_argument("--self-matches", choices=list(SELF_MATCHES), default="auto",
        help="hits whose id is the query's (default auto: dropped where the queries are documents)")  # fmt: skip


def _evaluate(options: argparse.Namespace) -> None:
    from lsr.eval.datasets import find_collections

    if (options.model is None) == (options.run is None):
        raise InputError("give either --model MODEL or --run FILE")
    collections = find_collections(options.dataset)
    if options.expansions and (len(collections) > 1 or options.run):
        raise InputError(
            "--expansions expands the documents of one collection for a model: name one --dataset, no --run"
        )
    if (len(collections) > 1 or len(options.model or []) > 1) and (options.save_run or options.vectors or options.run):
        raise InputError(
            "--run, --save-run and --vectors name one file or folder: evaluate one --model on one --dataset at a time "
            "(--save-runs and --cache are for several)"
        )
    if options.run:
        _evaluate_run_file(options, collections[0])
    else:
        _evaluate_models(options, collections)


def _evaluate_run_file(options: argparse.Namespace, collection: Any) -> None:
    from lsr.eval.datasets import load_dataset
    from lsr.eval.evaluate import evaluate_run_file
    from lsr.eval.metrics import check_metric

    metrics = options.metric or collection.metrics
    for metric in metrics:
        check_metric(metric)
    dataset = load_dataset(collection.source, options.split, skip_repeats=options.skip_repeats)
    drop = SELF_MATCHES[options.self_matches]
    print_reports(
        options.run,
        [evaluate_run_file(options.run, dataset, metrics=metrics, drop_self_matches=drop)[0]],
        options.json,
    )


def _evaluate_models(options: argparse.Namespace, collections: list[Any]) -> None:
    from lsr.eval.ensemble import DENSE_KINDS
    from lsr.eval.harness import Harness, compare_models, comparison_table, table

    arguments = _checked_search(options, collections)
    build = index_options(options)
    cache = _cache(options)
    members = [member.strip() for model in options.model for member in model.removeprefix("raw: ").split(" + ")]
    if options.dtype and all(member == "bm25" or member.partition(":")[0] in DENSE_KINDS for member in members):
        raise InputError("--dtype is of sparse encoders, and none is named: leave it out")
    encoders = {_label(model, options.model): _model_of(options, model) for model in options.model}
    if options.save_runs:
        check_parent(Path(options.save_runs))
        Path(options.save_runs).mkdir(exist_ok=True)
    harness = Harness(
        collections,
        cache,
        split=options.split,
        skip_repeats=options.skip_repeats,
        k=options.k,
        metrics=options.metric,
        drop_self_matches=SELF_MATCHES[options.self_matches],
        vectors=options.vectors,
        expansions=options.expansions,
    )
    results: dict[str, list[Any]] = {model: [] for model in encoders}
    for model, encoder in encoders.items():
        found = harness.evaluate(
            model, encoder, build=build, threads=options.threads, progress=True, begin=_announce(model), **arguments
        )
        for evaluation in found:
            results[model].append(evaluation)
            if options.save_run or options.save_runs:
                evaluation.run.write(options.save_run or _run_file(options.save_runs, evaluation))
    comparisons = compare_models(results)
    if options.json:
        _write_evaluations(options, results, comparisons)
        if options.json == "-":
            return
    for model, evaluations in results.items():
        print(f"{model}  ({evaluations[0].report.mode} search)\n\n{table(evaluations)}\n")
        for evaluation in evaluations:
            for remark in evaluation.report.remarks():
                print(f"{evaluation.collection.name}: {remark}")
        print()
    if comparisons:
        print(comparison_table(comparisons))


def _cache(options: argparse.Namespace) -> Any:
    """The cache that the options ask for, None where nothing is to be kept in it."""
    from lsr.eval.cache import Cache, default_cache

    vectors = getattr(options, "vectors", None)
    if options.cache and (options.no_cache or vectors):
        raise InputError("--cache goes with neither --no-cache nor --vectors: they say where else vectors are kept")
    return None if options.no_cache or vectors else Cache(options.cache or default_cache())


def _checked_search(options: argparse.Namespace, collections: list[Any]) -> dict[str, Any]:
    """The search's keyword arguments, refused before any work if they cannot be right."""
    from lsr.index.index import check_search_options
    from lsr.index.options import check_threads

    arguments = search_arguments(options)
    for depth in {c.depth if options.k is None else options.k for c in collections}:
        check_search_options(depth, **arguments)
    check_threads(options.threads)
    if {"query_cut", "heap_factor", "neighbours"} & arguments.keys() and not (options.seismic or options.lossless):
        raise InputError(
            "--query-cut, --heap-factor and --neighbours search the blocks of an index built with --seismic: add that"
        )
    if arguments.get("neighbours", 0) > (options.graph or 0):
        raise InputError(
            f"--neighbours {options.neighbours} is more than the index keeps: build it with --graph as many"
        )
    return arguments


def _model_of(options: argparse.Namespace, spec: str) -> Any:
    """The model that one --model names: an encoder, a dense model, or an ensemble of these."""
    from lsr.eval.ensemble import DENSE_KINDS, Ensemble, dense_model

    members = spec.removeprefix("raw: ").split(" + ")
    if len(members) > 1:
        if options.query_model or options.idf or options.vectors:
            raise InputError("--query-model, --idf and --vectors are of one model: leave them out with an ensemble")
        return Ensemble(tuple(_model_of(options, member.strip()) for member in members), not spec.startswith("raw: "))
    if spec.partition(":")[0] in DENSE_KINDS:
        return dense_model(spec, options.device)
    return encoder_of(_for_model(options, spec))


def _for_model(options: argparse.Namespace, model: str) -> argparse.Namespace:
    """The options as one of several models takes them: BM25 beside a model has no lengths."""
    fields = {**vars(options), "model": model}
    if model == "bm25" and options.model != ["bm25"]:
        fields |= dict.fromkeys((*OF_A_MODEL, "idf", "query_model"))
    return argparse.Namespace(**fields)


def _label(model: str, models: list[str]) -> str:
    """A model with its folders by their names alone, if no other is then called the same."""
    return _short(model) if [_short(other) for other in models].count(_short(model)) == 1 else model


def _short(model: str) -> str:
    parts = [member.rpartition(":") for member in model.split(" + ")]
    return " + ".join(f"{k}{colon}{Path(p).name if Path(p).is_dir() else p}" for k, colon, p in parts)


def _announce(model: str) -> Any:
    return lambda collection: print(f"{model} on {collection.name}", file=sys.stderr)


def _run_file(folder: str, evaluation: Any) -> Path:
    parts = (evaluation.model, evaluation.collection.name)
    return Path(folder) / ("__".join(part.replace(":", "-").replace("/", "-") for part in parts) + ".run")


def _write_evaluations(options: argparse.Namespace, results: dict[str, list[Any]], comparisons: list[Any]) -> None:
    fields: dict[str, Any] = {"lsr": lsr.__version__}
    fields["results"] = [
        {"model": model, **evaluation.to_dict(per_query=options.per_query)}
        for model, evaluations in results.items()
        for evaluation in evaluations
    ]
    write_json(options.json, {**fields, "comparisons": [comparison.to_dict() for comparison in comparisons]})


def _compare(options: argparse.Namespace) -> None:
    from lsr.eval.datasets import find_collections, load_dataset
    from lsr.eval.evaluate import evaluate_run_file
    from lsr.eval.harness import comparison_table
    from lsr.eval.significance import compare, with_holm

    collections = find_collections(options.dataset)
    if len(options.runs) < 2 or len(set(options.runs)) < len(options.runs):
        raise InputError(
            "compare takes two run files or more, all different: the first is what the others are held against"
        )
    if len(collections) > 1:
        raise InputError("a run file is of one collection: compare on one --dataset at a time")
    metrics = options.metric or collections[0].metrics
    dataset = load_dataset(collections[0].source, options.split, skip_repeats=options.skip_repeats)
    drop = SELF_MATCHES[options.self_matches]
    scores = {
        run: evaluate_run_file(run, dataset, metrics=metrics, drop_self_matches=drop)[1].per_query
        for run in options.runs
    }
    first, *others = options.runs
    name = collections[0].name
    comparisons = with_holm(
        [
            compare({name: scores[first][metric]}, {name: scores[run][metric]}, metric, (first, run))
            for run in others
            for metric in metrics
        ]
    )
    if options.json:
        write_json(options.json, {"lsr": lsr.__version__, "comparisons": [c.to_dict() for c in comparisons]})
        if options.json == "-":
            return
    print(comparison_table(comparisons))


def _judge(options: argparse.Namespace) -> None:
    import tempfile

    from lsr.eval.datasets import find_collections
    from lsr.eval.harness import Harness
    from lsr.eval.judge import agreement_table, judge, start_java

    if options.scale < 1:
        raise InputError(f"the scale must be an integer of at least 1: got {options.scale}")
    if len(options.metric or []) > 1 or options.self_matches != "auto":
        raise InputError("a judgment takes one --metric at most, and drops self-matches by itself")
    collections = find_collections(options.dataset)
    start_java()
    cache, encoder = _cache(options), encoder_of(options)
    harness = Harness(
        collections, split=options.split, skip_repeats=options.skip_repeats, metrics=options.metric, k=100
    )
    found: dict[str, list[Any]] = {}
    for collection in harness.collections:
        _announce(options.model)(collection)
        with tempfile.TemporaryDirectory(prefix="lsr-judge-") as work:
            dataset, metric = harness.dataset(collection), collection.metrics[0]
            found[collection.name] = judge(
                dataset, encoder, work, metric=metric, scale=options.scale, cache=cache, progress=True
            )
    if options.json:
        rows = [{"collection": name, **a.to_dict()} for name, several in found.items() for a in several]
        write_json(options.json, {"lsr": lsr.__version__, "model": options.model, "agreements": rows})
        if options.json == "-":
            return
    print(agreement_table(found))


def _reproduce(options: argparse.Namespace) -> None:
    from lsr.eval.experiments import experiments, load_experiment, steps_of

    known = experiments("configs")
    if options.name is None:
        for name, path in known.items():
            print(f"{name:16s} {load_experiment(path).title}")
        if not known:
            raise InputError("there is no configs/reproduce-*.toml here: name an experiment's file")
        return
    path = known.get(options.name) or Path(options.name)
    if not path.is_file():
        raise InputError(
            f"there is no experiment {options.name!r}: it is none of {', '.join(known) or 'none'}, and no file"
        )
    if options.jobs != 1 and (options.report or options.dry_run):
        raise InputError("--jobs is for running steps: leave it out of --report and --dry-run")
    experiment = load_experiment(path, options.settings)
    folder = Path(options.out or f"runs/reproduce-{experiment.name}")
    if options.dry_run:
        for step in steps_of(experiment, folder):
            print(f"{step.name}\n  lsr {shlex.join(step.command)}")
        return
    from lsr.eval.findings import markdown, publish
    from lsr.eval.reproduce import reproduce

    if options.publish:
        check_file_target(options.publish)
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    findings = reproduce(
        experiment,
        folder,
        jobs=options.jobs,
        report_only=options.report,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if options.publish:
        publish(findings, folder, Path(options.publish))
    print(markdown(findings))


def print_reports(model: str, reports: list[Any], target: str | None) -> None:
    """Print reports for people, or write them as JSON to ``target``."""
    if target:
        results = [{"model": model, **report.to_dict()} for report in reports]
        write_json(target, {"lsr": lsr.__version__, "results": results})
        if target == "-":
            return
    for report in reports:
        print(f"{report.dataset}  ({model}, {report.mode})")
        for metric, value in report.metrics.items():
            print(f"  {metric:12s} {value:.4f}")
        for line in report.notes():
            print(f"  {line}")
