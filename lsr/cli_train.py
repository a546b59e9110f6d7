"""``lsr train | expand | export``: from a config to a trained encoder, what some methods train on, other forms."""

import argparse
import sys
from typing import Any

from lsr.cli_options import add_command, corpus_argument, encoder_of, json_option, model_options, write_json
from lsr.corpus import read_corpus
from lsr.errors import InputError, optional_import


def add_commands(commands: Any) -> None:
    """Add the commands of this module to the parser."""
    train = add_command(commands, "train", _train,
        "Train an encoder; goes on with a run of the same config that was interrupted.",
        "lsr train configs/splade-max.toml training.steps=50 backbone=../shared/models/splade-tiny")  # fmt: skip
    train.add_argument("config", metavar="CONFIG", help="a TOML file (configs/, docs/training.md)")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="keys to change, such as loss.temperature=2")
    train.add_argument("--dry-run", action="store_true", help="print what would be done, and stop")
    json_option(train)
    train.set_defaults(resumes=lambda options: True)

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


def _export(options: argparse.Namespace) -> None:
    from lsr.export import export_encoder
    from lsr.pretrained import load_encoder

    encoder = load_encoder(options.encoder, revision=options.revision)
    export_encoder(encoder, options.out, options.form, overwrite=options.overwrite, dtype=options.dtype)
    print(f"{options.form} encoder in {options.out}")


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
