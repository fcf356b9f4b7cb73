"""Reading Pascal VOC's layout."""

import math
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

from dwtriton.core.text import listed
from dwtriton.data.buckets import Size
from dwtriton.data.formats.convert import Box, Source, clip, image_files
from dwtriton.data.formats.folders import pair_labels, split_by_folder
from dwtriton.data.image_files import HIDDEN
from dwtriton.data.images import READ_FORMATS
from dwtriton.data.problems import DataError
from dwtriton.data.text_files import read_bytes, read_text
from dwtriton.data.values import number, whole_number

SIDES = ("xmin", "ymin", "xmax", "ymax")
ROTATED = ("cx", "cy", "w", "h", "angle")  # of labelImg2's robndbox
FLAGS = ("-1", "0", "1")  # behind an image in a list of one class
MAX_LISTS = 12  # named in an error


def has_lists(root: Path) -> bool:
    """Whether a folder, or one in it, has the lists of Pascal VOC's layout."""
    return any(path.is_dir() for pattern in ("ImageSets", "*/ImageSets") for path in root.glob(pattern))


def has_xml(root: Path) -> bool:
    """Whether there is an XML file in a folder or below, as labelImg writes it beside an image."""
    return bool(xml_files(root))


def read_voc(root: Path, train: Sequence[str] = ("train",), val: Sequence[str] = ("val",)) -> Source:
    """Read `JPEGImages`, `Annotations` with an XML file for each image, and lists of images in `ImageSets/Main`.

    `train` and `val` name lists of `root`, or as "VOC2007/trainval" of a folder in it: several years make one data set.
    If they are the same, all is for training. Classes are those that occur. Objects marked as difficult become crowd
    regions: not trained on, and neither right nor wrong in an evaluation. Raises DataError.
    """
    problems: list[str] = []
    splits = {"train": train} if set(train) == set(val) else {"train": train, "val": val}
    images = {
        split: list(dict.fromkeys(image for name in lists for image in _listed_images(root, name, problems)))
        for split, lists in splits.items()
    }
    chosen = {image for files in images.values() for image in files}
    folders = {root / Path(name).parent / "JPEGImages" for lists in splits.values() for name in lists}
    left = [i for folder in sorted(folders) for i in image_files(folder) if i not in chosen and _xml_file(i).is_file()]
    notes = []
    if left:
        notes.append(f"{len(left)} labelled images are in none of the lists and not converted, such as {left[0]}")
    return _source(images, {image: _xml_file(image) for image in chosen}, problems, notes)


def read_voc_folders(root: Path) -> Source:
    """Read images with XML files beside them or in a folder of their own, without lists: splits are by folders' names.

    labelImg, labelme2voc, Roboflow and FiftyOne write so. An image without an XML file is background. Raises DataError.
    """
    images, files = image_files(root), list(filter(Path.is_file, xml_files(root)))
    labels, twins = pair_labels(root, images, files)
    known, left = set(labels.values()), set(twins)
    problems = [f"{path}: has no image ({READ_FORMATS}) of its name" for path in files if path not in known]
    splits, notes = split_by_folder(root, [image for image in images if image not in left])
    background = len(images) - len(labels) - len(twins)
    if background:
        notes.append(f"{background} images without an XML file are background")
    if twins:
        notes.append(f"{len(twins)} images of the name of a labelled one are not converted, such as {twins[0]}")
    return _source(splits, labels, problems, notes)


def _source(
    splits: dict[str, list[Path]], labels: dict[Path, Path], problems: list[str], notes: Sequence[str]
) -> Source:
    """Return the source of images with their XML files; those without one are background."""

    def read(image: Path, height: int, width: int, problems: list[str]) -> list[Box]:
        return _read(labels[image], height, width, problems) if image in labels else []

    return Source(splits, None, read, problems, notes, lambda image: _size(labels[image]) if image in labels else None)


def xml_files(root: Path) -> list[Path]:
    """Return the XML files in a folder and below, without what macOS writes beside each file."""
    return [path for path in sorted(root.rglob("*.xml")) if not path.name.startswith(HIDDEN)]


def _xml_file(image: Path) -> Path:
    """`.../JPEGImages/site/a.jpg` -> `.../Annotations/site/a.xml`."""
    parts = list(image.parts)
    parts[len(parts) - 1 - parts[::-1].index("JPEGImages")] = "Annotations"
    return Path(*parts).with_suffix(".xml")


def _listed_images(root: Path, name: str, problems: list[str]) -> list[Path]:
    folder = root / Path(name).parent
    list_file = folder / "ImageSets" / "Main" / f"{Path(name).name}.txt"
    for path in (folder / "JPEGImages", folder / "Annotations", list_file.parent):
        if not path.is_dir():
            years = [f"{path.parent.name}/{Path(name).name}" for path in sorted(root.glob("*/JPEGImages"))]
            hint = f"; lists of folders in it are named {', '.join(years)}" if years else ""
            raise DataError(f"{folder} is not in Pascal VOC's layout: the folder {path} is missing{hint}")
    if not list_file.is_file():
        lists = sorted(path.stem for path in list_file.parent.glob("*.txt"))
        use = f"; --train {lists[0]} --val {lists[-1]} would take them" if lists else ""
        raise DataError(f"{list_file} does not exist; there are {listed(lists, MAX_LISTS) or 'no lists'}{use}")
    pictures = folder / "JPEGImages"
    files = {path.relative_to(pictures).with_suffix("").as_posix(): path for path in image_files(pictures)}
    images = []
    for line_number, line in enumerate(read_text(list_file).splitlines(), 1):
        names = _names(line.strip())
        image = next((files[name] for name in names if name in files), None)
        if image is not None:
            images.append(image)
        elif names:
            problems.append(f"{list_file}:{line_number}: {names[-1]} is not in {pictures}")
    return images


def _names(line: str) -> list[str]:
    """Return what a line of a list may name: it may end in a flag, and the name in the suffix of an image."""
    line = line.replace("\\", "/")
    words = line.rsplit(maxsplit=1)
    names = [line, words[0]] if len(words) == 2 and words[1] in FLAGS else [line] if line else []
    return [text for name in names for text in (name, Path(os.path.splitext(name)[0]).as_posix())]


def parse_xml(path: Path) -> ElementTree.Element:
    """Return the root of an XML file. Raises DataError."""
    content = read_bytes(path)
    try:
        return ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise DataError(f"{path}:{error.position[0]}: {error}") from None
    except (LookupError, ValueError) as error:  # an unknown encoding
        raise DataError(f"{path}: {error}") from None


def _size(path: Path) -> Size | None:
    tree = parse_xml(path)
    height, width = (whole_number(tree.findtext(f"size/{side}", "")) for side in ("height", "width"))
    return (height, width) if height and width else None


def _read(path: Path, height: int, width: int, problems: list[str]) -> list[Box]:
    """The objects of an XML file. ElementTree keeps no lines: problems name objects by their number in the file."""
    boxes = []
    for position, item in enumerate(parse_xml(path).iter("object"), 1):
        name = (item.findtext("name") or "").strip()
        try:
            boxes.append(_box(item, name, height, width))
        except ValueError as error:
            problems.append(f"{path}: object {position}{f' ({name})' if name else ''}: {error}")
    return boxes


def _box(item: ElementTree.Element, name: str, height: int, width: int) -> Box:
    """Convert VOC's pixels, which count from 1 and include the last. Raises ValueError, saying what is wrong."""
    if not name:
        raise ValueError("it has no name")
    is_difficult = item.findtext("difficult", "").strip() == "1"
    if item.find("robndbox") is not None:
        corners, rotation = _around_rotated(item)
        return Box(name, clip(corners, height, width), is_difficult, rotation)
    try:
        x1, y1, x2, y2 = (float(item.findtext(f"bndbox/{side}", "")) for side in SIDES)
    except ValueError:
        raise ValueError(f"it has no bndbox with the numbers {', '.join(SIDES)}") from None
    if not (x1 <= x2 and y1 <= y2):
        raise ValueError("xmin is above xmax, or ymin above ymax")
    attributes = {entry.findtext("name"): entry.findtext("value") for entry in item.iter("attribute")}
    rotation = number(attributes.get("rotation")) or 0.0
    return Box(name, clip((x1 - 1, y1 - 1, x2, y2), height, width), is_difficult, rotation)


def _around_rotated(item: ElementTree.Element) -> tuple[tuple[float, float, float, float], float]:
    """Return the upright box around labelImg2's rotated one, whose angle is in radians, and the angle in degrees."""
    values = [number(item.findtext(f"robndbox/{key}")) for key in ROTATED]
    if None in values:
        raise ValueError(f"its robndbox, a rotated box, lacks the numbers {', '.join(ROTATED)}")
    x, y, w, h, angle = values
    sine, cosine = abs(math.sin(angle)), abs(math.cos(angle))
    half_w, half_h = (w * cosine + h * sine) / 2, (w * sine + h * cosine) / 2
    return (x - half_w, y - half_h, x + half_w, y + half_h), math.degrees(angle)
