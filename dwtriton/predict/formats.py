"""Detections as YOLO's text files and as CSV, beside the COCO file."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dwtriton.core.files import CheckedFile, make_folder, write_file, write_text

FORMATS = ("yolo", "csv")
COLUMNS = ("file_name", "frame", "category_id", "name", "score", "x1", "y1", "x2", "y2")

Records = Iterable[tuple[dict[str, Any], list[dict[str, Any]]]]  # images and annotations as in the COCO file


def write_csv(path: Path, records: Records, names: Mapping[int, str]) -> None:
    """Write one row of COLUMNS for each detection: corners in pixels, `frame` from 0 and empty for an image."""

    def write(file: CheckedFile) -> None:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
        rows = csv.writer(text)
        rows.writerow(COLUMNS)
        for image, annotations in records:
            for found in annotations:
                x, y, width, height = found["bbox"]
                where = image["file_name"], image.get("frame_id", "")
                category = found["category_id"]
                rows.writerow([*where, category, names[category], found["score"], x, y, x + width, y + height])
        text.detach()  # flushes, and leaves the file open

    write_file(path, write)


def write_yolo(folder: Path, records: Records, categories: Sequence[dict[str, Any]], stems: Mapping[str, str]) -> None:
    """Write for each image a file of lines "class x y width height score", centre and size as shares of the image.

    `stems` are the names of the files by the images' `file_name`; frames of a video have their number behind it.
    Classes are numbered from 0 as in `classes.txt`. An image without detections has an empty file.
    """
    make_folder(folder)
    numbers = {category["id"]: number for number, category in enumerate(categories)}
    write_text(folder / "classes.txt", "".join(f"{' '.join(str(c['name']).split())}\n" for c in categories))
    for image, annotations in records:
        lines = []
        for found in annotations:
            x, y, width, height = found["bbox"]
            shares = (
                (x + width / 2) / image["width"],
                (y + height / 2) / image["height"],
                width / image["width"],
                height / image["height"],
            )
            values = " ".join(f"{value:.6f}" for value in (*shares, found["score"]))
            lines.append(f"{numbers[found['category_id']]} {values}\n")
        frame = f"_{image['frame_id']:06d}" if "frame_id" in image else ""
        write_text(folder / f"{stems[image['file_name']]}{frame}.txt", "".join(lines))
