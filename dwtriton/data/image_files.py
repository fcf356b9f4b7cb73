"""Finding the image file that an annotation file means: exporters write paths of other machines, URLs and quotes."""

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from dwtriton.data.images import IMAGE_SUFFIXES, REFUSED_SUFFIXES
from dwtriton.data.values import url_path

MAX_COMPARED = 2000  # files of a folder, in the search for the nearest name
HIDDEN = "._"  # what macOS writes beside each file begins so


def is_image_file(path: Path) -> bool:
    """Whether the name of a file is that of an image, of a format that can be read or not."""
    return has_image_suffix(path.name) and not path.name.startswith(HIDDEN) and path.is_file()


def has_image_suffix(name: str) -> bool:
    """Whether a name ends as those of images do, of a format that can be read or not."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES | REFUSED_SUFFIXES


def find_file(folder: Path, name: str) -> str | None:
    """Return the name of a file inside `folder` that `name` means, or None if there is none.

    A name that is no file is tried with slashes for backslashes, without the quoting of URLs, without the query of a
    URL, and then without its first folders, one after another.
    """
    return next((candidate for candidate in _candidates(name) if is_file(folder / candidate)), None)


def nearest_file(folder: Path, name: str) -> str | None:
    """Return the image file in or below a folder whose name is most like that of `name`; None if no name is."""
    known: dict[str, str] = {}
    for path in folder.rglob("*"):
        if is_image_file(path):
            known.setdefault(path.name, str(path))
        if len(known) == MAX_COMPARED:
            break
    close = get_close_matches(PurePosixPath(name.replace("\\", "/")).name, list(known), n=1, cutoff=0.0)
    return known[close[0]] if close else None


def _candidates(name: str) -> Iterator[str]:
    yield name
    plain = name.replace("\\", "/")
    for path in (plain, unquote(plain), unquote(url_path(plain)) if "://" in plain else plain):
        parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
        yield from ("/".join(parts[begin:]) for begin in range(len(parts)))


def is_file(path: Path) -> bool:
    """Whether there is an ordinary file of this name; not for names that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds a null byte
        return False
