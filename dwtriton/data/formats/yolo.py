"""Reading YOLO's layout, as Ultralytics and its exporters write it."""

import math
import os
from collections import Counter
from collections.abc import Container, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from dwtriton.core.text import listed
from dwtriton.data.formats.convert import Box, Source, clip, image_files
from dwtriton.data.image_files import HIDDEN, find_file, is_image_file
from dwtriton.data.images import READ_FORMATS
from dwtriton.data.problems import DataError
from dwtriton.data.text_files import read_text
from dwtriton.data.values import whole_number

BORDER_TOLERANCE = 0.01  # of the image: rounding may carry a coordinate this far past its border
MAX_NUMBERS = 12  # of classes in an error
MAX_QUOTED = 60  # characters of a broken line in its error
YAML_FILES = ("data.yaml", "dataset.yaml", "data.yml", "dataset.yml")
NAMES_FILES = ("classes.txt", "obj.names", "_darknet.labels", "labels.txt")  # a class a line
DARKNET_FILE = "obj.data"  # of darknet, as CVAT writes it: lines "train = FILE", "names = FILE"
SPLIT_KEYS = {  # of the YAML file and of folders
    "train": ("train",),
    "val": ("val", "valid", "validation"),
    "minival": ("minival",),
    "test": ("test",),
}


def is_yolo(root: Path) -> bool:
    """Whether a folder has a file that names the classes of YOLO's layout."""
    return any((root / name).is_file() for name in (*YAML_FILES, *NAMES_FILES, DARKNET_FILE))


def read_yolo(root: Path, names_file: Path | None = None) -> Source:
    """Read the data set of `root/data.yaml`, or of the YAML file `root`; without one `images/train`, `images/val`.

    `train` and `val` of the YAML file name a folder of images, a text file with an image a line, or several of them,
    inside `path` or else beside the file. darknet's `obj.data` is read as a YAML file is. Where there is one split
    alone it is for training; where there is none, all images of `root/images`, or of `root`, are.
    The labels of `.../images/a.jpg` are in `.../labels/a.txt`, or beside the image if no folder is called `images`.
    Their lines are `class x y width height`, or `class` and a polygon, as fractions of the image's sides. An image
    without a label file, or with an empty one, is background.
    The classes are those of `names`, a list or a dict, or of `names_file`, one a line. Raises DataError.
    """
    settings, folder = _settings(root)
    names = _names(settings, root, folder, names_file)
    path = settings.get("path", "")
    base = folder / path if isinstance(path, str) else folder
    base = base if base.is_dir() else folder  # the data set was moved
    problems: list[str] = []
    entries = {split: _entries(settings, base, keys) for split, keys in SPLIT_KEYS.items()}
    notes = []
    if not entries["train"]:
        only = next((split for split, given in entries.items() if given), None)
        entries["train"] = entries.pop(only) if only else ["images" if (base / "images").is_dir() else "."]
        notes += [f"the split {only} of {root} is for training, as there is no other"] if only else []
    images = {}
    for split in filter(entries.get, ("train", "val")):
        if not all(isinstance(entry, str) for entry in entries[split]):
            raise DataError(f"{root}: {split} is neither a path nor a list of paths")
        images[split] = list(dict.fromkeys(i for entry in entries[split] for i in _find(base, entry, problems)))
    for split, files in images.items():
        labels = [label_file(image) for image in files]
        if labels and not any(map(Path.is_file, labels)):
            raise DataError(f"no image of {split} has a label file; that of {files[0]} would be {labels[0]}")
    fields = 5 if "kpt_shape" in settings else None  # key points follow the box
    notes += [f"the split {key} of {root} is not converted" for key in ("test", "minival") if entries.get(key)]
    chosen = {image.resolve() for files in images.values() for image in files}
    left = _labelled(base, chosen)
    if left:
        notes.append(f"{len(left)} labelled images are in neither train nor val, and not converted, such as {left[0]}")
    return Source(images, names, partial(_read_labels, names, fields), problems, notes)


def _labelled(base: Path, chosen: Container[Path]) -> list[Path]:
    """Return the images below a folder that have a label file and are none of `chosen`."""
    files = filter(is_image_file, sorted(base.rglob("*")))
    return [image for image in files if image.resolve() not in chosen and label_file(image).is_file()]


def _entries(settings: dict[str, Any], base: Path, keys: Sequence[str]) -> list[str]:
    """Return what the YAML file names for a split, or the folder that is called like it; none if it has none."""
    given = next((settings[key] for key in keys if settings.get(key)), None)
    if given is not None:
        return given if isinstance(given, list) else [given]
    folders = [f"{parent}{key}{child}" for key in keys for parent in ("images/", "") for child in ("/images", "")]
    return [folder for folder in folders if (base / folder).is_dir()][:1]


def label_file(image: Path) -> Path:
    """`.../images/train/a.jpg` -> `.../labels/train/a.txt`: the last folder named images changes its name."""
    *folders, name = image.parts
    if "images" in folders:
        folders[-1 - folders[::-1].index("images")] = "labels"
    return Path(*folders, name).with_suffix(".txt")


def _settings(root: Path) -> tuple[dict[str, Any], Path]:
    """Return the content of the YAML file, empty if there is none, and its folder."""
    if not root.exists():
        raise DataError(f"{root} does not exist")
    candidates = [root / name for name in (*YAML_FILES, DARKNET_FILE)] if root.is_dir() else [root]
    path = next(filter(Path.is_file, candidates), None)
    if path is None:
        return {}, root
    if path.suffix == ".data":
        lines = [line.partition("=") for line in read_text(path).splitlines()]
        return {key.strip(): value.strip() for key, _, value in lines}, path.parent
    if path.suffix not in (".yaml", ".yml"):
        raise DataError(f"{path} is neither a folder nor a YAML file")
    try:
        content = yaml.load(read_text(path), Loader=yaml.BaseLoader)  # strings alone: a class may be called no or 1.0
    except yaml.YAMLError as error:
        raise DataError(f"{path} is not valid YAML: {error}") from None
    except RecursionError:
        raise DataError(f"{path} is not valid YAML: it is nested too deeply") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no settings")
    return content, path.parent


def _names(settings: dict[str, Any], root: Path, folder: Path, names_file: Path | None) -> list[str]:
    names = settings.get("names")
    if names_file is None and not isinstance(names, list | dict):
        candidates = [*([names] if isinstance(names, str) else []), *NAMES_FILES]
        found = (find_file(folder, name) for name in candidates)
        names_file = next((folder / name for name in found if name is not None), None)
    if names_file is not None:
        names = [line.strip() for line in read_text(names_file).splitlines() if line.strip()]
    elif isinstance(names, dict):
        if names.keys() != {str(number) for number in range(len(names))}:
            numbers = listed(list(names), MAX_NUMBERS)
            raise DataError(f"{root}: the classes have the numbers {numbers}, not 0..{len(names) - 1}")
        names = [names[str(number)] for number in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise DataError(
            f"{root} has no data.yaml with the names of the classes: pass the YAML file itself, or a file with a class "
            "a line as --names FILE"
        )
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise DataError(f"{root}: two classes have the name {twice[0]!r}; give each its own")
    return names


def _find(base: Path, entry: str, problems: list[str]) -> list[Path]:
    """Find the images of an entry of the YAML file: a folder or a list."""
    path = base / entry
    if not path.exists() and entry.startswith("../"):  # Roboflow writes so, meaning the folder beside the YAML file
        path = base / entry[3:]
    path = Path(os.path.normpath(path))  # the same file has one name
    if path.is_dir():
        images, labels = image_files(path), label_file(path / "any").parent
        if labels != path:  # a label file without an image: its format cannot be read, or it has another name
            known = {label_file(image) for image in images}
            orphans = [file for file in sorted(set(labels.rglob("*.txt")) - known) if not _is_other(file)]
            problems += [f"{file}: has no image ({READ_FORMATS}) of its name in {path}" for file in orphans]
        return images
    if path.suffix == ".txt" and path.is_file():
        return _read_list(path, base, problems)
    if found := find_file(base, entry):  # a list that lies beside, as of CVAT
        return _read_list(base / found, base, problems)
    raise DataError(f"{path} does not exist; data.yaml may name another folder of images, or a list of them, as .txt")


def _is_other(file: Path) -> bool:
    """Whether a text file holds no labels: a list of classes, or what macOS writes beside each file."""
    return file.name in NAMES_FILES or file.name.startswith(HIDDEN)


def _read_list(path: Path, base: Path, problems: list[str]) -> list[Path]:
    images = []
    for number, line in enumerate(map(str.strip, read_text(path).splitlines()), 1):
        candidates = [Path(os.path.abspath(folder / line)) for folder in (path.parent, base, Path())]
        image = next(filter(Path.is_file, candidates), None)
        if image is None and line and (found := find_file(base, line)):  # a path of another machine
            image = Path(os.path.abspath(base / found))
        if image:
            images.append(image)
        elif line:
            problems.append(f"{path}:{number}: {candidates[0]} does not exist")
    return images


def _read_labels(
    names: list[str], fields: int | None, image: Path, height: int, width: int, problems: list[str]
) -> list[Box]:
    """Read the boxes of an image from the first `fields` numbers of each line."""
    labels = label_file(image)
    boxes = []
    for number, line in enumerate(read_text(labels).splitlines() if labels.is_file() else [], 1):
        try:
            if line.strip():
                boxes.append(_box(line.split()[:fields], names, height, width))
        except ValueError as error:
            problems.append(f"{labels}:{number}: {error}")
    return boxes


def _box(fields: Sequence[str], names: list[str], height: int, width: int) -> Box:
    """Raises ValueError, saying what is wrong with the line."""
    try:
        label, *values = whole_number(fields[0]), *map(float, fields[1:])
    except ValueError:
        label, values = None, []
    if label is None:
        raise ValueError(f"{' '.join(fields)[:MAX_QUOTED]!r} is not a class number and numbers") from None
    if not 0 <= label < len(names):
        raise ValueError(f"class {label} is outside 0..{len(names) - 1}")
    for value in values:
        if not (math.isfinite(value) and -BORDER_TOLERANCE <= value <= 1 + BORDER_TOLERANCE):
            raise ValueError(f"{value:g} is not a share of the image, from 0 to 1")
    rotation = 0.0
    if len(values) == 4:
        x, y, w, h = values
        shares = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    elif len(values) >= 6 and len(values) % 2 == 0:  # a polygon
        shares = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
        rotation = _rotation(values, height, width) if len(values) == 8 else 0.0
    else:
        raise ValueError(f"{len(values)} numbers behind the class: four of a box or pairs of a polygon are needed")
    xyxy = clip([share * side for share, side in zip(shares, [width, height] * 2)], height, width)
    return Box(names[label], xyxy, rotation=rotation)


def _rotation(corners: Sequence[float], height: int, width: int) -> float:
    """Return the angle in degrees of the first of four sides against the nearest axis; under a degree counts as 0."""
    x1, y1, x2, y2 = corners[:4]
    angle = math.degrees(math.atan2((y2 - y1) * height, (x2 - x1) * width))
    angle -= 90 * round(angle / 90)
    return angle if abs(angle) >= 1 else 0.0
