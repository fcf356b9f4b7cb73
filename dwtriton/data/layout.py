"""Where the files of a data set are expected, and the error that explains it when they are not there."""

from pathlib import Path
from typing import Literal, NamedTuple

from dwtriton.config.schema import DataConfig
from dwtriton.core.text import listed
from dwtriton.data.problems import DataError

SplitName = Literal["train", "val"]
BOTH: tuple[SplitName, ...] = ("train", "val")
MAX_NAMES = 12  # of files in the error


class SplitPaths(NamedTuple):
    """Files of one split: `images` is a folder, `annotations` a COCO JSON file."""

    images: Path
    annotations: Path


def split_paths(cfg: DataConfig, split: SplitName) -> SplitPaths:
    """Paths of a split in `cfg.root`. Raises DataError if there is no root."""
    if cfg.root is None:
        raise DataError(f"this config needs COCO data: pass --data DIR.\n{_expected(cfg, Path('DIR'), BOTH)}")
    return SplitPaths(cfg.root / getattr(cfg, f"{split}_images"), cfg.root / getattr(cfg, f"{split}_annotations"))


def check_layout(cfg: DataConfig, splits: tuple[SplitName, ...] = BOTH) -> None:
    """Raise one DataError, with the layout expected and what was found, unless every path of `splits` exists."""
    paths = [split_paths(cfg, split) for split in splits]
    missing = [p.images for p in paths if not p.images.is_dir()]
    missing += [p.annotations for p in paths if not p.annotations.is_file()]
    if missing:
        names = ", ".join(str(path.relative_to(cfg.root)) for path in missing)
        raise layout_error(cfg, f"the data folder {cfg.root} lacks {names}", splits)


def layout_error(cfg: DataConfig, problem: str, splits: tuple[SplitName, ...]) -> DataError:
    """A DataError that names `problem`, then the layout expected of `splits` and what `cfg.root` holds."""
    return DataError(
        f"{problem}.\n{_expected(cfg, cfg.root, splits)}\nFound: {_found(cfg.root)}\n"
        "Point --data at the right folder, or rename its parts with --set data.train_images=NAME (train_annotations, "
        "val_images, val_annotations)."
    )


def _expected(cfg: DataConfig, root: Path, splits: tuple[SplitName, ...]) -> str:
    lines = [f"    {getattr(cfg, f'{split}_images')}/  folder of {split} images" for split in splits]
    lines += [f"    {getattr(cfg, f'{split}_annotations')}  COCO JSON" for split in splits]
    return "\n".join(["Expected:", f"  {root}/", *lines])


def _found(root: Path) -> str:
    if not root.is_dir():
        return f"{root} is a file" if root.exists() else f"{root} does not exist"
    names = sorted(p.name + "/" * p.is_dir() for p in (*root.iterdir(), *(root / "annotations").glob("*.json")))
    return listed(names, MAX_NAMES) or "an empty folder"
