"""Run an experiment from raw data to a report: each step is a command of lsr, and is run once.

    DIR/steps/NAME.json     a finished step: its command, a key of all that went in, seconds, commit
    DIR/steps/NAME.log      what the command printed
    DIR/results/NAME.json   what it wrote with --json
    DIR/models/             trained encoders
    DIR/report.md .json .png

A step whose key is unchanged is not run again, so that an interrupted experiment goes on where it stopped.
The key covers the command, the config that it reads, and the keys of the steps that it needs.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import lsr
from lsr.errors import InputError, LsrError
from lsr.eval.bench import machine
from lsr.eval.experiments import Experiment, Step, steps_of
from lsr.eval.findings import Findings, findings_of, write_report
from lsr.files import replacing

#: Runs ``lsr`` with these arguments, its output going to the file; returns the exit code.
Runner: TypeAlias = Callable[[Sequence[str], Path], int]


class StepError(LsrError):
    """A step of an experiment failed; those before it are kept."""


def reproduce(
    experiment: Experiment,
    folder: str | os.PathLike[str],
    *,
    run: Runner | None = None,
    say: Callable[[str], object] = print,
) -> Findings:
    """Run the steps that are not done, and write the report.

    Args:
        experiment: see `lsr.eval.experiments.load_experiment`.
        folder: where everything is kept.
        run: what runs a command; by default ``lsr`` in a process of its own.
        say: prints one line of progress.

    Raises:
        StepError: a command failed. Called again, the experiment goes on there.
        InputError: the folder is another experiment's.
    """
    folder = Path(folder)
    _claim(folder, experiment.name)
    steps = steps_of(experiment, folder)
    keys: dict[str, str] = {}
    for number, step in enumerate(steps, start=1):
        keys[step.name] = key = _key(step, keys)
        done = _marker(folder, step)
        if done.get("key") == key and (step.result is None or step.result.is_file()):
            continue
        log = folder / "steps" / f"{step.name}.log"
        say(f"[{number}/{len(steps)}] {step.name}  ({log})")
        _run(step, key, folder, log, run or run_lsr)
    findings = findings_of(experiment, folder, _about(folder, steps))
    write_report(findings, folder)
    return findings


def run_lsr(arguments: Sequence[str], log: Path) -> int:
    """Run ``lsr`` in a process of its own: what it takes of memory, also of a GPU's, is free afterwards."""
    with log.open("w", encoding="utf-8") as file:
        command = [sys.executable, "-m", "lsr.cli", *arguments]
        return subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode


def _claim(folder: Path, name: str) -> None:
    """Make the folder the experiment's own."""
    mark = folder / "experiment.json"
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: name a folder")
    if folder.is_dir() and any(folder.iterdir()):
        theirs = _read_json(mark).get("experiment")
        if theirs != name:
            raise InputError(f"{folder} holds {theirs or 'something'} that is not the experiment {name}: name another")
    for part in ("steps", "results", "models"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    _write_json(mark, {"experiment": name})


def _run(step: Step, key: str, folder: Path, log: Path, run: Runner) -> None:
    command = list(step.command)
    if "{encoder}" in command:
        trained = _read_json(folder / "results" / f"{step.needs[0]}.json").get("encoder", "")
        command[command.index("{encoder}")] = str(trained)
    if step.result:
        step.result.unlink(missing_ok=True)
    start = time.perf_counter()
    code = run(command, log)
    if code or (step.result and not step.result.is_file()):
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.is_file() else []
        raise StepError(
            f"the step {step.name} failed with exit code {code} ({last[-1] if last else 'it printed nothing'}): "
            f"see {log}, and call the same command again to go on there"
        )
    seconds = round(time.perf_counter() - start, 1)
    ended = datetime.now(UTC).isoformat(timespec="seconds")
    _write_json(
        folder / "steps" / f"{step.name}.json",
        {"key": key, "command": command, "seconds": seconds, "ended": ended, "lsr": lsr.__version__, **commit()},
    )


def _key(step: Step, keys: dict[str, str]) -> str:
    """A hash of the command, of the TOML and JSON files that it names, and of the steps that it needs."""
    read = [Path(part) for part in step.command if part.endswith((".toml", ".json")) and Path(part) != step.result]
    contents = [path.read_text(encoding="utf-8") if path.is_file() else "" for path in read]
    parts = [*step.command, *contents, *(keys[name] for name in step.needs)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _marker(folder: Path, step: Step) -> dict[str, Any]:
    return _read_json(folder / "steps" / f"{step.name}.json")


def _about(folder: Path, steps: Sequence[Step]) -> dict[str, Any]:
    """Commit, machine and time."""
    markers = {step.name: _marker(folder, step) for step in steps}
    return {
        "machine": {**machine(), "gpu": gpu()},
        "commits": sorted({str(marker.get("commit")) for marker in markers.values()}),
        "seconds": {name: marker.get("seconds") for name, marker in markers.items()},
        "ended": max((str(marker.get("ended")) for marker in markers.values()), default=""),
        "commands": {name: ["lsr", *marker.get("command", [])] for name, marker in markers.items()},
    }


def commit() -> dict[str, str]:
    """The commit of the code that runs, "+" behind it where files are changed; the version without git."""
    place = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=place, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
        }
    except (OSError, subprocess.CalledProcessError):
        return {"commit": f"version {lsr.__version__}"}


def gpu() -> str | None:
    """The name of the GPU that trainings used, None without one."""
    try:
        import torch
    except ModuleNotFoundError:
        return None
    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else None


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file; an empty one where there is none, or it is damaged: then the step is run again."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _write_json(path: Path, value: Any) -> None:
    with replacing(path) as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
