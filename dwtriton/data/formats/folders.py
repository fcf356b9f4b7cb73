"""What the folders above images and label files tell: splits, as `train/` and `valid/`, and what belongs together."""

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

SPLIT_OF = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
PICTURE_FOLDERS = ("JPEGImages", "images")  # first choice where other folders have pictures of the same names


def split_of(root: Path, path: Path) -> str | None:
    """Return the split that a folder above a file is named after, None if there is none."""
    return next((SPLIT_OF[name.lower()] for name in _folders(root, path) if name.lower() in SPLIT_OF), None)


def split_by_folder(root: Path, images: Iterable[Path]) -> tuple[dict[str, list[Path]], list[str]]:
    """Return images by split, and notes about those that are in neither training nor validation.

    An image belongs to the split that a folder above it is named after. Without such folders all are for training; test
    images are for validation where there are no others for it.
    """
    found: dict[str | None, list[Path]] = {}
    for image in images:
        found.setdefault(split_of(root, image), []).append(image)
    notes = []
    if "val" not in found and "test" in found:
        found["val"] = found.pop("test")
        notes.append(f"{len(found['val'])} images of test are for validation, as there are no others for it")
    if "train" not in found and None in found:
        found["train"] = found.pop(None)
    if "train" not in found:
        found["train"] = found.pop("val", [])
    for split in ("test", None):
        if split in found:
            where = f"of {split}" if split else "outside of the folders of train and val"
            notes.append(f"{len(found.pop(split))} images {where} are not converted")
    return found, notes


def pair_labels(root: Path, images: Sequence[Path], labels: Sequence[Path]) -> tuple[dict[Path, Path], list[Path]]:
    """Return the label file of each image that has one, and images of the same name as such a one in other folders.

    A label file lies beside its image, or in the same folders but for those whose names only images or only label
    files have above them: `images/train/a.jpg` and `labels/train/a.xml`, `train/a.jpg` and `train/xml/a.xml`.
    """
    beside = {path.with_suffix(""): path for path in labels}
    pairs = {image: beside[image.with_suffix("")] for image in images if image.with_suffix("") in beside}
    paired = set(pairs.values())
    images, labels = [i for i in images if i not in pairs], [path for path in labels if path not in paired]
    stems = {image.stem for image in images} & {path.stem for path in labels}
    images, labels = ([path for path in paths if path.stem in stems] for paths in (images, labels))
    above = [{name for path in paths for name in _folders(root, path)} for paths in (images, labels)]

    def key(path: Path) -> tuple[str, ...]:
        return (*[name for name in _folders(root, path) if name in above[0] & above[1]], path.stem)

    groups: dict[tuple[str, ...], list[Path]] = defaultdict(list)
    for image in images:
        groups[key(image)].append(image)
    twins = []
    for path in labels:
        group = groups.pop(key(path), [])
        group.sort(key=lambda image: not any(name in PICTURE_FOLDERS for name in image.parts))
        pairs |= dict.fromkeys(group[:1], path)
        twins += group[1:]
    return pairs, twins


def _folders(root: Path, path: Path) -> tuple[str, ...]:
    return Path(os.path.relpath(path.parent, root)).parts
