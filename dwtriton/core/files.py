"""Writing files: completely or not at all, and with clear errors for what exists or cannot be made."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from dwtriton.core.errors import UserError

MAX_NAME = 255  # bytes in the name of a file


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, then move it to `path`: an interrupted write leaves the old file in place."""
    temporary = path.with_name(fitting_name(f".{path.stem}", f".partial{path.suffix}"))
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, completely or not at all; names of files that are no UTF-8 keep their bytes."""
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8", errors="surrogateescape"))


def fitting_name(stem: str, suffix: str) -> str:
    """Return the name `stem + suffix`, with the stem cut where a file system would refuse a name of this length."""
    while stem and len(os.fsencode(stem + suffix)) > MAX_NAME:
        stem = stem[:-1]
    return stem + suffix


def make_folder(path: Path) -> None:
    """Create a folder and its parents if absent. Raises UserError if it cannot be made or written to."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {path} cannot be made: {error.strerror}") from None
    if not os.access(path, os.W_OK):
        raise UserError(f"the folder {path} cannot be written to")


def check_absent(paths: Iterable[Path], force: bool) -> None:
    """Raise UserError if a command would replace files without `force` (its option --force)."""
    held = [str(path) for path in paths if path.exists()]
    if held and not force:
        exists, it = ("exists", "it") if len(held) == 1 else ("exist", "them")
        raise UserError(f"{', '.join(held)} already {exists}: add --force to replace {it}, or choose another --out")


def check_new_file(path: Path, force: bool) -> None:
    """Raise UserError if `path`, given as --out, exists and `force` is not set, or if its folder cannot be made."""
    if path.is_dir():
        raise UserError(f"--out {path} is a folder; name a file")
    check_absent([path], force)
    make_folder(path.parent)
