"""Run an experiment from raw data to a report: each step is a command of lsr, and is run once.

    DIR/steps/NAME.json     a step: its command and a key of all that went in; once finished, seconds, machine, commit
    DIR/steps/NAME.log      what the command printed
    DIR/results/NAME.json   what it wrote with --json
    DIR/models/             trained encoders
    DIR/report.md .json .png

A step whose key is unchanged is not run again, so that an interrupted experiment goes on where it stopped: also on
another machine that steps and results were copied to, as reports need nothing else.
The key covers the command, the config that it reads, and the keys of the steps that it needs.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from functools import cache
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
    jobs: int = 1,
    report_only: bool = False,
    run: Runner | None = None,
    say: Callable[[str], object] = print,
) -> Findings:
    """Run the steps that are not done, and write the report.

    Args:
        experiment: see `lsr.eval.experiments.load_experiment`.
        folder: where everything is kept.
        jobs: steps at a time. Latencies are then measured while others run.
        report_only: run nothing, report what is done: a variant with a step missing is left out, and named.
        run: what runs a command; by default ``lsr`` in a process of its own.
        say: prints one line of progress.

    Raises:
        StepError: a command failed; those that ran beside it were waited for. Called again, the experiment goes on.
        InputError: the folder is another experiment's, jobs is below 1, or there is nothing to report.
    """
    if jobs < 1:
        raise InputError(f"{jobs} jobs: at least 1 step runs at a time")
    folder = Path(folder)
    if report_only and not folder.is_dir():
        raise InputError(f"{folder} is missing: nothing of the experiment {experiment.name} was run there")
    _claim(folder, experiment.name)
    steps = steps_of(experiment, folder)
    keys: dict[str, str] = {}
    for step in steps:
        keys[step.name] = _key(step, keys, folder)
    pending = [step for step in steps if not _done(step, keys, folder)]
    if not report_only:
        _run_all(pending, keys, folder, jobs, run or run_lsr, say, len(steps))
        pending = []
    missing = [step.name for step in pending]
    about = _about(folder, [step for step in steps if step.name not in missing])
    findings = findings_of(experiment, folder, about, missing=missing)
    write_report(findings, folder)
    return findings


def _run_all(
    pending: Sequence[Step],
    keys: Mapping[str, str],
    folder: Path,
    jobs: int,
    run: Runner,
    say: Callable[[str], object],
    total: int,
) -> None:
    """Run steps, up to ``jobs`` at a time, each after those that it needs; after a failure begin no other."""
    waiting, running, failed = list(pending), dict[Future[None], Step](), list[StepError]()
    number = total - len(pending)
    with ThreadPoolExecutor(jobs) as pool:
        while running or (waiting and not failed):
            undone = {step.name for step in (*waiting, *running.values())}
            ready = [] if failed else [step for step in waiting if undone.isdisjoint((*step.needs, *step.waits))]
            for step in ready[: jobs - len(running)]:
                number += 1
                log = folder / "steps" / f"{step.name}.log"
                say(f"[{number}/{total}] {step.name}  ({log})")
                waiting.remove(step)
                running[pool.submit(_run, step, keys[step.name], folder, log, run, jobs)] = step
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                step = running.pop(future)
                try:
                    future.result()
                except StepError as error:
                    failed.append(error)
                    say(str(error))
    if failed:
        raise failed[0]


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


def _run(step: Step, key: str, folder: Path, log: Path, run: Runner, jobs: int) -> None:
    command = list(step.command)
    if "{encoder}" in command:
        trained = _read_json(folder / "results" / f"{step.needs[0]}.json").get("encoder", "")
        command[command.index("{encoder}")] = str(trained)
    marker = {"key": key, "command": command}
    if step.output and (_marker(folder, step) != marker or (step.result and step.result.is_file())):
        shutil.rmtree(step.output, ignore_errors=True)  # only a training of the same key that did not end goes on
    if step.result:
        step.result.unlink(missing_ok=True)
    place = folder / "steps" / f"{step.name}.json"
    _write_json(place, marker)
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
    where = {"machine": {**machine(), "gpu": gpu()}, "jobs": jobs, "lsr": lsr.__version__, **commit()}
    _write_json(place, {**marker, "seconds": seconds, "ended": ended, **where})


def _key(step: Step, keys: Mapping[str, str], folder: Path) -> str:
    """A hash of the command, of the TOML and JSON files that it names, and of the steps that it needs.

    Files in the experiment's folder do not count: steps make them, whose keys are in it.
    """
    paths = [Path(part) for part in step.command if part.endswith((".toml", ".json"))]
    read = [path for path in paths if path.is_file() and not path.is_relative_to(folder)]
    contents = [path.read_text(encoding="utf-8") for path in read]
    parts = [*step.command, *contents, *(keys[name] for name in step.needs)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _done(step: Step, keys: Mapping[str, str], folder: Path) -> bool:
    marker = _marker(folder, step)
    finished = marker.get("key") == keys[step.name] and "seconds" in marker
    return finished and (step.result is None or step.result.is_file())


def _marker(folder: Path, step: Step) -> dict[str, Any]:
    return _read_json(folder / "steps" / f"{step.name}.json")


def _about(folder: Path, steps: Sequence[Step]) -> dict[str, Any]:
    """Commits, machines and time, as the steps noted them."""
    markers = {step.name: marker for step in steps if "seconds" in (marker := _marker(folder, step))}
    machines = {json.dumps(marker.get("machine"), sort_keys=True): marker.get("machine") for marker in markers.values()}
    return {
        "machines": list(machines.values()),
        "jobs": max((int(marker.get("jobs", 1)) for marker in markers.values()), default=1),
        "commits": sorted({str(marker.get("commit")) for marker in markers.values()}),
        "seconds": {name: marker["seconds"] for name, marker in markers.items()},
        "ended": max((str(marker.get("ended")) for marker in markers.values()), default=""),
        "commands": {name: ["lsr", *marker.get("command", [])] for name, marker in markers.items()},
    }


def commit() -> dict[str, str]:
    """The commit of the code that runs, "+" behind it where files are changed; outside of git ``$LSR_COMMIT``,
    or the version.
    """
    place = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=place, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
        }
    except (OSError, subprocess.CalledProcessError):
        return {"commit": os.environ.get("LSR_COMMIT") or f"version {lsr.__version__}"}


@cache
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
