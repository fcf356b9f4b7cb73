"""Reading the text and JSON files of a data set: what is no ordinary file, or none of its kind, is named."""

import json
import os
from pathlib import Path
from typing import Any

from dwtriton.data.image_files import HIDDEN
from dwtriton.data.problems import DataError


def read_bytes(path: Path) -> bytes:
    """Return the content of a file. Raises DataError if it cannot be read, or is no ordinary file and may never end."""
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{path} is no ordinary file")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, with or without a byte order mark. Raises DataError."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text: {error}") from None


def json_files(root: Path) -> list[Path]:
    """Return the JSON files in a folder and below: those of `annotations` first, then those that lie higher.

    Hidden folders and what macOS writes beside each file are left aside. Links are followed, to each folder once.
    """
    found, visited = [], {root.resolve()}
    for folder, folders, names in os.walk(root, followlinks=True):
        below = {Path(folder, name).resolve(): name for name in sorted(folders, reverse=True) if name[0] != "."}
        folders[:] = sorted(name for place, name in below.items() if place not in visited)
        visited |= below.keys()
        files = (name for name in names if name.lower().endswith(".json") and not name.startswith(HIDDEN))
        found += [Path(folder, name) for name in files]
    return sorted(found, key=lambda path: (path.parent != root / "annotations", len(path.parts), path))


def read_json(path: Path) -> Any:
    """Return what a JSON file holds. Raises DataError."""
    content = read_bytes(path)
    try:
        return json.loads(content)
    except RecursionError:
        raise DataError(f"{path} is not valid JSON: it is nested too deeply") from None
    except ValueError as error:  # no JSON, no UTF-8, or a number of thousands of digits
        raise DataError(f"{path} is not valid JSON ({error}); is the file truncated?") from None
