"""`train`: from a config to a saved encoder, in a folder that can be resumed."""

import json
import math
import os
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from lsr.encoder import Encoder
from lsr.errors import FormatError, InputError, LsrWarning
from lsr.expansion import expand
from lsr.files import replacing
from lsr.training.card import commit, versions, write_card
from lsr.training.checkpoints import best_steps, checkpoints, load_average, load_weights
from lsr.training.config import TrainConfig
from lsr.training.data import Scorer, Source, TrainingSet
from lsr.training.regularizers import n_processes
from lsr.training.trainer import SparseTrainer, evaluating, scores_of
from lsr.training.validation import Validate, Validation

RUN_FILE = "run.json"
ENCODER_FOLDER = "encoder"
CHECKPOINT_FOLDER = "checkpoints"


@dataclass(frozen=True)
class TrainedRun:
    """What `train` gives back.

    Attributes:
        folder: of the saved encoder, for `lsr.load_encoder`.
        metrics: of the saved weights; empty without validation.
        history: log lines and validations, in order.
        steps: optimizer steps in all.
    """

    folder: Path
    metrics: dict[str, float]
    history: list[dict[str, float]]
    steps: int


def train(
    config: TrainConfig,
    *,
    validate: Validate | None = None,
    scorer: Scorer | None = None,
    progress: bool = True,
) -> TrainedRun:
    """Train an encoder, or go on with a training that was interrupted.

    ``config.output`` gets ``run.json`` (config, versions, commit), ``checkpoints/`` and, at the end,
    ``encoder/`` with the model card. If it holds an unfinished run of an equal config, that is resumed from its
    last checkpoint: data order, dropout, both schedules and the optimizer go on as if nothing had happened.

    Args:
        config: from `lsr.training.config.load_config`.
        validate: instead of the config's validation; its number "ndcg@10" says which checkpoint is best.
        scorer: teacher scores on the fly, instead of those of the training files (`EnsembleScorer`). A run is resumed
            with the scorer that it began with: one of the same ``identity``, or of the same name where it has none.
        progress: show bars and log lines on stderr.

    Raises:
        InputError, FormatError, MismatchError: something in config, data or backbone does not fit.
        TrainingStopped: the training went wrong; the checkpoints so far are kept.
    """
    from lsr.methods import build_encoder

    output = Path(config.output)
    check(config)
    last = resumable(config, scorer)
    torch.manual_seed(config.training.seed)  # new heads are initialized at random
    encoder = build_encoder(config.encoder_table, device="cpu" if config.training.device == "cpu" else None)
    validate = validate or Validation.of(config)
    training_set = open_training_set(config, scored=config.loss.needs_scores and scorer is None)
    output.mkdir(parents=True, exist_ok=True)
    trainer = SparseTrainer(
        encoder,
        config,
        training_set,
        output / CHECKPOINT_FOLDER,
        validate=validate,
        scorer=scorer,
        progress=progress,
    )
    main = trainer.is_world_process_zero()
    if main:
        _write_run(output, config, "unfinished", scorer=_identity(scorer))
    began = time.monotonic()
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    facts = {
        "examples": len(training_set),
        "processes": n_processes(),
        "device": torch.cuda.get_device_name() if trainer.args.device.type == "cuda" else "CPU",
        "seconds": time.monotonic() - began,
    }
    weights, metrics = _choose_weights(trainer, output / CHECKPOINT_FOLDER)
    folder, history = output / ENCODER_FOLDER, trainer.state.log_history
    if main:
        forget_fingerprints(encoder)
        encoder.save(folder, overwrite=True)
        write_card(folder, config, facts, metrics, weights)
        _write_run(output, config, "finished", scorer=_identity(scorer), metrics=metrics, history=history, **facts)
    return TrainedRun(folder, metrics, history, trainer.state.global_step)


def check(config: TrainConfig) -> None:
    """What can be seen before anything is loaded; `train` does it, and ``lsr train --dry-run``.

    A warm-up that is longer than the training is an `LsrWarning`: it is common in short trials.

    Raises:
        InputError: the backbone or an IDF table is missing.
    """
    from lsr.methods import check_encoder_files

    check_encoder_files(config.encoder_table)
    steps = config.training.steps
    tables = {f"regularizer.{side}": getattr(config.regularizer, side) for side in ("queries", "documents")}
    for name, table in {**tables, "training": config.training}.items():
        if table is not None and table.warmup > steps:
            what = "the learning rate" if name == "training" else "λ"
            warnings.warn(
                f"{name}.warmup = {table.warmup} is more than training.steps = {steps}: {what} never gets to its full "
                f"value, lower the warmup",
                LsrWarning,
                stacklevel=3,
            )


def resumable(config: TrainConfig, scorer: Scorer | None = None) -> Path | None:
    """The checkpoint that a training would go on from; None for a new one, or one that has no checkpoint yet.

    Raises:
        InputError: the output folder holds something else, a finished run, or a run of another config or scorer.
    """
    output = Path(config.output)
    if not output.exists():
        return None
    if not output.is_dir():
        raise InputError(f"{output} is a file: name a folder (output=…)")
    if not any(output.iterdir()):
        return None
    path = output / RUN_FILE
    if not path.is_file():
        raise InputError(f"{output} is not empty and holds no training: choose another folder (output=…)")
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        state, fingerprint, old, teachers = run["state"], run["fingerprint"], run["config"], run.get("scorer")
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise FormatError(f"{path} is damaged: choose another folder (output=…)") from error
    if fingerprint != config.fingerprint():
        changes = ", ".join(_differences(old, config.as_dict())) or "its defaults"
        raise InputError(f"{output} holds a run of another config ({changes}): choose another folder (output=…)")
    if teachers != _identity(scorer):
        raise InputError(
            f"{output} holds a run with {'other' if teachers else 'no'} teachers on the fly: train with the same "
            "scorer, or choose another folder (output=…)"
        )
    if state == "finished":
        raise InputError(f"{output} holds a finished run of this config: choose another folder (output=…), or use it")
    return next(reversed(checkpoints(output / CHECKPOINT_FOLDER).values()), None)


def open_training_set(config: TrainConfig, *, scored: bool) -> TrainingSet:
    """The training data of a config.

    Raises:
        InputError, FormatError: as `TrainingSet`.
    """
    data = config.data
    corpus = None
    if data.expansions is not None:
        corpus = expand(data.collection, data.expansions, skip_repeats=data.skip_repeats)
    sources = [
        Source(path, part.collection, corpus=corpus, weight=part.weight, skip_repeats=data.skip_repeats)
        for part in data.parts
        for path in part.files
    ]
    cache = data.cache or os.path.join(os.path.dirname(os.path.abspath(config.output)), ".cache")
    return TrainingSet(
        sources,
        data.negatives,
        config.training.seed,
        scores=scored,
        base=data.base,
        base_weight=data.base_weight,
        cache=cache,
    )


def plan(config: TrainConfig) -> str:
    """What a training will do, for people to read."""
    options = config.training
    passes = f" in {options.accumulate} passes" if options.accumulate > 1 else ""
    cached = f", {options.chunk} at a time with gradient caching" if options.chunk else ""
    regularizers = {s: getattr(config.regularizer, s) for s in ("queries", "documents")}
    described = config.as_dict()
    lines = [
        f"encoder     {config.backbone}, {json.dumps(dict(config.encoder), ensure_ascii=False)}",
        f"data        {config.data}, {config.data.negatives} negatives a query",
        f"loss        {_options(described['loss'])}",
        *(f"regularizer {side}: {_options(described['regularizer'][side])}" for side, r in regularizers.items() if r),
        f"training    {options.steps:,} steps of {options.queries_a_step} queries a process{passes}"
        f"{cached}, learning rate {options.learning_rate:g} {options.schedule} after {options.warmup} steps of warm-up",
        f"validation  {_options(described['validation']) if config.validation else 'none'}",
        f"output      {config.output}",
    ]
    return "\n".join(lines)


def _identity(scorer: Scorer | None) -> str | None:
    """What tells one scorer from another: its identity, or its name where it has none."""
    if scorer is None:
        return None
    named = scorer if hasattr(scorer, "__qualname__") else type(scorer)
    return str(getattr(scorer, "identity", f"{named.__module__}.{named.__qualname__}"))


def forget_fingerprints(encoder: Encoder) -> None:
    """Drop fingerprints that were taken before the weights changed."""
    for holder in (encoder, encoder.documents, encoder.queries):
        holder.__dict__.pop("fingerprint", None)


def _options(fields: Mapping[str, Any]) -> str:
    shown = {key: value for key, value in fields.items() if key != "name" and value is not None}
    return " ".join([str(fields.get("name", "")), ", ".join(f"{k} {v}" for k, v in shown.items())]).strip()


def _choose_weights(trainer: SparseTrainer, folder: Path) -> tuple[str, dict[str, float]]:
    """Load the weights that the config asks for; what they are, in words, and their metrics."""
    history = trainer.state.log_history
    found, scores = checkpoints(folder), scores_of(history)
    last = trainer.state.global_step
    options = trainer.config.training
    model = cast(torch.nn.Module, trainer.model)
    if options.average != "none":
        steps = list(found)[-options.keep :] if options.average == "last" else best_steps(scores, options.keep)
        load_average(model, [found[step] for step in steps])
        metrics: Mapping[str, float] = {}
        if trainer.validate is not None:
            with evaluating(model):
                metrics = trainer.validate(trainer.encoder)
        return f"mean of the checkpoints {', '.join(map(str, steps))}", dict(metrics)
    best = best_steps(scores, 1)[0] if scores else last
    if best != last:
        load_weights(model, found[best])
    lines = [line for line in history if line["step"] == best and "eval_ndcg@10" in line]
    metrics = {k.removeprefix("eval_"): v for line in lines for k, v in line.items() if k.startswith("eval_")}
    return f"step {best} of {last}" + (", the best on the validation" if scores else ""), dict(metrics)


def _write_run(output: Path, config: TrainConfig, state: str, **more: Any) -> None:
    fields = {
        "state": state,
        "fingerprint": config.fingerprint(),
        "config": config.as_dict(),
        "versions": versions(),
        "commit": commit(),
        **more,
    }
    with replacing(output / RUN_FILE) as file:
        json.dump(_finite(fields), file, indent=2, ensure_ascii=False)


def _finite(value: Any) -> Any:
    """Numbers that JSON has no name for become text."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """``key: old → new`` of what differs."""
    found = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += _differences(before, after, f"{path}{key}.")
        elif before != after and f"{path}{key}" not in ("output", "data.cache"):
            found.append(f"{path}{key}: {before} → {after}")
    return found
