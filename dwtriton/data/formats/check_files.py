"""The files that `check` writes: a sheet of samples for each split and the list of all problems"""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from dwtriton.console.terminal import printable
from dwtriton.core.files import write_file, write_text
from dwtriton.core.text import one_line
from dwtriton.data.formats.check import Findings

PROBLEMS_FILE = "problems.txt"
MAKER = "python -m dwtriton.data check"  # by which its files are known again
DPI = 110


def is_own_file(path: Path) -> bool:
    """Whether a file was written by an earlier check."""
    try:
        if path.name == PROBLEMS_FILE:
            return MAKER in path.read_text(encoding="utf-8").partition("\n")[0]
        with Image.open(path) as image:
            return image.info.get("Software") == MAKER
    except (OSError, ValueError, SyntaxError):  # no file, no text, no image
        return False


def remove_old_sheets(folder: Path) -> None:
    """Remove the sheets of an earlier check, whose splits may have had other names."""
    for path in folder.glob("*.png"):
        if is_own_file(path):
            path.unlink()


def write_sheet(sheet: Figure, path: Path) -> None:
    """Write a sheet of samples, marked as a check's."""
    write_file(path, lambda file: sheet.savefig(file, format="png", dpi=DPI, metadata={"Software": MAKER}))


def write_problems(findings: Sequence[Findings], path: Path) -> bool:
    """Write all that was found, a line each; return whether there was anything. Without it the file is removed."""
    lines = []
    for found in findings:
        problems = found.problems
        lines += [f"{found.split.name}: cannot be trained on: {reason}" for reason in found.fatal]
        lines += [f"{found.split.name}: {warning}" for warning in problems.warnings]
        lines += [f"{found.split.name}: {kind}: {name}" for kind, names in problems.examples.items() for name in names]
    if lines:
        write_text(path, "\n".join([f"# {MAKER}: all problems", *(printable(one_line(line)) for line in lines), ""]))
    else:
        path.unlink(missing_ok=True)
    return bool(lines)
