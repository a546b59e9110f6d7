"""A training's configuration: a TOML file and ``key=value`` overrides, read into frozen dataclasses.

A file holds only what differs from the defaults. A key that is unknown, of the wrong type or in
contradiction to another raises, named by its path (``loss.temperature``).
"""

import dataclasses
import difflib
import hashlib
import json
import math
import os
import tomllib
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lsr.errors import FormatError, InputError
from lsr.methods import check_encoder_table
from lsr.training.losses import LOSSES, Contrastive, Loss
from lsr.training.regularizers import REGULARIZERS, Regularizer


@dataclass(frozen=True)
class MoreData:
    """Another collection to train on, a ``[[data.more]]`` table; its ids are its own.

    Attributes:
        collection: a BEIR folder.
        train: its training files; by default its ``qrels/train.tsv``.
        weight: how often each row is drawn in an epoch; .5 draws one half of them, the other half in the next.
    """

    collection: str
    train: tuple[str, ...] = ()
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise InputError(f"data.more: weight = {self.weight}: must be above 0")

    @property
    def files(self) -> tuple[str, ...]:
        """The training files."""
        return self.train or (os.path.join(self.collection, "qrels", "train.tsv"),)


@dataclass(frozen=True)
class DataConfig:
    """What is trained on.

    Attributes:
        collection: a BEIR folder, with corpus and queries.
        train: training files (JSONL of ids, or judgments); by default the collection's ``qrels/train.tsv``.
        negatives: hard negatives per query.
        expansions: a file that `lsr.expansion.write_expansions` wrote: documents are expanded before they are encoded.
        cache: folder for texts, tokens and rows, kept for later runs; by default ``.cache`` beside the output folder.
        skip_repeats: keep the first document or query of an id that is used twice.
        base: the name of a teacher that lsr distill scored the training files with: its scores are added to the
            student's, which so learns what the teacher lacks, to be joined with it (arXiv 2004.13969).
        base_weight: these scores are multiplied by it.
        more: further collections.
    """

    collection: str
    train: tuple[str, ...] = ()
    negatives: int = 0
    expansions: str | None = None
    cache: str | None = None
    skip_repeats: bool = False
    base: str | None = None
    base_weight: float = 1.0
    more: tuple[MoreData, ...] = ()

    def __post_init__(self) -> None:
        _at_least(0, "data.negatives", self.negatives)
        if not 0 < self.base_weight < math.inf:
            raise InputError(f"data.base_weight = {self.base_weight}: must be above 0")
        if self.base is None and self.base_weight != 1:
            raise InputError(f"data.base_weight = {self.base_weight} without data.base: name the teacher")
        if self.more and self.expansions is not None:
            raise InputError("data.expansions are of one collection: leave data.more out")

    @property
    def parts(self) -> tuple[MoreData, ...]:
        """All collections."""
        return (MoreData(self.collection, self.train), *self.more)

    def __str__(self) -> str:
        return "; ".join(f"{', '.join(part.files)} over {part.collection}" for part in self.parts)


@dataclass(frozen=True)
class ValidationConfig:
    """What the encoder is tried on while it is trained: exact retrieval, nDCG@10 and MRR@10.

    Attributes:
        collection: a BEIR folder; by default that of the training data.
        split: whose judgments are used.
        queries: at most as many queries.
        documents: at most as many documents, those with judgments first; scores are then higher than in the whole
            corpus. 0 for all.
    """

    collection: str | None = None
    split: str = "dev"
    queries: int = 200
    documents: int = 5_000

    def __post_init__(self) -> None:
        _at_least(1, "validation.queries", self.queries)
        _at_least(0, "validation.documents", self.documents)


@dataclass(frozen=True)
class Regularizers:
    """The regularizer of each side; None for none."""

    queries: Regularizer | None = None
    documents: Regularizer | None = None


@dataclass(frozen=True)
class TrainingOptions:
    """How the training goes.

    Attributes:
        steps: optimizer steps.
        batch_size: queries per process and optimizer step; with ``accumulate`` per pass.
        accumulate: passes per optimizer step, of ``batch_size`` queries each: equal to a ``batch_size`` as many times
            as large with ``chunk`` queries at a time.
        chunk: queries per forward pass with gradient caching; 0 for the whole batch at once, without it.
        learning_rate: the highest.
        warmup: steps in which the learning rate rises.
        schedule: what it does then.
        weight_decay: AdamW's.
        clip: the largest norm of the gradient.
        seed: of everything random.
        precision: of the encoder's forward pass; auto is bfloat16 where the device has it.
        evaluate_every: steps between two evaluations, each with a checkpoint; 0 for one at the end.
        log_every: steps between two log lines.
        keep: checkpoints kept beside the best one.
        average: which checkpoints the result is the mean of: "none" takes the best one (the last without
            validation), "last" and "best" average the last or the best of those that are kept.
        workers: processes that prepare batches.
        device: where to train; auto is CUDA where there is one.
    """

    steps: int = 1_000
    batch_size: int = 32
    accumulate: int = 1
    chunk: int = 0
    learning_rate: float = 2e-5
    warmup: int = 0
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: float = 0.01
    clip: float = 1.0
    seed: int = 42
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    evaluate_every: int = 0
    log_every: int = 50
    keep: int = 1
    average: Literal["none", "last", "best"] = "none"
    workers: int = 2
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "keep"):
            _at_least(1, f"training.{name}", getattr(self, name))
        for name in ("chunk", "warmup", "evaluate_every", "workers", "weight_decay", "seed"):
            _at_least(0, f"training.{name}", getattr(self, name))
        if self.seed >= 2**32:
            raise InputError(f"training.seed = {self.seed}: must be below 2^32")
        if not (0 < self.learning_rate < math.inf and 0 < self.clip < math.inf):
            raise InputError(
                f"training.learning_rate = {self.learning_rate} and training.clip = {self.clip}: both must be finite "
                "and above 0"
            )
        if self.chunk and self.accumulate > 1:
            raise InputError(
                f"training.chunk = {self.chunk} and training.accumulate = {self.accumulate}: both cut a step into "
                "passes, use a larger batch_size instead of accumulate"
            )
        if self.average != "none" and self.keep < 2:
            raise InputError(
                f"training.average = {self.average!r} with training.keep = 1: one checkpoint has no average, keep more"
            )

    @property
    def queries_a_step(self) -> int:
        """Queries per process and optimizer step."""
        return self.batch_size * self.accumulate

    @property
    def queries_a_pass(self) -> int:
        """Queries per forward pass where a step takes several, each made twice (gradient caching); else 0."""
        return self.batch_size if self.accumulate > 1 else self.chunk


@dataclass(frozen=True)
class TrainConfig:
    """A training.

    Attributes:
        backbone: the checkpoint to start from, a folder or hub id.
        data: what is trained on.
        output: the run's folder; by default ``runs/`` and the config's name.
        encoder: the other keys of `lsr.methods.build_encoder`.
        loss: of the scores.
        regularizer: of the vectors.
        training: the optimizer and the loop.
        validation: None for none.
    """

    backbone: str
    data: DataConfig
    output: str = "runs/training"
    encoder: Mapping[str, Any] = field(default_factory=dict)
    loss: Loss = field(default_factory=Contrastive)
    regularizer: Regularizers = field(default_factory=Regularizers)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    validation: ValidationConfig | None = None

    def __post_init__(self) -> None:
        if "backbone" in self.encoder:
            raise InputError("encoder.backbone: the backbone is a key of its own, above all tables: backbone = …")
        check_encoder_table(self.encoder_table)
        if self.loss.needs_negatives and not self.data.negatives:
            raise InputError(
                f"data.negatives = 0 with loss.name = {name_of(self.loss)!r}: this loss compares a query's own "
                "documents, give it 1 negative or more"
            )
        if isinstance(self.loss, Contrastive) and not self.data.negatives:
            if not self.loss.in_batch:
                raise InputError(
                    "data.negatives = 0 with loss.in_batch = false: nothing is left to tell the positive from, give it "
                    "1 negative or more"
                )
            if self.training.queries_a_step == 1:
                raise InputError(
                    "data.negatives = 0 with training.batch_size = 1: a batch of one query has no in-batch negatives, "
                    "use a larger batch or give it 1 negative or more"
                )
        if self.data.base is not None and not self.loss.needs_negatives:
            raise InputError(
                f"data.base = {self.data.base!r} with loss.name = {name_of(self.loss)!r}: base scores are known for a "
                "query's own documents only, choose a loss that compares these (kl, margin_mse, …)"
            )
        if self.training.average == "best" and self.validation is None:
            raise InputError("training.average = 'best' needs a [validation] to say which checkpoints are the best")
        if self.training.chunk and self.training.chunk >= self.training.batch_size:
            raise InputError(
                f"training.chunk = {self.training.chunk} is not below training.batch_size = "
                f"{self.training.batch_size}: leave it out, it would save nothing"
            )

    @property
    def encoder_table(self) -> dict[str, Any]:
        """What `lsr.methods.build_encoder` takes."""
        return {"backbone": self.backbone, **self.encoder}

    def as_dict(self) -> dict[str, Any]:
        """All keys with their values, as JSON can hold them; what `parse` reads."""
        return dict(_plain(self))

    def fingerprint(self) -> str:
        """Equal for two configs that train the same encoder: the places of output and cache do not count."""
        fields = self.as_dict()
        del fields["output"], fields["data"]["cache"]
        for name in ("workers", "log_every", "device"):
            del fields["training"][name]
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a TOML file and apply overrides such as ``loss.temperature=2`` or ``training.steps=50``.

    An override's value is TOML; what is no TOML value is taken as a string. ``validation=none`` removes a table.

    Raises:
        InputError: the file is missing, or a key is unknown, of a wrong type, or contradicts another.
        FormatError: the file is not TOML.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is {'a folder, not a file' if path.is_dir() else 'missing'}: check the path")
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"{path} is not valid TOML: {error}") from error
    fields.setdefault("output", f"runs/{path.stem}")
    for override in overrides:
        _apply(fields, override)
    try:
        return parse(fields)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def parse(fields: Mapping[str, Any]) -> TrainConfig:
    """A config from nested dicts.

    Raises:
        InputError: as `load_config`.
    """
    config: TrainConfig = _parse_value(TrainConfig, fields, "")
    return config


def name_of(choice: Loss | Regularizer) -> str:
    """The name that a config gives to a loss or regularizer."""
    return next(name for table in _TAGGED.values() for name, cls in table.items() if cls is type(choice))


_TAGGED: dict[Any, dict[str, Any]] = {Loss: dict(LOSSES), Regularizer: dict(REGULARIZERS)}


def _apply(fields: dict[str, Any], override: str) -> None:
    """Set one ``path.to.key=value`` in nested dicts."""
    name, equals, value = (part.strip() for part in override.partition("="))
    *tables, key = name.split(".")
    if not equals or not all([*tables, key]):
        raise InputError(f"{override!r} is no override: write key=value, such as training.steps=50")
    for table in tables:
        fields = fields.setdefault(table, {})
        if not isinstance(fields, dict):
            raise InputError(f"{override!r}: {table} is a value, not a table")
    if value == "none":
        fields.pop(key, None)
        return
    try:
        fields[key] = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        fields[key] = value


def _parse_value(kind: Any, value: Any, path: str) -> Any:
    """``value`` as the type ``kind``, or an InputError that names ``path``."""
    if kind in _TAGGED:
        return _parse_tagged(_TAGGED[kind], value, path)
    if dataclasses.is_dataclass(kind):
        return _parse_table(kind, value, path)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        (inner,) = [argument for argument in arguments if argument is not types.NoneType]
        return None if value is None else _parse_value(inner, value, path)
    if origin is Literal:
        if value not in arguments:
            raise InputError(f"{path} = {value!r}: choose one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list | tuple):
            raise InputError(f"{path} = {value!r}: a list is needed")
        return tuple(_parse_value(arguments[0], item, path) for item in values)
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise InputError(f"{path} = {value!r}: a table is needed")
        return dict(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
    if wrong or (kind is float and not math.isfinite(value)):
        raise InputError(f"{path} = {value!r}: {_NOUNS[kind]} is needed")
    return value


_NOUNS = {int: "an integer", float: "a finite number", str: "a string", bool: "true or false"}


def _parse_table(cls: Any, value: Any, path: str) -> Any:
    if not isinstance(value, Mapping):
        raise InputError(f"{path} = {value!r}: a table is needed")
    hints = get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    inside = f"{path}." if path else ""
    for key in value:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {inside}{near[0]}?" if near else f"known are {', '.join(fields)}"
            raise InputError(f"the key {inside}{key} is unknown: {hint}")
    for name, f in fields.items():
        if name not in value and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise InputError(f"the key {inside}{name} is missing: give it")
    parsed = {key: _parse_value(hints[key], item, f"{inside}{key}") for key, item in value.items()}
    try:
        return cls(**parsed)
    except InputError as error:
        raise InputError(str(error) if path in str(error) else f"{path}: {error}") from error


def _parse_tagged(choices: Mapping[str, Any], value: Any, path: str) -> Any:
    """A table whose key ``name`` chooses the class."""
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping) or "name" not in value:
        raise InputError(f"the key {path}.name is missing: choose one of {', '.join(choices)}")
    if value["name"] not in choices:
        raise InputError(f"{path}.name = {value['name']!r} is unknown: choose one of {', '.join(choices)}")
    return _parse_table(choices[value["name"]], {k: v for k, v in value.items() if k != "name"}, path)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        table = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        named = any(type(value) is cls for choices in _TAGGED.values() for cls in choices.values())
        return {"name": name_of(value), **table} if named else table  # type: ignore[arg-type]
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _at_least(least: int, name: str, value: float) -> None:
    if not least <= value < math.inf:
        raise InputError(f"{name} = {value}: must be {least} or more")
