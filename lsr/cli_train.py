"""``lsr pretrain | train | average | tune-queries | expand | export``: a masked-LM head, a trained encoder, the mean of
several, a learned query table, expansions, other forms.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsr.cli_options import (
    add_command,
    cache_of,
    cache_option,
    corpora_argument,
    corpus_argument,
    encoder_of,
    json_option,
    model_options,
    named_numbers,
    write_json,
)
from lsr.corpus import read_corpus
from lsr.errors import InputError, optional_import

if TYPE_CHECKING:
    from lsr.training.data import Source


def add_commands(commands: Any) -> None:
    """Add the commands of this module to the parser."""
    _add_pretrain(commands)
    _add_train(commands)
    _add_tune_queries(commands)

    averaged = add_command(commands, "average", _average,
        "Average the weights of encoders that were trained from one start (model soup).",
        "lsr average runs/a/encoder runs/b/encoder --out models/mean")  # fmt: skip
    averaged.add_argument("encoders", nargs="+", metavar="MODEL", help="a folder or hub id; queries are the first's")
    averaged.add_argument("--out", required=True, metavar="DIR", help="the encoder's folder to write")
    averaged.add_argument("--overwrite", action="store_true", help="replace DIR if it exists")

    expand = add_command(commands, "expand", _expand,
        "Write expansions of documents: the heaviest terms that a SPLADE model adds to them.",
        "lsr expand data/medquad --model naver/splade-v3 --terms 50 --out expansions.jsonl.gz")  # fmt: skip
    corpus_argument(expand)
    model_options(expand)
    expand.add_argument("--terms", type=int, default=50, metavar="N", help="at most so many a document (default 50)")
    expand.add_argument("--out", required=True, metavar="FILE", help="the .jsonl or .jsonl.gz to write")

    export = add_command(commands, "export", _export, "Write an encoder as other systems read it.",
        "lsr export runs/mine/encoder mine-st --form sentence-transformers --dtype float16")  # fmt: skip
    export.add_argument("encoder", metavar="MODEL", help="a folder or hub id, as --model of the other commands")
    export.add_argument("out", metavar="DIR", help="the folder to write")
    export.add_argument("--form", required=True, metavar="FORM", help="sentence-transformers, opensearch, onnx or lsr")
    export.add_argument("--dtype", default="float32", metavar="TYPE",
        help="of the weights on disk: float32 (default), float16, bfloat16; int8 with the form lsr")  # fmt: skip
    export.add_argument("--revision", help="revision of a hub id")
    export.add_argument("--overwrite", action="store_true", help="replace DIR if it exists")


def _add_pretrain(commands: Any) -> None:
    pretrain = add_command(commands, "pretrain", _pretrain,
        "Give a body that has none a head for the vocabulary (masked language modelling); resumes where it stopped.",
        "lsr pretrain sentence-transformers/all-MiniLM-L6-v2 data/medquad "
        "--imitate models/splade --out models/body")  # fmt: skip
    pretrain.add_argument("backbone", metavar="BODY", help="a Hugging Face folder, hub id or package:NAME/FOLDER")
    corpora_argument(pretrain)
    pretrain.add_argument("--out", required=True, metavar="DIR", help="the ...ForMaskedLM folder to write")
    pretrain.add_argument("--overwrite", action="store_true", help="replace DIR if it exists")
    pretrain.add_argument("--steps", type=int, default=5_000, metavar="N", help="optimizer steps (default 5,000)")
    pretrain.add_argument("--batch-size", type=int, default=256, metavar="N", help="documents a step (default 256)")
    pretrain.add_argument("--max-length", type=int, default=128, metavar="N", help="tokens read of each (default 128)")
    pretrain.add_argument("--learning-rate", type=float, default=5e-4, metavar="F", help="the highest (default 5e-4)")
    pretrain.add_argument("--mask", type=float, default=0.15, metavar="F", help="share of masked tokens (default .15)")
    pretrain.add_argument("--imitate", metavar="MODEL",
        help="a SPLADE model of the same vocabulary: the head learns its document vectors, too")  # fmt: skip
    pretrain.add_argument("--imitation", type=float, default=1.0, metavar="F", help="weight of that (default 1)")
    pretrain.add_argument("--seed", type=int, default=42, help="of everything random (default 42)")
    pretrain.add_argument("--device", choices=("cpu", "cuda"), help="cpu to stay off a GPU")
    pretrain.add_argument("--skip-repeats", action="store_true",
        help="keep the first document of an id that is used twice")  # fmt: skip
    cache_option(pretrain)
    pretrain.set_defaults(resumes=lambda options: True)


def _add_train(commands: Any) -> None:
    train = add_command(commands, "train", _train,
        "Train an encoder; goes on with a run of the same config that was interrupted.",
        "lsr train configs/splade-max.toml training.steps=50 backbone=../shared/models/splade-tiny")  # fmt: skip
    train.add_argument("config", metavar="CONFIG", help="a TOML file (configs/, docs/training.md)")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="keys to change, such as loss.temperature=2")
    train.add_argument("--dry-run", action="store_true", help="print what would be done, and stop")
    json_option(train)
    train.set_defaults(resumes=lambda options: True)


def _add_tune_queries(commands: Any) -> None:
    tune = add_command(commands, "tune-queries", _tune_queries,
        "Learn the query table of an inference-free encoder; documents stay what they are.",
        "lsr tune-queries lsr-tiny data/medquad data/squad-train=mined.jsonl.gz --out models/tuned")  # fmt: skip
    tune.add_argument("encoder", metavar="MODEL", help="a folder or hub id whose queries are looked up in a table")
    tune.add_argument("sources", nargs="+", metavar="COLLECTION[=FILE]",
        help="BEIR folder, its qrels/train.tsv or a training FILE (docs/distillation.md)")  # fmt: skip
    tune.add_argument("--out", required=True, metavar="DIR", help="the encoder's folder to write")
    tune.add_argument("--overwrite", action="store_true", help="replace DIR if it exists")
    tune.add_argument("--shrinkage", type=float, default=10.0, metavar="F",
        help="how strongly a weight is held where it was, as so many queries (default 10)")  # fmt: skip
    tune.add_argument("--candidates", type=int, default=64, metavar="N",
        help="best-ranked documents that a query is compared over (default 64)")  # fmt: skip
    tune.add_argument("--queries", type=int, default=20_000, metavar="N",
        help="at most so many of a collection (default 20,000; 0 for all)")  # fmt: skip
    tune.add_argument("--weight", action="append", default=[], metavar="COLLECTION=F",
        help="of the queries of a collection, by its folder's name (default 1)")  # fmt: skip
    tune.add_argument("--seed", type=int, default=0, help="of the choice of queries (default 0)")
    tune.add_argument("--document-max-length", type=int, metavar="N", help="tokens of a document that are learned from")
    tune.add_argument("--dtype", default="float32", metavar="TYPE", help="of weights on disk, as in lsr export")
    tune.add_argument("--device", help="cpu, cuda, … (default: cuda where there is one)")
    tune.add_argument("--skip-repeats", action="store_true",
        help="keep the first document or query of an id that is used twice")  # fmt: skip
    cache_option(tune)
    tune.set_defaults(resumes=lambda options: True)


def _export(options: argparse.Namespace) -> None:
    from lsr.export import export_encoder
    from lsr.pretrained import load_encoder

    encoder = load_encoder(options.encoder, revision=options.revision)
    export_encoder(encoder, options.out, options.form, overwrite=options.overwrite, dtype=options.dtype)
    print(f"{options.form} encoder in {options.out}")


def _pretrain(options: argparse.Namespace) -> None:
    for module in ("torch", "transformers", "accelerate", "safetensors"):
        optional_import(module, "train", "training an encoder")
    from lsr.pretrained import load_encoder
    from lsr.training.pretrain import PretrainOptions, pretrain

    fields = ("steps", "batch_size", "max_length", "learning_rate", "mask", "imitation", "seed")
    chosen = PretrainOptions(**{name: getattr(options, name) for name in fields})
    corpora = [read_corpus(name, skip_repeats=options.skip_repeats) for name in options.corpora]
    imitated = load_encoder(options.imitate, device=options.device) if options.imitate else None
    with cache_of(options) as cache:
        last = pretrain(
            options.backbone, corpora, chosen, options.out,
            imitated=imitated, cache=cache, device=options.device, overwrite=options.overwrite, progress=True,
        )  # fmt: skip
    print(f"loss {last['loss']:.3f} at the end, in {options.out}")


def _train(options: argparse.Namespace) -> None:
    for module in ("torch", "transformers", "accelerate", "safetensors"):
        optional_import(module, "train", "training an encoder")
    from lsr.training.config import load_config
    from lsr.training.train import check, plan, resumable, train

    config = load_config(options.config, options.overrides)
    checkpoint = resumable(config)
    print(plan(config), file=sys.stderr)
    if checkpoint is not None:
        print(f"resuming    {checkpoint}", file=sys.stderr)
    if options.dry_run:
        check(config)
        return
    run = train(config)
    if options.json:
        write_json(options.json, {"encoder": str(run.folder), "steps": run.steps, "metrics": run.metrics})
        return
    for name in ("ndcg@10", "mrr@10", "recall@100", "queries_nnz", "documents_nnz"):
        if name in run.metrics:
            print(f"{name:<14} {run.metrics[name]:.4f}")
    print(f"{'encoder':<14} {run.folder}")


def _tune_queries(options: argparse.Namespace) -> None:
    for module in ("torch", "safetensors"):
        optional_import(module, "train", "learning from training files")
    from lsr.files import check_target
    from lsr.pretrained import load_encoder
    from lsr.training.query_table import TuningOptions, tune_queries

    check_target(options.out, overwrite=options.overwrite)
    tuning = TuningOptions(options.shrinkage, options.candidates, queries=options.queries or None, seed=options.seed)
    sources = _sources(options)
    lengths = {"document_max_length": options.document_max_length}
    encoder = load_encoder(options.encoder, device=options.device, **lengths)
    with cache_of(options) as cache:
        tuned = tune_queries(encoder, sources, tuning, cache=cache, progress=True)
    kept = load_encoder(options.encoder, device="cpu") if options.document_max_length else encoder
    kept.adjusted(tuned.changes).save(options.out, overwrite=options.overwrite, dtype=options.dtype)
    changed = int((abs(tuned.changes) > 0.01).sum())
    print(f"{tuned.queries:,} queries: loss {tuned.before:.4f} before, {tuned.after:.4f} after")
    print(f"{changed:,} weights changed by more than .01, in {options.out}")


def _sources(options: argparse.Namespace) -> "list[Source]":
    """The sources that COLLECTION[=FILE] and --weight name."""
    from lsr.training.data import Source

    weights = named_numbers("--weight", options.weight)
    sources = []
    for text in options.sources:
        home, _, file = text.partition("=")
        path = Path(file) if file else Path(home) / "qrels" / "train.tsv"
        weight = weights.get(Path(home).name, 1.0)
        sources.append(Source(path, home, weight=weight, skip_repeats=options.skip_repeats))
    for name in weights.keys() - {Path(text.partition("=")[0]).name for text in options.sources}:
        raise InputError(f"--weight names {name!r}, which is none of the collections' folders")
    return sources


def _average(options: argparse.Namespace) -> None:
    from lsr.files import check_target
    from lsr.pretrained import load_encoder
    from lsr.training.average import average

    check_target(options.out, overwrite=options.overwrite)
    if len(options.encoders) < 2:
        raise InputError("an average needs two encoders at least")
    encoder = average([load_encoder(name, device="cpu") for name in options.encoders])
    encoder.save(options.out, overwrite=options.overwrite)
    print(f"mean of {len(options.encoders)} encoders in {options.out}")


def _expand(options: argparse.Namespace) -> None:
    from lsr.encoder import Encoder
    from lsr.expansion import mlm_expansions, write_expansions
    from lsr.files import check_file_target

    if options.terms < 1:
        raise InputError(f"--terms must be 1 or more: got {options.terms}")
    check_file_target(options.out)
    encoder = encoder_of(options)
    if not isinstance(encoder, Encoder):
        raise InputError("bm25 adds no terms to a document: name a SPLADE model")
    corpus = read_corpus(options.corpus, skip_repeats=options.skip_repeats)
    count = write_expansions(options.out, corpus, mlm_expansions(encoder, options.terms), progress=True)
    print(f"{count:,} expansions in {options.out}")
