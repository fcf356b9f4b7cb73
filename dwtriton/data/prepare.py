"""The data sets of a config; the generated `shapes` are drawn where they are missing."""

from rich.console import Console

from dwtriton.config.schema import Config, DataConfig
from dwtriton.data.coco import CocoDataset
from dwtriton.data.layout import SplitName, check_layout
from dwtriton.data.problems import DataError
from dwtriton.data.shapes.generate import check_shapes, generate_shapes, is_vacant
from dwtriton.data.usable import different_categories


def draw_missing_shapes(cfg: DataConfig, console: Console | None = None) -> None:
    """Draw the `shapes` data set if the config has it and its root is absent, with progress on `console`.

    Raises DataError if it cannot be written.
    """
    if cfg.shapes is not None and cfg.root is not None and is_vacant(cfg.root):
        generate_shapes(cfg.root, cfg.shapes.train_images, cfg.shapes.val_images, cfg.shapes.seed, console)


def prepare_data(cfg: Config, console: Console | None = None) -> tuple[CocoDataset, CocoDataset]:
    """Return the training and the validation set, after `draw_missing_shapes`.

    Raises DataError if the files are absent or unusable, if the two splits have different categories, or if these are
    not `cfg.head.num_classes`.
    """
    train, val = _prepare(cfg, ("train", "val"), console)
    if len(train.class_names) != cfg.head.num_classes:
        raise DataError(
            f"the data in {cfg.data.root} has {len(train.class_names)} categories, but head.num_classes is "
            f"{cfg.head.num_classes}: add --set head.num_classes={len(train.class_names)}"
        )
    differing = different_categories(*(dict(zip(d.category_ids, d.class_names)) for d in (train, val)))
    if differing:
        files = f"{cfg.data.train_annotations} and {cfg.data.val_annotations}"
        raise DataError(f"{files} have different categories: {', '.join(differing)} in one of them alone")
    return train, val


def prepare_validation(cfg: Config, console: Console | None = None) -> CocoDataset:
    """Return the validation set alone, for any number of categories; the training files need not exist.

    Draws and raises as `prepare_data`.
    """
    return _prepare(cfg, ("val",), console)[0]


def _prepare(cfg: Config, splits: tuple[SplitName, ...], console: Console | None) -> list[CocoDataset]:
    draw_missing_shapes(cfg.data, console)
    check_layout(cfg.data, splits)
    datasets = [CocoDataset(cfg.data, split, cfg.loss.ignore_crowd, cfg.inference) for split in splits]
    if cfg.data.shapes is not None:
        for dataset in datasets:
            check_shapes(dataset.info, cfg.data.root, cfg.data.shapes)
    return datasets
