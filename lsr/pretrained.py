"""`load_encoder`: find out what a folder or hub id holds, and refuse what is not a sparse encoder."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsr.bm25 import Bm25Documents, Bm25Queries
from lsr.encoder import ENCODER_FILE, FORMAT_VERSION, Encoder, TextEncoder
from lsr.errors import FormatError, InputError, LsrError, optional_import
from lsr.lookup import IDF_FILE, LookupEncoder, inference_free, read_idf, tokenizer_of
from lsr.tokenizer import ModelTokenizer

if TYPE_CHECKING:
    from lsr.mlm import MlmModel

DOCUMENT_MAX_LENGTH = 512
QUERY_MAX_LENGTH = 256
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.npy"]

# sentence-transformers' names for what we call activations
ST_ACTIVATIONS = {"relu": "log1p", "log1p_relu": "log1p_log1p"}


def load_encoder(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    document_max_length: int | None = None,
    query_max_length: int | None = None,
    device: str | None = None,
) -> Encoder:
    """Load an encoder from a folder or a Hugging Face hub id.

    Understood: what `Encoder.save` wrote; a sentence-transformers SparseEncoder (symmetric, or a
    router with a static query embedding); a masked-LM checkpoint with an ``idf.json`` beside it
    (OpenSearch's inference-free models); any masked-LM checkpoint, as SPLADE-max.

    Args:
        source: a folder, or a hub id such as ``naver/splade-v3``.
        revision: the hub revision (branch, tag or commit).
        document_max_length: tokens kept of a document (default 512, or what the model was saved with).
        query_max_length: tokens kept of a query (default 256, likewise).
        device: "cpu", "cuda", …; by default CUDA where there is one.

    Raises:
        InputError: the source cannot be found.
        FormatError: it holds no trained sparse encoder.
    """
    folder = Path(source)
    if not folder.is_dir():
        folder = _download(str(source), revision)
    lengths = _Lengths(document_max_length, query_max_length)
    if (folder / ENCODER_FILE).is_file():
        sides = _load_own(folder, lengths, device)
    elif (folder / "modules.json").is_file():
        sides = _load_sentence_transformers(folder, lengths, device)
    elif (folder / "config.json").is_file():
        sides = _load_checkpoint(folder, lengths, device)
    else:
        raise FormatError(
            f"{folder} holds no encoder: it has none of {ENCODER_FILE}, modules.json (sentence-transformers) and "
            "config.json (Hugging Face)"
        )
    where = str(folder.resolve()) if Path(source).is_dir() else str(source)
    return Encoder(sides.documents, sides.queries, source=where, revision=revision)


class _Lengths:
    """Maximum lengths: what the caller asks for, else what was saved, else the default."""

    def __init__(self, documents: int | None, queries: int | None) -> None:
        for name, length in (("document_max_length", documents), ("query_max_length", queries)):
            if length is not None and length < 1:
                raise InputError(f"{name} must be at least 1 token: got {length}")
        self.asked = {"documents": documents, "queries": queries}

    def of(self, side: str, saved: int | None = None, *, most: int | None = None) -> int:
        """The length of a side; a default is lowered to ``most``, what was asked for is not."""
        default = DOCUMENT_MAX_LENGTH if side == "documents" else QUERY_MAX_LENGTH
        asked = self.asked[side]
        if asked is not None:
            return asked
        return saved if saved is not None else min(default, most or default)


def _download(source: str, revision: str | None) -> Path:
    looks_local = source.startswith((".", "/", "~")) or source.count("/") != 1
    if source == "bm25":
        raise InputError(
            "bm25 is no saved encoder: it is fitted to a corpus, with lsr.Bm25() or lsr index --model bm25"
        )
    if looks_local:
        raise InputError(f"the encoder folder {source} does not exist: check the path")
    hub = optional_import("huggingface_hub", "encode", f"{source!r} is no folder here; fetching it from the hub")
    try:
        return Path(hub.snapshot_download(source, revision=revision, allow_patterns=HUB_FILES))
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{source!r} is no folder here and could not be fetched from the Hugging Face hub: {reason}"
        ) from error


# --- our own folders ---------------------------------------------------------------------------


def read_encoder_file(folder: Path) -> dict[str, Any]:
    """The content of ``lsr_encoder.json``, its version checked.

    Raises:
        FormatError: damaged, or of a newer format.
    """
    path = folder / ENCODER_FILE
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        version = fields["format_version"]
    except FileNotFoundError as error:
        raise FormatError(f"{path} is missing: the folder holds no saved encoder") from error
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError) as error:
        raise FormatError(f"{path} is damaged: save the encoder again") from error
    if version != FORMAT_VERSION:
        raise FormatError(f"{path} has format {version}, this version of lsr reads {FORMAT_VERSION}: upgrade lsr")
    return dict(fields)


def _load_own(folder: Path, lengths: _Lengths, device: str | None) -> Encoder:
    fields = read_encoder_file(folder)
    documents = load_side(folder, fields, "documents", lengths, device)
    queries = load_side(folder, fields, "queries", lengths, device, shared=documents)
    return Encoder(documents, queries)


def load_side(
    folder: Path,
    fields: dict[str, Any],
    name: str,
    lengths: _Lengths | None = None,
    device: str | None = None,
    *,
    shared: TextEncoder | None = None,
) -> TextEncoder:
    """Load the side ``name`` ("documents" or "queries") of a saved encoder.

    Raises:
        FormatError: the side is absent, of an unknown kind, or its files are damaged.
    """
    try:
        config = dict(fields[name])
        kind, place = config["kind"], folder / config["folder"]
        if "max_length" in config:
            config["max_length"] = (lengths or _Lengths(None, None)).of(name, config["max_length"])
        if kind in LIGHT_SIDES:
            side: TextEncoder = LIGHT_SIDES[kind].load(place, config)
            return side
        if kind == "mlm":
            optional_import("torch", "encode", "running a transformer encoder")
            from lsr.mlm import MlmEncoder

            same = isinstance(shared, MlmEncoder) and config["folder"] == fields["documents"]["folder"]
            model = shared.model if same and isinstance(shared, MlmEncoder) else load_mlm(place, device)
            return MlmEncoder(
                model,
                config["max_length"],
                pooling=config["pooling"],
                activation=config["activation"],
            )
    except (KeyError, TypeError, OSError, ValueError) as error:
        if isinstance(error, LsrError):
            raise
        raise FormatError(f"{folder}: the {name} side is damaged or unfinished ({error}): save it again") from error
    raise FormatError(f"{folder} has a {name} side of the unknown kind {kind!r}: upgrade lsr")


LIGHT_SIDES: dict[str, Any] = {
    "bm25-documents": Bm25Documents,
    "bm25-queries": Bm25Queries,
    "lookup": LookupEncoder,
}


# --- Hugging Face and OpenSearch folders -------------------------------------------------------


def _load_checkpoint(folder: Path, lengths: _Lengths, device: str | None) -> Encoder:
    encoder = _symmetric(load_mlm(folder, device), lengths)
    if (folder / IDF_FILE).is_file():
        return inference_free(encoder, read_idf(folder / IDF_FILE, encoder), max_length=lengths.of("queries"))
    return encoder


def _symmetric(model: "MlmModel", lengths: _Lengths, saved: int | None = None, **head: str) -> Encoder:
    from lsr.mlm import MlmEncoder

    most = min(model.max_length, saved or model.max_length)
    documents, queries = (MlmEncoder(model, lengths.of(side, most=most), **head) for side in ("documents", "queries"))
    return Encoder(documents, queries)


def load_mlm(folder: Path, device: str | None = None) -> "MlmModel":
    """Load a masked-LM checkpoint in float32, refusing one whose head was never trained.

    Raises:
        FormatError: the checkpoint is of another kind, lacks its head, or cannot be read.
    """
    torch = optional_import("torch", "encode", "running a transformer encoder")
    transformers = optional_import("transformers", "encode", "running a transformer encoder")
    safetensors = optional_import("safetensors", "encode", "running a transformer encoder")
    from lsr.mlm import MlmModel

    transformers.logging.set_verbosity_error()  # its loading report is ours to judge
    transformers.logging.disable_progress_bar()
    config = _masked_lm_config(folder, transformers)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise FormatError(
            f"{folder} has no tokenizer (none of {', '.join(TOKENIZER_FILES)}): add the model's own files"
        )
    try:
        model, report = transformers.AutoModelForMaskedLM.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, safetensors.SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FormatError(f"{folder} cannot be loaded as a masked-LM checkpoint: {reason}") from error
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise FormatError(f"{folder} has only a slow Python tokenizer: save a tokenizer.json beside the model")
    missing = sorted(report["missing_keys"])
    if missing or report["mismatched_keys"]:
        raise FormatError(
            f"{folder} has no trained masked-LM head: {len(missing)} weights are not in the checkpoint "
            f"(such as {', '.join(missing[:2])}): a sparse encoder needs a checkpoint saved from a "
            "...ForMaskedLM model"
        )
    try:
        model.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, AssertionError) as error:  # torch has no error of its own for this
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"the model cannot run on the device {device!r}: {reason}") from error
    return MlmModel(model, tokenizer)


def _masked_lm_config(folder: Path, transformers: Any) -> Any:
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FormatError(f"{folder}/config.json cannot be read: {reason}") from error
    mapping = transformers.models.auto.modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    architectures = config.architectures or []
    if config.model_type not in mapping or not any("MaskedLM" in name for name in architectures):
        raise FormatError(
            f"{folder} holds {' / '.join(architectures) or config.model_type}, not a masked language model: "
            "a sparse encoder needs a checkpoint saved from a ...ForMaskedLM model"
        )
    return config


# --- sentence-transformers folders -------------------------------------------------------------


def _load_sentence_transformers(folder: Path, lengths: _Lengths, device: str | None) -> Encoder:
    modules = [(_class_name(m["type"]), folder / m["path"]) for m in _read_json(folder / "modules.json")]
    names = [name for name, _ in modules]
    settings = folder / "config_sentence_transformers.json"
    prompts = _read_json(settings).get("prompts", {}) if settings.is_file() else {}
    if any(prompts.values()):
        raise FormatError(
            f"{folder} puts prompts before its texts ({prompts}): lsr does not, and its vectors would differ"
        )
    if names == ["Router"]:
        return _load_router(modules[0][1], lengths, device)
    return _load_chain(folder, modules, lengths, device)


def _load_chain(folder: Path, modules: list[tuple[str, Path]], lengths: _Lengths, device: str | None) -> Encoder:
    """Transformer (fill-mask) then SpladePooling."""
    names = [name for name, _ in modules]
    if len(names) != 2 or names[0] not in ("MLMTransformer", "Transformer") or names[1] != "SpladePooling":
        raise FormatError(
            f"{folder} is a sentence-transformers model of {' + '.join(names)}: a sparse encoder is a masked-LM "
            "Transformer + SpladePooling, or a Router"
        )
    transformer, pooling = modules[0][1], modules[1][1]
    settings_file = transformer / "sentence_bert_config.json"
    settings = _read_json(settings_file) if settings_file.is_file() else {}
    head = _read_json(pooling / "config.json")
    activation = head.get("activation_function", "relu")
    if activation not in ST_ACTIVATIONS:
        raise FormatError(f"{pooling}/config.json has the unknown activation {activation!r}")
    return _symmetric(
        load_mlm(transformer, device),
        lengths,
        settings.get("max_seq_length"),
        pooling=head.get("pooling_strategy", "max"),
        activation=ST_ACTIVATIONS[activation],
    )


def _load_router(folder: Path, lengths: _Lengths, device: str | None) -> Encoder:
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
    documents = _load_chain(folder, routes["document"], lengths, device)
    table = query[0][1]
    weights_file = table / "model.safetensors"
    if not weights_file.is_file():
        raise FormatError(f"{weights_file} is missing: the router has no query weights")
    import safetensors.numpy  # comes with transformers

    weights = safetensors.numpy.load_file(weights_file)["weight"]
    encoder = inference_free(documents, weights, max_length=lengths.of("queries"))
    if not _shares_vocabulary(table, encoder):
        raise FormatError(f"{table} and the document model have different tokenizers: their terms do not match")
    return encoder


def _shares_vocabulary(table: Path, encoder: Encoder) -> bool:
    """Whether the tokenizer beside a static table gives the encoder's term ids."""
    path = table / "tokenizer.json"
    if not path.is_file():
        return True
    return ModelTokenizer.load(path, 1).vocabulary == tokenizer_of(encoder).vocabulary


def _class_name(path: str) -> str:
    return path.rsplit(".", 1)[-1]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FormatError(f"{path} is missing: the folder is not a complete sentence-transformers model") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"{path} is not valid JSON: {error}") from error
