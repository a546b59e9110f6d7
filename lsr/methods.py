"""`build_encoder`: the encoder of a method, ready to train, from the ``encoder`` table of a config.

```toml
[encoder]
backbone = "distilbert-base-uncased"    # a folder, a hub id, or package:NAME/FOLDER
[encoder.documents]
head = "mlm"
[encoder.queries]
head = "lookup"
idf = "idf.json"
```

docs/encoders.md lists heads and options.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lsr.checkpoint import HEAD_INITS, find_folder, has_mlm_head, is_hub_id, load_backbone
from lsr.encoder import Encoder, TextEncoder
from lsr.errors import InputError, optional_import
from lsr.lookup import LookupEncoder, read_idf

if TYPE_CHECKING:
    from lsr.backbone import Backbone
    from lsr.heads import SparseHead

#: The options of each head, and what holds where they are left out; None where there is no default.
HEAD_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "mlm": {"pooling": "max", "activation": "log1p", "top_terms": None},
    "clsmlm": {"activation": "log1p", "top_terms": None},
    "epic": {"activation": "softplus", "top_terms": None},
    "mlp": {"activation": "relu", "norm": "none", "top_terms": None},
    "binary": {},
    "lookup": {"idf": None, "counts": False},
    "learned-lookup": {},
}
WITH_MLM_HEAD: Final = ("mlm", "clsmlm", "epic")
MAX_LENGTHS: Final = {"documents": 256, "queries": 64}
ENCODER_OPTIONS: Final = ("backbone", "revision", "head_init", "shared", "documents", "queries")

#: A term that stands several times in a text: its MLP weights are added in queries, the largest counts in documents.
REPEATS: Final = {"documents": "max", "queries": "sum"}


@dataclass(frozen=True)
class _Side:
    """A side's table, checked."""

    name: str
    head: str
    max_length: int
    options: dict[str, Any]


def build_encoder(config: Mapping[str, Any], *, device: str | None = None) -> Encoder:
    """Make a trainable encoder.

    With ``shared`` (the default) the two sides have one backbone and, where their heads are the same,
    the head's own weights too; otherwise a copy each. New weights are drawn from torch's random state.

    Args:
        config: the ``encoder`` table: backbone, revision, head_init ("checkpoint" or "embeddings"), shared, and a
            table for each of documents and queries: head, max_length (256 and 64) and the head's options.
        device: "cpu", "cuda", …; by default CUDA where there is one.

    Raises:
        InputError: an unknown, missing or contradictory option.
        FormatError: the backbone cannot be read, or lacks a masked-LM head where one is needed.
        MismatchError: the IDF table is of another tokenizer.
    """
    documents, queries = check_encoder_table(config)
    source, shared = config["backbone"], config.get("shared", True)
    optional_import("torch", "encode", "building an encoder to train")
    folder = find_folder(source, config.get("revision"))
    heads = [documents.head, queries.head]

    def backbone_for(*heads: str) -> "Backbone":
        return load_backbone(folder, device, head=_head_source(config, folder, heads))

    if shared:
        backbone = backbone_for(*heads)
        first = _build_side(documents, backbone)
        second = _build_side(queries, backbone, like=first if documents.head == queries.head else None)
    else:
        first = _build_side(documents, backbone_for(documents.head))
        second = _build_side(queries, backbone_for(queries.head))
    return Encoder(first, second, source=str(source), revision=config.get("revision"))


def check_encoder_table(config: Mapping[str, Any]) -> tuple[_Side, _Side]:
    """The documents' and the queries' side of an ``encoder`` table; no file is looked at.

    Raises:
        InputError: an unknown, missing or contradictory option.
    """
    _refuse_unknown(config, ENCODER_OPTIONS, "encoder")
    _text(config, "backbone", "encoder")
    documents, queries = (_read_side(config, name) for name in ("documents", "queries"))
    if not isinstance(config.get("shared", True), bool):
        raise InputError(f"encoder.shared must be true or false: got {config['shared']!r}")
    if config.get("head_init", "checkpoint") not in HEAD_INITS:
        raise InputError(f"encoder.head_init is {config['head_init']!r}: choose from {', '.join(HEAD_INITS)}")
    return documents, queries


def check_encoder_files(config: Mapping[str, Any]) -> None:
    """Whether what an ``encoder`` table names is there; nothing is loaded or fetched, hub ids are not looked up.

    Raises:
        InputError: the backbone or an IDF table is missing, or the backbone has no masked-LM head where one is needed.
    """
    sides = check_encoder_table(config)
    for side in sides:
        idf = side.options.get("idf", "uniform")
        if idf != "uniform" and not Path(idf).is_file():
            raise InputError(f"encoder.{side.name}.idf: {idf} is missing: write one with lsr idf")
    if not is_hub_id(config["backbone"]):
        _head_source(config, find_folder(config["backbone"]), tuple(side.head for side in sides))


def _head_source(config: Mapping[str, Any], folder: Any, heads: tuple[str, ...]) -> str | None:
    """Where the masked-LM head of a backbone with these sparse heads comes from."""
    head_init = config.get("head_init", "checkpoint")
    if not set(heads) & set(WITH_MLM_HEAD):
        return None
    if head_init == "checkpoint" and not has_mlm_head(folder):
        raise InputError(
            f"{folder} has no masked-LM head, and head = {'/'.join(h for h in heads if h in WITH_MLM_HEAD)!r} needs "
            'one: give a ...ForMaskedLM checkpoint, or head_init = "embeddings" to start a new head'
        )
    return str(head_init)


def _read_side(config: Mapping[str, Any], name: str) -> _Side:
    table = config.get(name)
    if not isinstance(table, Mapping):
        raise InputError(f"the config has no table encoder.{name}: give one with a head")
    where = f"encoder.{name}"
    head = _text(table, "head", where)
    if head not in HEAD_OPTIONS:
        raise InputError(f"{where}.head is {head!r}: choose from {', '.join(HEAD_OPTIONS)}")
    _refuse_unknown(table, ("head", "max_length", *HEAD_OPTIONS[head]), where, f" with head = {head!r}")
    max_length = table.get("max_length", MAX_LENGTHS[name])
    if not isinstance(max_length, int) or isinstance(max_length, bool) or max_length < 1:
        raise InputError(f"{where}.max_length must be a whole number of tokens: got {max_length!r}")
    options = {option: table.get(option, default) for option, default in HEAD_OPTIONS[head].items()}
    if head == "lookup" and not isinstance(options["idf"], str):
        raise InputError(f'{where}.idf is missing: give a file that lsr idf wrote, or "uniform"')
    if not isinstance(options.get("counts", False), bool):
        raise InputError(f"{where}.counts must be true or false: got {options['counts']!r}")
    return _Side(name, head, max_length, options)


def _build_side(side: _Side, backbone: "Backbone", like: TextEncoder | None = None) -> TextEncoder:
    from lsr.heads import BinaryHead, LearnedLookupHead
    from lsr.neural import NeuralEncoder, TableEncoder, check_length

    tokenizer = backbone.tokenizer
    check_length(backbone, side.max_length)
    if side.head == "lookup":
        return _idf_side(side, backbone)
    if side.head in ("binary", "learned-lookup"):
        if isinstance(like, TableEncoder):
            module = like.module
        elif side.head == "binary":
            module = BinaryHead(tokenizer, backbone.vocabulary_size)
        else:
            module = LearnedLookupHead(tokenizer, backbone.embeddings())
        return TableEncoder(module.to(backbone.device), tokenizer, side.max_length)
    options = dict(side.options)
    top_terms = options.pop("top_terms")
    head = _neural_head(side, backbone, options, like).to(backbone.device)
    return NeuralEncoder(head.eval(), side.max_length, top_terms=top_terms)


def _neural_head(side: _Side, backbone: "Backbone", options: dict[str, Any], like: TextEncoder | None) -> "SparseHead":
    from lsr.heads import MlpHead
    from lsr.neural import HEADS, NeuralEncoder

    twin = like.module if isinstance(like, NeuralEncoder) else None
    if side.head == "mlp":
        weigh = twin.weigh if isinstance(twin, MlpHead) else None
        return MlpHead(backbone, repeats=REPEATS[side.name], weigh=weigh, **options)
    if twin is not None and twin.config() == options:
        return twin
    return HEADS[side.head](backbone, **options)


def _idf_side(side: _Side, backbone: "Backbone") -> LookupEncoder:
    uniform = np.ones(backbone.vocabulary_size, dtype=np.float32)
    uniform[backbone.tokenizer.special_ids] = 0
    counts = side.options["counts"]
    table = LookupEncoder(backbone.tokenizer, uniform, side.max_length, counts=counts)
    if side.options["idf"] == "uniform":
        return table
    idf = read_idf(side.options["idf"], Encoder(table, table))
    return LookupEncoder(backbone.tokenizer, idf, side.max_length, counts=counts)


def _text(table: Mapping[str, Any], key: str, where: str) -> str:
    value = table.get(key)
    if not isinstance(value, str) or not value:
        raise InputError(
            f"{where}.{key} is missing: give a text"
            if value is None
            else f"{where}.{key} must be a text: got {value!r}"
        )
    return value


def _refuse_unknown(table: Mapping[str, Any], known: tuple[str, ...], where: str, context: str = "") -> None:
    unknown = [key for key in table if key not in known]
    if unknown:
        raise InputError(f"{where} has no option {unknown[0]!r}{context}: choose from {', '.join(known)}")
