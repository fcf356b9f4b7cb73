"""Files of results: their names, their digits, the caption that names the machine, and their plots."""

import json
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dwtriton.core.files import make_folder, write_atomically, write_text

RESULTS = Path(__file__).parent / "results"


def results_file(device: torch.device, folder: Path = RESULTS) -> Path:
    """Return the file of results of a device: one for each GPU model, and one for CPUs."""
    if device.type == "cpu":
        return folder / "cpu.json"
    from dwtriton.kernels.tuning import table_name  # needs Triton

    return folder / table_name(torch.cuda.get_device_name(device))


def record(results: dict, path: Path, draw: Callable[[dict, Path], None]) -> None:
    """Write the results so far and their plot, so that a benchmark which is cut off leaves them."""
    make_folder(path.parent)
    write_text(path, json.dumps(results, indent=2) + "\n")
    if any("ms" in row for row in results["rows"]):
        draw(results, path.with_suffix(".png"))


def reason(error: Exception) -> str:
    """Return an error in one line, to be recorded in place of figures; the traceback goes to standard error."""
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
    copies = [f"copies at {results['copy_gb_s']:g} GB/s"] if "copy_gb_s" in results else []
    return ", ".join([machine["name"], *facts, commit + changes, machine["date"], *copies])


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, without pyplot and its windows."""
    FigureCanvasAgg(figure)
    write_atomically(path, lambda file: figure.savefig(file, dpi=110))


def significant(number: float) -> float:
    """Round to three digits: the rest is noise."""
    return float(f"{number:.3g}")
