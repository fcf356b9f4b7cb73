"""Detection data: COCO format, transforms, batches, and the generated `shapes` data set."""

from rich.console import Console

from dwtriton.config.schema import Config, DataConfig
from dwtriton.data.coco import CocoDataset
from dwtriton.data.layout import SplitName, check_layout
from dwtriton.data.problems import DataError
from dwtriton.data.shapes.generate import check_shapes, generate_shapes, is_vacant


def draw_missing_shapes(cfg: DataConfig, console: Console | None = None) -> None:
    """Draw the `shapes` data set if the config has it and its root is absent, with progress on `console`.

    Raises DataError if it cannot be made.
    """
    if cfg.shapes is not None and cfg.root is not None and is_vacant(cfg.root):
        generate_shapes(cfg.root, cfg.shapes.train_images, cfg.shapes.val_images, cfg.shapes.seed, console)


def prepare_data(cfg: Config, console: Console | None = None) -> tuple[CocoDataset, CocoDataset]:
    """The training and the validation set of a config; first draws `shapes`, as `draw_missing_shapes`, where needed.

    Raises DataError if the files are absent or unusable, if the two splits have different categories, or if these are
    not `cfg.head.num_classes`.
    """
    train, val = _prepare(cfg, ("train", "val"), console)
    if len(train.class_names) != cfg.head.num_classes:
        raise DataError(
            f"the data in {cfg.data.root} has {len(train.class_names)} categories, but head.num_classes is "
            f"{cfg.head.num_classes}: add --set head.num_classes={len(train.class_names)}"
        )
    if (train.category_ids, train.class_names) != (val.category_ids, val.class_names):
        raise DataError(
            f"{cfg.data.train_annotations} and {cfg.data.val_annotations} have different categories: "
            f"{_categories(train)} and {_categories(val)}"
        )
    return train, val


def prepare_validation(cfg: Config, console: Console | None = None) -> CocoDataset:
    """The validation set alone; the training files need not exist, and its categories are not counted.

    Draws and raises as `prepare_data`.
    """
    return _prepare(cfg, ("val",), console)[0]


def _prepare(cfg: Config, splits: tuple[SplitName, ...], console: Console | None) -> list[CocoDataset]:
    data = cfg.data
    draw_missing_shapes(data, console)
    check_layout(data, splits)
    datasets = [CocoDataset(data, split, cfg.loss.ignore_crowd, cfg.inference) for split in splits]
    for dataset in datasets:
        if data.shapes is not None:
            check_shapes(dataset.info, data.root, data.shapes)
    return datasets


def _categories(dataset: CocoDataset) -> str:
    return ", ".join(f"{id_} {name}" for id_, name in zip(dataset.category_ids, dataset.class_names))
