"""Text files that list all problems of a command, a line each, and are known again by their first line."""

from collections.abc import Sequence
from pathlib import Path

from dwtriton.console.terminal import printable
from dwtriton.core.files import write_text
from dwtriton.core.text import one_line


def is_problems_file(path: Path, command: str) -> bool:
    """Whether a file was written by an earlier run of the command."""
    try:
        return command in path.read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, ValueError):  # no file, no text
        return False


def write_problems_file(path: Path, command: str, lines: Sequence[str]) -> None:
    """Write all problems, or remove the command's earlier file if there are none."""
    if lines:
        write_text(path, "\n".join([f"# {command}: all problems", *(printable(one_line(line)) for line in lines), ""]))
    elif is_problems_file(path, command):
        path.unlink()
