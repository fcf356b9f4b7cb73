"""A labelled data set in any layout, as `yolo.py` and `voc.py` read it, and its conversion to COCO's."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console

from dwtriton.console.progress import progress
from dwtriton.core.errors import UserError, WriteError
from dwtriton.core.files import fitting_name, make_folder, move_folder, write_text
from dwtriton.core.text import first_of, listed_lines, one_line
from dwtriton.data.annotations import read_valid_records
from dwtriton.data.buckets import Size
from dwtriton.data.formats.problems_file import is_problems_file, write_problems_file
from dwtriton.data.image_files import is_image_file
from dwtriton.data.images import IMAGE_SUFFIXES, BrokenImageError, read_header
from dwtriton.data.problems import DataError
from dwtriton.data.text_files import read_bytes

SPLITS = ("train", "val")
ANNOTATIONS = "annotations/instances_{}2017.json"
WRITTEN = {"annotations", *(f"{split}2017" for split in SPLITS)}  # COCO's names, the defaults of a config
INFO = {"description": "converted by dwtriton.data"}
BEGINNING = json.dumps({"info": INFO}).encode()[:-1]  # of JSON files, by which --force knows what it may replace
COMMAND = "python -m dwtriton.data convert"
MAX_LINES = 20  # errors in the labels that one message lists


class Box(NamedTuple):
    """A labelled box."""

    name: str  # of its class
    xyxy: tuple[float, float, float, float]  # pixels, from 0, exclusive at the right and bottom
    crowd: bool = False
    rotation: float = 0.0  # degrees, of a rotated box for which this upright one stands


class Source(NamedTuple):
    """A data set whose labels are read image by image: `read(image, height, width, problems)` returns its boxes.

    It adds "FILE:LINE: reason" to `problems` for each box that cannot be used, and raises DataError if the whole image
    cannot.
    """

    images: dict[str, list[Path]]  # of each split
    names: list[str] | None  # of the classes in order; None: those that occur, in alphabetical order
    read: Callable[[Path, int, int, list[str]], list[Box]]
    problems: list[str]  # found in lists of images
    notes: Sequence[str] = ()  # what is not converted, and what is taken for background
    annotated_size: Callable[[Path], Size | None] = lambda image: None  # (h, w) that the labels of an image state


class LabelledImage(NamedTuple):
    """An image file with the size that its boxes are for and these boxes."""

    path: Path
    height: int
    width: int
    boxes: list[Box]


class Converted(NamedTuple):
    """Counts of what a conversion wrote, and what it left out."""

    images: int
    boxes: int
    background: int  # images without a box
    classes: list[str]
    left_out: list[str]  # "FILE:LINE: reason"
    splits: list[str]
    notes: list[str]


def image_files(folder: Path) -> list[Path]:
    """Return the images in a folder and below. Raises DataError if there is none."""
    images = list(filter(is_image_file, sorted(folder.rglob("*"))))
    if not images:
        raise DataError(f"{folder} has no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return images


def clip(xyxy: Sequence[float], height: int, width: int) -> tuple[float, float, float, float]:
    """Clip a box to its image. Raises ValueError if nothing is left."""
    x1, y1, x2, y2 = np.clip(xyxy, 0.0, [width, height] * 2).tolist()
    if x1 >= x2 or y1 >= y2:
        raise ValueError("the box has no area inside the image")
    return x1, y1, x2, y2


def convert(source: Source, out: Path, skip_broken: bool, force: bool, console: Console) -> Converted:
    """Write `source` in COCO's layout to `out`: a folder absent or empty, or with `force` an earlier conversion.

    Image files become hard links where the disk allows, else copies. All labels are read before anything is written,
    and everything is written beside `out` and renamed at the end. Progress goes to `console`.
    Raises DataError for images that cannot be used and for broken lines, by file and line, unless `skip_broken` leaves
    them out.
    """
    check_vacant(out, force)
    listed_in = problems_file(out)
    if listed_in.exists() and not is_problems_file(listed_in, COMMAND):
        raise UserError(f"{listed_in} exists, where errors in the labels may go: move it, or choose another --out")
    problems = list(source.problems)
    found = {split: _read_labels(source, split, problems, console) for split in source.images}
    if len(problems) > MAX_LINES:
        make_folder(listed_in.parent)
    write_problems_file(listed_in, COMMAND, problems if len(problems) > MAX_LINES else [])
    if problems and not skip_broken:
        raise DataError(
            f"nothing was written, errors in the labels: {counted(problems, out)}\n"
            "Fix them, or add --skip-broken to leave them out"
        )
    for split, images in found.items():
        if not images:
            raise DataError(f"nothing was written: no image of {split} is left. {counted(problems, out)}")
    boxes = [image.boxes for images in found.values() for image in images]
    names = sorted({box.name for of_image in boxes for box in of_image}) if source.names is None else source.names
    if not names:
        raise DataError("nothing was written: no box names a class")
    for split, images in found.items():
        if not any(image.boxes for image in images) and (problems or split == "train"):
            raise DataError(f"nothing was written: no box of {split} is left. {counted(problems, out)}")
    _write(found, names, out, console)
    notes = list(source.notes)
    if rotated := sum(bool(box.rotation) for of_image in boxes for box in of_image):
        notes.append(f"{rotated} boxes are rotated, and used as upright ones: see what `check` draws")
    return Converted(len(boxes), sum(map(len, boxes)), boxes.count([]), names, problems, list(found), notes)


def counted(problems: Sequence[str], out: Path) -> str:
    """Return the number of problems and the first of them, a line each, and where `convert` lists all, if it does."""
    lines = [str(len(problems)), *map(one_line, listed_lines(problems, MAX_LINES))]
    return "\n  ".join([*lines, *([f"all of them: {problems_file(out)}"] if len(problems) > MAX_LINES else [])])


def problems_file(out: Path) -> Path:
    """The file that lists all problems of a conversion to `out`, if one message cannot."""
    place = out.resolve() if out.name in ("", "..") else out  # "." has no name
    return place.with_name(fitting_name(place.name, "-problems.txt"))


def check_vacant(out: Path, force: bool) -> None:
    """Raise UserError unless `out` is absent or empty or, with `force`, holds an earlier conversion."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: choose another --out")
    names = {path.name for path in out.iterdir()} if out.exists() else set()
    if names - WRITTEN:
        raise UserError(f"{out} holds {min(names - WRITTEN)}, which no conversion wrote: choose another --out")
    if names and not force:
        raise UserError(f"{out} already holds a data set: add --force to replace it, or choose another --out")
    files = [path for path in (out / ANNOTATIONS.format(split) for split in SPLITS) if path.exists()]
    if names and not (files and all(read_bytes(file).startswith(BEGINNING) for file in files)):
        raise UserError(f"{out} holds a data set that no conversion wrote: choose another --out")
    known = {*files, *map(out.joinpath, _written_images(out))}
    if added := sorted(str(path) for path in _files_below(out) - known):
        raise UserError(f"{first_of(added)} was added to an earlier conversion: move it, or choose another --out")


def _files_below(out: Path) -> set[Path]:
    return {path for path in out.rglob("*") if not path.is_dir() or path.is_symlink()}


def _written_images(out: Path) -> Iterator[str]:
    """Yield the names of all images of an earlier conversion. Raises UserError if its JSON files were changed."""
    for split in SPLITS:
        if (path := out / ANNOTATIONS.format(split)).exists():
            images = read_valid_records(path).images.values()
            yield from (f"{split}2017/{image['file_name']}" for image in images)


def _read_labels(source: Source, split: str, problems: list[str], console: Console) -> list[LabelledImage]:
    images = []
    with progress(console, f"reading labels of {split}", len(source.images[split])) as advance:
        for path in source.images[split]:
            try:
                header = read_header(path)
                height, width = header.upright_size
                if source.annotated_size(path) == header.stored_size:  # labelled as it lies in the file
                    height, width = header.stored_size
                images.append(LabelledImage(path, height, width, source.read(path, height, width, problems)))
            except (BrokenImageError, DataError) as error:
                problems.append(str(error))
            advance()
    return images


def _write(found: dict[str, list[LabelledImage]], names: list[str], out: Path, console: Console) -> None:
    splits = {}
    for split, images in found.items():
        splits[split] = [image.path for image in images], partial(_coco_content, images, names)
    write_coco(splits, out, console)


def write_coco(
    splits: dict[str, tuple[list[Path], Callable[[list[str]], dict]]],
    out: Path,
    console: Console,
    root: Path | None = None,
) -> None:
    """Write a data set beside `out` and rename it: by split its image files and `content(names in the split's folder)`.

    Names are paths below `root`, by default below the folder that the files of a split have in common.
    Raises WriteError where the disk refuses.
    """
    place = out.resolve()  # before it is moved: it may be the present folder
    with folder_beside(out) as temporary:
        folder = temporary / "new"
        (folder / "annotations").mkdir(parents=True)
        for split, (images, content) in splits.items():
            files = _link_images(images, root, folder / f"{split}2017", console)
            write_text(folder / ANNOTATIONS.format(split), json.dumps(content(files)))
        if out.exists():
            os.replace(place, temporary / "old")
        move_folder(folder, place)


@contextmanager
def folder_beside(out: Path) -> Iterator[Path]:
    """Make a temporary folder on the disk of `out`. Raises WriteError for what the disk refuses meanwhile."""
    place = out.resolve()
    make_folder(place.parent)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=place.parent) as temporary:
            yield Path(temporary)
    except OSError as error:
        raise WriteError(f"{out} cannot be written: {error.strerror or error}") from error


def _link_images(paths: list[Path], root: Path | None, folder: Path, console: Console) -> list[str]:
    """Link or copy image files into `folder`, in subfolders as below `root` or their common one; return the names."""
    absolute = [Path(os.path.abspath(path)) for path in paths]  # without "..", which would lead out of `folder`
    common = os.path.abspath(root) if root else os.path.commonpath([path.parent for path in absolute])
    names = [os.path.relpath(path, common) for path in absolute]
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


def _coco_content(images: list[LabelledImage], names: list[str], files: list[str]) -> dict:
    """Return the content of a COCO file; categories are numbered from 1 in the order of `names`."""
    category_of = {name: number for number, name in enumerate(names, 1)}
    records, annotations = [], []
    for image_id, (image, file) in enumerate(zip(images, files), 1):
        records.append({"id": image_id, "file_name": file, "width": image.width, "height": image.height})
        for box in image.boxes:
            x1, y1, x2, y2 = box.xyxy
            ids = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category_of[box.name]}
            bbox = [x1, y1, x2 - x1, y2 - y1]
            annotations.append({**ids, "bbox": bbox, "area": bbox[2] * bbox[3], "iscrowd": int(box.crowd)})
            if box.rotation:  # `check` names it
                annotations[-1]["attributes"] = {"rotation": box.rotation}
    categories = [{"id": number, "name": name} for name, number in category_of.items()]
    return {"info": INFO, "images": records, "annotations": annotations, "categories": categories}
