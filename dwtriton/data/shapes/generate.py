"""The generated `shapes` data set: eight kinds of shape on textured backgrounds, JPEG files with COCO annotations."""

import io
import json
import os
import tempfile
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle
from rich.console import Console

from dwtriton.config.schema import ShapesConfig
from dwtriton.console.progress import progress
from dwtriton.data.problems import DataError
from dwtriton.data.shapes.drawing import PLAIN_BELOW, SUPERSAMPLING, Stamp, draw_background, paint
from dwtriton.data.workers import leave_signals_to_main

VERSION = 1  # raise it with every change of what is drawn
CATEGORY_IDS = {  # neither contiguous nor from 0, as in COCO
    "oval": 3,
    "ring": 7,
    "rectangle": 8,
    "triangle": 12,
    "star": 21,
    "cross": 34,
    "crescent": 35,
    "hourglass": 50,
}
CLASSES = tuple(CATEGORY_IDS)
FIRST_IMAGE_ID = {"train": 1, "val": 1_000_001}
JPEG_QUALITY = 90
MIN_DIAMETER = 12  # pixels
MIN_VISIBLE = 0.6  # share of a shape's area that must be inside the image and uncovered, so that its class can be told
MIN_VISIBLE_SMALL = 0.7  # the same for objects under PLAIN_BELOW pixels
MAX_FAINT = 2  # pixels by which parts too thin to be seen, at the border of the image, may stretch a box


def generate_shapes(root: Path, train_images: int, val_images: int, seed: int, console: Console | None = None) -> None:
    """Draw the data set into `root`, which must be absent or empty: train/, val/, annotations/train.json and val.json.

    The same arguments give the same bytes, whatever the number of processors. All is written beside `root` and renamed
    at the end, so an interrupted call leaves no data set. Progress goes to `console`, if one is given. Raises DataError
    if `root` cannot be written.
    """
    if not is_vacant(root):
        raise DataError(f"the shapes data set cannot be written to {root}: it is not an empty folder")
    console = console or Console(quiet=True)
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as temporary:
            folder = Path(temporary) / root.name
            (folder / "annotations").mkdir(parents=True)
            with Pool(initializer=leave_signals_to_main) as pool:
                for split, count in (("train", train_images), ("val", val_images)):
                    _draw_split(folder, split, count, seed, pool, _info(train_images, val_images, seed), console)
            os.replace(folder, root)
    except OSError as error:
        raise DataError(f"the shapes data set cannot be written to {root}: {error}") from None


def is_vacant(root: Path) -> bool:
    """Whether `root` is absent or an empty folder."""
    return not root.exists() or (root.is_dir() and not any(root.iterdir()))


def check_shapes(info: dict[str, Any], root: Path, cfg: ShapesConfig) -> None:
    """Raise DataError if `info` (of a COCO file) says that the shapes in `root` were drawn with other settings."""
    wanted = _info(cfg.train_images, cfg.val_images, cfg.seed)
    if "shapes" in info and info != wanted:
        raise DataError(
            f"{root} holds shapes drawn with {info['shapes']}, the config asks for {wanted['shapes']}: "
            "delete the folder to draw them anew, or choose another with --data"
        )


def _info(train_images: int, val_images: int, seed: int) -> dict[str, Any]:
    settings = {"train_images": train_images, "val_images": val_images, "seed": seed, "version": VERSION}
    return {"description": "generated shapes", "shapes": settings}


def _draw_split(
    folder: Path, split: str, count: int, seed: int, pool: Any, info: dict[str, Any], console: Console
) -> None:
    (folder / split).mkdir()
    draw = partial(_draw_file, folder / split, seed, split)
    images, annotations = [], []
    with progress(console, f"drawing {split} shapes", count) as advance:
        for image, objects in pool.imap(draw, range(count), chunksize=8):
            images.append(image)
            for annotation in objects:
                annotations.append({"id": len(annotations) + 1, "image_id": image["id"], **annotation})
            advance()
    content = {
        "info": info,
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": id_, "name": name, "supercategory": "shape"} for name, id_ in CATEGORY_IDS.items()],
    }
    (folder / "annotations" / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")


def _draw_file(folder: Path, seed: int, split: str, index: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Write one JPEG; its COCO image record, and its annotations without ids."""
    image_id = FIRST_IMAGE_ID[split] + index
    pixels, annotations = draw_scene(np.random.default_rng((seed, image_id)))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY)
    name = f"{image_id:07d}.jpg"
    (folder / name).write_bytes(buffer.getvalue())
    return {"id": image_id, "file_name": name, "width": pixels.shape[1], "height": pixels.shape[0]}, annotations


def draw_scene(rng: np.random.Generator) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """One image, uint8 [h, w, 3], and its COCO annotations without ids."""
    short = int(rng.integers(120, 201))
    sides = (short, min(320, int(short * rng.uniform(1, 1.6))))
    height, width = sides if rng.random() < 0.5 else sides[::-1]
    scene = Scene(height, width, rng)
    kind = rng.choice(["ordinary", "packed", "crowd", "empty"], p=[0.87, 0.05, 0.04, 0.04])
    if kind == "crowd":
        scene.add_crowd()
    if kind in ("ordinary", "crowd"):
        scene.add_objects(1 + min(14, int(rng.exponential(4))), largest=0.9)
    elif kind == "packed":
        scene.add_objects(int(rng.integers(16, 31)), largest=0.22)
    return np.clip(scene.image, 0, 255).astype(np.uint8), scene.annotations


class Scene:
    """An image that is drawn object by object, with the annotations of what it shows."""

    def __init__(self, height: int, width: int, rng: np.random.Generator) -> None:
        self.rng = rng
        self.image = draw_background(height, width, rng)
        self.annotations: list[dict[str, Any]] = []
        self._visible: list[np.ndarray] = []  # per annotation: its pixels that no later one covers, bool [h, w]
        self._needed: list[float] = []  # per annotation: how many of them must stay visible

    def add_objects(self, count: int, largest: float) -> None:
        """Place up to `count` objects, with diameters up to `largest` times the short side, mostly large ones first."""
        short = min(self.image.shape[:2])
        smallest = max(MIN_DIAMETER, 0.1 * short)
        diameters = np.exp(self.rng.uniform(np.log(smallest), np.log(largest * short / count**0.15), count))
        for diameter in sorted(diameters, key=lambda d: -d * self.rng.uniform(0.6, 1.6)):
            for _ in range(12):
                if self._try_object(diameter):
                    break

    def add_crowd(self) -> None:
        """A heap of tiny shapes of one class, annotated as one crowd region."""
        height, width = self.image.shape[:2]
        name = CLASSES[self.rng.integers(len(CLASSES))]
        spread = self.rng.uniform(0.1, 0.16) * min(height, width)
        middle = self.rng.uniform(0.25, 0.75, 2) * (width, height)
        heap = np.zeros((height, width), dtype=bool)
        for _ in range(self.rng.integers(14, 26)):
            offset = self.rng.uniform(-1, 1, 2) * spread
            stamp = Stamp(name, middle + offset, self.rng.uniform(7, 10), self.rng)
            heap |= _coverage(stamp, height, width)
            paint(self.image, stamp, True, self.rng)
        self._visible.append(heap)
        self._needed.append(MIN_VISIBLE * heap.sum())
        self._annotate(name, heap, _extent(heap), crowd=True)

    def _try_object(self, diameter: float) -> bool:
        """Place one object of a random class at random, unless it would hide another or leave the image too far."""
        height, width = self.image.shape[:2]
        name = CLASSES[self.rng.integers(len(CLASSES))]
        centre = self.rng.uniform(0, 1, 2) * (width, height)
        if self.annotations and self.rng.random() < 0.25:  # beside or upon another one of its class
            neighbour = self.annotations[self.rng.integers(len(self.annotations))]
            name = CLASSES[list(CATEGORY_IDS.values()).index(neighbour["category_id"])]
            x, y, w, h = neighbour["bbox"]
            centre = np.clip((x, y) + self.rng.uniform(-0.2, 1.2, 2) * (w, h), 0, (width, height))
        stamp = Stamp(name, centre, diameter, self.rng)
        mask = _coverage(stamp, height, width)
        small = diameter < PLAIN_BELOW
        needed = stamp.alpha.sum() * (MIN_VISIBLE_SMALL if small else MIN_VISIBLE)
        left_visible = [seen & ~mask for seen in self._visible]
        if mask.sum() < needed or any(left.sum() < least for left, least in zip(left_visible, self._needed)):
            return False
        box = _box(stamp, height, width)
        if np.abs(box - _extent(mask)).max() > MAX_FAINT:
            return False
        paint(self.image, stamp, small, self.rng)
        self._visible = [*left_visible, mask]
        self._needed.append(needed)
        self._annotate(name, mask, box, crowd=False)
        return True

    def _annotate(self, name: str, mask: np.ndarray, box: np.ndarray, crowd: bool) -> None:
        x1, y1, x2, y2 = box.tolist()
        counts = rle.encode(np.asfortranarray(mask.view(np.uint8)))
        self.annotations.append(
            {
                "category_id": CATEGORY_IDS[name],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": float(mask.sum()),
                "iscrowd": int(crowd),
                "segmentation": {"size": list(mask.shape), "counts": counts["counts"].decode("ascii")},
            }
        )


def _coverage(stamp: Stamp, height: int, width: int) -> np.ndarray:
    """Pixels of the image that are at least half covered by the shape, bool [h, w]."""
    mask = np.zeros((height, width), dtype=bool)
    window, inside = stamp.windows(height, width)
    mask[window] = stamp.alpha[inside] >= 0.5
    return mask


def _extent(mask: np.ndarray) -> np.ndarray:
    """Box xyxy around the true pixels, float64 [4]."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=float)


def _box(stamp: Stamp, height: int, width: int) -> np.ndarray:
    """Box xyxy, float64 [4], around the part of the shape inside the image, covered by others or not."""
    (rows, columns), (own_rows, own_columns) = stamp.windows(height, width)
    sides = (own_columns.start, own_rows.start, own_columns.stop, own_rows.stop)
    extent = stamp.fine.crop([side * SUPERSAMPLING for side in sides]).getbbox()
    return np.array(extent) / SUPERSAMPLING + [columns.start, rows.start] * 2
