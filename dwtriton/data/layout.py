"""Where the files of a data set lie, and the one error that explains it when they do not."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dwtriton.config.schema import DataConfig
from dwtriton.core.text import listed
from dwtriton.data.problems import DataError

SplitName = Literal["train", "val"]
BOTH: tuple[SplitName, ...] = ("train", "val")
NAMES_LISTED = 12


@dataclass(frozen=True)
class SplitPaths:
    """Files of one split: `images` is a folder, `annotations` a COCO JSON file."""

    images: Path
    annotations: Path


def split_paths(cfg: DataConfig, split: SplitName) -> SplitPaths:
    """Paths of a split below `cfg.root`. Raises DataError if there is no root."""
    if cfg.root is None:
        raise DataError(f"this config needs COCO data: pass --data DIR.\n{_expected(cfg, Path('DIR'))}")
    images, annotations = {
        "train": (cfg.train_images, cfg.train_annotations),
        "val": (cfg.val_images, cfg.val_annotations),
    }[split]
    return SplitPaths(cfg.root / images, cfg.root / annotations)


def check_layout(cfg: DataConfig, splits: tuple[SplitName, ...] = BOTH) -> None:
    """Raise one DataError, with the layout expected and what was found, unless every path of `splits` exists."""
    paths = [split_paths(cfg, split) for split in splits]
    missing = [p.images for p in paths if not p.images.is_dir()]
    missing += [p.annotations for p in paths if not p.annotations.is_file()]
    if missing:
        names = ", ".join(str(path.relative_to(cfg.root)) for path in missing)
        raise layout_error(cfg, f"the data folder {cfg.root} lacks {names}", splits)


def layout_error(cfg: DataConfig, problem: str, splits: tuple[SplitName, ...]) -> DataError:
    """A DataError that says `problem`, then the layout expected of `splits` and what `cfg.root` holds."""
    return DataError(
        f"{problem}.\n{_expected(cfg, cfg.root, splits)}\nFound: {_found(cfg.root)}\n"
        "Point --data at the right folder, or rename its parts with --set data.train_images=NAME (train_annotations, "
        "val_images, val_annotations)."
    )


def _expected(cfg: DataConfig, root: Path, splits: tuple[SplitName, ...] = BOTH) -> str:
    rows = {
        "train": ((f"{cfg.train_images}/", "folder of training images"), (cfg.train_annotations, "COCO JSON")),
        "val": ((f"{cfg.val_images}/", "folder of validation images"), (cfg.val_annotations, "COCO JSON")),
    }
    rows = [row for split in splits for row in rows[split]]
    width = max(len(name) for name, _ in rows)
    return "\n".join(["Expected:", f"  {root}/", *(f"    {name:{width}}  {what}" for name, what in rows)])


def _found(root: Path) -> str:
    if not root.is_dir():
        return f"{root} is a file" if root.exists() else f"{root} does not exist"
    names = sorted(p.name + "/" * p.is_dir() for p in (*root.iterdir(), *(root / "annotations").glob("*.json")))
    return listed(names, NAMES_LISTED) or "an empty folder"
