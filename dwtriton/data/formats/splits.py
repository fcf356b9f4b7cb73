"""Finding the splits of a COCO data set in any folder, and the command that trains on them."""

import os
import shlex
import tomllib
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import NamedTuple

import torch

from dwtriton.config.fit import Fit, fit_to_data
from dwtriton.config.schema import DataConfig, HeadConfig
from dwtriton.core.text import first_of
from dwtriton.data.annotations import OtherFormatError, Records, read_records
from dwtriton.data.formats.layouts import OTHER_EXPORT, convert_hint
from dwtriton.data.image_files import find_file, is_file, is_image_file
from dwtriton.data.problems import DataError
from dwtriton.data.text_files import json_files

PROBED_IMAGES = 20  # of a split, by which its folder is found


class FoundSplit(NamedTuple):
    """The records of a COCO JSON file, and the folder that holds its images."""

    name: str
    images: Path
    records: Records


def find_splits(root: Path) -> tuple[list[FoundSplit], list[str]]:
    """Find the COCO files of a folder and the folders of their images; return these and why other JSON is none of them.

    Raises DataError if there is none.
    """
    if not root.is_dir():
        problem = f"is no folder; pass the one that holds it, {root.parent}" if root.exists() else "does not exist"
        raise DataError(f"{root} {problem}")
    found, others = {}, []
    for path in json_files(root):
        try:
            found[path] = read_records(path)
        except OtherFormatError as error:
            others.append(str(error))
        except DataError as error:
            found[path] = Records(path, {}, {}, {}, {}, [str(error)])
    if not found:
        hint = convert_hint(root) or (f"{first_of(others)}; {OTHER_EXPORT}" if others else "")
        raise DataError(f"{root} has no COCO detection JSON, in annotations/ or elsewhere{hint and f': {hint}'}")
    named = zip(_names(list(found), root), found.values())
    return [FoundSplit(name, _image_folder(root, name, records), records) for name, records in named], others


def choose_splits(splits: Sequence[FoundSplit]) -> tuple[FoundSplit, FoundSplit]:
    """Choose the splits to train and to validate on, by their names. They are the same if there is only one."""

    def named(*words: str) -> list[FoundSplit]:
        return [split for word in words for split in splits if word in split.name.lower()]

    train = (named("train") or [split for split in splits if split not in named("val", "test")] or list(splits))[0]
    val = (named("val", "test") or [split for split in splits if split is not train] or [train])[0]
    return train, val


def fit_here(images: int) -> Fit:
    """The config that fits so many images to train on and this machine."""
    return fit_to_data(images, torch.cuda.is_available())


def training_command(
    train: FoundSplit, val: FoundSplit, root: Path, settings: Sequence[str] = (), images: int | None = None
) -> str:
    """The shell command that trains on these splits of `root`, with a config that fits their size and this machine.

    `--set` gives everything that is not a default of it; `settings` are further ones. `images`: how many of `train` are
    trained on, by default all.
    """
    fit = fit_here(len(train.records.images) if images is None else images)
    changed = [*fit.settings, *settings]
    for name, split in (("train", train), ("val", val)):
        for part, path in (("images", split.images), ("annotations", split.records.path)):
            text, default = Path(os.path.relpath(path, root)).as_posix(), getattr(DataConfig(), f"{name}_{part}")
            changed += [f"data.{name}_{part}={_toml(text)}"] if text != default else []
    classes = len(train.records.categories)
    changed += [f"head.num_classes={classes}"] if classes != HeadConfig().num_classes else []
    words = ["python", "-m", "dwtriton.train", "--cfg", fit.config, "--data", str(root)]
    return shlex.join([*words, *(word for setting in changed for word in ("--set", setting))])


def check_command(root: Path) -> str:
    """The shell command that looks through a data set."""
    return shlex.join(["python", "-m", "dwtriton.data", "check", str(root)])


def split_command(root: Path) -> str:
    """The shell command that makes a validation split of a data set with one split."""
    name = root.resolve().name
    return shlex.join(["python", "-m", "dwtriton.data", "split", str(root), "--val", "0.1", "--out", f"{name}-split"])


def tile_command(root: Path, size: int) -> str:
    """The shell command that cuts the images of a data set into tiles."""
    words = ["python", "-m", "dwtriton.data", "tile", str(root), "--size", str(size)]
    return shlex.join([*words, "--out", f"{root.resolve().name}-tiles"])


def _names(files: Sequence[Path], root: Path) -> list[str]:
    """Names that differ: `annotations/instances_val.json` is val, `valid/_annotations.json` is valid."""
    paths = ["-".join(path.relative_to(root).with_suffix("").parts) for path in files]
    kinds = (
        [path.stem.removeprefix("instances_") for path in files],
        [path.parent.name for path in files],
        [f"{path.parent.name}-{path.stem}" for path in files],
        paths,
        [f"{number}-{path}" for number, path in enumerate(paths, 1)],
    )
    return next(names for names in kinds if len(set(names)) == len(files))


def _image_folder(root: Path, name: str, records: Records) -> Path:
    """Find the folder that holds most of the first images: in `root`, in the folder of the annotations or between them.

    A folder in one of these or in its `images` counts too. Names are taken as they stand, else as paths from the
    working folder, as `predict` writes them, or else as `find_file` does. Splits may give their images the same names:
    among folders that hold at least half as many as the best, take the one whose name is most like the split's.
    """
    above = [folder for folder in records.path.parents if folder.is_relative_to(root)]
    below = [path for folder in above for path in (*folder.iterdir(), *folder.glob("images/*")) if path.is_dir()]
    folders = sorted({*above, *below})
    files = [str(image["file_name"]) for image in list(records.images.values())[:PROBED_IMAGES]]
    held = {folder: sum(is_file(folder / file) for file in files) for folder in folders}
    if not any(held.values()) and any(map(os.path.isfile, files)):
        return Path()
    if not any(held.values()):
        held = {folder: sum(find_file(folder, file) is not None for file in files) for folder in folders}
    if not any(held.values()):  # the error will name the nearest file
        held = {folder: sum(map(is_image_file, folder.iterdir())) for folder in folders}
    candidates = [folder for folder, count in held.items() if 2 * count >= max(held.values())]
    return max(candidates, key=lambda folder: SequenceMatcher(None, _own_name(folder, root), name).ratio())


def _own_name(folder: Path, root: Path) -> str:
    """Return the name of a folder; `train/data` and `train/images` are named by what they lie in."""
    if folder.name in ("data", "images") and folder.parent != root:
        return folder.parent.name
    return folder.name


def _toml(text: str) -> str:
    """Quote text that `--set` would read as something else, such as a folder called 2017."""
    try:
        tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text if text == text.strip() else f'"{text}"'
    return f'"{text}"'
