"""Training and encoding against sentence-transformers' SparseEncoder, in one run, turn by turn.

    python tests/benchmarks/bench_training.py --collection ../shared/data/debian-packages --json training.json
    python tests/benchmarks/bench_training.py --device cpu --tiny        # does it run?
    python tests/benchmarks/bench_training.py --encode-only --weights ../shared/models/splade-tiny --encode 64

Random weights: BERT-base, and 6 layers 384 wide. Pairs (short, long description), contrastive loss with in-batch
negatives plus FLOPS on both sides, AdamW, bfloat16 autocast on CUDA. Both systems run inside their own trainer, both
on top of transformers.Trainer; timed are the steps after the first ones, the device synchronized at both ends. Ours
has tokenized the texts before, once, which is timed apart. Encoding: from texts to sparse vectors in host memory.
--encode-only times that alone, with the same weights in both systems, whose vectors are compared first; on a CPU in
CPU time too, for busy machines.
"""

import argparse
import gc
import itertools
import json
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from lsr.corpus import find_file, read_corpus, read_queries
from lsr.methods import build_encoder
from lsr.pretrained import load_encoder
from lsr.run import read_qrels
from lsr.training.config import parse
from lsr.training.train import open_training_set
from lsr.training.trainer import SparseTrainer

SHAPES = {
    "base": {},
    "6-layer": {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536},
    "tiny": {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128},
}
DOCUMENT_LAMBDA, QUERY_LAMBDA = 0.05, 0.01
UNITS = {
    "pairs_per_second": "pairs/s",
    "peak_gib": "GiB peak",
    "documents_per_second": "documents/s",
    "documents_per_cpu_second": "documents/s of CPU time",
    "documents_per_second_bf16": "documents/s (bfloat16)",
    "tokenize_seconds": "s of tokenizing before",
}
Row = dict[str, float]


class Stopwatch(transformers.TrainerCallback):
    """Seconds and peak memory of the steps after the first ``skip``."""

    def __init__(self, skip: int, device: torch.device) -> None:
        self.skip, self.device = skip, device
        self.began = self.seconds = self.peak = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.skip:
            synchronize(self.device)
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            self.began = time.perf_counter()
        if state.global_step == state.max_steps:
            synchronize(self.device)
            self.seconds = time.perf_counter() - self.began
            if self.device.type == "cuda":
                self.peak = torch.cuda.max_memory_allocated() / 2**30

    def result(self, options: argparse.Namespace) -> Row:
        rate = options.steps * options.batch / self.seconds
        return {"pairs_per_second": rate} | ({"peak_gib": self.peak} if self.device.type == "cuda" else {})


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    options = arguments()
    device = torch.device(options.device)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="bench-training-") as name:
        if not options.encode_only:
            options.collection = without_repeats(options.collection, Path(name) / "collection")
        one = bench_encoding if options.encode_only else bench
        results = {shape: one(shape, options, device, Path(name)) for shape in options.models}
    report = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "versions": versions(),
        "options": {key: str(value) for key, value in vars(options).items()},
        "models": results,
    }
    if options.json:
        options.json.write_text(json.dumps(report, indent=2))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(__file__).resolve().parents[3] / "shared"
    parser.add_argument("--collection", type=Path, default=shared / "data" / "debian-packages", help="a BEIR folder")
    parser.add_argument("--tokenizer", type=Path, default=shared / "models" / "splade-tiny", help="one of BERT's kind")
    parser.add_argument("--models", type=lambda text: text.split(","), default=["base", "6-layer"])
    parser.add_argument("--batch", type=int, default=128, help="pairs a step")
    parser.add_argument("--length", type=int, default=256, help="tokens kept of a text")
    parser.add_argument("--steps", type=int, default=30, help="timed steps a turn")
    parser.add_argument("--skip", type=int, default=5, help="steps before them")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--encode", type=int, default=4_096, help="documents encoded a turn")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--encode-only", action="store_true", help="time encoding alone")
    parser.add_argument("--weights", type=Path, help="with --encode-only: a masked-LM folder instead of random weights")
    parser.add_argument("--tiny", action="store_true", help="a smoke test: everything small")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.weights and not options.encode_only:
        parser.error("--weights is for --encode-only")
    if options.weights:
        options.models = [options.weights.name]
    if options.tiny:
        options.models, options.batch, options.length = ["tiny"], 8, 64
        options.steps, options.skip, options.turns, options.encode, options.workers = 3, 1, 2, 64, 0
    return options


def without_repeats(collection: Path, folder: Path) -> Path:
    """A copy of a BEIR folder in which every id is used once: the first document, the first query."""
    (folder / "qrels").mkdir(parents=True)
    with (folder / "corpus.jsonl").open("w") as file:
        for document in read_corpus(collection, skip_repeats=True):
            file.write(json.dumps({"_id": document.id, "title": document.title, "text": document.text}) + "\n")
    with (folder / "queries.jsonl").open("w") as file:
        for query in read_queries(find_file(collection, "queries.jsonl"), skip_repeats=True):
            file.write(json.dumps({"_id": query.id, "text": query.text}) + "\n")
    shutil.copy(collection / "qrels" / "train.tsv", folder / "qrels" / "train.tsv")
    return folder


def versions() -> dict[str, str]:
    import sentence_transformers

    return {module.__name__: module.__version__ for module in (torch, transformers, sentence_transformers)}


def bench(shape: str, options: argparse.Namespace, device: torch.device, scratch: Path) -> dict[str, Any]:
    """Both systems, turn by turn, on one model."""
    model = write_model(scratch / shape, SHAPES[shape], options)
    texts = [document.content for document in read_corpus(options.collection)][: options.encode]
    turns: dict[str, list[Row]] = {"lsr": [], "sentence-transformers": []}
    for turn in range(options.turns):
        for system, run in (("lsr", run_ours), ("sentence-transformers", run_theirs)):
            turns[system].append(run(model, options, device, scratch / f"{shape}-{system}-{turn}", texts))
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
            print(f"{shape:<8} turn {turn + 1} {system:<22} {line(turns[system][-1])}", flush=True)
    for row in turns["lsr"]:  # the first turn tokenizes, later ones find it done
        row["tokenize_seconds"] = turns["lsr"][0]["tokenize_seconds"]
    return summary(shape, turns)


def bench_encoding(shape: str, options: argparse.Namespace, device: torch.device, scratch: Path) -> dict[str, Any]:
    """Both systems encode the same documents with the same weights, turn by turn, after a turn that is not timed."""
    import numpy as np
    from sentence_transformers import SparseEncoder

    model = options.weights or write_model(scratch / shape, SHAPES[shape], options)
    corpus = read_corpus(options.collection, skip_repeats=True)
    texts = [document.content for document in itertools.islice(corpus, options.encode)]
    ours = load_encoder(model, device=device.type, document_max_length=options.length).documents
    theirs = SparseEncoder(str(model), device=device.type)
    theirs.max_seq_length = options.length
    batch = 128 if device.type == "cuda" else 32
    systems: dict[str, Callable[[], Any]] = {
        "lsr": lambda: ours.encode(texts).vectors.toarray(),
        "sentence-transformers": lambda: theirs.encode_document(
            texts, batch_size=batch, show_progress_bar=False, save_to_cpu=True
        ),
    }
    first, second = systems["lsr"](), systems["sentence-transformers"]().to_dense().numpy()
    print(f"{shape}: {len(texts)} documents, max abs difference of weights {np.abs(first - second).max():.2e}")
    systems["lsr"] = lambda: ours.encode(texts)
    turns: dict[str, list[Row]] = {system: [] for system in systems}
    for turn in range(options.turns):
        for system, encode in systems.items():
            began = time.process_time()
            row = {"documents_per_second": len(texts) / seconds(encode, device)}
            if device.type == "cpu":
                row["documents_per_cpu_second"] = len(texts) / (time.process_time() - began)
            turns[system].append(row)
            print(f"{shape:<8} turn {turn + 1} {system:<22} {line(turns[system][-1])}", flush=True)
    return summary(shape, turns)


def summary(shape: str, turns: dict[str, list[Row]]) -> dict[str, Any]:
    """Medians of the turns and their ratios, printed."""
    medians = {s: {key: statistics.median(turn[key] for turn in rows) for key in rows[0]} for s, rows in turns.items()}
    ours, theirs = medians["lsr"], medians["sentence-transformers"]
    ratios = {key: ours[key] / value for key, value in theirs.items()}
    for system, row in medians.items():
        print(f"{shape:<8} median {system:<22} {line(row)}")
    print(
        f"{shape:<8} lsr / sentence-transformers: " + ", ".join(f"{UNITS[k]} {r:.2f}" for k, r in ratios.items()) + "\n"
    )
    return {"median": medians, "ratios": ratios, "turns": turns}


def line(row: Row) -> str:
    return ", ".join(f"{row[key]:,.1f} {unit}" for key, unit in UNITS.items() if key in row)


def write_model(folder: Path, shape: dict[str, int], options: argparse.Namespace) -> Path:
    """A masked-LM checkpoint with random weights."""
    torch.manual_seed(0)
    tokenizer = read_tokenizer(options)
    transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def read_tokenizer(options: argparse.Namespace) -> Any:
    """BERT's own, or one of its kind trained on the collection where it is not there."""
    if options.tokenizer.is_dir():
        return transformers.AutoTokenizer.from_pretrained(options.tokenizer)
    from tokenizers import BertWordPieceTokenizer

    trained = BertWordPieceTokenizer()
    trained.train_from_iterator((document.content for document in read_corpus(options.collection)), vocab_size=30_522)
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, **special)


def run_ours(model: Path, options: argparse.Namespace, device: torch.device, folder: Path, texts: list[str]) -> Row:
    config = parse(
        {
            "backbone": str(model),
            "output": str(folder),
            "encoder": {side: {"head": "mlm", "max_length": options.length} for side in ("queries", "documents")},
            "data": {
                "collection": str(options.collection),
                "skip_repeats": True,
                "cache": str(folder.parent / "cache"),
            },
            "regularizer": {
                "queries": {"name": "flops", "weight": QUERY_LAMBDA},
                "documents": {"name": "flops", "weight": DOCUMENT_LAMBDA},
            },
            "training": {
                "steps": options.skip + options.steps,
                "batch_size": options.batch,
                "log_every": 1_000,
                "workers": options.workers,
                "device": device.type,
            },
        }
    )
    encoder = build_encoder(config.encoder_table, device=device.type)
    began = time.perf_counter()
    trainer = SparseTrainer(encoder, config, open_training_set(config, scored=False), folder, progress=False)
    tokenizing = time.perf_counter() - began
    watch = Stopwatch(options.skip, device)
    trainer.add_callback(watch)
    trainer.train()
    trainer.model.eval()
    result = watch.result(options) | {"tokenize_seconds": tokenizing}
    side: Any = encoder.documents
    result["documents_per_second"] = rate(lambda: side.encode(texts), len(texts), device)
    if device.type == "cuda":
        side.dtype = "bfloat16"
        result["documents_per_second_bf16"] = rate(lambda: side.encode(texts), len(texts), device)
    return result


def run_theirs(model: Path, options: argparse.Namespace, device: torch.device, folder: Path, texts: list[str]) -> Row:
    import datasets
    from sentence_transformers import SparseEncoder, SparseEncoderTrainer, SparseEncoderTrainingArguments
    from sentence_transformers.sparse_encoder.losses import SparseMultipleNegativesRankingLoss, SpladeLoss

    cuda = device.type == "cuda"
    encoder = SparseEncoder(str(model), device=device.type)
    encoder.max_seq_length = options.length
    watch = Stopwatch(options.skip, device)
    trainer = SparseEncoderTrainer(
        model=encoder,
        args=SparseEncoderTrainingArguments(
            output_dir=str(folder),
            max_steps=options.skip + options.steps,
            per_device_train_batch_size=options.batch,
            learning_rate=2e-5,
            bf16=cuda,
            tf32=True if cuda else None,
            use_cpu=not cuda,
            dataloader_num_workers=options.workers,
            dataloader_pin_memory=cuda,
            optim="adamw_torch_fused",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_dict(dict(zip(("anchor", "positive"), pairs(options), strict=True))),
        loss=SpladeLoss(
            model=encoder,
            loss=SparseMultipleNegativesRankingLoss(model=encoder),
            document_regularizer_weight=DOCUMENT_LAMBDA,
            query_regularizer_weight=QUERY_LAMBDA,
        ),
        callbacks=[watch],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    result = watch.result(options)
    batch = 128 if cuda else 32

    def encode() -> None:
        encoder.encode_document(texts, batch_size=batch, show_progress_bar=False, save_to_cpu=True)

    result["documents_per_second"] = rate(encode, len(texts), device)
    if cuda:
        encoder.bfloat16()
        result["documents_per_second_bf16"] = rate(encode, len(texts), device)
    return result


def rate(encode: Callable[[], object], count: int, device: torch.device) -> float:
    """Documents a second, after a run that is not timed."""
    encode()
    return count / seconds(encode, device)


def seconds(encode: Callable[[], object], device: torch.device) -> float:
    """How long a call takes."""
    synchronize(device)
    began = time.perf_counter()
    encode()
    synchronize(device)
    return time.perf_counter() - began


def pairs(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Queries, and a document of each."""
    queries = {query.id: query.text for query in read_queries(find_file(options.collection, "queries.jsonl"))}
    documents = {document.id: document.content for document in read_corpus(options.collection)}
    qrels = read_qrels(options.collection / "qrels" / "train.tsv")
    found = [(queries[query], documents[next(iter(grades))]) for query, grades in qrels.items()]
    return [query for query, _ in found], [document for _, document in found]


if __name__ == "__main__":
    main()
