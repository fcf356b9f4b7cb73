"""Looking through a data set in COCO format before training on it: what there is, and what is wrong with it."""

import shlex
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from torchvision.ops import box_convert, clip_boxes_to_image

from dwtriton.config.schema import DataConfig, HeadConfig
from dwtriton.console.drawing import draw_boxes
from dwtriton.console.progress import progress
from dwtriton.data.annotations import OtherFormatError, Records, is_usable, read_records
from dwtriton.data.coco import CocoDataset
from dwtriton.data.images import BrokenImageError, read_image, upright_size
from dwtriton.data.problems import DataError, DataProblems

SMALL, LARGE = 32**2, 96**2  # areas in pixels, COCO's borders between small, medium and large
TINY = 4  # pixels
SHEET = 12  # samples drawn
COLUMNS = 4
NAMED = 25  # boxes of an image whose names still leave something to be seen
NAME_LENGTH, FILE_LENGTH = 24, 44  # characters in the sheet
PATTERNS = ("annotations/*.json", "*.json", "*/*.json")  # where the JSON files lie; the first where there are any

Spread = tuple[float, float, float]  # least, middle, largest
NONE: Spread = (0.0, 0.0, 0.0)


class Split(NamedTuple):
    """A COCO JSON file and the folder that holds its images."""

    name: str
    annotations: Path
    images: Path
    records: Records


@dataclass(frozen=True)
class Findings:
    """What a split holds. Where `fatal` says why a training refuses it, there are no figures."""

    split: Split
    fatal: list[str]
    problems: DataProblems
    images: int = 0
    boxes: int = 0
    crowds: int = 0
    classes: dict[str, int] = field(default_factory=dict)  # boxes of each category
    image_sides: Spread = NONE  # pixels, middle: median
    boxes_per_image: Spread = NONE  # middle: mean
    box_sides: Spread = NONE  # square root of the area inside the image, pixels, middle: median
    box_aspects: Spread = NONE  # width / height, middle: median
    box_sizes: dict[str, float] = field(default_factory=dict)  # share of small, medium and large boxes


def find_splits(root: Path) -> tuple[list[Split], list[str]]:
    """The COCO files of a folder with where their images are, and what is said of other JSON files.

    They are `annotations/*.json`, or else `*.json`, or else `*/*.json`. Raises DataError if there is none.
    """
    if not root.is_dir():
        raise DataError(f"{root} is no folder" if root.exists() else f"{root} does not exist")
    others: list[str] = []
    for pattern in PATTERNS:
        found = {}
        for path in sorted(root.glob(pattern)):
            try:
                found[path] = read_records(path)
            except OtherFormatError as error:
                others.append(str(error))
            except DataError as error:
                found[path] = Records({}, {}, {}, {}, [str(error)])
        if found:
            named = zip(found.items(), _names(list(found)))
            return [Split(name, path, _image_folder(root, path, name, r), r) for (path, r), name in named], others
    raise DataError(
        f"{root} has no COCO detection JSON, in annotations/ or elsewhere{f': {others[0]}' if others else ''}"
    )


def choose_splits(splits: Sequence[Split]) -> tuple[Split, Split]:
    """Those to train and to validate on, by their names; the same one where there is no other."""

    def named(*words: str) -> list[Split]:
        return [split for word in words for split in splits if word in split.name.lower()]

    train = (named("train") or [split for split in splits if split not in named("val", "test")] or list(splits))[0]
    val = (named("val", "test") or [split for split in splits if split is not train] or [train])[0]
    return train, val


def check_split(split: Split, console: Console) -> Findings:
    """Look through a split as a training would; image files are opened for their size, not decoded."""
    records = split.records
    if records.fatal:
        return Findings(split, records.fatal, DataProblems())
    cfg = DataConfig(root=Path(), train_images=str(split.images), train_annotations=str(split.annotations))
    try:
        problems = CocoDataset(cfg, "train", keep_crowd=True).problems
    except DataError as error:
        return Findings(split, [str(error).partition("\n")[0]], DataProblems())
    with progress(console, f"opening images of {split.name}", len(records.images)) as advance:
        for image in records.images.values():
            _check_file(split.images / image["file_name"], (image["width"], image["height"]), problems)
            advance()
    files = Counter(image["file_name"] for image in records.images.values())
    for name, times in files.items():
        if times > 1:
            problems.add("file of several images", f"{name} ({times})")
    boxes = _usable_boxes(records)
    _check_boxes(boxes, records, problems)
    used = Counter(annotation["category_id"] for annotation in boxes)
    classes = {str(records.categories[id_]["name"]): used[id_] for id_ in sorted(records.categories)}
    for name, count in classes.items():
        if not count:
            problems.add("category without a box", name)
    per_image = Counter(annotation["image_id"] for annotation in boxes)
    sizes = np.array([_inner_size(annotation, records) for annotation in boxes]).reshape(-1, 2)  # width, height
    sides = np.array([side for image in records.images.values() for side in (image["width"], image["height"])])
    return Findings(
        split,
        [],
        problems,
        images=len(records.images),
        boxes=len(boxes),
        crowds=sum(bool(annotation.get("iscrowd")) for annotation in boxes),
        classes=classes,
        image_sides=_spread(sides, np.median),
        boxes_per_image=_spread(np.array([per_image[id_] for id_ in records.images]), np.mean),
        box_sides=_spread(np.sqrt(sizes.prod(1)), np.median),
        box_aspects=_spread(sizes[:, 0] / sizes[:, 1], np.median),
        box_sizes=_shares(sizes.prod(1)),
    )


def draw_sheet(split: Split) -> Figure:
    """Images spread over the split, with their boxes; where one cannot be read, it says so."""
    records = split.records
    numbers = {id_: number for number, id_ in enumerate(sorted(records.categories))}
    of_image = defaultdict(list)
    for annotation in _usable_boxes(records):
        of_image[annotation["image_id"]].append(annotation)
    images = list(records.images.values())
    places = np.linspace(0, len(images) - 1, min(len(images), SHEET)).round().astype(int).tolist()
    columns = min(COLUMNS, len(places))
    rows = -(-len(places) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid:
        axes.axis("off")
    for axes, image in zip(grid, (images[place] for place in places)):
        shown = of_image[image["id"]]
        file, count = image["file_name"], f"{len(shown)} {'box' if len(shown) == 1 else 'boxes'}"
        title = f"{file if len(file) <= FILE_LENGTH else f'...{file[3 - FILE_LENGTH :]}'}: {count}"
        axes.set_title(title, fontsize=7, parse_math=False)
        try:
            pixels = read_image(split.images / image["file_name"])
        except BrokenImageError:
            axes.text(0.5, 0.5, "cannot be read", ha="center", va="center", color="#e45756")
            continue
        xywh = torch.tensor([a["bbox"] for a in shown], dtype=torch.float32).reshape(-1, 4)
        boxes = clip_boxes_to_image(box_convert(xywh, "xywh", "xyxy"), pixels.shape[1:])
        labels = [numbers[a["category_id"]] for a in shown]
        texts = [_name(a, records) for a in shown] if len(shown) <= NAMED else []
        axes.imshow(draw_boxes(pixels, boxes, labels, texts).permute(1, 2, 0).numpy())
    return figure


def training_command(train: Split, val: Split, root: Path) -> str:
    """The command that trains on these splits of `root`, as a shell reads it; it sets what is not a default."""
    paths = {
        "train_images": train.images,
        "train_annotations": train.annotations,
        "val_images": val.images,
        "val_annotations": val.annotations,
    }
    settings = {key: path.relative_to(root).as_posix() for key, path in paths.items()}
    changed = [f"data.{key}={_toml(text)}" for key, text in settings.items() if text != getattr(DataConfig(), key)]
    classes = len(train.records.categories)
    if classes != HeadConfig().num_classes:
        changed.append(f"head.num_classes={classes}")
    words = ["python", "-m", "dwtriton.train", "--cfg", "r50_1x", "--data", str(root)]
    return shlex.join([*words, *(word for setting in changed for word in ("--set", setting))])


def different_categories(train: Split, val: Split) -> list[str]:
    """Why these two cannot be trained on together; nothing if they can."""
    of_train, of_val = ({(id_, c["name"]) for id_, c in split.records.categories.items()} for split in (train, val))
    if of_train == of_val:
        return []
    differing = sorted(f"{id_} {name}" for id_, name in of_train ^ of_val)
    return [f"{train.name} and {val.name} have different categories: {', '.join(differing)} in one of them alone"]


def _names(files: Sequence[Path]) -> list[str]:
    """Names that tell files apart: `annotations/instances_val.json` is val, `valid/_annotations.json` is valid."""
    kinds = (
        [path.stem.removeprefix("instances_") for path in files],
        [path.parent.name for path in files],
        [f"{path.parent.name}-{path.stem}" for path in files],
    )
    return next(names for names in kinds if len(set(names)) == len(files))


def _name(annotation: dict, records: Records) -> str:
    name = str(records.categories[annotation["category_id"]]["name"])
    name = name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 3]}..."
    return f"{name} (crowd)" if annotation.get("iscrowd") else name


def _image_folder(root: Path, annotations: Path, name: str, records: Records) -> Path:
    """The folder that holds most of the first images: beside the annotations, below `root` or below `root/images`.

    Splits may give their images the same names: of folders that hold at least half as many as the best, it is the one
    whose name is most like the split's.
    """
    folders = [root, annotations.parent, *(path for path in (*root.iterdir(), *root.glob("images/*")) if path.is_dir())]
    files = [str(image["file_name"]) for image in list(records.images.values())[:20]]
    held = {folder: sum((folder / file).is_file() for file in files) for folder in sorted(folders)}
    candidates = [folder for folder, count in held.items() if 2 * count >= max(held.values())]
    return max(candidates, key=lambda folder: SequenceMatcher(None, folder.name, name).ratio())


def _usable_boxes(records: Records) -> list[dict]:
    """The annotations that count as boxes, crowds among them: the data set has reported why the others do not."""
    silent = DataProblems()
    usable = [a for a in records.annotations.values() if is_usable(a, records.images, records.categories, silent)]
    return [a for a in usable if min(a["bbox"][2:]) >= 1 and a.get("area") != 0]


def _check_file(path: Path, size: tuple[int, int], problems: DataProblems) -> None:
    """Report a file that cannot be opened, or is not of its annotated (width, height) when turned upright."""
    if not path.is_file():
        return  # the data set has reported it
    try:
        found = upright_size(path)
    except BrokenImageError as error:
        problems.add("image file that cannot be used, replaced by another in training", str(error))
        return
    if found != size:
        sizes = "{}x{}, annotated {}x{}".format(*found, *size)
        problems.add("image of another size than annotated, replaced by another in training", f"{path} ({sizes})")


def _check_boxes(boxes: Sequence[dict], records: Records, problems: DataProblems) -> None:
    seen = set()
    for annotation in boxes:
        image = records.images[annotation["image_id"]]
        name = f"annotation {annotation['id']} of image {image['id']} ({image['file_name']})"
        x, y, width, height = annotation["bbox"]
        if x < -1 or y < -1 or x + width > image["width"] + 1 or y + height > image["height"] + 1:
            problems.add("box reaches over the border of its image, clipped", name)
        if min(width, height) < TINY:
            problems.add(f"tiny box, a side under {TINY} pixels, hard to learn", name)
        key = (image["id"], annotation["category_id"], x, y, width, height)
        if key in seen:
            problems.add("the same box of the same category twice", name)
        seen.add(key)


def _inner_size(annotation: dict, records: Records) -> tuple[float, float]:
    """Width and height of the part of a box inside its image."""
    image = records.images[annotation["image_id"]]
    x, y, width, height = annotation["bbox"]
    return min(x + width, image["width"]) - max(x, 0), min(y + height, image["height"]) - max(y, 0)


def _spread(values: np.ndarray, middle: Callable) -> Spread:
    return tuple(round(float(f(values)), 2) for f in (np.min, middle, np.max)) if values.size else NONE


def _shares(areas: np.ndarray) -> dict[str, float]:
    small, large = (float(part.mean()) if areas.size else 0.0 for part in (areas < SMALL, areas > LARGE))
    return {"small": round(small, 4), "medium": round(1 - small - large, 4), "large": round(large, 4)}


def _toml(text: str) -> str:
    """Text as `--set` takes it: quoted if it would be read as something else, such as a folder called 2017."""
    try:
        tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text if text == text.strip() else f'"{text}"'
    return f'"{text}"'
