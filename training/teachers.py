"""Teachers: who scores the documents of a query for a student to imitate.

Dense and sparse encoders (BM25 among them) encode each text once, into half-precision vectors on disk,
and score by dot product; what was encoded is there for the next call, and for the next training file.
Cross-encoders read query and document together.
"""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsr.bm25 import Bm25
from lsr.checkpoint import PACKAGE, find_folder
from lsr.encoder import Encoder
from lsr.errors import FormatError, InputError
from lsr.pretrained import load_encoder
from lsr.training.mine import PairScorer
from lsr.training.stores import DenseStore, SparseStore
from lsr.training.texts import TextTable

#: Tokens of a transformer's batch, padding included.
BATCH_TOKENS = {"cpu": 4_096, "cuda": 65_536}


class Teacher(ABC):
    """Scores documents for queries; both are rows of the two tables that the teacher was made for.

    Attributes:
        name: what score files call it.
        identity: equal for two teachers that give equal scores.
    """

    name: str
    identity: str

    @abstractmethod
    def score(self, queries: NDArray[Any], candidates: Sequence[NDArray[Any]]) -> list[NDArray[np.float32]]:
        """Scores of each query's candidates: for rows (b,) and b lists of rows, b arrays of their lengths."""

    def prepare(self, queries: NDArray[Any], documents: NDArray[Any], *, progress: bool = False) -> None:  # noqa: B027
        """Do ahead what is done once per text, for these sorted rows. It can be interrupted and goes on from there."""


class VectorTeacher(Teacher):
    """A teacher whose score is the dot product of a query's and a document's vector."""

    def __init__(self, name: str, queries: DenseStore | SparseStore, documents: DenseStore | SparseStore) -> None:
        self.name = name
        self.identity = f"{queries.identity} {documents.identity}"
        self.queries = queries
        self.documents = documents

    def prepare(self, queries: NDArray[Any], documents: NDArray[Any], *, progress: bool = False) -> None:  # noqa: D102
        for store, rows, what in ((self.queries, queries, "queries"), (self.documents, documents, "documents")):
            store.encode(rows, f"{self.name}: {what}" if progress else None)

    def score(self, queries: NDArray[Any], candidates: Sequence[NDArray[Any]]) -> list[NDArray[np.float32]]:  # noqa: D102
        self.prepare(np.unique(queries), np.unique(np.concatenate(candidates)) if candidates else queries[:0])
        return [
            self.documents.dot(rows, self.queries.vector(int(query)))
            for query, rows in zip(queries, candidates, strict=True)
        ]


class DenseModel:
    """A dense encoder: a transformer, its token states pooled, perhaps normalized.

    Args:
        source: a folder or hub id of a transformer; or a sentence-transformers folder of Transformer,
            Pooling and Normalize, whose settings are then used.
        pooling: "cls" or "mean"; for a sentence-transformers folder None.
        normalize: scale vectors to length 1, so that scores are cosines.
        max_length: tokens kept of a text; by default what the folder says, 512 at most.
        device: by default CUDA where there is one, and there in bfloat16.

    Raises:
        InputError, FormatError: it cannot be found, or is of another kind.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        *,
        pooling: str | None = None,
        normalize: bool = False,
        max_length: int | None = None,
        device: str | None = None,
    ) -> None:
        import torch
        import transformers

        settings = _sentence_transformers_settings(Path(source))
        if pooling is None and settings is None:
            raise InputError(
                f"{source} is no sentence-transformers folder: say how it is pooled (dense-cls, dense-mean)"
            )
        if pooling not in (None, "cls", "mean"):
            raise InputError(f"pooling must be cls or mean: got {pooling!r}")
        found = settings or {}
        self.pooling = pooling or found["pooling"]
        self.normalize = normalize if pooling else found["normalize"]
        self.prompts: dict[str, str] = found.get("prompts", {})
        place = found.get("folder", source)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        try:
            self.model = transformers.AutoModel.from_pretrained(place, use_safetensors=True).to(self.device).eval()
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(place)
        except (OSError, ValueError) as error:
            raise InputError(f"{source} cannot be loaded as a dense teacher: {str(error).splitlines()[0]}") from error
        self.max_length = max_length or found.get("max_length") or min(512, self.tokenizer.model_max_length)
        self.dimension = int(self.model.config.hidden_size)

    @cached_property
    def identity(self) -> str:
        """SHA-256 of weights and settings."""
        return _model_hash(
            self.model,
            [self.pooling, self.normalize, self.max_length, self.prompts, self.tokenizer.backend_tokenizer.to_str()],
        )

    def encode(self, texts: list[str], prompt: str = "") -> NDArray[np.float32]:
        """Texts to vectors: float32 (n, dimension). ``prompt`` is put before each."""
        import torch

        texts = [prompt + text for text in texts]
        ids = self.tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"]
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        for batch in _batches([len(tokens) for tokens in ids], BATCH_TOKENS[_memory_of(self.device)]):
            inputs = self.tokenizer.pad({"input_ids": [ids[i] for i in batch]}, return_tensors="pt").to(self.device)
            with torch.inference_mode(), _half_on_gpu(self.device):
                states = self.model(**inputs).last_hidden_state.float()
            mask = inputs["attention_mask"][..., None].float()
            pooled = states[:, 0] if self.pooling == "cls" else (states * mask).sum(1) / mask.sum(1).clamp(min=1)
            if self.normalize:
                pooled = torch.nn.functional.normalize(pooled, dim=-1)
            vectors[batch] = pooled.cpu().numpy()
        return vectors


class CrossEncoderTeacher(Teacher):
    """A classifier of (query, document) pairs with one output, whose value is the score.

    With two outputs the score is the second less the first, the log-odds of "relevant".

    Raises:
        InputError, FormatError: it cannot be found, or has another number of outputs.
    """

    def __init__(
        self,
        name: str,
        source: str | os.PathLike[str],
        queries: TextTable,
        documents: TextTable,
        *,
        max_length: int | None = None,
        device: str | None = None,
    ) -> None:
        import torch
        import transformers

        self.name = name
        self._texts = (queries, documents)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        try:
            model = transformers.AutoModelForSequenceClassification.from_pretrained(source, use_safetensors=True)
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise InputError(f"{source} cannot be loaded as a cross-encoder: {str(error).splitlines()[0]}") from error
        if model.config.num_labels not in (1, 2):
            raise FormatError(
                f"{source} has {model.config.num_labels} outputs: a cross-encoder that ranks has one or two"
            )
        self.model = model.to(self.device).eval()
        self.max_length = max_length or min(512, self.tokenizer.model_max_length)
        tokenizer = self.tokenizer.backend_tokenizer.to_str()
        self.identity = f"cross {_model_hash(self.model, [self.max_length, tokenizer])}"

    def score(self, queries: NDArray[Any], candidates: Sequence[NDArray[Any]]) -> list[NDArray[np.float32]]:  # noqa: D102
        import torch

        lengths = [len(rows) for rows in candidates]
        left = [self._texts[0].text(int(q)) for q, n in zip(queries, lengths, strict=True) for _ in range(n)]
        right = [self._texts[1].text(int(row)) for rows in candidates for row in rows]
        scores = np.empty(len(left), dtype=np.float32)
        if left:
            encoded = self.tokenizer(left, right, truncation="longest_first", max_length=self.max_length)
            for batch in _batches([len(ids) for ids in encoded["input_ids"]], BATCH_TOKENS[_memory_of(self.device)]):
                part = {name: [values[i] for i in batch] for name, values in encoded.items()}
                inputs = self.tokenizer.pad(part, return_tensors="pt").to(self.device)
                with torch.inference_mode(), _half_on_gpu(self.device):
                    logits = self.model(**inputs).logits.float()
                scores[batch] = (logits[:, -1] - (logits[:, 0] if logits.shape[1] == 2 else 0)).cpu().numpy()
        return np.split(scores, np.cumsum(lengths)[:-1])


def dense_teacher(name: str, model: DenseModel, queries: TextTable, documents: TextTable, cache: Path) -> VectorTeacher:
    """A teacher from a dense encoder, with its prompts for queries and documents if it has any."""
    stores = []
    for side, texts in (("query", queries), ("document", documents)):
        prompt = model.prompts.get(side, "")

        def encode(batch: list[str], prompt: str = prompt) -> NDArray[np.float32]:
            return model.encode(batch, prompt)

        stores.append(DenseStore(cache, f"{model.identity} {prompt}", texts, model.dimension, encode))
    return VectorTeacher(name, *stores)


def sparse_teacher(name: str, encoder: Encoder, queries: TextTable, documents: TextTable, cache: Path) -> VectorTeacher:
    """A teacher from one of the package's own encoders."""
    return VectorTeacher(
        name, SparseStore(cache, encoder.queries, queries), SparseStore(cache, encoder.documents, documents)
    )


def load_teacher(
    name: str, spec: str, queries: TextTable, documents: TextTable, cache: Path, *, device: str | None = None
) -> Teacher:
    """The teacher that ``spec`` names.

    Args:
        name: what score files call it.
        spec: "bm25", fitted on the documents; a folder; or KIND:FOLDER (or package:…, or hub id) with KIND one of
            sparse, cross, dense (a sentence-transformers folder), dense-cls, dense-mean, dense-cls-cosine,
            dense-mean-cosine (a plain transformer). Of a folder alone the kind is found out.
        queries: the table whose rows it will be asked with.
        documents: the table whose rows it will score.
        cache: folder for vectors.
        device: by default CUDA where there is one.

    Raises:
        InputError, FormatError: it cannot be found, or its kind is not clear.
    """
    if spec == "bm25":
        return sparse_teacher(name, Bm25().fit(documents), queries, documents, cache)
    named = spec.partition(":")[0] in KINDS
    kind, _, source = spec.partition(":") if named else ("", "", spec)
    if source.startswith(PACKAGE):
        source = str(find_folder(source))
    kind = kind or _kind_of(Path(source))
    if kind == "sparse":
        return sparse_teacher(name, load_encoder(source, device=device), queries, documents, cache)
    if kind == "cross":
        return CrossEncoderTeacher(name, source, queries, documents, device=device)
    _, *rest = kind.split("-")
    model = DenseModel(source, pooling=rest[0] if rest else None, normalize=rest[1:] == ["cosine"], device=device)
    return dense_teacher(name, model, queries, documents, cache)


KINDS = ("sparse", "cross", "dense", "dense-cls", "dense-mean", "dense-cls-cosine", "dense-mean-cosine")


def by_ids(teacher: Teacher, queries: TextTable, documents: TextTable) -> PairScorer:
    """The teacher, asked by ids: as `lsr.training.mine.mine` wants it."""

    def score(query_ids: Sequence[str], doc_ids: Sequence[Sequence[str]]) -> list[NDArray[np.float32]]:
        rows, lists = queries.rows_of(query_ids), [documents.rows_of(ids) for ids in doc_ids]
        for names, found, texts in (
            (query_ids, rows, queries),
            *((i, f, documents) for i, f in zip(doc_ids, lists, strict=True)),
        ):
            if (found < 0).any():
                raise InputError(
                    f"{names[int(np.flatnonzero(found < 0)[0])]!r} is not in {texts.name}: use the same collection"
                )
        return teacher.score(rows, lists)

    return score


def _kind_of(folder: Path) -> str:
    """What a folder holds, as one of KINDS."""
    if not folder.is_dir():
        raise InputError(
            f"there is no folder {folder} (a hub id needs its kind before it: {', '.join(KINDS)}, as in sparse:ID)"
        )
    if (folder / "lsr_encoder.json").is_file():
        return "sparse"
    if (folder / "modules.json").is_file():
        modules = _read_json(folder / "modules.json")
        types = " ".join(str(module.get("type", "")) for module in modules)
        return "sparse" if "SpladePooling" in types or "Router" in types or "sparse" in types else "dense"
    config = _read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    architecture = "".join(config.get("architectures") or [])
    if "SequenceClassification" in architecture:
        return "cross"
    if "MaskedLM" in architecture:
        return "sparse"
    raise InputError(
        f"{folder} may be several things: put its kind before it ({', '.join(KINDS)}), as in dense-mean:{folder}"
    )


def _sentence_transformers_settings(folder: Path) -> dict[str, Any] | None:
    """Pooling, normalization, length and prompts of a sentence-transformers folder; None if it is none."""
    if not (folder / "modules.json").is_file():
        return None
    modules = _read_json(folder / "modules.json")
    types = [str(module["type"]).rsplit(".", 1)[-1] for module in modules]
    if types not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise FormatError(f"{folder} is made of {', '.join(types)}: a dense teacher is Transformer, Pooling, Normalize")
    pooling = _read_json(folder / modules[1]["path"] / "config.json")
    modes = [
        name.removeprefix("pooling_mode_")
        for name, on in pooling.items()
        if name.startswith("pooling_mode_") and on is True
    ]
    mode = {"cls_token": "cls", "mean_tokens": "mean"}.get("+".join(modes), pooling.get("pooling_mode"))
    if mode not in ("cls", "mean"):
        raise FormatError(f"{folder} pools by {'+'.join(modes) or mode}: a dense teacher pools by cls or mean")
    body = folder / modules[0]["path"]
    lengths = body / "sentence_bert_config.json"
    general = folder / "config_sentence_transformers.json"
    return {
        "folder": body,
        "pooling": mode,
        "normalize": "Normalize" in types,
        "max_length": _read_json(lengths).get("max_seq_length") if lengths.is_file() else None,
        "prompts": _read_json(general).get("prompts") or {} if general.is_file() else {},
    }


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} cannot be read as JSON: {error}") from error


def _batches(lengths: list[int], budget: int) -> Iterator[list[int]]:
    """Positions of texts of similar length, the longest first, within a budget of tokens with padding."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and lengths[batch[0]] * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _model_hash(model: Any, settings: list[Any]) -> str:
    """SHA-256 of a model's weights, wherever they are from, and of settings."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.float().cpu().contiguous().numpy())
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()


def _memory_of(device: Any) -> str:
    return "cuda" if device.type == "cuda" else "cpu"


def _half_on_gpu(device: Any) -> Any:
    """bfloat16 where the device computes fast with it."""
    import torch

    return torch.autocast("cuda", dtype=torch.bfloat16, enabled=device.type == "cuda")
