"""The data sets of a config; the generated `shapes` are drawn where they are missing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from dwtriton.config.schema import Config, DataConfig
from dwtriton.core.text import listed
from dwtriton.data.annotations import Records, read_valid_records
from dwtriton.data.classes import different_categories
from dwtriton.data.coco import CocoDataset, SplitName
from dwtriton.data.formats.layouts import convert_hint
from dwtriton.data.problems import MAX_EXAMPLES, DataError, DataProblems
from dwtriton.data.shapes.generate import check_shapes, generate_shapes, is_vacant
from dwtriton.data.text_files import json_files
from dwtriton.data.usable_images import MissingImagesError

BOTH: tuple[SplitName, ...] = ("train", "val")
MAX_NAMES = 12  # of files in an error


def draw_missing_shapes(cfg: DataConfig, console: Console | None = None) -> None:
    """Draw the `shapes` data set if the config has it and its root is absent, with progress on `console`.

    Raises DataError if it cannot be written.
    """
    if cfg.shapes is not None and cfg.root is not None and is_vacant(cfg.root):
        shapes = cfg.shapes
        generate_shapes(cfg.root, shapes.train_images, shapes.val_images, shapes.seed, console, shapes.crowded)


def prepare_data(cfg: Config, console: Console | None = None) -> tuple[CocoDataset, CocoDataset]:
    """Return the training and the validation set, after `draw_missing_shapes`.

    Classes are those of the training set; validation may lack some, and have them under other ids.
    Raises DataError if the files are absent or unusable, if validation has a category that training lacks, or if there
    are not `cfg.head.num_classes`.
    """
    _check_files(cfg, BOTH, console)
    train = _open(cfg, "train")
    if len(train.class_names) != cfg.head.num_classes:
        raise DataError(
            f"the data in {cfg.data.root} has {len(train.class_names)} categories, but head.num_classes is "
            f"{cfg.head.num_classes}: add --set head.num_classes={len(train.class_names)}"
        )
    records = read_valid_records(cfg.data.root / cfg.data.val_annotations)
    differing = different_categories(dict(zip(train.category_ids, train.class_names)), records.class_names)
    if differing:
        files = f"{cfg.data.train_annotations} and {cfg.data.val_annotations}"
        raise DataError(f"{files} have different categories: {', '.join(differing)} in one of them alone")
    val = _open(cfg, "val", train.class_names, records)
    val.check_measurable()
    return train, val


def prepare_validation(
    cfg: Config, console: Console | None = None, classes: Sequence[str] | None = None
) -> CocoDataset:
    """Return the validation set alone; the training files need not exist.

    Labels are those of the `classes` of a detector, matched by name, or else the file's own, of any number. Draws and
    raises as `prepare_data`.
    """
    _check_files(cfg, ("val",), console)
    return _open(cfg, "val", classes)


def unused_annotations(cfg: DataConfig) -> list[str]:
    """Return the JSON files of the data folder, as paths inside it, that are neither to train nor to validate with."""
    used = {(cfg.root / name).resolve() for name in (cfg.train_annotations, cfg.val_annotations)}
    return [str(path.relative_to(cfg.root)) for path in json_files(cfg.root) if path.resolve() not in used]


def data_notes(cfg: DataConfig, problems: dict[str, DataProblems]) -> list[str]:
    """Return what the splits of a run leave out or make doubtful, a line each, and the files that it does not use."""
    lines = [f"{split} data: {line}" for split, found in problems.items() for line in found.summary()]
    unused = unused_annotations(cfg)
    names = listed(unused, MAX_EXAMPLES)
    return [*lines, *([f"JSON files in {cfg.root} that are not used: {len(unused)}, {names}"] if unused else [])]


def data_as_json(cfg: DataConfig, problems: dict[str, DataProblems]) -> dict[str, Any]:
    """Return what `data_notes` says as plain values, with all examples."""
    return {split: found.as_json() for split, found in problems.items()} | {"unused": unused_annotations(cfg)}


def check_layout(cfg: DataConfig, splits: tuple[SplitName, ...] = BOTH) -> None:
    """Raise one DataError, with the layout expected and what was found, unless every path of `splits` exists."""
    if cfg.root is None:
        raise _layout_error(cfg, "this config needs COCO data: pass --data DIR", splits)
    folders, files = ([getattr(cfg, f"{split}_{part}") for split in splits] for part in ("images", "annotations"))
    missing = [name for name in folders if not (cfg.root / name).is_dir()]
    missing += [name for name in files if not (cfg.root / name).is_file()]
    if missing:
        raise _layout_error(cfg, f"the data folder {cfg.root} lacks {', '.join(missing)}", splits)


def _check_files(cfg: Config, splits: tuple[SplitName, ...], console: Console | None) -> None:
    draw_missing_shapes(cfg.data, console)
    check_layout(cfg.data, splits)


def _open(
    cfg: Config, split: SplitName, classes: Sequence[str] | None = None, records: Records | None = None
) -> CocoDataset:
    try:
        dataset = CocoDataset(cfg.data, split, cfg.inference, classes, records)
    except MissingImagesError as error:
        raise _layout_error(cfg.data, str(error), (split,)) from None
    if cfg.data.shapes is not None:
        check_shapes(dataset.info, cfg.data.root, cfg.data.shapes)
    return dataset


def _layout_error(cfg: DataConfig, problem: str, splits: tuple[SplitName, ...]) -> DataError:
    lines = [f"{problem}.", "Expected:", f"  {cfg.root or 'DIR'}/"]
    lines += [f"    {getattr(cfg, f'{split}_images')}/  folder of {split} images" for split in splits]
    lines += [f"    {getattr(cfg, f'{split}_annotations')}  COCO JSON" for split in splits]
    if cfg.root is not None:
        lines.append(f"Found: {_found(cfg.root)}")
        look = (
            f"python -m dwtriton.data check {cfg.root} looks for COCO files and prints the command that trains on them"
        )
        lines.append(f"{(convert_hint(cfg.root) or look)}.")
        rename = "--set data.train_images=NAME (train_annotations, val_images, val_annotations)"
        lines.append(f"Point --data at the right folder, or rename its parts with {rename}.")
    return DataError("\n".join(lines))


def _found(root: Path) -> str:
    if not root.is_dir():
        return f"{root} is a file" if root.exists() else f"{root} does not exist"
    names = sorted(p.name + "/" * p.is_dir() for p in (*root.iterdir(), *(root / "annotations").glob("*.json")))
    return listed(names, MAX_NAMES) or "an empty folder"
