"""Experiments as TOML files: what is prepared, trained and evaluated, and which claims are held against it.

    title = "…"
    paper = "Nguyen, MacAvaney, Yates, ECIR 2023, arXiv 2303.13416"
    metric = "ndcg@10"                    # of claims and figure
    seeds = [1, 2, 3]                     # of trainings

    [paths]                               # names for {name} in all strings; lsr reproduce NAME name=value sets them,
                                          # and KEY.KEY=value adds to the overrides of all trainings
    data = "../shared/data"

    [evaluate]
    datasets = ["{data}/cranfield"]
    options = ["--exact"]                 # of lsr evaluate

    [train]                               # of all variants that are trained
    overrides = ["training.steps=3000"]

    [[prepare]]                           # any lsr command, run before the variants
    name = "negatives"
    command = ["mine", "{data}/medquad", "--model", "bm25", "--out", "{folder}/negatives.jsonl.gz"]

    [[variant]]                           # trained with lsr train, once per seed, or there already: model = "…"
    name = "qMLP-dMLM"
    config = "configs/….toml"
    overrides = ["encoder.queries.head=mlp"]
    sweep = { "regularizer.documents.weight" = [0.01, 0.1] }      # one variant for each value
    group = "…"                           # of a sweep's curve

    [[claim]]
    text = "document weighting matters most"
    baseline = "qMLP-dBINARY"             # variants; or groups, compared at equal FLOPS with at = "flops"
    system = "qMLP-dMLP"
    expect = "better"                     # or "equal", within margin = 0.01
    paper = "MRR@10 .258 → .353"

{folder} is the experiment's folder, {seed} the seed.
"""

import itertools
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from lsr.errors import FormatError, InputError

EXPECTATIONS = ("better", "equal")


@dataclass(frozen=True)
class Prepare:
    """An lsr command before the variants. ``report`` and ``figures`` are files it makes for the report."""

    name: str
    command: tuple[str, ...]
    report: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Variant:
    """A system: trained by ``config`` and ``overrides``, or a ``model`` that is there.

    ``sweep`` gives keys of the config several values; each combination is a variant of its own. ``options``
    are added to its evaluation.
    """

    name: str
    config: str = ""
    model: str = ""
    overrides: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    group: str = ""
    sweep: Mapping[str, Sequence[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """What a paper found: ``system`` against ``baseline``, and what to expect here."""

    text: str
    baseline: str
    system: str
    expect: str = "better"
    margin: float = 0.01
    at: str = ""
    paper: str = ""


@dataclass(frozen=True)
class Evaluate:
    """On which collections, and with which options of ``lsr evaluate``."""

    datasets: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Train:
    """What all trained variants override in their configs."""

    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Experiment:
    """A file read; the module's docstring has its form. ``settings`` are what was set beside it."""

    name: str
    title: str
    paper: str = ""
    metric: str = "ndcg@10"
    seeds: tuple[int, ...] = (1,)
    paths: Mapping[str, str] = field(default_factory=dict)
    evaluate: Evaluate = field(default_factory=Evaluate)
    train: Train = field(default_factory=Train)
    prepare: tuple[Prepare, ...] = ()
    variant: tuple[Variant, ...] = ()
    claim: tuple[Claim, ...] = ()
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """A command of ``lsr`` and the JSON file that it leaves.

    Attributes:
        name: unique in the experiment.
        command: its arguments; ``{encoder}`` stands for the encoder that the first of ``needs`` trained.
        result: what --json writes, None for a command that writes files of its own.
        needs: steps that must be done before, and whose repetition repeats this one.
        waits: steps that only may not run at the same time: they share entries of a cache, or scores on disk.
        output: the folder that a training fills and goes on from.
    """

    name: str
    command: tuple[str, ...]
    result: Path | None = None
    needs: tuple[str, ...] = ()
    waits: tuple[str, ...] = ()
    output: Path | None = None


def load_experiment(path: str | os.PathLike[str], settings: Sequence[str] = ()) -> Experiment:
    """Read an experiment's file.

    Args:
        path: the TOML file.
        settings: ``key=value``: ``seeds=1,2``, one of the names in [paths], or an override of all trainings, whose
            key has a dot, such as ``training.workers=1``.

    Raises:
        InputError: the file is missing, a key is unknown or missing, or a claim is about no variant.
        FormatError: it is not TOML.
    """
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: experiments are configs/reproduce-NAME.toml") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"{path} is not valid TOML: {error}") from error
    values.setdefault("name", path.stem.removeprefix("reproduce-"))
    if "settings" in values:
        raise InputError(f"{path}: settings are given beside the file, not in it")
    for setting in settings:
        _set(values, setting)
    experiment = replace(_read(Experiment, values, str(path)), settings=tuple(settings))
    return _checked(replace(experiment, variant=tuple(v for one in experiment.variant for v in _swept(one))), path)


def experiments(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Name → file of the experiments in a folder."""
    return {p.stem.removeprefix("reproduce-"): p for p in sorted(Path(folder).glob("reproduce-*.toml"))}


def steps_of(experiment: Experiment, folder: Path) -> list[Step]:
    """All commands of an experiment, in an order in which they can be run.

    Seeds are the outer loop: when an experiment is stopped, its first seed is the first to be complete.

    Raises:
        InputError: a string names a path that is not in [paths].
    """
    known = {**experiment.paths, "folder": str(folder)}

    def filled(texts: Sequence[str], **more: Any) -> tuple[str, ...]:
        return tuple(_fill(text, {**known, **more}, experiment.name) for text in texts)

    steps = []
    for number, prepare in enumerate(experiment.prepare):
        before = tuple(f"prepare.{earlier.name}" for earlier in experiment.prepare[:number])
        steps.append(Step(f"prepare.{prepare.name}", filled(prepare.command), needs=before))
    prepared = tuple(step.name for step in steps)
    datasets = [part for name in filled(experiment.evaluate.datasets) for part in ("--dataset", name)]
    given: tuple[str, ...] = ()
    for seed, variant in itertools.product(experiment.seeds, experiment.variant):
        if seed not in seeds_of(experiment, variant):
            continue
        name = f"{variant.name}.{seed}"
        model, needs, waits = variant.model, prepared, given
        if variant.config:
            result, output = folder / "results" / f"{name}.train.json", folder / "models" / name
            overrides = [*experiment.train.overrides, *variant.overrides, f"training.seed={seed}", f"output={output}"]
            command = filled(["train", variant.config, *overrides, "--json", str(result)], seed=seed)
            steps.append(Step(f"{name}.train", command, result, prepared, output=output))
            model, needs, waits = "{encoder}", (f"{name}.train", *prepared), ()
        else:
            given = (f"{name}.evaluate",)  # an ensemble's members are other variants' models
        result = folder / "results" / f"{name}.evaluate.json"
        options = [*experiment.evaluate.options, *variant.options, "--per-query", "--json", str(result)]
        command = filled(["evaluate", "--model", model, *datasets, *options], seed=seed, encoder="{encoder}")
        steps.append(Step(f"{name}.evaluate", command, result, needs, waits))
    return steps


def seeds_of(experiment: Experiment, variant: Variant) -> tuple[int, ...]:
    """The seeds that a variant is run with: one that is not trained needs no second."""
    return experiment.seeds if variant.config else experiment.seeds[:1]


def _swept(variant: Variant) -> list[Variant]:
    """One variant for each combination of a sweep's values."""
    found = []
    for values in itertools.product(*variant.sweep.values()):
        chosen = [f"{key}={value}" for key, value in zip(variant.sweep, values, strict=True)]
        name = "-".join([variant.name, *map(str, values)])
        overrides = (*variant.overrides, *chosen)
        found.append(replace(variant, name=name, overrides=overrides, sweep={}, group=variant.group or variant.name))
    return found if variant.sweep else [variant]


def _checked(experiment: Experiment, path: Path) -> Experiment:
    names = [variant.name for variant in experiment.variant]
    groups = {variant.group for variant in experiment.variant if variant.group}
    repeated = {name for name in names if names.count(name) > 1}
    if repeated or not experiment.seeds:
        raise InputError(f"{path}: {'two variants are called ' + min(repeated) if repeated else 'seeds is empty'}")
    if experiment.variant and not experiment.evaluate.datasets:
        raise InputError(f"{path}: there are variants but no evaluate.datasets to evaluate them on")
    for variant in experiment.variant:
        if bool(variant.config) == bool(variant.model):
            raise InputError(f"{path}: variant {variant.name} needs either a config to train or a model")
    for claim in experiment.claim:
        if claim.expect not in EXPECTATIONS or claim.at not in ("", "flops"):
            raise InputError(f'{path}: a claim expects "better" or "equal", at = "flops" or nothing: {claim.text!r}')
        for side in (claim.baseline, claim.system):
            if side not in (groups if claim.at else names):
                raise InputError(
                    f"{path}: {side!r} of the claim {claim.text!r} is no {'group' if claim.at else 'variant'}"
                )
    return experiment


def _set(values: dict[str, Any], setting: str) -> None:
    key, equals, value = setting.partition("=")
    paths = values.get("paths", {})
    if equals and key == "seeds" and all(part.strip().isdecimal() for part in value.split(",")):
        values["seeds"] = [int(part) for part in value.split(",")]
    elif equals and key in paths:
        paths[key] = value
    elif equals and "." in key:
        train = values.setdefault("train", {})
        train["overrides"] = [*train.get("overrides", []), setting]
    else:
        raise InputError(
            f"{setting!r} sets nothing: write seeds=1,2, one of {', '.join(paths) or 'no paths'} as key=value, or an "
            "override of all trainings such as training.workers=1"
        )


def _fill(text: str, known: Mapping[str, Any], name: str) -> str:
    try:
        return text.format_map(known)
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(f"{name}: {text!r} names {error}, which is not in [paths]") from error


def _read(kind: Any, values: Any, where: str) -> Any:
    """A dataclass from a TOML table: known keys of the right type only."""
    if not isinstance(values, Mapping):
        raise InputError(f"{where}: a table is needed, not {values!r}")
    known = {f.name: f for f in fields(kind)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise InputError(f"{where}: the key {unknown[0]!r} is unknown: known are {', '.join(known)}")
    missing = [n for n, f in known.items() if n not in values and f.default is f.default_factory is MISSING]
    if missing:
        raise InputError(f"{where}: the key {missing[0]!r} is missing")
    hints = get_type_hints(kind)
    return kind(**{name: _value(hints[name], value, f"{where}: {name}") for name, value in values.items()})


def _value(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _read(kind, value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_value(arguments[0], one, f"{where} {number}") for number, one in enumerate(value, start=1))
    if kind is float and type(value) is int:
        return float(value)
    wanted = list if origin is tuple else origin or kind
    if not isinstance(value, wanted) or isinstance(value, bool):
        raise InputError(f"{where} is {value!r}: a {_NOUNS[wanted]} is needed")
    return value


_NOUNS = {str: "string", int: "number", float: "number", list: "list", Mapping: "table"}
