"""Writing the generated `shapes` data set: JPEG files with COCO annotations."""

import errno
import io
import json
import tempfile
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from dwtriton.config.schema import ShapesConfig
from dwtriton.console.progress import progress
from dwtriton.console.terminal import Terminal
from dwtriton.core.errors import WriteError
from dwtriton.core.files import make_folder, move_folder
from dwtriton.data.problems import DataError
from dwtriton.data.shapes.scene import CATEGORY_IDS, draw_scene
from dwtriton.data.workers import leave_signals_to_main

VERSION = 1  # raise it with every change of what is drawn
FIRST_IMAGE_ID = {"train": 1, "val": 1_000_001}
JPEG_QUALITY = 90
CATEGORIES = [{"id": id_, "name": name, "supercategory": "shape"} for name, id_ in CATEGORY_IDS.items()]


def generate_shapes(
    root: Path,
    train_images: int,
    val_images: int,
    seed: int,
    console: Console | None = None,
    crowded: bool = False,
) -> None:
    """Draw the data set into `root`, which must be absent or empty: train/, val/, annotations/train.json and val.json.

    The same arguments give the same bytes, whatever the number of processors. Everything is written beside `root` and
    renamed at the end, so an interrupted call leaves no data set. Progress goes to `console`.
    Raises DataError if `root` is something else, and WriteError where the disk refuses.
    """
    if not is_vacant(root):
        raise DataError(f"the shapes data set cannot be written to {root}: it is not an empty folder")
    info = _info(train_images, val_images, seed, crowded)
    make_folder(root.parent)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as temporary:
            folder = Path(temporary) / root.name
            (folder / "annotations").mkdir(parents=True)
            with Pool(initializer=leave_signals_to_main) as pool:
                for split, count in (("train", train_images), ("val", val_images)):
                    (folder / split).mkdir()
                    drawn = pool.imap(
                        partial(_draw_file, folder / split, seed, split, crowded), range(count), chunksize=8
                    )
                    images, annotations = [], []
                    with progress(console or Terminal(quiet=True), f"drawing {split} shapes", count) as advance:
                        for image, objects in drawn:
                            images.append(image)
                            annotations += [{"id": n, **box} for n, box in enumerate(objects, len(annotations) + 1)]
                            advance()
                    content = {"info": info, "licenses": [], "images": images, "annotations": annotations}
                    content["categories"] = CATEGORIES
                    (folder / "annotations" / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")
            move_folder(folder, root)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another process has drawn it meanwhile
            return
        raise WriteError(f"the shapes data set cannot be written to {root}: {error.strerror or error}") from error


def is_vacant(root: Path) -> bool:
    """Whether `root` is absent or an empty folder."""
    return not root.exists() or (root.is_dir() and not any(root.iterdir()))


def check_shapes(info: dict[str, Any], root: Path, cfg: ShapesConfig) -> None:
    """Raise DataError if `info` (of a COCO file) says that the shapes in `root` were drawn with other settings."""
    wanted = _info(cfg.train_images, cfg.val_images, cfg.seed, cfg.crowded)
    if "shapes" in info and info != wanted:
        raise DataError(
            f"{root} holds shapes drawn with {info['shapes']}, the config asks for {wanted['shapes']}: "
            "delete the folder to draw them anew, or choose another with --data"
        )


def _info(train_images: int, val_images: int, seed: int, crowded: bool) -> dict[str, Any]:
    settings = {"train_images": train_images, "val_images": val_images, "seed": seed, "version": VERSION}
    if crowded:
        settings["crowded"] = True
    return {"description": "generated shapes", "shapes": settings}


def _draw_file(
    folder: Path, seed: int, split: str, crowded: bool, index: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Write one JPEG; return its COCO image record, and its annotations without ids of their own."""
    image_id = FIRST_IMAGE_ID[split] + index
    pixels, annotations = draw_scene(np.random.default_rng((seed, image_id)), crowded)
    name, (height, width) = f"{image_id:07d}.jpg", pixels.shape[:2]
    encoded = io.BytesIO()  # Pillow does not notice every write to a file that fails
    Image.fromarray(pixels).save(encoded, "JPEG", quality=JPEG_QUALITY)
    (folder / name).write_bytes(encoded.getvalue())
    return (
        {"id": image_id, "file_name": name, "width": width, "height": height},
        [{"image_id": image_id, **annotation} for annotation in annotations],
    )
