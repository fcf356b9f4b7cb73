"""Which layout the labels of a folder have, and their reading as one `Source`."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from dwtriton.core.text import first_of, listed
from dwtriton.data.annotations import OtherFormatError, read_records
from dwtriton.data.formats.convert import Source
from dwtriton.data.formats.cvat import is_cvat, read_cvat
from dwtriton.data.formats.label_studio import is_label_studio, read_label_studio
from dwtriton.data.formats.labelme import is_labelme, read_labelme
from dwtriton.data.formats.voc import has_lists, has_xml, read_voc, read_voc_folders
from dwtriton.data.formats.yolo import is_yolo, read_yolo
from dwtriton.data.problems import DataError
from dwtriton.data.text_files import json_files

MAX_NAMES = 12  # of files in an error
OTHER_EXPORT = "choose COCO, YOLO or Pascal VOC where it is exported"  # advice for layouts that are not known
FOLDER_LAYOUTS: dict[str, tuple[Callable[[Path], bool], Callable[[Path], Source]]] = {  # how they are known and read
    "cvat": (is_cvat, read_cvat),
    "voc-folders": (has_xml, read_voc_folders),
    "labelme": (is_labelme, read_labelme),
    "label-studio": (is_label_studio, read_label_studio),
}


def find_layout(root: Path) -> str | None:
    """Return the layout of a folder, "voc" with lists of images, "yolo" or one of `FOLDER_LAYOUTS`; None for others."""
    if not root.is_dir():
        return "yolo" if root.suffix in (".yaml", ".yml", ".data") and root.is_file() else None
    kinds = {"voc": has_lists, "yolo": is_yolo, **{name: holds for name, (holds, _) in FOLDER_LAYOUTS.items()}}
    return next((kind for kind, holds in kinds.items() if holds(root)), None)


def convert_hint(root: Path) -> str:
    """Return where to go with a folder whose labels have another layout, or the empty string."""
    if find_layout(root) is None:
        return ""
    command = ["python", "-m", "dwtriton.data", "convert", str(root), "--out", f"{root.resolve().name}-coco"]
    return f"its labels are in another layout, convert them first: {shlex.join(command)}"


def read_source(
    root: Path, names_file: Path | None = None, train: Sequence[str] | None = None, val: Sequence[str] | None = None
) -> Source:
    """Read the data set of a folder in the layout that it has.

    `names_file` holds the classes for YOLO; `train` and `val` name lists for Pascal VOC. Raises DataError, for options
    of another layout too.
    """
    if not root.exists():
        raise DataError(f"{root} does not exist")
    layout = find_layout(root)
    if layout == "voc" and names_file:
        raise DataError(f"--names is for YOLO's layout; {root} holds Pascal VOC's, whose classes are those that occur")
    if layout != "voc" and (train or val):
        raise DataError(f"--train and --val name lists of Pascal VOC's layout, but {root} holds no ImageSets")
    if layout == "voc":
        return read_voc(root, train or ["train"], val or ["val"])
    if layout in FOLDER_LAYOUTS and not names_file:
        return FOLDER_LAYOUTS[layout][1](root)
    if layout is None and names_file is None:
        if files := json_files(root):
            raise DataError(_about_json(root, files))
        found = listed(sorted(path.name for path in root.iterdir()), MAX_NAMES) if root.is_dir() else root.name
        raise DataError(
            f"{root} has no data.yaml with the names of the classes, nor XML files of Pascal VOC or CVAT, nor JSON of "
            f"labelme or Label Studio; it holds {found}. If its labels are YOLO's, pass the YAML file itself, or a "
            "file with a class a line as --names FILE"
        )
    return read_yolo(root, names_file)


def _about_json(root: Path, files: Sequence[Path]) -> str:
    """Return where to go with JSON files of no layout that is converted."""
    reasons = []
    for path in files:
        try:
            read_records(path)
        except OtherFormatError as error:
            reasons.append(str(error))
        except DataError:
            pass
    if len(reasons) == len(files):
        return f"{first_of(reasons)}; {OTHER_EXPORT}"
    return f"{root} is in COCO's layout, nothing is to be converted: python -m dwtriton.data check {root}"
