"""Cutting the images of a COCO data set into tiles: objects of large images stay large enough for the network."""

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console

from dwtriton.config.schema import DataConfig
from dwtriton.console.progress import progress
from dwtriton.core.errors import UserError
from dwtriton.core.files import fitting_name
from dwtriton.data.annotations import Records, read_valid_records
from dwtriton.data.formats.convert import INFO, check_vacant, folder_beside, write_coco
from dwtriton.data.formats.splits import FoundSplit, choose_splits, find_splits
from dwtriton.data.images import BrokenImageError, encode_jpeg, resized_size
from dwtriton.data.problems import DataProblems
from dwtriton.data.usable import annotation_name, choose_usable
from dwtriton.data.usable_images import read_annotated
from dwtriton.data.values import Id

KEPT_SHARE = 0.5  # of a box's area: with less inside, a tile has a crowd region in its place
MIN_SIZE = 32  # pixels; smaller images are not trained on
JPEG_QUALITY = 95
FINEST_STRIDE = 8  # pixels of the network between its points
GOOD_SIDE = 24  # pixels of the network, of a middling object in a tile of the size that is suggested


class Tiled(NamedTuple):
    """What was written of each split: numbers of tiles, of those without an object, and of objects; and what not."""

    tiles: dict[str, int]
    empty: dict[str, int]
    objects: dict[str, int]
    left_out: list[str]


class Tile(NamedTuple):
    """A tile as a file, and its annotations without ids."""

    path: Path
    height: int
    width: int
    annotations: list[dict[str, Any]]


def tile_data(root: Path, out: Path, size: int, overlap: float, force: bool, console: Console) -> Tiled:
    """Write the splits of `root` to train and to validate with to `out`, their images cut into tiles.

    Tiles are `size` pixels wide and high, less where an image is smaller, and share `overlap` of their sides or more.
    Boxes are clipped to a tile; one with less than half of its area inside becomes a crowd region there. Images that
    cannot be read are left out. Raises UserError for sizes that make no sense and DataError for data.
    """
    if size < MIN_SIZE:
        raise UserError(f"--size is at least {MIN_SIZE} pixels, not {size}")
    if not 0 <= overlap < 1:
        raise UserError(f"--overlap is a share of a tile's side from 0 up to 1, such as 0.2, not {overlap:g}")
    check_vacant(out, force)
    found, _ = find_splits(root)
    train, val = choose_splits(found)
    splits = {"train": train} if train is val else {"train": train, "val": val}
    problems = DataProblems()
    with folder_beside(out) as temporary:
        parts = {}
        for name, split in splits.items():
            records = read_valid_records(split.records.path)
            tiles = list(_tiles(split._replace(records=records), temporary / name, size, overlap, problems, console))
            parts[name] = tiles, partial(_content, tiles, list(records.categories.values()))
        written = {name: ([tile.path for tile in tiles], content) for name, (tiles, content) in parts.items()}
        write_coco(written, out, console)
    problems.warnings.clear()  # they are about whole images
    for split in found:
        if split not in (train, val):
            problems.add("split that is neither to train nor to validate with, not cut", split.name)
    objects = {name: [_objects(tile) for tile in tiles] for name, (tiles, _) in parts.items()}
    return Tiled(
        {name: len(counts) for name, counts in objects.items()},
        {name: counts.count(0) for name, counts in objects.items()},
        {name: sum(counts) for name, counts in objects.items()},
        problems.summary(),
    )


def tile_size(records: Records, boxes: dict[Id, list[dict[str, Any]]], cfg: DataConfig) -> int | None:
    """Return a size of tiles where half of the usable boxes, by image id, would be too small in training.

    None if they are not: if they are at least as large as the distance between the finest points.
    """
    sides, shown = [], []
    for image_id, of_image in boxes.items():
        height, width = (records.images[image_id][side] for side in ("height", "width"))
        if height is None or width is None:
            continue
        scale = resized_size(height, width, cfg.short_side[1], cfg.long_side)[0] / height
        sides += [math.sqrt(box["bbox"][2] * box["bbox"][3]) for box in of_image]
        shown += [scale] * len(of_image)
    if not sides or np.median(np.multiply(sides, shown)) >= FINEST_STRIDE:
        return None
    size = cfg.short_side[1] * float(np.median(sides)) / GOOD_SIDE
    return max(MIN_SIZE, round(size / MIN_SIZE) * MIN_SIZE)


def _tiles(
    split: FoundSplit, folder: Path, size: int, overlap: float, problems: DataProblems, console: Console
) -> Iterator[Tile]:
    weights = {a["id"]: {"weight": a["weight"]} for a in split.records.annotations.values() if "weight" in a}
    usable = choose_usable(split.records, split.images, False, problems)
    for boxes in usable.boxes.values():
        boxes[:] = [box | weights.get(box["id"], {}) for box in boxes]  # evaluations have weights of 1
    cfg = DataConfig(exif=usable.exif)
    with progress(console, f"cutting images of {split.name}", len(usable.images)) as advance:
        for number, image in enumerate(usable.images, 1):
            try:
                pixels = read_annotated(image, split.images, cfg)
            except BrokenImageError as error:
                problems.add("image that cannot be used", str(error))
                continue
            name = PurePath(image["file_name"]).with_suffix("")
            stem = PurePath(*[part for part in name.parts if part not in (name.anchor, "..")])
            boxes, whole = usable.boxes[image["id"]], set()
            for y in tile_offsets(image["height"], size, overlap):
                for x in tile_offsets(image["width"], size, overlap):
                    part = pixels[:, y : y + size, x : x + size]
                    path = folder / stem.with_name(fitting_name(stem.name, f"_{y}_{x}.jpg"))
                    if path.exists():
                        path = folder / stem.with_name(fitting_name(stem.name, f"_{number}_{y}_{x}.jpg"))
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(encode_jpeg(part, JPEG_QUALITY))
                    cut = [piece for box in boxes if (piece := _cut(box, x, y, *part.shape[1:])) is not None]
                    whole |= {piece["id"] for piece in cut if not piece["iscrowd"]}
                    yield Tile(path, *part.shape[1:], cut)
            for box in boxes:
                if not box["iscrowd"] and box["id"] not in whole:
                    problems.add("object too large for a tile to hold half of it", annotation_name(box, split.records))
            advance()


def tile_offsets(length: int, size: int, overlap: float) -> list[int]:
    """Return where tiles begin along a side: evenly spaced, from one end to the other."""
    if length <= size:
        return [0]
    count = math.ceil((length - size) / (size * (1 - overlap))) + 1
    return torch.linspace(0, length - size, count).round().int().tolist()


def _cut(annotation: dict[str, Any], left: int, top: int, height: int, width: int) -> dict[str, Any] | None:
    """Return what a tile holds of an annotation; None if that is less than a pixel wide or high."""
    x, y, w, h = annotation["bbox"]
    x1, y1 = max(x - left, 0), max(y - top, 0)
    w1, h1 = min(x + w - left, width) - x1, min(y + h - top, height) - y1
    if min(w1, h1) < 1:
        return None
    share = w1 * h1 / (w * h)
    crowd = int(annotation["iscrowd"] or share < KEPT_SHARE)
    return annotation | {"bbox": [x1, y1, w1, h1], "area": annotation["area"] * share, "iscrowd": crowd}


def _content(tiles: list[Tile], categories: list[dict[str, Any]], names: list[str]) -> dict[str, Any]:
    """Return the content of a COCO file of tiles that are called `names`."""
    images, annotations = [], []
    for image_id, (tile, name) in enumerate(zip(tiles, names), 1):
        images.append({"id": image_id, "file_name": name, "width": tile.width, "height": tile.height})
        for annotation in tile.annotations:
            annotations.append(annotation | {"id": len(annotations) + 1, "image_id": image_id})
    return {"info": INFO, "images": images, "annotations": annotations, "categories": categories}


def _objects(tile: Tile) -> int:
    return sum(not annotation["iscrowd"] for annotation in tile.annotations)
