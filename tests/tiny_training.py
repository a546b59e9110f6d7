"""A small collection of made-up texts in BEIR layout, and configs over a tiny random model."""

import json
from pathlib import Path

import numpy as np
from conftest import TEXTS, WORDS, tiny_tokenizer

import lsr
from lsr.training.config import TrainConfig, parse

#: A validation on all of the small collection.
VALIDATION = {"queries": 12, "documents": 0}
TOPICS = [word for word in WORDS if not word.startswith("##")]


def write_collection(folder: Path, n: int = 24, seed: int = 0) -> Path:
    """N documents of random words, a query of three words of each, judgments, and a file with scored negatives."""
    rng = np.random.default_rng(seed)
    (folder / "qrels").mkdir(parents=True)
    texts = [[str(word) for word in rng.choice(TOPICS, size=rng.integers(4, 20))] for _ in range(n)]
    with (folder / "corpus.jsonl").open("w") as corpus, (folder / "queries.jsonl").open("w") as queries:
        for i, words in enumerate(texts):
            corpus.write(json.dumps({"_id": f"d{i}", "title": "", "text": " ".join(words)}) + "\n")
            queries.write(json.dumps({"_id": f"q{i}", "text": " ".join(words[:3])}) + "\n")
    for split, first, last in (("train", 0, n), ("dev", 0, n // 2)):
        rows = "".join(f"q{i}\td{i}\t1\n" for i in range(first, last))
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    with (folder / "scored.jsonl").open("w") as rows:
        for i in range(n):
            negatives = [f"d{j}" for j in rng.choice([j for j in range(n) if j != i], size=4, replace=False)]
            scores = {f"d{i}": 1.0} | {doc_id: float(rng.random() / 2) for doc_id in negatives}
            row = {"query_id": f"q{i}", "positives": [f"d{i}"], "negatives": negatives, "scores": scores}
            rows.write(json.dumps(row) + "\n")
    return folder


def write_model(folder: Path, *, dropout: float = 0.0, kind: str = "BertForMaskedLM", seed: int = 0) -> Path:
    """A tiny random checkpoint that can be trained: weights of a fresh BERT, some ten times larger."""
    import torch
    import transformers

    tokenizer = tiny_tokenizer()
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        initializer_range=0.2,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    getattr(transformers, kind)(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {
        name: f"[{name[:-6].upper()}]" for name in ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    }
    fields = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    return folder


def tiny_config(folder: Path, collection: Path, model: Path, **changes: dict | str) -> TrainConfig:
    """SPLADE-max on the tiny model; ``changes`` are merged into the tables. Warm-ups end with the training."""
    training: dict = {"steps": 8} | dict(changes.get("training", {}))
    flops = {"name": "flops", "weight": 0.01, "warmup": min(4, training["steps"])}
    fields: dict = {
        "backbone": str(model),
        "output": str(folder / "run"),
        "encoder": {"documents": {"head": "mlm", "max_length": 32}, "queries": {"head": "mlm", "max_length": 16}},
        "data": {"collection": str(collection)},
        "regularizer": {"queries": flops, "documents": flops},
        "training": {
            "steps": 8,
            "batch_size": 4,
            "learning_rate": 1e-3,
            "warmup": min(2, training["steps"]),
            "log_every": 1,
            "workers": 0,
            "device": "cpu",
        },
    }
    for name, change in changes.items():
        fields[name] = fields.get(name, {}) | change if isinstance(change, dict) else change
    return parse(fields)


def losses(run):
    """The loss of each log line."""
    return [line["loss"] for line in run.history if "loss" in line]


def vectors(folder):
    """What a saved encoder makes of some texts. (Weights without any effect, such as the biases of attention keys, have
    gradients of rounding alone, which Adam makes as large as the others': they differ between equal trainings.)
    """
    encoder = lsr.load_encoder(folder, device="cpu")
    return np.vstack([side.encode(TEXTS[:4]).vectors.toarray() for side in (encoder.documents, encoder.queries)])
