"""``lsr bench | mixture``: our index beside its peers, and vectors enough for it."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lsr
from lsr.cli_options import add_command, encoder_of, json_option, model_options, write_json
from lsr.errors import FormatError, InputError
from lsr.files import check_file_target, replacing, write_whole

if TYPE_CHECKING:
    from scipy.sparse import csr_array

#: Queries beyond those that are asked, for builds that want a sample.
SAMPLE = 1000
VECTORS = "an .npz with indptr, indices and data, or a folder of lsr encode"


def add_commands(commands: Any) -> None:
    """Add the commands of this module to the parser."""
    bench = add_command(commands, "bench", _bench, "Time our index and its peers on the same vectors, in one run.",
        "lsr bench --vectors docs.npz --queries queries.npz --json bench.json --plot bench.png")  # fmt: skip
    source = bench.add_argument_group("what is searched: one of these three (docs/benchmarks.md)")
    source.add_argument("--vectors", metavar="FILE_OR_DIR", help=f"document vectors: {VECTORS}")
    source.add_argument("--queries", metavar="FILE_OR_DIR", help="query vectors, as --vectors")
    source.add_argument("--collection", metavar="NAME_OR_DIR", help="encode this collection with --model first")
    source.add_argument("--text", metavar="NAME_OR_DIR", help="from text to hits on this collection, against bm25s")
    source.add_argument("--split", help="of --collection and --text: which queries (default: test)")
    source.add_argument("--keep", metavar="DIR", help="folder where encoded vectors are kept, and found again")
    source.add_argument("--documents", type=int, metavar="N", help="use the first N documents only")
    source.add_argument("--questions", type=int, metavar="N", default=1000, help="use the first N queries (1000)")
    how = bench.add_argument_group("how")
    how.add_argument(
        "--systems", metavar="A,B", help="only these, such as lsr,pyvsag (default: all that are installed)"
    )
    how.add_argument("--sweep", metavar="FILE", help="JSON of build and search settings by system, instead of ours")
    how.add_argument("-k", type=int, default=10, help="hits a query, and the depth of recall (default 10)")
    how.add_argument("--block", type=int, default=50, metavar="N", help="queries a turn (default 50)")
    how.add_argument("--threads", type=int, default=1, metavar="N", help="threads of a build (default 1); searches: 1")
    how.add_argument("--batch-threads", type=int, default=1, metavar="N",
        help="also search all queries in one call on N threads, and on one")  # fmt: skip
    how.add_argument("--core", type=int, metavar="N", help="core that searches run on (default: the first)")
    how.add_argument("--peer-python", metavar="FILE", default=sys.executable,
        help="Python interpreter that has the peers (default: this one)")  # fmt: skip
    how.add_argument("--plot", metavar="FILE", help="draw the recall-latency curve as a PNG")
    how.add_argument("--markdown", metavar="FILE", help="write the table as Markdown")
    json_option(bench)
    model_options(bench, required=False)

    mixture = add_command(commands, "mixture", _mixture, "Make more document vectors by recombining real ones.",
        "lsr mixture docs.npz --documents 1000000 --out docs-1m.npz --queries queries.npz")  # fmt: skip
    mixture.add_argument("vectors", metavar="FILE_OR_DIR", help=f"document vectors: {VECTORS}")
    mixture.add_argument(
        "--documents", type=int, required=True, metavar="N", help="documents wanted, the real ones first"
    )
    mixture.add_argument("--out", required=True, metavar="FILE", help="the .npz to write")
    mixture.add_argument("--queries", metavar="FILE_OR_DIR", help="check lists and scores with these query vectors")
    mixture.add_argument("--seed", type=int, default=0, help="of the random choices (default 0)")
    json_option(mixture)


def load_vectors(path: str) -> "csr_array":
    """Document or query vectors: an .npz of a CSR's indptr, indices and data (and shape), or a folder of lsr encode.

    Raises:
        InputError: there is no such file, or it holds no vectors.
        FormatError: it is no .npz of these arrays.
    """
    import zipfile

    import numpy as np
    from scipy.sparse import csr_array

    from lsr.encoding import read_vectors
    from lsr.vectors import check_vectors

    if Path(path).is_dir():
        return csr_array(read_vectors(path).vectors)
    if not Path(path).is_file():
        raise InputError(f"{path} does not exist: name {VECTORS}")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            indptr, indices, data = (arrays[part] for part in ("indptr", "indices", "data"))
            shape = tuple(arrays["shape"].tolist()) if "shape" in arrays else None
    except (ValueError, KeyError, OSError, AttributeError, zipfile.BadZipFile) as error:
        raise FormatError(f"{path} is not an .npz with indptr, indices and data: {error}") from error
    shape = shape or (len(indptr) - 1, int(indices.max()) + 1 if len(indices) else 1)
    return check_vectors(csr_array((data.astype(np.float32), indices.astype(np.int32), indptr), shape=shape))


def same_width(*parts: "csr_array") -> list["csr_array"]:
    """Vectors with the columns of the widest."""
    from scipy.sparse import csr_array

    width = max(part.shape[1] for part in parts)
    return [csr_array((part.data, part.indices, part.indptr), shape=(part.shape[0], width)) for part in parts]


def _bench(options: argparse.Namespace) -> None:
    from lsr.eval.bench_report import write_results

    given = [name for name in ("vectors", "collection", "text") if getattr(options, name)]
    if given not in (["vectors"], ["collection"], ["text"], ["vectors", "text"]):
        raise InputError("give --vectors with --queries, or --collection with --model, or --text with --model")
    for target in (options.plot, options.markdown):
        if target:
            check_file_target(target)
    results, table = (_text if options.text else _vectors)(options)
    if options.json:
        if options.json == "-":
            write_json("-", results)
            return
        write_results(options.json, results)
    if options.markdown:
        with replacing(options.markdown) as file:
            file.write(table)
    print(table, end="")


def _vectors(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from lsr.eval.bench import run_benchmark
    from lsr.eval.bench_report import markdown, plot
    from lsr.eval.sweeps import SWEEPS

    if options.plot:
        _need_matplotlib()
    sweeps, missing = _sweeps(options, SWEEPS)
    if options.collection:
        documents, queries = _encoded(options)
    elif options.queries and not options.model:
        documents, queries = load_vectors(options.vectors), load_vectors(options.queries)
    else:
        raise InputError("--vectors goes with --queries and without --model: the vectors are there already")
    asked, more = queries[: options.questions], queries[options.questions :][:SAMPLE]
    documents, asked, more = same_width(documents[: options.documents], asked, more)
    name = options.collection or Path(options.vectors).name
    how = {**_how(options), "batch_threads": options.batch_threads}
    results = run_benchmark(documents, asked, sweeps, name=name, sample=more, **how)
    results["missing"] = missing
    if options.plot:
        plot(results, options.plot)
    return results, markdown(results)


def _text(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from lsr.eval.bench_text import run_text_benchmark, text_markdown
    from lsr.eval.datasets import load_dataset
    from lsr.eval.sweeps import TEXT_SWEEPS

    if options.plot or options.queries or options.documents:
        raise InputError("--text asks the collection's own queries of all its documents, and draws no curve: leave "
            "--queries, --documents and --plot out")  # fmt: skip
    encoder = _encoder(options)
    sweeps, missing = _sweeps(options, TEXT_SWEEPS)
    dataset = load_dataset(options.text, options.split, skip_repeats=options.skip_repeats)
    if options.vectors:
        vectors = load_vectors(options.vectors)
        wider = encoder.vocabulary_size - vectors.shape[1]
        vectors.resize((vectors.shape[0], vectors.shape[1] + max(0, wider)))
    else:
        vectors = _documents(dataset, encoder, options)
    results = run_text_benchmark(dataset, encoder, vectors, sweeps, n_queries=options.questions, **_how(options))
    results["missing"] = missing
    return results, text_markdown(results)


def _how(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "k": options.k,
        "block": options.block,
        "threads": options.threads,
        "core": options.core,
        "python": options.peer_python,
        "say": lambda line: print(line, file=sys.stderr, flush=True),
    }


def _sweeps(options: argparse.Namespace, known: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The settings to run by system, and the systems that would be run but are not installed."""
    from lsr.eval.bench import OURS, installed

    sweeps = {**known, **_read_sweep(options.sweep, known)} if options.sweep else known
    wanted = options.systems.split(",") if options.systems else list(known)
    if unknown := set(wanted) - set(known):
        raise InputError(f"--systems: there is no {', '.join(sorted(unknown))}: choose from {', '.join(known)}")
    versions = installed([name for name in wanted if name not in OURS], options.peer_python)
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        print(
            f"note: not installed, and left out: {', '.join(missing)} (pip install 'learned-sparse-retrieval[bench]')",
            file=sys.stderr,
        )
    return {name: sweeps[name] for name in wanted if name not in missing}, missing


def _read_sweep(path: str, known: dict[str, Any]) -> dict[str, Any]:
    try:
        sweep = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: name a JSON file of settings (docs/benchmarks.md)") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FormatError(f"{path} is not valid JSON: {error}") from error
    entries = [entry for part in sweep.values() for entry in part] if isinstance(sweep, dict) else [None]
    if not all(
        isinstance(entry, dict) and entry.keys() == {"build", "search"} and isinstance(entry["search"], list)
        for entry in entries
    ):
        raise FormatError(f'{path} must map systems to lists of {{"build": {{…}}, "search": [{{…}}, …]}}')
    if unknown := set(sweep) - set(known):
        raise InputError(f"{path}: there is no system {', '.join(sorted(unknown))}: choose from {', '.join(known)}")
    checked: dict[str, Any] = sweep
    return checked


def _encoder(options: argparse.Namespace) -> "lsr.Encoder":
    if not options.model or options.model == "bm25":
        raise InputError("name the model of the document vectors: --model MODEL (not bm25)")
    encoder = encoder_of(options)
    if not isinstance(encoder, lsr.Encoder):
        raise InputError("name the model of the document vectors: --model MODEL (not bm25)")
    return encoder


def _documents(dataset: Any, encoder: "lsr.Encoder", options: argparse.Namespace) -> "csr_array":
    from lsr.encoding import encode_corpus

    folder = Path(options.keep, "documents") if options.keep else None
    return encode_corpus(dataset.corpus, encoder, folder, progress=True).vectors


def _encoded(options: argparse.Namespace) -> tuple["csr_array", "csr_array"]:
    """A collection's documents and queries, encoded once where --keep names a folder."""
    from lsr.encoding import encode_corpus
    from lsr.eval.datasets import load_dataset

    encoder = _encoder(options)
    dataset = load_dataset(options.collection, options.split, skip_repeats=options.skip_repeats)
    texts = [lsr.Document(query.id, query.text) for query in dataset.queries]
    side = lsr.Encoder(encoder.queries, encoder.queries)
    folder = Path(options.keep, "queries") if options.keep else None
    queries = encode_corpus(texts, side, folder, progress=True).vectors
    return _documents(dataset, encoder, options), queries


def _need_matplotlib() -> None:
    from lsr.errors import optional_import

    optional_import("matplotlib", "bench", "drawing a curve")


def _mixture(options: argparse.Namespace) -> None:
    import numpy as np

    from lsr.eval.mixture import check, recombine

    check_file_target(options.out)
    real = load_vectors(options.vectors)
    made = recombine(real, options.documents, seed=options.seed, progress=True)
    halves = made.data.astype(np.float16)
    arrays = {
        "indptr": made.indptr.astype(np.int64),
        "indices": made.indices.astype(np.uint16 if made.shape[1] <= 2**16 else np.int32),
        "data": halves if np.array_equal(halves, made.data) else made.data,
        "shape": np.array(made.shape),
    }
    write_whole(options.out, lambda file: np.savez(file, **arrays))
    print(f"{made.shape[0]:,} documents of {made.nnz / made.shape[0]:.0f} terms in {options.out}")
    if options.queries:
        real, made, queries = same_width(real, made, load_vectors(options.queries)[:100])
        report = check(made, real, queries)
        if options.json:
            write_json(options.json, report)
        if options.json != "-":
            for name, value in report.items():
                print(f"  {name.replace('_', ' ')}: {value}")
