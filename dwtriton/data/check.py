"""Looking through a data set in COCO format before training on it: what there is, and what is wrong with it."""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torchvision.ops import box_convert

from dwtriton.annotate import draw_boxes
from dwtriton.config import DataConfig
from dwtriton.data.annotations import Records, is_box, read_records
from dwtriton.data.coco import CocoDataset
from dwtriton.data.images import BrokenImageError, read_image, upright_size
from dwtriton.data.report import DataError, DataReport

SMALL, LARGE = 32**2, 96**2  # areas in pixels, COCO's borders between small, medium and large
SHEET = (3, 4)  # rows and columns of the sheet of samples
PATTERNS = ("annotations/*.json", "*.json", "*/*.json")  # where the JSON files lie; the first that any match

Spread = tuple[float, float, float]  # least, middle, largest
NONE: Spread = (0.0, 0.0, 0.0)


class Split(NamedTuple):
    """A COCO JSON file and the folder that holds its images."""

    name: str
    annotations: Path
    images: Path


@dataclass(frozen=True)
class Findings:
    """What a split holds. Where `fatal` says why a training refuses it, there are no figures."""

    split: Split
    fatal: list[str]
    problems: DataReport
    images: int = 0
    boxes: int = 0
    crowds: int = 0
    classes: dict[str, int] = field(default_factory=dict)  # boxes of each category
    image_sides: Spread = NONE  # pixels, middle: median
    boxes_per_image: Spread = NONE  # middle: mean
    box_sides: Spread = NONE  # square root of the area, pixels, middle: median
    box_sizes: dict[str, float] = field(default_factory=dict)  # share of small, medium and large boxes


def find_splits(root: Path) -> list[Split]:
    """The COCO files of a folder and where their images are: `annotations/*.json`, or any `*.json` beside images.

    Raises DataError if there is none.
    """
    if not root.is_dir():
        raise DataError(f"{root} is no folder" if root.exists() else f"{root} does not exist")
    files = next((sorted(found) for pattern in PATTERNS if (found := list(root.glob(pattern)))), [])
    splits = []
    for path in files:
        with contextlib.suppress(DataError):  # not COCO detection JSON, such as captions
            images = read_records(path).images
            splits.append(Split(path.stem.removeprefix("instances_"), path, _image_folder(root, path, images)))
    if not splits:
        raise DataError(
            f"{root} has no COCO detection JSON (images, annotations, categories), neither in annotations/ nor beside "
            f"images{': ' + ', '.join(map(str, files)) + ' hold something else' if files else ''}"
        )
    return splits


def check_split(split: Split) -> Findings:
    """Look through a split as a training would; image files are opened for their size, not decoded."""
    records = read_records(split.annotations)
    report = DataReport()
    if records.fatal:
        return Findings(split, records.fatal, report)
    cfg = DataConfig(root=Path(), train_images=str(split.images), train_annotations=str(split.annotations))
    try:
        dataset = CocoDataset(cfg, "train", keep_crowd=True)
    except DataError as error:
        return Findings(split, [str(error).partition("\n")[0]], report)
    report = dataset.report
    for image in records.images.values():
        _check_size(split.images / image["file_name"], (image["height"], image["width"]), report)
    boxes = [a for a in records.annotations.values() if _is_used(a, records)]
    for annotation in boxes:
        _check_border(annotation, records.images[annotation["image_id"]], report)
    used = Counter(annotation["category_id"] for annotation in boxes)
    for id_, category in records.categories.items():
        if not used[id_]:
            report.add("category without a box", str(category["name"]))
    per_image = Counter(annotation["image_id"] for annotation in boxes)
    areas = np.array([annotation["bbox"][2] * annotation["bbox"][3] for annotation in boxes])
    sides = np.array([side for image in records.images.values() for side in (image["width"], image["height"])])
    return Findings(
        split,
        [],
        report,
        images=len(records.images),
        boxes=len(boxes),
        crowds=sum(bool(annotation.get("iscrowd")) for annotation in boxes),
        classes={str(records.categories[id_]["name"]): used[id_] for id_ in sorted(records.categories)},
        image_sides=_spread(sides, np.median),
        boxes_per_image=_spread(np.array([per_image[id_] for id_ in records.images]), np.mean),
        box_sides=_spread(np.sqrt(areas), np.median),
        box_sizes=_shares(areas),
    )


def draw_sheet(split: Split) -> Figure:
    """Images spread over the split, with their boxes; unreadable ones are left out."""
    records = read_records(split.annotations)
    numbers = {id_: number for number, id_ in enumerate(sorted(records.categories))}
    of_image = defaultdict(list)
    for annotation in records.annotations.values():
        if _is_used(annotation, records):
            of_image[annotation["image_id"]].append(annotation)
    images = list(records.images.values())
    rows, columns = SHEET
    step = max(1, len(images) // (rows * columns))
    figure = Figure(figsize=(3.6 * columns, 3.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, image in zip(figure.subplots(rows, columns).flat, images[::step]):
        try:
            pixels = read_image(split.images / image["file_name"])
        except BrokenImageError:
            axes.set_title(f"{image['file_name']}: unreadable", fontsize=7)
            continue
        shown = of_image[image["id"]]
        xywh = torch.tensor([a["bbox"] for a in shown], dtype=torch.float32).reshape(-1, 4)
        labels = [numbers[a["category_id"]] for a in shown]
        texts = [f"{records.categories[a['category_id']]['name']}{' (crowd)' * bool(a.get('iscrowd'))}" for a in shown]
        axes.imshow(draw_boxes(pixels, box_convert(xywh, "xywh", "xyxy"), labels, texts).permute(1, 2, 0).numpy())
        axes.set_title(f"{image['file_name']}: {len(shown)} boxes", fontsize=7)
    for axes in figure.axes:
        axes.axis("off")
    return figure


def training_settings(splits: Sequence[Split], root: Path, classes: int) -> list[str]:
    """The `--set` values that make a run train on these splits: the first with "train" and the first with "val"."""
    settings = []
    for kind in ("train", "val"):
        named = [split for split in splits if kind in split.name.lower()] or list(splits)
        images, annotations = (
            path.resolve().relative_to(root.resolve()) for path in (named[0].images, named[0].annotations)
        )
        settings += [f"data.{kind}_images={images}", f"data.{kind}_annotations={annotations}"]
    return [*settings, f"head.num_classes={classes}"]


def _image_folder(root: Path, annotations: Path, images: dict[int, dict]) -> Path:
    """The folder that holds most of the first images: beside the annotations, below `root` or below `root/images`."""
    folders = sorted(path for path in (*root.iterdir(), *root.glob("images/*")) if path.is_dir())
    names = [str(image["file_name"]) for image in list(images.values())[:20]]
    return max([annotations.parent, *folders, root], key=lambda folder: sum((folder / n).is_file() for n in names))


def _check_size(path: Path, size: tuple[int, int], report: DataReport) -> None:
    """Report a file that cannot be opened, or is not of its annotated (h, w) when turned upright."""
    if not path.is_file():
        return  # the data set has reported it
    try:
        width, height = upright_size(path)
    except OSError as error:
        report.add("image file cannot be opened, replaced by another in training", f"{path} ({error})")
        return
    if (height, width) != size:
        sizes = f"{width}x{height}, annotated {size[1]}x{size[0]}"
        report.add("image of another size than annotated, replaced by another in training", f"{path} ({sizes})")


def _check_border(annotation: dict, image: dict, report: DataReport) -> None:
    x, y, width, height = annotation["bbox"]
    if x < -1 or y < -1 or x + width > image["width"] + 1 or y + height > image["height"] + 1:
        name = f"annotation {annotation['id']} of image {annotation['image_id']} ({image['file_name']})"
        report.add("box reaches over the border of its image, clipped", name)


def _is_used(annotation: dict, records: Records) -> bool:
    """Whether an annotation counts as a box: the data set has reported why the others do not."""
    known = annotation["image_id"] in records.images and annotation["category_id"] in records.categories
    return known and is_box(annotation["bbox"]) and min(annotation["bbox"][2:]) >= 1


def _spread(values: np.ndarray, middle: Callable) -> Spread:
    return tuple(round(float(f(values)), 1) for f in (np.min, middle, np.max)) if values.size else NONE


def _shares(areas: np.ndarray) -> dict[str, float]:
    small, large = (float(part.mean()) if areas.size else 0.0 for part in (areas < SMALL, areas > LARGE))
    return {"small": round(small, 4), "medium": round(1 - small - large, 4), "large": round(large, 4)}
