"""Files of results: their names, their digits, the caption that names the machine, and their plots."""

import json
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dwtriton.core.files import make_folder, write_file, write_text

RESULTS = Path(__file__).parent / "results"
TOO_LARGE = "too little memory on this GPU"
OUT_OF_TIME = "out of time"


def results_file(device: torch.device, folder: Path = RESULTS) -> Path:
    """Return the file of results of a device: one for each GPU model, and one for CPUs."""
    if device.type == "cpu":
        return folder / "cpu.json"
    from dwtriton.kernels.tuning import table_name  # needs Triton

    return folder / table_name(torch.cuda.get_device_name(device))


class Results:
    """A file of results to which rows are added one at a time; each is written at once."""

    def __init__(self, path: Path, head: dict, keys: tuple[str, ...], draw: Callable[[dict, Path], None], resume: bool):
        """With `resume`, the file's rows are kept, if they are of the same code, device and case; `keys` name a row."""
        self.path = path
        self.keys = keys
        self.draw = draw
        self.content = {**head, "rows": []}
        if resume and path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            if _origin(found) == _origin(head):
                self.content = found

    def missing(self, planned: list[dict]) -> list[dict]:
        """Return those of the planned rows that are not there: of each, all given fields have to be the same."""
        there = [row for row in self.content["rows"] if row.get("skipped") != OUT_OF_TIME]
        return [p for p in planned if not any(all(row.get(k) == v for k, v in p.items()) for row in there)]

    def add(self, row: dict) -> None:
        """Add a row, in place of one of the same name, and write the file."""
        name = [row.get(key) for key in self.keys]
        others = [other for other in self.content["rows"] if [other.get(key) for key in self.keys] != name]
        self.content["rows"] = [*others, row]
        write_results(self.content, self.path)

    def plot(self) -> None:
        """Write the file and draw its plot beside it."""
        record(self.content, self.path, self.draw)


def _origin(results: dict) -> list:
    machine = results["machine"]
    return [machine.get("name"), machine.get("code"), machine.get("torch"), results.get("case")]


def record(results: dict, path: Path, draw: Callable[[dict, Path], None]) -> None:
    """Write the results so far and their plot, so that a benchmark which is cut off leaves them."""
    write_results(results, path)
    if any("ms" in row for row in results["rows"]):
        draw(results, path.with_suffix(".png"))


def write_results(results: dict, path: Path) -> None:
    """Write the results so far, completely or not at all."""
    make_folder(path.parent)
    write_text(path, json.dumps(results, indent=2) + "\n")


def reason(error: Exception) -> str:
    """Return an error in one line, to be recorded in place of figures; the traceback goes to standard error."""
    if isinstance(error, torch.OutOfMemoryError):
        return TOO_LARGE
    traceback.print_exception(error)
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def caption(results: dict) -> str:
    """Return the machine and the versions in a line."""
    machine = results["machine"]
    names = {
        "threads": "{} threads",
        "load": "load {} before the run",
        "driver": "driver {}",
        "torch": "torch {}",
        "triton": "triton {}",
    }
    facts = [text.format(machine[name]) for name, text in names.items() if machine.get(name)]
    commit = f"commit {machine['commit'][:7]}" if machine["commit"] else "no commit"
    changes = " with changes" if machine["dirty"] else ""
    note = [results["note"]] if "note" in results else []
    copies = [f"copies at {results['copy_gb_s']:g} GB/s"] if "copy_gb_s" in results else []
    return ", ".join([machine["name"], *facts, commit + changes, machine["date"], *copies, *note])


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, without pyplot and its windows."""
    FigureCanvasAgg(figure)
    write_file(path, lambda file: figure.savefig(file, format="png", dpi=110))


def significant(number: float) -> float:
    """Round to three digits: the rest is noise."""
    return float(f"{number:.3g}")
