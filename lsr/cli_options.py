"""What the commands share: groups of options, and the objects that they name."""

import argparse
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lsr
from lsr.corpus import read_queries
from lsr.errors import InputError
from lsr.files import replacing

if TYPE_CHECKING:
    from lsr.bm25 import Bm25
    from lsr.corpus import Corpus
    from lsr.encoder import Encoder

#: Options of `model_options` that bm25 does not take.
OF_A_MODEL = ("document_max_length", "query_max_length", "revision", "device", "dtype")

#: What names a corpus.
A_CORPUS = "BEIR folder, .jsonl or .tsv file (plain or .gz), ir-datasets id"


def add_command(commands: Any, name: str, run: Any, description: str, example: str) -> argparse.ArgumentParser:
    """A command's parser, with an example below its options."""
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


def corpus_argument(command: argparse.ArgumentParser) -> None:
    """The argument CORPUS, what `lsr.read_corpus` takes."""
    command.add_argument("corpus", metavar="CORPUS", help=A_CORPUS)


def corpora_argument(command: argparse.ArgumentParser) -> None:
    """The argument CORPUS… of a command that takes several at once."""
    command.add_argument("corpora", nargs="+", metavar="CORPUS", help=A_CORPUS)


def expansions_option(command: argparse.ArgumentParser) -> None:
    """The option --expansions; see `corpus_of`."""
    command.add_argument(
        "--expansions", metavar="FILE", help="encode documents with their expansions (lsr expand) behind their texts"
    )


def corpus_of(options: argparse.Namespace) -> "Corpus":
    """The corpus that CORPUS names, its documents expanded where --expansions says so."""
    from lsr.expansion import expand

    corpus = lsr.read_corpus(options.corpus, skip_repeats=options.skip_repeats)
    return corpus if options.expansions is None else expand(corpus, options.expansions)


def model_options(command: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Options that name an encoder; see `encoder_of`."""
    command.add_argument(
        "--skip-repeats", action="store_true", help="keep the first document or query of an id that is used twice"
    )
    group = command.add_argument_group("encoder")
    group.add_argument("--model", required=required, metavar="MODEL",
        help='"bm25", "lsr-tiny", a folder (of lsr, Hugging Face, sentence-transformers), or a hub id')  # fmt: skip
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
    group.add_argument(
        "--dtype", metavar="TYPE", help="a transformer multiplies in float32 (default), bfloat16, float16"
    )


def build_options(command: argparse.ArgumentParser) -> None:
    """Options of building an index; see `index_options`."""
    group = command.add_argument_group("index (docs/parameters.md)")
    group.add_argument(
        "--vectors",
        metavar="DIR",
        help="keep the encoded vectors here, and use those that are here",
    )
    group.add_argument("--weights", metavar="KIND", help="auto (default), float16 or float32")
    group.add_argument("--dense-share", type=float, metavar="F", help="lists with this share of documents are dense")
    group.add_argument("--seismic", action="store_true", help="build blocks too, for --query-cut and --heap-factor")
    group.add_argument("--lossless", action="store_true", help="blocks with nothing pruned")
    group.add_argument("--n-postings", type=int, metavar="N", help="blocks: postings kept per term, as a mean")
    group.add_argument("--centroid-fraction", type=float, metavar="F", help="blocks: number per posting")
    group.add_argument("--summary-energy", type=float, metavar="F", help="blocks: share of a summary's mass kept")
    group.add_argument("--graph", type=int, metavar="N", help="blocks: most similar documents kept of each document")
    group.add_argument("--threads", type=int, metavar="N", help="threads (default: one per core)")


def search_options(command: argparse.ArgumentParser) -> None:
    """Options of searching; see `search_arguments`."""
    group = command.add_argument_group("search (docs/parameters.md)")
    group.add_argument("--exact", action="store_true", help="miss no document")
    group.add_argument("--recall", type=float, metavar="F", help="let the planner choose for this recall (default .99)")
    group.add_argument("--candidates", type=int, metavar="N", help="by lists: documents scored (default: five a hit)")
    group.add_argument("--query-mass", type=float, metavar="F", help="by lists: share of the query that is walked")
    group.add_argument(
        "--query-cut",
        type=_cut,
        metavar="N",
        help="by blocks: query terms whose lists are walked, or .9 of their weight",
    )
    group.add_argument("--neighbours", type=int, metavar="N", help="by blocks: of each hit, scored too (0: none)")
    group.add_argument(
        "--heap-factor", type=float, metavar="F", help="by blocks: how soon one is skipped, 0 (never) to 2"
    )


def _cut(text: str) -> int | float:
    """A number of terms, or the share of a query's weight that they hold."""
    return float(text) if "." in text else int(text)


def json_option(command: argparse.ArgumentParser) -> None:
    """The option --json."""
    command.add_argument("--json", metavar="FILE", help="write the result as JSON; - for stdout")


def cache_option(command: argparse.ArgumentParser) -> None:
    """The option --cache; see `cache_of`."""
    command.add_argument("--cache", metavar="DIR", help="keep texts and vectors here for later calls")


@contextmanager
def cache_of(options: argparse.Namespace) -> Iterator[Path]:
    """The folder of --cache; without it one beside the output, deleted when the work is done."""
    out = Path(options.out)
    cache = Path(options.cache) if options.cache else out.with_name(f".{out.name}.cache")
    yield cache
    if not options.cache:
        shutil.rmtree(cache, ignore_errors=True)


def named_numbers(option: str, given: list[str]) -> dict[str, float]:
    """The values of an option that is given as NAME=NUMBER, any number of times."""
    numbers = {}
    for text in given:
        name, _, number = text.partition("=")
        try:
            numbers[name] = float(number)
        except ValueError as error:
            raise InputError(f"{option} {text!r} is not understood: write NAME=NUMBER, as in bm25=.5") from error
    return numbers


def encoder_of(options: argparse.Namespace) -> "Encoder | Bm25":
    """The encoder that --model and its companions name; BM25 is still to be fitted."""
    if options.model == "bm25":
        if any(getattr(options, name) is not None for name in OF_A_MODEL):
            raise InputError("bm25 takes no lengths, revision, device or dtype: leave them out")
        if options.idf or options.query_model:
            raise InputError("--idf and --query-model go with a model, not with bm25, whose queries have their own IDF")
        return lsr.Bm25()
    arguments = {
        "document_max_length": options.document_max_length,
        "query_max_length": options.query_max_length,
        "device": options.device,
        "dtype": options.dtype or "float32",
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


def index_options(options: argparse.Namespace) -> "lsr.BuildOptions":
    """What `build_options` asked for."""
    given = {name: getattr(options, name) for name in ("n_postings", "centroid_fraction", "summary_energy", "graph")}
    changes = {name: value for name, value in given.items() if value is not None}
    if changes and not options.seismic and not options.lossless:
        raise InputError(
            f"{flags(changes)} tune the blocks of an index built with --seismic: add that, or leave them out"
        )
    if "graph" in changes:
        changes["neighbours"] = changes.pop("graph")
    for name in ("weights", "dense_share"):
        if getattr(options, name) is not None:
            changes[name] = getattr(options, name)
    if options.seismic:
        changes["seismic"] = True
    if options.lossless and {"n_postings", "summary_energy"} & changes.keys():
        raise InputError("--lossless prunes nothing: leave --n-postings and --summary-energy out")
    return lsr.BuildOptions.lossless(**changes) if options.lossless else lsr.BuildOptions(**changes)


def build_retriever(corpus: Any, options: argparse.Namespace, path: str | None = None) -> Any:
    """Encode and index a corpus as the options say."""
    sample = getattr(options, "sample", None)
    questions = None if sample is None else list(read_queries(sample, skip_repeats=options.skip_repeats))
    return lsr.Retriever.build(
        corpus,
        encoder_of(options),
        path,
        options=index_options(options),
        vectors=options.vectors,
        threads=options.threads,
        max_memory=options.max_memory,
        sample=questions,
        progress=True,
        overwrite=getattr(options, "overwrite", False),
    )


def search_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of a search from the options."""
    given = {
        name: getattr(options, name)
        for name in ("recall", "candidates", "query_mass", "query_cut", "heap_factor", "neighbours")
    }
    knobs = {name: value for name, value in given.items() if value is not None}
    if options.exact and knobs:
        raise InputError(f"--exact has no knobs: leave {flags(knobs)} out")
    return {"exact": options.exact, **knobs}


def flags(names: Iterable[str]) -> str:
    """Option names as they are typed."""
    return ", ".join("--" + name.replace("_", "-") for name in names)


def write_json(target: str, value: Any) -> None:
    """Write JSON to a file, or to stdout for -."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    if target == "-":
        print(text)
        return
    with replacing(Path(target)) as file:
        file.write(text + "\n")
