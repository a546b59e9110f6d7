"""Checkpoints of a run: which are complete, which are kept, and their average."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch

from lsr.errors import FormatError

WEIGHTS_FILE = "model.safetensors"
OBJECTIVE_FILE = "objective.safetensors"
STATE_FILE = "trainer_state.json"
PREFIX = "checkpoint-"


def checkpoints(folder: Path) -> dict[int, Path]:
    """The complete checkpoints of a folder by step, ascending; the state is what is written last."""
    found = {
        int(path.name.removeprefix(PREFIX)): path
        for path in folder.glob(f"{PREFIX}*")
        if path.name.removeprefix(PREFIX).isdigit() and (path / STATE_FILE).is_file()
    }
    return dict(sorted(found.items()))


def best_steps(scores: Mapping[int, float], count: int) -> list[int]:
    """The ``count`` steps of the highest scores, the best first; of two that are equal the earlier."""
    return sorted(scores, key=lambda step: (-scores[step], step))[:count]


def prune(folder: Path, kept: Iterable[int]) -> None:
    """Delete the checkpoints of the other steps."""
    kept = set(kept)
    for step, path in checkpoints(folder).items():
        if step not in kept:
            shutil.rmtree(path)


def load_weights(model: torch.nn.Module, folder: Path) -> None:
    """Load a checkpoint's weights, shared ones included.

    Raises:
        FormatError: they are missing, damaged, or another model's.
    """
    try:
        safetensors.torch.load_model(model, folder / WEIGHTS_FILE)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FormatError(f"{folder / WEIGHTS_FILE} cannot be loaded: {reason}") from error


def load_average(model: torch.nn.Module, folders: Sequence[Path]) -> None:
    """Load the mean of several checkpoints' weights; the sum is taken in float64."""
    names = {name for name, tensor in model.state_dict(keep_vars=True).items() if tensor.is_floating_point()}
    sums: dict[str, torch.Tensor] = {}
    for folder in folders:
        load_weights(model, folder)
        for name, tensor in model.state_dict().items():
            if name in names:
                sums[name] = sums.get(name, 0) + tensor.double() / len(folders)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name in names:
                tensor.copy_(sums[name])
