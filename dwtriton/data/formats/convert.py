"""A data set in another layout written in COCO's: what `yolo.py` and `voc.py` read, this writes."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from dwtriton.console.progress import progress
from dwtriton.core.errors import UserError
from dwtriton.core.files import make_folder, write_text
from dwtriton.core.text import listed_lines
from dwtriton.data.images import BrokenImageError, upright_size
from dwtriton.data.problems import DataError
from dwtriton.predict.inputs import IMAGES

SPLITS = ("train", "val")
ANNOTATIONS = "annotations/instances_{}2017.json"
WRITTEN = {"annotations", *(f"{split}2017" for split in SPLITS)}  # COCO's names, the defaults of a config
INFO = {"description": "converted by dwtriton.data"}  # in the JSON files, by which --force knows what it may replace
LISTED = 20  # broken places in one error


class Box(NamedTuple):
    name: str  # of its class
    xyxy: tuple[float, float, float, float]  # pixels, from 0, exclusive at the right and bottom
    crowd: bool = False


class Source(NamedTuple):
    """A data set in any layout. `read(image, height, width, problems)` gives the boxes of an image.

    It adds "FILE:LINE: what is wrong" to `problems` for each box that cannot be used, and raises DataError if all that
    is known of the image cannot.
    """

    images: dict[str, list[Path]]  # of each split
    names: list[str] | None  # of the classes in order; None: those that occur, in alphabetical order
    read: Callable[[Path, int, int, list[str]], list[Box]]
    problems: list[str]  # found in lists of images


class LabelledImage(NamedTuple):
    path: Path
    height: int
    width: int
    boxes: list[Box]


class Converted(NamedTuple):
    """What a conversion wrote, and what it left out."""

    images: int
    boxes: int
    background: int  # images without a box
    classes: list[str]
    left_out: list[str]  # "FILE:LINE: why"


def convert(source: Source, out: Path, skip_broken: bool, force: bool, console: Console) -> Converted:
    """Write `source` in COCO's layout to `out`: a folder absent or empty, or with `force` an earlier conversion.

    Image files are hard links where the disk allows, else copies. All labels are read before anything is written, and
    everything is written beside `out` and renamed at the end. Progress goes to `console`. Raises DataError for images
    that cannot be used and for broken lines, named by file and line; with `skip_broken` they are left out.
    """
    _check_vacant(out, force)
    problems = list(source.problems)
    found = {split: _labelled(source, split, problems, console) for split in SPLITS}
    if problems and not skip_broken:
        raise DataError(
            f"nothing was written, there are broken places: {numbered(problems)}\n"
            "Mend them, or add --skip-broken to leave them out"
        )
    for split, images in found.items():
        if not images:
            raise DataError(f"nothing was written: no image of {split} is left. {numbered(problems)}")
    boxes = [box for images in found.values() for image in images for box in image.boxes]
    names = sorted({box.name for box in boxes}) if source.names is None else source.names
    if not names:
        raise DataError("nothing was written: no box names a class")
    try:
        _write(found, names, out.resolve(), console)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error}") from None
    images = [image for split in SPLITS for image in found[split]]
    return Converted(len(images), len(boxes), sum(not image.boxes for image in images), names, problems)


def numbered(problems: Sequence[str]) -> str:
    """The number of problems and the first of them, a line each."""
    return "\n  ".join([str(len(problems)), *listed_lines(problems, LISTED)])


def image_files(folder: Path) -> list[Path]:
    """The images in a folder and the folders in it. Raises DataError if there is none."""
    images = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in IMAGES]
    if not images:
        raise DataError(f"{folder} has no images ({', '.join(sorted(IMAGES))})")
    return images


def clip(xyxy: Sequence[float], height: int, width: int) -> tuple[float, float, float, float]:
    """The part of a box that lies in its image. Raises ValueError if there is none."""
    x1, x2 = (min(max(x, 0.0), float(width)) for x in xyxy[::2])
    y1, y2 = (min(max(y, 0.0), float(height)) for y in xyxy[1::2])
    if x1 >= x2 or y1 >= y2:
        raise ValueError("the box has no area inside the image")
    return x1, y1, x2, y2


def read_text(path: Path) -> str:
    """A UTF-8 file, with or without a byte order mark. Raises DataError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text: {error}") from None


def _check_vacant(out: Path, force: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file: choose another --out")
    names = {path.name for path in out.iterdir()}
    if names - WRITTEN:
        raise UserError(f"{out} holds {min(names - WRITTEN)}, which no conversion wrote: choose another --out")
    if names and not force:
        raise UserError(f"{out} already holds a data set: add --force to replace it, or choose another --out")
    if names and not all(_is_converted(out / ANNOTATIONS.format(split)) for split in SPLITS):
        raise UserError(f"{out} holds a data set that no conversion wrote: choose another --out")


def _is_converted(annotations: Path) -> bool:
    try:
        return json.loads(annotations.read_bytes())["info"] == INFO
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _labelled(source: Source, split: str, problems: list[str], console: Console) -> list[LabelledImage]:
    images = []
    with progress(console, f"reading labels of {split}", len(source.images[split])) as advance:
        for path in source.images[split]:
            try:
                width, height = upright_size(path)
                images.append(LabelledImage(path, height, width, source.read(path, height, width, problems)))
            except (BrokenImageError, DataError) as error:
                problems.append(str(error))
            advance()
    return images


def _write(found: dict[str, list[LabelledImage]], names: list[str], out: Path, console: Console) -> None:
    make_folder(out.parent)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        folder = Path(temporary, "new")
        (folder / "annotations").mkdir(parents=True)
        for split, images in found.items():
            files = _place([image.path for image in images], folder / f"{split}2017", console)
            content = _coco(images, files, names)
            write_text(folder / ANNOTATIONS.format(split), json.dumps(content))
        if out.exists():
            os.replace(out, Path(temporary, "old"))
        os.replace(folder, out)


def _place(paths: list[Path], folder: Path, console: Console) -> list[str]:
    """Put image files into a folder, as far apart as they lie; returns their names in it."""
    places = [Path(os.path.abspath(path)) for path in paths]  # without "..", which would lead out of the folder
    common = os.path.commonpath([place.parent for place in places])
    names = [os.path.relpath(place, common) for place in places]
    with progress(console, f"linking images of {folder.name}", len(paths)) as advance:
        for path, name in zip(paths, names):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path.resolve(), target)
            except OSError:  # another disk, or one without hard links
                shutil.copyfile(path, target)
            advance()
    return names


def _coco(images: list[LabelledImage], files: list[str], names: list[str]) -> dict:
    """COCO's content; the id of a category is its place among the classes, from 1."""
    category_of = {name: number for number, name in enumerate(names, 1)}
    annotations = []
    for image_id, image in enumerate(images, 1):
        for box in image.boxes:
            x1, y1, x2, y2 = box.xyxy
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_of[box.name],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(box.crowd),
                }
            )
    return {
        "info": INFO,
        "images": [
            {"id": id_, "file_name": name, "width": image.width, "height": image.height}
            for id_, (image, name) in enumerate(zip(images, files), 1)
        ],
        "annotations": annotations,
        "categories": [{"id": id_, "name": name} for name, id_ in category_of.items()],
    }
