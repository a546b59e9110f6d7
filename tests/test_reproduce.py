"""Experiments: the file's form, the steps, resuming, claims and the report; commands replaced by small ones."""

import itertools
import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from lsr.cli import build_parser, main
from lsr.errors import FormatError, InputError
from lsr.eval.experiments import Claim, experiments, load_experiment, steps_of
from lsr.eval.findings import System, at_flops, publish, verdict_of
from lsr.eval.reproduce import StepError, reproduce, run_lsr
from lsr.eval.significance import Interval, bootstrap, compare

EXPERIMENT = """
title = "Document weighting"
paper = "A paper"
seeds = [1, 2]
[paths]
data = "somewhere"
[evaluate]
datasets = ["{data}/a", "{data}/b"]
options = ["--exact"]
[[prepare]]
name = "mine"
command = ["mine", "{data}/a", "--out", "{folder}/negatives.jsonl"]
[[variant]]
name = "given"
model = "bm25"
[[variant]]
name = "weak"
config = "CONFIG"
overrides = ["good=0"]
[[variant]]
name = "strong"
config = "CONFIG"
overrides = ["good=1"]
[[claim]]
text = "strong beats weak"
baseline = "weak"
system = "strong"
paper = ".2 → .3"
[[claim]]
text = "nothing differs from itself"
baseline = "weak"
system = "weak"
expect = "equal"
"""
QUERIES = [f"q{i}" for i in range(40)]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "method.toml").write_text("x = 1\n")
    return tmp_path / "method.toml"


@pytest.fixture
def file(tmp_path: Path, config: Path) -> Path:
    path = tmp_path / "reproduce-weights.toml"
    path.write_text(EXPERIMENT.replace("CONFIG", str(config)))
    return path


class Commands:
    """Stands for ``lsr``: notes what it is asked for, and writes what the commands would."""

    def __init__(self, fail: str = "") -> None:
        self.asked: list[list[str]] = []
        self.fail = fail

    def __call__(self, arguments: Sequence[str], log: Path) -> int:
        self.asked.append(list(arguments))
        log.write_text("working\nlsr: it went wrong\n" if self.fail and self.fail in arguments[0] else "done\n")
        if self.fail and self.fail in arguments[0]:
            return 1
        if "--json" in arguments:
            target = Path(arguments[list(arguments).index("--json") + 1])
            target.write_text(json.dumps(getattr(self, arguments[0])(arguments)))
        return 0

    def train(self, arguments: Sequence[str]) -> dict:
        good = next(a for a in arguments if a.startswith("good="))
        seed = next(a for a in arguments if a.startswith("training.seed="))
        return {"encoder": f"{good}/{seed}", "steps": 1, "metrics": {}}

    def evaluate(self, arguments: Sequence[str]) -> dict:
        model = arguments[arguments.index("--model") + 1]
        names = [Path(a).name for before, a in itertools.pairwise(arguments) if before == "--dataset"]
        rng = np.random.default_rng(len(model))
        level = 0.6 if "good=1" in model else 0.3
        results = []
        for name in names:
            values = np.clip(rng.normal(level, 0.1, len(QUERIES)), 0, 1)
            beside = {"flops": 1.0, "document_nnz": 9, "query_nnz": 3, "latency_ms": 0.1, "index_bytes": 1e6}
            results.append(
                {
                    "collection": name,
                    "metrics": {"ndcg@10": float(values.mean())},
                    "per_query": {"ndcg@10": dict(zip(QUERIES, values.tolist(), strict=True))},
                    **beside,
                }
            )
        return {"results": results}


def test_an_experiment_becomes_commands(file: Path, config: Path, tmp_path: Path) -> None:
    steps = {step.name: step for step in steps_of(load_experiment(file), tmp_path / "out")}
    assert list(steps) == [
        "prepare.mine", "given.1.evaluate", "weak.1.train", "weak.1.evaluate", "strong.1.train", "strong.1.evaluate",
        "weak.2.train", "weak.2.evaluate", "strong.2.train", "strong.2.evaluate",
    ]  # fmt: skip
    assert steps["prepare.mine"].command == ("mine", "somewhere/a", "--out", f"{tmp_path}/out/negatives.jsonl")
    train = steps["strong.2.train"].command
    assert train[:2] == ("train", str(config))
    assert set(train) >= {"good=1", "training.seed=2", f"output={tmp_path}/out/models/strong.2"}
    evaluate = steps["strong.2.evaluate"]
    assert evaluate.needs[0] == "strong.2.train"
    assert evaluate.command[:7] == (
        "evaluate", "--model", "{encoder}", "--dataset", "somewhere/a", "--dataset", "somewhere/b",
    )  # fmt: skip
    assert "--per-query" in evaluate.command


def test_settings_change_paths_and_seeds(file: Path, tmp_path: Path) -> None:
    experiment = load_experiment(file, ["data=/else", "seeds=5"])
    steps = steps_of(experiment, tmp_path)
    assert steps[0].command[1] == "/else/a"
    assert [step.name for step in steps if "weak" in step.name] == ["weak.5.train", "weak.5.evaluate"]
    with pytest.raises(InputError, match="'steps=3' sets nothing: write seeds=1,2, one of data as key=value, or an"):
        load_experiment(file, ["steps=3"])


def test_a_setting_with_a_dot_overrides_all_trainings(file: Path, tmp_path: Path) -> None:
    steps = {step.name: step for step in steps_of(load_experiment(file, ["training.workers=1"]), tmp_path)}
    assert steps["weak.1.train"].command[2:4] == ("training.workers=1", "good=0")
    assert "training.workers=1" not in steps["given.1.evaluate"].command


def test_what_all_trainings_share_comes_before_what_a_variant_changes(file: Path, tmp_path: Path) -> None:
    file.write_text(file.read_text() + '[train]\noverrides = ["good=5", "x={data}"]\n')
    command = {step.name: step for step in steps_of(load_experiment(file), tmp_path)}["weak.1.train"].command
    assert command[2:5] == ("good=5", "x=somewhere", "good=0")


def test_a_sweep_is_a_variant_per_value(file: Path) -> None:
    text = file.read_text() + '[[variant]]\nname = "idf"\nconfig = "c.toml"\n'
    file.write_text(text + 'sweep = {"regularizer.documents.weight" = [0.1, 1], "a.b" = ["x"]}\n')
    swept = [variant for variant in load_experiment(file).variant if variant.group == "idf"]
    assert [variant.name for variant in swept] == ["idf-0.1-x", "idf-1-x"]
    assert swept[0].overrides == ("regularizer.documents.weight=0.1", "a.b=x")


def test_an_experiment_runs_to_its_report(file: Path, tmp_path: Path) -> None:
    run, said = Commands(), []
    findings = reproduce(load_experiment(file), tmp_path / "out", run=run, say=said.append)
    assert len(run.asked) == len(said) == 10
    models = [a[a.index("--model") + 1] for a in run.asked if a[0] == "evaluate"]
    assert models == ["bm25", *(f"good={g}/training.seed={s}" for s in (1, 2) for g in (0, 1))]
    strong, same = findings.verdicts
    assert (strong.verdict, same.verdict) == ("holds", "holds")
    assert strong.comparison is not None
    assert strong.comparison.difference.mean == pytest.approx(0.3, abs=0.05)
    assert strong.comparison.n_queries == 80
    systems = {system.name: system for system in findings.systems}
    assert len(systems["strong"].by_seed) == 2
    assert systems["strong"].mean.mean == pytest.approx(np.mean(systems["strong"].by_seed))
    text = (tmp_path / "out" / "report.md").read_text()
    for part in ("strong beats weak", ".2 → .3", "| holds", "Seeds 1, 2", "lsr reproduce weights"):
        assert part in text
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["claims"][0]["comparison"]["p_holm"] < 0.05
    assert written["commands"]["weak.1.train"][:2] == ["lsr", "train"]
    assert len(written["machines"]) == 1
    assert {"cpu", "gpu", "python"} <= written["machines"][0].keys()
    assert (tmp_path / "out" / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_failed_step_says_where_and_the_next_call_goes_on_there(file: Path, tmp_path: Path) -> None:
    broken = Commands(fail="train")
    with pytest.raises(StepError, match=r"weak\.1\.train failed with exit code 1 \(lsr: it went wrong\): see .*log"):
        reproduce(load_experiment(file), tmp_path / "out", run=broken, say=lambda _: None)
    run = Commands()
    reproduce(load_experiment(file), tmp_path / "out", run=run, say=lambda _: None)
    assert [asked[0] for asked in run.asked] == ["train", "evaluate"] * 4, "what was done is not done again"
    again = Commands()
    reproduce(load_experiment(file), tmp_path / "out", run=again, say=lambda _: None)
    assert again.asked == []


def test_what_changed_is_run_again_with_all_that_needs_it(file: Path, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def asked() -> list[str]:
        run = Commands()
        reproduce(load_experiment(file), out, run=run, say=lambda _: None)
        return [arguments[0] for arguments in run.asked]

    asked()
    file.write_text(file.read_text().replace("good=1", 'good=1", "more=2'))
    assert asked() == ["train", "evaluate"] * 2, "the changed variant alone"
    config.write_text("x = 2\n")
    assert asked() == ["train", "evaluate"] * 4, "every training with the config"
    (out / "results" / "given.1.evaluate.json").unlink()
    assert asked() == ["evaluate"]
    (out / "steps" / "given.1.evaluate.json").write_text("{broken")
    assert asked() == ["evaluate"]
    file.write_text(file.read_text().replace('"--out", "{folder}', '"--ranks", "1-9", "--out", "{folder}'))
    assert len(asked()) == 10


def test_steps_run_beside_one_another_each_after_what_it_needs(file: Path, tmp_path: Path) -> None:
    """No two evaluations of models that are there run at a time (they share a cache), no step before its needs."""
    file.write_text(file.read_text() + '[[variant]]\nname = "other"\nmodel = "x"\n')
    run, lock, events, most = Commands(), threading.Lock(), [], []

    def slowly(arguments: Sequence[str], log: Path) -> int:
        with lock:
            events.append((log.stem, "begin"))
            begun = Counter(name for name, _ in events)
            most.append([name for name, times in begun.items() if times == 1])
        time.sleep(0.05)
        code = run(arguments, log)
        with lock:
            events.append((log.stem, "end"))
        return code

    reproduce(load_experiment(file), tmp_path / "out", jobs=3, run=slowly, say=lambda _: None)
    assert max(map(len, most)) == 3
    assert not any({"given.1.evaluate", "other.1.evaluate"} <= set(at_once) for at_once in most)
    place = {event: i for i, event in enumerate(events)}
    for step in steps_of(load_experiment(file), tmp_path / "out"):
        for need in step.needs:
            assert place[need, "end"] < place[step.name, "begin"]
    findings = reproduce(load_experiment(file), tmp_path / "out", run=Commands(fail=" "), say=lambda _: None)
    assert findings.about["jobs"] == 3
    with pytest.raises(InputError, match="0 jobs: at least 1 step runs at a time"):
        reproduce(load_experiment(file), tmp_path / "out", jobs=0)


def test_after_a_failure_nothing_begins_and_what_runs_ends(file: Path, tmp_path: Path) -> None:
    broken, said = Commands(fail="train"), []
    with pytest.raises(StepError, match=r"\.train failed"):
        reproduce(load_experiment(file), tmp_path / "out", jobs=2, run=broken, say=said.append)
    assert [a[0] for a in broken.asked].count("train") <= 2
    run = Commands()
    reproduce(load_experiment(file), tmp_path / "out", jobs=2, run=run, say=lambda _: None)
    assert sorted(asked[0] for asked in run.asked if asked[0] != "evaluate") == ["train"] * 4


def test_what_is_done_is_reported_and_what_is_missing_named(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="is missing: nothing of the experiment weights was run there"):
        reproduce(load_experiment(file), out, report_only=True)
    assert not out.exists()
    with pytest.raises(StepError):
        reproduce(load_experiment(file), out, run=Commands(fail="train"), say=lambda _: None)
    findings = reproduce(load_experiment(file), out, report_only=True, run=Commands(fail=" "))
    assert [system.name for system in findings.systems] == ["given"]
    assert findings.missing == ("weak", "strong")
    assert [v.verdict for v in findings.verdicts] == ["not shown: not run to the end"] * 2
    assert "Not run to the end, and left out: weak, strong." in (out / "report.md").read_text()
    assert json.loads((out / "report.json").read_text())["missing"] == ["weak", "strong"]
    reproduce(load_experiment(file, ["data=a place"]), tmp_path / "else", run=Commands(), say=lambda _: None)
    assert "`lsr reproduce weights 'data=a place'` runs it again" in (tmp_path / "else" / "report.md").read_text()


def test_results_copied_from_another_machine_are_reported_as_they_are(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    reproduce(load_experiment(file), out, run=Commands(), say=lambda _: None)
    for marker in (out / "steps").glob("*.json"):
        fields = json.loads(marker.read_text())
        fields["machine"] |= {"cpu": "Another CPU", "gpu": "Another GPU"}
        marker.write_text(json.dumps(fields))
    shutil.rmtree(out / "models")
    again = Commands()
    reproduce(load_experiment(file), out, run=again, say=lambda _: None)
    assert again.asked == []
    assert "Another CPU" in (out / "report.md").read_text()
    assert "Another GPU" in (out / "report.md").read_text()


def test_only_a_training_of_the_same_key_goes_on_in_its_folder(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    kept = out / "models" / "weak.1" / "checkpoint"

    def interrupted(arguments: Sequence[str], log: Path) -> int:
        if arguments[0] == "train":
            kept.parent.mkdir(exist_ok=True)
            kept.touch()
            return 1
        return Commands()(arguments, log)

    seen = []

    def look(arguments: Sequence[str], log: Path) -> int:
        if log.stem == "weak.1.train":
            seen.append(kept.exists())
        return Commands()(arguments, log)

    with pytest.raises(StepError):
        reproduce(load_experiment(file), out, run=interrupted, say=lambda _: None)
    reproduce(load_experiment(file), out, run=look, say=lambda _: None)
    kept.parent.mkdir(exist_ok=True)
    kept.touch()
    reproduce(load_experiment(file, ["training.steps=7"]), out, run=look, say=lambda _: None)
    assert seen == [True, False]


def test_a_file_that_a_step_makes_does_not_repeat_it(file: Path, tmp_path: Path) -> None:
    file.write_text(file.read_text().replace("negatives.jsonl", "negatives.json"))

    def makes(arguments: Sequence[str], log: Path) -> int:
        if arguments[0] == "mine":
            Path(arguments[-1]).write_text("{}")
        return Commands()(arguments, log)

    reproduce(load_experiment(file), tmp_path / "out", run=makes, say=lambda _: None)
    again = Commands()
    reproduce(load_experiment(file), tmp_path / "out", run=again, say=lambda _: None)
    assert again.asked == []


def test_a_command_that_writes_no_result_has_failed(file: Path, tmp_path: Path) -> None:
    def silent(_: Sequence[str], log: Path) -> int:
        log.write_text("")
        return 0

    with pytest.raises(StepError, match=r"given\.1\.evaluate failed with exit code 0 \(it printed nothing\)"):
        reproduce(load_experiment(file), tmp_path / "out", run=silent, say=lambda _: None)


def test_a_folder_of_something_else_is_refused(file: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    for place in ("mine", "mine/notes.txt"):
        with pytest.raises(InputError, match="name another|name a folder"):
            reproduce(load_experiment(file), tmp_path / place, run=Commands())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "Document weighting"', "", "the key 'title' is missing"),
        ("[evaluate]", "[evalute]", "the key 'evalute' is unknown: known are name, title"),
        ("seeds = [1, 2]", 'seeds = ["a"]', "seeds 1 is 'a': a number is needed"),
        ("seeds = [1, 2]", "seeds = []", "seeds is empty"),
        ("seeds = [1, 2]", 'settings = ["a=b"]', "settings are given beside the file"),
        ("seeds = [1, 2]", "seeds = 3", "seeds is 3: a list is needed"),
        ('name = "strong"', 'name = "weak"', "two variants are called weak"),
        ('model = "bm25"', "", "variant given needs either a config to train or a model"),
        ('system = "strong"', 'system = "stronger"', "'stronger' of the claim 'strong beats weak' is no variant"),
        ('expect = "equal"', 'expect = "same"', 'a claim expects "better" or "equal"'),
        ('overrides = ["good=0"]', 'overide = ["good=0"]', "variant 2: the key 'overide' is unknown"),
    ],
)
def test_a_wrong_file_is_refused_in_a_sentence(file: Path, old: str, new: str, message: str) -> None:
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(InputError, match=message):
        load_experiment(file)


def test_what_is_no_file_no_toml_or_no_path_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.toml does not exist"):
        load_experiment(tmp_path / "nowhere.toml")
    file.write_text(file.read_text().replace("{data}/a", "{where}/a"))
    with pytest.raises(InputError, match="names 'where', which is not in"):
        steps_of(load_experiment(file), tmp_path)
    file.write_text("title = ")
    with pytest.raises(FormatError, match="is not valid TOML"):
        load_experiment(file)


# --- claims -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shift", "expect", "verdict"),
    [
        (0.2, "better", "holds"),
        (-0.2, "better", "the opposite"),
        (0.0, "better", "not shown"),
        (0.0, "equal", "holds"),
        (0.2, "equal", "does not hold"),
        (0.01, "equal", "not shown"),
    ],
)
def test_a_verdict_follows_from_the_interval_and_the_test(shift: float, expect: str, verdict: str) -> None:
    rng = np.random.default_rng(1)
    a = {q: float(v) for q, v in zip(QUERIES, rng.random(40), strict=True)}
    b = {q: v + shift + float(n) for (q, v), n in zip(a.items(), rng.normal(0, 0.01, 40), strict=True)}
    claim = Claim("c", "a", "b", expect, margin=0.01)
    assert verdict_of(claim, compare({"x": a}, {"x": b}, "m")) == verdict


def system(name: str, group: str, flops: float, values: list[float]) -> System:
    per_query = {"x": {f"q{i}": v for i, v in enumerate(values)}}
    return System(name, group, per_query, bootstrap([np.array(values)]), (), {}, {"flops": flops})


def test_fronts_are_compared_at_equal_flops() -> None:
    front = [system("a", "g", 1, [0.0, 0.2]), system("b", "g", 100, [0.4, 0.2])]
    halfway = at_flops(front, 10)
    assert halfway is not None
    assert halfway["x"] == pytest.approx({"q0": 0.2, "q1": 0.2})
    assert at_flops(front, 1) == front[0].per_query
    assert at_flops(front, 100) == {"x": pytest.approx({"q0": 0.4, "q1": 0.2})}
    assert at_flops(front, 0.5) is at_flops(front, 200) is at_flops(front[:1], 1) is None
    assert isinstance(front[0].mean, Interval)


def test_a_report_is_published_into_a_page_once(file: Path, tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    page.write_text("# Results\n\nBefore.\n")
    for _ in range(2):
        findings = reproduce(load_experiment(file), tmp_path / "out", run=Commands(), say=lambda _: None)
        publish(findings, tmp_path / "out", page)
        page.write_text(page.read_text() + "After.\n")
    text = page.read_text()
    assert text.startswith("# Results\n\nBefore.\n")
    assert text.count("strong beats weak") == 1
    assert text.count("After.") == 2
    assert "![](weights-report.png)" in text
    assert (tmp_path / "weights-report.png").read_bytes() == (tmp_path / "out" / "report.png").read_bytes()


def test_the_command_lists_shows_and_refuses(file: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce"]) == 1
    assert "there is no configs/reproduce-*.toml here" in capsys.readouterr().err
    (tmp_path / "configs").mkdir()
    file.rename(tmp_path / "configs" / file.name)
    assert main(["reproduce"]) == 0
    assert "weights          Document weighting" in capsys.readouterr().out
    assert main(["reproduce", "weights", "seeds=3", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "weak.3.train" in shown
    assert "lsr mine somewhere/a --out runs/reproduce-weights/negatives.jsonl" in shown
    assert not (tmp_path / "runs").exists()
    assert main(["reproduce", "wights"]) == 1
    assert "there is no experiment 'wights': it is none of weights, and no file" in capsys.readouterr().err


def test_commands_run_in_a_process_of_their_own(tmp_path: Path) -> None:
    assert run_lsr(["--version"], tmp_path / "log") == 0
    assert (tmp_path / "log").read_text().startswith("lsr ")
    assert run_lsr(["reproduce", "nowhere"], tmp_path / "log") == 1
    assert "there is no experiment 'nowhere'" in (tmp_path / "log").read_text()


CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.mark.parametrize("name", list(experiments(CONFIGS)))
def test_the_project_s_experiments_are_commands_that_parse(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step is a command that lsr takes, and every training's config and overrides load."""
    from lsr.training.config import load_config

    monkeypatch.chdir(CONFIGS.parent)
    path = experiments(CONFIGS)[name]
    assert path.read_text().startswith(f"# lsr reproduce {name}")
    parser = build_parser()
    steps = steps_of(load_experiment(path), Path("runs") / name)
    assert len({step.name for step in steps}) == len(steps) > 0
    for step in steps:
        options = parser.parse_args(list(step.command))
        if step.command[0] == "train":
            assert load_config(options.config, options.overrides).output == f"runs/{name}/models/{step.name[:-6]}"
