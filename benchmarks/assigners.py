"""Assigners side by side: one detector, the same data and budget, each assigner at its own best learning rate.

    python -m benchmarks.assigners --minutes 90

trains the config `shapes` from scratch, on smaller images and for fewer epochs, with each assigner: once for each
learning rate on a seed that is not reported, then at the best rate on the reported seeds. Runs of the same seed begin
with the same weights and see the same batches. Each finished run is at once a row of
benchmarks/results/assigners/MACHINE.json. Called again, the command goes on where it was stopped, with interrupted runs
at their last checkpoint. `python -m benchmarks.report` then puts the tables into docs/assigners.md.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.assigner_costs import measure_costs
from benchmarks.assigner_runs import BUDGET, LEARNING_RATES, SEEDS, TABLES, TRIAL_SEED, Run, count_runs, next_runs
from benchmarks.assigners_report import draw, markdown_table
from benchmarks.machine import ROOT, machine
from benchmarks.recording import RESULTS, results_file, significant, write_results
from dwtriton.config.load import load_config
from dwtriton.console.cli import print_line, print_text, run
from dwtriton.console.progress import ProgressDisplay
from dwtriton.core.errors import UserError
from dwtriton.core.files import make_folder, write_text
from dwtriton.data.prepare import draw_missing_shapes
from dwtriton.train.metrics import read_metrics

SECONDS_BETWEEN_LOOKS = 0.5
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
STOPPED = 130  # exit code of a run that was asked to stop


def main(arguments: list[str] | None = None) -> int:
    args, console = read_arguments(arguments), Console()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the runs are stopped with this process
    results = open_results(args)
    for table in args.tables:
        settings = [*TABLES[table].settings, *args.set]
        draw_missing_shapes(load_config("shapes", settings, data_folder(table, args)).data, console)
    if "costs" not in results:
        print_line(console, "measuring time and memory of the losses")
        results["costs"] = measure_costs(args.device)
        write_results(results, args.out)
    train_all(args, results, console)
    draw(results, args.out.with_suffix(".png"))
    print_text(console, f"{markdown_table(results)}\n\nwritten to {args.out}")
    return 0


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=TABLES, help="which, in which order (default: all)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which no further run is begun")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each (default: %(default)s)")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="change the budget of all runs")
    parser.add_argument("--trees", type=Path, help="folder of the photographs of the table `trees`")
    parser.add_argument("--runs", type=Path, default=Path("runs/assigners"), help="folder of data and checkpoints")
    parser.add_argument("--out", type=Path, help="JSON file; the plot goes beside it")
    args = parser.parse_args(arguments)
    args.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    args.out = args.out or results_file(args.device, RESULTS / "assigners")
    args.tables = args.tables or [table for table in TABLES if table != "trees" or args.trees]
    if "trees" in args.tables and not args.trees:
        parser.error("the table trees needs a folder of photographs: --trees DIR")
    return args


def open_results(args: argparse.Namespace) -> dict:
    """Return the results so far. Raises UserError if they, or the checkpoints, are of another budget."""
    budget = [*BUDGET, *args.set]
    case = {"budget": budget, "rates": list(LEARNING_RATES), "trial_seed": TRIAL_SEED, "seeds": list(SEEDS)}
    results = {"machine": machine(args.device), "case": case, "rows": []}
    results["machine"]["threads"] = 1 if args.device.type == "cpu" else results["machine"].get("threads")
    checkpoints = args.runs / "case.json"
    for file in (args.out, checkpoints):
        if file.exists() and json.loads(file.read_text(encoding="utf-8"))["case"] != case:
            raise UserError(f"{file} is of runs with another budget: delete it, or name another --out and --runs")
    make_folder(args.runs)
    write_text(checkpoints, json.dumps({"case": case}))
    if args.out.exists():
        results = json.loads(args.out.read_text(encoding="utf-8")) | {"machine": results["machine"]}
    return results


def data_folder(table: str, args: argparse.Namespace) -> Path:
    return args.trees if table == "trees" else args.runs / TABLES[table].data


def train_all(args: argparse.Namespace, results: dict, console: Console) -> None:
    """Train what is missing, some runs at a time; stop them if this process is stopped."""
    rows, running = results["rows"], {}
    done = sum(row["table"] in args.tables for row in rows)
    seconds, began = 60 * args.minutes, time.monotonic()
    display = ProgressDisplay(console, "runs", count_runs(args.tables), done=done, time_limit=seconds)
    with display:
        try:
            while True:
                if time.monotonic() - began < seconds:
                    waiting = (run for run in next_runs(rows, args.tables) if run not in running)
                    for run in islice(waiting, args.jobs - len(running)):
                        running[run] = start(run, args)
                        print_line(console, f"begun: {run.name}")
                if not running:
                    return
                time.sleep(SECONDS_BETWEEN_LOOKS)
                for run in [run for run, process in running.items() if process.poll() is not None]:
                    row = run._asdict() | {"commit": results["machine"]["commit"]}
                    rows.append(row | outcome(run, running.pop(run).returncode, args))
                    write_results(results, args.out)
                    print_line(console, f"{run.name}: {rows[-1].get('failed') or 'AP {AP:.3f}'.format(**rows[-1])}")
                    display.advance()
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.wait()


def start(run: Run, args: argparse.Namespace) -> subprocess.Popen:
    """Begin a run, or continue one that has a checkpoint; what it prints goes into a file beside its folder."""
    threads = {"OMP_NUM_THREADS": "1"} if args.device.type == "cpu" else {}
    with (args.runs / f"{run.name}.log").open("a", encoding="utf-8") as log:
        return subprocess.Popen(
            command(run, args),
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=Path.cwd(),
            env=os.environ | threads | {"PYTHONPATH": str(ROOT)},
        )


def command(run: Run, args: argparse.Namespace) -> list[str]:
    """Return the command line of a run."""
    folder = args.runs / run.name
    train = [sys.executable, "-m", "dwtriton.train", "--out", str(folder)]
    if (folder / "last.pt").exists():
        return [*train, "--resume"]
    changes = [f"--set={setting}" for setting in [*run.settings(), *args.set]]
    return [*train, "--cfg", "shapes", "--data", str(data_folder(run.table, args)), *changes]


def outcome(run: Run, code: int, args: argparse.Namespace) -> dict:
    """Return the metrics of a run that ended, or why it failed; delete its checkpoints, but for the first seed's.

    Raises UserError if the run was stopped or killed: it has no outcome yet.
    """
    folder, log = args.runs / run.name, args.runs / f"{run.name}.log"
    if code < 0 or code == STOPPED:
        raise UserError(f"{run.name} was stopped from outside: the same command continues it; it printed {log}")
    if code:
        last = log.read_text(encoding="utf-8").strip().splitlines()[-1:]
        return {"failed": " ".join(last)}
    found = [row for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == "evaluation"][-1]
    if run.seed != SEEDS[0]:
        for checkpoint in folder.glob("*.pt"):
            checkpoint.unlink()
    return {name: significant(found[name]) for name in METRICS}


if __name__ == "__main__":
    run(main)
