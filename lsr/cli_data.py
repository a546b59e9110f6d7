"""``lsr cloze | mine | distill | join``: queries of passages, training files with hard negatives and with teachers'
scores; two encoders as one.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import lsr
from lsr.cli_options import (
    OF_A_MODEL,
    add_command,
    cache_of,
    cache_option,
    corpus_argument,
    encoder_of,
    model_options,
    named_numbers,
)
from lsr.corpus import together
from lsr.errors import InputError
from lsr.run import Ranking

if TYPE_CHECKING:
    from lsr.retriever import Retriever
    from lsr.training.mine import MiningOptions, PairScorer
    from lsr.training.texts import TextTable

QUERIES_AT_A_TIME = 512

#: `lsr join`: columns of bm25.
BUCKETS = 131_072


def add_commands(commands: Any) -> None:
    """Add the commands of this module to the parser."""
    _add_cloze(commands)
    _add_mine(commands)
    _add_distill(commands)
    _add_join(commands)


def _add_cloze(commands: Any) -> None:
    cloze = add_command(commands, "cloze", _cloze,
        "Make queries of unlabeled passages: a sentence of each, taken out of it (inverse cloze task).",
        "lsr cloze data/wiki-en-passages --out data/wiki-cloze")  # fmt: skip
    corpus_argument(cloze)
    cloze.add_argument("--out", required=True, metavar="DIR", help="the BEIR folder to write")
    cloze.add_argument("--overwrite", action="store_true", help="replace DIR if it exists")
    cloze.add_argument("--queries", type=int, metavar="N", help="of the first N passages that allow one (default all)")
    cloze.add_argument("--seed", type=int, default=0, help="of the choice of sentences (default 0)")
    cloze.add_argument("--skip-repeats", action="store_true",
        help="keep the first document of an id that is used twice")  # fmt: skip


def _add_mine(commands: Any) -> None:
    mine = add_command(commands, "mine", _mine,
        "Write a training file with hard negatives; resumes where it stopped.",
        "lsr mine data/medquad --model bm25 --ranks 10-200 --out mined.jsonl.gz")  # fmt: skip
    mine.add_argument("collection", metavar="COLLECTION", help="BEIR folder: corpus, queries, qrels")
    mine.add_argument("--split", default="train", metavar="NAME", help="which qrels (default train)")
    mine.add_argument("--out", required=True, metavar="FILE", help="the .jsonl or .jsonl.gz to write")
    mine.add_argument("--run", metavar="FILE", help="take the rankings of this TREC run instead of searching")
    mine.add_argument("--dense", metavar="TEACHER",
        help="search with this dense model, such as dense:FOLDER (docs/distillation.md), by brute force")  # fmt: skip
    mine.add_argument("--index", metavar="DIR", help="search this index (lsr index), instead of building one")
    mine.add_argument("--vectors", metavar="DIR", help="keep the encoded vectors here, and use those that are here")
    group = mine.add_argument_group("negatives (docs/distillation.md)")
    group.add_argument("--ranks", default="10-200", metavar="A-B", help="ranks of candidates (default 10-200)")
    group.add_argument("--negatives", type=int, metavar="N", help="sampled per query (default 24; 0 for all)")
    group.add_argument("--margin", type=float, metavar="F", help="at most the positive's score less F")
    group.add_argument("--relative-margin", type=float, metavar="F", help="at most (1 - F) times the positive's score")
    group.add_argument("--teacher", metavar="TEACHER", help="drop what this teacher takes for a positive")
    group.add_argument("--teacher-ratio", type=float, metavar="F",
        help="at most F times the teacher's score of the positive (default .95)")  # fmt: skip
    group.add_argument("--drop-self", action="store_true", help="drop documents whose id is the query's")
    group.add_argument("--seed", type=int, default=0, help="of the sampling (default 0)")
    cache_option(mine)
    model_options(mine, required=False)
    mine.set_defaults(resumes=lambda options: True)


def _add_distill(commands: Any) -> None:
    distill = add_command(commands, "distill", _distill,
        "Score a training file with teachers; resumes where it stopped.",
        "lsr distill mined.jsonl.gz --collection data/medquad --teacher dense=models/minilm --teacher bm25 "
        "--out distilled.jsonl.gz")  # fmt: skip
    distill.add_argument("training_file", metavar="TRAINING_FILE", help="JSONL of rows, or qrels")
    distill.add_argument("--collection", metavar="DIR", help="BEIR folder with its corpus and queries")
    distill.add_argument("--teacher", action="append", required=True, metavar="[NAME=]TEACHER",
        help="bm25, a folder, KIND:FOLDER, or scores: the file's own (docs/distillation.md)")  # fmt: skip
    distill.add_argument("--weight", action="append", default=[], metavar="NAME=F", help="of a teacher (default 1)")
    distill.add_argument("--scale", type=float, default=30.0, metavar="F", help="of the target (default 30)")
    distill.add_argument("--no-normalization", action="store_true", help="mean of raw scores, for comparison")
    distill.add_argument("--out", required=True, metavar="FILE",
        help="the .jsonl or .jsonl.gz to write; raw scores go to FILE.scores/")  # fmt: skip
    distill.add_argument("--skip-repeats", action="store_true",
        help="keep the first document or query of an id that is used twice")  # fmt: skip
    distill.add_argument("--device", help="cpu, cuda, … (default: cuda where there is one)")
    cache_option(distill)
    distill.set_defaults(resumes=lambda options: True)


def _add_join(commands: Any) -> None:
    joined = add_command(commands, "join", _join, "Join two encoders in one vector: their scores are added.",
        "lsr join models/lsr-tiny bm25 --corpus data/medquad --weight .5 --out models/joined")  # fmt: skip
    joined.add_argument("first", metavar="FIRST", help="a folder or hub id, as --model of the other commands")
    joined.add_argument("second", metavar="SECOND", help="likewise, or bm25, which is fitted to --corpus")
    joined.add_argument("--weight", type=float, default=1.0, metavar="F", help="of the second's score (default 1)")
    joined.add_argument("--out", required=True, metavar="DIR", help="the folder to write")
    joined.add_argument("--overwrite", action="store_true", help="replace DIR if it exists")
    joined.add_argument("--idf", metavar="FILE", help="look FIRST's queries up in this idf.json (inference-free)")
    joined.add_argument("--document-max-length", type=int, metavar="N", help="tokens kept of a document")
    joined.add_argument("--query-max-length", type=int, metavar="N", help="tokens kept of a query")
    joined.add_argument("--dtype", default="float32", metavar="TYPE", help="of weights on disk, as in lsr export")
    group = joined.add_argument_group("bm25")
    group.add_argument("--corpus", nargs="+", metavar="CORPUS",
        help="fit it to these: BEIR folders, .jsonl or .tsv files (plain or .gz), ir-datasets ids")  # fmt: skip
    group.add_argument("--buckets", type=int, metavar="N",
        help=f"columns that stems are hashed to (default {BUCKETS}), so that words of any corpus have one")  # fmt: skip
    group.add_argument("--skip-repeats", action="store_true",
        help="keep the first document of an id that is used twice")  # fmt: skip


def _cloze(options: argparse.Namespace) -> None:
    from lsr.training.cloze import write_cloze

    corpus = lsr.read_corpus(options.corpus, skip_repeats=options.skip_repeats)
    made = write_cloze(
        corpus, options.out, queries=options.queries, seed=options.seed, overwrite=options.overwrite, progress=True
    )
    print(f"{made:,} queries in {options.out}")


def _mine(options: argparse.Namespace) -> None:
    from lsr.corpus import find_file
    from lsr.training.mine import mine_to_file
    from lsr.training.rows import check_training_target
    from lsr.training.texts import document_table, file_key, query_table

    check_training_target(options.out)
    mining = _mining_options(options)
    home = Path(options.collection)
    qrels = lsr.read_qrels(home / "qrels" / f"{options.split}.tsv")
    corpus = lsr.read_corpus(home, skip_repeats=options.skip_repeats)
    with cache_of(options) as cache:
        queries = query_table(cache, home, skip_repeats=options.skip_repeats)
        documents = document_table(cache, corpus)
        more: dict[str, Any] = {"text_of": lambda doc_id: documents.text(int(documents.rows_of([doc_id])[0]))}
        if options.teacher:
            more["teacher"] = _filter_teacher(options, queries, documents, cache)
        if options.run:
            key, search = f"run {file_key(Path(options.run))}", _rankings_of_run(options.run)
        elif options.dense:
            key, search, more["positive_scores"] = _searching_dense(
                options, queries, list(qrels), mining.ranks[1], documents, cache
            )
        else:
            retriever = _retriever_of(options, corpus)
            key = f"search {retriever.index.encoder_fingerprint}"
            search, more["positive_scores"] = _searching(retriever, queries, list(qrels), mining, documents)
        key += f" {options.teacher} {file_key(find_file(home, 'corpus.jsonl'))} {options.split}"
        report = mine_to_file(options.out, search, qrels, mining, key=key, **more)
    print(f"{report}\nin {options.out}")


def _mining_options(options: argparse.Namespace) -> "MiningOptions":
    from lsr.training.mine import MiningOptions

    first, dash, last = options.ranks.partition("-")
    if not (dash and first.isdecimal() and last.isdecimal()):
        raise InputError(f"--ranks {options.ranks!r} is no rank window: write it like 10-200")
    if options.teacher_ratio is not None and not options.teacher:
        raise InputError("--teacher-ratio needs --teacher")
    searches = {"--model": options.model, "--index": options.index, "--vectors": options.vectors}
    given = [name for name, value in searches.items() if value]
    alone = [name for name, value in {"--run": options.run, "--dense": options.dense}.items() if value]
    if alone and len(alone) + len(given) > 1:
        raise InputError(f"{alone[0]} says already who ranks: leave {', '.join([*alone[1:], *given])} out")
    if not alone and not given:
        raise InputError(
            "name who searches: --model MODEL, --dense TEACHER, --index DIR, or --run FILE for rankings that are there"
        )
    of_a_model = [name for name in ("idf", "query_model", *OF_A_MODEL) if name != "device"]  # which teachers take, too
    unused = [f"--{name.replace('_', '-')}" for name in of_a_model if getattr(options, name) is not None]
    if unused and not options.model:
        raise InputError(f"{', '.join(unused)} without --model says nothing: leave it out")
    if options.index and options.vectors:
        raise InputError("--vectors is for building an index: leave it out where --index names one")
    wanted = 24 if options.negatives is None else options.negatives
    return MiningOptions(
        ranks=(int(first), int(last)),
        negatives=wanted or None,
        margin=options.margin,
        relative_margin=options.relative_margin,
        teacher_ratio=(options.teacher_ratio or 0.95) if options.teacher else None,
        drop_self=options.drop_self,
        seed=options.seed,
    )


def _retriever_of(options: argparse.Namespace, corpus: "lsr.Corpus") -> "Retriever":
    encoder = encoder_of(options) if options.model else None
    if options.index:
        return lsr.Retriever.open(options.index, encoder if isinstance(encoder, lsr.Encoder) else None)
    if encoder is None:
        raise InputError("--vectors needs --model: the encoder whose vectors they are")
    unplanned = lsr.BuildOptions(plan_queries=0)  # all searches are exact
    return lsr.Retriever.build(corpus, encoder, options=unplanned, vectors=options.vectors, progress=True)


def _searching(
    retriever: "Retriever", queries: "TextTable", query_ids: list[str], mining: "MiningOptions", documents: "TextTable"
) -> tuple[Callable[[int], Iterator[tuple[str, Ranking]]], "PairScorer"]:
    """Rankings of the queries from a position on, a chunk of them at a time; and scores of single documents."""
    rows = _rows_of(queries, query_ids)
    depth = min(mining.ranks[1], len(documents))

    def search(done: int) -> Iterator[tuple[str, Ranking]]:
        with tqdm(total=len(query_ids), initial=done, desc="mining", unit=" queries", disable=None) as bar:
            for start in range(done, len(query_ids), QUERIES_AT_A_TIME):
                names = query_ids[start : start + QUERIES_AT_A_TIME]
                texts = [queries.text(int(row)) for row in rows[start : start + QUERIES_AT_A_TIME]]
                yield from retriever.search_many(texts, depth, exact=True).to_run(names).items()
                bar.update(len(names))

    def score(names: Sequence[str], lists: Sequence[Sequence[str]]) -> list[Any]:
        vectors = retriever.encode_queries([queries.text(int(row)) for row in queries.rows_of(names)])
        return [
            np.array([_score(retriever, vectors[[i]], doc_id) for doc_id in ids], dtype=np.float32)
            for i, ids in enumerate(lists)
        ]

    return search, score


def _score(retriever: "Retriever", query: Any, doc_id: str) -> float:
    return sum(match.contribution for match in retriever.index.explain(query, doc_id))


def _rankings_of_run(path: str) -> Callable[[int], Iterator[tuple[str, Ranking]]]:
    from itertools import islice

    from lsr.training.mine import stream_run

    return lambda done: islice(stream_run(path), done, None)


def _searching_dense(
    options: argparse.Namespace,
    queries: "TextTable",
    query_ids: list[str],
    depth: int,
    documents: "TextTable",
    cache: Path,
) -> tuple[str, Callable[[int], Iterator[tuple[str, Ranking]]], "PairScorer"]:
    """What tells the search from others, its rankings from a position on, and scores of single documents."""
    from lsr.training.dense_search import dense_rankings, require_dense
    from lsr.training.teachers import VectorTeacher, by_ids, load_teacher

    rows = _rows_of(queries, query_ids)
    teacher = cast(
        "VectorTeacher", load_teacher(options.dense, options.dense, queries, documents, cache, device=options.device)
    )
    require_dense(teacher)

    def search(done: int) -> Iterator[tuple[str, Ranking]]:
        found = dense_rankings(teacher, rows, documents, query_ids, depth, done=done, device=options.device)
        return iter(tqdm(found, total=len(query_ids), initial=done, desc="mining", unit=" queries", disable=None))

    return f"dense {teacher.identity}", search, by_ids(teacher, queries, documents)


def _rows_of(queries: "TextTable", query_ids: list[str]) -> NDArray[np.int64]:
    """Where queries stand in their table."""
    rows = queries.rows_of(query_ids)
    if (rows < 0).any():
        missing = query_ids[int(np.flatnonzero(rows < 0)[0])]
        raise InputError(f"the query {missing!r} of the qrels is not in {queries.name}")
    return rows


def _filter_teacher(
    options: argparse.Namespace, queries: "TextTable", documents: "TextTable", cache: Path
) -> "PairScorer":
    from lsr.training.teachers import by_ids, load_teacher

    teacher = load_teacher("teacher", options.teacher, queries, documents, cache, device=options.device)
    return by_ids(teacher, queries, documents)


def _distill(options: argparse.Namespace) -> None:
    from lsr.training.data import Source, require_scores
    from lsr.training.distillation import (
        ensemble_of,
        positives_first,
        score_rows,
        write_distilled,
        write_manifest,
    )
    from lsr.training.rows import check_training_target
    from lsr.training.score_files import scores_folder
    from lsr.training.teachers import load_teacher

    check_training_target(options.out)
    specs = _named(options.teacher)
    weights = {name: 1.0 for name in specs} | _weights(options.weight, specs)
    with cache_of(options) as cache:
        source = Source(options.training_file, options.collection, skip_repeats=options.skip_repeats)
        tables = source.open(cache)
        scores, identities = {}, {}
        for name, spec in specs.items():
            if spec == "scores":
                require_scores(tables)
                scores[name], identities[name] = tables.rows.scores, {"spec": spec}
                continue
            teacher = load_teacher(name, spec, tables.queries, tables.documents, cache, device=options.device)
            scores[name] = score_rows(tables, teacher, scores_folder(options.out), progress=True)
            identities[name] = {"spec": spec, "identity": teacher.identity}
        normalize = not options.no_normalization
        settings = {"weights": weights, "scale": options.scale, "normalize": normalize}
        write_distilled(tables, scores, options.out, **settings)
        write_manifest(options.out, {"training_file": str(options.training_file), **settings, "teachers": identities})
        for name, values in scores.items():
            first = 100 * positives_first(tables, values)
            print(f"{name}: scores {values.min():.3g} to {values.max():.3g}, a positive first in {first:.1f} %")
        target = ensemble_of(tables, scores, **settings)
        print(f"ensemble: a positive first in {100 * positives_first(tables, target):.1f} %")
    n_candidates = len(tables.rows.candidates)
    print(f"{len(tables.rows):,} queries, {n_candidates:,} scores a teacher, in {options.out}")


def _join(options: argparse.Namespace) -> None:
    from lsr.files import check_target
    from lsr.joined import check_weight, join

    check_target(options.out, overwrite=options.overwrite)
    check_weight(options.weight)
    lengths: dict[str, Any] = {n: getattr(options, n) for n in ("document_max_length", "query_max_length")}
    first = lsr.load_encoder(options.first, **lengths)
    if options.idf:
        idf, length = lsr.read_idf(options.idf, first), options.query_max_length or first.queries.max_length or 256
        first = lsr.inference_free(first, idf, max_length=length)
    joined = join(first, _second_of(options, lengths), options.weight)
    joined.save(options.out, overwrite=options.overwrite, dtype=options.dtype)
    sizes = " + ".join(f"{part.vocabulary_size:,}" for part in joined.parts)
    print(f"{joined.vocabulary_size:,} terms ({sizes}), in {options.out}")


def _second_of(options: argparse.Namespace, lengths: dict[str, Any]) -> "lsr.Encoder":
    of_bm25 = {"--corpus": options.corpus, "--buckets": options.buckets, "--skip-repeats": options.skip_repeats}
    given = [name for name, value in of_bm25.items() if value not in (None, False)]
    if options.second != "bm25":
        if given:
            raise InputError(f"only bm25 is fitted to a corpus: leave {', '.join(given)} out, or join with bm25")
        return lsr.load_encoder(options.second, **lengths)
    if options.corpus is None:
        raise InputError("bm25 is fitted to a corpus: name one with --corpus")
    bm25 = lsr.Bm25(buckets=BUCKETS if options.buckets is None else options.buckets)
    corpora = [lsr.read_corpus(name, skip_repeats=options.skip_repeats) for name in options.corpus]
    return bm25.fit(together(corpora), progress=True)


def _named(given: list[str]) -> dict[str, str]:
    """Teachers by name: NAME=SPEC, or SPEC alone, which is then named by its last part."""
    specs: dict[str, str] = {}
    for text in given:
        name, equals, spec = text.partition("=")
        spec = spec if equals else text
        name = name if equals else Path(text.rpartition(":")[2]).name
        if not spec or not name or "/" in name or name == "distillation":
            raise InputError(f"--teacher {text!r} is not understood: write NAME=TEACHER, as in minilm=models/minilm")
        if name in specs:
            raise InputError(f"two teachers are called {name!r}: give them names, as in a={specs[name]}")
        specs[name] = spec
    return specs


def _weights(given: list[str], specs: dict[str, str]) -> dict[str, float]:
    weights = named_numbers("--weight", given)
    for name in weights:
        if name not in specs:
            raise InputError(f"--weight {name}={weights[name]:g} names no teacher: they are {', '.join(specs)}")
    return weights
