"""The comparison of assigners: fair, resumable run by run, and its tables say what was run."""

import json
import sys
import time

import pytest

from benchmarks import assigner_costs, assigners, assigners_report, report
from benchmarks.assigner_runs import LEARNING_RATES, SEEDS, TABLES, TRIAL_SEED, Run, best_rate, count_runs, next_runs
from benchmarks.cases import Size
from dwtriton.config.load import flatten, load_config
from dwtriton.core.errors import UserError
from dwtriton.model.losses import build_loss

QUALITY = {"dual_weight": 0.3, "fcos": 0.2, "atss": 0.25, "simota": 0.1, "tal": 0.28}
COSTS = [{"row": "tal", "case": "shapes", "ms": 1.5, "extra_mb": 2.0}]


def made_up_ap(run):
    """Best at the middle rate; seeds differ."""
    return round(QUALITY[run.row] - 10 * abs(run.lr - LEARNING_RATES[1]) + 0.01 * (run.seed % TRIAL_SEED), 3)


def script(run, args):
    """In place of training: a file of metrics with one evaluation."""
    row = {"kind": "evaluation", "iteration": 1, "epoch": 1} | {name: made_up_ap(run) for name in assigners.METRICS}
    folder = args.runs / run.name
    code = f"import pathlib; folder = pathlib.Path({str(folder)!r}); folder.mkdir(exist_ok=True)\n"
    code += f"(folder / 'metrics.jsonl').write_text({json.dumps(row)!r} + chr(10)); (folder / 'last.pt').touch()"
    return [sys.executable, "-S", "-c", code]


@pytest.fixture
def compare(tmp_path, monkeypatch):
    """Call the command with made-up runs; returns its results."""
    monkeypatch.setattr(assigners, "command", script)
    monkeypatch.setattr(assigners, "draw_missing_shapes", lambda *_: None)
    monkeypatch.setattr(assigners, "measure_costs", lambda _device: COSTS)
    monkeypatch.setattr(assigners, "SECONDS_BETWEEN_LOOKS", 0.002)
    monkeypatch.setattr(assigners.signal, "signal", lambda *_: None)

    def call(*arguments):
        out = tmp_path / "assigners" / "cpu.json"
        assigners.main(["--runs", str(tmp_path / "runs"), "--out", str(out), *arguments])
        return json.loads(out.read_text())

    return call


def test_every_run_is_a_config_and_those_of_a_table_differ_in_the_assigner_alone():
    for table in TABLES:
        configs = {}
        for run in next_runs([], [table]):
            cfg = load_config("shapes", run.settings())
            build_loss(cfg.loss)
            configs[run] = flatten(cfg)
        assert len(configs) == len(TABLES[table].rows) * len(LEARNING_RATES)
        first = next(iter(configs.values()))
        for run, values in configs.items():
            changed = {key for key, value in values.items() if value != first[key]}
            assert all(key == "optimizer.lr" or key.startswith("loss.") for key in changed), (run, changed)
            assert values["loss.weight_loc"] == 1
            assert values["train.seed"] == TRIAL_SEED
            assert TRIAL_SEED not in SEEDS


def test_seeds_follow_at_the_best_rate_of_each_row():
    rows = [run._asdict() | {"AP": made_up_ap(run)} for run in next_runs([], ["headline"])]
    assert best_rate(rows, "headline", "tal") == LEARNING_RATES[1]
    assert best_rate(rows[:-1], "headline", "tal") is None
    for row in rows[-3:]:
        row.pop("AP")
        row["failed"] = "the loss is not finite"
    assert best_rate(rows, "headline", "tal") is None
    following = list(next_runs(rows, ["headline"]))
    assert [run.seed for run in following] == [seed for seed in SEEDS for _ in range(4)]
    assert {(run.row, run.lr) for run in following} == {(name, LEARNING_RATES[1]) for name in QUALITY if name != "tal"}


def test_it_goes_on_where_it_was_stopped_and_its_tables_say_what_was_run(compare, tmp_path, monkeypatch, capsys):
    assert compare("--tables", "headline", "--minutes", "0")["rows"] == []
    outcome = assigners.outcome
    monkeypatch.setattr(assigners, "outcome", interrupted_after(4, outcome))
    with pytest.raises(KeyboardInterrupt):
        compare("--tables", "headline")
    monkeypatch.setattr(assigners, "outcome", outcome)
    results = json.loads((tmp_path / "assigners" / "cpu.json").read_text())
    assert len(results["rows"]) == 4
    table = assigners_report.markdown_table(results)
    assert "| dual_weight | 0.004 | 3 trial runs |" in table
    assert "| fcos |  | 1 trial runs |" in table
    before = [Run(*(row[field] for field in Run._fields)) for row in results["rows"]]

    results = compare("--tables", "headline")
    assert len(results["rows"]) == count_runs(["headline"]) == 5 * (3 + 3)
    assert [Run(*(row[field] for field in Run._fields)) for row in results["rows"]][:4] == before
    assert {row["lr"] for row in results["rows"] if row["seed"] != TRIAL_SEED} == {LEARNING_RATES[1]}
    kept = {path.parent.name for path in (tmp_path / "runs").glob("*/last.pt")}
    assert all(name.endswith(f"seed{SEEDS[0]}") for name in kept)
    assert len(kept) == 5

    table, draw = report.VIEWS["assigners"]
    text = table(results)
    assert text in capsys.readouterr().out
    assert "| dual_weight | 0.004 | 31.0 ± 1.0 | " in text
    assert "| tal | 0.004 | 29.0 ± 1.0 (-2.0 ± 0.0) | " in text
    assert "**Ablations of Dual Weighting, normal head**: not run" in text
    assert "| tal | 1.5 (2) |" in text
    draw(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").exists()


def interrupted_after(count, outcome):
    """Ctrl-C after so many runs."""
    calls = []

    def one(*arguments):
        calls.append(arguments)
        if len(calls) > count:
            raise KeyboardInterrupt
        return outcome(*arguments)

    return one


def test_another_budget_is_refused(compare):
    compare("--tables", "headline", "--minutes", "0")
    with pytest.raises(UserError, match=r"cpu\.json is of runs with another budget: delete it, or name another --out"):
        compare("--tables", "headline", "--minutes", "0", "--set", "schedule.epochs=1")


def test_a_failed_run_is_a_row_and_a_killed_one_is_none(compare, tmp_path, monkeypatch):
    fail = [sys.executable, "-S", "-c", "raise SystemExit('error: the loss of iteration 7 is nan')"]
    kill = [sys.executable, "-S", "-c", "import os; os.kill(os.getpid(), 9)"]

    def some_fail(run, args):
        return fail if run.row == "tal" else script(run, args)

    monkeypatch.setattr(assigners, "command", some_fail)
    results = compare("--tables", "headline")
    failed = [row for row in results["rows"] if row["row"] == "tal"]
    assert len(failed) == 3  # no seeds: there is no rate for them
    assert failed[0]["failed"] == "error: the loss of iteration 7 is nan"
    assert "| tal |  | failed in 3 of 3 runs |" in assigners_report.markdown_table(results)
    monkeypatch.setattr(assigners, "command", lambda *_: kill)
    with pytest.raises(UserError, match=r"was stopped from outside: the same command continues it"):
        compare("--tables", "light")
    assert len(json.loads((tmp_path / "assigners" / "cpu.json").read_text())["rows"]) == len(results["rows"])


def test_runs_are_stopped_with_the_command(compare, tmp_path, monkeypatch):
    """They are asked to, as a terminal does, so that they save their state."""
    code = (
        "import signal, sys, time, pathlib; signal.signal(15, lambda *_: (pathlib.Path({!r}).touch(), sys.exit(130)))"
    )
    code += "; pathlib.Path({!r}).touch(); time.sleep(60)"
    ready, saved = tmp_path / "ready", tmp_path / "saved"
    monkeypatch.setattr(
        assigners, "command", lambda *_: [sys.executable, "-S", "-c", code.format(str(saved), str(ready))]
    )

    def interrupt(_seconds):
        if ready.exists():
            raise KeyboardInterrupt
        real_sleep(0.01)

    real_sleep = time.sleep
    monkeypatch.setattr(assigners.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        compare("--tables", "headline", "--jobs", "1")
    assert saved.exists()


def test_a_run_continues_at_its_checkpoint(tmp_path):
    args = assigners.read_arguments(["--runs", str(tmp_path), "--set", "train.seed=5"])
    run = Run("headline", "tal", 0.001, 0)
    begun = assigners.command(run, args)
    assert {"--set=loss.assigner=tal", "--set=optimizer.lr=0.001", "--set=train.seed=5"} <= set(begun)
    (tmp_path / run.name).mkdir()
    (tmp_path / run.name / "last.pt").touch()
    continued = assigners.command(run, args)
    assert continued[-1] == "--resume"
    assert str(tmp_path / run.name) in continued


def test_the_trees_need_their_folder(capsys):
    with pytest.raises(SystemExit):
        assigners.read_arguments(["--tables", "trees"])
    assert "--trees DIR" in capsys.readouterr().err
    assert "trees" not in assigners.read_arguments([]).tables
    assert "trees" in assigners.read_arguments(["--trees", "x"]).tables


def test_each_loss_has_a_cost(monkeypatch):
    rows = {"tal": TABLES["headline"].rows["tal"]}
    monkeypatch.setattr(assigner_costs, "SECONDS", 0)
    monkeypatch.setattr(assigner_costs, "CASES", {"small": (Size(64, 96, 8), 2, 3)})
    monkeypatch.setattr(assigner_costs, "TABLES", {"headline": TABLES["headline"]._replace(rows=rows)})
    costs = assigner_costs.measure_costs(assigners.torch.device("cpu"))
    assert [(cost["row"], cost["case"]) for cost in costs] == [("tal", "small")]
    assert costs[0]["ms"] > 0
    assert costs[0]["extra_mb"] > 0
