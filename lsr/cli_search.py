"""``lsr encode | index | search | idf | demo``: from a corpus to hits."""

import argparse
from importlib.util import find_spec
from typing import Any

import lsr
from lsr.cli_eval import print_reports
from lsr.cli_options import (
    add_command,
    build_options,
    build_retriever,
    corpora_argument,
    corpus_argument,
    corpus_of,
    encoder_of,
    expansions_option,
    json_option,
    model_options,
    search_arguments,
    search_options,
    write_json,
)
from lsr.corpus import together
from lsr.errors import InputError
from lsr.files import check_file_target


def add_commands(commands: Any) -> None:
    """Add the commands of this module to the parser."""
    encode = add_command(commands, "encode", _encode,
        "Encode a corpus to a folder of vectors; resumes where it stopped.",
        "lsr encode corpus.jsonl --model naver/splade-v3 --out vectors")  # fmt: skip
    corpus_argument(encode)
    model_options(encode)
    expansions_option(encode)
    encode.add_argument("--out", required=True, metavar="DIR", help="folder for the vectors")
    encode.set_defaults(resumes=lambda options: True)

    index = add_command(commands, "index", _index, "Encode and index a corpus.",
        "lsr index corpus.jsonl --model bm25 --out my.index")  # fmt: skip
    corpus_argument(index)
    model_options(index)
    expansions_option(index)
    build_options(index)
    index.add_argument("--sample", metavar="QUERIES", help="questions on which the planner tries its settings")
    index.add_argument("--max-memory", metavar="SIZE", help="build in so much memory, as 4GB or 500MB")
    index.add_argument("--out", required=True, metavar="DIR", help="directory of the index")
    index.add_argument("--overwrite", action="store_true", help="replace DIR if it exists")
    index.set_defaults(resumes=lambda options: options.model != "bm25" or options.vectors)

    search = add_command(commands, "search", _search, "Search an index with a question.",
        'lsr search my.index "what is a sparse vector" -k 5 --explain')  # fmt: skip
    search.add_argument("index", metavar="DIR", help="an index made by lsr index")
    search.add_argument("query", metavar="QUESTION", help="the question")
    search.add_argument("-k", type=int, help="hits wanted (default 10)")
    search.add_argument("--model", metavar="MODEL", help="where the index's encoder is now, if it was moved")
    search.add_argument("--explain", action="store_true", help="show the terms that matched")
    search_options(search)
    json_option(search)

    idf = add_command(commands, "idf", _idf, "Compute the IDF table of corpora for inference-free queries.",
        "lsr idf corpus.jsonl --model naver/splade-v3 --out idf.json")  # fmt: skip
    corpora_argument(idf)
    model_options(idf)
    idf.add_argument("--out", required=True, metavar="FILE", help="the idf.json to write")

    demo = add_command(commands, "demo", _demo, "See it work on the docs of your own Python, or on a test collection.",
        "lsr demo")  # fmt: skip
    model_options(demo, required=False)
    demo.add_argument("--dataset", metavar="NAME_OR_DIR", help="run this benchmark instead")


def _encode(options: argparse.Namespace) -> None:
    from lsr.encoding import encode_corpus

    corpus = corpus_of(options)
    encoder = encoder_of(options)
    if isinstance(encoder, lsr.Bm25):
        encoder = encoder.fit(corpus, progress=True)
    encoded = encode_corpus(corpus, encoder, options.out, progress=True)
    mean = encoded.vectors.nnz / len(encoded.ids)
    print(f"{len(encoded.ids):,} documents, {mean:.0f} terms a document, in {options.out}")


def _index(options: argparse.Namespace) -> None:
    from lsr.files import check_target
    from lsr.index.sizes import describe

    check_target(options.out, overwrite=options.overwrite)
    retriever = build_retriever(corpus_of(options), options, path=options.out)
    print(f"{retriever.index!r} in {options.out}\n{describe(retriever.index.sizes())}")


def _search(options: argparse.Namespace) -> None:
    from lsr.retriever import Retriever

    encoder = lsr.load_encoder(options.model) if options.model else None
    retriever = Retriever.open(options.index, encoder)
    k = min(10, len(retriever.index)) if options.k is None else options.k
    hits = retriever.search(options.query, k, **search_arguments(options))
    matches = {hit.id: retriever.explain(options.query, hit.id) for hit in hits} if options.explain else {}
    if options.json:
        rows = [
            {"id": hit.id, "score": hit.score, "title": hit.title, "text": hit.text}
            | ({"terms": [match._asdict() for match in matches[hit.id]]} if options.explain else {})
            for hit in hits
        ]
        write_json(options.json, {"query": options.query, "hits": rows})
        if options.json == "-":
            return
    if not hits:
        print("no document shares a term with the question")
    for rank, hit in enumerate(hits, start=1):
        text = " ".join(f"{hit.title}: {hit.text}".split() if hit.title and hit.title != hit.id else hit.text.split())
        print(f"{rank:3d}. {hit.score:8.3f}  {hit.id}  {text[:100]}{'…' if len(text) > 100 else ''}")
        if options.explain:
            print("               " + " · ".join(f"{m.term} {m.contribution:.2f}" for m in matches[hit.id][:8]))


def _idf(options: argparse.Namespace) -> None:
    check_file_target(options.out)
    encoder = encoder_of(options)
    if not isinstance(encoder, lsr.Encoder):
        raise InputError("an IDF table needs a model with a tokenizer: BM25 has its own")
    corpus = together([lsr.read_corpus(name, skip_repeats=options.skip_repeats) for name in options.corpora])
    idf = lsr.compute_idf(corpus, encoder, progress=True)
    lsr.write_idf(options.out, idf, encoder)
    print(f"{int((idf > 0).sum()):,} terms in {options.out}")


def _demo(options: argparse.Namespace) -> None:
    from lsr.demo import run_demo, show_hits
    from lsr.eval.datasets import load_dataset
    from lsr.eval.evaluate import evaluate_retriever

    options.model = options.model or ("lsr-tiny" if find_spec("torch") else "bm25")
    if options.dataset is None:
        run_demo(encoder_of(options), options.model, print)
        return
    dataset = load_dataset(options.dataset, skip_repeats=options.skip_repeats)
    retriever = lsr.Retriever.build(dataset.corpus, encoder_of(options), progress=True)
    for query in dataset.queries[:3]:
        show_hits(retriever, query.text, print)
        print()
    print_reports(
        options.model,
        [evaluate_retriever(retriever, dataset, exact=e)[0] for e in (True, False)],
        None,
    )
