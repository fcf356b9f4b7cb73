"""Detections of many images and frames as one COCO file, without keeping them in memory."""

import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from dwtriton.core.files import CheckedFile, explain_writes, write_file


class DetectionsWriter(AbstractContextManager):
    """Collects images and their annotations in a temporary file; `write` makes a COCO file of them.

    Memory holds one entry for each run of consecutive image ids: one for a video, however long it is.
    `images`, `frames` and `detections` count what was added; `last_id` is the largest image id.
    Use it in `with`: at the end the temporary file is gone.
    """

    def __init__(self, folder: Path) -> None:
        """Open the temporary file in `folder`, where the COCO file will need as much space. Raises WriteError."""
        self.folder = folder
        with explain_writes(folder / "detections.json"):
            self._records = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 -- closed in __exit__
        self._runs: list[list[int]] = []  # of ids that follow each other: begin, end and offset in bytes
        self._drawn: dict[str, dict[str, str]] = {}  # by file name
        self.images = self.frames = self.detections = self.last_id = 0

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):  # of a full disk, which `add` has reported
            self._records.close()

    def add(self, image: dict[str, Any], annotations: list[dict[str, Any]]) -> None:
        """Add one image, a frame if it has a `frame_id`, and its annotations; image ids may come in any order.

        Raises WriteError.
        """
        offset = self._records.tell()
        with explain_writes(self.folder / "detections.json"):
            self._records.write(json.dumps([image, annotations]).encode() + b"\n")
        if self._runs and self._runs[-1][1] == image["id"]:
            self._runs[-1][1] += 1
        else:
            self._runs.append([image["id"], image["id"] + 1, offset])
        self.last_id = max(self.last_id, image["id"])
        self.frames += "frame_id" in image
        self.images += "frame_id" not in image
        self.detections += len(annotations)

    def set_drawn(self, file_name: str, picture: str) -> None:
        """Note the picture or video that was drawn of the images with this `file_name`."""
        self._drawn[file_name] = {"drawn": picture}

    def write(self, path: Path, info: dict[str, Any], categories: list[dict[str, Any]]) -> None:
        """Write the COCO file, whole or not at all: images by id, annotations numbered in the same order."""

        def write_coco(file: CheckedFile) -> None:
            images = (image | self._drawn.get(image["file_name"], {}) for image, _ in self.records())
            annotations = (annotation for _, annotations in self.records() for annotation in annotations)
            numbered = ({"id": number, **annotation} for number, annotation in enumerate(annotations, 1))
            file.write(f'{{"info": {json.dumps(info)}, "images": ['.encode())
            _write_items(file, images)
            file.write(b'], "annotations": [')
            _write_items(file, numbered)
            file.write(f'], "categories": {json.dumps(categories)}}}'.encode())

        write_file(path, write_coco)

    def records(self) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Yield images and their annotations by image id."""
        for begin, end, offset in sorted(self._runs):
            self._records.seek(offset)
            for _ in range(begin, end):
                yield json.loads(self._records.readline())


def _write_items(file: CheckedFile, items: Iterable[dict[str, Any]]) -> None:
    for number, item in enumerate(items):
        file.write(((", " if number else "") + json.dumps(item)).encode())
