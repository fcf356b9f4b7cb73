"""Splitting a COCO data set: images for training, and a share of them to validate with."""

import re
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from dwtriton.core.errors import UserError
from dwtriton.data.annotations import read_valid_records
from dwtriton.data.formats.convert import INFO, check_vacant, write_coco
from dwtriton.data.formats.leaks import shared_files
from dwtriton.data.formats.splits import find_splits
from dwtriton.data.image_files import find_file
from dwtriton.data.problems import DataError
from dwtriton.data.text_files import read_json
from dwtriton.data.values import id_text


def _stem(name: str) -> str:
    """Return a file's name without its suffix, nor what Roboflow puts behind it, which copies of an image differ by."""
    return re.sub(r"_[a-zA-Z]{3,4}\.rf\.\w+$", "", str(PurePosixPath(name).with_suffix("")))


GROUPS: dict[str, Callable[[str], str]] = {  # what images of a group have in common, by file name
    "image": _stem,
    "folder": lambda name: str(PurePosixPath(name).parent),
    "prefix": lambda name: re.sub(r"[-_. ]*\d+$", "", _stem(name)),
}
MIN_SERIES = 3  # images of one prefix, from which on they look like frames of a video


class Split(NamedTuple):
    """What was written: numbers of images, and doubts."""

    train: int
    val: int
    warnings: list[str]


def split_data(root: Path, out: Path, share: float, group: str, seed: int, force: bool, console: Console) -> Split:
    """Write the one split of `root` to `out` as two, in COCO's layout: `share` of the images, at least one, validates.

    Images of a group, by `GROUPS`, stay together; groups are drawn by `seed`. Everything else that the annotations hold
    is kept. Raises UserError for data with several splits or one group, and DataError for data that cannot be read.
    """
    if not 0 < share < 1:
        raise UserError(f"--val is a share of the images between 0 and 1, such as 0.1, not {share:g}")
    check_vacant(out, force)
    splits, _ = find_splits(root)
    if len(splits) > 1:
        names = ", ".join(split.name for split in splits)
        check = f"check it: python -m dwtriton.data check {root}"
        raise UserError(f"{root} has the splits {names} already; {check}, or pass the folder of one of them")
    path, folder = splits[0].records.path, splits[0].images
    read_valid_records(path)
    content = read_json(path)
    names = {id_: image["file_name"] for id_, image in splits[0].records.images.items()}
    files = {str(id_): file for id_, name in names.items() if (file := find_file(folder, name)) is not None}
    if not files:
        raise DataError(f"none of the images of {path} is in {folder}: see python -m dwtriton.data check {root}")
    chosen = _choose(files, share, GROUPS[group], seed, root)
    parts: dict[str, dict[str, str]] = {"train": {}, "val": {}}  # of each split: file by image id
    for id_, file in files.items():
        parts["val" if id_ in chosen else "train"][id_] = file
    write_coco(
        {split: (_paths(folder, part), partial(_content, content, part)) for split, part in parts.items()},
        out,
        console,
        folder,
    )
    return Split(len(parts["train"]), len(parts["val"]), _doubts(folder, parts, group, len(names) - len(files)))


def _choose(files: dict[str, str], share: float, key: Callable[[str], str], seed: int, root: Path) -> set[str]:
    """Draw whole groups of images until they are the share to validate with."""
    groups: dict[str, list[str]] = defaultdict(list)
    for id_, file in files.items():
        groups[key(file)].append(id_)
    if len(groups) < 2:
        raise UserError(f"{root} has {len(groups)} group of {len(files)} images: there is nothing to split")
    order = np.random.default_rng(seed).permutation(sorted(groups))
    wanted, chosen = max(1, round(share * len(files))), set()
    for name in order[:-1].tolist():  # one is left for training
        if len(chosen) < wanted:
            chosen |= set(groups[name])
    return chosen


def _paths(folder: Path, part: dict[str, str]) -> list[Path]:
    return [folder / file for file in dict.fromkeys(part.values())]


def _content(content: dict[str, Any], part: dict[str, str], names: list[str]) -> dict[str, Any]:
    """Return the content of a COCO file with the images of a part, which are called `names` in their new folder."""
    name_of = dict(zip(dict.fromkeys(part.values()), names))
    images = [
        image | {"file_name": name_of[part[id_text(image["id"])]]}
        for image in content["images"]
        if id_text(image["id"]) in part
    ]
    annotations = [a for a in content["annotations"] if id_text(a["image_id"]) in part]
    return {"info": INFO} | {
        **{key: value for key, value in content.items() if key != "info"},
        **{"images": images, "annotations": annotations},
    }


def _doubts(folder: Path, parts: dict[str, dict[str, str]], group: str, missing: int) -> list[str]:
    warnings = [f"{missing} images without a file are left out"] if missing else []
    shared = shared_files(*(_paths(folder, parts[split]) for split in ("train", "val")))
    if shared:
        example = f"{shared[0][0]} is {shared[0][1]}"
        warnings.append(f"{len(shared)} images of val are in train too, under other names: {example}")
    series: dict[str, set[str]] = defaultdict(set)
    for split, part in parts.items():
        for file in part.values():
            series[GROUPS["prefix"](file)].add(split)
    counts = defaultdict(int)
    for file in (file for part in parts.values() for file in part.values()):
        counts[GROUPS["prefix"](file)] += 1
    torn = [name for name, splits in series.items() if name and len(splits) > 1 and counts[name] >= MIN_SERIES]
    if group == "image" and torn and len(series) > 1:
        warnings.append(
            f"{len(torn)} series of images, such as {torn[0]}*, are in train and val: if they are frames of one video "
            "or crops of one picture, --group prefix keeps each together"
        )
    return warnings
