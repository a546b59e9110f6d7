"""What several test files share: a tiny masked-LM checkpoint, and the real data where it is there."""

import gc
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

SHARED = Path(__file__).resolve().parents[2] / "shared"

# Before anything is loaded, and for the subprocesses of tests, too: the tensors are tiny, and where another process has
# one of the cores, each operation waits for the slowest of its threads. A training of 3 steps took 8 s in place of 1.
# Numba's for ranx, whose parallel loops give torch as many threads: both have one OpenMP.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

WORDS = [
    "a",
    "the",
    "of",
    "and",
    "sparse",
    "dense",
    "vector",
    "vectors",
    "retrieval",
    "index",
    "query",
    "queries",
    "document",
    "documents",
    "learned",
    "search",
    "term",
    "weight",
    "cat",
    "dog",
    "sat",
    "on",
    "mat",
    "bank",
    "river",
    "money",
    "loan",
    "fish",
    "water",
    "boat",
    "tree",
    "##s",
    "##ing",
    "##ed",
    "run",
    "play",
]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real collections and models that stands beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("the real collections (../shared) are not on this machine")
    return SHARED


def tiny_tokenizer(words: list[str] = WORDS) -> Tokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {term: i for i, term in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(special)
    ends = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, ends)
    return tokenizer


def write_checkpoint(folder: Path, *, kind: str = "BertForMaskedLM", seed: int = 0) -> Path:
    """A Hugging Face folder with random weights, saved from the class ``kind``."""
    import torch
    import transformers

    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    config = transformers.BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    model = getattr(transformers, kind)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)  # fresh weights are so small that every logit is near 0
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "unk_token": "[UNK]",
                "pad_token": "[PAD]",
                "cls_token": "[CLS]",
                "sep_token": "[SEP]",
                "mask_token": "[MASK]",
            }
        )
    )
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny masked-LM checkpoint."""
    return write_checkpoint(tmp_path_factory.mktemp("mlm"))


TEXTS = [
    "The cat sat on the mat",
    "Learned sparse retrieval weighs every term of the vocabulary",
    "money in the bank, a loan from the bank",
    "fish in the river water, a boat on the river",
    "queries and documents are sparse vectors",
    "dogs playing and running",
]


@pytest.fixture(autouse=True)
def only_what_is_new_is_searched_for_garbage() -> None:
    """A training collects garbage, which takes 1 to 4 s where that looks at all that was loaded."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def compiled_kernels_are_saved_in_turn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Numba numbers the files of its cache without a lock: two workers could give one number to two signatures."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    import fcntl

    from numba.core.caching import IndexDataCacheFile

    save, lock = IndexDataCacheFile.save, tmp_path_factory.getbasetemp().parent / "numba.lock"
    with lock.open("w") as file, pytest.MonkeyPatch.context() as patch:

        def in_turn(self: IndexDataCacheFile, *arguments: object) -> None:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                save(self, *arguments)
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)

        patch.setattr(IndexDataCacheFile, "save", in_turn)
        yield


@pytest.fixture(autouse=True)
def cache_of_the_test(tmp_path_factory, monkeypatch):
    """Evaluation's cache of vectors and indexes, away from the user's."""
    monkeypatch.setenv("LSR_CACHE", str(tmp_path_factory.mktemp("lsr-cache")))


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny collection to train on, see `tiny_training`."""
    from tiny_training import write_collection

    return write_collection(tmp_path_factory.mktemp("collection") / "c")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny masked language model to start from, see `tiny_training`."""
    from tiny_training import write_model

    return write_model(tmp_path_factory.mktemp("model") / "m")
