"""Folders of sentence-transformers' SparseEncoder: read and written, without that library.

Two kinds are understood, those that hold what lsr computes too:

* masked-LM Transformer + SpladePooling: SPLADE, one model for both sides;
* Router: documents through such a chain, queries through SparseStaticEmbedding, a table of weights.
"""

import json
import warnings
from pathlib import Path
from typing import Any

from lsr.checkpoint import Lengths, load_backbone, mlm_pair
from lsr.encoder import Encoder, NeuralSide, TextEncoder
from lsr.errors import FormatError, InputError, LsrWarning
from lsr.lookup import LookupEncoder, inference_free, tokenizer_of
from lsr.tokenizer import ModelTokenizer

#: sentence-transformers' names for what we call activations
ST_ACTIVATIONS = {"relu": "log1p", "log1p_relu": "log1p_log1p"}


#: transformers notes a length like 10³⁰ where a tokenizer has none.
UNLIMITED = 1 << 31

# the classes' names in 5.x, which published models carry and 6.x reads too
_TYPES = {
    "Transformer": "sentence_transformers.sparse_encoder.models.MLMTransformer",
    "SpladePooling": "sentence_transformers.sparse_encoder.models.SpladePooling",
    "SparseStaticEmbedding": "sentence_transformers.sparse_encoder.models.SparseStaticEmbedding",
    "Router": "sentence_transformers.models.Router",
}


def load_sentence_transformers(
    folder: Path, lengths: Lengths, device: str | None = None, dtype: str = "float32"
) -> Encoder:
    """Read a SparseEncoder folder: masked-LM Transformer + SpladePooling, or a Router with static queries.

    Raises:
        FormatError: it is damaged, or of parts whose vectors lsr would not give.
    """
    modules = [(_class_name(m["type"]), folder / m["path"]) for m in _read_json(folder / "modules.json")]
    names = [name for name, _ in modules]
    settings = folder / "config_sentence_transformers.json"
    prompts = _read_json(settings).get("prompts", {}) if settings.is_file() else {}
    if any(prompts.values()):
        raise FormatError(
            f"{folder} puts prompts before its texts ({prompts}): lsr does not, and its vectors would differ"
        )
    if names == ["Router"]:
        return _load_router(modules[0][1], lengths, device, dtype)
    return _load_chain(folder, modules, lengths, device, dtype)


def _load_chain(
    folder: Path, modules: list[tuple[str, Path]], lengths: Lengths, device: str | None, dtype: str
) -> Encoder:
    """Transformer (fill-mask) then SpladePooling."""
    names = [name for name, _ in modules]
    if len(names) != 2 or names[0] not in ("MLMTransformer", "Transformer") or names[1] != "SpladePooling":
        raise FormatError(
            f"{folder} is a sentence-transformers model of {' + '.join(names)}: a sparse encoder is a masked-LM "
            "Transformer + SpladePooling, or a Router"
        )
    transformer, pooling = modules[0][1], modules[1][1]
    head = _read_json(pooling / "config.json")
    activation = head.get("activation_function", "relu")
    if activation not in ST_ACTIVATIONS:
        raise FormatError(f"{pooling}/config.json has the unknown activation {activation!r}")
    return mlm_pair(
        load_backbone(transformer, device),
        lengths,
        _saved_length(transformer),
        dtype=dtype,
        pooling=head.get("pooling_strategy", "max"),
        activation=ST_ACTIVATIONS[activation],
    )


def _load_router(folder: Path, lengths: Lengths, device: str | None, dtype: str) -> Encoder:
    """Documents through a transformer, queries through a table."""
    router = _read_json(folder / "router_config.json")
    routes = {
        route: [(_class_name(router["types"][name]), folder / name) for name in names]
        for route, names in router["structure"].items()
    }
    query = routes.get("query", [])
    if "document" not in routes or [name for name, _ in query] != ["SparseStaticEmbedding"]:
        found = "; ".join(f"{route}: {' + '.join(name for name, _ in chain)}" for route, chain in routes.items())
        raise FormatError(f"{folder} routes {found}: lsr reads routers with a document chain and static queries")
    documents = _load_chain(folder, routes["document"], lengths, device, dtype)
    table = query[0][1]
    weights_file = table / "model.safetensors"
    if not weights_file.is_file():
        raise FormatError(f"{weights_file} is missing: the router has no query weights")
    import safetensors.numpy  # comes with transformers

    weights = safetensors.numpy.load_file(weights_file)["weight"]
    encoder = inference_free(documents, weights, max_length=lengths.of("queries", _saved_length(table)))
    if not _shares_vocabulary(table, encoder):
        raise FormatError(f"{table} and the document model have different tokenizers: their terms do not match")
    return encoder


def _shares_vocabulary(table: Path, encoder: Encoder) -> bool:
    """Whether the tokenizer beside a static table gives the encoder's term ids."""
    path = table / "tokenizer.json"
    if not path.is_file():
        return True
    return ModelTokenizer.load(path, 1).vocabulary == tokenizer_of(encoder).vocabulary


def _saved_length(folder: Path) -> int | None:
    """Where sentence-transformers cuts a text: a setting of its own, or the tokenizer's; None if neither says."""
    for name, key in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        value = _read_json(folder / name).get(key) if (folder / name).is_file() else None
        if isinstance(value, int) and 0 < value < UNLIMITED:
            return value
    return None


def _class_name(path: str) -> str:
    return path.rsplit(".", 1)[-1]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FormatError(f"{path} is missing: the folder is not a complete sentence-transformers model") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"{path} is not valid JSON: {error}") from error


# --- writing -----------------------------------------------------------------------------------


def write_sentence_transformers(encoder: Encoder, folder: Path, dtype: str = "float32") -> None:
    """Write a SparseEncoder folder into an empty one: symmetric, or with static queries.

    Raises:
        InputError: a side has no counterpart in sentence-transformers.
    """
    documents, queries = encoder.documents, encoder.queries
    _refuse_unwritable(documents, queries)
    assert isinstance(documents, NeuralSide)
    if isinstance(queries, LookupEncoder):
        names = ["query_0_SparseStaticEmbedding", "document_0_Transformer", "document_1_SpladePooling"]
        _write_table(folder / names[0], documents, queries)
        _write_chain(folder / names[1], folder / names[2], documents, dtype)
        router = {
            "types": {name: _TYPES[name.rsplit("_", 1)[1]] for name in names},
            "structure": {"query": names[:1], "document": names[1:]},
            "parameters": {"default_route": "document", "allow_empty_key": True},
        }
        _write_json(folder / "router_config.json", router)
        modules = [("", "Router")]
    else:
        _write_chain(folder, folder / "1_SpladePooling", documents, dtype)
        modules = [("", "Transformer"), ("1_SpladePooling", "SpladePooling")]
    listed = [{"idx": i, "name": str(i), "path": path, "type": _TYPES[t]} for i, (path, t) in enumerate(modules)]
    _write_json(folder / "modules.json", listed)
    settings: dict[str, Any] = {
        "model_type": "SparseEncoder",
        "prompts": {},
        "default_prompt_name": None,
        "similarity_fn_name": "dot",
    }
    _write_json(folder / "config_sentence_transformers.json", settings)


def _refuse_unwritable(documents: TextEncoder, queries: TextEncoder) -> None:
    if documents.kind != "mlm" or not isinstance(documents, NeuralSide):
        raise InputError(f"sentence-transformers has no document encoder of kind {documents.kind}: only mlm")
    settings = documents.config()
    if settings["activation"] not in ST_ACTIVATIONS.values() or "top_terms" in settings:
        raise InputError(
            f"sentence-transformers has no pooling with activation {settings['activation']} and top_terms "
            f"{settings.get('top_terms')}: choose from {', '.join(ST_ACTIVATIONS.values())}, without top_terms"
        )
    if not (isinstance(queries, LookupEncoder) or queries.fingerprint == documents.fingerprint):
        raise InputError(
            "a sentence-transformers folder holds one model, and queries that are it too or a table: the "
            f"{queries.kind} queries of this encoder are neither"
        )
    if isinstance(queries, LookupEncoder) and queries.counts:
        raise InputError(
            "sentence-transformers' static queries are binary: those of this encoder count terms (counts), and would "
            "have other weights there"
        )
    if not isinstance(queries, LookupEncoder) and queries.max_length != documents.max_length:
        warnings.warn(
            f"the folder has one length for both sides: sentence-transformers will cut queries at "
            f"{documents.max_length} tokens, lsr cut them at {queries.max_length}",
            LsrWarning,
            stacklevel=4,
        )


def _write_chain(transformer: Path, pooling: Path, side: NeuralSide, dtype: str) -> None:
    transformer.mkdir(exist_ok=True)
    side.save_files(transformer, dtype=dtype)
    _write_json(transformer / "sentence_bert_config.json", {"max_seq_length": side.max_length, "do_lower_case": False})
    _limit_tokenizer(transformer, side)
    settings = side.config()
    activation = next(theirs for theirs, ours in ST_ACTIVATIONS.items() if ours == settings["activation"])
    pooling.mkdir()
    _write_json(pooling / "config.json", {"pooling_strategy": settings["pooling"], "activation_function": activation})


def _write_table(folder: Path, documents: NeuralSide, queries: LookupEncoder) -> None:
    import safetensors.numpy

    folder.mkdir()
    documents.save_tokenizer(folder)
    queries.tokenizer.save(folder / "tokenizer.json")
    _limit_tokenizer(folder, queries)
    safetensors.numpy.save_file({"weight": queries.weights}, folder / "model.safetensors")
    _write_json(folder / "config.json", {"frozen": True})


def _limit_tokenizer(folder: Path, side: TextEncoder) -> None:
    path = folder / "tokenizer_config.json"
    _write_json(path, _read_json(path) | {"model_max_length": side.max_length})


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
