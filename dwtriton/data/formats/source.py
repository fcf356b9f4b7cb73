"""A labelled data set in any layout: what `yolo.py` and `voc.py` read and `convert.py` writes in COCO's."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from dwtriton.data.images import IMAGE_SUFFIXES
from dwtriton.data.problems import DataError

SPLITS = ("train", "val")


class Box(NamedTuple):
    """A labelled box."""

    name: str  # of its class
    xyxy: tuple[float, float, float, float]  # pixels, from 0, exclusive at the right and bottom
    crowd: bool = False


class Source(NamedTuple):
    """A data set whose labels are read image by image: `read(image, height, width, problems)` returns its boxes.

    It adds "FILE:LINE: reason" to `problems` for each box that cannot be used, and raises DataError if the whole image
    cannot.
    """

    images: dict[str, list[Path]]  # of each split
    names: list[str] | None  # of the classes in order; None: those that occur, in alphabetical order
    read: Callable[[Path, int, int, list[str]], list[Box]]
    problems: list[str]  # found in lists of images


def image_files(folder: Path) -> list[Path]:
    """The images in a folder and below. Raises DataError if there is none."""
    images = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise DataError(f"{folder} has no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return images


def clip(xyxy: Sequence[float], height: int, width: int) -> tuple[float, float, float, float]:
    """Clip a box to its image. Raises ValueError if nothing is left."""
    x1, x2 = (min(max(x, 0.0), float(width)) for x in xyxy[::2])
    y1, y2 = (min(max(y, 0.0), float(height)) for y in xyxy[1::2])
    if x1 >= x2 or y1 >= y2:
        raise ValueError("the box has no area inside the image")
    return x1, y1, x2, y2


def read_text(path: Path) -> str:
    """Read a UTF-8 file, with or without a byte order mark. Raises DataError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text: {error}") from None
