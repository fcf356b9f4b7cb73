"""Reading "CVAT for images": one XML file with the names of all images."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from dwtriton.data.formats.convert import Box, Source, clip
from dwtriton.data.formats.folders import split_by_folder
from dwtriton.data.formats.named_images import NamedImages
from dwtriton.data.formats.voc import parse_xml, xml_files
from dwtriton.data.problems import DataError
from dwtriton.data.values import number, whole_number

ROOT_TAG = "annotations"  # of the XML file; that of Pascal VOC is annotation


def is_cvat(root: Path) -> bool:
    """Whether the XML files of a folder are CVAT's own."""
    first = next(filter(Path.is_file, xml_files(root)), None)
    try:
        return first is not None and next(ElementTree.iterparse(first, ["start"]))[1].tag == ROOT_TAG
    except (OSError, ElementTree.ParseError, LookupError, ValueError, StopIteration):
        return False


def read_cvat(root: Path) -> Source:
    """Read the XML files of "CVAT for images", with splits by the names of folders. Classes are the labels that occur.

    A polygon, an ellipse and a mask become the box around them; other shapes have no area and are problems. Raises
    DataError, for "CVAT for video" too, which names no images.
    """
    problems: list[str] = []
    entries: dict[Path, tuple[Path, ElementTree.Element]] = {}  # file and element, by image
    named = NamedImages(root)
    for path in xml_files(root):
        tree = parse_xml(path)
        if tree.find("track") is not None:
            raise DataError(
                f'{path} is "CVAT for video", which names no image files: export it as "COCO 1.0" or "CVAT for images '
                '1.1", with images'
            )
        for entry in tree.iter("image"):
            name = "/".join(filter(None, (entry.get("subset"), entry.get("name", ""))))
            image = named.find(name, path.parent)
            if image is None:
                problems.append(f"{path}: its image {name} does not exist; export it again, with images")
            elif image in entries:
                problems.append(f"{path}: names {image} twice")
            else:
                entries[image] = path, entry

    def read(image: Path, height: int, width: int, problems: list[str]) -> list[Box]:
        path, entry = entries[image]
        boxes = []
        for position, shape in enumerate(entry, 1):
            try:
                boxes.append(_box(shape, height, width))
            except ValueError as error:
                problems.append(f"{path}: image {entry.get('name')}, shape {position}: {error}")
        return boxes

    def size(image: Path) -> tuple[int, int] | None:
        height, width = (whole_number(entries[image][1].get(side)) for side in ("height", "width"))
        return (height, width) if height and width else None

    splits, notes = split_by_folder(root, sorted(entries))
    left = [image for image in named.images if image not in entries]
    if left:
        notes.append(f"{len(left)} images are in no XML file and not converted, such as {left[0]}")
    return Source(splits, None, read, problems, notes, size)


def _box(shape: ElementTree.Element, height: int, width: int) -> Box:
    """Raises ValueError, saying what is wrong with the shape."""

    def values(*keys: str) -> list[float]:
        found = [number(shape.get(key)) for key in keys]
        if None in found:
            raise ValueError(f"a {shape.tag} without the numbers {', '.join(keys)}")
        return found

    if shape.tag == "box":
        corners = values("xtl", "ytl", "xbr", "ybr")
    elif shape.tag == "polygon":
        x, y = ([number(pair.split(",")[axis]) for pair in shape.get("points", "").split(";")] for axis in (0, -1))
        if None in (*x, *y):
            raise ValueError("a polygon whose points are not pairs of numbers")
        corners = [min(x), min(y), max(x), max(y)]
    elif shape.tag == "ellipse":
        cx, cy, rx, ry = values("cx", "cy", "rx", "ry")
        corners = [cx - rx, cy - ry, cx + rx, cy + ry]
    elif shape.tag == "mask":
        left, top, w, h = values("left", "top", "width", "height")
        corners = [left, top, left + w, top + h]
    else:
        raise ValueError(f"a {shape.tag} has no box")
    if not (label := shape.get("label", "").strip()):
        raise ValueError("it has no label")
    return Box(label, clip(corners, height, width), rotation=number(shape.get("rotation")) or 0.0)
