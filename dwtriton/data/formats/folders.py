"""Splits by the names of folders: `train/`, `valid/` and `test/`, as exporters write them."""

from collections.abc import Iterable
from pathlib import Path

SPLIT_OF = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def split_by_folder(root: Path, images: Iterable[Path]) -> tuple[dict[str, list[Path]], list[str]]:
    """Return images by split, and notes about those that are in neither training nor validation.

    An image belongs to the split that a folder above it is named after. Without such folders all are for training; test
    images are for validation where there are no others for it.
    """
    found: dict[str | None, list[Path]] = {}
    for image in images:
        folders = image.relative_to(root).parts[:-1]
        split = next((SPLIT_OF[folder.lower()] for folder in folders if folder.lower() in SPLIT_OF), None)
        found.setdefault(split, []).append(image)
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
