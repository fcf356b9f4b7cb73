"""Data sets in YOLO's and in Pascal VOC's layout made into COCO's."""

import json
import math
import os
import shutil
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml
from rich.console import Console
from rich.progress import track

from dwtriton.data.images import upright_size
from dwtriton.data.inputs import IMAGES
from dwtriton.data.report import DataError
from dwtriton.errors import UserError
from dwtriton.files import write_text

SPLITS = ("train", "val")
LISTED = 20  # broken lines in one error


class Box(NamedTuple):
    name: str  # of its class
    xyxy: tuple[float, float, float, float]  # pixels, from 0, exclusive at the right and bottom
    difficult: bool = False


class Source(NamedTuple):
    """What a layout holds: the classes in order, and of each split the images and how to read an image's boxes."""

    names: list[str]
    images: dict[str, list[Path]]
    root: dict[str, Path]  # folder that file names are relative to
    read: Callable[[Path, int, int, list[str]], list[Box]]  # (image, height, width, problems) -> boxes


def convert(source: Source, out: Path, skip_broken: bool = False) -> dict[str, int]:
    """Write `source` in COCO's layout to `out`, which must be absent or empty; returns counts.

    Image files are hard links where the disk allows, else copies. Everything is written beside `out` and renamed at
    the end. Raises DataError for images that cannot be opened and for broken lines, all of which it names by file and
    line; with `skip_broken` they are left out and counted.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} already exists and is not an empty folder: choose another --out")
    problems: list[str] = []
    counts = {"images": 0, "boxes": 0}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        folder = Path(temporary) / out.name
        (folder / "annotations").mkdir(parents=True)
        for split in SPLITS:
            content = _split(source, split, folder / f"{split}2017", problems)
            counts["images"] += len(content["images"])
            counts["boxes"] += len(content["annotations"])
            write_text(folder / "annotations" / f"instances_{split}2017.json", json.dumps(content))
        if problems and not skip_broken:
            more = f"\n  and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
            listed = "\n  ".join(problems[:LISTED])
            raise DataError(f"nothing was written: {len(problems)} broken places; --skip-broken\n  {listed}{more}")
        if out.exists():
            out.rmdir()
        os.replace(folder, out)
    return counts | {"broken": len(problems)}


def read_yolo(root: Path, names_file: Path | None = None) -> Source:
    """YOLO's layout: `images/train`, `images/val`, a text file below `labels/` for each image, and classes.

    The classes come from `data.yaml` (a list or a dict under `names`; `train` and `val` may name other folders) or from
    `names_file` with one name a line. A line of a label file is `class x y width height`, or `class` and a polygon, in
    shares of the image. Raises DataError if the layout is another one.
    """
    settings = _read_yaml(root)
    if names_file is not None:
        names = [line.strip() for line in _text(names_file).splitlines() if line.strip()]
    elif settings.get("names"):
        given = settings["names"]
        names = [str(given[key]) for key in sorted(given)] if isinstance(given, dict) else [str(name) for name in given]
    else:
        raise DataError(f"{root} has no data.yaml with names: give a file with one class a line, --names FILE")
    base = root / str(settings.get("path") or "")
    base = base if base.is_dir() else root
    folders = {split: base / str(settings.get(split) or f"images/{split}") for split in SPLITS}
    for split, folder in folders.items():
        if not folder.is_dir():
            raise DataError(f"{folder}, the folder of {split} images, does not exist; data.yaml may name another")
    images = {split: _images(folder) for split, folder in folders.items()}

    def read(image: Path, height: int, width: int, problems: list[str]) -> list[Box]:
        labels = _labels_of(image)
        boxes = []
        for number, line in enumerate(_text(labels).splitlines() if labels.is_file() else [], 1):
            if not line.strip():
                continue
            try:
                boxes.append(_yolo_box(line.split(), names, height, width))
            except ValueError as error:
                problems.append(f"{labels}:{number}: {error}")
        return boxes

    return Source(names, images, folders, read)


def read_voc(root: Path, train: str = "train", val: str = "val") -> Source:
    """Pascal VOC's layout: `JPEGImages`, `Annotations` with an XML file an image, and `ImageSets/Main/*.txt`.

    `train` and `val` name two of these lists. Classes are those that occur, in alphabetical order. Objects marked as
    difficult become crowd regions: not trained on, and neither right nor wrong in an evaluation.
    Raises DataError if the layout is another one, and UserError for a name that occurs in no list.
    """
    lists = {split: root / "ImageSets" / "Main" / f"{name}.txt" for split, name in zip(SPLITS, (train, val))}
    for path in (root / "JPEGImages", root / "Annotations", *lists.values()):
        if not path.exists():
            raise DataError(f"{root} is not in Pascal VOC's layout: {path} is missing")
    stems = {
        split: [line.split()[0] for line in _text(path).splitlines() if line.strip()] for split, path in lists.items()
    }
    files = {path.stem: path for path in _images(root / "JPEGImages")}
    for split, wanted in stems.items():
        missing = [stem for stem in wanted if stem not in files]
        if missing:
            raise DataError(f"{lists[split]} names {missing[0]}, which is not in {root / 'JPEGImages'}")
    images = {split: [files[stem] for stem in wanted] for split, wanted in stems.items()}
    names = sorted({box.name for path in {*images["train"], *images["val"]} for box in _voc_boxes(root, path, [])})

    def read(image: Path, _height: int, _width: int, problems: list[str]) -> list[Box]:
        return _voc_boxes(root, image, problems)

    return Source(names, images, dict.fromkeys(SPLITS, root / "JPEGImages"), read)


def _split(source: Source, split: str, folder: Path, problems: list[str]) -> dict:
    """COCO's content of a split, whose image files are put into `folder`."""
    images, annotations = [], []
    for path in track(source.images[split], f"converting {split}", console=Console(stderr=True), transient=True):
        try:
            width, height = upright_size(path)
        except OSError as error:
            problems.append(f"{path}: cannot be opened as an image ({error})")
            continue
        name = path.relative_to(source.root[split])
        _link(path, folder / name)
        image = {"id": len(images) + 1, "file_name": str(name), "width": width, "height": height}
        images.append(image)
        for box in source.read(path, height, width, problems):
            x1, y1, x2, y2 = box.xyxy
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": source.names.index(box.name) + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(box.difficult),
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(source.names, 1)]
    folder.mkdir(exist_ok=True)
    return {"images": images, "annotations": annotations, "categories": categories}


def _yolo_box(fields: Sequence[str], names: list[str], height: int, width: int) -> Box:
    """Raises ValueError, with what is wrong with the line."""
    try:
        label, *values = int(fields[0]), *map(float, fields[1:])
    except ValueError:
        raise ValueError(f"{' '.join(fields)!r} is not a class number and numbers") from None
    if not 0 <= label < len(names):
        raise ValueError(f"class {label} is outside 0..{len(names) - 1}")
    if not all(map(math.isfinite, values)):
        raise ValueError("a coordinate is not finite")
    if len(values) == 4:
        x, y, w, h = values
        if w < 0 or h < 0:
            raise ValueError(f"width {w} or height {h} is negative")
        corners = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    elif len(values) >= 6 and len(values) % 2 == 0:  # a polygon
        corners = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
    else:
        raise ValueError(f"{len(values)} numbers behind the class: four of a box or pairs of a polygon are needed")
    if max(map(abs, corners)) > 2:
        raise ValueError("coordinates are shares of the image, from 0 to 1; these look like pixels")
    x1, x2 = (min(max(value, 0), 1) * width for value in corners[::2])
    y1, y2 = (min(max(value, 0), 1) * height for value in corners[1::2])
    return Box(names[label], (x1, y1, x2, y2))


def _voc_boxes(root: Path, image: Path, problems: list[str]) -> list[Box]:
    """The objects of an image; VOC counts pixels from 1, and the last one belongs to the box."""
    path = root / "Annotations" / f"{image.stem}.xml"
    if not path.is_file():
        return []
    try:
        tree = ElementTree.fromstring(_text(path))
    except ElementTree.ParseError as error:
        problems.append(f"{path}:{error.position[0]}: {error}")
        return []
    boxes = []
    for number, item in enumerate(tree.iter("object"), 1):
        try:
            name = (item.findtext("name") or "").strip()
            x1, y1, x2, y2 = (float(item.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))
            if not name or x2 < x1 or y2 < y1:
                raise ValueError
        except (TypeError, ValueError):
            problems.append(f"{path}: object {number} has no name and box with xmin <= xmax and ymin <= ymax")
            continue
        boxes.append(Box(name, (x1 - 1, y1 - 1, x2, y2), item.findtext("difficult", "0").strip() == "1"))
    return boxes


def _labels_of(image: Path) -> Path:
    """`.../images/train/a.jpg` -> `.../labels/train/a.txt`: the last folder named images changes its name."""
    parts = list(image.parts)
    for index in range(len(parts) - 1, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _images(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in IMAGES]


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk, or one without hard links
        shutil.copyfile(source, target)


def _read_yaml(root: Path) -> dict:
    path = root / "data.yaml"
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(_text(path))
    except yaml.YAMLError as error:
        raise DataError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no settings")
    return content


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
