"""Reading Pascal VOC's layout."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

from dwtriton.core.text import listed
from dwtriton.data.formats.convert import Box, Source, clip, image_files, read_text
from dwtriton.data.problems import DataError

SIDES = ("xmin", "ymin", "xmax", "ymax")
MAX_LISTS = 12  # named in an error


def is_voc(root: Path) -> bool:
    """Whether a folder, or one in it, has the lists of Pascal VOC's layout."""
    return any(path.is_dir() for pattern in ("ImageSets", "*/ImageSets") for path in root.glob(pattern))


def read_voc(root: Path, train: Sequence[str] = ("train",), val: Sequence[str] = ("val",)) -> Source:
    """Read `JPEGImages`, `Annotations` with an XML file for each image, and lists of images in `ImageSets/Main`.

    `train` and `val` name lists of `root`, or as "VOC2007/trainval" of a folder in it: several years make one data set.
    Classes are those that occur. Objects marked as difficult become crowd regions: not trained on, and neither right
    nor wrong in an evaluation. Raises DataError.
    """
    problems: list[str] = []
    images = {
        split: list(dict.fromkeys(image for name in lists for image in _listed_images(root, name, problems)))
        for split, lists in (("train", train), ("val", val))
    }
    return Source(images, None, _read, problems)


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
        raise DataError(f"{list_file} does not exist; there are {listed(lists, MAX_LISTS) or 'no lists'}")
    files = {path.stem: path for path in image_files(folder / "JPEGImages")}
    images = []
    for number, line in enumerate(read_text(list_file).splitlines(), 1):
        stem = (line.split() or [None])[0]  # in a list of one class, a flag follows
        if stem in files:
            images.append(files[stem])
        elif stem is not None:
            problems.append(f"{list_file}:{number}: {stem} is not in {folder / 'JPEGImages'}")
    return images


def _read(image: Path, height: int, width: int, problems: list[str]) -> list[Box]:
    """The objects of an image. ElementTree keeps no lines: problems name objects by their number in the file."""
    path = image.parents[1] / "Annotations" / f"{image.stem}.xml"
    try:
        tree = ElementTree.fromstring(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except ElementTree.ParseError as error:
        raise DataError(f"{path}:{error.position[0]}: {error}") from None
    except (LookupError, ValueError) as error:  # an unknown encoding
        raise DataError(f"{path}: {error}") from None
    boxes = []
    for number, item in enumerate(tree.iter("object"), 1):
        name = (item.findtext("name") or "").strip()
        try:
            boxes.append(_box(item, name, height, width))
        except ValueError as error:
            problems.append(f"{path}: object {number}{f' ({name})' if name else ''}: {error}")
    return boxes


def _box(item: ElementTree.Element, name: str, height: int, width: int) -> Box:
    """Convert VOC's pixels, which count from 1 and include the last. Raises ValueError, saying what is wrong."""
    if not name:
        raise ValueError("it has no name")
    try:
        x1, y1, x2, y2 = (float(item.findtext(f"bndbox/{side}", "")) for side in SIDES)
    except ValueError:
        raise ValueError(f"it has no bndbox with the numbers {', '.join(SIDES)}") from None
    if not (x1 <= x2 and y1 <= y2):
        raise ValueError("xmin is above xmax, or ymin above ymax")
    return Box(name, clip((x1 - 1, y1 - 1, x2, y2), height, width), item.findtext("difficult", "").strip() == "1")
