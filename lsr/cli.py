"""The command line: ``lsr encode | index | search | evaluate | idf | demo``.

Results go to stdout, progress and notes to stderr. Exit codes: 0 done, 1 bad input (one sentence on
stderr), 2 wrong usage, 130 interrupted.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lsr
from lsr.errors import InputError, LsrError, LsrWarning
from lsr.files import check_file_target, replacing

if TYPE_CHECKING:
    from lsr.bm25 import Bm25
    from lsr.encoder import Encoder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    _use_one_line_warnings()
    try:
        for target in (getattr(options, "json", None), getattr(options, "save_run", None)):
            if target not in (None, "-"):
                check_file_target(target)
        options.command(options)
    except LsrError as error:
        print(f"lsr: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has left
        return 0
    except OSError as error:
        print(f"lsr: {error.filename or 'input or output'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        keeps = options.command is _index and (options.model != "bm25" or options.vectors)
        resumes = options.command is _encode or keeps
        hint = ": the documents encoded so far are kept, the same command goes on from there" if resumes else ""
        print(f"lsr: interrupted{hint}", file=sys.stderr)
        return 130
    return 0


def _use_one_line_warnings() -> None:
    plain = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *rest: Any) -> None:
        if issubclass(category, LsrWarning):
            print(f"note: {message}", file=sys.stderr)
        else:
            plain(message, category, *rest)

    warnings.simplefilter("once", LsrWarning)
    warnings.showwarning = show  # type: ignore[assignment]


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(prog="lsr", description="Learned sparse retrieval: from text to metrics.")
    parser.add_argument("--version", action="version", version=f"lsr {lsr.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    encode = _command(commands, "encode", _encode, "Encode a corpus to a folder of vectors; resumes where it stopped.",
        "lsr encode corpus.jsonl --model naver/splade-v3 --out vectors")  # fmt: skip
    encode.add_argument(
        "corpus",
        metavar="CORPUS",
        help="BEIR folder, .jsonl or .tsv file (plain or .gz), ir-datasets id",
    )
    _model_options(encode)
    encode.add_argument("--out", required=True, metavar="DIR", help="folder for the vectors")

    index = _command(commands, "index", _index, "Encode and index a corpus.",
        "lsr index corpus.jsonl --model bm25 --out my.index")  # fmt: skip
    index.add_argument(
        "corpus",
        metavar="CORPUS",
        help="BEIR folder, .jsonl or .tsv file (plain or .gz), ir-datasets id",
    )
    _model_options(index)
    _build_options(index)
    index.add_argument("--out", required=True, metavar="DIR", help="directory of the index")
    index.add_argument("--overwrite", action="store_true", help="replace DIR if it exists")

    search = _command(commands, "search", _search, "Search an index with a question.",
        'lsr search my.index "what is a sparse vector" -k 5 --explain')  # fmt: skip
    search.add_argument("index", metavar="DIR", help="an index made by lsr index")
    search.add_argument("query", metavar="QUESTION", help="the question")
    search.add_argument("-k", type=int, help="hits wanted (default 10)")
    search.add_argument("--model", metavar="MODEL", help="where the index's encoder is now, if it was moved")
    search.add_argument("--explain", action="store_true", help="show the terms that matched")
    _search_options(search)
    _json_option(search)

    evaluate = _command(commands, "evaluate", _evaluate, "Evaluate an encoder, or a run file, on test collections.",
        "lsr evaluate --model bm25 --dataset beir/scifact/test --exact")  # fmt: skip
    _model_options(evaluate, required=False)
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
    _build_options(evaluate)
    _search_options(evaluate)
    _json_option(evaluate)

    idf = _command(commands, "idf", _idf, "Compute the IDF table of a corpus for inference-free queries.",
        "lsr idf corpus.jsonl --model naver/splade-v3 --out idf.json")  # fmt: skip
    idf.add_argument(
        "corpus",
        metavar="CORPUS",
        help="BEIR folder, .jsonl or .tsv file (plain or .gz), ir-datasets id",
    )
    _model_options(idf)
    idf.add_argument("--out", required=True, metavar="FILE", help="the idf.json to write")

    demo = _command(commands, "demo", _demo, "See it work on the docs of your own Python, or on a test collection.",
        "lsr demo")  # fmt: skip
    _model_options(demo, required=False)
    demo.add_argument("--dataset", metavar="NAME_OR_DIR", help="run this benchmark instead")
    return parser


def _command(commands: Any, name: str, run: Any, description: str, example: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=description,
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.set_defaults(command=run)
    return command


def _model_options(command: argparse.ArgumentParser, *, required: bool = True) -> None:
    command.add_argument(
        "--skip-repeats", action="store_true", help="keep the first document of an id that is used twice"
    )
    group = command.add_argument_group("encoder")
    group.add_argument("--model", required=required, metavar="MODEL",
        help='"bm25", a folder (Hugging Face, sentence-transformers, or saved by lsr), or a hub id')  # fmt: skip
    group.add_argument("--revision", help="revision of a hub id")
    group.add_argument("--query-model", metavar="MODEL", help="encode queries with this model instead")
    group.add_argument("--idf", metavar="FILE", help="look queries up in this idf.json instead (inference-free)")
    group.add_argument(
        "--document-max-length",
        type=int,
        metavar="N",
        help="tokens kept of a document (default 512)",
    )
    group.add_argument("--query-max-length", type=int, metavar="N", help="tokens kept of a query (default 256)")
    group.add_argument("--device", help="cpu, cuda, … (default: cuda where there is one)")


def _build_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("index (docs/parameters.md)")
    group.add_argument(
        "--vectors",
        metavar="DIR",
        help="keep the encoded vectors here, and use those that are here",
    )
    group.add_argument("--head-mass", type=float, metavar="F", help="share of a document that --candidates search sees")
    group.add_argument("--seismic", action="store_true", help="build blocks too, for --query-cut and --heap-factor")
    group.add_argument("--lossless", action="store_true", help="blocks with nothing pruned")
    group.add_argument("--n-postings", type=int, metavar="N", help="blocks: postings kept per term, as a mean")
    group.add_argument("--centroid-fraction", type=float, metavar="F", help="blocks: number per posting")
    group.add_argument("--summary-energy", type=float, metavar="F", help="blocks: share of a summary's mass kept")
    group.add_argument("--threads", type=int, metavar="N", help="threads (default: one per core)")


def _search_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("search (docs/parameters.md)")
    group.add_argument("--exact", action="store_true", help="miss no document")
    group.add_argument("--candidates", type=int, metavar="N", help="documents scored (default: five a hit)")
    group.add_argument("--query-cut", type=int, metavar="N", help="by blocks: query terms whose lists are walked")
    group.add_argument(
        "--heap-factor", type=float, metavar="F", help="by blocks: how soon one is skipped, 0 (never) to 1"
    )


def _json_option(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", metavar="FILE", help="write the result as JSON; - for stdout")


# --- commands ----------------------------------------------------------------------------------


def _encode(options: argparse.Namespace) -> None:
    from lsr.encoding import encode_corpus

    corpus = lsr.read_corpus(options.corpus, skip_repeats=options.skip_repeats)
    encoder = _encoder(options)
    if isinstance(encoder, lsr.Bm25):
        encoder = encoder.fit(corpus, progress=True)
    encoded = encode_corpus(corpus, encoder, options.out, progress=True)
    mean = encoded.vectors.nnz / len(encoded.ids)
    print(f"{len(encoded.ids):,} documents, {mean:.0f} terms a document, in {options.out}")


def _index(options: argparse.Namespace) -> None:
    from lsr.files import check_target

    check_target(options.out, overwrite=options.overwrite)
    corpus = lsr.read_corpus(options.corpus, skip_repeats=options.skip_repeats)
    retriever = _build(corpus, options, path=options.out)
    sizes = "  ".join(f"{part} {size / 1e6:.1f} MB" for part, size in retriever.index.sizes().items())
    print(f"{retriever.index!r} in {options.out}\n{sizes}")


def _search(options: argparse.Namespace) -> None:
    from lsr.retriever import Retriever

    encoder = lsr.load_encoder(options.model) if options.model else None
    retriever = Retriever.open(options.index, encoder)
    k = min(10, len(retriever.index)) if options.k is None else options.k
    hits = retriever.search(options.query, k, **_search_arguments(options))
    matches = {hit.id: retriever.explain(options.query, hit.id) for hit in hits} if options.explain else {}
    if options.json:
        rows = [
            {"id": hit.id, "score": hit.score, "title": hit.title, "text": hit.text}
            | ({"terms": [match._asdict() for match in matches[hit.id]]} if options.explain else {})
            for hit in hits
        ]
        _write_json(options.json, {"query": options.query, "hits": rows})
        if options.json == "-":
            return
    if not hits:
        print("no document shares a term with the question")
    for rank, hit in enumerate(hits, start=1):
        text = " ".join(f"{hit.title}: {hit.text}".split() if hit.title and hit.title != hit.id else hit.text.split())
        print(f"{rank:3d}. {hit.score:8.3f}  {hit.id}  {text[:100]}{'…' if len(text) > 100 else ''}")
        if options.explain:
            print("               " + " · ".join(f"{m.term} {m.contribution:.2f}" for m in matches[hit.id][:8]))


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
    arguments = _search_arguments(options)
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
        retriever = _build(dataset.corpus, options)
        report, run, _ = evaluate_retriever(
            retriever,
            dataset,
            k=options.k,
            metrics=metrics,
            drop_self_matches=drop,
            **_search_arguments(options),
        )
        reports.append(report)
        if options.save_run:
            run.write(options.save_run)
    _print_reports(options.model or options.run, reports, options.json)


def _print_reports(model: str, reports: list[Any], target: str | None) -> None:
    if target:
        _write_json(
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


def _idf(options: argparse.Namespace) -> None:
    check_file_target(options.out)
    encoder = _encoder(options)
    if not isinstance(encoder, lsr.Encoder):
        raise InputError("an IDF table needs a model with a tokenizer: BM25 has its own")
    corpus = lsr.read_corpus(options.corpus, skip_repeats=options.skip_repeats)
    idf = lsr.compute_idf(corpus, encoder, progress=True)
    lsr.write_idf(options.out, idf, encoder)
    print(f"{int((idf > 0).sum()):,} terms in {options.out}")


def _demo(options: argparse.Namespace) -> None:
    from lsr.demo import run_demo, show_hits
    from lsr.eval.datasets import load_dataset
    from lsr.eval.evaluate import evaluate_retriever

    options.model = options.model or "bm25"
    if options.dataset is None:
        run_demo(_encoder(options), options.model, print)
        return
    dataset = load_dataset(options.dataset, skip_repeats=options.skip_repeats)
    retriever = lsr.Retriever.build(dataset.corpus, _encoder(options), progress=True)
    for query in dataset.queries[:3]:
        show_hits(retriever, query.text, print)
        print()
    _print_reports(
        options.model,
        [evaluate_retriever(retriever, dataset, exact=e)[0] for e in (True, False)],
        None,
    )


# --- what the commands share -------------------------------------------------------------------


def _encoder(options: argparse.Namespace) -> "Encoder | Bm25":
    """The encoder that --model and its companions name; BM25 is still to be fitted."""
    if options.model == "bm25":
        lengths = (options.document_max_length, options.query_max_length, options.revision, options.device)
        if any(option is not None for option in lengths):
            raise InputError("bm25 takes no lengths, revision or device: leave them out")
        if options.idf or options.query_model:
            raise InputError("--idf and --query-model go with a model, not with bm25, whose queries have their own IDF")
        return lsr.Bm25()
    arguments = {
        "document_max_length": options.document_max_length,
        "query_max_length": options.query_max_length,
        "device": options.device,
    }
    encoder = lsr.load_encoder(options.model, revision=options.revision, **arguments)
    if options.idf and options.query_model:
        raise InputError("--idf and --query-model both say how queries are encoded: give one")
    if options.query_model:
        return encoder.with_queries(lsr.load_encoder(options.query_model, **arguments))
    if options.idf:
        return lsr.inference_free(
            encoder, lsr.read_idf(options.idf, encoder), max_length=options.query_max_length or 256
        )
    return encoder


def _build(corpus: Any, options: argparse.Namespace, path: str | None = None) -> Any:
    given = {name: getattr(options, name) for name in ("n_postings", "centroid_fraction", "summary_energy")}
    changes = {name: value for name, value in given.items() if value is not None}
    if changes and not options.seismic and not options.lossless:
        raise InputError(
            f"{_flags(changes)} tune the blocks of an index built with --seismic: add that, or leave them out"
        )
    if options.head_mass is not None:
        changes["head_mass"] = options.head_mass
    if options.seismic:
        changes["seismic"] = True
    if options.lossless and {"n_postings", "summary_energy"} & changes.keys():
        raise InputError("--lossless prunes nothing: leave --n-postings and --summary-energy out")
    make = lsr.BuildOptions.lossless if options.lossless else lsr.BuildOptions
    return lsr.Retriever.build(
        corpus,
        _encoder(options),
        path,
        options=make(**changes),
        vectors=options.vectors,
        threads=options.threads,
        progress=True,
        overwrite=getattr(options, "overwrite", False),
    )


def _search_arguments(options: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(options, name) for name in ("candidates", "query_cut", "heap_factor")}
    knobs = {name: value for name, value in given.items() if value is not None}
    if options.exact and knobs:
        raise InputError(f"--exact has no knobs: leave {_flags(knobs)} out")
    return {"exact": options.exact, **knobs}


def _flags(names: Iterable[str]) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in names)


def _write_json(target: str, value: Any) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    if target == "-":
        print(text)
        return
    with replacing(Path(target)) as file:
        file.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
